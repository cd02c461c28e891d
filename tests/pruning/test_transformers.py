"""Attention, einsum, sequences: what must stay stays, and no more."""

from __future__ import annotations

import tf_keras as keras
from nets import assert_exact

from tfkd import pruning

layers = keras.layers


def sizes(graph):
    return {group.name: group.size for group in graph.groups}


def encoder_layer(x, width, hidden, name, norm=True):
    """A pre-norm transformer layer."""
    n = layers.LayerNormalization(name=f"{name}_ln1")(x) if norm else x
    y = layers.MultiHeadAttention(2, 4, name=f"{name}_attention")(n, n)
    x = layers.Add(name=f"{name}_sum1")([x, y])
    n = layers.LayerNormalization(name=f"{name}_ln2")(x) if norm else x
    y = layers.Dense(hidden, "gelu", name=f"{name}_hidden")(n)
    y = layers.Dense(width, name=f"{name}_out")(y)
    return layers.Add(name=f"{name}_sum2")([x, y])


def encoder(depth=2, norm=True):
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(5, 12, name="words")(inputs)
    for i in range(depth):
        x = encoder_layer(x, 12, 20, f"layer{i}", norm)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def test_hidden_units_of_a_transformer_can_go_and_layer_norm_keeps_the_rest():
    graph, _, _ = assert_exact(
        encoder(1), "layer0_hidden.kernel:1 layer0_hidden.bias:0", tolerance=1e-5
    )
    assert sizes(graph) == {"layer0_hidden": 20}
    assert any("layer0_ln1 takes a mean over channels" in f.reason for f in graph.frozen)


def test_both_hidden_layers_of_two():
    graph, _, _ = assert_exact(encoder(2), tolerance=1e-5)
    assert sizes(graph) == {"layer0_hidden": 20, "layer1_hidden": 20}


def test_without_layer_norm_the_whole_residual_stream_can_go():
    graph, _, small = assert_exact(encoder(2, norm=False), tolerance=1e-5)
    stream = graph.group("words")
    assert stream.residual
    assert set(stream.layers) == {
        "words",
        *(f"layer{i}_{part}" for i in (0, 1) for part in ("attention", "out")),
    }
    width = 12 - round(0.4 * 12)
    attention = small.get_layer("layer1_attention")
    assert [tuple(w.shape) for w in attention.weights][:1] == [(width, 2, 4)]
    assert small.get_layer("words").output_dim == width


def test_attention_over_another_sequence_and_without_bias():
    first, second = keras.Input((5, 6)), keras.Input((7, 6))
    q = layers.Dense(10, "relu", name="q")(first)
    v = layers.Dense(9, "relu", name="v")(second)
    k = layers.Dense(8, "relu", name="k")(second)
    y = layers.MultiHeadAttention(2, 4, value_dim=3, use_bias=False, name="mha")(q, v, k)
    y = layers.Dense(3, name="head")(layers.Flatten()(y))
    graph, _, _ = assert_exact(
        keras.Model([first, second], y),
        tolerance=1e-5,
    )
    assert sizes(graph) == {"q": 10, "v": 9, "k": 8, "mha": 10}


def test_attention_over_images_stays_and_says_so():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 1, activation="relu", name="conv")(inputs)
    y = layers.MultiHeadAttention(2, 4, attention_axes=(1, 2), name="mha")(x, x)
    graph = pruning.analyse(keras.Model(inputs, layers.GlobalAveragePooling2D()(y)))
    assert graph.groups == () and graph.uncounted == ("mha",)
    assert any("mha attends over other axes" in f.reason for f in graph.frozen)


def test_einsum_dense_that_is_a_dense_layer():
    inputs = keras.Input((5, 8))
    x = layers.EinsumDense("abc,cd->abd", (None, 12), activation="relu", bias_axes="d", name="a")(
        inputs
    )
    x = layers.EinsumDense("...x,xy->...y", 10, activation="relu", name="b")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    graph, _, _ = assert_exact(model, "a.kernel:1=a a.bias:0=a b.kernel:1=b")
    assert sizes(graph) == {"a": 12, "b": 10}


def test_other_einsums_keep_their_channels():
    inputs = keras.Input((5, 8))
    x = layers.Dense(6, "relu", name="dense")(inputs)
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="heads")(x)
    graph = pruning.analyse(keras.Model(inputs, layers.Flatten()(x)))
    assert graph.groups == () and graph.uncounted == ("heads",)
    assert graph.frozen[0].reason == "heads (abc,cde->abde) is not a plain dense layer"


def test_time_distributed_layers_follow_the_layer_inside():
    inputs = keras.Input((4, 8, 8, 3))
    x = layers.TimeDistributed(layers.Conv2D(6, 3, activation="relu"), name="conv")(inputs)
    x = layers.TimeDistributed(layers.BatchNormalization(), name="norm")(x)
    x = layers.TimeDistributed(layers.Flatten(), name="flat")(x)
    x = layers.TimeDistributed(layers.Dense(7, "relu"), name="dense")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    graph, _, small = assert_exact(model)
    assert sizes(graph) == {"conv": 6, "dense": 7}
    assert small.get_layer("conv").layer.filters == 4


def test_what_reaches_a_recurrent_layer_can_go():
    inputs = keras.Input((8, 6))
    x = layers.Conv1D(12, 3, activation="relu", name="conv")(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    x = layers.Dense(9, "relu", name="dense")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.GRU(4, name="gru")(x)))
    graph, _, _ = assert_exact(
        model, "conv.kernel:2=conv conv.bias:0=conv dense.kernel:1=dense dense.bias:0=dense"
    )
    assert sizes(graph) == {"conv": 12, "dense": 9}
    assert graph.uncounted == ()


def test_a_recurrent_layer_with_a_given_state_keeps_what_reaches_it():
    inputs = keras.Input((8, 6))
    state = layers.Dense(4, "relu", name="state")(layers.GlobalAveragePooling1D()(inputs))
    x = layers.Dense(5, "relu", name="dense")(inputs)
    y = layers.GRU(4, name="gru")(x, initial_state=state)
    graph = pruning.analyse(keras.Model(inputs, layers.Dense(2)(y)))
    assert graph.groups == ()
    assert {f.name for f in graph.frozen if "gru takes initial states as inputs" in f.reason} == {
        "state",
        "dense",
    }
