"""The one table that every run ends with: what a model is worth and what it costs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.report import printing
from tfkd.report.accuracy import SeedStats
from tfkd.report.against import Against
from tfkd.report.latency import Latency, per_second_text
from tfkd.report.latency import machine as this_machine
from tfkd.report.measures import ACCURACY, Measure, of_rows
from tfkd.report.trade_offs import unbeaten
from tfkd.text_tables import si, size_text

COSTS = ("parameters", "MACs", "file", "p50 ms", "p90 ms", "p99 ms", "examples/s")
NONE = "–"


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in a `Table`; what is None shows as a dash.

    Attributes:
        model: name.
        accuracy: percent, over seeds.
        params: number of weights.
        macs: multiply-accumulates for one example.
        size: bytes of the file that is deployed.
        latency: time of one example.
        made_by: how the model came about, for the JSON alone.
        throughput: examples per second.
        throughput_batch: examples in a call when the throughput was measured.
        subset_accuracy: of several labels an example: percent, over seeds.
        average_precision: mean over such labels: percent, over seeds.
        mean_absolute_error: of a regression, over seeds; lower is better.
        runtime: what was timed: "LiteRT", "TensorFlow", ...; "Python" for a function
            that is timed as it is.
    """

    model: str
    accuracy: SeedStats | None = None
    params: int | None = None
    macs: int | None = None
    size: int | None = None
    latency: Latency | None = None
    made_by: str = ""
    throughput: float | None = None
    throughput_batch: int | None = None
    subset_accuracy: SeedStats | None = None
    average_precision: SeedStats | None = None
    mean_absolute_error: SeedStats | None = None
    runtime: str = ""

    def cells(self, measures: Sequence[Measure] = (ACCURACY,)) -> tuple[str, ...]:
        """The row as text: its name, its scores by `measures`, its costs."""
        times = (self.latency.p50, self.latency.p90, self.latency.p99) if self.latency else ()
        return (
            self.model,
            *(self._score(measure) for measure in measures),
            NONE if self.params is None else f"{self.params:,}",
            si(self.macs),
            size_text(self.size),
            *([f"{time:.3f}" for time in times] or [NONE] * 3),
            NONE if self.throughput is None else per_second_text(self.throughput),
        )

    def _score(self, measure: Measure) -> str:
        stats = getattr(self, measure.key)
        return NONE if stats is None else measure.format(stats)

    def as_dict(self) -> dict[str, Any]:
        """The row fit for JSON, with the scores of every seed."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if value not in (None, "")}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of models; prints itself, and writes Markdown, JSON, HTML, plots and logs.

    Attributes:
        rows: the models, in order.
        notes: sentences that stand below the table.
        machine: where the latency was measured (`tfkd.report.machine()`).
        curves: quantity → model → one curve a seed, to be plotted by `save`.
        original: name of the row that the others are compared with; None: the first.

    Example:
        >>> from tfkd import report
        >>> base = report.Row("base", report.seed_stats(93.1), 170_794, 41_300_000)
        >>> tiny = report.Row("tiny", report.seed_stats([91.0, 92.0]), 1454, 53_000)
        >>> print(report.Table([base, tiny]).text())
        model  accuracy %  parameters    MACs  file  p50 ms  p90 ms  p99 ms  examples/s
        -----  ----------  ----------  ------  ----  ------  ------  ------  ----------
        base         93.1     170,794  41.3 M     –       –       –       –           –
        tiny   91.5 ± 0.7       1,454  53.0 k     –       –       –       –           –
        <BLANKLINE>
        tiny: −1.6 points, 0.13 % of its MACs, against base
    """

    rows: Iterable[Row]
    notes: Iterable[str] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=this_machine)
    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    original: str | None = None

    def __post_init__(self):
        rows = tuple(self.rows)
        if not rows:
            raise checks.value_error("rows", "at least one row", rows)
        for row in rows:
            checks.instance("rows", row, Row, "rows of type tfkd.report.Row")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.original is None:
            object.__setattr__(self, "original", rows[0].model)
        self._row("original", self.original)

    def _row(self, argument: str, name: Any) -> Row:
        found = {row.model: row for row in reversed(tuple(self.rows))}
        if name not in found:
            mend = checks.near(name, found)
            raise checks.value_error(argument, f"one of the models {list(found)}", name, mend)
        return found[name]

    def against(self, original: str | None = None) -> tuple[Against, ...]:
        """How far each other row is from the original: score, time, size, MACs.

        Args:
            original: name of a row; None: the table's `original`.

        Returns:
            One `Against` for each other row, in order; `str()` is a sentence.

        Raises:
            ValueError: if there is no such row.

        Example:
            >>> from tfkd import report
            >>> rows = [report.Row("a", size=8_000), report.Row("b", size=2_000)]
            >>> [str(one) for one in report.Table(rows).against()]
            ['b: 4.0 times smaller than a']
        """
        base = self._row("original", self.original if original is None else original)
        others = [row for row in self.rows if row.model != base.model]
        return tuple(Against.of(row, base, self.measure) for row in others)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The scores that rows have, in the order of their columns."""
        return of_rows(self.rows)

    @property
    def measure(self) -> Measure:
        """The score that models are compared by: the first that a row has."""
        return self.measures[0]

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("model", *(measure.head for measure in self.measures), *COSTS)

    def pareto(self) -> tuple[str, ...]:
        """Names of the rows that no other row beats in score and median latency.

        The score is the accuracy, or what stands for it: the subset accuracy of several
        labels an example, the mean absolute error of a regression (lower is better). A
        row beats another if it is strictly better in one and at least equal in the
        other. Rows without score or latency do not take part.

        Returns:
            The names, in the order of the rows.

        Example:
            >>> from tfkd import report
            >>> make = lambda name, accuracy, time: report.Row(
            ...     name, report.seed_stats(accuracy), latency=report.Latency.of([time])
            ... )
            >>> rows = [make("a", 93.0, 2.0), make("b", 91.0, 1.0), make("c", 90.0, 1.5)]
            >>> report.Table(rows).pareto()
            ('a', 'b')
        """
        scores = [getattr(row, self.measure.key) for row in self.rows]
        pairs = [
            (row.model, row.latency.p50, self.measure.gain(stats.mean))
            for row, stats in zip(self.rows, scores, strict=True)
            if row.latency is not None and stats is not None
        ]
        times, gains = (np.array([pair[i] for pair in pairs], np.float64) for i in (1, 2))
        return tuple(pairs[i][0] for i in unbeaten(times, gains))

    def _sentences(self) -> list[str]:
        return [str(one) for one in self.against() if one.known]

    def _cells(self) -> list[tuple[str, ...]]:
        return [row.cells(self.measures) for row in self.rows]

    def _paragraphs(self) -> list[str]:
        """What stands below the table on a terminal."""
        parts = ["\n".join(self._sentences()), "\n".join(self.notes)]
        return [part for part in parts if part]

    def text(self) -> str:
        """The table as plain text in 100 columns, the sentences of `against` and notes below."""
        return "\n\n".join([printing.text(self.head, self._cells()), *self._paragraphs()])

    __str__ = text

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with `against`, notes and machine below."""
        lines = printing.markdown(self.head, self._cells())
        sentences = [f"- {sentence}" for sentence in self._sentences()]
        lines += ["", *sentences] if sentences else []
        for note in (*self.notes, self.machine_line()):
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def machine_line(self) -> str:
        """One sentence: processor, cores and versions."""
        return printing.machine_line(self.machine)

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the value of every seed, fit for JSON."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "score": self.measure.name,
            "original": self.original,
            "against": [dataclasses.asdict(one) for one in self.against()],
            "pareto": list(self.pareto()),
            "notes": list(self.notes),
            "machine": dict(self.machine),
            "curves": {quantity: dict(models) for quantity, models in self.curves.items()},
        }

    def show(self) -> None:
        """Prints the table: with rich where it is installed, else as plain text."""
        printing.show(self.head, self._cells(), self._paragraphs())

    def save(self, folder: str | os.PathLike, plots: bool = True) -> pathlib.Path:
        """Writes `table.md`, `table.json`, `table.html` and, with `plots`, the pictures.

        The pictures are `accuracy_latency.png` and `accuracy_size.png`, if at least one
        row has both numbers (another score gives them its own name, for example
        `mean_absolute_error_size.png`), and one for each of `curves`: "accuracy (%)"
        goes to `accuracy_curves.png`. `table.html` holds them too: it is one file that can be
        sent, and loads nothing.

        Args:
            folder: made if need be; each file is written whole or not at all.
            plots: False to leave the pictures, and matplotlib, out.

        Returns:
            The folder.

        Raises:
            ImportError: if there is something to plot and no matplotlib.
        """
        from tfkd.report import html, pictures

        folder = pathlib.Path(folder)
        artifacts.write_text(folder / "table.md", self.markdown())
        artifacts.write_json(folder / "table.json", self.as_dict())
        figures = pictures.draw(self, folder) if plots else {}
        artifacts.write_text(folder / "table.html", html.page(self, figures))
        return folder

    def to_tensorboard(self, logdir: str | os.PathLike, step: int = 0, plots: bool = True) -> None:
        """Writes the table into a log for TensorBoard.

        As text: the Markdown, "table". As images: the pictures of `save`,
        "table/accuracy_latency" and so on. As scalars, one for each model:
        "accuracy/NAME" (or "mean_absolute_error/NAME" and so on), "p50_ms/NAME",
        "p99_ms/NAME", "examples_per_second/NAME" and "size_bytes/NAME". With one
        `step` after the other they are curves.

        Args:
            logdir: folder of the log.
            step: where on the axis.
            plots: False to leave the pictures, and matplotlib, out.

        Raises:
            TypeError, ValueError: if `logdir` is no folder, or `step` negative.
            ImportError: if there is something to plot and no matplotlib.

        Example:
            >>> import tempfile
            >>> from tfkd import report
            >>> table = report.Table([report.Row("tiny", report.seed_stats(91.5))])
            >>> table.to_tensorboard(tempfile.mkdtemp(), step=3)
        """
        from tfkd.report import board

        board.write(self, logdir, step, plots)
