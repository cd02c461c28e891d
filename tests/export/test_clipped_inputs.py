"""Inputs of which a file clips more than a little: how much, and that it is said."""

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import artifacts, export
from tfkd.export import clipped_inputs

layers = keras.layers
RNG = np.random.default_rng(0)
GROUND = RNG.uniform(0, 0.1, (40, 16, 16, 1)).astype("float32")
BRIGHT = GROUND.copy()
BRIGHT[np.arange(40), RNG.integers(2, 14, 40), RNG.integers(2, 14, 40)] = 9.0


def heat_map():
    """The mean of 3 × 3 pixels."""
    x = keras.Input((16, 16, 1), name="image")
    mean = layers.Conv2D(1, 3, padding="same", name="heat")
    model = keras.Model(x, mean(x))
    mean.kernel.assign(np.ones((3, 3, 1, 1)) / 9)
    return model


@pytest.mark.parametrize("io", ["float32", "int8", "uint8"])
def test_lost_peaks_are_refused_and_the_clipped_input_is_named(tmp_path, io):
    # 1 of 256 values in each example, up to 9 where the file ends at 0.1.
    words = "peak_error.*input 'image': 0.39% of the values .far, in 100.00% of the examples.*to 9"
    with pytest.raises(ValueError, match=words):
        path = tmp_path / "m.tflite"
        export.to_tflite(heat_map(), path, "int8", io, GROUND, verify=BRIGHT)


@pytest.mark.parametrize("target", ["tflite", "tensorrt"])
def test_of_a_quantized_model_which_clips_as_its_file_does(tmp_path, target):
    q = tfkd.quantization.quantize(heat_map(), target)
    tfkd.quantization.calibrate(q, GROUND)
    kinds = [{}, {"layout": "nchw"}, {"precision": "float16"}]
    for options in kinds if target == "tensorrt" else [{}, {"io": "uint8"}]:
        make = export.to_onnx if target == "tensorrt" else export.to_tflite
        with pytest.warns(UserWarning, match="input 'image': 0.39% of the values") as caught:
            report = make(q, tmp_path / "m", verify=BRIGHT, **options)
        assert caught[0].filename == __file__ and len(caught) == 1
        row = report.numbers["inputs"]["image"]
        assert row["far"] == 1.0 and row["values"] == pytest.approx(1 / 256)
        high = row["range"][1]
        assert high == pytest.approx(0.1, abs=2e-3) and row["given"][1] == 9.0
        assert "inputs clipped" in report.text() and report.numbers["warnings"]
        assert artifacts.read_manifest(tmp_path / "m")["numbers"]["inputs"]["image"] == row


def test_examples_like_those_of_the_calibration_are_no_alarm(tmp_path):
    """Normal and heavy-tailed numbers; a float file has no range; a float input no row."""
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(3, name="y")(x))
    settled = {"y": {"min_agreement": 0}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (RNG.normal, RNG.exponential, RNG.laplace, RNG.uniform):
            first, second = (draw(size=(300, 6)).astype("float32") for _ in range(2))
            file = tmp_path / "m.tflite"
            report = export.to_tflite(
                model, file, "int8", data=first, verify=second, thresholds=settled
            )
            row = report.numbers["inputs"]["x"]
            # int8 codes over the range of the calibration, with 0.
            assert np.ptp(row["range"]) == pytest.approx(max(first.max(), 0) - min(first.min(), 0))
            assert row["values"] < 0.01
        report = export.to_tflite(model, file, verify=second)
        assert report.numbers["inputs"] == {} and "inputs clipped" not in report.text()


def test_two_inputs_are_told_apart(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], layers.Dense(2, name="y")(layers.Concatenate()([a, b])))
    data = {"a": RNG.uniform(-1, 1, (100, 4)), "b": RNG.uniform(-1, 1, (100, 3))}
    # A tenth of the values of b, by 0.2 of the range: clipped, but not far.
    more = {**data, "b": np.where(np.arange(300).reshape(100, 3) % 10, data["b"], 1.4)}
    with pytest.warns(UserWarning, match="input 'b': 10.00% of the values lie outside") as caught:
        report = export.to_tflite(
            model, tmp_path / "m", "int8", data=data, verify=more,
            thresholds={"y": {"min_agreement": 0}},
        )  # fmt: skip
    assert "input 'a'" not in str(caught[0].message)
    assert "input 'b' clipped" in report.text() and report.numbers["inputs"]["a"]["values"] == 0


def test_token_ids_have_no_range(tmp_path):
    x = keras.Input((5,), dtype="int32", name="ids")
    mean = layers.GlobalAveragePooling1D()(layers.Embedding(50, 4)(x))
    ids = RNG.integers(0, 50, (64, 5)).astype("int32")
    model = keras.Model(x, layers.Dense(3, name="y")(mean))
    settled = {"y": {"min_agreement": 0}}
    path = tmp_path / "m.tflite"
    report = export.to_tflite(model, path, "int8", data=ids, verify=ids, thresholds=settled)
    assert report.numbers["inputs"] == {}


def test_measure_by_hand():
    x = np.array([[0.0, 0.5], [1.0, 1.005], [0.0, 1.2], [-0.3, 0.5]], "float32")
    row = clipped_inputs.measure({"x": x}, {"x": (0.0, 1.0)})["x"]
    assert row["values"] == 2 / 8 and row["far"] == 1 / 4
    assert row["given"] == [pytest.approx(-0.3), pytest.approx(1.2)]
    assert clipped_inputs.shares(row) == "25.00% of the values (far, in 25.00% of the examples)"
