"""Follows a stage: logs it, and ends it when its promotion rule says so."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class Watch(keras.callbacks.Callback):
    """Stands before the user's callbacks, so that they see the stage in the logs.

    Args:
        owner: the ProgressiveDistiller.
        stage, number: the stage that runs.
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

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts the steps of this epoch."""
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts; `batch` is the last one of an execution of several."""
        self._seen = batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Names the stage in the logs."""
        self.owner.steps += self._seen
        if logs is not None:
            logs["stage"] = self.number

    def promoted(self) -> bool:
        """Whether the rule ends the stage; not before decaying filters are zero."""
        logs = self.logs
        if self.stage.promote is None or not logs:
            return False
        if self.decay is not None and not self.decay.frozen:
            return False
        return bool(self.stage.promote(logs))


class _Last(keras.callbacks.Callback):
    """Stands after the user's callbacks: what they put in the logs is kept too."""

    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the logs; ends the stage if its rule says so."""
        self._watch.owner.logs.append({name: _number(v) for name, v in (logs or {}).items()})
        if self._watch.promoted():
            self.model.stop_training = True


def _number(value: Any) -> Any:
    if isinstance(value, int):
        return value
    return float(tf.convert_to_tensor(value).numpy())
