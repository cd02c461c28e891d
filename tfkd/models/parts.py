"""Shared parts of the models: the check of an image's shape, and the classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def check_widths(name: str, widths: Sequence[int] | str, expected: str) -> tuple[int, ...]:
    """Accepts a sequence of integers of at least 1, described to the user as `expected`."""
    if not isinstance(widths, Sequence) or isinstance(widths, (str, bytes)):
        raise checks.type_error(name, expected, widths)
    return tuple(checks.positive_int(name, width) for width in widths)


def sized_name(base: str, sizes: Sequence[int], usual: Sequence[int]) -> str:
    """`base`, and the sizes if they are not the usual ones: a teacher and its smaller student.

    Example:
        >>> sized_name("resnet8", (8, 16), (16, 32, 64)), sized_name("vgg16", (64,), (64,))
        ('resnet8_8_16', 'vgg16')
    """
    return base if tuple(sizes) == tuple(usual) else "_".join([base, *map(str, sizes)])


def l2(weight_decay: float) -> keras.regularizers.Regularizer | None:
    """The regularizer of a weight decay, which may be 0."""
    return keras.regularizers.L2(weight_decay) if weight_decay else None


def conv_norm(
    x: tf.Tensor, width: int, kernel: int, name: str, epsilon: float = 1e-3, **options: Any
) -> tf.Tensor:
    """A convolution with `options` of Conv2D, without a bias, and batch normalization."""
    options = {"padding": "same", "use_bias": False, **options}
    x = keras.layers.Conv2D(width, kernel, name=f"{name}_conv", **options)(x)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=f"{name}_bn")(x)


def stage_names(stage: int, depth: int) -> list[tuple[str, str]]:
    """(prefix of the layers, name of the ReLU) of a stage's convolutions or blocks.

    The last ReLU has the name of the stage, by which others find its output.
    """
    names = [f"stage{stage}_{number}" for number in range(1, depth + 1)]
    return [(name, f"{name}_relu") for name in names[:-1]] + [(names[-1], f"stage{stage}")]


def output_dtype() -> str | None:
    """The dtype of offsets and scores: float32 where the policy's is of lower precision.

    bfloat16 has 8 binary digits, so it would keep only two decimal digits of them.
    """
    compute = keras.mixed_precision.global_policy().compute_dtype
    return "float32" if compute in ("bfloat16", "float16") else None


def logits(
    x: tf.Tensor, num_classes: int, regularizer: keras.regularizers.Regularizer | None
) -> tf.Tensor:
    """Adds the dense layer `logits`, in float32 also under a mixed-precision policy."""
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": regularizer}
    layer = keras.layers.Dense(num_classes, dtype=output_dtype(), name="logits", **options)
    return layer(x)
