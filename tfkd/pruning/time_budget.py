"""Search for the widths that meet a budget of measured time, as NetAdapt does.

Groups are narrowed one after the other, each time by the step that saves the most time for
the importance that it loses, by a table of layer times (Yang et al. 2018, NetAdapt,
https://arxiv.org/abs/1804.03230, without the training between the steps). The sum of the
layer times is related to the time of the whole model by measuring the models that were
found, until one of them meets the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfkd import checks
from tfkd.pruning import criteria, refusals
from tfkd.pruning.narrowing import levels, losses_of, narrowed
from tfkd.pruning.plans import Plan
from tfkd.pruning.timing import Clock
from tfkd.types import Measure

TARGETS = ("latency_ms", "latency_reduction")

# Shares of the budget. Measured times scatter by some percent: models between _NEAR and _SURE
# are looked for, and those above _SURE are taken only if there is none from _LEAST on.
_LEAST, _NEAR, _AIM, _SURE = 0.9, 0.93, 0.965, 0.98
# Below this share of the time as it is, the narrowest model is measured first; it is given up
# if it takes as many times the budget.
_HOPELESS = 0.5
_ROUNDS = 12  # models that are built and measured at most


def check_measure(target: str, measure: Measure | None, scope: str) -> None:
    """Checks that `measure` is given with a target of time alone, and `scope` is not."""
    if target not in TARGETS:
        if measure is not None:
            fix = "To plan by time give latency_ms or latency_reduction instead."
            raise checks.value_error("measure", f"None with {target}", measure, fix)
        return
    if measure is None:
        fix = (
            "Pass measure=tfkd.report.LayerTimes('times.json'), which measures in LiteRT and keeps "
            "what it measured in the file, or a function from a model to milliseconds."
        )
        raise checks.value_error("measure", f"what measures time, with {target}", None, fix)
    checks.function("measure", measure)
    if scope != "uniform":
        fix = "Leave it out: a target of time chooses the groups by the time that they save."
        raise checks.value_error("scope", f"the default with {target}", scope, fix)


def planned(empty: Plan, measure: Measure, round_to: int | None) -> Plan:
    """The plan that meets a target of time.

    Args:
        empty: the plan that removes nothing.
        measure: from a model to milliseconds.
        round_to: as the user gave it.

    Raises:
        ValueError: if nothing can be removed, or the target can't be reached.
    """
    graph, (name, goal) = empty.graph, empty.target
    allowed = [
        np.zeros(1, int)
        if empty.left_alone(group)
        else levels(group.size, round_to, empty.min_channels)
        for group in graph.groups
    ]
    if all(len(level) == 1 for level in allowed):
        raise refusals.nothing(empty)
    if graph.sizes_missing:
        fix = "Pass input_shape: the sizes at which time is to be measured."
        raise checks.value_error("model", f"fixed sizes of the inputs with {name}", None, fix)
    scores = criteria.scores(graph, empty.criterion, empty.seed)
    ranked = [np.sort(criteria.normalised(scores[group.units])) for group in graph.groups]
    budget, reduction = (goal, 0.0) if name == "latency_ms" else (None, goal)
    clock = Clock(graph, measure)
    try:
        found = fit(clock, allowed, ranked, budget, reduction)
    except Unreachable as error:
        raise refusals.too_slow(empty, error.least, error.before) from None
    if not found.counts.any():
        checks.warn(
            f"the plan removes nothing: the model takes {found.before:.3g} ms as it is, no more "
            f"than {name}={goal:g}. Ask for less."
        )
    return dataclasses.replace(
        empty,
        remove=dict(zip(empty.remove, found.counts.tolist(), strict=True)),
        ms_before=found.before,
        ms_after=found.after,
    )


class Fit(NamedTuple):
    """The result of `fit`: counts (G,), and measured milliseconds before and after."""

    counts: np.ndarray
    before: float
    after: float


class Point(NamedTuple):
    """A model that was measured: sum of its layer times, its own time, units removed (G,)."""

    layers: float
    whole: float
    counts: np.ndarray


class Unreachable(Exception):
    """No allowed widths meet the budget; `least` and `before` are milliseconds."""

    def __init__(self, least: float, before: float):
        super().__init__(least, before)
        self.least, self.before = least, before


def fit(
    clock: Clock,
    allowed: Sequence[np.ndarray],
    ranked: Sequence[np.ndarray],
    budget: float | None,
    reduction: float = 0.0,
) -> Fit:
    """Finds counts whose whole model is measured to take 90 to 98 % of the budget.

    Of several it is the one that loses least importance. Where the allowed widths leave no such
    model, it is the slowest found that meets the budget.

    Args:
        clock: times of the layers and of whole models.
        allowed: levels of each group.
        ranked: scores of each group's units, ascending, all at least 0.
        budget: milliseconds; None: `1 - reduction` of the time of the model as it is.
        reduction: fraction of the time to save.

    Raises:
        Unreachable: if the narrowest model is not fast enough.
    """
    nothing = np.zeros(len(allowed), int)
    before = clock.whole(nothing)
    budget = (1 - reduction) * before if budget is None else budget
    if before <= budget:
        return Fit(nothing, before, before)
    most = np.array([level[-1] for level in allowed])
    if budget < _HOPELESS * before and (least := clock.whole(most)) * _HOPELESS > budget:
        raise Unreachable(least, before)  # ahead of the layers, which take minutes
    points = [Point(clock.total(nothing), before, nothing)]
    limit = _SURE * budget
    # The last, for what may lie between limit and budget, only if there is nothing below.
    aims = [(limit, _AIM * budget), (limit, limit), (budget, budget)]
    for _ in range(_ROUNDS):
        counts = narrowed(clock, allowed, ranked, _goal(points, *aims[0]))
        known = any((counts == point.counts).all() for point in points)
        if not known:
            points.append(Point(clock.total(counts), clock.whole(counts), counts))
        if known or _NEAR * budget <= points[-1].whole <= limit:
            del aims[0]
            if not aims or (len(aims) == 1 and _within(points, _LEAST * budget, limit)):
                break
    if all(point.whole > budget for point in points):
        points.append(Point(clock.total(most), clock.whole(most), most))
    met = [point for point in points if point.whole <= budget]
    if not met:
        raise Unreachable(min(point.whole for point in points), before)
    losses = [losses_of(scores) for scores in ranked]
    if sure := _within(met, _LEAST * budget, limit):
        best = min(
            sure, key=lambda p: sum(loss[n] for loss, n in zip(losses, p.counts, strict=True))
        )
    else:
        best = max(met, key=lambda point: point.whole)
    return Fit(best.counts, before, best.whole)


def _within(points: Sequence[Point], least: float, most: float) -> list[Point]:
    return [point for point in points if least <= point.whole <= most]


def _goal(points: Sequence[Point], top: float, aim: float) -> float:
    """The sum of layer times at which the whole model should take `aim`, at most `top`.

    It is interpolated between the models that are next to `top`; before one has met
    it, the ratio of the two that the fastest one has is taken.
    """
    slow = min((p for p in points if p.whole > top), key=lambda point: point.layers)
    fast = [p for p in points if p.whole <= top and p.layers < slow.layers]
    if not fast:
        return slow.layers * min(aim / slow.whole, 0.97)
    near = max(fast, key=lambda point: point.layers)
    part = (aim - near.whole) / (slow.whole - near.whole)
    return near.layers + part * (slow.layers - near.layers)
