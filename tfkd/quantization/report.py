"""What was decided for each layer, and the table of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from tfkd.results import Grid, Result

INT8, FUSED, SAME_GRID = "int8", "fused", "same grid"
OUTPUT_ONLY, FLOAT = "output only", "float"
ACTIONS = (INT8, FUSED, SAME_GRID, OUTPUT_ONLY, FLOAT)


@dataclasses.dataclass(frozen=True)
class Decision:
    """How one call of a layer is quantized.

    Attributes:
        layer: its name in the quantized model.
        kind: its class.
        action: "int8": it computes in integers; "fused": as a part of the layer
            before it; "same grid": it only moves numbers; "output only": it
            computes in float, and its output is put on a grid; "float".
        output: its output has a range of its own.
        tensorrt: TensorRT's file quantizes this output too.
        why: the reason.
        call: which call of the layer, from 0.
        note: what calibration found worth saying.
    """

    layer: str
    kind: str
    action: str
    output: bool = False
    tensorrt: bool = False
    why: str = ""
    call: int = 0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class QuantizationReport(Result):
    """The decisions, in the order of the data; `print` it for a table.

    Attributes:
        rows: tuple of `Decision`.
    """

    rows: tuple[Decision, ...]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, layer: str, call: int = 0) -> Decision:
        """The decision for a layer by its name.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if (row.layer, row.call) == (layer, call):
                return row
        raise KeyError(f"no decision for call {call} of layer {layer!r}")

    @property
    def counts(self) -> dict[str, int]:
        """{action: how many}, for the actions that occur."""
        found = Counter(row.action for row in self.rows)
        return {action: found[action] for action in ACTIONS if found[action]}

    def parts(self) -> list[Grid | str]:
        """A row for each decision, and how many there are of each kind."""
        head = ("layer", "kind", "decision", "range", "in TensorRT", "why")
        lines = [
            (
                row.layer + (f" (call {row.call + 1})" if row.call else ""),
                row.kind,
                row.action,
                "yes" if row.output else "",
                "yes" if row.tensorrt else "",
                "; ".join(text for text in (row.why, row.note) if text),
            )
            for row in self.rows
        ]
        counts = ", ".join(f"{count} {action}" for action, count in self.counts.items())
        ranges = sum(row.output for row in self.rows)
        return [Grid(head, lines, left=len(head)), f"{counts}; {ranges} ranges"]
