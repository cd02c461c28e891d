"""Plots of a run: curves by epoch and stage, filters kept, latency histogram, detectors' mAP."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfkd.report.accuracy import seed_stats
from tfkd.report.detection_plots import mean_curves
from tfkd.report.latency import Latency
from tfkd.report.plots import COLOURS, MARKERS, literal, new_figure, set_title, write_figure
from tfkd.report.table import Row, Table
from tfkd.results import Plot

Points = Sequence[tuple[int, float]]
_LIGHT = "#c9ced6"
_MOST_BARS = 48
_SCORES = "Accuracy and other scores"
_LETTER = 6.2  # width of a letter of a stage's name, in points


def grouped(curves: Mapping[str, Points]) -> dict[str, dict[str, Points]]:
    """Curves without schedules, by what they have in common: losses, fractions, others."""
    groups: dict[str, dict[str, Points]] = {
        _SCORES: {}, "Losses": {}, "Other metrics": {}
    }  # fmt: skip
    for name, points in curves.items():
        if name.startswith("schedule/") or not points:
            continue
        # A Distiller's total is what Keras calls the loss, unless layers add their own.
        if "total_loss" in name and points == curves.get(name.replace("total_loss", "loss")):
            continue
        values = np.array([value for _, value in points])
        is_fraction = np.nanmin(values) >= 0 and np.nanmax(values) <= 1
        key = "Other metrics"
        if any(word in name for word in ("loss", "error", "distillation")):
            key = "Losses"
        elif is_fraction and not any(word in name for word in ("lr", "rate")):
            key = _SCORES
        groups[key][name] = points
    return groups


def stage_ends(stages: Sequence[Any]) -> list[tuple[str, int, int]]:
    """(name, first epoch, last epoch) of each stage that has epochs, counted through all."""
    found, start = [], 0
    for stage in stages:
        if stage.epochs:
            found.append((stage.name, start + 1, start + stage.epochs))
        start += stage.epochs
    return found


def curves(
    lines: Mapping[str, Points],
    stages: Sequence[tuple[str, int, int]],
    quantity: str,
    path: str | os.PathLike,
) -> pathlib.Path:
    """Draws curves over the epochs, with the stages side by side."""
    pairs = [name.removeprefix("val_") for name in lines]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(pairs))}
    with new_figure() as (figure, axes):
        for i, (name, points) in enumerate(lines.items()):
            style = {"color": colours[name.removeprefix("val_")], "lw": 2.0}
            style["ls"] = "--" if name.startswith("val_") else "-"
            parts = _by_stage(points, stages)
            for number, part in enumerate(parts):
                x, y = np.array(part).T
                every = max(1, len(x) // 6)
                axes.plot(
                    x, y, marker=MARKERS[i % len(MARKERS)], markevery=every, ms=5,
                    label=None if number else literal(name), **style,
                )  # fmt: skip
        _show_stages(axes, stages)
        axes.set(xlabel="epoch", ylabel=literal(quantity))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1 or quantity not in lines:
            columns = 2 if len(lines) > 3 and max(map(len, lines)) < 26 else 1
            # Below the name of the axis, however low the axes become beside many names.
            figure.legend(frameon=False, fontsize=10, ncols=columns, loc="outside lower center")
        return write_figure(figure, path)


def _by_stage(points: Points, stages: Sequence[tuple[str, int, int]]) -> list[Points]:
    """The points of each stage; no line joins the end of one with the begin of the next."""
    parts = [[p for p in points if first <= p[0] <= last] for _, first, last in stages]
    return [part for part in parts if part] or [points]


def _show_stages(axes: Any, stages: Sequence[tuple[str, int, int]]) -> None:
    if not stages:
        return
    whole = stages[-1][2]
    low, high = (0.5, whole + 0.5) if whole > 1 else (0.5, 1.5)
    axes.set_xlim(low, high)
    points = (axes.figure.get_figwidth() - 0.9) * 72  # about the width of the axes
    ends: list[float] = []  # of the last name in each row
    for number, (name, first, last) in enumerate(stages):
        if number:
            axes.axvline(first - 0.5, color="#777777", lw=1, ls=":")
        text = _short(name, 18)
        half = 0.5 * _LETTER * len(text)
        middle = points * ((first + last) / 2 - low) / (high - low)
        middle = min(max(middle, half), points - half)
        # Names stand above the axes, in as many rows as it takes that they don't meet.
        row = next((i for i, end in enumerate(ends) if end < middle - half), len(ends))
        ends[row : row + 1] = [middle + half + _LETTER]
        axes.annotate(
            text, (middle / points, 1.0), (0, 4 + 13 * row), fontsize=10, ha="center",
            xycoords="axes fraction", textcoords="offset points", color="#444444",
            parse_math=False, annotation_clip=False,
        )  # fmt: skip


def kept(layers: Sequence[Any], path: str | os.PathLike) -> pathlib.Path:
    """Draws the filters of each layer: all of them light, those kept in colour."""
    shown = list(layers)
    if len(shown) > _MOST_BARS:
        gone = sorted(shown, key=lambda one: one.after - one.before)[:_MOST_BARS]
        shown = [one for one in shown if one in gone]
    with new_figure() as (figure, axes):
        figure.set_figheight(max(2.2, 1.2 + 0.27 * len(shown)))
        places = np.arange(len(shown))
        axes.barh(places, [one.before for one in shown], color=_LIGHT, label="before")
        axes.barh(places, [one.after for one in shown], color=COLOURS[0], label="kept")
        most = max(one.before for one in shown)
        for place, one in zip(places, shown, strict=True):
            text = f"{one.after} of {one.before}"
            axes.text(one.before + 0.01 * most, place, text, va="center", fontsize=10)
        axes.set_yticks(places, [literal(_short(one.layer)) for one in shown], fontsize=10)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1.42 * most)
        axes.set(xlabel="filters, units or heads", ylabel="layer")
        axes.grid(axis="y", visible=False)
        axes.legend(frameon=False, fontsize=10, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        if len(shown) < len(layers):
            set_title(axes, f"{len(shown)} of {len(layers)} layers, which lost most", 10)
        return write_figure(figure, path)


def _short(name: str, most: int = 20) -> str:
    """A name of at most `most` letters, without its middle: layers differ at both ends."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[half + 1 - most :]}"


