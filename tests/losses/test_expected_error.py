"""1 − p(y): values and gradients by hand, in a Distiller, and as a loss on labels."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras as keras
import toys
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import gradient, masked, value
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd import schedules
from tfkd.losses import ExpectedErrorLoss, LogitsDistillation, curriculum_objective

LOSS = ExpectedErrorLoss()


def normal(*shape, seed=0, scale=2.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def softmax(z):
    return np.exp(toys.log_softmax(z))


def errors(scores, y):
    """1 − p(y), the sum of the others' p, for class numbers y or rows of probabilities."""
    p = softmax(scores)
    y = np.asarray(y)
    rows = y if y.shape == p.shape else np.eye(p.shape[-1])[y]
    return ((1.0 - rows) * p).sum(-1)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), scale=st.floats(0.1, 8))
def test_value_and_gradient_by_hand_and_by_differences(seed, classes, scale):
    z = normal(4, classes, seed=seed, scale=scale)
    y = np.random.default_rng(seed).integers(0, classes, 4)
    p = softmax(z)
    assert value(LOSS, z, z, y=y) == pytest.approx(np.mean(1 - p[np.arange(4), y]), abs=1e-6)
    found = gradient(LOSS, 0 * z, z, y=y)
    by_hand = -p[np.arange(4), y][:, None] * (np.eye(classes)[y] - p) / 4
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-7)
    by_differences = reference.gradient(lambda s: errors(s, y).mean(), z)
    np.testing.assert_allclose(found, by_differences, atol=1e-6)


def test_it_is_one_minus_accuracy_where_the_student_is_sure():
    z = np.float32([[50, 0, 0], [0, 50, 0], [0, 0, 50], [50, 0, 0]])
    assert value(LOSS, z, z, y=np.array([0, 1, 0, 0])) == pytest.approx(1 - 0.75, abs=1e-6)


def test_small_and_large_scores_stay_exact_and_finite():
    z = np.float32([[12.0, 0.0], [-200.0, 200.0], [1e4, -1e4], [1e-4, 0.0]])
    found = LOSS(np.array([0, 0, 0, 0]), z).numpy()
    np.testing.assert_allclose(found, errors(z, np.zeros(4, int)), rtol=1e-5, atol=0)
    found = gradient(LOSS, z, z, y=np.zeros(4, int))
    p = softmax(z)
    by_hand = -p[:, :1] * np.stack([p[:, 1], -p[:, 1]], 1) / 4  # 1 − p(0) is p(1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, tf.bfloat16.as_numpy_dtype])
def test_arithmetic_is_float32(dtype):
    z = normal(5, 4).astype(dtype)
    found = LOSS.compute_loss(tf.constant(z), tf.constant(z), y=np.array([0, 1, 2, 3, 0]))
    assert found.dtype == tf.float32
    expected = errors(z.astype(np.float64), [0, 1, 2, 3, 0]).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


SPARSE = np.array([2, 0, 3])


@pytest.mark.parametrize("y", [SPARSE, SPARSE[:, None], np.eye(4)[SPARSE], SPARSE.astype("u1"),
                               np.eye(4, dtype=bool)[SPARSE], SPARSE.astype("f4")])  # fmt: skip
def test_labels_of_every_form(y):
    z = normal(3, 4)
    expected = errors(z, SPARSE)
    assert value(LOSS, z, z, y=y) == pytest.approx(expected.mean(), rel=1e-5)
    np.testing.assert_allclose(LOSS(y, z), expected, rtol=1e-5)


def test_soft_labels():
    z, y = normal(3, 4), np.random.default_rng(1).dirichlet(np.ones(4), 3)
    np.testing.assert_allclose(LOSS(y, z), errors(z, y), rtol=1e-5)
    found = gradient(LOSS, z, z, y=y)
    expected = reference.gradient(lambda s: errors(s, y).mean(), z)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("y", [[0, 1, 1], [[0], [1], [1]], [0.2, 0.7, 1.0]])
def test_one_sigmoid(y):
    z = normal(3, 1)
    p = 1 / (1 + np.exp(-z[:, 0].astype(np.float64)))
    t = np.ravel(y)
    expected = 1 - (t * p + (1 - t) * (1 - p))
    np.testing.assert_allclose(LOSS(np.array(y), z), expected, rtol=1e-5)
    found = gradient(LOSS, z, z, y=np.array(y))[:, 0]
    np.testing.assert_allclose(found, (1 - 2 * t) * p * (1 - p) / 3, rtol=1e-4)
    assert value(LOSS, z, z, y=np.array(y)) == pytest.approx(expected.mean(), rel=1e-5)


def test_weights_masks_and_positions():
    z, y = normal(2, 3, 4), np.array([[0, 1, -1], [2, -1, -1]])
    mask, weights = y >= 0, np.float32([0.5, 2.0])
    expected = errors(z, np.where(mask, y, 0))
    found = value(LOSS, z, masked(z, mask), y=y, sample_weight=weights)
    assert found == pytest.approx((expected * weights[:, None])[mask].mean(), rel=1e-5)
    grad = gradient(LOSS, z, z, mask=mask, y=y)
    assert not grad[~mask].any() and grad[mask].all()
    soft = np.where(mask[..., None], np.eye(4)[y], np.nan).astype(np.float32)
    again = gradient(LOSS, z, z, mask=mask, y=soft)
    np.testing.assert_allclose(again, grad, atol=1e-7)
    nothing = np.zeros_like(mask)
    assert value(LOSS, z, masked(z, nothing), y=y) == 0.0


