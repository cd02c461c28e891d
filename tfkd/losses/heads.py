"""Recovers logits from a model's outputs by inverting a final softmax or sigmoid.

Whether an output holds logits or probabilities is proved from the graph where possible.
Otherwise the caller has inspected its values once (`tfkd.teachers.output_kinds`) and
passes the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

from tfkd import checks
from tfkd.losses.ranges import IDENTITY_OPS, in_unit
from tfkd.networks.layer_state import DECLARED

Model = TypeVar("Model")

KINDS = ("logits", "softmax", "sigmoid")
# Logits by the user's declaration, which overrules the graph.
DECLARED_LOGITS = "declared logits"
# Probabilities in steps of about 1/256, of a quantized model: 0 stands for all below half a step.
ROUNDED_SOFTMAX = "rounded softmax"
_HALF_STEP = 1 / 512

# Final operations whose outputs are not probabilities.
_LINEAR = ("BiasAdd", "FusedBatchNormV3", "LogSoftmax")
_TINY = 1e-30  # keeps log and its gradient finite in float32, whose least normal is 1.2e-38


class Proof(NamedTuple):
    """What the graph proves about a tensor.

    Attributes:
        kind: one of `KINDS`.
        scores: the logits from which it was computed, in the tensor's shape; for logits
            the tensor itself.
        axis: the class axis of a softmax.
    """

    kind: str
    scores: tf.Tensor
    axis: int | None = None


def declare_outputs(model: Model, kind: str | Sequence[str] | Mapping[str, str]) -> Model:
    """Declares whether a model's outputs are logits or probabilities.

    By default tfkd proves this from the graph, or else from the outputs of a few examples.
    A declaration overrules both, whether the model is a teacher or a student.

    Args:
        model: a model or function, as for `tfkd.Distiller`. It is marked in place.
        kind: "logits"; "softmax", for rows of probabilities that sum to 1; "sigmoid", for
            independent probabilities; or a list or dict of these, one for each output, in
            the structure of the outputs.

    Returns:
        The model.

    Raises:
        TypeError: for an object on which no attribute can be set.
        ValueError: for an unknown kind.

    Example:
        >>> import tensorflow as tf, tfkd
        >>> teacher = tfkd.losses.declare_outputs(lambda x: tf.nn.relu(x), "logits")
    """
    for one in tf.nest.flatten(kind):
        checks.one_of("kind", one, KINDS)
    try:
        # Bypasses Keras's __setattr__, which would wrap and track lists and dicts.
        object.__setattr__(model, DECLARED, kind)
    except (AttributeError, TypeError):
        expected = "a model or function that can be marked"
        fix = "Wrap it: lambda x: model(x)."
        raise checks.type_error("model", expected, model, fix) from None
    return model


@tf.autograph.experimental.do_not_convert  # its control flow is on the graph, not on values
def scores_behind(tensor: tf.Tensor, kind: str | None = None) -> tf.Tensor:
    """Returns the logits of an output, by inverting a final softmax or sigmoid.

    Args:
        tensor: an output of a model.
        kind: what it was found or declared to be, one of `KINDS`, `DECLARED_LOGITS` or
            `ROUNDED_SOFTMAX`; None if that is unknown. Then an output that the graph does
            not classify is tested batch by batch.

    Returns:
        Logits in the tensor's shape: the input of the softmax or sigmoid where the graph
        has it, else log p for a softmax, or log p − log(1 − p) for a sigmoid.
    """
    kind = kind or _noted(tensor)
    if kind == DECLARED_LOGITS:
        return tensor
    if isinstance(tensor, tf.__internal__.EagerTensor):
        known = getattr(tensor, "_keras_logits", None)
        if known is not None and kind != "logits" and known.shape == tensor.shape:
            return known
        proved = None
    else:
        proved = proof(tensor)
    if proved is not None and (proved.kind != "logits" or kind in (None, "logits")):
        return proved.scores
    if kind is None and tensor.shape.rank and tensor.shape[-1] == 1 and in_unit(tensor):
        kind = "sigmoid"
    if kind is None:
        return _log_if_probability(tensor)
    inverses = {"softmax": log_p, ROUNDED_SOFTMAX: _log_rounded, "sigmoid": log_odds}
    return inverses.get(kind, tf.identity)(tensor)


def proof(tensor: tf.Tensor) -> Proof | None:
    """Classifies a symbolic tensor by the operations that compute it, or returns None.

    A softmax is accepted only if its classes are on the last axis of the tensor.
    """
    found = _walk(tensor)
    if found is None or found.kind == "logits":
        return None if found is None else Proof("logits", tensor)
    if found.kind == "softmax" and found.axis != len(tensor.shape) - 1:
        return None
    found.scores.set_shape(tensor.shape)
    return found


def _walk(tensor: tf.Tensor) -> Proof | None:
    op = tensor.op
    if tensor.shape.rank is None:
        return None
    if op.type == "Softmax":
        return Proof("softmax", op.inputs[0], len(tensor.shape) - 1)
    if op.type == "Sigmoid":
        return Proof("sigmoid", op.inputs[0])
    if op.type in _LINEAR:
        return Proof("logits", tensor)
    if op.type == "ConcatV2":
        return _joined(op, [_walk(part) for part in op.inputs[:-1]])
    if op.type not in IDENTITY_OPS and op.type not in _AXIS_RULES:
        return None
    source = op.inputs[tensor.value_index if op.type == "IdentityN" else 0]
    found = _walk(source) if source.dtype.is_floating else None
    if found is None or op.type in IDENTITY_OPS or found.kind == "logits":
        return found
    return _AXIS_RULES[op.type](op, tensor, found)


def _reshaped(op: tf.Operation, tensor: tf.Tensor, found: Proof) -> Proof | None:
    before, after = op.inputs[0].shape, tensor.shape
    axis = found.axis
    if axis is not None:
        kept = axis == len(before) - 1 and before[-1] is not None and before[-1] == after[-1]
        if not kept:
            return None
        axis = len(after) - 1
    return Proof(found.kind, tf.reshape(found.scores, op.inputs[1]), axis)


def _expanded(op: tf.Operation, tensor: tf.Tensor, found: Proof) -> Proof | None:
    place = tf.get_static_value(op.inputs[1])
    if place is None:
        return None
    place = int(place) % len(tensor.shape)
    axis = None if found.axis is None else found.axis + (place <= found.axis)
    return Proof(found.kind, tf.expand_dims(found.scores, place), axis)


def _squeezed(op: tf.Operation, tensor: tf.Tensor, found: Proof) -> Proof | None:
    before = op.inputs[0].shape
    gone = [int(i) % len(before) for i in op.get_attr("squeeze_dims")]
    gone = gone or [i for i, size in enumerate(before) if size == 1]
    axis = found.axis
    if len(before) - len(gone) != len(tensor.shape) or axis in gone:
        return None
    if axis is not None:
        axis -= sum(i < axis for i in gone)
    return Proof(found.kind, tf.squeeze(found.scores, gone), axis)


def _transposed(op: tf.Operation, tensor: tf.Tensor, found: Proof) -> Proof | None:
    order = tf.get_static_value(op.inputs[1])
    if order is None:
        return None
    axis = None if found.axis is None else list(order).index(found.axis)
    return Proof(found.kind, tf.transpose(found.scores, order), axis)


_AXIS_RULES = {
    "Reshape": _reshaped,
    "ExpandDims": _expanded,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
}


def _joined(op: tf.Operation, parts: list[Proof | None]) -> Proof | None:
    """Proof for a concatenation, which must not be along the class axis of a softmax."""
    first, place = parts[0], tf.get_static_value(op.inputs[-1])
    known = [part for part in parts if part is not None]
    if first is None or len(known) < len(parts) or place is None:
        return None
    if any((part.kind, part.axis) != (first.kind, first.axis) for part in known):
        return None
    place = int(place) % len(op.outputs[0].shape)
    if first.kind == "logits":
        return first
    if place == first.axis:
        return None
    scores = [tf.cast(part.scores, first.scores.dtype) for part in known]
    return Proof(first.kind, tf.concat(scores, place), first.axis)


def note(tensor: tf.Tensor, kind: str | None) -> None:
    """Records the kind of an output on its tensor, where a loss on the labels finds it."""
    if kind is not None:
        tensor._tfkd_kind = kind


def _noted(tensor: tf.Tensor) -> str | None:
    """The kind that `note` recorded, also on tensors from which Keras derived this one."""
    kind = getattr(tensor, "_tfkd_kind", None)
    if isinstance(tensor, tf.__internal__.EagerTensor):
        return kind
    while kind is None and tensor.op.type in (*IDENTITY_OPS, "Squeeze", "ExpandDims"):
        tensor = tensor.op.inputs[0]
        kind = getattr(tensor, "_tfkd_kind", None)
    return kind


def with_classes(y: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Restores the last axis of size 1, which Keras squeezes if the labels have none.

    In graph mode it returns the tensor before the squeeze, whose operations `proof` reads.
    """
    if scores.shape.rank != y.shape.rank and scores.shape.rank > 1:
        return scores
    if not isinstance(scores, tf.__internal__.EagerTensor) and scores.op.type == "Squeeze":
        before = scores.op.inputs[0]
        if before.shape[-1] == 1 and len(before.shape) == len(scores.shape) + 1:
            return before
    return scores if len(scores.shape) > 1 else scores[:, None]


