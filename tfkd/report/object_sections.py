"""Sections of a run's page on detectors: objects found and missed by class, and pictures."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tfkd.detection.coco_evaluation import DetectionScores
from tfkd.report import class_plots
from tfkd.report.detection_table import DetectionTable
from tfkd.results import Gallery, Grid, Plot, Section


def objects(report: Any) -> Section | None:
    """Found, missed and false objects by class, before and after."""
    if not isinstance(report.table, DetectionTable):
        return None
    rows = [report.original_row, report.final_row]
    pairs = [("before", rows[0].scores[0]), ("after", rows[1].scores[0])]
    if report.original_row.model == report.final:
        pairs = pairs[1:]
    pairs = [(name, one) for name, one in pairs if len(one.found)]
    if not pairs:
        return None
    first = pairs[0][1]
    draw = functools.partial(class_plots.objects, dict(pairs))
    note = "Detections with a score of at least 0.5, matched at an IoU of at least 0.5."
    plots = [Plot("objects", "Objects found and missed", draw)] if first.truth.any() else []
    return Section("Objects found and missed", note, [_counts(pairs), _scores(pairs)], plots)


def _counts(pairs: list[tuple[str, DetectionScores]]) -> Grid:
    first = pairs[0][1]
    head, columns = ["class", "objects"], [first.truth]
    for word in ("found", "missed", "false"):
        head += [f"{word} {name}" for name, _ in pairs]
        columns += [getattr(one, word) for _, one in pairs]
    rows = [*zip(first.class_names, *columns, strict=True)]
    return Grid(head, [*rows, ("all", *map(np.sum, columns))], totals=1)


def _scores(pairs: list[tuple[str, DetectionScores]]) -> Grid:
    """AP (IoU 0.50 to 0.95) by class, and precision and recall at a score of 0.5 in percent."""
    columns: list[Any] = [[*pairs[0][1].class_names, "mean"]]
    columns += [[*one.ap, one.map] for _, one in pairs]
    head = ["class", *(f"AP {name}" for name, _ in pairs)]
    shares = {
        "precision %": [_share(one.found, one.found + one.false) for _, one in pairs],
        "recall %": [_share(one.found, one.truth) for _, one in pairs],
    }
    for word, values in shares.items():
        head += [f"{word} {name}" for name, _ in pairs]
        columns += values
    forms = {name: ".3f" if name.startswith("AP") else ".1f" for name in head[1:]}
    return Grid(head, [*zip(*columns, strict=True)], forms, totals=1)


def _share(part: np.ndarray, whole: np.ndarray) -> list[float]:
    """Percentages by class, and their mean over the classes that have one."""
    found = np.divide(100.0 * part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return [*found.tolist(), float(np.nanmean(found)) if (whole > 0).any() else float("nan")]


def scenes(report: Any) -> Section | None:
    """Pictures with drawn boxes."""
    if not report.scenes:
        return None
    pairs = [(source, caption) for caption, source in report.scenes.items()]
    note = "Solid: detected. Thin white dashes: an object that was found. Thick dashes: missed."
    return Section("Detections", note, [Gallery(pairs, large=True)])
