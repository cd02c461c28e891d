"""Recurrent models, convolutions in time, and attention."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from sweep_models.base import model

L = keras.layers


def stack(shape, *layers, **kwargs):
    return keras.Sequential([keras.Input(shape, **kwargs), *layers])


@model("recurrent")
def lstm():
    return stack((6, 3), L.LSTM(5), L.Dense(3))


@model("recurrent")
def gru():
    return stack((6, 3), L.GRU(5), L.Dense(3))


@model("recurrent")
def gru_unrolled():
    return stack((4, 3), L.GRU(5, unroll=True), L.Dense(3))


@model("recurrent")
def gru_reset_before():
    return stack((6, 3), L.GRU(5, reset_after=False, recurrent_dropout=0.2), L.Dense(3))


@model("recurrent")
def simple_rnn():
    return stack((6, 3), L.SimpleRNN(5), L.Dense(3))


@model("recurrent", heads="softmax")
def lstm_relu_stacked():
    lower = L.LSTM(5, activation="relu", return_sequences=True)
    return stack((6, 3), lower, L.LSTM(4), L.Dense(3, "softmax"))


@model("recurrent", heads="softmax")
def bidirectional_lstm():
    return stack((6, 3), L.Bidirectional(L.LSTM(4)), L.Dense(3, "softmax"))


@model("recurrent")
def bidirectional_gru_sum():
    return stack((6, 3), L.Bidirectional(L.GRU(4), merge_mode="sum"), L.Dense(3))


@model("recurrent", heads="softmax")
def tagger():
    both = L.Bidirectional(L.LSTM(4, return_sequences=True))
    return stack((None, 3), both, L.TimeDistributed(L.Dense(4, "softmax")))


@model("recurrent", masked=True)
def stateful_lstm():
    x = keras.Input(batch_shape=(4, 6, 3))
    return keras.Sequential([x, L.LSTM(5, stateful=True), L.Dense(3)])


@model("recurrent")
def rnn_of_cells():
    cells = [L.LSTMCell(4), L.GRUCell(5)]
    return stack((6, 3), L.RNN(cells), L.Dense(3))


@model("recurrent")
def gru_backwards_dropout():
    return stack((6, 3), L.GRU(5, go_backwards=True, dropout=0.3), L.Dense(3))


@model("recurrent", heads="values")
def states_out():
    x = keras.Input((6, 3))
    y, h, c = L.LSTM(4, return_state=True)(x)
    return keras.Model(x, [L.Dense(2)(y), h, c])


@model("recurrent")
def encoder_decoder():
    source, target = keras.Input((5, 3), name="source"), keras.Input((4, 2), name="target")
    _, h, c = L.LSTM(4, return_state=True)(source)
    y = L.LSTM(4, return_sequences=True)(target, initial_state=[h, c])
    return keras.Model([source, target], L.Dense(5)(y))


@model("recurrent")
def masked_lstm():
    embedding = L.Embedding(10, 4, mask_zero=True)
    return stack((None,), embedding, L.LSTM(5), L.Dense(3), dtype="int32")


@model("recurrent", masked=True)
def masking_layer():
    return stack((6, 3), L.Masking(0.0), L.GRU(4, return_sequences=True), L.Dense(3))


@model("recurrent")
def conv_lstm():
    return stack((3, 6, 6, 2), L.ConvLSTM2D(3, 3, padding="same"), L.Flatten(), L.Dense(3))


@model("recurrent", whole=True)
def char_rnn_open():
    return stack((None,), L.Embedding(10, 4), L.GRU(6, return_sequences=True), L.Dense(10))


@model("recurrent")
def frames_then_lstm():
    cnn = stack((6, 6, 1), L.Conv2D(3, 3, activation="relu"), L.GlobalAveragePooling2D())
    return stack((4, 6, 6, 1), L.TimeDistributed(cnn), L.LSTM(4), L.Dense(3))


@model("recurrent")
def time_distributed_conv():
    conv = L.TimeDistributed(L.Conv2D(3, 3, activation="relu"))
    pool = L.TimeDistributed(L.GlobalMaxPooling2D())
    return stack((4, 6, 6, 1), conv, pool, L.Flatten(), L.Dense(3))


@model("temporal")
def wavenet():
    x = keras.Input((16, 4))
    y = L.Conv1D(6, 2, padding="causal")(x)
    for rate in (1, 2, 4):
        gate = L.Conv1D(6, 2, dilation_rate=rate, padding="causal", activation="sigmoid")(y)
        wave = L.Conv1D(6, 2, dilation_rate=rate, padding="causal", activation="tanh")(y)
        y = L.Add()([y, L.Conv1D(6, 1)(L.Multiply()([gate, wave]))])
    return keras.Model(x, L.Conv1D(3, 1)(y))


@model("temporal")
def text_cnn():
    x = keras.Input((12,), dtype="int32")
    y = L.Embedding(10, 6)(x)
    pooled = [L.GlobalMaxPooling1D()(L.Conv1D(4, k, activation="relu")(y)) for k in (2, 3, 4)]
    return keras.Model(x, L.Dense(3)(L.Dropout(0.5)(L.Concatenate()(pooled))))


@model("temporal", whole=True)
def bag_of_words_open():
    return stack((None,), L.Embedding(10, 4), L.GlobalAveragePooling1D(), L.Dense(3))


@model("temporal")
def audio_strided():
    layers = [L.Conv1D(6, 8, strides=4, activation="relu"), L.BatchNormalization()]
    return stack((64, 1), *layers, L.MaxPooling1D(2), L.GlobalAveragePooling1D(), L.Dense(3))


@model("temporal")
def separable_1d():
    return stack((16, 4), L.SeparableConv1D(8, 3, activation="relu"), L.Flatten(), L.Dense(3))


@model("temporal", heads="values")
def transposed_1d():
    return stack((8, 3), L.Conv1DTranspose(6, 3, strides=2, activation="relu"), L.Conv1D(2, 3))


@model("temporal", heads="values")
def autoencoder_1d():
    down = [L.Conv1D(6, 3, 2, "same", activation="relu"), L.Conv1D(4, 3, 2, "same")]
    return stack((16, 2), *down, L.UpSampling1D(4), L.Conv1D(2, 3, padding="same"))


@model("temporal")
def depthwise_1d():
    return stack((16, 4), L.DepthwiseConv1D(3, activation="relu"), L.Flatten(), L.Dense(3))


@model("temporal")
def causal_gru_over_conv():
    return stack((None, 3), L.Conv1D(4, 3, padding="causal"), L.GRU(4), L.Dense(2))


def encoder(y, mask=None, causal=False):
    attended = L.MultiHeadAttention(2, 4)(y, y, attention_mask=mask, use_causal_mask=causal)
    y = L.LayerNormalization()(L.Add()([y, attended]))
    hidden = L.Dense(8)(L.Dense(16, "gelu")(y))
    return L.LayerNormalization(epsilon=1e-6)(L.Add()([y, hidden]))


@model("attention")
def transformer():
    x = keras.Input((6, 8))
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(encoder(x))))


@model("attention")
def causal_transformer():
    x = keras.Input((6, 8))
    return keras.Model(x, L.Dense(3)(encoder(x, causal=True)))


@model("attention", high=2)
def attention_with_mask_input():
    x, mask = keras.Input((6, 8), name="x"), keras.Input((6,), dtype="int32", name="mask")
    y = encoder(x, L.Reshape((1, 6))(mask))
    return keras.Model({"x": x, "mask": mask}, L.Dense(3)(y[:, 0]))


@model("attention", masked=True)
def attention_over_masked_embedding():
    x = keras.Input((6,), dtype="int32")
    return keras.Model(x, L.Dense(3)(encoder(L.Embedding(10, 8, mask_zero=True)(x))))


@model("attention")
def luong_attention():
    x = keras.Input((6, 4))
    y = L.LSTM(4, return_sequences=True)(x)
    return keras.Model(x, L.Dense(3)(L.Flatten()(L.Attention(use_scale=True)([y, y]))))


@model("attention")
def bahdanau_attention():
    q, v = keras.Input((3, 4), name="q"), keras.Input((6, 4), name="v")
    return keras.Model([q, v], L.Dense(3)(L.Flatten()(L.AdditiveAttention()([q, v]))))


@model("attention")
def positional_embedding():
    x = keras.Input((6,), dtype="int32")
    y = L.Embedding(10, 8)(x) + L.Embedding(6, 8)(tf.range(6))
    return keras.Model(x, L.Dense(3)(L.Flatten()(encoder(y))))


@model("attention")
def hand_made_attention():
    x = keras.Input((6, 8))
    q, k, v = (L.Dense(4)(x) for _ in range(3))
    scores = L.Softmax()(tf.matmul(q, k, transpose_b=True) / 2.0)
    return keras.Model(x, L.Dense(3)(L.Flatten()(tf.matmul(scores, v))))


@model("attention")
def attention_pooling():
    x = keras.Input((6, 8))
    weights = L.Softmax(axis=1)(L.Dense(1)(L.Dense(4, "tanh")(x)))
    return keras.Model(x, L.Dense(3)(L.Flatten()(L.Dot(axes=1)([weights, x]))))


@model("attention")
def vision_transformer():
    x = keras.Input((8, 8, 3))
    y = L.Reshape((4, 8))(L.Conv2D(8, 4, 4)(x))
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(encoder(encoder(y)))))


@model("attention")
def einsum_dense():
    layer = L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", activation="relu")
    return stack((4, 6), layer, L.Flatten(), L.Dense(3))
