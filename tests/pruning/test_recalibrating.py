"""Moving statistics taken anew; expected values from NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import assert_untouched, weights_of

from tfkd import pruning


def data(count=60, seed=0):
    return np.random.default_rng(seed).normal(3, 2, (count, 4, 4, 2)).astype("float32")


def net():
    x = keras.Input((4, 4, 2))
    y = keras.layers.BatchNormalization(name="norm", momentum=0.7)(x)
    y = keras.layers.Dropout(0.5)(y)
    return keras.Model(x, keras.layers.Conv2D(3, 1, name="conv")(y))


def expected(images, size):
    """Mean and variance of each batch (with Bessel's correction, as TensorFlow), averaged."""
    parts = [images[i : i + size].reshape(-1, 2) for i in range(0, len(images), size)]
    means = np.mean([p.mean(0) for p in parts], 0)
    return means, np.mean([p.var(0, ddof=1) for p in parts], 0)


@pytest.mark.parametrize("kind", ["array", "tensor", "dataset", "labelled dataset"])
def test_statistics_are_the_averages_over_batches(kind):
    images, model = data(), net()
    given = {
        "array": images,
        "tensor": tf.constant(images),
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(20),
        "labelled dataset": tf.data.Dataset.from_tensor_slices((images, images)).batch(20),
    }[kind]
    conv = model.get_layer("conv").get_weights()
    assert pruning.recalibrate(model, given, batch_size=20) == 3
    norm, (mean, variance) = model.get_layer("norm"), expected(images, 20)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)
    assert norm.momentum == 0.7
    for before, after in zip(conv, model.get_layer("conv").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_max_examples_ends_data_that_never_ends():
    images, model = data(), net()
    endless = tf.data.Dataset.from_tensor_slices(images).batch(20).repeat()
    assert pruning.recalibrate(model, endless, max_examples=40) == 2
    np.testing.assert_allclose(
        model.get_layer("norm").moving_mean, expected(images[:40], 20)[0], rtol=1e-5
    )


def test_the_model_trains_and_predicts_as_before_afterwards():
    images, model = data(), net()
    pruning.recalibrate(model, images)
    mean = model.get_layer("norm").moving_mean.numpy()
    first, second = model.predict(images, verbose=0), model.predict(images, verbose=0)
    np.testing.assert_array_equal(first, second)  # no dropout
    np.testing.assert_array_equal(mean, model.get_layer("norm").moving_mean)
    model.compile("sgd", "mse")
    model.fit(images + 1, np.zeros((60, 4, 4, 3)), batch_size=60, verbose=0)
    batch_mean = (images + 1).reshape(-1, 2).mean(0)
    np.testing.assert_allclose(
        model.get_layer("norm").moving_mean, 0.7 * mean + 0.3 * batch_mean, rtol=1e-4
    )


def test_frozen_layers_keep_their_statistics():
    model = net()
    model.get_layer("norm").trainable = False
    before = weights_of(model)
    pruning.recalibrate(model, data())
    assert_untouched(before, model)


def test_several_inputs():
    a, b = keras.Input((4, 4, 2), name="a"), keras.Input((4, 4, 2), name="b")
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model({"a": a, "b": b}, keras.layers.Add()([norm(a), b]))
    images = data()
    pruning.recalibrate(model, {"a": images, "b": images}, batch_size=30)
    np.testing.assert_allclose(norm.moving_mean, expected(images, 30)[0], rtol=1e-5)


def test_bad_data_leaves_the_model_as_it_was():
    model, images = net(), data()
    before = weights_of(model)
    images[50, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"`data`: expected finite values.*Example 50 holds NaN"):
        pruning.recalibrate(model, images, batch_size=20)
    with pytest.raises(ValueError, match="at least one example"):
        pruning.recalibrate(model, images[:0])
    with pytest.raises(TypeError, match="`data`: expected an array"):
        pruning.recalibrate(model, 3)
    with pytest.raises(TypeError, match="`model`"):
        pruning.recalibrate(lambda x: x, images)
    with pytest.raises(ValueError, match="`max_examples`"):
        pruning.recalibrate(model, data(), max_examples=0)
    assert_untouched(before, model)
    assert model.get_layer("norm").momentum == 0.7
