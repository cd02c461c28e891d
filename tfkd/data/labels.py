"""Task inference from labels and outputs: classification, multi-label or regression.

Labels may be class numbers, names, one-hot or soft rows, 0 and 1 for a single output
unit, a 0/1 matrix with several labels per example, or regression targets; per example,
or per position of a sequence or image. `read` is the only function that distinguishes
these forms: by the values, unless the task is given. If the values are ambiguous it
decides and reports the ambiguity; inconsistent labels are an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.data.label_forms import as_numbers, check_finite, kept, names, numbers, one_hot_rows

CLASSIFICATION, MULTI_LABEL, REGRESSION = TASKS = ("classification", "multi_label", "regression")
Example = Callable[[int], int]  # index of the example that a row of labels belongs to
# How far a probability may lie outside [0, 1]: int8 models round to steps of 1/256.
_ROUNDING = 0.01


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labels and outputs of M examples (or positions) in a normalized form.

    Attributes:
        task: "classification", "multi_label" or "regression".
        labels: (M,) class numbers; (M, C) of 0 and 1; or (M, D) float64 numbers.
        outputs: (M, C) scores, one unit for two classes; or (M, D) float64 numbers.
        threshold: an output above it is positive; None where the argmax is taken.
        doubt: an ambiguity that was decided by the values, and the argument that
            resolves it; "" if there is none.
        examples: (M,) index of the example that each of them belongs to.
    """

    task: str
    labels: np.ndarray
    outputs: np.ndarray
    threshold: float | None = None
    doubt: str = ""
    examples: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def classes(self) -> int:
        """Number of classes; two for a single output unit."""
        return max(2, self.outputs.shape[1])

    @property
    def predictions(self) -> np.ndarray:
        """Predictions: (M,) class numbers, or (M, C) of 0 and 1."""
        if self.threshold is None:
            return self.outputs.argmax(-1)
        above = (self.outputs > self.threshold).astype(np.int64)
        return above if self.task == MULTI_LABEL else above[:, 0]

    @property
    def right(self) -> np.ndarray:
        """(M,) bools: the predicted class, or every predicted label, is correct."""
        same = self.predictions == self.labels
        return same.all(-1) if self.task == MULTI_LABEL else same


