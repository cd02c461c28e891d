"""Creation of the optimizer's and the metrics' variables before a training step is traced.

TensorFlow traces a function twice if the first trace creates variables.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.distillation.evaluation import is_for_evaluation
from tfkd.losses.joint import JointLoss
from tfkd.networks.layer_parts import flat_layers, output_form


def create(owner: Any, batch: Any) -> None:
    """Creates what the first step would create, as far as it is known without a trace.

    Args:
        owner: the compiled Distiller, in the scope of its strategy.
        batch: the specification of an element of the training data.
    """
    everything_built = all(layer.built for layer in flat_layers(owner, include_self=False))
    # A legacy optimizer has no `build`.
    if everything_built and isinstance(owner.optimizer, keras.optimizers.Optimizer):
        owner.optimizer.build(owner.trainable_variables)
    outputs, y = output_form(owner.student), keras.utils.unpack_x_y_sample_weight(batch)[1]
    y = tf.nest.map_structure(_of_one_replica, y)
    if outputs is None or y is None or any(_rank(one) is None for one in tf.nest.flatten(y)):
        return
    _build(owner, outputs, y)
    if is_for_evaluation(owner.student):
        # Else Keras, when it saves the student, takes its outputs for the labels.
        _build(owner.student, outputs, y)


def _build(model: Any, outputs: Any, y: Any) -> None:
    """Makes the losses and metrics that `compile` was given."""
    losses, metrics = model.compiled_loss, model.compiled_metrics
    if losses._user_losses is not None and not losses.built and not isinstance(losses, JointLoss):
        losses.build(outputs)
    chosen = tf.nest.flatten([metrics._user_metrics, metrics._user_weighted_metrics])
    if not metrics.built and any(metric is not None for metric in chosen):
        metrics.build(outputs, metrics._conform_to_outputs(outputs, y))


def _of_one_replica(spec: Any) -> Any:
    """The specification on the first replica, of data that a strategy has distributed."""
    return getattr(spec, "_value_specs", (spec,))[0]


def _rank(spec: Any) -> int | None:
    return getattr(getattr(spec, "shape", None), "rank", None)
