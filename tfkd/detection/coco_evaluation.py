"""COCO metrics of a detector (mAP, average recall) by pycocotools, from arrays in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from tfkd import checks
from tfkd.detection.flat_boxes import (
    Boxes,
    FlatBoxes,
    flat_detections,
    flat_ignored,
    flat_truth,
    names_of,
)
from tfkd.detection.hits import hits, without_ignored
from tfkd.results import Grid, Lines, Result, cell

HEAD = ("class", "mAP", "AP50", "truth", "detections")
FORMATS = dict.fromkeys(HEAD[1:3], ".3f")

# (height, width) in pixels, one number for both, or an array (N, 2); None if not known.
ImageSize: TypeAlias = float | Sequence[float] | np.ndarray | None

# COCO's small objects have areas up to 32², its large ones from 96² square pixels.
_SMALL, _LARGE = 32, 96
_WIDEST = 1e10  # the upper end of pycocotools's own ranges of areas: 1e5² square pixels
_SHOWN = 0.5  # the lowest score of detections that count as found or false
_MOST = (1, 10, 100)  # detections per image and class for AR1, AR10 and AR100


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionScores(Result, file_name="detection"):
    """COCO metrics of a detector with C classes; made by `tfkd.report.detection`.

    All metrics are in 0..1, or NaN where there are no objects.

    Attributes:
        class_names: C names.
        map: mean average precision over classes and over the ten IoU thresholds 0.50,
            0.55, ..., 0.95 from which a detection is a true positive.
        map50, map75: mean average precision at one IoU threshold.
        map_small, map_medium, map_large: `map` of the objects up to 32 · 32 pixels, up to
            96 · 96, and above; NaN if no image size was given.
        ar1, ar10, ar100: average recall: mean over classes and IoU thresholds of the share
            of objects that an image's best 1, 10 or 100 detections of a class find.
        ap, ap50: (C,) average precision of each class.
        truth, detections: (C,) numbers of objects and of detections.
        images: number of images.
        found: (C,) number of objects that a detection with a score of at least 0.5 finds, at
            IoU 0.5; () if it is not known.
        false: (C,) number of detections with a score of at least 0.5 that find none.
        recall: (101,) the grid 0, 0.01, ..., 1.
        precision: (C, 101) interpolated precision at IoU 0.5: the highest at this recall
            or a higher one; 0 where the recall is not reached.
        thresholds: (C, 101) the lowest score of the detections that must be kept to reach
            the recall; 0 where it is not reached.
    """

    class_names: tuple[str, ...]
    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    ar1: float
    ar10: float
    ar100: float
    ap: np.ndarray
    ap50: np.ndarray
    truth: np.ndarray
    detections: np.ndarray
    images: int
    recall: np.ndarray
    precision: np.ndarray
    thresholds: np.ndarray
    found: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    false: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def missed(self) -> np.ndarray:
        """(C,) number of objects that no detection with a score of at least 0.5 finds."""
        return self.truth - self.found

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without objects, which the means exclude."""
        return tuple(n for n, t in zip(self.class_names, self.truth, strict=True) if not t)

    def parts(self) -> list[Grid | Lines]:
        """A table of the classes with their means, and notes with the other metrics."""
        columns = (self.class_names, self.ap, self.ap50, self.truth, self.detections)
        rows = [*zip(*columns, strict=True)]
        counts = (self.truth.sum(), self.detections.sum())
        rows.append(("mean", self.map, self.map50, *counts))
        return [Grid(HEAD, rows, FORMATS, totals=1), Lines(self._notes())]

    def _notes(self) -> list[str]:
        sizes = (self.map_small, self.map_medium, self.map_large)
        recalls = (self.ar1, self.ar10, self.ar100)
        notes = [
            f"Images: {self.images:,}. mAP75 {score(self.map75)}; small, medium, large objects "
            f"{', '.join(map(score, sizes))}; recall of the best 1, 10, 100 detections "
            f"{', '.join(map(score, recalls))}."
        ]
        if self.absent:
            notes.append(f"Without an object, and left out of the means: {', '.join(self.absent)}.")
        return notes


def score(value: float) -> str:
    """Formats a metric with three digits, or as a dash if it is NaN."""
    return cell(value, ".3f")


