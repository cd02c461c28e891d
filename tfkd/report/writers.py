"""Optional writers of a run's metrics to MLflow and to Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tfkd import checks
from tfkd.types import Path

# MLflow allows letters, digits, and these in a metric's name.
_FORBIDDEN = re.compile(r"[^\w\-. /]")


def to_mlflow(metrics: Mapping[str, float], *, step: int = 0, page: Path | None = None) -> None:
    """Logs metrics to MLflow's active run, or to a new one.

    Args:
        metrics: name → number: `RunReport.metrics()`. Characters that MLflow refuses in a name
            become "_".
        step: step of the metrics.
        page: `report.html`, to be logged as an artifact; None: none.

    Raises:
        TypeError, ValueError: for a bad argument.
        ImportError: if mlflow is not installed.
    """
    step = _checked(metrics, step)
    try:
        import mlflow
    except ImportError as error:
        raise ImportError(
            "to_mlflow needs mlflow. Install it with `pip install mlflow`."
        ) from error
    named = {_FORBIDDEN.sub("_", name): float(value) for name, value in metrics.items()}
    mlflow.log_metrics(named, step=step)
    if page is not None:
        mlflow.log_artifact(str(page))


def to_wandb(metrics: Mapping[str, float], *, step: int = 0, page: Path | None = None) -> None:
    """Logs metrics to the active run of Weights & Biases, or to a new one.

    Args:
        metrics: name → number: `RunReport.metrics()`.
        step: step of the metrics.
        page: `report.html`, to be shown in the run; None: none.

    Raises:
        TypeError, ValueError: for a bad argument.
        ImportError: if wandb is not installed.
    """
    step = _checked(metrics, step)
    try:
        import wandb
    except ImportError as error:
        raise ImportError("to_wandb needs wandb. Install it with `pip install wandb`.") from error
    run = wandb.run or wandb.init()
    run.log({name: float(value) for name, value in metrics.items()}, step=step)
    if page is not None:
        with open(page, encoding="utf-8") as file:
            run.log({"report": wandb.Html(file.read(), inject=False)}, step=step)


def _checked(metrics: Mapping[str, float], step: int) -> int:
    checks.instance("metrics", metrics, Mapping, "a dict of name → number")
    for name, value in metrics.items():
        checks.finite(f"metrics[{name!r}]", value)
    return checks.non_negative_int("step", step)
