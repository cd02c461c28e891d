"""Graphs of Keras 3: shared layers, nested models, names, masks, states, details."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from keras3_toys import IMAGE, WORDS, L, check, keras, ops, randomized, through

import tfkd


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
