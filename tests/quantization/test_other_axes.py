"""Scales and offsets that are not one for each channel of the last axis."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd.formats import litert
from tfkd.networks.batch_norm import is_per_channel
from tfkd.quantization import calibrate, quantize
from tfkd.runtime import Predictor

L = keras.layers
RNG = np.random.default_rng(4)
LARGEST = 0.02  # of the range: what a few codes of rounding are


def conv(filters=4, size=3):
    return L.Conv2D(filters, size, padding="same")


def norm_1():
    return lambda x: conv(2, 1)(L.BatchNormalization(axis=1)(conv()(x)))


def norm_back_2():
    return lambda x: conv(2, 1)(L.BatchNormalization(axis=-2, scale=False)(conv()(x)))


def norm_two_axes():
    return lambda x: conv(2, 1)(L.BatchNormalization(axis=[1, 3], center=False)(conv()(x)))


def norm_after_dense():
    return lambda x: L.Dense(2)(L.BatchNormalization(axis=1)(L.Dense(4)(x)))


def shared_norm():
    norm = L.BatchNormalization(axis=1)
    return lambda x: L.Add()([norm(conv()(x)), norm(conv()(x))])


def by_row():
    scale, offset = RNG.uniform(0.5, 2, (4, 1, 1)), RNG.normal(size=(4, 1, 1))
    return lambda x: conv(2, 1)(L.Rescaling(scale, offset)(conv()(x)))


def by_place():
    scale = RNG.uniform(0.5, 2, (4, 4, 4)).astype("float32")
    return lambda x: conv(2, 1)(L.Rescaling(scale, 1.0)(x))


def by_channel_with_axes():
    scale, offset = RNG.uniform(0.5, 2, (1, 1, 4)), RNG.normal(size=(1, 1, 1, 4))
    return lambda x: conv(2, 1)(L.Rescaling(scale, offset)(conv()(x)))


def channels_from_one():
    return lambda x: conv(2, 1)(L.Rescaling([0.5, 1.0, -2.0])(L.Reshape((8, 8, 1))(x)))


def means_of_channels_first():
    pool = L.AveragePooling2D(2, data_format="channels_first")
    return lambda x: L.BatchNormalization(axis=1)(pool(x))


CASES = {
    norm_1: (4, 4, 4),  # as many rows as channels
    norm_back_2: (6, 5, 4),
    norm_two_axes: (4, 5, 4),
    norm_after_dense: (5, 4),
    shared_norm: (4, 4, 4),
    by_row: (4, 4, 4),
    by_place: (4, 4, 4),
    by_channel_with_axes: (4, 4, 4),
    channels_from_one: (8, 8),
    means_of_channels_first: (4, 4, 4),
}


def built(case, shape):
    keras.utils.set_random_seed(1)
    x = keras.Input(shape)
    model = keras.Model(x, case()(x))
    settle(model)
    return model


def settle(model):
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([RNG.uniform(0.2, 3, w.shape) for w in layer.get_weights()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_file_and_the_loaded_model_compute_what_the_float_model_does(case, tmp_path):
    model = built(case, CASES[case])
    x = RNG.normal(size=(32, *CASES[case])).astype("float32")
    q = quantize(model, target="both")
    calibrate(q, x)
    want = model.predict(x, verbose=0)
    room = 2 * LARGEST * np.ptp(want)
    tfkd.export.to_tflite(q, tmp_path / "m.tflite")
    assert np.abs(Predictor(tmp_path / "m.tflite")(x) - want).max() < room
    again = tfkd.quantization.load(tfkd.quantization.save(q, tmp_path / "q.npz"))
    assert np.abs(again.predict(x, verbose=0) - want).max() < room


def test_for_tensorrt_too(tmp_path):
    model = built(norm_1, (6, 4, 4))
    x = RNG.normal(size=(16, 6, 4, 4)).astype("float32")
    q = quantize(model, target="tensorrt")
    calibrate(q, x)
    tfkd.export.to_onnx(q, tmp_path / "m.onnx", target="tensorrt")
    want = model.predict(x, verbose=0)
    assert np.abs(Predictor(tmp_path / "m.onnx")(x) - want).max() < 2 * LARGEST * np.ptp(want)


def test_the_report_says_what_stays_float():
    q = quantize(built(norm_1, (4, 4, 4)))
    row = next(row for row in q.report.rows if row.kind == "BatchNormalization")
    assert row.action == "output only" and "last axis" in row.why
    with pytest.raises(ValueError, match="last axis"):
        quantize(built(by_row, (4, 4, 4)), fallback="error")


def test_one_factor_a_channel_is_an_integer_kernel_in_any_form(tmp_path):
    x = RNG.normal(size=(16, 4, 4, 4)).astype("float32")
    q = quantize(built(by_channel_with_axes, (4, 4, 4)))
    assert "fused" in {row.action for row in q.report.rows}
    calibrate(q, x)
    made = tfkd.export.to_tflite(q, tmp_path / "m.tflite")
    assert not litert.operations(made.path)["float_operations"]


@pytest.mark.parametrize("axis", [1, -3, [1, 3], 2])
def test_a_frozen_copy_keeps_what_it_can_not_fold(axis):
    x = keras.Input((4, 4, 4))
    model = keras.Model(x, L.BatchNormalization(axis=axis)(conv()(x)))
    settle(model)
    frozen = tfkd.frozen_copy(model, fold_batch_norm=True)
    data = RNG.normal(size=(4, 4, 4, 4)).astype("float32")
    np.testing.assert_allclose(frozen(data), model(data), rtol=1e-4, atol=1e-4)
    assert isinstance(frozen.layers[-1], L.BatchNormalization)


@keras.saving.register_keras_serializable("test_other_axes")
class Doubled(L.BatchNormalization):
    """Not what its weights say."""

    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)


@keras.saving.register_keras_serializable("test_other_axes")
class InInference(L.BatchNormalization):
    """What its weights say."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=False)


def test_a_class_of_the_user_is_folded_where_its_values_allow_it():
    for kind, per_channel in ((Doubled, False), (InInference, True)):
        layer = kind()
        layer.build((None, 4, 4, 3))
        layer.set_weights([RNG.uniform(0.2, 3, 3) for _ in range(4)])
        assert is_per_channel(layer, (None, 4, 4, 3)) is per_channel


def test_statistics_of_each_batch_are_refused():
    x = keras.Input((4, 4, 4))
    model = keras.Model(x, L.BatchNormalization(name="odd")(conv()(x), training=True))
    with pytest.raises(ValueError, match="'odd', called with training=True"):
        quantize(model)
