"""The small check of an export for which no examples are given."""

import os
import sys
import warnings

import numpy as np
import pytest
import tf_keras as keras

from tfkd import artifacts, export
from tfkd.export import saved_model
from tfkd.export.made_up import made_up
from tfkd.export.named_function import NamedFunction

layers = keras.layers


def dense(weights=None):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name="y")])
    kernel = np.random.default_rng(1).normal(size=(4, 3))
    model.set_weights(weights or [kernel, np.zeros(3)])
    return model


@pytest.fixture
def writes(monkeypatch):
    """Lets the file hold another function than the model."""
    real = saved_model._save

    def instead(change):
        other = dense([w * factor + offset for w, (factor, offset) in zip(*change, strict=True)])
        monkeypatch.setattr(
            saved_model, "_save", lambda _, folder: real(NamedFunction(other), folder)
        )

    return lambda *change: instead((dense().get_weights(), change))


@pytest.mark.parametrize("kind", ["tflite", "onnx", "saved_model"])
def test_it_runs_and_is_said_in_report_table_and_manifest(tmp_path, kind):
    path = tmp_path / "m"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = getattr(export, f"to_{kind}")(dense(), path)
    check = report.numbers["check"]
    assert not report.verified and report.compared_on == "8 made-up inputs"
    assert (check["on"], check["examples"]) == ("made-up inputs", 8)
    assert check["max_error"] < 1e-5 and check["dependence"] > 0.5
    assert "8 made-up inputs: max error / range" in report.text()
    file = path / "saved_model.pb" if kind == "saved_model" else path
    assert artifacts.read_manifest(file)["numbers"]["check"] == check


def test_a_slight_difference_is_a_warning(tmp_path, writes):
    writes((1, 0), (1, 0.1))
    with pytest.warns(UserWarning, match=r"8 made-up inputs.*max_error") as caught:
        report = export.to_saved_model(dense(), tmp_path / "m")
    assert caught[0].filename == __file__
    # Every output is off by 0.1: as a part of the range, by NumPy.
    (x,) = made_up(NamedFunction(dense())).values()
    expected = 0.1 / np.ptp(x @ dense().get_weights()[0])
    assert report.numbers["check"]["max_error"] == pytest.approx(expected, rel=1e-4)
    assert report.numbers["check"]["warnings"] and "warning" in report.text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (((-1, 0), (1, 0)), "mean_error"),
        (((1, np.nan), (1, 0)), "NaN or infinity"),
        (((1, 0), (1, np.inf)), "NaN or infinity"),
        (((0, 0), (1, 0)), "mean_error|hardly depends"),
    ],
)
def test_a_gross_difference_is_an_error(tmp_path, writes, change, words):
    writes(*change)
    with pytest.raises(ValueError, match=rf"({words}).*8 made-up inputs.*Nothing was left"):
        export.to_saved_model(dense(), tmp_path / "m")
    assert os.listdir(tmp_path) == []
    # verify=False leaves the check out.
    report = export.to_saved_model(dense(), tmp_path / "m", verify=False)
    assert report.compared_on == "nothing: verify=False" and not report.verified


def test_nan_in_the_file_fails_on_given_examples_too(tmp_path, writes):
    writes((1, 0), (1, np.nan))
    limits = {"max_error": 9, "max_mean_error": 9, "min_agreement": 0}
    with pytest.raises(ValueError, match="NaN or infinity where the Keras model's is finite"):
        export.to_saved_model(
            dense(), tmp_path / "m", np.eye(4, dtype="float32"), thresholds=limits
        )


def test_outputs_that_hardly_move_are_no_alarm(tmp_path):
    still = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="zeros")])
    still.layers[-1].bias.assign([100.0, 100.001, 100.002])
    silent = keras.Sequential([keras.Input((4,)), layers.Dense(1, "relu")])
    silent.layers[-1].set_weights([-np.ones((4, 1)), np.full(1, -100.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (still, silent):
            for mode in ("float32", "float16"):
                report = export.to_tflite(model, tmp_path / "m.tflite", mode)
                assert report.numbers["check"]["examples"] == 8


def test_int8_is_checked_on_its_calibration_examples(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32") * 7
    report = export.to_tflite(dense(), tmp_path / "m.tflite", "int8", data=x)
    assert report.compared_on == "8 calibration examples"
    assert 0 < report.numbers["check"]["max_error"] < 0.05
    with pytest.raises(ValueError, match="at least two"):
        export.to_tflite(dense(), tmp_path / "m.tflite", verify=x[:1])


class Counts(layers.Layer):
    """Counts its calls in a weight."""

    def build(self, shape):
        self.calls = self.add_weight("calls", (), trainable=False, initializer="zeros")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + 1.0


def test_a_model_is_not_changed_by_it(tmp_path):
    counts, x = Counts(), keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(counts(x)))
    report = export.to_saved_model(model, tmp_path / "m")
    assert report.compared_on == "8 made-up inputs" and float(counts.calls) == 0


@pytest.mark.parametrize("batch_size", [1, None])
def test_open_sizes_of_text(tmp_path, batch_size):
    x = keras.Input((None,))
    mean = layers.GlobalAveragePooling1D()(layers.Embedding(10, 4)(x))
    model = keras.Model(x, layers.Dense(2)(mean))
    report = export.to_tflite(model, tmp_path / "m.tflite", batch_size=batch_size)
    assert report.compared_on == "8 made-up inputs" and report.numbers["check"]["max_error"] < 1e-5


def test_a_size_that_the_model_takes_is_found(tmp_path):
    x = keras.Input((None, None, 3))
    model = keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 50)(x)))
    assert export.to_saved_model(model, tmp_path / "m").compared_on == "8 made-up inputs"


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("ai_edge_litert", "to_tflite", "litert"),
        ("tf2onnx", "to_onnx", "tensorrt"),
        ("onnxruntime", "to_onnx", "tensorrt"),
    ],
)
def test_a_missing_package_is_named_before_the_model_is_traced(
    package, name, extra, tmp_path, monkeypatch
):
    class Traced(keras.layers.Layer):
        calls = 0

        def call(self, x):
            Traced.calls += 1
            return x + 1.0

    x = keras.Input((2,))
    model = keras.Model(x, Traced()(x))
    before = Traced.calls
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package.replace('_', '.')}.*tfkd\[{extra}\]"):
        getattr(export, name)(model, tmp_path / "file")
    assert Traced.calls == before
