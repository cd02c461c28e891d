"""Losses of a detector without anchors against plain loops in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from reference import kl, softmax

from tfkd.detection import IGNORED, UNLABELLED
from tfkd.losses import (
    DenseAssignment,
    DenseConfidence,
    DenseLocalization,
    DenseSoftTarget,
    LocalizationDistillation,
)
from tfkd.losses.base import Shared

# 2·3 + 1·2 points: the image does not divide by the second stride.
SIZE, STRIDES, CLASSES, BINS = (16, 24), (8, 16), 3, 4
POINTS = [(x, y, 8) for y in (4, 12) for x in (4, 12, 20)] + [(x, 8, 16) for x in (8, 24)]


def outputs(seed, count=2, logits=False, scale=2.0):
    rng = np.random.default_rng(seed)
    scores = scale * rng.normal(size=(count, len(POINTS), CLASSES))
    return {
        "boxes": np.float32(scale * rng.normal(size=(count, len(POINTS), 4 * BINS))),
        "classes": np.float32(scores if logits else 1 / (1 + np.exp(-scores))),
    }


def tensors(structure):
    return {name: tf.constant(value) for name, value in structure.items()}


def sigmoid(z):
    return 1 / (1 + np.exp(-np.float64(z)))


def as_logits(scores, logits):
    scores = np.float64(scores)
    return scores if logits else np.log(scores / (1 - scores))


def soft_target(teacher, student, temperature, logits):
    theirs, mine = (
        as_logits(o["classes"], logits).reshape(-1, CLASSES) for o in (teacher, student)
    )
    total = confidence = 0.0
    for t, s in zip(theirs, mine, strict=True):
        confidence += sigmoid(t).max()
        for a, b in zip(sigmoid(t / temperature), sigmoid(s / temperature), strict=True):
            total += temperature**2 * kl([a, 1 - a], [b, 1 - b])
    return total / max(confidence, 1.0)


def distances(teacher, student, temperature, logits):
    scores = as_logits(teacher["classes"], logits).reshape(-1, CLASSES)
    rows = [np.float64(o["boxes"]).reshape(-1, 4, BINS) for o in (teacher, student)]
    total = confidence = 0.0
    for point, t, s in zip(scores, *rows, strict=True):
        w = sigmoid(point).max()
        confidence += w
        edges = [kl(softmax(t[e] / temperature), softmax(s[e] / temperature)) for e in range(4)]
        total += w * temperature**2 * np.mean(edges)
    return total / max(confidence, 1.0)


PAIRS = {DenseSoftTarget: soft_target, LocalizationDistillation: distances}


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", PAIRS)
def test_divergences(kind, temperature, logits):
    teacher, student = outputs(0, logits=logits), outputs(1, logits=logits)
    loss = kind(temperature, from_logits=logits)
    expected = PAIRS[kind](teacher, student, temperature, logits)
    value = loss.compute_loss(tensors(teacher), tensors(student))
    np.testing.assert_allclose(value, expected, rtol=2e-4)
    assert float(loss.compute_loss(tensors(teacher), tensors(teacher))) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("kind", PAIRS)
def test_an_image_counts_by_its_weight(kind):
    teacher, student = outputs(0), outputs(1)
    loss, pair = kind(1.0), [tensors(teacher), tensors(student)]
    parts = [
        float(loss.compute_loss(*pair, sample_weight=tf.constant(w)))
        for w in ([2.0, 0.5], [1.0, 0.0], [0.0, 1.0])
    ]
    assert parts[0] == pytest.approx(2 * parts[1] + 0.5 * parts[2], rel=1e-5)


def test_a_teacher_that_sees_nothing_divides_by_one():
    teacher, student = outputs(0), outputs(1)
    teacher["classes"] = np.full_like(teacher["classes"], 1e-3)
    expected = soft_target(teacher, student, 1.0, False)
    value = DenseSoftTarget().compute_loss(tensors(teacher), tensors(student))
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    # Edges count by the confidence: those of background hardly do.
    assert float(LocalizationDistillation().compute_loss(tensors(teacher), tensors(student))) < 0.1


@pytest.mark.parametrize("kind", PAIRS)
def test_gradients_are_finite_at_certainty_and_end_at_the_teacher(kind):
    teacher, student = outputs(0), tensors(outputs(1))
    teacher["classes"][0, 0] = [0.0, 1.0, 0.0]
    teacher = tensors(teacher)
    with tf.GradientTape() as tape:
        tape.watch([teacher, student])
        value = kind().compute_loss(teacher, student)
    theirs, mine = tape.gradient(value, [teacher, student])
    found = {name: g for name, g in mine.items() if g is not None}
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in found.values())
    assert list(found) == ["classes" if kind is DenseSoftTarget else "boxes"]
    assert all(g is None for g in theirs.values())


def test_other_points_or_bins_are_refused():
    teacher, student = tensors(outputs(0)), tensors(outputs(1))
    other = {**student, "boxes": student["boxes"][..., :8]}
    with pytest.raises(ValueError, match=r"localization.*bins.*\(2, 8, 4, 4\).*\(2, 8, 4, 2\)"):
        LocalizationDistillation().compute_loss(teacher, other)
    fewer = {name: value[:, :5] for name, value in student.items()}
    with pytest.raises(ValueError, match=r"dense_soft_target: .*same points.*one image size"):
        DenseSoftTarget().compute_loss(teacher, fewer)
    with pytest.raises(ValueError, match=r"`student`: expected a model with a dict .*\['boxes'\]"):
        DenseSoftTarget().compute_loss(teacher, {"boxes": student["boxes"]})
    odd = {**student, "boxes": student["boxes"][..., :7]}
    with pytest.raises(ValueError, match="`student`: expected distances .* 4 times the bins"):
        LocalizationDistillation().compute_loss(teacher, odd)


def inside(scores, boxes, points, classes, objects, mask):
    """The first object around a point is its own, and fits by ¾ of the score's distance to 1."""
    point = tf.constant(points)[None, :, None]
    hit = tf.reduce_all((point > objects[:, None, :, :2]) & (point < objects[:, None, :, 2:]), -1)
    hit &= mask[:, None, :, 0]
    first, any_ = tf.argmax(tf.cast(hit, tf.int32), -1), tf.reduce_any(hit, -1)
    kind = tf.where(any_, tf.gather(tf.cast(classes, tf.int32), first, batch_dims=1), -1)
    fit = tf.one_hot(kind, CLASSES) * (1.0 - 0.25 * scores)
    target = tf.where(any_[..., None], tf.gather(objects, first, batch_dims=1), -1.0)
    return target, fit, tf.ones_like(fit[..., 0])


