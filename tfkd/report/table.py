"""Comparison table of models: score, parameters, MACs, size, latency, Pareto front."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.report.accuracy import SeedStats
from tfkd.report.against import Against
from tfkd.report.class_details import ClassDetails
from tfkd.report.latency import Latency, machine_line, per_second_text
from tfkd.report.measures import ACCURACY, Measure, of_rows
from tfkd.report.model_table import ModelTable
from tfkd.report.plots import training_curves
from tfkd.report.trade_offs import accuracy_latency, accuracy_size, unbeaten
from tfkd.results import Format, Grid, Lines, Plot, plain, si, size_text, three_digits

COSTS: dict[str, Format] = {
    "parameters": ",", "MACs": si, "file": size_text, "p50 ms": three_digits,
    "p90 ms": three_digits, "p99 ms": three_digits, "examples/s": per_second_text,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in a `Table`; None is shown as a dash.

    Attributes:
        model: name of the model.
        accuracy: accuracy in percent, over seeds.
        params: number of weights.
        macs: multiply-accumulates for one example.
        size: bytes of the deployed file.
        latency: time for one example.
        made_by: how the model was made; only written to the JSON file.
        throughput: examples per second.
        throughput_batch: examples per call in the measurement of the throughput.
        subset_accuracy: multi-label subset accuracy in percent, over seeds.
        average_precision: multi-label mean average precision in percent, over seeds.
        mean_absolute_error: regression error, over seeds; lower is better.
        runtime: the timed runtime: "LiteRT", "TensorFlow", ...; "Python" for a plain
            function.
        details: results of a classifier by class and by example, against the original.
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
    details: ClassDetails | None = None

    def values(self, measures: Sequence[Measure] = (ACCURACY,)) -> tuple[Any, ...]:
        """Name, scores by `measures`, and costs, in the order of the table's columns."""
        stats = ((measure, getattr(self, measure.key)) for measure in measures)
        scores = [one and measure.format(one) for measure, one in stats]
        times = (getattr(self.latency, name, None) for name in ("p50", "p90", "p99"))
        costs = (self.params, self.macs, self.size, *times, self.throughput)
        return (self.model, *scores, *costs)


