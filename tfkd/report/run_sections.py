"""The sections of a run's page, each from the fields of a `RunReport` that it shows."""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import Any

from tfkd.report import run_plots
from tfkd.report.class_sections import calibration, changes, classes
from tfkd.report.detection_table import DetectionTable
from tfkd.report.latency import Latency
from tfkd.report.object_sections import objects, scenes
from tfkd.report.run_metrics import by_epoch
from tfkd.results import Code, Format, Grid, Lines, Links, Plot, Section, plain, size_text

_ACCURACY_AND_COST = "Trade-off"


def of(report: Any) -> list[Section]:
    """The sections that have something to show, in order."""
    makers = (
        _verdict, _compared, _run, _trade_off, _training, _schedules, _layers, _quantization,
        _exports, _latency, classes, calibration, changes, objects, scenes, _reproduce,
    )  # fmt: skip
    return [section for make in makers if (section := make(report)) is not None]


def _verdict(report: Any) -> Section:
    sentence, *grids = report.verdict.parts()
    return Section("Verdict", parts=grids or [Lines([sentence])])


def _compared(report: Any) -> Section:
    return Section(
        "Models compared", parts=[part for part in report.table.parts() if part.markdown()]
    )


def _run(report: Any) -> Section | None:
    rows = [(name, str(text)) for name, text in report.about.items()]
    for stage in report.stages:
        time = "" if stage.seconds is None else f", {duration(stage.seconds)}"
        count = f"{stage.epochs} epoch" + "s" * (stage.epochs != 1)
        rows.append((f"stage “{stage.name}”", f"{count}{time}"))
    parts: list[Any] = [Grid((), rows, left=2)] if rows else []
    if report.files:
        parts.append(Links(report.files, "Files"))
    return Section("The run", parts=parts) if parts else None


