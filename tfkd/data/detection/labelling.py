"""Pseudo-labels: a teacher detector labels training images once, before training."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.detection.boxes import PADDING, UNLABELLED
from tfkd.detection.teacher_boxes import LEAST, TeacherBoxes, fit_thresholds


def teacher_labels(
    dataset: DetectionDataset,
    teacher: Callable[[Any], Any],
    boxes: TeacherBoxes,
    batch_size: int = 32,
    labelled_share: float = 0.0,
) -> DetectionDataset:
    """Adds a teacher's detections in the training images to their labels (pseudo-labels).

    The teacher sees whole images without augmentation; the boxes are then augmented with
    their images. On the BCCD blood-cell images this gave better students than running the
    teacher on every augmented batch (`MultiBoxSelection(teacher_boxes=...)`), and it adds
    nothing to the time of a step; it needs the data in memory.

    Without a `score_threshold` of `boxes` one is fitted for each class: 0.5, or less if the
    teacher would find fewer objects of the class in an unlabelled image than a labelled one
    has (`tfkd.detection.fit_thresholds`). At one threshold for all a teacher that has learned
    few labels misses most objects of rare classes, and so does its student. The labelled
    images should be drawn at random.

    Args:
        dataset: fully, partly or not labelled images; see `DetectionDataset.unlabel`.
        teacher: a detector: images (B, H, W, 3) scaled by `dataset.preprocess` → the dict
            of outputs that `boxes` decodes.
        boxes: `tfkd.detection.TeacherBoxes`, which sets where boxes are added (in
            unlabelled images, wherever a box is missing, everywhere), the lowest score, and
            what becomes of detections below it.
        batch_size: images per batch.
        labelled_share: below 1: the images that were labelled are repeated until they are
            about this share of all. 0: every image stands there once.

    Returns:
        A `DetectionDataset` with new training labels, in which no image is unlabelled.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if `boxes` cannot decode the teacher's outputs.

    Example:
        >>> from tfkd import data, detection, models
        >>> scenes = data.digit_scenes(count=8, test_count=4, size=64).unlabel(keep=2)
        >>> anchors = detection.Anchors.small(64)
        >>> teacher = models.ssd("tiny", 10, 64, anchors=anchors)
        >>> scenes.unlabelled, data.teacher_labels(
        ...     scenes, teacher, detection.TeacherBoxes(anchors)).unlabelled
        (6, 0)
    """
    checks.instance("dataset", dataset, DetectionDataset, "a DetectionDataset")
    checks.function("teacher", teacher)
    checks.instance("boxes", boxes, TeacherBoxes, "tfkd.detection.TeacherBoxes")
    checks.positive_int("batch_size", batch_size)
    if checks.fraction("labelled_share", labelled_share) == 1:
        raise checks.value_error("labelled_share", "a share below 1", labelled_share)
    options = {"training": False} if hasattr(teacher, "layers") else {}

    labelled = dataset.classes_train[:, 0] != UNLABELLED
    fit = boxes.score_threshold is None and boxes.where == "unlabelled" and labelled.any()
    looking = _with_threshold(boxes, LEAST) if fit else boxes

    @tf.function(reduce_retracing=True)
    def detect(x):
        return looking.detect(teacher(dataset.preprocess(x), **options))

    x, old_boxes, old_classes = dataset.arrays("train")
    parts = [detect(tf.constant(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if fit:
        kinds = [old_classes[labelled] == kind for kind in range(dataset.num_classes)]
        counts = [(~labelled).sum() * of_kind.sum(1).mean() for of_kind in kinds]
        others = {key: found[key][~labelled] for key in ("confidence", "classes")}
        boxes = _with_threshold(boxes, fit_thresholds(others, counts))
    whole = boxes.add({"boxes": old_boxes, "classes": old_classes}, found)
    new_boxes, new_classes = _packed(whole["boxes"].numpy(), whole["classes"].numpy())
    rows = np.arange(len(x))
    if labelled.any():
        wanted = labelled_share / (1 - labelled_share) * (~labelled).sum() / labelled.sum()
        rows = np.concatenate([rows, np.tile(rows[labelled], max(round(wanted) - 1, 0))])
    train = {"x_train": x, "boxes_train": new_boxes, "classes_train": new_classes}
    return dataclasses.replace(dataset, **{name: value[rows] for name, value in train.items()})


def _with_threshold(boxes: TeacherBoxes, value: float | tuple[float, ...]) -> TeacherBoxes:
    changed = copy.copy(boxes)
    changed.score_threshold = value
    return changed


def _packed(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves objects before the padding, and trims it to the image with the most objects."""
    is_object = classes != PADDING
    order = np.argsort(~is_object, axis=1, kind="stable")
    width = max(int(is_object.sum(1).max()), 1)
    boxes = np.take_along_axis(boxes, order[..., None], 1)[:, :width]
    classes = np.take_along_axis(classes, order, 1)[:, :width]
    boxes = np.where((classes != PADDING)[..., None], boxes, float(PADDING))
    return boxes.astype(np.float32), classes
