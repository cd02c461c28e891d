"""Quantized models as TFLite files: integers throughout, and those they were trained with."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tfkd
from tfkd import artifacts, export
from tfkd.export import tflite_conversion
from tfkd.export.detector import flatbuffer
from tfkd.formats import litert
from tfkd.quantization.report import Decision, QuantizationReport

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)
CALIBRATION, VERIFY = IMAGES[:32], IMAGES[32:]


def float_model():
    """A block with a residual, a lone batch normalization and a gate."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.BatchNormalization(name="lone")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    gate = layers.Conv2D(6, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="gated")([x, gate])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        else:
            weight.assign(rng.normal(0.2, 0.6, weight.shape))
    return model


def quantized(target="tflite", model=None, data=CALIBRATION):
    q = tfkd.quantization.quantize(model or float_model(), target)
    tfkd.quantization.calibrate(q, data)
    return q


@pytest.fixture(scope="module")
def q():
    return quantized()


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


@pytest.mark.parametrize(("io", "conversions"), [("float32", 2), ("int8", 0), ("uint8", 2)])
def test_a_quantized_model_against_keras(q, tmp_path, io, conversions):
    path = tmp_path / "m.tflite"
    report = export.to_tflite(q, path, io=io, verify=VERIFY)
    want, got = q(VERIFY).numpy().astype(np.float64), run_by_hand(path, VERIFY)
    error = np.abs(got - want) / np.ptp(want)
    assert error.max() < 0.02
    numbers = report.numbers
    assert numbers["max_error"] == pytest.approx(error.max(), abs=1e-6)
    assert numbers["mean_error"] == pytest.approx(error.mean(), abs=1e-6)
    assert numbers["argmax_agreement"] == (got.argmax(1) == want.argmax(1)).mean()
    assert (report.mode, report.io) == ("int8", io)
    # All in integers, and no change of scale between the operations.
    assert (numbers["float_operations"], numbers["in_float"]) == (0, [])
    assert numbers["conversions"] == conversions
    manifest = artifacts.verify(path)
    assert manifest["numbers"] == numbers
    assert manifest["recipe"]["quantized"] is True
    interpreter = litert.open_interpreter(path)
    (into,), (out,) = litert.ports(interpreter)
    assert (into.name, out.name) == ("image", "logits")
    assert into.dtype == out.dtype == np.dtype(io)


def test_the_file_holds_the_integers_that_the_model_was_trained_with(q, tmp_path):
    path = tmp_path / "m.tflite"
    export.to_tflite(q, path)
    interpreter = litert.open_interpreter(path, delegate=False)
    weights = [d for d in interpreter.get_tensor_details() if d["dtype"] == np.int8]
    found = {tuple(d["shape"]): interpreter.get_tensor(d["index"]) for d in weights}
    # (filters, height, width, channels), and (1, height, width, channels) of the depthwise one.
    kernel = q.get_layer("first").layer.kernel.numpy().astype(np.float64)
    codes = np.rint(kernel / (np.abs(kernel).max((0, 1, 2)) / 127))
    # A negative scale of the batch normalization turns the signs of a channel.
    signs = np.sign(q.get_layer("bn").gamma.numpy())
    assert signs.min() < 0
    np.testing.assert_array_equal(found[6, 3, 3, 3], (codes * signs).transpose(3, 0, 1, 2))
    kernel = q.get_layer("depthwise").layer.depthwise_kernel.numpy().astype(np.float64)
    codes = np.rint(kernel / (np.abs(kernel).max((0, 1), keepdims=True) / 127))
    np.testing.assert_array_equal(found[1, 3, 3, 6], codes.transpose(3, 0, 1, 2))
    kernel = q.get_layer("logits").layer.kernel.numpy().astype(np.float64)
    codes = np.rint(kernel / (np.abs(kernel).max() / 127))
    np.testing.assert_array_equal(found[5, 6], codes.T)


