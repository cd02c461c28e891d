"""Attention as Keras 3 computes it where a query may look at nothing."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable(package="tfkd")
class MaskedAttention(keras.layers.MultiHeadAttention):
    """`MultiHeadAttention` whose weights are 0 wherever the mask forbids to look.

    Keras 2 spreads the weights of a query evenly if everything is masked, as for
    the padding at the end of a sentence; Keras 3 sets them to zero.
    """

    def _masked_softmax(self, attention_scores: Any, attention_mask: Any = None) -> Any:
        weights = super()._masked_softmax(attention_scores, attention_mask)
        if attention_mask is None:
            return weights
        axis = -2 * len(self._attention_axes) - 1
        for _ in range(len(weights.shape) - len(attention_mask.shape)):
            attention_mask = tf.expand_dims(attention_mask, axis)
        return tf.where(tf.cast(attention_mask, "bool"), weights, tf.zeros_like(weights))


def sees_masks(layer: Any) -> bool:
    """True if a Keras 3 attention layer is called with a mask, or with masked tensors."""
    for node in layer._inbound_nodes:
        args, kwargs = node.arguments.args, node.arguments.kwargs
        if any(key.endswith("mask") and value is not None for key, value in kwargs.items()):
            return True
        if any(getattr(t, "_keras_mask", None) is not None for t in node.input_tensors):
            return True
        if len(args) > 3:  # query, value, key, masks
            return True
    return False
