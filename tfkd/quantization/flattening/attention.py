"""Decomposes multi-head attention into four dense projections and `HeadAttention`.

Most of the computation of an attention layer, and all of its weights, are in four linear
projections, for which integer runtimes have kernels if they are dense layers. The remaining
softmax(q·kᵀ)·v has no weights and stays in float.

Reference: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd.networks.rebuild import Parts

layers = keras.layers
# These do not depend on the shape of a kernel, which changes; others might.
_REGULARIZERS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


@keras.saving.register_keras_serializable("tfkd")
class HeadAttention(keras.layers.Layer):
    """Scaled dot-product attention softmax(q·kᵀ/√d)·v per head, without projections.

    Args:
        heads: number of heads, among which the last axis is divided.
        dropout: dropout rate of the attention weights in training.
        robust_masking: set masked scores to −10⁹ instead of subtracting it.

    Example:
        >>> x = tf.constant([[[1.0, 0.0], [0.0, 1.0]]])
        >>> HeadAttention(heads=1)([x, 0 * x, x]).numpy().tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """

    def __init__(
        self, heads: int, dropout: float = 0.0, robust_masking: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.heads, self.dropout = int(heads), float(dropout)
        self.robust_masking = bool(robust_masking)
        self.supports_masking = True
        self._softmax = layers.Softmax(robust_masking=self.robust_masking)
        self._dropout_layer = layers.Dropout(self.dropout)

    def call(
        self,
        inputs: Sequence[tf.Tensor],
        attention_mask: tf.Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | tf.Tensor | None = None,
        use_causal_mask: bool = False,
        mask: Sequence[tf.Tensor | None] | None = None,
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """Query (B, T, H·d), key (B, S, H·d), value (B, S, H·e) → (B, T, H·e).

        Args:
            inputs: a list of query, key and value.
            attention_mask: (B, T, S), True where a query may attend.
            return_attention_scores: also return the attention weights, (B, H, T, S).
            training: whether to apply dropout.
            use_causal_mask: prevent queries from attending to later positions.
            mask: a list of the masks of the inputs, (B, T) or (B, S), or None.
        """
        query, key, value = (self._split(x) for x in inputs)
        query = tf.multiply(query, 1.0 / math.sqrt(float(query.shape[-1])))
        # a: batch, b: query position, c: head, d: channel, e: key position. These are the
        # equations of Keras, so that rounding is the same, too.
        scores = tf.einsum("aecd,abcd->acbe", key, query)
        allowed = _allowed(scores, mask or [None] * 3, attention_mask, use_causal_mask)
        weights = self._softmax(scores, None if allowed is None else allowed[:, None])
        dropped = self._dropout_layer(weights, training=training)
        result = tf.einsum("acbe,aecd->abcd", dropped, value)
        result = tf.reshape(result, _shape(inputs[0], [self.heads * value.shape[-1]]))
        return (result, weights) if return_attention_scores else result

    def _split(self, x: Any) -> Any:
        return tf.reshape(x, _shape(x, [self.heads, x.shape[-1] // self.heads]))

    def compute_mask(
        self, inputs: Sequence[tf.Tensor], mask: Sequence[tf.Tensor | None] | None = None
    ) -> tf.Tensor | None:
        """The mask of the query."""
        return None if mask is None else mask[0]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"heads": self.heads, "dropout": self.dropout, "robust_masking": self.robust_masking}
        return {**super().get_config(), **own}


def _shape(x: Any, last: list[int]) -> Any:
    """The shape (B, T, *last) for a tensor (B, T, ...), static if T is known."""
    if x.shape[1] is not None:
        return [-1, x.shape[1], *last]
    return [tf.shape(x)[0], tf.shape(x)[1], *last]


def _allowed(scores: Any, masks: Any, attention_mask: Any, causal: bool) -> Any:
    """The combined mask (B, T, S), True where a query may attend; None: no mask."""
    query, key, value = (None if m is None else tf.cast(m, tf.bool) for m in masks)
    found = [] if query is None else [query[:, :, None]]
    found += [m[:, None, :] for m in (value, key) if m is not None]
    if causal:
        size = tf.shape(scores)
        found.append(tf.linalg.band_part(tf.ones((1, size[2], size[3]), tf.bool), -1, 0))
    if not found:
        return attention_mask
    if attention_mask is not None:
        found.insert(0, tf.cast(attention_mask, tf.bool))
    result = found[0]
    for other in found[1:]:
        result = result & other
    return result


class AttentionParts(Parts):
    """Projections of query, key and value, `HeadAttention`, and the output projection."""

    def __call__(
        self,
        query: tf.Tensor,
        value: tf.Tensor,
        key: tf.Tensor | None = None,
        attention_mask: tf.Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | tf.Tensor | None = None,
        use_causal_mask: bool = False,
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        """The same signature and result as `MultiHeadAttention`."""
        to_query, to_key, to_value, attend, to_output = self
        key = value if key is None else key
        made = attend(
            [to_query(query), to_key(key), to_value(value)],
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
            training=training,
            use_causal_mask=use_causal_mask,
        )
        if not return_attention_scores:
            return to_output(made)
        return to_output(made[0]), made[1]

    def take(self, layer: keras.layers.MultiHeadAttention) -> None:
        """Copies weights and `trainable` flags; the heads of a kernel become one axis."""
        dense = [part for part in self if isinstance(part, layers.Dense)]
        for old, new in zip(_projections(layer), dense, strict=True):
            for source, target in zip(old.weights, new.weights, strict=True):
                target.assign(tf.reshape(source, target.shape))
            new.trainable = layer.trainable and old.trainable


def split_attention(
    layer: keras.layers.Layer, name: str, unique: Callable[[str], str]
) -> Parts | None:
    """Decomposes a `MultiHeadAttention` over the second of three axes; None for other layers.

    Args:
        layer: a built layer.
        name: name of the output projection, and prefix of the names of the other parts.
        unique: name → that name or a similar one that is not taken.
    """
    if type(layer) is not layers.MultiHeadAttention or not _is_plain(layer):
        return None

    def dense(units: int, own: str) -> keras.layers.Dense:
        return layers.Dense(
            units,
            use_bias=layer._use_bias,
            kernel_regularizer=layer._kernel_regularizer,
            bias_regularizer=layer._bias_regularizer,
            name=own,
            dtype=layer.dtype,
        )

    heads = layer._num_heads
    sizes = {"query": layer._key_dim, "key": layer._key_dim, "value": layer._value_dim}
    attend = HeadAttention(
        heads,
        layer._dropout,
        layer._softmax_robust_masking,
        name=unique(f"{name}_heads"),
        dtype=layer.dtype,
    )
    return AttentionParts(
        [
            *(dense(heads * size, unique(f"{name}_{part}")) for part, size in sizes.items()),
            attend,
            dense(layer._output_dense.kernel.shape[-1], name),
        ]
    )


def _projections(layer: keras.layers.MultiHeadAttention) -> list[keras.layers.Layer]:
    return [layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense]


def _is_plain(layer: keras.layers.MultiHeadAttention) -> bool:
    """True if dense layers can replace the projections."""
    shapes = (layer._query_shape, layer._key_shape, layer._value_shape)
    over_second = tuple(layer._attention_axes) == (1,) and all(s.rank == 3 for s in shapes)
    regularizers = (layer._kernel_regularizer, layer._bias_regularizer)
    others = (layer._kernel_constraint, layer._bias_constraint, layer._activity_regularizer)
    return (
        over_second
        and layer._output_dense.kernel.shape.rank == 3
        and all(r is None or type(r) in _REGULARIZERS for r in regularizers)
        and all(other is None for other in others)
    )
