"""Tables of a pruning plan: channels removed and kept per group, frozen channels, savings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfkd.pruning.graph import Frozen, Graph
from tfkd.results import Grid, si

WIDTH = 44  # characters for a list of layers in a table


def shortened(names: Sequence[str], width: int = WIDTH) -> str:
    """Joins names with commas and truncates the list to `width`, with a count of the rest.

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
    """One row per group: its layers, and how many of its units are kept and removed."""
    if not graph.groups:
        return "no channel can be removed"
    rows = []
    for group in graph.groups:
        gone = remove[group.name]
        counts = (group.size, group.size - gone, gone)
        rows.append((group.name, shortened(group.layers), *counts, notes.get(group.name, "")))
    return Grid(("group", "layers", "units", "kept", "removed", "note"), rows, left=(0, 1, 5))


def by_reason(frozen: Sequence[Frozen]) -> list[tuple[str, int, list[str]]]:
    """(reason, number of channels, layers) for each reason, most channels first."""
    found: dict[str, tuple[int, list[str]]] = {}
    for item in frozen:
        channels, layers = found.get(item.reason, (0, []))
        more = [name for name in item.layers or (item.name,) if name not in layers]
        found[item.reason] = (channels + item.channels, layers + more)
    rows = [(reason, channels, layers) for reason, (channels, layers) in found.items()]
    return sorted(rows, key=lambda row: -row[1])


def frozen_table(frozen: Sequence[Frozen]) -> Grid:
    """One row per reason why channels are frozen."""
    rows = [(why, count, shortened(layers)) for why, count, layers in by_reason(frozen)]
    return Grid(("channels that can't be pruned, because", "count", "layers"), rows, left=(0, 2))


def totals_table(macs: tuple[int, int, float], params: tuple[int, int, float]) -> Grid:
    """Table of MACs and parameters; each given as (before, after, fraction removed)."""
    rows = [("MACs", *macs), ("parameters", *params)]
    return Grid(
        ("", "before", "after", "fewer"), rows, {"before": si, "after": si, "fewer": percent}
    )


def percent(value: float) -> str:
    """0.5 → "50.0 %"."""
    return f"{100 * value:.1f} %"
