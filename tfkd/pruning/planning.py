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
from tfkd.pruning import criteria, explaining, fitting, ignoring, isomorphic
from tfkd.pruning.change import output_change
from tfkd.pruning.channel_analysis import analyse
from tfkd.pruning.graph import Graph
from tfkd.pruning.plans import Plan, share
from tfkd.pruning.selection import Selection
from tfkd.types import Data, Structure

_BATCH = 64  # examples on which the model runs at a time
SCOPES = ("uniform", "global", "isomorphic")
RESIDUALS = ("inner", "coupled")


def plan(
    model: keras.Model | Graph,
    macs_reduction: float | None = None,
    params_reduction: float | None = None,
    filter_rate: float | None = None,
    *,
    scope: str = "uniform",
    residual: str = "inner",
    criterion: criteria.Criterion = "l2",
    round_to: int = 1,
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

    Args:
        model: a built functional or Sequential model, or its `Graph` from `analyse` (to
            make several plans). It is not changed.
        macs_reduction: fraction of the multiply-accumulates to save, in (0, 1).
        params_reduction: fraction of the parameters to save, in (0, 1).
        filter_rate: fraction of the units to remove, in (0, 1): of each group, or of all
            units with another scope than "uniform". Give exactly one of these three.
        scope: "uniform", all groups shrink by the same fraction; or "global", the units
            with the lowest scores in the whole model are removed first. Scores are
            comparable between groups, since the mean score of each group is 1 (those of
            `Taylor`, which are changes of one loss, as they are); or "isomorphic", as
            "global" among groups of the same substructure, such as the inner convolutions of
            all residual blocks, of which each loses the same fraction (arXiv:2407.04616).
        residual: "inner" excludes groups whose channels are coupled by a sum of branches,
            so that only channels inside residual blocks are removed, which gives the
            better speed-up; "coupled" includes them.
        criterion: importance criterion, see `criteria.scores`.
        round_to: kept counts are multiples of it (8 or 16 suit most hardware); a group
            with no more units than that is not pruned.
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
        ValueError: if not exactly one target is given, or the target is not in (0, 1) or
            can't be reached (the message gives the maximum); if nothing can be removed;
            if an argument is out of its range, an entry of `ignore` matches nothing, or
            weights are not finite.

    Example:
        >>> from tfkd import models, pruning
        >>> plan = pruning.plan(models.resnet(8), macs_reduction=0.4, round_to=4)
        >>> plan.macs_reduction >= 0.4
        True
        >>> plan.remove["stage1_block1_1_conv"] % 4
        0
    """
    target = _target(
        macs_reduction=macs_reduction, params_reduction=params_reduction, filter_rate=filter_rate
    )
    checks.one_of("scope", scope, SCOPES)
    checks.one_of("residual", residual, RESIDUALS)
    criteria.known(criterion)
    checks.positive_int("round_to", round_to)
    checks.positive_int("min_channels", min_channels)
    if isinstance(model, Graph) and input_shape is not None:
        fix = "Pass it to tfkd.pruning.analyse."
        raise checks.value_error("input_shape", "None with a Graph", input_shape, fix)
    graph = model if isinstance(model, Graph) else analyse(model, input_shape=input_shape)
    check_finite("model", graph.model)
    nothing = {group.name: 0 for group in graph.groups}
    options = criterion, scope, residual, round_to, min_channels, seed
    empty = Plan(graph, nothing, target, *options, ignoring.ignored_groups(graph, ignore))
    counts = _counts(empty)
    if not counts.any():
        checks.warn(
            f"the plan removes nothing: {target[0]}={target[1]:g} is less than half a step of "
            "every group. Raise the target, or lower round_to or min_channels."
        )
    remove = dict(zip(empty.remove, counts.tolist(), strict=True))
    found = dataclasses.replace(empty, remove=remove)
    if data is None:
        return found
    removed = select(graph.model, found).units(graph)
    return dataclasses.replace(found, change=output_change(graph, removed, _read(graph, data)))


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
        raise _nothing(plan)
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
        raise _unreachable(plan, reduction(path.counts(len(path.group))))
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


def _fixes(plan: Plan) -> list[str]:
    """Arguments that the user can change so that more units may be removed."""
    found = []
    if any(group.residual for group in plan.graph.groups) and plan.residual == "inner":
        found.append('residual="coupled"')
    if plan.min_channels > 1:
        found.append(f"min_channels below {plan.min_channels}")
    if plan.round_to > 1:
        found.append(f"round_to below {plan.round_to}")
    if plan.ignored:
        found.append("fewer layers in ignore")
    return found


def _frozen_text(plan: Plan) -> str:
    return "; ".join(
        f"{count} channels of {explaining.shortened(layers)}: {reason}"
        for reason, count, layers in explaining.by_reason(plan.graph.frozen)[:6]
    )


def _unreachable(plan: Plan, most: float) -> ValueError:
    name, goal = plan.target
    if name == "macs_reduction" and plan.graph.unknown:
        return _unknown(plan, most)
    fixes = _fixes(plan)
    text = f"At most {explaining.percent(most)} can be removed with these settings"
    text += f"; try {' or '.join(fixes)}." if fixes else ", with one channel left in each group."
    if plan.graph.frozen:
        text += f" These can't be removed: {_frozen_text(plan)}."
    return checks.value_error(name, "a target that can be reached", goal, text)


def _unknown(plan: Plan, most: float) -> ValueError:
    """The MACs of some layers are not known, so that the target is one of the others'."""
    graph, goal = plan.graph, plan.target[1]
    why = others = ""
    if graph.sizes_missing:
        why = ", as the model leaves sizes of its inputs open"
        others = "input_shape (the sizes to count for), "
    fix = (
        f"The MACs of {explaining.shortened(graph.unknown)} are not known{why}; of the known ones "
        f"at most {explaining.percent(most)} can be removed. Pass {others}params_reduction or "
        "filter_rate."
    )
    return checks.value_error("macs_reduction", "a target that can be reached", goal, fix)


def _nothing(plan: Plan) -> ValueError:
    text = "`model`: expected one with filters that can be removed, received one with none"
    if plan.graph.groups:
        text += " that these settings allow"
    fixes = _fixes(plan)
    text += f". Try {' or '.join(fixes)}." if fixes else "."
    if plan.graph.frozen:
        text += f" These can't be removed: {_frozen_text(plan)}."
    return ValueError(text)
