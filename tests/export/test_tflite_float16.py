"""Exports in float16, which ends at 65504 and has no numbers below 6e-8."""

import os
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, export
from tfkd.export.tflite_float16 import cut_off
from tfkd.runtime import Predictor

layers = keras.layers
X = np.random.default_rng(0).uniform(size=(8, 4)).astype("float32")


def chain(*factors):
    """Dense layers without bias whose kernels are normal numbers times these."""
    rng = np.random.default_rng(3)
    model = keras.Sequential([keras.Input((4,), name="x")])
    for number, factor in enumerate(factors):
        model.add(layers.Dense(4, use_bias=False, name=f"dense{number}"))
        model.layers[-1].set_weights([rng.normal(size=(4, 4)) * factor])
    return model


def by_hand(model):
    y = X.astype(np.float64)
    for kernel in model.get_weights():
        y = y @ kernel.astype(np.float64)
    return y


def convolution():
    x = keras.Input((4, 4, 2), name="image")
    y = layers.Conv2D(3, 3, name="conv")(x)
    model = keras.Model(x, layers.Rescaling(1e-4)(layers.GlobalAveragePooling2D()(y)))
    model.layers[1].set_weights([w + 2e5 for w in model.layers[1].get_weights()])
    return model


@pytest.mark.parametrize("factors", [(4e5, 1e-4), (1e-4, 1.0, 3e6), (1e5,)])
def test_tflite_keeps_weights_beyond_float16_in_float32(tmp_path, factors):
    model, path = chain(*factors), tmp_path / "m.tflite"
    large = [i for i, factor in enumerate(factors) if factor > 1e4]
    with pytest.warns(UserWarning, match=rf"65504.*dense{large[0]}"):
        report = export.to_tflite(model, path, "float16", verify=X)
    want = by_hand(model)
    assert np.abs(Predictor(path)(X) - want).max() < 0.005 * np.ptp(want)
    assert report.verified and artifacts.verify(path)


def test_tflite_keeps_kernel_and_bias_of_a_convolution(tmp_path):
    model, path = convolution(), tmp_path / "m.tflite"
    with pytest.warns(UserWarning, match="stay in float32"):
        export.to_tflite(model, path, "float16", batch_size=None)
    x = np.random.default_rng(1).normal(size=(5, 4, 4, 2)).astype("float32")
    np.testing.assert_allclose(Predictor(path)(x), model(x), rtol=1e-3)


