"""Forms, overlaps and offsets against loops in NumPy, and at the edges."""

from __future__ import annotations

import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tfkd.detection import Anchors
from tfkd.detection import boxes as math_of

VARIANCES = math_of.VARIANCES
CASES = 1000


def random_boxes(count, seed, grid=None):
    """Boxes in and around the image; on a grid many touch, and some have no area."""
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.uniform(-0.2, 1.2, (count, 2, 2)), axis=-1)
    found = np.concatenate([ends[..., 0], ends[..., 1]], -1)
    return (np.round(found * grid) / grid if grid else found).astype(np.float32)


def random_priors(count, seed):
    rng = np.random.default_rng(seed)
    found = np.concatenate([rng.uniform(0, 1, (count, 2)), rng.uniform(0.02, 1, (count, 2))], 1)
    return found.astype(np.float32)


@pytest.mark.parametrize("grid", [None, 8])
def test_overlaps(grid):
    first, second = (random_boxes(CASES, seed, grid).reshape(50, 20, 4) for seed in (1, 2))
    found = math_of.iou(tf.constant(first), tf.constant(second)).numpy()
    expected = [[[reference.iou(a, b) for b in np.float64(s)] for a in np.float64(f)]
                for f, s in zip(first[:, :10], second[:, :10], strict=True)]  # fmt: skip
    np.testing.assert_allclose(found[:, :10, :10], expected, atol=2e-6)
    assert found.min() >= 0 and found.max() <= 1
    one_for_all = math_of.iou(tf.constant(first), tf.constant(second[0]))
    np.testing.assert_array_equal(one_for_all[7], math_of.iou(first[7], second[0]))
    whole = math_of.iou(tf.constant(first), tf.constant(first)).numpy()
    has_area = math_of.area(tf.constant(first)).numpy() > 0
    np.testing.assert_allclose(whole[:, range(20), range(20)], has_area, atol=1e-6)


def test_forms():
    boxes = random_boxes(CASES, 0)
    centers = math_of.to_centers(tf.constant(boxes)).numpy()
    expected = [((a + c) / 2, (b + d) / 2, c - a, d - b) for a, b, c, d in np.float64(boxes)]
    np.testing.assert_allclose(centers, expected, atol=1e-6)
    np.testing.assert_allclose(math_of.to_corners(tf.constant(centers)), boxes, atol=1e-6)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    np.testing.assert_allclose(math_of.area(tf.constant(boxes)), sides.prod(-1), atol=1e-6)
    inside = math_of.clip(tf.constant(boxes)).numpy()
    np.testing.assert_array_equal(inside, [[min(max(v, 0), 1) for v in box] for box in boxes])


@pytest.mark.parametrize("variances", [VARIANCES, (1.0, 1.0, 1.0, 1.0), (0.3, 0.1, 0.5, 0.2)])
def test_offsets_and_back(variances):
    boxes, priors = random_boxes(CASES, 3), random_priors(CASES, 4)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.02)
    offsets = math_of.encode(tf.constant(boxes), priors, variances).numpy()
    pairs = list(zip(np.float64(boxes), np.float64(priors), strict=True))
    expected = [reference.encode(box, prior, variances) for box, prior in pairs]
    np.testing.assert_allclose(offsets, expected, rtol=1e-4, atol=1e-4)
    back = math_of.decode_offsets(tf.constant(offsets), priors, variances).numpy()
    np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-5)
    expected = [
        reference.decode(o, p, variances) for o, (_, p) in zip(np.float64(offsets), pairs,
                                                               strict=True)]  # fmt: skip
    np.testing.assert_allclose(back, expected, atol=1e-5)


