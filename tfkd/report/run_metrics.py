"""The results of a run as numbers by name, for TensorBoard and experiment trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfkd.report.detection_table import DetectionRow
from tfkd.report.measures import MEASURES


def flat(report: Any) -> dict[str, float]:
    """Implements `RunReport.metrics`.

    Returns:
        "accepted": 1 or 0; "gates/NAME": what was measured for a gate; and of each model
        "accuracy/MODEL" (or another score), "ece/MODEL", "agreement/MODEL", "p50_ms/MODEL",
        "p99_ms/MODEL", "examples_per_second/MODEL", "size_bytes/MODEL", "macs/MODEL",
        "parameters/MODEL"; of detectors "map/MODEL" and "map50/MODEL", 0 to 1. What is not
        known is left out.
    """
    found: dict[str, float | None] = {"accepted": float(report.verdict.accepted)}
    found |= {f"gates/{check.gate}": check.measured for check in report.verdict.checks}
    for row in report.table.rows:
        costs = {"macs": row.macs, "parameters": row.params}
        numbers = {**scalars(row), **costs}
        found |= {f"{name}/{row.model}": value for name, value in numbers.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def scalars(row: Any) -> Mapping[str, float | None]:
    """The numbers of one row of a table, by quantity."""
    if isinstance(row, DetectionRow):
        stats = {name: row.stats(name) for name in ("map", "map50")}
        scores = {name: None if one is None else one.mean for name, one in stats.items()}
        return scores | {"p50_ms": row.p50, "size_bytes": row.size}
    stats = {measure.key: getattr(row, measure.key) for measure in MEASURES}
    times, details = row.latency, row.details
    return {
        **{key: one and one.mean for key, one in stats.items()},
        "ece": details and details.ece,
        "agreement": details and details.agreement,
        "p50_ms": times and times.p50,
        "p99_ms": times and times.p99,
        "examples_per_second": row.throughput,
        "size_bytes": row.size,
    }


def by_epoch(report: Any) -> dict[str, list[tuple[int, float]]]:
    """Histories and schedules of all stages: name → (epoch through all stages, value) pairs.

    Epochs count from 1. The name is that of the metric, or "schedule/NAME".
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    start = 0
    for stage in report.stages:
        named = dict(stage.history) | {f"schedule/{k}": v for k, v in stage.schedules.items()}
        for name, values in named.items():
            points = ((start + i, v) for i, v in enumerate(values, 1) if v is not None)
            curves.setdefault(name, []).extend((i, float(v)) for i, v in points)
        start += stage.epochs
    return curves
