"""SSD: single-shot detectors with convolutional heads on the feature maps of a backbone.

The outputs are {"boxes": (B, P, 4), "classes": (B, P, C + 1)}: offsets from P priors
and logits, background first, in the order of the priors (see `tfkd.detection`).

Priors, decoding and non-maximum suppression are not part of the graph, which can
therefore be cloned, pruned, quantized and converted like any other. Keep the `Anchors`
with the model.

References: Liu et al. 2016 (SSD), https://arxiv.org/abs/1512.02325; Sandler et al. 2018
(depthwise heads), https://arxiv.org/abs/1801.04381; Lin et al. 2017 (the initial bias),
https://arxiv.org/abs/1708.02002
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection.anchors import Anchors
from tfkd.detection.prior_sizes import pair
from tfkd.models import parts, ssd_backbones, ssd_levels

HEADS = ("conv", "depthwise")


def ssd(
    backbone: keras.Model | str | Sequence[int],
    num_classes: int,
    input_size: int | Sequence[int] | None = None,
    feature_levels: Sequence[int | str] | None = None,
    anchors: Anchors | None = None,
    head: str = "conv",
    background: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds an SSD detector on a backbone.

    If the anchors have more levels than the backbone, further levels are added, each
    half the size of the previous one, or two cells smaller (layers `extra3`, ...).
    The heads of level i are `boxes_{i}` and `classes_{i}`.

    Args:
        backbone: a functional model with an input of fixed size, of tf_keras or
            keras-cv, whose layers up to the last level become layers of the detector, with
            their weights. Or "teacher", "student", "depthwise", "tiny", or widths, for
            which `ssd_backbone` builds one. Images are fed to it unchanged: if it is to be
            quantized, it should not rescale them.
        num_classes: number of classes C, without the background.
        input_size: pixels of the input, or (height, width); default: the backbone's, 160
            for a backbone that is built here.
        feature_levels: inputs of the heads: strides (the last layer at that stride on
            which all later layers depend), names of layers, or "P3" of a keras-cv
            backbone; default: for each level of the anchors the feature map of its size.
        anchors: default `Anchors.small(input_size)`. Decoding needs the same ones.
        head: "conv", a 3×3 convolution; or "depthwise", a 3×3 depthwise and a 1×1
            convolution.
        background: initial probability of the background at every prior, above 0 and
            below 1; default: equal for all classes.
        name: model name; default "ssd".

    Returns:
        A functional `tf_keras.Model`, (B, H, W, channels) → {"boxes": (B, P, 4),
        "classes": (B, P, C + 1)}, float32 also under a mixed-precision policy.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if sizes do not fit, a level is not in the backbone, or an argument
            is out of range.

    Example:
        >>> from tfkd import models
        >>> from tfkd.detection.anchors import Anchors
        >>> anchors = Anchors.small(64)
        >>> model = models.ssd((4, 4, 8, 8, 8), num_classes=3, input_size=64, anchors=anchors)
        >>> {key: tuple(output.shape) for key, output in model.output.items()}
        {'boxes': (None, 168, 4), 'classes': (None, 168, 4)}
        >>> len(anchors)
        168
    """
    checks.positive_int("num_classes", num_classes)
    checks.one_of("head", head, HEADS)
    if background is not None and not 0 < checks.fraction("background", background) < 1:
        raise checks.value_error("background", "above 0 and below 1", background)
    backbone = _backbone(backbone, input_size)
    anchors = _anchors(anchors, ssd_levels.check_backbone(backbone))
    sizes = anchors.feature_sizes
    levels = ssd_levels.find_levels(backbone, feature_levels, sizes)
    levels += ssd_levels.further_levels(levels[-1], sizes[len(levels) :], len(levels))
    bias = 0.0
    if background is not None:
        # softmax([b, 0, ..., 0])[0] = background
        bias = math.log(background * num_classes / (1 - background))
    first = [bias, *[0.0] * num_classes]
    outputs = {
        "boxes": _heads(levels, anchors.per_location, [0.0] * 4, "boxes", head),
        "classes": _heads(levels, anchors.per_location, first, "classes", head),
    }
    return keras.Model(backbone.inputs[0], outputs, name=name or "ssd")


def _backbone(
    backbone: keras.Model | str | Sequence[int], input_size: int | Sequence[int] | None
) -> keras.Model:
    """Returns the given model, or builds one from the name of a preset or from widths."""
    if isinstance(backbone, keras.Model):
        size = ssd_levels.check_backbone(backbone)
        if input_size is not None and pair("input_size", input_size) != size:
            fix = f"Leave it out, or build {backbone.name} for that size."
            raise checks.value_error("input_size", f"{size}, the backbone's", input_size, fix)
        return backbone
    if isinstance(backbone, str):
        checks.one_of("backbone", backbone, ssd_backbones.PRESETS)
        widths, depth, depthwise = ssd_backbones.PRESETS[backbone]
    elif isinstance(backbone, Sequence):
        widths, depth, depthwise = ssd_backbones.check_widths(backbone), 1, False
    else:
        expected = "a functional tf_keras model, the name of a preset, or widths"
        raise checks.type_error("backbone", expected, backbone)
    shape = (*pair("input_size", 160 if input_size is None else input_size), 3)
    return ssd_backbones.ssd_backbone(widths, shape, depth, depthwise)


