"""Which way a metric of the logs is better, and its value there."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tfkd import checks

MODES = ("auto", "min", "max")
_HIGHER_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "agreement")


def sign(monitor: str, mode: str) -> float:
    """1 where higher is better, −1 where lower is; "auto" goes by the name."""
    checks.instance("monitor", monitor, str, "the name of a metric")
    checks.one_of("mode", mode, MODES)
    if mode == "auto":
        mode = "max" if any(word in monitor for word in _HIGHER_IS_BETTER) else "min"
    return 1.0 if mode == "max" else -1.0


def value_of(monitor: str, logs: Mapping[str, float] | None) -> float:
    """The metric in an epoch's logs.

    Raises:
        ValueError: if it is not there, or NaN.
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
