"""COCO evaluation of object detectors: mean average precision (mAP) and recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from tfkd.detection.anchors import Anchors
from tfkd.detection.coco_evaluation import DetectionScores, coco_scores
from tfkd.detection.detecting import check_images, detect
from tfkd.detection.drawing import detection_pictures
from tfkd.types import Tensor

# Arrays by name, for a batch of images, or one such mapping per batch or image.
Boxes = Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]]

__all__ = ["DetectionScores", "detect", "detection", "detection_pictures", "evaluate_detector"]


def detection(
    detections: Boxes,
    truth: Boxes,
    class_names: Sequence[str] | None = None,
    image_size: ArrayLike | None = None,
) -> DetectionScores:
    """COCO metrics of detections: mean average precision, recall, and precision-recall curves.

    Computed by pycocotools, as in keras-cv's BoxCOCOMetrics (whose 0 for a class without
    objects is NaN here). The detections of a class in an image are matched by falling
    score, each to the unmatched object of its class with the largest IoU, if that reaches
    the threshold. Only the 100 highest-scoring detections per image and class count.

    Reference: Lin et al. 2014, Microsoft COCO, https://arxiv.org/abs/1405.0312, and the
    evaluation at https://cocodataset.org/#detection-eval.

    Args:
        detections: dict {"boxes": (N, K, 4), "confidence": (N, K), "classes": (N, K),
            "num_detections": (N,)} of `report.detect` or `tfkd.detection.decode`:
            corners (x1, y1, x2, y2) relative to the image, classes 0..C-1, padded with
            class -1. Or a list of such batches, or of dicts of single images, without
            the N.
        truth: dict {"boxes": (N, M, 4), "classes": (N, M)} of the same images, padded
            with class -1; or a list like that of `detections`. An object of class -3
            (`tfkd.detection.IGNORED`) is a crowd: a detection there is neither right nor wrong.
        class_names: C names; default "0", "1", ...
        image_size: (height, width) in pixels, one number for both, or an array (N, 2)
            for every image; for the scores of small, medium and large objects. If the
            model's input is a resized image, this is the size of the original.

    Returns:
        `DetectionScores`: `print` it, `.save(folder)` it. All scores are in 0..1. The
        scores of a class without objects are NaN, and excluded from the means.

    Raises:
        TypeError, ValueError: for arrays of other shapes, NaN, classes that are not in
            `class_names`, ground truth without area, and unlabelled images.
        ImportError: if pycocotools is not installed.

    Example:
        >>> from tfkd import report
        >>> truth = {"boxes": [[[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9]]], "classes": [[0, 0]]}
        >>> found = {
        ...     "boxes": [[[0.1, 0.1, 0.4, 0.5], [0.0, 0.5, 0.3, 0.9]]],
        ...     "confidence": [[0.9, 0.4]],
        ...     "classes": [[0, 1]],
        ... }
        >>> print(report.detection(found, truth, ["cell", "platelet"]))
        class       mAP   AP50  truth  detections
        --------  -----  -----  -----  ----------
        cell      0.505  0.505      2           1
        platelet      –      –      0           1
        --------  -----  -----  -----  ----------
        mean      0.505  0.505      2           2
        <BLANKLINE>
        Images: 1. mAP75 0.505; small, medium, large objects –, –, –; recall of the best 1, 10,
        100 detections 0.500, 0.500, 0.500.
        Without an object, and left out of the means: platelet.
    """
    return coco_scores(detections, truth, class_names, image_size)


def evaluate_detector(
    model: Callable[..., Any],
    data: Tensor,
    truth: Boxes,
    anchors: Anchors | Tensor,
    class_names: Sequence[str] | None = None,
    image_size: ArrayLike | None = None,
    batch_size: int = 32,
    preprocess: Callable[[Any], Any] | None = None,
    **decode_options: Any,
) -> DetectionScores:
    """Runs a detector on images and scores its detections: `detect`, then `detection`.

    Args:
        model: a tf_keras model or a function; see `report.detect`.
        data: images (N, H, W, 3); see `report.detect`.
        truth: dict {"boxes": (N, M, 4), "classes": (N, M)}; see `report.detection`.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        class_names: C names; default "0", "1", ...
        image_size: for the scores by size; see `report.detection`. Default: (H, W).
        batch_size: images per batch.
        preprocess: a function of a batch of images; None: pixels / 127.5 − 1 for uint8.
        **decode_options: arguments of `tfkd.detection.decode`.

    Returns:
        `DetectionScores`.

    Raises:
        TypeError, ValueError: for an invalid argument, and if the model's outputs are not
            finite numbers.
        ImportError: if pycocotools is not installed.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> def model(images):  # one prior, always of the only class
        ...     count = len(images)
        ...     logits = np.tile(np.float32([-9, 9]), (count, 1, 1))
        ...     return {"boxes": np.zeros((count, 1, 4), "float32"), "classes": logits}
        >>> priors = np.float32([[0.5, 0.5, 0.2, 0.4]])
        >>> truth = {"boxes": [[[0.4, 0.3, 0.6, 0.7]]] * 2, "classes": [[0], [0]]}
        >>> images = np.zeros((2, 8, 8, 3), "uint8")
        >>> report.evaluate_detector(model, images, truth, priors).map50
        1.0
    """
    images = check_images(data)
    found = detect(model, images, anchors, batch_size, preprocess, **decode_options)
    size = images.shape[1:3] if image_size is None else image_size
    return detection(found, truth, class_names, size)
