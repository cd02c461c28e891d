"""Losses and loss weights of a Distiller that depend on the stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from tfkd import checks
from tfkd.curriculum import Stage
from tfkd.distillation import validation
from tfkd.distillation.terms import unique_names
from tfkd.progressive.values import OfStage, Position


def check_stages(stages: Any) -> list[Stage]:
    """Accepts a non-empty list of stages."""
    stages = list(stages) if isinstance(stages, (list, tuple)) else [stages]
    if not stages:
        raise checks.value_error("stages", "at least one tfkd.curriculum.Stage", stages)
    for stage in stages:
        checks.instance("stages", stage, Stage, "a list of tfkd.curriculum.Stage")
    return stages


def staged(values: Sequence[Any], default: Any, position: Position) -> Any:
    """A value that depends on the stage, or the default if no stage sets it."""
    if all(value is None for value in values):
        return default
    return OfStage(list(values), default, position)


def losses_of(stages: Sequence[Stage], losses: list[Any], position: Position) -> list[Any]:
    """Copies of the losses, whose temperatures depend on the stage.

    Raises:
        ValueError: if a stage names an unknown loss, or no loss has a temperature.
    """
    names = unique_names(losses)
    warm = [name for name, loss in zip(names, losses, strict=True) if hasattr(loss, "temperature")]
    for number, stage in enumerate(stages):
        if isinstance(stage.temperature, Mapping):
            _check_names(stage, number, "temperature", stage.temperature, warm)
        elif stage.temperature is not None and not warm:
            expected = f"None in {stage.title(number)}: no loss has a temperature"
            raise checks.value_error("temperature", expected, stage.temperature)
    result = []
    for name, loss in zip(names, losses, strict=True):
        loss = copy.copy(loss)
        if name in warm:
            values = [_of(stage.temperature, name) for stage in stages]
            loss.temperature = staged(values, loss.temperature, position)
        result.append(loss)
    return result


def weights_of(
    stages: Sequence[Stage], losses: list[Any], weights: list[Any], position: Position
) -> list[Any]:
    """The weights of the losses, which depend on the stage.

    Raises:
        ValueError: for a list of the wrong length, or an unknown name.
    """
    names = unique_names(losses)
    rows = [_row(stage, number, names) for number, stage in enumerate(stages)]
    columns = zip(*rows, strict=True)
    return [staged(list(c), weight, position) for c, weight in zip(columns, weights, strict=True)]


def _row(stage: Stage, number: int, names: list[str]) -> list[Any]:
    weights = stage.distillation_loss_weights
    if isinstance(weights, Mapping):
        _check_names(stage, number, "distillation_loss_weights", weights, names)
        return [weights.get(name) for name in names]
    if weights is None:
        return [None] * len(names)
    if len(weights) != len(names):
        expected = f"{len(names)} weights in {stage.title(number)}, one for each loss"
        raise checks.value_error("distillation_loss_weights", expected, weights)
    return list(weights)


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _check_names(
    stage: Stage, number: int, argument: str, given: Mapping[str, Any], known: list[str]
) -> None:
    for name in given:
        if name not in known:
            fix = checks.near(name, known) or f"There are: {', '.join(known) or 'none'}."
            expected = f"names of losses in {stage.title(number)}"
            raise checks.value_error(argument, expected, name, fix)


def student_weight_of(stages: Sequence[Stage], weight: Any, position: Position) -> Any:
    """The weight of the loss on the labels, which depends on the stage."""
    values = [stage.student_loss_weight for stage in stages]
    return staged(values, validation.check_student_weight(weight), position)
