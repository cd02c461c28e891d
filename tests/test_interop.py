"""Keras 3 models as tf_keras models: the same outputs, names and weights, or everything missing."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkd

try:
    VERSION = importlib.metadata.version("keras")
except importlib.metadata.PackageNotFoundError:
    VERSION = "none"
if not VERSION.startswith("3.15."):
    pytest.skip(f"Keras 3.15 is needed, installed is {VERSION}", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers as L
from keras import ops

ROOT = Path(tfkd.__file__).resolve().parent.parent
IMAGE = (6, 6, 4)
WORDS = 11


def randomized(model, seed=0):
    """Gives every weight of a Keras 3 model random numbers; variances stay positive."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "int" in str(weight.dtype):
            continue
        positive = "variance" in weight.path
        value = rng.uniform(0.5, 2, weight.shape) if positive else rng.normal(size=weight.shape)
        weight.assign(0.5 * value)
    return model


def batch_for(model, seed=3):
    """Random inputs: normal numbers, or words with many zeros."""
    rng = np.random.default_rng(seed)

    def draw(tensor):
        shape = [3 if size is None else size for size in tensor.shape]
        if "int" in tensor.dtype:
            return (rng.integers(0, WORDS, shape) * rng.integers(0, 2, shape)).astype(tensor.dtype)
        return rng.normal(size=shape).astype(tensor.dtype)

    is_chain = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(draw, model.inputs[0] if is_chain else model.input)


def check(model, tolerance=1e-5, **kwargs):
    """Converts, and compares outputs, structure, names and weights with the original."""
    made = tfkd.from_keras3(model, **kwargs)
    assert isinstance(made, tf_keras.Model) and made.name == model.name
    batch = batch_for(model)
    expected, found = model(batch, training=False), made(batch, training=False)
    tf.nest.assert_same_structure(expected, found)
    for theirs, ours in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
        assert ours.dtype == theirs.dtype
        theirs, ours = np.asarray(theirs, "float64"), np.asarray(ours, "float64")
        assert np.abs(theirs - ours).max(initial=0) <= tolerance * max(np.ptp(theirs), 1e-3)
    theirs = [np.asarray(weight) for weight in model.weights]
    ours = made.get_weights()
    assert [w.shape for w in theirs] == [w.shape for w in ours]
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)
    names = {layer.name for layer in made.layers}
    assert {layer.name for layer in model.layers} <= names | {"masks"}
    return made


def through(shape, *chain, dtype="float32"):
    """A functional model: the input through layers and functions, one after the other."""
    x = y = keras.Input(shape, dtype=dtype, name="x")
    for one in chain:
        y = one(y)
    return randomized(keras.Model(x, y, name="net"))


