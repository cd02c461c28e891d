"""Lists of several inputs are taken in the order of the model's inputs, whatever the file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tf_keras as keras

from tfkd import artifacts, export, report
from tfkd.formats.saved_model import GRAPH_FILE
from tfkd.runtime import Predictor, compiled

RNG = np.random.default_rng(8)
KERNEL = RNG.normal(size=(3, 2)).astype(np.float32)
FACTORS = (1.0, -0.5, 3.0)
KINDS = ("m.tflite", "int8.tflite", "m.onnx", "saved", "m.keras")


def _model(names, as_dict=False, outputs=("y", "x")):
    """Outputs Σ factor · input · KERNEL and 2 · first input; the first input is the first name."""
    inputs = [keras.Input((3,), name=name) for name in names]
    total = sum(factor * one for factor, one in zip(FACTORS, inputs, strict=False))
    dense = keras.layers.Dense(2, use_bias=False, name=outputs[0])
    ends = [dense(total), keras.layers.Rescaling(2.0, name=outputs[1])(inputs[0])]
    model = keras.Model(dict(zip(names, inputs, strict=True)) if as_dict else inputs, ends)
    dense.set_weights([KERNEL])
    return model


def _examples(count):
    return [RNG.normal(size=(8, 3)).astype(np.float32) for _ in range(count)]


def _expected(arrays):
    return sum(f * x for f, x in zip(FACTORS, arrays, strict=False)) @ KERNEL


def _write(model, folder, kinds=KINDS, data=None):
    for kind in kinds:
        path = folder / kind
        if kind == "int8.tflite":
            export.to_tflite(model, path, "int8", data=data, verify=False)
        elif kind == "saved":
            export.to_saved_model(model, path, verify=False)
        elif kind == "m.keras":
            model.save(path)
        else:
            (export.to_onnx if kind == "m.onnx" else export.to_tflite)(model, path, verify=False)


@pytest.mark.parametrize("names", [("b", "a"), ("q", "a", "m"), ("a", "b"), ("x10", "x9", "x1")])
def test_lists_tuples_and_run_one_in_the_order_of_the_model(names, tmp_path):
    x = _examples(len(names))
    want = _expected(x)
    _write(_model(names), tmp_path, data=dict(zip(names, x, strict=True)))
    for kind in KINDS:
        atol = 0.1 * np.ptp(want) if kind == "int8.tflite" else 1e-5
        predictor = Predictor(tmp_path / kind)
        assert [port.name for port in predictor.inputs] == list(names)
        assert [port.name for port in predictor.outputs] == ["y", "x"]
        by_name = predictor(dict(zip(names, x, strict=True)))
        np.testing.assert_allclose(by_name["y"], want, atol=atol)
        np.testing.assert_allclose(by_name["x"], 2 * x[0], atol=atol)
        assert list(by_name) == ["y", "x"]
        batches = [[array[:5] for array in x], [array[5:] for array in x]]
        labelled = (x, np.zeros(8))
        for data in (x, tuple(x), batches, labelled):
            np.testing.assert_array_equal(predictor(data)["y"], by_name["y"])
        size = max(predictor.inputs[0].shape[0], 1)
        raw, _ = predictor.run_one(*[array[:size] for array in x])
        np.testing.assert_allclose(raw, want[:size], atol=atol)


def test_inputs_of_other_shapes_and_dtypes(tmp_path):
    words, extra = keras.Input((4,), dtype="int32", name="words"), keras.Input((2,), name="extra")
    table = keras.layers.Embedding(7, 3)
    model = keras.Model([words, extra], [extra * 2.0, keras.layers.Flatten()(table(words))])
    x = [RNG.integers(0, 7, (5, 4)).astype(np.int32), RNG.normal(size=(5, 2)).astype(np.float32)]
    _write(model, tmp_path, ("m.tflite", "saved"))
    for kind in ("m.tflite", "saved"):
        doubled, looked_up = Predictor(tmp_path / kind)(x).values()
        np.testing.assert_allclose(doubled, 2 * x[1], atol=1e-6)
        np.testing.assert_allclose(
            looked_up, table.get_weights()[0][x[0]].reshape(5, -1), atol=1e-6
        )


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (("größe", "1st"), ("gr_f6__df_e", "x_1st")),
        (("a b", "class"), ("a_b", "x_class")),
        (("_x", "self"), ("x_x", "x_self")),
        (("名前", "a/b"), ("x_540d__524d_", "a_b")),
        (("q", "Q"), ("q", "Q_1")),
    ],
    ids=str,
)
def test_names_that_are_no_identifiers(names, plain, tmp_path):
    x = _examples(2)
    want = _expected(x)
    kinds = ("m.tflite", "saved", "m.onnx", "m.keras")
    _write(_model(names), tmp_path, kinds)
    for kind in kinds:
        with Predictor(tmp_path / kind) as predictor:
            assert tuple(port.name for port in predictor.inputs) == plain
            given = [plain, names] if plain != ("q", "Q_1") else [plain]
            for own in given:
                found = predictor(dict(zip(own, x, strict=True)))
                np.testing.assert_allclose(found["y"], want, atol=1e-5)
            if given == [plain]:  # which is which cannot be told
                with pytest.raises(ValueError, match=r"the inputs \['q', 'Q_1'\]"):
                    predictor(dict(zip(names, x, strict=True)))


def test_a_dict_model_takes_lists_in_keras_order(tmp_path):
    model = _model(("q", "a", "m"), as_dict=True)
    x = _examples(3)  # Keras sorts the keys: "a", "m", "q".
    want = _expected([x[2], x[0], x[1]])
    np.testing.assert_allclose(model(x)[0].numpy(), want, atol=1e-5)
    _write(model, tmp_path, ("m.tflite", "saved", "m.onnx"))
    for kind in ("m.tflite", "saved", "m.onnx"):
        np.testing.assert_allclose(Predictor(tmp_path / kind)(x)["y"], want, atol=1e-5)


def _forget(path, how):
    """Removes the manifest of a file, or changes the names of inputs in it."""
    where = artifacts.manifest_path(path / GRAPH_FILE if path.is_dir() else path)
    if how == "gone":
        where.unlink()
        return
    manifest = json.loads(where.read_text())
    manifest["recipe"]["inputs"] = {"other": ["b", "c"], "number": 3, "null": None}[how]
    where.write_text(json.dumps(manifest))


@pytest.mark.parametrize("how", ["gone", "other", "number", "null"])
@pytest.mark.parametrize("kind", ["m.tflite", "saved"])
def test_a_list_is_refused_if_the_order_is_not_known(kind, how, tmp_path):
    x = _examples(2)
    _write(_model(("b", "a")), tmp_path, (kind,))
    _forget(tmp_path / kind, how)
    predictor = Predictor(tmp_path / kind)
    np.testing.assert_allclose(predictor({"b": x[0], "a": x[1]})["y"], _expected(x), atol=1e-5)
    said = r"pass a dict by name: \['a', 'b'\]"
    for data in (x, tuple(x), [x, x], (x, np.zeros(8))):
        with pytest.raises(ValueError, match=said):
            predictor(data)
        with pytest.raises(ValueError, match=said):
            predictor.encode(data)


def test_one_input_needs_no_manifest(tmp_path):
    (x,) = _examples(1)
    _write(_model(("b",)), tmp_path, ("m.tflite", "saved"))
    for kind in ("m.tflite", "saved"):
        _forget(tmp_path / kind, "gone")
        for data in (x, [x[:3], x[3:]], (x, np.zeros(8))):
            np.testing.assert_allclose(
                Predictor(tmp_path / kind)(data)["y"], _expected([x]), atol=1e-5
            )


def test_the_order_with_artefacts_of_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "LEAST_BYTES", 0)
    x = _examples(2)
    _write(_model(("b", "a")), tmp_path, ("m.tflite", "m.keras"))
    for kind in ("m.tflite", "m.keras"):
        for _ in range(2):  # It is created, then found.
            predictor = Predictor(tmp_path / kind, artifacts_dir=tmp_path / "kept")
            np.testing.assert_allclose(predictor(x)["y"], _expected(x), atol=1e-5)
    assert predictor.kind == "TensorFlow"
    _forget(tmp_path / "m.tflite", "gone")
    predictor = Predictor(tmp_path / "m.tflite", artifacts_dir=tmp_path / "kept")
    assert predictor.kind == compiled.CompiledFile.kind
    with pytest.raises(ValueError, match="pass a dict by name"):
        predictor(x)


def test_compare_takes_lists_in_the_order_of_the_model(tmp_path):
    x, model = _examples(2), _model(("b", "a"))
    _write(model, tmp_path, ("m.tflite", "saved"))
    labels = _expected(x).argmax(1)
    paths = {kind: tmp_path / kind for kind in ("m.tflite", "saved")}
    table = report.compare({"keras": model, **paths}, (x, labels), runs=1, output="y")
    assert [row.accuracy.mean for row in table.rows] == [100.0] * 3
    _forget(tmp_path / "m.tflite", "gone")
    with pytest.raises(ValueError, match=r"models\['m.tflite'\].*pass a dict by name"):
        report.compare({"m.tflite": tmp_path / "m.tflite"}, (x, labels), runs=1, output="y")


@pytest.mark.slow
def test_a_saved_model_in_a_process_with_another_hash_order(tmp_path):
    names = ("q", "a", "m")
    x = _examples(3)
    _write(_model(names), tmp_path, ("saved",))
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np\n"
        "from tfkd.runtime import Predictor\n"
        f"x = list(np.load({str(tmp_path / 'x.npy')!r}))\n"
        f"predictor = Predictor({str(tmp_path / 'saved')!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, predictor(x)['y'])\n"
        "print([port.name for port in predictor.inputs])\n"
    )
    other = {**os.environ, "PYTHONHASHSEED": "4"}
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=other)
    assert done.stdout.strip().endswith(str(list(names))), done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), _expected(x), atol=1e-5)
