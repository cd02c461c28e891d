"""Tells which outputs of a model hold class scores, whose argmax means something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd.losses.expected_error import ExpectedErrorLoss
from tfkd.networks.layer_parts import output_form
from tfkd.teachers import output_kinds

CLASSES, VALUES, UNKNOWN = "classes", "values", "unknown"

_OF_CLASSES = """
    categorical_crossentropy sparse_categorical_crossentropy categorical_focal_crossentropy
    categorical_hinge kl_divergence
""".split()
_OF_NUMBERS = """
    mean_squared_error mean_absolute_error mean_absolute_percentage_error
    mean_squared_logarithmic_error huber log_cosh cosine_similarity poisson
""".split()
# Of labels that are independent of each other.
_OF_LABELS = "binary_crossentropy binary_focal_crossentropy hinge squared_hinge".split()
_ROUNDING = 1e-3  # of float32 in sums of probabilities
# Of 8-bit outputs in the length of a row; and the fewest rows that are no coincidence.
_UNIT, _FEWEST = 0.02, 8


def of_values(values: np.ndarray) -> str:
    """What the numbers of an output (N, ..., C) show.

    Returns:
        CLASSES if its rows are distributions or their logarithms; VALUES if all have length
        1, as normalized embeddings do; else UNKNOWN.
    """
    if values.ndim < 2 or values.shape[-1] < 2:
        return UNKNOWN
    evidence = output_kinds.Evidence()
    output_kinds.see(evidence, values)
    if evidence.seen == "one":
        return CLASSES
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    if not rows.size or not np.isfinite(rows).all():
        return UNKNOWN
    if rows.max() <= 0 and np.abs(np.exp(rows).sum(-1) - 1).max() < _ROUNDING:
        return CLASSES
    are_unit = len(rows) >= _FEWEST and np.abs(np.linalg.norm(rows, axis=-1) - 1).max() < _UNIT
    return VALUES if are_unit else UNKNOWN


def of_outputs(model: Any, seen: Sequence[str]) -> list[str]:
    """What each output of a model holds: CLASSES, VALUES, or UNKNOWN.

    In this order it is told by `tfkd.losses.declare_outputs`, rows that are distributions,
    the loss that the model is compiled with, its last layer, and rows of length 1.

    Args:
        model: the model.
        seen: the results of `of_values`, in the order of the outputs.
    """
    count = len(seen)
    kinds = output_kinds.declared(model, count)
    if len(kinds) == count:
        return [VALUES if kind == "sigmoid" else CLASSES for kind in kinds]
    told = [_by_loss(loss) for loss in losses_of(model, model, count)]
    proved = _proved(model, count)
    return [
        kind if kind == CLASSES else loss or graph or kind
        for kind, loss, graph in zip(seen, told, proved, strict=True)
    ]


def losses_of(compiled: Any, model: Any, count: int) -> list[Any]:
    """The losses on the labels of `count` outputs of a model; None where there is none.

    Args:
        compiled: what was compiled with them: the model, or its Distiller.
        model: the model.
        count: the number of its outputs.
    """
    losses, form = getattr(compiled, "loss", None), output_form(model)
    if isinstance(losses, Mapping) and isinstance(form, Mapping) and set(losses) <= set(form):
        # The keys of a dict of outputs need not be the names of their layers.
        flat = tf.nest.flatten({key: losses.get(key) for key in form})
        return flat if len(flat) == count else [None] * count
    names = getattr(model, "output_names", None)
    if isinstance(losses, dict) and names and set(losses) <= set(names) and len(names) == count:
        return [losses.get(name) for name in names]
    flat = tf.nest.flatten(losses)
    flat = flat * count if len(flat) == 1 else flat
    return flat if len(flat) == count else [None] * count


def is_regression(loss: Any) -> bool:
    """Whether a loss of Keras, by name, function or instance, compares numbers."""
    return _name(loss) in _OF_NUMBERS


def is_of_classes(loss: Any) -> bool:
    """Whether a loss on the labels takes the units of an output for classes, one of them true."""
    return _by_loss(loss) == CLASSES


def loss_of_labels(loss: Any) -> str | None:
    """The name of a loss that takes the units of an output for independent labels; else None."""
    name = _name(loss)
    return name if name in _OF_LABELS else None


def _by_loss(loss: Any) -> str | None:
    if isinstance(loss, ExpectedErrorLoss):
        return CLASSES
    name = _name(loss)
    return CLASSES if name in _OF_CLASSES else VALUES if name in _OF_NUMBERS + _OF_LABELS else None


def _name(loss: Any) -> str:
    try:
        function = keras.losses.get(loss)
    except (TypeError, ValueError):  # an own loss that is no longer registered
        return ""
    return getattr(getattr(function, "fn", function), "__name__", "")


def _proved(model: Any, count: int) -> list[str | None]:
    """What the last layers show: a softmax or sigmoids; logits may be any numbers."""
    evidence = tf.nest.flatten(output_kinds.of_last_layers(model))
    if len(evidence) != count or evidence == [None]:
        return [None] * count
    return [{"softmax": CLASSES, "sigmoid": VALUES}.get(one.proved) for one in evidence]
