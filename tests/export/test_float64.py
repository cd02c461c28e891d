"""Models in float64: refused where float32 is all there is, with a way out that works."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import export, quantization, runtime
from tfkd.networks import accept

L = keras.layers
X = np.random.default_rng(0).normal(size=(16, 4))


@pytest.fixture(autouse=True)
def restored():
    kind = keras.backend.floatx()
    yield
    keras.backend.set_floatx(kind)


def sequential():
    kind = {"dtype": "float64"}
    first = L.Dense(6, "relu", name="a", **kind)
    return keras.Sequential([keras.Input((4,), **kind), first, L.Dense(3, **kind)])


def one_layer():
    i = keras.Input((4,))
    h = L.Dense(6, "relu", dtype="float64", name="a")(i)
    return keras.Model(i, L.Dense(3)(L.BatchNormalization()(h)))


def nested():
    i = keras.Input((4,), dtype="float64")
    inner = keras.Sequential([L.Dense(5, name="a", dtype="float64")], name="inner")
    return keras.Model(i, L.Dense(3, dtype="float64")(inner(i)))


MODELS = [sequential, one_layer, nested]
CALLS = {
    "quantize": lambda model, path: quantization.quantize(model),
    "tflite": lambda model, path: export.to_tflite(model, path),
    "int8": lambda m, path: export.to_tflite(m, path, mode="int8", data=X),
    "onnx": lambda m, path: export.to_onnx(m, path, precision="float16"),
    "tensorrt": lambda m, path: export.to_onnx(m, path, target="tensorrt"),
}


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", CALLS)
def test_refused_by_the_name_of_a_layer(tmp_path, make, name):
    with pytest.raises(ValueError, match=r"`model`.*float32.*'a in float64'.*frozen_copy.*float32"):
        CALLS[name](make(), tmp_path / "m.file")
    assert not list(tmp_path.iterdir())


def test_onnx_files_that_onnx_runtime_can_run(tmp_path):
    keras.backend.set_floatx("float64")
    report = export.to_onnx(sequential(), tmp_path / "m.onnx", verify=X)
    assert report.verified
    kind = {"dtype": "float64"}  # the floatx counts only where no test has set a policy
    last = [L.GlobalAveragePooling2D(**kind), L.Dense(2, "gelu", **kind)]
    cnn = keras.Sequential(
        [keras.Input((5, 5, 1), **kind), L.Conv2D(2, 3, name="a", **kind), *last]
    )
    for verify in (True, False):
        with pytest.raises(ValueError, match="'a in float64'.*ONNX Runtime takes float32"):
            export.to_onnx(cnn, tmp_path / "cnn.onnx", verify=verify)
    assert not (tmp_path / "cnn.onnx").exists()


@pytest.mark.parametrize("make", MODELS)
def test_the_way_out(tmp_path, make):
    model = make()
    copy = tfkd.frozen_copy(model, dtype="float32")
    copy.trainable = True
    want = model.predict(X, verbose=0)
    report = export.to_tflite(copy, tmp_path / "m.tflite", verify=X)
    assert report.verified
    got = runtime.Predictor(tmp_path / "m.tflite")(X)
    np.testing.assert_allclose(got, want, atol=1e-5)
    q = quantization.quantize(copy)
    quantization.calibrate(q, X)
    assert np.abs(q.predict(X, verbose=0) - want).max() < 0.05 * np.ptp(want)


def test_the_type_that_keras_makes_layers_in():
    copy = tfkd.frozen_copy(sequential(), dtype="float32")
    keras.backend.set_floatx("float64")
    with pytest.raises(ValueError, match=r"`floatx`.*float32.*set_floatx\('float32'\)"):
        quantization.quantize(copy)


def test_saved_models_and_predictors_keep_float64(tmp_path):
    model = sequential()
    export.to_saved_model(model, tmp_path / "saved", verify=X)
    model.save(tmp_path / "m.keras")
    want = model.predict(X, verbose=0)
    for name in ("saved", "m.keras"):
        np.testing.assert_allclose(runtime.Predictor(tmp_path / name)(X), want, atol=1e-6)


def test_which_layers_are_in_float64():
    assert accept.in_float64(nested()) == "a"
    i = keras.Input((4,), dtype="float64")  # an input alone is cast
    assert accept.in_float64(keras.Model(i, L.Dense(3)(i))) is None
