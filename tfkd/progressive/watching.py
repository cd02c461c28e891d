"""Callbacks of a stage: log the stage, and end it when its promotion rule is met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras


class StageWatch(keras.callbacks.Callback):
    """Callback before the user's callbacks, so that these see the stage in the logs.

    Args:
        owner: the ProgressiveDistiller.
        stage, number: the current stage and its index.
    """

    def __init__(self, owner: Any, stage: Any, number: int):
        super().__init__()
        self.owner, self.stage, self.number = owner, stage, number
        self.decay: Any = None
        self.last = _Last(self)
        self._seen = 0

    @property
    def logs(self) -> list[dict[str, float]]:
        """The logs of the stage so far."""
        return [logs for logs in self.owner.logs if logs["stage"] == self.number]

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Resets the step count of the epoch."""
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Counts steps; with steps_per_execution, `batch` is the last of several."""
        self._seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the stage to the logs."""
        self.owner.steps += self._seen
        if logs is not None:
            logs["stage"] = self.number

    def promoted(self) -> bool:
        """Whether the promotion rule ends the stage; never before decaying filters are zero."""
        logs = self.logs
        if self.stage.promote is None or not logs:
            return False
        if self.decay is not None and not self.decay.frozen:
            return False
        return bool(self.stage.promote(logs))


class _Last(keras.callbacks.Callback):
    """Callback after the user's callbacks, so that values that they log are kept."""

    def __init__(self, watch: StageWatch):
        super().__init__()
        self._watch = watch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stores the logs, and ends the stage if its promotion rule is met."""
        self._watch.owner.logs.append({name: _number(v) for name, v in (logs or {}).items()})
        if self._watch.promoted():
            self.model.stop_training = True


def _number(value: Any) -> Any:
    if isinstance(value, int):
        return value
    return float(tf.convert_to_tensor(value).numpy())
