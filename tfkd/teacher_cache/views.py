"""Views: augmentation as a function of (example, view) only.

Batch augmentation draws its random numbers per batch, so the same image changes with
the batch that it is in. Cached teacher outputs apply only if the image looks the same
again, so each example is augmented separately, with a seed made of its index and the
index of the view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfkd.types import Structure, Tensor

Augment = Callable[[Any, Any], Any]
_PRIME = 1_000_033  # keeps the seeds of (view, seed) pairs apart for seeds below it


def seeds(index: Tensor, view: Tensor, seed: int) -> tf.Tensor:
    """int32 (B, 2): one seed for each (example, view)."""
    index, view = tf.cast(index, tf.int32), tf.cast(view, tf.int32)
    return tf.stack([index, view * _PRIME + seed], axis=-1)


def augmented(augment: Augment, x: Structure, index: Tensor, view: Tensor, seed: int) -> Structure:
    """Augments each example of a batch separately.

    Args:
        augment: `augment(batch, seed)` → batch, as in `tfkd.data.batches`.
        x: a batch, (B, ...) or a dict, list or tuple of such.
        index: (B,) indices of the examples in the data.
        view: (B,) indices of their views.
        seed: seed of the augmentation.
    """

    def one(example, key):
        alone = tf.nest.map_structure(lambda tensor: tensor[None], example)
        return tf.nest.map_structure(lambda tensor: tensor[0], augment(alone, key))

    inner = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape[1:], tensor.dtype), x)
    made = tf.function(one, input_signature=[inner, tf.TensorSpec((2,), tf.int32)], autograph=False)
    outputs = made.get_concrete_function().structured_outputs
    outputs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
    pairs = (x, seeds(index, view, seed))
    return tf.map_fn(lambda pair: made(*pair), pairs, fn_output_signature=outputs)
