"""Every term of a detector's loss and its gradient, against loops in NumPy.

10 batches of 100 images for each: 1,000 cases of a loss and of its gradient.
"""

from __future__ import annotations

import functools

import detection_toys as toys
import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf

from tfkd import schedules
from tfkd.detection import IGNORED, UNLABELLED, Matcher
from tfkd.losses import (
    BoundedRegression,
    MultiBoxConfidence,
    MultiBoxLocalization,
    MultiBoxLoss,
    MultiBoxSelection,
    MultiBoxSoftTarget,
)
from tfkd.losses.base import Shared

IMAGES, BATCHES = 100, 10
MATCHER = Matcher(toys.ANCHORS, 0.5, 0.4)
SOFTMAX = MultiBoxSelection(MATCHER, 2.0, 1)
SIGMOID = MultiBoxSelection(MATCHER, None, scores="sigmoid")
KINDS = {"softmax": SOFTMAX, "sigmoid": SIGMOID}


@functools.cache
def case(seed, kind):
    """y, outputs of student and teacher, weights of the images, and the batch by loops."""
    y = toys.objects(IMAGES, 4, seed)
    some = y["classes"][seed % 5 :: 11, 0]
    some[some >= 0] = IGNORED
    y["classes"][seed % 7 :: 13] = UNLABELLED
    scores = 3 if kind == "softmax" else 2
    student, teacher = (toys.outputs(IMAGES, 2 * seed + i, scores=scores) for i in (0, 1))
    weights = np.random.default_rng(seed).uniform(0, 2, IMAGES).astype(np.float32)
    selection = KINDS[kind]
    batch = reference.Batch(
        y,
        student,
        toys.ANCHORS.priors,
        teacher,
        kind,
        selection.negative_ratio,
        selection.min_negatives,
        threshold=0.5,
        ignore_from=0.4,
    )
    return y, student, teacher, weights, batch


def gradients(loss, y, student, teacher, weights=None):
    student = {name: tf.constant(value) for name, value in student.items()}
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss.compute_loss(teacher, student, y=y, sample_weight=weights)
    grads = tape.gradient(value, student, unconnected_gradients="zero")
    return float(value), {name: g.numpy() for name, g in grads.items()}


