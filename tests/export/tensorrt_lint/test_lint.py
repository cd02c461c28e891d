"""Every rule of `lint_tensorrt`: a graph that breaks it, and one that does not."""

import dataclasses

import numpy as np
import pytest

from tfkd import export
from tfkd.export.tensorrt_lint import lint

onnx = pytest.importorskip("onnx")
helper, TYPES = onnx.helper, onnx.TensorProto


class Net:
    """A graph built by hand: x of shape (batch, 2, 4, 4) → y."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.functions = [], {}, {}, []
        self.input("x", TYPES.FLOAT, ["batch", 2, 4, 4])
        self.count = 0

    def input(self, name, kind, shape):
        self.inputs[name] = helper.make_tensor_value_info(name, kind, shape)

    def constant(self, value, kind=np.float32):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, kind)
        return name

    def add(self, op, *inputs, out=None, **attributes):
        self.count += 1
        out = out or f"t{self.count}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=f"{op}{self.count}", **attributes)
        )
        return out

    def pair(self, x, scale=0.5, zero=0, kind=np.int8, **attributes):
        scale = scale if isinstance(scale, str) else self.constant(scale)
        zero = self.constant(np.broadcast_to(zero, self.constants[scale].shape), kind)
        codes = self.add("QuantizeLinear", x, scale, zero, **attributes)
        return self.add("DequantizeLinear", codes, scale, zero, **attributes)

    def weight(self, shape=(3, 2, 1, 1), axis=0, **changes):
        scale = np.full(shape[axis], 0.1, np.float32)
        return self.pair(self.constant(np.ones(shape)), scale, axis=axis, **changes)

    def conv(self, x="x", channels=2, **attributes):
        return self.add("Conv", self.pair(x), self.weight((3, channels, 1, 1)), **attributes)

    def model(self, out, opset=17):
        output = helper.make_tensor_value_info(out, TYPES.FLOAT, None)
        graph = helper.make_graph(
            self.nodes, "net", list(self.inputs.values()), [output],
            [onnx.numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def clean(net):
    """Convolutions with a residual, pooling and a dense layer, as they should be."""
    first = net.add("Relu", net.conv())
    quantized = net.pair(first)
    second = net.add("Conv", quantized, net.weight((3, 3, 1, 1)), net.constant([1, 2, 3]))
    total = net.add("MaxPool", net.add("Add", second, quantized), kernel_shape=[2, 2])
    pooled = net.add("GlobalAveragePool", net.pair(total))
    return net.add("Gemm", net.pair(net.add("Flatten", pooled)), net.weight((3, 5), axis=1))


def zero_point_missing(net):
    net.add("QuantizeLinear", "x", scale := net.constant(0.5), out="q")
    return net.add("DequantizeLinear", "q", scale, net.constant(0, np.uint8))


def zero_point_not_constant(net):
    zero = net.add("Cast", net.constant(0.0), to=TYPES.INT8)
    return net.add(
        "DequantizeLinear", net.add("QuantizeLinear", "x", s := net.constant(1), zero), s, zero
    )


def scale_not_constant(net):
    scale, zero = net.add("Exp", net.constant(0.0)), net.constant(0, np.int8)
    return net.add("DequantizeLinear", net.add("QuantizeLinear", "x", scale, zero), scale, zero)


def activation_per_channel(net):
    return net.pair("x", np.full(2, 0.5, np.float32), axis=1)


def weight_axis(net):
    return net.add("Conv", net.pair("x"), net.weight((3, 2, 1, 1), axis=1))


def weight_axis_transposed(net):
    return net.add("ConvTranspose", net.pair("x"), net.weight((2, 3, 1, 1), axis=0))


def half_quantized(net):
    return net.add("Conv", net.pair("x"), net.constant(np.ones((3, 2, 1, 1))))


def bias_quantized(net):
    bias = net.pair(net.constant([1, 2, 3]))
    return net.add("Conv", net.pair("x"), net.weight(), bias)


def quantize_alone(net):
    zero = net.constant(0, np.int8)
    return net.add("Cast", net.add("QuantizeLinear", "x", net.constant(1), zero), to=TYPES.FLOAT)


def between_pair(net):
    scale, zero = net.constant(0.5), net.constant(0, np.int8)
    codes = net.add("QuantizeLinear", "x", scale, zero)
    pooled = net.add("MaxPool", codes, kernel_shape=[2, 2])
    return net.add("DequantizeLinear", pooled, scale, zero)


def pair_scales(net):
    zero = net.constant(0, np.int8)
    codes = net.add("QuantizeLinear", "x", net.constant(0.5), zero)
    return net.add("DequantizeLinear", codes, net.constant(0.25), zero)


def moved_dequantize(net):
    turned = net.add("Transpose", net.pair("x"), perm=[0, 1, 3, 2])
    return net.add("Conv", turned, net.weight())


def residual_both_quantized(net):
    return net.add("Add", net.pair(net.conv()), net.pair(net.conv()))


def average_pool_float(net):
    return net.add("GlobalAveragePool", net.add("Relu", net.conv()))


def max_pool_quantized(net):
    return net.add("MaxPool", net.pair("x"), kernel_shape=[2, 2])


def operator_foreign(net):
    return net.add("PartitionedCall", "x")


def operator_foreign_domain(net):
    return net.add("FancyOp", "x", domain="com.example")


def operator_unsupported(net):
    return net.add("Det", "x")


def resize_mode(net):
    return net.add("Resize", "x", "", net.constant([1, 1, 2, 2]), mode="cubic")


def input_int64(net):
    net.input("x", TYPES.INT64, ["batch", 2, 4, 4])
    return net.add("Cast", "x", to=TYPES.FLOAT)


def input_type(net):
    net.input("x", TYPES.DOUBLE, ["batch", 2, 4, 4])
    return net.add("Cast", "x", to=TYPES.FLOAT)


def uint8_tensor(net):
    net.input("x", TYPES.UINT8, ["batch", 2, 4, 4])
    return net.add("Cast", net.add("MaxPool", "x", kernel_shape=[1, 1]), to=TYPES.FLOAT)


def dimension_unnamed(net):
    net.input("x", TYPES.FLOAT, [None, 2, 4, 4])
    return net.add("Relu", "x")


def dimension_open(net):
    net.input("x", TYPES.FLOAT, ["batch", 2, "height", 4])
    return net.add("Relu", "x")


def relu(net):
    return net.add("Relu", "x")


# rule, what breaks it, its node there, opset
BROKEN = [
    ("zero-point-missing", zero_point_missing, "QuantizeLinear1", 17),
    ("zero-point-not-constant", zero_point_not_constant, "QuantizeLinear2", 17),
    ("zero-point-type", lambda n: n.pair("x", 0.5, 0, np.uint8), "QuantizeLinear1", 17),
    ("zero-point-not-zero", lambda n: n.pair("x", 0.5, 3), "DequantizeLinear2", 17),
    ("scale-not-constant", scale_not_constant, "QuantizeLinear2", 17),
    ("scale-value", lambda n: n.pair("x", 0.0), "QuantizeLinear1", 17),
    ("scale-value", lambda n: n.pair("x", -1.0), "QuantizeLinear1", 17),
    ("scale-value", lambda n: n.pair("x", np.nan), "QuantizeLinear1", 17),
    ("scale-value", lambda n: n.pair("x", np.inf), "QuantizeLinear1", 17),
    ("activation-per-channel", activation_per_channel, "QuantizeLinear1", 17),
    ("weight-axis", weight_axis, "Conv5", 17),
    ("weight-axis", weight_axis_transposed, "ConvTranspose5", 17),
    ("half-quantized", half_quantized, "Conv3", 17),
    ("bias-quantized", bias_quantized, "Conv7", 17),
    ("quantize-alone", quantize_alone, "QuantizeLinear1", 17),
    ("between-pair", between_pair, "MaxPool2", 17),
    ("pair-scales", pair_scales, "DequantizeLinear2", 17),
    ("moved-dequantize", moved_dequantize, "Conv6", 17),
    ("residual-both-quantized", residual_both_quantized, "Add15", 17),
    ("average-pool-float", average_pool_float, "GlobalAveragePool7", 17),
    ("max-pool-quantized", max_pool_quantized, "MaxPool3", 17),
    ("operator-foreign", operator_foreign, "PartitionedCall1", 17),
    ("operator-foreign", operator_foreign_domain, "FancyOp1", 17),
    ("operator-unsupported", operator_unsupported, "Det1", 17),
    ("resize-mode", resize_mode, "Resize1", 17),
    ("input-int64", input_int64, "x", 17),
    ("input-type", input_type, "x", 17),
    ("uint8-tensor", uint8_tensor, "MaxPool1", 17),
    ("dimension-unnamed", dimension_unnamed, "x", 17),
    ("dimension-open", dimension_open, "x", 17),
    ("opset-too-new", relu, "(model)", 99),
    ("opset-too-old", Net.conv, "(model)", 12),
]


def lint_file(tmp_path, build, opset=17, **arguments):
    net = Net()
    path = tmp_path / "net.onnx"
    path.write_bytes(net.model(build(net), opset).SerializeToString())
    return export.lint_tensorrt(path, **arguments)


def test_a_graph_as_it_should_be_has_no_findings(tmp_path):
    findings = lint_file(tmp_path, clean)
    assert len(findings) == 0, str(findings)
    assert str(findings) == "no findings" == findings.summary()


@pytest.mark.parametrize(("rule", "build", "node", "opset"), BROKEN)
def test_what_breaks_a_rule_is_found_at_its_node(tmp_path, rule, build, node, opset):
    findings = lint_file(tmp_path, build, opset)
    found = {f.node: f for f in findings if f.rule == rule}
    assert node in found, str(findings)
    assert found[node].what and found[node].fix
    assert rule in str(findings) and node in str(findings) and found[node].fix in str(findings)


def test_every_rule_is_broken_above_and_listed():
    broken = {row[0] for row in BROKEN} | {"codes-stored"}  # It depends on the version.
    assert {r.name for r in lint.RULES} == broken
    assert all(r.name in lint.rules_table() and r.fix in lint.rules_table() for r in lint.RULES)
    assert {r.level for r in lint.RULES} == set(lint.LEVELS)


def test_errors_come_first_and_are_told_apart(tmp_path):
    def build(net):
        return net.add("MaxPool", net.pair("x", 0.5, 3), kernel_shape=[2, 2])

    findings = lint_file(tmp_path, build)
    assert [f.level for f in findings] == ["error", "error", "performance"]
    assert {f.rule for f in findings.errors} == {"zero-point-not-zero"}
    assert findings.summary() == "2 error, 1 performance"
    with pytest.raises(ValueError, match="level"):
        findings.level("fatal")
    with pytest.raises(dataclasses.FrozenInstanceError):
        findings.errors[0].node = "other"


def test_the_averages_of_a_normalization_are_left_to_it(tmp_path):
    def build(net):
        mean = average_pool_float(net)
        net.nodes[-1].name = "net/ln/moments/variance"
        return mean

    assert "average-pool-float" not in str(lint_file(tmp_path, build))


def test_int8_weights_with_a_dequantize_alone_are_allowed(tmp_path):
    def build(net):
        codes = net.constant(np.ones((3, 2, 1, 1)), np.int8)
        scale, zero = net.constant(np.ones(3)), net.constant(np.zeros(3), np.int8)
        return net.add(
            "Conv", net.pair("x"), net.add("DequantizeLinear", codes, scale, zero, axis=0)
        )

    assert not lint_file(tmp_path, build) and not lint_file(tmp_path, build, version="9.0")
    (finding,) = lint_file(tmp_path, build, version="8.6")
    assert (finding.level, finding.rule) == ("error", "codes-stored")


@pytest.mark.parametrize(
    ("version", "opset", "refused"),
    [("8.5", 17, False), ("8.5", 18, True), ("10.0", 20, False), ("10.0.1", 21, True),
     ("10.15", 24, False), ("11.2", 25, False), (None, 26, True)],
)  # fmt: skip
def test_newest_opset_depends_on_the_version(tmp_path, version, opset, refused):
    findings = lint_file(tmp_path, relu, opset, version=version)
    assert [f.rule for f in findings] == (["opset-too-new"] if refused else [])


@pytest.mark.parametrize("version", ["7.2", "ten", ""])
def test_unknown_version_is_refused(tmp_path, version):
    with pytest.raises(ValueError, match="`version`"):
        lint_file(tmp_path, relu, version=version)


def test_nodes_inside_branches_are_seen(tmp_path):
    def build(net):
        output = helper.make_tensor_value_info("inner", TYPES.FLOAT, None)
        branch = helper.make_graph(
            [helper.make_node("Det", ["x"], ["inner"], name="hidden")], "branch", [], [output]
        )
        return net.add("If", net.constant(True, bool), then_branch=branch, else_branch=branch)

    assert {f.node for f in lint_file(tmp_path, build).errors} == {"hidden"}


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        export.lint_tensorrt(tmp_path / "absent.onnx")
    for content in (b"", b"no protobuf at all" * 9):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="ONNX file"):
            export.lint_tensorrt(tmp_path / "bad.onnx")
    with pytest.raises(TypeError, match="`path`"):
        export.lint_tensorrt(3)
