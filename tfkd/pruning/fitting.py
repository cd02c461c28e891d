"""Search for the number of channels to prune per group that meets a MAC or parameter target.

Each group has **levels**, the numbers of units that may be removed: if kept counts are
multiples of 8, a group of 32 has the levels 0, 8, 16 and 24. Going from one level to the
next is a **step**. All steps of a model are sorted into one sequence; the search takes the
shortest prefix that meets the target, and then undoes every step that is not needed.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfkd.pruning.graph import KEPT, Graph


def levels(size: int, round_to: int = 1, min_channels: int = 1) -> np.ndarray:
    """The numbers of units that may be removed from a group, ascending from 0.

    Args:
        size: number of units of the group.
        round_to: kept counts are multiples of it, or the whole group.
        min_channels: smallest number of units that may be kept.

    Example:
        >>> levels(20, round_to=8).tolist()
        [0, 4, 12]
        >>> levels(8, round_to=8).tolist()
        [0]
    """
    least = -(-max(min_channels, 1) // round_to) * round_to
    return np.concatenate([[0], size - np.arange(least, size, round_to)[::-1]]).astype(int)


def nearest(allowed: np.ndarray, count: int) -> int:
    """The level nearest to `count`; of two equally near, the one that keeps more."""
    return int(allowed[np.argmin(np.abs(allowed - count))])


@dataclasses.dataclass(frozen=True)
class Steps:
    """All steps of a model in the order in which they are taken.

    Attributes:
        groups: number of groups of the model, G.
        group: int array (S,), the group of each step.
        before: int array (S,), units of the group removed before the step.
        after: int array (S,), units of the group removed after the step.
    """

    groups: int
    group: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def counts(self, taken: int) -> np.ndarray:
        """Units removed from each group (G,) after the first `taken` steps."""
        found = np.zeros(self.groups, int)
        np.maximum.at(found, self.group[:taken], self.after[:taken])
        return found


def steps(
    allowed: Sequence[np.ndarray], sizes: Sequence[int], ranked: Sequence[np.ndarray] | None
) -> Steps:
    """Sorts the steps of all groups into one sequence.

    Args:
        allowed: levels of each group.
        sizes: number of units of each group.
        ranked: scores of each group's units, ascending; the lowest scores of the whole
            model are removed first. None: all groups shrink by the same fraction.
    """
    group, before, after, when = [], [], [], []
    for index, level in enumerate(allowed):
        low, high = level[:-1], level[1:]
        group.append(np.full(len(low), index))
        before.append(low)
        after.append(high)
        # Counts are rounded to the nearest level, so a step is taken at its midpoint.
        if ranked is None:
            when.append((low + high) / (2 * sizes[index]))
        else:
            when.append(ranked[index][(low + high + 1) // 2 - 1])
    columns = [np.concatenate([np.zeros(0), *c]) for c in (group, before, after, when)]
    order = np.lexsort((columns[1], columns[0], columns[3]))
    return Steps(len(allowed), *(column[order].astype(int) for column in columns[:3]))


def fit(path: Steps, reached: Callable[[np.ndarray], bool]) -> np.ndarray | None:
    """Finds a minimal number of units to remove: undoing any step would miss the target.

    Args:
        path: the steps in order.
        reached: whether counts (G,) meet the target; must be monotonic in the counts.

    Returns:
        Counts (G,), or None if all steps together do not meet the target.
    """
    if not reached(path.counts(len(path.group))):
        return None
    span = range(len(path.group) + 1)
    taken = bisect.bisect_left(span, True, key=lambda n: reached(path.counts(n)))
    counts = path.counts(taken)
    # A group's share of the cost grows with the units that other groups keep, so undoing
    # their steps can't make a step unnecessary that was necessary before.
    needed: set[int] = set()
    for i in reversed(range(taken)):
        index = int(path.group[i])
        if index in needed:
            continue
        trial = counts.copy()
        trial[index] = path.before[i]
        if reached(trial):
            counts = trial
        else:
            needed.add(index)
    return counts


class Tally:
    """MACs and parameters of a model as a function of the units removed per group.

    The results equal `Graph.macs` and `Graph.params`, but are fast enough for a search: all
    units of a group own equally many indices of each axis, so counts are sufficient.

    Args:
        graph: the model's graph.
    """

    def __init__(self, graph: Graph):
        owned = [(axis.layer, axis.weight) for axis in graph.axes]
        owned += [(cost.layer, cost.weight) for cost in graph.costs]
        keys = {key: row for row, key in enumerate(dict.fromkeys(owned))}
        shapes = [tuple(graph.variable(*key).shape) for key in keys]
        self._shapes = np.ones((len(keys), max(map(len, shapes), default=0)), np.int64)
        for row, shape in enumerate(shapes):
            self._shapes[row, : len(shape)] = shape
        self._positions = np.zeros(len(keys), np.int64)
        for cost in graph.costs:
            self._positions[keys[cost.layer, cost.weight]] += cost.positions
        self._fixed_macs = graph.fixed_macs
        self._fixed_params = graph.params() - int(self._shapes.prod(axis=1).sum())
        self._group, self._row, self._axis, self._indices = _owned(graph, keys)

    def macs(self, counts: np.ndarray) -> int:
        """Multiply-accumulates per example, with counts (G,) removed."""
        products = self._left(counts).prod(axis=1)
        return self._fixed_macs + int((self._positions * products).sum())

    def params(self, counts: np.ndarray) -> int:
        """Parameters of the whole model, with counts (G,) removed."""
        return self._fixed_params + int(self._left(counts).prod(axis=1).sum())

    def _left(self, counts: np.ndarray) -> np.ndarray:
        shapes = self._shapes.copy()
        gone = self._indices * np.asarray(counts)[self._group]
        np.subtract.at(shapes, (self._row, self._axis), gone)
        return shapes


def _owned(graph: Graph, rows: dict[tuple[str, str], int]) -> np.ndarray:
    """Columns (group, row of the weight, axis, indices of the axis owned by one unit)."""
    owner = np.full(graph.units, -1)
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
    found = []
    for axis in graph.axes:
        groups, counts = np.unique(owner[axis.units[axis.units != KEPT]], return_counts=True)
        for index, count in zip(groups.tolist(), counts.tolist(), strict=True):
            each = count // graph.groups[index].size
            found.append((index, rows[axis.layer, axis.weight], axis.axis, each))
    return np.array(found, np.int64).reshape(-1, 4).T
