"""DIST: correlations between and within classes, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from loss_cases import gradient, masked, value

from tfkd.losses import PearsonDistillation


def scores(*shape, seed):
    return np.float32(2.0 * np.random.default_rng(seed).normal(size=shape))


def assert_equal(loss, teacher, student, expected, **kwargs):
    got = value(loss, teacher, student, **kwargs)
    np.testing.assert_allclose(got, expected(student), rtol=1e-5, atol=1e-5)
    by_hand = reference.gradient(expected, student)
    found = gradient(loss, teacher, student, **kwargs)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (3, 2)])
@pytest.mark.parametrize("parts", [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_values_and_gradients(shape, parts):
    teacher, student = scores(*shape, seed=1), scores(*shape, seed=2)
    assert_equal(
        PearsonDistillation(2.0, *parts),
        teacher,
        student,
        lambda s: reference.pearson(teacher, s, 2.0, *parts),
    )


def test_weights_are_those_of_the_correlations():
    teacher, student = scores(5, 4, seed=1), scores(5, 4, seed=2)
    loss, weights = PearsonDistillation(2.0), np.float32([0.5, 2.0, 1.0, 0.0, 1.5])
    assert_equal(
        loss,
        teacher,
        student,
        lambda s: reference.pearson(teacher, s, 2.0, weights=weights),
        sample_weight=weights,
    )
    single, double = (
        value(loss, teacher, student, sample_weight=w) for w in (weights, 2 * weights)
    )
    assert double == pytest.approx(2 * single, rel=1e-6)
    # An example of weight 0 is as if it were not there, but for the number of examples.
    present = value(loss, teacher[:3], student[:3])
    zeros = np.float32([1, 1, 1, 0, 0])
    assert value(loss, teacher, student, sample_weight=zeros) == pytest.approx(
        3 / 5 * present, rel=1e-5
    )
    assert value(loss, teacher, student, sample_weight=np.zeros(5, np.float32)) == 0.0


def test_weights_and_masks_of_positions():
    teacher, student = scores(2, 3, 4, seed=1), scores(2, 3, 4, seed=2)
    mask = np.array([[True, True, False], [True, False, False]])
    weights = np.float32([[1.0, 2.0, 9.0], [0.5, 9.0, 9.0]])
    got = value(PearsonDistillation(2.0), teacher, masked(student, mask), sample_weight=weights)
    expected = reference.pearson(teacher[mask], student[mask], 2.0, weights=weights[mask])
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, [3.0], [0.0, 2.0, 0.0]])
def test_one_example_has_no_relation_within_classes(weights):
    count = 1 if weights is None else len(weights)
    teacher, student = scores(count, 4, seed=1), scores(count, 4, seed=2)
    assert_equal(
        PearsonDistillation(2.0, gamma=9.0),
        teacher,
        student,
        lambda s: reference.pearson(teacher, s, 2.0, gamma=0.0, weights=weights),
        sample_weight=None if weights is None else np.float32(weights),
    )


def test_a_student_of_lower_confidence_is_as_good():
    rng = np.random.default_rng(0)
    teacher = rng.dirichlet(np.ones(4), 6)
    unsure = 0.3 * teacher + 0.7 / 4  # a linear map of the probabilities, with the same sum
    loss = PearsonDistillation(1.0)
    assert value(loss, np.float32(np.log(teacher)), np.float32(np.log(unsure))) < 1e-5


def test_equal_scores_have_a_finite_gradient():
    found = gradient(PearsonDistillation(), scores(5, 4, seed=1), np.zeros((5, 4), np.float32))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("first", [pytest.param(3, marks=pytest.mark.slow), 1])
def test_two_replicas_equal_one_batch(two_replicas, first):
    teacher, x, kernel_values = (scores(*s, seed=i) for i, s in enumerate([(6, 3), (6, 4), (4, 3)]))
    weights = np.float32([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
    parts = [slice(0, first), slice(first, 6)]
    with two_replicas.scope():
        kernel = tf.Variable(kernel_values)

    def split(array):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
        )

    def step(theirs, x, weight):
        with tf.GradientTape() as tape:
            mine = tf.matmul(x, kernel)
            (part,) = PearsonDistillation(2.0).elements(theirs, mine, sample_weight=weight)
            share = tf.reduce_sum(weight * part.values) / 6.0  # as a Distiller reduces it
        sums = [share, tape.gradient(share, kernel)]
        return tf.distribute.get_replica_context().all_reduce("sum", sums)

    args = (split(teacher), split(x), split(weights))
    found, grad = tf.function(lambda: two_replicas.run(step, args))()

    def expected(values):
        return reference.pearson(teacher, x.astype(float) @ values, 2.0, weights=weights)

    np.testing.assert_allclose(
        two_replicas.experimental_local_results(found)[0], expected(kernel_values), rtol=1e-5
    )
    np.testing.assert_allclose(
        two_replicas.experimental_local_results(grad)[0],
        reference.gradient(expected, kernel_values),
        rtol=1e-4,
        atol=1e-5,
    )
