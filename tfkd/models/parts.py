"""Shared parts of the models: the check of an image's shape, and the classification head."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from tfkd import checks


def check_image_shape(
    input_shape: Sequence[int | None], smallest: int = 1, expected: str = "an integer of at least 1"
) -> None:
    """Raises unless it is (height, width, channels), with sides None or at least `smallest`."""
    if not isinstance(input_shape, Sequence) or len(input_shape) != 3:
        shape = "(height, width, channels) of one image, without the batch"
        raise checks.value_error("input_shape", shape, input_shape)
    for side in input_shape[:2]:
        if side is not None:
            checks.integer("input_shape", side, smallest, expected)
    checks.positive_int("input_shape", input_shape[2])


def logits(
    x: tf.Tensor, num_classes: int, regularizer: keras.regularizers.Regularizer | None
) -> tf.Tensor:
    """Adds the dense layer `logits`, in float32 also under a mixed-precision policy."""
    # bfloat16 has 8 binary digits, so it would keep only two decimal digits of logits.
    compute = keras.mixed_precision.global_policy().compute_dtype
    return keras.layers.Dense(
        num_classes,
        dtype="float32" if compute in ("bfloat16", "float16") else None,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer,
        name="logits",
    )(x)
