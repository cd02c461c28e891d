"""Lint rules on what TensorRT's ONNX parser supports: operators, dtypes, shapes, opsets.

https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tfkd import checks
from tfkd.export.tensorrt_lint.rule import Found, Rule, View, label, register
from tfkd.formats.onnx_nodes import attribute, require

# The newest opset that the parser reads, by the first version of TensorRT that does.
_OPSETS = {(8, 0): 13, (8, 5): 17, (9, 0): 19, (10, 0): 20, (10, 15): 24, (11, 0): 25}
# The ONNX operators that the parser of TensorRT 10.15 lacks.
UNSUPPORTED = frozenset(
    """AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad
    Col2Im Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder
    MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss
    Optional OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch
    SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer
    StringSplit TfIdfVectorizer Unique""".split()
)
# Plugins that come with TensorRT; its parser finds them by name in any domain.
PLUGINS = frozenset({"EfficientNMS_TRT"})
_RESIZE = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
}  # fmt: skip

RULES: list[Rule] = []
_rule = functools.partial(register, RULES)


def newest_opset(version: str | None) -> int:
    """The newest opset that a TensorRT version reads; None: the newest known version."""
    if version is None:
        return max(_OPSETS.values())
    checks.instance("version", version, str, 'a version such as "10.3"')
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        numbers = ()
    known = [opset for first, opset in _OPSETS.items() if numbers and numbers >= first]
    if not known:
        raise checks.value_error(
            "version", 'a TensorRT version from 8.0 on, such as "10.3"', version
        )
    return max(known)


@_rule(
    "operator-foreign", "error",
    "Take it out of the model, or write a TensorRT plugin. PartitionedCall is a grouped "
    "convolution of Keras: export with `tfkd.export.to_onnx`, which inlines it.",
)  # fmt: skip
def _operator_foreign(view: View) -> Found:
    onnx = require("onnx")
    local = {(f.domain, f.name) for f in view.model.functions}
    for node in view.nodes:
        own = node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, "")
        if not own and node.op_type not in PLUGINS and (node.domain, node.op_type) not in local:
            where = f" of domain {node.domain!r}" if node.domain else ""
            yield label(node), f"{node.op_type}{where} is not an ONNX operator"


@_rule(
    "operator-unsupported", "error",
    "Compute it outside the engine, or express it with other operators.",
)  # fmt: skip
def _operator_unsupported(view: View) -> Found:
    for node in view.nodes:
        if node.domain in ("", "ai.onnx") and node.op_type in UNSUPPORTED:
            yield label(node), f"TensorRT's parser has no {node.op_type}"


@_rule("resize-mode", "error", "Use nearest or bilinear resizing with half-pixel centers.")
def _resize_mode(view: View) -> Found:
    for node in view.of("Resize"):
        for name, allowed in _RESIZE.items():
            value = attribute(node, name)
            if value is not None and value not in allowed:
                yield label(node), f"{name} {value!r} is not supported"


def _inputs(view: View) -> Iterator[tuple[Any, str]]:
    """The graph inputs that are fed, each with the name of its dtype."""
    kinds = require("onnx").TensorProto.DataType
    for port in view.model.graph.input:
        if port.name not in view.constants:
            yield port, kinds.Name(port.type.tensor_type.elem_type).lower()


@_rule(
    "input-int64", "warning",
    "Declare the input as int32: TensorRT before 9.0 casts to it, later versions read int64 data.",
)  # fmt: skip
def _input_int64(view: View) -> Found:
    for port, kind in _inputs(view):
        if kind == "int64":
            yield port.name, "the input is int64"


@_rule(
    "input-type", "error", "Feed float32, float16, int32, int64, uint8 or bool, and convert before."
)
def _input_type(view: View) -> Found:
    allowed = ("float", "float16", "bfloat16", "int32", "int64", "uint8", "bool", "int8")
    for port, kind in _inputs(view):
        if kind not in allowed:
            yield port.name, f"the input is {kind}"


@_rule("uint8-tensor", "error", "Cast it right after the input: TensorRT allows uint8 only there.")
def _uint8_tensor(view: View) -> Found:
    for port, kind in _inputs(view):
        for reader in view.readers[port.name] if kind == "uint8" else ():
            if reader.op_type not in ("Cast", "CastLike"):
                yield label(reader), f"{reader.op_type} computes on the uint8 input {port.name!r}"


@_rule("dimension-unnamed", "warning", "Name the open size in the file, as 'batch'.")
def _dimension_unnamed(view: View) -> Found:
    for port, _ in _inputs(view):
        for axis, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.dim_param and dim.dim_value <= 0:
                yield port.name, f"axis {axis} is open and has no name"
        if not port.type.tensor_type.HasField("shape"):
            yield port.name, "it has no shape"


@_rule(
    "dimension-open", "performance",
    "Fix sizes other than the batch if they never change; each needs an optimization profile.",
)  # fmt: skip
def _dimension_open(view: View) -> Found:
    for port, _ in _inputs(view):
        for axis, dim in enumerate(port.type.tensor_type.shape.dim):
            if axis and dim.dim_param:
                yield port.name, f"axis {axis} ({dim.dim_param}) is open"


@_rule("opset-too-new", "error", "Export with a lower `opset`, or use a newer TensorRT.")
def _opset_too_new(view: View) -> Found:
    for entry in view.model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > view.newest:
            yield "(model)", f"opset {entry.version}; TensorRT's parser reads up to {view.newest}"


@_rule("opset-too-old", "warning", "Export with opset 13 or later.")
def _opset_too_old(view: View) -> Found:
    oldest = 13 if view.pairs else 9  # 13 is the first with per-channel scales.
    for entry in view.model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < oldest:
            yield "(model)", f"opset {entry.version}"