def read(
    labels: ArrayLike,
    outputs: ArrayLike,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
    mask: ArrayLike | None = None,
    ignore_class: int | None = None,
    threshold: float | None = None,
) -> Examples:
    """Infers the task of labels and outputs, and normalizes both.

    Args:
        labels: for outputs (..., C): class numbers or names, (...) or (..., 1); one-hot
            or soft rows, 0/1 matrices or regression targets, (..., C).
        outputs: (N, C) scores; (N, 1) or (N,) of one unit; (N, ..., C) per position.
        task: "classification", "multi_label" or "regression"; None: inferred.
        class_names: C names, by which labels given as text are looked up; two names for
            a single unit.
        mask: (N,) or (...), 0 or False where an example or position is ignored.
        ignore_class: class number of labels to ignore, such as -1 or 255.
        threshold: an output of a single unit or of several labels above it is positive;
            None: 0.5 if all outputs are in [0, 1], else 0.

    Returns:
        `Examples`.

    Raises:
        TypeError: if the outputs are not numbers.
        ValueError: if labels and outputs are inconsistent, hold NaN or infinity, are
            outside the classes, fit no task, or are empty.

    Example:
        >>> from tfkd.data import labels
        >>> outputs = [[2.0, 1.0], [3.0, 0.5]]
        >>> found = labels.read(["cat", "dog"], outputs, class_names=["cat", "dog"])
        >>> found.task, found.labels.tolist(), found.right.tolist()
        ('classification', [0, 1], [True, False])
    """
    checks.optional(checks.one_of, "task", task, TASKS)
    checks.optional(checks.finite, "threshold", threshold)
    truth, scores = _aligned(labels, outputs, class_names)
    lead, units = scores.shape[:-1], scores.shape[-1]
    is_matrix = units > 1 and truth.shape == scores.shape
    keep = kept(mask, lead)
    truth = truth.reshape(-1, units) if is_matrix else truth.reshape(-1)
    if ignore_class is not None:
        checks.integer("ignore_class", ignore_class, -(2**63), "an integer")
        if is_matrix:
            expected = "None, as the labels are no class numbers"
            raise checks.value_error("ignore_class", expected, ignore_class)
        keep = keep & (truth != ignore_class)
    if not keep.any():
        raise checks.value_error("labels", "at least one label that counts", 0)
    scores = scores.reshape(-1, units)
    if not keep.all():
        truth, scores = truth[keep], scores[keep]
    rows, places = np.flatnonzero(keep), math.prod(lead[1:])

    def example(row: int) -> int:
        return int(rows[row]) // places

    check_finite("outputs", scores, example)
    check_finite("labels", truth, example)
    decide = _of_matrix if is_matrix else _of_one_unit if units == 1 else _of_numbers
    found, doubt = decide(truth, scores, task, example)
    if class_names is not None:
        names(class_names, max(2, units))
        if found == REGRESSION:
            expected = "None, as regression has no classes"
            raise checks.value_error("class_names", expected, class_names)
    formed = _formed(found, truth, scores, threshold, "" if task else doubt)
    return dataclasses.replace(formed, examples=rows // places)


def is_probability(outputs: np.ndarray) -> bool:
    """True if all values are in [0, 1] up to rounding."""
    return bool(outputs.min() >= -_ROUNDING and outputs.max() <= 1 + _ROUNDING)


def _aligned(
    labels: ArrayLike, outputs: ArrayLike, class_names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and outputs (..., C) as arrays; raises ValueError if their shapes do not match."""
    scores = numbers("outputs", outputs)
    scores = scores[:, None] if scores.ndim == 1 else scores
    truth = as_numbers(labels, class_names)
    if truth.shape == (*scores.shape, 1):
        truth = truth[..., 0]
    lead = scores.shape[:-1]
    if truth.shape not in (lead, (*lead, 1), scores.shape):
        expected = (
            f"class numbers {lead} or rows {scores.shape} for {len(scores)} examples, "
            f"as the outputs are of shape {scores.shape}"
        )
        raise checks.value_error("labels", expected, truth)
    return truth, scores


def _of_one_unit(
    truth: np.ndarray, scores: np.ndarray, task: str | None, example: Example
) -> tuple[str, str]:
    """(task, doubt) of labels (M,) for outputs (M, 1)."""
    is_binary = np.isin(truth, (0, 1)).all()
    if task == MULTI_LABEL:
        fix = 'A single unit distinguishes two classes: pass task="classification".'
        raise checks.value_error("outputs", "several units for task='multi_label'", scores, fix)
    if task is not None:
        if task != REGRESSION and not is_binary:
            bad = int(np.argmin(np.isin(truth, (0, 1))))
            received = truth[bad].item()
            fix = f"This is the label of example {example(bad)}."
            raise checks.value_error("labels", "0 and 1 for outputs of one unit", received, fix)
        return task, ""
    if is_binary:
        if not scores.any():
            fix = 'All outputs of the single unit are 0. Pass task="classification" if so meant.'
            raise checks.value_error("outputs", "probabilities or logits", scores, fix)
        return CLASSIFICATION, ""
    _check_no_code(truth)
    return REGRESSION, (
        "the labels are numbers other than 0 and 1, and there is one output, so this was scored "
        'as regression: the mean absolute error, lower is better. Pass task="regression" if '
        "that is right"
    )


def _of_numbers(
    truth: np.ndarray, scores: np.ndarray, task: str | None, example: Example
) -> tuple[str, str]:
    """(task, doubt) of labels (M,) for outputs (M, C)."""
    classes = scores.shape[1]
    if task in (MULTI_LABEL, REGRESSION):
        form = "a 0/1 matrix" if task == MULTI_LABEL else "numbers"
        expected = f"{form} of the shape of the outputs, {scores.shape}, for task={task!r}"
        raise checks.value_error("labels", expected, truth)
    broken = truth != np.rint(truth)
    if broken.any():
        bad = int(np.argmax(broken))
        fix = f"The label of example {example(bad)} is {truth[bad]}."
        raise checks.value_error("labels", f"class numbers for {classes} outputs", truth, fix)
    low, high = int(truth.min()), int(truth.max())
    if low < 0 or high >= classes:
        outside = low if low < 0 else high
        if (low, high) == (1, classes):
            fix = "Classes count from 0: pass `labels - 1`."
        else:
            where = int(np.argmax(truth == outside))
            fix = f"It is that of example {example(where)}. To ignore it, pass `ignore_class`."
        raise checks.value_error("labels", f"labels from 0 to {classes - 1}", outside, fix)
    return CLASSIFICATION, ""


def _of_matrix(
    truth: np.ndarray, scores: np.ndarray, task: str | None, example: Example
) -> tuple[str, str]:
    """(task, doubt) of labels (M, C) for outputs (M, C)."""
    is_zero_one = np.isin(truth, (0, 1)).all(-1)
    hot = one_hot_rows(truth)
    is_soft = (truth >= 0).all(-1) & (np.abs(truth.sum(-1) - 1) <= 1e-3)
    if task is not None:
        fits = {CLASSIFICATION: hot | is_soft, MULTI_LABEL: is_zero_one}.get(task)
        if fits is not None and not fits.all():
            rows = "one-hot or soft rows" if task == CLASSIFICATION else "rows of 0 and 1"
            fix = f"The row of example {example(int(np.argmin(fits)))} is not."
            raise checks.value_error("labels", f"{rows} for task={task!r}", truth, fix)
        return task, ""
    bounded = is_probability(scores)
    off = np.abs(scores.sum(-1) - 1).max()
    if hot.all():
        # Each int8 probability is off by up to half a step of 1/256, so sums drift with C.
        if not bounded or off <= 0.02 + scores.shape[1] / 512:
            return CLASSIFICATION, ""
        return CLASSIFICATION, (
            "each row of the labels is one-hot, so the largest output was taken as the prediction; "
            "but the outputs are probabilities that don't sum to 1. Pass "
            'task="multi_label" if each output is a separate label, or task="classification"'
        )
    if is_zero_one.all():
        if bounded and off <= 1e-3:
            bad = int(np.argmin(hot))
            raise _not_one_hot(truth, bad, example(bad))
        return MULTI_LABEL, (
            "the labels are rows of 0 and 1 that are not all one-hot, so this was scored as "
            "multi-label: the subset accuracy (all labels of an example correct), at a threshold "
            'of {threshold:g}. Pass task="multi_label" if that is right'
        )
    if is_soft.all():
        return CLASSIFICATION, (
            "the rows of the labels sum to 1, so they were taken as soft labels, and the argmax as "
            'the class. Pass task="classification" if that is right, or task="regression"'
        )
    _check_no_code(truth)
    return REGRESSION, (
        "the labels are no classes (neither class numbers nor rows of 0 and 1), so this was scored "
        "as regression: the mean absolute error, lower is better. Pass "
        'task="regression" if that is right'
    )


def _not_one_hot(truth: np.ndarray, row: int, example: int) -> ValueError:
    fix = (
        f"The row of example {example} holds {int(truth[row].sum())} ones, but the outputs are "
        "those of a softmax, for one class each. If that is intended, pass "
        'task="multi_label".'
    )
    return checks.value_error("labels", "one-hot rows", truth, fix)


def _check_no_code(truth: np.ndarray) -> None:
    """Rejects labels of two integers other than 0 and 1: -1 and 1, 1 and 2, 0 and 255."""
    values = np.unique(truth)
    if truth.size > 2 and len(values) == 2 and (values == np.rint(values)).all():
        received = [value.item() for value in values]
        fix = 'Write classes as 0 and 1. If these are numbers to predict: task="regression".'
        raise checks.value_error("labels", "labels of 0 and 1, if of two values", received, fix)


def _formed(
    task: str, truth: np.ndarray, scores: np.ndarray, threshold: float | None, doubt: str
) -> Examples:
    if task == REGRESSION:
        numbers = truth.reshape(scores.shape).astype(np.float64)
        return Examples(task, numbers, scores.astype(np.float64), None, doubt)
    if task == MULTI_LABEL or scores.shape[1] == 1:
        if threshold is None:
            threshold = 0.5 if is_probability(scores) else 0.0
        truth = truth.reshape(scores.shape) if task == MULTI_LABEL else truth
        doubt = doubt.format(threshold=threshold)
        return Examples(task, truth.astype(np.int64), scores, float(threshold), doubt)
    if truth.ndim == 2:
        truth = truth.argmax(-1)
    return Examples(task, truth.astype(np.int64), scores, None, doubt)
