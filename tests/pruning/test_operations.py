"""TensorFlow functions between layers: which keep channels apart, and what they freeze."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from nets import assert_exact, reasons, sizes

from tfkd import pruning

layers = keras.layers
A = "a.kernel:3=a a.bias:0=a "
B = "b.kernel:3=b b.bias:0=b"


def net(middle, shape=(6, 6, 3)):
    """Convolution "a" of 6, `middle`, convolution "b" of 4 (1×1), flatten, three outputs."""
    x = keras.Input(shape)
    y = middle(layers.Conv2D(6, 3, padding="same", name="a")(x))
    if len(y.shape) == 4:
        y = layers.Conv2D(4, 1, name="b")(y)
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))


def gated(y):
    """Squeeze and excite of TensorFlow functions."""
    s = tf.reduce_mean(y, axis=[1, 2], keepdims=True)
    return y * tf.sigmoid(layers.Dense(6, name="up")(s))


# id → function of a's output that keeps a's 6 channels apart, zero where a is.
FOLLOWED = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "silu": tf.nn.silu,
    "gelu": tf.nn.gelu,
    "leaky": lambda y: tf.nn.leaky_relu(y, 0.3),
    "tanh": tf.tanh,
    "abs": tf.abs,
    "square": tf.square,
    "negative": lambda y: -y,
    "sum with itself": lambda y: y + y,
    "a number times": lambda y: 0.3 * y,
    "divided by": lambda y: y / 3.0,
    "hard swish": lambda y: y * tf.nn.relu6(y + 3.0) / 6.0,
    "own gate": lambda y: y * tf.sigmoid(y),
    "clip around zero": lambda y: tf.clip_by_value(y, -1.0, 1.0),
    "cast": lambda y: tf.cast(tf.cast(y, "float64"), "float32"),
    "map of space": lambda y: y * tf.constant(np.arange(36.0).reshape(6, 6, 1) / 36, "float32"),
    "pad": lambda y: tf.pad(y, [[0, 0], [1, 2], [0, 1], [0, 0]]),
    "pad reflect": lambda y: tf.pad(y, [[0, 0], [1, 2], [0, 1], [0, 0]], "REFLECT"),
    "slice": lambda y: y[:, 1:5, ::2],
    "slice dots": lambda y: y[:, ::-1, ..., :],
    "one row": lambda y: tf.expand_dims(y[:, 2], 1),
    "mean keepdims": lambda y: tf.reduce_mean(y, [1, 2], keepdims=True),
    "max of rows": lambda y: tf.expand_dims(tf.reduce_max(y, axis=1), axis=2),
    "sum of rows": lambda y: tf.expand_dims(tf.reduce_sum(y, axis=-3), axis=-2),
    "there and back": lambda y: tf.transpose(
        tf.nn.relu(tf.transpose(y, [0, 3, 1, 2])), [0, 2, 3, 1]
    ),
    "transposed map": lambda y: tf.transpose(y, [0, 2, 1, 3]),
    "squeeze": lambda y: tf.squeeze(tf.expand_dims(y, 1), [1]),
    "squeeze last": lambda y: tf.squeeze(tf.expand_dims(y, -1), axis=-1),
    "concat of space": lambda y: tf.concat([y, y[:, :2]], 1),
    "resize": lambda y: tf.image.resize(y, (4, 9)),
    "flip": tf.image.flip_left_right,
    "stop": lambda y: tf.stop_gradient(y),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_functions_that_keep_channels_apart(kind):
    graph, _, small = assert_exact(net(FOLLOWED[kind]), A + B)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}
    assert small.get_layer("a").filters == 4


def test_squeeze_and_excite_of_functions():
    graph, _, _ = assert_exact(net(gated), A + B)
    assert sizes(graph) == {"a": (6, "a", "up"), "b": (4, "b")}


def test_reduced_to_a_vector():
    graph, _, _ = assert_exact(net(lambda y: tf.reduce_mean(y, [1, 2])), A)
    assert sizes(graph) == {"a": (6, "a")}


def test_concat_of_channels():
    def build(y):
        return tf.concat([y, layers.Conv2D(5, 1, name="c")(y)], axis=-1)

    graph, _, _ = assert_exact(net(build), A + B + " c.kernel:3=c c.bias:0=c")
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b"), "c": (5, "c")}


@pytest.mark.parametrize("operation", [tf.add, tf.subtract, tf.maximum, tf.multiply])
def test_two_branches(operation):
    def build(y):
        z = layers.Conv2D(6, 1, name="c")(y)
        return operation(layers.Conv2D(6, 1, name="d")(y), z)

    places = A + B + " c.kernel:3=d c.bias:0=d d.kernel:3=d d.bias:0=d"
    graph, _, _ = assert_exact(net(build), places)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b"), "d": (6, "d", "c")}


# id → (function, part of the reason why "a" stays)
FROZEN = {
    "sigmoid": (tf.sigmoid, "not zero where b mixes channels"),
    "softplus": (tf.math.softplus, "not zero where b mixes channels"),
    "exp": (tf.exp, "not zero where b mixes channels"),
    "log": (lambda y: tf.math.log(tf.abs(y) + 1.5), "not zero where b mixes channels"),
    "plus one": (lambda y: y + 1.0, "not zero where b mixes channels"),
    "one minus": (lambda y: 1.0 - y, "not zero where b mixes channels"),
    "at least one": (lambda y: tf.maximum(y, 1.0), "not zero where b mixes channels"),
    "clip above zero": (
        lambda y: tf.clip_by_value(y, 0.5, 1.0),
        "not zero where b mixes channels",
    ),
    "pad ones": (
        lambda y: tf.pad(y, [[0, 0], [1, 0], [0, 0], [0, 0]], constant_values=1.0),
        "not zero where b mixes channels",
    ),
    "map added": (  # the first number of the map is 0, the others are not
        lambda y: y + tf.constant(np.arange(36.0).reshape(6, 6, 1), "float32"),
        "not zero where b mixes channels",
    ),
    "number of each": (
        lambda y: y * tf.constant([1.0, 2, 3, 4, 5, 6]),
        "has a separate constant for each channel",
    ),
    "number of each, turned": (
        lambda y: tf.transpose(
            tf.transpose(y, [0, 3, 1, 2]) * tf.reshape(tf.range(1.0, 7.0), (6, 1, 1)),
            [0, 2, 3, 1],
        ),
        "has a separate constant for each channel",
    ),
    "softmax": (tf.nn.softmax, "the operation tf.nn.softmax"),
    "cumsum": (lambda y: tf.cumsum(y, -1), "the operation tf.math.cumsum"),
    "reverse": (lambda y: tf.reverse(y, [-1]), "the operation tf.reverse"),
    "l2": (lambda y: tf.math.l2_normalize(y, -1), "the operation tf.math.l2_normalize"),
    "mean of channels": (
        lambda y: y - tf.reduce_mean(y, -1, keepdims=True),
        "reduces over channels or over the batch",
    ),
    "slice of channels": (
        lambda y: y[..., 1:5],
        "slices the channels at constant positions",
    ),
    "first channel": (
        lambda y: y[..., 0:1] * y,
        "slices the channels at constant positions",
    ),
    "new axis": (
        lambda y: tf.squeeze(y[:, tf.newaxis], 1),
        "uses an index that is not supported",
    ),
    "pad channels": (
        lambda y: tf.pad(y, [[0, 0], [0, 0], [0, 0], [0, 2]]),
        "pads the channels",
    ),
    "reshape": (
        lambda y: tf.reshape(y, (-1, 36, 1, 6)),
        "reshapes to sizes that are constants of the call",
    ),
    "squeeze any": (
        lambda y: tf.reshape(tf.squeeze(y[:, 2:3, 2:3]), (-1, 1, 1, 6)),
        "may squeeze the channels",
    ),
    "flip of a turned map": (
        lambda y: tf.transpose(
            tf.image.flip_left_right(tf.transpose(y, [0, 3, 1, 2])), [0, 2, 3, 1]
        ),
        "works along another axis than the channels",
    ),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_functions_that_keep_all_channels(kind):
    function, reason = FROZEN[kind]
    graph, _, small = assert_exact(net(function), B)
    assert sizes(graph) == {"b": (4, "b")}
    assert reason in reasons(graph)["a"]
    assert small.get_layer("a").filters == 6


def test_the_reason_names_the_layer():
    model = net(tf.nn.softmax)
    name = next(layer.name for layer in model.layers if "softmax" in layer.name)
    assert (
        f"no rule for {name}, the operation tf.nn.softmax" in reasons(pruning.analyse(model))["a"]
    )


def test_a_quotient_of_two_dead_channels_is_not_a_number():
    def build(y):
        z = tf.abs(layers.Conv2D(6, 1, name="c")(y)) + 0.5
        return layers.Conv2D(6, 1, name="d")(y) / z

    graph, _, _ = assert_exact(net(build), A + B)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}
    assert "not zero where b mixes channels" in {
        reasons(graph)[n] for n in "cd" if n in reasons(graph)
    }


def test_a_sum_with_the_models_input():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(3, 3, padding="same", name="a")(x) + x
    y = layers.Conv2D(4, 1, name="b")(y)
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))
    graph, _, _ = assert_exact(model, B)
    assert sizes(graph) == {"b": (4, "b")}
    assert "to frozen channels" in reasons(graph)["a"]


def test_a_function_of_a_constant_alone():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(6, 3, name="a")(x)
    mean = tf.reduce_mean(x, [1, 2], keepdims=True)[..., :1]
    y = layers.Conv2D(4, 1, name="b")(y * tf.nn.relu(mean))
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))
    graph, _, _ = assert_exact(model, A + B)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}
