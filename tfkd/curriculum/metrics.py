"""The value of a metric in the logs, and whether higher or lower is better."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tfkd import checks

MODES = ("auto", "min", "max")
_HIGHER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "agreement")


def sign(monitor: str, mode: str) -> float:
    """1 if higher is better, −1 if lower is; "auto" decides by the name of the metric."""
    checks.instance("monitor", monitor, str, "the name of a metric")
    checks.one_of("mode", mode, MODES)
    if mode == "auto":
        mode = "max" if any(word in monitor for word in _HIGHER_IS_BETTER) else "min"
    return 1.0 if mode == "max" else -1.0


def value_of(monitor: str, logs: Mapping[str, float] | None) -> float:
    """Returns the value of a metric in an epoch's logs.

    Raises:
        ValueError: if the metric is not in the logs, or NaN.
    """
    logs = logs or {}
    if monitor not in logs:
        fix = checks.near(monitor, logs) or f"There are: {', '.join(sorted(logs))}."
        expected = "a metric in the logs (pass validation_data)"
        raise checks.value_error("monitor", expected, monitor, fix)
    value = float(logs[monitor])
    if math.isnan(value):
        expected = "a metric that is a number"
        raise checks.value_error("monitor", expected, f"{monitor} = NaN", "Training failed.")
    return value
