"""How values become one: weights, masks, several outputs, sums."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras as keras
from loss_cases import ALL, ELEMENTWISE, gradient, inputs, masked, value

from tfkd.losses import (
    AttentionTransfer,
    BoundedRegression,
    DecoupledDistillation,
    ExpectedErrorLoss,
    FeatureDistillation,
    LogitsDistillation,
    PearsonDistillation,
    RelationalDistillation,
    TransformedTeacherMatching,
)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_sample_weights(name):
    loss = ELEMENTWISE[name]
    teacher, student, y = inputs(name)
    each = np.array(
        [value(loss, teacher[[i]], student[[i]], y=y[[i]]) for i in range(len(y))], np.float64
    )
    weights = np.float32([1.0, 0.0, 2.0, 0.5, 1.5])
    got = value(loss, teacher, student, y=y, sample_weight=weights)
    assert got == pytest.approx(np.mean(weights * each), rel=1e-5)
    double = value(loss, teacher, student, y=y, sample_weight=2 * weights)
    assert double == pytest.approx(2 * got, rel=1e-6)
    column = value(loss, teacher, student, y=y, sample_weight=weights[:, None])
    assert column == pytest.approx(got, rel=1e-6)
    assert not gradient(loss, teacher, student, y=y, sample_weight=weights)[1].any()


def test_weights_of_relations():
    loss = RelationalDistillation()
    teacher, student, _ = inputs("relational")
    ones = value(loss, teacher, student, sample_weight=np.ones(5, np.float32))
    assert ones == pytest.approx(value(loss, teacher, student), rel=1e-6)
    weights = np.float32([1, 1, 1, 1, 0])
    moved = student.copy()
    moved[4] += 10.0
    got = [value(loss, teacher, s, sample_weight=weights) for s in (student, moved)]
    assert got[0] == pytest.approx(got[1], rel=1e-6)
    assert not gradient(loss, teacher, student, sample_weight=weights)[4].any()
    distances = RelationalDistillation(1.0, 0.0)
    single, double = (
        value(distances, teacher, student, sample_weight=np.full(5, w, np.float32)) for w in (1, 2)
    )
    assert double == pytest.approx(4 * single, rel=1e-6)
    assert value(loss, teacher, student, sample_weight=np.zeros(5, np.float32)) == 0.0


SEQUENCES = {
    "kl": LogitsDistillation(3.0),
    "mse of scores": LogitsDistillation(3.0, "mse"),
    "decoupled": DecoupledDistillation(3.0),
    "standardized": DecoupledDistillation(3.0, standardize=True),
    "pearson": PearsonDistillation(3.0),
    "transformed": TransformedTeacherMatching(3.0),
    "feature": FeatureDistillation(),
    "bounded": BoundedRegression(50.0),
    "expected_error": ExpectedErrorLoss(),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_masked_positions_count_nowhere(name):
    loss = SEQUENCES[name]
    rng = np.random.default_rng(0)
    teacher, student = (np.float32(rng.normal(size=(2, 3, 4))) for _ in range(2))
    labels = np.array([[0, 1, -1], [2, -1, -1]])  # -1 at the padding
    y = (
        labels
        if name in ("decoupled", "standardized", "expected_error")
        else np.float32(rng.normal(size=(2, 3, 4)))
    )
    mask = labels >= 0
    got = value(loss, teacher, masked(student, mask), y=y)
    # The kept positions, as a batch of their own.
    alone = value(loss, teacher[mask], student[mask], y=y[mask])
    assert got == pytest.approx(alone, rel=1e-5)
    grad = gradient(loss, teacher, student, mask=mask, y=y)
    assert not grad[~mask].any() and grad[mask].any()
    nothing = np.zeros_like(mask)
    assert value(loss, teacher, masked(student, nothing), y=y) == 0.0
    assert not gradient(loss, teacher, student, mask=nothing, y=y).any()


def test_masked_positions_have_no_attention():
    loss = AttentionTransfer("a", "b")
    rng = np.random.default_rng(0)
    teacher, student = (np.float32(rng.normal(size=(3, 4, 2))) for _ in range(2))
    mask = np.array([[True, True, False, False]] * 2 + [[False] * 4])
    got = value(loss, teacher, masked(student, mask))
    # The last example is all padding: it has no map and does not count.
    assert got == pytest.approx(reference.attention(teacher[:2, :2], student[:2, :2]), rel=1e-5)
    grad = gradient(loss, teacher, student, mask=mask)
    assert np.isfinite(grad).all() and not grad[~mask].any()


def test_masked_positions_have_no_relations():
    loss = RelationalDistillation()
    rng = np.random.default_rng(0)
    teacher, student = (np.float32(rng.normal(size=(4, 3, 2))) for _ in range(2))
    mask = np.array([[True, True, False]] * 4)
    got = value(loss, teacher, masked(student, mask))
    assert got == pytest.approx(reference.relational(teacher, student[:, :2]), rel=1e-5)


def test_a_mask_of_examples():
    teacher, student, _ = inputs("kl")
    mask = np.array([True, False, True, True, False])
    got = value(LogitsDistillation(), teacher, masked(student, mask))
    expected = reference.soft_targets(teacher[mask], student[mask], 3.0)
    assert got == pytest.approx(expected, rel=1e-5)


def test_bounded_mask_of_nothing_is_zero_even_beside_nan():
    y = np.full((2, 3, 4), np.nan, np.float32)
    y[0, 1] = 1.0
    rng = np.random.default_rng(0)
    teacher, student = (np.float32(rng.normal(size=(2, 3, 4))) for _ in range(2))
    found = BoundedRegression(100.0, mask=lambda y: tf.math.is_finite(y[..., 0]))
    expected = np.sum((student[0, 1] - 1.0) ** 2)
    assert value(found, teacher, student, y=y) == pytest.approx(expected, rel=1e-6)
    grad = gradient(found, teacher, student, y=y)
    np.testing.assert_allclose(grad[0, 1], 2 * (student[0, 1] - 1.0), rtol=1e-5)
    assert np.isfinite(grad).all() and np.count_nonzero(grad) == 4
    nothing = BoundedRegression(100.0, mask=lambda y: tf.zeros(y.shape[:-1], tf.bool))
    assert value(nothing, teacher, student, y=y) == 0.0
    assert not gradient(nothing, teacher, student, y=y).any()


def test_outputs_without_a_loss_are_left_out():
    teacher, student, _ = inputs("kl")
    other = np.zeros((5, 2), np.float32)
    expected = reference.soft_targets(teacher, student, 3.0)
    for make in (lambda a, b: [a, b], lambda a, b: (a, b), lambda a, b: {"x": a, "y": b}):
        loss = LogitsDistillation(3.0, make("kl_divergence", None))
        got = loss.compute_loss(make(teacher, other), make(student, other + 9.0))
        assert float(got) == pytest.approx(expected, rel=1e-5)
    both = LogitsDistillation(3.0).compute_loss([teacher, teacher], [student, student])
    assert float(both) == pytest.approx(2 * expected, rel=1e-5)


def test_weights_per_output():
    teacher, student, _ = inputs("kl")
    weights = np.float32([1, 0, 0, 0, 0])
    loss = LogitsDistillation(3.0, {"a": "kl_divergence", "b": None})
    got = loss.compute_loss(
        {"a": teacher, "b": teacher},
        {"a": student, "b": student},
        sample_weight={"a": weights, "b": np.ones(5, np.float32)},
    )
    expected = reference.soft_targets(teacher[:1], student[:1], 3.0) / 5
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("output, make", [("b", lambda a, b: {"a": a, "b": b}),
                                          (1, lambda a, b: [a, b])])  # fmt: skip
@pytest.mark.parametrize(
    "name", ["decoupled", "bounded", "relational", "expected_error", "pearson", "weighted"]
)
def test_one_output_of_several(name, output, make):
    teacher, student, y = inputs(name)
    other = np.zeros((5, 7), np.float32)
    weights = np.linspace(0.5, 1.5, 5, dtype=np.float32)
    loss = ALL[name]
    expected = value(loss, teacher, student, y=y, sample_weight=weights)
    config = {**loss.get_config(), "output": output}
    got = (
        type(loss)
        .from_config(config)
        .compute_loss(
            make(other, teacher),
            make(other, student),
            y=make(other[:, 0], y),
            sample_weight=make(np.zeros(5, np.float32), weights),
        )
    )
    assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "instance, reference_loss",
    [
        (keras.losses.KLDivergence, reference.soft_targets),
        (keras.losses.CategoricalCrossentropy, reference.soft_crossentropy),
        (keras.losses.BinaryCrossentropy, reference.bernoulli),
        (
            keras.losses.MeanSquaredError,
            lambda t, s, temperature: reference.squared_error(t / temperature, s / temperature),
        ),
    ],
)
def test_an_instance_may_ask_for_the_sum(instance, reference_loss):
    teacher, student, _ = inputs("kl")
    expected = reference_loss(teacher, student, 2.0)
    got = value(LogitsDistillation(2.0, instance()), teacher, student)
    assert got == pytest.approx(expected, rel=1e-5)
    got = value(LogitsDistillation(2.0, instance(reduction="sum")), teacher, student)
    assert got == pytest.approx(5 * expected, rel=1e-5)


def test_features_may_be_summed():
    teacher, student, _ = inputs("feature")
    got = value(FeatureDistillation(keras.losses.MeanSquaredError("sum")), teacher, student)
    assert got == pytest.approx(5 * reference.squared_error(teacher, student), rel=1e-5)


def test_a_function_that_takes_the_mean_itself():
    teacher, student, _ = inputs("feature")

    def loss(t, s):
        return tf.reduce_mean(tf.square(t - s))

    expected = reference.squared_error(teacher, student)
    got = FeatureDistillation(loss)
    assert value(got, teacher, student) == pytest.approx(expected, rel=1e-5)
    weights = np.full(5, 3.0, np.float32)
    weighted = value(got, teacher, student, sample_weight=weights)
    assert weighted == pytest.approx(3 * expected, rel=1e-5)
