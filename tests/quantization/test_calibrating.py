"""Ranges from data, against NumPy; and what calibration refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.quantization import calibrate, calibrating, quantize

L = keras.layers
RNG = np.random.default_rng(3)
X = RNG.normal(size=(300, 4)).astype("float32")
X[7, 1] = 40.0


def make(target):
    """y = x and z = relu(−x): ranges that can be told from the data."""
    x = keras.Input((4,), name="x")
    minus = L.Rescaling(-1.0, name="minus")(x)
    return quantize(keras.Model(x, L.ReLU(name="relu")(minus)), target)


@pytest.fixture(scope="module")
def affine():
    return make("tflite")


@pytest.fixture(scope="module")
def symmetric():
    return make("both")


def near(received, expected, tolerance=1e-5):
    np.testing.assert_allclose(received, expected, atol=tolerance)


def test_minmax_takes_all_values_of_all_batches(affine, symmetric):
    calibrate(affine, X, batch_size=32)
    near(affine.ranges["x_quantize"], (X.min(), 40.0))
    assert "minus" not in affine.ranges  # one kernel with the ReLU
    near(affine.ranges["relu"], (0.0, -X.min()))
    calibrate(symmetric, X)
    near(symmetric.ranges["x_quantize"], (-40.0, 40.0))
    near(symmetric.ranges["relu"], (X.min(), -X.min()))


@pytest.mark.parametrize("stateful", [False, True])
def test_a_batch_of_fixed_size_is_kept(stateful, recwarn):
    layers = [L.GRU(3, stateful=stateful, name="gru"), L.Dense(2, name="out")]
    model = keras.Sequential([keras.Input(batch_shape=(4, 5, 2)), *layers])
    x = RNG.normal(size=(6, 5, 2)).astype("float32")
    q = quantize(model)
    warned = [str(w.message) for w in recwarn if "stateful=False" in str(w.message)]
    assert [("gru" in text and "not exported" in text) for text in warned] == [True] * stateful
    calibrate(q, x)
    model.reset_states()
    first = model(x[:4]).numpy()
    model.reset_states()
    out = np.concatenate([first, model(x[[4, 5, 0, 1]]).numpy()])
    near(q.ranges["out"], (min(out.min(), 0), max(out.max(), 0)), 0.05)
    if stateful:
        assert not any(np.any(state) for state in q.get_layer("gru").states)


def test_percentile_leaves_the_tails_out(affine, symmetric):
    calibrate(affine, X, "percentile", percentile=99.0, batch_size=77)
    width = (40.0 - X.min()) / 4096
    near(affine.ranges["x_quantize"], np.percentile(X, [1, 99]), 3 * width + 0.05)
    calibrate(symmetric, X, "percentile", percentile=99.0)
    end = np.percentile(np.abs(X), 99)
    near(symmetric.ranges["x_quantize"], (-end, end), 0.1)


def error(x, low, high, symmetric):
    """Mean squared error of rounding and clipping."""
    if symmetric:
        scale = high / 127
        rounded = np.clip(np.round(x / scale), -127, 127) * scale
    else:
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        rounded = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    return np.mean((x - rounded) ** 2)


@pytest.mark.parametrize("kind", ["affine", "symmetric"])
def test_mse_finds_the_range_with_the_least_error(kind, request):
    q = request.getfixturevalue(kind)
    x = RNG.laplace(size=(20000, 4)).astype("float32")
    calibrate(q, x, "mse", batch_size=5000)
    found = error(x, *q.ranges["x_quantize"], kind == "symmetric")
    low, high = (-np.abs(x).max(), np.abs(x).max()) if kind == "symmetric" else (x.min(), x.max())
    tried = [error(x, low * f, high * f, kind == "symmetric") for f in np.linspace(0.2, 1, 81)]
    assert found <= min(tried) * 1.02
    assert found < tried[-1] * 0.9  # the whole range is not the best


def test_only_ranges_change_and_a_second_time_gives_the_same():
    x = keras.Input((8, 8, 3), name="x")
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(x))
    q = quantize(keras.Model(x, L.Dense(2, name="dense")(L.Flatten()(y))))
    q.compile("adam", "mse")
    data = RNG.normal(size=(8, 8, 8, 3)).astype("float32")
    before = {v.name: v.numpy() for v in q.variables}
    calibrate(q, data)
    changed = {
        n for n, v in before.items() for w in q.variables if w.name == n and (w != v).numpy().any()
    }
    assert all(name.endswith(("_low:0", "_high:0")) for name in changed)
    assert int(q.optimizer.iterations) == 0
    first = q.ranges
    calibrate(q, data * 3, "mse")
    assert q.ranges != first
    calibrate(q, data)
    assert q.ranges == first


def test_every_kind_of_data_gives_the_same_ranges(affine):
    calibrate(affine, X[:64])
    expected = affine.ranges
    y = np.zeros(64)
    for data in (
        {"x": X[:64]},
        [X[:40], X[40:64]],
        tf.data.Dataset.from_tensor_slices((X[:64], y)).batch(10),
    ):
        calibrate(affine, np.zeros((1, 4), "float32") + 1)
        calibrate(affine, data)
        assert affine.ranges == expected


def test_endless_data_are_read_up_to_a_limit(affine):
    endless = tf.data.Dataset.from_tensor_slices(X[:64]).batch(10).repeat()
    calibrate(affine, X[:64])
    expected = affine.ranges
    calibrate(affine, X[64:80])
    calibrate(affine, endless)  # the first 1000
    assert affine.ranges == expected
    calibrate(affine, X[:15])
    expected = affine.ranges
    calibrate(affine, endless, max_examples=15)
    assert affine.ranges == expected


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_what_is_always_0_gets_a_harmless_range_and_a_note(affine, symmetric, method):
    calibrate(affine, np.abs(X), method)
    assert affine.ranges["relu"] == (0.0, 1.0)
    assert "0 in all calibration data" in affine.report.of("relu").note
    assert "0 in all calibration data" in str(affine.report)
    assert affine.report.of("minus").note == ""
    assert affine(np.abs(X)).numpy().any() == False  # noqa: E712
    calibrate(symmetric, np.abs(X), method)
    assert symmetric.ranges["relu"] == (-1.0, 1.0)
    calibrate(affine, X)
    assert affine.report.of("relu").note == ""


@pytest.mark.parametrize(
    ("data", "kwargs", "error", "match"),
    [
        (X[:, :3], {}, ValueError, "shape"),
        (X[:0], {}, ValueError, "at least one example"),
        ([], {}, ValueError, "at least one example"),
        (np.full((2, 4), np.nan, "float32"), {}, ValueError, "finite"),
        (3, {}, TypeError, "an array"),
        (X.astype(int), {}, TypeError, "float"),
        (X, {"method": "minmaxx"}, ValueError, "Did you mean 'minmax'"),
        (X, {"batch_size": 0}, ValueError, "batch_size"),
        (X, {"percentile": 30}, ValueError, "percentile"),
        (X, {"max_examples": 0}, ValueError, "max_examples"),
    ],
)
def test_bad_arguments_are_refused_and_ranges_stay(affine, data, kwargs, error, match):
    calibrate(affine, X[:5])
    before = affine.ranges
    with pytest.raises(error, match=match):
        calibrate(affine, data, **kwargs)
    assert affine.ranges == before


def test_a_plain_model_is_refused():
    with pytest.raises(TypeError, match="quantize"):
        calibrate(keras.Sequential([L.Dense(1, input_shape=(2,))]), X)


def test_activations_that_are_not_finite_are_named():
    model = keras.Sequential([L.Dense(2, name="dense", input_shape=(4,))])
    model.layers[0].bias.assign([np.inf, 0.0])
    with pytest.raises(ValueError, match="'dense'"):
        calibrate(quantize(model), X)


def codes(values, low, high):
    """By NumPy: how many of 256 codes are used where halves are rounded to even ones."""
    return len(np.unique(np.round(values / ((high - low) / 255))))


def test_the_range_of_an_input_leaves_no_pixel_between_two_codes():
    pixels = np.arange(256.0)
    for scaled in ((pixels - 127.5) / 128, pixels / 127.5 - 1):
        assert codes(scaled, scaled.min(), scaled.max()) < 180  # by rounding of their own, at most
        low, high = calibrating.beside_ties(scaled, scaled.min(), scaled.max())
        assert codes(scaled, low, high) >= 254
        assert 1 < high / scaled.max() < 1.02
    for scaled in (pixels / 255, pixels, (pixels - 127) / 128):
        whole = min(scaled.min(), 0.0), scaled.max()
        assert calibrating.beside_ties(scaled, *whole) == whole
    for few in ([-1.0, 1.0], [0.0, 0.0], [-1.0, 0.0, 0.3, 1.0]):
        assert calibrating.beside_ties(np.array(few), few[0], few[-1]) == (few[0], few[-1])


def test_a_file_rounds_pixels_as_the_quantized_model_does(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    from tfkd import export

    x = ((np.arange(256).reshape(1, 16, 16, 1) - 127.5) / 128).astype("float32")
    inputs = keras.Input((16, 16, 1))
    q = quantize(keras.Model(inputs, keras.layers.Reshape((256,))(inputs)))
    calibrate(q, x)
    path = export.to_tflite(q, tmp_path / "m.tflite", verify=False).path
    file = Interpreter(str(path))
    file.allocate_tensors()
    file.set_tensor(file.get_input_details()[0]["index"], x)
    file.invoke()
    received = file.get_tensor(file.get_output_details()[0]["index"])
    np.testing.assert_allclose(received, q.predict(x, verbose=0), atol=1e-6)
    np.testing.assert_allclose(received, x.reshape(1, 256), atol=0.0041)


def prices(scale):
    """A price of up to `scale`, and its probability, in one output."""
    x = keras.Input((4,), name="x")
    price = L.Rescaling(scale, name="price")(L.Dense(1, "sigmoid", name="a")(x))
    both = L.Concatenate(name="both")([price, L.Dense(1, "sigmoid", name="b")(x)])
    return keras.Model(x, both)


@pytest.mark.parametrize("target", ["tflite", "both"])
def test_a_column_that_rounding_loses_is_named(target):
    q = quantize(prices(1e4), target)
    with pytest.warns(
        UserWarning, match="output 'both': column 1 of axis 1 is 0 everywhere"
    ) as caught:
        calibrate(q, X)
    assert caught[0].filename == __file__ and len(caught) == 1
    # The step is 1e4 / 255 at least: probabilities up to 1 are all 0.
    assert set(q(X).numpy()[:, 1]) == {0.0}


def test_columns_of_like_ranges_are_no_alarm(recwarn):
    calibrate(quantize(prices(4.0)), X)
    calibrate(quantize(prices(1.0)), X)
    assert not [w for w in recwarn if "column" in str(w.message)]
