"""Predictors in other processes: after a fork, and pickled."""

import multiprocessing
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export
from tfkd.runtime import Predictor

RNG = np.random.default_rng(2)
X = RNG.normal(size=(6, 16, 16, 8)).astype("float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network that is large enough for its kernels to use threads; and its answers."""
    folder = tmp_path_factory.mktemp("files")
    model = keras.Sequential(
        [
            keras.Input((16, 16, 8)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    export.to_tflite(model, folder / "m.tflite", batch_size=None)
    export.to_onnx(model, folder / "m.onnx")
    export.to_saved_model(model, folder / "saved")
    model.save(folder / "m.keras")
    return folder, model.predict(X, verbose=0)


def in_a_fork(function, seconds=60):
    """What `function` gives or raises in a child that is forked; it may not hang or crash."""
    into, out = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = function()
        except BaseException as error:
            found = error
        os.write(out, pickle.dumps(found))
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            os.close(out)
            with os.fdopen(into, "rb") as file:
                data = file.read()
            assert status == 0, f"status {status}"
            return pickle.loads(data)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")


@needs_fork
@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
@pytest.mark.parametrize("options", [{"threads": 3}, {"batch": 4, "cache_size": 3}], ids=str)
def test_files_are_opened_anew_in_the_child(files, name, options):
    folder, want = files
    predictor = Predictor(folder / name, **options)
    predictor(X)

    def twice():
        first = predictor(X)
        predictor.close()  # frees what was opened in the child alone
        return first

    np.testing.assert_allclose(in_a_fork(twice), want, atol=1e-5)
    assert in_a_fork(predictor.close) is None  # without a call
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)  # the parent's is as it was


@needs_fork
@pytest.mark.parametrize("name", ["m.keras", "saved"])
def test_tensorflow_refuses_in_the_child_at_once(files, name):
    folder, want = files
    predictor = Predictor(folder / name)
    for call in (
        lambda: predictor(X),
        lambda: predictor.run_one(X),
        lambda: Predictor(folder / name),
    ):
        error = in_a_fork(call)
        assert isinstance(error, RuntimeError)
        assert "forked" in str(error) and "spawn" in str(error)
    np.testing.assert_allclose(predictor(X), want, atol=1e-5)


@needs_fork
def test_who_led_or_waited_when_the_fork_came_is_forgotten(files):
    folder, want = files
    predictor = Predictor(folder / "m.tflite", batch=4, cache_size=2)
    with predictor._combiner._lock, predictor._cache._lock, predictor._run._lock:
        predictor._combiner._led = True
        found = in_a_fork(lambda: predictor(X))
    predictor._combiner._led = False
    np.testing.assert_allclose(found, want, atol=1e-5)


@needs_fork
def test_a_file_that_has_changed_meanwhile(files, tmp_path):
    folder, _ = files
    path = tmp_path / "m.tflite"
    path.write_bytes((folder / "m.tflite").read_bytes())
    predictor = Predictor(path)
    export.to_tflite(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), path)
    assert "has changed" in str(in_a_fork(lambda: predictor(X)))


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m.keras", "saved"])
def test_pickled_and_opened_anew(files, name, monkeypatch, tmp_path):
    folder, want = files
    monkeypatch.chdir(folder)
    data = pickle.dumps(Predictor(name, cache_size=7, batch=2))
    assert len(data) < 2000  # a path and arguments
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(data)
    np.testing.assert_allclose(copy(X), want, atol=1e-5)
    assert copy.cache_info().max_size == 7 and copy.batch == 2


@needs_fork
def test_a_detector_likewise(tmp_path):
    x = keras.Input((8, 8, 3))
    flat = keras.layers.GlobalAveragePooling2D()(x)
    boxes = keras.layers.Reshape((2, 4))(keras.layers.Dense(8)(flat))
    kinds = keras.layers.Reshape((2, 3))(keras.layers.Dense(6)(flat))
    model = keras.Model(x, {"boxes": boxes, "classes": kinds})
    priors = np.float32([[0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.4, 0.4]])
    path = export.detector_to_tflite(model, tmp_path / "d.tflite", priors).path
    detector, image = export.load_detector(path, threads=2), np.zeros((1, 8, 8, 3), "uint8")
    want = detector(image)["confidence"]
    np.testing.assert_array_equal(in_a_fork(lambda: detector(image)["confidence"]), want)
    copy = pickle.loads(pickle.dumps(detector))
    assert copy.threads == 2
    np.testing.assert_array_equal(copy(image)["confidence"], want)


def test_a_closed_one_is_not_pickled(files):
    predictor = Predictor(files[0] / "m.tflite")
    predictor.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(predictor)


def test_passed_to_a_process_that_is_spawned(files):
    folder, want = files
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(Predictor(folder / "m.tflite"), (X,))
    np.testing.assert_allclose(found, want, atol=1e-5)


@needs_fork
def test_threads_of_the_child_open_it_once(files):
    folder, want = files
    predictor = Predictor(folder / "m.onnx")

    def many():
        found = [None] * 4

        def work(i):
            found[i] = predictor(X)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    for got in in_a_fork(many):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_model_is_not_exported_in_a_forked_child(files, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.predict(np.ones((1, 4)), verbose=0)
    for write in (export.to_tflite, export.to_onnx, export.to_saved_model):
        found = in_a_fork(lambda write=write: write(model, tmp_path / "m"), seconds=30)
        assert isinstance(found, RuntimeError) and "spawn" in str(found), found
