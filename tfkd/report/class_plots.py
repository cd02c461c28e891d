"""Plots by class: confusion matrix, reliability diagram, objects found and missed."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd.report.calibration import Calibration
from tfkd.report.class_details import ClassDetails
from tfkd.report.plots import COLOURS, MARKERS, literal, new_figure, set_title, write_figure

_MOST_NUMBERS = 14  # classes of a matrix whose cells are large enough for numbers
_FEWEST = 10  # predictions in a bin whose accuracy says something
_LIGHT = "#c9ced6"


def confusion(details: ClassDetails, title: str, path: str | os.PathLike) -> pathlib.Path:
    """Draws a confusion matrix: each row a true class, shaded by its share of the row."""
    matrix = details.confusion()
    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with new_figure() as (figure, axes):
        figure.set_figheight(figure.get_figwidth())
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if count <= _MOST_NUMBERS:
            for i, j in np.ndindex(matrix.shape):
                if matrix[i, j]:
                    ink = "white" if shares[i, j] > 0.55 else "#222222"
                    size = 11 if count <= 6 else 8
                    axes.text(j, i, str(matrix[i, j]), ha="center", va="center", color=ink,
                              fontsize=size)  # fmt: skip
        every = max(1, -(-count // 20))
        places = np.arange(0, count, every)
        names = [literal(_short(details.class_names[place])) for place in places]
        size = 10 if count <= 12 else 8
        axes.set_xticks(
            places, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size
        )
        axes.set_yticks(places, names, fontsize=size)
        axes.grid(visible=False)
        axes.set(xlabel="predicted class", ylabel="true class")
        set_title(axes, title, 12)
        if count > _MOST_NUMBERS:
            bar = figure.colorbar(image, ax=axes, shrink=0.75)
            bar.set_label("share of the true class", fontsize=10)
        return write_figure(figure, path)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def reliability(found: Mapping[str, Calibration], path: str | os.PathLike) -> pathlib.Path:
    """Draws accuracy against confidence of each bin of 10 or more predictions.

    The area of a dot is the share of the predictions in its bin.
    """
    with new_figure() as (figure, axes):
        axes.plot([0, 100], [0, 100], color="#999999", ls="--", lw=1.4, label="calibrated")
        for i, (name, one) in enumerate(found.items()):
            counts = np.array(one.counts)
            full = counts >= min(_FEWEST, counts.max())
            x, y = (100 * np.array(v, np.float64)[full] for v in (one.confidence, one.accuracy))
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(x, y, color=colour, lw=1.8, label=f"{literal(name)}: ECE {one.ece:.4f}")
            sizes = 12 + 160 * counts[full] / counts.sum()
            axes.scatter(x, y, sizes, color=colour, marker=MARKERS[i % len(MARKERS)], zorder=3)
        axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 103), ylim=(0, 103))
        axes.legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        return write_figure(figure, path)


def objects(found: Mapping[str, Any], path: str | os.PathLike) -> pathlib.Path:
    """Draws the objects of each class: found in colour, missed light behind them, in percent.

    Args:
        found: name of a model → its `DetectionScores`.
        path: the PNG to write.
    """
    first = next(iter(found.values()))
    kinds = [kind for kind, count in enumerate(first.truth) if count][:40]
    with new_figure() as (figure, axes):
        figure.set_figheight(max(2.4, 1.3 + 0.34 * len(kinds) * len(found)))
        high = 0.8 / len(found)
        for i, (name, scores) in enumerate(found.items()):
            places = np.arange(len(kinds)) - 0.4 + high * (i + 0.5)
            shares = 100 * scores.found[kinds] / scores.truth[kinds]
            light = {"color": _LIGHT, "label": None if i else "missed"}
            axes.barh(places, np.full(len(kinds), 100.0), 0.9 * high, **light)
            axes.barh(places, shares, 0.9 * high, color=COLOURS[i], label=f"found {literal(name)}")
            for place, kind in zip(places, kinds, strict=True):
                text = f"{scores.found[kind]} of {scores.truth[kind]}"
                axes.text(101, place, text, va="center", fontsize=9)
        axes.set_yticks(range(len(kinds)), [literal(_short(first.class_names[k])) for k in kinds])
        axes.set_ylim(len(kinds) - 0.45, -0.55)
        axes.set_xlim(0, 124)
        axes.set_xticks(range(0, 101, 20))
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="objects (%)", ylabel="class")
        axes.legend(frameon=False, fontsize=10, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        return write_figure(figure, path)
