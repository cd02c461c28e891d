"""Layers that TFLite or ONNX can't hold: named, with a way out that works; chance is left out."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import export, runtime
from tfkd.export import unsupported

L = keras.layers
INDICES = np.array([[1, 2, 2], [0, 4, 1], [3, 3, 3]], np.int32)


def counted():
    first = [keras.Input((3,), dtype="int32"), L.CategoryEncoding(5, output_mode="count", name="n")]
    return keras.Sequential([*first, L.Dense(2)])


def hashed():
    x = keras.Input((3,), dtype="int64")
    inner = keras.Sequential([x, L.Hashing(4, name="hash"), L.Embedding(4, 2)], name="inner")
    return keras.Model(x, L.Dense(2)(L.Flatten()(inner(x))))


def test_the_way_out_of_an_operation_that_tflite_lacks(tmp_path):
    model = counted()
    with pytest.raises(ValueError, match=r"TFLite can't .*DenseBincount \(in 'n'\)") as raised:
        export.to_tflite(model, tmp_path / "m.tflite")
    text = str(raised.value)
    assert "loc(" not in text and len(text) < 600 and not list(tmp_path.iterdir())
    rest = keras.Model(model.get_layer("n").output, model.outputs)
    before = keras.Model(model.inputs, model.get_layer("n").output)
    assert "keras.Model(model.get_layer('n').output, model.outputs)" in text
    assert "keras.Model(model.inputs, model.get_layer('n').output)" in text
    export.to_tflite(rest, tmp_path / "m.tflite")
    counts = np.stack([np.bincount(row, minlength=5) for row in INDICES]).astype("float32")
    np.testing.assert_array_equal(before(INDICES), counts)
    kernel, bias = model.get_weights()
    got = runtime.Predictor(tmp_path / "m.tflite")(counts)
    np.testing.assert_allclose(got, counts @ kernel + bias, atol=1e-5)


def test_layers_in_nested_models_are_named_by_their_path(tmp_path):
    for write in (export.to_tflite, export.to_onnx):
        with pytest.raises(ValueError, match=r"StringToHashBucket\w+ \(in 'inner/hash'\).*split"):
            write(hashed(), tmp_path / "m")
    shared = counted()
    x = keras.Input((3,), dtype="int32")
    twice = keras.Model(x, shared(x) + shared(x + 1), name="m")
    assert unsupported.layer_of(twice, f"m/{shared.name}_1/n/DenseBincount") == f"{shared.name}/n"


@pytest.mark.parametrize("size", [(9, 8), (None, None)])
def test_random_layers_export_as_they_are_in_inference(tmp_path, size):
    augment = [L.RandomCrop(4, 4), L.RandomFlip(), L.RandomRotation(0.2), L.RandomContrast(0.2)]
    model = keras.Sequential([keras.Input((*size, 3)), *augment, L.Conv2D(2, 3), L.Flatten()])
    images = np.random.default_rng(0).normal(size=(3, 9, 8, 3)).astype("float32")
    want = model(images, training=False).numpy()
    export.to_saved_model(model, tmp_path / "s", verify=images)
    export.to_onnx(model, tmp_path / "m.onnx", verify=images)
    export.to_tflite(model, tmp_path / "m.tflite")
    for name in ("s", "m.onnx", "m.tflite") if size[0] else ("s", "m.onnx"):
        np.testing.assert_allclose(runtime.Predictor(tmp_path / name)(images), want, atol=1e-5)
    assert "call" not in vars(model.layers[0])  # the model itself is as it was


def test_a_crop_by_chance_on_purpose_stays(tmp_path):
    x = keras.Input((64, 64, 1))
    model = keras.Model(x, tf.reduce_mean(L.RandomCrop(1, 1)(x, training=True), [1, 2, 3]))
    export.to_saved_model(model, tmp_path / "s", verify=False)
    predictor = runtime.Predictor(tmp_path / "s")
    ramp = np.arange(64.0 * 64, dtype="float32").reshape(1, 64, 64, 1)
    assert len({float(predictor(ramp)[0]) for _ in range(8)}) > 1
