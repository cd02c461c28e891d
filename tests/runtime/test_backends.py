"""Every kind of file against the Keras model that it was made of."""

import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export
from tfkd.runtime import Predictor

RNG = np.random.default_rng(5)
X = RNG.normal(size=(7, 6)).astype(np.float32)
FEEDS = {
    "words": RNG.integers(0, 7, (5, 4)).astype(np.int32),
    "extra": RNG.normal(size=(5, 2)).astype(np.float32),
}
KINDS = ("open.tflite", "fixed.tflite", "open.onnx", "fixed.onnx", "saved", "m.keras")


def _write(model, folder):
    export.to_tflite(model, folder / "open.tflite", batch_size=None)
    export.to_tflite(model, folder / "fixed.tflite", batch_size=3)
    export.to_onnx(model, folder / "open.onnx")
    export.to_onnx(model, folder / "fixed.onnx", batch_size=2)
    export.to_saved_model(model, folder / "saved")
    model.save(folder / "m.keras")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    layers = [
        keras.layers.Dense(8, "relu", input_shape=(6,), name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]
    model = keras.Sequential(layers)
    model.set_weights([RNG.normal(0, 0.5, w.shape) for w in model.get_weights()])
    folder = _write(model, tmp_path_factory.mktemp("plain"))
    kernel, bias, last, end = model.get_weights()
    return folder, np.maximum(X @ kernel + bias, 0) @ last + end


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    words, extra = keras.Input((4,), dtype="int32", name="words"), keras.Input((2,), name="extra")
    x = keras.layers.Flatten()(keras.layers.Embedding(7, 3)(words))
    y = keras.layers.Dense(2, name="y")(keras.layers.Concatenate()([x, extra]))
    model = keras.Model([words, extra], [y, keras.layers.Dense(1, name="z")(extra)])
    want = [value.numpy() for value in model([FEEDS["words"], FEEDS["extra"]])]
    return _write(model, tmp_path_factory.mktemp("several")), want


@pytest.mark.parametrize("options", [{}, {"batch": 4}, {"cache_size": 5}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_input_equals_numpy(plain, kind, options):
    folder, want = plain
    with Predictor(folder / kind, **options) as predictor:
        for count in (1, 2, 7, 3, 1):
            got = predictor(X[:count])
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want[:count], atol=1e-5)
        np.testing.assert_allclose(predictor(X.astype(np.float64)[:, ::1]), want, atol=1e-5)
        np.testing.assert_allclose(predictor(X[::-1]), want[::-1], atol=1e-5)  # not contiguous
    assert [p.name for p in predictor.outputs] == ["logits"]
    assert predictor.inputs[0].shape[1:] == (6,) and predictor.inputs[0].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_several_inputs_and_outputs(several, kind):
    folder, (y, z) = several
    for options in ({}, {"batch": 2, "cache_size": 3}):
        predictor = Predictor(folder / kind, **options)
        got = predictor(FEEDS)
        np.testing.assert_allclose(got["y"], y, atol=1e-5)
        np.testing.assert_allclose(got["z"], z, atol=1e-5)
    size = max(predictor.inputs[0].shape[0], 1)
    ordered = [FEEDS[p.name][:size].astype(p.dtype) for p in predictor.inputs]
    raw = dict(zip([p.name for p in predictor.outputs], predictor.run_one(*ordered), strict=True))
    np.testing.assert_allclose(raw["y"], y[:size], atol=1e-5)
    with pytest.raises(ValueError, match="2 arrays"):
        predictor.run_one(ordered[0])


@pytest.mark.parametrize("kind", ["m.keras", "saved"])
def test_compiled_by_xla_in_few_sizes(plain, kind):
    folder, want = plain
    predictor = Predictor(folder / kind, jit_compile=True, batch=4)
    for count in (1, 3, 7):
        np.testing.assert_allclose(predictor(X[:count]), want[:count], atol=1e-5)
    assert "XLA" in repr(predictor)


def test_custom_layers_of_a_keras_file(tmp_path):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    keras.Sequential([keras.Input((6,)), Twice()]).save(tmp_path / "m.keras")
    for folder in (None, tmp_path / "kept"):  # its code may change: nothing is kept
        predictor = Predictor(
            tmp_path / "m.keras", custom_objects={"Twice": Twice}, artifacts_dir=folder
        )
        np.testing.assert_array_equal(predictor(X), 2 * X)
    assert not (tmp_path / "kept").exists() or not list((tmp_path / "kept").glob("m-*"))
    with pytest.raises(ValueError, match="custom_objects"):
        Predictor(tmp_path / "m.keras")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_says_what_is_wrong(plain, kind):
    predictor = Predictor(plain[0] / kind, batch=2, cache_size=2)
    for bad, error, said in [
        (X[0], ValueError, r"x\[None\]"),
        (np.float32(1), ValueError, "shape"),
        (X[:, :4], ValueError, r"shape \(batch, 6\)"),
        (X[:0], ValueError, "at least one example"),
        (X.astype(np.int64), TypeError, "float values"),
        (X.tolist(), TypeError, "an array"),
        ({"image": X}, ValueError, "the inputs"),
    ]:
        with pytest.raises(error, match=said):
            predictor(bad)


def test_closed_and_repr(plain):
    predictor = Predictor(plain[0] / "open.tflite", cache_size=3, batch=2)
    assert "cache_size=3, batch=2) in LiteRT" in repr(predictor)
    predictor(X[:1])
    for _ in range(2):
        predictor.close()
    assert repr(predictor).endswith("closed")
    for call in (predictor, predictor.run_one):
        with pytest.raises(ValueError, match="closed"):
            call(X[:1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.onnx", b"no ONNX file", "ONNX Runtime can run"),
        ("m.keras", b"no zip", "tf_keras can load"),
        ("m.h5", b"x", "save it as .keras"),
        ("m.bin", b"x", "a file that ends in .tflite"),
        ("folder", None, "a SavedModel"),
        ("damaged", b"no graph", "TensorFlow can load"),
    ],
)
def test_files_that_no_runtime_takes(tmp_path, name, content, said):
    path = tmp_path / name
    if name == "damaged":
        path.mkdir()
        (path / "saved_model.pb").write_bytes(content)
    elif content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        Predictor(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        Predictor(tmp_path / f"absent_{name}")


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("open.onnx", {"providers": ["NoExecutionProvider"]}, ValueError, "`providers`"),
        ("open.onnx", {"providers": "CPUExecutionProvider"}, TypeError, "a list of names"),
        ("open.onnx", {"jit_compile": True}, ValueError, "`jit_compile`"),
        ("open.tflite", {"providers": ["CPUExecutionProvider"]}, ValueError, "`providers`"),
        ("open.tflite", {"tensorrt": True}, ValueError, "`tensorrt`"),
        ("open.tflite", {"custom_objects": {}}, ValueError, "`custom_objects`"),
        ("open.tflite", {"batch": 0}, ValueError, "`batch`"),
        ("open.tflite", {"cache_size": -1}, ValueError, "`cache_size`"),
        ("open.tflite", {"cache_size": True}, TypeError, "`cache_size`"),
        ("open.tflite", {"warmup": -1}, ValueError, "`warmup`"),
        ("open.tflite", {"artifacts_dir": 3}, TypeError, "`artifacts_dir`"),
    ],
)
def test_options_are_checked(plain, kind, options, error, said):
    with pytest.raises(error, match=said):
        Predictor(plain[0] / kind, **options)


@pytest.mark.parametrize(
    ("kind", "package", "said"),
    [
        ("open.onnx", "onnxruntime", r"tfkd\[tensorrt\]"),
        ("saved", "tensorflow", "pip install tfkd"),
        ("m.keras", "tensorflow", "pip install tfkd"),
        ("m.engine", "tensorrt", "NVIDIA"),
    ],
)
def test_missing_packages_are_named(plain, monkeypatch, kind, package, said):
    (plain[0] / "m.engine").write_bytes(b"engine")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=said):
        Predictor(plain[0] / kind)


