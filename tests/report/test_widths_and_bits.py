"""The search over widths and formats: what it tries, trains once, scores, and calls the front."""

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export, report
from tfkd.report import layer_times

L = keras.layers


@pytest.fixture
def by_weights(monkeypatch):
    """A model takes a millisecond for each 100 weights, in int8 half of it."""

    def timed(self, model):
        return model.count_params() / (200 if self.mode == "int8" else 100)

    def ratio(self, model, other):
        return model.count_params() / other.count_params()

    monkeypatch.setattr(layer_times.LayerTimes, "_timed", timed)
    monkeypatch.setattr(layer_times.LayerTimes, "_ratio", ratio)


def net():
    """Class 1 where the sum of four numbers is above 0, exactly, whatever is cut."""
    x = keras.Input((4,))
    y = L.Dense(32, "relu", name="hidden")(x)
    model = keras.Model(x, L.Dense(2, name="head")(y))
    hidden, head = model.get_layer("hidden"), model.get_layer("head")
    signs = np.tile([1.0, -1.0], 16)
    sizes = np.repeat(np.arange(1, 17), 2) / 16
    hidden.kernel.assign(np.tile(signs * sizes, (4, 1)))
    head.kernel.assign(np.stack([-signs, signs], 1))
    return model


def data():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, (x.sum(1) > 0).astype("int32")


@pytest.mark.slow
def test_every_pair_is_tried_and_equal_widths_are_trained_once(tmp_path, by_weights):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    trained = []
    table = report.search(
        net(),
        data(),
        report.LayerTimes(),
        reductions=[0.0, 0.5, 0.99],
        modes=["float32", "int8"],
        train=trained.append,
        calibration=data()[0],
        folder=tmp_path / "files",
    )
    rows = {row.model: row for row in table.rows}
    assert list(rows) == ["float32", "float32, 50 % less", "int8", "int8, 50 % less"]
    # 4 · 32 + 32 + 32 · 2 + 2 weights
    assert rows["float32"].latency.p50 == 2.26 and rows["int8"].latency.p50 == 1.13
    # Of the multiples of 4, 16 units would take 1.14 ms.
    assert rows["float32, 50 % less"].latency.p50 == pytest.approx(0.86)
    assert len(trained) == 1 and trained[0].get_layer("hidden").units == 12
    assert all(row.accuracy.mean > 90 for row in rows.values())
    assert (tmp_path / "files" / "int8_50.tflite").is_file()
    assert "int8, 50 % less" in table.pareto()
    printed = table.text()
    assert (
        "Pareto front: " in printed
        and "float32, 99 % less: out of reach, the least is 0.3" in printed
    )
    table.save(tmp_path / "page")
    assert (tmp_path / "page" / "accuracy_latency.png").is_file()


@pytest.mark.slow
def test_what_train_returns_is_exported(by_weights, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    other = keras.Sequential([L.Dense(2, input_shape=(4,))])
    exported = []
    real = export.to_tflite

    def spy(model, *args, **options):
        exported.append(model)
        return real(model, *args, **options)

    monkeypatch.setattr(export, "to_tflite", spy)
    options = {"reductions": [0.5], "modes": ["float32"]}
    table = report.search(net(), data(), report.LayerTimes(), train=lambda _: other, **options)
    assert exported == [other] and table.rows[0].params == 10


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"modes": ["int4"]}, ValueError, "`modes`: expected one of 'float32'"),
        ({"modes": "int8"}, TypeError, "`modes`: expected a list of at least one"),
        ({"reductions": []}, TypeError, "`reductions`: expected a list of at least one"),
        ({"reductions": [1.5]}, ValueError, "`reductions`: expected a number between 0 and 1"),
        ({"modes": ["int8"]}, ValueError, "`calibration`: expected example inputs"),
        ({"train": 3}, TypeError, "`train`: expected a callable"),
        ({"modes": ["float32"], "reductions": [0.99]}, ValueError, "at least one that can be re"),
    ],
)
def test_wrong_arguments(arguments, error, said, by_weights):
    arguments = {"modes": ["float32"], **arguments}
    with pytest.raises(error, match=said):
        report.search(net(), data(), report.LayerTimes(), **arguments)
    with pytest.raises(TypeError, match=r"`measure`: expected a tfkd.report.LayerTimes"):
        report.search(net(), data(), len)
