"""Z-scores of class scores, against NumPy and the figures of the paper."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf
from loss_cases import gradient, value

from tfkd.detection import Matcher
from tfkd.losses import (
    DecoupledDistillation,
    LogitsDistillation,
    MultiBoxSelection,
    MultiBoxSoftTarget,
    PearsonDistillation,
    TransformedTeacherMatching,
)

LABELS = np.array([0, 3, 1, 1, 2, 0])
LOSSES = {
    "kl": (LogitsDistillation(2.0, standardize=True), reference.soft_targets, 2.0),
    "crossentropy": (
        LogitsDistillation(2.0, "categorical_crossentropy", standardize=True),
        reference.soft_crossentropy,
        2.0,
    ),
    "mse": (
        LogitsDistillation(2.0, "mse", standardize=True),
        lambda t, s, temperature: reference.squared_error(t / temperature, s / temperature),
        2.0,
    ),
    "decoupled": (
        DecoupledDistillation(2.0, 1.0, 8.0, standardize=True),
        lambda t, s, *rest: reference.decoupled(t, s, LABELS, *rest),
        2.0,
        1.0,
        8.0,
    ),
    "pearson": (PearsonDistillation(2.0, standardize=True), reference.pearson, 2.0),
    "transformed": (
        TransformedTeacherMatching(2.0, standardize=True),
        reference.transformed_teacher,
        2.0,
    ),
}


def scores(*shape, seed):
    return np.float32(3.0 * np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_losses_are_those_of_the_z_scores(name, shape):
    loss, plain, *arguments = LOSSES[name]
    teacher, student = scores(*shape, seed=1), scores(*shape, seed=2)
    y = LABELS.reshape(shape[:-1])

    def expected(s):
        return plain(reference.z_scores(teacher), reference.z_scores(s), *arguments)

    got = value(loss, teacher, student, y=y)
    np.testing.assert_allclose(got, expected(student), rtol=1e-5, atol=1e-5)
    by_hand = reference.gradient(expected, student)
    found = gradient(loss, teacher, student, y=y)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)


def test_the_toy_case_of_the_paper():
    # Figure 2: 0.0995 between Z-scores with a deviation over K − 1 = 3, at a temperature of 1.
    teacher, student = np.float32([[-1.162, 1.162, 0.387, -0.387]]), [[-1.32, 0.66, 0.88, -0.22]]
    temperature = np.sqrt(4 / 3)
    loss = LogitsDistillation(temperature, standardize=True)
    got = value(loss, teacher, np.float32(student)) / temperature**2
    assert got == pytest.approx(0.0995, abs=1e-4)
    assert value(loss, teacher, 0.1 * teacher + 7.0) == pytest.approx(0.0, abs=1e-6)


def test_equal_scores_have_a_finite_gradient():
    teacher, student = scores(2, 4, seed=1), np.zeros((2, 4), np.float16)
    loss = LogitsDistillation(1.0, standardize=True)
    found = gradient(loss, teacher, student)
    assert np.isfinite(found).all() and found.any()
    # σ is taken as 0.001, so the gradient is 1000 times that at the Z-score 0 (less its mean).
    target = reference.softmax(reference.z_scores(teacher)[0])
    np.testing.assert_allclose(found[0], 1000 * (0.25 - target) / 2, rtol=2e-3)


def multibox(standardize, kind="softmax"):
    """The loss, the outputs of two priors with these scores, and one object at the first."""
    priors = np.float32([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    ratio = 3.0 if kind == "softmax" else None
    selection = MultiBoxSelection(Matcher(priors), negative_ratio=ratio, scores=kind)
    loss = MultiBoxSoftTarget(2.0, selection=selection, standardize=standardize)
    y = {"boxes": tf.constant([[[0.0, 0.0, 0.5, 1.0]]]), "classes": tf.constant([[0]])}

    def outputs(z):
        return {"boxes": tf.zeros((1, 2, 4)), "classes": tf.constant(z)}

    return loss, outputs, y


def test_soft_targets_of_priors():
    loss, outputs, y = multibox(True)
    teacher, student = scores(1, 2, 3, seed=1), scores(1, 2, 3, seed=2)
    got = loss.compute_loss(outputs(teacher), outputs(student), y=y)
    z = [reference.z_scores(each) for each in (teacher, student)]
    # The object's prior and the hard negative, over one object.
    assert float(got) == pytest.approx(2 * reference.soft_targets(*z, 2.0), rel=1e-5)


def test_sigmoid_scores_of_priors_are_refused():
    loss, outputs, y = multibox(True, "sigmoid")
    with pytest.raises(ValueError, match="`standardize`.*sigmoid"):
        loss.compute_loss(outputs(np.zeros((1, 2, 3), "f")), outputs(np.ones((1, 2, 3), "f")), y=y)
