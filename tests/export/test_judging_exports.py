"""Exports that are accepted, warned of or refused by what their outputs are."""

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import artifacts, export
from tfkd.export import saved_model
from tfkd.export.named_function import NamedFunction

layers = keras.layers
RNG = np.random.default_rng(0)


def test_a_confident_classifier_is_exported_in_int8(tmp_path):
    keras.utils.set_random_seed(0)
    centres, y = RNG.normal(size=(4, 8)) * 2, RNG.integers(0, 4, 600)
    x = (centres[y] + RNG.normal(size=(600, 8))).astype("float32")
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu")])
    model.add(layers.Dense(4, "softmax"))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=30, verbose=0)
    assert (model.predict(x, verbose=0).max(1) > 0.998).mean() > 0.5
    path = tmp_path / "m.tflite"
    report = export.to_tflite(model, path, mode="int8", data=x[:300], verify=x[300:])
    assert report.numbers["clipped"] == 0 and report.numbers["failures"] == []
    assert report.numbers["outputs"]["dense_1"]["kind"] == "classes"


def test_two_classes_that_are_far_apart(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(2, activation="softmax")])
    model.layers[-1].set_weights([RNG.normal(size=(8, 2)) * 10, np.zeros(2)])
    x = RNG.normal(size=(400, 8)).astype("float32")
    report = export.to_tflite(
        model, tmp_path / "m.tflite", mode="int8", data=x[:200], verify=x[200:]
    )
    assert report.numbers["clipped"] == 0


def test_a_tanh_at_its_ends_is_not_clipped(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3, activation="tanh")])
    model.layers[-1].set_weights([RNG.normal(size=(8, 3)) * 10, np.zeros(3)])
    x = RNG.normal(size=(200, 8)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits = {"dense": {"min_agreement": 0}}
        name = model.output_names[0]
        report = export.to_tflite(
            model, tmp_path / "m.tflite", "int8", data=x, verify=x, thresholds={name: limits["dense"]}
        )
    assert report.numbers["clipped"] == 0
