"""What `fit` minimises, logs and changes; expected values from NumPy or a bare step."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd.losses import DistillationLoss, FeatureDistillation, LogitsDistillation


def distil(
    teacher, student, losses, optimizer=None, loss=CROSSENTROPY, compile_args=None, **kwargs
):
    distiller = tfkd.Distiller(teacher, student, losses, **kwargs)
    distiller.compile(optimizer or keras.optimizers.SGD(0.0), loss, **(compile_args or {}))
    return distiller


def two_losses():
    return [
        LogitsDistillation(temperature=3.0),
        FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    ]


def test_logs_are_the_formula():
    teacher, student = net(seed=1), net(seed=2, regularizer=keras.regularizers.L2(0.1))
    x, y = data()
    distiller = distil(
        teacher,
        student,
        two_losses(),
        distillation_loss_weights=[0.7, 2.0],
        student_loss_weight=0.3,
    )
    found = logs(distiller.fit(x, y, batch_size=8, verbose=0))

    t, s = teacher(x).numpy(), student(x).numpy()
    hidden = [np.tanh(x @ m.get_weights()[0] + m.get_weights()[1]) for m in (teacher, student)]
    kd = toys.soft_targets(t, s, 3.0).mean()
    hint = np.square(hidden[0] - hidden[1]).mean()
    on_labels = toys.crossentropy(y, s).mean()
    total = 0.3 * on_labels + 0.7 * (0.7 * kd + 2.0 * hint)
    penalty = 0.1 * np.square(student.layers[1].kernel.numpy()).sum()
    expected = {
        "loss": total + penalty,
        "total_loss": total,
        "student_loss": on_labels,
        "distillation_loss": 0.7 * kd + 2.0 * hint,
        "logits_distillation": kd,
        "feature_distillation": hint,
        "agreement": np.mean(t.argmax(-1) == s.argmax(-1)),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_one_step_is_the_hand_written_step():
    teacher, student = net(seed=1), net(seed=2, regularizer=keras.regularizers.L2(0.1))
    x, y = data()
    variables = [tf.Variable(w) for w in student.get_weights()]
    t_hidden = tf.tanh(x @ teacher.get_weights()[0] + teacher.get_weights()[1])
    t = t_hidden @ teacher.get_weights()[2] + teacher.get_weights()[3]
    with tf.GradientTape() as tape:
        kernel1, bias1, kernel2, bias2 = variables
        hidden = tf.tanh(x @ kernel1 + bias1)
        s = hidden @ kernel2 + bias2
        picked = tf.gather(s, y, batch_dims=1)
        on_labels = tf.reduce_mean(tf.reduce_logsumexp(s, -1) - picked)
        p = tf.exp(t / 3) / tf.reduce_sum(tf.exp(t / 3), -1, keepdims=True)
        q = tf.exp(s / 3) / tf.reduce_sum(tf.exp(s / 3), -1, keepdims=True)
        kd = 9.0 * tf.reduce_mean(tf.reduce_sum(p * tf.math.log(p / q), -1))
        hint = tf.reduce_mean((t_hidden - hidden) ** 2)
        loss = 0.3 * on_labels + 0.7 * (0.7 * kd + 2.0 * hint)
        loss += 0.1 * tf.reduce_sum(kernel1**2)
    expected = [v - 0.5 * g for v, g in zip(variables, tape.gradient(loss, variables), strict=True)]

    distiller = distil(
        teacher,
        student,
        two_losses(),
        keras.optimizers.SGD(0.5),
        distillation_loss_weights=[0.7, 2.0],
        student_loss_weight=0.3,
    )
    distiller.fit(x, y, batch_size=8, verbose=0)
    for found, wanted in zip(student.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def regularized(seed):
    x = keras.Input((5,))
    hidden = keras.layers.Dense(
        4, "relu", kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2"
    )(x)
    hidden = keras.layers.BatchNormalization()(hidden)
    return toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), seed)


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"run_eagerly": True},
        pytest.param({"steps_per_execution": 2}, marks=pytest.mark.slow),
    ],
)
def test_student_only_equals_plain_fit(mode):
    """Regularizers, batch norm, weights, an uneven last batch, clipping; no teacher run."""

    def teacher(inputs):
        raise AssertionError("the teacher ran")

    x, y = data(11)
    weight = np.linspace(0.1, 2.0, 11).astype(np.float32)
    student, plain = regularized(3), regularized(3)
    distiller = distil(
        teacher,
        student,
        LogitsDistillation(),
        keras.optimizers.Adam(0.05, clipnorm=0.1),
        compile_args={**mode, "metrics": ["accuracy"]},
        student_loss_weight=1.0,
    )
    plain.compile(keras.optimizers.Adam(0.05, clipnorm=0.1), CROSSENTROPY, ["accuracy"], **mode)
    args = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}
    mine = distiller.fit(x, y, sample_weight=weight, validation_data=(x, y), **args).history
    theirs = plain.fit(x, y, sample_weight=weight, validation_data=(x, y), **args).history
    toys.assert_same_weights(student, plain)
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=name)


def test_gradient_clipping_is_that_of_the_whole_loss():
    x, y = data()
    for optimizer in ({"clipnorm": 0.01}, {"global_clipnorm": 0.01}):
        student = net(seed=2)
        before = toys.weights_of(student)
        distil(
            net(seed=1), student, LogitsDistillation(), keras.optimizers.SGD(1.0, **optimizer)
        ).fit(x, y, batch_size=8, verbose=0)
        steps = [a - b for a, b in zip(student.get_weights(), before, strict=True)]
        norms = [np.linalg.norm(step) for step in steps]
        norm = np.linalg.norm(norms) if "global_clipnorm" in optimizer else max(norms)
        np.testing.assert_allclose(norm, 0.01, rtol=1e-4)


@pytest.mark.parametrize(
    "mode", [{}, {"run_eagerly": True}, {"steps_per_execution": 2}], ids=["graph", "eager", "two"]
)
def test_each_model_runs_once_a_step(mode):
    def counted(seed):
        x = keras.Input((5,))
        hidden = keras.layers.Dense(4, "tanh", name="hidden")(toys.Counter(name="counter")(x))
        return keras.Model(x, keras.layers.Dense(3)(hidden))

    teacher, student = counted(1), counted(2)

    def calls():
        return [int(m.get_layer("counter").calls) for m in (teacher, student)]

    x, y = data(12)
    distiller = distil(
        teacher, student, [*two_losses(), LogitsDistillation(1.0)], compile_args=mode
    )
    base = np.array(calls())
    distiller.fit(x, y, batch_size=3, epochs=2, verbose=0)
    np.testing.assert_array_equal(calls() - base, [8, 8])
    distiller.evaluate(x, y, batch_size=3, verbose=0)
    np.testing.assert_array_equal(calls() - base, [12, 12])
    distiller.predict(x, batch_size=3, verbose=0)
    np.testing.assert_array_equal(calls() - base, [12, 16])


def two_heads(seed):
    trunk = net(seed=seed)
    other = keras.layers.Dense(3, name="other")(trunk.get_layer("hidden").output)
    return keras.Model(trunk.input, {"scores": trunk.output, "other": other})


@pytest.mark.parametrize("case", ["adam", "loss scale", "generator", "replicas", "two outputs"])
def test_a_step_is_traced_once(case, request):
    optimizer, metrics, loss = keras.optimizers.Adam(0.1, use_ema=True), ["accuracy"], CROSSENTROPY
    x, y = data(16)
    if case == "loss scale":
        optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.1))
    strategy = request.getfixturevalue("two_replicas") if case == "replicas" else None
    with strategy.scope() if strategy else contextlib.nullcontext():
        teacher, student = net(seed=1), net(seed=2)
        if case == "two outputs":
            teacher, student = (two_heads(seed) for seed in (1, 2))
            y = {"scores": y, "other": y}
        elif case == "replicas":
            optimizer = keras.optimizers.Adam(0.1)
        distiller = distil(
            teacher, student, LogitsDistillation(3.0), optimizer, loss, {"metrics": metrics}
        )
    if case == "generator":
        batches = ((x[i : i + 4], y[i : i + 4]) for i in [0, 4, 8] * 2)
        distiller.fit(batches, steps_per_epoch=3, epochs=2, verbose=0)
    else:
        distiller.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert distiller.train_tf_function.experimental_get_tracing_count() == 1


def test_a_student_that_is_not_built_yet_can_be_trained():
    x, y = data(16)
    student = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)])
    distiller = distil(net(seed=1), student, LogitsDistillation(3.0), keras.optimizers.Adam(0.1))
    found = distiller.fit(x, y, batch_size=4, epochs=20, verbose=0).history["loss"]
    assert found[-1] < found[0]


def normalized(seed):
    x = keras.Input((5,))
    hidden = keras.layers.Dense(6, name="hidden")(x)
    hidden = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(hidden))
    return toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), seed)


def test_evaluate_and_predict_leave_every_weight_alone():
    teacher, student = normalized(1), normalized(2)
    x, y = data(10)
    distiller = distil(teacher, student, two_losses(), keras.optimizers.Adam(0.1))
    distiller.fit(x, y, batch_size=5, verbose=0)
    state = [toys.weights_of(student), toys.weights_of(teacher)]
    slots = [v.numpy() for v in distiller.optimizer.variables]
    assert len(slots) > 5
    all_weights = distiller.get_weights()
    # The means of the logs are no weights: only the student's, and any projector's, are.
    trained = [*student.weights, *(w for p in distiller.projectors for w in p.weights)]
    assert {id(w) for w in distiller.weights} == {id(w) for w in trained}
    first = distiller.evaluate(x, y, verbose=0, return_dict=True)
    predicted = distiller.predict(x, verbose=0)
    second = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert first == second
    np.testing.assert_allclose(predicted, student(x, training=False), rtol=1e-6)
    toys.assert_untouched(state[0], student)
    toys.assert_untouched(state[1], teacher)
    for old, new in zip(all_weights, distiller.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(slots, distiller.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_teacher_is_in_inference_mode_and_untouched_by_fit():
    teacher, student = normalized(1), net(seed=2)
    x, y = data()
    before = toys.weights_of(teacher)
    expected = toys.soft_targets(teacher(x, training=False), student(x), 3.0).mean()
    distiller = distil(teacher, student, LogitsDistillation(3.0), keras.optimizers.SGD(0.1))
    found = logs(distiller.fit(x, y, batch_size=8, verbose=0))
    np.testing.assert_allclose(found["logits_distillation"], expected, rtol=1e-5)
    toys.assert_untouched(before, teacher)
    mine = {id(v) for v in distiller.trainable_variables}
    assert mine == {id(v) for v in student.trainable_variables}


def test_sample_weight_and_class_weight():
    teacher, student = net(seed=1), net(seed=2)
    x, y = data()
    weight = np.linspace(0.0, 2.0, 8).astype(np.float32)
    kd = toys.soft_targets(teacher(x), student(x), 3.0)
    on_labels = toys.crossentropy(y, student(x))
    distiller = distil(teacher, student, LogitsDistillation(3.0))
    found = logs(distiller.fit(x, y, sample_weight=weight, verbose=0))
    np.testing.assert_allclose(found["logits_distillation"], (weight * kd).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["student_loss"], (weight * on_labels).mean(), rtol=1e-5)

    classes = {0: 1.0, 1: 3.0, 2: 0.5}
    weight = np.array([classes[c] for c in y])
    with pytest.warns(UserWarning, match="class_weight weighs"):
        found = logs(distiller.fit(x, y, class_weight=classes, verbose=0))
    np.testing.assert_allclose(found["logits_distillation"], (weight * kd).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["student_loss"], (weight * on_labels).mean(), rtol=1e-5)


def test_class_weight_weighs_the_labels_alone_if_the_user_says_so():
    teacher, (x, y) = net(seed=1), data()
    classes = {0: 1.0, 1: 3.0, 2: 0.5}
    weight = np.array([classes[c] for c in y])
    for choice, of_distillation in ((False, np.ones(8)), (True, weight), (None, weight)):
        student = net(seed=2)
        kd = toys.soft_targets(teacher(x), student(x), 3.0)
        on_labels = toys.crossentropy(y, student(x))
        distiller = distil(teacher, student, LogitsDistillation(3.0), weigh_distillation=choice)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                found = logs(distiller.fit(x, y, class_weight=classes, verbose=0))
        said = ["weigh_distillation=False" in str(one.message) for one in caught]
        assert sum(said) == (choice is None)
        expected = (of_distillation * kd).mean()
        np.testing.assert_allclose(found["logits_distillation"], expected, rtol=1e-5)
        np.testing.assert_allclose(found["student_loss"], (weight * on_labels).mean(), rtol=1e-5)


def test_validation_logs_and_an_uneven_last_batch():
    teacher, student = net(seed=1), net(seed=2)
    x, y = data(7)
    distiller = distil(teacher, student, LogitsDistillation(3.0))
    found = logs(distiller.fit(x, y, batch_size=3, validation_data=(x[:5], y[:5]), verbose=0))
    kd = toys.soft_targets(teacher(x), student(x), 3.0)
    on_labels = toys.crossentropy(y, student(x))
    for name, values in (("logits_distillation", kd), ("student_loss", on_labels)):
        np.testing.assert_allclose(found[name], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(found[f"val_{name}"], values[:5].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["val_loss"], (kd + on_labels)[:5].mean() / 2, rtol=1e-5)
    same = np.argmax(teacher(x), -1) == np.argmax(student(x), -1)
    np.testing.assert_allclose(found["agreement"], same.mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [None, CROSSENTROPY])
def test_without_labels(loss):
    teacher, student = net(seed=1), net(seed=2)
    x, _ = data(32)
    distiller = distil(
        teacher,
        student,
        LogitsDistillation(2.0),
        keras.optimizers.Adam(0.05),
        loss,
        student_loss_weight=0,
    )
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    history = distiller.fit(dataset, epochs=20, validation_data=dataset, verbose=0).history
    assert history["val_loss"][-1] < 0.3 * history["val_loss"][0]
    np.testing.assert_allclose(history["loss"], history["logits_distillation"], rtol=1e-6)
    expected = toys.soft_targets(teacher(x), student(x), 2.0).mean()
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-4)
    assert distiller.fit(x, verbose=0).history["student_loss"] == [0.0]


def test_a_loss_on_labels_of_weight_0_may_be_infinite():
    student = net(seed=2)
    distiller = distil(
        net(seed=1),
        student,
        LogitsDistillation(),
        keras.optimizers.SGD(0.1),
        lambda y, scores: tf.reduce_sum(scores, -1) / 0.0,
        student_loss_weight=0,
    )
    distiller.fit(*data(), verbose=0)
    assert all(np.isfinite(w).all() for w in student.get_weights())


def test_names_of_terms_are_unique_and_take_no_name_from_the_logs():
    class Custom(DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs):
            return tf.reduce_mean(tf.abs(teacher_outputs - student_outputs))

    losses = [LogitsDistillation(), LogitsDistillation(1.0), Custom("loss"), Custom("mine")]
    teacher, student = net(seed=1), net(seed=2)
    x, y = data()
    found = logs(distil(teacher, student, losses).fit(x, y, batch_size=8, verbose=0))
    difference = np.abs(teacher(x).numpy() - student(x).numpy()).mean()
    np.testing.assert_allclose([found["loss_1"], found["mine"]], difference, rtol=1e-5)
    kd = [toys.soft_targets(teacher(x), student(x), t).mean() for t in (3.0, 1.0)]
    names = ("logits_distillation", "logits_distillation_1")
    np.testing.assert_allclose([found[n] for n in names], kd, rtol=1e-5)
    expected = toys.crossentropy(y, student(x)).mean() / 2 + (sum(kd) + 2 * difference) / 2
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_what_a_loss_is_given():
    seen = {}

    class Custom(DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            seen.update(kwargs)
            return tf.reduce_mean(student_outputs)

    x, y = data()
    weight = np.linspace(0, 1, 8)
    distiller = distil(net(seed=1), net(seed=2), Custom(), compile_args={"run_eagerly": True})
    distiller.fit(x, y, batch_size=4, sample_weight=weight, shuffle=False, verbose=0)
    np.testing.assert_array_equal(seen["y"], y[4:])
    np.testing.assert_allclose(seen["sample_weight"], weight[4:], rtol=1e-6)
    assert int(seen["step"]) == 1


def test_positional_arguments_are_those_of_keras():
    x, y = data()
    distiller = tfkd.Distiller(net(seed=1), net(seed=2), LogitsDistillation())
    distiller.compile("sgd", CROSSENTROPY, ["accuracy"], None, None, True)
    assert distiller.run_eagerly
    assert len(distiller.fit(x, y, 4, 2, 0).history["loss"]) == 2
    assert len(distiller.evaluate(x, y, 4, 0)) == len(distiller.metrics_names)


def test_summary_callbacks_and_early_stopping_work():
    student = net(seed=2)
    x, y = data(16)
    distiller = distil(net(seed=1), student, LogitsDistillation(), keras.optimizers.Adam(1.0))
    distiller.summary(print_fn=lambda *_: None)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    plateau = keras.callbacks.ReduceLROnPlateau("val_loss", patience=0)
    history = distiller.fit(
        x, y, epochs=30, validation_data=(x, y), callbacks=[stop, plateau], verbose=0
    ).history
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, min(history["val_loss"]), rtol=1e-5)


def test_compute_loss_on_arrays_is_what_a_step_minimises():
    teacher, student = net(seed=1), net(seed=2, regularizer=keras.regularizers.L2(0.1))
    x, y = data()
    distiller = distil(teacher, student, two_losses())
    found = float(distiller.compute_loss(x, y))
    expected = distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_frozen_student_is_refused():
    first, second, third = net(seed=1), net(seed=2), net(seed=3)
    tfkd.Distiller(first, second, tfkd.losses.LogitsDistillation())  # freezes its teacher
    distiller = tfkd.Distiller(third, first, tfkd.losses.LogitsDistillation())
    distiller.compile("sgd", CROSSENTROPY)
    x, y = data()
    with pytest.raises(ValueError, match="`student`: expected a model that can be trained"):
        distiller.fit(x, y, verbose=0)
    first.trainable = True
    assert distiller.fit(x, y, verbose=0).history["loss"][0] > 0


def test_the_student_can_be_evaluated_and_its_files_hold_no_loss(tmp_path):
    def own_loss(y, scores):  # not registered: no file could be loaded with it
        return keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True)

    x, y = data(12)
    student = net(seed=2)
    distiller = distil(
        net(seed=1), student, LogitsDistillation(3.0), loss=own_loss,
        compile_args={"metrics": ["accuracy"]},
    )  # fmt: skip
    scores = student(x).numpy()
    expected = [toys.crossentropy(y, scores).mean(), np.mean(scores.argmax(-1) == y)]
    np.testing.assert_allclose(student.evaluate(x, y, verbose=0), expected, rtol=1e-5)
    history = distiller.fit(x, y, verbose=0)
    np.testing.assert_allclose(logs(history)["student_loss"], expected[0], rtol=1e-5)
    for name in ("student.keras", "student.h5", "student"):
        student.save(tmp_path / name)
        loaded = keras.models.load_model(tmp_path / name)
        np.testing.assert_allclose(loaded.predict(x, verbose=0), scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(student.evaluate(x, y, verbose=0), expected, rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"student\.compile\(optimizer, loss\)"):
        student.fit(x, y, verbose=0)
    student.compile("sgd", own_loss)
    student.fit(x, y, verbose=0)
    distiller.compile("sgd", CROSSENTROPY)
    assert student.loss is own_loss  # what the user compiled stays

    without_labels = distil(
        net(seed=1), net(seed=2), LogitsDistillation(3.0), loss=None, student_loss_weight=0
    )
    with pytest.raises(RuntimeError, match="must compile"):  # by nothing
        without_labels.student.evaluate(x, y, verbose=0)


def test_a_student_of_two_outputs_is_evaluated_by_the_losses_of_each():
    x, y = data(12)
    student = two_heads(2)
    distil(
        two_heads(1), student, LogitsDistillation(3.0),
        loss={"scores": CROSSENTROPY, "other": CROSSENTROPY},
        compile_args={"metrics": {"other": ["accuracy"]}, "loss_weights": {"other": 3.0}},
    )  # fmt: skip
    found = student.evaluate(x, {"scores": y, "other": y}, verbose=0, return_dict=True)
    outputs = {name: value.numpy() for name, value in student(x).items()}
    losses = {name: toys.crossentropy(y, value).mean() for name, value in outputs.items()}
    expected = {
        "loss": losses["scores"] + 3 * losses["other"],
        "scores_loss": losses["scores"],
        "other_loss": losses["other"],
        "other_accuracy": np.mean(outputs["other"].argmax(-1) == y),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_evaluating_the_student_in_an_epoch_does_not_disturb_its_logs():
    x, y = data(12)
    student = net(seed=2)
    distiller = distil(
        net(seed=1), student, LogitsDistillation(3.0), compile_args={"metrics": ["accuracy"]}
    )
    look = keras.callbacks.LambdaCallback(
        on_batch_end=lambda batch, logs: student.evaluate(x[:3], y[:3], verbose=0)
    )
    found = logs(distiller.fit(x, y, batch_size=3, verbose=0, callbacks=[look]))
    expected = np.mean(student(x).numpy().argmax(-1) == y)
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)
