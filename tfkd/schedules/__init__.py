"""A value as a pure function of the step.

Temperatures, loss weights, curriculum paces and decay rates may change while a
model trains. A schedule has no state: the value at a step is the same in every
process, so a run that starts again goes on with the values it would have had.

Every schedule takes an integer and returns a float, takes a NumPy array of integers
and returns a float64 array, or takes an integer tensor or variable and returns a
float32 tensor of its shape (also inside `tf.function` and under XLA).
"""

from tfkd.schedules.accept import Value, deserialize, get, serialize, value_at
from tfkd.schedules.base import Schedule, register
from tfkd.schedules.curves import Cosine, Exponential, Linear, Root
from tfkd.schedules.pieces import Constant, Piecewise, Staircase
from tfkd.schedules.warmup import Warmup

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Root",
    "Schedule",
    "Staircase",
    "Value",
    "Warmup",
    "deserialize",
    "get",
    "register",
    "serialize",
    "value_at",
]
