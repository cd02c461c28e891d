"""ONNX files against their Keras models; quantized ones down to the integers."""

import os
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, export
from tfkd.export.onnx import qdq
from tfkd.quantization.calibrating import calibrate
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.quantizing import quantize

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

layers = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(24, 8, 8, 4)).astype(np.float32)


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
            weight.assign(rng.normal(0.3, 0.3, weight.shape))
    return model


def on_grid(kernel, axes):
    """Rounds a kernel to whole multiples of max|w|/127; `axes` are those of one channel."""
    step = np.abs(kernel).max(axes, keepdims=True) / 127
    return np.rint(kernel / step) * step


# Axes of a kernel over which one output channel extends.
CHANNEL = {
    "Conv2D": (0, 1, 2),
    "DepthwiseConv2D": (0, 1),
    "Conv2DTranspose": (0, 1, 3),
    "Dense": (0, 1),
}


def network(quantized):
    """All kinds of layers with weights; with ranges and weights on their grids, or float."""

    def q(x, limit=4.0):
        return FixedQuantize(-limit, limit, True, "quantize_dequantize")(x) if quantized else x

    inputs = keras.Input((8, 8, 4), name="image")
    x = q(layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(q(inputs)), 6.0)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    y = q(layers.ReLU(6.0)(y), 6.0)
    y = layers.Conv2D(8, 1, groups=4, name="grouped")(y)
    x = layers.Add()([x, y])
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="transposed")(q(x, 8.0))
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(4)(x))
    x = layers.GlobalAveragePooling2D()(q(x, 8.0))
    x = layers.Dense(7, activation="relu", name="hidden")(q(x))
    outputs = layers.Dense(5, name="logits")(q(x))
    model = randomize(keras.Model(inputs, outputs, name="net"))
    for layer in model.layers if quantized else ():
        if type(layer).__name__ in CHANNEL:
            kernel, *rest = layer.get_weights()
            layer.set_weights([on_grid(kernel, CHANNEL[type(layer).__name__]), *rest])
    return model


@pytest.fixture(scope="module")
def plain():
    return network(quantized=False)


@pytest.fixture(scope="module")
def quantized():
    return network(quantized=True)


