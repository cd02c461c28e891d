"""The converter in a process of its own: what it refuses, and what a crash of it leaves."""

import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import export
from tfkd.export import converter, converter_child
from tfkd.formats import litert

layers = keras.layers
RNG = np.random.default_rng(5)
X = RNG.normal(size=(16, 5, 3)).astype("float32")


def recurrent(*inside):
    return keras.Sequential([keras.Input((5, 3)), *inside, layers.Dense(2)])


class Loop(layers.Layer):
    """A loop; with `outside` its body reads a tensor that is made in front of it."""

    def __init__(self, outside, **options):
        super().__init__(**options)
        self.outside = outside

    def call(self, x):
        step = tf.tanh(x) if self.outside else 1.0
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5 + step), [0, x])[1]


LOOPS = {
    "gru": lambda: recurrent(layers.GRU(4, name="loop")),
    "bidirectional": lambda: recurrent(layers.Bidirectional(layers.GRU(4), name="loop")),
    "relu": lambda: recurrent(layers.LSTM(4, activation="relu", name="loop")),
    "masked": lambda: recurrent(layers.Masking(), layers.LSTM(4, name="loop")),
    "map_fn": lambda: recurrent(
        layers.Lambda(lambda x: tf.map_fn(tf.tanh, x), name="loop"), layers.Flatten()
    ),
    "outside": lambda: recurrent(Loop(True, name="loop"), layers.Flatten()),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_int8_of_loops_is_refused_with_a_way_out(kind, tmp_path):
    model = LOOPS[kind]()
    with pytest.raises(ValueError, match=r"(?s)`mode`.*loop.*unroll=True.*quantize"):
        export.to_tflite(model, tmp_path / "m.tflite", "int8", data=X)
    assert not list(tmp_path.iterdir())


def test_the_state_of_a_cell_that_is_given_out_is_a_loop(tmp_path):
    x = keras.Input((5, 3))
    _, h, _ = layers.LSTM(4, return_state=True)(x)
    with pytest.raises(ValueError, match="unroll=True"):
        export.to_tflite(keras.Model(x, h), tmp_path / "m.tflite", "int8", data=X)


def test_loops_that_are_harmless_or_unrolled_convert(tmp_path):
    harmless = recurrent(Loop(False), layers.Flatten())
    for model in (harmless, recurrent(layers.GRU(4, unroll=True))):
        report = export.to_tflite(model, tmp_path / "m.tflite", "int8", data=X, verify=X)
        assert report.numbers["mean_error"] < 0.02
    model = recurrent(layers.GRU(4))
    assert export.to_tflite(model, tmp_path / "d.tflite", "dynamic", verify=X).verified


def test_an_lstm_with_an_open_batch_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match="`batch_size`.*loops.*Pass batch_size=1.*unroll"):
        export.to_tflite(recurrent(layers.LSTM(4)), tmp_path / "m.tflite", batch_size=None)
    assert os.listdir(tmp_path) == []


def test_lstms_are_calibrated_from_a_fresh_state(tmp_path):
    """The ranges of a file do not depend on the order of its examples."""
    model = recurrent(layers.LSTM(4, return_sequences=True), layers.LSTM(4))
    first = model.layers[0]
    inside = keras.Model(model.inputs, first.output).predict(4 * X, verbose=0)
    found = []
    for examples in (4 * X, 4 * X[::-1].copy()):
        export.to_tflite(model, tmp_path / "m.tflite", "int8", data=examples)
        details = litert.open_interpreter(tmp_path / "m.tflite", delegate=False)
        tensors = {d["index"]: d for d in details.get_tensor_details()}
        runs = [d for d in details._get_ops_details() if "SEQUENCE_LSTM" in d["op_name"]]
        found.append([tensors[int(d["outputs"][0])]["quantization"] for d in runs])
    assert found[0] == found[1]
    scale = found[0][0][0]
    low, high = min(inside.min(), 0), max(inside.max(), 0)
    assert scale == pytest.approx((high - low) / 255, rel=1e-3)


def test_an_int8_lstm_whose_cells_stay_small_is_right(tmp_path):
    """TFLite's integer LSTM needs a range of ±1; cells of ±0.05 have a finer one."""
    model = recurrent(layers.LSTM(4))
    small = [0.05 * w for w in model.layers[0].get_weights()[:2]]
    model.layers[0].set_weights([*small, np.zeros(16)])
    report = export.to_tflite(model, tmp_path / "m.tflite", "int8", data=X, verify=X)
    assert report.numbers["mean_error"] < 0.05