def test_a_changed_saved_model_is_refused_by_its_manifest(plain, tmp_path):
    import shutil

    shutil.copytree(plain[0] / "saved", tmp_path / "saved")
    with (tmp_path / "saved" / "saved_model.pb").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="manifest"):
        Predictor(tmp_path / "saved")


def test_warm_up_of_an_open_image_size_may_fail(tmp_path):
    layers = [
        keras.Input((None, None, 1)),
        keras.layers.Conv2D(2, 3),
        keras.layers.GlobalMaxPooling2D(),
    ]
    model = keras.Sequential(layers)
    model.save(tmp_path / "m.keras")
    images = RNG.normal(size=(2, 5, 7, 1)).astype(np.float32)
    predictor = Predictor(tmp_path / "m.keras", warmup=2)
    np.testing.assert_allclose(predictor(images), model(images).numpy(), atol=1e-6)


def test_onnx_needs_no_tensorflow_either(plain):
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tf_keras'] = None\n"
        "import numpy as np\n"
        "from tfkd.runtime import Predictor\n"
        f"predictor = Predictor({str(plain[0] / 'open.onnx')!r}, batch=2, cache_size=4)\n"
        "print(predictor(np.ones((2, 6), 'float32')).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(2, 3)", done.stderr


@pytest.mark.parametrize("options", [{}, {"batch": 4, "cache_size": 5}, {"kept": True}], ids=str)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_keras_file_in_half_precision(policy, options, tmp_path):
    layers = [
        keras.layers.Dense(300, "relu", input_shape=(6,), dtype=policy, name="hidden"),
        keras.layers.Dense(3, dtype=policy, name="logits"),
    ]
    model = keras.Sequential(layers)
    kernel, bias, last, end = model.get_weights()
    model.save(tmp_path / "m.keras")
    if "kept" in options:
        with pytest.warns(RuntimeWarning, match="which is opened without"):
            predictor = Predictor(tmp_path / "m.keras", artifacts_dir=tmp_path / "kept")
    else:
        predictor = Predictor(tmp_path / "m.keras", **options)
    want = np.maximum(X @ kernel + bias, 0) @ last + end
    for _ in range(2):
        got = predictor(X)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=0.03 * np.ptp(want))
    with pytest.raises(ValueError, match="float32"):
        export.to_tflite(model, tmp_path / "m.tflite")


