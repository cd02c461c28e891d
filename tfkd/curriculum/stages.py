"""Stages of progressive distillation: their settings, and rules for moving to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import tf_keras as keras

from tfkd import checks, schedules
from tfkd.curriculum import metrics, pace
from tfkd.networks import paths
from tfkd.schedules import Value
from tfkd.types import Data

Logs = Sequence[Mapping[str, float]]
Rate: TypeAlias = "Value | keras.optimizers.schedules.LearningRateSchedule"
Step: TypeAlias = "Callable[[keras.Model], keras.Model]"


class DecayOptions(Protocol):
    """`tfkd.progressive.Decay`, whose module imports this one."""

    options: dict[str, Any]
    schedule: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Reached:
    """Ends a stage when a metric is as good as `value`.

    Args:
        monitor: the metric's name in the logs.
        value: the value to be reached.
        mode: "min" or "max", whichever is better; "auto" decides by the metric's name.

    Example:
        >>> from tfkd.curriculum import Reached
        >>> rule = Reached("val_accuracy", 0.9)
        >>> rule([{"val_accuracy": 0.8}]), rule([{"val_accuracy": 0.8}, {"val_accuracy": 0.9}])
        (False, True)
    """

    monitor: str
    value: float
    mode: str = "auto"

    def __post_init__(self):
        metrics.sign(self.monitor, self.mode)
        checks.finite("value", self.value)

    def __call__(self, logs: Logs) -> bool:
        """Returns whether the metric has reached the value in the last epoch."""
        sign = metrics.sign(self.monitor, self.mode)
        return sign * metrics.value_of(self.monitor, logs[-1]) >= sign * self.value


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Ends a stage when a metric has not improved for `patience` of its epochs.

    Args:
        monitor: the metric's name in the logs.
        patience: number of epochs, at least 1.
        min_delta: the least improvement that counts, at least 0.
        mode: "min" or "max", whichever is better; "auto" decides by the metric's name.

    Example:
        >>> from tfkd.curriculum import Plateau
        >>> rule = Plateau("val_loss", patience=2)
        >>> [rule([{"val_loss": v} for v in seen]) for seen in ([3], [3, 2, 2], [3, 2, 2, 2])]
        [False, False, True]
    """

    monitor: str
    patience: int = 3
    min_delta: float = 0.0
    mode: str = "auto"

    def __post_init__(self):
        metrics.sign(self.monitor, self.mode)
        checks.positive_int("patience", self.patience)
        checks.non_negative("min_delta", self.min_delta)

    def __call__(self, logs: Logs) -> bool:
        """Returns whether the last `patience` epochs of a stage brought no improvement."""
        sign = metrics.sign(self.monitor, self.mode)
        best, waited = -float("inf"), 0
        for one in logs:
            value = sign * metrics.value_of(self.monitor, one)
            better = value > best + self.min_delta
            best, waited = (value, 0) if better else (best, waited + 1)
        return waited >= self.patience


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a `tfkd.ProgressiveDistiller`'s training.

    Settings of None are those of the ProgressiveDistiller. Schedules count their steps
    from the beginning of the stage.

    Args:
        epochs: the largest number of epochs of the stage.
        name: name of the stage in errors and logs.
        fraction: share of the data in the pool, in (0, 1]: a number, a schedule or an
            `AdaptivePace`; needs a `Curriculum` as data.
        temperature: T of the distillation losses that have one: a number or schedule, or
            a dict of them by the loss's name.
        student_loss_weight: w in [0, 1], a number or schedule.
        distillation_loss_weights: numbers or schedules, a list of one for each loss, or
            a dict by the loss's name (which leaves the others unchanged).
        learning_rate: a number, a schedule of `tfkd.schedules`, or a Keras schedule.
        freeze: layers of the student that are not trained here: names, paths
            ("backbone/conv1"), nested models, patterns ("stage1*"), or layers, which are
            looked up by their names.
        promote: the stage ends early when `promote(logs of its epochs so far)` is true:
            `Reached`, `Plateau`, or a function of a list of dicts.
        structure: changes of the student before the stage: steps of `tfkd.progressive`
            (`Prune`, `CutLayers`, `Quantize`), or functions from a model to a model.
        decay: a `tfkd.progressive.Decay`: filters decay during the stage and are removed
            at its end.
        data: training data instead of those passed to `fit`, in the same forms.

    Raises:
        TypeError, ValueError: for an argument that is none of these.

    Example:
        >>> from tfkd import schedules
        >>> from tfkd.curriculum import Plateau, Stage
        >>> hints = Stage(5, "hints", distillation_loss_weights=[1, 0], student_loss_weight=0)
        >>> main = Stage(20, "main", fraction=schedules.Linear(0.3, 1.0, end_step=1000),
        ...              promote=Plateau("val_accuracy", 3))
        >>> hints.epochs, main.title(1)
        (5, "stage 1 ('main')")
    """

    epochs: int
    name: str | None = None
    fraction: float | schedules.Schedule | pace.AdaptivePace | None = None
    temperature: Value | Mapping[str, Value] | None = None
    student_loss_weight: Value | None = None
    distillation_loss_weights: Sequence[Value] | Mapping[str, Value] | None = None
    learning_rate: Rate | None = None
    freeze: paths.Entries = ()
    promote: Callable[[Logs], bool] | None = None
    structure: Step | Sequence[Step] = ()
    decay: DecayOptions | None = None
    data: Data | None = None

    def __post_init__(self):
        checks.positive_int("epochs", self.epochs)
        if self.name is not None:
            checks.instance("name", self.name, str, "a string or None")
        if self.fraction is not None:
            pace.accept("fraction", self.fraction)
        for value in _each(self.temperature):
            schedules.get("temperature", value, checks.positive)
        if self.student_loss_weight is not None:
            schedules.get("student_loss_weight", self.student_loss_weight, checks.fraction)
        weights = self.distillation_loss_weights
        if weights is not None and not isinstance(weights, (list, tuple, dict)):
            raise checks.type_error("distillation_loss_weights", "a list or a dict", weights)
        for value in _each(weights):
            schedules.get("distillation_loss_weights", value, checks.non_negative)
        _check_rate(self.learning_rate)
        if self.promote is not None:
            checks.function("promote", self.promote)
        if self.decay is not None and not hasattr(self.decay, "schedule"):
            fix = "Pass, for example, Decay({'macs_reduction': 0.5})."
            raise checks.type_error("decay", "a tfkd.progressive.Decay", self.decay, fix)
        object.__setattr__(self, "freeze", tuple(paths.names_of("freeze", self.freeze)))
        object.__setattr__(self, "structure", _steps(self.structure))

    def title(self, number: int) -> str:
        """Returns the stage's title in messages, as the `number`-th stage (from 0)."""
        return f"stage {number}" + (f" ({self.name!r})" if self.name else "")


def _each(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_rate(rate: Rate | None) -> None:
    if rate is None or isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return
    expected = "a number above 0, a schedule of tfkd.schedules or of Keras, or None"
    schedules.get("learning_rate", rate, checks.non_negative, expected)


def _steps(value: Step | Sequence[Step]) -> tuple[Step, ...]:
    steps = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for step in steps:
        if not callable(step):
            expected = "steps of tfkd.progressive, or functions from a model to a model"
            raise checks.type_error("structure", expected, step)
    return steps
