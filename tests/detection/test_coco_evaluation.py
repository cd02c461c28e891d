"""COCO's scores against a slow calculation by the rules, and what may go in."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd.detection import IGNORED, UNLABELLED
from tfkd.detection.coco_evaluation import coco_scores

GRID = np.linspace(0.0, 1.0, 101)
OVERLAPS = np.linspace(0.5, 0.95, 10)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow(detections, truth, kind, threshold=0.5):
    """(average precision, precision on the grid, recall) of one class, in plain loops."""
    rows, objects = [], 0
    for index, (found, real) in enumerate(zip(detections, truth, strict=True)):
        boxes = [box for box, c in zip(real["boxes"], real["classes"], strict=True) if c == kind]
        objects += len(boxes)
        free = [True] * len(boxes)
        mine = [
            (-s, i, box)
            for i, (box, s, c) in enumerate(
                zip(found["boxes"], found["confidence"], found["classes"], strict=True)
            )
            if c == kind
        ]
        for negative, i, box in sorted(mine, key=lambda row: row[:2])[:100]:
            best, place = threshold, None
            for j, other in enumerate(boxes):
                if free[j] and overlap(box, other) >= best:  # of equal ones the last
                    best, place = overlap(box, other), j
            if place is not None:
                free[place] = False
            rows.append((negative, index, i, place is not None))
    if not objects:
        return math.nan, None, math.nan
    rows.sort(key=lambda row: row[:3])
    right, points = 0, []
    for count, row in enumerate(rows, 1):
        right += row[3]
        points.append((right / objects, right / count))
    precision = [max([p for r, p in points if r >= g], default=0.0) for g in GRID]
    return sum(precision) / 101, precision, right / objects


def scene(seed, images=3, classes=3, most=5):
    """Random boxes on a grid of 1/8, so that overlaps of exactly 0.5 and ties occur."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        low = rng.integers(0, 7, (count, 2))
        high = low + 1 + rng.integers(0, 7 - low + 1)
        return np.concatenate([low, np.minimum(high, 8)], 1) / 8.0

    detections, truth = [], []
    for _ in range(images):
        count = rng.integers(0, most + 1)
        real = {"boxes": boxes(count), "classes": rng.integers(0, classes, count)}
        near = real["boxes"] + rng.integers(-1, 2, (count, 4)) / 8.0
        ok = (near[:, 2:] > near[:, :2]).all(1)
        others = boxes(rng.integers(0, most + 1))
        found = np.concatenate([near[ok], others])
        kinds = np.concatenate([real["classes"][ok], rng.integers(0, classes, len(others))])
        confidence = rng.integers(1, 9, len(found)) / 8.0
        detections.append({"boxes": found, "classes": kinds, "confidence": confidence})
        truth.append(real)
    return detections, truth


def padded(images, width):
    """A list of images as one batch, with padding."""
    count = len(images)
    batch = {
        "boxes": np.full((count, width, 4), -1, "float32"),
        "classes": np.full((count, width), -1, "int32"),
        "confidence": np.zeros((count, width), "float32"),
    }
    for index, image in enumerate(images):
        for key, values in image.items():
            batch[key][index, : len(values)] = values
    batch["num_detections"] = np.array([len(image["classes"]) for image in images], "int32")
    return batch


