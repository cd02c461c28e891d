"""The decay rate of filters over the steps of training, as a pruning schedule of tfmot.

With p the progress from `begin_step` (0) to `end_step` (1), the decay rate is

    dr(step) = initial_decay · ξ(p),      0 ≤ ξ ≤ 1, ξ never rises, dr(end_step) = 0

It is 1, which changes nothing, before `begin_step`, and exactly 0 from
`end_step` on: a curve that only comes close to zero would leave filters that
still do something when they are cut out.
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

ANNEALS = ("linear", "sigmoid", "cosine")
STEEPNESS = 10.0  # k of the sigmoid
GRID = np.linspace(0.0, 1.0, 201)  # where a callable is looked at


def _sigmoid(p: Any, ops: Any) -> Any:
    """1 / (1 + e^{k(p − ½)}), stretched so that it is 1 at 0 and 0 at 1."""
    first, last = (1.0 / (1.0 + math.exp(STEEPNESS * (end - 0.5))) for end in (0.0, 1.0))
    return (1.0 / (1.0 + ops.exp(STEEPNESS * (p - 0.5))) - last) / (first - last)


@keras.utils.register_keras_serializable(package="tfkd")
class AnnealedFilterDecay(tfmot.sparsity.keras.PruningSchedule):
    """A decay rate that falls from `initial_decay` to exactly 0.

    For `tfkd.callbacks.FilterDecay`, which multiplies filters by it. It is a
    schedule of tfmot as well: in `prune_low_magnitude` its sparsity is
    target_sparsity · (1 − dr), which grows as the rate falls.

    Three known methods are schedules of this kind:
    filter decay, dr from 1 to 0; soft filter pruning (https://arxiv.org/abs/1808.06866),
    `initial_decay=0`, where filters are set to zero each interval and may grow
    again until `end_step`; hard pruning, `begin_step == end_step`.

    Args:
        target_sparsity: share of weights that tfmot's wrapper prunes in the
            end, in [0, 1). FilterDecay takes its counts from the plan instead.
        begin_step: optimizer step at which decay begins.
        end_step: step from which on the rate is 0; at least `begin_step`.
        frequency: decay every so many steps, counted from `begin_step`.
        anneal: ξ: "linear" 1 − p, "sigmoid" (k = 10, normalized), "cosine"
            (1 + cos πp)/2, or a function of p in [0, 1] with values in [0, 1]
            that never rise. At `end_step` the rate is 0 whatever it returns. It
            gets a float, and in tfmot's wrapper a float32 tensor.
            To be saved, it must be registered with Keras.
        initial_decay: dr at `begin_step`, in [0, 1].

    Raises:
        ValueError, TypeError: for an argument that is none of these.

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
        anneal: str | Callable[[Any], Any] = "linear",
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

    def decay_rate(self, step: Any) -> Any:
        """Returns dr at optimizer steps, in [0, 1].

        Args:
            step: an integer, a NumPy array or a tensor of integers.

        Returns:
            A float, a float64 array, or a float32 tensor of the shape of the steps.

        Raises:
            TypeError: if `step` is none of these.
            ValueError: if a number or array is negative (a tensor is not looked at).
        """
        if isinstance(step, (int, np.integer, np.ndarray)) and np.min(step, initial=0) < 0:
            raise checks.value_error("step", "steps of at least 0", step)
        return evaluate(self._rate, step)

    def _rate(self, step: Any, ops: Any) -> Any:
        progress = ops.progress(step, self.begin_step, self.end_step)
        rate = self.initial_decay * ops.clip(self._curve(progress, ops), 0.0, 1.0)
        return ops.choose(step < self.begin_step, 1.0, ops.choose(step >= self.end_step, 0.0, rate))

    def ended(self, step: int) -> bool:
        """True from `end_step` on."""
        return step >= self.end_step

    def due(self, step: int) -> bool:
        """True at the steps at which filters are selected and decayed."""
        return self.last_due(step) == step

    def last_due(self, step: int) -> int | None:
        """The last step up to `step` at which a decay is due; None before the first."""
        if step < self.begin_step:
            return None
        if step >= self.end_step:
            return self.end_step
        return step - (step - self.begin_step) % self.frequency

    def next_due(self, step: int) -> int | None:
        """The first step after `step` at which a decay is due; None after the last."""
        last = self.last_due(step)
        if last is None:
            return self.begin_step
        return None if last == self.end_step else min(last + self.frequency, self.end_step)

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """What tfmot asks a schedule.

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
        """ξ(p), of a number, an array or a tensor."""
        if self._function is not None:
            return ops.apply(self._function, p)
        if self.anneal == "linear":
            return 1.0 - p
        return _sigmoid(p, ops) if self.anneal == "sigmoid" else (1.0 + ops.cos(math.pi * p)) / 2.0

    def get_config(self) -> dict[str, Any]:
        """Returns class name and arguments, nested as tfmot's own schedules do.

        Raises:
            ValueError: if `anneal` is a function that Keras does not know.
        """
        arguments = {
            "target_sparsity": self.target_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
            "anneal": _name_of(self._function) if self._function else self.anneal,
            "initial_decay": self.initial_decay,
        }
        return {"class_name": keras.saving.get_registered_name(type(self)), "config": arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AnnealedFilterDecay:
        """Makes a schedule from what `get_config` gave, or from its "config" part."""
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
    """(what the user gave, the function if it is one); a name may be a registered function's."""
    if isinstance(anneal, str):
        if anneal in ANNEALS:
            return anneal, None
        function = keras.saving.get_registered_object(anneal)
        if function is None:
            names = ", ".join(repr(name) for name in ANNEALS)
            expected = f"one of {names}, a function, or the registered name of one"
            mend = checks.near(anneal, ANNEALS)
            raise checks.value_error("anneal", expected, anneal, mend)
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
    rises = np.flatnonzero(np.diff(values) > 1e-6)
    if len(rises):
        at = f"It rises between p = {GRID[rises[0]]:.3f} and {GRID[rises[0] + 1]:.3f}."
        raise checks.value_error("anneal", "a function that never rises", function, at)


def _name_of(function: Any) -> str:
    """The name under which Keras finds the function again."""
    try:
        name = keras.saving.get_registered_name(function)
        known = keras.saving.get_registered_object(name) is function
    except TypeError:  # an object that has no hash cannot be registered
        known = False
    if not known:
        mend = "Decorate it with @keras.saving.register_keras_serializable(package=...)."
        raise checks.value_error("anneal", "a function that Keras can find again", function, mend)
    return name
