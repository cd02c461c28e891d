"""`Predictor` against Keras, and against LiteRT used by hand."""

import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export
from tfkd.formats.litert import Port
from tfkd.runtime import Predictor

RNG = np.random.default_rng(3)
X = RNG.normal(size=(11, 5, 5, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu", input_shape=(5, 5, 1), name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="logits"),
    ]
    model = keras.Sequential(layers)
    model.set_weights([RNG.normal(0, 0.4, w.shape) for w in model.get_weights()])
    assert np.ptp(model(X).numpy(), axis=0).min() > 0.1
    return model


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.tflite" for name in ("float32", "open", "int8", "uint8")}
    export.to_tflite(model, paths["float32"])
    export.to_tflite(model, paths["open"], batch_size=None)
    for io in ("int8", "uint8"):
        export.to_tflite(model, paths[io], "int8", io, data=X)
    return paths


@pytest.mark.parametrize("name", ["float32", "open"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_float_equals_keras(model, files, name, count):
    predictor = Predictor(files[name])
    for _ in range(2):  # a second call, after a resize
        got = predictor(X[:count])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, model(X[:count]).numpy(), atol=1e-5)
    np.testing.assert_array_equal(predictor.predict(X[:1]), predictor(X[:1].astype(np.float64)))


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_integers_by_the_scale_and_zero_point_of_the_file(model, files, name):
    predictor = Predictor(files[name])
    (into,), (out,) = predictor.inputs, predictor.outputs
    info = np.iinfo(name)
    codes = np.clip(np.rint(X / into.scale) + into.zero_point, info.min, info.max).astype(name)
    raw = np.concatenate([predictor.run_one(code[None]) for code in codes])
    assert raw.dtype == np.dtype(name)
    real = (raw.astype(np.float64) - out.zero_point) * out.scale
    np.testing.assert_allclose(predictor(X), real, rtol=1e-6)
    np.testing.assert_array_equal(predictor(codes), predictor(X))
    want = model(X).numpy()
    assert np.abs(real - want).max() < 0.05 * np.ptp(want)
    assert (real.argmax(1) == want.argmax(1)).mean() > 0.8


def test_codes_by_hand():
    port = Port("x", (1, 3), np.dtype("int8"), 0.5, 10, 0)
    np.testing.assert_array_equal(
        port.encode(np.array([0, 1, -1.2, 1e6, -1e6])), [10, 12, 8, 127, -128]
    )
    np.testing.assert_array_equal(
        port.decode(np.array([10, 12, -128], np.int8)), np.float32([0, 1, -69])
    )
    assert port.limits == (-69.0, 58.5)
    plain = Port("x", (1, 3), np.dtype("float32"), 0.0, 0, 0)
    assert plain.limits is None
    np.testing.assert_array_equal(plain.encode(np.array([0.1])), np.float32([0.1]))


def test_what_a_file_says_of_itself(files):
    predictor = Predictor(files["int8"], threads=2)
    (port,) = predictor.inputs
    assert (port.name, port.shape, port.dtype) == ("conv_input", (1, 5, 5, 1), np.int8)
    # All of the calibration set fits into 255 steps.
    np.testing.assert_allclose(port.scale, (X.max() - X.min()) / 255, rtol=1e-3)
    assert (predictor.outputs[0].name, predictor.outputs[0].shape) == ("logits", (1, 3))
    assert predictor.threads == 2
    assert "int8.tflite" in repr(predictor)


def test_run_one_is_the_call_without_anything_around_it(files):
    predictor = Predictor(files["float32"])
    first = predictor.run_one(X[:1])
    kept = first.copy()
    predictor.run_one(X[1:2])
    np.testing.assert_array_equal(first, kept)  # a result is not overwritten by the next
    np.testing.assert_array_equal(first, predictor(X[:1]))


def test_integer_inputs_and_several_of_them(tmp_path):
    words, extra = keras.Input((4,), dtype="int32", name="words"), keras.Input((2,), name="extra")
    x = keras.layers.Flatten()(keras.layers.Embedding(7, 3)(words))
    y = keras.layers.Dense(2, name="y")(keras.layers.Concatenate()([x, extra]))
    model = keras.Model([words, extra], [y, keras.layers.Dense(1, name="z")(extra)])
    feeds = {
        "words": RNG.integers(0, 7, (5, 4)).astype(np.int64),
        "extra": RNG.normal(size=(5, 2)).astype(np.float32),
    }
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, verify=feeds, thresholds={"min_agreement": 0})
    predictor = Predictor(path)
    got, want = predictor(feeds), model([feeds["words"], feeds["extra"]])
    np.testing.assert_allclose(got["y"], want[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(got["z"], want[1].numpy(), atol=1e-5)
    ordered = [feeds[p.name][:1].astype(p.dtype) for p in predictor.inputs]
    raw = dict(zip([p.name for p in predictor.outputs], predictor.run_one(*ordered), strict=True))
    np.testing.assert_allclose(raw["y"], want[0].numpy()[:1], atol=1e-5)
    for bad, said in [
        (X, "a dict of arrays"),
        ({"words": feeds["words"]}, "the inputs"),
        ({**feeds, "words": feeds["extra"][:, [0, 1, 0, 1]]}, "integers .int32"),
        ({**feeds, "words": feeds["words"][:2]}, "as many examples"),
    ]:
        with pytest.raises((TypeError, ValueError), match=said):
            predictor(bad)


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("float32", X[0], ValueError, r"x\[None\]"),
        ("float32", X[:, :4], ValueError, r"shape \(batch, 5, 5, 1\)"),
        ("float32", X[:0], ValueError, "at least one example"),
        ("float32", X.astype(np.uint8), TypeError, "preprocess"),
        ("float32", X.tolist(), TypeError, "an array"),
        ("float32", None, TypeError, "an array"),
        ("float32", {"image": X}, ValueError, "conv_input"),
        ("int8", X.astype(np.uint8), TypeError, "float values"),
        ("int8", X * np.nan, ValueError, "finite values"),
        ("uint8", X.astype(np.int8), TypeError, "float values"),
    ],
)
def test_bad_input(files, name, value, error, said):
    with pytest.raises(error, match=said):
        Predictor(files[name])(value)


def test_files_that_cannot_be_opened(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Predictor(tmp_path / "none.tflite")
    with pytest.raises(TypeError, match="`path`"):
        Predictor(3)
    with pytest.raises(ValueError, match="`threads`"):
        Predictor(files["float32"], threads=0)
    whole = files["float32"].read_bytes()
    for content in (b"", b"not TFLite at all", whole[:64], whole[: len(whole) // 2]):
        path = tmp_path / "bad.tflite"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a TFLite file"):
            Predictor(path)


def test_a_changed_file_is_refused_by_its_manifest(model, tmp_path):
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        Predictor(path)


def test_without_litert_the_extra_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r"tfkd\[litert\]"):
        Predictor(files["float32"])


@pytest.fixture(scope="module")
def token_files(tmp_path_factory):
    tokens = keras.Input((2,), dtype="int32", name="tokens")
    x = keras.layers.Flatten()(keras.layers.Embedding(10, 3, name="words")(tokens))
    model, folder = keras.Model(tokens, keras.layers.Dense(2)(x)), tmp_path_factory.mktemp("ids")
    model.save(folder / "m.keras")
    export.to_tflite(model, folder / "m.tflite")
    export.to_saved_model(model, folder / "m")
    export.to_onnx(model, folder / "m.onnx")
    return folder


@pytest.mark.parametrize("name", ["m.keras", "m.tflite", "m", "m.onnx"])
def test_token_ids_outside_of_the_embedding_are_one_error(token_files, name):
    if name.endswith("onnx"):
        pytest.importorskip("tf2onnx")
    predictor = Predictor(token_files / name)
    good = np.array([[0, 9]], "int32")
    before = predictor(good)
    for number in (10, -1):
        with pytest.raises(ValueError, match="`data`: expected token ids .* rows of an Embedding"):
            predictor(np.array([[0, number]], "int32"))
    np.testing.assert_array_equal(predictor(good), before)


def test_a_device_needs_no_tensorflow(files):
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tf_keras'] = None\n"
        "import numpy as np\n"
        "from tfkd.runtime import Predictor\n"
        f"y = Predictor({str(files['float32'])!r})(np.ones((2, 5, 5, 1), 'float32'))\n"
        "print(y.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(2, 3)", done.stderr
