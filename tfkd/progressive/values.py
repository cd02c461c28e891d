"""Scheduled values that depend on the stage, without recompiling the training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import schedules
from tfkd.types import Tensor


class Position:
    """Current stage of a training, and the optimizer's step at its beginning.

    Both are variables that the compiled step reads, so a new stage needs only assignments.
    """

    def __init__(self, stage: int = 0, begin: int = 0):
        self.stage = tf.Variable(stage, dtype=tf.int64, trainable=False, name="stage")
        self.begin = tf.Variable(begin, dtype=tf.int64, trainable=False, name="begin")

    def move(self, stage: int, begin: int) -> None:
        """Sets the stage and the optimizer's step at which it begins."""
        self.stage.assign(stage)
        self.begin.assign(begin)

    def numbers(self) -> list[int]:
        """The current stage and its beginning."""
        return [int(self.stage.numpy()), int(self.begin.numpy())]

    def choose(
        self, values: Sequence[Any], default: Any, step: Tensor, at: Callable[[Any, Tensor], Any]
    ) -> tf.Tensor:
        """The current stage's value in a graph.

        Args:
            values: for each stage what `at` takes; None: `default`.
            default: the same, at the step of the whole training.
            step: the optimizer's step; values of a stage count from the stage's beginning.
            at: `at(value, step)` → number.
        """
        since = tf.maximum(step - self.begin, 0)
        each = [at(default, step) if value is None else at(value, since) for value in values]
        each = [tf.broadcast_to(tf.cast(one, tf.float32), tf.shape(step)) for one in each]
        return tf.gather(tf.stack(each), self.stage)


@schedules.register
@dataclasses.dataclass(frozen=True, eq=False)
class OfStage(schedules.Schedule):
    """A value or schedule for each stage; schedules count steps from the stage's beginning.

    Args:
        values: a number or schedule for each stage; None: `default`.
        default: a number, or a schedule over the whole training.
        position: the current stage.
    """

    values: Sequence[Any]
    default: Any
    position: Position = dataclasses.field(default_factory=Position, repr=False)

    def _at(self, step, ops):
        if not tf.is_tensor(step):
            stage, begin = self.position.numbers()
            value = self.values[stage]
            if value is None:
                return schedules.value_at(self.default, step)
            return schedules.value_at(value, np.maximum(step - begin, 0))
        return self.position.choose(self.values, self.default, step, schedules.value_at)

    def end_values(self):
        ends: list[float] = []
        for value in (self.default, *self.values):
            if isinstance(value, schedules.Schedule):
                ends += value.end_values()
            elif value is not None:
                ends.append(float(value))
        return tuple(ends)

    def get_config(self):
        """Includes the current stage, in which a loaded schedule continues."""
        return {
            "values": [None if v is None else schedules.serialize(v) for v in self.values],
            "default": schedules.serialize(self.default),
            "position": self.position.numbers(),
        }

    @classmethod
    def from_config(cls, config):
        values = [None if v is None else schedules.deserialize(v) for v in config["values"]]
        return cls(values, schedules.deserialize(config["default"]), Position(*config["position"]))


@keras.saving.register_keras_serializable(package="tfkd")
class RateOfStage(keras.optimizers.schedules.LearningRateSchedule):
    """Learning-rate schedule with a rate for each stage.

    Args:
        rates: for each stage a number, a schedule of tfkd or Keras that counts steps from
            the stage's beginning, or None for `default`.
        default: the optimizer's own rate: a number, or a Keras schedule over the whole
            training.
        position: the current stage.
    """

    def __init__(self, rates: Sequence[Any], default: Any, position: Position):
        self.rates, self.default, self.position = list(rates), default, position

    def __call__(self, step: Tensor) -> tf.Tensor:
        """The learning rate at a step of the optimizer."""
        return self.position.choose(self.rates, self.default, tf.cast(step, tf.int64), _rate)

    def get_config(self):
        """Includes the current stage, in which a loaded schedule continues."""
        return {
            "rates": [_serialize(rate) for rate in self.rates],
            "default": _serialize(self.default),
            "position": self.position.numbers(),
        }

    @classmethod
    def from_config(cls, config):
        """Creates the schedule from the result of `get_config`."""
        rates = [_deserialize(rate) for rate in config["rates"]]
        return cls(rates, _deserialize(config["default"]), Position(*config["position"]))


def _rate(rate: Any, step: Any) -> Any:
    return rate(step) if callable(rate) else float(rate)


def _serialize(rate: Any) -> Any:
    if rate is None:
        return None
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return {"keras": keras.saving.serialize_keras_object(rate)}
    return {"tfkd": schedules.serialize(rate)}


def _deserialize(config: Any) -> Any:
    if config is None:
        return None
    if "keras" in config:
        return keras.saving.deserialize_keras_object(config["keras"])
    return schedules.deserialize(config["tfkd"])
