"""Q/DQ placement for TensorRT: QuantizeLinear and DequantizeLinear pairs in an ONNX graph.

An 8-bit tensor is represented by a Q/DQ pair: QuantizeLinear(x, s) = clip(round(x/s))
to int8, DequantizeLinear(q, s) = s·q. A convolution runs in integers if its input and
its weight both come from a DequantizeLinear. tf2onnx writes the pairs of activations;
this module adds those of weights, and moves nodes that stand between a pair and its
convolution in front of the pair.

Weights must be fake-quantized already: with s = max|w|/127 per output channel, w/s is
an integer, and s·round(w/s) is w again.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from tfkd.export.onnx.graph import Wiring
from tfkd.formats.onnx_nodes import attribute, set_attribute

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operations that TensorRT runs in int8 if their input comes from a DequantizeLinear.
CONSUMERS = (*WEIGHTED, "AveragePool", "GlobalAveragePool", "ReduceMean")
# They only rearrange values, so that they commute with per-tensor quantization.
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_LARGEST = ("MaxPool", "GlobalMaxPool")
_READERS = (*CONSUMERS, *MOVES, *_LARGEST)
_LEVELS = 127  # Symmetric int8: codes from −127 to 127.
# The largest distance of w/s from an integer, for rounding errors in float32.
_OFF_GRID = 1e-2


def pair_constants(wiring: Wiring) -> None:
    """Gives every per-tensor Q and DQ a scalar scale and an int8 zero point of its own."""
    for node in wiring.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = np.asarray(wiring.constants[node.input[1]], np.float32)
            if scale.size == 1:
                node.input[1] = wiring.constant("scale", scale.reshape(()))
                zero = np.zeros((), np.int8)
                node.input[:] = [*node.input[:2], wiring.constant("zero_point", zero)]


def close_pairs(wiring: Wiring) -> None:
    """Rewrites x → Q → Transpose → DQ to x → Transpose → Q → DQ.

    tf2onnx moves a Transpose past Q towards its reader. With a per-tensor scale any chain
    of `MOVES` commutes with Q, so it can be moved back. Each DQ gets its own chain and Q;
    other readers of the codes keep theirs.
    """
    makers = wiring.makers()
    for node in list(wiring.nodes):
        if node.op_type != "DequantizeLinear":
            continue
        moves, quantize = [], makers.get(node.input[0])
        while quantize is not None and quantize.op_type in MOVES:
            moves.append(quantize)
            quantize = makers.get(quantize.input[0])
        if not moves or not _is(quantize, "QuantizeLinear"):
            continue
        if wiring.constants[quantize.input[1]].size > 1:
            continue
        moved = quantize.input[0]
        for move in reversed(moves):
            moved = _copied(wiring, move, moved)
        node.input[0] = wiring.node("QuantizeLinear", [moved, *quantize.input[1:]], quantize.name)


def _copied(wiring: Wiring, node: Any, source: str) -> str:
    """Adds a copy of `node` with `source` as its first input; returns its output."""
    copy = type(node).FromString(node.SerializeToString())
    copy.input[0], copy.output[0] = source, wiring.fresh(node.name)
    wiring.nodes.append(copy)
    return str(copy.output[0])


def _pair_before(node: Any, makers: dict[str, Any]) -> tuple[Any, Any] | None:
    """QuantizeLinear and DequantizeLinear in front of a node, or None."""
    second = makers.get(node.input[0])
    first = makers.get(second.input[0]) if _is(second, "DequantizeLinear") else None
    return (first, second) if _is(first, "QuantizeLinear") else None


def _is(node: Any, kind: str) -> TypeGuard[Any]:
    return node is not None and node.op_type == kind


def move_pairs(wiring: Wiring) -> None:
    """Rewrites x → Q → DQ → Transpose → Conv to x → Transpose → Q → DQ → Conv."""
    changed = True
    while changed:
        changed = False
        makers, readers = wiring.makers(), wiring.readers()
        for node in list(wiring.nodes):
            if node.op_type not in MOVES or not _feeds(node, readers, _READERS):
                continue
            pair = _pair_before(node, makers)
            if pair is not None:
                _swap(wiring, *pair, node)
                changed = True
                break


def drop_doubled(wiring: Wiring) -> None:
    """Drops the first pair of x → Q → DQ → MaxPool → Q → DQ if both have the same scale.

    Rounding is monotonic, so that the maximum of rounded numbers is the rounded maximum:
    the values don't change.
    """
    makers, readers = wiring.makers(), wiring.readers()
    for node in wiring.nodes:
        pair = _pair_before(node, makers) if _keeps_codes(node) else None
        if pair is None:
            continue
        if _quantized_again(wiring, readers, node, wiring.constants[pair[0].input[1]]):
            node.input[0] = pair[0].input[0]


def _keeps_codes(node: Any) -> bool:
    """Whether each output value of a node is one of its input values."""
    if node.op_type == "Resize":
        return attribute(node, "mode", "nearest") == "nearest"
    return node.op_type in (*MOVES, *_LARGEST) and len(node.output) == 1


def _quantized_again(wiring: Wiring, readers: Any, node: Any, scale: np.ndarray) -> bool:
    """Whether all readers of a node quantize with `scale`, directly or after such nodes."""
    for reader in readers[node.output[0]]:
        if reader is None:
            return False
        if reader.op_type == "QuantizeLinear":
            if not np.array_equal(wiring.constants[reader.input[1]], scale):
                return False
        elif not (_keeps_codes(reader) and _quantized_again(wiring, readers, reader, scale)):
            return False
    return True


def _feeds(node: Any, readers: dict[str, list[Any]], kinds: tuple[str, ...]) -> bool:
    found = readers[node.output[0]]
    return bool(found) and all(r is not None and r.op_type in kinds for r in found)


def _swap(wiring: Wiring, quantize: Any, dequantize: Any, move: Any) -> None:
    """Moves `move` in front of the pair: it reads the pair's input, and a new pair follows."""
    old = move.output[0]
    moved = wiring.fresh(move.name)
    move.input[0] = quantize.input[0]
    move.output[0] = moved
    codes = wiring.node("QuantizeLinear", [moved, *quantize.input[1:]], quantize.name)
    wiring.node("DequantizeLinear", [codes, *dequantize.input[1:]], dequantize.name, old)


