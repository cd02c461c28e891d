"""Accuracy, mean average precision or error by task; mean and standard deviation over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.data.labels import MULTI_LABEL, REGRESSION, Examples, read
from tfkd.report.class_details import ClassDetails, Predicted
from tfkd.report.measures import (
    ABSOLUTE_ERROR,
    ACCURACY,
    MEASURES,
    Measure,
    mean_average_precision,
    of_rows,
)
from tfkd.results import Result

# The way out for labels that no score fits, such as sequences without an alignment.
UNSCORED = (
    "Without a score: report.latency_table(models, x) measures times, and report.profile(model) "
    "counts parameters and MACs."
)


@dataclasses.dataclass(frozen=True)
class SeedStats(Result):
    """Mean and standard deviation of a number over several seeds.

    Attributes:
        mean: arithmetic mean.
        sd: sample standard deviation, divided by n − 1; None for one value.
        values: the values, in the order given.
        standard_error: standard error of one value, due to the limited number of examples;
            None if it is not known.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]
    standard_error: float | None = None

    @property
    def noise(self) -> float:
        """The standard deviation; of one value its standard error, or 0 if it is not known."""
        return (self.standard_error or 0.0) if self.sd is None else self.sd

    def format(self, digits: int = 1) -> str:
        """Returns "93.1 ± 0.4", or "93.1" for one value."""
        text = f"{self.mean:.{digits}f}"
        return text if self.sd is None else f"{text} ± {self.sd:.{digits}f}"

    def parts(self) -> list[str]:
        """Mean and standard deviation as text."""
        return [self.format()]


def seed_stats(values: ArrayLike, standard_error: float | None = None) -> SeedStats:
    """Returns mean ± sample standard deviation (n − 1) of a number over seeds.

    Args:
        values: one number, or a sequence of numbers, one per seed.
        standard_error: of one value, if known: see `Score`.

    Raises:
        TypeError: if the values are not numbers.
        ValueError: if there are none, or one is not finite.

    Example:
        >>> from tfkd import report
        >>> str(report.seed_stats([92.7, 93.1, 93.5]))
        '93.1 ± 0.4'
    """
    try:
        array = np.atleast_1d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        raise checks.type_error("values", "numbers, one per seed", values) from None
    if array.ndim != 1 or array.size == 0:
        raise checks.value_error("values", "at least one number, in one dimension", values)
    if not np.isfinite(array).all():
        raise checks.value_error("values", "finite numbers", values)
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return SeedStats(float(array.mean()), sd, tuple(float(v) for v in array), standard_error)


@dataclasses.dataclass(frozen=True)
class Score(Result):
    """Score of a model on labelled examples, from `score`; measures of other tasks are None.

    Attributes:
        task: "classification", "multi_label" or "regression".
        examples: number of scored examples, or positions in sequences or images.
        accuracy: percentage of examples with the correct class.
        subset_accuracy: percentage of examples with all labels correct.
        average_precision: mean average precision over the labels, in percent.
        mean_absolute_error: in the unit of the labels; lower is better.
        threshold: outputs above it are positive; None where the argmax is taken.
        doubt: an ambiguity that was decided by the values; "" if there is none.
        standard_error: standard error of `value`, as other examples of this number would
            give another one: the standard deviation over examples, divided by √examples.
    """

    task: str
    examples: int
    accuracy: float | None = None
    subset_accuracy: float | None = None
    average_precision: float | None = None
    mean_absolute_error: float | None = None
    threshold: float | None = None
    doubt: str = ""
    standard_error: float | None = None

    @property
    def value(self) -> float:
        """The score by which models are ranked: the first that is not None."""
        return next(value for value in self._values().values())

    def _values(self) -> dict[Measure, float]:
        pairs = ((measure, getattr(self, measure.key)) for measure in MEASURES)
        return {measure: value for measure, value in pairs if value is not None}

    def parts(self) -> list[str]:
        """The scores in one sentence."""
        parts = [
            f"{measure.name} {measure.format(seed_stats(value))}{' %' if measure.percent else ''}"
            for measure, value in self._values().items()
        ]
        return [f"{', '.join(parts)} of {self.examples:,} examples"]


def score(
    labels: ArrayLike,
    outputs: ArrayLike,
    *,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
    mask: ArrayLike | None = None,
    ignore_class: int | None = None,
    threshold: float | None = None,
) -> Score:
    """Scores outputs by the measure of their task, inferred from labels and outputs.

    - Classification: class numbers or names, one-hot or soft rows, or 0 and 1 for a
      single output unit: accuracy.
    - Multi-label classification, rows of 0 and 1: the subset accuracy, for which all
      labels of an example must be correct, and the mean average precision.
    - Regression, any other numbers of the outputs' shape: the mean absolute error.

    Labels and outputs may have more axes (words of sentences, pixels of images): each
    position then counts as one example.

    Args:
        labels: for outputs (..., C): class numbers or names, (...) or (..., 1); one-hot
            or soft rows, rows of 0 and 1, or regression targets, (..., C).
        outputs: (N, C) logits, probabilities or numbers; (N, 1) or (N,) of one unit;
            (N, ..., C) per position.
        task: "classification", "multi_label" or "regression"; None: inferred.
        class_names: C names, by which labels given as text are looked up; two names for
            a single unit.
        mask: (N,) or (...), 0 or False where an example or position is ignored.
        ignore_class: class number of labels to ignore, such as -1 or 255.
        threshold: an output of a single unit or of several labels above it is positive;
            None: 0.5 if all outputs are in [0, 1], else 0, as for logits.

    Returns:
        A `Score`. Its `doubt` names an ambiguity that was decided by the values.

    Raises:
        TypeError: if the outputs are not numbers.
        ValueError: if labels and outputs are inconsistent, hold NaN or infinity, are
            outside the classes, fit no task, or are empty.

    Example:
        >>> from tfkd import report
        >>> print(report.score([[1, 1], [0, 1]], [[0.9, 0.6], [0.2, 0.4]], task="multi_label"))
        subset accuracy 50.0 %, mean average precision 100.0 % of 2 examples
        >>> print(report.score([20.0, 30.0, 31.5], [[21.0], [28.0], [31.5]], task="regression"))
        mean absolute error 1.00 of 3 examples
    """
    return _scored(read(labels, outputs, task, class_names, mask, ignore_class, threshold))


