"""SavedModels: what TensorFlow loads, without tfkd and without Keras."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tfkd import artifacts, export

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(70, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"logits": keras.layers.Dense(5)(x), "features": x}
    return keras.Model(inputs, outputs, name="tiny")


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny" / "1"
    return export.to_saved_model(model, path, verify=IMAGES)


def test_outputs_are_those_of_keras_by_name(model, saved):
    serve = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    for count in (1, 7):
        found = serve(image=tf.constant(IMAGES[:count]))
        for name, value in model.predict(IMAGES[:count], verbose=0).items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_report_and_manifest_hold_the_numbers(saved):
    assert saved.verified and saved.numbers["examples"] == 70
    assert saved.numbers["max_error"] < 1e-5 and saved.numbers["argmax_agreement"] == 1
    manifest = export.verify_saved_model(saved.path)
    assert manifest["numbers"] == saved.numbers
    files = {f for f in saved.path.rglob("*") if f.is_file() and "manifest" not in f.name}
    assert set(manifest["files"]) == {f.relative_to(saved.path).as_posix() for f in files}
    assert saved.bytes == sum(f.stat().st_size for f in files)
    for file in files:
        entry = manifest["files"][file.relative_to(saved.path).as_posix()]
        assert entry["sha256"] == artifacts.sha256(file)
    assert "100.00%" in saved.text() and "70 examples" in saved.text()


def test_nothing_of_keras_is_in_the_file(saved):
    content = saved_model_pb2.SavedModel.FromString((saved.path / "saved_model.pb").read_bytes())
    (graph,) = content.meta_graphs
    kinds = {n.user_object.identifier for n in graph.object_graph_def.nodes}
    assert not [kind for kind in kinds if "keras" in kind]
    nodes = [
        *graph.graph_def.node,
        *(n for f in graph.graph_def.library.function for n in f.node_def),
    ]
    assert all(op_def_registry.get(node.op) is not None for node in nodes)
    assert "keras_metadata.pb" not in os.listdir(saved.path)


def test_changed_missing_and_new_files_are_found(saved, tmp_path):
    variables = "variables/variables.data-00000-of-00001"
    changes = {
        "changed": lambda folder: (folder / variables).write_bytes(b"other"),
        "missing": lambda folder: (folder / "fingerprint.pb").unlink(),
        "new": lambda folder: (folder / "assets" / "new.txt").write_text("x"),
        "graph": lambda folder: (folder / "saved_model.pb").write_bytes(b"other"),
        "manifest": lambda folder: (folder / "saved_model.pb.manifest.json").unlink(),
    }
    for name, change in changes.items():
        folder = tmp_path / name
        shutil.copytree(saved.path, folder)
        assert export.verify_saved_model(folder)
        change(folder)
        with pytest.raises(ValueError):
            export.verify_saved_model(folder)


def test_a_second_export_replaces_the_first(tmp_path):
    path = tmp_path / "1"
    for units in (2, 3):
        dense = keras.Sequential([keras.layers.Dense(units, input_shape=(4,), name="logits")])
        export.to_saved_model(dense, path)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert serve(tf.ones([1, 4]))["logits"].shape == (1, 3)
    assert os.listdir(tmp_path) == ["1"]


def small():
    return keras.Sequential([keras.layers.Dense(2, input_shape=(4,), name="logits")])


def test_a_failed_check_leaves_what_was_there(tmp_path):
    path = tmp_path / "1"
    export.to_saved_model(small(), path)
    before = artifacts.sha256(path / "variables" / "variables.data-00000-of-00001")
    same = np.ones((4, 4), np.float32)  # outputs that do not move prove nothing
    with pytest.raises(ValueError, match=r"hardly depends.*Nothing was left"):
        export.to_saved_model(small(), path, verify=same)
    assert artifacts.sha256(path / "variables" / "variables.data-00000-of-00001") == before
    assert os.listdir(tmp_path) == ["1"]
    with pytest.raises(ValueError, match="kept"):
        export.to_saved_model(small(), path, verify=same, keep_failed=True)
    assert export.verify_saved_model(path)["numbers"]["failures"]


def test_other_things_at_the_path_are_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("data", "file"):
        with pytest.raises(ValueError, match="`path`"):
            export.to_saved_model(small(), tmp_path / name)
    assert (tmp_path / "data" / "precious.txt").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["data", "file"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "1").mkdir()
    assert export.to_saved_model(small(), tmp_path / "1").path == tmp_path / "1"
    assert (tmp_path / "1" / "saved_model.pb").is_file()


def test_bad_arguments(tmp_path):
    path = tmp_path / "1"
    with pytest.raises(TypeError, match="`model`"):
        export.to_saved_model("model", path)
    with pytest.raises(ValueError, match="at least two"):
        export.to_saved_model(small(), path, verify=np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="thresholds"):
        export.to_saved_model(small(), path, thresholds={"max_eror": 1})
    (tmp_path / "blocked").write_text("x")
    with pytest.raises(OSError, match="cannot write"):
        export.to_saved_model(small(), tmp_path / "blocked" / "1")
    assert os.listdir(tmp_path) == ["blocked"]


def test_lookup_tables_that_were_adapted(tmp_path):
    texts = np.array([["a b"], ["b"], ["a c a"]])
    words = keras.layers.TextVectorization(output_mode="tf_idf")
    words.adapt(texts)
    x = keras.Input((1,), dtype="string", name="text")
    nested = keras.Sequential([x, words, keras.layers.Dense(2)], name="nested")
    model = keras.Model(x, nested(x))
    report = export.to_saved_model(model, tmp_path / "given", verify=texts)
    assert report.compared_on == "3 given examples" and report.numbers["max_error"] < 1e-5
    check = export.to_saved_model(model, tmp_path / "made").numbers["check"]
    assert check["on"] == "made-up inputs" and check["dependence"] == 1
    serve = tf.saved_model.load(str(tmp_path / "given")).signatures["serving_default"]
    (found,) = serve(text=tf.constant(texts)).values()
    np.testing.assert_allclose(found, model.predict(texts, verbose=0), atol=1e-5)


def test_a_table_that_no_layer_holds_is_refused(tmp_path):
    content = tf.lookup.KeyValueTensorInitializer(["a"], [1])
    table = tf.lookup.StaticHashTable(content, 0)
    x = keras.Input((1,), dtype="string")
    model = keras.Model(x, keras.layers.Lambda(table.lookup)(x))
    with pytest.raises(ValueError, match=r"`model`: .*hold their tables.*self\.table"):
        export.to_saved_model(model, tmp_path / "1")
    assert not os.listdir(tmp_path)