def join_dense(wiring: Wiring) -> None:
    """Fuses MatMul and the Add of a bias into a Gemm, where the input has rank 2."""
    ranks = wiring.ranks()
    makers, readers = wiring.makers(), wiring.readers()
    for add in [n for n in wiring.nodes if n.op_type == "Add"]:
        product, bias = add.input
        if product in wiring.constants:
            product, bias = bias, product
        matmul = makers.get(product)
        if not _is(matmul, "MatMul") or len(readers[product]) != 1:
            continue
        weight = wiring.constants.get(matmul.input[1])
        value = wiring.constants.get(bias)
        if weight is None or value is None or weight.ndim != 2 or ranks.get(matmul.input[0]) != 2:
            continue
        if value.size != weight.shape[1] or value.shape[-1] != value.size:
            continue
        flat = wiring.constant("bias", value.reshape(-1))
        name = f"{matmul.name.removesuffix('/MatMul')}/Gemm"
        wiring.node("Gemm", [*matmul.input, flat], name, add.output[0])
        wiring.nodes.remove(add)
        wiring.nodes.remove(matmul)


def quantize_weights(wiring: Wiring, int8: bool) -> None:
    """Adds Q/DQ to each constant weight whose activation comes from a DequantizeLinear.

    Args:
        wiring: the graph.
        int8: whether to store int8 weights with a DQ only, which takes a quarter of the
            size, and which TensorRT accepts from version 9 on.
    """
    makers = wiring.makers()
    done: dict[tuple[str, int], str] = {}
    for node in list(wiring.nodes):
        if node.op_type not in WEIGHTED or node.input[1] not in wiring.constants:
            continue
        if not _is(makers.get(node.input[0]), "DequantizeLinear"):
            continue
        key = node.input[1], weight_axis(node, wiring.constants[node.input[1]].ndim)
        if key not in done:
            done[key] = _quantize_weight(wiring, node.name, *key, int8)
        node.input[1] = done[key]


