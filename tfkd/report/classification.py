"""Per-class precision, recall and F1 of a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.data.label_forms import names
from tfkd.data.labels import MULTI_LABEL, REGRESSION, Examples, read
from tfkd.report.measures import mean_average_precision
from tfkd.results import Grid, Result

HEAD = ("class", "precision %", "recall %", "F1 %", "examples")
FORMATS = dict.fromkeys(HEAD[1:4], ".1f")


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Scores of one class, or their mean over classes, in percent.

    Attributes:
        name: class name.
        precision: fraction of the examples predicted as this class that belong to it; 0
            if there are none.
        recall: fraction of the examples of this class that are predicted as it; 0 if
            there are none.
        f1: 2 · precision · recall / (precision + recall); 0 if both are 0.
        support: number of examples of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class Classification(Result, file_name="classes"):
    """Per-class scores of a classifier, from `classification`.

    Attributes:
        classes: the scores of each class, in order.
        accuracy: percentage of examples with the correct class; with several labels per
            example, with all labels correct.
        macro: unweighted mean of the scores over classes.
        weighted: mean of the scores over classes, weighted by their support.
        average_precision: mean average precision over the labels, in percent, of a
            multi-label classification; else None.
        multi_label: whether an example may have several labels.
    """

    classes: tuple[ClassScores, ...]
    accuracy: float
    macro: ClassScores
    weighted: ClassScores
    average_precision: float | None = None
    multi_label: bool = False

    def parts(self) -> list[Grid | str]:
        """A table of the scores of classes and their means, and the accuracy."""
        rows = [*self.classes, self.macro, self.weighted]
        return [Grid(HEAD, [*map(dataclasses.astuple, rows)], FORMATS, totals=2), self._note()]

    def _note(self) -> str:
        name = "Subset accuracy" if self.multi_label else "Accuracy"
        text = f"{name} {self.accuracy:.1f} % of {self.macro.support:,} examples."
        if self.average_precision is not None:
            text += f" Mean average precision {self.average_precision:.1f} %."
        return text

    def to_dict(self) -> dict[str, Any]:
        """All scores in full precision as JSON values."""
        fields = super().to_dict()
        precision, is_multi_label = fields.pop("average_precision"), fields.pop("multi_label")
        if is_multi_label:
            fields["subset_accuracy"] = fields.pop("accuracy")
            fields["average_precision"] = precision
        return fields


def classification(
    labels: ArrayLike,
    outputs: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    task: str | None = None,
    mask: ArrayLike | None = None,
    ignore_class: int | None = None,
    threshold: float | None = None,
) -> Classification:
    """Precision, recall and F1 of each class, and their means.

    Computed by scikit-learn. All scores are percentages, like those of
    `tfkd.report.accuracy`; a score with a denominator of 0 is 0, and included as
    such in the means over classes.

    Reference: van Rijsbergen 1979, Information Retrieval, chapter 7.

    Args:
        labels: (N,) or (N, 1) class numbers, or names that are in `class_names`;
            (N, C) one-hot or soft labels, or rows of 0 and 1 with several labels per
            example; for outputs (N, ..., C) one per position.
        outputs: (N, C) logits or probabilities, whose argmax is the prediction; or
            (N, 1) of one unit for two classes.
        class_names: C names; default "0", "1", ...
        task: "classification" or "multi_label"; None: inferred.
        mask: as in `tfkd.report.score`.
        ignore_class: as in `tfkd.report.score`.
        threshold: as in `tfkd.report.score`.

    Returns:
        A `Classification`: `print` it, `.save(folder)` it.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if shapes are inconsistent, there are no examples, a label is not
            among the C classes, an output is NaN or infinite, or the labels are
            regression targets.
        ImportError: if scikit-learn is not installed.

    Example:
        >>> from tfkd import report
        >>> outputs = [[2, 1], [0, 3], [5, 4], [8, 1]]
        >>> found = report.classification([0, 1, 1, 0], outputs, ["bad", "good"])
        >>> print(found)
        class          precision %  recall %  F1 %  examples
        -------------  -----------  --------  ----  --------
        bad                   66.7     100.0  80.0         2
        good                 100.0      50.0  66.7         2
        -------------  -----------  --------  ----  --------
        mean                  83.3      75.0  73.3         4
        weighted mean         83.3      75.0  73.3         4
        <BLANKLINE>
        Accuracy 75.0 % of 4 examples.
    """
    found = _examples(labels, outputs, class_names, task, mask, ignore_class, threshold)
    truth, predicted, classes = found.labels, found.predictions, found.classes
    several = found.task == MULTI_LABEL
    if several:
        classes = truth.shape[1]
    with checks.needed("tfkd.report.classification needs scikit-learn", "demo"):
        from sklearn.metrics import precision_recall_fscore_support

    def scores(average: str | None) -> Any:
        return precision_recall_fscore_support(
            truth, predicted, labels=range(classes), average=average, zero_division=0
        )

    def mean(name: str, average: str) -> ClassScores:
        precision, recall, f1 = (100.0 * float(value) for value in scores(average)[:3])
        return ClassScores(name, precision, recall, f1, len(truth))

    rows = [
        ClassScores(name, 100.0 * float(p), 100.0 * float(r), 100.0 * float(f), int(n))
        for name, p, r, f, n in zip(names(class_names, classes), *scores(None), strict=True)
    ]
    return Classification(
        classes=tuple(rows),
        accuracy=100.0 * float(np.mean(found.right)),
        macro=mean("mean", "macro"),
        weighted=mean("weighted mean", "weighted"),
        average_precision=mean_average_precision(truth, found.outputs) if several else None,
        multi_label=several,
    )


def _examples(
    labels: Any, outputs: Any, class_names: Any, task: str | None, mask: Any,
    ignore_class: int | None, threshold: float | None,
) -> Examples:  # fmt: skip
    """Normalized labels and outputs of a single- or multi-label classification."""
    if task == REGRESSION:
        expected = "'classification' or 'multi_label'"
        raise checks.value_error("task", expected, task, "Use `tfkd.report.score`.")
    found = read(labels, outputs, task, class_names, mask, ignore_class, threshold)
    if found.task == REGRESSION:
        fix = "Use `tfkd.report.score` for regression."
        raise checks.value_error("labels", "labels of classes", np.asarray(labels), fix)
    if found.doubt:
        checks.warn(f"`labels`: {found.doubt}.")
    return found
