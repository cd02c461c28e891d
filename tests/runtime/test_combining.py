"""Calls of several threads run together: right answers, no thread left waiting."""

import threading
import time

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export
from tfkd.runtime import Predictor
from tfkd.runtime.combining import Combiner

RNG = np.random.default_rng(11)
BAD = 13.0


class Slow:
    """Adds 1 to rows of numbers; refuses batches with BAD in them; notes the sizes."""

    def __init__(self, seconds=0.002, error=ValueError):
        self.seconds, self.error, self.sizes, self.running = seconds, error, [], 0

    def __call__(self, arrays):
        (x,) = arrays
        assert not self.running
        self.running = 1
        try:
            time.sleep(self.seconds)
            self.sizes.append(len(x))
            if (x == BAD).any():
                raise self.error("bad row")
            return [x + 1]
        finally:
            self.running = 0


def together(count, work):
    """Runs `work(i)` in `count` threads; fails if one hangs."""
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + 20
    for thread in threads:
        thread.join(max(end - time.perf_counter(), 0))
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"


def test_each_caller_gets_its_own_rows():
    run, wrong = Slow(), []
    combiner = Combiner(run, 8)

    def work(i):
        for k in range(20):
            x = np.full((1 + i % 3, 2), 100.0 * i + k + 0.5)
            if not np.array_equal(combiner.submit([x])[0], x + 1):
                wrong.append((i, k))

    together(8, work)
    assert not wrong
    assert sum(run.sizes) == 20 * (1 + 2 + 3 + 1 + 2 + 3 + 1 + 2)
    assert 1 < max(run.sizes) <= 8


def test_a_caller_alone_runs_at_once():
    run = Slow(0)
    combiner = Combiner(run, 8)
    for _ in range(3):
        combiner.submit([np.zeros((2, 2))])
    assert run.sizes == [2, 2, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_that_of_its_caller_alone(error):
    run, outcomes = Slow(error=error), []
    combiner = Combiner(run, 16)

    def work(i):
        for _ in range(15):
            x = np.full((1, 2), BAD if i == 0 else 1.0)
            try:
                outcomes.append((i, float(combiner.submit([x])[0][0, 0])))
            except error:
                outcomes.append((i, "error"))

    together(6, work)
    assert len(outcomes) == 90
    if error is ValueError:
        assert {o for i, o in outcomes if i == 0} == {"error"}
        assert {o for i, o in outcomes if i} == {2.0}


def test_a_follower_that_is_interrupted_hands_the_lead_on():
    release, started = threading.Event(), threading.Event()

    def run(arrays):
        started.set()
        release.wait(10)
        return [arrays[0] + 1]

    combiner = Combiner(run, 4)
    x, results = np.zeros((1, 1)), []

    class Broken:
        """A gate whose wait is interrupted."""

        def acquire(self):
            raise KeyboardInterrupt

        def release(self):
            pass

    def leader():
        results.append(combiner.submit([x]))

    first = threading.Thread(target=leader, daemon=True)
    first.start()
    started.wait(5)
    from tfkd.runtime import combining

    made = combining._Request.__init__
    try:

        def broken(self, arrays):
            made(self, arrays)
            self.gate = Broken()

        combining._Request.__init__ = broken
        with pytest.raises(KeyboardInterrupt):
            combiner.submit([x])
    finally:
        combining._Request.__init__ = made
    other = threading.Thread(target=leader, daemon=True)
    other.start()
    time.sleep(0.05)
    release.set()
    first.join(5)
    other.join(5)
    assert len(results) == 2
    np.testing.assert_array_equal(combiner.submit([x])[0], x + 1)


def test_examples_of_other_shapes_are_not_put_together():
    run = Slow()
    combiner, wrong = Combiner(run, 8), []

    def work(i):
        x = np.zeros((1, 2 + i % 3))
        for _ in range(10):
            if combiner.submit([x])[0].shape != x.shape:
                wrong.append(i)

    together(6, work)
    assert not wrong


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    layers = [
        keras.layers.Dense(32, "relu", input_shape=(16,)),
        keras.layers.Dense(4, name="logits"),
    ]
    model = keras.Sequential(layers)
    folder = tmp_path_factory.mktemp("combined")
    export.to_tflite(model, folder / "open.tflite", batch_size=None)
    export.to_tflite(model, folder / "fixed.tflite", batch_size=4)
    export.to_onnx(model, folder / "open.onnx")
    model.save(folder / "m.keras")
    x = RNG.normal(size=(64, 16)).astype(np.float32)
    one, start, two, end = model.get_weights()
    return folder, x, np.maximum(x @ one + start, 0) @ two + end


@pytest.mark.parametrize(
    ("kind", "options", "seconds"),
    [
        ("open.tflite", {"batch": 8}, 2.0),
        ("open.tflite", {}, 0.5),
        ("open.tflite", {"batch": 8, "cache_size": 32}, 0.5),
        ("fixed.tflite", {"batch": 8}, 0.5),
        ("open.onnx", {"batch": 8}, 0.5),
        ("open.onnx", {}, 0.5),
        ("m.keras", {"batch": 4}, 0.5),
    ],
)
def test_eight_threads_get_what_they_asked_for(files, kind, options, seconds):
    folder, x, want = files
    predictor, wrong, calls = Predictor(folder / kind, **options), [], [0] * 8
    end = time.perf_counter() + seconds

    def work(i):
        rng = np.random.default_rng(i)
        while time.perf_counter() < end:
            rows = rng.integers(0, 64, rng.choice([1, 1, 1, 2, 5, 20]))
            try:
                if not np.allclose(predictor(x[rows]), want[rows], atol=1e-4):
                    wrong.append(rows)
                with pytest.raises(ValueError):  # a bad one fails alone
                    predictor(x[rows, :3])
            except BaseException as error:
                wrong.append(error)
                raise
            calls[i] += 1

    together(8, work)
    assert not wrong and min(calls) > 5


@pytest.mark.parametrize("several", [True, False])
def test_memory_is_taken_once_for_each_size(files, several, monkeypatch):
    from tfkd.runtime import tflite

    monkeypatch.setattr(tflite, "_INTERPRETERS_BYTES", 1 << 30 if several else 0)
    folder, x, want = files
    predictor = Predictor(folder / "open.tflite", batch=6)
    backend = predictor._run._backend
    assert backend.sizes == (1, 2, 4, 6)
    assert len(backend._opened) == (4 if several else 1)
    for count in (5, 1, 3, 6, 2, 64):
        np.testing.assert_allclose(predictor(x[:count]), want[:count], atol=1e-5)
    assert len(backend._opened) == (4 if several else 1)
