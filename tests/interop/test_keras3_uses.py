"""Converted models in the rest of tfkd: pruned, exported, as teachers."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras
import toys
from keras3_toys import WORDS, L, keras, ops, randomized

import tfkd
from tfkd import pruning
from tfkd.interop.attention import MaskedAttention

DEAD = [0, 2, 3, 7]  # of 8


def silence(layer):
    """Sets half of a layer's units to zero, in the Keras 3 model."""
    for weight in layer.weights:
        value = np.array(weight)
        value[..., DEAD] = 0
        weight.assign(value)


@pytest.fixture(scope="module")
def network():
    """Operations between layers, a sum and a gate; half of the filters of "conv" are zero."""
    x = keras.Input((8, 8, 3), name="image")
    start = L.Conv2D(6, 3, strides=2, use_bias=False, name="stem")(x)
    start = ops.relu6(L.BatchNormalization(name="norm")(start))
    y = ops.relu(L.Conv2D(8, 3, padding="same", name="conv")(start))
    y = L.Conv2D(6, 1, name="project")(y) + start
    y = y * ops.sigmoid(ops.mean(y, axis=(1, 2), keepdims=True))
    model = keras.Model(x, L.Dense(5, name="scores")(ops.mean(y, axis=(1, 2))), name="cnn")
    silence(randomized(model).get_layer("conv"))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")


def assert_close(expected, found):
    expected = np.asarray(expected)
    assert np.abs(expected - found).max() <= 1e-5 * np.ptp(expected)


def test_convolutions_are_pruned(network, images):
    made = tfkd.from_keras3(network)
    plan = pruning.plan(made, filter_rate=0.5)
    small = pruning.shrink(made, pruning.select(made, plan))
    assert small.get_layer("conv").filters == 4
    # What went was zero: so the outputs are those of the Keras 3 model.
    assert_close(network(images, training=False), small(images))


def test_functions_that_keras_2_has_not_stop_no_pruning(images):
    x = keras.Input((8, 8, 3), name="image")
    y = L.Conv2D(8, 3, activation="hard_silu", name="conv")(x)
    gate = L.Dense(8, activation="hard_sigmoid", name="gate")(L.GlobalAveragePooling2D()(y))
    y = L.Multiply()([y, L.Reshape((1, 1, 8))(gate)])
    model = keras.Model(x, L.Dense(5, name="scores")(L.GlobalAveragePooling2D()(y)))
    silence(randomized(model).get_layer("conv"))
    made = tfkd.from_keras3(model)
    small = pruning.shrink(made, pruning.select(made, pruning.plan(made, filter_rate=0.5)))
    assert small.get_layer("conv").filters == small.get_layer("gate").units == 4
    assert_close(model(images, training=False), small(images))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_transformer_with_masks_is_pruned(dropout):
    words = keras.Input((6,), dtype="int32", name="words")
    x = L.Embedding(WORDS, 4, mask_zero=True)(words)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3, dropout=dropout, name="heads")(x, x))
    y = L.Dense(4, name="down")(L.Dense(8, activation="gelu", name="up")(x))
    y = L.GlobalAveragePooling1D()(L.LayerNormalization()(x + y))
    model = randomized(keras.Model(words, L.Dense(3)(y)))
    silence(model.get_layer("up"))
    made = tfkd.from_keras3(model)
    # With dropout Keras 3 looks at nothing where all is masked, else evenly at everything.
    assert isinstance(made.get_layer("heads"), MaskedAttention) == (dropout > 0)
    assert not [item for item in pruning.analyse(made).frozen if "no rule" in item.reason]
    small = pruning.shrink(made, pruning.select(made, pruning.plan(made, filter_rate=0.5)))
    assert small.get_layer("up").units == 4
    batch = np.array([[1, 2, 0, 3, 0, 0], [4, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], "int32")
    assert_close(model(batch, training=False), small(batch))


def test_a_converted_model_becomes_a_tflite_file(network, images, tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    tfkd.export.to_tflite(tfkd.from_keras3(network), tmp_path / "model.tflite")
    runner = interpreter.Interpreter(str(tmp_path / "model.tflite"))
    runner.allocate_tensors()
    (into,), (out,) = runner.get_input_details(), runner.get_output_details()
    found = []
    for image in images[:, None]:
        runner.set_tensor(into["index"], image)
        runner.invoke()
        found.append(runner.get_tensor(out["index"])[0])
    assert_close(network(images, training=False), np.stack(found))


def test_a_converted_model_teaches():
    x, y = toys.data()
    inputs = keras.Input((5,))
    hidden = L.Dense(4, activation="tanh", name="deep")(inputs)
    source = keras.Model(inputs, L.Dense(3)(L.BatchNormalization()(hidden) * 2.0))
    scores = np.asarray(randomized(source)(x, training=False))
    deep = np.asarray(keras.Model(inputs, hidden)(x))
    student = toys.net(seed=2)
    kd = toys.soft_targets(scores, student(x), 2.0).mean()
    weights = student.get_weights()
    hint = np.square(deep - np.tanh(x @ weights[0] + weights[1])).mean()
    losses = [
        tfkd.losses.LogitsDistillation(2.0),
        tfkd.losses.FeatureDistillation(teacher_layer_name="deep", student_layer_name="hidden"),
    ]
    distiller = tfkd.Distiller(tfkd.from_keras3(source), student, losses)
    distiller.compile(tf_keras.optimizers.SGD(0.0), toys.CROSSENTROPY)
    found = toys.logs(distiller.fit(x, y, batch_size=8, verbose=0))
    np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-4)
    np.testing.assert_allclose(found["feature_distillation"], hint, rtol=1e-4)
