"""Small models and data for the tests of the Distiller, and formulas in NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import losses

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def randomize(model, seed, scale=0.7):
    """Random weights that do not depend on the order in which models are made."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = scale * rng.normal(size=variable.shape)
        if "variance" in variable.name or "gamma" in variable.name:
            value = 0.5 + np.abs(value)
        if variable.dtype.is_floating:
            variable.assign(value.astype(np.float32))
    return model


def net(width=4, seed=1, classes=3, inputs=5, last=None, regularizer=None, name=None):
    """Dense(width, tanh) "hidden", then Dense(classes) "scores"."""
    x = keras.Input((inputs,))
    hidden = keras.layers.Dense(width, "tanh", kernel_regularizer=regularizer, name="hidden")(x)
    scores = keras.layers.Dense(classes, last, name="scores")(hidden)
    return randomize(keras.Model(x, scores, name=name), seed)


def data(count=8, inputs=5, classes=3, seed=0):
    """x (count, inputs) and class numbers y (count,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, inputs)).astype(np.float32)
    return x, rng.integers(0, classes, count).astype(np.int32)


def losses_of_detectors():
    """Names in tfkd.losses that need a detector: test_detector_distilling.py has them."""
    names = losses.__all__
    home = "tfkd.losses.detection"
    return {name for name in names if getattr(losses, name).__module__.startswith(home)}


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def soft_targets(teacher, student, temperature):
    """T² · KL of each example, from scores."""
    t = log_softmax(np.asarray(teacher, np.float64) / temperature)
    s = log_softmax(np.asarray(student, np.float64) / temperature)
    return temperature**2 * (np.exp(t) * (t - s)).sum(-1)


def crossentropy(y, scores):
    """-log p of the label, of each example, from scores."""
    return -np.take_along_axis(log_softmax(scores), np.asarray(y)[..., None], -1)[..., 0]


def logs(history):
    """Logs of the last epoch."""
    return {name: values[-1] for name, values in history.history.items()}


def copy_of(model):
    """An independent model with the same weights."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def assert_same_weights(first, second, **tolerance):
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


def assert_untouched(before, model):
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@keras.saving.register_keras_serializable(package="tests")
class Counter(keras.layers.Layer):
    """Returns its input and counts how often it is called."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            name="calls",
            shape=(),
            dtype="int64",
            trainable=False,
            initializer="zeros",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def call(self, inputs):
        self.calls.assign_add(1)
        return tf.identity(inputs)
