"""Trade-off plots: score against latency or size, with the Pareto front."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.report.measures import ACCURACY, Measure
from tfkd.report.plots import COLOURS, MARKERS, new_figure, set_title, write_figure


def accuracy_latency(table: Any, path: str | os.PathLike) -> pathlib.Path:
    """Draws accuracy (mean ± sd) against median latency, with the Pareto front.

    If the table has another score than accuracy, that is drawn. A model is on the front,
    and its name bold, if no other model is as fast and better, or faster and at least as
    good; differences within the noise count as none, see `Table.pareto`.

    Args:
        table: a `Table`; rows without score or latency are left out.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: if no row has both.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from tfkd import report
        >>> times = report.Latency.of([1.0, 1.2])
        >>> row = report.Row("tiny", report.seed_stats(91.0), latency=times)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.accuracy_latency(report.Table([row]), folder + "/a.png").name
        'a.png'
    """
    rows = _costed(table, "latency")
    times = np.array([row.latency.p50 for row in rows])
    spreads = np.array([row.latency.spread for row in rows])
    label = "latency of one example, median (ms, log scale)"
    return _scatter(rows, table.measure, times, ("latency", label), path, spreads)


def accuracy_size(table: Any, path: str | os.PathLike) -> pathlib.Path:
    """Draws accuracy (mean ± sd) against the size of the file, with the Pareto front.

    If the table has another score than accuracy, that is drawn.

    Args:
        table: a `Table`; rows without score or size are left out.
        path: the PNG to write.

    Returns:
        The path.

    Raises:
        ValueError: if no row has both.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from tfkd import report
        >>> row = report.Row("tiny", report.seed_stats(91.0), size=8_504)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.accuracy_size(report.Table([row]), folder + "/a.png").name
        'a.png'
    """
    rows = _costed(table, "size")
    sizes, unit = np.array([row.size / 2**10 for row in rows]), "KiB"
    if sizes.max() >= 2**10:
        sizes, unit = sizes / 2**10, "MiB"
    cost = ("size", f"size of the file ({unit}, log scale)")
    return _scatter(rows, table.measure, sizes, cost, path)


def _costed(table: Any, cost: str) -> list[Any]:
    """The rows that have a score and this cost, "latency" or "size"; ValueError if none has."""
    scored = [row for row in table.rows if getattr(row, table.measure.key) is not None]
    rows = [row for row in scored if getattr(row, cost)]
    if not rows:
        raise checks.value_error("table", f"a row with {table.measure.name} and {cost}", table)
    return rows


def unbeaten(
    x: np.ndarray,
    y: np.ndarray,
    x_noise: np.ndarray | float = 0.0,
    y_noise: np.ndarray | float = 0.0,
) -> list[int]:
    """Indices, in order, of all points that no other dominates: smaller x, larger y.

    A point dominates another if it is better in one and at least equal in the other,
    so equal points do not dominate each other. Numbers are equal if they differ by no more
    than √(a² + b²), where a and b are their noise.

    Example:
        >>> import numpy as np
        >>> from tfkd.report.trade_offs import unbeaten
        >>> unbeaten(np.array([3.0, 1.0, 2.0, 1.0]), np.array([9.0, 5.0, 4.0, 5.0]))
        [0, 1, 3]
        >>> unbeaten(np.array([1.0, 1.1]), np.array([90.0, 95.0]), 0.2, 0.5)
        [1]
    """
    faster, better = _less(x, x_noise), _less(-y, y_noise)
    beats = (faster & ~better.T) | (better & ~faster.T)
    return np.flatnonzero(~beats.any(0)).tolist()


def _less(values: np.ndarray, noise: np.ndarray | float) -> np.ndarray:
    """Bool array (N, N): whether value i is less than value j by more than their noise."""
    noises = np.broadcast_to(noise, values.shape)
    return values[:, None] < values - np.hypot(noises[:, None], noises)


def pareto(
    x: np.ndarray,
    y: np.ndarray,
    x_noise: np.ndarray | float = 0.0,
    y_noise: np.ndarray | float = 0.0,
) -> list[int]:
    """Pareto front as a rising line: indices by x, each with a larger y than the one before.

    Example:
        >>> import numpy as np
        >>> from tfkd.report.trade_offs import pareto
        >>> pareto(np.array([3.0, 1.0, 2.0]), np.array([9.0, 5.0, 4.0]))
        [1, 0]
    """
    front = np.array(unbeaten(x, y, x_noise, y_noise), int)
    found = {(x[i], y[i]): i for i in front[unbeaten(x[front], y[front])][::-1].tolist()}
    return [found[point] for point in sorted(found)]


def _scatter(
    rows: Sequence[Any],
    measure: Measure,
    x: np.ndarray,
    cost: tuple[str, str],
    path: str | os.PathLike,
    x_noise: np.ndarray | float = 0.0,
) -> pathlib.Path:
    """Draws one plot; `cost` is (word, axis label)."""
    stats = [getattr(row, measure.key) for row in rows]
    y = np.array([one.mean for one in stats])
    spread = np.array([one.sd or 0.0 for one in stats])
    noise = x_noise, np.array([one.noise for one in stats])
    with new_figure() as (figure, axes):
        front = pareto(x, measure.gain(y), *noise)
        axes.step(x[front], y[front], where="post", color="#999999", ls="--", lw=1.5, zorder=1)
        for i in range(len(rows)):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.errorbar(x[i], y[i], yerr=spread[i] or None, ms=10, capsize=5, lw=2, **style)
        log_axis(axes, x)
        axes.set(xlabel=cost[1], ylabel=measure.axis)
        title = f"{measure.title} against {cost[0]}; dashed, with bold names: Pareto front"
        set_title(axes, title)
        label_points(figure, axes, x, y, spread, [row.model for row in rows], measure, noise)
        return write_figure(figure, path)


def log_axis(axes, x: np.ndarray) -> None:
    """Sets a log scale with plain numbers at 1, 2 and 5, and margins for point labels."""
    log_ticks(axes)
    axes.set_xlim(x.min() / 5, x.max() * 4)


def log_ticks(axes) -> None:
    """Sets a log scale of x with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def label_points(
    figure, axes, x, y, spread, names: Sequence[str], measure: Measure = ACCURACY, noise=(0.0, 0.0)
) -> None:
    """Places each name beside its point, where it overlaps the fewest other elements.

    Names of points on the Pareto front are bold.
    """
    axes.margins(y=0.18)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a new layout would move the axes under the labels
    gain = measure.gain(y)
    taken = _obstacles(figure, axes, x, y, spread, pareto(x, gain, *noise))
    front = set(unbeaten(x, gain, *noise))
    inside = axes.get_window_extent()
    for i, name in enumerate(names):
        best: Any = None
        for dx, dy, ha, va in _places():
            text = axes.annotate(
                name, (x[i], y[i]), (dx, dy), textcoords="offset points", ha=ha, va=va, zorder=5,
                weight="bold" if i in front else "normal", parse_math=False,
            )  # fmt: skip
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
    """Bounding boxes in pixels of each point with its error bar, padded, and of the front."""
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
    """Label offsets in points, nearest first: right, left, above, below, corners."""
    for reach in (11, 18, 28, 42):
        yield reach, 0, "left", "center"
        yield -reach, 0, "right", "center"
        for up in (reach, -reach):
            va = "bottom" if up > 0 else "top"
            yield 0, up, "center", va
            yield reach * 0.8, up * 0.8, "left", va
            yield -reach * 0.8, up * 0.8, "right", va
