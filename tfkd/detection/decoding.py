"""Decoding of detector outputs: scores, boxes and non-maximum suppression (NMS).

Logits become scores, the candidates of the highest scores in every image are decoded to
boxes, and of overlapping boxes of one class only the best is kept (greedy non-maximum
suppression: Girshick et al. 2014; as in SSD: Liu et al. 2016,
https://arxiv.org/abs/1512.02325).

NMS is computed for the whole batch at once, as a fixed point: a box is kept if no kept
box with a higher score overlaps it. The first iteration determines the best box, and
each further iteration at least one more; usually a handful suffices. The result is that
of the greedy loop, but from operations that XLA and all devices support, unlike
`tf.image.combined_non_max_suppression`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.detection import boxes as box_math
from tfkd.types import Tensor

__all__ = ["decode"]


def decode(
    outputs: Mapping[str, Tensor],
    anchors: box_math.HasPriors | np.ndarray,
    *,
    variances: Sequence[float] = box_math.VARIANCES,
    score_threshold: float = 0.02,
    iou_threshold: float = 0.45,  # as in the SSD authors' code, like the 400 candidates
    max_detections: int = 100,
    candidates: int = 400,
    background: bool = True,
    boxes: str = "boxes",
    classes: str = "classes",
    class_agnostic: bool = False,
    order: str = "xywh",
) -> dict[str, tf.Tensor]:
    """Decodes a detector's outputs to detections, with non-maximum suppression.

    It runs eagerly, in `tf.function` (also with `jit_compile`), in `tf.data` and in a
    `train_step`; no gradient flows through it. It needs memory for `candidates`²
    numbers per image.

    Args:
        outputs: a model's outputs, a dict with encoded offsets (B, P, 4) and class
            logits (B, P, C + 1), or (B, P, C) without a background class.
        anchors: `Anchors`, or priors (P, 4) as (cx, cy, w, h) relative to the image.
        variances: the numbers by which the offsets were divided in training.
        score_threshold: only detections with a higher score are returned.
        iou_threshold: of two boxes of a class whose intersection over union is higher,
            the one with the lower score is suppressed.
        max_detections: N, the largest number of detections of an image.
        candidates: the number of pairs of box and class, those with the highest scores
            of an image, that enter the suppression.
        background: whether class 0 of the logits is the background and scores are a
            softmax. False: there is no background class, and scores are sigmoids (as in
            keras-cv's RetinaNet: see `tfkd.detection.retina_net_head`).
        boxes: name of the offsets in `outputs`.
        classes: name of the logits in `outputs`.
        class_agnostic: whether boxes also suppress boxes of other classes.
        order: order of the offsets, "xywh" or "yxhw".

    Returns:
        A dict, by decreasing confidence: "boxes" (B, N, 4) as (x1, y1, x2, y2) in 0..1,
        "confidence" (B, N), "classes" (B, N) int32 without the background, and
        "num_detections" (B,) int32. Rows beyond that number have box and class -1 and
        confidence 0. Boxes without area inside the image are not returned.

    Raises:
        TypeError, ValueError: if an argument or a shape is wrong.

    Example:
        >>> import numpy as np
        >>> from tfkd.detection.decoding import decode
        >>> priors = np.array([[0.25, 0.25, 0.5, 0.5], [0.3, 0.25, 0.5, 0.5]], "float32")
        >>> outputs = {
        ...     "boxes": np.zeros((1, 2, 4), "float32"),
        ...     "classes": np.array([[[0.0, 7.0, 0.0], [0.0, 6.0, 0.0]]], "float32"),
        ... }
        >>> found = decode(outputs, priors, max_detections=2)
        >>> found["num_detections"].numpy(), found["classes"].numpy().tolist()
        (array([1], dtype=int32), [[0, -1]])
        >>> found["boxes"][0, 0].numpy().tolist()
        [0.0, 0.0, 0.5, 0.5]
    """
    checks.fraction("score_threshold", score_threshold)
    checks.fraction("iou_threshold", iou_threshold)
    limit = checks.positive_int("max_detections", max_detections)
    pool = checks.positive_int("candidates", candidates)
    variances = box_math.check_variances(variances)
    checks.one_of("order", order, box_math.ORDERS)
    priors = box_math.check_priors(anchors)
    offsets, logits = _heads(outputs, boxes, classes, priors, background)

    scores = tf.nn.softmax(logits)[..., 1:] if background else tf.sigmoid(logits)
    # A score of NaN becomes 0 too: it is not above the threshold.
    scores, prior, kind = _best(tf.where(scores > score_threshold, scores, 0.0), pool)
    offsets, priors = tf.gather(offsets, prior, batch_dims=1), tf.gather(tf.constant(priors), prior)
    found = box_math.clip(box_math.decode_offsets(offsets, priors, variances, order))
    valid = (scores > 0) & (box_math.area(found) > 0)
    groups = tf.zeros_like(kind) if class_agnostic else kind
    kept = _suppress(found, groups, valid, iou_threshold)
    return _collect(found, scores, kind, kept, limit)


def _heads(
    outputs: Mapping[str, Tensor], boxes: str, classes: str, priors: np.ndarray, background: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the checked (offsets, logits) in float32, without gradients."""
    if not isinstance(outputs, Mapping):
        fix = f"The model must return a dict with {boxes!r} and {classes!r}."
        raise checks.type_error("outputs", "a dict of a detector's outputs", outputs, fix)
    for name, key in (("boxes", boxes), ("classes", classes)):
        if key not in outputs:
            fix = checks.near(key, outputs) or f"There are: {sorted(map(str, outputs))}."
            raise checks.value_error(name, "the name of one of `outputs`", key, fix)
    offsets = tf.stop_gradient(tf.cast(outputs[boxes], tf.float32))
    logits = tf.stop_gradient(tf.cast(outputs[classes], tf.float32))
    least = 2 if background else 1
    _check_shape(f"outputs[{boxes!r}]", offsets, len(priors), "4", offsets.shape[-1:] == [4])
    deep = (logits.shape[-1] if logits.shape.rank else None) or 0
    _check_shape(f"outputs[{classes!r}]", logits, len(priors), f"{least} or more", deep >= least)
    offsets = tf.ensure_shape(offsets, [None, len(priors), 4])
    return offsets, tf.ensure_shape(logits, [None, len(priors), deep])


def _best(scores: tf.Tensor, pool: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best pairs of prior and class: scores, priors and classes, each (B, K).

    The K best pairs belong to the K priors with the highest score of any class, so that
    P · C numbers need not be sorted. Among equal scores the first prior and class win.
    """
    count, number = int(scores.shape[1]), int(scores.shape[2])
    _, priors = tf.math.top_k(tf.reduce_max(scores, -1), min(pool, count), sorted=False)
    # By index, since among equal scores `top_k` prefers those that come first.
    priors = tf.sort(priors, axis=-1)
    pairs = priors.shape[1] * number
    scores = tf.reshape(tf.gather(scores, priors, batch_dims=1), [-1, pairs])
    scores, where = tf.math.top_k(scores, min(pool, pairs))
    return scores, tf.gather(priors, where // number, batch_dims=1), where % number


def _check_shape(name: str, value: tf.Tensor, priors: int, last: str, fits: bool) -> None:
    fits = fits and value.shape.rank == 3
    if fits and value.shape[1] in (None, priors):
        return
    fix = "Pass the anchors with which the model was built." if fits else None
    raise checks.value_error(name, f"shape (batch, {priors} priors, {last})", value, fix)


def _suppress(found: tf.Tensor, groups: tf.Tensor, valid: tf.Tensor, threshold: float) -> tf.Tensor:
    """Greedy NMS of boxes (B, K, 4), sorted by decreasing score; returns bool (B, K)."""
    count = found.shape[1]
    # [i, j]: candidate i has the higher score, since they are sorted.
    better = tf.constant(np.triu(np.ones((count, count), bool), 1))
    rival = groups[:, :, None] == groups[:, None, :]
    over = (box_math.iou(found, found) > threshold) & rival & better
    over = tf.cast(over, tf.float32)
    valid = tf.cast(valid, tf.float32)

    def settle(kept: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        beaten = tf.linalg.matvec(over, kept, transpose_a=True)
        now = tf.where(beaten > 0, 0.0, valid)
        return now, tf.reduce_any(now != kept)

    kept, _ = tf.while_loop(lambda _, moved: moved, settle, [valid, tf.constant(True)])
    return kept > 0


def _collect(
    found: tf.Tensor, scores: tf.Tensor, kind: tf.Tensor, kept: tf.Tensor, limit: int
) -> dict[str, tf.Tensor]:
    """Returns the best `limit` of the kept boxes, padded with rows of -1."""
    # `top_k` needs at least `limit` entries; a score of -1 marks those that are not kept.
    missing = max(0, limit - found.shape[1])
    scores = tf.pad(tf.where(kept, scores, -1.0), [[0, 0], [0, missing]], constant_values=-1.0)
    scores, rows = tf.math.top_k(scores, limit)
    real = scores >= 0
    rows = tf.minimum(rows, found.shape[1] - 1)
    return {
        "boxes": tf.where(real[..., None], tf.gather(found, rows, batch_dims=1), -1.0),
        "confidence": tf.maximum(scores, 0.0),
        "classes": tf.where(real, tf.gather(kind, rows, batch_dims=1), -1),
        "num_detections": tf.reduce_sum(tf.cast(real, tf.int32), 1),
    }
