"""ResNet for CIFAR: residual networks for small images (He et al. 2015, section 4.2).

A 3×3 stem, three stages of `n` blocks of two convolutions at widths 16, 32, 64, global
average pooling and a dense layer; depth = 6n + 2. The head returns **logits**. The last
activation of each stage is a layer named `stage1`, `stage2`, `stage3`, for use in feature
losses.

Reference: https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Sequence

import tf_keras as keras

from tfkd import checks
from tfkd.models import parts

L2 = 1e-4  # the weight decay of He et al. 2015


def _block(x, filters, strides, name, out_name, conv):
    shortcut = x
    x = conv(x, filters, 3, f"{name}_1", strides=strides)
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = conv(x, filters, 3, f"{name}_2")
    if strides != 1 or shortcut.shape[-1] != filters:
        shortcut = conv(shortcut, filters, 1, f"{name}_0", strides=strides)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=out_name)(x)


def _check(depth, num_classes, input_shape, widths, weight_decay) -> tuple[int, ...]:
    """Checks every argument of `resnet`; returns the widths as a tuple."""
    checks.positive_int("depth", depth)
    checks.positive_int("num_classes", num_classes)
    if depth < 8 or (depth - 2) % 6:
        expected = "6n + 2 with n ≥ 1, for example 8, 14, 20, 32, 56 or 110"
        raise checks.value_error("depth", expected, depth)
    widths = parts.check_widths("widths", widths, "a sequence of one to four stage widths")
    if not 1 <= len(widths) <= 4:
        raise checks.value_error("widths", "one to four stage widths", widths)
    checks.non_negative("weight_decay", weight_decay)
    parts.check_image_shape(input_shape)
    return widths


# Channels of each stage in the paper.
WIDTHS = (16, 32, 64)


def resnet(
    depth: int,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    widths: Sequence[int] = WIDTHS,
    weight_decay: float = L2,
    name: str | None = None,
) -> keras.Model:
    """Builds a CIFAR-style residual network that returns logits.

    Args:
        depth: number of weighted layers, 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: number of outputs C.
        input_shape: (height, width, channels) of one image, already scaled to
            about zero mean and unit variance (see `tfkd.data`); height and
            width may be None.
        widths: channels of each stage, for one to four stages; each stage after
            the first halves the resolution.
        weight_decay: L2 penalty on every kernel; 0 for none.
        name: model name; default `resnet{depth}`, followed by other widths than the default.

    Returns:
        A functional `tf_keras.Model`, (B, H, W, channels) → (B, C) logits.

    Raises:
        ValueError: if `depth` is not 6n + 2 or a size is not positive.

    Example:
        >>> from tfkd.models import resnet
        >>> resnet(20).count_params()
        274042
    """
    widths = _check(depth, num_classes, input_shape, widths, weight_decay)
    blocks = (depth - 2) // 6
    regularizer = parts.l2(weight_decay)
    options = {"kernel_initializer": "he_normal", "kernel_regularizer": regularizer}

    def conv(x, filters, kernel, name, strides=1):
        # PyTorch's epsilon; Keras's own is 1e-3.
        return parts.conv_norm(x, filters, kernel, name, 1e-5, strides=strides, **options)

    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.ReLU(name="stem_relu")(conv(inputs, widths[0], 3, "stem"))
    for stage, width in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            out_name = f"stage{stage}" if block == blocks else f"{prefix}_relu"
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, width, strides, prefix, out_name, conv)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = parts.logits(x, num_classes, regularizer)
    return keras.Model(
        inputs, outputs, name=name or parts.sized_name(f"resnet{depth}", widths, WIDTHS)
    )