def histogram(times: Mapping[str, Sequence[float]], path: str | os.PathLike) -> pathlib.Path:
    """Draws the distribution of latencies on a logarithmic axis, with the medians."""
    from tfkd.report.trade_offs import log_ticks

    every = np.concatenate([np.asarray(values) for values in times.values()])
    low, high = 0.9 * every.min(), 1.1 * every.max()
    bins = np.geomspace(low, high, 61)
    with new_figure() as (figure, axes):
        for i, (name, values) in enumerate(times.items()):
            share = np.full(len(values), 100 / len(values))
            colour, median = COLOURS[i % len(COLOURS)], float(np.median(values))
            label = f"{literal(name)}: median {median:.3g} ms"
            axes.hist(values, bins, weights=share, color=colour, alpha=0.55, label=label)
            axes.axvline(median, color=colour, lw=1.6, ls="--")
        log_ticks(axes)
        axes.set_xlim(low, high)
        axes.set(xlabel="time of one example (ms, log scale)", ylabel="share of the runs (%)")
        axes.legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        return write_figure(figure, path)


def of_detectors(table: Any) -> list[Plot]:
    """mAP against latency and size, and precision-recall curves, of a `DetectionTable`."""
    rows = [_as_row(row) for row in table.rows]
    scored = [row for row in rows if row.average_precision is not None]
    several = len([row for row in scored if row.size or row.latency]) > 1
    plots = [*Table(scored, machine=table.machine).plots()] if several else []
    scores = {row.model: row.scores[0] for row in table.rows}
    first = next(iter(scores.values()))
    present = [kind for kind, count in enumerate(first.truth) if count]
    groups = [("mean of the classes", present)] if len(present) > 1 else []
    groups += [(first.class_names[kind], [kind]) for kind in present[:5]]
    for number, (title, kinds) in enumerate(groups):
        draw = functools.partial(mean_curves, scores, title, kinds)
        plots.append(Plot(f"precision_recall_{number}", f"Precision and recall: {title}", draw))
    return plots


def _as_row(row: Any) -> Row:
    """A detector as a row of a `Table`, whose mAP is in percent."""
    stats, times = row.stats("map"), row.latency
    score = None if stats is None else seed_stats([100 * value for value in stats.values])
    if times is not None and not isinstance(times, Latency):
        times = Latency(times, times, times, times, 1)
    return Row(row.model, average_precision=score, size=row.size, latency=times)
