"""Text classifiers on token ids: a transformer encoder (BERT-like), and averaged embeddings.

Both take ids (B, L) as `tfkd.data.TextDataset.vectorize` returns them: padded on the
right with id 0 to L positions. Padding is masked, both in attention and in the average
pooling before the last layers. For a text without tokens the mean is taken over its
padding, so that it is not NaN. The heads return **logits**.

References: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Devlin et al. 2018,
https://arxiv.org/abs/1810.04805; Xiong et al. 2020, https://arxiv.org/abs/2002.04745
(pre-norm); Iyyer et al. 2015, https://aclanthology.org/P15-1162 (averaged embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.models import parts

PADDING = 0


def _check_common(vocab_size: int, num_classes: int, max_length: int, dropout: float) -> None:
    """Checks the arguments that both models have."""
    checks.integer("vocab_size", vocab_size, 2, "an integer of at least 2: id 0 is the padding")
    checks.positive_int("num_classes", num_classes)
    checks.positive_int("max_length", max_length)
    checks.fraction("dropout", dropout)
    if dropout == 1:
        raise checks.value_error("dropout", "a number of at least 0 and below 1", dropout)


def _words(tokens: tf.Tensor, vocab_size: int, width: int) -> tf.Tensor:
    """The embedding of each token, with the Keras mask of the padding."""
    return keras.layers.Embedding(vocab_size, width, mask_zero=True, name="words")(tokens)


def _mean(x: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """The mean over the positions that hold a token."""
    used = tf.not_equal(tokens, PADDING)
    # True at tokens, and everywhere in a row without any, for which 0/0 would be NaN.
    counted = tf.equal(used, tf.reduce_any(used, axis=1, keepdims=True))
    return keras.layers.GlobalAveragePooling1D(name="pool")(x, mask=counted)


def text_mlp(
    vocab_size: int,
    num_classes: int,
    max_length: int = 64,
    width: int = 32,
    hidden: Sequence[int] = (64,),
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier on the mean of the word embeddings (deep averaging network).

    It ignores the order of the words, but is very fast. Layers: `words`, `pool`, `hidden1`,
    `hidden2`, ..., `logits`.

    Reference: Iyyer et al. 2015, https://aclanthology.org/P15-1162

    Args:
        vocab_size: number of token ids V; ids are 0 (padding) to V - 1.
        num_classes: number of outputs C.
        max_length: tokens of a text, L.
        width: size of the embeddings.
        hidden: units of the layers between the mean and the logits; may be empty.
        dropout: dropout rate of the mean and of each hidden layer's outputs.
        name: model name; default "text_mlp", followed by other sizes than the default.

    Returns:
        A functional `tf_keras.Model`, (B, L) int32 → (B, C) logits.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is not positive or `dropout` not in [0, 1).

    Example:
        >>> import numpy as np
        >>> from tfkd.models import text_mlp
        >>> model = text_mlp(vocab_size=1000, num_classes=2, max_length=8, width=16)
        >>> model(np.array([[4, 7, 2, 0, 0, 0, 0, 0]])).shape, model.count_params()
        (TensorShape([1, 2]), 17218)
    """
    _check_common(vocab_size, num_classes, max_length, dropout)
    checks.positive_int("width", width)
    expected = "a sequence of layer sizes, which may be empty"
    sizes = parts.check_widths("hidden", hidden, expected)
    tokens = keras.Input((max_length,), dtype="int32", name="tokens")
    x = _mean(_words(tokens, vocab_size, width), tokens)
    x = keras.layers.Dropout(dropout, name="pool_dropout")(x)
    for index, units in enumerate(sizes, start=1):
        own = f"hidden{index}"
        x = keras.layers.Dense(units, "relu", kernel_initializer="he_normal", name=own)(x)
        x = keras.layers.Dropout(dropout, name=f"{own}_dropout")(x)
    name = name or parts.sized_name("text_mlp", (width, *sizes), (32, 64))
    return keras.Model(tokens, parts.logits(x, num_classes, None), name=name)