def weight_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of the output channels in a node's weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1


def _quantize_weight(wiring: Wiring, base: str, name: str, axis: int, int8: bool) -> str:
    weight = np.asarray(wiring.constants[name], np.float32)
    scale = grid_scale(weight, axis)
    scales = wiring.constant("scale", scale)
    zeros = wiring.constant("zero_point", np.zeros(scale.shape, np.int8))
    # A scalar scale has no axis.
    where: dict[str, Any] = {"axis": axis} if scale.ndim else {}
    if int8:
        shape = [1] * weight.ndim
        if scale.ndim:
            shape[axis] = -1
        codes = np.clip(np.rint(weight / scale.reshape(shape)), -_LEVELS, _LEVELS)
        source = wiring.constant("weight", codes.astype(np.int8))
    else:
        source = wiring.node(
            "QuantizeLinear", [name, scales, zeros], f"{base}/weight/Quantize", **where
        )
    return wiring.node(
        "DequantizeLinear", [source, scales, zeros], f"{base}/weight/Dequantize", **where
    )


def grid_scale(weight: np.ndarray, axis: int) -> np.ndarray:
    """The scale max|w|/127 of a fake-quantized weight, per tensor or per channel.

    A matrix gets one scale if all of it is quantized with it, as in dense layers; other
    weights get one per output channel. For a channel of zeros it is 1/127.

    Returns:
        Positive float32 numbers of shape () or (channels,).
    """
    if weight.ndim == 2:
        one = np.float32(np.abs(weight).max() or 1.0) / np.float32(_LEVELS)
        codes = weight / one
        if np.abs(codes - np.rint(codes)).max() < _OFF_GRID:
            return np.asarray(one, np.float32)
    others = tuple(a for a in range(weight.ndim) if a != axis)
    peak = np.abs(weight).max(axis=others)
    return (np.where(peak > 0, peak, 1.0) / _LEVELS).astype(np.float32)


def plain_resize(wiring: Wiring) -> None:
    """Replaces tf2onnx's "tf_half_pixel_for_nn" in Resize, which ONNX has removed.

    It computes floor((i + ½)/s). For an integer s that is floor(i/s), "asymmetric"; for
    any s it is "half_pixel", (i + ½)/s − ½, with halves rounded up.
    """
    for node in wiring.nodes:
        if attribute(node, "coordinate_transformation_mode") != "tf_half_pixel_for_nn":
            continue
        scales = wiring.constants.get(node.input[2]) if len(node.input) > 2 else None
        whole = scales is not None and scales.size and bool((scales == np.rint(scales)).all())
        mode, rounding = ("asymmetric", "floor") if whole else ("half_pixel", "round_prefer_ceil")
        set_attribute(node, "coordinate_transformation_mode", mode)
        set_attribute(node, "nearest_mode", rounding)


def count(wiring: Wiring) -> dict[str, int]:
    """Counts operations, and among them convolutions and matrix products.

    Returns:
        `operations`: all except QuantizeLinear, DequantizeLinear and Cast; `weighted`:
        convolutions and matrix products; `quantized`: those of them with both inputs
        from a DequantizeLinear; `float_operations`: the rest of them.
    """
    makers = wiring.makers()
    conversions = ("QuantizeLinear", "DequantizeLinear", "Cast")
    weighted = [n for n in wiring.nodes if n.op_type in WEIGHTED]

    pairs = [[_is(makers.get(i), "DequantizeLinear") for i in n.input[:2]] for n in weighted]
    quantized = sum(map(all, pairs))
    return {
        "operations": sum(n.op_type not in conversions for n in wiring.nodes),
        "weighted": len(weighted),
        "quantized": quantized,
        "float_operations": len(weighted) - quantized,
    }
