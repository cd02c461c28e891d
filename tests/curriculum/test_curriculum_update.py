"""The callback that follows a curriculum: logs, adaptive paces, new scores, histograms."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfkd
from tfkd import schedules
from tfkd.callbacks import CurriculumUpdate
from tfkd.curriculum import AdaptivePace, Curriculum

X, Y = toys.data(40)


def curriculum(pace, **options):
    return Curriculum((X, Y), np.arange(40.0), pace, 8, balance_classes=False, **options)


def train(paced, epochs, update, student=None, others=(), **kwargs):
    distiller = tfkd.Distiller(
        toys.net(8, seed=2), student or toys.net(4), tfkd.losses.LogitsDistillation(2.0)
    )
    distiller.compile("sgd", toys.CROSSENTROPY, ["accuracy"])
    return distiller.fit(
        paced.batches(),
        steps_per_epoch=paced.steps_per_epoch,
        epochs=epochs,
        verbose=0,
        callbacks=[update, *others],
        **kwargs,
    ).history


def test_the_fraction_is_that_of_the_last_step_of_the_epoch():
    paced = curriculum(schedules.Linear(0.2, 1.0, end_step=10))
    update = CurriculumUpdate(paced)
    history = train(paced, 3, update)
    np.testing.assert_allclose(history["fraction"], [0.2 + 0.08 * 4, 0.2 + 0.08 * 9, 1.0])
    assert update.history == list(enumerate(history["fraction"]))


def test_a_run_that_goes_on_begins_at_its_step():
    paced = curriculum(schedules.Linear(0.2, 1.0, end_step=10))
    np.testing.assert_allclose(
        train(paced, 1, CurriculumUpdate(paced, start_step=5))["fraction"], [0.92]
    )


def test_an_adaptive_pace_sees_the_logs_of_validation():
    paced = curriculum(AdaptivePace(0.25, 2, monitor="val_accuracy", min_delta=2))
    history = train(paced, 4, CurriculumUpdate(paced), validation_data=(X, Y))
    # No accuracy improves by 2: the first epoch sets the best, each one after it grows.
    assert history["fraction"] == [0.25, 0.25, 0.5, 1.0]


def test_the_student_scores_anew_what_is_hard_for_it():
    paced = curriculum(1.0)
    student = toys.net(4)
    train(paced, 2, CurriculumUpdate(paced, refresh_every=2), student)
    np.testing.assert_allclose(paced.difficulty, toys.crossentropy(Y, student(X)), rtol=1e-4)
    np.testing.assert_array_equal(paced.difficulty[paced.ranking], np.sort(paced.difficulty))


def test_a_scorer_of_the_user():
    paced = curriculum(1.0)
    calls = []

    def score(model, x, y, preprocess, progress):
        calls.append((model.name, x.shape, progress))
        return -np.arange(len(x))

    student = toys.net(4, name="mine")
    train(paced, 4, CurriculumUpdate(paced, refresh_every=2, score=score), student)
    assert calls == [("mine", (40, 5), False)] * 2
    np.testing.assert_array_equal(paced.ranking, np.arange(40)[::-1])


def test_tensorboard_gets_the_difficulty_of_what_was_seen(tmp_path):
    paced = curriculum(0.25, partial=True)
    board = tfkd.callbacks.TensorBoard(tmp_path, write_graph=False)
    train(paced, 2, CurriculumUpdate(paced, log_dir=tmp_path), others=[board])
    events = EventAccumulator(str(tmp_path / "curriculum"), {"tensors": 0}).Reload()
    histogram = events.Tensors("curriculum/difficulty_seen")
    assert [event.step for event in histogram] == [0, 1]
    buckets = np.frombuffer(histogram[0].tensor_proto.tensor_content, np.float64).reshape(-1, 3)
    assert buckets[:, 2].sum() == 40 and buckets[:, 1].max() <= 9  # 5 batches of the easiest 10
    assert len(events.Tensors("curriculum/fraction")) == len(events.Tensors("curriculum/pool")) == 2
    train_events = EventAccumulator(str(tmp_path / "train"), {"tensors": 0}).Reload()
    assert "epoch_fraction" in train_events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"curriculum": 3}, "`curriculum`"),
        ({"refresh_every": 0}, "`refresh_every`"),
        ({"score": 3}, "`score`"),
        ({"start_step": -1}, "`start_step`"),
        ({"log_dir": 3}, "`log_dir`"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        CurriculumUpdate(**{"curriculum": curriculum(1.0), **arguments})


def test_scoring_needs_labels():
    unlabelled = Curriculum(X, np.arange(40), 1.0, 8, balance_classes=False)
    with pytest.raises(ValueError, match="labels to score by"):
        CurriculumUpdate(unlabelled, refresh_every=1)
