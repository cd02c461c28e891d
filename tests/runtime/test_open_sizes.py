"""Files whose inputs leave sizes open beside the batch, against Keras at several sizes."""

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import export, report
from tfkd.formats import litert
from tfkd.runtime import Predictor

pytest.importorskip("ai_edge_litert")
layers = keras.layers
RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(12, 9, 12, 3)).astype("float32")
OTHERS = np.ascontiguousarray(IMAGES[:5, :8, :7])


@pytest.fixture(scope="module")
def model():
    inside = [layers.Conv2D(4, 3, activation="relu"), layers.Conv2D(2, 2, strides=2)]
    model = keras.Sequential(
        [keras.Input((None, None, 3)), *inside, layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    model.set_weights([RNG.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("mode", "io", "batch_size", "limit"),
    [
        ("float32", "float32", 1, 1e-5),
        ("float16", "float32", 3, 2e-3),
        ("dynamic", "float32", None, 0.05),
        ("int8", "int8", 1, 0.05),
        ("quantized", "float32", None, 0.01),
    ],
)
def test_every_size_in_any_order(model, mode, io, batch_size, limit, tmp_path):
    made, options = model, {"mode": mode, "io": io, "batch_size": batch_size}
    if mode == "int8":
        options["data"] = np.ascontiguousarray(IMAGES[:, :8, :7])  # Their means vary more.
    if mode == "quantized":
        made = tfkd.quantization.quantize(model)
        tfkd.quantization.calibrate(made, IMAGES)
        options["mode"] = None
    path = tmp_path / "m.tflite"
    found = export.to_tflite(made, path, **options, verify=IMAGES)
    assert found.verified and found.numbers["max_error"] <= limit
    for how in ({}, {"batch": 4, "cache_size": 20}):
        with Predictor(path, **how) as predictor:
            for x in (OTHERS, IMAGES, OTHERS[:1], IMAGES[:4], OTHERS):
                want = made(x).numpy()
                assert np.abs(predictor(x) - want).max() <= limit * np.ptp(made(IMAGES))


def test_several_inputs_of_different_sizes(tmp_path):
    a, b = keras.Input((None, 4), name="a"), keras.Input((None, None, 2), name="b")
    joined = [layers.GlobalMaxPooling1D()(layers.Conv1D(3, 3)(a)), layers.GlobalMaxPooling2D()(b)]
    outputs = {"all": layers.Dense(2)(layers.Concatenate()(joined)), "map": layers.Conv2D(1, 1)(b)}
    model = keras.Model([a, b], outputs)
    assert export.to_tflite(model, tmp_path / "m.tflite").compared_on == "8 made-up inputs"
    predictor = Predictor(tmp_path / "m.tflite")
    for length, height in ((5, 3), (4, 6), (5, 3)):
        x = [
            RNG.normal(size=(2, length, 4)).astype("float32"),
            RNG.normal(size=(2, height, 4, 2)).astype("float32"),
        ]
        got, want = predictor(x), model(x)
        for name in ("all", "map"):
            np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_resized_only_when_the_sizes_change(model, tmp_path, monkeypatch):
    path = export.to_tflite(model, tmp_path / "m.tflite", verify=False).path
    shapes = []
    resize = litert.resize
    monkeypatch.setattr(
        litert, "resize", lambda i, ports, to: shapes.append(to[0]) or resize(i, ports, to)
    )
    predictor = Predictor(path)
    assert shapes == [(1, 32, 32, 3)]  # the warm-up
    for x in (IMAGES, IMAGES[:2], OTHERS, OTHERS):
        predictor(x)
    assert shapes[1:] == [(1, 9, 12, 3), (1, 8, 7, 3)]


def test_counted_and_compared_without_being_given_a_size(model, tmp_path):
    path = export.to_tflite(model, tmp_path / "m.tflite").path
    assert litert.operations(path) == {"operations": 4, "float_operations": 4, "conversions": 0}
    kinds = [row["operation"] for row in litert.in_float(path)]
    assert kinds == ["CONV_2D", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert not litert.has_variables(path)
    y = model(OTHERS).numpy().argmax(1)
    models = {"keras": model, "file": path}
    table = report.compare(models, (OTHERS, y), runs=3, seconds=None, throughput_batch=1)
    assert [row.accuracy.values for row in table.rows] == [(100.0,), (100.0,)]
    # (8, 7) → (6, 5) positions of 27 · 4, then (3, 2) of 16 · 2, and 2 · 3.
    assert table.rows[0].macs == 30 * 108 + 6 * 32 + 6


def test_sizes_that_a_file_cannot_take_are_named(model, tmp_path):
    predictor = Predictor(export.to_tflite(model, tmp_path / "m.tflite").path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(1, 2, 2, 3\).*other sizes.*fixed sizes"):
            predictor(IMAGES[:1, :2, :2])
        np.testing.assert_allclose(predictor(IMAGES), model(IMAGES), atol=1e-5)
    # LiteRT has fixed the batch in what normalizes groups.
    x = keras.Input((4, 4, 6))
    groups = keras.Model(x, layers.GroupNormalization(3)(x))
    with pytest.raises(ValueError, match=r"\(8, 4, 4, 6\).*batch_size=1"):
        export.to_tflite(groups, tmp_path / "g.tflite", batch_size=None)
    assert not (tmp_path / "g.tflite").exists()


def test_batches_of_several_sizes_are_named(model, tmp_path):
    with pytest.raises(ValueError, match=r"`data`.*one shape.*\[\(9, 12, 3\), \(8, 7, 3\)\]"):
        export.to_tflite(model, tmp_path / "m.tflite", "int8", data=[IMAGES[:4], OTHERS])
