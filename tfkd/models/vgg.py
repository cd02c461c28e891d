"""VGG-16 with batch normalization for small images, the usual model of filter pruning.

Thirteen 3×3 convolutions with batch normalization (Simonyan & Zisserman 2014,
configuration D) in five stages of 2, 2, 3, 3 and 3, with max pooling between the
stages. Global average pooling, one hidden dense layer with batch normalization and the
head, which returns **logits**, replace the three large dense layers. On images of
32 × 32 it has 313 million multiply-accumulates and 15 million parameters. The last
activation of each stage is a layer named `stage1` … `stage5`, for use in feature losses.

Reference: https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

from collections.abc import Sequence

import tf_keras as keras

from tfkd import checks
from tfkd.models import parts

DEPTHS = (2, 2, 3, 3, 3)
L2 = 5e-4  # the weight decay of Simonyan & Zisserman 2014
SMALLEST = 2 ** (len(DEPTHS) - 1)  # four poolings halve 16 pixels to one


def _norm(x, name):
    # PyTorch's defaults, in Keras's notation; Keras's own are 0.99 and 1e-3.
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def _conv(x, filters, name, out_name, regularizer):
    x = keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer,
        name=f"{name}_conv",
    )(x)
    return keras.layers.ReLU(name=out_name)(_norm(x, f"{name}_bn"))


def _check(num_classes, input_shape, widths, weight_decay) -> tuple[int, ...]:
    """Checks every argument of `vgg16`; returns the widths as a tuple."""
    checks.positive_int("num_classes", num_classes)
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        raise checks.type_error("widths", "a sequence of five stage widths", widths)
    widths = tuple(checks.positive_int("widths", w) for w in widths)
    if len(widths) != len(DEPTHS):
        raise checks.value_error("widths", "five stage widths", widths)
    checks.non_negative("weight_decay", weight_decay)
    expected = f"a height and width of at least {SMALLEST} pixels, for four poolings"
    parts.check_image_shape(input_shape, SMALLEST, expected)
    return widths


def vgg16(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    weight_decay: float = L2,
    name: str | None = None,
) -> keras.Model:
    """Builds VGG-16 with batch normalization for small images; it returns logits.

    Args:
        num_classes: number of outputs C.
        input_shape: (height, width, channels) of one image, already scaled to
            about zero mean and unit variance (see `tfkd.data`); height and
            width at least 16, or None.
        widths: channels of the convolutions of each of the five stages; the
            hidden dense layer is as wide as the last.
        weight_decay: L2 penalty on every kernel; 0 for none.
        name: model name; default `vgg16`.

    Returns:
        A functional `tf_keras.Model`, (B, H, W, channels) → (B, C) logits.

    Raises:
        TypeError: if a size is not an integer, or `widths` is not a sequence.
        ValueError: if there are not five widths, a size is not positive or the
            image is too small.

    Example:
        >>> from tfkd.models import vgg16
        >>> vgg16().count_params()
        14996682
    """
    widths = _check(num_classes, input_shape, widths, weight_decay)
    regularizer = keras.regularizers.L2(weight_decay) if weight_decay else None
    x = inputs = keras.Input(input_shape, name="image")
    for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True), start=1):
        if stage > 1:
            x = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        for number in range(1, depth + 1):
            prefix = f"stage{stage}_{number}"
            out_name = f"stage{stage}" if number == depth else f"{prefix}_relu"
            x = _conv(x, width, prefix, out_name, regularizer)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(
        widths[-1],
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer,
        name="hidden_dense",
    )(x)
    x = keras.layers.ReLU(name="hidden")(_norm(x, "hidden_bn"))
    outputs = parts.logits(x, num_classes, regularizer)
    return keras.Model(inputs, outputs, name=name or "vgg16")
