"""Losses on the labels that use all outputs of a model at once, for `compile(loss=...)`.

Keras computes a separate loss for every output. The boxes and classes of a detector need
a joint one, since both determine which priors count. A `JointLoss` replaces Keras's
`LossesContainer` and so works in `compile` of any tf_keras model and of a Distiller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import tensorflow as tf
import tf_keras as keras

from tfkd import replicas
from tfkd.keras_internals import LossesContainer
from tfkd.losses.base import Shared
from tfkd.losses.weighting import mean_of
from tfkd.types import Structure

# (weight, sum, count) of a part of the loss; without a count the sum is the part itself.
Part: TypeAlias = "tuple[float, tf.Tensor, tf.Tensor | None]"


class JointLoss(LossesContainer):
    """Base class of a loss on all outputs together; its parts are logged under their names.

    A subclass implements `parts`, and lists their names in `part_names`.

    Args:
        name: name of the loss.
    """

    part_names: tuple[str, ...] = ()

    def __init__(self, name: str):
        # LossesContainer's own constructor is skipped: it creates variables, and this loss
        # may be created outside the scope of the strategy that trains with it.
        super(LossesContainer, self).__init__()
        self.name = name
        self._user_losses = self._losses = name
        self._user_loss_weights = self._loss_weights = None
        self._built = True
        self._means: dict[tf.distribute.Strategy, list[keras.metrics.Mean]] = {}

    def __copy__(self) -> JointLoss:
        """The same loss, with means of its own."""
        new = object.__new__(type(self))
        new.__dict__.update(vars(self), _means={})
        return new

    def parts(
        self, y: Structure, y_pred: Structure, sample_weight: Structure | None, shared: Shared
    ) -> list[Part]:
        """Returns each `Part` of the loss over this replica's batch."""
        raise NotImplementedError

    def share(
        self,
        y: Structure,
        y_pred: Structure,
        sample_weight: Structure | None,
        shared: Shared | None = None,
    ) -> tf.Tensor:
        """Returns this replica's share of the loss over the global batch, a float32 scalar."""
        return self._share(y, y_pred, sample_weight, shared, *_of_batch(y_pred))

    def _share(self, y, y_pred, sample_weight, shared, size, portion):
        result = tf.constant(0.0)
        parts = self.parts(y, y_pred, sample_weight, shared or Shared([self]))
        for (weight, total, count), tracker in zip(parts, self.metrics[1:], strict=True):
            value = mean_of(total, None if count is None else replicas.global_sum(count))
            _log(tracker, value, size, portion)
            result += weight * value
        return result

    def __call__(
        self,
        y_true: Structure,
        y_pred: Structure,
        sample_weight: Structure | None = None,
        regularization_losses: Sequence[tf.Tensor] | None = None,
    ) -> tf.Tensor:
        """Returns what `keras.Model.compute_loss` minimises: this replica's share of the loss
        and of the regularization penalties."""
        size, portion = _of_batch(y_pred)
        loss = self._share(y_true, y_pred, sample_weight, None, size, portion)
        if regularization_losses:
            loss += tf.add_n([tf.cast(r, tf.float32) for r in regularization_losses]) * portion
        _log(self.metrics[0], loss, size, portion)
        return loss

    def build(self, y_pred: Structure) -> None:
        """Does nothing: no part depends on the structure of the outputs."""

    @property
    def metrics(self) -> list[keras.metrics.Mean]:
        """Means over the epoch of the loss and of each part.

        A strategy can use only variables that were created in its scope, so each strategy
        that trains with this loss has its own.
        """
        strategy = tf.distribute.get_strategy()
        if strategy not in self._means:
            with tf.init_scope():
                names = ("loss", *self.part_names)
                self._means[strategy] = [keras.metrics.Mean(name=name) for name in names]
        return self._means[strategy]

    def reset_state(self) -> None:
        """Resets the means."""
        for metric in self.metrics:
            metric.reset_state()


def _of_batch(y_pred: Structure) -> tuple[tf.Tensor, tf.Tensor]:
    """Number of examples of this replica, and their share of the global batch."""
    size = tf.cast(tf.shape(tf.nest.flatten(y_pred)[0])[0], tf.float32)
    return size, replicas.share_of_batch(size)


def _log(
    tracker: keras.metrics.Mean, share: tf.Tensor, size: tf.Tensor, portion: tf.Tensor
) -> None:
    """Adds a batch's value to a mean that, as in Keras, weights batches by their size."""
    tracker.update_state(tf.math.divide_no_nan(share, portion), sample_weight=size)
