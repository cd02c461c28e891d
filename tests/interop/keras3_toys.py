"""Keras 3 for the tests of `from_keras3`, models with random weights, and the comparison.

Where Keras 3 is not installed, importing this skips the module that does.
"""

from __future__ import annotations

import importlib.metadata
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfkd

try:
    VERSION = importlib.metadata.version("keras")
except importlib.metadata.PackageNotFoundError:
    VERSION = "none"
if not VERSION.startswith("3.15."):
    pytest.skip(f"Keras 3.15 is needed, installed is {VERSION}", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers as L  # noqa: F401
from keras import ops  # noqa: F401

IMAGE = (6, 6, 4)
WORDS = 11


def randomized(model, seed=0):
    """Gives every weight of a Keras 3 model random numbers; variances stay positive."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "int" in str(weight.dtype):
            continue
        positive = "variance" in weight.path
        value = rng.uniform(0.5, 2, weight.shape) if positive else rng.normal(size=weight.shape)
        weight.assign(0.5 * value)
    return model


def batch_for(model, seed=3):
    """Random inputs: normal numbers, or words with many zeros."""
    rng = np.random.default_rng(seed)

    def draw(tensor):
        shape = [3 if size is None else size for size in tensor.shape]
        if "int" in tensor.dtype:
            return (rng.integers(0, WORDS, shape) * rng.integers(0, 2, shape)).astype(tensor.dtype)
        return rng.normal(size=shape).astype(tensor.dtype)

    is_chain = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(draw, model.inputs[0] if is_chain else model.input)


def check(model, tolerance=1e-5, **kwargs):
    """Converts, and compares outputs, structure, names and weights with the original."""
    made = tfkd.from_keras3(model, **kwargs)
    assert isinstance(made, tf_keras.Model) and made.name == model.name
    batch = batch_for(model)
    expected, found = model(batch, training=False), made(batch, training=False)
    tf.nest.assert_same_structure(expected, found)
    for theirs, ours in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
        assert ours.dtype == theirs.dtype
        theirs, ours = np.asarray(theirs, "float64"), np.asarray(ours, "float64")
        assert np.abs(theirs - ours).max(initial=0) <= tolerance * max(np.ptp(theirs), 1e-3)
    theirs = [np.asarray(weight) for weight in model.weights]
    ours = made.get_weights()
    assert [w.shape for w in theirs] == [w.shape for w in ours]
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)
    names = {layer.name for layer in made.layers}
    assert {layer.name for layer in model.layers} <= names | {"masks"}
    return made


def through(shape, *chain, dtype="float32"):
    """A functional model: the input through layers and functions, one after the other."""
    x = y = keras.Input(shape, dtype=dtype, name="x")
    for one in chain:
        y = one(y)
    return randomized(keras.Model(x, y, name="net"))
