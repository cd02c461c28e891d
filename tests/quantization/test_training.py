"""Quantized models in training: alone, distilled, compiled, on two replicas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd.quantization import calibrate, quantize

L = keras.layers
RNG = np.random.default_rng(1)
X = RNG.normal(size=(16, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, 16)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    x = keras.Input((6, 6, 2), name="image")
    y = L.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(y))
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))


def student(target="both"):
    q = quantize(network(), target)
    calibrate(q, X)
    return q


def test_plain_fit_trains_weights_and_ranges():
    q = student("tflite")
    before, ranges = q.get_layer("conv").layer.kernel.numpy(), q.ranges
    q.compile(keras.optimizers.SGD(0.1), LOSS)
    losses = q.fit(X, Y, epochs=8, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0]
    assert (q.get_layer("conv").layer.kernel.numpy() != before).any()
    assert q.ranges["relu"] != ranges["relu"]
    after = q.ranges
    q.evaluate(X, Y, verbose=0)
    assert q.ranges == after
    assert isinstance(q.get_layer("conv").layer.kernel, tf.Variable)


def test_compiled_by_xla_a_step_is_the_same():
    results = []
    data = RNG.normal(size=(8, 3)).astype("float32")
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        x = keras.Input((3,), name="x")
        q = quantize(keras.Model(x, L.Dense(2, name="dense")(x)))
        calibrate(q, data / 2)
        q.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        q.train_on_batch(data, np.ones((8, 2)))
        results.append([*q.get_weights(), *q.ranges.values()])
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(plain, compiled, rtol=1e-4, atol=1e-5)


def test_a_distiller_takes_it_as_student_with_losses_on_its_layers():
    teacher, q = network(), student()
    distiller = tfkd.Distiller(
        teacher,
        q,
        [
            tfkd.losses.LogitsDistillation(temperature=2.0),
            tfkd.losses.FeatureDistillation(teacher_layer_name="relu", student_layer_name="relu"),
        ],
    )
    distiller.compile(keras.optimizers.SGD(0.05), LOSS)
    history = distiller.fit(X, Y, epochs=6, verbose=0, shuffle=False).history
    assert history["total_loss"][-1] < history["total_loss"][0]
    assert len(distiller.trainable_variables) == len(q.trainable_variables)


def test_a_step_is_that_of_the_quantized_weights_and_the_old_range():
    x = keras.Input((2,), name="x")
    q = quantize(keras.Model(x, L.Dense(1, use_bias=False, name="dense")(x)), "both")
    kernel = q.get_layer("dense").layer.kernel
    kernel.assign([[1.0], [0.503]])
    data = np.array([[1.27, -0.5], [0.0, 0.0]], np.float32)
    calibrate(q, data)
    with tf.GradientTape() as tape:
        y = q(data[:1], training=True)
    # The weights lie on steps of 1/127, the inputs on steps of 0.01.
    expected = 1.27 * 1.0 - 0.5 * np.round(0.503 * 127) / 127
    assert q.ranges["dense"][1] == pytest.approx(1.27 - 0.5 * 64 / 127, rel=1e-5)
    assert y.numpy().item() == pytest.approx(expected, abs=expected / 254 + 1e-6)
    (gradient,) = tape.gradient(y, q.trainable_variables)
    np.testing.assert_allclose(gradient, [[1.27], [-0.5]], atol=1e-5)


def test_weights_that_were_calibrated_calibrate(tmp_path):
    q = student()
    q.save_weights(tmp_path / "q.weights.h5")
    again = quantize(network(), "both")
    with pytest.raises(RuntimeError, match="calibrate"):
        again(X)
    again.load_weights(tmp_path / "q.weights.h5")
    assert again.calibrated
    np.testing.assert_array_equal(again(X), q(X))


def test_two_replicas_move_a_range_by_the_mean_of_both(two_replicas):
    with two_replicas.scope():
        x = keras.Input((2,), name="x")
        q = quantize(keras.Model(x, L.Dense(2, name="dense")(x)))
        q.compile(keras.optimizers.SGD(0.0), "mse")
    data = np.array([[1.0, -1.0], [0.5, 0.0], [4.0, -2.0], [1.0, -6.0]], np.float32)
    calibrate(q, data[:2])
    assert q.ranges["x_quantize"] == (-1.0, 1.0)
    q.fit(data, np.zeros((4, 2)), batch_size=4, shuffle=False, verbose=0)
    # The first replica sees [-1, 1], the second [-6, 4].
    expected = (0.99 * -1 + 0.01 * -3.5, 0.99 * 1 + 0.01 * 2.5)
    np.testing.assert_allclose(q.ranges["x_quantize"], expected, rtol=1e-5)


def test_a_distiller_refuses_it_uncalibrated_and_goes_on_once_it_is():
    q = quantize(network(), "both")
    distiller = tfkd.Distiller(network(), q, tfkd.losses.LogitsDistillation())
    distiller.compile("sgd", LOSS)
    for refused in (distiller.fit, distiller.evaluate):
        with pytest.raises(RuntimeError, match=r"tfkd\.quantization\.calibrate"):
            refused(X, Y, verbose=0)
    calibrate(q, X)
    assert np.isfinite(distiller.fit(X, Y, verbose=0).history["loss"][0])
