"""Pictures of a report. Colours and markers are told apart by colour-blind readers.

matplotlib is imported only when something is drawn, and draws to files alone.
Palette: Okabe and Ito, https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd import artifacts, checks

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


def new_axes():
    """A figure of its own and its axes; pyplot's global state is not touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "tfkd.report's plots need matplotlib. Install it with `pip install tfkd[demo]`."
        ) from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def styled():
    """A context in which figures have the house style."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "tfkd.report's plots need matplotlib. Install it with `pip install tfkd[demo]`."
        ) from error
    return matplotlib.rc_context(_STYLE)


def write_figure(figure, path: str | os.PathLike) -> pathlib.Path:
    """Writes a PNG, whole or not at all; returns its path."""
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
    return pathlib.Path(path)


def accuracy_latency(table: Any, path: str | os.PathLike) -> pathlib.Path:
    """Draws accuracy (mean ± sd) against median latency, with the Pareto front.

    A model is on the front if no other one is as fast and more accurate, or
    faster and as accurate.

    Args:
        table: a `Table`; rows without accuracy or latency are left out.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: if no row has both.
        ImportError: if matplotlib is not installed.
    """
    rows = [row for row in table.rows if row.accuracy is not None and row.latency is not None]
    if not rows:
        raise checks.value_error("table", "a row with accuracy and latency", table)
    x = np.array([row.latency.p50 for row in rows])
    y = np.array([row.accuracy.mean for row in rows])
    spread = np.array([row.accuracy.sd or 0.0 for row in rows])
    with styled():
        figure, axes = new_axes()
        front = pareto(x, y)
        axes.step(x[front], y[front], where="post", color="#999999", ls="--", lw=1.5, zorder=1)
        for i in range(len(rows)):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.errorbar(x[i], y[i], yerr=spread[i] or None, ms=10, capsize=5, lw=2, **style)
        _log_axis(axes, x)
        axes.set(xlabel="latency of one example, median (ms, log scale)", ylabel="accuracy (%)")
        axes.set_title("Accuracy against latency; dashed: Pareto front", loc="left", fontsize=13)
        _label_points(figure, axes, x, y, spread, [row.model for row in rows], front)
        return write_figure(figure, path)


def pareto(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Indices of the points that no other beats: smaller x, larger y; by x.

    Example:
        >>> import numpy as np
        >>> from tfkd.report.plots import pareto
        >>> pareto(np.array([3.0, 1.0, 2.0]), np.array([9.0, 5.0, 4.0]))
        [1, 0]
    """
    front: list[int] = []
    for i in np.lexsort((-y, x)):
        if not front or y[i] > y[front[-1]]:
            front.append(int(i))
    return front


def _log_axis(axes, x: np.ndarray) -> None:
    """Log scale with plain numbers at 1, 2 and 5, and room for labels at the sides."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(x.min() / 5, x.max() * 4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_points(figure, axes, x, y, spread, names: Sequence[str], front) -> None:
    """Puts each name beside its point, where it covers no point, bar, line or other name."""
    axes.margins(y=0.18)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where the labels were fitted to
    taken = _obstacles(figure, axes, x, y, spread, front)
    inside = axes.get_window_extent()
    for i, name in enumerate(names):
        best: Any = None
        for dx, dy, ha, va in _places():
            text = axes.annotate(
                name, (x[i], y[i]), (dx, dy), textcoords="offset points", ha=ha, va=va, zorder=5
            )
            box = text.get_window_extent(figure.canvas.get_renderer())
            clashes = sum(box.overlaps(other) for other in taken)
            clashes += not (inside.contains(*box.min) and inside.contains(*box.max))
            if best is None or clashes < best[0]:
                if best is not None:
                    best[1].remove()
                best = (clashes, text, box)
            else:
                text.remove()
            if clashes == 0:
                break
        taken.append(best[2])


def _obstacles(figure, axes, x, y, spread, front) -> list[Any]:
    """Boxes in pixels: each point with its bar, a little larger than drawn, and the front."""
    from matplotlib.transforms import Bbox

    to_pixels = axes.transData.transform
    pad = 9 * figure.dpi / 72
    ends = zip(to_pixels(np.c_[x, y - spread]), to_pixels(np.c_[x, y + spread]), strict=True)
    boxes = [Bbox([low - pad, high + pad]) for low, high in ends]
    corners = [(x[i], y[i]) for i in front]
    for (left, low), (right, high) in itertools.pairwise(corners):
        across = to_pixels([(left, low), (right, low)])
        up = to_pixels([(right, low), (right, high)])
        boxes += [Bbox([across[0] - 2, across[1] + 2]), Bbox([up[0] - 2, up[1] + 2])]
    return boxes


def _places():
    """Offsets in points, near ones first: right, left, above, below, corners."""
    for reach in (11, 18, 28, 42):
        yield reach, 0, "left", "center"
        yield -reach, 0, "right", "center"
        for up in (reach, -reach):
            va = "bottom" if up > 0 else "top"
            yield 0, up, "center", va
            yield reach * 0.8, up * 0.8, "left", va
            yield -reach * 0.8, up * 0.8, "right", va


def training_curves(
    curves: Mapping[str, Any], path: str | os.PathLike, quantity: str = "accuracy"
) -> pathlib.Path:
    """Draws one quantity over the epochs: mean over seeds, and the band min–max.

    The axis begins where the slowest curve is after a fifth of its epochs, so
    that the end, where curves differ, is not pressed flat.

    Args:
        curves: name → (seeds, epochs) values, or one curve (epochs,).
        path: the PNG to write.
        quantity: label of the axis, with its unit: "accuracy (%)".

    Returns:
        The path.

    Raises:
        ValueError: if there is no curve, one is empty, or seeds differ in length.
        ImportError: if matplotlib is not installed.
    """
    arrays = {name: _curve(name, values) for name, values in curves.items()}
    if not arrays:
        raise checks.value_error("curves", "at least one curve", curves)
    with styled():
        figure, axes = new_axes()
        for i, (name, values) in enumerate(arrays.items()):
            colour, epochs = COLOURS[i % len(COLOURS)], np.arange(1, values.shape[1] + 1)
            label = f"{name} ({len(values)} seeds)" if len(values) > 1 else name
            every = max(1, len(epochs) // 8)
            axes.plot(
                epochs, values.mean(0), color=colour, lw=2.2, label=label,
                marker=MARKERS[i % len(MARKERS)], markevery=(i % every, every), ms=6,
            )  # fmt: skip
            if len(values) > 1:
                axes.fill_between(
                    epochs, values.min(0), values.max(0), color=colour, alpha=0.18, lw=0
                )
        settled = np.concatenate([v[:, v.shape[1] // 5 :].ravel() for v in arrays.values()])
        margin = 0.05 * (np.ptp(settled) or 1.0)
        axes.set_ylim(settled.min() - margin, settled.max() + margin)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Mean over seeds; band: lowest to highest", loc="left", fontsize=13)
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="best")
        return write_figure(figure, path)


def _curve(name: str, values: Any) -> np.ndarray:
    try:
        array = np.atleast_2d(np.asarray(values, np.float64))
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 2 or array.size == 0:
        raise checks.value_error(
            f"curves[{name!r}]", "numbers (seeds, epochs), as many epochs for each seed", values
        )
    return array
