"""Reproducible object-detection batches of fixed shape, as a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.data.batches import batches, eval_batches
from tfkd.data.detection import targets
from tfkd.data.detection.dataset import DetectionDataset, check_images, scaled
from tfkd.types import Structure, Tensor

Augment = Callable[[Any, Any, Any], Any]


def _take(x: np.ndarray, boxes: np.ndarray, classes: np.ndarray) -> Callable[[Any], Any]:
    """`take(rows)` → scaled images and targets of these rows."""
    # On the CPU, where tf.data runs even on a machine with a GPU.
    with tf.device("CPU"):
        held = [tf.convert_to_tensor(array) for array in (x, boxes, classes)]

    def take(rows):
        images, some_boxes, some_classes = (tf.gather(array, rows) for array in held)
        return scaled(images), {"boxes": some_boxes, "classes": some_classes}

    return take


def detection_batches(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    seed: int = 0,
    augment: Augment | None = None,
    epochs: int | None = None,
    start_step: int = 0,
    split: str = "train",
) -> tf.data.Dataset:
    """Shuffled training batches of images with boxes, endless or for `epochs` passes.

    Batch number `step` of a seed is the same in every process, augmentation
    included; see `tfkd.data.batches`.

    Args:
        dataset: a `DetectionDataset`.
        batch_size: images per batch, B; the incomplete last batch of each epoch is
            dropped.
        seed: determines shuffling and augmentation.
        augment: `augment(images, targets, seed)` → (images, targets), such as
            `dataset.augment` or what `tfkd.data.augment_boxes` returns; None: none.
        epochs: number of passes; None: endless, so `fit` needs `steps_per_epoch`.
        start_step: first step to yield, for resuming after an interruption.
        split: "train" or "test".

    Returns:
        A `tf.data.Dataset` of (images, targets): float32 (B, H, W, 3), pixels / 127.5 − 1,
        and {"boxes": float32 (B, M, 4), "classes": int32 (B, M)}, padded with -1. M is
        the same for all batches.

    Raises:
        TypeError: if `dataset` is not a DetectionDataset, or `augment` not callable.
        ValueError: if there are fewer images than `batch_size`.

    Example:
        >>> from tfkd import data
        >>> scenes = data.digit_scenes(count=8, test_count=4, size=64)
        >>> batches = data.detection_batches(scenes, 4, augment=scenes.augment)
        >>> images, targets = next(iter(batches))
        >>> images.shape, targets["boxes"].shape[-1]
        (TensorShape([4, 64, 64, 3]), 4)
    """
    checks.instance("dataset", dataset, DetectionDataset, "a DetectionDataset")
    checks.optional(checks.function, "augment", augment)
    x, boxes, classes = dataset.arrays(split)
    take = _take(x, boxes, classes)

    def draw(rows, seed):
        images, some = take(rows)
        return (images, some) if augment is None else augment(images, some, seed)

    rows = np.arange(len(x))
    return batches(
        rows, None, batch_size, seed=seed, augment=draw, epochs=epochs, start_step=start_step
    )


def detection_eval_batches(
    dataset: DetectionDataset | tuple[Tensor, Structure, Structure],
    batch_size: int,
    split: str = "test",
) -> tf.data.Dataset:
    """Batches of every image once and in order; the last batch may be smaller.

    Args:
        dataset: a `DetectionDataset`; or a tuple of images (N, H, W, 3), boxes and
            classes, as `DetectionDataset` takes them.
        batch_size: images per batch.
        split: "train" or "test" of a `DetectionDataset`.

    Returns:
        A `tf.data.Dataset` of (images, targets), as from `detection_batches`.

    Raises:
        TypeError, ValueError: if the arrays are invalid, see `DetectionDataset`.

    Example:
        >>> from tfkd import data
        >>> scenes = data.digit_scenes(count=8, test_count=5, size=64)
        >>> [len(images) for images, _ in data.detection_eval_batches(scenes, 2)]
        [2, 2, 1]
    """
    if isinstance(dataset, DetectionDataset):
        x, boxes, classes = dataset.arrays(split)
    else:
        expected = "a DetectionDataset, or a tuple (images, boxes, classes)"
        checks.instance("dataset", dataset, (tuple, list), expected)
        if len(dataset) != 3:
            raise checks.value_error("dataset", expected, f"{len(dataset)} entries")
        x = check_images("images", dataset[0])
        names = ("boxes", "classes")
        boxes, classes = targets.pad(names, dataset[1], dataset[2], len(x))
        targets.check(names, boxes, classes)
    return eval_batches(np.arange(len(x)), None, batch_size, preprocess=_take(x, boxes, classes))
