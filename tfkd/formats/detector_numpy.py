"""Decoding a detector's outputs where there is no TensorFlow: on a device, in NumPy.

The same as `tfkd.detection.decode`, which says what it computes and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# As in tfkd.detection.boxes.
MAX_LOG_SIZE = np.float32(np.log(1000.0 / 16.0))

Detections = dict[str, np.ndarray]


def decode(
    outputs: Mapping[str, np.ndarray], priors: np.ndarray, options: Mapping[str, Any]
) -> Detections:
    """Detections of a batch.

    Args:
        outputs: offsets (B, P, 4) and logits (B, P, C) by name.
        priors: (P, 4), as (cx, cy, w, h).
        options: all options of `tfkd.detection.decode`.

    Returns:
        As of `tfkd.detection.decode`, in NumPy.
    """
    scores = activated(outputs[options["classes"]], options["background"])
    rows = [
        _decode_one(offsets, row, priors, options)
        for offsets, row in zip(outputs[options["boxes"]], scores, strict=True)
    ]
    return padded(rows, options["max_detections"])


def activated(logits: np.ndarray, background: bool) -> np.ndarray:
    """Scores of the objects' classes: softmax less the background, or sigmoid."""
    logits = np.asarray(logits, np.float32)
    if not background:
        # exp of what is not positive only: it does not overflow.
        e = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + e), e / (1 + e))
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[..., 1:]


def corners(offsets: np.ndarray, priors: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Boxes (..., 4) as corners within the image."""
    offsets = np.asarray(offsets, np.float32) * np.array(options["variances"], np.float32)
    if options["order"] == "yxhw":
        offsets = offsets[..., [1, 0, 3, 2]]
    centers = offsets[..., :2] * priors[..., 2:] + priors[..., :2]
    half = np.exp(np.minimum(offsets[..., 2:], MAX_LOG_SIZE)) * priors[..., 2:] / 2
    return np.clip(np.concatenate([centers - half, centers + half], -1), 0.0, 1.0)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersections over unions (N, M) of boxes (N, 4) and (M, 4)."""
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
    """(boxes, scores, classes) of one image, the best first."""
    prior, kind = _candidates(scores, options)
    boxes = corners(offsets[prior], priors[prior], options)
    return _suppressed(boxes, scores[prior, kind], kind, options)


def suppress(boxes: np.ndarray, scores: np.ndarray, options: Mapping[str, Any]) -> Detections:
    """Detections of a batch of boxes (B, P, 4) as corners, with their scores (B, P, C)."""
    rows = []
    for corner, row in zip(boxes, scores, strict=True):
        prior, kind = _candidates(row, options)
        rows.append(_suppressed(corner[prior], row[prior, kind], kind, options))
    return padded(rows, options["max_detections"])


def _candidates(scores: np.ndarray, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the priors, classes) of the best scores above the threshold."""
    flat = scores.reshape(-1)
    above = np.flatnonzero(flat > options["score_threshold"])
    best = above[np.argsort(-flat[above], kind="stable")][: options["candidates"]]
    return best // scores.shape[-1], best % scores.shape[-1]


def _suppressed(
    boxes: np.ndarray, scores: np.ndarray, kind: np.ndarray, options: Mapping[str, Any]
) -> Rows:
    valid = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    boxes, scores, kind = boxes[valid], scores[valid], kind[valid]
    over = np.triu(overlaps(boxes, boxes) > options["iou_threshold"], 1)
    if not options["class_agnostic"]:
        over &= kind[:, None] == kind[None]
    kept, before = np.ones(len(kind), bool), None
    while before is None or (kept != before).any():
        kept, before = ~(over & kept[:, None]).any(0), kept
    rows = np.flatnonzero(kept)[: options["max_detections"]]
    return boxes[rows], scores[rows], kind[rows]


def padded(rows: list[Rows], count: int) -> Detections:
    """Rows of each image, of any number, as arrays filled up with -1."""
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
