"""Feature levels of an SSD detector: finds them in a backbone, and adds further ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.models import parts
from tfkd.networks.accept import check_graph
from tfkd.networks.call_graph import CallGraph, Key, maker_of

# Layers that only crop or pad a feature map are not inputs of a head.
_FRAMES = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.InputLayer)


def check_backbone(backbone: keras.Model) -> tuple[int, int]:
    """Accepts a functional model of one image; returns (height, width) of its input."""
    check_graph("backbone", backbone)
    shapes = [tuple(tensor.shape) for tensor in backbone.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise checks.value_error("backbone", "one input (B, H, W, C)", shapes)
    height, width = shapes[0][1:3]
    if height is None or width is None:
        fix = "Give it the size: input_shape=(160, 160, 3). Anchors need the maps' sizes."
        raise checks.value_error("backbone", "an input of a fixed size", shapes[0], fix)
    if not backbone.weights:
        # keras-cv 0.9's VGG16Backbone: its layers are lost, their kernels constants.
        received = f"{type(backbone).__name__} {backbone.name!r} without any"
        raise checks.value_error("backbone", "a model with weights", received)
    return height, width


def find_levels(
    backbone: keras.Model, wanted: Sequence[int | str] | None, sizes: Sequence[tuple[int, int]]
) -> list[tf.Tensor]:
    """Returns the feature maps of the backbone that the first heads read.

    Args:
        backbone: the model, whose own layers are considered, but not those of nested
            models.
        wanted: names of layers, strides, or, of a keras-cv backbone, "P3"; None: the
            leading levels of `sizes` that the backbone has.
        sizes: (height, width) of each level of the anchors.

    Returns:
        Tensors (B, h, w, C), at most as many as `sizes`.

    Raises:
        ValueError: if a level can't be found, or its size differs from the anchors'.
    """
    if wanted is None:
        found = _by_sizes(backbone, sizes)
    else:
        if not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted:
            expected = "a sequence of layer names or strides"
            raise checks.type_error("feature_levels", expected, wanted)
        found = [_level(backbone, level) for level in wanted]
        wanted = list(wanted)
    if len(found) > len(sizes):
        expected = f"at most {len(sizes)} levels, which the anchors have"
        raise checks.value_error("feature_levels", expected, wanted)
    # The further sizes, for which the backbone has no map, are made by `further_levels`.
    for index, (tensor, size) in enumerate(zip(found, sizes)):  # noqa: B905
        if tuple(tensor.shape[1:3]) != tuple(size):
            name = f"level {index} of {backbone.name}, {maker_of(tensor).name!r},"
            expected = f"feature_sizes[{index}] = {tuple(tensor.shape[1:3])}, the size of {name}"
            fix = "Make the anchors for these maps, or choose others by `feature_levels`."
            raise checks.value_error("anchors", expected, size, fix)
    return found


def _level(backbone: keras.Model, level: int | str) -> tf.Tensor:
    """Returns the output of a named layer, or of the last layer at a stride."""
    pyramid = _pyramid(backbone)
    if isinstance(level, str):
        if level in pyramid:
            return pyramid[level]
        names = [layer.name for layer in backbone.layers]
        checks.known_name("feature_levels", level, [*names, *pyramid], backbone.name)
        outputs = tf.nest.flatten(backbone.get_layer(level).output)
        if len(outputs) != 1 or len(outputs[0].shape) != 4:
            shape = [tuple(t.shape) for t in outputs]
            raise checks.value_error("feature_levels", f"{level!r} to be one map", shape)
        return outputs[0]
    stride = checks.positive_int("feature_levels", level)
    name = f"P{int(math.log2(stride))}"  # level P3 has stride 2³
    if name in pyramid and 2 ** int(name[1:]) == stride:
        return pyramid[name]
    maps = {_stride(backbone, tensor): tensor for tensor in _last_maps(backbone)}
    if stride not in maps:
        expected = "a stride that the backbone has: " + ", ".join(map(str, sorted(maps)))
        raise checks.value_error("feature_levels", expected, level)
    return maps[stride]


def _by_sizes(backbone: keras.Model, sizes: Sequence[tuple[int, int]]) -> list[tf.Tensor]:
    """A feature map for each size, up to the first size that the backbone does not have."""
    maps = {tuple(tensor.shape[1:3]): tensor for tensor in _last_maps(backbone)}
    maps.update({tuple(t.shape[1:3]): t for t in _pyramid(backbone).values()})
    if tuple(sizes[0]) not in maps:
        known = [f"{height}x{width}" for height, width in sorted(maps, reverse=True)]
        expected = f"maps of a size that the backbone has: {', '.join(known)}"
        fix = "Make anchors of these feature_sizes."
        raise checks.value_error("anchors", expected, tuple(sizes[0]), fix)
    return [maps[size] for size in itertools.takewhile(maps.__contains__, map(tuple, sizes))]


def _pyramid(backbone: keras.Model) -> dict[str, tf.Tensor]:
    """The levels of a keras-cv backbone: "P3" is the tensor at stride 2³."""
    named = getattr(backbone, "pyramid_level_inputs", None) or {}
    return {name: backbone.get_layer(layer).output for name, layer in named.items()}


def _stride(backbone: keras.Model, tensor: tf.Tensor) -> int:
    """Input pixels between the cells of a feature map, rounded to a power of two."""
    ratio = backbone.inputs[0].shape[1] / tensor.shape[1]
    return 2 ** round(math.log2(ratio))


def _last_maps(backbone: keras.Model) -> list[tf.Tensor]:
    """For each size, the last feature map on which all later layers depend.

    That excludes layers inside a branch: a strided residual block has narrow layers of
    the previous size, but its shortcut bypasses them. For a size without such a map (in a
    network with long skip connections) it is the last map of that size.
    """
    graph = CallGraph(backbone)
    # The calls through which every path from a call to the output passes (its dominators in
    # the reversed graph), computed from the output backwards.
    passed: dict[Key, set[Key]] = {}
    for key, call in reversed(graph.calls.items()):
        routes = [passed[reader] for ref in call.outputs for reader in graph.readers[ref]]
        passed[key] = {key}.union(set.intersection(*routes) if routes else set())
    on_all_paths = passed[graph.ref(backbone.inputs[0])[:2]]
    found: dict[tuple[int, int], tuple[bool, tf.Tensor]] = {}
    for key, call in graph.calls.items():
        tensors = call.makes
        if isinstance(call.layer, _FRAMES) or len(tensors) != 1 or len(tensors[0].shape) != 4:
            continue
        size = tuple(tensors[0].shape[1:3])
        if key in on_all_paths or not found.get(size, (False, None))[0]:
            found[size] = (key in on_all_paths, tensors[0])
    return [tensor for _, tensor in found.values()]


def further_levels(
    last: tf.Tensor, sizes: Sequence[tuple[int, int]], first: int
) -> list[tf.Tensor]:
    """Adds smaller feature maps, each by a 1×1 and a 3×3 convolution on the previous (SSD).

    Args:
        last: the coarsest feature map of the backbone.
        sizes: (height, width) of the maps to add.
        first: number of the first of them, for the layers' names.

    Raises:
        ValueError: if a size is neither half of the previous one, rounded up, nor two
            cells less.
    """
    found: list[tf.Tensor] = []
    for index, size in enumerate(sizes, start=first):
        before = tuple(last.shape[1:3])
        half, less = tuple(-(-side // 2) for side in before), tuple(side - 2 for side in before)
        if tuple(size) == half and size != before:
            strides, padding = 2, "same"
        elif tuple(size) == less:
            strides, padding = 1, "valid"
        else:
            expected = (
                f"feature_sizes[{index}] to be half of the level before, {half}, or two cells "
                f"less, {less}: the backbone has no more levels"
            )
            raise checks.value_error("anchors", expected, tuple(size))
        # 512, 256, 256, 256 channels after fc7, as in the paper; a backbone with fewer than
        # 256 channels is not widened.
        width = max(last.shape[-1] // 2, min(last.shape[-1], 256))
        x = parts.conv_norm(last, max(1, width // 2), 1, f"extra{index}_1")
        x = keras.layers.ReLU(6.0, name=f"extra{index}_1_relu")(x)
        x = parts.conv_norm(x, width, 3, f"extra{index}_2", strides=strides, padding=padding)
        last = keras.layers.ReLU(6.0, name=f"extra{index}")(x)
        found.append(last)
    return found