def _scored(found: Examples) -> Score:
    """The scores of normalized labels and outputs."""
    about: Any = {"threshold": found.threshold, "doubt": found.doubt}
    count = len(found.labels)
    if found.task == REGRESSION:
        errors = np.abs(found.outputs - found.labels)
        about["standard_error"] = _standard_error(errors.reshape(count, -1).mean(1))
        return Score(found.task, count, mean_absolute_error=float(errors.mean()), **about)
    right = 100.0 * float(np.mean(found.right))
    about["standard_error"] = _standard_error(100.0 * found.right)
    if found.task == MULTI_LABEL:
        precision = mean_average_precision(found.labels, found.outputs)
        return Score(found.task, count, subset_accuracy=right, average_precision=precision, **about)
    return Score(found.task, count, accuracy=right, **about)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


def accuracy(labels: ArrayLike, outputs: ArrayLike, **options: Any) -> float:
    """Accuracy in percent; for a regression the mean absolute error.

    The first measure of `score`: the accuracy of a classification, the subset accuracy
    of a multi-label classification, or the mean absolute error, which is not a
    percentage. Warns if an inferred task is ambiguous, unless `task` is given.

    Args:
        labels: (N,) or (N, 1) class numbers or names, (N, C) one-hot or soft labels,
            or any other form that `score` accepts.
        outputs: (N, C) logits or probabilities, or any other form that `score` accepts.
        **options: those of `score`: `task`, `class_names`, `mask`, `ignore_class` and
            `threshold`.

    Returns:
        Between 0 and 100, or the mean absolute error in the unit of the labels.

    Raises:
        TypeError, ValueError: as `score`.

    Example:
        >>> from tfkd import report
        >>> report.accuracy([0, 1, 1, 0], [[2, 1], [0, 3], [5, 4], [8, 1]])
        75.0
        >>> report.accuracy(["no", "yes"], [[2, 1], [0, 3]], class_names=["no", "yes"])
        100.0
    """
    found = score(labels, outputs, **options)
    if found.doubt:
        checks.warn(f"`labels`: {found.doubt}.")
    return found.value


class Judge:
    """Scores several models on the same labels, by the measure of one task."""

    def __init__(self, y: np.ndarray, **options: Any):
        self._y, self._options = y, options
        self._found: dict[str, list[Score]] = {}
        self._predicted: dict[str, Predicted | None] = {}

    def take(self, name: str, outputs: Iterable[np.ndarray]) -> None:
        """Scores the outputs of a model, one array per seed."""
        self._found[name] = []
        for one in outputs:
            try:
                examples = read(self._y, one, **self._options)
                found = _scored(examples)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                text = f"`models[{name!r}]` can't be scored on `data`. {error} {UNSCORED}"
                raise kind(text) from error
            if found.doubt:
                checks.warn(f"`data`: {found.doubt}.")
            # The task inferred for the first model applies to all.
            self._options["task"] = found.task
            self._found[name].append(found)
            if name not in self._predicted:
                self._predicted[name] = Predicted.of(examples)

    def scores(self, name: str) -> dict[str, Any]:
        """The scores of a model as fields of `Row`."""
        found = self._found[name]
        measures = of_rows(found[:1])
        errors = [found[0].standard_error, *[None] * len(measures)]  # of the first measure
        return {
            measure.key: seed_stats([getattr(one, measure.key) for one in found], error)
            for measure, error in zip(measures, errors, strict=False)
        }

    def details(self, name: str, original: str) -> ClassDetails | None:
        """Results by class and example, against the original; None for a regression."""
        found = self._predicted[name]
        base = None if name == original else self._predicted[original]
        if found is None:
            return None
        return found.details(self._options.get("class_names"), original, base)

    def notes(self) -> list[str]:
        """Sentences on the measure, unless it is the plain accuracy of examples."""
        first = next(iter(self._found.values()))[0]
        (measure, *_) = of_rows([first])
        limits = {name: found[0].threshold for name, found in self._found.items()}
        count = f"{first.examples:,} examples"
        if measure == ABSOLUTE_ERROR:
            return [f"Mean absolute error: in the unit of the labels, {count}; lower is better."]
        if None in limits.values():
            places = first.examples > len(self._y)
            return [f"Accuracy: of {count}, each position is one."] if places else []
        if measure == ACCURACY:
            text = f"Accuracy: of {count} of two classes, from one output"
        else:
            text = f"Subset accuracy: all labels of an example are correct, {count}"
        alike = len(set(limits.values())) == 1
        by_model = ", ".join(f"{name}: {limit:g}" for name, limit in limits.items())
        above = f"{limits[next(iter(limits))]:g}" if alike else by_model
        return [f"{text}; an output above {above} is positive."]
