"""Factors of the weights of a Distiller's losses, and each loss on a batch by itself."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.distillation import output_kinds
from tfkd.distillation.terms import shared_by
from tfkd.teachers.features import FINAL
from tfkd.teachers.precomputed import split
from tfkd.types import Structure


class Balancing(keras.Model):
    """The part of the Distiller that `callbacks.LossBalance` uses."""

    train_function: Any
    _balance: dict[str, tf.Variable] | None

    def separate_losses(self, data: Structure) -> dict[str, tf.Tensor]:
        """Each loss on a batch by its name in the logs, without its weight, in inference mode.

        Args:
            data: x, (x, y) or (x, y, sample_weight), as a step takes them.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x, stored = split(x)
        output_kinds.decide(self, x, in_step=True)
        outputs, taught = self._student_feature_extractor(x, training=False), self._teach(x, stored)
        share, final = tf.constant(1.0), outputs[FINAL]
        shared = shared_by(self.distillation_losses, self.compiled_loss, taught)
        values = {"student_loss": self._student_loss(y, sample_weight, final, share, shared)}
        known = self._known(y, sample_weight, final, self._step(), shared)
        for term in self._terms if taught is not None else ():
            values[term.name] = term.value(*term.pair(*taught, outputs), known, share)[0]
        return values

    def balanced_losses(self) -> list[str]:
        """Names of the losses that count in the total: the labels' first, if they do."""
        labels = [] if is_zero(self.student_loss_weight) else ["student_loss"]
        terms = [] if is_one(self.student_loss_weight) else [term.name for term in self._terms]
        return labels + terms

    @property
    def balance(self) -> dict[str, float]:
        """The factors that were set by `balance_by`."""
        return {name: float(factor) for name, factor in (self._balance or {}).items()}

    def balance_by(self, factors: dict[str, float] | None) -> None:
        """Sets factors of the weights of distillation losses, as `callbacks.LossBalance` does.

        Args:
            factors: loss → factor; those that are left out stay as they are. None: no factors,
                which makes the training step anew, as do the first ones.
        """
        if factors is None or self._balance is None:
            with self.distribute_strategy.scope():
                made = {name: tf.Variable(1.0, trainable=False) for name in factors or ()}
            object.__setattr__(self, "_balance", None if factors is None else made)
            is_training = self.train_function is not None
            self.train_function = None
            if is_training and factors is not None:
                self.train_function = self.make_train_function(force=True)
        for name, factor in (factors or {}).items():
            (self._balance or {})[name].assign(factor)


def is_zero(weight: Any) -> bool:
    """Whether a weight is the number 0, and no schedule."""
    return checks.is_number(weight) and weight == 0


def is_one(weight: Any) -> bool:
    """Whether a weight is the number 1, and no schedule."""
    return checks.is_number(weight) and weight == 1
