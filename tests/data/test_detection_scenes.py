"""Scenes of digits: boxes around strokes that are there, and no digit of a test in training."""

import time

import numpy as np
import pytest

from tfkd import data
from tfkd.data.detection import scenes as module


@pytest.fixture(scope="module")
def scenes():
    return data.digit_scenes(count=150, test_count=50)


def overlap(a, b):
    """IoU of two boxes."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    common = sides.prod()
    return common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def test_what_is_made(scenes):
    assert scenes.x_train.shape == (150, 96, 96, 3)
    assert scenes.class_names == tuple("0123456789")
    np.testing.assert_array_equal(scenes.x_train[..., 0], scenes.x_train[..., 2])
    counts = np.bincount(scenes.object_counts(), minlength=7)
    assert counts[0] == 0
    assert (counts[1:] > 8).all()
    assert len(counts) == 7
    labels = scenes.classes_train[scenes.classes_train >= 0]
    assert (np.bincount(labels, minlength=10) > 25).all()


def test_boxes_are_whole_pixels_of_many_sizes_and_hardly_overlap(scenes):
    heights = []
    for boxes, classes in zip(scenes.boxes_train, scenes.classes_train, strict=True):
        boxes = boxes[classes >= 0].astype(np.float64)
        np.testing.assert_allclose(boxes * 96, np.rint(boxes * 96), atol=1e-4)
        heights += (boxes[:, 3] - boxes[:, 1]).tolist()
        for i, box in enumerate(boxes):
            assert all(overlap(box, other) < 0.2 for other in boxes[:i])
    assert 0.1 < min(heights) < 0.17
    assert 0.4 < max(heights) < 0.55


def test_boxes_are_tight_around_strokes(monkeypatch):
    monkeypatch.setattr(module, "_NOISE", 0.0)
    made = data.digit_scenes(count=60, test_count=1, size=(64, 96), objects=(1, 1), seed=3)
    for image, box in zip(made.x_train, made.boxes_train[:, 0], strict=True):
        grey = image[..., 0].astype(int)
        x1, y1, x2, y2 = np.rint(box * [96, 64, 96, 64]).astype(int)
        outside = grey.copy()
        outside[y1:y2, x1:x2] = grey[0, 0] if (x1 or y1) else grey[-1, -1]
        assert np.ptp(outside) == 0, "nothing is painted beside the box"
        ink = np.abs(grey[y1:y2, x1:x2] - outside[0, 0])
        edges = [ink[0], ink[-1], ink[:, 0], ink[:, -1]]
        assert all(edge.max() >= 0.28 * ink.max() for edge in edges)


def test_the_seed_decides_and_counts_do_not():
    one = data.digit_scenes(count=6, test_count=3, size=48)
    np.testing.assert_array_equal(one.x_train, data.digit_scenes(6, 3, size=48).x_train)
    more = data.digit_scenes(count=9, test_count=5, size=48)
    np.testing.assert_array_equal(one.x_train, more.x_train[:6])
    np.testing.assert_array_equal(one.x_test, more.x_test[:3])
    np.testing.assert_array_equal(one.classes_test, more.classes_test[:3])
    other = data.digit_scenes(count=6, test_count=3, size=48, seed=1)
    assert not np.array_equal(one.x_train, other.x_train)
    assert not np.array_equal(one.x_train[:3], one.x_test)


def test_parts_share_no_digit(monkeypatch):
    given = []

    class Spy(module._Digits):
        def __init__(self, images, labels):
            given.append(images)
            super().__init__(images, labels)

    monkeypatch.setattr(module, "_Digits", Spy)
    data.digit_scenes(count=1, test_count=1, seed=5)
    train, test = ({image.tobytes() for image in images} for images in given)
    digits = data.digits()
    assert train == {image.tobytes() for image in digits.x_train}
    assert test == {image.tobytes() for image in digits.x_test}
    assert not train & test


def test_augmentation_does_not_mirror(scenes):
    images = scenes.preprocess(scenes.x_train[:40])
    targets = {"boxes": scenes.boxes_train[:40], "classes": scenes.classes_train[:40]}
    _, moved = scenes.augment(images, targets, [1, 2])
    for before, after in zip(targets["boxes"], moved["boxes"].numpy(), strict=True):
        inside = ((after > 0.001) & (after < 0.999)).all(axis=-1)
        if inside.any():
            steps = (after - before)[inside]
            np.testing.assert_allclose(steps, [steps[0]] * len(steps), atol=1e-5)
            np.testing.assert_allclose(steps[:, :2], steps[:, 2:], atol=1e-5)


def test_they_are_made_quickly():
    data.digits()
    start = time.process_time()
    data.digit_scenes(count=400, test_count=100)
    assert time.process_time() - start < 2  # 0.25 on a free processor


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"count": 0}, ValueError, "`count`"),
        ({"test_count": 1.5}, TypeError, "`test_count`"),
        ({"size": 40}, ValueError, "at least 48"),
        ({"objects": 3}, TypeError, "`objects`"),
        ({"objects": (0, 3)}, ValueError, "`objects`"),
        ({"objects": (3, 2)}, ValueError, "The smaller number first"),
        ({"objects": (60, 60), "size": 48, "count": 1}, ValueError, "Use a larger `size`"),
        ({"seed": -1}, ValueError, "`seed`"),
    ],
)
def test_bad_arguments(options, error, said):
    with pytest.raises(error, match=said):
        data.digit_scenes(**options)
