"""From what a model returns to the scores behind its last softmax or sigmoid.

What an output is, is proved from the graph where it can be. Where it can't, whoever runs
the model has looked at its values once (`tfkd.teachers.output_kinds`) and passes what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

from tfkd import checks
from tfkd.losses.ranges import KEEPS, in_unit

Model = TypeVar("Model")

KINDS = ("logits", "softmax", "sigmoid")
# What the user has said to be logits, whatever the graph shows.
DECLARED_LOGITS = "declared logits"

# Operations at an end that is neither a softmax nor a sigmoid.
_LINEAR = ("BiasAdd", "FusedBatchNormV3", "LogSoftmax")
_TINY = 1e-30  # keeps log and its gradient finite in float32


class Proof(NamedTuple):
    """What the graph shows a tensor to be.

    Attributes:
        kind: one of `KINDS`.
        scores: the scores behind it, in the tensor's shape; logits: the tensor itself.
        axis: of the classes of a softmax.
    """

    kind: str
    scores: tf.Tensor
    axis: int | None = None


def declare_outputs(model: Model, kind: str | Sequence[str] | Mapping[str, str]) -> Model:
    """Says what a model's outputs are, where neither its graph nor its values can tell.

    tfkd proves it from the graph, or else looks at the values of some examples; what is
    said here goes before both, wherever the model is a teacher or a student.

    Args:
        model: a model or function, as for `tfkd.Distiller`. It is marked in place.
        kind: "logits"; "softmax", for rows of probabilities that sum to 1; "sigmoid", for
            probabilities of their own; or a list or dict of these, one for each output in
            the structure of the outputs.

    Returns:
        The model.

    Raises:
        TypeError: for an object that can't be marked.
        ValueError: for another kind.

    Example:
        >>> import tensorflow as tf, tfkd
        >>> teacher = tfkd.losses.declare_outputs(lambda x: tf.nn.relu(x), "logits")
    """
    for one in tf.nest.flatten(kind):
        checks.one_of("kind", one, KINDS)
    try:
        object.__setattr__(model, "_tfkd_outputs", kind)
    except (AttributeError, TypeError):
        expected = "a model or function that can be marked"
        fix = "Wrap it: lambda x: model(x)."
        raise checks.type_error("model", expected, model, fix) from None
    return model


@tf.autograph.experimental.do_not_convert
def scores_behind(tensor: tf.Tensor, kind: str | None = None) -> tf.Tensor:
    """Undoes a softmax or sigmoid at a model's end.

    Args:
        tensor: an output of a model.
        kind: what it was found or declared to be, one of `KINDS` or `DECLARED_LOGITS`; None:
            nobody has looked. Then an end that the graph does not prove is tested batch by
            batch.

    Returns:
        Scores in the tensor's shape: those before the softmax or sigmoid where they can be
        reached, log p of a softmax, or log p − log(1 − p) of a sigmoid.
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
    return {"softmax": log_p, "sigmoid": log_odds, "logits": tf.identity}[kind](tensor)


def proof(tensor: tf.Tensor) -> Proof | None:
    """What the graph shows a tensor of a graph to be, or None.

    A softmax counts only if its classes are on the last axis of the tensor.
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
    if op.type not in KEEPS and op.type not in _MOVES:
        return None
    source = op.inputs[tensor.value_index if op.type == "IdentityN" else 0]
    found = _walk(source) if source.dtype.is_floating else None
    if found is None or op.type in KEEPS or found.kind == "logits":
        return found
    return _MOVES[op.type](op, tensor, found)


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


_MOVES = {
    "Reshape": _reshaped,
    "ExpandDims": _expanded,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
}


def _joined(op: tf.Operation, parts: list[Proof | None]) -> Proof | None:
    """Several side by side: the rows of one softmax must stay whole."""
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
    """Leaves what an output is where a loss on the labels can find it."""
    if kind is not None:
        tensor._tfkd_kind = kind


def _noted(tensor: tf.Tensor) -> str | None:
    """What `note` left, also behind what Keras does to outputs before a loss sees them."""
    kind = getattr(tensor, "_tfkd_kind", None)
    if isinstance(tensor, tf.__internal__.EagerTensor):
        return kind
    while kind is None and tensor.op.type in (*KEEPS, "Squeeze", "ExpandDims"):
        tensor = tensor.op.inputs[0]
        kind = getattr(tensor, "_tfkd_kind", None)
    return kind


def with_classes(y: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
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


def log_p(p: tf.Tensor) -> tf.Tensor:
    """Scores of which `p` is the softmax, float32; finite where p is 0."""
    return tf.math.log(tf.maximum(tf.cast(p, tf.float32), _TINY))


def log_odds(p: tf.Tensor) -> tf.Tensor:
    """Scores of which `p` is the sigmoid, float32; finite where p is 0 or 1.

    A 1 stands for all that rounds to it: 1 − p is half a last place.
    """
    last = {tf.float16: 2.0**-11, tf.bfloat16: 2.0**-8}.get(p.dtype, 2.0**-24)
    p = tf.cast(p, tf.float32)
    return log_p(p) - tf.math.log(tf.maximum(1.0 - p, last / 2))


def _log_if_probability(scores: tf.Tensor) -> tf.Tensor:
    """log p if every row is a distribution over at least two classes, else unchanged.

    Logits that are all in [0, 1] and sum to 1 in every row do not happen.
    """
    rank = scores.shape.rank  # None: the graph does not know it
    if not scores.dtype.is_floating or rank is None or rank < 2 or scores.shape[-1] == 1:
        return scores
    values = tf.cast(scores, tf.float32)
    sums_to_one = tf.abs(tf.reduce_sum(values, -1) - 1.0) < 1e-2
    is_distribution = tf.reduce_all(values >= 0.0) & tf.reduce_all(sums_to_one)
    return tf.where(is_distribution, log_p(values), values)
