"""`run` and `resume`: the stages of a recipe in order, each finished one kept for good."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras as keras

from tfkd import checks, fingerprints
from tfkd.networks.layer_parts import flat_layers
from tfkd.recipes import (
    exporting,
    fitting,
    judging,
    opening,
    pruning_stage,
    quantizing,
    reporting,
    stages,
)  # fmt: skip
from tfkd.recipes.data import warn_of_guessing
from tfkd.recipes.outcome import InfeasibleError, Outcome
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.run_folder import DONE, FAILED, INTERRUPTED, RECIPE, RunFolder, refuse_used
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.voice import Plain, Voice
from tfkd.types import Path

_MAKERS: Mapping[str, Callable[[Run, Any], Done]] = {
    "train_teacher": fitting.train_teacher,
    "distil": fitting.distil,
    "prune": pruning_stage.prune,
    "quantize": quantizing.quantize,
    "export": exporting.export_files,
    "verify": judging.verify,
    "report": reporting.write_page,
}


def run(
    recipe: Recipe, output: Path, *, voice: Voice | None = None, command: str | None = None
) -> Outcome:
    """Runs a recipe.

    Args:
        recipe: the recipe.
        output: a new or empty folder, for everything that the run makes.
        voice: where messages and progress go; None: messages on standard error.
        command: the command line, for run.json.

    Returns:
        The `Outcome`; `print` it.

    Raises:
        FileNotFoundError: if data or model are not there.
        ValueError: if they can't be used, `output` holds anything, or a training diverges.
        OSError: if the disk is full. What is finished is kept; see `resume`.

    Example:
        >>> import tempfile
        >>> from tfkd.recipes import Recipe, voice
        >>> teacher = {"stage": "train_teacher", "network": "mlp:8", "epochs": 1}
        >>> recipe = Recipe.from_dict({"data": "digits", "batch_size": 256, "stages": [teacher]})
        >>> outcome = recipe.run(tempfile.mkdtemp(), voice=voice.Plain(quiet=True))
        >>> outcome.status, list(outcome.files)
        ('DONE', ['teacher'])
    """
    checks.instance("recipe", recipe, Recipe, "a tfkd.recipes.Recipe")
    refuse_used(pathlib.Path(output), recipe)
    opened = opening.opened(recipe)  # before anything is written
    fitting.check_networks(recipe, opened[0])
    folder = RunFolder.create(output, recipe, command)
    recipe.save(folder.file(RECIPE))
    return _go_on(Run(recipe, folder, voice or Plain(), opened))


def resume(output: Path, *, voice: Voice | None = None) -> Outcome:
    """Goes on with a run that was killed, from the last finished stage or epoch.

    Args:
        output: its folder.
        voice: as for `run`.

    Raises:
        ValueError: if the folder holds no run, another process is at it, or its files, the
            recipe, the data or the model have changed; and as `run`.
    """
    folder = RunFolder.open(output)
    voice = voice or Plain()
    folder.check_recipe()
    if folder.document["status"] == DONE:
        voice.say(f"{folder.path}: this run is finished")
        return outcome_of(folder)
    folder.check_files()
    recipe = folder.recipe
    try:
        opened = opening.opened(recipe)
    except FileNotFoundError as error:
        hint = "Resume a run in the folder in which it was started: its paths begin there."
        raise FileNotFoundError(f"{error} {hint}") from error
    return _go_on(Run(recipe, folder, voice, opened))


def _go_on(going: Run) -> Outcome:
    folder = going.folder
    with folder.locked():
        try:
            _check_sources(going)
            for settings in going.recipe.stages:
                if not folder.is_done(settings.stage):
                    _stage(going, settings)
            folder.end(DONE, _verdict(folder))
        except InfeasibleError as error:
            folder.end(DONE, {"status": "INFEASIBLE", "sentence": f"INFEASIBLE: {error}",
                              "gate": error.gate, "least": error.least})  # fmt: skip
        except KeyboardInterrupt:
            folder.end(INTERRUPTED)
            raise
        except Exception:
            folder.end(FAILED)
            raise
    return outcome_of(folder)


def _check_sources(going: Run) -> None:
    """Writes down the hashes of data and model, or compares them with those of the start."""
    going.voice.say(f"data: {going.task.found}")
    scaling = getattr(going.task, "scaling", None)
    if scaling is not None:
        going.voice.say(str(scaling))
    going.folder.check_same("data", going.task.found.fingerprint)
    if going.recipe.model is not None:
        model = going.original
        digest = fingerprints.digest(model) if isinstance(model, keras.Model) else "not hashed"
        going.folder.check_same("model", digest)
        _check_score(going, model)


def _check_score(going: Run, model: Any) -> None:
    """Says how good the model is before anything is done to it, and warns if it guesses."""
    task = going.task
    if not isinstance(model, keras.Model) or going.folder.is_done(going.recipe.stages[0].stage):
        return
    score = task.score(model, "val")
    going.voice.say(
        f"{going.recipe.model}: {task.measure} {100 * score:.2f} on the validation part"
    )
    labels = None if task.kind == "boxes" else task.found.val.y
    warn_of_guessing(str(going.recipe.model), score, labels)
    _say_frozen(going, model)


def _say_frozen(going: Run, model: keras.Model) -> None:
    """Warns of layers that are frozen in the model and are trained all the same."""
    if not any(stage.epochs for stage in map(going.recipe.stage, ("prune", "quantize")) if stage):
        return
    pairs = zip(flat_layers(model), flat_layers(going.current("prune")), strict=True)
    frozen = [
        old.name
        for old, new in pairs
        if not old.trainable and new.trainable_weights and len(flat_layers(old)) == 1
    ]
    if frozen:
        shown = ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else "")
        checks.warn(
            f"{going.recipe.model}: frozen layers ({len(frozen)}: {shown}) are trained here, too, "
            "since all layers make up for what pruning and rounding take. They are trainable in "
            "the models that the run writes."
        )


def _stage(going: Run, settings: Any) -> None:
    """Runs one stage, with the same random numbers in every run of the seed."""
    name = settings.stage
    keras.backend.clear_session()
    keras.utils.set_random_seed(going.recipe.seed * len(stages.NAMES) + stages.NAMES.index(name))
    going.folder.start(name)
    start = time.monotonic()
    done = _MAKERS[name](going, settings)
    going.folder.finish(name, done.files, done.record, time.monotonic() - start)


def _verdict(folder: RunFolder) -> dict[str, Any]:
    record = folder.record("verify")
    if not record:
        return {"status": "DONE", "sentence": "DONE: no stage 'verify' judges this run."}
    return {"status": record["verdict"]["status"], "sentence": record["sentence"]}


def outcome_of(folder: RunFolder) -> Outcome:
    """The outcome of a run that has ended."""
    document = folder.document
    files = {
        what: str(folder.file(name))
        for entry in document["stages"].values()
        for what, name in entry.get("files", {}).items()
    }
    record, table = folder.record("verify"), None
    if record:
        table = judging.restored(record)[0]
    verdict = document["verdict"]
    advice = record.get("advice", "") if record else ""
    return Outcome(verdict["status"], verdict["sentence"], folder.path, files, table, advice)
