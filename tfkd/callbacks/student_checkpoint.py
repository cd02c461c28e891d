"""A checkpoint callback that saves the student of a Distiller alone, as a plain Keras model."""

from __future__ import annotations

import os
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.distillation.saving import uncompiled
from tfkd.types import Path


class StudentCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras's `ModelCheckpoint`, but of the Distiller's student, without the teacher.

    The file is read by `keras.models.load_model`, without tfkd unless the student has layers
    of tfkd. It holds no optimizer and no loss: to resume a training use Keras's
    `ModelCheckpoint` (both models) or `BackupAndRestore`.

    Args:
        filepath, monitor, verbose, save_best_only, save_weights_only, mode, save_freq,
            options, initial_value_threshold: as for `keras.callbacks.ModelCheckpoint`;
            `monitor` is a name in the Distiller's logs, such as "val_accuracy".

    Raises:
        ValueError: before training, if a file of the student could not be loaded again,
            such as a whole quantized model.

    Example:
        >>> import tempfile, numpy as np, tf_keras as keras, tfkd
        >>> net = lambda: keras.Sequential([keras.layers.Dense(3, input_shape=(4,))])
        >>> distiller = tfkd.Distiller(net(), net(), tfkd.losses.LogitsDistillation(4.0), None, 0)
        >>> distiller.compile("adam")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     keep = tfkd.callbacks.StudentCheckpoint(f"{folder}/student.keras", "loss")
        ...     _ = distiller.fit(np.ones((8, 4), "float32"), verbose=0, callbacks=[keep])
        ...     keras.models.load_model(f"{folder}/student.keras").count_params()
        15
    """

    of_student = True  # `checks.whole_model_path` tells it from ModelCheckpoint

    def __init__(self, filepath: Path, *args: Any, **kwargs: Any):
        checks.instance("filepath", filepath, (str, os.PathLike), "a path")
        super().__init__(os.fspath(filepath), *args, **kwargs)

    def set_model(self, model: keras.Model) -> None:
        """Takes the student of a Distiller; any other model as it is."""
        super().set_model(getattr(model, "student", model))

    def _save_handler(self, filepath: str) -> Any:
        with uncompiled([self.model]):
            return super()._save_handler(filepath)