@pytest.mark.parametrize(("target", "least"), [("tflite", 0.0), ("both", -0.5)])
def test_slopes_lie_on_the_grid_of_the_file(tmp_path, target, least):
    prelu = layers.PReLU(shared_axes=[1, 2], name="slopes")
    inputs = keras.Input((8, 8, 3), name="image")
    x = prelu(layers.Conv2D(8, 3, name="a")(inputs))
    x = layers.PReLU(name="each")(layers.Dense(6, name="hidden")(layers.Flatten()(x)))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    rng = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.2, weight.shape))
    prelu.set_weights([rng.uniform(least, 1, (1, 1, 8))])
    q = quantized(target, model)
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=VERIFY)
    assert report.numbers["in_float"] == []
    interpreter = litert.open_interpreter(report.path, delegate=False)
    found = {tuple(d["shape"]): d for d in interpreter.get_tensor_details()}
    codes = interpreter.get_tensor(found[1, 1, 8]["index"])
    step = found[1, 1, 8]["quantization"][0]
    np.testing.assert_array_equal(codes, np.rint(prelu.alpha.numpy() / step))
    # The quantized model computes with these: it rounds their products by half a step at most.
    ends = keras.Model(q.input, [q.get_layer("a").output, q.get_layer("slopes").output])
    x, y = (np.asarray(one, np.float64) for one in ends(VERIFY))
    low, high = q.ranges["slopes"]
    rounding = (high - low) / (254 if target == "both" else 255) / 2
    exact = np.clip(np.where(x > 0, x, codes * np.float64(step) * x), low, high)
    assert np.abs(y - exact).max() < rounding * (1 + 1e-3)


def test_the_same_model_gives_the_same_bytes_and_a_fresh_copy_too(q, tmp_path):
    paths = [tmp_path / name for name in ("a.tflite", "b.tflite", "c.tflite")]
    for model, path in zip((q, q, quantized()), paths, strict=True):
        export.to_tflite(model, path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_symmetric_ranges_and_an_open_batch(tmp_path):
    both = quantized("both")
    path = tmp_path / "m.tflite"
    numbers = export.to_tflite(both, path, verify=VERIFY, batch_size=None).numbers
    assert numbers["float_operations"] == 0
    assert numbers["max_error"] < 0.05
    details = litert.open_interpreter(path, delegate=False).get_tensor_details()
    convolved = [d for d in details if d["dtype"] == np.int8 and "FakeQuant" in d["name"]]
    assert convolved
    assert all(d["quantization"][1] == 0 for d in convolved)


def branches():
    """Three residual branches with factors, as in Inception-ResNet and ConvNeXt."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="stem")(inputs)
    y = layers.Conv2D(6, 1, name="up")(layers.Conv2D(4, 3, padding="same", name="narrow")(x))
    x = layers.ReLU(name="relu")(CustomScaleLayer(0.17, name="mixed")([x, y]))
    y = layers.Conv2D(6, 3, padding="same", groups=6, name="depthwise")(x)
    y = layers.Dense(6, name="inner")(layers.Dense(12, activation="relu", name="outer")(y))
    x = x + LayerScale(0.5, 6, name="gamma")(y)
    y = layers.Activation("swish", name="swish")(x)
    x = CustomScaleLayer(0.3, name="lone")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0.1, 0.4, weight.shape))
    return model


@pytest.mark.parametrize("target", ["tflite", "both"])
def test_sums_with_factors_are_integers_throughout(tmp_path, target):
    q = quantized(target, branches())
    assert {row.action for row in q.report} <= {"int8", "fused", "same grid"}
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=VERIFY)
    assert (report.numbers["float_operations"], report.numbers["in_float"]) == (0, [])
    want, got = q(VERIFY).numpy(), run_by_hand(report.path, VERIFY)
    assert np.abs(got - want).mean() < 0.005 * np.ptp(want)
    assert np.abs(got - want).max() < 0.03 * np.ptp(want)
    # A factor behind a layer with weights is in these, in a scale for each channel (of which a
    # Dense has none, but a convolution); the lone one is a convolution of each channel with
    # one number. The one multiplication is that of the swish.
    details = litert.open_interpreter(report.path, delegate=False)._get_ops_details()
    found = [one["op_name"] for one in details]
    wanted = {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 2, "ADD": 3, "MUL": 1}
    assert {kind: found.count(kind) for kind in (*wanted, "RESHAPE")} == {**wanted, "RESHAPE": 0}


def dilated_gates(x):
    """Dilated convolutions of one tensor, with a constant bias: WaveNet's gates."""
    options = {"padding": "same", "dilation_rate": 2, "bias_initializer": "ones"}
    row = layers.Reshape((64, 3))(x)
    causal = {**options, "padding": "causal"}
    gates = [layers.Conv1D(6, 2, activation=name, **causal)(row) for name in ("tanh", "sigmoid")]
    grouped = layers.Conv2D(6, 2, groups=3, **options), layers.Conv2D(6, 2, groups=3, **options)
    volume = layers.Reshape((2, 4, 8, 3))(x)
    apart = [layers.Conv2D(6, 2, **options)(volume) for _ in range(2)]
    products = [gates, [one(x) for one in grouped], apart]
    return [layers.Multiply()(pair) for pair in products]


def sums(x):
    """Sums and averages without a range of their own."""

    def branches(count):
        return [layers.Conv2D(6, 1)(x) for _ in range(count)]

    y = layers.Concatenate()(
        [
            layers.Average()(branches(3)),
            layers.ReLU(0.5)(layers.Conv2D(6, 1)(x)),
            layers.Activation("hard_sigmoid")(layers.Conv2D(6, 1)(x)),
            layers.ReLU()(layers.Add()(branches(3))),
            *branches(1),
        ]
    )
    return [y, layers.ReLU()(layers.Add()(branches(3))), tf.nn.elu(branches(1)[0])]


@pytest.mark.parametrize("build", [dilated_gates, sums])
def test_what_counts_as_int8_is_computed_in_integers(tmp_path, build):
    inputs = keras.Input((8, 8, 3), name="image")
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, build(inputs))
    q = tfkd.quantization.quantize(model, fallback="error")
    tfkd.quantization.calibrate(q, CALIBRATION)
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=VERIFY)
    assert report.numbers["in_float"] == []
    # A few codes of 255: partial sums and both factors of a product are rounded.
    assert report.numbers["max_error"] < 6 / 255 and report.numbers["mean_error"] < 1 / 255


