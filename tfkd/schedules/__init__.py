"""Schedules: values (temperatures, weights, paces, rates) as pure functions of the step.

A schedule has no state: its value at a step is the same in every process, so that a
resumed run continues with the values that an uninterrupted run would have had.

Every schedule maps an integer to a float, a NumPy array of integers to a float64 array,
and an integer tensor or variable to a float32 tensor of the same shape (also inside
`tf.function` and under XLA).
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