def _anchors(anchors: Anchors | None, size: tuple[int, int]) -> Anchors:
    if anchors is None:
        return Anchors.small(size)
    return checks.instance("anchors", anchors, Anchors, "tfkd.detection.Anchors")


def _heads(
    levels: list[tf.Tensor], per_location: list[int], first: list[float], name: str, head: str
) -> tf.Tensor:
    """Adds one head per level; the layer `name` concatenates them to (B, P, K)."""
    dtype = parts.output_dtype()
    rows = []
    for index, (x, count) in enumerate(zip(levels, per_location, strict=True)):
        own = f"{name}_{index}"
        if head == "depthwise":
            options = {"padding": "same", "use_bias": False, "name": f"{own}_depthwise"}
            x = keras.layers.DepthwiseConv2D(3, **options)(x)
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"{own}_bn")(x)
            x = keras.layers.ReLU(6.0, name=f"{own}_relu")(x)
        bias = keras.initializers.Constant([*first] * count) if any(first) else "zeros"
        options = {"padding": "same", "bias_initializer": bias, "dtype": dtype, "name": own}
        kernel = 3 if head == "conv" else 1
        x = keras.layers.Conv2D(count * len(first), kernel, **options)(x)
        # A single level is the output itself: quantization rejects a Concatenate of one.
        own = f"{own}_rows" if len(levels) > 1 else name
        rows.append(keras.layers.Reshape((-1, len(first)), dtype=dtype, name=own)(x))
    if len(rows) == 1:
        return rows[0]
    return keras.layers.Concatenate(1, dtype=dtype, name=name)(rows)


def ssd300(
    num_classes: int = 20,
    backbone: keras.Model | None = None,
    feature_levels: Sequence[int | str] | None = None,
    head: str = "conv",
    background: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds SSD for 300 × 300 px, with the 8,732 priors of `Anchors.ssd300()`.

    Args:
        num_classes: number of classes C, without the background.
        backbone: a functional model with an input of 300 × 300 px; default
            `ssd_vgg16`, the paper's, with batch normalization.
        feature_levels: see `ssd`; the first levels have 38 and 19 cells a side.
        head: see `ssd`.
        background: see `ssd`.
        name: model name; default "ssd300".

    Returns:
        A functional `tf_keras.Model`, (B, 300, 300, 3) → {"boxes": (B, 8732, 4),
        "classes": (B, 8732, C + 1)}.

    Reference: Liu et al. 2016, https://arxiv.org/abs/1512.02325
    """
    if backbone is None:
        backbone = ssd_backbones.ssd_vgg16()
    anchors, name = Anchors.ssd300(), name or "ssd300"
    return ssd(backbone, num_classes, 300, feature_levels, anchors, head, background, name)


def ssd_small(
    num_classes: int,
    size: int | Sequence[int] = 160,
    widths: str | Sequence[int] = "student",
    depth: int | None = None,
    depthwise: bool | None = None,
    anchors: Anchors | None = None,
    head: str = "conv",
    background: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a detector for small images that trains on a CPU.

    At 160 px and three classes: "teacher" has 1.2 million weights, "student" 46,000,
    "depthwise" 39,000 and "tiny" 16,000.

    Args:
        num_classes: number of classes C, without the background.
        size: pixels of the input, or (height, width).
        widths: "teacher", "student", "depthwise", "tiny", or channels of the stages.
        depth: convolutions per stage; default: the preset's, or 1 for given widths.
        depthwise: whether convolutions are depthwise separable; default: the preset's,
            or False for given widths.
        anchors: default `Anchors.small(size)`.
        head: see `ssd`.
        background: see `ssd`.
        name: model name; default "ssd_small".

    Returns:
        A functional `tf_keras.Model`, see `ssd`.

    Raises:
        ValueError: for an unknown name of `widths`, and as `ssd`.

    Example:
        >>> from tfkd.models import ssd_small
        >>> ssd_small(3, widths="student").count_params()
        46296
    """
    preset: tuple[tuple[int, ...], int, bool] = ((), 1, False)
    if isinstance(widths, str):
        preset = ssd_backbones.PRESETS[checks.one_of("widths", widths, ssd_backbones.PRESETS)]
        widths = preset[0]
    depth = preset[1] if depth is None else depth
    depthwise = preset[2] if depthwise is None else depthwise
    sides = pair("input_size", size)
    backbone = ssd_backbones.ssd_backbone(widths, (*sides, 3), depth, depthwise)
    anchors = _anchors(anchors, sides)
    return ssd(backbone, num_classes, None, None, anchors, head, background, name or "ssd_small")
