"""Strings, lookups, adapted preprocessing, and rows of features."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sweep_models.base import WORDS, model
from sweep_models.sequences import stack

L = keras.layers
NUMBERS = np.random.default_rng(5).normal(3, 2, (64, 4)).astype("float32")


@model("lookup")
def string_lookup():
    layers = [L.StringLookup(vocabulary=["apple", "pear"]), L.Embedding(3, 4), L.Flatten()]
    return stack((2,), *layers, L.Dense(3), dtype="string")


@model("lookup")
def string_lookup_one_hot():
    lookup = L.StringLookup(vocabulary=["apple", "pear"], output_mode="multi_hot")
    return stack((2,), lookup, L.Dense(3), dtype="string")


@model("lookup")
def integer_lookup():
    lookup = L.IntegerLookup(vocabulary=[5, 7, 9], output_mode="one_hot")
    return stack((1,), lookup, L.Dense(3), dtype="int64")


@model("lookup")
def integer_lookup_embedded():
    layers = [L.IntegerLookup(vocabulary=[5, 7, 9]), L.Embedding(4, 3), L.Flatten(), L.Dense(3)]
    return stack((3,), *layers, dtype="int64")


@model("lookup")
def text_vectorization():
    words = L.TextVectorization(output_sequence_length=4, vocabulary=["apple", "pear", "plum"])
    return stack(
        (1,), words, L.Embedding(5, 4), L.GlobalAveragePooling1D(), L.Dense(3), dtype="string"
    )


@model("lookup")
def text_tf_idf():
    words = L.TextVectorization(output_mode="tf_idf")
    words.adapt(np.array([["apple pear"], ["apple plum"], ["fig"]], object))
    return stack((1,), words, L.Dense(3), dtype="string")


@model("lookup")
def hashing_strings():
    return stack((2,), L.Hashing(8), L.Embedding(8, 3), L.Flatten(), L.Dense(3), dtype="string")


@model("lookup")
def hashing_integers():
    return stack(
        (2,), L.Hashing(8, salt=3), L.Embedding(8, 3), L.Flatten(), L.Dense(3), dtype="int64"
    )


@model("lookup")
def category_encoding():
    return stack((3,), L.CategoryEncoding(10, output_mode="count"), L.Dense(3), dtype="int32")


@model("lookup")
def category_one_hot():
    return stack((1,), L.CategoryEncoding(10, output_mode="one_hot"), L.Dense(3), dtype="int32")


@model("lookup", heads="values")
def string_labels_out():
    x = keras.Input((4,))
    names = L.StringLookup(vocabulary=list(WORDS[:3]), invert=True)
    return keras.Model(x, names(tf.argmax(L.Dense(3)(x), -1)))


@model("lookup")
def strings_and_numbers():
    fruit, weight = (
        keras.Input((1,), dtype="string", name="fruit"),
        keras.Input((2,), name="weight"),
    )
    one_hot = L.StringLookup(vocabulary=["apple", "pear"], output_mode="one_hot")(fruit)
    return keras.Model(
        {"fruit": fruit, "weight": weight}, L.Dense(3)(L.Concatenate()([one_hot, weight]))
    )


@model("lookup")
def crossed_features():
    a, b = keras.Input((1,), dtype="string", name="a"), keras.Input((1,), dtype="string", name="b")
    crossed = L.HashedCrossing(6, output_mode="one_hot")((a, b))
    return keras.Model([a, b], L.Dense(3)(crossed))


@model("lookup")
def split_by_hand():
    x = keras.Input((), dtype="string")
    lengths = tf.strings.length(x)
    return keras.Model(x, L.Dense(3)(tf.cast(lengths, "float32")[:, None]))


@model("preprocessing", heads="values")
def normalization():
    layer = L.Normalization()
    layer.adapt(NUMBERS)
    return stack((4,), layer, L.Dense(8, "relu"), L.Dense(1))


@model("preprocessing")
def normalization_fixed():
    return stack(
        (6, 6, 3),
        L.Normalization(mean=[1, 2, 3], variance=[4, 1, 2]),
        L.Conv2D(4, 3),
        L.Flatten(),
        L.Dense(3),
    )


@model("preprocessing", heads="values")
def denormalized():
    layer = L.Normalization(invert=True, mean=3.0, variance=4.0)
    return stack((4,), L.Dense(6, "relu"), L.Dense(1), layer)


@model("preprocessing")
def discretization():
    return stack(
        (4,), L.Discretization([-1.0, 0.0, 1.0]), L.Embedding(4, 3), L.Flatten(), L.Dense(3)
    )


@model("preprocessing")
def discretization_adapted():
    layer = L.Discretization(num_bins=4, output_mode="multi_hot")
    layer.adapt(NUMBERS)
    return stack((4,), layer, L.Dense(3))


@model("rows", heads="values")
def linear():
    return stack((4,), L.Dense(1))


@model("rows", heads="values")
def scalar_output():
    x = keras.Input((4,))
    return keras.Model(x, tf.reduce_mean(L.Dense(6, "relu")(x), -1))


@model("rows", heads="sigmoid")
def binary():
    return stack((4,), L.Dense(6, "relu"), L.Dense(1, "sigmoid"))


@model("rows", heads="sigmoid")
def multi_label():
    return stack((4,), L.Dense(8, "relu"), L.BatchNormalization(), L.Dense(5, "sigmoid"))


@model("rows", scale=1e6)
def huge_values():
    return stack((4,), L.Dense(8, "relu"), L.Dense(3))


@model("rows", scale=1e-6)
def tiny_values():
    return stack((4,), L.Dense(8, "relu", use_bias=False), L.Dense(3, use_bias=False))


@model("rows")
def self_normalizing():
    kwargs = {"activation": "selu", "kernel_initializer": "lecun_normal"}
    return stack((4,), L.Dense(8, **kwargs), L.AlphaDropout(0.1), L.Dense(8, **kwargs), L.Dense(3))


@model("rows")
def dropout_of_all_kinds():
    layers = [L.GaussianNoise(0.1), L.GaussianDropout(0.1), L.ActivityRegularization(l2=1e-3)]
    conv = [L.SpatialDropout1D(0.2), L.Conv1D(4, 3, activation="relu"), L.Flatten(), L.Dropout(0.5)]
    return stack((8, 3), *layers, *conv, L.Dense(3))


@model("rows", heads="values")
def wide_and_deep():
    x = keras.Input((6,))
    deep = L.Dense(4, "relu")(L.Dense(8, "relu")(x))
    return keras.Model(x, L.Dense(1)(L.Concatenate()([x, deep])))


@model("rows", heads="values")
def matrix_factorization():
    user, item = (
        keras.Input((1,), dtype="int32", name="user"),
        keras.Input((1,), dtype="int32", name="item"),
    )
    u, i = L.Flatten()(L.Embedding(10, 4)(user)), L.Flatten()(L.Embedding(10, 4)(item))
    return keras.Model([user, item], L.Dot(-1)([u, i]))


@model("rows")
def cross_network():
    x = keras.Input((5,))
    y = x
    for _ in range(2):
        y = x * L.Dense(5)(y) + y
    return keras.Model(x, L.Dense(3)(y))


@model("rows")
def mixture_of_experts():
    x = keras.Input((5,))
    gates = L.Dense(3, "softmax")(x)
    experts = tf.stack([L.Dense(4, "relu")(x) for _ in range(3)], 1)
    return keras.Model(x, L.Dense(3)(tf.reduce_sum(experts * gates[:, :, None], 1)))


@model("rows", heads="values")
def mean_and_deviation():
    x = keras.Input((4,))
    y = L.Dense(6, "relu")(x)
    return keras.Model(x, [L.Dense(1, name="mean")(y), L.Dense(1, "softplus", name="deviation")(y)])


@model("rows", heads="values")
def sorted_top_k():
    x = keras.Input((4,))
    values, places = tf.math.top_k(tf.nn.softmax(L.Dense(6)(x)), 2)
    return keras.Model(x, [values, places])


@model("rows", heads="values")
def class_out():
    x = keras.Input((4,))
    return keras.Model(x, tf.argmax(L.Dense(6)(x), -1))


@model("rows", heads="values")
def embedding_on_sphere():
    x = keras.Input((4,))
    return keras.Model(x, tf.math.l2_normalize(L.Dense(6)(x), -1))


@model("rows", heads="values")
def variational():
    x = keras.Input((6,))
    mean, log_variance = L.Dense(2)(x), L.Dense(2)(x)
    code = mean + 0.0 * tf.exp(log_variance)
    return keras.Model(x, L.Dense(6)(L.Dense(4, "relu")(code)))
