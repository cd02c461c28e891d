"""Flat models: the same function on new layers, whatever the model is made of.

`TFKD_FLAT_GRAPHS=200` sets how many random models are tried.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import strategies as st
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from toys import randomize

import tfkd
from tfkd import models
from tfkd.quantization.flattening.flatten import flatten
from tfkd.quantization.flattening.hard_swish import HardSigmoid, HardSwish

sys.path.append(str(Path(__file__).resolve().parents[2] / "pruning"))
from test_random_graphs import KINDS, Builder

layers = keras.layers
COUNT = int(os.environ.get("TFKD_FLAT_GRAPHS", "4"))
FACTOR = 1.7
WHOLE = (layers.SeparableConv1D, layers.SeparableConv2D)


def example(tensor, rng, count=3):
    """Numbers for one input of a model."""
    shape = [count, *[size or 4 for size in tensor.shape[1:]]]
    if tensor.dtype.is_floating:
        return rng.normal(size=shape).astype(tensor.dtype.as_numpy_dtype)
    return rng.integers(0, 5, shape).astype(tensor.dtype.as_numpy_dtype)


def assert_same(model, seed=0, tolerance=1e-5, randomized=True):
    """Flattens a model of random weights; asserts all that flattening promises."""
    if randomized:
        randomize(model, seed, 0.4)
    before = [weight.numpy() for weight in model.weights]
    calls = [len(layer._inbound_nodes) for layer in model.submodules if hasattr(layer, "call")]
    flat = flatten(model)
    rng = np.random.default_rng(seed)
    values = [example(tensor, rng) for tensor in model.inputs]
    data = tf.nest.pack_sequence_as(model._nested_inputs, values)
    expected, received = model(data, training=False), flat.model(data, training=False)
    tf.nest.assert_same_structure(expected, received)
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(received), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    after = [len(layer._inbound_nodes) for layer in model.submodules if hasattr(layer, "call")]
    assert after == calls
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    own = {id(weight) for weight in model.weights}
    assert not any(id(weight) in own for weight in flat.model.weights)
    old_layers = {id(layer) for layer in model.submodules}
    assert not any(id(layer) in old_layers for layer in flat.model.layers)
    assert not any(isinstance(layer, (keras.Model, *WHOLE)) for layer in flat.model.layers)
    found = {one.name for one in flat.model.layers if type(one).__name__ != "AddLoss"}
    assert set(flat.origins) == found
    assert flat.model.output_names == model.output_names
    return flat


def names(flat):
    return [layer.name for layer in flat.model.layers]


# --- models of all kinds ------------------------------------------------------------


@keras.saving.register_keras_serializable("test_flattening")
class Scale(layers.Layer):
    """A custom layer with a weight, an argument of `call` and one of the constructor."""

    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.factor = self.add_weight("factor", (shape[-1],))

    def call(self, x, extra=None, flip=False):
        y = x * self.factor * self.power
        y = y if extra is None else y + extra
        return -y if flip else y

    def get_config(self):
        return {**super().get_config(), "power": self.power}


def unregistered(x):
    return x * tf.sigmoid(FACTOR * x)


def block(name, shape=(6, 6, 4)):
    x = keras.Input(shape)
    y = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    return keras.Model(x, layers.Add(name="sum")([x, layers.ReLU(name="act")(y)]), name=name)


def shared_block():
    x, inner = keras.Input((6, 6, 4)), block("inner")
    outer = keras.Sequential([keras.Input((6, 6, 4)), inner, layers.ReLU(6.0)], name="outer")
    return keras.Model(x, layers.Concatenate()([outer(x), inner(outer(x)), inner(x)]))


def same_names():
    x = keras.Input((6, 6, 4))
    y = layers.Conv2D(4, 1, name="conv")(block("second")(block("first")(x)))
    return keras.Model(x, y)


def several():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    dense = layers.Dense(3, name="dense")
    outputs = {"sum": dense(a) + dense(b), "parts": [dense(a), b]}
    return keras.Model({"first": a, "second": b}, outputs)


def nested_dictionary():
    inner, c = several(), keras.Input((4,), name="c")
    found = inner({"second": layers.ReLU()(c), "first": c})
    return keras.Model(c, [found["sum"], found["parts"][0], found["parts"][1]])


def operations():
    x = keras.Input((6, 5, 4))
    y = 2.0 * x[:, 1:, ::2] - x[:, :-1, ::2] / 3.0 + np.arange(4, dtype=np.float32)
    y = tf.concat([y, tf.nn.relu(-y)], axis=-1)
    y = tf.where(y > 0.1, y, tf.reduce_mean(y, [1, 2], keepdims=True))
    y = tf.pad(tf.transpose(y, perm=[0, 2, 1, 3]), [[0, 0], [1, 0], [0, 0], [0, 0]])
    parts = tf.split(y, 2, axis=-1)
    y = tf.einsum("bhwc,bhwd->bcd", parts[0], parts[1])
    return keras.Model(x, tf.clip_by_value(y @ tf.constant(np.eye(4, 3, dtype=np.float32)), -2, 2))


def variable_constant():
    x = keras.Input((3,))
    return keras.Model(x, x * tf.Variable([1.0, 2.0, 3.0], trainable=False))


def lambdas():
    offset, x = 0.3, keras.Input((4,))
    y = layers.Lambda(lambda t: tf.tanh(t) * FACTOR + offset)(x)
    y = layers.Lambda(lambda t, k: t * k, arguments={"k": math.pi}, name="times")(y)
    return keras.Model(x, y)


def masked():
    x = keras.Input((7,), dtype="int32")
    inner = keras.Sequential([keras.Input((7, 3)), layers.SimpleRNN(4, return_sequences=True)])
    y = inner(layers.Embedding(5, 3, mask_zero=True)(x))
    return keras.Model(x, layers.GlobalAveragePooling1D()(y))


def keyword_arguments():
    x, y = keras.Input((5, 4)), keras.Input((5, 4))
    z = layers.MultiHeadAttention(2, 3, name="mha")(x, value=y, key=x, use_causal_mask=True)
    z = Scale(0.5)(z, extra=y, flip=True) + Scale()(y, flip=False)
    state = layers.Dense(6)(layers.Flatten()(y))
    return keras.Model([x, y], layers.SimpleRNN(6)(z, initial_state=state))


def custom():
    x = keras.Input((4,))
    y = layers.Dense(5, activation=unregistered, name="first")(x)
    y = layers.Dense(4, activation=lambda t: t * FACTOR, name="second")(Scale(2.0)(y))
    return keras.Model(x, layers.Bidirectional(layers.SimpleRNN(2))(layers.Reshape((2, 2))(y)))


def deferred():
    inner = keras.Sequential([layers.Dense(4, "tanh"), layers.Dropout(0.5)])
    x = keras.Input((3,))
    return keras.Model(x, inner(x))


def unequal_inputs():
    inner = keras.Sequential([keras.Input((4, 1)), layers.Flatten(), layers.Dense(2)])
    x, y = keras.Input((4,), dtype="int32"), keras.Input((4, 1), dtype="float64")
    return keras.Model([x, y], [inner(x), inner(y)])


def separable():
    x = keras.Input((9, 9, 3))
    y = layers.SeparableConv2D(5, 3, 2, depth_multiplier=2, activation="relu", name="a")(x)
    y = layers.SeparableConv2D(4, 3, padding="same", dilation_rate=2, use_bias=False, name="b")(y)
    y = layers.SeparableConv2D(4, (1, 3), padding="same", activation="swish", name="c")(y)
    y = layers.Reshape((-1, 4))(y)
    y = layers.SeparableConv1D(6, 3, 2, "same", activation="tanh", name="d")(y)
    return keras.Model(x, y)


def activated():
    x = keras.Input((6, 6, 3))
    prelu = layers.PReLU(shared_axes=[1, 2], name="prelu")
    y = layers.Conv2D(4, 3, padding="same", activation="gelu", name="gelu")(x)
    y = layers.Conv2D(4, 3, padding="same", activation=prelu, name="one")(y)
    y = layers.DepthwiseConv2D(3, padding="same", activation=prelu, name="two")(y)
    y = layers.Conv2DTranspose(4, 2, 2, activation="relu", name="up")(y)
    y = layers.Conv2D(4, 1, activation=tf.nn.relu6, name="six")(y)
    return keras.Model(x, layers.Dense(3, "softmax", name="scores")(layers.Flatten()(y)))


def passed_through():
    x = keras.Input((3,))
    inner = keras.Input((3,))
    inner = keras.Model(inner, [inner, layers.Dense(2)(inner)])
    same, dense = inner(x)
    return keras.Model(x, [same, dense, x])


def intermediate():
    x = keras.Input((3,))
    y = layers.Dense(4)(x)
    return keras.Model(y, layers.ReLU()(layers.Dense(2)(y)))


MODELS = (
    shared_block,
    same_names,
    several,
    nested_dictionary,
    operations,
    variable_constant,
    lambdas,
    masked,
    keyword_arguments,
    custom,
    deferred,
    unequal_inputs,
    separable,
    activated,
    passed_through,
    intermediate,
)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_same_function(make):
    assert_same(make())


@pytest.mark.parametrize("kind", ["Sequential", "resnet"])
def test_whole_networks(kind):
    if kind == "resnet":
        assert_same(models.resnet(8), tolerance=1e-4)
        return
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(3)])
    assert_same(model, randomized=False)


class Random(Builder):
    """Models of the pruning tests, with hard swishes."""

    def hard(self, number):
        y = self.pick(number)
        gate = tf.nn.relu6(y + 3.0) * (1.0 / 6.0)
        if number % 3 == 0:
            self.pool.append(gate)
        return y * gate if number % 2 else layers.Multiply()([gate, y])


STEPS = st.lists(
    st.tuples(st.sampled_from([*KINDS, "hard", "nest"]), st.integers(0, 999)),
    min_size=2,
    max_size=6,
)


@hypothesis.settings(
    max_examples=COUNT,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
)
@hypothesis.given(STEPS, st.integers(0, 999))
def test_random_models(steps, number):
    keras.backend.clear_session()
    builder = Random()
    for kind, detail in steps:
        builder.pool.append(getattr(builder, kind)(detail))
    model = builder.finish(number)
    if number % 2:
        x = keras.Input((5, 5, 3))
        model = keras.Model(x, [model(x), layers.Dense(2)(model(layers.ReLU()(x)))])
    assert_same(model, number, 1e-4)


# --- names --------------------------------------------------------------------------


def test_names_and_origins():
    flat = assert_same(same_names())
    # The outer model's names come first, then those of the model that stands first.
    found = {path: name for name, path in flat.origins.items()}
    assert found["conv"] == "conv"
    conv = {found["first/conv"], found["second/conv"]}
    assert conv in ({"first_conv", "second_conv"},)
    assert {found["first/act"], found["second/act"]} in (
        {"act", "first_act"},
        {"act", "second_act"},
    )


def test_names_of_parts():
    flat = assert_same(separable())
    assert [name for name in names(flat) if name[0] in "abcd" and len(name) < 12] == [
        *("a_depthwise", "a", "b_depthwise", "b"),
        *("c_depthwise", "c", "c_swish", "d_depthwise", "d", "d_tanh"),
    ]
    assert flat.model.get_layer("a").activation is keras.activations.relu
    assert flat.origins["c_swish"] == flat.origins["c_depthwise"] == "c"
    flat = assert_same(activated())
    # One PReLU object in two layers stays one.
    assert [name for name in names(flat) if "prelu" in name] == ["one_prelu"]
    assert len(flat.model.get_layer("one_prelu")._inbound_nodes) == 2


def test_a_scaled_sum_is_a_factor_and_a_sum():
    x, y = keras.Input((2, 2, 3)), keras.Input((1, 2, 3))
    layer = CustomScaleLayer(0.25, name="mixed")
    flat = assert_same(keras.Model([x, y], layer([layer([x, y]), x])))
    factor, total = flat.model.layers[2:]
    assert (factor.name, factor.scale) == ("mixed_scaled", 0.25)
    assert (type(total), total.name) == (layers.Add, "mixed")
    assert flat.origins["mixed_scaled"] == flat.origins["mixed"] == "mixed"
    # What an Add can't do stays: three tensors, or a broadcast over another rank.
    for inputs in ([x, y, y], [x, keras.Input(())]):
        flat = assert_same(keras.Model(inputs[:2], CustomScaleLayer(0.25, name="odd")(inputs)))
        assert type(flat.model.layers[-1]) is CustomScaleLayer


def test_nested_models_called_twice_keep_their_layers_shared():
    model = shared_block()
    flat = assert_same(model)
    assert flat.model.count_params() == model.count_params()
    assert len(flat.model.get_layer("conv")._inbound_nodes) == 4
    assert flat.origins["conv"] in ("inner/conv", "outer/inner/conv")


def test_losses_by_output_names():
    x = keras.Input((3,))
    first = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="d")], name="first")
    model = keras.Model(x, [first(x), layers.Dense(1, "tanh", name="second")(x)])
    flat = assert_same(model)
    flat.model.compile("sgd", loss={"first": "mse", "second": "mse"})
    loss = flat.model.evaluate(np.ones((2, 3)), {"first": np.ones((2, 2)), "second": np.ones(2)})
    expected = [np.mean((y.numpy() - 1) ** 2) for y in model(np.ones((2, 3)))]
    np.testing.assert_allclose(loss, [sum(expected), *expected], rtol=1e-5)


# --- training -----------------------------------------------------------------------


def test_regularizers_losses_and_flags():
    x = keras.Input((8, 8, 3))
    l2 = keras.regularizers.L2(0.1)
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SeparableConv2D(4, 3, depthwise_regularizer=l2, pointwise_regularizer=l2),
            layers.Conv2D(4, 3, activation="swish", activity_regularizer=l2, name="swished"),
        ]
    )
    y = inner(x)
    model = keras.Model(x, layers.Dense(2, kernel_regularizer=l2, name="head")(y))
    model.add_loss(0.5 * tf.reduce_mean(y))
    model.get_layer("head").trainable = False
    inner.layers[0].trainable = False
    flat = assert_same(model).model
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    model(data), flat(data)
    np.testing.assert_allclose(sum(model.losses), sum(flat.losses), rtol=1e-5)
    assert [tuple(w.shape) for w in flat.trainable_weights] == [(3, 3, 4, 4), (4,)]


def test_a_frozen_model_stays_frozen():
    model = same_names()
    model.get_layer("first").trainable = False
    flat = assert_same(model)
    frozen = {flat.origins[layer.name] for layer in flat.model.layers if not layer.trainable}
    assert frozen == {"first/conv", "first/norm", "first/sum", "first/act"}


@pytest.mark.parametrize("training", [True, False, None])
def test_training_argument_of_a_nested_model(training):
    x, inner = keras.Input((6, 6, 4)), block("inner")
    outer = keras.Sequential([keras.Input((6, 6, 4)), inner])
    model = randomize(keras.Model(x, outer(x, training=training)), 3)
    flat = flatten(model).model
    data = np.random.default_rng(0).normal(size=(4, 6, 6, 4)).astype(np.float32)
    for mode in (True, False):
        np.testing.assert_allclose(
            model(data, training=mode), flat(data, training=mode), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        inner.get_layer("norm").moving_mean, flat.get_layer("norm").moving_mean
    )


# --- hard swish ---------------------------------------------------------------------

SIX = layers.ReLU
SWISHES = {
    "MobileNetV3": lambda x: layers.Multiply()([x, SIX(6.0)(x + 3.0) * (1.0 / 6.0)]),
    "gate first": lambda x: layers.Multiply()([SIX(6.0)(3.0 + x) / 6.0, x]),
    "sixth last": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
    "sixth last, times": lambda x: (1 / 6) * (tf.nn.relu6(tf.add(x, 3.0)) * x),
    "rescaling": lambda x: x * layers.Rescaling(1 / 6)(
        layers.Activation(tf.nn.relu6)(layers.Rescaling(1.0, 3.0)(x))
    ),
}  # fmt: skip
NOT_SWISHES = {
    "another number": lambda x: x * (tf.nn.relu6(x + 2.9) * (1.0 / 6.0)),
    "another factor": lambda x: x * (tf.nn.relu6(x + 3.0) * 0.17),
    "another limit": lambda x: x * (SIX(5.0)(x + 3.0) * (1.0 / 6.0)),
    "divided by it": lambda x: 6.0 / (tf.nn.relu6(x + 3.0) + 1.0),
}


@pytest.mark.parametrize("form", SWISHES)
def test_hard_swish_is_one_layer(form):
    x = keras.Input((5, 4))
    model = keras.Model(x, layers.ReLU(name="end")(SWISHES[form](layers.Dense(4)(x))))
    flat = assert_same(model)
    assert [type(layer) for layer in flat.model.layers][2:] == [HardSwish, layers.ReLU]
    last = model.get_layer("end")._inbound_nodes[0].keras_inputs[0].node.layer.name
    assert flat.origins[flat.model.layers[2].name] == flat.model.layers[2].name == last


@pytest.mark.parametrize("form", NOT_SWISHES)
def test_others_are_left_alone(form):
    x = keras.Input((5, 4))
    model = keras.Model(x, NOT_SWISHES[form](x))
    flat = assert_same(model)
    assert names(flat) == [layer.name for layer in model.layers]


def test_chains_that_others_read():
    x = keras.Input((4,))
    shifted = x + 3.0
    clipped = tf.nn.relu6(shifted)
    gate = clipped * (1 / 6)
    kinds = (HardSwish, HardSigmoid)
    for outputs, expected in (
        ([x * gate, shifted], []),
        ([x * gate, clipped], []),
        ([x * gate, gate], [HardSigmoid]),
        ([layers.Dense(4)(x) * gate, x], [HardSigmoid]),
        ([x * gate, x], [HardSwish]),
    ):
        flat = assert_same(keras.Model(x, outputs))
        assert [type(one) for one in flat.model.layers if isinstance(one, kinds)] == expected


def test_squeeze_and_excite_of_mobilenet_v3():
    x = keras.Input((8, 8, 3))
    last = layers.Multiply(name="shared")

    def swish(y):
        return last([y, SIX(6.0)(y + 3.0) * (1.0 / 6.0)])

    y = swish(layers.Conv2D(4, 3, padding="same")(x))
    s = layers.Conv2D(4, 1)(layers.GlobalAveragePooling2D(keepdims=True)(y))
    y = layers.Multiply(name="scaled")([y, SIX(6.0)(s + 3.0) * (1.0 / 6.0)])
    flat = assert_same(keras.Model(x, swish(layers.DepthwiseConv2D(3)(y))))
    kinds = [type(layer).__name__ for layer in flat.model.layers]
    assert (kinds.count("HardSwish"), kinds.count("HardSigmoid"), kinds.count("Multiply")) == (
        2,
        1,
        1,
    )
    assert "tf.__operators__.add" not in " ".join(names(flat))
    # One Multiply was called for both hard swishes.
    assert [path for path in flat.origins.values()].count("shared") == 2


def test_hard_layers_in_numpy(tmp_path):
    x = np.random.default_rng(0).uniform(-5, 5, 41).astype(np.float32)
    gate = np.clip(x + 3, 0, 6) / 6
    np.testing.assert_allclose(HardSigmoid()(x), gate, rtol=1e-6)
    np.testing.assert_allclose(HardSwish()(x), x * gate, rtol=1e-6)
    inner = HardSigmoid(inner=True)
    np.testing.assert_allclose(inner(x), np.round(gate * 255) / 255, atol=1e-6)
    i = keras.Input((41,))
    path = tmp_path / "hard.keras"
    keras.Model(i, inner(HardSwish()(i))).save(path)
    loaded = keras.models.load_model(path)
    gate = np.clip(x * gate + 3, 0, 6) / 6
    np.testing.assert_allclose(loaded(x[None])[0], np.round(gate * 255) / 255, atol=1e-6)


# --- what is refused ----------------------------------------------------------------


class Incomplete(layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {"name": self.name}


class Subclassed(keras.Model):
    def call(self, x):
        return x


def half():
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(2, dtype="mixed_float16", name="half")(x))


def incomplete():
    x = keras.Input((3,))
    return keras.Model(x, Incomplete(2.0, name="mine")(x))


def quantized():
    import tensorflow_model_optimization as tfmot

    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2, name="dense")(x))
    return tfmot.quantization.keras.quantize_model(model)


def pruned():
    import tensorflow_model_optimization as tfmot

    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2, name="dense")(x))
    return tfmot.sparsity.keras.prune_low_magnitude(model)


def distiller():
    nets = []
    for _ in range(2):
        x = keras.Input((3,))
        nets.append(keras.Model(x, layers.Dense(2)(x)))
    return tfkd.Distiller(*nets, tfkd.losses.LogitsDistillation())


def keras_3():
    return pytest.importorskip("keras").Sequential()


REFUSED = {
    keras_3: (TypeError, "from_keras3"),
    lambda: "model": (TypeError, "a tf_keras model"),
    lambda: keras.Sequential([layers.Dense(2)]): (ValueError, "without an input shape"),
    Subclassed: (ValueError, "subclassed Subclassed"),
    distiller: (TypeError, "distiller.student"),
    quantized: (ValueError, "quantized already"),
    pruned: (ValueError, "strip_pruning"),
    half: (ValueError, "'half' in mixed_float16"),
    incomplete: (ValueError, "received 'mine', a Incomplete"),
}


@pytest.mark.parametrize("make", REFUSED, ids=[r[1] for r in REFUSED.values()])
def test_refused(make):
    kind, words = REFUSED[make]
    with pytest.raises(kind, match=words):
        flatten(make())
