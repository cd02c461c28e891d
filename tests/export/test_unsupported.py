"""Layers that TFLite or ONNX can't hold: named, with a way out that works; chance is left out."""

from __future__ import annotations

import re

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


def test_the_way_out_where_the_last_layer_is_what_tflite_lacks(tmp_path):
    x, points = keras.Input((4,), name="x"), np.random.default_rng(1).normal(size=(6, 4))
    hidden = L.Dense(3, name="hidden")(x)
    counts = L.Lambda(lambda t: tf.math.bincount(tf.cast(t, tf.int32), axis=-1), name="count")
    model = keras.Model(x, [counts(hidden), L.Dense(2, name="logits")(hidden)])
    with pytest.raises(ValueError, match=r"in 'count'") as raised:
        export.to_tflite(model, tmp_path / "m.tflite")
    (code,) = models_in(raised.value)
    assert code == "keras.Model(model.inputs, [model.get_layer('count').input, model.outputs[1]])"
    export.to_tflite(made(code, model), tmp_path / "m.tflite", verify=points.astype("float32"))


def models_in(text):
    """The code of the models in a message."""
    inside = r"(?:[^()]|\((?:[^()]|\([^()]*\))*\))*"
    return re.findall(rf"keras\.Model\({inside}\)", str(text))


def made(code, model):
    return eval(code, {"keras": keras, "model": model})


def test_the_models_that_the_way_out_names_compute_what_the_model_does():
    x, z = keras.Input((4,), name="x"), keras.Input((3,), name="z")
    shared, pair = L.Dense(4, name="shared"), L.Lambda(lambda t: [t, 2 * t], name="pair")
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="deep")], name="inner")
    hidden = shared(inner(shared(x)))
    y = L.Concatenate(name="joined")([*pair(hidden), z])
    model = keras.Model([x, z], [L.Dense(2, name="logits")(y), hidden])
    rng = np.random.default_rng(2)
    feeds = [rng.normal(size=(5, n)).astype("float32") for n in (4, 3)]
    want = [value.numpy() for value in model(feeds)]
    around = {"shared": [1], "inner/deep": [1], "pair": [0, 1], "joined": [0]}
    for path, others in around.items():
        after, before = (
            made(code, model) for code in models_in(unsupported.split_at(model, [path]))
        )
        got = tf.nest.flatten(after([*tf.nest.flatten(before(feeds)), *(feeds[i] for i in others)]))
        # `shared` makes the second output itself.
        for one, other in zip(got, want[: 1 + (path != "shared")], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
    assert unsupported.split_at(model, ["logits", None]) == ""
    (head,) = models_in(unsupported.split_at(model, ["logits"]))
    np.testing.assert_allclose(made(head, model)(feeds)[0][:, :4], want[1], rtol=1e-5)


def test_texts_at_the_end_are_split_off():
    words = L.StringLookup(vocabulary=["a", "b"], invert=True, name="words")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            L.Softmax(name="p"),
            L.Lambda(lambda p: tf.argmax(p, -1), name="best"),
            words,
            L.Lambda(tf.strings.upper, name="up"),
        ]
    )
    with pytest.raises(ValueError, match="'words'") as raised:
        export.to_tflite(model, "never.tflite")
    (code,) = models_in(raised.value)
    assert made(code, model)(np.eye(3, dtype="float32")).numpy().tolist() == [0, 1, 2]


def test_layers_in_nested_models_are_named_by_their_path(tmp_path):
    for write in (export.to_tflite, export.to_onnx):
        with pytest.raises(ValueError, match=r"StringToHashBucket\w+ \(in 'inner/hash'\).*split"):
            write(hashed(), tmp_path / "m")
    shared = counted()
    x = keras.Input((3,), dtype="int32")
    twice = keras.Model(x, shared(x) + shared(x + 1), name="m")
    assert unsupported.layer_of(twice, f"m/{shared.name}_1/n/DenseBincount") == f"{shared.name}/n"


def test_what_tflite_lacks_with_an_open_batch_only(tmp_path):
    x = keras.Input((None, 3))
    model = keras.Model(x, L.Lambda(lambda t: t[:, ::2, None, 0:1], name="every")(x))
    with pytest.raises(ValueError, match=r"`batch_size`.*StridedSlice \(in 'every'\).*size=1"):
        export.to_tflite(model, tmp_path / "m.tflite", batch_size=None)
    export.to_tflite(model, tmp_path / "m.tflite", batch_size=1)


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
