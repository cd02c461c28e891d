"""`Run`: what the stages of a run share: data, models, folder, messages."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import tf_keras as keras

from tfkd import quantization
from tfkd.networks import keras_files
from tfkd.networks.frozen_copy import frozen_copy
from tfkd.recipes import fast_teacher, rates
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.run_folder import RunFolder
from tfkd.recipes.task import CLIPNORM, Task
from tfkd.recipes.training import Training, norms
from tfkd.recipes.voice import Voice

# The file of the model that a stage of training makes, in their order.
MODELS = {
    "train_teacher": "teacher.keras",
    "distil": "student.keras",
    "prune": "pruned.keras",
    "quantize": "quantized.npz",
}


@dataclasses.dataclass
class Done:
    """What a stage made.

    Attributes:
        files: what the files are → their names in the folder.
        record: what it measured, as JSON values; see `tfkd.recipes.reporting`.
    """

    files: dict[str, str] = dataclasses.field(default_factory=dict)
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Run:
    """A run in progress.

    Attributes:
        recipe: the recipe.
        folder: its folder.
        voice: for messages and progress.
        opened: what `opening.opened` returned: the task, and the model or None.
    """

    recipe: Recipe
    folder: RunFolder
    voice: Voice
    opened: tuple[Task, Any]

    @property
    def task(self) -> Task:
        """The data."""
        return self.opened[0]

    @property
    def logs(self) -> pathlib.Path:
        """The folder for TensorBoard."""
        return self.folder.file("logs")

    @functools.cached_property
    def original(self) -> Any:
        """The model that the recipe names, or the teacher that it trained."""
        if self.opened[1] is not None:
            return self.opened[1]
        return self.loaded("train_teacher")

    def current(self, before: str) -> keras.Model:
        """A new, trainable copy of the model that the stages before one have made."""
        for stage in reversed(list(MODELS)[: list(MODELS).index(before)]):
            if self.folder.is_done(stage) and self.recipe.stage(stage):
                return self.loaded(stage)
        copy = frozen_copy(self.original)
        copy.trainable = True
        return copy

    def final(self) -> keras.Model:
        """The model that is exported."""
        if self.recipe.stage("quantize") and self.folder.is_done("quantize"):
            return quantization.load(self.folder.file(MODELS["quantize"]))
        return self.current("quantize")

    def loaded(self, stage: str) -> keras.Model:
        """The float model that a stage made."""
        return keras_files.load(stage, self.folder.file(MODELS[stage]))

    def saved(self, model: keras.Model, stage: str) -> dict[str, str]:
        """Writes the model of a stage; returns its entry of `Done.files`."""
        from tfkd import artifacts

        name = MODELS[stage]
        kind = pathlib.Path(name).stem
        if name.endswith(".npz"):
            quantization.save(model, self.folder.file(name))
            return {kind: name}
        with artifacts.atomic_path(self.folder.file(name)) as temporary:
            model.save(temporary)
        encoder = getattr(self.task, "encoder", None)
        if encoder is None:
            return {kind: name}
        words = f"{name}.encoder.json"
        encoder.save(self.folder.file(words))
        return {kind: name, f"{kind} tokenizer": words}

    def say_score(self, stage: str, score: float, when: str = "") -> None:
        """Says the score of a stage's model on the test part, 0 to 1."""
        self.voice.say(f"{stage}: {self.task.measure} {100 * score:.2f} on the test part{when}")

    def taught(
        self, stage: str, settings: Any, student: keras.Model, like: keras.Model, name: str,
        epochs: int, usual_rate: float | None = None,
    ) -> Training:  # fmt: skip
        """A training of a student with the original as teacher.

        Args:
            stage: the stage.
            settings: its settings; without a learning rate, the best of a trial is taken.
            student: what is trained; frozen batch normalizations are frozen in it already.
            like: a float model with outputs of the same kind.
            name: name of the training.
            epochs: its epochs.
            usual_rate: the learning rate in place of a trial.
        """
        task, rate = self.task, settings.learning_rate or usual_rate
        cache = self.folder.work(f"{stage}_teacher")
        teacher, batches, how = fast_teacher.choose(task, self.original, settings.views, cache)
        self.voice.say(f"{name}: teacher: {how}")
        loss = task.loss(settings)
        if loss is not None and self.folder.decide(stage, "loss", loss):
            labels = settings.label_weight
            self.voice.say(f"{stage}: loss: {labels:g} × labels + {1 - labels:g} × {loss}")
        tested = task.validation()
        made = Training(name, student, student, batches, task.steps, epochs, tested, teacher=how)
        if rate is None and tested is None:
            rate = rates.USUAL
        if rate is None:
            adam = keras.optimizers.Adam(clipnorm=CLIPNORM)
            trial = task.distiller(teacher, student, like, settings, adam)
            made = dataclasses.replace(made, trained=trial)
            rate, losses = rates.best(made, self.folder.work(f"{name}_rate.json"), self.voice)
            shown = ", ".join(f"{r}: {v:.3g}" for r, v in losses.items() if v is not None)
            self.voice.say(f"{name}: learning rate {rate:g}; validation loss in a trial: {shown}")
        optimizer = task.optimizer(rate, epochs)
        distiller = task.distiller(teacher, student, like, settings, optimizer)
        return dataclasses.replace(made, trained=distiller, rate=rate)

    def frozen_norms(self, model: keras.Model, wanted: bool | None) -> list[Any]:
        """Freezes the batch normalizations of a model if that is wanted; returns them.

        Args:
            model: the model.
            wanted: None: if there is little data.
        """
        found = norms(model) if wanted or (wanted is None and self.task.little_data) else []
        for layer in found:
            layer.trainable = False
        return found


def thaw(layers: list[Any]) -> None:
    """Undoes `Run.frozen_norms`."""
    for layer in layers:
        layer.trainable = True
