"""Confidences of predictions, their expected calibration error (ECE), temperature scaling."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.data.labels import MULTI_LABEL, REGRESSION, Examples, is_probability
from tfkd.results import Grid, Result

BINS = 15  # as in Guo et al. 2017
_CHUNK = 65_536  # rows of which a softmax is computed at once
_INSPECTED = 1000  # outputs by which it is told whether they are probabilities
_FARTHEST = (
    1e3  # factor of the scores' standard deviation within which 1 / temperature is looked for
)


@dataclasses.dataclass(frozen=True)
class Calibration(Result):
    """How far confidences agree with accuracies; from `calibration_error`.

    Attributes:
        ece: expected calibration error, 0 to 1.
        counts: number of predictions in each bin of confidence.
        confidence: their mean confidence, 0 to 1; NaN in an empty bin.
        accuracy: the fraction of them that is right, 0 to 1; NaN in an empty bin.
    """

    ece: float
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    def parts(self) -> list[Grid | str]:
        """A table of the bins that are not empty, and the error."""
        head = ("bin", "predictions", "confidence", "accuracy")
        ends = np.linspace(0, 1, len(self.counts) + 1)
        rows = [
            (f"{ends[i]:.2f} to {ends[i + 1]:.2f}", count, self.confidence[i], self.accuracy[i])
            for i, count in enumerate(self.counts)
            if count
        ]
        grid = Grid(head, rows, dict.fromkeys(head[2:], ".3f"))
        return [grid, f"Expected calibration error {self.ece:.4f}."]


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> Calibration:
    """Expected calibration error: Σ (nᵢ / n)·|accuracyᵢ − confidenceᵢ| over bins of confidence.

    The bins have equal widths; bin i holds the confidences in (i / bins, (i + 1) / bins].

    Reference: Guo et al. 2017, "On Calibration of Modern Neural Networks",
    https://arxiv.org/abs/1706.04599, equation 3.

    Args:
        confidence: (N,) probabilities of the predicted classes, 0 to 1.
        right: (N,) whether each prediction is right.
        bins: number of bins.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: if there are no predictions, their numbers differ, or a confidence is no
            probability.

    Example:
        >>> from tfkd import report
        >>> found = report.calibration_error([0.9, 0.9, 0.6, 0.6], [True, True, True, False])
        >>> round(found.ece, 4)  # 2/4 · |1 − 0.9| + 2/4 · |0.5 − 0.6|
        0.1
    """
    checks.positive_int("bins", bins)
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if sure.ndim != 1 or not sure.size or sure.shape != hit.shape:
        expected = f"one probability for each of the {hit.size} values of `right`, at least one"
        raise checks.value_error("confidence", expected, confidence)
    if not ((sure >= 0) & (sure <= 1)).all():
        raise checks.value_error("confidence", "probabilities from 0 to 1", confidence)
    # A float32 of about i / bins belongs to the bin that ends there.
    places = np.clip(np.ceil(np.round(sure * bins, 6)).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(places, sure, bins) / counts
        share = np.bincount(places, hit, bins) / counts
    ece = float(np.nansum(counts * np.abs(share - mean)) / len(sure))
    return Calibration(ece, tuple(counts.tolist()), tuple(mean.tolist()), tuple(share.tolist()))


def fit_temperature(scores: ArrayLike, labels: ArrayLike) -> float:
    """Temperature scaling: the T by which scores are divided so that confidences fit.

    T has the highest likelihood of the labels under softmax(scores / T). A label counts as
    (N + 1) / (N + 2) of its class and the rest of the others, as in Platt 1999, so that T is
    above 0 for a model that is right on all of few examples. Predictions stay what they are.

    Reference: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.

    Args:
        scores: (N, C) logits or probabilities of C ≥ 2 classes, of examples that did not
            train the model. Of probabilities it is the temperature of their logarithms.
        labels: (N,) class numbers.

    Returns:
        T; below 1 for a model that is too modest, above 1 for one that is too sure.

    Raises:
        ValueError: if shapes do not fit, or scores are not finite or all alike.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> scores = np.tile([[2.0, -2.0]], (1000, 1))  # right in 3 of 4: the odds are 3
        >>> labels = np.arange(1000) % 4 // 3
        >>> round(report.fit_temperature(scores, labels), 1)  # 4 / ln 3
        3.6
    """
    z, y = np.asarray(scores, np.float64), np.asarray(labels)
    if z.ndim != 2 or z.shape[1] < 2 or not len(z) or y.shape != z.shape[:1]:
        expected = f"(N, C) scores of 2 classes or more, and (N,) labels; labels {y.shape}"
        raise checks.value_error("scores", expected, f"shape {z.shape}")
    if y.dtype.kind not in "iu" or not ((y >= 0) & (y < z.shape[1])).all():
        raise checks.value_error("labels", f"class numbers below {z.shape[1]}", labels)
    if not np.isfinite(z).all():
        raise checks.value_error("scores", "finite scores", "NaN or infinity")
    if _kind(z) == "one":
        z = np.log(np.maximum(z, np.finfo(np.float32).tiny))
    z = z - z.mean(1, keepdims=True)
    size = float(z.std())
    if not size:
        raise checks.value_error("scores", "scores that differ", "the same for all classes")
    z = z / size
    count, classes = z.shape
    sure, right = (count + 1) / (count + 2), z[np.arange(count), y]
    wanted = float((sure * right + (1 - sure) * (z.sum(1) - right) / (classes - 1)).sum())
    low, high = -np.log(_FARTHEST), np.log(_FARTHEST)  # of the factor 1 / T; its slope rises
    for _ in range(60):
        middle = (low + high) / 2
        powers = np.exp(np.exp(middle) * (z - z.max(1, keepdims=True)))
        expectation = float(((powers * z).sum(1) / powers.sum(1)).sum())
        low, high = (middle, high) if expectation < wanted else (low, middle)
    return float(size / np.exp((low + high) / 2))


def _kind(outputs: np.ndarray) -> str | None:
    """What outputs are by their values: "one": rows sum to 1; "unit": in [0, 1]; else logits."""
    from tfkd.teachers import output_kinds

    evidence = output_kinds.Evidence()
    output_kinds.see(evidence, outputs[:: 1 + len(outputs) // _INSPECTED])
    return evidence.seen


def _largest(outputs: np.ndarray) -> np.ndarray:
    """(M,) the largest probability of outputs (M, C) of C > 1 classes, logits or probabilities.

    What they are is told by their values, as in training (`tfkd.teachers.output_kinds`): rows
    that sum to 1, also up to the steps of an int8 file, or values that are all in [0, 1].
    """
    if _kind(outputs) in ("one", "unit"):
        return np.clip(outputs.max(-1).astype(np.float64), 0.0, 1.0)
    found = np.empty(len(outputs))
    for start in range(0, len(outputs), _CHUNK):
        values = np.asarray(outputs[start : start + _CHUNK], np.float64)
        # exp(largest) / Σ exp(z), both divided by exp(largest).
        sums = np.exp(values - values.max(-1, keepdims=True)).sum(-1)
        found[start : start + _CHUNK] = 1 / sums
    return found


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))


def confidences(found: Examples) -> np.ndarray | None:
    """Probability of each prediction: (M,), multi-label (M, C); None for a regression.

    Of a single unit and of several labels it is that of the side that was predicted.
    """
    if found.task == REGRESSION:
        return None
    if found.task != MULTI_LABEL and found.outputs.shape[1] > 1:
        return _largest(found.outputs)
    # Of labels that are independent of each other a row is no distribution.
    values = np.asarray(found.outputs, np.float64)
    positive = np.clip(values, 0.0, 1.0) if is_probability(values) else _sigmoid(values)
    chosen = found.predictions.reshape(positive.shape) == 1
    sure = np.where(chosen, positive, 1 - positive)
    return sure if found.task == MULTI_LABEL else sure[:, 0]
