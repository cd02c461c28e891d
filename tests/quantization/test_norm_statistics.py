"""Moving statistics that do not fit the data are found; those of trained networks do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd.quantization import calibrate, quantize

L = keras.layers
RNG = np.random.default_rng(3)
PATTERNS = RNG.normal(size=(4, 8, 8, 1))


def examples(count, only=None):
    labels = RNG.integers(0, 4, count) if only is None else np.full(count, only)
    x = PATTERNS[labels] + RNG.normal(0, 0.7, (count, 8, 8, 1))
    return x.astype("float32"), labels


def network():
    x = keras.Input((8, 8, 1))
    y = x
    for number in range(3):
        y = L.Conv2D(16, 3, 1 + number % 2, "same", use_bias=False, name=f"conv{number}")(y)
        y = L.BatchNormalization(momentum=0.9, name=f"norm{number}")(y)
        y = L.ReLU()(y)
    return keras.Model(x, L.Dense(4)(L.GlobalAveragePooling2D()(y)))


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(*examples(768), epochs=6, verbose=0)
    return model


def said(model, x):
    q = quantize(model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        calibrate(q, x)
    return [str(w.message) for w in found if "moving statistics" in str(w.message)]


@pytest.mark.parametrize(("count", "only"), [(1, None), (8, None), (300, None), (8, 2), (100, 0)])
def test_nothing_is_said_of_a_trained_network(trained, count, only):
    assert said(trained, examples(count, only)[0]) == []


def test_a_new_network_is_found_and_recalibrated():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Rescaling(1e-2), *network().layers[1:]])
    x = examples(64)[0]
    (message,) = said(model, x)
    assert "3 of 3" in message and "'norm0'" in message
    assert "tfkd.pruning.recalibrate" in message
    tfkd.pruning.recalibrate(model, x)
    # The statistics of each layer were taken behind those of the batch.
    assert said(model, x) == []


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 100.0), (0.0, 0.01), (30.0, 1.0)])
def test_one_layer_that_is_off_is_named(trained, mean, variance):
    model = tfkd.frozen_copy(trained)
    norm = model.get_layer("norm2")
    gamma, beta, means, variances = norm.get_weights()
    norm.set_weights([gamma, beta, means + mean, variances * variance])
    (message,) = said(model, examples(64)[0])
    assert "1 of 3" in message and "'norm2'" in message
    # E(x − μ)² is 1 / 100 and 1 / 0.01 of the variance.
    factor = {100.0: "0.1 times", 0.01: "10 times"}.get(variance, "times")
    assert factor in message or variance == 0.01


def test_filters_that_have_decayed_to_zero_do_not_count(trained):
    model = keras.models.clone_model(trained)
    model.set_weights(trained.get_weights())
    for number in range(2):
        gamma, beta, means, variances = model.get_layer(f"norm{number}").get_weights()
        kernel = model.get_layer(f"conv{number}").get_weights()[0]
        for array in (gamma, beta, kernel):
            array[..., :15] = 0
        model.get_layer(f"norm{number}").set_weights([gamma, beta, means, variances])
        model.get_layer(f"conv{number}").set_weights([kernel])
    messages = said(model, examples(64)[0])
    assert not messages or ("norm0" not in messages[0])


def test_a_quantized_model_is_recalibrated_past_its_ranges(trained):
    q = quantize(trained)
    x = examples(64)[0]
    norm = q.get_layer("norm1")
    norm = getattr(norm, "layer", norm)
    norm.moving_variance.assign(1e4 * norm.moving_variance)
    calibrate(q, x)
    assert tfkd.pruning.recalibrate(q, x, batch_size=64) == 1
    want = network()
    want.set_weights(trained.get_weights())
    tfkd.pruning.recalibrate(want, x, batch_size=64)
    found, expected = norm.moving_variance.numpy(), want.get_layer("norm1").moving_variance.numpy()
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=1e-3)
    assert not norm.trainable