def duration(seconds: float) -> str:
    """Seconds as "12.3 s", "4 min 5 s" or "2 h 3 min".

    Example:
        >>> from tfkd.report.run_sections import duration
        >>> duration(12.34), duration(245), duration(7390)
        ('12.3 s', '4 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _trade_off(report: Any) -> Section | None:
    if isinstance(report.table, DetectionTable):
        plots = run_plots.of_detectors(report.table)
    else:
        plots = [plot for plot in report.table.plots() if "curves" not in plot.name]
    note = "Each model by its score and its cost; up and to the left is better."
    return Section(_ACCURACY_AND_COST, note, plots=plots) if plots else None


def _training(report: Any) -> Section | None:
    groups = run_plots.grouped(by_epoch(report))
    ends = run_plots.stage_ends(report.stages)
    plots = [
        Plot(f"training_{title.split()[0].lower()}", title, draw)
        for title, curves in groups.items()
        if curves
        for draw in [functools.partial(run_plots.curves, curves, ends, title)]
    ]
    note = "By epoch, through all stages; dashed lines are on validation data."
    return Section("Training", note, plots=plots) if plots else None


def _schedules(report: Any) -> Section | None:
    curves = {
        name.removeprefix("schedule/"): points
        for name, points in by_epoch(report).items()
        if name.startswith("schedule/") and points
    }
    ends = run_plots.stage_ends(report.stages)
    plots = [
        Plot(f"schedule_{i}", f"{name} over the epochs", draw)
        for i, (name, points) in enumerate(curves.items())
        for draw in [functools.partial(run_plots.curves, {name: points}, ends, name)]
    ]
    note = "What changed on schedule while the model was trained."
    return Section("Decay, curriculum and schedules", note, plots=plots) if plots else None


def _layers(report: Any) -> Section | None:
    if not report.layers:
        return None
    before, after = (sum(getattr(one, k) for one in report.layers) for k in ("before", "after"))
    rows = [(one.layer, one.before, one.after, _share(one)) for one in report.layers]
    grid = Grid(("layer", "before", "kept", "share kept"), rows, {"share kept": ".0%"})
    note = (
        f"{after:,} of {before:,} filters, units and heads are kept ({after / max(before, 1):.0%})."
    )
    draw = functools.partial(run_plots.kept, report.layers)
    plots = [Plot("layers_kept", "Filters kept per layer", draw)]
    return Section("Filters kept per layer", note, plots=plots, folded={"All layers": grid})


def _share(one: Any) -> float | None:
    return one.after / one.before if one.before else None


def _quantization(report: Any) -> Section | None:
    rows = report.quantization
    if not rows:
        return None
    from tfkd.quantization.report import FLOAT, QuantizationReport

    counts = QuantizationReport(rows).counts
    note = ", ".join(f"{count} {action}" for action, count in counts.items()) + "."
    whys = Counter((row.kind, row.why) for row in rows if row.action == FLOAT)
    head = ("kind of layer", "layers", "why it stays in float")
    in_float = Grid(head, [(k, n, why) for (k, why), n in whys.most_common()], left=(0, 2))
    parts = [in_float] if whys else [Lines([_all_quantized(report)])]
    every = Grid(
        ("layer", "kind", "decision", "why"),
        [(r.layer, r.kind, r.action, "; ".join(filter(None, (r.why, r.note)))) for r in rows],
        left=4,
    )
    folded = {"All layers": every}
    return Section("What was quantized, and why", note, parts, folded=folded)


def _all_quantized(report: Any) -> str:
    """That no layer computes in float, and what operations of the files still do."""
    counts = [
        f"{count} of {one.path.name}"
        for one in report.exports
        if (count := one.numbers.get("float_operations"))
    ]
    if not counts:
        return "No layer stays in float."
    return (
        "No layer stays in float. The files compute some operations in float "
        f"({', '.join(counts)}) that are no quantized layers, such as softmax, scaling, and the "
        "decoding of boxes."
    )


def _exports(report: Any) -> Section | None:
    if not report.exports:
        return None
    head = ("file", "mode", "size", "operations", "compared on", "agreement",
            "largest error", "mean error")  # fmt: skip
    rows = [_export(one) for one in report.exports]
    formats: dict[str, Format] = {"size": size_text, "largest error": ".2e", "mean error": ".2e"}
    parts: list[Any] = [Grid(head, rows, formats, left=(0, 1, 4))]
    warnings = [
        f"{one.path.name}: {text}"
        for one in report.exports
        for place in (one.numbers, one.numbers.get("check") or {})
        for text in place.get("warnings", ())
    ]
    if warnings:
        parts.append(Lines(warnings, "Warnings"))
    note = (
        "The outputs of each file against those of its Keras model, on the examples that are "
        "named; errors are fractions of the range of the outputs."
    )
    return Section("Parity of the exported files", note, parts)


def _export(one: Any) -> tuple[Any, ...]:
    numbers = one.numbers
    compared = numbers if one.verified else numbers.get("check") or {}
    return (
        one.path.name, f"{one.mode}, {one.io}", one.bytes, _operations(numbers), one.compared_on,
        _agreement(compared),
        compared.get("max_error"), compared.get("mean_error"),
    )  # fmt: skip


def _agreement(compared: Any) -> str | None:
    """Of detectors the share of the objects that the file finds, too."""
    from tfkd.export.parity import agreement_text

    found = (compared.get("detections") or {}).get("found")
    if found is not None:
        return f"{found:.2%} of the objects"
    return agreement_text(compared) if "argmax_agreement" in compared else None


def _operations(numbers: Any) -> str | None:
    count, in_float = numbers.get("operations"), numbers.get("float_operations")
    return None if count is None else f"{count}" + (f", {in_float} in float" if in_float else "")


def _latency(report: Any) -> Section | None:
    found = {row.model: row.latency for row in report.table.rows}
    times = {n: one.times for n, one in found.items() if isinstance(one, Latency) and one.times}
    if not times:
        return None
    head = ("model", "p50 ms", "p90 ms", "p99 ms", "mean ms", "runs")
    rows = [
        (name, one.p50, one.p90, one.p99, one.mean, one.runs)
        for name, one in found.items()
        if name in times
    ]
    draw = functools.partial(run_plots.histogram, times)
    return Section(
        "Latency",
        "Times of one example, measured in turns.",
        [Grid(head, rows, dict.fromkeys(head[1:5], ".3f"))],
        [Plot("latency_histogram", "Latency histogram", draw)],
    )


def _reproduce(report: Any) -> Section | None:
    parts: list[Any] = []
    if report.command:
        parts.append(Code(report.command, "sh"))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    rows = [("seed", "" if report.seed is None else str(report.seed)), ("versions", versions)]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in report.hashes.items()]
    rows = [(name, text) for name, text in rows if text]
    parts += [Grid((), rows, left=2)] if rows else []
    parts += [Lines(tuple(report.notes), "Notes")] if report.notes else []
    recipe = json.dumps(plain(report.recipe), indent=2, ensure_ascii=False)
    folded = {"Recipe": Code(recipe, "json")} if report.recipe else {}
    if not parts and not folded:
        return None
    note = "The same recipe, data and versions on the same machine give the same model."
    return Section("How to reproduce", note, parts, folded=folded)
