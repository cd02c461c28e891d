"""From what a model returns to the scores behind its last softmax or sigmoid."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Operations that a tensor may pass through between a softmax and the output.
PASS_THROUGH = (
    "Identity",
    "Cast",
    "StopGradient",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
)
_SQUASHING = ("Softmax", "Sigmoid")


def scores_behind(tensor: Any) -> Any:
    """Undoes a softmax or sigmoid at a model's end.

    Exact where the scores before it can be reached (Keras remembers them, or the graph
    shows them); where a compiled function hides them, log p of outputs that are
    probabilities, told by their values.
    """
    known = getattr(tensor, "_keras_logits", None)
    if known is not None:
        return known
    if isinstance(tensor, tf.__internal__.EagerTensor):
        return _log_if_probability(tensor)
    op = tensor.op
    while op.type in PASS_THROUGH and op.inputs:
        op = op.inputs[0].op
    if op.type in _SQUASHING:
        return op.inputs[0]
    return _log_if_probability(tensor) if op.type.endswith("PartitionedCall") else tensor


def with_classes(y: Any, scores: Any) -> Any:
    """Gives scores the last axis of size 1 that Keras drops where labels have none.

    In graph mode the tensor itself comes back, so that what made it can be seen.
    """
    if len(scores.shape) != len(y.shape) and len(scores.shape) > 1:
        return scores
    if not isinstance(scores, tf.__internal__.EagerTensor) and scores.op.type == "Squeeze":
        before = scores.op.inputs[0]
        if before.shape[-1] == 1 and len(before.shape) == len(scores.shape) + 1:
            return before
    return scores if len(scores.shape) > 1 else scores[:, None]


def _log_if_probability(scores: Any) -> Any:
    """log p if every row is a distribution over at least two classes, else unchanged.

    Logits that are all in [0, 1] and sum to 1 in every row do not happen.
    """
    if not scores.dtype.is_floating or len(scores.shape) < 2 or scores.shape[-1] == 1:
        return scores
    values = tf.cast(scores, tf.float32)
    sums_to_one = tf.abs(tf.reduce_sum(values, -1) - 1.0) < 1e-2
    is_distribution = tf.reduce_all(values >= 0.0) & tf.reduce_all(sums_to_one)
    # 1e-30 keeps log and its gradient finite in float32.
    return tf.where(is_distribution, tf.math.log(tf.maximum(values, 1e-30)), values)
