"""Lint rules on explicit quantization in TensorRT: zero points, scales, Q/DQ placement.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfkd.export.onnx.qdq import MOVES, WEIGHTED
from tfkd.export.tensorrt_lint.operator_rules import newest_opset
from tfkd.export.tensorrt_lint.rule import Found, Rule, View, label, register
from tfkd.formats.onnx_nodes import attribute

_CODES = frozenset({"int8", "int4", "float8_e4m3fn", "float4_e2m1fn"})
_AVERAGES = ("AveragePool", "GlobalAveragePool")

RULES: list[Rule] = []
_rule = functools.partial(register, RULES)


@_rule(
    "zero-point-missing", "error", "Add an int8 zero point of 0: without one the codes are uint8."
)
def _zero_point_missing(view: View) -> Found:
    for node in view.conversions():
        maker = view.makers.get(node.input[0])
        typed = maker is not None and maker.op_type == "QuantizeLinear" and len(maker.input) > 2
        typed = node.op_type == "DequantizeLinear" and (typed or node.input[0] in view.constants)
        typed = typed or attribute(node, "output_dtype") is not None
        if (len(node.input) < 3 or not node.input[2]) and not typed:
            yield label(node), f"{node.op_type} has no zero point"


@_rule("zero-point-not-constant", "error", "Make the zero point an initializer: an int8 zero.")
def _zero_point_not_constant(view: View) -> Found:
    for node in view.conversions():
        if len(node.input) > 2 and node.input[2] and node.input[2] not in view.constants:
            yield label(node), "the zero point is computed by the graph"


def _zero_points(view: View) -> Iterator[tuple[Any, np.ndarray]]:
    for node in view.conversions():
        if len(node.input) > 2 and node.input[2] in view.constants:
            yield node, view.constants[node.input[2]]


@_rule(
    "zero-point-type", "error",
    'Quantize symmetrically to int8: `quantize(model, target="tensorrt")`.',
)  # fmt: skip
def _zero_point_type(view: View) -> Found:
    for node, zero in _zero_points(view):
        if zero.dtype.name not in _CODES:
            yield label(node), f"codes are {zero.dtype.name}"


@_rule(
    "zero-point-not-zero", "error",
    'Quantize symmetrically, range [-a, a]: `quantize(model, target="tensorrt")`.',
)  # fmt: skip
def _zero_point_not_zero(view: View) -> Found:
    for node, zero in _zero_points(view):
        value = zero.astype(np.float32)
        if value.any():
            yield label(node), f"the zero point is {value[value != 0].flat[0]:g}"


@_rule("scale-not-constant", "error", "Make the scale an initializer.")
def _scale_not_constant(view: View) -> Found:
    for node in view.conversions():
        if node.input[1] not in view.constants:
            yield label(node), "the scale is computed by the graph"


@_rule("scale-value", "error", "Calibrate again: a scale is a finite number above 0.")
def _scale_value(view: View) -> Found:
    for node in view.conversions():
        scale = np.asarray(view.constants.get(node.input[1], 1.0), np.float64)
        wrong = ~(np.isfinite(scale) & (scale > 0))
        if wrong.any():
            yield label(node), f"the scale holds {scale[wrong].flat[0]:g}"


@_rule("activation-per-channel", "error", "Give an activation one scale.")
def _activation_per_channel(view: View) -> Found:
    for node in view.conversions():
        scale = view.constants.get(node.input[1])
        constant = view.source(node.input[0]) in view.constants
        if scale is not None and scale.size > 1 and not constant:
            yield label(node), f"{scale.size} scales on an activation"


@_rule(
    "weight-axis", "error", "Scale weights along the output channels: axis 0, for ConvTranspose 1."
)
def _weight_axis(view: View) -> Found:
    for node in view.of("Conv", "ConvTranspose"):
        dequantize = view.dequantized(node.input[1])
        scale = None if dequantize is None else view.constants.get(dequantize.input[1])
        want = 0 if node.op_type == "Conv" else 1
        if scale is not None and scale.size > 1:
            axis = attribute(dequantize, "axis", 1)
            if axis != want:
                yield label(node), f"the weight is scaled along axis {axis}, not {want}"


@_rule(
    "half-quantized", "warning",
    "Quantize the other input, too: otherwise the operation runs in float.",
)  # fmt: skip
def _half_quantized(view: View) -> Found:
    for node in view.of(*WEIGHTED):
        activation, weight = (view.dequantized(name) is not None for name in node.input[:2])
        if activation != weight:
            have, lack = ("activation", "weight") if activation else ("weight", "activation")
            yield label(node), f"the {have} is quantized, the {lack} is not"


@_rule("bias-quantized", "error", "Leave the bias a plain float constant.")
def _bias_quantized(view: View) -> Found:
    for node in view.of("Conv", "ConvTranspose", "Gemm"):
        if len(node.input) > 2 and view.dequantized(node.input[2]) is not None:
            yield label(node), "the bias comes from a DequantizeLinear"


@_rule("quantize-alone", "error", "Put a DequantizeLinear after it.")
def _quantize_alone(view: View) -> Found:
    for node in view.of("QuantizeLinear"):
        reached = [node.output[0]]
        kinds = set()
        while reached:
            for reader in view.readers[reached.pop()]:
                kinds.add(reader.op_type)
                reached += [] if reader.op_type == "DequantizeLinear" else reader.output
        if "DequantizeLinear" not in kinds:
            yield label(node), "no DequantizeLinear reads its codes"


@_rule(
    "between-pair", "error",
    "Move it in front of the QuantizeLinear: it computes on codes, not on real numbers.",
)  # fmt: skip
def _between_pair(view: View) -> Found:
    for node in view.of("QuantizeLinear"):
        for reader in view.readers[node.output[0]]:
            if reader.op_type != "DequantizeLinear":
                yield label(reader), f"{reader.op_type} is between Q and DQ"


@_rule(
    "codes-stored", "error",
    "Export with `int8_weights=False` for TensorRT 8: its parser takes weights in float, with "
    "QuantizeLinear and DequantizeLinear.",
)  # fmt: skip
def _codes_stored(view: View) -> Found:
    if view.newest >= newest_opset("9.0"):
        return
    for node in view.of("DequantizeLinear"):
        if node.input[0] in view.constants:
            yield label(node), "it reads int8 constants"


@_rule("pair-scales", "warning", "Give QuantizeLinear and DequantizeLinear the same scale.")
def _pair_scales(view: View) -> Found:
    for node in view.of("DequantizeLinear"):
        maker = view.makers.get(node.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            continue
        first, second = (view.constants.get(n.input[1]) for n in (maker, node))
        if first is not None and second is not None and not np.array_equal(first, second):
            yield label(node), "its scale differs from that of the QuantizeLinear before it"


@_rule(
    "moved-dequantize", "performance",
    "Put the pair after it, directly before the operation that is to run in int8.",
)  # fmt: skip
def _moved_dequantize(view: View) -> Found:
    for node in view.of(*WEIGHTED):
        for name in node.input[:2]:
            maker = view.makers.get(name)
            if maker is not None and maker.op_type in MOVES and view.dequantized(maker.input[0]):
                yield label(node), f"{maker.op_type} is between DequantizeLinear and it"


@_rule(
    "residual-both-quantized", "performance",
    "Leave one branch, a convolution that nothing else reads, without Q and DQ: then "
    "TensorRT fuses the addition into that convolution.",
)  # fmt: skip
def _residual_both_quantized(view: View) -> Found:
    for node in view.of("Add"):
        if len(node.input) != 2 or not all(view.dequantized(name) for name in node.input):
            continue
        for name in node.input:
            source = view.makers.get(view.source(name))
            while source is not None and source.op_type in ("BatchNormalization", "Identity"):
                source = view.makers.get(source.input[0])
            if source is not None and source.op_type == "Conv":
                yield label(node), "both inputs are quantized, and one is a convolution's"
                break


@_rule("average-pool-float", "performance", "Quantize its input: average pooling has an int8 form.")
def _average_pool_float(view: View) -> Found:
    for node in view.of(*_AVERAGES):
        # The mean and variance of a normalization, which computes in float.
        if "/moments/" in node.name:
            continue
        if view.pairs and view.dequantized(node.input[0]) is None:
            yield label(node), "its input is not quantized"


@_rule(
    "max-pool-quantized", "performance",
    "Remove the pair before max pooling, which needs none: TensorRT moves pairs past it.",
)  # fmt: skip
def _max_pool_quantized(view: View) -> Found:
    for node in view.of("MaxPool", "GlobalMaxPool"):
        if view.dequantized(node.input[0]) is not None:
            yield label(node), "its input has a pair of its own"
