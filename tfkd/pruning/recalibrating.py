"""Batch-norm recalibration: re-estimates moving means and variances from data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.networks.accept import check_finite, check_model
from tfkd.networks.layer_parts import flat_layers
from tfkd.types import Data


def recalibrate(
    model: keras.Model, data: Data, max_examples: int | None = None, batch_size: int = 128
) -> int:
    """Replaces each moving mean and variance by its average over batches of data.

    After pruning or filter decay, the statistics of the following layers are stale, which
    lowers the accuracy of the model in inference (Li et al. 2020, EagleEye,
    https://arxiv.org/abs/2007.02491). No other weight changes, and dropout stays off.
    Layers that are not trainable keep their statistics, as in training, except for those
    that `tfkd.quantization.quantize` froze. Calibrate a quantized model again afterwards.

    Args:
        model: any built `tf_keras` model; changed in place.
        data: examples as the model takes them, in any form of `tfkd.example_inputs`.
        max_examples: maximum number of examples; None: as in `tfkd.example_inputs`.
        batch_size: examples per batch, if `data` are arrays.

    Returns:
        The number of batches used.

    Raises:
        TypeError: if `model` is not a `tf_keras` model.
        ValueError: if there are no examples, or examples or weights other than these
            statistics are NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> images = np.random.default_rng(0).normal(3, 2, (64, 32, 32, 3)).astype("float32")
        >>> pruning.recalibrate(model, images, batch_size=32)
        2
    """
    check_model("model", model)
    checks.positive_int("batch_size", batch_size)
    inputs = example_inputs.inputs_of(model)
    batches = example_inputs.batches(
        "data", data, inputs, batch_size=batch_size, max_examples=max_examples, strict=False
    )
    # A quantized model keeps its batch normalizations frozen outside of this context.
    with getattr(model, "recalibrating", contextlib.nullcontext)():
        return _recalibrate(model, batches)


def _recalibrate(model: keras.Model, batches: Iterable[example_inputs.Batch]) -> int:
    norms = [layer for layer in flat_layers(model) if _is_norm(layer) and layer.trainable]
    statistics = [w for norm in norms for w in (norm.moving_mean, norm.moving_variance)]
    check_finite("model", model, but=statistics)
    count = 0
    before = [(layer, layer.get_weights()) for layer in norms]
    try:
        for weight in statistics:  # 0 · NaN and 0 · infinity would spoil the average
            weight.assign(tf.where(tf.math.is_finite(weight), weight, 0.0))
        with _in_training(norms):
            for batch in batches:
                for layer in norms:
                    # Momenta 0, 1/2, 2/3, ... make the moving average a plain average.
                    layer.momentum = count / (count + 1)
                model(example_inputs.packed(model, batch.x), training=False)
                count += 1
    except Exception:
        for layer, weights in before:
            layer.set_weights(weights)
        raise
    return count


def _is_norm(layer: Any) -> bool:
    return hasattr(layer, "moving_mean") and hasattr(layer, "momentum")


@contextlib.contextmanager
def _in_training(norms: list[Any]) -> Iterator[None]:
    """Makes batch normalizations use batch statistics and update their moving averages."""
    before = [(layer, layer.momentum) for layer in norms]

    # Calling the model with training=True instead would also switch dropout on.
    def training(call: Any) -> Any:
        def with_batch(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return call(inputs, training=True, mask=mask)

        return with_batch

    for layer, _ in before:
        layer.call = training(layer.call)
    try:
        yield
    finally:
        for layer, momentum in before:
            del layer.call
            layer.momentum = momentum
