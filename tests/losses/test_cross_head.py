"""CrossKD against NumPy: the loss, and what passes through which head."""

from __future__ import annotations

import keras_cv_toys
import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import losses
from tfkd.losses.detection.cross_head import focused_entropy, generalized_iou
from tfkd.models import ssd_small

X = np.random.default_rng(0).normal(size=(2, *keras_cv_toys.SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def retina_nets():
    return keras_cv_toys.retina_net(8), keras_cv_toys.retina_net(4)


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def entropy_by_hand(teacher, student, beta):
    p, q = sigmoid(teacher), sigmoid(student)
    return np.sum(abs(p - q) ** beta * -(p * np.log(q) + (1 - p) * np.log(1 - q)))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_focused_entropy(beta):
    rng = np.random.default_rng(1)
    teacher, student = (np.float32(2 * rng.normal(size=(2, 3, 4))) for _ in range(2))
    with tf.GradientTape() as tape:
        z = tf.Variable(student)
        total = tf.reduce_sum(focused_entropy(tf.constant(teacher), z, beta))
    np.testing.assert_allclose(total, entropy_by_hand(teacher, student, beta), rtol=1e-5)
    by_hand = reference.gradient(lambda s: entropy_by_hand(teacher, s, beta), student)
    np.testing.assert_allclose(tape.gradient(total, z), by_hand, rtol=1e-4, atol=1e-5)


def test_focused_entropy_at_the_teacher_has_a_finite_gradient():
    z = tf.Variable([[0.5, -2.0]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(focused_entropy(tf.constant([[0.5, -2.0]]), z, 0.5))
    np.testing.assert_allclose(tape.gradient(total, z), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0.0, 0.0, 0.5, 0.5], 1.0),
        ([0.0, 0.0, 0.5, 1.0], 0.5),  # the hull is the union
        ([0.25, 0.25, 0.75, 0.75], 1 / 7 - (9 / 16 - 7 / 16) / (9 / 16)),
        ([0.5, 0.5, 1.0, 1.0], 0.0 - 0.5),  # apart: half of the hull is empty
    ],
)
def test_generalized_iou(box, expected):
    found = generalized_iou(tf.constant([[0.0, 0.0, 0.5, 0.5]]), tf.constant([box]))
    np.testing.assert_allclose(found, [expected], rtol=1e-6, atol=1e-6)


def crossed(teacher, student, pyramid, name, size, split):
    """What the rest of the teacher's head makes of the student's features."""
    mine, theirs = getattr(student, name), getattr(teacher, name)
    rows = []
    for level in pyramid:
        for conv in (*mine.conv_layers[:split], *theirs.conv_layers[split:]):
            level = conv(level)
        rows.append(tf.reshape(theirs.prediction_layer(level), [len(X), -1, size]))
    return tf.concat(rows, 1).numpy().astype(np.float64)


def by_hand(teacher, student, split, beta, box_weight):
    pyramid = keras.Model(student.input, student.get_layer(student.feature_pyramid.name).output)(X)
    t = {key: value.numpy().astype(np.float64) for key, value in teacher(X).items()}
    classes = crossed(teacher, student, pyramid, "classification_head", 3, split)
    boxes = crossed(teacher, student, pyramid, "box_head", 4, split)
    head = tfkd.detection.retina_net_head(teacher)
    total, confidence = 0.0, sigmoid(t["classification"]).max(-1)
    corners = [_decode(each, head) for each in (t["box"], boxes)]
    for place in np.ndindex(*confidence.shape):
        total += entropy_by_hand(t["classification"][place], classes[place], beta)
        overlap = _giou(*(each[place] for each in corners))
        total += box_weight * confidence[place] * (1 - overlap)
    return total / max(confidence.sum(), 1.0)


def _decode(offsets, head):
    """Offsets (dy, dx, dh, dw) times the variances to corners."""
    priors = head["anchors"].priors.astype(np.float64)
    y, x, h, w = np.moveaxis(offsets * np.array(head["variances"]), -1, 0)
    cx, cy = x * priors[:, 2] + priors[:, 0], y * priors[:, 3] + priors[:, 1]
    width, height = np.exp(w) * priors[:, 2], np.exp(h) * priors[:, 3]
    return np.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], -1)


def _giou(a, b):
    def size(low, high):
        return np.prod(np.maximum(high - low, 0))

    overlap = size(np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:]))
    union = size(a[:2], a[2:]) + size(b[:2], b[2:]) - overlap
    hull = size(np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:]))
    return overlap / union - (hull - union) / hull


@pytest.mark.slow
@pytest.mark.parametrize("split, beta, box_weight", [(0, 1.0, 1.0), (1, 2.0, 0.5)])
def test_the_loss_of_a_step(retina_nets, split, beta, box_weight):
    teacher, student = retina_nets
    loss = losses.CrossHeadDistillation(split, beta, box_weight)
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = distiller.evaluate(X, verbose=0, return_dict=True)
    expected = by_hand(teacher, student, split, beta, box_weight)
    assert found["cross_head_distillation"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_last_layers_of_the_student_do_not_learn_from_it(retina_nets):
    teacher, _ = retina_nets
    student = keras_cv_toys.retina_net(4)
    loss = losses.CrossHeadDistillation(1)
    loss.validate_model_compatibility(teacher, student)
    pyramid = keras.Model(student.input, student.get_layer(student.feature_pyramid.name).output)
    taught = teacher(X)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(taught, pyramid(X))
    head = student.classification_head
    first, last = head.conv_layers[0].kernel, head.prediction_layer.kernel
    found = tape.gradient(value, [first, last])
    assert np.abs(found[0]).max() > 0 and found[1] is None


@pytest.mark.slow
def test_heads_that_do_not_fit_are_refused(retina_nets):
    teacher, student = retina_nets
    with pytest.raises(ValueError, match="`split`: expected at most 1"):
        tfkd.Distiller(teacher, student, losses.CrossHeadDistillation(2))
    with pytest.raises(TypeError, match="`teacher`: expected one keras_cv.models.RetinaNet"):
        losses.CrossHeadDistillation().validate_model_compatibility([teacher] * 2, student)
    narrow = keras_cv_toys.retina_net(4)
    narrow.box_head.conv_layers = [keras.layers.Conv2D(8, 3)]
    narrow.box_head.prediction_layer = keras.layers.Conv2D(36, 3)
    narrow.box_head.prediction_layer.build((None, 4, 4, 8))
    loss = losses.CrossHeadDistillation(1)
    with pytest.raises(ValueError, match="`student`: expected 256 channels.*received 8.*split"):
        loss.validate_model_compatibility(teacher, narrow)


def test_what_does_not_fit_is_refused():
    loss = losses.CrossHeadDistillation
    with pytest.raises(ValueError, match="pass it to a tfkd.Distiller"):
        loss().compute_loss({}, ())
    with pytest.raises(TypeError, match="`teacher`.*RetinaNet.*ssd have none"):
        loss().validate_model_compatibility(ssd_small(2), ssd_small(2))
    with pytest.raises(ValueError, match="`split`"):
        loss(-1)
    with pytest.raises(ValueError, match="`beta`"):
        loss(beta=-1)
    config = loss(1, 2.0, 0.0, (64, 96), "x").get_config()
    again = loss.from_config(config)
    assert again.get_config() == config and again.box_weight == 0.0
