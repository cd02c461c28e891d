"""Checks of labels and sample weights: dtype, range of class numbers, rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.data.label_forms import check_numbers
from tfkd.losses.joint import JointLoss
from tfkd.types import Structure


def check(
    y: Structure | None,
    outputs: tuple[int | None, ...] | None,
    loss: Any,
    are_used: bool = True,
) -> None:
    """Checks labels before a step is traced.

    Args:
        y: targets of `fit`: nested arrays, tensors or tensor specs; or None.
        outputs: shape of the student's output, or None if it is not known, or of several.
        loss: the student's loss, as given to `compile`.
        are_used: False if that loss has a weight of 0, so that it takes any labels.

    Raises:
        TypeError: for text or objects where the loss takes numbers.
        ValueError: for labels outside [0, classes), one-hot rows of other classes, and
            one-hot rows where the loss takes class numbers.
    """
    num_classes = outputs[-1] if outputs else None
    if isinstance(loss, JointLoss):
        return  # reads the entries that it needs from a dict of targets
    losses = [one for one in tf.nest.flatten(loss) if one is not None]
    for leaf in tf.nest.flatten(y):
        check_numbers("y", leaf, text=all(map(takes_text, losses)))
    if num_classes is None:
        return
    if takes_one_hot(loss):
        _check_width(y, num_classes)
    if are_used and not tf.nest.is_nested(y):
        check_class_numbers(y, outputs, loss)
    if hasattr(y, "__array__") and takes_class_numbers(loss):
        _check_range(np.asarray(y), num_classes, getattr(loss, "_fn_kwargs", {}))


def check_weights(sample_weight: Structure | None) -> None:
    """Raises TypeError for sample weights that are text or objects."""
    for leaf in tf.nest.flatten(sample_weight):
        check_numbers("sample_weight", leaf)


def takes_text(loss: Any) -> bool:
    """Whether a loss is user-defined, and so may take text."""
    of_keras = getattr(loss, "__module__", "").startswith("tf_keras")
    return not (isinstance(loss, str) or of_keras or _is_ours(loss))


def _is_ours(loss: Any) -> bool:
    return type(loss).__module__.startswith("tfkd.")


def takes_class_numbers(loss: Any) -> bool:
    """Whether a loss is one of Keras's sparse losses, which take class numbers."""
    return "sparse" in _name(loss)


def takes_one_hot(loss: Any) -> bool:
    """Whether a loss is Keras's cross-entropy of one-hot labels."""
    return _name(loss) == "categorical_crossentropy"


def _name(loss: Any) -> str:
    if isinstance(loss, str):
        return loss
    return getattr(loss, "name", getattr(loss, "__name__", "")) or ""


def _check_width(y: Any, num_classes: int) -> None:
    shape = tf.TensorShape(getattr(y, "shape", None))
    if not shape.rank:
        return
    if shape.rank < 2 or shape[-1] not in (None, num_classes):
        fix = "For class numbers use a sparse loss, such as SparseCategoricalCrossentropy."
        expected = f"one-hot rows of {num_classes} classes, as the student scores"
        raise checks.value_error("y", expected, y, fix)


def check_class_numbers(y: Any, outputs: Any, loss: Any) -> None:
    """Raises ValueError for one-hot rows where a loss of Keras takes class numbers.

    Args:
        y: targets of one output.
        outputs: its shape.
        loss: its loss.
    """
    if not takes_class_numbers(loss) or takes_text(loss):
        return
    given, wanted = tf.TensorShape(getattr(y, "shape", None)), tf.TensorShape(outputs)
    if not wanted.rank or given.rank != wanted.rank or given[-1] in (None, 1):
        return
    if (wanted[-1] or 0) > 1 and given[1:-1].is_compatible_with(wanted[1:-1]):
        fix = "Give each example, or each position, one number."
        if given[-1] == wanted[-1]:
            fix = "For one-hot rows use CategoricalCrossentropy, or pass y.argmax(-1)."
        expected = f"class numbers, without the axis of {given[-1]}, for {_name(loss)}"
        raise checks.value_error("y", expected, y, fix)


def _check_range(labels: np.ndarray, num_classes: int, options: dict[str, Any]) -> None:
    if options.get("ignore_class") is not None:
        labels = labels[labels != options["ignore_class"]]
    if labels.dtype.kind not in "iuf" or not labels.size:
        return
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high < num_classes):
        raise ValueError(
            f"`y`: expected class numbers from 0 to {num_classes - 1} (the student scores "
            f"{num_classes} classes), received labels from {low} to {high}. Number the "
            "classes from 0, or give the models as many outputs as there are classes."
        )


class Ranks:
    """Restores the static rank of targets where the graph has lost it.

    Keras relaxes the shapes of a step that change from one `fit` to the next, such as labels
    (N,) and then (N, 1), but its losses and metrics need the rank. If the rank was never
    known, as for a generator without shapes, it is inferred from the loss and the outputs.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __call__(self, y: Structure, y_pred: Structure, loss: Any) -> Structure:
        """Targets in the structure of `y`.

        Args:
            y: targets of a step.
            y_pred: the outputs that they are compared with.
            loss: as given to `compile`, one or nested.
        """
        leaves, outputs = tf.nest.flatten(y), tf.nest.flatten(y_pred)
        losses = tf.nest.flatten(loss)
        losses = losses * len(leaves) if len(losses) == 1 else losses
        if not len(losses) == len(leaves) == len(outputs):
            losses = outputs = [None] * len(leaves)
        several = enumerate(zip(leaves, outputs, losses, strict=True))
        return tf.nest.pack_sequence_as(y, [self._leaf(place, *each) for place, each in several])

    def _leaf(self, place: int, y: Any, y_pred: Any, loss: Any) -> Any:
        if not hasattr(y, "shape"):
            return y
        rank = y.shape.rank
        if rank is not None:
            self._known[place] = rank
            return y
        if place in self._known:
            rank = self._known[place]
            shape = tf.concat([tf.shape(y), tf.ones([rank], tf.int32)], 0)[:rank]
        elif loss is None or takes_text(loss) or (_is_ours(loss) and y_pred.shape[-1] != 1):
            return y  # user-defined losses are left alone, and those of tfkd take any rank
        else:
            rank = y_pred.shape.rank - takes_class_numbers(loss)
            shape = tf.shape(y_pred)[:rank]
        expected = f"`y`: expected targets of rank {rank} (or with axes of size 1 more)"
        message = f"{expected}, as before or as the outputs are; received the shape"
        with tf.control_dependencies(_asserted(tf.size(y) == tf.reduce_prod(shape), message, y)):
            return tf.ensure_shape(tf.reshape(y, shape), [None] * rank)


def _asserted(condition: Any, message: str, y: Any) -> list[Any]:
    made = tf.debugging.Assert(condition, [message, tf.shape(y)])
    return [] if made is None else [made]
