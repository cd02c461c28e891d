"""Optimizers that go on after the student has changed.

A Keras optimizer knows the variables of its first step and no others. So a student
with a new structure gets a new optimizer, to which the step, and the state of every
variable that is still there, are carried.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.pruning.optimizers import slots_of


def check_optimizer(optimizer: Any) -> Any:
    """Accepts what `keras.optimizers.get` makes an optimizer of; returns that.

    Raises:
        TypeError: for a legacy optimizer, whose state can't be carried over.
    """
    optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        fix = "Take the one of the same name in tf_keras.optimizers; legacy ones are not taken."
        raise checks.type_error("optimizer", "a tf_keras optimizer", optimizer, fix)
    return optimizer


def inner(optimizer: Any) -> Any:
    """The optimizer inside a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def rate_of(optimizer: Any) -> Any:
    """Its learning rate: a number or a Keras schedule."""
    rate = inner(optimizer)._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    return float(rate.numpy())


def successor(optimizer: Any, rate: Any) -> Any:
    """A new optimizer with the same settings and another learning rate, without state.

    The scale of a LossScaleOptimizer is kept as it is now.
    """
    config = inner(optimizer).get_config()
    config["learning_rate"] = rate
    new = type(inner(optimizer)).from_config(config)
    if optimizer is inner(optimizer):
        return new
    scale = optimizer.get_config()
    return keras.mixed_precision.LossScaleOptimizer(
        new,
        dynamic=scale["dynamic"],
        initial_scale=float(optimizer.loss_scale),
        dynamic_growth_steps=scale["dynamic_growth_steps"],
    )


@contextlib.contextmanager
def weights_kept(optimizer: Any) -> Iterator[None]:
    """Within, the end of a `fit` does not put averages (`use_ema`) in place of the weights.

    The next stage trains on what the last one has trained, as one long `fit` does.
    """
    averaging = inner(optimizer)
    averaging.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del averaging.finalize_variable_values


def carry(old: Any, before: Sequence[Any], new: Any, variables: list[Any]) -> None:
    """Builds `new` for the variables, with the step and the state of `old` where it has any.

    A variable's partner is itself, or the one variable of its name and shape.

    Args:
        old: the optimizer that has trained so far.
        before: variables that it may have trained.
        new: a `successor`.
        variables: what that will train.
    """
    old, new = inner(old), inner(new)
    new.build(variables)
    new.iterations.assign(old.iterations)
    trained = [v for v in before if slots_of(old, v)]
    by_id = {id(v): v for v in trained}
    counts = Counter(_key(v) for v in trained)
    by_key = {_key(v): v for v in trained if counts[_key(v)] == 1}
    for variable in variables:
        partner = by_id.get(id(variable), by_key.get(_key(variable)))
        if partner is not None:
            for slot, value in zip(slots_of(new, variable), slots_of(old, partner), strict=True):
                slot.assign(value)


def _key(variable: Any) -> tuple[str, tuple[int, ...]]:
    return variable.name, tuple(variable.shape)
