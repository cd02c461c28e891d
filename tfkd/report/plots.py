"""Shared style of the plots, and training curves over epochs.

The palette is safe for colour-blind readers: Okabe and Ito,
https://jfly.uni-koeln.de/color/. matplotlib is imported only when a plot is drawn, and
only writes files.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import artifacts, checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Width and height in inches; `narrow` sets smaller ones, whose text is legible on a phone.
_SIZE: contextvars.ContextVar[tuple[float, float]] = contextvars.ContextVar("size", default=(8, 5))
_NARROW = (4.9, 3.7)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"
_STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.dpi": 150,
}


@contextlib.contextmanager
def new_figure() -> Iterator[tuple[Figure, Axes]]:
    """A new figure and its axes in the style of tfkd; pyplot's global state is not used."""
    with checks.needed("tfkd.report's plots need matplotlib", "demo"):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE.get(), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()


@contextlib.contextmanager
def narrow() -> Iterator[None]:
    """Plots that are drawn in this context are small, so that their text is large on a page."""
    token = _SIZE.set(_NARROW)
    try:
        yield
    finally:
        _SIZE.reset(token)


def literal(text: str) -> str:
    """A name as matplotlib shows it letter by letter, without reading formulas between "$"."""
    return text.replace("$", r"\$")


def set_title(axes: Axes, text: str, size: float = 13) -> None:
    """Sets a title at the left, broken into lines that fit the figure."""
    # A letter of DejaVu Sans is about 0.55 of its size wide; 0.9 inches are left of the axes.
    letters = int((axes.figure.get_figwidth() - 0.9) * 72 / (0.55 * size))
    axes.set_title(textwrap.fill(literal(text), letters), loc="left", fontsize=size)


def write_figure(figure: Figure, path: str | os.PathLike) -> pathlib.Path:
    """Writes a PNG atomically; returns its path."""
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
    return pathlib.Path(path)


def training_curves(
    curves: Mapping[str, Any], path: str | os.PathLike, quantity: str = "accuracy"
) -> pathlib.Path:
    """Draws a quantity over the epochs: the mean over seeds, with a band from min to max.

    The limits of the axis ignore the first fifth of the epochs, so that differences
    at the end of training stay visible.

    Args:
        curves: name → (seeds, epochs) values, or one curve (epochs,).
        path: the PNG to write.
        quantity: label of the axis, with its unit: "accuracy (%)".

    Returns:
        The path.

    Raises:
        ValueError: if there are no curves, one is empty, or seeds differ in length.
        ImportError: if matplotlib is not installed.
    """
    arrays = {name: _curve(name, values) for name, values in curves.items()}
    if not arrays:
        raise checks.value_error("curves", "at least one curve", curves)
    with new_figure() as (figure, axes):
        for i, (name, values) in enumerate(arrays.items()):
            colour, epochs = COLOURS[i % len(COLOURS)], np.arange(1, values.shape[1] + 1)
            label = literal(name)
            label += f" ({len(values)} seeds)" if len(values) > 1 else ""
            every = max(1, len(epochs) // 8)
            axes.plot(
                epochs, values.mean(0), color=colour, lw=2.2, label=label,
                marker=MARKERS[i % len(MARKERS)], markevery=(i % every, every), ms=6,
            )  # fmt: skip
            if len(values) > 1:
                low, high = values.min(0), values.max(0)
                axes.fill_between(epochs, low, high, color=colour, alpha=0.18, lw=0)
        settled = np.concatenate([v[:, v.shape[1] // 5 :].ravel() for v in arrays.values()])
        margin = 0.05 * (np.ptp(settled) or 1.0)
        axes.set_ylim(settled.min() - margin, settled.max() + margin)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        set_title(axes, "Mean over seeds; band: lowest to highest")
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="best")
        return write_figure(figure, path)


def _curve(name: str, values: Any) -> np.ndarray:
    try:
        array = np.atleast_2d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 2 or array.size == 0:
        expected = "numbers (seeds, epochs), as many epochs for each seed"
        raise checks.value_error(f"curves[{name!r}]", expected, values)
    return array
