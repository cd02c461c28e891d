"""Q and DQ side by side: what stands between them goes in front, and nothing changes."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tfkd
from tfkd import export
from tfkd.export.onnx.graph import Wiring
from tfkd.export.onnx.qdq import MOVES, close_pairs

onnx = pytest.importorskip("onnx")
layers = keras.layers
helper, TYPES = onnx.helper, onnx.TensorProto
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
TO_NCHW = {"perm": [0, 3, 1, 2]}
FLAT = np.array([0, -1])


def graph(*branches, scale=0.25, axis=None):
    """x → Abs → Q, then what stands in each branch, then DQ, the output of that branch."""
    scale = np.asarray(scale, np.float32)
    constants = {"scale": scale, "zero": np.zeros(scale.shape, np.int8), "flat": FLAT}
    where = {} if axis is None else {"axis": axis}
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("Abs", ["x"], ["abs"], name="abs"),
        helper.make_node("QuantizeLinear", ["abs", *pair], ["codes"], name="q", **where),
    ]
    for number, branch in enumerate(branches):
        last = "codes"
        for step, (kind, *inputs, attributes) in enumerate(branch):
            out = f"{kind}{number}{step}"
            nodes.append(helper.make_node(kind, [last, *inputs], [out], name=out, **attributes))
            last = out
        made = helper.make_node("DequantizeLinear", [last, *pair], [f"y{number}"], **where)
        nodes.append(made)
    ports = [helper.make_tensor_value_info("x", TYPES.FLOAT, X.shape)]
    outputs = [helper.make_tensor_value_info(f"y{n}", TYPES.FLOAT, None) for n in range(number + 1)]
    held = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "net", ports, outputs, held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def closed(model):
    """A copy of the model after the pass, as it is written."""
    wiring = Wiring(onnx.ModelProto.FromString(model.SerializeToString()))
    close_pairs(wiring)
    ports = [port.name for port in (*model.graph.input, *model.graph.output)]
    return wiring.close(dict(zip(ports, ports, strict=True)))


def path(model, output):
    """Kinds of the operations from the input to an output, which reads one each."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    while output in makers:
        found.insert(0, makers[output].op_type)
        output = makers[output].input[0]
    return found


def run(model):
    from onnxruntime import InferenceSession

    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})


PAIR = ["QuantizeLinear", "DequantizeLinear"]


def test_a_chain_between_a_pair_goes_in_front_in_its_order(tmp_path):
    model = graph([("Transpose", TO_NCHW), ("Reshape", "flat", {})])
    made = closed(model)
    assert path(model, "y0") == ["Abs", "QuantizeLinear", "Transpose", "Reshape", PAIR[1]]
    assert path(made, "y0") == ["Abs", "Transpose", "Reshape", *PAIR]
    (found,) = run(made)
    # Rounded half to even, at most 127 codes; then (batch, channels · height · width).
    want = 0.25 * np.minimum(np.rint(np.abs(X) / 0.25), 127)
    np.testing.assert_array_equal(found, want.transpose(0, 3, 1, 2).reshape(3, -1))
    for one, broken in ((model, ["between-pair"]), (made, [])):
        (tmp_path / "m.onnx").write_bytes(one.SerializeToString())
        found = export.lint_tensorrt(tmp_path / "m.onnx")
        assert [finding.rule for finding in found.errors] == broken


def test_each_branch_behind_the_codes_has_a_pair_of_its_own():
    model = graph(
        [],
        [("Transpose", TO_NCHW)],
        [("Transpose", TO_NCHW), ("Flatten", {"axis": 1})],
        [("Transpose", TO_NCHW)],
    )
    made = closed(model)
    paths = [path(made, f"y{n}") for n in range(4)]
    assert paths == [
        ["Abs", *PAIR],
        ["Abs", "Transpose", *PAIR],
        ["Abs", "Transpose", "Flatten", *PAIR],
        ["Abs", "Transpose", *PAIR],
    ]
    kinds = [node.op_type for node in made.graph.node]
    # The turned tensor, and the two that are codes of it, are made once.
    assert (kinds.count("Transpose"), kinds.count("QuantizeLinear")) == (1, 3)
    for before, after in zip(run(model), run(made), strict=True):
        np.testing.assert_array_equal(before, after)


def test_pairs_that_stand_side_by_side_and_scales_of_channels_stay():
    plain = graph([])
    assert [n.op_type for n in closed(plain).graph.node] == ["Abs", *PAIR]
    turned = graph([("Transpose", {"perm": [0, 2, 1, 3]})], scale=[0.25, 0.5], axis=3)
    assert path(closed(turned), "y0") == ["Abs", "QuantizeLinear", "Transpose", PAIR[1]]


def test_operations_that_compute_stay_where_they_are():
    model = graph([("MaxPool", {"kernel_shape": [2, 2]})])
    assert path(closed(model), "y0") == ["Abs", "QuantizeLinear", "MaxPool", PAIR[1]]


def convnext():
    """Two blocks of ConvNeXt, a sum of Inception-ResNet, and what stands around them."""

    def norm(x):
        return layers.LayerNormalization(epsilon=1e-6)(x)

    inputs = keras.Input((8, 8, 4), name="image")
    x = norm(layers.Conv2D(6, 2, strides=2)(inputs))
    for _ in range(2):
        y = norm(layers.Conv2D(6, 3, padding="same", groups=6)(x))
        y = layers.Dense(12, activation="gelu")(y)
        x = x + LayerScale(0.5, 6)(layers.Dense(6)(y))
    x = CustomScaleLayer(0.2)([x, layers.Conv2D(6, 1)(x)])
    x = layers.Conv2D(8, 2, strides=2)(norm(x))
    x = norm(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x), name="net")
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.normal(0.2, 0.5, weight.shape))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tensorrt", "both"])
def test_layer_normalization_between_convolution_and_dense(tmp_path, target):
    images = RNG.normal(size=(32, 8, 8, 4)).astype(np.float32)
    q = tfkd.quantization.quantize(convnext(), target)
    tfkd.quantization.calibrate(q, images)
    report = export.to_onnx(q, tmp_path / "m.onnx", "tensorrt", verify=images)
    assert len(report.findings) == 0
    assert report.numbers["quantized"] == report.numbers["weighted"] == 10
    assert report.numbers["max_error"] < 0.03
    graph = onnx.load(report.path).graph
    readers = {name: [n.op_type for n in graph.node if name in n.input] for n in graph.node
               if n.op_type == "QuantizeLinear" for name in n.output}  # fmt: skip
    assert readers and all(kinds == ["DequantizeLinear"] for kinds in readers.values())
    assert any(node.op_type in MOVES for node in graph.node)
