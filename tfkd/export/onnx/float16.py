"""Conversion of an ONNX graph to float16, with a Cast at inputs and outputs.

TensorRT builds strongly typed networks, in which the graph determines what runs in half
precision. Inputs and outputs of the file stay float32.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.export.onnx.graph import Wiring
from tfkd.export.tflite_float16 import LARGEST, SMALLEST, cut_off, vanishes
from tfkd.formats.onnx_nodes import attribute, require, set_attribute, subgraphs

# Operands that must be float32 by ONNX's specification.
_FLOAT32_ONLY = {"Resize": (1, 2), "Upsample": (1,), "NonMaxSuppression": (0, 1, 3, 4)}
# Operations on weights; constants of other operations may stand for ±∞.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Gather", "PRelu")
_KERNELS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# A large positive factor is no mask; masks are built as (1 − mask) · (−1e9).
_SCALING = ("Mul", "Div")
# The largest relative rounding error of a quantization scale: 1 %.
_COARSE = 1e-2


def to_float16(wiring: Wiring, weights: AbstractSet[float] = frozenset()) -> None:
    """Converts all float32 constants and tensors of the graph to float16.

    Constants beyond ±65504, such as −1e9 for −∞, are clipped. Weights beyond it raise.
    Constants that would become 0, such as the 1e-8 of a logarithm, become 6e-8, with a warning.

    Args:
        wiring: the graph, changed in place.
        weights: the `tflite_float16.large_weights` of the model.

    Raises:
        ValueError: if a weight is too large for float16, the scale of a quantized
            tensor too small, or the graph holds loops or branches.
    """
    onnx = require("onnx")
    if any(True for node in wiring.nodes for _ in subgraphs(node)):
        raise ValueError(
            "`precision`: expected 'float32' for a model with loops or branches inside, received "
            "'float16'. Unroll its recurrent layers (`unroll=True`), or stay in float32."
        )
    _check_scales(wiring)
    _check_weights(wiring, weights)
    _keep_float32(wiring)
    kept = {
        node.input[slot]
        for node in wiring.nodes
        for slot in _FLOAT32_ONLY.get(node.op_type, ())
        if slot < len(node.input) and node.input[slot] in wiring.constants
    }
    _raise_small(wiring, kept)
    for name, value in wiring.constants.items():
        if value.dtype == np.float32 and name not in kept:
            wiring.constants[name] = _half(value)
    for node in wiring.nodes:
        if node.name.startswith("tfkd_keep"):
            continue
        if node.op_type == "Cast" and attribute(node, "to") == onnx.TensorProto.FLOAT:
            set_attribute(node, "to", onnx.TensorProto.FLOAT16)
        value = attribute(node, "value")
        if isinstance(value, onnx.TensorProto) and value.data_type == onnx.TensorProto.FLOAT:
            array = _half(onnx.numpy_helper.to_array(value))
            set_attribute(node, "value", onnx.numpy_helper.from_array(array))
    _cast_ports(wiring, onnx.TensorProto)


def _half(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)


def _raise_small(wiring: Wiring, kept: AbstractSet[str]) -> None:
    """Raises constants that would vanish to the smallest number above 0, and warns."""
    weights = {n.input[1] for n in wiring.nodes if n.op_type in _WEIGHTED and len(n.input) > 1}
    raised = {}
    for node in wiring.nodes:
        for name in node.input:
            value = wiring.constants.get(name)
            if value is None or value.dtype != np.float32 or name in weights | kept:
                continue
            if vanishes(value):
                raised[node.name] = float(np.abs(value).max())
                wiring.constants[name] = np.sign(value) * np.float32(SMALLEST)
    if raised:
        shown = ", ".join(f"{name} ({value:.3g})" for name, value in list(raised.items())[:3])
        checks.warn(
            f"`precision`: float16 has no numbers below 6e-8; constants of these operations would "
            f"be 0 and were raised to 6e-8: {shown}. Use 1e-6 in the model if it allows, or "
            "precision='float32'."
        )


def _check_weights(wiring: Wiring, weights: AbstractSet[float]) -> None:
    """Raises for weights, and for arrays of different numbers, that would be clipped."""
    for node in wiring.nodes:
        for slot, name in enumerate(node.input):
            value = wiring.constants.get(name)
            if value is None or value.dtype != np.float32:
                continue
            if slot == 1 and node.op_type in _KERNELS:
                value = np.abs(value)  # A kernel is no mask, whatever the sign.
            if not cut_off(value, weights):
                continue
            large = value[np.abs(value) > LARGEST]
            known = not weights.isdisjoint(np.abs(large).tolist())
            scales = node.op_type in _SCALING and large.min() > 0
            if node.op_type in _WEIGHTED or known or scales or large.min() != large.max():
                raise ValueError(
                    f"`precision`: expected 'float32' for this model, received 'float16', which "
                    f"ends at 65504: a weight of {node.name!r} holds numbers up to "
                    f"{np.abs(large).max():.3g}. Use precision='float32', or scale its layer down."
                )


def _check_scales(wiring: Wiring) -> None:
    """Raises for quantization scales that float16 can't represent accurately."""
    for node in wiring.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = wiring.constants[node.input[1]]
        error = np.abs(scale.astype(np.float16).astype(np.float32) - scale) / scale
        if error.max() > _COARSE:
            raise ValueError(
                f"`precision`: expected 'float32' for this model, received 'float16': the scale "
                f"{scale.flat[error.argmax()]:.3g} of {node.name!r} is too small for float16."
            )


def _keep_float32(wiring: Wiring) -> None:
    """Casts computed operands back to float32 where a node accepts nothing else."""
    onnx = require("onnx")
    makers = wiring.makers()
    for node in list(wiring.nodes):
        for slot in _FLOAT32_ONLY.get(node.op_type, ()):
            if slot < len(node.input) and node.input[slot] in makers:
                node.input[slot] = wiring.node(
                    "Cast", [node.input[slot]], "tfkd_keep", to=onnx.TensorProto.FLOAT
                )


def _cast_ports(wiring: Wiring, kinds: Any) -> None:
    """Keeps the graph's inputs and outputs in float32."""
    graph = wiring.model.graph
    for port in graph.input:
        if port.type.tensor_type.elem_type == kinds.FLOAT:
            inner = wiring.fresh("Cast")
            wiring.reroute(port.name, inner)
            wiring.node("Cast", [port.name], "Cast", inner, to=kinds.FLOAT16)
    makers = wiring.makers()
    for port in graph.output:
        made = port.name in makers or port.name in wiring.constants
        if made and port.type.tensor_type.elem_type == kinds.FLOAT:
            port.name = wiring.node("Cast", [port.name], "Cast", to=kinds.FLOAT)
