"""ExpectedErrorLoss as a loss on labels: in plain Keras models and as a student's loss."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import data, logs, net

import tfkd
from tfkd.losses import ExpectedErrorLoss, LogitsDistillation

X, Y = data(8)


def errors(scores, y=Y):
    p = np.exp(toys.log_softmax(scores))
    return 1.0 - np.take_along_axis(p, np.asarray(y)[..., None], -1)[..., 0]


def fitted(model, x=X, y=Y, rate=0.0, eager=False, **kwargs):
    model.compile(keras.optimizers.SGD(rate), ExpectedErrorLoss(), run_eagerly=eager)
    return logs(model.fit(x, y, batch_size=len(x), verbose=0, **kwargs))["loss"]


@pytest.mark.parametrize("last, eager, y", [
    (None, False, Y), (None, True, Y[:, None]), ("softmax", False, Y[:, None]),
    ("softmax", True, Y), ("softmax", False, np.eye(3)[Y]), ("softmax", True, np.eye(3)[Y]),
])  # fmt: skip
def test_in_a_plain_model(last, eager, y):
    scores = net(seed=2)(X)
    found = fitted(net(seed=2, last=last), y=y, eager=eager)
    assert found == pytest.approx(errors(scores).mean(), rel=1e-5)


def test_a_softmax_is_undone_in_the_gradient_too():
    first, second = net(seed=2), net(seed=2, last="softmax")
    for model in (first, second):
        fitted(model, rate=0.5)
    toys.assert_same_weights(first, second, rtol=1e-5, atol=1e-6)
    assert not np.allclose(first.get_weights()[0], net(seed=2).get_weights()[0])


def test_a_softmax_layer_and_one_inside_a_nested_model():
    x = keras.Input((5,))
    by_layer = keras.Model(x, keras.layers.Softmax()(net(seed=2)(x)))
    nested = keras.Model(x, net(seed=2, last="softmax")(x))
    for model in (by_layer, nested):
        assert fitted(model) == pytest.approx(errors(net(seed=2)(X)).mean(), rel=1e-5)


@pytest.mark.parametrize("last, eager, y", [
    (None, False, Y % 2), (None, True, np.float32(Y % 2)), ("sigmoid", False, Y % 2),
    ("sigmoid", True, Y % 2), ("sigmoid", False, np.float32(Y % 2)[:, None]),
])  # fmt: skip
def test_one_sigmoid_unit(last, eager, y):
    p = 1 / (1 + np.exp(-net(seed=2, classes=1)(X).numpy().astype(np.float64)[:, 0]))
    expected = np.where(Y % 2, 1 - p, p).mean()
    found = fitted(net(seed=2, classes=1, last=last), y=y, eager=eager)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("last", [None, "sigmoid"])
def test_one_sigmoid_for_each_token(last):
    x, y = np.float32(np.random.default_rng(0).normal(size=(4, 3, 5))), np.eye(4, 3, dtype="int32")
    p = 1 / (1 + np.exp(-net(seed=2, classes=1)(x.reshape(12, 5)).numpy().reshape(4, 3)))
    inputs = keras.Input((3, 5))
    model = keras.Model(inputs, keras.layers.TimeDistributed(net(seed=2, classes=1))(inputs))
    if last:
        model = keras.Model(inputs, keras.layers.Activation(last)(model(inputs)))
    expected = np.where(y, 1 - p, p).mean()
    assert fitted(model, x, y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("last", [None, "softmax"])
def test_masked_tokens_and_weights(last):
    tokens, y = np.array([[1, 2, 0], [3, 0, 0]]), np.array([[0, 1, -1], [2, -1, -1]])
    x = keras.Input((3,), dtype="int32")
    hidden = keras.layers.Embedding(5, 4, mask_zero=True)(x)
    plain = toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), 1)
    scores, mask = plain(tokens).numpy(), tokens > 0
    model = keras.Model(x, keras.layers.Activation(last)(plain.output)) if last else plain
    weight = np.float32([2.0, 0.5])
    expected = errors(scores, np.where(mask, y, 0)) * weight[:, None]
    found = fitted(model, tokens, y, sample_weight=weight)
    assert found == pytest.approx(expected[mask].mean(), rel=1e-5)


def test_mixed_float16():
    x = keras.Input((5,))
    hidden = keras.layers.Dense(4, dtype="mixed_float16")(x)
    model = toys.randomize(keras.Model(x, keras.layers.Dense(3, dtype="mixed_float16")(hidden)), 1)
    expected = errors(model(X).numpy()).mean()
    assert fitted(model) == pytest.approx(expected, rel=1e-3)


def test_one_of_several_losses():
    x = keras.Input((5,))
    model = keras.Model(x, {"a": net(seed=2)(x), "b": keras.layers.Dense(2)(x)})
    model.compile("sgd", {"a": ExpectedErrorLoss(), "b": "mse"}, loss_weights={"a": 1.0, "b": 0.0})
    found = model.evaluate(X, {"a": Y, "b": np.zeros((8, 2))}, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(errors(net(seed=2)(X)).mean(), rel=1e-5)


@pytest.mark.parametrize("last, loss", [
    (None, ExpectedErrorLoss()), ("softmax", [ExpectedErrorLoss()])
])  # fmt: skip
def test_as_the_students_loss(last, loss):
    distiller = tfkd.Distiller(
        net(seed=1), net(seed=2, last=last), LogitsDistillation(), student_loss_weight=0.25
    )
    distiller.compile(keras.optimizers.SGD(0.0), loss, ["accuracy"])
    found = logs(distiller.fit(X, Y, batch_size=8, verbose=0))
    expected = errors(net(seed=2)(X)).mean()
    assert found["student_loss"] == pytest.approx(expected, rel=1e-5)
    kd = toys.soft_targets(net(seed=1)(X), net(seed=2)(X), 3.0).mean()
    assert found["loss"] == pytest.approx(0.25 * expected + 0.75 * kd, rel=1e-5)


def batches_of(count, batch):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return tf.data.Dataset.from_tensor_slices(data(count)).batch(batch).with_options(options)


def test_as_the_students_loss_on_two_replicas(two_replicas):
    weights = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            distiller = tfkd.Distiller(net(seed=1), net(seed=2), LogitsDistillation())
            distiller.compile(keras.optimizers.SGD(0.5), ExpectedErrorLoss())
        distiller.fit(batches_of(7, 3), verbose=0)
        weights.append(distiller.student.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m"])
def test_a_saved_model_goes_on_training(tmp_path, name):
    model = net(seed=2)
    model.compile("adam", ExpectedErrorLoss(name="mine"))
    model.fit(X, Y, verbose=0)
    model.save(str(tmp_path / name))
    loaded = keras.models.load_model(str(tmp_path / name))
    assert isinstance(loaded.loss, ExpectedErrorLoss) and loaded.loss.name == "mine"
    for one in (model, loaded):
        one.fit(X, Y, shuffle=False, verbose=0)
    toys.assert_same_weights(model, loaded, rtol=1e-5, atol=1e-5)


def test_a_saved_distiller_with_it_as_the_students_loss(tmp_path):
    distiller = tfkd.Distiller(net(seed=1), net(seed=2), LogitsDistillation())
    distiller.compile("adam", ExpectedErrorLoss())
    distiller.fit(X, Y, verbose=0)
    distiller.save(str(tmp_path / "d.keras"))
    loaded = keras.models.load_model(str(tmp_path / "d.keras"))
    for one in (distiller, loaded):
        one.fit(X, Y, shuffle=False, verbose=0)
    toys.assert_same_weights(distiller.student, loaded.student)


def test_compiled_by_xla():
    model = net(seed=2)
    model.compile(keras.optimizers.SGD(0.0), ExpectedErrorLoss(), jit_compile=True)
    found = logs(model.fit(X, Y, batch_size=8, verbose=0))["loss"]
    assert found == pytest.approx(errors(net(seed=2)(X)).mean(), rel=1e-5)


def test_it_trains():
    model = net(seed=2)
    x, y = np.eye(5, dtype=np.float32)[np.arange(30) % 3], np.arange(30) % 3
    model.compile(keras.optimizers.Adam(0.1), ExpectedErrorLoss(), ["accuracy"])
    found = model.fit(x, y, epochs=30, verbose=0).history
    assert found["accuracy"][-1] == 1.0 and found["loss"][-1] < 0.05 < found["loss"][0]


@pytest.mark.parametrize("y, words", [
    (np.zeros((8, 4)), r"`y`: expected labels of shape \(B\)"),
    (np.zeros((8, 2, 2)), "(?i)`y`|shape"),
])  # fmt: skip
def test_labels_that_do_not_fit(y, words):
    with pytest.raises(ValueError, match=words):
        fitted(net(seed=2), y=y)


@pytest.mark.parametrize("y", [Y + 1, Y - 1, np.eye(3)[Y] * 2, np.ones((8, 3))])
def test_labels_out_of_range(y):
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels from 0 to 2"):
        fitted(net(seed=2), y=y)
