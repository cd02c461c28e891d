"""What `quantize` makes of a model, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd.quantization import QuantizedModel, calibrate, quantize

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")


def network():
    """Convolutions in a nested model, a residual sum, squeeze and excitation, a head."""
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(x)
    y = L.ReLU(6.0, name="relu")(L.BatchNormalization(name="norm")(y))
    z = L.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    backbone = keras.Model(x, L.Add(name="add")([y, z]), name="backbone")
    x = keras.Input((8, 8, 3), name="image")
    y = backbone(x)
    s = L.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
    s = L.Conv2D(4, 1, activation="sigmoid", name="excite")(s)
    y = L.Multiply(name="scale")([y, s])
    y = L.SeparableConv2D(6, 3, strides=2, name="sep")(y)
    y = L.Flatten(name="flat")(L.PReLU(name="prelu")(y))
    return keras.Model(x, L.Dense(3, activation="softmax", name="head")(y), name="network")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = network()
    made.get_layer("backbone").get_layer("norm").set_weights(
        [np.array(v, "float32") for v in ([1, 2, 0.5, 1], [0, 1, 0, -1], [0] * 4, [2, 1, 1, 0.5])]
    )
    return made


@pytest.fixture(scope="module", params=["tflite", "tensorrt", "both"])
def q(request, model):
    made = quantize(model, request.param)
    calibrate(made, X)
    return made


def test_outputs_are_those_of_the_float_model_within_the_grid(q, model):
    assert isinstance(q, QuantizedModel)
    assert (q.name, q.output_names, q.output_shape) == ("network", ["head"], (None, 3))
    error = np.abs(q(X) - model(X))
    assert 0 < error.max() < 0.05  # probabilities; a grid step is 1/256 or 1/127


def test_the_model_given_is_neither_changed_nor_shared(q, model):
    assert not {id(v) for v in q.variables} & {id(v) for v in model.variables}
    by_name = {v.name: v.numpy() for v in q.trainable_variables}
    for v in model.trainable_variables:
        if "sep" not in v.name and "norm" not in v.name:  # batch normalizations are frozen
            np.testing.assert_array_equal(by_name[v.name], v)
    assert len(q.trainable_variables) == len(model.trainable_variables) - 2
    assert len(q.variables) >= len(model.variables)


def test_layers_keep_their_names(q):
    names = [layer.name for layer in q.layers]
    for name in ("conv1", "norm", "add", "scale", "sep_depthwise", "sep", "head", "head_softmax"):
        assert name in names


def test_the_report_has_a_row_for_each_layer(q):
    report = q.report
    assert [row.layer for row in report][:3] == ["image", "conv1", "norm"]
    assert (report.of("conv1").action, report.of("norm").action) == ("int8", "fused")
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "kind", "decision", "range", "in", "TensorRT", "why"]
    assert len(lines) == len(report) + 4
    counts = report.counts
    assert sum(counts.values()) == len(report)
    assert lines[-1].startswith(f"{counts['int8']} int8, ")
    kinds = [row.kind for row in report]
    starts = {line.index(kind) for line, kind in zip(lines[2:-2], kinds, strict=True)}
    assert starts == {lines[0].index("kind")}
    json.dumps(report.to_dict())
    with pytest.raises(KeyError, match="nothing"):
        report.of("nothing")


def test_the_report_tells_which_layers_have_ranges(q):
    with_range = {row.layer for row in q.report if row.output}
    assert {name.removesuffix("_quantize") for name in q.ranges} == with_range
    if q.target != "tflite":
        assert all(low == -high for low, high in q.ranges.values())
    if q.target == "tensorrt":
        assert all(row.tensorrt for row in q.report if row.output)


def test_the_recipe_makes_the_same_model_again(q, model):
    recipe = json.loads(json.dumps(q.recipe))
    flat = keras.models.model_from_json(q.float_config)
    again = quantize(
        flat, recipe["target"], recipe["fallback"], recipe["skip"], recipe["preserve_sparsity"]
    )
    assert not again.calibrated
    again.set_weights(q.get_weights())
    assert again.calibrated
    np.testing.assert_array_equal(again(X), q(X))


def small():
    return keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(3, name="dense")])


def test_an_uncalibrated_model_refuses_every_call():
    q = quantize(small())
    q.compile("sgd", "mse")
    y = np.zeros((16, 3))
    calls = [
        lambda: q(X),
        lambda: q(X, training=True),
        lambda: q.fit(X, y, verbose=0),
        lambda: q.evaluate(X, y, verbose=0),
        lambda: q.predict(X, verbose=0),
        lambda: q.train_on_batch(X, y),
        lambda: tf.function(q)(X),
        lambda: tfkd.Distiller(small(), q, tfkd.losses.LogitsDistillation())(X),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"tfkd\.quantization\.calibrate\(q, images\)"):
            call()
    image = keras.Input((8, 8, 3))
    around = keras.Model(image, q(image))  # nothing is computed
    with pytest.raises(RuntimeError, match="calibrate"):
        around(X)
    calibrate(q, X)
    q.fit(X, y, verbose=0)  # what was refused works now
    assert around(X).shape == (16, 3)


def test_skipped_layers_stay_float(model):
    q = quantize(model, skip=["backbone", "head"])
    rows = {row.layer: row for row in q.report}
    for name in ("conv1", "norm", "relu", "depthwise", "add", "head", "head_softmax"):
        assert (rows[name].action, rows[name].why) == ("float", "left out by `skip`")
    assert rows["sep"].action == "int8"
    assert q.recipe["skip"] == sorted(set(q.recipe["skip"]))
    by_path = quantize(model, skip=["backbone/conv1"])
    assert by_path.report.of("conv1").action == "float"
    assert by_path.report.of("depthwise").action == "int8"


def test_a_frozen_layer_stays_frozen():
    q = quantize(small())
    assert len(q.trainable_variables) == 2
    q.get_layer("dense").trainable = False
    assert q.trainable_variables == []


def test_masks_dictionaries_and_functions_pass():
    ids = keras.Input((5,), dtype="int32", name="ids")
    x = L.Embedding(9, 4, mask_zero=True, name="table")(ids)
    x = L.Dense(4, activation="tanh", name="dense")(L.Dropout(0.1, name="drop")(x))
    y = L.GlobalAveragePooling1D(name="mean")(x)  # over what is not masked
    a, b = tf.split(y, 2, axis=-1)
    model = keras.Model({"ids": ids}, {"sum": tf.nn.relu(a + b), "mean": y})
    q = quantize(model)
    data = np.random.default_rng(0).integers(0, 9, (6, 5)).astype("int32")
    calibrate(q, {"ids": data})
    result, expected = q({"ids": data}), model({"ids": data})
    for key in ("sum", "mean"):
        np.testing.assert_allclose(result[key], expected[key], atol=0.03)


def test_a_shared_layer_has_shared_weights_and_a_range_for_each_call():
    x = keras.Input((4,), name="x")
    dense = L.Dense(4, name="dense")
    q = quantize(keras.Model(x, dense(L.Rescaling(100.0, name="up")(dense(x)))))
    calibrate(q, X[:, 0, 0, [0, 1, 2, 0]])
    assert [(r.layer, r.call) for r in q.report][1::2] == [("dense", 0), ("dense", 1)]
    first, second = (q.ranges[n][1] for n in ("dense_quantize", "dense_quantize_1"))
    assert second > 10 * first
    assert len(q.trainable_variables) == 2


def test_pruned_weights_stay_zero_in_training():
    pruned = small()
    kernel = pruned.get_layer("dense").kernel
    mask = np.arange(192 * 3).reshape(192, 3) % 2
    kernel.assign(kernel * mask)
    q = quantize(pruned, preserve_sparsity=True)
    calibrate(q, X)
    q.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    q.fit(X, np.eye(3)[np.arange(16) % 3], verbose=0)
    after = q.get_layer("dense").layer.kernel.numpy()
    assert not after[mask == 0].any()
    assert (after[mask == 1] != kernel.numpy()[mask == 1]).all()


def subclassed():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    own = Own()
    own(X)
    return own


def half():
    return keras.Sequential([keras.Input((2,)), L.Dense(2, dtype="mixed_float16")])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: subclassed(), ValueError, "subclassed"),
        (lambda m: keras.Sequential([L.Dense(2)]), ValueError, "input shape"),
        (lambda m: half(), ValueError, "float32"),
        (lambda m: "model.h5", TypeError, "tf_keras"),
        (lambda m: quantize(m), ValueError, "quantized already"),
        (
            lambda m: tfkd.Distiller(small(), small(), tfkd.losses.LogitsDistillation()),
            TypeError,
            "distiller.student",
        ),
    ],
    ids=["subclassed", "unbuilt", "half", "path", "quantized", "distiller"],
)
def test_models_that_cannot_be_quantized_are_refused(model, make, error, match):
    with pytest.raises(error, match=match):
        quantize(make(model))


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"target": "tf-lite"}, ValueError, "Did you mean 'tflite'"),
        ({"fallback": "float"}, ValueError, "output_only"),
        ({"skip": ["con1"]}, ValueError, "conv1"),
        ({"skip": "con1"}, ValueError, "conv1"),
        ({"skip": 3}, TypeError, "names of layers"),
        ({"skip": [3]}, TypeError, "names of layers"),
    ],
)
def test_bad_arguments_are_refused(model, kwargs, error, match):
    with pytest.raises(error, match=match):
        quantize(model, **kwargs)


@pytest.mark.parametrize("name", ["the input", "größe", "色", "x:0", "stage[1]*", "_x"])
def test_inputs_may_have_names_that_layers_may_not(name):
    inputs = {key: keras.Input((4,), name=key) for key in (name, "other")}
    out = keras.layers.Dense(3)(inputs[name] + inputs["other"])
    q = quantize(keras.Model(inputs, out))
    x = {key: np.random.default_rng(1).normal(size=(8, 4)).astype("float32") for key in inputs}
    calibrate(q, x)
    assert set(q.input_names) == set(inputs)
    ends = pytest.approx((x[name].min(), x[name].max()), rel=1e-6)
    assert sum(found == ends for found in q.ranges.values()) == 2