def test_open_sizes_are_computed_in_integers_too(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3), name="sequence")
    x = layers.Dense(6, "relu", bias_initializer="ones")(inputs)
    x = layers.Conv1D(6, 3, 2, "same", activation="relu", bias_initializer="ones")(x)
    x = layers.Conv1D(6, 2, padding="causal", dilation_rate=2, bias_initializer="ones")(x)
    q = tfkd.quantization.quantize(keras.Model(inputs, x), fallback="error")
    data = IMAGES.reshape((64, 64, 3))
    tfkd.quantization.calibrate(q, data)
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=data, batch_size=None)
    assert report.numbers["in_float"] == [] and report.numbers["mean_error"] < 1 / 255


def test_layers_that_the_converter_leaves_in_float_are_warned_of():
    def row(layer, action):
        return Decision(layer, "Layer", action)

    rows = [row("a", "int8"), row("b", "int8"), row("bb", "fused"), row("c", "output only")]
    made = QuantizationReport(tuple(rows))

    def found(*tensors, kind="ADD"):
        return made.left_in_float({"operation": kind, "tensor": name} for name in tensors)

    assert found("net/a/add", "net/bb/Relu;net/b/add", "net/a/mul") == ["a", "b", "bb"]
    # 'c' may compute in float, what is reshaped may be so behind a dequantization, and the last
    # is of no layer.
    assert found("net/c/add", "net/c/mul;net/a/add", "other") == found("a/x", kind="RESHAPE") == []
    with pytest.warns(UserWarning, match=r"computes 'a', 'b' in float.*numbers\['in_float'\]"):
        tflite_conversion._warn_of_float(["a", "b"])


def test_what_stays_float_is_named(tmp_path):
    inputs = keras.Input((4, 4, 4, 2), name="image")
    x = layers.Conv3D(3, 2, name="volume")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x)))
    data = np.random.default_rng(2).normal(size=(8, 4, 4, 4, 2)).astype(np.float32)
    q = tfkd.quantization.quantize(model)
    tfkd.quantization.calibrate(q, data)
    report = export.to_tflite(q, tmp_path / "m.tflite", verify=data)
    rows = report.numbers["in_float"]
    assert len(rows) == report.numbers["float_operations"] > 0
    assert "CONV_3D" in {row["operation"] for row in rows}
    assert all("volume" in row["tensor"] for row in rows)
    assert "CONV_3D (" in report.text()
    assert artifacts.verify(report.path)["numbers"]["in_float"] == rows


