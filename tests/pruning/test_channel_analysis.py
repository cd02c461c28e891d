"""The analysis of whole models: shared layers, nested models, several inputs and outputs."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from nets import assert_exact, inputs_of, randomize, reasons, sizes, some
from toys import assert_untouched, weights_of

from tfkd import pruning

layers = keras.layers
IMAGE = (6, 6, 3)


def head(y, name="head"):
    return layers.Dense(3, name=name)(layers.Flatten()(y))


def block(shape, name, filters=5):
    """A nested model: convolution "one" of 5, ReLU, convolution "two" of 4."""
    x = keras.Input(shape)
    y = layers.Conv2D(filters, 3, padding="same", activation="relu", name="one")(x)
    return keras.Model(x, layers.Conv2D(4, 3, padding="same", name="two")(y), name=name)


def test_a_shared_layer_ties_the_inputs_of_its_calls():
    x = keras.Input(IMAGE)
    shared = layers.Conv2D(4, 1, name="shared")
    y, z = (shared(layers.Conv2D(6, 3, name=name)(x)) for name in "ab")
    model = keras.Model(x, head(layers.Concatenate()([y, z])))
    places = "a.kernel:3=b a.bias:0=b b.kernel:3=b b.bias:0=b "
    graph, _, small = assert_exact(model, places + "shared.kernel:3=shared shared.bias:0=shared")
    assert sizes(graph) == {"b": (6, "b", "a"), "shared": (4, "shared")}
    assert small.get_layer("shared").kernel.shape == (1, 1, 4, 2)
    assert graph.costs[2].positions == 2 * 16  # two calls, 4×4 places each


def test_a_layer_shared_with_the_models_input_keeps_its_inputs():
    x = keras.Input((6, 6, 6))
    shared = layers.Conv2D(4, 1, name="shared")
    y = shared(layers.Conv2D(6, 3, padding="same", name="a")(x))
    graph, _, _ = assert_exact(keras.Model(x, head(layers.Add()([y, shared(x)]))))
    assert sizes(graph) == {"shared": (4, "shared")}
    assert reasons(graph)["a"] == "shared is shared with frozen channels"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "make",
    [
        layers.BatchNormalization,
        lambda name: layers.PReLU(shared_axes=[1, 2], name=name),
        lambda name: layers.DepthwiseConv2D(3, name=name),
        lambda name: layers.Reshape((36, 6), name=name),
        lambda name: layers.Conv2D(6, 3, groups=6, name=name),
        lambda name: keras.Sequential([keras.Input((6, 6, 6)), layers.ReLU()], name=name),
        lambda name: keras.Sequential(
            [keras.Input((6, 6, 6)), layers.BatchNormalization()], name=name
        ),
    ],
)
def test_whatever_is_shared_with_the_models_input_keeps_its_size(make, order):
    x = keras.Input((6, 6, 6))
    shared = make(name="shared")
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    parts = [shared(t) for t in (x, y)[::order]]
    y = layers.Concatenate()([layers.Flatten()(t) for t in parts])
    y = layers.Dense(4, name="b")(y)
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "b.kernel:1 b.bias:0")
    assert sizes(graph) == {"b": (4, "b")}
    assert reasons(graph)["a"].startswith("shared")
    assert reasons(graph)["a"].endswith("is shared with frozen channels") or order == 1


def test_a_layer_called_on_its_own_output():
    x = keras.Input((6, 6, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared", activation="relu")
    y = shared(shared(layers.Conv2D(4, 1, name="a")(x)))
    graph, _, small = assert_exact(
        keras.Model(x, head(y)), "a.kernel:3 a.bias:0 shared.kernel:3 shared.bias:0"
    )
    assert sizes(graph) == {"a": (4, "a", "shared")}
    assert small.get_layer("shared").kernel.shape == (3, 3, 2, 2)


def test_a_nested_model_is_entered_and_its_input_shrinks():
    x = keras.Input(IMAGE)
    y = block((6, 6, 6), "inner")(layers.Conv2D(6, 3, padding="same", name="a")(x))
    places = (
        "a.kernel:3=a a.bias:0=a inner/one.kernel:3=inner/one inner/one.bias:0=inner/one "
        "inner/two.kernel:3=inner/two inner/two.bias:0=inner/two"
    )
    graph, _, small = assert_exact(keras.Model(x, head(y)), places)
    assert sizes(graph) == {
        "a": (6, "a"),
        "inner/one": (5, "inner/one"),
        "inner/two": (4, "inner/two"),
    }
    assert small.get_layer("inner").input_shape == (None, 6, 6, 4)


def test_a_nested_model_called_twice():
    x = keras.Input((6, 6, 4))
    inner = block((6, 6, 4), "inner")
    y = inner(inner(layers.Conv2D(4, 1, name="a")(x)))
    places = (
        "a.kernel:3=a a.bias:0=a inner/two.kernel:3=a inner/two.bias:0=a "
        "inner/one.kernel:3=inner/one inner/one.bias:0=inner/one"
    )
    graph, _, small = assert_exact(keras.Model(x, head(y)), places)
    assert sizes(graph) == {"a": (4, "a", "inner/two"), "inner/one": (5, "inner/one")}
    assert len(small.weights) == 2 + 4 + 2


def test_a_nested_model_of_open_size():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(4, 1, name="a")(x)
    inner = block((None, None, 4), "inner")
    graph, _, small = assert_exact(keras.Model(x, head(layers.Add()([inner(y), y]))))
    assert sizes(graph) == {"a": (4, "a", "inner/two"), "inner/one": (5, "inner/one")}
    assert small.get_layer("inner").input_shape == (None, None, None, 2)


def sequential(shape=None):
    first = [keras.Input(shape)] if shape else []
    return keras.Sequential(
        [
            *first,
            layers.Conv2D(5, 3, name="one"),
            layers.BatchNormalization(name="n"),
            layers.ReLU(),
            layers.Conv2D(4, 1, name="two"),
        ],
        name="inner",
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_nested_sequential_model(known):
    x = keras.Input(IMAGE)
    inner = sequential((6, 6, 6) if known else None)
    y = inner(layers.Conv2D(6, 3, padding="same", name="a")(x))
    places = (
        "a.kernel:3=a a.bias:0=a inner/one.kernel:3=inner/one inner/one.bias:0=inner/one "
        "inner/n.gamma:0=inner/one inner/n.beta:0=inner/one "
        "inner/two.kernel:3=inner/two inner/two.bias:0=inner/two"
    )
    graph, _, small = assert_exact(keras.Model(x, head(y)), places)
    assert set(sizes(graph)) == {"a", "inner/one", "inner/two"}
    assert small.get_layer("inner").get_layer("one").kernel.shape == (3, 3, 4, 3)
    assert type(small.get_layer("inner")) is keras.Sequential


def test_a_sequential_model():
    first = [keras.Input(IMAGE), *sequential().layers]
    model = keras.Sequential([*first, layers.Flatten(), layers.Dense(3)])
    graph, _, small = assert_exact(model)
    assert sizes(graph) == {"one": (5, "one"), "two": (4, "two")}
    assert type(small) is keras.Sequential
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


def test_a_sequential_model_that_was_built_by_a_call():
    model = keras.Sequential([*sequential().layers, layers.Flatten(), layers.Dense(3)])
    for count in (2, 3):  # after the second call its batch size is open
        model(np.zeros((count, *IMAGE), "float32"))
    graph, _, small = assert_exact(model)
    assert sizes(graph) == {"one": (5, "one"), "two": (4, "two")}
    assert small.built


def test_models_three_deep():
    x = keras.Input((6, 6, 4))
    y = block((6, 6, 4), "inner")(layers.Conv2D(4, 1, name="a")(x))
    middle = keras.Model(x, layers.Conv2D(4, 1, name="b")(y), name="middle")
    x = keras.Input((6, 6, 4))
    graph, _, _ = assert_exact(keras.Model(x, head(middle(x))))
    assert set(sizes(graph)) == {
        "middle/a",
        "middle/inner/one",
        "middle/inner/two",
        "middle/b",
    }


def test_a_layer_that_two_nested_models_share():
    shared = layers.Conv2D(4, 1, name="shared")

    def inner(name):
        x = keras.Input((6, 6, 6))
        return keras.Model(x, shared(x), name=name)

    x = keras.Input(IMAGE)
    branches = [
        inner(name)(layers.Conv2D(6, 3, padding="same", name=name + "_conv")(x)) for name in "pq"
    ]
    model = keras.Model(x, head(layers.Concatenate()(branches)))
    graph = pruning.analyse(model)
    assert sizes(graph) == {"q_conv": (6, "q_conv", "p_conv"), "p/shared": (4, "p/shared")}
    assert graph.params() == model.count_params()
    # from_config would make two layers of it, so that the weights were shared no more.
    with pytest.raises(ValueError, match="the same layer at p/shared and q/shared"):
        pruning.shrink(model, some(graph))


def test_two_inputs_and_two_outputs():
    first, second = keras.Input((6, 6, 3), name="first"), keras.Input((5,), name="second")
    y = layers.Conv2D(6, 3, name="a")(first)
    z = layers.Dense(4, activation="relu", name="b")(second)
    y = layers.Concatenate()([layers.GlobalAveragePooling2D()(y), z])
    model = keras.Model([first, second], [layers.Dense(2, name="o")(y), z])
    graph, _, small = assert_exact(model, "a.kernel:3 a.bias:0")
    assert sizes(graph) == {"a": (6, "a")}
    assert reasons(graph) == {"b": "output of the model", "o": "output of the model"}
    assert small.output_names == model.output_names


def test_inputs_and_outputs_as_dicts():
    inputs = {"one": keras.Input((6, 6, 3), name="one"), "two": keras.Input((6, 6, 2), name="two")}
    y = layers.Conv2D(6, 3, name="a")(layers.Concatenate()([inputs["two"], inputs["one"]]))
    model = keras.Model(inputs, {"scores": head(y), "mean": head(layers.ReLU()(y), "other")})
    graph, _, small = assert_exact(model, "a.kernel:3 a.bias:0")
    assert sizes(graph) == {"a": (6, "a")}
    assert set(small(inputs_of(model))) == {"scores", "mean"}


def test_an_output_in_the_middle_keeps_its_channels():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, name="a")(x)
    z = layers.Conv2D(4, 3, name="b")(y)
    graph, _, _ = assert_exact(keras.Model(x, [y, head(z)]), "b.kernel:3 b.bias:0")
    assert sizes(graph) == {"b": (4, "b")}
    assert reasons(graph)["a"] == "output of the model"


def test_a_loss_of_a_tensor_keeps_its_channels():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, name="a")(x)
    model = keras.Model(x, head(y))
    model.add_loss(tf.reduce_mean(tf.square(y)))
    graph = pruning.analyse(model)
    assert sizes(graph) == {}


def test_a_mask_of_words_goes_through():
    x = keras.Input((7,), dtype="int32")
    y = layers.Embedding(9, 6, mask_zero=True, name="e")(x)
    y = layers.LSTM(4, name="rnn")(layers.Dense(5, name="d")(y))
    model = keras.Model(x, layers.Dense(2, name="o")(y))
    graph, _, _ = assert_exact(model)
    assert sizes(graph) == {"e": (6, "e"), "d": (5, "d")}


def test_time_distributed_dense_and_recurrent_layers():
    x = keras.Input((7, 3))
    y = layers.TimeDistributed(layers.Dense(6, "relu"), name="t")(x)
    y = layers.Bidirectional(layers.GRU(4), name="rnn")(y)
    graph, _, small = assert_exact(keras.Model(x, layers.Dense(2, name="o")(y)))
    assert sizes(graph) == {"t": (6, "t")}
    assert small.get_layer("t").output_shape == (None, 7, 4)


def test_transformer_block_keeps_what_it_must():
    x = keras.Input((5, 8))
    y = layers.Dense(8, name="embed")(x)
    a = layers.MultiHeadAttention(2, 4, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add()([y, a]))
    z = layers.Dense(8, name="down")(layers.Dense(12, "gelu", name="up")(y))
    model = keras.Model(x, head(layers.Add()([y, z])))
    graph, _, small = assert_exact(model, "up.kernel:1 up.bias:0")
    assert sizes(graph) == {"up": (12, "up")}
    assert "norm takes a mean over channels" in reasons(graph)["embed"]
    assert small.get_layer("up").units == 7


def test_the_models_input_is_its_output():
    x = keras.Input(IMAGE)
    graph = pruning.analyse(keras.Model(x, x))
    assert graph.groups == () and graph.frozen == () and graph.macs() == 0


def test_the_model_is_neither_run_nor_changed():
    model = randomize(sequential(IMAGE))
    before, config = weights_of(model), model.get_config()
    pruning.analyse(model)
    assert_untouched(before, model)
    assert model.get_config() == config


def test_a_tensor_of_unknown_rank():
    x = keras.Input((1, 6))
    y = tf.squeeze(layers.Dense(6, name="a")(x))
    model = keras.Model(x, layers.Dense(2, name="o")(tf.reshape(y, (-1, 6))))
    graph = pruning.analyse(model)
    assert sizes(graph) == {}
    assert "may squeeze the channels" in reasons(graph)["a"]


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (None, TypeError, "tf_keras model"),
        (layers.Dense(3), TypeError, r"\(Dense\)"),
        (keras.Sequential([layers.Dense(3)]), ValueError, "without an input shape"),
    ],
)
def test_what_is_no_built_model(model, error, words):
    with pytest.raises(error, match=words):
        pruning.analyse(model)


def test_a_subclassed_model():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model = Mine()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match="subclassed Mine"):
        pruning.analyse(model)


def test_a_subclassed_model_inside_is_a_layer_without_rule():
    class Mine(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            return {"name": self.name}

    x = keras.Input((4,))
    y = Mine(name="mine")(layers.Dense(6, name="a")(x))
    y = layers.Dense(5, name="b")(y)
    graph, _, _ = assert_exact(keras.Model(x, layers.Dense(2, name="o")(y)))
    assert sizes(graph) == {"b": (5, "b")}
    assert reasons(graph)["a"].startswith("no rule for mine, a Mine")


def test_hundreds_of_layers_take_less_than_two_seconds():
    x = keras.Input((4, 4, 8))
    y = x
    for i in range(200):
        z = layers.Conv2D(8, 1, activation="relu", name=f"conv{i}")(y)
        y = layers.Add()([y, z]) if i % 4 == 3 else z
    model = keras.Model(x, head(y))
    # This thread's time alone, the best of three: others in the process may be busy.
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        graph = pruning.analyse(model)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 2
    # Every fourth layer is added to the one before it: 50 pairs, and 100 alone.
    assert len(graph.groups) == 150
