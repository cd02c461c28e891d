"""Errors of pruning targets that can't be met: what is possible, and what would allow more."""

from __future__ import annotations

from tfkd import checks
from tfkd.pruning import explaining
from tfkd.pruning.plans import Plan


class UnreachableError(ValueError):
    """A target that can't be met.

    Attributes:
        fix: what is possible, and what would allow more.
    """

    def __init__(self, text: str, fix: str = ""):
        super().__init__(text)
        self.fix = fix


def _refused(plan: Plan, expected: str, fix: str) -> UnreachableError:
    name, goal = plan.target
    return checks.plain(UnreachableError(checks.message(name, expected, goal, fix), fix))


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


class OutOfReach(UnreachableError):
    """No allowed widths are fast enough.

    Attributes:
        least_ms: milliseconds of the fastest model that was measured.
        before_ms: milliseconds of the model as it is.
    """

    def __init__(self, text: str, fix: str, least_ms: float, before_ms: float):
        super().__init__(text, fix)
        self.least_ms, self.before_ms = least_ms, before_ms


def unreachable(plan: Plan, most: float) -> ValueError:
    """The target is more than what can be removed, the fraction `most`."""
    if plan.target[0] == "macs_reduction" and plan.graph.unknown:
        return _unknown(plan, most)
    fixes = _fixes(plan)
    text = f"At most {explaining.percent(most)} can be removed with these settings"
    text += f"; try {' or '.join(fixes)}." if fixes else ", with one channel left in each group."
    if plan.graph.frozen:
        text += f" These can't be removed: {_frozen_text(plan)}."
    return _refused(plan, "a target that can be reached", text)


def _unknown(plan: Plan, most: float) -> ValueError:
    """The MACs of some layers are not known, so that the target is one of the others'."""
    graph = plan.graph
    why = others = ""
    if graph.sizes_missing:
        why = ", as the model leaves sizes of its inputs open"
        others = "input_shape (the sizes to count for), "
    fix = (
        f"The MACs of {explaining.shortened(graph.unknown)} are not known{why}; of the known ones "
        f"at most {explaining.percent(most)} can be removed. Pass {others}params_reduction or "
        "filter_rate."
    )
    return _refused(plan, "a target that can be reached", fix)


def too_slow(plan: Plan, least: float, before: float) -> OutOfReach:
    """The narrowest model takes `least` of the `before` milliseconds that the model takes."""
    most = f"{least:.3g} ms of {before:.3g} ms ({explaining.percent(1 - least / before)} less)"
    ways = ", ".join([*_fixes(plan), "cut_layers"])
    text = f"The least with these settings, as it was measured, is {most}. Try {ways} or another "
    text += "model."
    name, goal = plan.target
    said = checks.message(name, "a time that can be reached", goal, text)
    return checks.plain(OutOfReach(said, text, least, before))


def nothing(plan: Plan) -> ValueError:
    """No group may be pruned."""
    text = "`model`: expected one with filters that can be removed, received one with none"
    if plan.graph.groups:
        text += " that these settings allow"
    fixes = _fixes(plan)
    text += f". Try {' or '.join(fixes)}." if fixes else "."
    if plan.graph.frozen:
        text += f" These can't be removed: {_frozen_text(plan)}."
    # With other settings something may go.
    return checks.plain((UnreachableError if plan.graph.groups else ValueError)(text))
