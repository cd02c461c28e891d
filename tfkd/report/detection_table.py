"""Several detectors in one table: what each finds, and what it costs."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tfkd import artifacts, checks
from tfkd.detection.coco_evaluation import NONE, DetectionScores
from tfkd.report.accuracy import SeedStats, seed_stats
from tfkd.report.detection_plots import check_same_classes, precision_recall_plot
from tfkd.report.latency import Latency
from tfkd.report.latency import machine as this_machine
from tfkd.text_tables import aligned, si, size_text


@dataclasses.dataclass(frozen=True)
class DetectionRow:
    """One detector in a `DetectionTable`; what is None shows as a dash.

    Attributes:
        model: name.
        scores: `DetectionScores`, or several of them, one a seed, shown as mean ±
            standard deviation.
        params: number of weights.
        macs: multiply-accumulates for one image.
        size: bytes of the file that is deployed.
        latency: time of one image: `tfkd.report.Latency`, or its median in ms.
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
            expected = "DetectionScores, or a list of them, one a seed"
            raise checks.type_error("scores", expected, self.scores)
        check_same_classes({f"{self.model}, seed {i}": one for i, one in enumerate(scores)})
        object.__setattr__(self, "scores", tuple(scores))
        if self.latency is not None and not isinstance(self.latency, Latency):
            checks.positive("latency", self.latency)

    @property
    def p50(self) -> float | None:
        """Median time of one image in ms."""
        return self.latency.p50 if isinstance(self.latency, Latency) else self.latency

    def stats(self, name: str, kind: int | None = None) -> SeedStats | None:
        """Mean and spread over seeds of a score, as "map50", or of a class's, as "ap50".

        None if there is no such object.
        """
        values = [getattr(scores, name) for scores in self.scores]
        values = [float(value if kind is None else value[kind]) for value in values]
        return None if any(map(math.isnan, values)) else seed_stats(values)


@dataclasses.dataclass(frozen=True)
class DetectionTable:
    """Rows of detectors; prints itself, and writes Markdown, JSON and a plot.

    Attributes:
        rows: the detectors, in order, all of them scored on the same data.
        notes: sentences that stand below the table.
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

    rows: Iterable[DetectionRow]
    notes: Iterable[str] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=this_machine)

    def __post_init__(self):
        rows = tuple(self.rows)
        if not rows:
            raise checks.value_error("rows", "at least one row", rows)
        for row in rows:
            kind = "rows of type tfkd.report.DetectionRow"
            checks.instance("rows", row, DetectionRow, kind)
        check_same_classes({row.model: row.scores[0] for row in rows})
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))

    def _cells(self) -> list[tuple[str, ...]]:
        """Head and rows."""
        names = self._first.class_names
        lines = [("model", "mAP", "mAP50", *names, "parameters", "MACs", "file", "p50 ms")]
        for row in self.rows:
            stats = [row.stats("map"), row.stats("map50")]
            stats += [row.stats("ap50", kind) for kind in range(len(names))]
            lines.append(
                (
                    row.model,
                    *(NONE if one is None else one.format(3) for one in stats),
                    NONE if row.params is None else f"{row.params:,}",
                    si(row.macs),
                    size_text(row.size),
                    NONE if row.p50 is None else f"{row.p50:.3f}",
                )
            )
        return lines

    @property
    def _first(self) -> DetectionScores:
        return next(iter(self.rows)).scores[0]

    def _notes(self) -> list[str]:
        images, objects = f"{self._first.images:,}", f"{self._first.truth.sum():,}"
        notes = [f"Images: {images}, objects: {objects}. A class's column is its AP50."]
        if any(len(row.scores) > 1 for row in self.rows):
            notes[0] += " Mean ± standard deviation over seeds."
        return [*notes, *self.notes]

    def text(self) -> str:
        """The table as plain text with aligned columns, the notes below."""
        return "\n".join([aligned(self._cells()), "", *self._notes()])

    __str__ = text

    def show(self) -> None:
        """Prints the table."""
        print(self.text())

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with the notes and the machine below."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in self._cells()]
        text = ["| " + " | ".join(cells) + " |" for cells in lines]
        text.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
        notes = self._notes()
        if any(row.p50 is not None for row in self.rows):
            where = f"{self.machine.get('processor')}, {self.machine.get('cores')} cores"
            notes.append(f"Latency measured on {where}.")
        for note in notes:
            text += ["", note]
        return "\n".join(text) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the scores of every seed, fit for JSON."""
        rows = []
        for row in self.rows:
            fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
            fields["scores"] = [scores.as_dict() for scores in row.scores]
            if isinstance(row.latency, Latency):
                fields["latency"] = dataclasses.asdict(row.latency)
            rows.append({key: value for key, value in fields.items() if value is not None})
        return {"rows": rows, "notes": list(self.notes), "machine": dict(self.machine)}

    def save(self, folder: str | os.PathLike, plots: bool = True) -> pathlib.Path:
        """Writes `detectors.md`, `detectors.json` and, with `plots`, `precision_recall.png`.

        The curves are those of each row's first seed.

        Args:
            folder: made if need be; each file is written whole or not at all.
            plots: False to leave the picture, and matplotlib, out.

        Returns:
            The folder.

        Raises:
            ImportError: if there is something to plot and no matplotlib.
        """
        folder = pathlib.Path(folder)
        artifacts.write_text(folder / "detectors.md", self.markdown())
        artifacts.write_json(folder / "detectors.json", self.as_dict())
        if plots and self._first.truth.any():
            curves = {row.model: row.scores[0] for row in self.rows}
            precision_recall_plot(curves, folder / "precision_recall.png")
        return folder
