"""Adapters for keras-cv's detectors: RetinaNet's anchors and head, and conversion of labels.

A `keras_cv.models.RetinaNet` returns {"box": (B, P, 4), "classification": (B, P, C)}:
offsets with y before x, and a sigmoid per class without a background class. The anchors
and variances needed to decode them are in its anchor generator and its label encoder.

Reference: Lin et al. 2017, "Focal loss for dense object detection",
https://arxiv.org/abs/1708.02002
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.detection.boxes import VARIANCES
from tfkd.detection.matching import objects
from tfkd.detection.prior_sizes import pair
from tfkd.types import Tensor

BOXES, CLASSES, ORDER = "box", "classification", "yxhw"

# A padding box: outside the image, but with an area (see `keras_cv_objects`).
_NOWHERE = (-2.0, -2.0, -1.0, -1.0)


def import_keras_cv(what: str) -> ModuleType:
    """Imports and returns the package keras-cv.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        # keras-cv prints its backend when it is imported.
        with contextlib.redirect_stdout(io.StringIO()):
            import keras_cv
    except ImportError as error:
        raise ImportError(
            f'{what} needs keras-cv. Install it with `pip install "tfkd[detection]"`.'
        ) from error
    return keras_cv


@keras.saving.register_keras_serializable(package="tfkd")
class RetinaNetAnchors:
    """The anchor boxes (priors) of a RetinaNet, as keras-cv's `AnchorGenerator` makes them.

    Centers are `stride` pixels apart. If the stride does not divide the image size, those
    of the last row and column may lie outside the image; with `clip` their priors end at
    its border.

    Args:
        image_size: (height, width) in pixels.
        levels: for each level a dict of "size" (pixels), "scales", "ratios" (width over
            height) and "stride" (pixels). A box of scale s and ratio r has the width
            size·s·√r and the height size·s/√r.
        clip: whether priors are clipped to the image.

    Attributes:
        feature_sizes: (height, width) of each level's map.
        per_location: number of priors in a cell, by level.
        priors: float32 (P, 4), (cx, cy, w, h) relative; read-only.

    Raises:
        TypeError: for a level that is not a dict.
        ValueError: for a size that is not positive, or a level without one of these keys.

    Example:
        >>> from tfkd.detection import RetinaNetAnchors
        >>> level = {"size": 32.0, "scales": [1.0], "ratios": [0.5, 2.0], "stride": 32}
        >>> anchors = RetinaNetAnchors((64, 96), [level])
        >>> anchors
        RetinaNetAnchors(12 priors of 64x96 pixels, 2x3·2)
        >>> anchors.priors[0].round(2)
        array([0.17, 0.3 , 0.24, 0.6 ], dtype=float32)
    """

    def __init__(
        self, image_size: Sequence[int], levels: Sequence[Mapping[str, Any]], clip: bool = True
    ):
        self.image_size = check_size(image_size)
        self.levels = [_check_level(level) for level in levels]
        if not self.levels:
            raise checks.value_error("levels", "at least one level", levels)
        self.clip = checks.instance("clip", clip, bool, "True or False")

    @property
    def feature_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each level's map."""
        height, width = self.image_size
        strides = [level["stride"] for level in self.levels]
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]

    @property
    def per_location(self) -> list[int]:
        """Number of priors in each cell, by level."""
        return [len(level["scales"]) * len(level["ratios"]) for level in self.levels]

    @functools.cached_property
    def priors(self) -> np.ndarray:
        """(P, 4) float32, as (cx, cy, w, h)."""
        rows = [self._level(*pair) for pair in zip(self.levels, self.feature_sizes, strict=True)]
        found, size = np.concatenate(rows), np.array(self.image_size[::-1], np.float64)
        low, high = found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2
        if self.clip:
            low, high = np.clip(low, 0.0, size), np.clip(high, 0.0, size)
        found = np.concatenate([(low + high) / 2 / size, (high - low) / size], 1)
        found = found.astype(np.float32)
        found.flags.writeable = False
        return found

    def _level(self, level: dict[str, Any], cells: tuple[int, int]) -> np.ndarray:
        """Priors (cells · priors, 4) in pixels, in the order row, column, scale, ratio."""
        y, x = np.meshgrid(*(level["stride"] * (np.arange(n) + 0.5) for n in cells), indexing="ij")
        scales, ratios = np.array(level["scales"])[:, None], np.array(level["ratios"])[None]
        found = np.empty((*cells, scales.size * ratios.size, 4))
        found[..., 0], found[..., 1] = x[..., None], y[..., None]
        found[..., 2] = (level["size"] * scales * np.sqrt(ratios)).ravel()
        found[..., 3] = (level["size"] * scales / np.sqrt(ratios)).ravel()
        return found.reshape(-1, 4)

    def __len__(self) -> int:
        return len(self.priors)

    def __repr__(self) -> str:
        levels = zip(self.feature_sizes, self.per_location, strict=True)
        text = " + ".join(f"{h}x{w}·{n}" for (h, w), n in levels)
        height, width = self.image_size
        return f"RetinaNetAnchors({len(self)} priors of {height}x{width} pixels, {text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetinaNetAnchors) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((self.image_size, self.clip, len(self.levels)))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments from which `from_config` makes equal anchors, as JSON."""
        return {
            "image_size": list(self.image_size),
            "levels": [dict(level) for level in self.levels],
            "clip": self.clip,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RetinaNetAnchors:
        """Makes the anchors that `get_config` described."""
        return cls(**config)


def _check_level(level: Mapping[str, Any]) -> dict[str, Any]:
    parts = ("size", "scales", "ratios", "stride")
    checks.instance("levels", level, Mapping, f"a dict of {', '.join(parts)} for each level")
    if set(level) != set(parts):
        raise checks.value_error("levels", f"a dict of {', '.join(parts)}", sorted(level))
    read: dict[str, Any] = {name: float(level[name]) for name in ("size", "stride")}
    read |= {name: [float(v) for v in level[name]] for name in ("scales", "ratios")}
    for name in parts:
        for value in np.ravel(read[name]):
            checks.positive(f"levels[{name!r}]", float(value))
    return read


def check_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Accepts (height, width) in pixels, or one number for both."""
    return pair("image_size", image_size)


def image_size_of(
    model: keras.Model, image_size: int | Sequence[int] | None = None
) -> tuple[int, int]:
    """Returns a model's input size (height, width), or the given one if it accepts any size.

    Raises:
        ValueError: if the size is not known, or the two differ.
    """
    built = tuple(model.inputs[0].shape[1:3])
    if image_size is None:
        if None in built:
            fix = "Pass the size of the training images, such as image_size=(512, 512)."
            expected = f"a size, since {model.name!r} takes images of any"
            raise checks.value_error("image_size", expected, None, fix)
        return check_size(built)
    given = check_size(image_size)
    if any(side not in (None, own) for own, side in zip(given, built, strict=True)):
        raise checks.value_error("image_size", f"the size of {model.name!r}, {built}", given)
    return given


def retina_net_head(
    model: keras.Model, image_size: int | Sequence[int] | None = None
) -> dict[str, Any]:
    """Returns arguments with which tfkd decodes the outputs of keras-cv's RetinaNet.

    Pass them to `tfkd.detection.decode(outputs, **head)`,
    `tfkd.detection.TeacherBoxes(**head)`, `tfkd.report.detect(model, images, **head)` and
    `tfkd.report.evaluate_detector(model, images, truth, **head)`.

    Args:
        model: a `keras_cv.models.RetinaNet`.
        image_size: (height, width) in pixels, for a model that accepts any size.

    Returns:
        {"anchors": `RetinaNetAnchors`, "variances", "order": "yxhw", "background": False,
        "boxes": "box", "classes": "classification"}. For a custom anchor generator
        "anchors" is the array (P, 4) of its priors.

    Raises:
        ImportError: if keras-cv is not installed.
        TypeError: if the model is not a RetinaNet.
        ValueError: if the image size is not known, or the anchors do not fit the model.
    """
    kind = import_keras_cv("tfkd.detection.retina_net_head").models.RetinaNet
    checks.instance("model", model, kind, "a keras_cv.models.RetinaNet")
    size = image_size_of(model, image_size)
    variances = getattr(model.label_encoder, "box_variance", VARIANCES)
    return {
        "anchors": _anchors(model, size),
        # In float32 0.1 is 0.10000000149: rounded, variances of two models compare equal.
        "variances": tuple(round(float(v), 6) for v in variances),
        "order": ORDER,
        "background": False,
        "boxes": BOXES,
        "classes": CLASSES,
    }


def _anchors(model: keras.Model, size: tuple[int, int]) -> RetinaNetAnchors | np.ndarray:
    from keras_cv import bounding_box

    generator, shape = model.anchor_generator, (*size, 3)
    rows, form = list(generator(image_shape=shape).values()), generator.bounding_box_format
    options = {"source": form, "target": "rel_xyxy", "image_shape": shape}
    corners = bounding_box.convert_format(tf.concat(rows, 0), **options).numpy()
    own = np.concatenate([corners[:, :2] + corners[:, 2:], corners[:, 2:] - corners[:, :2]], 1)
    own[:, :2] /= 2
    outputs = model.output_shape[BOXES][1]
    if outputs not in (None, len(own)):
        expected = f"as many anchors as the model has outputs at {size}, {outputs}"
        raise checks.value_error("model", expected, len(own))
    try:
        levels = [
            {"size": g.sizes, "scales": g.scales, "ratios": g.aspect_ratios, "stride": g.stride}
            for g in generator.anchor_generators.values()
        ]
        clip = all(g.clip_boxes for g in generator.anchor_generators.values())
        made = RetinaNetAnchors(size, levels, clip)
    except (AttributeError, TypeError, ValueError):
        return own  # a custom generator
    # The priors of a custom generator may differ from those that its settings give.
    same = made.priors.shape == own.shape and np.allclose(made.priors, own, atol=1e-5)
    return made if same else own


def keras_cv_objects(
    y: Mapping[str, Tensor], bounding_box_format: str, image_size: int | Sequence[int]
) -> dict[str, tf.Tensor]:
    """Converts objects to the form that keras-cv's own `fit` accepts.

    Use it to train a teacher by keras-cv on the batches of a `tfkd.Distiller`:
    `batches.map(lambda x, y: (x, keras_cv_objects(y, model.bounding_box_format, size)))`.

    Padding becomes a box outside the image that has an area. keras-cv's own padding has
    none, for which YOLOV8Detector divides 0 by 0 in the graph of a training step: with
    relative formats its loss is NaN as soon as two images differ in the number of boxes.

    Args:
        y: {"boxes": (B, M, 4) corners relative to the image, "classes": (B, M)}, padded
            with −1 or ragged.
        bounding_box_format: that of the model, such as "xyxy".
        image_size: (height, width) in pixels, or one number for both.

    Returns:
        {"boxes": float32 (B, M, 4), "classes": float32 (B, M)}, padded with class −1.
        An unlabelled image becomes one without objects: leave it out beforehand. Objects
        to ignore become background, since keras-cv knows none.

    Raises:
        ImportError: if keras-cv is not installed.
        ValueError: for another y, or a format that keras-cv does not know.

    Example:
        >>> from tfkd.detection import keras_cv_objects
        >>> y = {"boxes": [[[0.0, 0.5, 0.25, 1.0], [-1.0] * 4]], "classes": [[3, -1]]}
        >>> keras_cv_objects(y, "xywh", (32, 64))["boxes"].numpy().tolist()
        [[[0.0, 16.0, 16.0, 16.0], [-128.0, -64.0, 64.0, 32.0]]]
    """
    keras_cv = import_keras_cv("tfkd.detection.keras_cv_objects")
    boxes, classes = objects(y)
    boxes = tf.where((classes >= 0)[..., None], boxes, tf.constant(_NOWHERE))
    options = {"image_shape": (*check_size(image_size), 3), "dtype": "float32"}
    convert = keras_cv.bounding_box.convert_format
    boxes = convert(boxes, source="rel_xyxy", target=bounding_box_format, **options)
    return {"boxes": boxes, "classes": tf.cast(tf.maximum(classes, -1), tf.float32)}
