"""TFLite files against their Keras models."""

import dataclasses
import os
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, export
from tfkd.example_inputs import Input, collect
from tfkd.formats import litert
from tfkd.runtime import Predictor

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(224, 6, 6, 2)).astype(np.float32)
CALIBRATION, VERIFY = IMAGES[:200], IMAGES[200:]


def randomize(model):
    """Weights that make outputs depend on the input, biases and gammas included."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        elif weight.shape.rank > 1:
            fan_in = np.prod(weight.shape[:-1])
            weight.assign(rng.normal(0, (2 / fan_in) ** 0.5, weight.shape))
        else:
            weight.assign(rng.normal(0.5, 0.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(8, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    built = randomize(keras.Model(inputs, keras.layers.Dense(5, name="logits")(x), name="tiny"))
    moves = np.ptp(built(VERIFY).numpy(), axis=0)
    assert moves.max() > 0.3 * np.ptp(built(VERIFY).numpy())
    return built


def run_by_hand(path, images):
    """LiteRT without any of tfkd, one image at a time: real numbers out."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images[:, None]:
        if into["dtype"] != np.float32:
            scale, zero = into["quantization"]
            info = np.iinfo(into["dtype"])
            image = np.clip(np.rint(image / scale) + zero, info.min, info.max)
        interpreter.set_tensor(into["index"], image.astype(into["dtype"]))
        interpreter.invoke()
        row = interpreter.get_tensor(out["index"])[0]
        if out["dtype"] != np.float32:
            scale, zero = out["quantization"]
            row = (row.astype(np.float64) - zero) * scale
        rows.append(row)
    return np.array(rows, np.float64)


@pytest.mark.parametrize(
    ("mode", "io", "bound"),
    [
        ("float32", "float32", 1e-5),
        ("float16", "float32", 5e-3),
        ("dynamic", "float32", 0.03),
        ("int8", "float32", 0.1),
        ("int8", "int8", 0.1),
        ("int8", "uint8", 0.1),
    ],
)
def test_every_mode_against_keras_and_its_own_numbers(model, tmp_path, mode, io, bound):
    path = tmp_path / "m.tflite"
    data = CALIBRATION if mode == "int8" else None
    report = export.to_tflite(model, path, mode, io, data, VERIFY)
    want, got = model(VERIFY).numpy().astype(np.float64), run_by_hand(path, VERIFY)
    error = np.abs(got - want) / np.ptp(want)
    assert error.max() < bound
    # The report and the manifest say what NumPy says.
    numbers = report.numbers
    assert numbers["max_error"] == pytest.approx(error.max(), abs=1e-6)
    assert numbers["mean_error"] == pytest.approx(error.mean(), abs=1e-6)
    assert numbers["argmax_agreement"] == (got.argmax(1) == want.argmax(1)).mean()
    moves = np.ptp(want, axis=0).max() / np.ptp(want)
    assert numbers["dependence"] == pytest.approx(moves, rel=1e-5)
    assert numbers["examples"] == 24
    assert numbers["failures"] == []
    assert numbers["float_operations"] == (0 if mode == "int8" else numbers["operations"])
    assert report.bytes == os.path.getsize(path)
    manifest = artifacts.verify(path)
    assert manifest["numbers"] == numbers
    recipe = manifest["recipe"]
    assert (recipe["mode"], recipe["io"], recipe["model"]) == (mode, io, "tiny")
    # The types and names of the file.
    predictor = Predictor(path)
    assert [p.dtype for p in (*predictor.inputs, *predictor.outputs)] == [np.dtype(io)] * 2
    assert (predictor.inputs[0].name, predictor.outputs[0].name) == ("image", "logits")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tflite", "m.tflite.manifest.json"]


