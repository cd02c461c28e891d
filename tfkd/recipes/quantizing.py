"""The stage that rounds to 8 bits: quantize, calibrate, and train with the original."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfkd import quantization
from tfkd.recipes.run_state import Done, Run
from tfkd.recipes.stages import Quantize


def quantized(
    run: Run, settings: Quantize, model: keras.Model | None = None
) -> tuple[keras.Model, keras.Model]:
    """The calibrated model, and the float model that it was made from (None: the current one)."""
    model = run.current("quantize") if model is None else model
    q = quantization.quantize(
        model,
        target=run.recipe.target,
        fallback=settings.fallback,
        skip=settings.skip,
        freeze_batch_norm=settings.freeze_batch_norm,
    )
    quantization.calibrate(q, run.task.calibration(settings.calibration), settings.method)
    return q, model


def quantize(run: Run, settings: Quantize) -> Done:
    """Quantizes, calibrates, and trains."""
    q, model = quantized(run, settings)
    record: dict[str, Any] = {"curves": {}, "decisions": q.report.to_dict()["rows"]}
    record["score_calibrated"] = run.task.score(q)
    run.say_score("quantize", record["score_calibrated"], ", after calibration")
    if settings.epochs:
        training = run.taught("quantize", settings, q, model, "quantize", settings.epochs)
        calibrated, before = q.get_weights(), run.task.score(q, "val")
        backup = run.folder.work("quantize.npz")
        record["curves"]["quantize"] = training.run(backup, run.logs, run.voice)
        record["teacher"] = training.teacher
        record["score_trained"] = run.task.score(q)
        if run.task.score(q, "val") < before:
            run.voice.say("quantize: training did not help; the calibrated model is kept")
            q.set_weights(calibrated)
    record["score"] = run.task.score(q)
    run.say_score("quantize", record["score"])
    return Done(run.saved(q, "quantize"), record)
