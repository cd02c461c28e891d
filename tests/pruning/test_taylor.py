"""Taylor scores against gradients worked out in NumPy, in plans and during training."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd.callbacks import FilterDecay
from tfkd.pruning import AnnealedFilterDecay, Taylor, analyse, criteria

L = keras.layers


def of_dense(norm=None, branches=1):
    """Dense(4) → `norm` → [sum of branches] → ReLU → Dense(2), random weights."""
    x = keras.Input((3,))
    parts = []
    for number in range(branches):
        y = L.Dense(4, name=f"hidden{number}")(x)
        parts.append(y if norm is None else L.BatchNormalization(scale=norm == "gamma")(y))
    y = L.Add()(parts) if branches > 1 else parts[0]
    return toys.randomize(keras.Model(x, L.Dense(2, name="out")(L.ReLU()(y))), 3)


def examples(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype("f4"), rng.normal(size=(count, 2)).astype("f4")


def by_hand(model, batches):
    """Root mean square of Σ ∂L/∂h · h for each unit h before the ReLU, L the mean squared error.

    A gate at a unit has this gradient, and so has the sum over kernel, bias, or gamma, beta.
    """
    squares = 0
    kernel, bias = model.get_layer("out").get_weights()
    before = keras.Model(model.input, model.layers[-2].input)
    for x, y in batches:
        h = np.asarray(before(x), np.float64)
        error = np.maximum(h, 0) @ kernel + bias - y
        gradient = 2 * error / error.size @ kernel.T * (h > 0)
        squares = squares + (gradient * h).sum(0) ** 2
    return np.sqrt(squares / len(batches))


@pytest.mark.parametrize("norm", [None, "gamma", "no gamma"])
@pytest.mark.parametrize("branches", [1, 2])
def test_scores_are_the_gradient_of_a_gate_at_the_unit(norm, branches):
    model = of_dense(norm, branches)
    x, y = examples()
    found = Taylor((x, y), loss="mse", batch_size=4).of_graph(analyse(model))
    expected = by_hand(model, [(x[i::3], y[i::3]) for i in range(3)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_sample_weights_count():
    model = of_dense()
    x, y = examples(6)
    weights = np.array([1, 1, 0, 0, 1, 1], "f4")
    found = Taylor((x, y, weights), loss="mse", batch_size=4).of_graph(analyse(model))
    # Two batches of three, of which one example each has no weight; Keras divides by three.
    parts = [by_hand(model, [(x[[i, i + 4]], y[[i, i + 4]])]) * 2 / 3 for i in (0, 1)]
    expected = np.sqrt(np.mean(np.square(parts), 0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_examples_are_taken_evenly_from_arrays_and_first_from_batches():
    """Arrays are often sorted by class."""
    model, (x, y) = of_dense(), examples(25)
    graph = analyse(model)
    every = by_hand(model, [(x[::4], y[::4])])
    for data in ((x, y), (tf.constant(x), y), tfkd_like(x, y)):
        found = Taylor(data, loss="mse", max_examples=7).of_graph(graph)
        np.testing.assert_allclose(found, every, rtol=1e-4, atol=1e-7)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    found = Taylor(batches, loss="mse", max_examples=12, batch_size=4).of_graph(graph)
    rows = [slice(0, 6, 2), slice(1, 6, 2), slice(6, 12, 2), slice(7, 12, 2)]
    first = by_hand(model, [(x[part], y[part]) for part in rows])
    np.testing.assert_allclose(found, first, rtol=1e-4, atol=1e-7)


def test_batches_of_one_class_are_told():
    x, y = examples(8)[0], np.repeat([0, 1], 4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    with pytest.warns(UserWarning, match="all 4 examples have the label 0"):
        scored(batches, loss, max_examples=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored((x, y), loss, max_examples=4)


def tfkd_like(x, y):
    """What data sets of `tfkd.data` have."""
    return types.SimpleNamespace(
        x_train=2 * x, y_train=y, x_test=x, y_test=y, preprocess=lambda values: values / 2
    )


def test_loss_of_compile_is_the_default_and_training_logs_stay():
    model = of_dense("gamma")
    model.compile("sgd", "mse")
    x, y = examples()
    before = model.evaluate(x, y, verbose=0)
    weights = model.get_weights()
    found = Taylor((x, y)).of_graph(analyse(model))
    np.testing.assert_allclose(found, by_hand(model, [(x, y)]), rtol=1e-4, atol=1e-7)
    assert float(model.compiled_loss.metrics[0].result()) == pytest.approx(before)
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_loss_of_a_distiller_is_the_loss_to_its_teacher():
    teacher, student = of_dense(branches=2), of_dense()
    x, y = examples()
    distiller = tfkd.Distiller(
        teacher, student, tfkd.losses.FeatureDistillation(loss="mse"), student_loss_weight=0.25
    )
    distiller.compile("sgd", "mse")
    distiller.evaluate(x, y, verbose=0)
    logs = [float(metric.result()) for metric in distiller.metrics]
    found = Taylor((x, y), loss=distiller).of_graph(analyse(student))
    # Both losses are squared errors, so that their sum is one to a mean of the targets.
    target = 0.25 * y + 0.75 * np.asarray(teacher(x))
    np.testing.assert_allclose(found, by_hand(student, [(x, target)]), rtol=1e-4, atol=1e-7)
    assert [float(metric.result()) for metric in distiller.metrics] == logs


def test_scores_are_of_the_mean_one_and_comparable_between_groups():
    x = keras.Input((3,))
    y = L.Dense(4, "relu", name="strong")(x)
    y = L.Dense(4, "relu", name="weak")(y)
    model = toys.randomize(keras.Model(x, L.Dense(2)(y)), 1)
    graph, taylor = analyse(model), Taylor(examples(), loss="mse")
    scores = criteria.scores(graph, taylor)
    assert scores.mean() == pytest.approx(1)
    raw = taylor.of_graph(graph)
    np.testing.assert_allclose(scores, raw / raw.mean())
    plan = tfkd.pruning.plan(model, filter_rate=0.5, scope="global", criterion=taylor)
    lowest = np.argsort(raw)[:4]
    assert list(plan.remove.values()) == [int((lowest < 4).sum()), int((lowest >= 4).sum())]
    assert "Taylor" in plan.to_dict()["criterion"]


def test_mixed_float16_agrees_with_float32():
    model = of_dense("gamma")
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        half = of_dense("gamma")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    x, y = examples()
    found = Taylor((x, y), loss=lambda y, z: 1e-5 * keras.losses.mse(y, z)).of_graph(analyse(half))
    np.testing.assert_allclose(found, 1e-5 * by_hand(model, [(x, y)]), rtol=0.03, atol=1e-8)


def test_filter_decay_scores_with_the_weights_of_the_moment():
    model = of_dense("gamma")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = examples()
    plan = tfkd.pruning.plan(model, filter_rate=0.5, criterion=Taylor((x, y)))
    decay = FilterDecay(plan, AnnealedFilterDecay(0.5, 3, 3))
    lowest = []

    def remember(batch, logs):
        lowest.append(np.argsort(by_hand(model, [(x, y)]))[:2])

    first = keras.callbacks.LambdaCallback(on_train_batch_end=remember)
    logs = model.fit(x, y, batch_size=4, verbose=0, callbacks=[first, decay]).history
    assert decay.frozen and set(logs) == {"loss", "decay_rate", "sparsity"}
    removed = decay.selection.removed["hidden0"]
    assert removed == tuple(sorted(lowest[2]))
    small = tfkd.pruning.shrink(model, decay.selection)
    assert small.get_layer("hidden0").units == 2


@pytest.mark.slow
def test_filter_decay_in_a_distiller_with_two_replicas(two_replicas):
    with two_replicas.scope():
        teacher, student = of_dense(branches=2), of_dense("gamma")
        loss = tfkd.losses.FeatureDistillation(loss="mse")
        distiller = tfkd.Distiller(teacher, student, loss)
        distiller.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = examples()
    plan = tfkd.pruning.plan(student, filter_rate=0.5, criterion=Taylor((x, y), loss=distiller))
    decay = FilterDecay(plan, AnnealedFilterDecay(0.5, 0, 4))
    distiller.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[decay])
    assert decay.frozen and len(decay.selection.removed["hidden0"]) == 2


def scored(*args, model=None, **kwargs):
    Taylor(*args, **kwargs).of_graph(analyse(model or of_dense()))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: scored(examples()), ValueError, "`loss`.*compile the model"),
        (lambda: scored(examples()[0], loss="mse"), ValueError, "`data`.*labelled"),
        (lambda: scored(examples(), loss="mso"), ValueError, "`loss`.*'mso'"),
        (lambda: scored(examples(), loss=3), TypeError, "`loss`"),
        (lambda: scored(examples(), loss=of_dense()), TypeError, "`loss`"),
        (lambda: scored(examples(), loss="mse", batch_size=0), ValueError, "`batch_size`"),
        (
            lambda: scored((examples()[0], np.eye(12, 3)), loss="mse"),
            ValueError,
            "`data`.*labelled examples that the model",
        ),
        (
            lambda: scored((examples()[0], np.full((12, 2), np.nan)), loss="mse"),
            ValueError,
            "`data`.*finite",
        ),
        (
            lambda: tfkd.pruning.plan(of_dense(), filter_rate=0.5, criterion="taylor"),
            ValueError,
            "`criterion`.*Taylor",
        ),
        (
            lambda: tfkd.pruning.plan(of_dense(), filter_rate=0.5, criterion=Taylor),
            TypeError,
            "`criterion`.*Taylor",
        ),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_distiller_of_another_student_or_not_compiled():
    distiller = tfkd.Distiller(of_dense(), of_dense(), tfkd.losses.FeatureDistillation())
    with pytest.raises(ValueError, match="`loss`.*whose student"):
        scored(examples(), loss=distiller)
    with pytest.raises(ValueError, match="`loss`.*not compiled"):
        scored(examples(), loss=distiller, model=distiller.student)
