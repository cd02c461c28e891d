"""The stage that removes filters: at once or by decay, then training with the original."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import tf_keras as keras

from tfkd import artifacts, callbacks, pruning
from tfkd.networks import keras_files
from tfkd.networks.frozen_copy import frozen_copy
from tfkd.recipes import planning, temperature
from tfkd.recipes.run_state import Done, Run, thaw
from tfkd.recipes.stages import DECAY_BELOW, DECAY_FROM, Prune
from tfkd.recipes.training import Training

_DECAYS = 16  # intervals in which filters decay: 13 and 27 were alike, 7 and 4 worse
_COMPARED = 64  # examples on which the cut and the masked network must be equal


def prune(run: Run, settings: Prune) -> Done:
    """Removes filters, and trains."""
    model = run.current("prune")
    plan = planning.planned(run, model, settings)
    run.voice.say(planning.sentence(plan))
    record: dict[str, Any] = {"curves": {}, "layers": _layers(plan), "plan": plan.to_dict()}
    if not any(plan.remove.values()):
        record["score"] = run.task.score(model)
        return Done(run.saved(model, "prune"), record)
    record["method"] = method = _method(run, settings, plan)
    if method == "decay":
        small = _decayed(run, settings, model, plan, record)
        epochs = settings.epochs - _decaying(settings)
    else:
        small = _cut(run, model, pruning.select(model, plan))
        epochs = settings.epochs
    _recalibrated(run, small)
    record["score_at_cut"] = run.task.score(small)
    run.say_score("prune", record["score_at_cut"], ", at the cut")
    if epochs:
        training, frozen = recovery(run, settings, small, epochs)
        name = "prune_recover.npz"
        record["curves"]["prune"] = training.run(run.folder.work(name), run.logs, run.voice)
        record |= {"teacher": training.teacher, "learning_rate": training.rate}
        thaw(frozen)
        if run.task.loss(settings) == "dist":
            record["temperature"] = temperature.scale(run, "prune", small)
    record["score"] = run.task.score(small)
    run.say_score("prune", record["score"])
    return Done(run.saved(small, "prune"), record)


def _method(run: Run, settings: Prune, plan: pruning.Plan) -> str:
    """How filters are removed: as the recipe says, or by how much goes."""
    if settings.method is not None:
        return settings.method
    count = len(run.task.found.train)
    if plan.macs_reduction < DECAY_FROM or count >= DECAY_BELOW or settings.epochs < 2:
        return "hard"
    run.voice.say(
        f"prune: filters decay first, as {DECAY_FROM:.0%} of the MACs or more go, and fewer than "
        f"{DECAY_BELOW:,} examples are trained on"
    )
    return "decay"


def _decaying(settings: Prune) -> int:
    """Epochs in which filters decay."""
    return max(settings.epochs // 4, 1)


def recovery(
    run: Run, settings: Prune, small: keras.Model, epochs: int
) -> tuple[Training, list[Any]]:
    """The training of the cut network, and the layers that are frozen in it."""
    frozen = run.frozen_norms(small, settings.freeze_batch_norm)
    return run.taught("prune", settings, small, small, "prune", epochs), frozen


def _cut(run: Run, model: keras.Model, selection: pruning.Selection) -> keras.Model:
    with warnings.catch_warnings():
        # The accuracy at the cut, which is said, tells more than how far outputs moved.
        warnings.filterwarnings("ignore", "shrink: ")
        return pruning.shrink(model, selection, verify=run.task.calibration(_COMPARED))


def _rate_of_cut(run: Run, settings: Prune, model: keras.Model, plan: pruning.Plan) -> float | None:
    """The rate at which the cut network learns best: while filters decay it becomes that one.

    The trial is that of the training after the decay, which finds its result.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    small = _cut(run, model, pruning.select(model, plan))
    _recalibrated(run, small)
    training, _ = recovery(run, settings, small, settings.epochs - _decaying(settings))
    return training.rate


def _decayed(
    run: Run, settings: Prune, model: keras.Model, plan: pruning.Plan, record: dict[str, Any]
) -> keras.Model:
    """Decays filters to zero in the first quarter of the epochs, and cuts them out."""
    done = run.folder.work("cut.keras")
    if done.is_file():  # a backup of the epochs after it
        kept = artifacts.verify(done)
        record["curves"]["prune_decay"], record["decay"] = kept["curves"], kept["decay"]
        return keras_files.load("prune", done)
    epochs = _decaying(settings)
    frozen = run.frozen_norms(model, settings.freeze_batch_norm)
    like = frozen_copy(model)
    rate = _rate_of_cut(run, settings, model, plan)
    training = run.taught("prune", settings, model, like, "prune_decay", epochs, rate)
    schedule = pruning.AnnealedFilterDecay(
        target_sparsity=min(max(plan.filter_rate, 1e-6), 1 - 1e-6),
        begin_step=0,
        end_step=epochs * training.steps,
        frequency=max(epochs * training.steps // _DECAYS, 1),
    )
    decay = callbacks.FilterDecay(plan, schedule, log_dir=run.logs / "decay", log_scores=False)
    training = dataclasses.replace(training, decay=decay)
    curves = training.run(run.folder.work("prune_decay.npz"), run.logs, run.voice)
    thaw(frozen)
    record["curves"]["prune_decay"] = curves
    record["decay"] = [list(entry) for entry in decay.history]
    small = _cut(run, model, decay.selection)
    with artifacts.atomic_path(done) as temporary:
        small.save(temporary)
    artifacts.write_manifest(done, {}, curves=curves, decay=record["decay"])
    return small


def _recalibrated(run: Run, small: keras.Model) -> None:
    """Estimates the batch statistics anew where that makes the cut network better."""
    if not any(hasattr(layer, "moving_mean") for layer in small.submodules):
        return
    before, weights = run.task.score(small, "val"), small.get_weights()
    pruning.recalibrate(small, run.task.calibration(1024))
    if run.task.score(small, "val") < before:
        small.set_weights(weights)


def _layers(plan: pruning.Plan) -> list[dict[str, Any]]:
    """Filters before and after, of each group."""
    return [
        {"layer": g.name, "before": g.size, "after": g.size - plan.remove[g.name]}
        for g in plan.graph.groups
    ]