class Graph(layers.Layer):
    """A·(x·W): graph convolution with a fixed adjacency matrix."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 4))

    def call(self, x):
        return tf.matmul(tf.constant(ADJACENCY), tf.matmul(x, self.w))


ADJACENCY = np.random.default_rng(3).uniform(size=(6, 6)).astype(np.float32)


def graph_network():
    x = keras.Input((6, 3), name="nodes")
    return keras.Model(x, layers.Flatten()(layers.ReLU()(Graph(name="graph")(x))), name="net")


def test_products_of_own_layers_compute_in_float(tmp_path, monkeypatch):
    nodes = np.random.default_rng(4).normal(size=(16, 6, 3)).astype(np.float32)
    q = quantized("both", graph_network(), nodes)
    want = np.maximum(ADJACENCY @ (nodes @ q.get_layer("graph").get_weights()[0]), 0)
    for size in (1, None):
        report = export.to_tflite(q, tmp_path / "m.tflite", verify=nodes, batch_size=size)
        assert "FULLY_CONNECTED" in {row["operation"] for row in report.numbers["in_float"]}
        got = tfkd.runtime.Predictor(report.path)(nodes)
        step = 2 * want.max() / 255  # of the symmetric ranges; the inputs are rounded, too
        np.testing.assert_allclose(got, want.reshape(16, -1), atol=6 * step)
    report.path.unlink()
    monkeypatch.setattr(flatbuffer, "with_float_inputs", lambda data: data)
    with pytest.raises(ValueError, match=r"`model`: LiteRT can't.*'graph'.*to_onnx") as raised:
        export.to_tflite(q, report.path, verify=nodes)
    assert ".tmp" not in str(raised.value)


def test_a_file_that_differs_is_not_left(q, tmp_path):
    with pytest.raises(ValueError, match="does not match"):
        export.to_tflite(q, tmp_path / "m.tflite", verify=VERIFY, thresholds={"max_error": 0.0})
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused_before_anything_is_written(q, tmp_path):
    path = tmp_path / "m.tflite"
    uncalibrated = tfkd.quantization.quantize(float_model())
    with pytest.raises(ValueError, match=r"tfkd\.quantization\.calibrate"):
        export.to_tflite(uncalibrated, path)
    with pytest.raises(ValueError, match="`mode`.*quantized model"):
        export.to_tflite(q, path, mode="float16")
    with pytest.raises(ValueError, match="`data`.*quantized model"):
        export.to_tflite(q, path, data=CALIBRATION)
    with pytest.raises(ValueError, match="`io`"):
        export.to_tflite(q, path, io="int16")
    with pytest.raises(ValueError, match="target='both'"):
        export.to_tflite(quantized("tensorrt"), path)
    assert not list(tmp_path.iterdir())


def from_states(x):
    """Two results of one layer that is computed in float, read by a concatenation."""
    _, h, c = layers.LSTM(4, return_state=True)(x)
    return layers.Concatenate()([h, c])


RECURRENT = {
    "open length": (None, lambda x: layers.LSTM(4, return_sequences=True)(x)),
    "states": (6, from_states),
    "bidirectional": (6, lambda x: layers.Bidirectional(layers.LSTM(3))(x)),
}


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_recurrent_layers_compute_in_float_between_ranges(kind, tmp_path):
    length, inside = RECURRENT[kind]
    rng = np.random.default_rng(2)
    inputs = keras.Input((length, 3))
    model = keras.Model(inputs, layers.Dense(3)(inside(inputs)))
    model.set_weights([rng.normal(0, 0.8, w.shape) for w in model.get_weights()])
    x = rng.normal(size=(16, 6, 3)).astype("float32")
    q = tfkd.quantization.quantize(model)
    tfkd.quantization.calibrate(q, x)
    path = export.to_tflite(q, tmp_path / "m.tflite", verify=x).path
    (step,) = (limits[2] for limits in litert.output_limits(path).values())
    found = np.abs(tfkd.runtime.Predictor(path)(x) - q(x).numpy())
    assert found.max() < 1.01 * step and found.mean() < 0.2 * step
