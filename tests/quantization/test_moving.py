"""Layers of unknown classes that only move numbers keep the grid of their input."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import export, quantization
from tfkd.quantization.moving import only_moves

X = np.random.default_rng(0).normal(size=(16, 8, 6, 1)).astype("float32")


class Moved(keras.layers.Layer):
    """A layer of a user, by a function."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": self.function}


def flattened(x):
    return tf.reshape(x, (-1, 8, 6))


@pytest.mark.parametrize(
    ("function", "moves"),
    [
        (lambda x: tf.squeeze(x, -1), True),
        (lambda x: tf.reshape(x, (-1, tf.shape(x)[1] * 2, 3, 1)), True),
        (lambda x: tf.transpose(x, (0, 2, 1, 3))[:, 1:], True),
        (tf.function(lambda x: tf.expand_dims(x, 1)), True),
        (lambda x: x + 1.0, False),
        (lambda x: tf.reshape(x, (-1, 48)) * 2, False),
        (lambda x: tf.zeros_like(x), False),
        (lambda x: tf.reduce_max(x, 1), False),
        (lambda x: (x, x), False),
        (lambda x: 1 / 0, False),
    ],
)
def test_graphs_that_only_move(function, moves):
    assert only_moves(Moved(function), keras.Input((8, 6, 1))) is moves


def test_variables_are_no_moves():
    variable = tf.Variable([[1.0]])
    assert not only_moves(Moved(lambda x: tf.reshape(variable, (1, 1))), keras.Input((3,)))


@pytest.mark.parametrize("target", ["tflite", "both"])
def test_behind_an_operation_of_fixed_range_there_is_a_file(target, tmp_path):
    """With a range of its own TFLite's converter refused the model."""
    pytest.importorskip("ai_edge_litert")
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 6, 1))
    map_ = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs)
    flat = Moved(flattened, name="flat")(map_)
    outputs = keras.layers.Conv2D(4, 3)(tf.expand_dims(flat, -1))
    q = quantization.quantize(keras.Model(inputs, [flat, outputs]), target=target)
    quantization.calibrate(q, X)
    assert {row.layer: row.action for row in q.report.rows}["flat"] == "same grid"
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=X)
    assert report.numbers["mean_error"] < 0.01
