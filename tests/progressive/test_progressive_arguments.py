"""What a ProgressiveDistiller refuses, before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY

import tfkd
from tfkd import schedules
from tfkd.curriculum import Curriculum, Stage

X, Y = toys.data(16)


def make(stages=None, losses=None, **kwargs):
    losses = losses or tfkd.losses.LogitsDistillation(2.0)
    stages = [Stage(1)] if stages is None else stages
    return tfkd.ProgressiveDistiller(toys.net(8, seed=2), toys.net(4), stages, losses, **kwargs)


HINT = tfkd.losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stages": []}, "`stages`: expected at least one"),
        ({"stages": [3]}, "`stages`: expected a list of tfkd.curriculum.Stage"),
        (
            {"stages": [Stage(1, distillation_loss_weights=[1, 2])]},
            "expected 1 weights in stage 0, one for each loss",
        ),
        (
            {"stages": [Stage(1), Stage(1, "b", distillation_loss_weights={"logit": 1})]},
            r"names of losses in stage 1 \('b'\).*There are: logits_distillation",
        ),
        ({"stages": [Stage(1, temperature={"hint": 1})]}, "names of losses in stage 0"),
        ({"stages": [Stage(1, temperature=2)], "losses": HINT}, "no loss has a temperature"),
        ({"student_loss_weight": 2}, "`student_loss_weight`"),
        ({"distillation_loss_weights": [1, 2]}, "must match number of"),
    ],
)
def test_bad_constructors(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make(**arguments)


@pytest.mark.parametrize(
    ("stages", "arguments", "words"),
    [
        ([Stage(1, fraction=0.5)], {"x": X, "y": Y}, "Wrap the data: tfkd.curriculum.Curriculum"),
        ([Stage(1)], {"x": "data"}, "a Curriculum, a tf.data.Dataset, a function"),
        ([Stage(1)], {"x": lambda step: None}, "`steps_per_epoch`: expected a number"),
        (
            [Stage(1)],
            {"x": tf.data.Dataset.from_tensors((X, Y)).repeat()},
            "`steps_per_epoch`.*an endless data set",
        ),
        (
            [Stage(1, decay=tfkd.progressive.Decay({"filter_rate": 0.5}))],
            {"x": tf.data.Dataset.from_tensors((X, Y)).filter(lambda x, y: True)},
            "`steps_per_epoch`: expected a number: a decay is spread over",
        ),
        ([Stage(1)], {"x": X, "y": Y, "epochs": 3}, "Each Stage has epochs of its own"),
        (
            [Stage(1), Stage(1, fraction=schedules.Linear(0.1, 1.0, end_step=10))],
            {"x": Curriculum((X, Y), Y, 1.0, 8)},
            "at least one batch of 8 in play",
        ),
        ([Stage(1)], {"x": X, "y": Y, "backup_dir": 3}, "`backup_dir`"),
    ],
)
def test_bad_fits(stages, arguments, words):
    distiller = make(stages)
    distiller.compile("sgd", CROSSENTROPY)
    before = toys.weights_of(distiller.student)
    with pytest.raises((ValueError, TypeError), match=words):
        distiller.fit(**arguments, verbose=0)
    toys.assert_untouched(before, distiller.student)


def test_fit_wants_compile_first():
    with pytest.raises(RuntimeError, match="call `compile` before `fit`"):
        make().fit(X, Y)


def test_fit_runs_the_stages_once():
    distiller = make()
    distiller.compile("sgd", CROSSENTROPY)
    distiller.fit(X, Y, verbose=0)
    with pytest.raises(RuntimeError, match=r"have been trained \(1 epochs\).*distiller.fit"):
        distiller.fit(X, Y, verbose=0)
    assert len(distiller.distiller.fit(X, Y, verbose=0).history["loss"]) == 1


def test_a_legacy_optimizer_is_refused():
    with pytest.raises(TypeError, match="legacy: those are not supported"):
        make().compile(keras.optimizers.legacy.SGD(0.1), CROSSENTROPY)


def test_a_file_of_the_distiller_goes_on_in_its_stage(tmp_path):
    distiller = make([Stage(1, temperature=8.0), Stage(1, learning_rate=0.5)])
    distiller.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    distiller.fit(X, Y, verbose=0)
    distiller.distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert loaded.scheduled_values() == distiller.distiller.scheduled_values()
    assert float(loaded.optimizer._learning_rate(99)) == 0.5
    np.testing.assert_allclose(loaded.predict(X, verbose=0), distiller.predict(X, verbose=0))