def text_transformer(
    vocab_size: int,
    num_classes: int,
    max_length: int = 64,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.1,
    name: str | None = None,
) -> keras.Model:
    """Builds a BERT-like transformer encoder that classifies the mean of its last layer.

    As in BERT, it has learned embeddings of tokens and positions, layers of self-attention
    and of two dense layers with GELU between them, and dropout on every branch. There are
    two differences. Layer normalization precedes each branch and follows the last layer
    (pre-norm) instead of following each sum: such a model trains without a warm-up, and
    single branches can be removed. And the head reads the mean over all positions, since
    there is no pretrained [CLS] token.

    The output of each encoder layer is that of a Keras layer named `layer1`, `layer2`, ...,
    for use in feature losses; padding is masked in it. Each has two blocks,
    `layer1_attention` and `layer1_mlp`, and
    `tfkd.pruning.cut_layers(model, drop="layer2_*")` removes both.
    `tfkd.pruning.choose_layers(model, keep, granularity="layer")` chooses the layers to remove.

    Reference: Devlin et al. 2018, https://arxiv.org/abs/1810.04805; Xiong et al.
    2020, https://arxiv.org/abs/2002.04745

    Args:
        vocab_size: number of token ids V; ids are 0 (padding) to V - 1.
        num_classes: number of outputs C.
        max_length: tokens of a text, L.
        layers: number of encoder layers.
        width: size of the embeddings; `heads` must divide it.
        heads: attention heads, each of size width / heads.
        hidden: units of the hidden dense layer; default 4 · width.
        dropout: dropout rate of the embeddings, of attention and of each branch.
        name: model name; default `text_transformer{layers}`, followed by another width.

    Returns:
        A functional `tf_keras.Model`, (B, L) int32 → (B, C) logits.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is not positive, `heads` does not divide `width`, or
            `dropout` is not in [0, 1).

    Example:
        >>> from tfkd.models import text_transformer
        >>> model = text_transformer(1000, num_classes=2, max_length=16, width=32)
        >>> model.get_layer("layer2").output_shape, model.count_params()
        ((None, 16, 32), 58050)
    """
    _check_common(vocab_size, num_classes, max_length, dropout)
    for key, size in {"layers": layers, "width": width, "heads": heads}.items():
        checks.positive_int(key, size)
    if width % heads:
        raise checks.value_error("heads", f"a number that divides the width, {width}", heads)
    hidden = 4 * width if hidden is None else checks.positive_int("hidden", hidden)
    tokens = keras.Input((max_length,), dtype="int32", name="tokens")
    x = _places(_words(tokens, vocab_size, width), tokens, max_length, width)
    x = keras.layers.Dropout(dropout, name="embedded_dropout")(x)
    for index in range(1, layers + 1):
        x = _encoder_layer(x, width, heads, hidden, dropout, f"layer{index}")
    x = _mean(_norm(x, "norm"), tokens)
    x = keras.layers.Dropout(dropout, name="pool_dropout")(x)
    outputs = parts.logits(x, num_classes, None)
    name = name or parts.sized_name(f"text_transformer{layers}", (width,), (128,))
    return keras.Model(tokens, outputs, name=name)


def _places(x: tf.Tensor, tokens: tf.Tensor, max_length: int, width: int) -> tf.Tensor:
    """Adds the embedding of its position (0, 1, 2, ...) to that of each token."""
    places = tf.cumsum(tf.ones_like(tokens), axis=1, exclusive=True)
    table = keras.layers.Embedding(max_length, width, name="places")
    return keras.layers.Add(name="embedded")([x, table(places)])


def _norm(x: tf.Tensor, name: str) -> tf.Tensor:
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)


def _encoder_layer(
    x: tf.Tensor, width: int, heads: int, hidden: int, dropout: float, name: str
) -> tf.Tensor:
    """Pre-norm encoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""
    y = _norm(x, f"{name}_attention_norm")
    options = {"dropout": dropout, "name": f"{name}_attention"}
    y = keras.layers.MultiHeadAttention(heads, width // heads, **options)(y, y)
    y = keras.layers.Dropout(dropout, name=f"{name}_attention_dropout")(y)
    x = keras.layers.Add(name=f"{name}_attention_sum")([x, y])
    y = _norm(x, f"{name}_mlp_norm")
    y = keras.layers.Dense(hidden, "gelu", name=f"{name}_mlp_hidden")(y)
    y = keras.layers.Dense(width, name=f"{name}_mlp_out")(y)
    y = keras.layers.Dropout(dropout, name=f"{name}_mlp_dropout")(y)
    return keras.layers.Add(name=name)([x, y])
