"""A classifier's results by class and by example: accuracies, confusion, agreement, changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfkd.data.label_forms import names
from tfkd.data.labels import MULTI_LABEL, Examples
from tfkd.report.calibration import Calibration, calibration_error, confidences
from tfkd.results import Grid, Result

_MOST_PAIRS = 10_000  # pairs of confused classes that are kept: all of up to 100 classes
_MOST_CHANGES = 1_000  # examples that changed class
MOST_SHOWN = 24  # pictures of such examples on a page
_TURNS = ("lost", "gained", "lost", "both wrong")  # in which examples to look at are taken


@dataclasses.dataclass(frozen=True)
class Change:
    """An example of which a model and its original predict different classes.

    Attributes:
        example: index of the example in the data.
        truth: its class; of several labels, those that apply.
        before: what the original predicts.
        after: what the model predicts.
        confidence_before, confidence_after: probability of the predicted class, 0 to 1; of
            several labels, that of the least certain one.
    """

    example: int
    truth: str
    before: str
    after: str
    confidence_before: float
    confidence_after: float

    @property
    def kind(self) -> str:
        """The outcome: "lost" (right before), "gained" (right now), or "both wrong"."""
        if self.before == self.truth:
            return "lost"
        return "gained" if self.after == self.truth else "both wrong"


@dataclasses.dataclass(frozen=True)
class ClassDetails(Result):
    """Results of a classifier by class and by example; `details` of a row of `report.compare`.

    Of a list of seeds they are those of the first model.

    Attributes:
        class_names: C names.
        truth: (C,) number of examples of each class.
        predicted: (C,) number of examples predicted as each class.
        right: (C,) number of examples of each class that are predicted as it.
        confused: (true class, predicted class, number) of wrong predictions, the most
            frequent first; empty for several labels per example.
        calibration: confidences and accuracies; None if they can't be told.
        compared_with: name of the original.
        agreement: percentage of examples of which both predict the same; None: not compared.
        changes: the examples of which they don't, at most 1,000: those that were right before
            first, by falling confidence; empty where an example has several positions.
        changed: their number.
        lost, gained: number of those that only the original, and that only the model has right.
        multi_label: whether an example may have several labels.
    """

    class_names: tuple[str, ...]
    truth: tuple[int, ...]
    predicted: tuple[int, ...]
    right: tuple[int, ...]
    confused: tuple[tuple[int, int, int], ...] = ()
    calibration: Calibration | None = None
    compared_with: str = ""
    agreement: float | None = None
    changes: tuple[Change, ...] = ()
    changed: int = 0
    lost: int = 0
    gained: int = 0
    multi_label: bool = False

    @property
    def ece(self) -> float | None:
        """Expected calibration error, 0 to 1; None if there are no probabilities."""
        return None if self.calibration is None else self.calibration.ece

    @property
    def recall(self) -> tuple[float, ...]:
        """(C,) percentage of the examples of each class that are found; NaN without examples."""
        return _percent(self.right, self.truth)

    @property
    def precision(self) -> tuple[float, ...]:
        """(C,) percentage of right ones of the predictions of each class; NaN without any."""
        return _percent(self.right, self.predicted)

    @property
    def class_scores(self) -> tuple[float, ...]:
        """(C,) accuracy of each class in percent; of several labels the F1 score of each."""
        if not self.multi_label:
            return self.recall
        both = [a + b for a, b in zip(self.truth, self.predicted, strict=True)]
        found = _percent([2 * count for count in self.right], both)
        return tuple(f if t else float("nan") for f, t in zip(found, self.truth, strict=True))

    def confusion(self) -> np.ndarray:
        """(C, C) number of examples of each true class (row) predicted as each class (column).

        Raises:
            ValueError: for several labels per example, which have no such matrix.
        """
        if self.multi_label:
            raise ValueError("Labels that are independent of each other have no confusion matrix.")
        matrix = np.diag(np.array(self.right, np.int64))
        for truth, predicted, count in self.confused:
            matrix[truth, predicted] = count
        return matrix

    def to_show(self, most: int = MOST_SHOWN) -> tuple[Change, ...]:
        """Changed examples to look at: half of them lost, the others gained or both wrong.

        Where there are too few of one kind, more of the others are taken.
        """
        queues = {kind: [c for c in self.changes if c.kind == kind] for kind in _TURNS}
        found: list[Change] = []
        while len(found) < most and any(queues.values()):
            for kind in _TURNS:
                found += [queues[kind].pop(0)] if queues[kind] and len(found) < most else []
        return tuple(sorted(found, key=self.changes.index))

    def parts(self) -> list[Grid | str]:
        """Precision and recall by class, the calibration error, and the agreement."""
        head = ("class", "precision %", "recall %", "examples", "predicted")
        columns = (self.class_names, self.precision, self.recall, self.truth, self.predicted)
        rows = [*zip(*columns, strict=True)]
        text = [] if self.ece is None else [f"Expected calibration error {self.ece:.4f}."]
        if self.agreement is not None:
            text.append(
                f"Agreement with {self.compared_with} {self.agreement:.2f} %: {self.changed:,} "
                f"examples changed, {self.lost:,} lost, {self.gained:,} gained."
            )
        return [Grid(head, rows, dict.fromkeys(head[1:3], ".1f")), *text]


def _percent(part: Sequence[int], whole: Sequence[int]) -> tuple[float, ...]:
    return tuple(100 * a / b if b else float("nan") for a, b in zip(part, whole, strict=True))


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What a model predicts for M examples or positions, in the small form that is kept.

    Attributes:
        task: of `Examples`.
        labels, predictions: (M,) classes, or (M, C) of 0 and 1.
        classes: number of classes.
        calibration: of its confidences.
        confidence: (M,) or (M, C) probabilities of the predictions; empty for positions.
        examples: (M,) index of the example of each; empty for positions.
    """

    task: str
    labels: np.ndarray
    predictions: np.ndarray
    classes: int
    calibration: Calibration
    confidence: np.ndarray
    examples: np.ndarray

    @classmethod
    def of(cls, found: Examples) -> Predicted | None:
        """Of normalized labels and outputs; None for a regression."""
        sure = confidences(found)
        if sure is None:
            return None
        several = found.task == MULTI_LABEL
        classes = found.labels.shape[1] if several else found.classes
        labels, made = (x.astype(_small(classes)) for x in (found.labels, found.predictions))
        measured = calibration_error(np.ravel(sure), np.ravel(labels == made))
        # Several positions of an example have no picture to show.
        kept = slice(0 if (np.diff(found.examples) == 0).any() else None)
        sure, examples = sure[kept].astype(np.float32), found.examples[kept]
        return cls(found.task, labels, made, classes, measured, sure, examples)

    def details(
        self, class_names: Sequence[str] | None, name: str = "", original: Predicted | None = None
    ) -> ClassDetails:
        """The details, compared with the `original` called `name` if it is given."""
        several = self.task == MULTI_LABEL
        right = self.predictions == self.labels
        if several:
            truth, made = self.labels.sum(0), self.predictions.sum(0)
            hits, pairs = (self.labels & self.predictions).sum(0), ()
        else:
            both = (self.labels, self.predictions)
            truth, made = (np.bincount(x, minlength=self.classes) for x in both)
            hits = np.bincount(self.labels[right], minlength=self.classes)
            pairs = _pairs(self.labels[~right], self.predictions[~right], self.classes)
        shown = names(class_names, self.classes)
        compared = {} if original is None else _compared(original, self, shown)
        return ClassDetails(
            class_names=tuple(map(str, shown)),
            truth=tuple(truth.tolist()),
            predicted=tuple(made.tolist()),
            right=tuple(hits.tolist()),
            confused=pairs,
            calibration=self.calibration,
            compared_with=name if original is not None else "",
            multi_label=several,
            **compared,
        )


