"""A value as a pure function of the step.

Temperatures, loss weights, curriculum paces and decay rates may change while a
model trains. A schedule has no state: the value at a step is the same in every
process, so a run that starts again goes on with the values it would have had.

Every schedule takes a Python or NumPy integer and returns a float (computed in
float64), or takes an integer tensor or variable and returns a float32 scalar
tensor (also inside `tf.function` and under XLA).
"""

from tfkd.schedules.accept import deserialize, get, serialize, value_at
from tfkd.schedules.base import Schedule, register
from tfkd.schedules.curves import Constant, Cosine, Exponential, Linear, Piecewise, Warmup

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Schedule",
    "Warmup",
    "deserialize",
    "get",
    "register",
    "serialize",
    "value_at",
]
