"""Parts of layers that TensorFlow's own list fails on."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

from tfkd import quantization
from tfkd.export import to_tflite
from tfkd.networks.layer_parts import parts
from tfkd.runtime import Predictor

RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)


def with_dropout(kind: type, **kwargs) -> keras.Model:
    layers = [kind(4, recurrent_dropout=0.2, **kwargs), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 3)), *layers])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 6, 3)), np.zeros((4, 3)), verbose=0)
    return model


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_cell_of_a_layer_with_recurrent_dropout_is_found(kind):
    model = with_dropout(kind)
    with pytest.raises(ValueError, match="_dropout_mask_cache"):
        _ = model.submodules  # as soon as this works, `parts` is of no use
    assert {model.layers[0].cell, *model.layers} <= set(parts(model))


def test_a_trained_layer_with_recurrent_dropout_is_exported_and_quantized(tmp_path):
    model = with_dropout(keras.layers.LSTM)
    data = np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32")
    expected = model.predict(data, verbose=0)
    to_tflite(model, tmp_path / "m.tflite")
    np.testing.assert_allclose(Predictor(tmp_path / "m.tflite")(data), expected, atol=1e-5)
    quantized = quantization.quantize(model)
    quantization.calibrate(quantized, data)
    assert np.abs(quantized.predict(data, verbose=0) - expected).max() < 0.05 * np.ptp(expected)