Y = {
    "boxes": np.float32(
        [
            [[0.0, 0.0, 0.5, 0.6], [0.4, 0.1, 1.0, 1.0], [-1, -1, -1, -1]],
            [[0.3, 0.3, 0.3, 0.9], [-1, -1, -1, -1], [-1, -1, -1, -1]],  # without area
        ]
    ),
    "classes": np.int32([[2, 0, -1], [1, -1, -1]]),
}
ASSIGNMENT = DenseAssignment(inside, SIZE, STRIDES)
TERMS = (DenseConfidence(ASSIGNMENT), DenseLocalization(ASSIGNMENT))


def corners(logits, point):
    x, y, stride = point
    left, top, right, bottom = (
        sum(i * p for i, p in enumerate(softmax(np.float64(row)))) * stride
        for row in logits.reshape(4, BINS)
    )
    return np.array([x - left, y - top, x + right, y + bottom])


def ciou(a, b):
    """Zheng et al. 2020, equations 6 to 11."""
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(w, 0) * max(h, 0)
    sides = [(c[2] - c[0], c[3] - c[1]) for c in (a, b)]
    iou = both / (sum(u * v for u, v in sides) - both)
    apart = sum(((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2) ** 2 for i in (0, 1))
    around = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    angles = [np.arctan(u / v) for u, v in sides]
    v = (4 / np.pi**2 * (angles[0] - angles[1])) ** 2  # keras-cv's; the paper's is 4/π² · (...)²
    return iou - apart / around - v * v / (1 - iou + v)


def labels_by_hand(student, y):
    """Confidence, localization and Σ w; an object to ignore hides the points without another."""
    confidence = localization = count = 0.0
    for image in range(2):
        for point, scores, logits in zip(
            POINTS, student["classes"][image], student["boxes"][image], strict=True
        ):
            fit, hidden = np.zeros(CLASSES), False
            for box, kind in zip(y["boxes"][image], y["classes"][image], strict=True):
                box = box * [24, 16, 24, 16]
                around = (box[:2] < point[:2]).all() and (box[2:] > point[:2]).all()
                hidden |= around and kind == IGNORED
                if kind >= 0 and around:
                    fit[kind] = 1 - 0.25 * scores[kind]
                    count += fit[kind]
                    localization += fit[kind] * (1 - ciou(box, corners(logits, point)))
                    break
            p = np.float64(scores)
            if fit.any() or not hidden:
                confidence -= np.mean(fit * np.log(p) + (1 - fit) * np.log(1 - p))
    return confidence / max(count, 1), localization / max(count, 1), count


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_terms_on_labels(graph, ignored):
    pytest.importorskip("keras_cv")
    student = outputs(3, scale=1.0)
    y = {**Y, "classes": np.int32([[IGNORED, 0, -1], [1, -1, -1]])} if ignored else Y
    confidence, localization, count = labels_by_hand(student, y)
    assert count > 1  # several points have an object

    def compute(y, mine):
        return [term.compute_loss(None, mine, y=y) for term in TERMS]

    run = tf.function(compute) if graph else compute
    values = run(tensors(y), tensors(student))
    np.testing.assert_allclose(values, [confidence, localization], rtol=1e-4)


def test_assignment_is_made_once_a_step():
    calls = []

    def counting(*arguments):
        calls.append(1)
        return inside(*arguments)

    one = DenseAssignment(counting, SIZE, STRIDES)
    shared, mine = Shared(), tensors(outputs(3))
    assert one.once(shared, Y, mine) is one.once(shared, Y, mine)
    assert len(calls) == 1
    assert one.once(None, Y, mine) is not one.once(None, Y, mine)


def test_unlabelled_images_do_not_count():
    student = outputs(3, scale=1.0)
    single = {name: value[:1] for name, value in student.items()}
    y = {"boxes": Y["boxes"], "classes": Y["classes"].copy()}
    y["classes"][1] = UNLABELLED
    whole = TERMS[0].compute_loss(None, tensors(student), y=tensors(y))
    alone = TERMS[0].compute_loss(
        None, tensors(single), y=tensors({name: value[:1] for name, value in y.items()})
    )
    np.testing.assert_allclose(whole, alone, rtol=1e-6)


@pytest.mark.parametrize("objects", ["none", "padding", "ragged"])
def test_no_object_and_ragged_objects(objects):
    pytest.importorskip("keras_cv")
    student = tensors(outputs(3, scale=1.0))
    if objects == "none":
        y = {"boxes": tf.zeros((2, 0, 4)), "classes": tf.zeros((2, 0), tf.int32)}
    elif objects == "padding":
        y = {"boxes": tf.fill((2, 2, 4), -1.0), "classes": tf.fill((2, 2), -1)}
    else:
        boxes = tf.ragged.constant(
            [Y["boxes"][0, :2].tolist(), []], tf.float32, 1, inner_shape=(4,)
        )
        y = {"boxes": boxes, "classes": tf.ragged.constant([[2, 0], []], tf.int32)}

    @tf.function
    def gradients(mine):
        with tf.GradientTape() as tape:
            tape.watch(mine)
            values = [term.compute_loss(None, mine, y=y) for term in TERMS]
            total = values[0] + values[1]
        return values, tape.gradient(total, mine)

    values, found = gradients(student)
    assert all(np.isfinite(g).all() for g in found.values())
    if objects == "ragged":
        expected = labels_by_hand(outputs(3, scale=1.0), Y)
        np.testing.assert_allclose(values, expected[:2], rtol=1e-4)
    else:
        assert float(values[1]) == 0.0 and np.abs(found["boxes"]).max() == 0.0
        assert np.abs(found["classes"]).max() > 0.0


def test_bad_objects_and_sizes():
    with pytest.raises(ValueError, match="`y`: expected objects as .*None"):
        ASSIGNMENT(None, tensors(outputs(0)))
    with pytest.raises(ValueError, match=r"`student`: .*with 8 points, as \(16, 24\).*5"):
        ASSIGNMENT(Y, {name: value[:, :5] for name, value in tensors(outputs(0)).items()})


def test_losses_are_saved():
    keras_cv = pytest.importorskip("keras_cv")
    encoder = keras_cv.models.yolov8.LabelEncoder(CLASSES, max_anchor_matches=2, alpha=0.75)
    assignment = DenseAssignment(encoder, SIZE, STRIDES, from_logits=True)
    losses = [
        DenseConfidence(assignment, name="c"),
        DenseLocalization(assignment),
        DenseSoftTarget(2.0, classes="scores"),
        LocalizationDistillation(3.0, "edges", from_logits=True, name="d"),
    ]
    for loss in losses:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
        again = keras.saving.deserialize_keras_object(config)
        assert again.get_config() == loss.get_config() and again.name == loss.name
    student, y = tensors(outputs(1, logits=True)), tensors(Y)
    again = DenseConfidence.from_config(losses[0].get_config())
    np.testing.assert_allclose(
        again.compute_loss(None, student, y=y), losses[0].compute_loss(None, student, y=y)
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DenseSoftTarget(0.0), ValueError, "`temperature`"),
        (lambda: DenseSoftTarget(boxes=1), TypeError, "`boxes`: expected a name of an output"),
        (lambda: LocalizationDistillation(classes=None), TypeError, "`classes`: expected a name"),
        (lambda: DenseSoftTarget(from_logits=1), TypeError, "`from_logits`: expected True or"),
        (lambda: DenseAssignment(3, SIZE), TypeError, "`encoder`: expected a callable"),
        (lambda: DenseAssignment(inside, SIZE, (8, 0)), ValueError, "`strides`: .*at least 1"),
        (lambda: DenseAssignment(inside, (8,)), ValueError, r"`image_size`: expected \(height"),
        (lambda: ASSIGNMENT.get_config(), ValueError, "`encoder`: expected one that can be saved"),
        (lambda: DenseConfidence(inside), TypeError, "`assignment`: expected a DenseAssignment"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()
