"""Augmentation for object detection: geometric and photometric, with boxes kept in step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.detection.boxes import has_box

# Weights of red, green and blue in luma (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
FILLS = ("zero", "mean")


class _Draws(NamedTuple):
    """Uniform numbers in [0, 1), (B,) each: one per option, independent of other options."""

    flip: Any
    flip_vertical: Any
    shift_x: Any
    shift_y: Any
    zoom: Any
    zoom_x: Any
    zoom_y: Any
    brightness: Any
    contrast: Any
    saturation: Any


class _Axis(NamedTuple):
    """Inverse map along one axis: output position p in 0..1 samples scale · p + offset; (B,)."""

    scale: Any
    offset: Any


def augment_boxes(
    *,
    flip: bool = True,
    flip_vertical: bool = False,
    shift: float = 0.15,
    zoom: float | Sequence[float] | None = None,
    brightness: float = 0.1,
    contrast: float = 0.1,
    saturation: float = 0.0,
    fill: str = "zero",
    keep: float = 0.4,
) -> Callable[[Any, Any, Any], Any]:
    """Random flip, shift, zoom and colour jitter of images, with their boxes transformed.

    Boxes are clipped to the image. A box of which less than `keep` remains is dropped:
    its class and coordinates become -1. Unlabelled images (class -2) stay unlabelled, and
    objects to ignore (class -3) move like the others.

    Args:
        flip: mirror half of the images left to right; not for digits or letters.
        flip_vertical: also flip half of them upside down, for images without a
            preferred orientation, such as microscope images.
        shift: largest shift in each direction, as a fraction of width and height; by
            whole pixels unless images are zoomed.
        zoom: range (low, high) of the scale factor of objects, or one number z for
            (1 / z, z); at 2 a quarter of the image fills the output, at 0.5 the whole
            image fills a quarter of it. None: no zoom. Bilinear resampling, by far the
            slowest operation.
        brightness: largest offset added to all pixels, which range from -1 to 1.
        contrast: pixels are scaled about mid-grey by a factor of up to 1 ± this.
        saturation: the distance of each pixel from its grey is scaled likewise.
        fill: value of pixels from outside the image: "zero" for mid-grey, or "mean"
            for the mean colour of the image.
        keep: smallest remaining fraction of a box's area for which the box is kept.

    Returns:
        `augment(images, targets, seed)` → (images, targets), with float images
        (B, H, W, 3) in [-1, 1], {"boxes": (B, M, 4), "classes": (B, M)} and an int32
        seed of shape (2,). The same input gives the same result in every process.
        Pixels may leave [-1, 1] slightly, as they are not clipped.

    Raises:
        ValueError: if a strength is negative or a range is invalid; or, when called, if
            the images are not (B, H, W, 3) of fixed size.
        TypeError: when called with integer images, or with targets of another type.

    Example:
        >>> import tensorflow as tf
        >>> from tfkd import data
        >>> augment = data.augment_boxes(shift=0.1, zoom=(0.8, 1.25))
        >>> targets = {"boxes": tf.constant([[[0.1, 0.2, 0.5, 0.6]]]), "classes": [[3]]}
        >>> images, moved = augment(tf.zeros((1, 8, 8, 3)), targets, tf.constant([0, 7]))
        >>> images.shape, moved["classes"].numpy().tolist()
        (TensorShape([1, 8, 8, 3]), [[3]])
    """
    for name, value in (("shift", shift), ("brightness", brightness)):
        checks.non_negative(name, value)
    for name, value in (("contrast", contrast), ("saturation", saturation), ("keep", keep)):
        checks.fraction(name, value)
    checks.one_of("fill", fill, FILLS)
    scales = _check_zoom(zoom)

    def axes(draws: _Draws, height: int, width: int) -> tuple[_Axis, _Axis]:
        if scales is None:
            factor = tf.ones_like(draws.zoom)
        else:
            low, high = np.log(scales)
            factor = tf.exp(low + (high - low) * draws.zoom)
        whole = scales is None
        return (
            _axis(draws.shift_y, shift, factor, draws.zoom_y, height, whole),
            _axis(draws.shift_x, shift, factor, draws.zoom_x, width, whole),
        )

    def augment(images: Any, targets: Any, seed: Any) -> Any:
        images, boxes, classes = _check_call(images, targets)
        uniform = tf.random.stateless_uniform((len(_Draws._fields), tf.shape(images)[0]), seed)
        draws = _Draws(*tf.unstack(uniform))
        if flip or flip_vertical or shift or scales is not None:
            rows, columns = axes(draws, *images.shape[1:3])
            rows = _mirrored(rows, draws.flip_vertical) if flip_vertical else rows
            columns = _mirrored(columns, draws.flip) if flip else columns
            move = _sample_pixels if scales is None else _sample_between
            images = move(images, rows, columns, fill)
            boxes, classes = _move_boxes(boxes, classes, rows, columns, keep)
        if brightness or contrast or saturation:
            images = _relight(images, draws, brightness, contrast, saturation)
        return images, {**targets, "boxes": boxes, "classes": classes}

    return augment


def _check_zoom(zoom: Any) -> tuple[float, float] | None:
    """Returns (low, high), or None for no zoom."""
    if zoom is None:
        return None
    expected = "a number from 1, or a range (low, high) of numbers above 0"
    if checks.is_number(zoom):
        if checks.positive("zoom", zoom) < 1:
            raise checks.value_error("zoom", expected, zoom)
        low, high = 1 / zoom, float(zoom)
    elif isinstance(zoom, Sequence) and not isinstance(zoom, str) and len(zoom) == 2:
        low, high = (float(checks.positive("zoom", z)) for z in zoom)
    else:
        raise checks.type_error("zoom", expected, zoom)
    if low > high:
        raise checks.value_error("zoom", expected, zoom, "The smaller one first.")
    return None if low == high == 1 else (low, high)


def _check_call(images: Any, targets: Any) -> tuple[Any, Any, Any]:
    """Returns images, boxes and classes as tensors."""
    images = tf.convert_to_tensor(images)
    fixed = images.shape.rank == 4 and None not in images.shape[1:].as_list()
    if not fixed or images.shape[3] != 3:
        raise checks.value_error("images", "images (B, H, W, 3) of fixed size", images)
    if not images.dtype.is_floating:
        fix = "Use pixels / 127.5 - 1, as `dataset.preprocess` does."
        raise checks.type_error("images", "float images in [-1, 1]", images, fix)
    if not isinstance(targets, dict) or not {"boxes", "classes"} <= set(targets):
        raise checks.type_error("targets", 'a dict with "boxes" and "classes"', targets)
    boxes = tf.convert_to_tensor(targets["boxes"], tf.float32)
    return images, boxes, tf.convert_to_tensor(targets["classes"], tf.int32)


def _axis(u: Any, shift: float, factor: Any, u_zoom: Any, size: int, whole: bool) -> _Axis:
    """The map of a random window, smaller or larger than the image, followed by the shift."""
    if whole:
        most = round(shift * size)
        moved = (tf.floor(u * (2 * most + 1)) - most) / size
    else:
        moved = (2 * u - 1) * shift
    return _Axis(1 / factor, u_zoom * (1 - 1 / factor) - moved)


def _mirrored(axis: _Axis, u: Any) -> _Axis:
    """Replaces p by 1 − p, a flip, in half of the images."""
    flipped = u < 0.5
    scale = tf.where(flipped, -axis.scale, axis.scale)
    return _Axis(scale, tf.where(flipped, axis.scale + axis.offset, axis.offset))


def _starts(axis: _Axis, size: int) -> Any:
    """(B,) input coordinate, in pixels, sampled by the centre of output pixel 0."""
    return 0.5 * axis.scale + size * axis.offset - 0.5


def _sample_pixels(images: Any, rows: _Axis, columns: _Axis, fill: str) -> Any:
    """Flips and whole-pixel shifts by one gather; outside pixels index appended fill values."""
    height, width = images.shape[1:3]
    batch = tf.shape(images)[0]
    places = []
    for axis, size in ((rows, height), (columns, width)):
        steps = axis.scale[:, None] * tf.range(size, dtype=tf.float32)
        places.append(tf.cast(tf.round(steps + _starts(axis, size)[:, None]), tf.int32))
    y, x = places[0][:, :, None], places[1][:, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    image = tf.range(batch)[:, None, None]
    index = tf.where(inside, (image * height + y) * width + x, batch * height * width + image)
    fills = tf.reduce_mean(images, (1, 2)) if fill == "mean" else tf.zeros_like(images[:, 0, 0])
    pixels = tf.concat([tf.reshape(images, (-1, 3)), fills], axis=0)
    return tf.ensure_shape(tf.gather(pixels, index), images.shape)


def _sample_between(images: Any, rows: _Axis, columns: _Axis, fill: str) -> Any:
    """Flips, shifts and zooms by bilinear resampling."""
    height, width = images.shape[1:3]
    nothing = tf.zeros_like(rows.scale)
    across = [columns.scale, nothing, _starts(columns, width)]
    down = [nothing, rows.scale, _starts(rows, height)]
    mean = tf.reduce_mean(images, (1, 2), keepdims=True) if fill == "mean" else 0.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images - mean,
        transforms=tf.stack([*across, *down, nothing, nothing], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(moved, images.shape) + mean


def _move_boxes(boxes: Any, classes: Any, rows: _Axis, columns: _Axis, keep: float) -> Any:
    """Transforms and clips boxes; dropped boxes get -1 as coordinates and class."""
    scale = tf.stack([columns.scale, rows.scale], axis=1)[:, None]
    offset = tf.stack([columns.offset, rows.offset], axis=1)[:, None]
    one, other = (boxes[..., :2] - offset) / scale, (boxes[..., 2:] - offset) / scale
    moved = tf.concat([tf.minimum(one, other), tf.maximum(one, other)], axis=-1)
    clipped = tf.clip_by_value(moved, 0.0, 1.0)
    left = _area(clipped)
    real = has_box(classes)
    stays = real & (left > 0) & (left >= keep * _area(moved))
    classes = tf.where(stays | ~real, classes, -1)
    return tf.where(stays[..., None], clipped, -1.0), classes


def _area(boxes: Any) -> Any:
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def _relight(
    images: Any, draws: _Draws, brightness: float, contrast: float, saturation: float
) -> Any:
    dtype = images.dtype

    def signed(u: Any) -> Any:
        return tf.cast(2 * u - 1, dtype)[:, None, None, None]

    if saturation:
        luma = tf.constant(np.array(_LUMA)[:, None], dtype)
        grey = tf.tensordot(images, luma, axes=1)
        images = grey + (images - grey) * (1 + saturation * signed(draws.saturation))
    if contrast:
        images *= 1 + contrast * signed(draws.contrast)
    if brightness:
        images += brightness * signed(draws.brightness)
    return images
