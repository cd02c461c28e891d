"""TTM and WTTM against NumPy, and their relation to soft targets."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from loss_cases import gradient, value

from tfkd import schedules
from tfkd.losses import LogitsDistillation, TransformedTeacherMatching


def scores(*shape, seed):
    return np.float32(2.0 * np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 2)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_values_and_gradients(shape, weighted, temperature):
    teacher, student = scores(*shape, seed=1), scores(*shape, seed=2)
    loss = TransformedTeacherMatching(temperature, weighted)

    def expected(s):
        return reference.transformed_teacher(teacher, s, temperature, weighted)

    np.testing.assert_allclose(value(loss, teacher, student), expected(student), rtol=1e-5)
    by_hand = reference.gradient(expected, student)
    found = gradient(loss, teacher, student)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
def test_at_a_temperature_of_one_it_is_soft_targets(weighted):
    teacher, student = scores(4, 5, seed=1), scores(4, 5, seed=2)
    found = value(TransformedTeacherMatching(1.0, weighted), teacher, student)
    assert found == pytest.approx(value(LogitsDistillation(1.0), teacher, student), rel=1e-5)


def test_it_is_soft_targets_and_a_renyi_entropy():
    # KL(p_t ‖ p_s) = KL(p_t ‖ p_s at T) + (T − 1) / T · (E_t[z_s] difference); by the paper,
    # with γ = 1 / T: H(p_t, p_s) = T · H(p_t, p_s at T) − (T − 1) · R_γ(p_s), p_t at T and
    # R_γ(p) = log Σ p^γ / (1 − γ) the Rényi entropy.
    temperature, gamma = 4.0, 0.25
    teacher, student = scores(1, 5, seed=1), scores(1, 5, seed=2)
    p = reference.softmax(teacher[0].astype(float) / temperature)
    entropy = reference.entropy(p)
    soft = reference.soft_targets(teacher, student, temperature) / temperature**2 + entropy
    renyi = np.log(np.sum(reference.softmax(student[0].astype(float)) ** gamma)) / (1 - gamma)
    loss = TransformedTeacherMatching(temperature, weighted=False)
    found = value(loss, teacher, student) + entropy
    assert found == pytest.approx(temperature * soft - (temperature - 1) * renyi, rel=1e-5)


def test_each_example_is_weighted_by_the_sum_of_the_powers():
    # By hand: √0.64 + √0.36 = 1.4, and an unsure teacher has 2 · √0.5 = 1.414.
    teacher = np.float32(np.log([[0.64, 0.36], [0.5, 0.5]]))
    student = np.float32(np.log([[0.9, 0.1], [0.9, 0.1]]))
    for row, weight in ((0, 1.4), (1, np.sqrt(2.0))):
        pair = teacher[[row]], student[[row]]
        weighted, plain = (value(TransformedTeacherMatching(2.0, w), *pair) for w in (True, False))
        assert weighted / plain == pytest.approx(weight, rel=1e-5)


def test_a_scheduled_temperature():
    teacher, student = scores(4, 5, seed=1), scores(4, 5, seed=2)
    loss = TransformedTeacherMatching(schedules.Linear(2.0, 6.0, 0, 10))
    expected = reference.transformed_teacher(teacher, student, 4.0)
    assert value(loss, teacher, student, step=5) == pytest.approx(expected, rel=1e-5)
