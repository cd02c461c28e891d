"""Schedules, precision, XLA, and several steps in one call."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd import schedules
from tfkd.losses import FeatureDistillation, LogitsDistillation


def make(student, optimizer=None, teacher=None, losses=None, **compile_args):
    distiller = tfkd.Distiller(
        teacher or net(seed=1), student, losses or LogitsDistillation(2.0), student_loss_weight=0.3
    )
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), CROSSENTROPY, **compile_args)
    return distiller


def with_hint():
    return [
        LogitsDistillation(2.0),
        FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    ]


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
    ],
    ids=["graph", "eager", "three", "jit"],
)
def test_schedules_follow_the_optimizers_count_over_two_fits(mode):
    losses = LogitsDistillation(temperature=schedules.Linear(1.0, 5.0, 0, 8))
    teacher, student = net(seed=1), net(seed=2)
    distiller = tfkd.Distiller(
        teacher,
        student,
        losses,
        distillation_loss_weights=[schedules.Linear(2.0, 0.0, 0, 8)],
        student_loss_weight=schedules.Linear(0.0, 1.0, 0, 8),
    )
    distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY, **mode)
    x, y = data(3)
    t, s = teacher(x), student(x)
    on_labels = toys.crossentropy(y, s).mean()
    step = 0
    for _ in range(2):
        # Three batches of the same examples an epoch: logs are the mean over three steps.
        found = logs(
            distiller.fit(np.tile(x, (3, 1)), np.tile(y, 3), batch_size=3, shuffle=False, verbose=0)
        )
        terms, totals = [], []
        for k in range(step, step + 3):
            kd = toys.soft_targets(t, s, 1.0 + 4.0 * k / 8).mean()
            terms.append(kd)
            totals.append(k / 8 * on_labels + (1 - k / 8) * (2.0 - k / 4) * kd)
        np.testing.assert_allclose(found["logits_distillation"], np.mean(terms), rtol=1e-5)
        np.testing.assert_allclose(found["loss"], np.mean(totals), rtol=1e-5)
        step += 3
    assert distiller.scheduled_values() == pytest.approx(
        {
            "student_loss_weight": 6 / 8,
            "weight/logits_distillation": 2 - 6 / 4,
            "temperature/logits_distillation": 1 + 24 / 8,
        }
    )
    assert distiller.scheduled_values(step=0)["temperature/logits_distillation"] == 1.0


@pytest.mark.parametrize(
    "mode",
    [
        {"steps_per_execution": 2},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"run_eagerly": True},
    ],
    ids=["two", "jit", "eager"],
)
def test_every_mode_makes_the_same_steps(mode):
    x, y = data(11)
    weight = np.linspace(0, 2, 11).astype(np.float32)
    found = []
    for compile_args in ({}, mode):
        student = net(width=4, seed=2, regularizer="l2")
        keras.utils.set_random_seed(3)
        distiller = make(student, losses=with_hint(), teacher=net(width=6, seed=1), **compile_args)
        history = distiller.fit(
            x,
            y,
            sample_weight=weight,
            batch_size=4,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
        )
        found.append((distiller, logs(history)))
    (first, first_logs), (second, second_logs) = found
    toys.assert_same_weights(first.student, second.student, rtol=1e-5, atol=1e-6)
    toys.assert_same_weights(first.projectors[0], second.projectors[0], rtol=1e-5, atol=1e-6)
    for name, value in first_logs.items():
        np.testing.assert_allclose(second_logs[name], value, rtol=1e-5, err_msg=name)


def in_policy(policy, seed, width=8):
    """A network whose hidden part is in `policy` and whose scores are float32."""
    x = keras.Input((5,))
    h = keras.layers.Dense(width, "tanh", dtype=policy, name="hidden")(x)
    z = keras.layers.Dense(3, dtype=policy)(h)
    out = keras.layers.Activation("linear", dtype="float32")(z)
    return toys.randomize(keras.Model(x, out), seed)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_student_with_float32_teacher(policy):
    x, y = data(64)
    teacher = in_policy("float32", 1)
    histories = {}
    for each in ("float32", policy):
        distiller = make(in_policy(each, 2), keras.optimizers.Adam(0.05), teacher, with_hint())
        histories[each] = distiller.fit(x, y, batch_size=32, epochs=8, verbose=0).history
        scaled = isinstance(distiller.optimizer, keras.mixed_precision.LossScaleOptimizer)
        assert scaled == (each == "mixed_float16")
        assert all(v.dtype == tf.float32 for v in distiller.trainable_variables)
    for name, values in histories["float32"].items():
        np.testing.assert_allclose(histories[policy][name], values, rtol=0.1, atol=0.05)
    assert histories[policy]["loss"][-1] < 0.8 * histories[policy]["loss"][0]


def test_a_global_policy_of_mixed_float16():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        x, y = data(32)
        teacher, student = net(width=8, seed=1), net(width=4, seed=2)
        distiller = make(student, keras.optimizers.Adam(0.05), teacher, with_hint())
        assert isinstance(distiller.optimizer, keras.mixed_precision.LossScaleOptimizer)
        history = distiller.fit(x, y, epochs=15, verbose=0).history
        assert history["loss"][-1] < 0.8 * history["loss"][0]
        kd = toys.soft_targets(teacher(x), student(x), 2.0).mean()
        found = distiller.evaluate(x, y, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-2)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_a_learning_rate_schedule_and_a_generator_of_batches():
    x, y = data(12)

    def batches():
        for start in range(0, 12, 4):
            yield x[start : start + 4], y[start : start + 4]

    rate = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.0])
    student = net(seed=2)
    distiller = make(student, keras.optimizers.SGD(rate))
    dataset = tf.data.Dataset.from_generator(
        batches,
        output_signature=(tf.TensorSpec((None, 5)), tf.TensorSpec((None,), tf.int32)),
    )
    distiller.fit(dataset, epochs=1, verbose=0)
    after = toys.weights_of(student)
    distiller.fit(dataset, epochs=1, verbose=0)
    toys.assert_untouched(after, student)


def test_frozen_layers_of_the_student_stay():
    student = net(seed=2)
    student.get_layer("hidden").trainable = False
    before = toys.weights_of(student)
    make(student).fit(*data(), verbose=0)
    after = student.get_weights()
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[2], after[2])


def test_the_student_can_be_trained_on_alone():
    student = net(seed=2)
    x, y = data()
    make(student).fit(x, y, verbose=0)
    student.compile("sgd", CROSSENTROPY)
    assert np.isfinite(student.fit(x, y, verbose=0).history["loss"]).all()
    distiller = make(student)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()


def test_labels_without_a_loss_on_them_reach_the_other_losses_and_the_metrics():
    """student_loss_weight=0 and no loss in compile, but a distillation loss that needs y."""
    x, y = toys.data(8)
    objective = tfkd.losses.curriculum_objective(alpha=0.0, beta=1.0)
    distiller = tfkd.Distiller(toys.net(8, seed=2), toys.net(4), **objective)
    distiller.compile(keras.optimizers.SGD(0.0), metrics=["accuracy"])
    found = toys.logs(distiller.fit(x, y, verbose=0, batch_size=8))
    scores = distiller.student(x).numpy()
    p = np.exp(toys.log_softmax(scores))[np.arange(8), y]
    np.testing.assert_allclose(found["loss"], (1 - p).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (scores.argmax(1) == y).mean())
    assert found["student_loss"] == 0
