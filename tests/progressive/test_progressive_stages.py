"""Stages that change values, data and what is trained: against steps made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import CROSSENTROPY

import tfkd
from tfkd import schedules
from tfkd.curriculum import AdaptivePace, Curriculum, Plateau, Reached, Stage
from tfkd.progressive.values import OfStage, Position

X, Y = toys.data(48)
BATCH, STEPS = 8, 6


def logits(temperature=2.0):
    return tfkd.losses.LogitsDistillation(temperature)


def hint(**kwargs):
    return tfkd.losses.FeatureDistillation(
        teacher_layer_name="hidden", student_layer_name="hidden", **kwargs
    )


def batches(start_step=0):
    return tfkd.data.batches(X, Y, BATCH, start_step=start_step)


def make(stages, losses=None, optimizer=None, compile_args=None, **kwargs):
    distiller = tfkd.ProgressiveDistiller(
        toys.net(8, seed=2), toys.net(4), stages, losses or logits(), **kwargs
    )
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.1, 0.9),
        CROSSENTROPY,
        ["accuracy"],
        **(compile_args or {}),
    )
    return distiller


def fit(distiller, **kwargs):
    kwargs = {"x": batches, "steps_per_epoch": STEPS, "verbose": 0, **kwargs}
    return distiller.fit(**kwargs).history


def by_hand(parts, losses=logits, optimizer=None):
    """Plain Distillers on one student, one after the other, with one optimizer."""
    student, optimizer = toys.net(4), optimizer or keras.optimizers.SGD(0.1, 0.9)
    stream = iter(batches())
    for epochs, options in parts:
        options = dict(options)
        rate = options.pop("rate", None)
        temperature = options.pop("temperature", 2.0)
        distiller = tfkd.Distiller(toys.net(8, seed=2), student, losses(temperature), **options)
        if rate is not None:
            optimizer.learning_rate = rate
        distiller.compile(optimizer, CROSSENTROPY)
        for _ in range(epochs * STEPS):
            distiller.train_on_batch(*next(stream))
    return student


def test_values_change_from_stage_to_stage_without_a_new_compilation():
    stages = [
        Stage(2, temperature=8.0, learning_rate=0.05),
        Stage(1, student_loss_weight=0.9),
        Stage(1, distillation_loss_weights=[0.25], temperature={"logits_distillation": 1.0}),
    ]
    distiller = make(stages)
    history = fit(distiller)
    assert distiller.distiller.train_tf_function.experimental_get_tracing_count() == 1
    expected = by_hand(
        [
            (2, {"temperature": 8.0, "rate": 0.05}),
            (1, {"student_loss_weight": 0.9, "rate": 0.1}),
            (1, {"distillation_loss_weights": [0.25], "temperature": 1.0}),
        ]
    )
    toys.assert_same_weights(distiller.student, expected, rtol=1e-5, atol=1e-6)
    assert history["stage"] == [0, 0, 1, 2]
    assert distiller.distiller.scheduled_values() == {
        "student_loss_weight": 0.5,
        "weight/logits_distillation": 0.25,
        "temperature/logits_distillation": 1.0,
    }


def test_schedules_count_from_the_beginning_of_their_stage():
    falling = schedules.Linear(8.0, 2.0, 0, 6)
    distiller = make(
        [Stage(1), Stage(2, temperature=falling, learning_rate=schedules.Linear(0, 1, 0, 12))]
    )
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            step = self.model.optimizer.iterations
            rate = self.model.optimizer._learning_rate(step)
            values = self.model.scheduled_values()
            seen.append((values["temperature/logits_distillation"], float(rate.numpy())))

    fit(distiller, callbacks=[Look()])
    temperatures, rates = zip(*seen, strict=True)
    want = [2.0] * 6 + [8 - s for s in range(6)] + [2.0] * 6
    np.testing.assert_allclose(temperatures, want, rtol=1e-6)
    np.testing.assert_allclose(rates, [0.1] * 6 + [s / 12 for s in range(12)], rtol=1e-6)


def test_the_default_rate_schedule_counts_all_steps():
    whole = keras.optimizers.schedules.PolynomialDecay(0.2, 18, 0.0)
    optimizer = keras.optimizers.SGD(whole)
    distiller = make([Stage(1, learning_rate=0.05), Stage(2)], optimizer=optimizer)
    rate = distiller.distiller.optimizer._learning_rate
    assert float(rate(3)) == pytest.approx(0.05)
    distiller.position.move(1, 6)
    assert float(rate(9)) == pytest.approx(0.1)


def test_hints_first_and_logits_after_with_a_projector_of_its_own():
    losses = [hint(), logits()]
    stages = [
        Stage(2, "hints", distillation_loss_weights=[1, 0], student_loss_weight=0),
        Stage(2, "logits", distillation_loss_weights={"feature_distillation": 0}),
    ]
    distiller = make(stages, losses)
    projector = distiller.distiller.projectors[0]
    start = projector.get_weights()
    scores = distiller.student.get_layer("scores").get_weights()
    ends = {}

    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            ends[len(ends)] = (
                projector.get_weights(),
                self.model.student.get_layer("scores").get_weights(),
            )

    history = fit(distiller, callbacks=[Look()])
    # The hint trains the projector, and does not reach the last layer.
    assert np.abs(ends[0][0][0] - start[0]).max() > 1e-3
    np.testing.assert_array_equal(ends[0][1][0], scores[0])
    assert np.abs(ends[1][1][0] - scores[0]).max() > 1e-3
    assert history["feature_distillation"][1] < history["feature_distillation"][0]
    assert len(distiller.student.weights) == 4


def test_a_stage_has_the_pace_that_it_asks_for():
    scores = np.arange(48)
    paced = Curriculum((X, Y), scores, 1.0, BATCH, balance_classes=False)
    stages = [
        Stage(1, fraction=0.25),
        Stage(2, fraction=schedules.Linear(0.25, 1.0, end_step=11)),
        Stage(1),
    ]
    distiller = make(stages)
    history = distiller.fit(paced, verbose=0).history
    np.testing.assert_allclose(history["fraction"], [0.25, 0.25 + 0.75 * 5 / 11, 1.0, 1.0])
    # The same draws, by hand: the pace of the second stage begins at step 6.
    student, optimizer = toys.net(4), keras.optimizers.SGD(0.1, 0.9)
    plain = tfkd.Distiller(toys.net(8, seed=2), student, logits())
    plain.compile(optimizer, CROSSENTROPY)
    paces = [paced.repaced(0.25), paced.repaced(schedules.Linear(0.25, 1.0, end_step=11), 6), paced]
    for step in range(24):
        rows = paces[0 if step < 6 else 1 if step < 18 else 2].indices(step)
        if step < 6:
            assert rows.max() < 12
        plain.train_on_batch(X[rows], Y[rows])
    toys.assert_same_weights(distiller.student, student, rtol=1e-5, atol=1e-6)


def test_a_frozen_layer_keeps_its_weights_and_is_trained_again_later():
    distiller = make([Stage(1, freeze="hid*"), Stage(1)])
    hidden = distiller.student.get_layer("hidden").get_weights()
    kept = []

    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            kept.append(self.model.student.get_layer("hidden").get_weights())

    fit(distiller, callbacks=[Look()])
    np.testing.assert_array_equal(kept[0][0], hidden[0])
    assert np.abs(kept[1][0] - hidden[0]).max() > 1e-4
    assert distiller.student.get_layer("hidden").trainable
    # The optimizer goes on: its step, and the momentum of what was not frozen.
    assert int(distiller.distiller.optimizer.iterations) == 2 * STEPS


def test_momentum_lives_on_when_layers_are_frozen():
    """As the same optimizer by hand, which knew all variables from the first step."""
    distiller = make([Stage(1), Stage(1, freeze=["hidden"]), Stage(1)])
    fit(distiller)
    student, optimizer = toys.net(4), keras.optimizers.SGD(0.1, 0.9)
    stream = iter(batches())
    for frozen in (False, True, False):
        student.get_layer("hidden").trainable = not frozen
        plain = tfkd.Distiller(toys.net(8, seed=2), student, logits())
        plain.compile(optimizer, CROSSENTROPY)
        for _ in range(STEPS):
            plain.train_on_batch(*next(stream))
    toys.assert_same_weights(distiller.student, student, rtol=1e-5, atol=1e-6)


def test_layers_that_were_frozen_by_the_user_stay_frozen():
    student = keras.Sequential([keras.layers.Dense(4, input_shape=(5,), name=n) for n in "abc"])
    student.add(keras.layers.Dense(3, name="scores"))
    student.get_layer("b").trainable = False
    before = student.get_layer("b").get_weights()
    stages = [Stage(1, freeze="a"), Stage(1)]
    distiller = tfkd.ProgressiveDistiller(toys.net(8, seed=2), student, stages, logits())
    distiller.compile("sgd", CROSSENTROPY)
    fit(distiller)
    np.testing.assert_array_equal(student.get_layer("b").get_weights()[0], before[0])
    assert [layer.trainable for layer in student.layers] == [True, False, True, True]


def test_the_value_of_a_stage_takes_arrays_and_tensors_of_steps():
    rise = schedules.Linear(0.0, 1.0, end_step=10)
    value = OfStage([0.25, rise, None], default=rise, position=Position(1, begin=4))
    steps = np.array([[0, 4, 5], [9, 14, 99]])
    want = {1: [[0, 0, 0.1], [0.5, 1, 1]], 0: np.full((2, 3), 0.25)}
    want[2] = [[0, 0.4, 0.5], [0.9, 1, 1]]
    for stage, values in want.items():
        value.position.move(stage, begin=4)
        np.testing.assert_allclose(value(steps), values)
        np.testing.assert_allclose(value(tf.constant(steps)), values, rtol=1e-6)
        assert value(5) == values[0][2]


def test_promotion_ends_a_stage_early_and_the_next_one_begins():
    rule = Reached("val_accuracy", 0.0)
    distiller = make(
        [Stage(5, promote=rule), Stage(2), Stage(4, promote=lambda logs: len(logs) == 3)]
    )
    history = fit(distiller, validation_data=(X, Y))
    assert history["stage"] == [0, 1, 1, 2, 2, 2]
    assert distiller.steps == 6 * STEPS


def test_a_plateau_promotes():
    # "stage" is a metric that never improves: best in the first epoch, then waiting for 2.
    distiller = make([Stage(9, promote=Plateau("stage", 2)), Stage(1)])
    assert fit(distiller)["stage"] == [0, 0, 0, 1]


def test_a_callback_that_stops_training_ends_the_stage():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.stop_training = True

    distiller = make([Stage(4), Stage(2)])
    assert fit(distiller, callbacks=[Stop()])["stage"] == [0, 0, 1, 1]


def test_nan_ends_the_training():
    distiller = make([Stage(1), Stage(1)])
    with pytest.warns(UserWarning, match="NaN in stage 0"):
        history = fit(distiller, x=np.full_like(X, np.nan), y=Y, steps_per_epoch=None)
    assert len(history["loss"]) == 1


def test_an_adaptive_pace_is_moved_by_the_metric():
    paced = Curriculum((X, Y), np.arange(48), 1.0, BATCH)
    pace = AdaptivePace(0.25, growth=2, monitor="stage")  # a metric that never improves
    distiller = make([Stage(4, fraction=pace)])
    history = distiller.fit(paced, verbose=0).history
    assert history["fraction"] == [0.25, 0.25, 0.5, 1.0]


def test_a_stage_may_bring_data_of_its_own():
    other = (np.zeros((16, 5), np.float32), np.zeros(16, np.int32))
    distiller = make(
        [Stage(1), Stage(1, data=other), Stage(1, data=Curriculum((X, Y), Y, 0.5, 8, partial=True))]
    )
    history = fit(distiller, batch_size=8)
    assert history["stage"] == [0, 1, 2]
    assert math.isnan(history["fraction"][0]) and history["fraction"][2] == 0.5
    assert distiller.steps == STEPS + 2 + STEPS


@pytest.mark.parametrize("kind", ["arrays", "finite", "endless"])
def test_data_in_every_form(kind):
    finite = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    options = {
        "arrays": {"x": X, "y": Y, "batch_size": 8, "steps_per_epoch": None},
        "finite": {"x": finite, "steps_per_epoch": None},
        "endless": {"x": finite.repeat()},
    }[kind]
    distiller = make([Stage(1), Stage(1)])
    assert len(fit(distiller, **options)["loss"]) == 2
    assert distiller.steps == 2 * STEPS


def test_several_steps_an_execution_are_counted():
    distiller = make([Stage(1), Stage(1, fraction=0.5)], compile_args={"steps_per_execution": 4})
    history = distiller.fit(Curriculum((X, Y), Y, 1.0, BATCH), verbose=0).history
    assert distiller.steps == 12 and history["fraction"] == [1.0, 0.5]


def test_tensorboard_shows_stage_fraction_temperature_and_what_was_seen(tmp_path):
    paced = Curriculum((X, Y), np.arange(48.0), 1.0, BATCH, balance_classes=False)
    distiller = make([Stage(1, fraction=0.25, temperature=8.0), Stage(2)])
    board = tfkd.callbacks.TensorBoard(tmp_path, write_graph=False)
    distiller.fit(paced, verbose=0, callbacks=[board])

    def values(tag):
        found = []  # each stage has a file of its own; their names do not tell the order
        for path in (tmp_path / "train").iterdir():
            events = EventAccumulator(str(path), {"tensors": 0}).Reload()
            if tag in events.Tags()["tensors"]:
                found += [
                    (e.step, tf.make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)
                ]
        return sorted(found)

    assert values("epoch_stage") == [(0, 0.0), (1, 1.0), (2, 1.0)]
    assert values("epoch_fraction") == [(0, 0.25), (1, 1.0), (2, 1.0)]
    assert values("temperature/logits_distillation") == [(0, 8.0), (1, 2.0), (2, 2.0)]
    assert len(list((tmp_path / "curriculum").iterdir())) == 2


def test_evaluate_and_predict_are_those_of_the_student():
    distiller = make([Stage(1)])
    fit(distiller)
    np.testing.assert_allclose(distiller.predict(X, verbose=0), distiller.student(X), rtol=1e-5)
    assert distiller.evaluate(X, Y, verbose=0, return_dict=True)["accuracy"] >= 0


@pytest.mark.slow
def test_two_replicas_train_as_one(two_replicas):
    def train(strategy):
        with strategy.scope():
            distiller = make(
                [Stage(1, temperature=6.0, learning_rate=0.05), Stage(1, freeze="hidden")]
            )
        paced = Curriculum((X, Y), X.sum(1), schedules.Linear(0.4, 1.0, end_step=8), BATCH)
        distiller.fit(paced, verbose=0)
        return distiller.student

    one, two = train(tf.distribute.get_strategy()), train(two_replicas)
    toys.assert_same_weights(one, two, rtol=1e-6, atol=1e-6)


def test_mixed_precision_keeps_its_loss_scale():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        student = keras.Sequential(
            [
                keras.layers.Dense(4, "tanh", input_shape=(5,)),
                keras.layers.Dense(3, dtype="float32"),
            ]
        )
    finally:
        keras.mixed_precision.set_global_policy("float32")
    stages = [
        Stage(1, learning_rate=0.1),
        Stage(1, freeze=student.layers[0].name),
        Stage(1, structure=toys.copy_of),
    ]
    distiller = tfkd.ProgressiveDistiller(toys.net(8, seed=2), student, stages, logits())
    scale = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=64, dynamic=False
    )
    distiller.compile(scale, CROSSENTROPY)
    assert np.isfinite(fit(distiller)["loss"]).all()
    optimizer = distiller.distiller.optimizer
    assert isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert float(optimizer.loss_scale) == 64 and int(optimizer.iterations) == 3 * STEPS


# An optimizer that averages weights.


class Averages:
    """SGD with momentum, `use_ema`, and the weights it would give, computed in NumPy."""

    momentum = 0.8

    def __call__(self):
        return keras.optimizers.SGD(0.1, 0.9, use_ema=True, ema_momentum=self.momentum)

    def recorder(self):
        """After each step the average moves on; `value` is that of the student's weights."""
        owner = self

        class Record(keras.callbacks.Callback):
            value = None

            def on_train_begin(self, logs=None):
                if self.value is None:
                    self.value = self.model.student.get_weights()

            def on_train_batch_end(self, batch, logs=None):
                now, share = self.model.student.get_weights(), owner.momentum
                pairs = zip(self.value, now, strict=True)
                self.value = [share * a + (1 - share) * w for a, w in pairs]

        return Record()


