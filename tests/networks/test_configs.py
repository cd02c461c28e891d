"""Models loaded from a SavedModel without the classes of their layers, copied and changed."""

import numpy as np
import pytest
import tf_keras as keras

import tfkd

X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")


class Halved(keras.layers.Layer):
    """x → (x + offset) / 2, whose config does not say so: it can't be built from that."""

    def __init__(self, offset, learns, **options):
        super().__init__(**options)
        self.offset, self.learns = offset, learns

    def build(self, shape):
        if self.learns:
            self.scale = self.add_weight("scale", shape[-1:], initializer="ones")

    def call(self, x):
        halved = (x + self.offset) / 2
        return halved * self.scale if self.learns else halved


def loaded(folder, learns=False):
    """Dense, halved, ReLU, Dense, halved otherwise; loaded without the class."""
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((8,))
    x = Halved(1.0, False, name="first")(x)
    x = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    x = keras.layers.Dense(3, name="scores")(x)
    x = Halved(-4.0, learns, name="last")(x)
    keras.Model(inputs, x).save(folder, save_format="tf")
    return keras.models.load_model(folder, compile=False)


def computed(model, x=X):
    """The same by NumPy, from the weights of the two Dense layers."""
    first, bias, second, end = (weight.numpy() for weight in model.weights)
    hidden = np.maximum((x + 1) / 2 @ first + bias, 0)
    return (hidden @ second + end - 4) / 2


def test_copies_compute_the_same_by_weights_of_their_own(tmp_path):
    model = loaded(tmp_path / "saved")
    frozen = tfkd.frozen_copy(model)
    before = computed(model)
    np.testing.assert_allclose(frozen.predict(X, verbose=0), before, atol=1e-5)
    model.get_layer("hidden").kernel.assign_add(np.ones((8, 16)))
    np.testing.assert_allclose(frozen.predict(X, verbose=0), before, atol=1e-5)
    again = tfkd.frozen_copy(frozen, fold_batch_norm=True)
    np.testing.assert_allclose(again.predict(X, verbose=0), before, atol=1e-5)


def test_it_is_shrunk_quantized_and_exported(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = loaded(tmp_path / "saved")
    selection = tfkd.pruning.select(model, tfkd.pruning.plan(model, filter_rate=0.5))
    small = tfkd.pruning.shrink(model, selection)
    assert small.get_layer("hidden").units == 8
    np.testing.assert_allclose(small.predict(X, verbose=0), computed(small), atol=1e-5)
    quantized = tfkd.quantization.quantize(small)
    tfkd.quantization.calibrate(quantized, X)
    expected = computed(small)
    error = np.abs(quantized.predict(X, verbose=0) - expected).max()
    assert error < 0.05 * np.ptp(expected)
    report = tfkd.export.to_tflite(quantized, tmp_path / "m.tflite", verify=X)
    assert report.numbers["mean_error"] < 0.02
    small.save(tmp_path / "small", save_format="tf")
    stored = keras.models.load_model(tmp_path / "small", compile=False)
    np.testing.assert_allclose(stored.predict(X, verbose=0), expected, atol=1e-5)


def test_a_file_that_cannot_hold_it_says_so_when_it_is_loaded(tmp_path):
    tfkd.frozen_copy(loaded(tmp_path / "saved")).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="'first' was loaded from a SavedModel.*model.save"):
        keras.models.load_model(tmp_path / "m.keras")


def test_weights_without_a_class_are_refused_by_name(tmp_path):
    model = loaded(tmp_path / "saved", learns=True)
    said = "'last', a Halved with weights.*custom_objects={'Halved': Halved}"
    with pytest.raises(ValueError, match=said):
        tfkd.frozen_copy(model)
    with pytest.raises(ValueError, match=said):
        tfkd.quantization.quantize(model)
