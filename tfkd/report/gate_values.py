"""Measured values of the gates, from rows of tables: drops, agreement, latency, size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from tfkd.report.detection_table import DetectionRow
from tfkd.report.measures import MEASURES

Measured: TypeAlias = tuple[float | None, str]  # the value, and a note


def measured(gate: str, original: Any, final: Any, shares: Mapping[str, float | None]) -> Measured:
    """The value of a gate; None with the reason if it can't be told from the rows or `shares`."""
    if final is None:
        return None, "there is no model"
    if shares.get(gate) is not None:
        return shares[gate], ""
    return _VALUES[gate](original, final)


def _drop(original: Any, final: Any) -> Measured:
    if isinstance(final, DetectionRow):
        return None, "a detector has no accuracy: ask for max_map_drop"
    for measure in MEASURES:
        stats = [getattr(row, measure.key) for row in (original, final)]
        if measure.percent and None not in stats:
            note = "" if measure is MEASURES[0] else measure.name
            return stats[0].mean - stats[1].mean, note
    return None, "both models need an accuracy"


def _map_drop(original: Any, final: Any) -> Measured:
    if not isinstance(final, DetectionRow) or not isinstance(original, DetectionRow):
        return None, "only detectors have mAP: ask for max_drop"
    before, after = (row.stats("map") for row in (original, final))
    if before is None or after is None:
        return None, "there are no objects to score"
    return 100 * (before.mean - after.mean), ""


def _class_drop(original: Any, final: Any) -> Measured:
    if isinstance(final, DetectionRow) and isinstance(original, DetectionRow):
        names = final.scores[0].class_names
        before, after = (
            [100 * _mean(row, k) for k in range(len(names))] for row in (original, final)
        )
    elif getattr(final, "details", None) and getattr(original, "details", None):
        names = final.details.class_names
        before, after = original.details.class_scores, final.details.class_scores
    else:
        return None, "both rows need scores by class"
    drops = np.array(before, np.float64) - np.array(after, np.float64)
    if not np.isfinite(drops).any():
        return None, "no class has examples"
    worst = int(np.nanargmax(drops))
    return float(drops[worst]), f"class {names[worst]}"


def _mean(row: DetectionRow, kind: int) -> float:
    stats = row.stats("ap50", kind)
    return float("nan") if stats is None else stats.mean


def _agreement(original: Any, final: Any) -> Measured:
    details = getattr(final, "details", None)
    if details is None or details.agreement is None:
        return None, "it was not compared with the original"
    if details.compared_with not in ("", original.model):
        return None, f"the agreement was measured with {details.compared_with}"
    return details.agreement, ""


def _latency(_: Any, final: Any) -> Measured:
    times = final.latency
    value = getattr(times, "p50", times)
    return value, "" if value is not None else "it has no latency"


def _size(_: Any, final: Any) -> Measured:
    return final.size, "" if final.size is not None else "it has no file"


def _float_share(_: Any, __: Any) -> Measured:
    return None, "no file with operations to count"


def _macs_share(original: Any, final: Any) -> Measured:
    if not original.macs or final.macs is None:
        return None, "the multiply-accumulates of both are not known"
    return final.macs / original.macs, ""


def _ece(_: Any, final: Any) -> Measured:
    details = getattr(final, "details", None)
    if details is None or details.ece is None:
        return None, "it gives no probabilities of classes"
    return details.ece, ""


_VALUES = {
    "max_drop": _drop,
    "max_class_drop": _class_drop,
    "min_agreement": _agreement,
    "latency_ms": _latency,
    "size": _size,
    "max_ece": _ece,
    "max_float_share": _float_share,
    "max_macs_share": _macs_share,
    "max_map_drop": _map_drop,
}
