"""The table of measured times: what is measured, once, in which file, and where it is valid."""

import json
import sys

import pytest
import tf_keras as keras

from tfkd import pruning, report
from tfkd.report import layer_times

L = keras.layers
SAYS = "Inference timings in us: Init: 5685, First inference: 1853, Warmup (avg): 1446.2, "


def dense(units=4, inputs=8, name=None, **options):
    return keras.Sequential([L.Dense(units, input_shape=(inputs,), **options)], name=name)


@pytest.fixture
def instant(monkeypatch):
    """Files are neither made nor run: a model takes as many milliseconds as it has weights."""
    measured = []

    def timed(self, model):
        measured.append((self.mode, model.count_params()))
        return float(model.count_params())

    monkeypatch.setattr(layer_times.LayerTimes, "_timed", timed)
    return measured


def test_what_was_measured_once_is_read_from_the_file(tmp_path, instant):
    path = tmp_path / "times.json"
    times = report.LayerTimes(path)
    assert times(dense(name="a")) == times(dense(name="b", kernel_initializer="zeros")) == 36
    assert times.in_mode("int8")(dense()) == 36
    assert times(dense(5)) == 45
    assert instant == [("float32", 36), ("int8", 36), ("float32", 45)]
    again = report.LayerTimes(path)
    assert again(dense()) == 36 and again.in_mode("int8")(dense()) == 36
    assert len(instant) == 3
    saved = json.loads(path.read_text())
    assert sorted(entry["ms"] for entry in saved["times"].values()) == [36, 36, 45]
    assert saved == again.to_dict()
    lines = str(again).splitlines()
    assert lines[0].split() == ["layers", "mode", "ms"]
    assert lines[2].startswith("Dense: (8,) → (5,), 45 parameters") and "threads 1" in lines[-1]


def test_two_processes_add_to_one_file(tmp_path, instant):
    path = tmp_path / "times.json"
    first, second = report.LayerTimes(path), report.LayerTimes(path)
    first(dense(4)), second(dense(5))
    assert len(report.LayerTimes(path).to_dict()["times"]) == 2


def test_a_table_of_other_settings_or_another_machine_is_refused(tmp_path, instant, monkeypatch):
    path = tmp_path / "times.json"
    report.LayerTimes(path)(dense())
    with pytest.raises(ValueError, match="measured with .*threads 2.*It was .*threads 1.*another"):
        report.LayerTimes(path, threads=2)
    with pytest.raises(ValueError, match="measured with command run {model}"):
        report.LayerTimes(path, command="run {model}")
    here = report.machine()
    monkeypatch.setattr(layer_times, "machine", lambda: {**here, "processor": "Cortex-A76"})
    with pytest.raises(ValueError, match="processor Cortex-A76.*received.*times.json"):
        report.LayerTimes(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="`path`: expected a table of tfkd.report.LayerTimes"):
        report.LayerTimes(path)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`mode`: expected one of 'float32'"):
        report.LayerTimes(mode="int4")
    with pytest.raises(ValueError, match="`command`: expected a shell command with {model}"):
        report.LayerTimes(command="adb shell benchmark_model")
    with pytest.raises(TypeError, match="`model`: expected a built tf_keras model"):
        report.LayerTimes()("m.tflite")


def script(tmp_path, text):
    """A stand-in for benchmark_model on a device: it checks that it got a file, and prints."""
    path = tmp_path / "bench model.py"
    check = "import sys; data = open(sys.argv[1][8:], 'rb').read(); assert data[4:8] == b'TFL3'\n"
    path.write_text(check + text)
    return f"{sys.executable} '{path}' --graph={{model}}"


@pytest.fixture
def stub(monkeypatch):
    """Instead of an exported file, one with its first bytes and a byte for each weight."""

    def write(model, path, mode):
        path.write_bytes(b"\0\0\0\0TFL3" + bytes(model.count_params()))
        return path

    monkeypatch.setattr(layer_times, "_exported", write)


