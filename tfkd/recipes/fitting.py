"""The stages that train from random weights: a teacher on the labels, a student with it."""

from __future__ import annotations

from typing import Any

from tfkd.recipes import temperature
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import Distil, TrainTeacher
from tfkd.recipes.task import Task
from tfkd.recipes.training import Training


def check_networks(recipe: Recipe, task: Task) -> None:
    """Builds the networks that a recipe names, and compares their outputs with the data.

    Raises:
        FileNotFoundError, ValueError: if one can't be built. Nothing was trained then.
    """
    for stage, field in (("train_teacher", "network"), ("distil", "student")):
        settings = recipe.stage(stage)
        if settings is not None:
            model = task.network(getattr(settings, field), is_teacher=field == "network")
            task.compile_alone(model, task.optimizer(settings.learning_rate, 1))


def teacher_training(run: Run, settings: TrainTeacher) -> Training:
    """The training of a new teacher."""
    task = run.task
    model = task.network(settings.network, is_teacher=True)
    optimizer = task.optimizer(settings.learning_rate, settings.epochs)
    return Training(
        "train_teacher",
        task.compile_alone(model, optimizer),
        model,
        lambda first: task.batches(settings.views, first),
        task.steps,
        settings.epochs,
        task.validation(),
    )


def student_training(run: Run, settings: Distil) -> Training:
    """The training of a new student."""
    student = run.task.network(settings.student, is_teacher=False)
    return run.taught("distil", settings, student, student, "distil", settings.epochs)


def train_teacher(run: Run, settings: TrainTeacher) -> Done:
    """Trains a teacher."""
    return _trained(run, "train_teacher", teacher_training(run, settings))


def distil(run: Run, settings: Distil) -> Done:
    """Distils a student."""
    return _trained(run, "distil", student_training(run, settings), run.task.loss(settings))


def _trained(run: Run, stage: str, training: Training, loss: str | None = None) -> Done:
    curves = training.run(run.folder.work(f"{stage}.npz"), run.logs, run.voice)
    record: dict[str, Any] = {"curves": {stage: curves}, "teacher": training.teacher}
    if loss == "dist":
        record["temperature"] = temperature.scale(run, stage, training.student)
    record |= {"steps_per_epoch": training.steps, "score": run.task.score(training.student)}
    run.say_score(stage, record["score"])
    return Done(run.saved(training.student, stage), record)