LAYERS = {
    "dense": ((5,), lambda: L.Dense(3, activation="tanh", use_bias=False)),
    "conv1d_causal": ((7, 3), lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv2d": (IMAGE, lambda: L.Conv2D(6, 3, strides=2, padding="same", groups=2)),
    "conv2d_relu6": (IMAGE, lambda: L.Conv2D(6, 3, activation="relu6")),
    "conv3d": ((4, 4, 4, 2), lambda: L.Conv3D(3, 2)),
    "conv1d_transpose": ((5, 3), lambda: L.Conv1DTranspose(4, 3, strides=2)),
    "conv2d_transpose": (IMAGE, lambda: L.Conv2DTranspose(3, 3, strides=2, padding="same")),
    "depthwise1d": ((7, 3), lambda: L.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise2d": (IMAGE, lambda: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")),
    "separable1d": ((7, 3), lambda: L.SeparableConv1D(4, 3)),
    "separable2d": (IMAGE, lambda: L.SeparableConv2D(5, 3, depth_multiplier=2)),
    "batch_norm": (IMAGE, lambda: L.BatchNormalization(epsilon=0.02, momentum=0.7, scale=False)),
    "batch_norm_axis": (IMAGE, lambda: L.BatchNormalization(axis=1)),
    "layer_norm": (IMAGE, lambda: L.LayerNormalization(axis=[1, 3], epsilon=1e-2)),
    "group_norm": (IMAGE, lambda: L.GroupNormalization(groups=2, epsilon=1e-2)),
    "unit_norm": (IMAGE, lambda: L.UnitNormalization(axis=-1)),
    "einsum": ((5, 4), lambda: L.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d")),
    "prelu": (IMAGE, lambda: L.PReLU(shared_axes=[1, 2])),
    "leaky_relu": (IMAGE, lambda: L.LeakyReLU(negative_slope=0.15)),
    "elu": (IMAGE, lambda: L.ELU(alpha=0.7)),
    "relu": (IMAGE, lambda: L.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2)),
    "softmax": (IMAGE, lambda: L.Softmax(axis=1)),
    "layer_as_activation": ((5,), lambda: L.Dense(3, activation=L.LeakyReLU(negative_slope=0.4))),
    "function_as_activation": ((5,), lambda: L.Dense(3, activation=keras.activations.gelu)),
    "max_pool": (IMAGE, lambda: L.MaxPooling2D(3, strides=2, padding="same")),
    "average_pool": ((7, 3), lambda: L.AveragePooling1D(2)),
    "global_average": (IMAGE, lambda: L.GlobalAveragePooling2D(keepdims=True)),
    "global_max": ((7, 3), lambda: L.GlobalMaxPooling1D()),
    "zero_padding1d": ((7, 3), lambda: L.ZeroPadding1D((1, 2))),
    "zero_padding2d": (IMAGE, lambda: L.ZeroPadding2D(((1, 2), (0, 1)))),
    "cropping": (IMAGE, lambda: L.Cropping2D(((1, 2), (0, 1)))),
    "up_sampling": (IMAGE, lambda: L.UpSampling2D(2, interpolation="bilinear")),
    "resizing": (IMAGE, lambda: L.Resizing(4, 9)),
    "rescaling": (IMAGE, lambda: L.Rescaling([1.0, 2.0, 3.0, 4.0], offset=[0.5, 0.0, 1.0, 2.0])),
    "normalization": (IMAGE, lambda: L.Normalization(mean=[1.0] * 4, variance=[2.0] * 4)),
    "reshape": (IMAGE, lambda: L.Reshape((-1, 8))),
    "permute": (IMAGE, lambda: L.Permute((3, 1, 2))),
    "flatten": (IMAGE, lambda: L.Flatten()),
    "repeat": ((5,), lambda: L.RepeatVector(3)),
    "dropout": (IMAGE, lambda: L.Dropout(0.3, noise_shape=(None, 1, 1, 4), seed=5)),
    "spatial_dropout": (IMAGE, lambda: L.SpatialDropout2D(0.3)),
    "noise": (IMAGE, lambda: L.GaussianNoise(0.3)),
    "random_flip": (IMAGE, lambda: L.RandomFlip("horizontal", seed=1)),
    "identity": (IMAGE, lambda: L.Identity()),
    "lstm": ((5, 3), lambda: L.LSTM(4, return_sequences=True, go_backwards=True)),
    "lstm_hard": ((5, 3), lambda: L.LSTM(4, recurrent_activation="hard_sigmoid")),
    "gru": ((5, 3), lambda: L.GRU(4)),
    "gru_before": ((5, 3), lambda: L.GRU(4, reset_after=False, use_bias=False)),
    "simple_rnn": ((5, 3), lambda: L.SimpleRNN(4)),
    "rnn_of_cells": ((5, 3), lambda: L.RNN([L.LSTMCell(4), L.GRUCell(2)])),
    "conv_lstm": ((3, 5, 5, 2), lambda: L.ConvLSTM2D(2, 3)),
    "bidirectional": ((5, 3), lambda: L.Bidirectional(L.LSTM(4), merge_mode="sum")),
    "time_distributed": ((3, *IMAGE), lambda: L.TimeDistributed(L.Conv2D(2, 3))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    shape, make = LAYERS[name]
    check(through(shape, make()))


ACTIVATIONS = (
    "relu relu6 elu selu softplus softsign silu gelu tanh sigmoid exponential linear softmax "
    "leaky_relu log_softmax mish hard_sigmoid hard_silu hard_tanh hard_shrink soft_shrink "
    "tanh_shrink celu log_sigmoid squareplus glu"
).split()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_by_name(name, tmp_path):
    made = check(through((6,), L.Dense(8), L.Activation(name, name="act")))
    # It can be saved and loaded without anything being said of it.
    made.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    x = np.linspace(-4, 4, 12).reshape(2, 6).astype("float32")
    np.testing.assert_array_equal(made(x), again(x))


OPERATIONS = {
    "add_number": lambda x: x + 1.5,
    "number_minus": lambda x: 2.0 - x,
    "add_array": lambda x: x + np.arange(4, dtype="float32"),
    "multiply_tensor": lambda x: x * ops.arange(1, 5, dtype="float32"),
    "divide": lambda x: x / (ops.abs(x) + 1.0),
    "power": lambda x: ops.square(x) ** 0.5,
    "broadcast": lambda x: x * ops.mean(x, axis=(1, 2), keepdims=True),
    "twice_the_same": lambda x: x + x,
    "maximum": lambda x: ops.maximum(x, ops.minimum(-x, 0.5)),
    "compare": lambda x: ops.where(x > 0.2, x, ops.zeros_like(x)),
    "where_number": lambda x: ops.where(ops.logical_and(x > 0.0, x < 1.0), x, -1.0),
    "clip": lambda x: ops.clip(x, -0.5, 0.7),
    "unary": lambda x: ops.exp(ops.sin(x)) - ops.log1p(ops.abs(x)) + ops.rsqrt(x * x + 1),
    "relu6": lambda x: ops.relu6(x + 3.0) * (1 / 6),
    "sigmoid": lambda x: ops.sigmoid(x) * ops.tanh(x) + ops.silu(x),
    "gelu": lambda x: ops.gelu(x) + ops.gelu(x, approximate=False),
    "leaky": lambda x: ops.leaky_relu(x, 0.3) + ops.elu(x, alpha=0.5) + ops.hard_sigmoid(x),
    "softmax": lambda x: ops.softmax(x, axis=2) + ops.log_softmax(x, axis=-1),
    "mean_all_but_batch": lambda x: ops.mean(x, axis=(1, 2, 3)),
    "statistics": lambda x: ops.var(x, axis=1) + ops.std(x, axis=2) + ops.max(x, axis=-2),
    "sum_and_logsumexp": lambda x: ops.sum(x, -1) + ops.logsumexp(x, axis=3) + ops.min(x, -1),
    "argmax": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 4),
    "reshape": lambda x: ops.reshape(x, (-1, 12, 12)),
    "reshape_batch": lambda x: ops.reshape(x, (-1, 4)),
    "reshape_unknown": lambda x: ops.reshape(x, (-1, 4, 36)),
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "transpose_batch": lambda x: ops.transpose(x, (1, 0, 2, 3)),
    "swap_and_move": lambda x: ops.moveaxis(ops.swapaxes(x, 1, 3), 1, -1),
    "move_two": lambda x: ops.moveaxis(x, (1, 2), (-1, 1)),
    "expand_squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 2), axis=2),
    "concatenate": lambda x: ops.concatenate([x, -x, x[..., :1]], axis=-1),
    "concatenate_batch": lambda x: ops.concatenate([x, x], axis=0),
    "stack": lambda x: ops.stack([x, 2 * x], axis=1),
    "split": lambda x: ops.split(x, 2, axis=-1),
    "split_at": lambda x: ops.split(x, [1, 4], axis=1),
    "unstack": lambda x: ops.unstack(x, axis=1),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.0),
    "pad_reflect": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="reflect"),
    "take": lambda x: ops.take(x, [0, -1, 2], axis=2),
    "slices": lambda x: x[:, 1:-1, ::2, 1],
    "new_axis": lambda x: x[:, None, ..., 0],
    "flip": lambda x: ops.flip(x, axis=1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 3)),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "cast": lambda x: ops.cast(ops.cast(x * 3, "int32") * 2 + 1, "float32"),
    "int_and_float": lambda x: ops.cast(x * 3, "int32") * 0.5 + x,
    "einsum": lambda x: ops.einsum("bhwc,bhwd->bcd", x, x),
    "matmul": lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "top_k": lambda x: ops.top_k(x, 2),
    "resize": lambda x: ops.image.resize(x, (4, 9), interpolation="nearest"),
    "depthless": lambda x: ops.stop_gradient(ops.copy(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name, tmp_path):
    made = check(through(IMAGE, OPERATIONS[name]))
    made.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    for one, other in zip(tf.nest.flatten(made(x)), tf.nest.flatten(again(x)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_operations_become_layers_that_pruning_and_quantization_know():
    x = keras.Input(IMAGE)
    y = L.Conv2D(4, 1, name="conv")(x)
    y = ops.relu(y) + x
    y = ops.mean(y * ops.sigmoid(y), axis=(1, 2))
    made = check(randomized(keras.Model(x, ops.concatenate([y, ops.relu6(y)], axis=-1))))
    kinds = [type(layer).__name__ for layer in made.layers]
    assert "TFOpLambda" not in kinds
    assert {"ReLU", "Add", "Multiply", "GlobalAveragePooling2D", "Concatenate"} <= set(kinds)
    graph = tfkd.pruning.analyse(made)
    assert not [item for item in graph.frozen if "no rule" in item.reason]


def test_shared_layers_stay_shared():
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    dense = L.Dense(4, name="shared")
    made = check(randomized(keras.Model([a, b], [dense(a) - dense(b), dense(a)])))
    assert len(made.weights) == 2
    assert len(made.get_layer("shared")._inbound_nodes) == 3


def test_nested_models_several_inputs_and_outputs_by_name():
    inner_x = keras.Input((6,), name="inner_x")
    inner = keras.Model(
        inner_x, {"z": L.Dense(3, name="d")(inner_x), "y": inner_x * 2}, name="inner"
    )
    head = keras.Sequential([keras.Input((3,)), L.Dense(2), L.BatchNormalization()], name="head")
    b, a = keras.Input((6,), name="b"), keras.Input((6,), name="a")
    one, two = inner(a), inner(b)
    outputs = {"u": head(one["z"] + two["z"]), "s": [one["y"], (two["y"],)]}
    made = check(randomized(keras.Model({"second": b, "first": a}, outputs, name="outer")))
    assert isinstance(made.get_layer("head"), tf_keras.Sequential)
    assert made.get_layer("inner").get_layer("d").units == 3


def test_sequential_in_sequential():
    inner = keras.Sequential([L.Dense(4, activation="relu"), L.Dropout(0.5)], name="inner")
    model = keras.Sequential([keras.Input((5,)), inner, L.Dense(2)], name="outer")
    made = check(randomized(model))
    assert isinstance(made, tf_keras.Sequential) and len(made.layers) == 2


def test_time_distributed_model():
    inner = keras.Sequential([keras.Input((5,)), L.Dense(4, name="d")], name="inner")
    check(through((3, 5), L.TimeDistributed(inner)))


def test_part_of_a_model_whose_other_calls_lie_outside():
    first = L.Dense(5)(keras.Input((5,)))
    dense = L.Dense(5, name="d")
    dense(first * 2)  # Not part of the model below.
    middle = ops.relu(dense(first))
    check(randomized(keras.Model(first, middle, name="part")))


def test_same_operation_many_times():
    x = keras.Input((4,))
    y = x
    for _ in range(300):  # Deeper than Python's recursion would like.
        y = y * 0.99 + 0.01
    check(keras.Model(x, y))


@pytest.mark.parametrize("explicit", [False, True])
def test_masks(explicit):
    words = keras.Input((7,), dtype="int32")
    x = L.Embedding(WORDS, 4, mask_zero=True)(words)
    kwargs = {"mask": ops.not_equal(words, 3)} if explicit else {}
    y = L.LSTM(3, return_sequences=True)(x, **kwargs)
    dropped = L.GRU(3)(ops.add(x, 1.0))  # An operation hands no mask on.
    model = randomized(keras.Model(words, [y, dropped, L.GlobalAveragePooling1D()(x)]))
    made = check(model)
    if not explicit:
        assert "NotEqual" not in {type(layer).__name__ for layer in made.layers}
    several = np.array([[1, 2, 0, 0, 4, 0, 0], [3, 0, 0, 0, 0, 0, 0]], "int32")
    for theirs, ours in zip(model(several), made(several), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    words = keras.Input((6,), dtype="int32", name="words")
    x = L.Embedding(WORDS, 8, mask_zero=True)(words)
    attention = L.MultiHeadAttention(2, 3, value_dim=5, dropout=0.1, name="heads")
    y, scores = attention(x, x, use_causal_mask=causal, return_attention_scores=True)
    y = L.LayerNormalization()(x + y + 0.1)
    y = L.Attention(use_scale=True, score_mode="concat")([y, x])
    z = L.AdditiveAttention()([y, x])
    check(randomized(keras.Model(words, [y, z, scores])))


def test_initial_state_of_a_recurrent_layer():
    x = keras.Input((5, 3))
    _, *state = L.LSTM(4, return_state=True, name="encoder")(x)
    y = L.LSTM(4, return_sequences=True, name="decoder")(x, initial_state=state)
    check(randomized(keras.Model(x, y)))


def test_stateful_recurrent_layer():
    x = keras.Input(batch_shape=(3, 5, 2))
    check(randomized(keras.Model(x, L.GRU(4, stateful=True)(x))))


def test_adapted_normalization():
    layer = L.Normalization(name="norm")
    layer.adapt(np.random.default_rng(0).normal(3, 5, (50, 4)).astype("float32"))
    x = keras.Input((4,))
    model = keras.Model(x, layer(x))
    made = tfkd.from_keras3(model)
    data = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
    expected = (data - np.asarray(layer.adapt_mean)) / np.sqrt(np.asarray(layer.adapt_variance))
    np.testing.assert_allclose(made(data), expected, rtol=1e-5)


def test_details_are_kept():
    conv = L.Conv2D(
        3,
        2,
        kernel_initializer=keras.initializers.HeNormal(seed=4),
        kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02),
        bias_regularizer="l2",
        kernel_constraint=keras.constraints.MaxNorm(3.0),
        name="conv",
    )
    norm = L.BatchNormalization(momentum=0.7, epsilon=0.03, name="norm", trainable=False)
    made = check(through(IMAGE, conv, norm))
    ours, theirs = made.get_layer("conv"), made.get_layer("norm")
    assert isinstance(ours.kernel_initializer, tf_keras.initializers.HeNormal)
    assert ours.kernel_initializer.seed == 4
    assert float(ours.kernel_regularizer.l1) == pytest.approx(0.01)
    assert float(ours.kernel_regularizer.l2) == pytest.approx(0.02)
    assert isinstance(ours.bias_regularizer, tf_keras.regularizers.L2)
    assert ours.kernel_constraint.max_value == 3.0
    assert (theirs.momentum, theirs.epsilon, theirs.trainable) == (0.7, 0.03, False)
    assert len(made.trainable_weights) == 2


def test_frozen_nested_model_stays_frozen():
    inner = keras.Sequential([keras.Input((5,)), L.Dense(4)], name="inner")
    inner.trainable = False
    made = check(through((5,), inner, L.Dense(2)))
    assert len(made.trainable_weights) == 2 and not made.get_layer("inner").trainable


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(policy):
    chain = L.Conv2D(3, 2, dtype=policy, name="c"), L.ReLU(dtype=policy), L.Dense(2, dtype=policy)
    made = check(through(IMAGE, *chain), tolerance=1e-5 if policy == "float64" else 0.02)
    assert made.get_layer("c").dtype_policy.name == policy


def test_training_goes_on():
    made = tfkd.from_keras3(
        through((5,), L.Dense(8, activation="relu"), L.Dropout(0.1), L.Dense(1))
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype("float32")
    made.compile(tf_keras.optimizers.Adam(0.02), "mse")
    losses = made.fit(x, x[:, :1], epochs=10, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_given_model_is_not_changed():
    model = through(IMAGE, L.Conv2D(3, 2, name="c"), L.BatchNormalization())
    before = [np.array(weight) for weight in model.weights]
    made = tfkd.from_keras3(model)
    made.set_weights([weight + 1 for weight in made.get_weights()])
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(model.get_layer("c")._inbound_nodes) == 1


@keras.saving.register_keras_serializable(package="tests")
class Twice(L.Layer):
    """A layer that only its author knows."""

    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="tests")
class LoudDense(L.Dense):
    """Looks like Dense, and is not."""

    def call(self, x):
        return super().call(x) + 1


@keras.saving.register_keras_serializable(package="tests")
class Odd(keras.regularizers.Regularizer):
    def __call__(self, x):
        return ops.sum(x)

    def get_config(self):
        return {}


def test_everything_missing_is_listed():
    x = keras.Input((8, 4), name="x")
    y = Twice(name="mine")(x)
    y = L.RMSNormalization(name="rms")(y)
    y = L.Dense(4, activation="sparsemax", kernel_regularizer=Odd(), name="dense")(y)
    y = L.Lambda(lambda t: t, name="secret")(y)
    y = L.MultiHeadAttention(2, 2, use_gate=True, name="gated")(y, y)
    y = ops.sort(y, axis=1)
    inner_x = keras.Input((8, 4))
    inner = keras.Model(inner_x, LoudDense(4, name="loud")(inner_x), name="inner")
    y = ops.max(inner(y), axis=1, initial=0.0)
    with pytest.raises(ValueError) as caught:
        tfkd.from_keras3(keras.Model(x, y, name="net"))
    lines = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    for start, part in {
        "- mine: ": "Twice",
        "- rms: ": "RMSNormalization",
        "- dense: argument activation": "'sparsemax'",
        "- dense: argument kernel_regularizer": "tests>Odd",
        "- secret: ": "Lambda",
        "- gated: ": "use_gate=True",
        "- sort": "Sort",
        "- inner/loud: ": "LoudDense",
        "- max": "Max: initial=0.0",
    }.items():
        assert [line for line in lines if line.startswith(start) and part in line], (start, lines)
    assert len(lines) == 9
    assert "custom_layers" in str(caught.value) and "'net'" in str(caught.value)


def test_custom_layers():
    @keras.saving.register_keras_serializable(package="tests")
    class Scale(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), name="factor")

        def call(self, x):
            return x * self.factor

    def replaced(layer):
        return tf_keras.layers.DepthwiseConv2D(1, use_bias=False, name=layer.name)

    model = through(IMAGE, Scale(name="scale"))
    with pytest.raises(ValueError, match=r"scale: \[\(4,\)\], in tf_keras \[\(1, 1, 4, 1\)\]"):
        tfkd.from_keras3(model, custom_layers={Scale: replaced})

    class Scale2(tf_keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), name="factor")

        def call(self, x):
            return x * self.factor

    check(model, custom_layers={Scale: lambda layer: Scale2(name=layer.name)})
    with pytest.raises(ValueError, match="returned no tf_keras layer"):
        tfkd.from_keras3(model, custom_layers={Scale: lambda layer: layer})


def test_verify_finds_a_wrong_layer():
    model = through((5,), L.Dense(3), Twice(name="mine"))
    wrong = {Twice: lambda layer: tf_keras.layers.Rescaling(2.001, name=layer.name)}
    with pytest.raises(ValueError, match="expected the converted model to equal 'net' to 1e-05"):
        tfkd.from_keras3(model, custom_layers=wrong)
    with pytest.raises(ValueError, match="received a difference of"):
        tfkd.from_keras3(model, custom_layers=wrong, verify=np.ones((2, 5), "float32"))
    made = tfkd.from_keras3(model, custom_layers=wrong, verify=False)
    assert made.get_layer("mine").scale == 2.001


def test_verify_refuses_nan():
    model = through((5,), L.Dense(3, name="d"))
    model.get_layer("d").kernel.assign(np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="difference of nan"):
        tfkd.from_keras3(model)
    assert np.isnan(tfkd.from_keras3(model, verify=False).get_weights()[0]).all()


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: keras.Sequential([L.Dense(3)], name="s"), "s: is not built"),
        (lambda: Subclassed(name="mine"), "is a subclassed model"),
    ],
)
def test_models_without_a_graph(model, text):
    with pytest.raises(ValueError, match=text):
        tfkd.from_keras3(model())