@dataclasses.dataclass(frozen=True)
class Table(ModelTable, title="Models compared"):
    """Comparison of models; a `tfkd.results.Result` with plots and TensorBoard summaries.

    `save` writes `table.md`, `table.json`, `table.html`, the plots
    `accuracy_latency.png` and `accuracy_size.png`, if at least one row has both values
    (named after the score if it is another one, such as `mean_absolute_error_size.png`),
    and one plot for each of `curves`: "accuracy (%)" becomes `accuracy_curves.png`.

    Attributes:
        rows: the models, in order.
        notes: sentences below the table.
        machine: where the latency was measured (`tfkd.report.machine()`).
        curves: quantity → model → one curve per seed, plotted by `save`.
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

    row_type = Row

    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    original: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.original is None:
            object.__setattr__(self, "original", next(iter(self.rows)).model)
        self._row("original", self.original)

    def _row(self, argument: str, name: Any) -> Row:
        found = {row.model: row for row in reversed(tuple(self.rows))}
        if name not in found:
            fix = checks.near(name, found)
            raise checks.value_error(argument, f"one of the models {list(found)}", name, fix)
        return found[name]

    def against(self, original: str | None = None) -> tuple[Against, ...]:
        """Compares each other row with the original: score, latency, size, MACs.

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
        """The score by which models are compared: the first that a row has."""
        return self.measures[0]

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("model", *(measure.head for measure in self.measures), *COSTS)

    def pareto(self) -> tuple[str, ...]:
        """Names of the rows on the Pareto front of score and median latency.

        The score is the accuracy, the multi-label subset accuracy, or the mean absolute
        error of a regression (lower is better). A row dominates another if it is better in
        one and at least equal in the other, where numbers are equal if they differ by no
        more than their noise: that of a score is its standard deviation over seeds, or for
        one model its standard error on the examples; that of a latency half of the
        interquartile range of its runs. Rows without score or latency are ignored.

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
            (row, stats)
            for row, stats in zip(self.rows, scores, strict=True)
            if row.latency is not None and stats is not None
        ]
        columns = [
            (row.latency.p50, self.measure.gain(stats.mean), row.latency.spread, stats.noise)
            for row, stats in pairs
        ]
        front = unbeaten(*np.array(columns, np.float64).reshape(-1, 4).T)
        return tuple(pairs[i][0].model for i in front)

    def _values(self, row: Row) -> tuple[Any, ...]:
        """The cells of a row; a throughput with other batches than most rows' names its own."""
        *values, rate = row.values(self.measures)
        sizes = [one.throughput_batch for one in self.rows if one.throughput is not None]
        own = row.throughput_batch
        if rate is not None and own and own != max(sizes, key=sizes.count):
            rate = f"{per_second_text(rate)} ({own} a call)"
        return (*values, rate)

    def subtitle(self) -> str:
        """The number of models."""
        count = len(tuple(self.rows))
        return f"{count} model{'s' * (count > 1)}: scores and costs."

    def parts(self) -> list[Grid | Lines]:
        """The table, the sentences of `against`, the notes, and the machine."""
        front, rows = set(self.pareto()), tuple(self.rows)
        tags: dict[int, list[tuple[str, str]]] = {i: [] for i in range(len(rows))}
        for i, row in enumerate(rows):
            if len(rows) > 1 and row.model == self.original:
                tags[i].append(("original", ""))
            if row.model in front:
                why = "No other model is better and as fast, or as good and faster, beyond noise"
                tags[i].append(("Pareto front", why))
        said = [str(one) for one in self.against() if one.known]
        return [
            Grid(self.head, [self._values(row) for row in rows], COSTS, tags=tags),
            Lines(said, f"Against {self.original}"),
            Lines(tuple(self.notes)),
            Lines([machine_line(self.machine)], printed=False),
        ]

    def plots(self) -> Iterator[Plot]:
        """Score against latency and size, if known, and the curves."""
        measure = self.measure
        scored = [row for row in self.rows if getattr(row, measure.key) is not None]
        for cost, plot in (("latency", accuracy_latency), ("size", accuracy_size)):
            if any(getattr(row, cost) for row in scored):
                draw = functools.partial(plot, self)
                yield Plot(f"{measure.key}_{cost}", f"{measure.title} against {cost}", draw)
        for quantity, models in self.curves.items():
            word = re.sub(r"\W+", "_", quantity.partition("(")[0].strip())
            draw = functools.partial(training_curves, models, quantity=quantity)
            yield Plot(f"{word}_curves", f"{quantity} over the epochs", draw)

    def to_dict(self) -> dict[str, Any]:
        """All values, including those of every seed, as JSON values."""
        return {
            **super().to_dict(),
            "score": self.measure.name,
            "against": plain(self.against()),
            "pareto": list(self.pareto()),
        }

    def to_tensorboard(self, logdir: str | os.PathLike, step: int = 0, plots: bool = True) -> None:
        """Writes TensorBoard summaries of the table.

        Text: the Markdown, as "table". Images: the plots of `save`, as
        "table/accuracy_latency" and so on. Scalars for each model: "accuracy/NAME" (or
        "mean_absolute_error/NAME" and so on), "p50_ms/NAME", "p99_ms/NAME",
        "examples_per_second/NAME", "size_bytes/NAME", "ece/NAME" and "agreement/NAME", which
        are curves over successive values of `step`.

        Args:
            logdir: folder of the log.
            step: step of the summaries.
            plots: False to omit the plots, for which matplotlib is needed.

        Raises:
            TypeError, ValueError: if `logdir` is not a folder, or `step` is negative.
            ImportError: if there are plots and matplotlib is not installed.

        Example:
            >>> import tempfile
            >>> from tfkd import report
            >>> table = report.Table([report.Row("tiny", report.seed_stats(91.5))])
            >>> table.to_tensorboard(tempfile.mkdtemp(), step=3)
        """
        from tfkd.report import board

        board.write(self, logdir, step, plots)
