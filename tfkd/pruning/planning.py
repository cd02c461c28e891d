"""Plans channel pruning: how many channels of each group to remove to meet a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.costs.trace import InputShape
from tfkd.networks import paths
from tfkd.networks.accept import check_finite
from tfkd.pruning import (
    criteria,
    fitting,
    ignoring,
    isomorphic,
    narrowing,
    refusals,
    time_budget,
)
from tfkd.pruning.change import output_change
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import Graph
from tfkd.pruning.plans import Plan, share
from tfkd.pruning.selection import Selection
from tfkd.types import Data, Measure, Structure

_BATCH = 64  # examples on which the model runs at a time
SCOPES = ("uniform", "global", "isomorphic")
RESIDUALS = ("inner", "coupled")


def plan(
    model: keras.Model | Graph,
    macs_reduction: float | None = None,
    params_reduction: float | None = None,
    filter_rate: float | None = None,
    *,
    latency_reduction: float | None = None,
    latency_ms: float | None = None,
    measure: Measure | None = None,
    scope: str = "uniform",
    residual: str = "inner",
    criterion: criteria.Criterion = "l2",
    round_to: int | None = None,
    ignore: paths.Entries = (),
    min_channels: int = 1,
    seed: int = 0,
    data: Data | None = None,
    input_shape: InputShape | None = None,
) -> Plan:
    """Plans how many filters to remove from each layer so that the pruned model meets a target.

    The target is counted on the model as it will be after shrinking: removing a filter also
    removes the corresponding input slices of the next layer. The plan is minimal: undoing
    one step of any group would miss the target.

    A target of time is met by measuring: widths are chosen by the times of the layers, each
    measured alone at the widths that it may have, and the models so found are measured as a
    whole until one takes 90 to 98 % of the time asked for, or, where no widths lie between,
    less. See `docs/latency.md`.

    Args:
        model: a built functional or Sequential model, or its `Graph` from `analyse` (to
            make several plans). It is not changed.
        macs_reduction: fraction of the multiply-accumulates to save, in (0, 1).
        params_reduction: fraction of the parameters to save, in (0, 1).
        filter_rate: fraction of the units to remove, in (0, 1): of each group, or of all
            units with another scope than "uniform".
        latency_reduction: fraction of the measured time to save, in (0, 1).
        latency_ms: milliseconds that the pruned model may take. Give exactly one of these
            five targets.
        measure: what measures time, for the last two: `tfkd.report.LayerTimes(path)`, which
            runs TFLite files here or on a device, or any function from a built model to
            milliseconds.
        scope: "uniform", all groups shrink by the same fraction; or "global", the units
            with the lowest scores in the whole model are removed first. Scores are
            comparable between groups, since the mean score of each group is 1 (those of
            `Taylor`, which are changes of one loss, as they are); or "isomorphic", as
            "global" among groups of the same substructure, such as the inner convolutions of
            all residual blocks, of which each loses the same fraction (arXiv:2407.04616).
            Targets of time choose the groups by time instead.
        residual: "inner" excludes groups whose channels are coupled by a sum of branches,
            so that only channels inside residual blocks are removed, which gives the
            better speed-up; "coupled" includes them.
        criterion: importance criterion, see `criteria.scores`.
        round_to: kept counts are multiples of it (8 or 16 suit most hardware); a group
            with no more units than that is not pruned. None: 1; for targets of time 4 in
            groups of up to 32 units and 8 in larger ones.
        ignore: layers or groups to exclude: names, paths ("backbone/conv1"), nested
            models, or patterns ("stage1_*").
        min_channels: minimum number of units kept in each group.
        seed: seed of the criterion "random".
        data: examples as the model takes them, in any form of `tfkd.example_inputs`, of which
            a few hundred are enough: how far the outputs change on them by removing the
            filters that `select` chooses now, without any training, is measured and printed.
        input_shape: sizes for which multiply-accumulates are counted, as in
            `tfkd.report.profile`, for a model that leaves sizes of its inputs open; of a
            `Graph` those given to `analyse` count.

    Returns:
        A `Plan`. `print(plan)` explains it.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if not exactly one target is given, or the target is out of range or
            can't be reached (the message gives the maximum, or the least time); if a target
            of time lacks `measure`; if nothing can be removed;
            if an argument is out of its range, an entry of `ignore` matches nothing, or
            weights are not finite. A time that can't be reached is an `OutOfReach`, with the
            least time as `least_ms`.

    Example:
        >>> from tfkd import models, pruning
        >>> plan = pruning.plan(models.resnet(8), macs_reduction=0.4, round_to=4)
        >>> plan.macs_reduction >= 0.4
        True
        >>> plan.remove["stage1_block1_1_conv"] % 4
        0
    """
    target = _target(
        macs_reduction=macs_reduction,
        params_reduction=params_reduction,
        filter_rate=filter_rate,
        latency_reduction=latency_reduction,
        latency_ms=latency_ms,
    )
    time_budget.check_measure(target[0], measure, scope)
    checks.one_of("scope", scope, SCOPES)
    checks.one_of("residual", residual, RESIDUALS)
    criteria.known(criterion)
    checks.optional(checks.positive_int, "round_to", round_to)
    checks.positive_int("min_channels", min_channels)
    if isinstance(model, Graph) and input_shape is not None:
        fix = "Pass it to tfkd.pruning.analyse."
        raise checks.value_error("input_shape", "None with a Graph", input_shape, fix)
    graph = model if isinstance(model, Graph) else analyse(model, input_shape=input_shape)
    check_finite("model", graph.model)
    nothing = {group.name: 0 for group in graph.groups}
    step = round_to or (1 if measure is None else narrowing.STEP)
    options = criterion, scope, residual, step, min_channels, seed
    empty = Plan(graph, nothing, target, *options, ignoring.ignored_groups(graph, ignore))
    if measure is not None:
        found = time_budget.planned(empty, measure, round_to)
    else:
        found = _with_counts(empty, _counts(empty))
    if data is None:
        return found
    removed = select(graph.model, found).units(graph)
    return dataclasses.replace(found, change=output_change(graph, removed, _read(graph, data)))


def _with_counts(empty: Plan, counts: np.ndarray) -> Plan:
    target = empty.target
    if not counts.any():
        checks.warn(
            f"the plan removes nothing: {target[0]}={target[1]:g} is less than half a step of "
            "every group. Raise the target, or lower round_to or min_channels."
        )
    return dataclasses.replace(empty, remove=dict(zip(empty.remove, counts.tolist(), strict=True)))


def _read(graph: Graph, data: Data) -> list[Structure]:
    """The batches of `data` in the structure that the model takes."""
    inputs = example_inputs.inputs_of(graph.model)
    size = graph.model.inputs[0].shape[0] or _BATCH
    batches = example_inputs.batches("data", data, inputs, batch_size=size)
    return [example_inputs.packed(graph.model, batch.x) for batch in batches]


def select(model: keras.Model, plan: Plan) -> Selection:
    """Selects the units with the lowest current scores, as many as planned.

    Args:
        model: the plan's model, or another one with the same layers and shapes.
        plan: the number of units to remove from each group.

    Returns:
        The selection, for `apply_selection` and `shrink`. Among units with equal scores
        the first ones are removed.

    Raises:
        TypeError: if `plan` is not a `Plan`.
        ValueError: if the model has other layers or shapes than the plan's, or
            weights that are not finite.

    Example:
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> plan = pruning.plan(model, filter_rate=0.5)
        >>> len(pruning.select(model, plan).removed["stage1_block1_1_conv"])
        8
    """
    checks.instance("plan", plan, Plan, "a Plan from tfkd.pruning.plan")
    graph = plan.graph if model is plan.graph.model else analyse(model)
    if graph.fingerprint != plan.fingerprint:
        raise ValueError(
            "`plan`: expected one that was made for this model, received one for a model with "
            "other layers or shapes. Make it again with tfkd.pruning.plan(model, ...)."
        )
    check_finite("model", graph.model)
    scores = criteria.scores(graph, plan.criterion, plan.seed)
    removed = {}
    for group in graph.groups:
        lowest = np.argsort(scores[group.units], kind="stable")
        removed[group.name] = tuple(lowest[: plan.remove[group.name]].tolist())
    return Selection(removed, graph.fingerprint)


def _target(**given: float | None) -> tuple[str, float]:
    """The one target that was given, and its value."""
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        received = ", ".join(named) or "none of them"
        raise ValueError(
            f"`plan`: expected exactly one of {', '.join(given)}, received {received}. "
            "For half of the multiply-accumulates write macs_reduction=0.5."
        )
    ((name, value),) = named.items()
    if name == "latency_ms":
        return name, float(checks.positive(name, value))
    checks.finite(name, value, "a number between 0 and 1, both excluded")
    if not 0 < value < 1:
        fix = "To save 40 % write 0.4." if value >= 1 else None
        raise checks.value_error(name, "a number between 0 and 1, both excluded", value, fix)
    return name, float(value)


def _counts(plan: Plan) -> np.ndarray:
    """Number of units to remove from each group (G,)."""
    groups, (name, goal) = plan.graph.groups, plan.target
    allowed = [
        np.zeros(1, int)
        if plan.left_alone(group)
        else fitting.levels(group.size, plan.round_to, plan.min_channels)
        for group in groups
    ]
    if all(len(level) == 1 for level in allowed):
        raise refusals.nothing(plan)
    sizes = [group.size for group in groups]
    scores = criteria.scores(plan.graph, plan.criterion, plan.seed)
    if name == "filter_rate" and plan.scope == "uniform":
        pairs = zip(allowed, sizes, strict=True)
        return np.array([fitting.nearest(level, round(goal * size)) for level, size in pairs])
    ranked = None
    if plan.scope != "uniform":
        ranked = criteria.ranked(plan.graph, plan.criterion, scores)
    if ranked and plan.scope == "isomorphic":
        ranked = isomorphic.quantiles(ranked, isomorphic.classes(plan.graph, plan.left_alone))
    reduction = _reduction(plan)
    path = fitting.steps(allowed, sizes, ranked)
    counts = fitting.fit(path, lambda removed: reduction(removed) >= goal)
    if counts is None:
        raise refusals.unreachable(plan, reduction(path.counts(len(path.group))))
    return counts


def _reduction(plan: Plan) -> Callable[[np.ndarray], float]:
    """A function from removed counts (G,) to the fraction saved of what the target counts."""
    if plan.target[0] == "filter_rate":
        open_groups = [not plan.left_alone(group) for group in plan.graph.groups]
        total = sum(g.size for g, o in zip(plan.graph.groups, open_groups, strict=True) if o)
        return lambda removed: share(total, total - int(removed.sum()))
    tally = fitting.Tally(plan.graph)
    cost = tally.macs if plan.target[0] == "macs_reduction" else tally.params
    before = cost(np.zeros(len(plan.graph.groups), int))
    return lambda removed: share(before, cost(removed))