@pytest.fixture(scope="module")
def plain_file(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "new" / "plain.onnx"
    return export.to_onnx(plain, path, verify=IMAGES)


@pytest.fixture(scope="module")
def quantized_file(quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "quantized.onnx"
    return export.to_onnx(quantized, path, "tensorrt", verify=IMAGES)


def run(path, **feeds):
    """ONNX Runtime without any of tfkd: {output name: array}."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


class File:
    """An ONNX file taken apart."""

    def __init__(self, path):
        self.model = onnx.load(path)
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}

    def kinds(self):
        return [node.op_type for node in self.nodes]

    def named(self, name):
        (node,) = (node for node in self.nodes if node.name == name)
        return node

    def attributes(self, node):
        return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def codes(self, node):
        """(integers of a node's weight, scale, axis), by hand from Q/DQ or from DQ."""
        dequantize = self.makers[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        scale, zero = (self.constants[name] for name in dequantize.input[1:])
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        axis = self.attributes(dequantize).get("axis")
        if dequantize.input[0] in self.constants:
            return self.constants[dequantize.input[0]], scale, axis
        quantize = self.makers[dequantize.input[0]]
        assert quantize.op_type == "QuantizeLinear" and quantize.input[1:] == dequantize.input[1:]
        assert self.attributes(quantize).get("axis") == axis
        weight = self.constants[quantize.input[0]]
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale, axis


def test_outputs_are_those_of_keras_for_any_batch(plain, plain_file):
    for count in (1, 5):
        found = run(plain_file.path, image=IMAGES[:count])
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], plain(IMAGES[:count]), atol=1e-5)


def test_report_and_manifest(plain_file):
    numbers = plain_file.numbers
    assert plain_file.verified and numbers["examples"] == 24 and numbers["max_error"] < 1e-5
    assert (numbers["weighted"], numbers["quantized"]) == (6, 0)
    manifest = artifacts.verify(plain_file.path)
    assert manifest["numbers"] == numbers
    assert manifest["recipe"]["opset"] == 17 and manifest["recipe"]["target"] == "onnxruntime"
    assert "100.00%" in plain_file.text() and "opset 17" in plain_file.text()


def test_grouped_convolutions_are_inlined(plain_file):
    file = File(plain_file.path)
    assert "PartitionedCall" not in file.kinds()
    assert file.attributes(file.named("grouped/Conv"))["group"] == 4
    assert [e.domain for e in file.model.opset_import] == [""]


def test_nodes_and_sizes_have_plain_names(plain_file):
    file = File(plain_file.path)
    for name in ("conv/Conv", "depthwise/Conv", "transposed/ConvTranspose", "hidden/Gemm"):
        file.named(name)
    (port,) = file.model.graph.input
    dims = port.type.tensor_type.shape.dim
    assert port.name == "image" and dims[0].dim_param == "batch"
    assert [d.dim_value for d in dims[1:]] == [8, 8, 4]
    assert file.model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_same_model_gives_the_same_bytes(quantized, quantized_file, tmp_path):
    copy = keras.models.clone_model(quantized)
    copy.set_weights(quantized.get_weights())
    expected = quantized_file.path.read_bytes()
    for number, model in enumerate((quantized, copy)):
        report = export.to_onnx(model, tmp_path / f"{number}.onnx", "tensorrt")
        assert report.path.read_bytes() == expected
        assert not report.verified and "pass verify" in report.text()


def test_inputs_with_channels_first(plain, tmp_path):
    report = export.to_onnx(plain, tmp_path / "m.onnx", layout="nchw", verify=IMAGES)
    assert report.numbers["max_error"] < 1e-5
    found = run(report.path, image=IMAGES[:3].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found["logits"], plain(IMAGES[:3]), atol=1e-5)
    assert "Transpose" not in File(report.path).kinds()


def test_float16_inside_and_float32_outside(plain, plain_file, tmp_path):
    report = export.to_onnx(plain, tmp_path / "m.onnx", precision="float16", verify=IMAGES)
    assert report.mode == "float16" and 1e-6 < report.numbers["max_error"] < 1e-2
    file = File(report.path)
    weights = [v for v in file.constants.values() if v.size > 8]
    assert weights and all(v.dtype == np.float16 for v in weights)
    ports = [*file.model.graph.input, *file.model.graph.output]
    assert {p.type.tensor_type.elem_type for p in ports} == {onnx.TensorProto.FLOAT}
    assert report.bytes < 0.75 * plain_file.bytes


def test_fixed_batch_and_other_opsets(plain, tmp_path):
    report = export.to_onnx(plain, tmp_path / "m.onnx", opset=13, batch_size=5, verify=IMAGES)
    assert report.opset == 13 == File(report.path).model.opset_import[0].version
    (port,) = File(report.path).model.graph.input
    assert port.type.tensor_type.shape.dim[0].dim_value == 5
    assert report.numbers["examples"] == 24 and report.numbers["max_error"] < 1e-5
    report = export.to_onnx(plain, tmp_path / "m.onnx", opset=18, verify=IMAGES)
    assert File(report.path).model.opset_import[0].version == 18


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    a = keras.Input((4,), name="a")
    ids = keras.Input((), dtype="int32", name="ids")
    total = layers.Add()([a, layers.Embedding(7, 4)(ids)])
    outputs = {"z": layers.Dense(3)(total), "total": total, "again": total, "a_too": a}
    model = randomize(keras.Model({"a": a, "ids": ids}, outputs))
    feeds = {
        "a": RNG.normal(size=(9, 4)).astype(np.float32),
        "ids": RNG.integers(0, 7, 9).astype(np.int32),
    }
    report = export.to_onnx(model, tmp_path / "m.onnx", verify=feeds)
    found, expected = run(report.path, **feeds), model(feeds)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


def test_gelu_and_nearest_resizing(tmp_path):
    inputs = keras.Input((5, 5, 2), name="x")
    x = layers.Resizing(7, 10, "nearest")(inputs)
    outputs = layers.Dense(3, activation="gelu")(layers.UpSampling2D(2)(x))
    model = randomize(keras.Model(inputs, outputs))
    images = RNG.normal(size=(6, 5, 5, 2)).astype(np.float32)
    report = export.to_onnx(model, tmp_path / "m.onnx", "tensorrt", verify=images)
    assert report.numbers["max_error"] < 1e-5 and len(report.findings) == 0


# Where a Keras kernel stands in ONNX: to (out, in, h, w), ConvTranspose (in, out, h, w).
WEIGHTS = {
    "conv/Conv": ("conv", lambda k: k.transpose(3, 2, 0, 1), 0),
    "depthwise/Conv": (
        "depthwise", lambda k: k.transpose(2, 3, 0, 1).reshape(16, 1, 3, 3), 0
    ),
    "grouped/Conv": ("grouped", lambda k: k.transpose(3, 2, 0, 1), 0),
    "transposed/ConvTranspose": ("transposed", lambda k: k.transpose(3, 2, 0, 1), 1),
    "hidden/Gemm": ("hidden", lambda k: k, None),
    "logits/Gemm": ("logits", lambda k: k, None),
}  # fmt: skip


@pytest.mark.parametrize("int8", [False, True])
def test_weights_are_the_integers_of_their_grid(quantized, quantized_file, tmp_path, int8):
    path = quantized_file.path
    if not int8:
        path = tmp_path / "float.onnx"
        export.to_onnx(quantized, path, "tensorrt", int8_weights=False)
    file = File(path)
    weights = [value for value in file.constants.values() if value.ndim > 1]
    assert {value.dtype for value in weights} == {np.dtype("int8" if int8 else "float32")}
    for name, (layer, turn, axis) in WEIGHTS.items():
        kernel = quantized.get_layer(layer).get_weights()[0]
        channel = CHANNEL[type(quantized.get_layer(layer)).__name__]
        step = np.abs(kernel).max(channel, keepdims=True) / 127
        codes, scale, found_axis = file.codes(file.named(name))
        np.testing.assert_array_equal(codes, turn(np.rint(kernel / step)), err_msg=name)
        assert codes.dtype == np.int8 and np.abs(codes).max() == 127 and found_axis == axis
        assert scale.shape == (() if axis is None else (codes.shape[axis],))
        np.testing.assert_allclose(scale, step.reshape(scale.shape), rtol=1e-6)


def test_activations_are_quantized_right_before_what_reads_them(quantized_file):
    file = File(quantized_file.path)
    scales = {"conv/Conv": 4, "depthwise/Conv": 6, "grouped/Conv": 6,
              "transposed/ConvTranspose": 8, "hidden/Gemm": 4, "logits/Gemm": 4}  # fmt: skip
    for name, limit in scales.items():
        dequantize = file.makers[file.named(name).input[0]]
        quantize = file.makers[dequantize.input[0]]
        assert (dequantize.op_type, quantize.op_type) == ("DequantizeLinear", "QuantizeLinear")
        scale, zero = (file.constants[n] for n in quantize.input[1:])
        assert scale.shape == zero.shape == () and zero.dtype == np.int8 and zero == 0
        assert scale == np.float32(limit / 127)
    pool = next(n for n in file.nodes if n.op_type == "GlobalAveragePool")
    assert file.makers[pool.input[0]].op_type == "DequantizeLinear"
    (add,) = (n for n in file.nodes if n.op_type == "Add")
    sources = sorted(file.makers[name].op_type for name in add.input)
    assert sources == ["Conv", "DequantizeLinear"]  # one branch is open for fusion


def test_biases_stay_float(quantized, quantized_file):
    file = File(quantized_file.path)
    for name, (layer, _, _) in WEIGHTS.items():
        bias = file.constants[file.named(name).input[2]]
        np.testing.assert_allclose(bias, quantized.get_layer(layer).get_weights()[1], rtol=1e-6)


def test_quantized_file_computes_what_keras_does(quantized, quantized_file):
    numbers = quantized_file.numbers
    assert quantized_file.mode == "quantized" and numbers["quantized"] == numbers["weighted"] == 6
    assert len(quantized_file.findings) == 0 and numbers["findings"] == []
    assert "no findings" in quantized_file.text() and "not verified" in quantized_file.text()
    # A sum that lies between two codes may fall either way; one step is 8/127.
    found, expected = run(quantized_file.path, image=IMAGES)["logits"], quantized(IMAGES).numpy()
    assert np.abs(found - expected).mean() < 0.005 * np.ptp(expected)
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_integers_for_weights_make_the_file_smaller(tmp_path):
    inputs = keras.Input((64,), name="x")
    x = FixedQuantize(-4.0, 4.0, True, "quantize_dequantize")(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(256, name="logits")(x)))
    sizes = [
        export.to_onnx(model, tmp_path / "m.onnx", int8_weights=small).bytes
        for small in (False, True)
    ]
    assert sizes[0] - sizes[1] > 0.7 * 64 * 256 * 4


def test_quantized_float16_needs_opset_19(quantized, tmp_path):
    report = export.to_onnx(
        quantized, tmp_path / "m.onnx", "tensorrt", precision="float16", verify=IMAGES
    )
    file = File(report.path)
    assert report.opset == 19 == file.model.opset_import[0].version
    pairs = [n for n in file.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {file.constants[n.input[1]].dtype for n in pairs} == {np.dtype(np.float16)}
    with pytest.raises(ValueError, match="`opset`"):
        export.to_onnx(quantized, tmp_path / "o.onnx", precision="float16", opset=17)


def test_a_pair_on_both_sides_of_max_pooling_is_one_too_many(tmp_path):
    inputs = keras.Input((8, 8, 4), name="image")
    once = FixedQuantize(-3.0, 3.0, True, "quantize_dequantize")
    x = layers.Conv2D(3, 1, name="conv")(once(layers.MaxPooling2D()(once(inputs))))
    model = randomize(keras.Model(inputs, x))
    kernel, bias = model.get_layer("conv").get_weights()
    model.get_layer("conv").set_weights([on_grid(kernel, (0, 1, 2)), bias])
    report = export.to_onnx(model, tmp_path / "m.onnx", "tensorrt", verify=IMAGES)
    # One pair for the activation, and a DequantizeLinear for the weight.
    kinds = File(report.path).kinds()
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 2)
    assert report.numbers["max_error"] < 1e-5 and len(report.findings) == 0


def test_quantized_models_go_through(plain, tmp_path):
    model = quantize(plain, target="tensorrt")
    for write in (export.to_onnx, export.to_saved_model):
        with pytest.raises((RuntimeError, ValueError), match="calibrat"):
            write(model, tmp_path / "m.onnx")
        assert os.listdir(tmp_path) == []
    calibrate(model, IMAGES)
    report = export.to_onnx(model, tmp_path / "m.onnx", "tensorrt", verify=IMAGES)
    assert report.mode == "quantized" and report.numbers["quantized"] == 6
    assert report.numbers["max_error"] < 0.02 and len(report.findings) == 0


def test_scales_too_small_for_float16_are_refused(tmp_path):
    inputs = keras.Input((4,), name="x")
    x = FixedQuantize(-1e-5, 1e-5, True, "quantize_dequantize")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    with pytest.raises(ValueError, match=r"`precision`.*too small"):
        export.to_onnx(model, tmp_path / "m.onnx", precision="float16")
    assert os.listdir(tmp_path) == []


def test_grid_of_a_weight():
    kernel = np.array([[1.27, -0.5], [0.1, 0.02]], np.float32)
    assert qdq.grid_scale(kernel, 1) == np.float32(0.01)
    columns = np.array([[1.27, -0.5], [0.1, 0.021]], np.float32)  # 2.1 is no whole number
    np.testing.assert_allclose(qdq.grid_scale(columns, 1), [0.01, 0.5 / 127])
    filters = np.zeros((2, 1, 1, 1), np.float32)
    filters[1] = 2.54
    np.testing.assert_allclose(qdq.grid_scale(filters, 0), [1 / 127, 0.02])


def dense(**arguments):
    model = keras.Sequential([layers.Dense(3, input_shape=(4,), name="logits", **arguments)])
    return randomize(model)


POINTS = RNG.normal(size=(8, 4)).astype(np.float32)


def refuses(folder, kind, match, model=None, **arguments):
    """The error, and that nothing was left."""
    with pytest.raises(kind, match=match):
        export.to_onnx(model if model is not None else dense(), folder / "m.onnx", **arguments)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"target": "tensorflow"}, ValueError, "`target`"),
        ({"precision": "int8"}, ValueError, "`precision`"),
        ({"layout": "chw"}, ValueError, "`layout`"),
        ({"opset": 12}, ValueError, "`opset`"),
        ({"opset": 20}, ValueError, "`opset`"),
        ({"opset": "17"}, TypeError, "`opset`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"int8_weights": 1}, TypeError, "`int8_weights`"),
        ({"verify": POINTS[:1]}, ValueError, "at least two"),
        ({"verify": POINTS[:, :3]}, ValueError, "`verify`"),
        ({"verify": POINTS * np.nan}, ValueError, "finite"),
        ({"thresholds": {"max_eror": 1}}, ValueError, "thresholds"),
        ({"model": "net.keras"}, TypeError, "`model`"),
    ],
)
def test_bad_arguments(tmp_path, arguments, kind, match):
    refuses(tmp_path, kind, match, **arguments)


