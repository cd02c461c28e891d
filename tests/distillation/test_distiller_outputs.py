"""Models with several outputs, masks, and metrics: as in plain `fit`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd.losses import DecoupledDistillation, FeatureDistillation, LogitsDistillation


def two_heads(form, seed):
    """Class scores "a" (3) and numbers "b" (2), as a list, tuple or dict."""
    x = keras.Input((5,))
    hidden = keras.layers.Dense(6, "tanh")(x)
    a, b = keras.layers.Dense(3, name="a")(hidden), keras.layers.Dense(2, name="b")(hidden)
    outputs = {"a": a, "b": b} if form is dict else form((a, b))
    return toys.randomize(keras.Model(x, outputs), seed)


def pair(form, a, b):
    return {"a": a, "b": b} if form is dict else form((a, b))


def outputs_of(model, x):
    found = model(x)
    return [t.numpy() for t in (found.values() if isinstance(found, dict) else found)]


def targets(count=8):
    x, y = data(count)
    return x, y, np.random.default_rng(5).normal(size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize("form", [list, tuple, dict])
def test_losses_for_each_output(form):
    teacher, student = two_heads(form, 1), two_heads(form, 2)
    x, y, numbers = targets()
    kd = LogitsDistillation(2.0, loss=pair(form, "kl_divergence", None))
    hint = FeatureDistillation(loss=pair(form, None, "mse"))
    distiller = tfkd.Distiller(teacher, student, [kd, hint], student_loss_weight=0.25)
    distiller.compile(
        keras.optimizers.SGD(0.0),
        pair(form, CROSSENTROPY, "mse"),
        loss_weights=pair(form, 1.0, 3.0),
    )
    found = logs(distiller.fit(x, pair(form, y, numbers), batch_size=8, verbose=0))
    (ta, tb), (sa, sb) = outputs_of(teacher, x), outputs_of(student, x)
    expected = {
        "logits_distillation": toys.soft_targets(ta, sa, 2.0).mean(),
        "feature_distillation": np.square(tb - sb).mean(),
        "a_loss": toys.crossentropy(y, sa).mean(),
        "b_loss": np.square(numbers - sb).mean(),
        "agreement": np.mean(ta.argmax(-1) == sa.argmax(-1)),
    }
    expected["student_loss"] = expected["a_loss"] + 3.0 * expected["b_loss"]
    expected["distillation_loss"] = (
        expected["logits_distillation"] + expected["feature_distillation"]
    )
    expected["loss"] = 0.25 * expected["student_loss"] + 0.75 * expected["distillation_loss"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_one_loss_for_all_outputs_is_a_sum():
    teacher, student = two_heads(list, 1), two_heads(list, 2)
    x, _, _ = targets()
    distiller = tfkd.Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = logs(distiller.fit(x, batch_size=8, verbose=0))
    pairs = zip(outputs_of(teacher, x), outputs_of(student, x), strict=True)
    expected = sum(toys.soft_targets(t, s, 2.0).mean() for t, s in pairs)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("form", [list, dict])
def test_several_outputs_equal_plain_fit_in_weights_and_names_of_logs(form):
    x, y, numbers = targets(10)
    weights = {"a": np.linspace(0, 1, 10), "b": np.linspace(2, 1, 10)}
    args = {
        "loss": {"a": CROSSENTROPY, "b": "mse"},
        "loss_weights": {"a": 1.0, "b": 0.5},
        "metrics": {"a": ["accuracy"], "b": ["mae"]},
        "weighted_metrics": {"a": ["sparse_categorical_crossentropy"]},
    }
    student, plain = two_heads(form, 3), two_heads(form, 3)
    distiller = tfkd.Distiller(
        two_heads(form, 1), student, FeatureDistillation(), student_loss_weight=1.0
    )
    histories = []
    for model in (distiller, plain):
        model.compile(keras.optimizers.SGD(0.1, 0.9), **args)
        histories.append(
            model.fit(
                x,
                {"a": y, "b": numbers},
                sample_weight=weights,
                batch_size=4,
                epochs=2,
                shuffle=False,
                verbose=0,
            ).history
        )
    mine, theirs = histories
    toys.assert_same_weights(student, plain)
    assert set(theirs) <= set(mine)
    for name, values in theirs.items():
        np.testing.assert_allclose(mine[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", [list, dict])
def test_weights_of_one_output_only_weigh_that_output(form):
    teacher, student = two_heads(form, 1), two_heads(form, 2)
    x, y, numbers = targets()
    weight = np.linspace(0, 2, 8).astype(np.float32)
    distiller = tfkd.Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(0.0), {"a": CROSSENTROPY, "b": "mse"})
    dataset = tf.data.Dataset.from_tensors((x, {"a": y, "b": numbers}, {"a": weight}))
    found = logs(distiller.fit(dataset, verbose=0))
    (ta, tb), (sa, sb) = outputs_of(teacher, x), outputs_of(student, x)
    expected = (weight * toys.soft_targets(ta, sa, 2.0)).mean()
    expected += toys.soft_targets(tb, sb, 2.0).mean()
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)


def test_a_loss_on_one_of_several_outputs_finds_its_targets():
    teacher, student = two_heads(list, 1), two_heads(list, 2)
    x, y, numbers = targets()
    losses = [DecoupledDistillation(1.0, 1.0, 1.0, output=0)]
    distiller = tfkd.Distiller(teacher, student, losses)
    distiller.compile(keras.optimizers.SGD(0.0), {"a": CROSSENTROPY, "b": "mse"})
    by_name = logs(distiller.fit(x, {"a": y, "b": numbers}, batch_size=8, verbose=0))
    by_place = logs(distiller.fit(x, [y, numbers], batch_size=8, verbose=0))
    assert by_name == by_place
    assert by_name["decoupled_distillation"] > 0
    (ta, _), (sa, _) = outputs_of(teacher, x), outputs_of(student, x)
    same = np.mean(ta.argmax(-1) == sa.argmax(-1))
    np.testing.assert_allclose(by_name["agreement"], same, rtol=1e-6)


def test_several_inputs_by_name_or_place():
    def model(seed):
        a, b = keras.Input((2,), name="left"), keras.Input((3,), name="right")
        joined = keras.layers.Concatenate()([a, b])
        return toys.randomize(keras.Model([a, b], keras.layers.Dense(3)(joined)), seed)

    teacher, student = model(1), model(2)
    x, y = data()
    distiller = tfkd.Distiller(teacher, student, LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    by_place = logs(distiller.fit([x[:, :2], x[:, 2:]], y, batch_size=8, verbose=0))
    by_name = logs(distiller.fit({"left": x[:, :2], "right": x[:, 2:]}, y, batch_size=8, verbose=0))
    expected = toys.soft_targets(
        x @ teacher.get_weights()[0] + teacher.get_weights()[1],
        x @ student.get_weights()[0] + student.get_weights()[1],
        3.0,
    ).mean()
    for found in (by_place, by_name):
        np.testing.assert_allclose(found["logits_distillation"], expected, rtol=1e-5)


def test_metrics_of_every_form():
    x, y = data(9)
    weight = np.linspace(0, 2, 9).astype(np.float32)
    teacher, student = net(seed=1), net(seed=2)
    scores = student(x).numpy()
    hit = scores.argmax(-1) == y
    for metrics in (["accuracy"], ("accuracy",), {"scores": "accuracy"}, {"scores": ["accuracy"]}):
        distiller = tfkd.Distiller(teacher, student, LogitsDistillation())
        distiller.compile(
            keras.optimizers.SGD(0.0),
            CROSSENTROPY,
            metrics,
            weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
        )
        found = logs(distiller.fit(x, y, sample_weight=weight, batch_size=4, verbose=0))
        np.testing.assert_allclose(found["accuracy"], hit.mean(), rtol=1e-5)
        np.testing.assert_allclose(found["weighted"], (weight * hit).sum() / weight.sum(), 1e-5)
        # Metrics start anew with each epoch.
        again = distiller.evaluate(x[:3], y[:3], verbose=0, return_dict=True)
        np.testing.assert_allclose(again["accuracy"], hit[:3].mean(), rtol=1e-5)
        np.testing.assert_allclose(
            again["student_loss"], toys.crossentropy(y, scores)[:3].mean(), rtol=1e-5
        )


def tagger(seed):
    """A score of 3 classes for every token; token 0 is padding."""
    x = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(10, 4, mask_zero=True)(x)
    hidden = keras.layers.Dense(5, "tanh", name="sequence")(hidden)
    return toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), seed)


@pytest.mark.parametrize("eager", [False, True])
def test_padded_positions_have_no_influence(eager):
    teacher, student = tagger(1), tagger(2)
    rng = np.random.default_rng(0)
    tokens, y = rng.integers(1, 10, (4, 6)), rng.integers(0, 3, (4, 6))
    lengths = [6, 3, 1, 4]
    kept = np.arange(6) < np.array(lengths)[:, None]
    tokens = np.where(kept, tokens, 0)

    losses = [
        LogitsDistillation(2.0),
        FeatureDistillation("mse", "sequence", "sequence"),
        DecoupledDistillation(2.0),
    ]
    distiller = tfkd.Distiller(teacher, student, losses)
    distiller.compile(keras.optimizers.SGD(0.1), CROSSENTROPY, run_eagerly=eager)
    t, s = teacher(tokens).numpy(), student(tokens).numpy()
    before = toys.weights_of(student)

    results = []
    for padding in (0, 2):
        student.set_weights(before)
        labels = np.where(kept, y, padding)
        found = logs(distiller.fit(tokens, labels, batch_size=4, verbose=0))
        results.append((found, toys.weights_of(student)))
    (first, w1), (second, w2) = results
    assert first == second
    for a, b in zip(w1, w2, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(
        first["logits_distillation"], toys.soft_targets(t, s, 2.0)[kept].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        first["student_loss"], toys.crossentropy(y, s)[kept].mean(), rtol=1e-5
    )
    same = t.argmax(-1) == s.argmax(-1)
    np.testing.assert_allclose(first["agreement"], same[kept].mean(), rtol=1e-6)


@pytest.mark.parametrize("scalar", [False, True])
def test_one_number_is_compared_by_mse(scalar):
    teacher, student = (toys.net(classes=1, seed=seed) for seed in (1, 2))
    if scalar:
        teacher, student = (keras.Model(m.input, m.output[:, 0]) for m in (teacher, student))
    x, _ = data()
    distiller = tfkd.Distiller(
        teacher, student, LogitsDistillation(2.0, loss="mse"), student_loss_weight=0.0
    )
    distiller.compile("sgd", None)
    found = distiller.evaluate(x, verbose=0, return_dict=True)["logits_distillation"]
    assert "agreement" not in distiller.metrics_names  # there are no classes
    wanted = np.square((teacher(x).numpy() - student(x).numpy()) / 2)
    np.testing.assert_allclose(found, wanted.mean(), rtol=1e-5)
    weights = np.linspace(0, 2, len(x))
    first = distiller.fit(x, x[:, 0], sample_weight=weights, batch_size=len(x), verbose=0)
    weighted = np.average(wanted.ravel(), weights=weights)
    np.testing.assert_allclose(first.history["logits_distillation"], weighted, rtol=1e-5)


def test_numbers_between_0_and_1_are_no_probabilities_for_mse():
    def ratio(seed):
        plain = toys.net(classes=1, seed=seed)
        return keras.Model(plain.input, plain.output * 1e-3 + 0.5)

    teacher, student, (x, _) = ratio(1), ratio(2), data()
    loss = LogitsDistillation(1.0, loss="mse")
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile("sgd", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = distiller.evaluate(x, verbose=0, return_dict=True)["logits_distillation"]
    wanted = np.mean(np.square(teacher(x).numpy() - student(x).numpy()))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_one_class_is_refused_before_training():
    teacher, student = (toys.net(classes=1, seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match="two classes.*binary_crossentropy.*mse"):
        tfkd.Distiller(teacher, student, LogitsDistillation(2.0))


def test_one_sigmoid_output():
    def binary(seed, last):
        return toys.net(classes=1, seed=seed, last=last)

    x, y = data(classes=2)
    found = {}
    for last in (None, "sigmoid"):
        teacher, student = binary(1, last), binary(2, last)
        distiller = tfkd.Distiller(
            teacher, student, LogitsDistillation(2.0, loss="binary_crossentropy")
        )
        distiller.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.BinaryCrossentropy(from_logits=last is None),
            ["AUC"],
        )
        found[last] = logs(distiller.fit(x, y, batch_size=8, verbose=0))
        found[last, "weights"] = student.get_weights()
    t, s = binary(1, None)(x).numpy(), binary(2, None)(x).numpy()
    p, q = 1 / (1 + np.exp(-t / 2)), 1 / (1 + np.exp(-s / 2))
    kd = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    for last in (None, "sigmoid"):
        np.testing.assert_allclose(found[last]["logits_distillation"], kd, rtol=1e-5)
        np.testing.assert_allclose(found[last]["agreement"], np.mean((t > 0) == (s > 0)))
    for a, b in zip(found[None, "weights"], found["sigmoid", "weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_outputs_without_a_gradient_and_texts_are_refused():
    x = keras.Input((4,))
    best = tf.argmax(keras.layers.Dense(3)(x), -1)
    words = keras.layers.StringLookup(vocabulary=["a", "b"], invert=True)(best)
    scores = keras.Model(x, keras.layers.Dense(3)(x))
    loss = tfkd.losses.LogitsDistillation(loss="mse")
    with pytest.raises(ValueError, match="`student`: .* with a gradient.*int64.*NAME"):
        tfkd.Distiller(scores, keras.Model(x, best), loss)
    for pair, side in ((0, "teacher"), (1, "student")):
        models = [scores, scores]
        models[pair] = keras.Model(x, words)
        with pytest.raises(ValueError, match=f"`{side}`: expected numbers as outputs.*texts"):
            tfkd.Distiller(*models, loss)