def child(monkeypatch, tmp_path, code):
    """Puts a script in place of the converter; what it does with a task is `code`."""
    path = tmp_path / "child.py"
    text = """
        import json, os, signal, sys
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            task = json.loads(line)
    """
    path.write_text(textwrap.dedent(text) + textwrap.indent(textwrap.dedent(code), "    "))
    monkeypatch.setattr(converter_child, "__file__", str(path))
    converter._stop()


@pytest.fixture
def dense():
    yield keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    converter._stop()  # the next test gets the real one


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "said"),
    [("SIGSEGV", "segmentation fault"), ("SIGABRT", "abort"), ("SIGKILL", "memory runs out")],
)
def test_a_crash_is_an_error_that_says_how(monkeypatch, tmp_path, dense, number, said):
    code = f"""
        print("its last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.{number})
    """
    child(monkeypatch, tmp_path, code)
    with pytest.raises(ValueError, match=f"(?s)crashed on.*{said}.*its last words.*goes on"):
        export.to_tflite(dense, tmp_path / "out" / "m.tflite")
    assert not list(tmp_path.glob("out/*"))
    if number == "SIGSEGV":
        monkeypatch.undo()
        assert export.to_tflite(dense, tmp_path / "m.tflite").bytes > 0  # a new process


def test_a_process_that_went_to_sleep_is_started_again(monkeypatch, tmp_path, dense):
    code = f"""
        if not os.path.exists({str(tmp_path / "once")!r}):
            open({str(tmp_path / "once")!r}, "w").close()
            os._exit(0)
        print(json.dumps({{"error": "from the second"}}), flush=True)
    """
    child(monkeypatch, tmp_path, code)
    with pytest.raises(ValueError, match="refuses.*from the second"):
        export.to_tflite(dense, tmp_path / "m.tflite")


def test_a_process_that_has_grown_is_replaced(monkeypatch, tmp_path, dense):
    child(monkeypatch, tmp_path, 'print(json.dumps({"memory": 3 << 30}), flush=True)')
    process = converter._running().process
    converter._in_child({})
    assert process.poll() is not None and converter._child is None


def test_an_interrupt_ends_the_process(monkeypatch, tmp_path, dense):
    child(monkeypatch, tmp_path, "import time; time.sleep(60)")
    process = converter._running().process

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter._Child, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.to_tflite(dense, tmp_path / "m.tflite")
    assert process.poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "executable", [pytest.param(None, marks=pytest.mark.slow), "/no/such/python"]
)
def test_where_no_process_starts_it_is_said_once(monkeypatch, tmp_path, dense, executable):
    converter._stop()
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(converter, "_given_up", False)
    with pytest.warns(RuntimeWarning, match="converter runs in this process"):
        export.to_tflite(dense, tmp_path / "m.tflite")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.to_tflite(dense, tmp_path / "m.tflite")
    monkeypatch.setattr(sys, "executable", "/usr/bin/blender")
    assert "no Python" in converter._why_no_child()


@pytest.mark.slow
def test_in_process_on_request_gives_the_same_bytes(monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 3), layers.ReLU()])
    x = RNG.normal(size=(8, 4, 4, 2)).astype("float32")
    both = []
    for value in ("0", "1"):
        monkeypatch.setenv("TFKD_CONVERT_IN_PROCESS", value)
        export.to_tflite(model, tmp_path / "m.tflite", "int8", "int8", x)
        both.append((tmp_path / "m.tflite").read_bytes())
    assert both[0] == both[1]
    monkeypatch.setattr(converter, "_in_child", None)  # is not called
    with pytest.raises(ValueError, match="unroll=True"):
        export.to_tflite(LOOPS["gru"](), tmp_path / "g.tflite", "int8", data=X)


SCRIPT = """
import os, sys, tfkd, numpy as np, tf_keras as keras
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
tfkd.export.to_tflite(model, "m.tflite", "int8", data=np.eye(3, dtype="float32"))
print(tfkd.export.converter._child.process.pid)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="looks for a process by its number")
def test_from_a_script_without_a_guard_and_nothing_is_left(tmp_path):
    """No words on standard error, and no process once the script has ended."""
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('shadowed')")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "fully_quantize" not in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[-1]), 0)
