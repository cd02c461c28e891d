"""Messages and progress of a run: what the engine asks of a terminal, and a plain one."""

from __future__ import annotations

import contextlib
import sys
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol

import tf_keras as keras


class Bar(Protocol):
    """Progress of something that takes long."""

    def update(self, done: int, note: str = "") -> None:
        """Sets the number of steps that are done."""


class Voice(Protocol):
    """Where messages and progress go; `tfkd.cli` has one for terminals."""

    def say(self, text: str) -> None:
        """Prints a message."""

    def progress(self, total: int | None, label: str) -> AbstractContextManager[Any]:
        """A bar, as a context."""


class _NoBar:
    def update(self, done: int, note: str = "") -> None:
        """Does nothing."""


class Plain:
    """Prints messages on standard error, each with the seconds since the start.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False):
        self.quiet, self._began = quiet, time.monotonic()

    def say(self, text: str) -> None:
        """Prints a message."""
        if not self.quiet:
            print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)

    def progress(self, total: int | None, label: str) -> AbstractContextManager[Any]:
        """No bar."""
        return contextlib.nullcontext(_NoBar())


class Progress(keras.callbacks.Callback):
    """Shows the steps of a training on a bar.

    Args:
        bar: where to show them.
        steps: steps of an epoch.
        first: epochs that are done already.
    """

    def __init__(self, bar: Bar, steps: int, first: int):
        super().__init__()
        self._supports_tf_logs = True  # it reads no number, so Keras need not wait for one
        self._bar, self._done, self._note = bar, first * steps, ""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts a step."""
        self._done += 1
        self._bar.update(self._done, self._note)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes the accuracy."""
        value = (logs or {}).get("val_accuracy")
        if value is not None:
            self._note = f"accuracy {100 * float(value):.1f} %"
