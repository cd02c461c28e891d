"""What a start leaves on disk: used again, and made again when it isn't whole."""

import os
import pathlib
import shutil
import warnings

import numpy as np
import pytest
import tf_keras as keras

from tfkd import artifacts, export
from tfkd.runtime import Predictor, compiled, opening, stored
from tfkd.runtime.stored import Store, folder_for

RNG = np.random.default_rng(8)
X = RNG.normal(size=(5, 6)).astype(np.float32)


def _model():
    model = keras.Sequential(
        [keras.layers.Dense(64, "relu", input_shape=(6,)), keras.layers.Dense(3, name="logits")]
    )
    model.set_weights([RNG.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model in each format, and what it computes."""
    folder, model = tmp_path_factory.mktemp("made"), _model()
    export.to_tflite(model, folder / "open.tflite", batch_size=None)
    export.to_tflite(model, folder / "fixed.tflite", batch_size=2)
    export.to_onnx(model, folder / "m.onnx")
    model.save(folder / "m.keras")
    one, start, two, end = model.get_weights()
    return folder, np.maximum(X @ one + start, 0) @ two + end


@pytest.fixture
def files(made, tmp_path, monkeypatch):
    """The same in a folder of its own; small files are taken for large ones."""
    monkeypatch.setattr(compiled, "LEAST_BYTES", 0)
    shutil.copytree(made[0], tmp_path / "models")
    return tmp_path / "models", made[1]


KINDS = [
    ("open.tflite", "open-*.weights", "weight cache"),
    ("fixed.tflite", "fixed-*.weights", "weight cache"),
    ("m.onnx", "m-*.onnx", "ONNX Runtime"),
    ("m.keras", "m-*/saved_model.pb", "in TensorFlow"),
]


def kept(folder, pattern):
    (found,) = [f for f in folder.glob(pattern) if not f.name.endswith(".json")]
    return found


@pytest.mark.parametrize(("name", "pattern", "said"), KINDS)
def test_the_second_start_uses_what_the_first_made(files, name, pattern, said):
    folder, want = files
    store = folder / "kept"
    times, identities = [], []
    for options in ({}, {}, {"batch": 4, "cache_size": 3}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            predictor = Predictor(folder / name, artifacts_dir=store, **options)
        assert said in repr(predictor)
        for count in (1, 5, 3):
            np.testing.assert_allclose(predictor(X[:count]), want[:count], atol=1e-5)
        predictor.close()
        stat = kept(store, pattern).stat()
        times.append(stat.st_mtime_ns)
        identities.append(stat.st_ino)
    assert len(set(times)) == len(set(identities)) == 1


@pytest.mark.parametrize(("name", "pattern", "said"), KINDS)
@pytest.mark.parametrize("damage", ["byte", "cut", "manifest", "recipe"])
def test_what_is_damaged_is_made_again(files, name, pattern, said, damage):
    folder, want = files
    store = folder / "kept"
    Predictor(folder / name, artifacts_dir=store).close()
    file = kept(store, pattern)
    whole, stat = file.read_bytes(), file.stat()
    manifest = artifacts.manifest_path(file)
    if damage == "byte":
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had been
    elif damage == "cut":
        file.write_bytes(whole[:-7])
    elif damage == "manifest":
        manifest.write_text("{")
    elif name == "m.keras":
        pytest.skip("its folder's name says of which recipe it is")
    else:
        text = manifest.read_text()
        manifest.write_text(text.replace('"model_sha256": "', '"model_sha256": "0'))
    with pytest.warns(RuntimeWarning, match="stale or damaged and is made again"):
        predictor = Predictor(folder / name, artifacts_dir=store)
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)
    assert said in repr(predictor)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        Predictor(folder / name, artifacts_dir=store).close()


@pytest.mark.parametrize("name", ["open.tflite", "m.onnx", "m.keras"])
def test_another_model_under_the_same_name_is_not_taken_for_it(files, name):
    folder, _ = files
    Predictor(folder / name, artifacts_dir=folder / "kept").close()
    other = _model()
    if name == "m.onnx":
        export.to_onnx(other, folder / name)
    elif name == "m.keras":
        other.save(folder / name)
    else:
        export.to_tflite(other, folder / name, batch_size=None)
    predictor = Predictor(folder / name, artifacts_dir=folder / "kept")
    np.testing.assert_allclose(predictor(X), other(X).numpy(), atol=1e-5)


def test_a_changed_model_file_is_refused_with_a_store_too(files):
    folder, _ = files
    path = folder / "open.tflite"
    Predictor(path, artifacts_dir=folder / "kept").close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        Predictor(path, artifacts_dir=folder / "kept")


@pytest.mark.parametrize("name", ["open.tflite", "m.onnx", "m.keras"])
def test_a_folder_that_cannot_be_made_costs_a_warning_only(files, name):
    folder, want = files
    (folder / "taken").write_text("a file")
    with pytest.warns(RuntimeWarning, match="No artefact was kept"):
        predictor = Predictor(folder / name, artifacts_dir=folder / "taken")
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "name"), [(compiled, "open.tflite"), (opening, "m.onnx"), (opening, "m.keras")]
)
def test_an_artefact_that_differs_is_not_used(files, monkeypatch, module, name):
    folder, want = files

    def differ(one, other, tolerance):
        raise RuntimeError("they differ")

    monkeypatch.setattr(module, "check_agreement", differ)
    with pytest.warns(RuntimeWarning, match="they differ"):
        predictor = Predictor(folder / name, artifacts_dir=folder / "kept")
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)
    assert not [f for f in (folder / "kept").glob("*") if f.name != "seen"]


def test_small_tflite_files_keep_nothing(files, monkeypatch):
    folder, _ = files
    monkeypatch.setattr(compiled, "LEAST_BYTES", 8 << 20)
    predictor = Predictor(folder / "open.tflite", artifacts_dir=folder / "kept")
    assert repr(predictor).endswith("in LiteRT")
    assert not list((folder / "kept").glob("*.weights"))


def test_weights_in_other_files_are_not_covered_by_a_digest(files):
    import onnx

    folder, want = files
    model = onnx.load(folder / "m.onnx")
    onnx.save_model(
        model, folder / "out.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    with pytest.warns(RuntimeWarning, match="separate files"):
        predictor = Predictor(folder / "out.onnx", artifacts_dir=folder / "kept")
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)


def test_a_digest_is_read_again_only_when_the_file_changes(tmp_path, monkeypatch):
    store, path = Store(tmp_path / "kept"), tmp_path / "file"
    path.write_bytes(b"abc")
    reads, real = [], artifacts.sha256
    monkeypatch.setattr(stored.artifacts, "sha256", lambda p: reads.append(p) or real(p))
    # SHA-256 of "abc", from FIPS 180-2.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [store.digest(path) for _ in range(3)] == [abc] * 3 and len(reads) == 1
    stat = path.stat()
    path.write_bytes(b"abd")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.digest(path) != abc and len(reads) == 2
    (note,) = (tmp_path / "kept" / "seen").iterdir()
    note.write_text("damaged")
    path.write_bytes(b"abc")
    assert store.digest(path) == abc


def test_where_auto_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_for("auto") == tmp_path / "tfkd"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert folder_for("auto") == pathlib.Path.home() / ".cache" / "tfkd"
    assert folder_for(None) is None and folder_for("here") == pathlib.Path("here")
