"""Comparison table of detectors: mAP by class, size, MACs and latency."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tfkd import checks
from tfkd.detection.coco_evaluation import DetectionScores
from tfkd.report.accuracy import SeedStats, seed_stats
from tfkd.report.detection_plots import check_same_classes, precision_recall_plot
from tfkd.report.latency import Latency
from tfkd.report.model_table import ModelTable
from tfkd.results import Format, Grid, Lines, Plot, restored, si, size_text, three_digits

COSTS: dict[str, Format] = {
    "parameters": ",", "MACs": si, "file": size_text, "p50 ms": three_digits
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """One detector in a `DetectionTable`; None is shown as a dash.

    Attributes:
        model: name of the model.
        scores: `DetectionScores`, or a list of them, one per seed, shown as mean ±
            standard deviation.
        params: number of weights.
        macs: multiply-accumulates for one image.
        size: bytes of the deployed file.
        latency: time for one image: `tfkd.report.Latency`, or its median in ms.
    """

    model: str
    scores: Any
    params: int | None = None
    macs: int | None = None
    size: int | None = None
    latency: Latency | float | None = None

    def __post_init__(self):
        scores = [self.scores] if isinstance(self.scores, DetectionScores) else self.scores
        if not isinstance(scores, (list, tuple)) or not scores:
            expected = "DetectionScores, or a list of them, one per seed"
            raise checks.type_error("scores", expected, self.scores)
        check_same_classes({f"{self.model}, seed {i}": one for i, one in enumerate(scores)})
        object.__setattr__(self, "scores", tuple(scores))
        if self.latency is not None and not isinstance(self.latency, Latency):
            checks.positive("latency", self.latency)

    @property
    def p50(self) -> float | None:
        """Median time for one image in ms."""
        return self.latency.p50 if isinstance(self.latency, Latency) else self.latency

    def stats(self, name: str, kind: int | None = None) -> SeedStats | None:
        """Mean and standard deviation of a score over seeds, such as "map50".

        Args:
            name: attribute of `DetectionScores`.
            kind: index of a class, for a score per class such as "ap50".

        Returns:
            `SeedStats`, or None if there are no objects to score.
        """
        values = [getattr(scores, name) for scores in self.scores]
        values = [float(value if kind is None else value[kind]) for value in values]
        return None if any(map(math.isnan, values)) else seed_stats(values)


@dataclasses.dataclass(frozen=True)
class DetectionTable(ModelTable, title="Detectors compared", file_name="detectors"):
    """Rows of detectors; a `tfkd.results.Result`.

    `save` writes `detectors.md`, `detectors.json`, `detectors.html` and
    `precision_recall.png`, whose curves are those of each row's first seed.

    Attributes:
        rows: the detectors, in order, all of them scored on the same data.
        notes: sentences below the table.
        machine: where the latency was measured (`tfkd.report.machine()`).

    Example:
        >>> from tfkd import report
        >>> truth = {"boxes": [[[0.1, 0.1, 0.4, 0.5]]], "classes": [[0]]}
        >>> scores = report.detection(dict(truth, confidence=[[0.9]]), truth, ["cell"])
        >>> table = report.DetectionTable([report.DetectionRow("tiny", scores, 46_000)])
        >>> print(table.text())
        model    mAP  mAP50   cell  parameters  MACs  file  p50 ms
        -----  -----  -----  -----  ----------  ----  ----  ------
        tiny   1.000  1.000  1.000      46,000     –     –       –
        <BLANKLINE>
        Images: 1, objects: 1. A class's column is its AP50.
    """

    row_type = DetectionRow

    def __post_init__(self) -> None:
        super().__post_init__()
        check_same_classes({row.model: row.scores[0] for row in self.rows})

    @classmethod
    def _restored_row(cls, values: Mapping[str, Any]) -> DetectionRow:
        scores = [restored(DetectionScores, one) for one in values["scores"]]
        return restored(DetectionRow, {**values, "scores": scores})

    def _grid(self) -> Grid:
        names = self._first.class_names
        rows = []
        for row in self.rows:
            stats = [row.stats("map"), row.stats("map50")]
            stats += [row.stats("ap50", kind) for kind in range(len(names))]
            scores = [one and one.format(3) for one in stats]
            rows.append((row.model, *scores, row.params, row.macs, row.size, row.p50))
        return Grid(("model", "mAP", "mAP50", *names, *COSTS), rows, COSTS)

    @property
    def _first(self) -> DetectionScores:
        return next(iter(self.rows)).scores[0]

    def _notes(self) -> list[str]:
        images, objects = f"{self._first.images:,}", f"{self._first.truth.sum():,}"
        note = f"Images: {images}, objects: {objects}. A class's column is its AP50."
        if any(len(row.scores) > 1 for row in self.rows):
            note += " Mean ± standard deviation over seeds."
        return [note, *self.notes]

    def parts(self) -> list[Grid | Lines]:
        """The table, the notes, and where the latency was measured."""
        parts: list[Grid | Lines] = [self._grid(), Lines(self._notes())]
        if any(row.p50 is not None for row in self.rows):
            where = f"{self.machine.get('processor')}, {self.machine.get('cores')} cores"
            parts.append(Lines([f"Latency measured on {where}."], printed=False))
        return parts

    def plots(self) -> Iterator[Plot]:
        """Precision-recall curves, if there are any objects."""
        if self._first.truth.any():
            curves = {row.model: row.scores[0] for row in self.rows}
            draw = functools.partial(precision_recall_plot, curves)
            yield Plot("precision_recall", "Precision against recall", draw)