def test_a_command_runs_the_file_on_a_device(tmp_path, stub):
    said = f"print('INFO: {SAYS}Inference (avg): ' + str(len(data)))"
    path = tmp_path / "phone.json"
    times = report.LayerTimes(path, command=script(tmp_path, said))
    assert times(dense(4)) == 0.044 and times(dense(40)) == 0.368  # microseconds, a byte each
    assert set(times.to_dict()["measured_with"]) == {"command", "tensorflow"}


def test_a_model_beside_another_is_known_by_the_ratio_of_the_two(tmp_path, stub):
    """A device that has become twice as slow since the other was measured changes nothing."""
    slower = tmp_path / "slower"
    taken = f"len(data) * (2 if os.path.exists({str(slower)!r}) else 1)"
    said = f"import os; print('{SAYS}Inference (avg): ' + str({taken}))"
    times = report.LayerTimes(tmp_path / "phone.json", command=script(tmp_path, said))
    whole, small = dense(40), dense(4)
    assert times(whole) == 0.368
    slower.touch()
    assert times.beside(small, whole) == pytest.approx(0.044)
    slower.unlink()
    assert times(small) == 0.044 and times.beside(small, whole) == pytest.approx(0.044)
    other = dense(9)  # 81 weights, measured now; a pair is an entry of its own
    assert times.beside(small, other) == pytest.approx(0.044)
    assert len(times.to_dict()["times"]) == 5
    with pytest.raises(TypeError, match="`model`: expected a built tf_keras model"):
        times.beside("m.tflite", whole)


def test_models_in_turns_share_what_a_machine_does_to_them(monkeypatch):
    """The median of ratios of turns next to each other, whatever each turn's speed is."""
    speeds = iter([1.0, 1.0, 5.0, 5.0, 0.5, 0.5] * 200)
    monkeypatch.setattr(layer_times, "_block", lambda call: call() * next(speeds))
    assert layer_times._in_turns(lambda: 3.0, lambda: 2.0) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('no device'); sys.exit(3)", r"`command` ended with 3.*\n.*no device"),
        ("print('Init: 5')", r"expected it to print times as TFLite's benchmark_model"),
        (f"print('{SAYS}Inference (avg): 0')", "Inference .avg.: <microseconds>"),
    ],
)
def test_a_command_that_fails_or_prints_no_time(tmp_path, stub, text, said):
    times = report.LayerTimes(command=script(tmp_path, text))
    with pytest.raises(RuntimeError, match=said):
        times(dense())
    assert not times.to_dict()["times"]


@pytest.mark.slow
def test_wider_layers_take_longer_and_plans_use_the_table(tmp_path):
    pytest.importorskip("ai_edge_litert")
    x = keras.Input((16, 16, 8))
    y = L.Conv2D(64, 3, activation="relu", name="conv")(x)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y)))
    times = report.LayerTimes(tmp_path / "times.json")
    # An eighth of the filters: even on a busy machine less than two thirds of the time.
    plan = pruning.plan(model, latency_reduction=0.3, measure=times)
    assert plan.ms_after <= 0.7 * plan.ms_before and plan.remove["conv"] >= 8
    known = len(times.to_dict()["times"])
    again = pruning.plan(model, latency_reduction=0.3, measure=report.LayerTimes(times.path))
    assert again.remove == plan.remove and again.ms_after == plan.ms_after
    assert len(report.LayerTimes(times.path).to_dict()["times"]) == known


@pytest.mark.slow
def test_every_mode_is_measured_here_and_by_a_command(tmp_path):
    pytest.importorskip("ai_edge_litert")
    x = keras.Input((12,), dtype="int32")
    y = L.GlobalAveragePooling1D()(L.Dense(32, "relu")(L.Embedding(20, 16)(x)))
    model = keras.Model(x, L.Dense(2)(y))
    times = report.LayerTimes()
    for mode in layer_times.MODES:
        assert 0 < times.in_mode(mode)(model) < 50
        said = f"print('{SAYS}Inference (avg): 1250.0')"
        device = report.LayerTimes(mode=mode, command=script(tmp_path, said))
        assert device(model) == 1.25
