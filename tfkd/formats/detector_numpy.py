"""Box decoding and non-maximum suppression in NumPy, for devices without TensorFlow.

It computes the same as `tfkd.detection.decode`, which documents the algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# Upper limit of log(box size / prior size), as in tfkd.detection.boxes: keeps exp finite.
MAX_LOG_SIZE = np.float32(np.log(1000.0 / 16.0))

Detections = dict[str, np.ndarray]


def decode(
    outputs: Mapping[str, np.ndarray], priors: np.ndarray, options: Mapping[str, Any]
) -> Detections:
    """Decodes a detector's outputs for a batch of images.

    Args:
        outputs: box offsets (B, P, 4) and class logits (B, P, C) by output name.
        priors: anchor boxes (P, 4) as (cx, cy, w, h).
        options: all options of `tfkd.detection.decode`.

    Returns:
        NumPy arrays in the form of `tfkd.detection.decode`.
    """
    scores = activated(outputs[options["classes"]], options["background"])
    rows = [
        _decode_one(offsets, row, priors, options)
        for offsets, row in zip(outputs[options["boxes"]], scores, strict=True)
    ]
    return padded(rows, options["max_detections"])


def activated(logits: np.ndarray, background: bool) -> np.ndarray:
    """Class scores from logits: softmax without the background class (class 0), or sigmoid."""
    logits = np.asarray(logits, np.float32)
    if not background:
        # exp(-|x|) can't overflow.
        e = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + e), e / (1 + e))
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[..., 1:]


def corners(offsets: np.ndarray, priors: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Boxes (..., 4) decoded from offsets to corners, clipped to the image.

    c = offset · variance · prior size + prior center, size = exp(offset · variance) ·
    prior size, as in SSD: Liu et al. 2016, https://arxiv.org/abs/1512.02325
    """
    offsets = np.asarray(offsets, np.float32) * np.array(options["variances"], np.float32)
    if options["order"] == "yxhw":
        offsets = offsets[..., [1, 0, 3, 2]]
    centers = offsets[..., :2] * priors[..., 2:] + priors[..., :2]
    half = np.exp(np.minimum(offsets[..., 2:], MAX_LOG_SIZE)) * priors[..., 2:] / 2
    return np.clip(np.concatenate([centers - half, centers + half], -1), 0.0, 1.0)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of the boxes (N, 4) and (M, 4), given as corners."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), -1) for b in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def _decode_one(
    offsets: np.ndarray, scores: np.ndarray, priors: np.ndarray, options: Mapping[str, Any]
) -> Rows:
    """(boxes, scores, classes) of one image by descending score."""
    prior, kind = _candidates(scores, options)
    boxes = corners(offsets[prior], priors[prior], options)
    return _suppressed(boxes, scores[prior, kind], kind, options)


def suppress(boxes: np.ndarray, scores: np.ndarray, options: Mapping[str, Any]) -> Detections:
    """Non-maximum suppression of a batch of corner boxes (B, P, 4) with scores (B, P, C)."""
    rows = []
    for corner, row in zip(boxes, scores, strict=True):
        prior, kind = _candidates(row, options)
        rows.append(_suppressed(corner[prior], row[prior, kind], kind, options))
    return padded(rows, options["max_detections"])


def _candidates(scores: np.ndarray, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(indices of priors, classes) of the highest scores above the threshold."""
    flat = scores.reshape(-1)
    above = np.flatnonzero(flat > options["score_threshold"])
    best = above[np.argsort(-flat[above], kind="stable")][: options["candidates"]]
    return best // scores.shape[-1], best % scores.shape[-1]


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, kind: np.ndarray, options: Mapping[str, Any]
) -> Rows:
    """Greedy non-maximum suppression of one image's candidates, sorted by score."""
    valid = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    boxes, scores, kind = boxes[valid], scores[valid], kind[valid]
    # over[i, j]: box i, which has the higher score, suppresses box j if it is kept itself.
    over = np.triu(overlaps(boxes, boxes) > options["iou_threshold"], 1)
    if not options["class_agnostic"]:
        over &= kind[:, None] == kind[None]
    # Iterating to the fixed point gives the result of the greedy loop.
    kept, before = np.ones(len(kind), bool), None
    while before is None or (kept != before).any():
        kept, before = ~(over & kept[:, None]).any(0), kept
    rows = np.flatnonzero(kept)[: options["max_detections"]]
    return boxes[rows], scores[rows], kind[rows]


def padded(rows: list[Rows], count: int) -> Detections:
    """Stacks the detections of all images, padded with -1 to `count` rows each."""
    found: Detections = {
        "boxes": np.full((len(rows), count, 4), -1, np.float32),
        "confidence": np.zeros((len(rows), count), np.float32),
        "classes": np.full((len(rows), count), -1, np.int32),
        "num_detections": np.array([len(row[1]) for row in rows], np.int32),
    }
    for i, (boxes, scores, kinds) in enumerate(rows):
        found["boxes"][i, : len(boxes)] = boxes
        found["confidence"][i, : len(boxes)] = scores
        found["classes"][i, : len(boxes)] = kinds
    return found
