"""Precision-recall curves of one detector by class, or of several detectors."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.detection.coco_evaluation import DetectionScores, score
from tfkd.report.plots import COLOURS, literal, new_figure, set_title, write_figure

# Beyond this number of classes, panels would be too small to read.
_MOST_CLASSES = 5
_LINES = ("-", "--", "-.", ":")


def precision_recall_plot(
    scores: DetectionScores | Mapping[str, DetectionScores], path: str | os.PathLike
) -> pathlib.Path:
    """Draws precision-recall curves at IoU 0.5.

    The dot on a curve is the operating point with a score threshold of 0.5.

    Args:
        scores: `DetectionScores`, drawn as a line for each class and one for their
            mean; or a dict name → `DetectionScores` of the same classes, drawn as one
            panel for the mean and one for each class (up to five), with a line for each
            detector.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        TypeError, ValueError: for other types, if no class has an object, or if detectors
            have different classes.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from tfkd import report
        >>> truth = {"boxes": [[[0.1, 0.1, 0.4, 0.5]]], "classes": [[0]]}
        >>> scores = report.detection(dict(truth, confidence=[[0.9]]), truth, ["cell"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.precision_recall_plot(scores, f"{folder}/curve.png").name
        'curve.png'
    """
    if isinstance(scores, DetectionScores):
        models = {"": scores}
    elif isinstance(scores, Mapping) and scores:
        models = dict(scores)
    else:
        expected = "DetectionScores, or a dict of name → DetectionScores"
        raise checks.type_error("scores", expected, scores)
    first = check_same_classes(models)
    present = [c for c, count in enumerate(first.truth) if count]
    if not present:
        raise checks.value_error("scores", "a class with an object", first.absent)
    with new_figure() as (figure, axes):
        if len(models) == 1:
            _by_class(axes, next(iter(models.values())), present)
            _finish(axes, "Precision against recall, IoU 0.5; dot: scores from 0.5")
        else:
            figure.clear()
            shown = present if 1 < len(present) <= _MOST_CLASSES else []
            count = 1 + len(shown)
            columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
            rows = math.ceil(count / columns)
            figure.set_size_inches(5.2 * columns + 0.4, 4.4 * rows)
            panels = figure.subplots(rows, columns, squeeze=False)
            _by_model(list(panels.flat), models, present, shown)
            figure.suptitle("Precision against recall, IoU 0.5; dot: scores from 0.5", fontsize=13)
        return write_figure(figure, path)


def mean_curves(
    models: Mapping[str, DetectionScores], title: str, kinds: list[int], path: str | os.PathLike
) -> pathlib.Path:
    """Draws the mean precision-recall curve of some classes, a line for each detector."""
    with new_figure() as (figure, axes):
        _panel(axes, models, title, kinds)
        return write_figure(figure, path)


def check_same_classes(models: Mapping[str, DetectionScores]) -> DetectionScores:
    """Accepts name → DetectionScores of the same classes and objects; returns the first."""
    first: Any = None
    for name, scores in models.items():
        kind = "DetectionScores of report.detection"
        checks.instance(f"scores[{name!r}]", scores, DetectionScores, kind)
        first = first or scores
        if scores.class_names != first.class_names:
            expected = f"the classes of the others, {first.class_names}"
            raise checks.value_error(f"scores[{name!r}]", expected, scores.class_names)
        if (scores.truth != first.truth).any():
            expected = f"scores on the same data, with {first.truth.tolist()} objects"
            raise checks.value_error(f"scores[{name!r}]", expected, scores.truth.tolist())
    return first


def _curve(axes: Any, scores: DetectionScores, kinds: list[int], label: str, **style: Any) -> None:
    """Draws the mean curve of some classes; that of a single class with its dot."""
    precision = scores.precision[kinds].mean(0)
    # The curve ends where precision reaches 0.
    end = int((precision > 0).sum()) + 1
    axes.plot(scores.recall[:end], precision[:end], label=label, **style)
    if len(kinds) == 1:
        passed = np.flatnonzero(scores.thresholds[kinds[0]] >= 0.5)
        if len(passed):
            place = scores.recall[passed[-1]], precision[passed[-1]]
            axes.plot(*place, "o", ms=8, color=style["color"], mec="white", zorder=5)


def _style(order: int) -> dict[str, str]:
    """Colour and dashes of the line that is drawn in this place."""
    dashes = _LINES[order // len(COLOURS) % len(_LINES)]
    return {"color": COLOURS[order % len(COLOURS)], "ls": dashes}


def _by_class(axes: Any, scores: DetectionScores, present: list[int]) -> None:
    for order, kind in enumerate(present):
        label = f"{literal(scores.class_names[kind])}  {score(scores.ap50[kind])}"
        _curve(axes, scores, [kind], label, lw=2.2, **_style(order))
    if len(present) > 1:
        label = f"mean  {score(scores.map50)}"
        _curve(axes, scores, present, label, color="#555555", lw=1.6, ls=(0, (2, 2)))


def _by_model(
    panels: list[Any], models: Mapping[str, DetectionScores], present: list[int], shown: list[int]
) -> None:
    first = next(iter(models.values()))
    title = "mean of the classes" if len(present) > 1 else first.class_names[present[0]]
    groups = [(title, present), *((first.class_names[kind], [kind]) for kind in shown)]
    for axes, (title, kinds) in zip(panels, groups, strict=False):
        _panel(axes, models, title, kinds)
    for axes in panels[len(groups) :]:
        axes.remove()


def _panel(axes: Any, models: Mapping[str, DetectionScores], title: str, kinds: list[int]) -> None:
    for order, (name, scores) in enumerate(models.items()):
        label = f"{literal(name)}  {score(float(scores.ap50[kinds].mean()))}"
        _curve(axes, scores, kinds, label, lw=2.0, **_style(order))
    _finish(axes, title)


def _finish(axes: Any, title: str) -> None:
    """Sets limits and titles, and a legend of names and AP50 where it covers the least."""
    axes.set(xlim=(0, 1.02), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
    set_title(axes, title)
    columns = 1 + len(axes.get_legend_handles_labels()[0]) // 16
    axes.legend(
        title="AP50", loc="best", frameon=True, framealpha=0.9, edgecolor="none",
        fontsize=11, ncols=columns, alignment="left",
    )  # fmt: skip