def coco_scores(
    detections: Boxes,
    truth: Boxes,
    class_names: Sequence[str] | None = None,
    image_size: ImageSize = None,
) -> DetectionScores:
    """Computes COCO metrics; see `tfkd.report.detection`, which is this function."""
    found, real, ignored = flat_detections(detections), flat_truth(truth), flat_ignored(truth)
    if found.count != real.count:
        expected = f"detections of {real.count} images, as many as `truth` has"
        raise checks.value_error("detections", expected, f"{found.count} images")
    names = names_of(class_names, found, real)
    sizes = _sizes(image_size, real.count)
    evaluator = _evaluate(found, real, ignored, sizes, len(names))
    # precision: (IoU thresholds, recalls, classes, areas, detections per image); recall has
    # no axis of recalls. Both are -1 where a class has no objects.
    precision = np.where(evaluator["precision"] < 0, np.nan, evaluator["precision"])
    recall = np.where(evaluator["recall"] < 0, np.nan, evaluator["recall"])
    by_area = [_mean(precision[:, :, :, area, -1]) for area in range(precision.shape[3])]
    small, medium, large = by_area[1:] or [math.nan] * 3
    # All areas, 100 detections. The IoU thresholds 0 and 5 are 0.50 and 0.75.
    whole = precision[..., 0, -1]
    every = range(len(names))
    thresholds = evaluator["scores"][0, :, :, 0, -1].T
    shown = without_ignored(found.only(found.scores >= _SHOWN), real, ignored)
    right = hits(shown, real) >= 0
    return DetectionScores(
        class_names=names,
        map=by_area[0],
        map50=_mean(whole[0]),
        map75=_mean(whole[5]),
        map_small=small,
        map_medium=medium,
        map_large=large,
        ar1=_mean(recall[:, :, 0, 0]),
        ar10=_mean(recall[:, :, 0, 1]),
        ar100=_mean(recall[:, :, 0, 2]),
        ap=np.array([_mean(whole[:, :, c]) for c in every]),
        ap50=np.array([_mean(whole[0, :, c]) for c in every]),
        truth=np.bincount(real.classes, minlength=len(names)),
        detections=np.bincount(found.classes, minlength=len(names)),
        images=real.count,
        recall=np.linspace(0.0, 1.0, 101),
        precision=whole[0].T,
        thresholds=np.where(thresholds < 0, np.nan, thresholds),
        found=np.bincount(shown.classes[right], minlength=len(names)),
        false=np.bincount(shown.classes[~right], minlength=len(names)),
    )


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN, or NaN if there are none."""
    values = values[~np.isnan(values)]
    # pycocotools adds np.spacing(1) to denominators, which turns 1 into 1 − 2e-16.
    return round(float(values.mean()), 12) if values.size else math.nan


def _sizes(image_size: ImageSize, count: int) -> np.ndarray | None:
    """(count, 2) heights and widths in pixels, or None."""
    if image_size is None:
        return None
    sizes = np.asarray(image_size)
    if sizes.dtype.kind not in "iuf" or sizes.shape not in ((), (2,), (count, 2)):
        expected = f"(height, width) in pixels, one number, or an array ({count}, 2) of them"
        raise checks.value_error("image_size", expected, image_size)
    if not (sizes > 0).all():
        raise checks.value_error("image_size", "numbers of pixels above 0", image_size)
    return np.broadcast_to(sizes, (count, 2))


def pycocotools() -> tuple[type, type]:
    """Returns the classes COCO and COCOeval; raises ImportError if they are not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError(
            "The scores of a detector need pycocotools. "
            'Install it with `pip install "tfkd[detection]"`.'
        ) from error
    return COCO, COCOeval


def _evaluate(
    found: FlatBoxes,
    real: FlatBoxes,
    ignored: FlatBoxes,
    sizes: np.ndarray | None,
    classes: int,
) -> dict[str, np.ndarray]:
    """Runs pycocotools; returns its arrays of precision, recall and scores."""
    coco, coco_eval = pycocotools()
    # pycocotools prints a line for each of its steps.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        truth = _annotations(real, sizes)
        for kind in range(classes):  # an object to ignore is a crowd of every class
            crowds = dataclasses.replace(ignored, classes=np.full_like(ignored.classes, kind))
            truth += _annotations(crowds, sizes, len(truth) + 1, crowd=1)
        for annotations in (truth, _annotations(found, sizes)):
            side = coco()
            side.dataset = {
                "images": [{"id": image} for image in range(real.count)],
                "categories": [{"id": number} for number in range(classes)],
                "annotations": annotations,
            }
            side.createIndex()
            sides.append(side)
        evaluator = coco_eval(*sides, iouType="bbox")
        evaluator.params.maxDets = list(_MOST)
        small, large = _SMALL**2, _LARGE**2
        ranges = [[0, _WIDEST], [0, small], [small, large], [large, _WIDEST]]
        labels = ["all", "small", "medium", "large"]
        if sizes is None:  # Without pixels there are no ranges of areas.
            ranges, labels = ranges[:1], labels[:1]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = ranges, labels
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval


def _annotations(
    flat: FlatBoxes, sizes: np.ndarray | None, first: int = 1, crowd: int = 0
) -> list[dict[str, Any]]:
    """COCO's annotations: (x, y, width, height), in pixels if the image sizes are known."""
    boxes = np.concatenate([flat.boxes[:, :2], flat.boxes[:, 2:] - flat.boxes[:, :2]], 1)
    if sizes is not None:
        boxes = boxes * np.tile(sizes[flat.images][:, ::-1], 2)
    areas = boxes[:, 2] * boxes[:, 3]
    columns = (flat.images, flat.classes, boxes, areas, flat.scores)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    # Numbers start at 1: pycocotools takes a match with annotation 0 for no match.
    return [
        {
            "id": number, "image_id": image, "category_id": kind, "bbox": box,
            "area": area, "score": value, "iscrowd": crowd,
        }
        for number, (image, kind, box, area, value) in enumerate(rows, first)
    ]  # fmt: skip
