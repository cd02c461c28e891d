"""Losses on the labels that look at all of a model's outputs at once.

Keras gives every output a loss of its own. A detector's boxes and classes have one
together: which priors count is decided by both. A `JointLoss` takes the place of Keras's
container of losses, so that it goes into `compile(loss=...)` of any tf_keras model, and
of a Distiller.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.engine.compile_utils import LossesContainer

from tfkd import replicas
from tfkd.losses.base import Shared, mean_of


class JointLoss(LossesContainer):
    """Base of a loss on all outputs together; its parts are logged under their names.

    A subclass implements `parts`, and names them in `part_names`.

    Args:
        name: name of the loss.
    """

    part_names: tuple[str, ...] = ()

    def __init__(self, name: str):
        # Past the container's own constructor: it makes variables, and this loss may be
        # made outside the scope of the strategy that trains with it.
        super(LossesContainer, self).__init__()
        self.name = name
        self._user_losses = self._losses = name
        self._user_loss_weights = self._loss_weights = None
        self._built = True
        self._means: list[Any] = []

    def parts(self, y: Any, y_pred: Any, sample_weight: Any, shared: Shared) -> list[Any]:
        """(weight, sum, count) of each part over this replica's batch; count None: a sum."""
        raise NotImplementedError

    def share(self, y: Any, y_pred: Any, sample_weight: Any, shared: Shared | None = None) -> Any:
        """This replica's share of the loss over the global batch: a float32 scalar."""
        result = tf.constant(0.0)
        # Each replica's part is of the whole: their number turns it into its own mean.
        scale = float(replicas.count())
        parts = self.parts(y, y_pred, sample_weight, shared or Shared([self]))
        for (weight, total, count), tracker in zip(parts, self.metrics[1:], strict=True):
            value = mean_of(total, None if count is None else replicas.global_sum(count))
            tracker.update_state(value * scale)
            result += weight * value
        return result

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None, regularization_losses: Any = None
    ) -> Any:
        """What `keras.Model.compute_loss` minimises: the share, and the penalties' share."""
        loss = self.share(y_true, y_pred, sample_weight)
        scale = float(replicas.count())
        if regularization_losses:
            loss += tf.add_n([tf.cast(r, tf.float32) for r in regularization_losses]) / scale
        self.metrics[0].update_state(loss * scale)
        return loss

    def build(self, y_pred: Any) -> None:
        """Nothing to do: no part depends on the outputs' structure."""

    @property
    def metrics(self) -> list[Any]:
        """Means over the epoch: the loss, and each part."""
        if not self._means:
            with tf.init_scope():
                self._means = [keras.metrics.Mean(name=n) for n in ("loss", *self.part_names)]
        return self._means

    def reset_state(self) -> None:
        """Starts the means again."""
        for metric in self.metrics:
            metric.reset_state()
