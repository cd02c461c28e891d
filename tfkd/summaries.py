"""Base class of callbacks that write TensorBoard summaries of their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf
import tf_keras as keras

from tfkd import checks, replicas
from tfkd.types import Path


class WritingCallback(keras.callbacks.Callback):
    """Writes to a folder inside `log_dir`, in the chief's process alone.

    Args:
        log_dir: TensorBoard's folder; None: nothing is written.
        folder: name of the folder inside.
    """

    def __init__(self, log_dir: Path | None, folder: str):
        super().__init__()
        if log_dir is not None:
            checks.instance("log_dir", log_dir, (str, os.PathLike), "a folder, or None")
        self.log_dir, self._folder = log_dir, folder
        self._writer: tf.summary.SummaryWriter | None = None

    def _writes(self) -> bool:
        return self.log_dir is not None and replicas.writes(self.model)

    @contextlib.contextmanager
    def _summaries(self, step: int) -> Iterator[None]:
        """A context in which `tf.summary` writes at `step`; the first one makes the folder."""
        if self._writer is None:
            folder = os.path.join(self.log_dir, self._folder)  # type: ignore[arg-type]
            self._writer = tf.summary.create_file_writer(folder)
        with tf.summary.record_if(True), self._writer.as_default(step=step):
            yield
        self._writer.flush()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
