"""How much of the data is in play at a step: the easiest fraction, in (0, 1].

A pace is a schedule (`tfkd.schedules.Schedule`): a pure function of the step, the
same in every process and after a restart. `Adaptive` alone is not: it waits for a
validation metric.
"""

from tfkd.curriculum.pacing.adaptive import Adaptive
from tfkd.curriculum.pacing.base import Fixed, Pacing, pool_size
from tfkd.curriculum.pacing.curves import Geometric, Linear, Pieces, Root, Step

__all__ = [
    "Adaptive",
    "Fixed",
    "Geometric",
    "Linear",
    "Pacing",
    "Pieces",
    "Root",
    "Step",
    "pool_size",
]
