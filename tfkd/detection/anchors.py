"""Anchors (prior boxes, default boxes) of a detector, for each level of its feature maps.

A level is a feature map of the network. Each of its cells predicts a few boxes, each as
offsets from its own anchor box, the prior. Fine levels have small priors.

References: Liu et al. 2016 (SSD), https://arxiv.org/abs/1512.02325; Redmon & Farhadi
2017 (sizes by k-means on the training boxes), https://arxiv.org/abs/1612.08242
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import artifacts, checks
from tfkd.detection import clustering
from tfkd.detection import prior_sizes as sizes_of

# Liu et al. 2016, sections 2.2 and 3.1: 0.1 for conv4_3, then 0.2 to 0.9 in even steps of
# 0.175; the next step, 1.075, enters the extra box of the last level.
_SSD300_SIDES = (38, 19, 10, 5, 3, 1)
_SSD300_SCALES = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)
_SSD300_AFTER = 1.075
_TWO, _THREE = (1.0, 2.0, 0.5), (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
_SSD300_RATIOS = (_TWO, _THREE, _THREE, _THREE, _TWO, _TWO)


@keras.saving.register_keras_serializable(package="tfkd")
class Anchors:
    """The anchor boxes (priors) of a detector, computed from scales and ratios or sizes.

    The priors are in the order in which `Reshape((-1, 4))` lays out the outputs of a
    convolution with `per_location · 4` filters: level, row, column, anchor.

    The anchors are not part of the model's graph, which can therefore be cloned, pruned,
    quantized and exported like any other. Decoding the outputs needs the same anchors as
    training: keep the object, or the file that `save` writes, with the model. Scales and
    sizes are relative to the image.

    Args:
        feature_sizes: (height, width) of each level's map, or one number for both.
        scales: for each level a scale or a tuple of scales s; a box of ratio r has
            width s·√(r·aspect) and height s/√(r·aspect), and so the area s².
        ratios: widths divided by heights, in the original image: one tuple for all
            levels, or one for each.
        extra: for each level the scale of an additional box of ratio 1, or None.
        aspect: height divided by width of the original images, before they are resized
            to the network's input; 480/640 = 0.75 for 640 × 480 images made square.
        clip: whether priors are clipped to the image.
        sizes: instead of `scales`, `ratios`, `extra` and `aspect`: for each level a
            tuple of (width, height).

    Attributes:
        feature_sizes: list of (height, width).
        sizes: for each level a tuple of (width, height), relative.
        per_location: number of priors in each cell, by level.
        priors: float32 (P, 4), (cx, cy, w, h) relative; read-only.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if lengths do not fit, or a number is not above 0.

    Example:
        >>> from tfkd.detection.anchors import Anchors
        >>> anchors = Anchors([(2, 2), (1, 1)], scales=[0.25, (0.5, 0.75)])
        >>> anchors
        Anchors(6 priors, 2x2·1 + 1x1·2)
        >>> anchors.priors[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
        >>> Anchors.ssd300()
        Anchors(8732 priors, 38x38·4 + 19x19·6 + 10x10·6 + 5x5·6 + 3x3·4 + 1x1·4)
        >>> Anchors.from_config(anchors.get_config()) == anchors
        True
    """

    def __init__(
        self,
        feature_sizes: Sequence[int | Sequence[int]],
        scales: Sequence[float | Sequence[float]] | None = None,
        ratios: Sequence[float | Sequence[float]] = (1.0,),
        extra: Sequence[float | None] | None = None,
        aspect: float = 1.0,
        clip: bool = False,
        sizes: Sequence[Sequence[Sequence[float]]] | None = None,
    ):
        levels = sizes_of.sequence("feature_sizes", feature_sizes, "(height, width) of each level")
        self.feature_sizes = [sizes_of.pair("feature_sizes", level) for level in levels]
        if (scales is None) == (sizes is None):
            fix = "Pass one of `scales` and `sizes`."
            raise checks.value_error("scales", "scales for each level, or sizes", scales, fix)
        count = len(self.feature_sizes)
        if sizes is not None:
            self.sizes = sizes_of.given_sizes(sizes, count)
        else:
            self.sizes = sizes_of.from_scales(scales, ratios, extra, aspect, count)
        self.clip = bool(checks.instance("clip", clip, (bool, np.bool_), "True or False"))

    @property
    def per_location(self) -> list[int]:
        """Number of priors in each cell, by level."""
        return [len(row) for row in self.sizes]

    @functools.cached_property
    def priors(self) -> np.ndarray:
        """(P, 4) float32, as (cx, cy, w, h)."""
        levels = zip(self.feature_sizes, self.sizes, strict=True)
        found = np.concatenate([_level(h, w, row) for (h, w), row in levels])
        if self.clip:
            low = np.maximum(found[:, :2] - found[:, 2:] / 2, 0.0)
            high = np.minimum(found[:, :2] + found[:, 2:] / 2, 1.0)
            found = np.concatenate([(low + high) / 2, high - low], 1)
        found = found.astype(np.float32)
        found.flags.writeable = False
        return found

    def __len__(self) -> int:
        levels = zip(self.feature_sizes, self.per_location, strict=True)
        return sum(h * w * n for (h, w), n in levels)

    def __repr__(self) -> str:
        levels = zip(self.feature_sizes, self.per_location, strict=True)
        text = " + ".join(f"{h}x{w}·{n}" for (h, w), n in levels)
        return f"Anchors({len(self)} priors, {text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Anchors) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((tuple(self.feature_sizes), self.sizes, self.clip))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments from which `from_config` makes equal anchors, as JSON."""
        return {
            "feature_sizes": [list(level) for level in self.feature_sizes],
            "sizes": [[list(pair) for pair in row] for row in self.sizes],
            "clip": self.clip,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Anchors:
        """Makes the anchors that `get_config` described."""
        return cls(**config)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the anchors to a JSON file, to be kept with the model's; returns its path."""
        return artifacts.write_text(path, json.dumps(self.get_config()) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Anchors:
        """Reads anchors that `save` wrote.

        Raises:
            ValueError: if the file does not hold anchors.
        """
        config = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(config, dict) or set(config) != {"feature_sizes", "sizes", "clip"}:
            raise checks.value_error("path", "a file that Anchors.save wrote", str(path))
        return cls.from_config(config)

    def best_iou(self, boxes: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """The largest IoU of each box with any prior: how well the anchors fit a data set.

        In training a box is matched with all priors whose IoU with it is at least 0.5. A
        box that no prior overlaps so much is matched with a single one; if there are many
        such boxes, other scales (see `fit`) help.

        Args:
            boxes: (..., 4) as (x1, y1, x2, y2), relative, or a list of such arrays;
                rows of -1 are padding and ignored.

        Returns:
            float64 (N,): intersection over union.
        """
        return clustering.best_iou(clustering.real_boxes("boxes", boxes), self.priors)

    @classmethod
    def ssd300(cls) -> Anchors:
        """The 8,732 priors of SSD at 300 px (Liu et al. 2016, sections 2.2 and 3.1).

        Ratios are 1, 2, 1/2, and also 3, 1/3 on levels two to four; each level has one
        additional box of ratio 1 and scale √(s·s'), where s' is the scale of the next
        level. The scales follow the paper's formula, 0.1 and 0.2 to 0.9; the authors'
        code rounds them to 0.1, 0.2, 0.37, ... 0.88.
        """
        after = (*_SSD300_SCALES[1:], _SSD300_AFTER)
        extra = [math.sqrt(a * b) for a, b in zip(_SSD300_SCALES, after, strict=True)]
        return cls(_SSD300_SIDES, _SSD300_SCALES, _SSD300_RATIOS, extra)

    @classmethod
    def small(
        cls,
        input_size: int | Sequence[int],
        strides: Sequence[int] = (8, 16, 32),
        scales: Sequence[float | Sequence[float]] = ((0.07, 0.11), (0.17, 0.22), (0.30, 0.42)),
        ratios: Sequence[float | Sequence[float]] = (1.0,),
        aspect: float = 1.0,
    ) -> Anchors:
        """Makes a few anchors, for small images whose objects have similar shapes.

        Args:
            input_size: pixels of the network's input: one number, or (height, width).
            strides: pixels between the cells of each level; a level has
                ceil(input_size / stride) cells.
            scales: as in `Anchors`; the defaults fit images of blood cells. `fit` computes
                sizes for your own boxes.
            ratios: as in `Anchors`.
            aspect: as in `Anchors`.

        Example:
            >>> from tfkd.detection.anchors import Anchors
            >>> Anchors.small(160, aspect=0.75)
            Anchors(1050 priors, 20x20·2 + 10x10·2 + 5x5·2)
        """
        sides = sizes_of.pair("input_size", input_size)
        row = sizes_of.sequence("strides", strides, "a stride for each level")
        row = tuple(checks.positive_int("strides", stride) for stride in row)
        levels = [tuple(-(-side // stride) for side in sides) for stride in row]
        return cls(levels, scales, ratios, aspect=aspect)

    @classmethod
    def fit(
        cls,
        boxes: np.ndarray | Sequence[np.ndarray],
        feature_sizes: Sequence[int | Sequence[int]],
        per_location: int | Sequence[int] = 2,
        seed: int = 0,
        clip: bool = False,
    ) -> Anchors:
        """Computes the sizes by k-means on the training boxes, with 1 − IoU as distance.

        The same boxes and seed give the same anchors. The sizes are sorted by area; the
        first level has the smallest.

        Args:
            boxes: (..., 4) as (x1, y1, x2, y2), relative, or a list of such arrays;
                rows of -1 are padding and ignored.
            feature_sizes: as in `Anchors`, the finest level first.
            per_location: priors in each cell, for all levels or for each.
            seed: of the random initial centers.
            clip: as in `Anchors`.

        Raises:
            ValueError: if boxes have no area, or fewer distinct sizes than clusters.

        Reference: Redmon & Farhadi 2017, https://arxiv.org/abs/1612.08242

        Example:
            >>> import numpy as np
            >>> from tfkd.detection.anchors import Anchors
            >>> boxes = np.array([[0, 0, 0.1, 0.2], [0.5, 0, 0.6, 0.2], [0.2, 0.2, 0.8, 0.7]])
            >>> [np.round(row, 3).tolist() for row in Anchors.fit(boxes, (4, 2), 1).sizes]
            [[[0.1, 0.2]], [[0.6, 0.5]]]
        """
        levels = sizes_of.sequence("feature_sizes", feature_sizes, "(height, width) of each level")
        if isinstance(per_location, (Sequence, np.ndarray)):
            counts = tuple(checks.positive_int("per_location", n) for n in per_location)
        else:
            counts = (checks.positive_int("per_location", per_location),) * len(levels)
        if len(counts) != len(levels):
            expected = f"{len(levels)} numbers, one for each level"
            raise checks.value_error("per_location", expected, per_location)
        corners = clustering.real_boxes("boxes", boxes)
        found = clustering.k_means(corners[:, 2:] - corners[:, :2], sum(counts), seed)
        ends = np.cumsum(counts)
        rows = [found[end - n : end].tolist() for n, end in zip(counts, ends, strict=True)]
        return cls(levels, sizes=rows, clip=clip)


def _level(height: int, width: int, sizes: Sequence[tuple[float, float]]) -> np.ndarray:
    """Priors of one level, float64 (height · width · anchors, 4)."""
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n for n in (height, width)), indexing="ij")
    found = np.empty((height, width, len(sizes), 4))
    found[..., 0], found[..., 1] = x[..., None], y[..., None]
    found[..., 2:] = np.asarray(sizes)
    return found.reshape(-1, 4)
