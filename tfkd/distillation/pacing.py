"""`fit` on a Curriculum: its batches from the first step on, and the callback that updates it."""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.curriculum import Curriculum
from tfkd.curriculum.update import CurriculumUpdate, log_dir_of

# Arguments of `fit` that say how arrays become batches, which the Curriculum does itself.
_OF_THE_CURRICULUM = {
    "y": "Make it of both: Curriculum((x, y), ...).",
    "batch_size": "It is that of the Curriculum: Curriculum(..., batch_size=...).",
    "sample_weight": "Make it of them: Curriculum((x, y, sample_weight), ...).",
    "validation_split": "Pass held-out examples as validation_data.",
}


class Pacing:
    """The data and callbacks of one `fit` on a Curriculum.

    Args:
        owner: the Distiller.
        data: the Curriculum.
        y, args, kwargs: the other arguments of `fit`.

    Attributes:
        arguments: all arguments of `fit`, by name, with the batches as x.
    """

    def __init__(self, owner: Any, data: Curriculum, y: Any, args: Any, kwargs: Any):
        bound = inspect.signature(keras.Model.fit).bind(owner, data, y, *args, **kwargs)
        given = dict(bound.arguments)
        del given["self"]
        for name, fix in _OF_THE_CURRICULUM.items():
            value = given.pop(name, None)
            if value is not None and not (checks.is_number(value) and value == 0):
                raise checks.type_error(name, "none beside a Curriculum", value, fix)
        callbacks = given.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        updates = [one for one in callbacks if isinstance(one, CurriculumUpdate)]
        _check(owner, data, callbacks, updates)
        if not updates:
            updates = [CurriculumUpdate(data, log_dir=log_dir_of(callbacks))]
            callbacks = [*updates, *callbacks]
        self._updates, self._steps = updates, given.get("steps_per_epoch") or data.steps_per_epoch
        with tf.init_scope():
            self._start = tf.Variable(0, trainable=False, dtype=tf.int64)
        batches = data.batches(self._start)
        self.arguments = {
            **given, "x": batches, "steps_per_epoch": self._steps, "callbacks": callbacks
        }  # fmt: skip

    def begin_at(self, epoch: int, step: int) -> None:
        """Sets the place from which batches are read: a step of an epoch, both from 0."""
        first = epoch * self._steps
        self._start.assign(first + step)
        for update in self._updates:
            update.begin_at(first)


def refuse(name: str, data: Any) -> None:
    """Raises TypeError for a Curriculum as data for validation."""
    if isinstance(data, Curriculum):
        expected = "held-out arrays or a data set"
        fix = "A Curriculum yields endless batches for training; its arrays are in `.data`."
        raise checks.type_error(name, expected, data, fix)


def _check(owner: Any, data: Curriculum, callbacks: list[Any], updates: list[Any]) -> None:
    if owner.distribute_strategy.extended._in_multi_worker_mode():
        fix = "Pass tfkd.replicas.distributed(lambda c: data.batches(input_context=c), batch_size)."
        raise checks.type_error("x", "a distributed data set, on several workers", data, fix)
    if any(isinstance(one, keras.callbacks.CallbackList) for one in callbacks):
        raise checks.type_error("callbacks", "a list of callbacks, with a Curriculum", callbacks[0])
    for update in updates:
        if update.curriculum is not data:
            expected = "the CurriculumUpdate of the Curriculum that is trained on"
            raise checks.value_error("callbacks", expected, update)
    changes = data.is_adaptive or any(update.refresh_every for update in updates)
    if changes and any(isinstance(one, keras.callbacks.BackupAndRestore) for one in callbacks):
        fix = "Use ProgressiveDistiller(..., stages=[Stage(epochs)]).fit(data, backup_dir=...)."
        raise checks.value_error(
            "callbacks",
            "no BackupAndRestore, which does not keep the pace or the scores of a Curriculum that "
            "change in training",
            data.pace,
            fix,
        )