TERMS = {
    "confidence, softmax": (
        "softmax",
        "classes",
        lambda s: MultiBoxConfidence(s),
        lambda batch: batch.confidence(),
    ),
    "confidence, sigmoid": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxConfidence(s),
        lambda batch: batch.confidence(),
    ),
    "focal": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxConfidence(s, 2.0, 0.25),
        lambda batch: batch.confidence(gamma=2.0, alpha=0.25),
    ),
    "focal, γ below 1": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxConfidence(s, 0.5),
        lambda batch: batch.confidence(gamma=0.5),
    ),
    "focal, only α": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxConfidence(s, focal_alpha=0.75),
        lambda batch: batch.confidence(alpha=0.75),
    ),
    "localization": (
        "softmax",
        "boxes",
        lambda s: MultiBoxLocalization(s),
        lambda batch: batch.localization(),
    ),
    "bounded": (
        "softmax",
        "boxes",
        lambda s: BoundedRegression(selection=s),
        lambda batch: batch.bounded(),
    ),
    "bounded, margin": (
        "sigmoid",
        "boxes",
        lambda s: BoundedRegression(15.0, selection=s),
        lambda batch: batch.bounded(15.0),
    ),
    "soft": (
        "softmax",
        "classes",
        lambda s: MultiBoxSoftTarget(1.0, selection=s),
        lambda batch: batch.soft(1.0),
    ),
    "soft, T and weights": (
        "softmax",
        "classes",
        lambda s: MultiBoxSoftTarget(3.0, 1.5, 0.7, selection=s),
        lambda batch: batch.soft(3.0, 1.5, 0.7),
    ),
    "soft, sigmoid": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxSoftTarget(2.0, selection=s),
        lambda batch: batch.soft(2.0),
    ),
    "soft, sigmoid and weights": (
        "sigmoid",
        "classes",
        lambda s: MultiBoxSoftTarget(2.0, 1.5, 0.7, selection=s),
        lambda batch: batch.soft(2.0, 1.5, 0.7),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind):
    """All terms look at one selection, as in a Distiller."""
    terms = {name: term for name, term in TERMS.items() if term[0] == kind}
    losses = {name: make(KINDS[kind]) for name, (_, _, make, _) in terms.items()}
    for seed in range(BATCHES):
        y, student, teacher, weights, batch = case(seed, kind)
        weights = weights if seed % 2 else None
        student = {name: tf.constant(value) for name, value in student.items()}
        shared = Shared(losses.values())
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(student)
            known = {"y": y, "sample_weight": weights, "shared": shared}
            values = {
                name: loss.compute_loss(teacher, student, **known) for name, loss in losses.items()
            }
        each = (np.ones(IMAGES) if weights is None else weights)[:, None, None]
        for name, (_, output, _, by_loops) in terms.items():
            expected = by_loops(batch)
            value = float(values[name])
            assert value == pytest.approx(batch.mean(expected, weights), rel=1e-4), name
            found = tape.gradient(values[name], student)
            gradient = expected[1] * each / batch.count
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(
                found[output], gradient, rtol=1e-3, atol=1e-5 * scale, err_msg=name
            )
            assert found["classes" if output == "boxes" else "boxes"] is None
            parts = losses[name].elements(teacher, student, y=y, shared=shared)
            part = next(part for part in parts if part is not None)
            one_by_one = np.where(part.mask, part.values, 0.0)
            np.testing.assert_allclose(one_by_one, expected[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "one",
    [
        lambda z: reference.softmax_entropy(2, z),
        lambda z: reference.sigmoid_entropy(2, z),
        lambda z: reference.sigmoid_entropy(1, z, 2.0, 0.25),
        lambda z: reference.smooth_l1(z, np.array([3.0, 0.2, -1.0])),
        lambda z: reference.soft_softmax(np.array([1.0, 2.0, -1.0]), z, 2.0, 1.5, 0.7),
        lambda z: reference.soft_sigmoid(np.array([1.0, 2.0, -1.0]), z, 2.0, 1.5, 0.7),
    ],
)
def test_the_reference_by_differences(one):
    """Gradients by hand are those of the values."""
    z = np.array([0.3, -0.9, 1.4])
    steps = 1e-5 * np.eye(3)
    differences = [(one(z + d)[0] - one(z - d)[0]) / 2e-5 for d in steps]
    np.testing.assert_allclose(one(z)[1], differences, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_loss_on_the_labels(kind, weights):
    loss = MultiBoxLoss(KINDS[kind], *weights)
    for seed in range(2):
        y, student, _, images, batch = case(seed, kind)
        expected = [batch.mean(p, images) for p in (batch.confidence(), batch.localization())]
        loss.reset_state()
        value = float(loss(y, student, images))
        assert value == pytest.approx(np.dot(weights, expected), rel=1e-4)
        found = {metric.name: float(metric.result()) for metric in loss.metrics}
        assert found["loss"] == pytest.approx(value, rel=1e-6)
        assert found["multibox_confidence"] == pytest.approx(expected[0], rel=1e-4)
        assert found["multibox_localization"] == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_soft_targets_are_never_negative_and_0_at_the_teacher(kind):
    y, student, teacher, _, _ = case(0, kind)
    for temperature in (0.5, 1.0, 8.0):
        loss = MultiBoxSoftTarget(temperature, selection=KINDS[kind])
        part = next(p for p in loss.elements(teacher, student, y=y) if p is not None)
        assert part.values.numpy().min() >= 0
        value, grads = gradients(loss, y, teacher, teacher)
        assert value == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(grads["classes"], 0.0, atol=1e-6)
        shifted = {**teacher, "classes": teacher["classes"] + 5.0}
        if kind == "softmax":
            assert gradients(loss, y, shifted, teacher)[0] == pytest.approx(0.0, abs=1e-5)


def test_with_weights_the_best_student_is_not_the_teacher():
    """The optimum is p_s ∝ w · p_t: background of 0.5 becomes 0.6, and the loss is below 0."""
    y, student, teacher, _, _ = case(0, "softmax")
    loss = MultiBoxSoftTarget(1.0, 1.5, selection=SOFTMAX)
    best = teacher["classes"] + np.log(np.float32([1.5, 1.0, 1.0]))
    value, grads = gradients(loss, y, {**student, "classes": best}, teacher)
    np.testing.assert_allclose(grads["classes"], 0.0, atol=1e-6)
    assert value < 0
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = best + 0.1 * rng.normal(size=best.shape).astype(np.float32)
        assert gradients(loss, y, {**student, "classes": other}, teacher)[0] > value
    p = np.exp(reference.log_softmax(np.log([0.5, 0.25, 0.25]) + np.log([1.5, 1.0, 1.0])))
    assert p[0] == pytest.approx(0.6)


def test_the_bound_is_that_of_each_prior_not_of_the_mean():
    """One prior is better than the teacher and one is worse: only the worse one learns."""
    priors = np.float32([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    y = {
        "boxes": np.float32([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]]),
        "classes": np.int32([[0, 1]]),
    }
    loss = BoundedRegression(selection=MultiBoxSelection(Matcher(priors)))
    zeros = np.zeros((1, 2, 3), np.float32)
    student = {"boxes": np.float32([[[1, 0, 0, 0], [3, 0, 0, 0]]]), "classes": zeros}
    teacher = {"boxes": np.float32([[[2, 0, 0, 0], [2, 0, 0, 0]]]), "classes": zeros}
    value, grads = gradients(loss, y, student, teacher)
    assert value == pytest.approx(9 / 2)
    np.testing.assert_allclose(grads["boxes"][0, :, 0], [0.0, 3.0], rtol=1e-6)


def test_weights_are_those_of_images():
    y, student, teacher, _, batch = case(1, "softmax")
    weights = np.zeros(IMAGES, np.float32)
    seen = int(np.argmax(batch.positive.sum(1)))
    weights[seen] = 2.0
    for make in (MultiBoxConfidence, MultiBoxLocalization):
        value, grads = gradients(make(SOFTMAX), y, student, teacher, weights)
        output = "classes" if make is MultiBoxConfidence else "boxes"
        rest = np.arange(IMAGES) != seen
        assert value > 0 and not grads[output][rest].any() and grads[output][seen].any()
        # N stays: twice the weight is twice the loss.
        assert gradients(make(SOFTMAX), y, student, teacher, weights / 2)[0] == pytest.approx(
            value / 2, rel=1e-6
        )
        column = gradients(make(SOFTMAX), y, student, teacher, weights[:, None])[0]
        assert column == pytest.approx(value, rel=1e-6)
        by_output = {"boxes": weights, "classes": weights}
        assert gradients(make(SOFTMAX), y, student, teacher, by_output)[0] == pytest.approx(value)


def test_margin_and_temperature_may_be_schedules():
    y, student, teacher, _, batch = case(0, "softmax")
    soft = MultiBoxSoftTarget(schedules.Linear(1.0, 3.0, 0, 10), selection=SOFTMAX)
    bound = BoundedRegression(schedules.Linear(0.0, 30.0, 0, 10), selection=SOFTMAX)
    for step, temperature, margin in ((0, 1.0, 0.0), (5, 2.0, 15.0), (10, 3.0, 30.0)):
        found = [
            float(loss.compute_loss(teacher, student, y=y, step=step)) for loss in (soft, bound)
        ]
        expected = [batch.mean(batch.soft(temperature)), batch.mean(batch.bounded(margin))]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="`temperature` is a schedule"):
        soft.compute_loss(teacher, student, y=y)


def every_loss(kind="softmax", **kwargs):
    selection = MultiBoxSelection(MATCHER, scores=kind, **kwargs)
    focal = (2.0, 0.25) if kind == "sigmoid" else ()
    return [
        MultiBoxConfidence(selection, *focal),
        MultiBoxLocalization(selection),
        MultiBoxSoftTarget(2.0, 1.5, selection=selection),
        BoundedRegression(selection=selection),
    ]


AWKWARD = {
    "no object in an image": {"boxes": [[0, 0, 0.5, 0.5]], "classes": [1]},
    "no object in the batch": {"boxes": [[-1, -1, -1, -1]], "classes": [-1]},
    "no area": {"boxes": [[0.5, 0.5, 0.5, 0.5]], "classes": [1]},
    "turned": {"boxes": [[0.9, 0.9, 0.1, 0.1]], "classes": [1]},
    "tiny": {"boxes": [[0.5, 0.5, 0.500001, 0.500001]], "classes": [1]},
    "all of the image": {"boxes": [[0, 0, 1, 1]], "classes": [0]},
    "padding is NaN": {"boxes": [[np.nan] * 4], "classes": [-1]},
    "padding is infinite": {"boxes": [[np.inf, -np.inf, np.inf, np.inf]], "classes": [-1]},
    "NaN with a class": {"boxes": [[np.nan, 0, 1, 1]], "classes": [1]},
    "unlabelled": {"boxes": [[0, 0, 0.5, 0.5]], "classes": [UNLABELLED]},
}


@pytest.mark.parametrize("name", AWKWARD)
def test_never_nan(name):
    """Images of the awkward kind alone, or beside one without objects; scores may be huge."""
    y = {key: np.asarray([value, value]) for key, value in AWKWARD[name].items()}
    if name == "no object in an image":
        y["classes"] = np.array([[1], [-1]])
    for kind, scale in (("softmax", 300.0), ("sigmoid", 300.0)):
        scores = 3 if kind == "softmax" else 2
        student, teacher = (toys.outputs(2, i, scores=scores, scale=scale) for i in (1, 2))
        student = {name: tf.constant(value) for name, value in student.items()}
        losses = every_loss(kind, min_negatives=2)
        shared = Shared(losses)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(student)
            values = [loss.compute_loss(teacher, student, y=y, shared=shared) for loss in losses]
        for loss, value in zip(losses, values, strict=True):
            assert np.isfinite(value), loss.name
            grads = tape.gradient(value, student, unconnected_gradients="zero")
            assert all(np.isfinite(g).all() for g in grads.values()), loss.name


@pytest.mark.parametrize("ratio", [3.0, None])
def test_an_object_to_ignore_is_neither_object_nor_background(ratio):
    """Of two halves the left has an object; what is said of the right one does not matter."""
    priors = np.float32([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
    loss = MultiBoxLoss(MultiBoxSelection(Matcher(priors), ratio))
    boxes = np.float32([[[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]])
    logits = tf.constant([[[0.0, 2.0, 0.0], [0.0, 1.0, 3.0]]])
    entropy = [np.log(2 + np.exp(2)) - 2, np.log(1 + np.exp(1) + np.exp(3))]
    for kind, expected in ((IGNORED, entropy[:1]), (-1, entropy)):
        y = {"boxes": boxes, "classes": np.int32([[0, kind]])}
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(y, {"boxes": tf.zeros((1, 2, 4)), "classes": logits})
        assert float(value) == pytest.approx(sum(expected), rel=1e-5)
        gradient = tape.gradient(value, logits).numpy()[0]
        assert gradient[0].any() and gradient[1].any() == (kind == -1)
        loss.reset_state()


def test_a_batch_without_objects_costs_nothing():
    y, student, teacher = toys.objects(3, 0), toys.outputs(3), toys.outputs(3, 1)
    for loss in every_loss():
        value, grads = gradients(loss, y, student, teacher)
        assert value == 0.0 and not any(g.any() for g in grads.values())
    # Unless negatives are asked for: then N is taken as 1.
    batch = reference.Batch(y, student, toys.ANCHORS.priors, teacher, least=2)
    value, grads = gradients(every_loss(min_negatives=2)[0], y, student, teacher)
    assert value == pytest.approx(batch.mean(batch.confidence()), rel=1e-5)
    assert (grads["classes"] != 0).any(-1).sum(1).tolist() == [2, 2, 2]


def test_half_precision_outputs_are_computed_in_float32():
    y, student, teacher, _, _ = case(2, "softmax")
    halves = [
        {name: tf.cast(value, tf.bfloat16) for name, value in side.items()}
        for side in (student, teacher)
    ]
    wide = [{name: tf.cast(v, tf.float32) for name, v in side.items()} for side in halves]
    for loss in every_loss():
        value = loss.compute_loss(halves[1], halves[0], y=y)
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(
            float(loss.compute_loss(wide[1], wide[0], y=y)), rel=1e-6
        )
