"""What must hold of every loss, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import ALL, SCORES, gradient, inputs, value

from tfkd import schedules
from tfkd.losses import (
    AttentionTransfer,
    BoundedRegression,
    DecoupledDistillation,
    DistillationLoss,
    LogitsDistillation,
    RelationalDistillation,
)

quick = settings(deadline=None, max_examples=8)
seeds = st.integers(0, 10**6)

ZERO_AT_TEACHER = sorted(
    # A transformed teacher is imitated at T = 3 by a student at T = 1; ρ of "pearson" has an ε.
    set(ALL) - {"crossentropy", "bounded", "expected_error", "transformed", "weighted", "pearson"}
)


@pytest.mark.parametrize("name", ZERO_AT_TEACHER)
@quick
@given(seed=seeds)
def test_zero_at_the_teacher(name, seed):
    teacher, _, y = inputs(name, seed)
    assert abs(value(ALL[name], teacher, teacher, y=y)) < 1e-6
    np.testing.assert_allclose(gradient(ALL[name], teacher, teacher, y=y), 0.0, atol=1e-6)


@quick
@given(seed=seeds)
def test_bounded_leaves_alone_a_student_as_good_as_its_teacher(seed):
    teacher, _, y = inputs("bounded", seed)
    for student in (teacher, y + 0.5 * (teacher - y)):
        assert value(BoundedRegression(), teacher, student, y=y) == 0.0
        assert not gradient(BoundedRegression(), teacher, student, y=y).any()


def test_bounded_with_a_margin_asks_for_more():
    y, teacher = np.float32([[0.0], [0.0]]), np.float32([[1.0], [1.0]])
    student = np.float32([[0.5], [0.8]])  # better than the teacher by 0.75 and 0.36
    assert value(BoundedRegression(0.3), teacher, student, y=y) == 0.0
    got = value(BoundedRegression(0.5), teacher, student, y=y)
    np.testing.assert_allclose(got, 0.64 / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["kl", "crossentropy", "binary", "decoupled"])
def test_gradient_has_one_size_at_every_temperature(name):
    # The soft limit: scores small beside T.
    teacher, student, y = inputs(name, scale=0.05)
    losses = [type(SCORES[name]).from_config({**SCORES[name].get_config(), "temperature": t})
              for t in (1.0, 20.0)]  # fmt: skip
    norms = [np.linalg.norm(gradient(loss, teacher, student, y=y)) for loss in losses]
    assert norms[0] / norms[1] == pytest.approx(1.0, abs=0.1)
    if name in ("kl", "decoupled", "binary"):
        values = [value(loss, teacher, student, y=y) for loss in losses]
        assert values[0] / values[1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", ALL)
@quick
@given(seed=seeds)
def test_order_of_the_batch_does_not_matter(name, seed):
    teacher, student, y = inputs(name, seed)
    order = np.random.default_rng(seed).permutation(len(y))
    weights = np.linspace(0.5, 2.0, len(y), dtype=np.float32)
    before = value(ALL[name], teacher, student, y=y, sample_weight=weights)
    after = value(
        ALL[name], teacher[order], student[order], y=y[order], sample_weight=weights[order]
    )
    assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"binary"}))
@quick
@given(seed=seeds, shift=st.floats(-50, 50))
def test_shifted_scores_are_the_same_scores(name, seed, shift):
    teacher, student, y = inputs(name, seed)
    before = value(SCORES[name], teacher, student, y=y)
    after = value(SCORES[name], teacher - np.float32(shift), student + np.float32(shift), y=y)
    assert after == pytest.approx(before, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("same", [(0, 1), (0, 1, 2, 3, 4)])
def test_equal_examples_leave_relations_finite(same):
    teacher, student, _ = inputs("relational")
    for array in (teacher, student):
        array[list(same)] = array[0]
    assert np.isfinite(value(RelationalDistillation(), teacher, student))
    assert np.isfinite(gradient(RelationalDistillation(), teacher, student)).all()


def test_attention_ignores_scale_and_width():
    teacher, student, _ = inputs("attention")
    loss = AttentionTransfer("a", "b")
    wide = np.repeat(student, 3, axis=-1) * 7.0
    expected = value(loss, teacher, student)
    assert value(loss, teacher, wide) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "forms",
    [
        ["kl_divergence", "kld", "KLDivergence", keras.losses.kl_divergence,
         keras.losses.KLDivergence()],
        ["categorical_crossentropy", keras.losses.categorical_crossentropy,
         keras.losses.CategoricalCrossentropy(from_logits=True)],
    ],
)  # fmt: skip
def test_strings_functions_and_instances_agree(forms):
    teacher, student, _ = inputs("kl")
    values = {value(LogitsDistillation(3.0, form), teacher, student) for form in forms}
    assert len(values) == 1


def test_crossentropy_is_kl_and_the_teachers_entropy():
    teacher, student, _ = inputs("kl")
    kl = value(LogitsDistillation(3.0), teacher, student)
    crossentropy = value(LogitsDistillation(3.0, "categorical_crossentropy"), teacher, student)
    entropy = np.mean([reference.entropy(reference.softmax(t / 3.0)) for t in teacher])
    assert crossentropy - kl == pytest.approx(9.0 * entropy, rel=1e-5)
    np.testing.assert_allclose(
        gradient(LogitsDistillation(3.0), teacher, student),
        gradient(LogitsDistillation(3.0, "categorical_crossentropy"), teacher, student),
        atol=1e-6,
    )


def test_one_sigmoid_unit():
    teacher, student = np.float32([[2.0], [-1.0]]), np.float32([[0.5], [0.0]])
    got = value(LogitsDistillation(2.0, "binary_crossentropy"), teacher, student)
    assert got == pytest.approx(reference.bernoulli(teacher, student, 2.0), rel=1e-5)


@pytest.mark.parametrize("step", [0, 5, 20, tf.constant(5, tf.int64), tf.Variable(5)])
def test_scheduled_temperature(step):
    teacher, student, _ = inputs("kl")
    loss = LogitsDistillation(schedules.Linear(8.0, 2.0, 0, 10))
    temperature = 8.0 - 6.0 * min(int(step), 10) / 10
    expected = reference.soft_targets(teacher, student, temperature)
    assert value(loss, teacher, student, step=step) == pytest.approx(expected, rel=1e-5)
    in_graph = tf.function(lambda s: loss.compute_loss(tf.constant(teacher), student, step=s))
    got = in_graph(tf.constant(int(step), tf.int64))
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_scheduled_weights_and_margin():
    teacher, student, y = inputs("decoupled")
    loss = DecoupledDistillation(
        schedules.Linear(2.0, 4.0, 0, 10),
        schedules.Constant(0.5),
        schedules.Warmup(8.0, 10),
    )
    for step, temperature, beta in [(0, 2.0, 0.0), (5, 3.0, 4.0), (10, 4.0, 8.0)]:
        expected = reference.decoupled(teacher, student, y, temperature, 0.5, beta)
        got = value(loss, teacher, student, y=y, step=step)
        assert got == pytest.approx(expected, rel=1e-5)
    teacher, student, y = inputs("bounded")
    bounded = BoundedRegression(schedules.Linear(0.0, 9.0, 0, 10))
    for step in (0, 5, 10):
        expected = reference.bounded(teacher, student, y, 0.9 * step)
        assert value(bounded, teacher, student, y=y, step=step) == pytest.approx(expected)


@pytest.mark.parametrize("name", ALL)
def test_numpy_outputs_and_unknown_words_are_taken(name):
    teacher, student, y = inputs(name)
    got = ALL[name].compute_loss(teacher, student, y=y, something_else=1)
    assert float(got) == pytest.approx(value(ALL[name], teacher, student, y=y), rel=1e-6)


def test_a_loss_of_ones_own():
    class Far(DistillationLoss):
        def __init__(self):
            pass

        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return tf.reduce_max(tf.abs(teacher_outputs - student_outputs))

    assert Far().name == "far"
    assert Far().get_config() == {"name": None}
    assert value(Far(), np.float32([1.0, 4.0]), np.float32([1.0, 1.0])) == 3.0
