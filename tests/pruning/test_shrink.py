"""Cutting out: what the new model keeps of the old one, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from nets import (
    assert_exact,
    inputs_of,
    outputs_of,
    randomize,
    range_difference,
    sizes,
    some,
    zero_by_hand,
)
from toys import assert_untouched, weights_of

from tfkd import pruning

layers = keras.layers
A = "a.kernel:3 a.bias:0 n.gamma:0 n.beta:0 b.kernel:3=b b.bias:0=b"


def net(seed=0, **kwargs):
    """Convolution "a" of 6, batch norm "n", ReLU, convolution "b" of 4, three outputs."""
    x = keras.Input((6, 6, 3), name="image")
    y = layers.Conv2D(6, 3, padding="same", name="a", **kwargs)(x)
    y = layers.ReLU(name="r")(layers.BatchNormalization(name="n")(y))
    y = layers.Conv2D(4, 3, strides=2, activation="relu", name="b")(y)
    y = layers.Dense(3, name="head")(layers.Flatten(name="flat")(y))
    return randomize(keras.Model(x, y, name="net"), seed)


def chosen(model, seed=0):
    return some(pruning.analyse(model), seed)


def images(count=5, seed=4):
    return np.random.default_rng(seed).normal(size=(count, 6, 6, 3)).astype("float32")


def test_the_weights_are_the_kept_slices():
    model = net()
    selection = pruning.Selection({"a": (1, 4), "b": (0,)}, pruning.analyse(model).fingerprint)
    small = pruning.shrink(model, selection)
    a, b = [0, 2, 3, 5], [1, 2, 3]
    rows = (np.arange(4)[:, None] * 4 + b).reshape(-1)  # 2×2 places of 4 channels
    before = {w.name: w.numpy() for w in model.weights}
    expected = {
        "a/kernel:0": before["a/kernel:0"][..., a],
        "a/bias:0": before["a/bias:0"][a],
        **{f"n/{n}:0": before[f"n/{n}:0"][a] for n in ("gamma", "beta")},
        **{f"n/{n}:0": before[f"n/{n}:0"][a] for n in ("moving_mean", "moving_variance")},
        "b/kernel:0": before["b/kernel:0"][:, :, a][..., b],
        "b/bias:0": before["b/bias:0"][b],
        "head/kernel:0": before["head/kernel:0"][rows],
        "head/bias:0": before["head/bias:0"],
    }
    assert [w.name for w in small.weights] == [w.name for w in model.weights]
    for weight in small.weights:
        np.testing.assert_array_equal(weight.numpy(), expected[weight.name])


def test_the_model_keeps_its_weights_and_shares_none():
    model = net()
    before = weights_of(model)
    small = pruning.shrink(model, chosen(model))
    assert_untouched(before, model)
    assert not {id(w) for w in small.weights} & {id(w) for w in model.weights}
    for weight in small.weights:
        weight.assign(tf.zeros_like(weight))
    assert_untouched(before, model)
    assert (small.name, type(small)) == ("net", type(model))
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


def test_nothing_to_remove_gives_a_copy():
    model = net()
    graph = pruning.analyse(model)
    small = pruning.shrink(model, pruning.Selection({}, graph.fingerprint))
    batch = inputs_of(model)
    np.testing.assert_array_equal(outputs_of(model, batch)[0], outputs_of(small, batch)[0])


def test_a_masked_model_gives_the_same_as_an_unmasked_one():
    model, selection = net(), chosen(net())
    first = pruning.shrink(model, selection)
    pruning.apply_selection(model, selection)
    second = pruning.shrink(model, selection)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shrinking_twice():
    model = net()
    small = pruning.shrink(model, chosen(model))
    graph = pruning.analyse(small)
    assert sizes(graph) == {"a": (4, "a"), "b": (2, "b")}
    smaller = pruning.shrink(small, some(graph, 1))
    assert (smaller.get_layer("a").filters, smaller.get_layer("b").filters) == (2, 1)
    with pytest.raises(ValueError, match="made for this model"):
        pruning.shrink(small, chosen(model))


def test_down_to_one_channel():
    model = net()
    graph = pruning.analyse(model)
    selection = pruning.Selection({"a": range(5), "b": range(1, 4)}, graph.fingerprint)
    small = pruning.shrink(model, selection)
    assert small.get_layer("b").kernel.shape == (3, 3, 1, 1)


def test_settings_of_the_layers_stay():
    x = keras.Input((6, 6, 3))
    first = layers.Conv2D(
        6,
        3,
        name="a",
        kernel_regularizer=keras.regularizers.L2(0.01),
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=5),
        bias_constraint=keras.constraints.NonNeg(),
    )
    second = layers.Conv2D(4, 3, name="b", trainable=False)
    inner = keras.Sequential(
        [keras.Input((2, 2, 4)), layers.Dense(5, name="c"), layers.Dense(4, name="d")], name="inner"
    )
    inner.get_layer("c").trainable = False
    y = layers.Flatten()(inner(second(first(x))))
    model = randomize(keras.Model(x, layers.Dense(3, name="head", dtype="float64")(y)))
    small = pruning.shrink(model, chosen(model))
    for old, new in ((model, small), (model.get_layer("inner"), small.get_layer("inner"))):
        for before, after in zip(old.layers, new.layers, strict=True):
            assert before.trainable == after.trainable, before.name
            assert before.dtype == after.dtype
    config = small.get_layer("a").get_config()
    assert config == {**first.get_config(), "filters": config["filters"]}
    assert config["filters"] == 4
    names = [w.name for w in model.trainable_weights]
    assert [w.name for w in small.trainable_weights] == names
    kernel = small.get_layer("a").kernel.numpy()
    np.testing.assert_allclose(small.losses[0], 0.01 * (kernel**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("inner", [False, True])
def test_a_model_that_is_not_trainable(inner):
    model = net()
    if inner:
        x = keras.Input((6, 6, 3))
        model.trainable = False
        model = keras.Model(x, layers.Dense(2, name="o")(model(x)))
    else:
        model.trainable = False
    small = pruning.shrink(model, chosen(model))
    names = [w.name for w in model.trainable_weights]
    assert [w.name for w in small.trainable_weights] == names
    assert len(names) == 2 * inner


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_the_dtype_policy_stays(policy):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = net()
    finally:
        keras.mixed_precision.set_global_policy(before)
    small = pruning.shrink(model, chosen(model), tolerance=1e-6 if policy == "float64" else 0.05)
    policies = [layer.dtype_policy.name for layer in model.layers]
    assert [layer.dtype_policy.name for layer in small.layers] == policies
    assert policies[1:] == [policy] * 6
    assert {w.dtype.name for w in small.weights} == {w.dtype.name for w in model.weights}
    assert sizes(pruning.analyse(model)) == {"a": (6, "a"), "b": (4, "b")}


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_saved_and_loaded(tmp_path, ending):
    model = net()
    small = pruning.shrink(model, chosen(model))
    small.save(tmp_path / f"small.{ending}")
    loaded = keras.models.load_model(tmp_path / f"small.{ending}")
    np.testing.assert_array_equal(loaded(images()), small(images()))
    assert sizes(pruning.analyse(loaded)) == {"a": (4, "a"), "b": (2, "b")}


def test_nested_saved_and_loaded(tmp_path):
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, layers.Dense(2, name="o")(net()(layers.Conv2D(3, 1, name="first")(x))))
    _, _, small = assert_exact(model)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(images()), small(images()))


def test_a_sequential_model_that_was_built_by_its_data_is_saved(tmp_path):
    model = keras.Sequential([layers.Dense(6, "relu", name="a"), layers.Dense(2, name="o")])
    model.build((None, 5))
    _, _, small = assert_exact(randomize(model))
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = np.ones((2, 5), "float32")
    np.testing.assert_array_equal(loaded(x), small(x))


def test_the_cut_model_trains():
    model = net()
    small = pruning.shrink(model, chosen(model))
    small.compile("sgd", "mse")
    history = small.fit(images(16), np.ones((16, 3)), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


# What verify compares.


def test_given_batches():
    model = net()
    selection, batch = chosen(model), images(3)
    small = pruning.shrink(model, selection, verify=batch)
    zero_by_hand(model, selection, A)
    assert range_difference(outputs_of(model, batch), outputs_of(small, batch)) < 1e-5


def test_a_model_that_must_be_trained_is_said():
    model = randomize(keras.Sequential([keras.Input((5,)), layers.Dense(8, name="a")]))
    model = keras.Model(model.input, layers.Dense(4, name="b")(model.output))
    batch = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    selection = pruning.select(model, pruning.plan(model, filter_rate=0.8))
    with pytest.warns(UserWarning, match=r"model on 40 examples .* \(agreement .*, if they"):
        pruning.shrink(model, selection, verify=batch)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="agreement with the unpruned model on 40 examples: "):
        pruning.shrink(model, selection, verify=batch)
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="a mean difference") as caught:
        pruning.shrink(model, selection, verify=batch)
    assert "agreement" not in str(caught[0].message)
    pruning.apply_selection(model, selection)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # It is masked already: nothing changes.
        pruning.shrink(model, selection, verify=batch)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_given_batch_is_really_compared(wrong):
    # A rule that is right for small inputs only: the random ones are all below 50.
    from tfkd.pruning.rules import registry

    class Step(layers.Layer):
        def call(self, x):
            far = tf.reduce_max(tf.abs(x[:, :, :, :6]), [1, 2, 3], keepdims=True) > 50
            return tf.where(far, x + 1e4, x) if wrong else x

    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(6, 3, name="a")(x)
    y = layers.Conv2D(4, 3, name="b")(Step(name="step")(y))
    model = randomize(keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y))))
    before = dict(registry._RULES)
    pruning.register_rule(Step, lambda call: call.same(call.input))
    try:
        selection = chosen(model)
        pruning.shrink(model, selection)
        if not wrong:
            pruning.shrink(model, selection, verify=1000 * images())
            return
        with pytest.raises(ValueError, match="received a difference of"):
            pruning.shrink(model, selection, verify=1000 * images())
    finally:
        registry._RULES.clear()
        registry._RULES.update(before)


def test_a_dict_of_inputs():
    inputs = {"one": keras.Input((4,), name="one"), "two": keras.Input((2,), name="two")}
    y = layers.Dense(6, "relu", name="a")(layers.Concatenate()([inputs["two"], inputs["one"]]))
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(y)))
    rng = np.random.default_rng(0)
    batch = {"one": rng.normal(size=(3, 4)), "two": rng.normal(size=(3, 2))}
    assert pruning.shrink(model, chosen(model), verify=batch).get_layer("a").units == 4
    wrong = {"one": batch["two"], "two": batch["one"]}
    with pytest.raises(ValueError, match="`verify`: expected examples of shape"):
        pruning.shrink(model, chosen(model), verify=wrong)


def test_inputs_by_name():
    second, first = keras.Input((4,), name="second"), keras.Input((2,), name="first")
    y = layers.Dense(6, "relu", name="a")(layers.Concatenate()([first, second]))
    model = randomize(keras.Model([second, first], layers.Dense(3, name="head")(y)))
    batch = {"first": np.ones((3, 2)), "second": np.ones((3, 4))}
    assert pruning.shrink(model, chosen(model), verify=batch).get_layer("a").units == 4


def test_strings_cannot_be_drawn():
    words, image = keras.Input((1,), dtype="string"), keras.Input((6, 6, 3))
    y = layers.StringLookup(vocabulary=["a", "b"])(words)
    y = layers.Flatten()(layers.Embedding(4, 5, name="e")(y))
    z = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="a")(image))
    y = layers.Dense(3, name="head")(layers.Concatenate()([y, z]))
    model = keras.Model([image, words], y)
    with pytest.raises(ValueError, match="`verify`: expected examples .the model takes strings"):
        pruning.shrink(model, chosen(model))
    small = pruning.shrink(model, chosen(model), [images(2), np.array([["a"], ["b"]])])
    assert small.get_layer("e").output_dim == 3


def test_recurrent_layers_that_remember():
    x = keras.Input((5, 3), batch_size=2)
    y = layers.LSTM(4, stateful=True, name="rnn")(layers.Dense(6, "relu", name="a")(x))
    model = randomize(keras.Model(x, layers.Dense(2, name="head")(y)))
    model.reset_states()
    model(np.ones((2, 5, 3), "float32"))
    before = [state.numpy() for state in model.get_layer("rnn").states]
    small = pruning.shrink(model, chosen(model))
    for state, value in zip(model.get_layer("rnn").states, before, strict=True):
        np.testing.assert_array_equal(state.numpy(), value)
    for state in small.get_layer("rnn").states:
        assert not state.numpy().any()


@pytest.mark.parametrize(
    ("verify", "words"),
    [
        (
            np.zeros((2, 6, 6, 4), "float32"),
            r"`verify`: expected examples of shape \(batch, 6, 6, 3",
        ),
        (np.zeros((6, 6, 3), "float32"), "`verify`: .*Add the batch axis"),
        ([np.zeros((2, 6, 6, 3)), np.zeros((2, 6, 6))], "`verify`: expected examples of shape"),
        ("yes", "`verify`: expected True, False, or examples"),
        (None, "`verify`: expected True, False, or examples"),
        (np.zeros((0, 6, 6, 3), "float32"), "`verify`"),
        (np.full((2, 6, 6, 3), np.nan, "float32"), "NaN or infinity"),
    ],
)
def test_wrong_batches(verify, words):
    model = net()
    before = weights_of(model)
    with pytest.raises((TypeError, ValueError), match=words):
        pruning.shrink(model, chosen(model), verify=verify)
    assert_untouched(before, model)


def test_weights_that_are_not_numbers():
    model = net()
    selection = chosen(model)
    model.get_layer("head").bias.assign([np.nan, 0, 0])
    before = weights_of(model)
    with pytest.raises(ValueError, match="expected finite weights.* of 'head'"):
        pruning.shrink(model, selection)
    assert_untouched(before, model)


def test_state_is_as_it_was_after_comparing():
    x = keras.Input((6, 6, 3))
    y = layers.BatchNormalization(name="n")(layers.Conv2D(6, 3, name="a")(x), training=True)
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))
    assert_exact(model)  # holds the model to its weights, moving statistics and all


def test_a_fixed_batch_size():
    x = keras.Input((6, 6, 3), batch_size=2)
    y = tf.reshape(layers.Conv2D(6, 3, name="a")(x), (2, -1))
    model = randomize(keras.Model(x, layers.Dense(3, name="head")(y)))
    assert pruning.shrink(model, chosen(model)).get_layer("a").filters == 4


# What is refused.


def test_selections_that_do_not_fit():
    model = net()
    mark = pruning.analyse(model).fingerprint
    for removed, words in (
        ({"a": range(6)}, "at least one of the 6 channels of group 'a' to stay"),
        ({"a": (6,)}, r"positions in 0 … 5 for group 'a'"),
        ({"a": (-1,)}, r"positions in 0 … 5 for group 'a'"),
        ({"c": (0,)}, r"groups among \['a', 'b'\]"),
    ):
        before = weights_of(model)
        with pytest.raises(ValueError, match=words):
            pruning.shrink(model, pruning.Selection(removed, mark))
        with pytest.raises(ValueError, match=words):
            pruning.apply_selection(model, pruning.Selection(removed, mark))
        assert_untouched(before, model)
    with pytest.raises(ValueError, match="made for this model"):
        pruning.shrink(model, pruning.Selection({"a": (0,)}, "f00d"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"selection": {"a": [0]}}, TypeError, "`selection`: expected a tfkd.pruning.Selection"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"optimizer": "sgd"}, TypeError, "`optimizer`"),
        ({"optimizer": True}, ValueError, "`optimizer`: expected a compiled model"),
        ({"model": keras.Sequential([layers.Dense(2)])}, ValueError, "without an input shape"),
        ({"model": "net"}, TypeError, "`model`: expected a tf_keras model"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    model = net()
    with pytest.raises(error, match=words):
        pruning.shrink(**{"model": model, "selection": chosen(model), **arguments})


def test_a_layer_that_cannot_be_built_again():
    class Closed(layers.Layer):
        def __init__(self, number, **kwargs):
            super().__init__(**kwargs)
            self.number = number

        def call(self, x):
            return x * self.number()

    x = keras.Input((4,))
    y = layers.Dense(6, "relu", name="a")(Closed(lambda: 2.0, name="closed")(x))
    model = randomize(keras.Model(x, layers.Dense(3, name="head")(y)))
    with pytest.raises(
        ValueError, match="made again from their config, received the Closed 'closed'"
    ):
        pruning.shrink(model, chosen(model))


def test_a_variable_between_the_layers():
    x = keras.Input((4,))
    y = layers.Dense(6, "relu", name="a")(x) * tf.Variable(2.0)
    model = keras.Model(x, layers.Dense(3, name="head")(y))
    with pytest.raises(ValueError, match="built again from its config"):
        pruning.shrink(model, chosen(model))


def test_a_config_that_forgets_something_is_found_out():
    class Forgets(layers.Layer):
        def __init__(self, number=1.0, **kwargs):
            super().__init__(**kwargs)
            self.number = number

        def call(self, x):
            return x * self.number

        def get_config(self):
            return {"name": self.name}

    x = keras.Input((4,))
    y = layers.Dense(6, "relu", name="a")(Forgets(2.0, name="forgets")(x))
    model = randomize(keras.Model(x, layers.Dense(3, name="head")(y)))
    with pytest.raises(ValueError, match="received a difference of"):
        pruning.shrink(model, chosen(model))


def test_a_layer_that_keeps_lists_in_its_config():
    class Lists(layers.Layer):
        def __init__(self, sizes=(1, 2), table=None, **kwargs):
            super().__init__(**kwargs)
            self.sizes, self.table = list(sizes), table

        def call(self, x):
            return x * float(sum(self.sizes) + self.table["deep"][1][0])

        def get_config(self):
            return {**super().get_config(), "sizes": self.sizes, "table": self.table}

    x = keras.Input((4,))
    y = Lists([1, 2], {"deep": [1, (2, 3)]}, name="lists")(x)
    y = layers.Dense(6, "relu", name="a")(y)
    model = randomize(keras.Model(x, layers.Dense(3, name="head")(y)))
    assert pruning.shrink(model, chosen(model)).get_layer("a").units == 4


def test_a_lambda_keeps_its_channels_and_is_copied():
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(6, 3, name="a")(x)
    y = layers.Conv2D(4, 3, name="b")(layers.Lambda(lambda t: t * 2.0 + 1.0, name="l")(y))
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))
    graph, _, small = assert_exact(model, "b.kernel:3 b.bias:0")
    assert small.get_layer("l")(1.0) == 3.0
    assert sizes(graph) == {"b": (4, "b")}


def test_an_embedding_from_a_table(tmp_path):
    table = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    x = keras.Input((5,), dtype="int32")
    start = keras.initializers.Constant(table)
    y = layers.Embedding(9, 6, embeddings_initializer=start, name="e")(x)
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y)))
    _, _, small = assert_exact(model, "e.embeddings:1")
    assert small.get_layer("e").output_dim == 4
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    words = np.array([[1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(loaded(words), small(words))


def test_a_model_with_a_strategy(two_replicas):
    with two_replicas.scope():
        model = net()
        small = pruning.shrink(model, chosen(model))
    assert small.get_layer("a").filters == 4
