"""Backbones of SSD detectors: a small stack of convolutions, and VGG-16.

`ssd_backbone` is a stack of convolutions for small images on a CPU; `ssd_vgg16` is the
network of Liu et al. 2016, with batch normalization. In both, the output of the layer
`stage1` has half the input's size, that of `stage2` a quarter, and so on (in VGG the
last one is `fc7`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.models import parts

# Channels of the stages, convolutions per stage, and whether they are depthwise separable.
PRESETS: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "teacher": ((24, 48, 96, 160, 192), 2, False),
    "student": ((8, 12, 24, 40, 48), 1, False),
    "depthwise": ((8, 16, 32, 48, 64), 2, True),
    "tiny": ((4, 6, 12, 20, 24), 1, False),
}
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_DEPTHS = (2, 2, 3, 3, 3)
_LIMIT = 6.0  # ReLU6 bounds the range that 8-bit quantization has to cover (MobileNet)


def _convolution(x: tf.Tensor, width: int, strides: int, name: str, out_name: str) -> tf.Tensor:
    x = parts.conv_norm(x, width, 3, name, strides=strides)
    return keras.layers.ReLU(_LIMIT, name=out_name)(x)


def depthwise_separable(
    x: tf.Tensor, width: int, strides: int, name: str, out_name: str
) -> tf.Tensor:
    """3×3 depthwise and 1×1 convolution, each with batch norm and ReLU6 (MobileNet)."""
    options = {"padding": "same", "use_bias": False, "name": f"{name}_depthwise"}
    x = keras.layers.DepthwiseConv2D(3, strides, **options)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(x)
    x = keras.layers.ReLU(_LIMIT, name=f"{name}_depthwise_relu")(x)
    x = parts.conv_norm(x, width, 1, name, padding="valid")
    return keras.layers.ReLU(_LIMIT, name=out_name)(x)


def check_widths(widths: Sequence[int] | str) -> tuple[int, ...]:
    """Accepts a sequence of at least one width."""
    found = parts.check_widths("widths", widths, "a sequence of stage widths")
    if not found:
        raise checks.value_error("widths", "at least one stage width", widths)
    return found


def ssd_backbone(
    widths: Sequence[int] = PRESETS["student"][0],
    input_shape: tuple[int, int, int] = (160, 160, 3),
    depth: int = 1,
    depthwise: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a stack of convolutions, each followed by batch normalization and ReLU6.

    Stage k has one strided convolution and depth − 1 others; the first stage has a
    single convolution, which is never depthwise. The output of stage k is that of the
    layer `stage{k}`, with ceil(input / 2ᵏ) cells per side, for use in feature losses.

    Args:
        widths: channels of each stage.
        input_shape: (height, width, channels) of one image.
        depth: convolutions per stage.
        depthwise: whether convolutions are depthwise separable, for phones and
            microcontrollers.
        name: model name; default "ssd_backbone".

    Returns:
        A functional `tf_keras.Model` from images to the feature map of the last stage.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size is not positive.

    Example:
        >>> from tfkd.models import ssd_backbone
        >>> ssd_backbone((4, 8, 8), (32, 32, 3)).get_layer("stage3").output_shape
        (None, 4, 4, 8)
    """
    widths = check_widths(widths)
    parts.check_image_shape(input_shape)
    checks.positive_int("depth", depth)
    checks.instance("depthwise", depthwise, bool, "True or False")
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(inputs, widths[0], 2, "stage1_1", "stage1")
    layer = depthwise_separable if depthwise else _convolution
    for stage, width in enumerate(widths[1:], start=2):
        for number, names in enumerate(parts.stage_names(stage, depth)):
            x = layer(x, width, 1 if number else 2, *names)
    return keras.Model(inputs, x, name=name or "ssd_backbone")


def ssd_vgg16(
    input_shape: tuple[int, int, int] = (300, 300, 3), name: str | None = None
) -> keras.Model:
    """Builds VGG-16 as the backbone of SSD300, with the levels conv4_3 (`stage4`) and `fc7`.

    As in Liu et al. 2016, section 3, pooling rounds up (so that 300 px give 38 cells), the
    fifth pooling has stride 1, and fc6 and fc7 are convolutions of 1,024 channels, the
    first with a dilation of 6. Every convolution is followed by batch normalization, which
    replaces the paper's L2 normalization of conv4_3 and allows training from scratch.

    Args:
        input_shape: (height, width, channels) of one image.
        name: model name; default "ssd_vgg16".

    Returns:
        A functional `tf_keras.Model` from images to the feature map of `fc7`.
    """
    parts.check_image_shape(input_shape)
    x = inputs = keras.Input(input_shape, name="image")
    for stage, (width, depth) in enumerate(zip(_VGG_WIDTHS, _VGG_DEPTHS, strict=True), start=1):
        if stage > 1:
            x = keras.layers.MaxPooling2D(2, 2, "same", name=f"stage{stage}_pool")(x)
        for names in parts.stage_names(stage, depth):
            x = _vgg_convolution(x, width, 3, 1, *names)
    x = keras.layers.MaxPooling2D(3, 1, "same", name="pool5")(x)
    x = _vgg_convolution(x, 1024, 3, 6, "fc6", "fc6_relu")
    x = _vgg_convolution(x, 1024, 1, 1, "fc7", "fc7")
    return keras.Model(inputs, x, name=name or "ssd_vgg16")


def _vgg_convolution(
    x: tf.Tensor, width: int, kernel: int, dilation: int, name: str, out_name: str
) -> tf.Tensor:
    options: dict[str, Any] = {"dilation_rate": dilation, "kernel_initializer": "he_normal"}
    x = parts.conv_norm(x, width, kernel, name, **options)
    return keras.layers.ReLU(name=out_name)(x)