def test_wrong_arguments():
    x = tf_keras.Input((3,))
    with pytest.raises(TypeError, match="It is a tf_keras model already"):
        tfkd.from_keras3(tf_keras.Model(x, tf_keras.layers.Dense(2)(x)))
    for wrong in (3, "model.keras", L.Dense(3), keras.optimizers.Adam()):
        with pytest.raises(TypeError, match="a functional or Sequential model of Keras 3"):
            tfkd.from_keras3(wrong)
    model = through((5,), L.Dense(3))
    with pytest.raises(TypeError, match="custom_layers"):
        tfkd.from_keras3(model, custom_layers=[Twice])
    with pytest.raises(TypeError, match="custom_layers"):
        tfkd.from_keras3(model, custom_layers={Twice: 3})


def test_without_keras_3(monkeypatch):
    model = through((5,), L.Dense(3))
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match="pip install 'keras>=3'"):
        tfkd.from_keras3(model)


def test_module_needs_no_keras_3():
    program = (
        "import sys\n"
        "sys.modules['keras'] = None\n"
        "from tfkd.interop import from_keras3\n"
        "try:\n    from_keras3(3)\n"
        "except TypeError:\n    print('no keras')"
    )
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no keras"


def test_weights_that_tf_keras_orders_otherwise():
    model = through((5,), L.SpectralNormalization(L.Dense(3)))
    x = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")
    np.testing.assert_allclose(model(x), tfkd.from_keras3(model)(x), atol=1e-5)


STEPS = {
    "conv": lambda: L.Conv2D(4, 3, padding="same", activation="relu"),
    "shared": None,
    "norm": lambda: L.BatchNormalization(),
    "depthwise": lambda: L.DepthwiseConv2D(3, padding="same"),
    "residual": lambda: lambda x: x + ops.tanh(x) * 0.5,
    "gate": lambda: lambda x: x * ops.sigmoid(ops.mean(x, axis=(1, 2), keepdims=True)),
    "nested": lambda: keras.Sequential([keras.Input((None, None, 4)), L.Conv2D(4, 1), L.ReLU()]),
    "merge": lambda: lambda x: L.Average()([x, ops.relu(x)]),
    "shuffle": lambda: lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1),
}


@settings(deadline=None, max_examples=12, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=7))
def test_random_graphs(steps):
    shared = L.Conv2D(4, 1, name="common")
    check(through(IMAGE, *(STEPS[step]() if STEPS[step] else shared for step in steps)))
