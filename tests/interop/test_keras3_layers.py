"""Layers and activations of Keras 3, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras
from keras3_toys import IMAGE, L, check, keras, through

import tfkd

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


def test_adapted_normalization():
    layer = L.Normalization(name="norm")
    layer.adapt(np.random.default_rng(0).normal(3, 5, (50, 4)).astype("float32"))
    x = keras.Input((4,))
    model = keras.Model(x, layer(x))
    made = tfkd.from_keras3(model)
    data = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
    expected = (data - np.asarray(layer.adapt_mean)) / np.sqrt(np.asarray(layer.adapt_variance))
    np.testing.assert_allclose(made(data), expected, rtol=1e-5)


def test_weights_that_tf_keras_orders_otherwise():
    model = through((5,), L.SpectralNormalization(L.Dense(3)))
    x = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")
    np.testing.assert_allclose(model(x), tfkd.from_keras3(model)(x), atol=1e-5)
