"""Precision, recall and F1 of each class: where a classifier errs, not only how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.text import aligned

HEAD = ("class", "precision %", "recall %", "F1 %", "examples")


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Scores of one class, or their mean over classes, in percent.

    Attributes:
        name: of the class.
        precision: how many of the examples that were given this class are of it; 0
            if there are none.
        recall: how many of the examples of this class were given it; 0 if there are
            none.
        f1: 2 · precision · recall / (precision + recall); 0 if both are.
        support: number of examples of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int

    def cells(self) -> tuple[str, ...]:
        """The scores as text, in the order of the table's head."""
        scores = (self.precision, self.recall, self.f1)
        return (self.name, *(f"{value:.1f}" for value in scores), f"{self.support:,}")


@dataclasses.dataclass(frozen=True)
class Classification:
    """How well each class is told from the others; made by `classification`.

    Attributes:
        classes: the scores of each class, in order.
        accuracy: percentage of examples whose class was found.
        macro: mean of the scores over classes, each counting the same.
        weighted: mean of the scores, each class counting with its examples.
    """

    classes: tuple[ClassScores, ...]
    accuracy: float
    macro: ClassScores
    weighted: ClassScores

    def _lines(self) -> list[tuple[str, ...]]:
        """Head, classes, means."""
        return [HEAD, *(row.cells() for row in (*self.classes, self.macro, self.weighted))]

    def _note(self) -> str:
        return f"Accuracy {self.accuracy:.1f} % of {self.macro.support:,} examples."

    def text(self) -> str:
        """The table as plain text with aligned columns, the accuracy below."""
        return f"{aligned(self._lines(), rules_after=(0, len(self.classes)))}\n\n{self._note()}"

    __str__ = text

    def show(self) -> None:
        """Prints the table."""
        print(self.text())

    def markdown(self) -> str:
        """The table in GitHub's Markdown, the accuracy below."""
        lines = []
        for row in self._lines():
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        rule = "|---|" + "---:|" * (len(HEAD) - 1)
        return "\n".join([lines[0], rule, *lines[1:], "", self._note()]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything, in full precision, fit for `tfkd.artifacts.write_json`."""
        return dataclasses.asdict(self)


def classification(
    labels: Any, outputs: Any, class_names: Sequence[str] | None = None
) -> Classification:
    """Precision, recall and F1 of each class, and their means.

    Computed by scikit-learn. All scores are percentages, like those of
    `tfkd.report.accuracy`; a score that divides by no example is 0, and counts as
    such in the means over classes.

    Reference: van Rijsbergen 1979, Information Retrieval, chapter 7.

    Args:
        labels: (N,) or (N, 1) class numbers, or (N, C) one-hot or soft labels.
        outputs: (N, C) logits or probabilities; the largest is the answer.
        class_names: C names; default "0", "1", ...

    Returns:
        A `Classification`: `str()`, `.show()`, `.markdown()`, `.as_dict()`.

    Raises:
        TypeError: if the labels are no whole numbers.
        ValueError: if the shapes do not belong together, there is no example, a
            label is not among the C classes, or an output is NaN.
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
    answers, classes = _answers(outputs)
    truth = _truth(labels, len(answers), classes)
    names = _names(class_names, classes)
    try:
        from sklearn.metrics import precision_recall_fscore_support
    except ImportError as error:
        raise ImportError(
            "tfkd.report.classification needs scikit-learn. "
            "Install it with `pip install tfkd[demo]`."
        ) from error

    def scores(average: str | None) -> Any:
        return precision_recall_fscore_support(
            truth, answers, labels=range(classes), average=average, zero_division=0
        )

    def mean(name: str, average: str) -> ClassScores:
        precision, recall, f1 = (100.0 * float(value) for value in scores(average)[:3])
        return ClassScores(name, precision, recall, f1, len(truth))

    rows = [
        ClassScores(name, 100.0 * float(p), 100.0 * float(r), 100.0 * float(f), int(n))
        for name, p, r, f, n in zip(names, *scores(None), strict=True)
    ]
    return Classification(
        classes=tuple(rows),
        accuracy=100.0 * float(np.mean(truth == answers)),
        macro=mean("mean", "macro"),
        weighted=mean("weighted mean", "weighted"),
    )


def _answers(outputs: Any) -> tuple[np.ndarray, int]:
    """(N,) numbers of the largest outputs, and the number of classes."""
    outputs = np.asarray(outputs)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or outputs.shape[0] == 0:
        expected = "an array (examples, classes) with at least 2 classes"
        raise checks.value_error("outputs", expected, outputs)
    if outputs.dtype.kind not in "fiu":
        raise checks.type_error("outputs", "numbers", outputs)
    broken = np.isnan(outputs).any(axis=1)
    if broken.any():
        mend = f"Example {int(np.argmax(broken))} holds NaN."
        raise checks.value_error("outputs", "outputs without NaN", outputs, mend)
    return outputs.argmax(-1), outputs.shape[1]


def _truth(labels: Any, count: int, classes: int) -> np.ndarray:
    """(N,) class numbers below `classes`."""
    labels = np.asarray(labels)
    if labels.shape == (count, classes):
        labels = labels.argmax(-1)
    elif labels.shape not in ((count,), (count, 1)):
        expected = f"class numbers or one-hot labels for {count} examples"
        raise checks.value_error("labels", expected, labels)
    if labels.dtype.kind not in "iu":
        raise checks.type_error("labels", "integer labels", labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        received = low if low < 0 else high
        raise checks.value_error("labels", f"labels from 0 to {classes - 1}", received)
    return labels.reshape(-1)


def _names(class_names: Any, classes: int) -> tuple[str, ...]:
    if class_names is None:
        return tuple(map(str, range(classes)))
    if isinstance(class_names, str) or len(class_names) != classes:
        raise checks.value_error("class_names", f"{classes} names, one a class", class_names)
    return tuple(str(name) for name in class_names)
