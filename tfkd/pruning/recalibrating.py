"""Takes the moving statistics of batch normalization from data anew."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks import layer_weights
from tfkd.networks.accept import BUILT, check_model
from tfkd.networks.layer_parts import flat_layers


def recalibrate(
    model: keras.Model, data: Any, steps: int | None = None, batch_size: int = 128
) -> int:
    """Replaces each moving mean and variance by the average over batches of data.

    After filters were cut out or have decayed, the statistics of the layers
    behind them are stale, and the model looks worse in inference than it is. No
    other weight changes, and dropout stays off. Layers that are not trainable
    keep their statistics, as in training; those that `tfkd.quantization.quantize` froze
    do not. A quantized model is to be calibrated anew afterwards.

    Args:
        model: any built `tf_keras` model; changed in place.
        data: inputs (batch first; a list or dict of arrays as the model takes
            them), or an iterable of batches such as a `tf.data.Dataset`, of
            inputs alone or of (inputs, labels, ...) tuples.
        steps: batches to use; None: all. Needed if the data never end.
        batch_size: examples a batch, where `data` are arrays.

    Returns:
        The number of batches that were used.

    Raises:
        TypeError: if `model` is not a `tf_keras` model.
        ValueError: if there is no batch, or a batch or a weight, other than these
            statistics, has NaN or infinity.

    Example:
        >>> import numpy as np
        >>> from tfkd import models, pruning
        >>> model = models.resnet(8)
        >>> images = np.random.default_rng(0).normal(3, 2, (64, 32, 32, 3)).astype("float32")
        >>> pruning.recalibrate(model, images, batch_size=32)
        2
    """
    check_model("model", model, BUILT)
    checks.positive_int("batch_size", batch_size)
    if steps is not None:
        checks.positive_int("steps", steps)
    # A quantized model holds its batch normalizations frozen.
    with getattr(model, "recalibrating", contextlib.nullcontext)():
        return _recalibrate(model, data, steps, batch_size)


def _recalibrate(model: keras.Model, data: Any, steps: int | None, batch_size: int) -> int:
    norms = [layer for layer in flat_layers(model) if _is_norm(layer) and layer.trainable]
    statistics = [w for norm in norms for w in (norm.moving_mean, norm.moving_variance)]
    layer_weights.check_finite("model", model, but=statistics)
    count = 0
    before = [(layer, layer.get_weights()) for layer in norms]
    try:
        for weight in statistics:  # 0 times infinity is none of what comes
            weight.assign(tf.where(tf.math.is_finite(weight), weight, 0.0))
        with _in_training(norms):
            for batch in itertools.islice(_batches(data, batch_size), steps):
                for layer in norms:
                    # The average of all batches so far: 0, 1/2, 2/3, ...
                    layer.momentum = count / (count + 1)
                _check(batch, count)
                model(batch, training=False)
                count += 1
        if not count:
            raise checks.value_error("data", "at least one batch", "none")
    except Exception:
        for layer, weights in before:
            layer.set_weights(weights)
        raise
    return count


def _is_norm(layer: Any) -> bool:
    return hasattr(layer, "moving_mean") and hasattr(layer, "momentum")


def _check(batch: Any, number: int) -> None:
    for value in tf.nest.flatten(batch):
        value = np.asarray(value)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise checks.value_error("data", "finite numbers", f"NaN or infinity in batch {number}")


def _batches(data: Any, batch_size: int) -> Iterator[Any]:
    """Batches of inputs, without labels."""
    leaves = tf.nest.flatten(data) if isinstance(data, (np.ndarray, tf.Tensor, dict, list)) else []
    if leaves and all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves):
        total = len(leaves[0])
        for first in range(0, total, batch_size):
            part = slice(first, first + batch_size)
            yield tf.nest.map_structure(lambda leaf, part=part: leaf[part], data)
        return
    if not isinstance(data, Iterable):
        raise checks.type_error("data", "arrays, or an iterable of batches", data)
    for batch in data:
        yield batch[0] if isinstance(batch, tuple) else batch


@contextlib.contextmanager
def _in_training(norms: list[Any]) -> Iterator[None]:
    """Makes batch normalizations use, and note, the statistics of the batch."""
    before = [(layer, layer.momentum) for layer in norms]

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
