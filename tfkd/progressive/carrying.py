"""Transfers optimizer state (step, momenta) to a student whose structure has changed.

A Keras optimizer supports only the variables of its first step. So a student with a
new structure gets a new optimizer, to which the step and the slot variables of all
remaining weights are copied.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.pruning.optimizers import slots_of


def check_optimizer(optimizer: str | keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns an optimizer from anything that `keras.optimizers.get` accepts.

    Raises:
        TypeError: for a legacy optimizer, whose state cannot be transferred.
    """
    optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        fix = "Use tf_keras.optimizers, not tf_keras.optimizers.legacy: those are not supported."
        raise checks.type_error("optimizer", "a tf_keras optimizer", optimizer, fix)
    return optimizer


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer inside a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def rate_of(optimizer: Any) -> Any:
    """The learning rate of an optimizer: a number or a Keras schedule."""
    rate = inner(optimizer)._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    return float(rate.numpy())


def successor(optimizer: keras.optimizers.Optimizer, rate: Any) -> keras.optimizers.Optimizer:
    """A new optimizer with the same settings and a different learning rate, without state.

    The current scale of a LossScaleOptimizer is kept.
    """
    config = inner(optimizer).get_config()
    config["learning_rate"] = rate
    new = type(inner(optimizer)).from_config(config)
    if optimizer is inner(optimizer):
        return new
    scale = {k: optimizer.get_config()[k] for k in ("dynamic", "dynamic_growth_steps")}
    scale["initial_scale"] = float(optimizer.loss_scale)
    return keras.mixed_precision.LossScaleOptimizer(new, **scale)


@contextlib.contextmanager
def weights_kept(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Context in which the end of `fit` does not replace weights by averages (`use_ema`).

    The next stage then continues from the trained weights, as within one long `fit`.
    """
    averaging = inner(optimizer)
    averaging.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del averaging.finalize_variable_values


def carry(
    old: keras.optimizers.Optimizer,
    before: Sequence[Any],
    new: keras.optimizers.Optimizer,
    variables: list[Any],
) -> None:
    """Builds `new` for the variables, and copies the step and slot variables of `old`.

    Variables are matched by identity, or else by name and shape if the match is unique.

    Args:
        old: the optimizer used so far.
        before: variables that it may have trained.
        new: a `successor`.
        variables: the variables that `new` will train.
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
