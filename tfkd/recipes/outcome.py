"""`Outcome`: what a run made, and whether it is accepted."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from tfkd.results import Grid, Result


class InfeasibleError(Exception):
    """A budget that can't be met.

    Args:
        gate: the gate of the budget: "latency_ms" or "size"; None for multiply-accumulates.
        text: what was asked, and what is the least that is possible.
        least: that value, in the unit of the gate.
    """

    def __init__(self, gate: str | None, text: str, least: float | None = None):
        super().__init__(text)
        self.gate, self.least = gate, least


@dataclasses.dataclass(frozen=True)
class Outcome(Result):
    """The end of a run.

    Attributes:
        status: "ACCEPTED", "REGRESSED" or "INFEASIBLE"; "DONE" if nothing judged it.
        sentence: the verdict in one line.
        folder: the folder of the run.
        files: what the files are → their paths.
        table: the table of models, or None.
        advice: what to try if too much is lost, or "".
    """

    status: str
    sentence: str
    folder: pathlib.Path
    files: Mapping[str, str]
    table: Result | None = dataclasses.field(default=None, compare=False)
    advice: str = ""

    @property
    def accepted(self) -> bool:
        """Whether no gate failed."""
        return self.status in ("ACCEPTED", "DONE")

    def parts(self) -> Iterator[Any]:
        """The table, the files, the verdict, and advice if there is any."""
        if self.table is not None:
            yield from self.table.parts()
        if self.files:
            yield Grid(("file", "path"), [*self.files.items()], left=2)
        yield self.sentence
        if self.advice:
            yield self.advice

    def to_dict(self) -> dict[str, Any]:
        """Status, verdict, files and the rows of the table."""
        found = {"status": self.status, "sentence": self.sentence, "folder": str(self.folder)}
        found |= {"advice": self.advice} if self.advice else {}
        table = None if self.table is None else self.table.to_dict()
        return {**found, "files": dict(self.files), "table": table}