def _small(classes: int) -> np.dtype:
    """The smallest integers that hold class numbers: there may be a class for each pixel."""
    return np.min_scalar_type(classes)


def _pairs(truth: np.ndarray, predicted: np.ndarray, classes: int) -> tuple:
    truth = truth.astype(np.int64)
    codes, counts = np.unique(truth * classes + predicted, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PAIRS]
    return tuple((int(codes[i]) // classes, int(codes[i]) % classes, int(counts[i])) for i in order)


def _compared(before: Predicted, after: Predicted, shown: Sequence[str]) -> dict:
    """Agreement and changed examples as fields of `ClassDetails`."""

    def rows(values: np.ndarray) -> np.ndarray:
        return values.all(-1) if values.ndim == 2 else values

    same = rows(before.predictions == after.predictions)
    was, now = (rows(one.predictions == one.labels) for one in (before, after))
    changed = np.flatnonzero(~same)
    listed = changed if len(after.examples) else changed[:0]
    sure = [c.min(-1) if c.ndim == 2 else c for c in (before.confidence, after.confidence)]
    # Those that were right come first, then those that are right now.
    rank = np.where(was[listed], 0, np.where(now[listed], 1, 2))
    order = listed[np.lexsort((-sure[1][listed], rank))][:_MOST_CHANGES]

    def text(values: np.ndarray) -> str:
        if values.ndim == 0:
            return str(shown[int(values)])
        return ", ".join(str(shown[i]) for i in np.flatnonzero(values)) or "none"

    changes = tuple(
        Change(
            int(after.examples[i]), text(after.labels[i]), text(before.predictions[i]),
            text(after.predictions[i]), float(sure[0][i]), float(sure[1][i]),
        )
        for i in order
    )  # fmt: skip
    return {
        "agreement": 100 * float(same.mean()),
        "changes": changes,
        "changed": len(changed),
        "lost": int((was & ~now).sum()),
        "gained": int((now & ~was).sum()),
    }
