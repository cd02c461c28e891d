"""Fake quantization against NumPy: grids, gradients, moving ranges."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer
from tfkd.quantization.wrappers import QuantizedTensor


def quantized(quantizer, low, high):
    """A layer over three numbers whose range is set."""
    layer = QuantizedTensor(quantizer, name="q")
    layer(tf.zeros((1, 3)), training=False)
    layer.quantizer_vars["low"].assign(low)
    layer.quantizer_vars["high"].assign(high)
    return layer


def ends(layer):
    return [float(layer.quantizer_vars[key]) for key in ("low", "high")]


def test_symmetric_ranges_have_127_steps_to_each_side():
    layer = quantized(RangeQuantizer(symmetric=True), -1.27, 1.27)
    x = np.array([[-9.0, -1.27, -0.014, 0.0, 0.004, 0.016, 1.27, 9.0]], np.float32)
    expected = np.clip(np.round(x / 0.01), -127, 127) * 0.01
    np.testing.assert_allclose(layer(x, training=False), expected, atol=1e-6)


def test_affine_ranges_have_256_codes_and_an_exact_zero():
    layer = quantized(RangeQuantizer(symmetric=False), -1.0, 1.55)  # a step is 0.01
    x = np.linspace(-1.2, 1.8, 301, dtype=np.float32)[None] + 0.0012
    expected = (np.clip(np.round(x / 0.01) + 100, 0, 255) - 100) * 0.01
    result = layer(x, training=False).numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert len(np.unique(result)) == 256
    assert layer(tf.zeros((1, 3)), training=False).numpy().tolist() == [[0, 0, 0]]


def test_the_gradient_passes_within_the_range_and_is_0_where_clipped():
    layer = quantized(RangeQuantizer(symmetric=True), -1.0, 1.0)
    x = tf.constant([[-1.5, 0.3, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, training=False) * [[2.0, 3.0, 4.0]])
    assert tape.gradient(y, x).numpy().tolist() == [[0.0, 3.0, 0.0]]


@pytest.mark.parametrize(
    ("symmetric", "low", "high"),
    # 0.99 of the old range and 0.01 of the batch, whose values lie in [-3, 8].
    [(False, -0.99 - 0.03, 1.98 + 0.08), (True, -1.98 - 0.08, 1.98 + 0.08)],
)
def test_ranges_follow_the_batches_in_training_alone(symmetric, low, high):
    start = (-2.0, 2.0) if symmetric else (-1.0, 2.0)
    layer = quantized(RangeQuantizer(symmetric), *start)
    x = tf.constant([[-3.0, 0.5, 8.0]])
    layer(x, training=False)
    assert ends(layer) == list(start)
    layer(x, training=True)
    np.testing.assert_allclose(ends(layer), [low, high], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_moves_no_range(bad):
    layer = quantized(RangeQuantizer(symmetric=False), -1.0, 2.0)
    layer(tf.constant([[1.0, bad, 5.0]]), training=True)
    assert ends(layer) == [-1.0, 2.0]


def test_a_known_range_never_moves():
    layer = QuantizedTensor(RangeQuantizer(False, fixed=(0.0, 255 / 256)), name="q")
    result = layer(tf.constant([[0.5, 1.0, 7.0]]), training=True).numpy()
    np.testing.assert_allclose(result, [[0.5, 255 / 256, 255 / 256]], atol=1e-6)
    assert ends(layer) == [0.0, 255 / 256]


def test_bad_known_ranges_are_refused():
    with pytest.raises(ValueError, match="contains 0"):
        RangeQuantizer(False, fixed=(0.5, 1.0))
    with pytest.raises(ValueError, match="symmetric"):
        RangeQuantizer(True, fixed=(0.0, 1.0))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 3, 2, 5), (3,)), ((3, 3, 4, 2), (2, 3)), ((3, 3, 5, 2), (2,)), ((3, 2, 4), (2,))],
    ids=["Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Conv1D"],
)
def test_weights_have_a_scale_for_each_output_channel(shape, axes):
    w = np.random.default_rng(0).normal(size=shape).astype("float32")
    rest = tuple(axis for axis in range(len(shape)) if axis not in axes)
    w[(slice(None),) * 2 + (0,) * (len(shape) - 2)] *= 50
    scale = np.abs(w).max(axis=rest, keepdims=True) / 127
    result = WeightQuantizer(axes)(w, False, {}).numpy()
    np.testing.assert_allclose(result, np.round(w / scale) * scale, atol=1e-4 * scale.max())
    np.testing.assert_allclose(np.abs(result).max(axis=rest), scale.squeeze(rest) * 127, rtol=1e-5)


def test_weights_of_a_dense_layer_share_a_scale_and_keep_their_gradient():
    w = tf.Variable([[0.001, -2.0], [0.3, 1.27]])
    with tf.GradientTape() as tape:
        y = WeightQuantizer()(w, True, {})
        loss = tf.reduce_sum(y * [[1.0, 2.0], [3.0, 4.0]])
    scale = 2.0 / 127
    np.testing.assert_allclose(y, np.round(w.numpy() / scale) * scale, atol=1e-6)
    assert tape.gradient(loss, w).numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_channel_that_is_all_zero_stays_zero():
    w = np.zeros((2, 3), np.float32)
    w[:, 0] = [1.0, -0.5]
    result = WeightQuantizer((1,))(w, False, {}).numpy()
    assert np.isfinite(result).all()
    assert not result[:, 1:].any()


def test_layers_are_made_again_from_their_configs():
    layer = QuantizedTensor(RangeQuantizer(True, fixed=(-1.0, 1.0)), name="q")
    with keras.utils.custom_object_scope({"tfkd>RangeQuantizer": RangeQuantizer}):
        again = QuantizedTensor.from_config(layer.get_config())
    assert again.quantizer.get_config() == layer.quantizer.get_config()
