"""Warm-up: a schedule that increases linearly from 0 to a value or another schedule."""

from __future__ import annotations

import dataclasses

from tfkd import checks
from tfkd.schedules.accept import Value, deserialize, get, number, serialize, value_at
from tfkd.schedules.base import Schedule, register


@register
@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """Linear increase from 0 to a value, or to the value of a schedule, in `steps` steps.

    value(step)·min(step / steps, 1). The inner schedule is evaluated at the same step:
    the warm-up does not delay it.

    Args:
        schedule: a number, a schedule, or a callable of the step.
        steps: length of the warm-up; 0 for none.

    Raises:
        TypeError: if `schedule` is none of these, or `steps` not an integer.
        ValueError: if a number is not finite or `steps` is below 0.

    Example:
        >>> from tfkd.schedules import Warmup
        >>> [Warmup(0.5, 10)(step) for step in (0, 5, 10, 99)]
        [0.0, 0.25, 0.5, 0.5]
    """

    schedule: Value
    steps: int

    def __post_init__(self):
        schedule = get("schedule", self.schedule, number)
        if not isinstance(schedule, Schedule):
            schedule = float(schedule)
        self._set("schedule", schedule)
        self._set("steps", checks.non_negative_int("steps", self.steps))

    def _at(self, step, ops):
        return value_at(self.schedule, step) * ops.progress(step, 0, self.steps)

    @property
    def last_step(self):
        last = self.schedule.last_step if isinstance(self.schedule, Schedule) else 0
        return None if last is None else max(last, self.steps)

    def end_values(self):
        schedule = self.schedule
        ends = schedule.end_values() if isinstance(schedule, Schedule) else (schedule,)
        return (0.0, *ends) if self.steps else ends

    def get_config(self):
        return {"schedule": serialize(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(deserialize(config["schedule"]), config["steps"])
