"""One training of a stage: epochs with curves, a backup after each, and a bar.

A batch is a function of (seed, step), so a training that goes on after epoch e at step
e · steps takes the batches that it would have taken. The backup is one file, written
atomically: weights, optimizer, the state of a filter decay, and the curves so far.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, callbacks, checks
from tfkd.networks.layer_parts import flat_layers
from tfkd.recipes.voice import Progress, Voice

Curves = dict[str, list[float | None]]
_LEFT_OUT = ("lr",)
_TIMED = 5  # steps that a dry run makes


@dataclasses.dataclass
class Training:
    """What is trained, and how.

    Attributes:
        name: "prune", or "prune_decay": the name of the curves and of the backup.
        trained: a compiled model or Distiller.
        student: the model whose weights it changes.
        batches: first step → endless batches.
        steps: steps of an epoch.
        epochs: epochs.
        validation: batches for the curves, or None.
        decay: a filter decay, or None.
        teacher: which teacher was taken, for the record.
        rate: the peak of the learning rate, for the record.
    """

    name: str
    trained: keras.Model
    student: keras.Model
    batches: Callable[[int], tf.data.Dataset]
    steps: int
    epochs: int
    validation: tf.data.Dataset | None = None
    decay: Any = None
    teacher: str = ""
    rate: float | None = None

    def run(self, backup: pathlib.Path, logs: pathlib.Path, voice: Voice) -> Curves:
        """Trains, from the last finished epoch if there is a backup; returns the curves.

        Args:
            backup: the file of the backup.
            logs: folder for TensorBoard.
            voice: for messages and progress.

        Raises:
            ValueError: if the weights are no longer finite.
        """
        keeper = Backup(backup, self)
        first = keeper.restore()
        if first:
            voice.say(f"{self.name}: goes on after epoch {first} of {self.epochs}")
        with voice.progress(self.steps * self.epochs, self.name.replace("_", ": ")) as bar:
            used: list[Any] = [] if self.decay is None else [self.decay]
            board = callbacks.TensorBoard(str(logs / self.name), write_graph=False)
            used += [board, keeper, Progress(bar, self.steps, first)]
            if first < self.epochs:
                self.trained.fit(
                    self.batches(first * self.steps),
                    steps_per_epoch=self.steps,
                    initial_epoch=first,
                    epochs=self.epochs,
                    validation_data=self.validation,
                    callbacks=used,
                    verbose=0,
                )
        check_finite(self.student, self.name)
        return keeper.curves

    def seconds(self) -> float:
        """Time of the whole training, estimated from measured steps; it changes the weights."""
        ends: list[float] = []
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
        )
        # The first step is traced.
        self.trained.fit(
            self.batches(0), steps_per_epoch=_TIMED, epochs=1, callbacks=[clock], verbose=0
        )
        return float(np.median(np.diff(ends))) * self.steps * self.epochs


def check_finite(model: keras.Model, name: str) -> None:
    """Raises ValueError if a weight is NaN or infinite."""
    if not all(np.isfinite(w).all() for w in model.get_weights() if w.dtype.kind == "f"):
        expected = "a training that converges"
        fix = "Its weights are no longer finite: lower `learning_rate` of this stage."
        raise checks.value_error(name, expected, "NaN or infinity", fix)


class Backup(keras.callbacks.Callback):
    """Writes the state of a training after each epoch.

    Args:
        path: the file.
        training: the training.

    Attributes:
        curves: metric → its value after each epoch.
    """

    changes_weights = False

    def __init__(self, path: pathlib.Path, training: Training):
        super().__init__()
        self.path, self.training = path, training
        self.curves: Curves = {}

    def _variables(self) -> list[Any]:
        trained = self.training.trained
        optimizer = trained.optimizer
        optimizer.build(trained.trainable_variables)
        return [*self.training.student.weights, *optimizer.variables]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the backup."""
        for name, value in (logs or {}).items():
            if name not in _LEFT_OUT:
                number = float(value)
                known = self.curves.setdefault(name, [None] * epoch)
                known.append(number if np.isfinite(number) else None)
        decay = self.training.decay
        state = {
            "epoch": epoch + 1,
            "curves": self.curves,
            "decay": None if decay is None else decay.state_dict(),
        }
        arrays = {f"v{i}": v.numpy() for i, v in enumerate(self._variables())}
        with artifacts.atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)

    def restore(self) -> int:
        """Restores the backup, if there is one; returns the number of finished epochs."""
        if not self.path.is_file():
            return 0
        with np.load(self.path, allow_pickle=False) as kept:
            state = json.loads(str(kept["state"]))
            for index, variable in enumerate(self._variables()):
                variable.assign(kept[f"v{index}"])
        self.curves = state["curves"]
        if self.training.decay is not None:
            self.training.decay.load_state_dict(state["decay"])
        return int(state["epoch"])


def norms(model: keras.Model) -> list[keras.layers.Layer]:
    """The trainable batch normalizations of a model."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in flat_layers(model) if isinstance(layer, kind) and layer.trainable]


class Frozen:
    """Layers that are not trained within a `with` block.

    Args:
        layers: the layers; those that are frozen already are left as they are.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer]):
        self.layers = [layer for layer in layers if layer.trainable]

    def __enter__(self) -> None:
        for layer in self.layers:
            layer.trainable = False

    def __exit__(self, *_: Any) -> None:
        for layer in self.layers:
            layer.trainable = True
