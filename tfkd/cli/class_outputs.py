"""What the numbers of an output mean: probabilities, logits of classes, or other numbers."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tfkd.formats import litert, onnx_nodes
from tfkd.networks import keras_files

SOFTMAX, SIGMOID = "softmax", "sigmoid"  # probabilities of one distribution, or of each class
LOGITS, BINARY_LOGITS = "logits", "binary logits"  # their inverses
NUMBERS = "numbers"  # none of these
_OTHER = "other"  # the last operation is neither a softmax nor a sigmoid

_OPERATIONS = {"SOFTMAX": SOFTMAX, "Softmax": SOFTMAX, "LOGISTIC": SIGMOID, "Sigmoid": SIGMOID}
_BINARY = ("binary_crossentropy", "bce", "binary_focal_crossentropy")
_CLASSES = (
    "categorical_crossentropy", "sparse_categorical_crossentropy", "categorical_focal_crossentropy",
)  # fmt: skip
_REGRESSION = (
    "mean_squared_error", "mse", "mean_absolute_error", "mae", "huber", "huber_loss", "log_cosh",
    "mean_squared_logarithmic_error", "msle", "mean_absolute_percentage_error", "mape", "poisson",
    "cosine_similarity",
)  # fmt: skip


def kind_of(
    path: pathlib.Path, file: pathlib.Path, x: Any, outputs: np.ndarray, has_labels: bool
) -> tuple[str, str]:
    """What one output of a file holds, and a sentence on what is shown of it, or "".

    The last operation decides where it is a softmax or a sigmoid; then the loss that a Keras
    model was compiled with; then whether the file has labels of classes; then the values.

    Args:
        path: the file that the user names, which may have a loss.
        file: the file that is run.
        x: examples, for a Keras model whose layers do not show its last operation.
        outputs: (B, C), its outputs.
        has_labels: whether there are names of classes.
    """
    end, note = _end(file, x), ""
    kind = end if end in (SOFTMAX, SIGMOID) else None
    if kind is None:
        kind = _by_loss(keras_files.compiled_loss(path), outputs)
    if kind is None:
        kind, note = _by_values(outputs, end, has_labels)
    if not note and kind in (SIGMOID, BINARY_LOGITS) and outputs.shape[1] > 1:
        note = "Each class has a probability of its own."
    return kind, note


def _end(file: pathlib.Path, x: Any) -> str | None:
    """What the last operation is: "softmax", "sigmoid" or "other"; None: not known."""
    suffix = file.suffix.lower()
    if suffix == ".keras":
        import tensorflow as tf

        from tfkd.teachers import output_kinds

        model = keras_files.load("file", file)
        some = tf.nest.map_structure(lambda values: values[: output_kinds.EXAMPLES], x)
        proved = getattr(output_kinds.look(model, model, some), "proved", None)
        return _OTHER if proved == "logits" else proved
    read = {".tflite": litert.last_operations, ".onnx": onnx_nodes.last_operations}.get(suffix)
    operations = list(read(file).values()) if read else []
    return _OPERATIONS.get(operations[0], _OTHER) if len(operations) == 1 else None


def _by_loss(loss: tuple[str, bool] | None, outputs: np.ndarray) -> str | None:
    """The kind of output that a loss expects; None if it says nothing, or is contradicted."""
    name, from_logits = loss or ("", False)
    if name in _REGRESSION:
        return NUMBERS
    if not from_logits and not _inside(outputs):
        return None  # no probabilities
    if name in _BINARY:
        return BINARY_LOGITS if from_logits else SIGMOID
    if name in _CLASSES and outputs.shape[1] > 1:
        return LOGITS if from_logits else SOFTMAX
    return None


def _inside(outputs: np.ndarray) -> bool:
    return bool((outputs >= 0).all() and (outputs <= 1).all())


def _by_values(outputs: np.ndarray, end: str | None, has_labels: bool) -> tuple[str, str]:
    inside, count = _inside(outputs), outputs.shape[1]
    if count == 1:
        if not has_labels:
            return NUMBERS, (
                "The file does not say whether its number is a probability, a logit or a quantity: "
                "it is shown as it is."
            )
        if end == _OTHER or not inside:
            return BINARY_LOGITS, ""
        return SIGMOID, "Its numbers are in 0..1, and taken for probabilities of the second class."
    if inside and np.allclose(outputs.sum(axis=1), 1, atol=0.02):
        return SOFTMAX, ""
    if end is None and inside:
        return SIGMOID, (
            "Its numbers are in 0..1 and do not sum to 1: each is taken for the probability of a "
            "class of its own."
        )
    if has_labels:
        return LOGITS, ""
    return LOGITS, f"Softmax of its {count} numbers, which are taken for scores of classes."


def probabilities(kind: str, outputs: np.ndarray) -> np.ndarray:
    """Probabilities of the classes (B, C); of one output those of both of its classes.

    Example:
        >>> import numpy as np
        >>> from tfkd.cli import class_outputs
        >>> class_outputs.probabilities("binary logits", np.zeros((1, 1)))
        array([[0.5, 0.5]])
        >>> class_outputs.probabilities("sigmoid", np.array([[0.9, 0.8]]))
        array([[0.9, 0.8]])
    """
    values = np.float64(outputs)
    if kind == LOGITS:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    if kind == BINARY_LOGITS:
        values = 0.5 * (1 + np.tanh(0.5 * values))  # a sigmoid that does not overflow
    return np.concatenate([1 - values, values], axis=1) if values.shape[1] == 1 else values
