"""The tables in which a plan says what it removes, what stays, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfkd.pruning.graph import Frozen, Graph
from tfkd.results import Grid, si

WIDTH = 44  # of a list of layers in a table


def shortened(names: Sequence[str], width: int = WIDTH) -> str:
    """Joins names with commas; says how many more there are where they do not fit.

    Example:
        >>> shortened(["conv1", "conv2", "conv3"], width=14)
        'conv1, … +2'
    """
    text = ", ".join(names)
    for count in range(len(names) - 1, 0, -1):
        if len(text) <= width:
            break
        text = ", ".join(names[:count]) + f", … +{len(names) - count}"
    return text


def group_table(graph: Graph, remove: Mapping[str, int], notes: Mapping[str, str]) -> Grid | str:
    """One row for each group: its layers, units, and how many of them stay and go."""
    if not graph.groups:
        return "nothing can be removed"
    rows = []
    for group in graph.groups:
        gone = remove[group.name]
        counts = (group.size, group.size - gone, gone)
        rows.append((group.name, shortened(group.layers), *counts, notes.get(group.name, "")))
    head = ("group", "layers", "units", "kept", "removed", "note")
    return Grid(head, rows, left=(0, 1, 5))


def by_reason(frozen: Sequence[Frozen]) -> list[tuple[str, int, list[str]]]:
    """(reason, channels, layers) for each reason, most channels first."""
    found: dict[str, tuple[int, list[str]]] = {}
    for item in frozen:
        channels, layers = found.get(item.reason, (0, []))
        more = [name for name in item.layers or (item.name,) if name not in layers]
        found[item.reason] = (channels + item.channels, layers + more)
    rows = [(reason, channels, layers) for reason, (channels, layers) in found.items()]
    return sorted(rows, key=lambda row: -row[1])


def frozen_table(frozen: Sequence[Frozen]) -> Grid:
    """One row for each reason for which channels have to stay."""
    rows = [(why, count, shortened(layers)) for why, count, layers in by_reason(frozen)]
    return Grid(("channels that must stay, because", "count", "layers"), rows, left=(0, 2))


def totals_table(plan: Any) -> Grid:
    """Multiply-accumulates and parameters before and after."""
    rows = [
        ("MACs", plan.macs_before, plan.macs_after, plan.macs_reduction),
        ("parameters", plan.params_before, plan.params_after, plan.params_reduction),
    ]
    return Grid(
        ("", "before", "after", "fewer"), rows, {"before": si, "after": si, "fewer": percent}
    )


def percent(value: float) -> str:
    """0.5 → "50.0 %"."""
    return f"{100 * value:.1f} %"