NAMES = ["a", "b", "c"]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 7))
def test_the_slow_calculation_agrees(seed, images, most):
    detections, truth = scene(seed, images, 3, most)
    scores = coco_scores(detections, truth, NAMES)
    by_class = [slow(detections, truth, kind) for kind in range(3)]
    np.testing.assert_allclose(scores.ap50, [ap for ap, _, _ in by_class], rtol=1e-9)
    for kind, (_, precision, _) in enumerate(by_class):
        if precision is not None:
            np.testing.assert_allclose(scores.precision[kind], precision, rtol=1e-9)
    table = np.array([[slow(detections, truth, k, t)[::2] for t in OVERLAPS] for k in range(3)])
    there = ~np.isnan(table[:, 0, 0])
    np.testing.assert_allclose(scores.ap, table[..., 0].mean(1), rtol=1e-9)
    if there.any():
        assert scores.map == pytest.approx(table[there, :, 0].mean())
        assert scores.map50 == pytest.approx(table[there, 0, 0].mean())
        assert scores.map75 == pytest.approx(table[there, 5, 0].mean())
        assert scores.ar100 == pytest.approx(table[there, :, 1].mean())
    else:
        assert math.isnan(scores.map) and math.isnan(scores.ar100)
    assert scores.truth.tolist() == [
        sum((t["classes"] == k).sum() for t in truth) for k in (0, 1, 2)
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_every_form_of_the_same_boxes_gives_the_same_scores(seed):
    detections, truth = scene(seed, 4)
    plain = coco_scores(detections, truth, NAMES, 100)
    batches = [padded(detections[:1], 12), padded(detections[1:], 11)]
    labels = {k: v for k, v in padded(truth, 7).items() if k in ("boxes", "classes")}
    for form in (padded(detections, 12), batches):
        assert coco_scores(form, labels, NAMES, (100, 100)).to_dict() == plain.to_dict()
    # What stands in the padding does not count.
    noisy = padded(detections, 12)
    for index, count in enumerate(noisy["num_detections"]):
        noisy["classes"][index, count:] = 1
        noisy["boxes"][index, count:] = np.nan
    assert coco_scores(noisy, labels, NAMES, 100).to_dict() == plain.to_dict()


def test_ragged_tensors_are_taken():
    rows = [[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], [[0.2, 0.2, 0.4, 0.4]]]
    boxes = tf.ragged.constant(rows, ragged_rank=1)
    truth = {"boxes": boxes, "classes": tf.ragged.constant([[0, 1], [1]])}
    found = dict(truth, confidence=tf.ragged.constant([[0.9, 0.8], [0.7]]))
    scores = coco_scores(found, truth)
    assert scores.map == 1.0 and scores.truth.tolist() == scores.detections.tolist() == [1, 2]


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"tfkd\[detection\]"):
        coco_scores(GOOD, ONE)


