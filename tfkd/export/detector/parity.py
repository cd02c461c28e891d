"""Parity of an exported detector with its Keras model: do both detect the same objects?

Nearly all of a detector's priors are background, and most of its outputs are never
used. So the final detections are compared: of the objects that one detects with a
clear score, how many does the other detect as the same class in nearly the same box,
and how much do the scores differ? This is measured in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.export.parity import measure
from tfkd.formats.detector_numpy import Detections, activated, overlaps

SCORE = 0.3  # the smallest score of a clear detection
IOU = 0.9  # the smallest overlap of boxes that count as the same
# A score this close to the score threshold may fall below it by rounding.
_MARGIN = 0.05

# Default thresholds by mode of `to_tflite`.
THRESHOLDS: dict[str, dict[str, float]] = {
    "float32": {"min_found": 0.99, "max_score_difference": 1e-3},
    "float16": {"min_found": 0.98, "max_score_difference": 1e-2},
    "dynamic": {"min_found": 0.9, "max_score_difference": 0.05},
    "int8": {"min_found": 0.8, "max_score_difference": 0.1},
    "quantized": {"min_found": 0.9, "max_score_difference": 0.05},
}


def thresholds_for(mode: str, changes: Mapping[str, float] | None) -> dict[str, float]:
    """Returns the thresholds of `mode`, updated by `changes`, which are checked."""
    limits = dict(THRESHOLDS[mode])
    if changes is None:
        return limits
    checks.instance("thresholds", changes, Mapping, "a dict of thresholds by name")
    for key, value in changes.items():
        checks.one_of("thresholds", key, limits)
        limits[key] = checks.fraction(f"thresholds[{key!r}]", value)
    return limits


def compare_detections(
    expected: Detections, received: Detections, score_threshold: float = 0.0
) -> dict[str, Any]:
    """Compares detections.

    Args:
        expected: detections of the Keras model, as from `tfkd.detection.decode`.
        received: detections of the file.
        score_threshold: the score threshold with which both were decoded.

    Returns:
        `examples`, the number of images; `objects` and `objects_in_file`: numbers of
        detections with a score above 0.3 (or above the score threshold + 0.05, if that
        is more); `found`: fraction of the former that the file detects with any score,
        as the same class and with an intersection over union of at least 0.9;
        `confirmed`: fraction of the latter that Keras detects; of the matched pairs
        `score_difference` (mean), `max_score_difference` and `box_iou` (mean). None
        where there is nothing to compare.
    """
    score = max(SCORE, score_threshold + _MARGIN)
    there, pairs = _matches(expected, received, score)
    back, _ = _matches(received, expected, score)
    differences = [abs(a - b) for a, b, _ in pairs]
    return {
        "examples": len(expected["boxes"]),
        "objects": len(there),
        "objects_in_file": len(back),
        "found": float(np.mean(there)) if there else None,
        "confirmed": float(np.mean(back)) if back else None,
        "score_difference": float(np.mean(differences)) if pairs else None,
        "max_score_difference": float(np.max(differences)) if pairs else None,
        "box_iou": float(np.mean([iou for _, _, iou in pairs])) if pairs else None,
    }


def _matches(
    first: Detections, second: Detections, score: float
) -> tuple[list[bool], list[tuple[float, float, float]]]:
    """(whether `second` has each clear detection of `first`, (score, score, IoU) of pairs)."""
    found, pairs = [], []
    for i in range(len(first["boxes"])):
        rows = np.flatnonzero(first["confidence"][i] > score)
        others = np.flatnonzero(second["classes"][i] >= 0)
        fit = overlaps(first["boxes"][i, rows], second["boxes"][i, others])
        fit[first["classes"][i, rows][:, None] != second["classes"][i, others][None]] = 0
        # Greedy matching by descending score; each detection is matched once at most.
        for row, detection in enumerate(rows):
            best = int(fit[row].argmax()) if len(others) else 0
            found.append(bool(len(others)) and bool(fit[row, best] >= IOU))
            if found[-1]:
                mine = float(first["confidence"][i, detection])
                other = float(second["confidence"][i, others[best]])
                pairs.append((mine, other, float(fit[row, best])))
                fit[:, best] = 0
    return found, pairs


def compare_heads(
    expected: Mapping[str, np.ndarray],
    received: Mapping[str, np.ndarray],
    limits: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Compares the network's outputs, in total and at priors with an object.

    Returns:
        The results of `tfkd.export.parity.measure`, and `object_priors`: the number of
        priors with a score above 0.3 in Keras; of those, `object_agreement`: the fraction
        with the same best class in the file, and `object_offset_error`: the mean absolute
        error of their offsets, in units of variance · prior size. None if there are none.
    """
    numbers = measure(expected, received, limits)
    classes, boxes = options["classes"], options["boxes"]
    clear = activated(expected[classes], options["background"]).max(-1) > SCORE
    same = expected[classes].argmax(-1) == received[classes].argmax(-1)
    error = np.abs(expected[boxes] - received[boxes]).mean(-1)
    some = bool(clear.any())
    numbers["object_priors"] = int(clear.sum())
    numbers["object_agreement"] = float(same[clear].mean()) if some else None
    numbers["object_offset_error"] = float(error[clear].mean()) if some else None
    return numbers


def failures(numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Lists the thresholds that are missed, one sentence each."""
    if not numbers["objects"]:
        return [
            f"the Keras model finds no object with a score above {SCORE:g} in the examples, so "
            "that nothing can be concluded: train it first, and scale the images as in training"
        ]
    found = []
    for key, text in (
        ("found", "of the objects that Keras finds the file finds"),
        ("confirmed", "of the objects that the file finds Keras finds"),
    ):
        value = numbers[key]
        if value is None or value < limits["min_found"]:
            shown = "none" if value is None else f"{value:.3g}"
            found.append(f"{text} {shown}, less than {limits['min_found']:g} ({key})")
    difference, limit = numbers["score_difference"], limits["max_score_difference"]
    if difference is not None and difference > limit:
        found.append(f"their scores differ by {difference:.3g}, more than {limit:g}")
    return found


def doubts(numbers: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """`failures` for synthetic images, with half of `min_found`; none without objects."""
    if not numbers["objects"]:
        return []
    return failures(numbers, {**limits, "min_found": limits["min_found"] / 2})


def rows(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The results of `compare_detections` as rows of a table."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    found = [
        ("objects in Keras", f"{numbers['objects']}, found in the file {share(numbers['found'])}"),
        (
            "objects in the file",
            f"{numbers['objects_in_file']}, found in Keras {share(numbers['confirmed'])}",
        ),
    ]
    if numbers["score_difference"] is not None:
        mean, most = numbers["score_difference"], numbers["max_score_difference"]
        found.append(("difference of scores", f"{mean:.2e} on average, {most:.2e} at most"))
        found.append(("overlap of boxes", f"{numbers['box_iou']:.4f}"))
    return found
