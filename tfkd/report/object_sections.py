"""Sections of a run's page on detectors: objects found and missed by class, and pictures."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

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
    last = pairs[-1][1]
    head, columns = ["class", "objects"], [last.class_names, last.truth]
    for word in ("found", "missed", "false"):
        head += [f"{word} {name}" for name, _ in pairs]
        columns += [getattr(one, word) for _, one in pairs]
    head += [f"AP50 {name}" for name, _ in pairs]
    columns += [one.ap50 for _, one in pairs]
    table = [tuple(row) for row in zip(*columns, strict=True)]
    sums = [np.sum(column) for column in columns[1 : 2 + 3 * len(pairs)]]
    table.append(("all", *sums, *(one.map50 for _, one in pairs)))
    formats = {name: ".3f" for name in head if name.startswith("AP50")}
    draw = functools.partial(class_plots.objects, dict(pairs))
    note = "Detections with a score of at least 0.5, matched at an IoU of at least 0.5."
    plots = [Plot("objects", "Objects found and missed", draw)] if last.truth.any() else []
    return Section("Objects found and missed", note, [Grid(head, table, formats, totals=1)], plots)


def scenes(report: Any) -> Section | None:
    """Pictures with drawn boxes."""
    if not report.scenes:
        return None
    pairs = [(source, caption) for caption, source in report.scenes.items()]
    note = "Solid: detected. Thin white dashes: an object that was found. Thick dashes: missed."
    return Section("Detections", note, [Gallery(pairs, large=True)])