def test_a_dynamic_file_tells_how_much_it_quantizes(tmp_path):
    for units, count in ((4, 0), (512, 1)):
        model = keras.Sequential(
            [keras.Input((16,)), keras.layers.Dense(units), keras.layers.ReLU()]
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = export.to_tflite(model, tmp_path / "m.tflite", "dynamic")
        assert report.numbers["int8_weights"] == count
        assert f"in float, {count} of them with weights in 8 bits" in report.text()
        said = [str(one.message) for one in caught if "quantized nothing" in str(one.message)]
        assert len(said) == (count == 0)


def test_ranges_of_open_sizes_hold_for_those_of_the_calibration(tmp_path):
    inputs = keras.Input((None, 4), name="points")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(inputs))
    data = RNG.normal(size=(8, 7, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"hold for sizes like those of `data`: 'points' \(7, 4\)"):
        export.to_tflite(model, tmp_path / "m.tflite", "int8", data=data)


def test_sizes_shrink_with_the_weights(tmp_path):
    wide = randomize(
        keras.Sequential([keras.layers.Dense(64, input_shape=(128,)), keras.layers.Dense(4)])
    )
    x = RNG.normal(size=(8, 128)).astype(np.float32)
    sizes = {
        mode: export.to_tflite(
            wide, tmp_path / f"{mode}.tflite", mode, data=x if mode == "int8" else None
        ).bytes
        for mode in ("float32", "float16", "dynamic", "int8")
    }
    weights = 128 * 64 + 64 * 4
    assert sizes["float32"] > 4 * weights
    assert 2 * weights < sizes["float16"] < 3 * weights
    assert weights < sizes["dynamic"] < 2 * weights
    assert weights < sizes["int8"] < 2 * weights


def test_without_verification_nothing_is_called_verified(model, tmp_path):
    report = export.to_tflite(model, tmp_path / "m.tflite")
    assert not report.verified
    assert "max_error" not in report.numbers
    assert report.numbers["check"]["max_error"] < 1e-5
    assert "nothing: pass verify=images" in report.text()
    assert "8 made-up inputs: max error / range" in report.text()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.bytes = 0


def test_table(model, tmp_path):
    text = export.to_tflite(model, tmp_path / "m.tflite", verify=VERIFY).text()
    assert "verified on         24 examples" in text
    assert "argmax agreement    100.00%" in text


def test_a_failed_verification_leaves_what_was_there(model, tmp_path):
    path = tmp_path / "m.tflite"
    narrow = CALIBRATION * 0.01  # ranges far too small: outputs clip
    with pytest.raises(ValueError, match=r"max_error .* is above 0.25.*No file was left"):
        export.to_tflite(model, path, "int8", "int8", narrow, VERIFY)
    assert list(tmp_path.iterdir()) == []
    export.to_tflite(model, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="does not match"):
        export.to_tflite(model, path, "int8", "int8", narrow, VERIFY)
    assert path.read_bytes() == before
    artifacts.verify(path)


def test_keep_failed_leaves_the_file_and_says_so_in_the_manifest(model, tmp_path):
    path, narrow = tmp_path / "m.tflite", CALIBRATION * 0.01
    options = {"thresholds": {"max_clipped": 0.01}, "keep_failed": True}
    with pytest.raises(ValueError, match="clipped .* is above 0.01.*The file was kept"):
        export.to_tflite(model, path, "int8", "int8", narrow, VERIFY, **options)
    numbers = artifacts.verify(path)["numbers"]
    assert numbers["failures"]
    # Clipped, by hand: at the first or last code, and Keras beyond it.
    port = Predictor(path).outputs[0]
    low, high = ((c - port.zero_point) * port.scale for c in (-128, 127))
    want, got = model(VERIFY).numpy(), run_by_hand(path, VERIFY)
    # Beyond it by more than one step, and by more than 1 % of the range.
    beyond = max(port.scale, 0.01 * np.ptp(want))
    clipped = (np.isclose(got, low) & (want < low - beyond)) | (
        np.isclose(got, high) & (want > high + beyond)
    )
    assert numbers["clipped"] == pytest.approx(clipped.mean())
    assert clipped.mean() > 0.01


def test_clipping_is_seen_behind_a_float_output_too(model, tmp_path):
    limits = {"max_error": 9, "max_mean_error": 9, "min_agreement": 0, "max_clipped": 1}
    narrow = CALIBRATION * 0.01
    shares = [
        export.to_tflite(
            model, tmp_path / "m.tflite", "int8", io, narrow, VERIFY, thresholds=limits
        ).numbers["clipped"]
        for io in ("float32", "int8", "uint8")
    ]
    assert shares[0] == shares[1] == shares[2] > 0.01


def test_thresholds(model, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="max_error .* is above 1e-06"):
        export.to_tflite(model, path, "float16", verify=VERIFY, thresholds={"max_error": 1e-6})
    assert not path.exists()
    assert export.to_tflite(
        model, path, "float16", verify=VERIFY, thresholds={"max_error": 1}
    ).verified


def test_a_blind_verification_fails(tmp_path):
    constant = keras.Sequential(
        [keras.layers.Dense(3, input_shape=(4,), kernel_initializer="zeros")]
    )
    constant.layers[0].bias.assign([0.0, 1.0, 2.0])
    x = RNG.normal(size=(9, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="hardly depends on the input"):
        export.to_tflite(constant, tmp_path / "m.tflite", verify=x)
    assert list(tmp_path.iterdir()) == []


def two_by_two():
    """Two inputs in a dict, two outputs in a dict, whose orders differ."""
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="a/right")
    first = keras.layers.Dense(2, name="zz")(left)
    second = keras.layers.Dense(5, name="aa")(keras.layers.Concatenate()([left, right]))
    inputs = {"left": left, "a/right": right}
    return randomize(keras.Model(inputs, {"one": first, "two": second}))


@pytest.mark.parametrize("mode", ["float32", "int8"])
def test_several_inputs_and_outputs_by_name(tmp_path, mode):
    model = two_by_two()
    given = {
        "left": RNG.normal(size=(20, 4)).astype(np.float32),
        "a_right": RNG.normal(size=(20, 3)).astype(np.float32),
    }
    want = model({"left": given["left"], "a/right": given["a_right"]})
    path = tmp_path / "m.tflite"
    report = export.to_tflite(
        model, path, mode, data=given if mode == "int8" else None, verify=given
    )
    got = Predictor(path)(given)
    assert set(got) == set(report.numbers["outputs"]) == {"one", "two"}
    for name in got:
        span = np.ptp(want[name].numpy())
        bound = 1e-5 if mode == "float32" else 0.05 * span
        np.testing.assert_allclose(got[name], want[name].numpy(), atol=bound)


def test_list_of_outputs_and_a_subclassed_model(tmp_path):
    inputs = keras.Input((4,), name="in")
    outputs = [keras.layers.Dense(2, name="b")(inputs), keras.layers.Dense(2, name="a")(inputs)]
    x = RNG.normal(size=(8, 4)).astype(np.float32)
    model = randomize(keras.Model(inputs, outputs))
    export.to_tflite(model, tmp_path / "list.tflite", verify=x)
    got, want = Predictor(tmp_path / "list.tflite")(x), model(x)
    np.testing.assert_allclose(got["b"], want[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(got["a"], want[1].numpy(), atol=1e-5)
    assert Predictor(tmp_path / "list.tflite").inputs[0].name == "x_in"  # a Python keyword

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x, training=False):
            return self.dense(x) * (0.0 if training else 1.0)

    own = Own()
    own(x)
    report = export.to_tflite(randomize(own), tmp_path / "own.tflite", verify=x)
    assert report.numbers["outputs"].keys() == {"output_0"}


@pytest.mark.parametrize("batch_size", [3, None])
def test_batch_size(model, tmp_path, batch_size):
    path = tmp_path / "m.tflite"
    report = export.to_tflite(model, path, verify=VERIFY, batch_size=batch_size)
    assert Predictor(path).inputs[0].shape == (batch_size or -1, 6, 6, 2)
    assert report.numbers["max_error"] < 1e-5


def test_examples_as_batches_with_and_without_labels():
    inputs = (Input("image", (6, 6, 2), np.dtype("float32")),)
    labels = np.zeros(24, np.int32)
    batches = tf.data.Dataset.from_tensor_slices((VERIFY, labels)).batch(7)
    forms = [VERIFY, batches, [VERIFY[:20], VERIFY[20:]], {"image": VERIFY}, iter([VERIFY])]
    for form in forms:
        np.testing.assert_array_equal(collect("verify", form, inputs)["image"], VERIFY)
    both = (*inputs, Input("size", (), np.dtype("int32")))
    pairs = [({"image": VERIFY[i : i + 8], "size": labels[i : i + 8]}, None) for i in (0, 8, 16)]
    for form in [{"image": VERIFY, "size": labels}, batches, pairs]:
        got = collect("verify", form, both)
        np.testing.assert_array_equal(got["image"], VERIFY)
        np.testing.assert_array_equal(got["size"], labels)


def test_the_calibration_set_decides_the_ranges(model, tmp_path):
    scales = []
    for factor in (1.0, 4.0):
        path = tmp_path / "m.tflite"
        export.to_tflite(model, path, "int8", "int8", CALIBRATION * factor)
        scales.append(Predictor(path).inputs[0].scale)
    span = CALIBRATION.max() - CALIBRATION.min()
    np.testing.assert_allclose(scales, [span / 255, 4 * span / 255], rtol=1e-3)


def test_the_model_is_left_as_it_was(model, tmp_path, capfd):
    before = [w.copy() for w in model.get_weights()]
    capfd.readouterr()
    export.to_tflite(model, tmp_path / "m.tflite", "int8", "int8", CALIBRATION, VERIFY)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


class Distiller(keras.Model):
    """Stands for tfkd's own: it is known by its name."""

    def __init__(self, student):
        super().__init__()
        self.student = student


def broken(model):
    clone = keras.models.clone_model(model)
    clone.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    return clone


def unsupported(_):
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, tf.raw_ops.Betainc(a=inputs, b=inputs, x=inputs))


def with_nan(x):
    x = x.copy()
    x[5, 0, 0, 0] = np.nan
    return x


BAD = [
    (lambda m: Distiller(m), {}, TypeError, r"distiller\.student"),
    (lambda m: "model.keras", {}, TypeError, "a tf_keras model"),
    (lambda m: keras.Sequential([keras.layers.Dense(2)]), {}, ValueError, "is built"),
    (broken, {"verify": VERIFY}, ValueError, "finite outputs"),
    (unsupported, {}, ValueError, r"can't express.*Betainc \(in 'tf\.math\.betainc'\)"),
    (None, {"mode": "int4"}, ValueError, "`mode`"),
    (None, {"io": "int16"}, ValueError, "`io`"),
    (None, {"io": "int8"}, ValueError, "use mode='int8'"),
    (None, {"mode": "dynamic", "io": "uint8"}, ValueError, "use mode='int8'"),
    (None, {"mode": "int8"}, ValueError, "`data`"),
    (None, {"data": IMAGES}, ValueError, "`data`"),
    (None, {"mode": "int8", "data": with_nan(IMAGES)}, ValueError, "Example 5 holds NaN"),
    (None, {"mode": "int8", "data": IMAGES[:0]}, ValueError, "at least one example"),
    (None, {"mode": "int8", "data": []}, ValueError, "at least one example"),
    (None, {"mode": "int8", "data": 3}, TypeError, "`data`"),
    (None, {"mode": "int8", "data": IMAGES[0]}, ValueError, "batch, 6, 6, 2"),
    (None, {"mode": "int8", "data": IMAGES[..., :1]}, ValueError, "batch, 6, 6, 2"),
    (None, {"mode": "int8", "data": IMAGES.astype("uint8")}, TypeError, "preprocess"),
    (None, {"verify": with_nan(IMAGES)}, ValueError, "`verify`.*Example 5"),
    (None, {"verify": IMAGES[:1]}, ValueError, "at least two examples"),
    (None, {"verify": {"picture": IMAGES}}, ValueError, r"the inputs \['image'\]"),
    (None, {"verify": "images"}, TypeError, "`verify`"),
    (None, {"thresholds": {"max_eror": 1}}, ValueError, "Did you mean 'max_error'"),
    (None, {"thresholds": {"max_error": -1}}, ValueError, "max_error"),
    (None, {"thresholds": 0.1}, TypeError, "`thresholds`"),
    (None, {"batch_size": 0}, ValueError, "`batch_size`"),
    (None, {"path": "."}, ValueError, "path"),
]


@pytest.mark.parametrize(("make", "options", "error", "said"), BAD)
def test_bad_input(model, tmp_path, monkeypatch, make, options, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        export.to_tflite(make(model) if make else model, **{"path": "m.tflite", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        export.to_tflite(model, tmp_path / "file" / "m.tflite")


def test_mixed_precision_is_refused_with_the_way_out(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        mixed = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    with pytest.raises(ValueError, match=r"computes in float32.*set_weights"):
        export.to_tflite(mixed, tmp_path / "m.tflite")


def test_keras_3_is_refused(tmp_path):
    keras3 = pytest.importorskip("keras", minversion="3")
    model = keras3.Sequential([keras3.layers.Input((2,)), keras3.layers.Dense(1)])
    with pytest.raises(TypeError, match="Keras 3 model"):
        export.to_tflite(model, tmp_path / "m.tflite")


def test_operations_left_in_float_are_counted(tmp_path):
    dense = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), activation="relu")])
    export.to_tflite(dense, tmp_path / "m.tflite")
    # A fully connected operation with the ReLU inside it.
    counts = {"operations": 1, "float_operations": 1, "conversions": 0}
    assert litert.operations(tmp_path / "m.tflite") == counts


def test_a_file_that_is_right_with_an_open_batch_alone_is_told(tmp_path):
    """TensorFlow's converter returns the stack for a concatenation of its unstacked parts."""
    x = keras.Input((4, 3))
    parts = tf.unstack(tf.stack([x, 2 * x, 3 * x], axis=1), axis=1)
    model = keras.Model(x, keras.layers.Flatten()(tf.concat(parts, axis=-1)))
    data = RNG.normal(size=(20, 4, 3)).astype("float32")
    path, settled = tmp_path / "m.tflite", {"min_agreement": 0}
    with pytest.raises(ValueError, match="with batch_size=None the file matches"):
        export.to_tflite(model, path, verify=data, thresholds=settled)
    report = export.to_tflite(model, path, verify=data, thresholds=settled, batch_size=None)
    # By NumPy: at each of 4 places the three parts.
    expected = np.concatenate([data, 2 * data, 3 * data], axis=-1).reshape(20, 36)
    np.testing.assert_allclose(Predictor(path)(data), expected, rtol=1e-5)
    assert report.numbers["max_error"] < 1e-6


def test_where_rounding_explains_a_failure_the_batch_is_not_blamed(model, tmp_path):
    with pytest.raises(ValueError, match="max_error") as caught:
        limits = {"max_error": 1e-9}
        export.to_tflite(model, tmp_path / "m", "float16", verify=VERIFY, thresholds=limits)
    assert "batch_size" not in str(caught.value)
