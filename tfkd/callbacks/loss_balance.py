"""Callback for loss balancing: scales distillation losses by gradient norms or by their values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.distillation import Distiller
from tfkd.types import Data

METHODS = ("gradient_norm", "uncertainty")


class LossBalance(keras.callbacks.Callback):
    """Keeps the distillation losses of a Distiller in proportion to its loss on the labels.

    At the start of every epoch it measures each loss on the same few batches, in inference mode,
    and multiplies the weight wᵢ of each distillation loss by a factor, so that wᵢ itself says how
    much the loss counts beside the labels, whatever its units are:

    - "gradient_norm": by ‖∇L‖ / ‖∇KDᵢ‖, where L is the loss on the labels and the gradients are
      those of the student's trainable weights; as at the start of GradNorm's training (Chen et
      al. 2018, https://arxiv.org/abs/1711.02257). Costs one backward pass per loss and batch.
    - "uncertainty": by L / KDᵢ, the weights that are best for given losses under the homoscedastic
      uncertainty of Kendall et al. 2018, https://arxiv.org/abs/1705.07115: 1 / lossᵢ.

    Without a loss on the labels (`student_loss_weight=0`) the first distillation loss takes its
    place. The factors depend on the weights of the student and the batches alone, so that a
    training that is resumed after an epoch has those of one that never stopped. They are in the
    logs of each epoch as `balance/<name>`, and in `Distiller.scheduled_values`, which TensorBoard
    shows.

    Args:
        data: examples as `fit` takes them: (x, y) or (x, y, sample_weight) of arrays, or a
            `tf.data.Dataset` of batches, such as those of a `TeacherCache`. Read once.
        method: "gradient_norm" or "uncertainty".
        batches: how many batches are read.
        batch_size: examples of a batch, of arrays.
        limit: no factor is above it or below 1 / `limit`: a student that starts as its teacher's
            copy has a distillation loss of 0. A loss without a gradient, or that is 0 or
            negative, keeps the factor that it had.

    Raises:
        TypeError, ValueError: for a bad argument; at the start of training if the model is no
            Distiller, there is nothing to balance, or training runs on several replicas.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> net = lambda units: keras.Sequential([
        ...     keras.layers.Dense(units, "relu", input_shape=(4,)), keras.layers.Dense(3)])
        >>> distiller = tfkd.Distiller(net(32), net(4), tfkd.losses.LogitsDistillation(4.0))
        >>> distiller.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.random.rand(32, 4).astype("float32"), np.arange(32) % 3
        >>> balance = tfkd.callbacks.LossBalance((x, y))
        >>> logs = distiller.fit(x, y, epochs=2, verbose=0, callbacks=[balance]).history
        >>> len(logs["balance/logits_distillation"])
        2
    """

    def __init__(
        self,
        data: Data,
        method: str = "gradient_norm",
        *,
        batches: int = 4,
        batch_size: int = 64,
        limit: float = 100.0,
    ):
        super().__init__()
        self.method = checks.one_of("method", method, METHODS)
        self.limit = checks.finite("limit", limit)
        if limit < 1:
            raise checks.value_error("limit", "a number of at least 1", limit)
        checks.positive_int("batches", batches)
        checks.positive_int("batch_size", batch_size)
        if not isinstance(data, tf.data.Dataset):
            expected = "(x, y) or (x, y, sample_weight) of arrays, or a tf.data.Dataset of batches"
            if not isinstance(data, tuple) or not 1 <= len(data) <= 3:
                raise checks.type_error("data", expected, data)
            data = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
        self._batches = list(itertools.islice(iter(data), batches))
        if not self._batches:
            raise checks.value_error("data", "at least one example", "none")

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Lets the Distiller multiply its weights by factors, which are 1 until they are known."""
        model = self.model
        if not isinstance(model, Distiller):
            expected = "a tfkd.Distiller, which has distillation losses"
            raise checks.type_error("model", expected, model)
        if model.distribute_strategy.num_replicas_in_sync > 1:
            raise checks.value_error("strategy", "one replica", model.distribute_strategy)
        self._names = model.balanced_losses()
        if len(self._names) < 2:
            expected = "at least two losses: one on the labels and one of distillation, or several"
            fix = "Leave LossBalance out: one loss needs no balance."
            raise checks.value_error("model", expected, f"one, {self._names[0]!r}", fix)
        model.balance_by({name: 1.0 for name in self._names[1:]})
        self._measure = tf.function(self._measured, reduce_retracing=True)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures the losses, and sets the factors."""
        sizes = np.mean([np.asarray(self._measure(batch)) for batch in self._batches], axis=0)
        factors = {}
        for name, size in zip(self._names[1:], sizes[1:], strict=True):
            if size > 0 and sizes[0] > 0 and np.isfinite(size / sizes[0]):
                factors[name] = float(np.clip(sizes[0] / size, 1 / self.limit, self.limit))
        self.model.balance_by(factors)
        self.model.reset_metrics()  # Keras's losses have counted these batches

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Adds the factors to the logs."""
        if logs is not None:
            for name, factor in self.model.balance.items():
                logs[f"balance/{name}"] = factor

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Leaves the weights as they were passed to the Distiller."""
        self.model.balance_by(None)

    def _measured(self, batch: Any) -> tf.Tensor:
        """Gradient norm, or value, of each loss on a batch."""
        weights = self.model.student.trainable_weights
        with tf.GradientTape(persistent=True) as tape:
            found = self.model.separate_losses(batch)
            values = [found[name] for name in self._names]
        if self.method == "uncertainty":
            return tf.stack(values)
        gradients = [
            tape.gradient(value, weights, unconnected_gradients="zero") for value in values
        ]
        return tf.stack([tf.linalg.global_norm([tf.cast(g, tf.float32) for g in each])
                         for each in gradients])  # fmt: skip
