"""Multi-head attention that zeroes fully masked queries, as Keras 3 does."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.networks.layer_parts import calls_anywhere
from tfkd.pruning import register_rule
from tfkd.pruning.rules.attention import attention


@keras.saving.register_keras_serializable(package="tfkd")
class MaskedAttention(keras.layers.MultiHeadAttention):
    """`MultiHeadAttention` whose attention weights are 0 at all masked positions.

    If all positions are masked, as for a padded query at the end of a sentence, Keras 2
    attends uniformly; Keras 3 sets the weights to zero, unless it takes its fused path.
    """

    def _masked_softmax(self, attention_scores: Any, attention_mask: Any = None) -> Any:
        weights = super()._masked_softmax(attention_scores, attention_mask)
        if attention_mask is None:
            return weights
        axis = -2 * len(self._attention_axes) - 1
        for _ in range(len(weights.shape) - len(attention_mask.shape)):
            attention_mask = tf.expand_dims(attention_mask, axis)
        return tf.where(tf.cast(attention_mask, "bool"), weights, tf.zeros_like(weights))


# Pruning rules are not inherited: register the rule of the base class.
register_rule(MaskedAttention, attention)


def zeroes_masked(layer: Any) -> bool:
    """True if a Keras 3 attention layer is called with masks and zeroes masked weights.

    Keras 3 does so where it computes the weights explicitly: with dropout, to return them,
    or for tensors that don't have three axes. Its fused path attends uniformly, as Keras 2.
    """
    nodes = calls_anywhere(layer)
    stepwise = layer.get_config()["dropout"] > 0 or any(
        len(node.outputs) > 1 or len(node.input_tensors[0].shape) != 3 for node in nodes
    )
    return stepwise and any(_sees_masks(node) for node in nodes)


def _sees_masks(node: Any) -> bool:
    args, kwargs = node.arguments.args, node.arguments.kwargs
    return (
        any(key.endswith("mask") and value is not None for key, value in kwargs.items())
        or any(getattr(tensor, "_keras_mask", None) is not None for tensor in node.input_tensors)
        or len(args) > 3  # query, value, key, masks
    )
