"""Values and gradients of every loss equal float64 NumPy to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st

from tfkd.losses import (
    AttentionTransfer,
    BoundedRegression,
    DecoupledDistillation,
    FeatureDistillation,
    LogitsDistillation,
    PearsonDistillation,
    RelationalDistillation,
    TransformedTeacherMatching,
)

seeds = st.integers(0, 10**6)


def normal(*shape, seed=0, scale=2.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def value_and_gradient(loss, teacher, student, **kwargs):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss.compute_loss(tf.constant(teacher), student, **kwargs)
    assert value.shape == () and value.dtype == tf.float32
    return value.numpy(), tape.gradient(value, student).numpy()


def assert_equal(loss, teacher, student, expected, **kwargs):
    """`expected`: the NumPy loss of (teacher, student)."""
    value, grad = value_and_gradient(loss, teacher, student, **kwargs)
    teacher = teacher.astype(np.float64)
    np.testing.assert_allclose(value, expected(teacher, student), rtol=1e-5, atol=1e-5)
    by_hand = reference.gradient(lambda s: expected(teacher, s), student)
    np.testing.assert_allclose(grad, by_hand, rtol=1e-5, atol=1e-5)


SCORE_LOSSES = {
    "kl_divergence": reference.soft_targets,
    "categorical_crossentropy": reference.soft_crossentropy,
    "binary_crossentropy": reference.bernoulli,
}


@pytest.mark.parametrize("loss", SCORE_LOSSES)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 2, 2, 3)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_scores(loss, shape, temperature):
    assert_equal(
        LogitsDistillation(temperature, loss),
        normal(*shape, seed=1),
        normal(*shape, seed=2),
        lambda t, s: SCORE_LOSSES[loss](t, s, temperature),
    )


@given(seed=seeds, classes=st.integers(2, 20), temperature=st.floats(0.5, 20))
def test_soft_target_gradient_is_the_formula(seed, classes, temperature):
    teacher, student = normal(3, classes, seed=seed), normal(3, classes, seed=seed + 1)
    _, grad = value_and_gradient(LogitsDistillation(temperature), teacher, student)
    expected = reference.soft_targets_gradient(teacher, student, temperature)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5)


def test_dark_knowledge_below_1e7_counts():
    # Keras's own KLDivergence clips at 1e-7 and sees no difference here.
    teacher, student = np.float32([[30.0, 0.0, -2.0]]), np.float32([[30.0, -2.0, 0.0]])
    value, _ = value_and_gradient(LogitsDistillation(1.0), teacher, student)
    np.testing.assert_allclose(value, reference.soft_targets(teacher, student, 1.0), rtol=1e-4)
    assert value > 0


def test_other_losses_see_scaled_scores_and_no_square():
    teacher, student = normal(3, 4, seed=1), normal(3, 4, seed=2)
    value, _ = value_and_gradient(LogitsDistillation(2.0, "mse"), teacher, student)
    expected = reference.squared_error(teacher / 2, student / 2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@given(
    seed=seeds,
    classes=st.integers(2, 8),
    temperature=st.floats(1, 6),
    alpha=st.floats(0, 3),
    beta=st.floats(0, 10),
)
def test_decoupled(seed, classes, temperature, alpha, beta):
    labels = np.random.default_rng(seed).integers(0, classes, 3)
    assert_equal(
        DecoupledDistillation(temperature, alpha, beta),
        normal(3, classes, seed=seed),
        normal(3, classes, seed=seed + 1),
        lambda t, s: reference.decoupled(t, s, labels, temperature, alpha, beta),
        y=labels,
    )


def test_decoupled_positions():
    labels = np.array([[0, 1, 2], [3, 0, 1]])
    assert_equal(
        DecoupledDistillation(),
        normal(2, 3, 4, seed=1),
        normal(2, 3, 4, seed=2),
        lambda t, s: reference.decoupled(t, s, labels, 4.0, 1.0, 8.0),
        y=labels,
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.float32])
def test_decoupled_reads_every_form_of_label(dtype):
    teacher, student = normal(3, 4, seed=1), normal(3, 4, seed=2)
    sparse = np.array([2, 0, 3])
    forms = [sparse, sparse[:, None], np.eye(4)[sparse]]
    expected = reference.decoupled(teacher, student, sparse, 4.0, 1.0, 8.0)
    for labels in forms:
        value, _ = value_and_gradient(
            DecoupledDistillation(), teacher, student, y=labels.astype(dtype)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_decoupled_of_two_classes_is_its_target_part():
    teacher, student = normal(6, 2, seed=1), normal(6, 2, seed=2)
    y = np.array([0, 1, 0, 1, 1, 0])
    value, grad = value_and_gradient(DecoupledDistillation(alpha=0.0), teacher, student, y=y)
    assert value == 0.0 and not grad.any()


def test_decoupled_with_weight_one_minus_p_is_plain_distillation():
    # Zhao et al., equation 6, for one example.
    teacher, student = normal(1, 5, seed=1), normal(1, 5, seed=2)
    beta = 1.0 - reference.softmax(teacher[0].astype(float) / 4)[2]
    value, _ = value_and_gradient(
        DecoupledDistillation(4.0, 1.0, beta), teacher, student, y=np.array([2])
    )
    expected = reference.soft_targets(teacher, student, 4.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 3, 3, 2)])
def test_features(shape):
    teacher, student = normal(*shape, seed=1), normal(*shape, seed=2)
    assert_equal(FeatureDistillation(), teacher, student, reference.squared_error)


@pytest.mark.parametrize(
    "teacher_shape, student_shape",
    [
        ((2, 3, 4), (2, 3, 5)),
        ((2, 6, 2), (2, 4, 3)),
        ((2, 4, 4, 3), (2, 4, 4, 2)),
        ((2, 4, 6, 3), (2, 2, 3, 2)),
        ((2, 3, 3, 2), (2, 5, 4, 2)),
    ],
)
def test_attention(teacher_shape, student_shape):
    assert_equal(
        AttentionTransfer("a", "b"),
        normal(*teacher_shape, seed=1),
        normal(*student_shape, seed=2),
        reference.attention,
    )


@pytest.mark.parametrize("distance, angle", [(1.0, 2.0), (3.0, 0.0), (0.0, 1.5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_relations(distance, angle, weighted):
    weights = np.float32([0.5, 2.0, 1.0, 0.0, 1.5]) if weighted else None
    assert_equal(
        RelationalDistillation(distance, angle),
        normal(5, 4, seed=1),
        normal(5, 3, seed=2),
        lambda t, s: reference.relational(t, s, distance, angle, weights),
        sample_weight=weights,
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_relations_of_few_examples(count):
    # By the definition: no pair in 1 example, no triple in 2.
    assert_equal(
        RelationalDistillation(),
        normal(count, 4, seed=1),
        normal(count, 2, seed=2),
        reference.relational,
    )


def test_relations_reach_the_straight_part_of_huber():
    teacher, student = normal(4, 2, seed=1), normal(4, 2, seed=1)
    student[3] *= 40.0
    distances = reference._distances(student, np.ones(4), [(i, 3) for i in range(3)] + [(0, 1)])
    assert max(distances.values()) > 1  # or this test would not test it
    assert_equal(RelationalDistillation(), teacher, student, reference.relational)


def test_relations_flatten_maps():
    teacher, student = normal(4, 2, 2, 3, seed=1), normal(4, 6, seed=2)
    assert_equal(RelationalDistillation(), teacher, student, reference.relational)


@given(seed=seeds, margin=st.floats(0, 5), shape=st.sampled_from([(5, 1), (5, 3), (2, 4, 3)]))
def test_bounded(seed, margin, shape):
    y = normal(*shape, seed=seed + 2)
    assert_equal(
        BoundedRegression(margin),
        normal(*shape, seed=seed, scale=1.0) + y,
        normal(*shape, seed=seed + 1, scale=1.0) + y,
        lambda t, s: reference.bounded(t, s, y, margin),
        y=y,
    )


@pytest.mark.parametrize("y_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_bounded_takes_numbers_with_or_without_an_axis(shape, y_shape):
    y, teacher, student = (normal(4, seed=s) for s in range(3))
    value, _ = value_and_gradient(
        BoundedRegression(), teacher.reshape(shape), student.reshape(shape), y=y.reshape(y_shape)
    )
    expected = reference.bounded(teacher[:, None], student[:, None], y[:, None])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_bounded_counts_the_masked_predictions_alone():
    y, teacher, student = (normal(3, 4, 2, seed=s) for s in range(3))
    keep = y[..., 0] > 0
    assert keep.any() and not keep.all()
    assert_equal(
        BoundedRegression(0.5, mask=lambda y: y[..., 0] > 0),
        teacher,
        student,
        lambda t, s: reference.bounded(t, s, y, 0.5, keep),
        y=y,
    )


LOSSES = {
    "kl": LogitsDistillation(3.0),
    "crossentropy": LogitsDistillation(3.0, keras.losses.CategoricalCrossentropy()),
    "binary": LogitsDistillation(3.0, "binary_crossentropy"),
    "decoupled": DecoupledDistillation(),
    "feature": FeatureDistillation(),
    "attention": AttentionTransfer("a", "b"),
    "relational": RelationalDistillation(),
    "standardized": LogitsDistillation(standardize=True),
    "pearson": PearsonDistillation(),
    "transformed": TransformedTeacherMatching(),
    "bounded": BoundedRegression(0.1),
}


def inputs(name, dtype=np.float32):
    shape = (4, 3, 2) if name == "attention" else (4, 3)
    y = np.array([0, 2, 1, 0]) if name == "decoupled" else normal(4, 3, seed=3)
    return normal(*shape, seed=1).astype(dtype), normal(*shape, seed=2).astype(dtype), y


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    teacher, student, y = inputs(name)
    teacher, student = tf.constant(teacher), tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = LOSSES[name].compute_loss(teacher, student, y=y)
    to_teacher, to_student = tape.gradient(value, [teacher, student])
    assert to_teacher is None and np.abs(to_student).max() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_and_xla_give_the_same(name, compiled):
    teacher, student, y = inputs(name)
    value, grad = value_and_gradient(LOSSES[name], teacher, student, y=y)
    in_graph = tf.function(
        lambda t, s: _value_and_gradient_in_graph(LOSSES[name], t, s, y),
        input_signature=[tf.TensorSpec((None, *teacher.shape[1:]), tf.float32)] * 2,
        jit_compile=compiled,
    )
    graph_value, graph_grad = in_graph(teacher, student)
    np.testing.assert_allclose(graph_value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(graph_grad, grad, rtol=1e-4, atol=1e-5)


def _value_and_gradient_in_graph(loss, teacher, student, y):
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss.compute_loss(teacher, student, y=y)
    return value, tape.gradient(value, student)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 100.0])
def test_float16_stays_finite(name, size):
    teacher, student, y = inputs(name)
    teacher = np.where(teacher > 0, size, -size).astype(np.float16)
    student = np.where(student > 0, size, -size).astype(np.float16)
    value, grad = value_and_gradient(LOSSES[name], teacher, student, y=y)
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert grad.dtype == np.float16
