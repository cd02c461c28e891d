"""Views: an augmentation that is a function of (example, view) alone.

An augmentation of a batch draws its numbers for the batch: the same image is moved
otherwise beside other images. What a teacher said of it can be read back only if the
image looks the same again, so each example is augmented by itself, with a seed made of
its place in the data and the number of the view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Augment = Callable[[Any, Any], Any]
_PRIME = 1_000_033


def seeds(index: Any, view: Any, seed: int) -> Any:
    """int32 (B, 2): one seed for each (example, view)."""
    index, view = tf.cast(index, tf.int32), tf.cast(view, tf.int32)
    return tf.stack([index, view * _PRIME + seed], axis=-1)


def augmented(augment: Augment, x: Any, index: Any, view: Any, seed: int) -> Any:
    """Augments each example of a batch by itself.

    Args:
        augment: `augment(batch, seed)` → batch, as in `tfkd.data.batches`.
        x: a batch, (B, ...) or a dict, list or tuple of such.
        index: (B,) places of the examples in the data.
        view: (B,) numbers of their views.
        seed: which augmentation.
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