@pytest.mark.parametrize("factors", [(4e5, 1e-5), (7e4,)])
@pytest.mark.parametrize("verify", [True, X])
def test_onnx_refuses_weights_beyond_float16(tmp_path, factors, verify):
    words = r"precision.*65504.*'dense0/"
    with pytest.raises(ValueError, match=words) as error:
        model = chain(*factors)
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16", verify=verify)
    largest = np.abs(model.get_weights()[0]).max()
    assert f"{largest:.3g}" in str(error.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("verify", [True, X])
def test_onnx_finds_activations_beyond_float16(tmp_path, verify):
    """ONNX Runtime computes in float32 between the operations, so that outputs hide it."""
    model = chain(5e3, 5e3, 1e-4)
    with pytest.raises(ValueError, match=r"'dense1/.*leaves the range of float16"):
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16", verify=verify)
    assert os.listdir(tmp_path) == []
    report = export.to_onnx(chain(50, 50, 1e-2), tmp_path / "m.onnx", precision="float16")
    assert report.numbers["check"]["overflows"] == []


@pytest.mark.parametrize("write", ["tflite", "onnx"])
def test_weights_that_become_0_are_found(tmp_path, write):
    model = chain(1e-9, 1.0, 2e4, 2e4)
    model.add(layers.Rescaling(25.0))
    options = {"mode": "float16"} if write == "tflite" else {"precision": "float16"}
    with pytest.raises(ValueError, match=r"hardly depends|mean_error") as error:
        getattr(export, f"to_{write}")(model, tmp_path / "m", **options)
    assert "'dense0/kernel:0'" in str(error.value) and "6e-08" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_masks_may_be_cut_off(tmp_path):
    x, keep = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    causal = np.where(np.tri(5, dtype=bool), 0, -1e9).astype("float32")
    y = layers.Dot(2)([x, x]) + causal
    y = layers.Dot((2, 1))([layers.Softmax()(y, mask=keep[:, None]), x])
    model = keras.Model([x, keep], y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, options in (("m.tflite", {"mode": "float16"}), ("m.onnx", {})):
            if path.endswith("onnx"):
                report = export.to_onnx(model, tmp_path / path, precision="float16")
            else:
                report = export.to_tflite(model, tmp_path / path, **options)
            assert report.numbers["check"]["max_error"] < 1e-2


def one_large(layer, shape, place, dtype="float32"):
    """A layer of which one weight holds one number below −65504, and a small one behind it."""
    x = keras.Input(shape, name="x", dtype=dtype)
    model = keras.Model(x, layers.Flatten()(layers.Rescaling(1e-5)(abs(layer(x)))))
    weights = layer.get_weights()
    weights[place].flat[1] = -3e5
    layer.set_weights(weights)
    return model


LARGE = {
    "kernel": lambda: one_large(layers.Dense(3, name="large"), (4,), 0),
    "bias": lambda: one_large(layers.Dense(3, name="large"), (4,), 1),
    "bias of rows": lambda: one_large(layers.Dense(3, name="large"), (5, 4), 1),
    "bias of a convolution": lambda: one_large(layers.Conv2D(3, 2, name="large"), (4, 4, 2), 1),
    "embedding": lambda: one_large(layers.Embedding(4, 3, name="large"), (5,), 0, "int32"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_one_negative_weight_is_no_mask(tmp_path, kind):
    model, path = LARGE[kind](), tmp_path / "m.tflite"
    rng = np.random.default_rng(1)
    x = rng.integers(0, 4, (6, *model.input_shape[1:])).astype(model.input.dtype.name)
    want = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="these weights stay in float32.*large"):
        export.to_tflite(model, path, "float16", verify=False)
    assert np.abs(Predictor(path)(x) - want).max() < 0.002 * np.ptp(want)
    with pytest.raises(ValueError, match=r"precision.*65504.*large.*3e\+05"):
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16", verify=False)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("mean", [-3e5, 3e5])
def test_a_mean_is_no_mask(tmp_path, mean, given):
    x = np.random.default_rng(1).normal(mean, 5e4, (64, 4)).astype("float32")
    norm = layers.Normalization(axis=None, name="large", mean=mean, variance=2.5e9)
    if not given:
        norm = layers.Normalization(axis=None, name="large")
        norm.adapt(x)
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(3)])
    want = model.predict(x, verbose=0)
    export.to_tflite(model, tmp_path / "m.tflite", "float16", verify=False)
    assert np.abs(Predictor(tmp_path / "m.tflite")(x) - want).max() < 0.02 * np.ptp(want)
    with pytest.raises(ValueError, match=r"precision.*65504.*large"):
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16", verify=False)


def test_what_is_cut_off():
    assert cut_off(np.float32([1.0, 7e4])) and cut_off(np.float32([-7e4, -8e4]))
    assert not cut_off(np.float32([65504.0, -65504.0]))
    assert not cut_off(np.float32([0.0, -1e9, -1e9]))
    assert cut_off(np.float32([0.0, -1e9, -1e9]), {1e9})


def test_onnx_refuses_a_scale_beyond_float16(tmp_path):
    small = keras.layers.Rescaling(1e-5)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1e5, name="up"), small])
    with pytest.raises(ValueError, match=r"precision.*65504.*up/.*1e\+05"):
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16", verify=False)


def guarded(kind):
    """A logarithm or a division that 1e-8 keeps finite, on zeros."""
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, activation="relu", name="dense")(inputs)
    if kind == "log":
        y = tf.math.log(x + 1e-8)
    else:
        y = x / (tf.reduce_sum(x, -1, keepdims=True) + 1e-8)
    model = keras.Model(inputs, layers.Dense(3, name="y")(y))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * (0 if "bias" in weight.name else 1))
    return model


@pytest.mark.parametrize("kind", ["log", "division"])
def test_constants_that_vanish_stay_in_float32(tmp_path, kind):
    model, path = guarded(kind), tmp_path / "m.tflite"
    x = np.random.default_rng(1).normal(size=(40, 4)).astype("float32")
    x[:3] = 0
    with pytest.warns(UserWarning, match=r"below 6e-8; these constants stay in float32.*1e-08"):
        report = export.to_tflite(model, path, "float16", verify=x)
    assert report.verified and np.isfinite(Predictor(path)(x)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_tflite(model, path, verify=x)


def test_onnx_raises_constants_that_would_vanish(tmp_path):
    pytest.importorskip("tf2onnx")
    x = np.random.default_rng(1).normal(size=(40, 4)).astype("float32")
    x[:3] = 0
    with pytest.warns(UserWarning, match="would be 0 and were raised to 6e-8: .*1e-08"):
        report = export.to_onnx(
            guarded("division"), tmp_path / "m.onnx", precision="float16", verify=x
        )
    assert np.isfinite(Predictor(report.path)(x)).all()
