"""Annealed decay rate for soft filter pruning, as a tfmot `PruningSchedule`.

With p the progress from `begin_step` (0) to `end_step` (1), the decay rate is

    dr(step) = initial_decay · ξ(p),      0 ≤ ξ ≤ 1, ξ never rises, dr(end_step) = 0

The rate is 1 (no effect) before `begin_step` and exactly 0 from `end_step` on: a curve that
only approaches zero would leave filters that still contribute to the output when they are
removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from tfkd import checks
from tfkd.schedules.base import evaluate
from tfkd.types import Tensor

ANNEALS = ("linear", "sigmoid", "cosine")
STEEPNESS = 10.0  # k of the sigmoid
GRID = np.linspace(0.0, 1.0, 201)  # values of p at which a user's curve is checked


def _sigmoid(p: Any, ops: Any) -> Any:
    """1 / (1 + e^{k(p − ½)}), rescaled linearly to be exactly 1 at p = 0 and 0 at p = 1."""
    first, last = (1.0 / (1.0 + math.exp(STEEPNESS * (end - 0.5))) for end in (0.0, 1.0))
    return (1.0 / (1.0 + ops.exp(STEEPNESS * (p - 0.5))) - last) / (first - last)


@keras.utils.register_keras_serializable(package="tfkd")
class AnnealedFilterDecay(tfmot.sparsity.keras.PruningSchedule):
    """A decay rate that falls from `initial_decay` to exactly 0.

    `tfkd.callbacks.FilterDecay` multiplies the selected filters by this rate. The class is
    also a tfmot schedule: in `prune_low_magnitude` its sparsity is
    target_sparsity · (1 − dr), which grows as the rate falls.

    Three known methods are special cases: filter decay, where dr falls from 1 to 0; soft
    filter pruning (https://arxiv.org/abs/1808.06866), `initial_decay=0`, where filters are
    set to zero at each interval and may recover until `end_step`; and one-shot hard
    pruning, `begin_step == end_step`.

    Args:
        target_sparsity: final sparsity for tfmot's wrapper, in [0, 1). FilterDecay takes
            its counts from the plan instead.
        begin_step: optimizer step at which decay begins.
        end_step: step from which the rate is 0; at least `begin_step`.
        frequency: interval between decays in steps, counted from `begin_step`. Filters grow
            back in between: 13 and 27 intervals up to `end_step` were measured to be
            alike, 7 and 4 worse.
        anneal: ξ: "linear" 1 − p, "sigmoid" (k = 10, normalized), "cosine"
            (1 + cos πp)/2, or a non-increasing function of p in [0, 1] with values in
            [0, 1]. At `end_step` the rate is 0 whatever it returns. It receives a float,
            or a float32 tensor in tfmot's wrapper. It can be saved only if it is
            registered with Keras.
        initial_decay: dr at `begin_step`, in [0, 1].

    Raises:
        TypeError, ValueError: if an argument has another type or is out of its range.

    Example:
        >>> from tfkd.pruning import AnnealedFilterDecay
        >>> schedule = AnnealedFilterDecay(0.5, begin_step=0, end_step=100, frequency=10)
        >>> [schedule.decay_rate(step) for step in (0, 25, 50, 100, 1000)]
        [1.0, 0.75, 0.5, 0.0, 0.0]
        >>> should_prune, sparsity = schedule(50)
        >>> bool(should_prune), float(sparsity)
        (True, 0.25)
    """

    def __init__(
        self,
        target_sparsity: float,
        begin_step: int,
        end_step: int,
        frequency: int = 1,
        anneal: str | Callable[[Any], Tensor | float] = "linear",
        initial_decay: float = 1.0,
    ):
        checks.finite("target_sparsity", target_sparsity, "a number in [0, 1)")
        if not 0 <= target_sparsity < 1:
            raise checks.value_error("target_sparsity", "a number in [0, 1)", target_sparsity)
        self.target_sparsity = float(target_sparsity)
        self.begin_step = checks.non_negative_int("begin_step", begin_step)
        expected = f"an integer of at least begin_step, {self.begin_step}"
        self.end_step = checks.integer("end_step", end_step, self.begin_step, expected)
        self.frequency = checks.positive_int("frequency", frequency)
        self.anneal, self._function = _accept_anneal(anneal)
        self.initial_decay = float(checks.fraction("initial_decay", initial_decay))

    def decay_rate(self, step: int | Tensor) -> float | Tensor:
        """Returns dr at optimizer steps, in [0, 1].

        Args:
            step: an integer, a NumPy array or a tensor of integers.

        Returns:
            A float, a float64 array, or a float32 tensor, in the shape of `step`.

        Raises:
            TypeError: if `step` is none of these.
            ValueError: if a number or array is negative (tensors are not checked).
        """
        if isinstance(step, (int, np.integer, np.ndarray)) and np.min(step, initial=0) < 0:
            raise checks.value_error("step", "steps of at least 0", step)
        return evaluate(self._rate, step)

    def _rate(self, step: Any, ops: Any) -> Any:
        progress = ops.progress(step, self.begin_step, self.end_step)
        rate = self.initial_decay * ops.clip(self._curve(progress, ops), 0.0, 1.0)
        return ops.choose(step < self.begin_step, 1.0, ops.choose(step >= self.end_step, 0.0, rate))

    def ended(self, step: int) -> bool:
        """True from `end_step` onwards."""
        return step >= self.end_step

    def due(self, step: int) -> bool:
        """True at a step at which filters are selected and decayed."""
        return self.last_due(step) == step

    def last_due(self, step: int) -> int | None:
        """The latest step, at most `step`, at which a decay is due; None before the first."""
        if step < self.begin_step:
            return None
        if step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def next_due(self, step: int) -> int | None:
        """The next step after `step` at which a decay is due; None after the last."""
        last = self.last_due(step)
        if last is None:
            return self.begin_step
        return None if last == self.end_step else min(last + self.frequency, self.end_step)

    def __call__(self, step: int | tf.Tensor | tf.Variable) -> tuple[tf.Tensor, tf.Tensor]:
        """The interface of a tfmot `PruningSchedule`.

        Args:
            step: scalar integer tensor, variable or number.

        Returns:
            (whether to prune at this step, bool; the sparsity, float32).
        """
        step = tf.convert_to_tensor(step)
        begin, end = tf.cast(self.begin_step, step.dtype), tf.cast(self.end_step, step.dtype)
        turn = tf.math.floormod(step - begin, tf.cast(self.frequency, step.dtype)) == 0
        should_prune = ((step >= begin) & (step < end) & turn) | (step == end)

        return should_prune, self.target_sparsity * (1.0 - self.decay_rate(step))

    def _curve(self, p: Any, ops: Any) -> Any:
        """ξ(p) of a number, an array or a tensor."""
        if self._function is not None:
            return ops.apply(self._function, p)
        if self.anneal == "linear":
            return 1.0 - p
        return _sigmoid(p, ops) if self.anneal == "sigmoid" else (1.0 + ops.cos(math.pi * p)) / 2.0

    def get_config(self) -> dict[str, Any]:
        """Returns class name and arguments, nested as in tfmot's own schedules.

        Raises:
            ValueError: if `anneal` is a function that is not registered with Keras.
        """
        names = ("target_sparsity", "begin_step", "end_step", "frequency", "initial_decay")
        arguments: dict[str, Any] = {name: getattr(self, name) for name in names}
        arguments["anneal"] = _name_of(self._function) if self._function else self.anneal
        return {"class_name": keras.saving.get_registered_name(type(self)), "config": arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AnnealedFilterDecay:
        """Creates a schedule from the result of `get_config`, or from its "config" entry."""
        return cls(**config["config"] if "class_name" in config else config)

    def __eq__(self, other: Any) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.begin_step, self.end_step, self.frequency))

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({shown})"


def _accept_anneal(anneal: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """(curve name, None), or (function, function); resolves names registered with Keras."""
    if isinstance(anneal, str):
        if anneal in ANNEALS:
            return anneal, None
        function = keras.saving.get_registered_object(anneal)
        if function is None:
            names = ", ".join(repr(name) for name in ANNEALS)
            expected = f"one of {names}, a function, or the registered name of one"
            raise checks.value_error("anneal", expected, anneal, checks.near(anneal, ANNEALS))
        anneal = function
    if not callable(anneal):
        raise checks.type_error("anneal", "a name or a function of p in [0, 1]", anneal)
    _check_curve(anneal)
    return anneal, anneal


def _check_curve(function: Callable[[Any], Any]) -> None:
    expected = "a function of p that returns numbers in [0, 1]"
    values = []
    for p in GRID:
        try:
            values.append(float(function(float(p))))
        except (TypeError, ValueError) as error:
            raise checks.type_error(
                "anneal", expected, function, f"At p = {p:.3f}: {error}"
            ) from None
        if not 0.0 <= values[-1] <= 1.0:  # NaN too
            raise checks.value_error("anneal", expected, values[-1], f"That was at p = {p:.3f}.")
    rises = np.flatnonzero(np.diff(values) > 1e-6)  # tolerates float32 rounding
    if len(rises):
        at = f"It rises between p = {GRID[rises[0]]:.3f} and {GRID[rises[0] + 1]:.3f}."
        raise checks.value_error("anneal", "a function that never rises", function, at)


def _name_of(function: Any) -> str:
    """The name under which a function is registered with Keras."""
    try:
        name = keras.saving.get_registered_name(function)
        known = keras.saving.get_registered_object(name) is function
    except TypeError:  # an object that has no hash cannot be registered
        known = False
    if not known:
        fix = "Decorate it with @keras.saving.register_keras_serializable(package=...)."
        raise checks.value_error("anneal", "a function registered with Keras", function, fix)
    return name
