"""`Distiller.fit` on a Curriculum: as with its batches and callback, and as one stage."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd import schedules
from tfkd.callbacks import CurriculumUpdate
from tfkd.curriculum import AdaptivePace, Curriculum, Stage

X, Y = toys.data(40)
PACE = schedules.Linear(0.2, 1.0, end_step=10)


def curriculum(pace=PACE, data=(X, Y)):
    return Curriculum(data, np.arange(40.0), pace, 8, balance_classes=False)


def make():
    loss = tfkd.losses.LogitsDistillation(2.0)
    distiller = tfkd.Distiller(toys.net(8, seed=2), toys.net(4), loss)
    distiller.compile(keras.optimizers.Adam(0.01), toys.CROSSENTROPY, ["accuracy"])
    return distiller


def fit(*args, distiller=None, **kwargs):
    distiller = distiller or make()
    history = distiller.fit(*args, verbose=0, **kwargs).history
    return distiller, history


@pytest.mark.parametrize(
    "weights",
    [pytest.param((), marks=pytest.mark.slow), (np.linspace(0, 2, 40),)],
    ids=["plain", "weighted"],
)
def test_it_is_what_batches_and_a_stage_do(weights):
    data = (X, Y, *(w.astype("float32") for w in weights))
    direct, history = fit(curriculum(data=data), epochs=3, validation_data=(X, Y))
    np.testing.assert_allclose(history["fraction"], [0.2 + 0.08 * 4, 0.2 + 0.08 * 9, 1.0])

    paced = curriculum(data=data)
    by_hand, expected = fit(
        paced.batches(), steps_per_epoch=5, epochs=3, validation_data=(X, Y),
        callbacks=[CurriculumUpdate(paced)],
    )  # fmt: skip
    assert list(history) == list(expected)
    for name, values in expected.items():
        assert history[name] == pytest.approx(values, rel=1e-5), name
    toys.assert_same_weights(direct.student, by_hand.student)

    staged = tfkd.ProgressiveDistiller(
        toys.net(8, seed=2), toys.net(4), [Stage(3)], tfkd.losses.LogitsDistillation(2.0)
    )
    staged.compile(keras.optimizers.Adam(0.01), toys.CROSSENTROPY, ["accuracy"])
    found = staged.fit(curriculum(data=data), validation_data=(X, Y), verbose=0).history
    assert found["fraction"] == pytest.approx(history["fraction"])
    toys.assert_same_weights(direct.student, staged.student)


def test_initial_epoch_begins_at_its_step():
    whole, history = fit(curriculum(), epochs=3)
    data, parts = curriculum(), make()
    fit(data, distiller=parts, epochs=1)
    _, rest = fit(data, distiller=parts, epochs=3, initial_epoch=1)
    assert rest["fraction"] == pytest.approx(history["fraction"][1:])
    toys.assert_same_weights(whole.student, parts.student)


@pytest.mark.parametrize("save_freq", [pytest.param("epoch", marks=pytest.mark.slow), 1])
def test_a_training_that_broke_off_is_resumed_at_its_step(tmp_path, save_freq):
    class Break(keras.callbacks.Callback):
        left = 7

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, save_freq=save_freq)

    whole, history = fit(curriculum(), epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(curriculum(), epochs=3, callbacks=[backup(), Break()])
    resumed, rest = fit(curriculum(), epochs=3, callbacks=[backup()])
    assert rest["fraction"] == pytest.approx(history["fraction"][1:])
    toys.assert_same_weights(whole.student, resumed.student)


def test_an_adaptive_pace_is_updated():
    data = curriculum(AdaptivePace(0.25, 2, monitor="val_accuracy", min_delta=2))
    _, history = fit(data, epochs=4, validation_data=(X, Y))
    assert history["fraction"] == [0.25, 0.25, 0.5, 1.0]


def test_an_update_of_the_user_is_the_only_one():
    data = curriculum()
    scored = []

    def score(model, x, y, preprocess=None, progress=False):
        scored.append(model.name)
        return -np.arange(40.0)

    update = CurriculumUpdate(data, refresh_every=1, score=score)
    fit(data, epochs=2, callbacks=[update])
    assert len(scored) == 2
    assert len(update.history) == 2


def test_on_two_replicas_the_batches_are_the_same(two_replicas):
    one, _ = fit(curriculum(), epochs=2)
    with two_replicas.scope():
        both = make()
    fit(curriculum(), epochs=2, distiller=both)
    toys.assert_same_weights(one.student, both.student, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((Y,), {}, "`y`.*Curriculum"),
        ((), {"batch_size": 8}, "`batch_size`"),
        ((None, 8), {}, "`batch_size`"),
        ((), {"sample_weight": np.ones(40)}, "`sample_weight`"),
        ((), {"validation_split": 0.5}, "`validation_split`"),
        ((), {"validation_data": curriculum(1.0)}, "`validation_data`.*held-out"),
    ],
)
def test_what_a_curriculum_has_itself_is_refused(args, kwargs, words):
    with pytest.raises(TypeError, match=words):
        make().fit(curriculum(), *args, verbose=0, **kwargs)


def test_what_would_go_wrong_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`x`.*held-out"):
        make().evaluate(curriculum())
    with pytest.raises(ValueError, match="from 0 to 2"):
        make().fit(curriculum(data=(X, Y + 5)))
    with pytest.raises(ValueError, match="the Curriculum that is trained on"):
        make().fit(curriculum(), callbacks=[CurriculumUpdate(curriculum())])
    adaptive = curriculum(AdaptivePace(0.25, 2))
    with pytest.raises(ValueError, match="backup_dir"):
        make().fit(adaptive, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])


def test_batches_from_a_variable_begin_where_it_stands():
    data, start = curriculum(), tf.Variable(0, dtype=tf.int64)
    batches = data.batches(start)
    for step in (0, 7):
        start.assign(step)
        found = next(iter(batches))[0].numpy()
        np.testing.assert_array_equal(found, X[data.indices(step)])