def test_operations_without_an_onnx_form_are_named(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, tf.math.igamma(tf.abs(inputs) + 1.0, 2.0))
    refuses(tmp_path, ValueError, "Igamma", model)


def test_operations_that_tensorrt_lacks_are_refused_for_it(tmp_path):
    inputs = keras.Input((3, 3))
    model = keras.Model(inputs, tf.linalg.det(inputs))
    refuses(tmp_path, ValueError, r"operator-unsupported.*Det", model, target="tensorrt")
    assert export.to_onnx(model, tmp_path / "m.onnx").path.is_file()
    with pytest.raises(ValueError, match="kept"):
        export.to_onnx(model, tmp_path / "k.onnx", "tensorrt", keep_failed=True)
    assert artifacts.read_manifest(tmp_path / "k.onnx")["numbers"]["failures"]


def test_a_failed_check_leaves_the_file_before(tmp_path):
    path = tmp_path / "m.onnx"
    before = export.to_onnx(dense(), path).path.read_bytes()
    with pytest.raises(ValueError, match=r"max_error.*No file was left"):
        export.to_onnx(
            dense(activation="softmax"), path, precision="float16", verify=POINTS,
            thresholds={"max_error": 1e-9},
        )  # fmt: skip
    assert path.read_bytes() == before and artifacts.verify(path)
    assert len(os.listdir(tmp_path)) == 2


def test_missing_packages_and_folders_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write"):
        export.to_onnx(dense(), tmp_path / "file" / "m.onnx")
    (tmp_path / "file").unlink()
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    refuses(tmp_path, ImportError, r"tf2onnx.*tfkd\[tensorrt\]")
    monkeypatch.setitem(sys.modules, "onnx", None)
    refuses(tmp_path, ImportError, r"onnx.*tfkd\[tensorrt\]")