def same_again(student):
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    return copy


@pytest.mark.parametrize("second", ["rates", "structure"])
def test_averages_replace_the_weights_at_the_end_of_all_stages_alone(second):
    """As in one long `fit`: not at the end of every stage."""
    averages = Averages()
    options = {"rates": {"learning_rate": 0.02}, "structure": {"structure": same_again}}
    stages = [Stage(2), Stage(1, **options[second]), Stage(1)]
    record, ends = averages.recorder(), []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.raw = self.model.student.get_weights()

        def on_train_end(self, logs=None):
            pairs = zip(self.raw, self.model.student.get_weights(), strict=True)
            ends.append(all(np.array_equal(a, b) for a, b in pairs))

    distiller = make(stages, optimizer=averages())
    fit(distiller, callbacks=[record, Look()])
    assert ends == [True, True, False]
    for want, got in zip(record.value, distiller.student.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_finished_training_that_is_taken_up_again_ends_with_averages(tmp_path):
    """Killed between its last epoch and its end."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_end(self, logs=None):
            if self.epoch == 1:
                raise KeyboardInterrupt

    whole = make([Stage(1), Stage(1)], optimizer=Averages()())
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(make([Stage(1), Stage(1)], optimizer=Averages()()), callbacks=[Kill()],
            backup_dir=tmp_path / "b")  # fmt: skip
    again = make([Stage(1), Stage(1)], optimizer=Averages()())
    fit(again, backup_dir=tmp_path / "b")
    for want, got in zip(whole.student.get_weights(), again.student.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
