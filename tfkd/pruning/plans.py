"""`Plan`: the number of channels to prune from each group, with MACs and parameters saved.

A plan holds counts only. The units are chosen later by their current weights: once by
`planning.select`, or repeatedly during training by the `FilterDecay` callback.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.pruning import criteria, explaining, fitting
from tfkd.pruning.change import OutputChange
from tfkd.pruning.graph import Graph, Group
from tfkd.results import Grid, Result, plain

MEASURES = {"macs_reduction": "MACs", "params_reduction": "parameters", "filter_rate": "filters"}


@dataclasses.dataclass(frozen=True)
class Plan(Result):
    """How many units of each group are to be removed; created by `plan`.

    Attributes:
        graph: graph of the model that the plan was made for.
        remove: group name → number of units to remove, for every group of the graph.
        target: the requested target, such as ("macs_reduction", 0.5).
        criterion: importance criterion used by `select`, see `criteria.scores`.
        scope: "uniform", "global" or "isomorphic"; of no effect with a target of time.
        residual: "inner" or "coupled".
        round_to: kept counts are multiples of it in every group that is pruned.
        min_channels: minimum number of units kept in each group.
        seed: seed of the criterion "random".
        ignored: names of the groups excluded by `ignore`.
        change: change of the outputs before training, on the `data` of `plan`; else None.
        ms_before: with a target of time, milliseconds that the model was measured to take.
        ms_after: and those of the pruned model.
    """

    graph: Graph = dataclasses.field(repr=False, compare=False)
    remove: Mapping[str, int]
    target: tuple[str, float]
    criterion: criteria.Criterion = "l2"
    scope: str = "uniform"
    residual: str = "inner"
    round_to: int = 1
    min_channels: int = 1
    seed: int = 0
    ignored: tuple[str, ...] = ()
    change: OutputChange | None = None
    ms_before: float | None = None
    ms_after: float | None = None

    def __post_init__(self) -> None:
        sizes = {group.name: group.size for group in self.graph.groups}
        if set(self.remove) != set(sizes):
            expected = f"a count for each of the groups {list(sizes)}"
            raise checks.value_error("remove", expected, self.remove)
        for name, count in self.remove.items():
            if not 0 <= count < sizes[name]:
                expected = f"0 to {sizes[name] - 1} for group {name!r}, which keeps one channel"
                raise checks.value_error("remove", expected, count)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model, which selections and other models must match."""
        return self.graph.fingerprint

    @functools.cached_property
    def macs_before(self) -> int:
        """Multiply-accumulates of the model per example."""
        return self.graph.macs()

    @functools.cached_property
    def macs_after(self) -> int:
        """Multiply-accumulates of the pruned model per example."""
        return self.graph.macs(self._any_choice())

    @functools.cached_property
    def params_before(self) -> int:
        """Parameters of the model."""
        return self.graph.params()

    @functools.cached_property
    def params_after(self) -> int:
        """Parameters of the pruned model."""
        return self.graph.params(self._any_choice())

    @property
    def macs_reduction(self) -> float:
        """Fraction of the multiply-accumulates removed, 0 to 1."""
        return share(self.macs_before, self.macs_after)

    @property
    def params_reduction(self) -> float:
        """Fraction of the parameters removed, 0 to 1."""
        return share(self.params_before, self.params_after)

    @property
    def filter_rate(self) -> float:
        """Fraction of the units removed, 0 to 1, over the groups that may be pruned."""
        groups = [group for group in self.graph.groups if not self.left_alone(group)]
        return share(
            sum(group.size for group in groups),
            sum(group.size - self.remove[group.name] for group in groups),
        )

    @property
    def latency_reduction(self) -> float | None:
        """Fraction of the measured time saved; None if none was measured."""
        if self.ms_before is None or self.ms_after is None:
            return None
        return 1 - self.ms_after / self.ms_before

    def parts(self) -> Iterator[Grid | str]:
        """Tables of removed and kept channels, with reasons, and the totals."""
        notes = {group.name: self._note(group) for group in self.graph.groups}
        yield explaining.group_table(self.graph, self.remove, notes)
        if self.graph.frozen:
            yield explaining.frozen_table(self.graph.frozen)
        if self.graph.unknown:
            text = f"MACs not known, and left out, of: {explaining.shortened(self.graph.unknown)}"
            sized = "; plan(..., input_shape=) counts them for inputs of one size"
            yield text + (sized if self.graph.sizes_missing else "")
        yield explaining.totals_table(
            (self.macs_before, self.macs_after, self.macs_reduction),
            (self.params_before, self.params_after, self.params_reduction),
        )
        yield self._expected()
        yield self._outcome()

    def to_dict(self) -> dict[str, Any]:
        """The counts removed, the frozen channels with their reasons, and the totals."""
        ends = ("before", "after", "reduction")
        names = [f"{what}_{end}" for what in ("macs", "params") for end in ends]
        found = {name: getattr(self, name) for name in (*names, "filter_rate")}
        return super().to_dict() | found | {"frozen": plain(self.graph.frozen)}

    def _any_choice(self) -> np.ndarray:
        """A selection of the planned size; all units of a group save the same cost."""
        removed = np.zeros(self.graph.units, bool)
        for group in self.graph.groups:
            removed[group.units[: self.remove[group.name]]] = True
        return removed

    def left_alone(self, group: Group) -> str:
        """Why a group is not pruned, or "" if it may be."""
        if group.name in self.ignored:
            return "ignored"
        if group.residual and self.residual == "inner":
            return 'residual="inner"'
        return ""

    def _note(self, group: Group) -> str:
        note = self.left_alone(group)
        if note or self.remove[group.name]:
            return note
        if len(fitting.levels(group.size, self.round_to, self.min_channels)) == 1:
            return f"too small for round_to={self.round_to}, min_channels={self.min_channels}"
        return ""

    def _expected(self) -> str:
        if self.change is None:
            return "accuracy falls until the pruned model is trained; plan(..., data=x) measures it"
        return self.change.text()

    def _outcome(self) -> str:
        name, goal = self.target
        if self.ms_before is not None and self.ms_after is not None:
            asked = f"{goal:.3g} ms" if name == "latency_ms" else f"{explaining.percent(goal)} less"
            saved = explaining.percent(1 - self.ms_after / self.ms_before)
            return (
                f"target {asked}, measured {self.ms_after:.3g} ms instead of "
                f"{self.ms_before:.3g} ms ({saved} less)"
            )
        reached = getattr(self, name)
        goal_text, reached_text = explaining.percent(goal), explaining.percent(reached)
        text = f"target {goal_text} fewer {MEASURES[name]}, reached {reached_text}"
        if name == "macs_reduction" and self.graph.unknown:
            text += " of those that are known"
        points = f"{100 * (reached - goal):+.1f}"
        if points in ("+0.0", "-0.0"):
            return text
        to = f"multiples of {self.round_to}" if self.round_to > 1 else "whole channels"
        return f"{text} ({points} points by rounding to {to})"


def share(before: int, after: int) -> float:
    """Fraction of `before` that is removed; 0 if `before` is 0."""
    return (before - after) / before if before else 0.0