def log_p(p: tf.Tensor) -> tf.Tensor:
    """Logits whose softmax is `p`, float32; finite where p is 0."""
    return tf.math.log(tf.maximum(tf.cast(p, tf.float32), _TINY))


def _log_rounded(p: tf.Tensor) -> tf.Tensor:
    """As `log_p`, with half a step of int8 in place of 0, whose gradient is that of this value."""
    p = tf.cast(p, tf.float32)
    return tf.math.log(p + tf.stop_gradient(tf.maximum(p, _HALF_STEP) - p))


def log_odds(p: tf.Tensor) -> tf.Tensor:
    """Logits whose sigmoid is `p`, float32; finite where p is 0 or 1.

    A p of 1 stands for all numbers that round to it, so 1 − p is taken as half of the
    spacing of the dtype's numbers just below 1.
    """
    # The spacing below 1 is 2^-(digits of the significand): 11, 8 and 24 binary digits.
    last = {tf.float16: 2.0**-11, tf.bfloat16: 2.0**-8}.get(p.dtype, 2.0**-24)
    p = tf.cast(p, tf.float32)
    return log_p(p) - tf.math.log(tf.maximum(1.0 - p, last / 2))


def _log_if_probability(scores: tf.Tensor) -> tf.Tensor:
    """Returns log p if every row is a distribution over two or more classes, else `scores`.

    Logits that are all in [0, 1] and sum to 1 in every row do not occur in practice.
    """
    rank = scores.shape.rank  # None if the graph does not know it
    if not scores.dtype.is_floating or rank is None or rank < 2 or scores.shape[-1] == 1:
        return scores
    values = tf.cast(scores, tf.float32)
    # A softmax rounded to bfloat16 sums to 1 within 2e-3.
    sums_to_one = tf.abs(tf.reduce_sum(values, -1) - 1.0) < 1e-2
    is_distribution = tf.reduce_all(values >= 0.0) & tf.reduce_all(sums_to_one)
    return tf.where(is_distribution, log_p(values), values)
