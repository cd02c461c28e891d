"""The one table that every run ends with: what a model is worth and what it costs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfkd import artifacts, checks
from tfkd.report.accuracy import SeedStats
from tfkd.report.latency import Latency
from tfkd.report.latency import machine as this_machine
from tfkd.text import aligned, si, size_text

HEAD = ("model", "accuracy %", "parameters", "MACs", "file", "p50 ms", "p99 ms")
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
    """

    model: str
    accuracy: SeedStats | None = None
    params: int | None = None
    macs: int | None = None
    size: int | None = None
    latency: Latency | None = None
    made_by: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `HEAD`."""
        times = (self.latency.p50, self.latency.p99) if self.latency else (None, None)
        return (
            self.model,
            NONE if self.accuracy is None else self.accuracy.format(),
            NONE if self.params is None else f"{self.params:,}",
            si(self.macs),
            size_text(self.size),
            *(NONE if t is None else f"{t:.3f}" for t in times),
        )

    def as_dict(self) -> dict[str, Any]:
        """The row fit for JSON, with the accuracy of every seed."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if value not in (None, "")}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of models; prints itself, and writes Markdown, JSON and a plot.

    Attributes:
        rows: the models, in order.
        notes: sentences that stand below the table.
        machine: where the latency was measured (`tfkd.report.machine()`).
        curves: quantity → model → one curve a seed, to be plotted by `save`.

    Example:
        >>> from tfkd import report
        >>> row = report.Row("tiny", report.seed_stats([91.0, 92.0]), 1454, 53_000)
        >>> table = report.Table([row])
        >>> print(table.text())
        model  accuracy %  parameters    MACs  file  p50 ms  p99 ms
        -----  ----------  ----------  ------  ----  ------  ------
        tiny   91.5 ± 0.7       1,454  53.0 k     –       –       –
    """

    rows: Iterable[Row]
    notes: Iterable[str] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=this_machine)
    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        rows = tuple(self.rows)
        if not rows:
            raise checks.value_error("rows", "at least one row", rows)
        for row in rows:
            checks.instance("rows", row, Row, "rows of type tfkd.report.Row")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))

    def text(self) -> str:
        """The table as plain text with aligned columns, the notes below."""
        body = aligned([HEAD, *(row.cells() for row in self.rows)])
        return "\n".join([body, *([""] if self.notes else []), *self.notes])

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with the notes and the machine below."""
        lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
        for row in self.rows:
            cells = [cell.replace("|", "\\|") for cell in row.cells()]
            lines.append("| " + " | ".join(cells) + " |")
        for note in (*self.notes, self._machine_line()):
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def _machine_line(self) -> str:
        versions = self.machine.get("versions", {})
        parts = [f"{name} {version}" for name, version in versions.items()]
        where = f"{self.machine.get('processor')}, {self.machine.get('cores')} cores"
        return f"Measured on {where}; {', '.join(parts)}."

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the value of every seed, fit for JSON."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "notes": list(self.notes),
            "machine": dict(self.machine),
            "curves": {quantity: dict(models) for quantity, models in self.curves.items()},
        }

    def show(self) -> None:
        """Prints the table: with rich where it is installed, else as plain text."""
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table as RichTable
        except ImportError:
            print(self.text())
            return
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column, name in enumerate(HEAD):
            # Numbers stay whole on a narrow terminal; only names may be folded.
            table.add_column(name, justify="right" if column else "left", no_wrap=bool(column))
        for row in self.rows:
            table.add_row(*row.cells())
        console = Console(highlight=False, markup=False)
        console.print(table)
        for note in self.notes:
            console.print(note)

    def save(self, folder: str | os.PathLike, plots: bool = True) -> pathlib.Path:
        """Writes `table.md`, `table.json` and, with `plots`, the pictures.

        The pictures are `accuracy_latency.png`, if at least one row has both,
        and one for each of `curves`: "accuracy (%)" goes to `accuracy_curves.png`.

        Args:
            folder: made if need be; each file is written whole or not at all.
            plots: False to leave the pictures, and matplotlib, out.

        Returns:
            The folder.

        Raises:
            ImportError: if there is something to plot and no matplotlib.
        """
        folder = pathlib.Path(folder)
        artifacts.write_text(folder / "table.md", self.markdown())
        artifacts.write_json(folder / "table.json", self.as_dict())
        if plots:
            from tfkd.report import plots as pictures

            if any(row.accuracy and row.latency for row in self.rows):
                pictures.accuracy_latency(self, folder / "accuracy_latency.png")
            for quantity, models in self.curves.items():
                word = re.sub(r"\W+", "_", quantity.partition("(")[0].strip())
                pictures.training_curves(models, folder / f"{word}_curves.png", quantity)
        return folder