def test_any_offsets_give_finite_boxes():
    offsets = np.float32(np.random.default_rng(0).choice([-1e4, -30, 0, 0.5, 30, 1e4], (CASES, 4)))
    priors = random_priors(CASES, 5)
    found = math_of.decode_offsets(tf.constant(offsets), priors).numpy()
    assert np.isfinite(found).all()
    assert (found[:, 2:] - found[:, :2] <= 62.6 * priors[:, 2:] + 1e-3).all()
    expected = [
        reference.decode(o, p) for o, p in zip(np.float64(offsets), np.float64(priors), strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


ROWS = arrays(np.float32, (16, 4), elements=st.floats(0, 1, width=32))


@given(ROWS, arrays(np.int8, 16, elements=st.integers(0, 3)))
def test_at_the_borders_and_without_area(rows, kinds):
    low, high = np.minimum(rows[:, :2], rows[:, 2:]), np.maximum(rows[:, :2], rows[:, 2:])
    high[kinds == 1, 0] = low[kinds == 1, 0]
    high[kinds == 2] = low[kinds == 2]
    turned = (kinds == 3)[:, None]
    low, high = np.where(turned, high, low), np.where(turned, low, high)
    prior = np.float32([[0.5, 0.5, 1.0, 1.0]])
    boxes = tf.constant(np.concatenate([low, high], 1))
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        offsets = math_of.encode(boxes, prior)
        total = tf.reduce_sum(offsets)
    assert np.isfinite(offsets).all() and np.isfinite(tape.gradient(total, boxes)).all()
    back = math_of.decode_offsets(offsets, prior).numpy()
    np.testing.assert_allclose(back[:, 2:] - back[:, :2], np.maximum(high - low, 1e-6), atol=1e-5)
    np.testing.assert_allclose(back[:, 2:] + back[:, :2], high + low, atol=1e-5)
    overlap = math_of.iou(boxes, math_of.to_corners(tf.constant(prior)))[:, 0]
    expected = [reference.iou(box, (0, 0, 1, 1)) for box in np.float64(boxes)]
    np.testing.assert_allclose(overlap, expected, atol=1e-6)


def test_gradients_of_overlaps_of_nothing_are_finite():
    boxes = tf.constant([[0.5, 0.5, 0.5, 0.5], [-1.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.5, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        overlap = tf.reduce_sum(math_of.iou(boxes, boxes))
    assert float(overlap) == 1.0
    assert np.isfinite(tape.gradient(overlap, boxes)).all()


def test_priors_of_any_kind():
    anchors = Anchors([2], scales=[0.5])
    np.testing.assert_array_equal(math_of.check_priors(anchors), anchors.priors)
    found = math_of.check_priors(tf.constant([[0.5, 0.5, 1.0, 1.0]], tf.float64))
    assert found.dtype == np.float32 and found.shape == (1, 4)
    assert math_of.check_variances(np.float32([1, 2, 3, 4])) == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    "priors, error, words",
    [
        ([[0, 0, 1, 1]], TypeError, r"`priors`: expected Anchors, or an array.*\(list\).*Anchors"),
        (None, TypeError, "`priors`.*None"),
        (np.array([["a"] * 4]), TypeError, "`priors`: expected numbers"),
        (np.zeros((0, 4)), ValueError, r"`priors`: expected at least one prior.*\(0, 4\)"),
        (np.ones((2, 5)), ValueError, r"`priors`.*\(2, 5\)"),
        (np.ones(4), ValueError, r"`priors`.*\(4,\)"),
        (np.array([[0.5, 0.5, 0.0, 1.0]]), ValueError, "`priors`.*sides above 0.*to_centers"),
        (np.array([[0.5, np.nan, 1.0, 1.0]]), ValueError, "`priors`.*finite"),
    ],
)
def test_what_no_priors_are(priors, error, words):
    with pytest.raises(error, match=words):
        math_of.check_priors(priors)


@pytest.mark.parametrize(
    "variances, error, words",
    [
        (None, ValueError, "`variances`: expected four numbers above 0, received None"),
        ((0.1, 0.1, 0.2), ValueError, "`variances`.*four"),
        (np.ones((4, 2)), TypeError, "`variances`.*above 0"),
        ((0.1, 0.1, 0.2, 0.0), ValueError, "`variances`.*above 0, received 0.0"),
        ((0.1, 0.1, 0.2, "b"), TypeError, "`variances`.*'b'"),
        ((0.1, 0.1, 0.2, True), TypeError, "`variances`.*True"),
        ((0.1, 0.1, 0.2, np.inf), ValueError, "`variances`.*inf"),
    ],
)
def test_what_no_variances_are(variances, error, words):
    with pytest.raises(error, match=words):
        math_of.check_variances(variances)
