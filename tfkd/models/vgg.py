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
EPSILON = 1e-5  # PyTorch's default in batch normalization; Keras's own is 1e-3
SMALLEST = 2 ** (len(DEPTHS) - 1)  # four poolings halve 16 pixels to one


def _check(num_classes, input_shape, widths, weight_decay) -> tuple[int, ...]:
    """Checks every argument of `vgg16`; returns the widths as a tuple."""
    checks.positive_int("num_classes", num_classes)
    widths = parts.check_widths("widths", widths, "a sequence of five stage widths")
    if len(widths) != len(DEPTHS):
        raise checks.value_error("widths", "five stage widths", widths)
    checks.non_negative("weight_decay", weight_decay)
    expected = f"a height and width of at least {SMALLEST} pixels, for four poolings"
    parts.check_image_shape(input_shape, SMALLEST, expected)
    return widths


# Channels of each stage in the paper.
WIDTHS = (64, 128, 256, 512, 512)


def vgg16(
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    widths: Sequence[int] = WIDTHS,
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
        name: model name; default `vgg16`, followed by other widths than the default.

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
    regularizer = parts.l2(weight_decay)
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": regularizer}
    x = inputs = keras.Input(input_shape, name="image")
    for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=True), start=1):
        if stage > 1:
            x = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        for prefix, out_name in parts.stage_names(stage, depth):
            x = parts.conv_norm(x, width, 3, prefix, EPSILON, **options)
            x = keras.layers.ReLU(name=out_name)(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(widths[-1], use_bias=False, name="hidden_dense", **options)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=EPSILON, name="hidden_bn")(x)
    x = keras.layers.ReLU(name="hidden")(x)
    outputs = parts.logits(x, num_classes, regularizer)
    return keras.Model(inputs, outputs, name=name or parts.sized_name("vgg16", widths, WIDTHS))
