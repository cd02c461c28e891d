"""The learning rate of a recovery: that of several with the lowest validation loss in a trial.

How much of a network a cut has destroyed decides which rate is best: a network that is
hardly hurt is ruined by the rate that one needs which has lost everything.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import artifacts
from tfkd.recipes.training import Training
from tfkd.recipes.voice import Progress, Voice

RATES = (1e-2, 2e-3, 5e-4, 1e-4)
USUAL = 5e-4  # without validation data, by which a trial would choose
# Steps of the trial of one rate: a part of those of the training, between two numbers.
PART, LEAST, MOST = 0.1, 20, 150


def steps_of(training: Training) -> int:
    """Steps of the trial of one rate."""
    return int(np.clip(PART * training.steps * training.epochs, LEAST, MOST))


def best(
    training: Training, kept: pathlib.Path, voice: Voice
) -> tuple[float, dict[str, float | None]]:
    """Tries each rate for a few steps, from the same weights, with the cosine of a training.

    Args:
        training: compiled with an optimizer whose learning rate can be set. It has its
            weights again afterwards.
        kept: a file for the result, so that a run that goes on does not try again.
        voice: for progress.

    Returns:
        The best rate, and rate → validation loss after its trial (None: not finite).
    """
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        return found["rate"], found["losses"]
    model = training.trained
    steps = steps_of(training)
    weights, losses = training.student.get_weights(), {}
    model.optimizer.build(model.trainable_variables)
    start = [v.numpy() for v in model.optimizer.variables]
    with voice.progress(steps * len(RATES), f"{training.name}: learning rate") as bar:
        for done, rate in enumerate(RATES):
            training.student.set_weights(weights)
            for variable, value in zip(model.optimizer.variables, start, strict=True):
                variable.assign(value)
            used = [_Cosine(rate, steps), Progress(bar, steps, done)]
            model.fit(
                training.batches(0), steps_per_epoch=steps, epochs=1, verbose=0, callbacks=used
            )
            tested = model.evaluate(training.validation, return_dict=True, verbose=0)
            losses[f"{rate:g}"] = float(tested["loss"])
    training.student.set_weights(weights)
    finite = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    rate = float(min(finite, key=lambda name: finite[name])) if finite else RATES[-1]
    shown = {name: finite.get(name) for name in losses}
    artifacts.write_json(kept, {"rate": rate, "losses": shown})
    return rate, shown


class _Cosine(keras.callbacks.Callback):
    """Sets the learning rate of each step."""

    changes_weights = True  # keeps a Distiller from judging a trial

    def __init__(self, rate: float, steps: int):
        super().__init__()
        self.rate, self.steps = rate, steps

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Rate · (1 + cos(π · part of the steps)) / 2."""
        now = 0.5 * self.rate * (1 + np.cos(np.pi * batch / self.steps))
        self.model.optimizer.learning_rate.assign(now)