def test_thresholds_are_the_scores_that_reach_a_recall():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    truth = [{"boxes": boxes, "classes": [0, 0]}]
    found = [
        {
            "boxes": [boxes[0], [0, 0.5, 0.5, 1], boxes[1]],
            "classes": [0, 0, 0],
            "confidence": [0.9, 0.8, 0.3],
        }
    ]
    scores = coco_scores(found, truth)
    # Right, wrong, right: precision 1 up to recall 0.5, then 2 of 3.
    assert scores.ap50[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores.thresholds[0, 50] == 0.9 and scores.thresholds[0, 51] == 0.3
    assert scores.recall[50] == 0.5
    assert scores.ar1 == 0.5 and scores.ar10 == scores.ar100 == 1.0


def test_sizes_are_counted_in_pixels_of_each_image():
    # A quarter of the side each: 25 and 200 pixels, in images of 100 and 800.
    box = [0.0, 0.0, 0.25, 0.25]
    truth = [{"boxes": [box], "classes": [0]}] * 2
    found = [
        {"boxes": [box], "classes": [0], "confidence": [0.9]},
        {"boxes": [[0.5, 0.5, 0.75, 0.75]], "classes": [0], "confidence": [0.8]},
    ]
    scores = coco_scores(found, truth, image_size=[[100, 100], [800, 800]])
    assert (scores.map_small, scores.map_large) == (1.0, 0.0)
    assert math.isnan(scores.map_medium)
    # Height and width in this order: 0.25 · 100 by 0.25 · 400 pixels are medium.
    wide = coco_scores(found, truth, image_size=(100, 400))
    assert wide.map_medium == wide.map == pytest.approx(51 / 101)
    without = coco_scores(found, truth)
    assert math.isnan(without.map_small) and without.map == wide.map


def test_only_the_best_hundred_of_an_image_count():
    box = [[0.0, 0.0, 0.5, 0.5]]
    boxes = np.concatenate([np.tile([[0.5, 0.5, 1.0, 1.0]], (100, 1)), box])
    found = {"boxes": boxes, "classes": np.zeros(101), "confidence": np.linspace(1, 0.1, 101)}
    truth = [{"boxes": box, "classes": [0]}]
    assert coco_scores([found], truth).map50 == 0.0
    found["confidence"] = found["confidence"][::-1]
    assert coco_scores([found], truth).map50 == 1.0


EMPTY = {"boxes": np.zeros((2, 0, 4)), "classes": np.zeros((2, 0)), "confidence": np.zeros((2, 0))}
ONE = {"boxes": [[[0.0, 0.0, 0.5, 0.5]]] * 2, "classes": [[0], [-1]]}


def test_a_detection_in_an_object_to_ignore_is_neither_right_nor_wrong():
    cell, crowd = [0.0, 0.0, 0.3, 0.3], [0.5, 0.5, 1.0, 1.0]
    found = {
        "boxes": [cell, [0.5, 0.5, 0.7, 0.7], [0.4, 0.5, 0.6, 0.7], [0.0, 0.5, 0.3, 0.9]],
        "classes": [0, 0, 1, 0],  # the second and the third have all and half of it in the crowd
        "confidence": [0.7, 0.9, 0.8, 0.6],
    }
    truth = {"boxes": [cell, crowd, crowd], "classes": [0, IGNORED, -1]}
    scores = coco_scores([found], [truth], ["a", "b"], image_size=100)
    assert scores.ap50[0] == pytest.approx(1.0) and scores.absent == ("b",)
    assert scores.truth.tolist() == [1, 0] and scores.detections.tolist() == [3, 1]
    assert scores.found.tolist() == [1, 0] and scores.false.tolist() == [1, 0]
    # Without it the better score is wrong: half of what is detected is right.
    plain = coco_scores([found], [{"boxes": [cell], "classes": [0]}], ["a", "b"])
    assert plain.ap50[0] == pytest.approx(0.5) and plain.false.tolist() == [2, 1]
    # An object that lies in it counts all the same.
    both = {"boxes": [cell, [0.0, 0.0, 1.0, 1.0]], "classes": [0, IGNORED]}
    scores = coco_scores([found], [both], ["a", "b"])
    assert scores.found.tolist() == [1, 0] and scores.false.tolist() == [0, 0]


def test_no_detections():
    scores = coco_scores(EMPTY, ONE, ["a", "b"])
    assert scores.map == scores.map50 == scores.ar100 == 0.0
    assert scores.truth.tolist() == [1, 0] and scores.detections.tolist() == [0, 0]
    assert math.isnan(scores.ap[1]) and scores.absent == ("b",)


def test_no_truth_at_all():
    scores = coco_scores(dict(ONE, confidence=[[0.5], [0.0]]), EMPTY, ["a", "b"])
    assert math.isnan(scores.map) and math.isnan(scores.map50)
    assert scores.absent == ("a", "b") and scores.detections.tolist() == [1, 0]
    assert coco_scores(EMPTY, EMPTY).absent == ("0",)


def test_a_class_without_an_object_does_not_count_and_an_image_without_one_does():
    found = dict(ONE, confidence=[[0.9], [0.0]])
    alone = coco_scores(found, ONE, ["a", "b"])
    assert alone.map == alone.map50 == alone.ap[0] == 1.0
    # A false alarm of class a in the empty image, at a higher score.
    found = {"boxes": ONE["boxes"], "classes": [[0], [0]], "confidence": [[0.5], [0.9]]}
    assert coco_scores(found, ONE, ["a", "b"]).map50 == 0.5
    # And one of class b, which has no object, is only named.
    found["classes"] = [[0], [1]]
    scores = coco_scores(found, ONE, ["a", "b"])
    assert scores.map50 == 1.0 and scores.detections.tolist() == [1, 1]
    assert "left out of the means: b." in str(scores)


def test_table_json_and_files(tmp_path, capsys):
    scores = coco_scores(dict(ONE, confidence=[[0.9], [0.0]]), ONE, ["a|b", "c"])
    print(scores)
    shown = capsys.readouterr().out
    assert shown == str(scores) + "\n"
    assert shown.splitlines()[2].split() == ["a|b", "1.000", "1.000", "1", "1"]
    assert shown.splitlines()[3].split() == ["c", "–", "–", "0", "0"]
    assert scores.save(tmp_path / "new") == tmp_path / "new"
    read = json.loads((tmp_path / "new" / "detection.json").read_text("utf-8"))
    assert read["map50"] == 1.0 and read["ap"] == [1.0, None] and read["map_small"] is None
    assert len(read["precision"][0]) == len(read["recall"]) == 101
    assert read["precision"][1] == [None] * 101
    text = (tmp_path / "new" / "detection.md").read_text("utf-8")
    assert "| a\\|b | 1.000 | 1.000 | 1 | 1 |" in text.splitlines()


def test_nothing_is_printed(capsys):
    coco_scores(EMPTY, ONE)
    assert capsys.readouterr() == ("", "")


GOOD = dict(ONE, confidence=[[0.9], [0.0]])
NAN = math.nan


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"truth": dict(ONE, classes=[[0], [UNLABELLED]])}, "1 of 2 images without labels"),
        ({"truth": dict(ONE, classes=[[0], [-4]])}, "class numbers from 0"),
        ({"truth": dict(ONE, classes=[[5], [-1]])}, "below 2"),
        ({"truth": dict(ONE, classes=[[0.5], [0]])}, "whole numbers"),
        ({"truth": dict(ONE, boxes=[[[0.5, 0, 0.5, 1]]] * 2)}, "image 0"),
        ({"truth": dict(ONE, boxes=[[[NAN, 0, 0.5, 1]]] * 2)}, "finite corners"),
        ({"truth": dict(ONE, boxes=[[[0, 0, 1]]] * 2)}, "boxes (B, N, 4)"),
        ({"truth": {"boxes": ONE["boxes"]}}, "a dict with 'classes'"),
        ({"truth": ONE["boxes"]}, "dicts with 'boxes', 'classes'"),
        ({"truth": 3}, "a dict of arrays"),
        ({"truth": []}, "at least one image"),
        ({"truth": [ONE, ONE]}, "detections of 4 images"),
        ({"detections": dict(GOOD, classes=[[2], [-1]])}, "not the background"),
        ({"detections": dict(GOOD, classes=[[-2], [-1]])}, "class numbers from 0"),
        ({"detections": dict(GOOD, confidence=[[NAN], [0]])}, "image 0"),
        ({"detections": dict(GOOD, boxes=[[[NAN, 0, 1, 1]]] * 2)}, "finite numbers"),
        ({"detections": dict(GOOD, confidence=[0.5])}, "confidence of shape (2, 1)"),
        ({"detections": dict(GOOD, num_detections=[1])}, "2 numbers"),
        ({"detections": ONE}, "a dict with 'confidence'"),
        ({"class_names": "ab"}, "a list of names"),
        ({"class_names": []}, "at least one name"),
        ({"image_size": (1, 2, 3)}, "(height, width)"),
        ({"image_size": (0, 10)}, "above 0"),
        ({"image_size": "10"}, "(height, width)"),
    ],
)
def test_bad_arguments(change, text):
    arguments = {"detections": GOOD, "truth": ONE, "class_names": ["a", "b"], **change}
    with pytest.raises((TypeError, ValueError)) as error:
        coco_scores(**arguments)
    assert text in str(error.value)
