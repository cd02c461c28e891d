"""Resolves, calls and serializes Keras losses given as strings, functions or instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import same_structure
from tfkd.types import Structure

# A loss as Keras takes it, or one for each of several outputs; None leaves an output out.
LossFunction: TypeAlias = "str | keras.losses.Loss | Callable[[tf.Tensor, tf.Tensor], tf.Tensor]"
Losses: TypeAlias = "LossFunction | Sequence[Losses] | Mapping[str, Losses] | None"


def resolve_loss(loss: Losses) -> Any:
    """Turns a string, function or instance (nested or not) into callables; None stays."""
    resolved = tf.nest.map_structure(_resolve, loss)
    if all(item is None for item in tf.nest.flatten(resolved)):
        raise checks.value_error("loss", "at least one loss that is not None", loss)
    return resolved


def _resolve(item: object) -> Callable[..., tf.Tensor] | None:
    if isinstance(item, str):
        try:
            return keras.losses.get(item)
        except ValueError as error:
            names = sorted(set(dir(keras.losses)) - {"get", "serialize", "deserialize"})
            fix = checks.near(item, names)
            raise checks.value_error("loss", "the name of a Keras loss", item, fix) from error
    if item is None or (callable(item) and not isinstance(item, type)):
        return item
    fix = f"Make an instance: {item.__name__}()." if isinstance(item, type) else None
    raise checks.value_error("loss", "a Keras loss: string, function or instance", item, fix)


def per_output(loss: Any, outputs: Structure) -> Any:
    """Returns the loss of each output; a single loss applies to all of them.

    Raises:
        ValueError: if nested losses do not fit the outputs.
    """
    if callable(loss):
        return tf.nest.map_structure(lambda _: loss, outputs)
    same_structure("loss", loss, "student", outputs)
    return loss


Made = TypeVar("Made")


def each_output(
    loss: Any, teacher: Structure, student: Structure, function: Callable[..., Made]
) -> list[Made | None]:
    """Calls function(loss, teacher, student) for each output that has a loss."""
    structures = (per_output(loss, student), teacher, student)
    triples = zip(*map(tf.nest.flatten, structures), strict=True)
    return [None if one is None else function(one, *pair) for one, *pair in triples]


def apply_loss(loss: Callable[..., tf.Tensor], teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Calls a Keras loss or function without its reduction: float32 (B, ...)."""
    call = loss.call if isinstance(loss, keras.losses.Loss) else loss
    values = tf.cast(call(teacher, student), tf.float32)
    if len(values.shape) == 0 and not is_sum(loss):
        # A function that averages over the batch itself: every example gets that mean.
        values = tf.fill(tf.shape(student)[:1], values)
    return values


def is_sum(loss: object) -> bool:
    """Whether a loss is an instance with reduction="sum"."""
    return getattr(loss, "reduction", None) == keras.losses.Reduction.SUM