def test_inputs_in_half_precision(tmp_path):
    for dtype in ("float16", "bfloat16"):
        image = keras.Input((400,), dtype=dtype)
        model = keras.Model(image, keras.layers.Activation("relu", dtype=dtype)(image))
        model.save(tmp_path / "m.keras")
        predictor = Predictor(tmp_path / "m.keras", cache_size=4)
        x = RNG.integers(-8, 8, (3, 400)).astype(np.float32)  # exact in both types
        for _ in range(2):
            np.testing.assert_array_equal(predictor(x), np.maximum(x, 0))
        assert predictor.cache_info().hits == 3


@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"cache_size": 9}], ids=str)
def test_files_that_take_text(options, tmp_path):
    words = keras.Input((2,), dtype="string", name="words")
    found = keras.layers.StringLookup(vocabulary=["a", "b"])(words)  # unknown: 0, a: 1, b: 2
    numbers = keras.layers.Rescaling(10.0)(found)
    model = keras.Model(words, numbers)
    model.save(tmp_path / "m.keras")
    report = export.to_saved_model(model, tmp_path / "s")
    assert report.compared_on == "8 made-up inputs"
    assert report.numbers["check"]["dependence"] == 1  # words of the vocabulary were among them
    texts = np.array([["a", "b"], ["other", "a"], ["b", "b"]])
    want = np.float32([[10, 20], [0, 10], [20, 20]])
    for name in ("m.keras", "s"):
        predictor = Predictor(tmp_path / name, **options)
        for data in (texts, texts.astype(object), np.char.encode(texts)):
            for rows in (slice(3), slice(1, 2), slice(None, None, -1)):
                np.testing.assert_array_equal(predictor(data[rows]), want[rows])
        with pytest.raises(ValueError, match="shape"):
            predictor(texts[:, :1])
        for wrong in (np.ones((2, 2)), np.array([["a", None]], object)):
            with pytest.raises(TypeError, match="`data`: expected texts for input 'words'"):
                predictor(wrong)


def test_texts_come_out_and_words_may_be_refused(tmp_path):
    there, back = {"vocabulary": ["a", "b", "ß"]}, {"vocabulary": ["ß", "b", "a"], "invert": True}
    x = y = keras.Input((2,), dtype="string", name="words")
    for options in (there, back):
        y = keras.layers.StringLookup(num_oov_indices=0, **options)(y)
    model = keras.Model(x, y)
    model.save(tmp_path / "m.keras")
    data = np.array([["a", "b"], ["ß", "a"]])
    export.to_saved_model(model, tmp_path / "s", verify=data)
    for name in ("m.keras", "s"):
        predictor = Predictor(tmp_path / name)
        turned = [[b"\xc3\x9f", b"b"], [b"a", b"\xc3\x9f"]]
        assert predictor(data).tolist() == turned
        with pytest.raises(ValueError, match=r"`data`: expected values that .*c"):
            predictor(np.array([["a", "c"]]))


def test_python_code_in_a_keras_file_runs_by_choice_only(plain, tmp_path):
    path = tmp_path / "code.keras"
    triple = keras.layers.Lambda(lambda x: 3 * x, name="triple")
    keras.Sequential([keras.Input((2,)), triple]).save(path)
    with pytest.raises(ValueError, match=r"`path`.*without Python code.*'triple'.*safe_mode=False"):
        Predictor(path)
    np.testing.assert_array_equal(Predictor(path, safe_mode=False)(np.float32([[1, 2]])), [[3, 6]])
    for option in ({"safe_mode": False}, {"custom_objects": {}}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}`.*no .keras file"):
            Predictor(plain[0] / "saved", **option)
