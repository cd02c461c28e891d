"""The plan of a run with its estimated time: one measured step times the steps, no training."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from tfkd import pruning
from tfkd.recipes import fitting, opening, planning, pruning_stage, quantizing, rates, stages
from tfkd.recipes.outcome import InfeasibleError
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.run_folder import RunFolder
from tfkd.recipes.run_state import Run
from tfkd.recipes.training import Training
from tfkd.recipes.voice import Voice
from tfkd.results import Grid, Result


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A stage of a plan.

    Attributes:
        stage: its name.
        does: what it does.
        epochs: passes over the training data, and steps of each; 0 without training.
        steps: steps of an epoch.
        seconds: estimated time of the steps of its training, with the trial of learning rates.
    """

    stage: str
    does: str
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class DryRun(Result, title="Plan of a run"):
    """What a run would do.

    Attributes:
        data: the data, in words.
        planned: the stages.
        pruning: the plan of pruning as text, or why there is none; "" without such a stage.
    """

    data: str
    planned: tuple[PlannedStage, ...]
    pruning: str = ""

    @property
    def seconds(self) -> float:
        """Estimated time of the steps of all trainings."""
        return sum(stage.seconds for stage in self.planned)

    def parts(self) -> Iterator[Any]:
        """The data, the stages, the time, and the plan of pruning."""
        yield self.data
        rows = [
            (s.stage, s.does, s.epochs or None, s.steps or None, _time(s.seconds))
            for s in self.planned
        ]
        yield Grid(("stage", "what it does", "epochs", "steps", "time"), rows, left=2)
        yield (
            f"The steps of the trainings take about {_time(self.seconds) or 'no time'}. Starting "
            "them, scoring, export and measurements come on top: some minutes, more for large "
            "models and detectors."
        )
        if self.pruning:
            yield self.pruning
        yield "Nothing was trained or written."


def plan(recipe: Recipe, voice: Voice) -> DryRun:
    """Opens data and model, plans, and measures a step of each training.

    Args:
        recipe: the recipe.
        voice: for messages.

    Raises:
        ValueError: as `run`.
    """
    opened = opening.opened(recipe)
    with tempfile.TemporaryDirectory() as folder:
        made = RunFolder.create(pathlib.Path(folder) / "run", recipe)
        going = Run(recipe, made, voice, opened)
        found, text = [], ""
        model: Any = None
        settings: Any
        for settings in recipe.stages:
            training: Training | None = None
            tries = False
            name = settings.stage
            if name == "train_teacher":
                training = fitting.teacher_training(going, settings)
                going.__dict__["original"] = training.student
            elif name == "distil":
                training = fitting.student_training(going, settings)
                model = training.student
            elif name == "prune":
                model, text = _pruned(going, settings, model)
                tries = settings.learning_rate is None  # tried in the run; here counted
                settings = dataclasses.replace(settings, learning_rate=rates.USUAL)
                if settings.epochs:
                    training, _ = pruning_stage.recovery(going, settings, model, settings.epochs)
            elif name == "quantize" and settings.epochs:
                with warnings.catch_warnings():  # on a network that has not been trained
                    warnings.simplefilter("ignore")
                    q, like = quantizing.quantized(going, settings, model)
                training = going.taught(name, settings, q, like, name, settings.epochs)
            found.append(_planned(settings, training, tries))
        return DryRun(str(going.task.found), tuple(found), text)


def _pruned(going: Run, settings: stages.Prune, model: Any) -> tuple[Any, str]:
    """The cut network, and the plan as text."""
    model = going.current("prune") if model is None else model
    try:
        made = planning.planned(going, model, settings)
    except InfeasibleError as error:
        return model, f"INFEASIBLE: {error}"
    return pruning.shrink(model, pruning.select(model, made)), made.text()


def _planned(settings: Any, training: Training | None, tries: bool) -> PlannedStage:
    if training is None:
        return PlannedStage(settings.stage, settings.does)
    seconds = training.seconds()
    if tries:
        steps = len(rates.RATES) * rates.steps_of(training)
        seconds *= 1 + steps / (training.steps * training.epochs)
    return PlannedStage(settings.stage, settings.does, training.epochs, training.steps, seconds)


def _time(seconds: float) -> str:
    """Seconds as text, no more precise than an estimate is."""
    if seconds <= 0:
        return ""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
