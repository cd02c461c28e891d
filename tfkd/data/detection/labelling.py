"""Labels that are missing, written once by a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.detection.boxes import PADDING
from tfkd.detection.teacher_boxes import TeacherBoxes


def teacher_labels(
    dataset: DetectionDataset,
    teacher: Callable[[Any], Any],
    boxes: TeacherBoxes,
    batch_size: int = 32,
) -> DetectionDataset:
    """Adds what a teacher sees in the training images to their labels, once.

    The images are shown as they are, whole and not augmented; the boxes then go through
    augmentation with them. On blood cells that gave better students than detecting anew
    in every augmented batch (`MultiBoxSelection(teacher_boxes=...)`), and the steps take
    no longer; it needs the data in memory.

    Args:
        dataset: images with labels, or with some, or none; see `DetectionDataset.unlabel`.
        teacher: a detector, images (B, H, W, 3) scaled by `dataset.preprocess` → the dict
            of outputs that `boxes` decodes.
        boxes: `tfkd.detection.TeacherBoxes`, which says where boxes are wanted
            (in unlabelled images, wherever a box is missing, everywhere) and from which
            score.
        batch_size: images a batch.

    Returns:
        A `DetectionDataset` with other training labels. No image is unlabelled.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the teacher's outputs do not fit.

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
    options = {"training": False} if hasattr(teacher, "layers") else {}

    @tf.function(reduce_retracing=True)
    def label(x, given):
        return boxes(given, teacher(dataset.preprocess(x), **options))

    x, old_boxes, old_classes = dataset.arrays("train")
    parts = []
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        given = {"boxes": old_boxes[rows], "classes": old_classes[rows]}
        found = label(tf.constant(x[rows]), {k: tf.constant(v) for k, v in given.items()})
        parts.append((found["boxes"].numpy(), found["classes"].numpy()))
    new_boxes, new_classes = (np.concatenate(each) for each in zip(*parts, strict=True))
    new_boxes, new_classes = _packed(new_boxes, new_classes)
    return dataclasses.replace(dataset, boxes_train=new_boxes, classes_train=new_classes)


def _packed(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Objects to the front of their rows, and no more rows than the fullest image needs."""
    is_object = classes >= 0
    order = np.argsort(~is_object, axis=1, kind="stable")
    width = max(int(is_object.sum(1).max()), 1)
    boxes = np.take_along_axis(boxes, order[..., None], 1)[:, :width]
    classes = np.take_along_axis(classes, order, 1)[:, :width]
    boxes = np.where((classes >= 0)[..., None], boxes, float(PADDING))
    return boxes.astype(np.float32), classes