@pytest.mark.parametrize("output, make", [("b", lambda a, b: {"a": a, "b": b}),
                                          (1, lambda a, b: [a, b])])  # fmt: skip
def test_one_output_of_several(output, make):
    z, y, weights = normal(5, 4), np.arange(5) % 4, np.linspace(0.5, 1.5, 5, dtype=np.float32)
    other = np.zeros((5, 7), np.float32)
    found = ExpectedErrorLoss(output).compute_loss(
        make(other, z), make(other, z), y=make(other, y), sample_weight=make(other[:, 0], weights)
    )
    assert float(found) == pytest.approx((weights * errors(z, y)).mean(), rel=1e-5)


# In a Distiller


def distil(losses, weights, student=None, count=8, teacher=None, **options):
    """Logs of one step at rate 0, and of an evaluation."""
    x, y = data(count)
    made = tfkd.Distiller(
        teacher or net(seed=1), student or net(seed=2), losses, weights, student_loss_weight=0
    )
    made.compile(keras.optimizers.SGD(0.0), CROSSENTROPY, metrics=["accuracy"])
    return logs(made.fit(x, y, batch_size=count, verbose=0, **options))


def test_in_a_distiller_with_soft_targets():
    x, y = data()
    z = net(seed=2)(x)
    kd = toys.soft_targets(net(seed=1)(x), z, 4.0).mean()
    error = errors(z, y).mean()
    found = distil([LogitsDistillation(4.0), LOSS], [0.5, 2.0])
    assert found["logits_distillation"] == pytest.approx(kd, rel=1e-5)
    assert found["expected_error_loss"] == pytest.approx(error, rel=1e-5)
    assert found["loss"] == pytest.approx(0.5 * kd + 2.0 * error, rel=1e-5)
    assert found["total_loss"] == pytest.approx(found["loss"], rel=1e-6)


@pytest.mark.parametrize("losses", [[LogitsDistillation(), LOSS], [LOSS, LogitsDistillation()],
                                    [LOSS]])  # fmt: skip
def test_metrics_of_compile_and_agreement_are_there_at_weight_0(losses):
    x, y = data()
    theirs, mine = (net(seed=s)(x).numpy() for s in (1, 2))
    found = distil(losses, None)
    assert found["accuracy"] == pytest.approx((mine.argmax(1) == y).mean())
    assert found["agreement"] == pytest.approx((mine.argmax(1) == theirs.argmax(1)).mean())
    assert found["student_loss"] == pytest.approx(toys.crossentropy(y, mine).mean(), rel=1e-5)


def test_a_students_softmax_is_undone():
    found = distil([LOSS], None, student=net(seed=2, last="softmax"))
    x, y = data()
    expected = errors(net(seed=2)(x), y).mean()
    assert found["expected_error_loss"] == pytest.approx(expected, rel=1e-5)


def test_without_labels_is_a_clear_error():
    made = tfkd.Distiller(net(seed=1), net(seed=2), LOSS, student_loss_weight=0)
    made.compile("sgd")
    with pytest.raises(ValueError, match="`y`: expected labels, which expected_error_loss needs"):
        made.fit(data()[0], verbose=0)


def test_the_preset():
    x, y = data()
    z = net(seed=2)(x)
    alpha = schedules.Linear(3.0, 1.0, 0, 10)
    objective = curriculum_objective(alpha, 0.5, 2.0)
    made = tfkd.Distiller(net(seed=1), net(seed=2), **objective)
    made.compile(keras.optimizers.SGD(0.0), CROSSENTROPY, metrics=["accuracy"])
    found = logs(made.fit(x, y, batch_size=8, verbose=0))
    kd = toys.soft_targets(net(seed=1)(x), z, 2.0).mean()
    assert found["loss"] == pytest.approx(3.0 * kd + 0.5 * errors(z, y).mean(), rel=1e-5)
    assert {"accuracy", "agreement"} <= set(found)
    values = made.scheduled_values(5)
    assert values["weight/logits_distillation"] == 2.0
    assert values["weight/expected_error_loss"] == 0.5
    assert values["student_loss_weight"] == 0.0 and values["temperature/logits_distillation"] == 2.0


def test_the_preset_scheduled_in_temperature():
    objective = curriculum_objective(temperature=schedules.Linear(4.0, 1.0, 0, 10))
    loss = objective["distillation_losses"][0]
    assert isinstance(loss.temperature, schedules.Linear)
    assert objective["distillation_loss_weights"] == [1.0, 1.0]


@pytest.mark.parametrize("arguments, error, words", [
    ({"alpha": -1.0}, ValueError, "`alpha`: .*at least 0.*-1.0"),
    ({"beta": float("nan")}, ValueError, "`beta`: .*nan"),
    ({"beta": "1"}, TypeError, "`beta`: .*schedule.*'1'"),
    ({"temperature": 0}, ValueError, "`temperature`: .*above 0"),
    ({"alpha": 0, "beta": 0}, ValueError, "`beta`: .*alpha or beta above 0"),
])  # fmt: skip
def test_bad_arguments_of_the_preset(arguments, error, words):
    with pytest.raises(error, match=words):
        curriculum_objective(**arguments)
