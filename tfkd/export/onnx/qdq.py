"""QuantizeLinear and DequantizeLinear where TensorRT looks for them.

An 8-bit tensor is written as the pair Q/DQ: QuantizeLinear(x, s) = clip(round(x/s))
to int8, DequantizeLinear(q, s) = s·q. A convolution whose input and whose weight
come from a DequantizeLinear each runs in integers. tf2onnx writes the pairs of
activations; here the weights get theirs, and what stands between a pair and its
convolution moves in front of it.

Weights must lie on their grid already: with s = max|w|/127 for each output
channel, w/s is a whole number, and s·round(w/s) is w again.
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfkd.export.onnx.graph import Wiring
from tfkd.formats.onnx_nodes import attribute, set_attribute

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Run in int8 if their input comes from a DequantizeLinear.
CONSUMERS = (*WEIGHTED, "AveragePool", "GlobalAveragePool", "ReduceMean")
# Put values elsewhere and change none: quantizing before or after is the same.
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_LARGEST = ("MaxPool", "GlobalMaxPool")
_READERS = (*CONSUMERS, *MOVES, *_LARGEST)
_LEVELS = 127
_OFF_GRID = 1e-2


def pair_constants(wiring: Wiring) -> None:
    """Gives every Q and DQ on an activation a scalar scale and its own int8 zero point."""
    for node in wiring.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = np.asarray(wiring.constants[node.input[1]], np.float32)
            if scale.size == 1:
                node.input[1] = wiring.constant("scale", scale.reshape(()))
                zero = np.zeros((), np.int8)
                node.input[:] = [*node.input[:2], wiring.constant("zero_point", zero)]


def close_pairs(wiring: Wiring) -> None:
    """x → Q → Transpose → DQ becomes x → Transpose → Q → DQ.

    tf2onnx moves a Transpose past Q towards what reads it. One scale for the whole
    tensor does not care where a number stands, so any chain of `MOVES` may go back.
    Each DQ gets its own chain and Q; other readers of the codes keep theirs.
    """
    makers = wiring.makers()
    for node in list(wiring.nodes):
        if node.op_type != "DequantizeLinear":
            continue
        moves, quantize = [], makers.get(node.input[0])
        while quantize is not None and quantize.op_type in MOVES:
            moves.append(quantize)
            quantize = makers.get(quantize.input[0])
        if not moves or quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        if wiring.constants[quantize.input[1]].size > 1:
            continue
        moved = quantize.input[0]
        for move in reversed(moves):
            moved = _copied(wiring, move, moved)
        node.input[0] = wiring.node("QuantizeLinear", [moved, *quantize.input[1:]], quantize.name)


def _copied(wiring: Wiring, node: Any, source: str) -> str:
    """Adds a node like `node` that reads `source` first; returns its output."""
    copy = type(node).FromString(node.SerializeToString())
    copy.input[0], copy.output[0] = source, wiring.fresh(node.name)
    wiring.nodes.append(copy)
    return str(copy.output[0])


def move_pairs(wiring: Wiring) -> None:
    """x → Q → DQ → Transpose → Conv becomes x → Transpose → Q → DQ → Conv."""
    changed = True
    while changed:
        changed = False
        makers, readers = wiring.makers(), wiring.readers()
        for node in list(wiring.nodes):
            if node.op_type not in MOVES or not _feeds(node, readers, _READERS):
                continue
            dequantize = makers.get(node.input[0])
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = makers.get(dequantize.input[0])
            if quantize is None or quantize.op_type != "QuantizeLinear":
                continue
            _swap(wiring, quantize, dequantize, node)
            changed = True
            break


def drop_doubled(wiring: Wiring) -> None:
    """x → Q → DQ → MaxPool → Q → DQ with one scale loses the first pair.

    Rounding rises with its argument, so that the largest of rounded numbers is the
    largest, rounded: the values stay the same.
    """
    makers, readers = wiring.makers(), wiring.readers()
    for node in wiring.nodes:
        dequantize = makers.get(node.input[0]) if _keeps_codes(node) else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = makers.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        if _quantized_again(wiring, readers, node, wiring.constants[quantize.input[1]]):
            node.input[0] = quantize.input[0]


def _keeps_codes(node: Any) -> bool:
    """Whether a node only picks among the values it reads."""
    if node.op_type == "Resize":
        return attribute(node, "mode", "nearest") == "nearest"
    return node.op_type in (*MOVES, *_LARGEST) and len(node.output) == 1


def _quantized_again(wiring: Wiring, readers: Any, node: Any, scale: np.ndarray) -> bool:
    """Whether all that reads a node quantizes with `scale`, at once or after picking more."""
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
    """Lets `move` read what `quantize` reads, and puts a new pair behind it."""
    old = move.output[0]
    moved = wiring.fresh(move.name)
    move.input[0] = quantize.input[0]
    move.output[0] = moved
    codes = wiring.node("QuantizeLinear", [moved, *quantize.input[1:]], quantize.name)
    wiring.node("DequantizeLinear", [codes, *dequantize.input[1:]], dequantize.name, old)


def join_dense(wiring: Wiring) -> None:
    """MatMul and the Add of a bias become one Gemm, where the input has rank 2."""
    ranks = wiring.ranks()
    makers, readers = wiring.makers(), wiring.readers()
    for add in [n for n in wiring.nodes if n.op_type == "Add"]:
        product, bias = add.input
        if product in wiring.constants:
            product, bias = bias, product
        matmul = makers.get(product)
        if matmul is None or matmul.op_type != "MatMul" or len(readers[product]) != 1:
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
    """Hangs Q/DQ on each constant weight whose activation comes from a DQ.

    Args:
        wiring: the graph.
        int8: store the integers, and DQ alone: a quarter of the size.
    """
    makers = wiring.makers()
    done: dict[tuple[str, int], str] = {}
    for node in list(wiring.nodes):
        if node.op_type not in WEIGHTED or node.input[1] not in wiring.constants:
            continue
        activation = makers.get(node.input[0])
        if activation is None or activation.op_type != "DequantizeLinear":
            continue
        key = node.input[1], weight_axis(node, wiring.constants[node.input[1]].ndim)
        if key not in done:
            done[key] = _quantize_weight(wiring, node.name, *key, int8)
        node.input[1] = done[key]


def weight_axis(node: Any, rank: int) -> int:
    """The axis of the output channels in the weight of a node."""
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
    # Per tensor the attribute means nothing; its default may lie outside the rank.
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
    """Steps of the grid on which a weight lies: max|w|/127.

    A matrix gets one step if all of it lies on one grid, as that of a dense layer
    does; else one for each output channel. A channel of zeros gets 1/127.

    Returns:
        float32, of shape () or (channels,), all positive.
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
    """Rewrites tf2onnx's mode for nearest neighbours, which ONNX has dropped.

    floor((i + ½)/s) is floor(i/s) for a whole s ("asymmetric"), and for any s what
    "half_pixel" finds when it rounds ((i + ½)/s - ½) up at the half.
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
    """Counts operations, and those that multiply by weights.

    Returns:
        `operations`: all but QuantizeLinear, DequantizeLinear and Cast; `weighted`:
        convolutions and matrix products; `quantized`: those of them with both
        inputs from a DequantizeLinear; `float_operations`: the others of them.
    """
    makers = wiring.makers()
    conversions = ("QuantizeLinear", "DequantizeLinear", "Cast")
    weighted = [n for n in wiring.nodes if n.op_type in WEIGHTED]

    def dequantized(name: str) -> bool:
        return name in makers and makers[name].op_type == "DequantizeLinear"

    quantized = sum(all(map(dequantized, n.input[:2])) for n in weighted)
    return {
        "operations": sum(n.op_type not in conversions for n in wiring.nodes),
        "weighted": len(weighted),
        "quantized": quantized,
        "float_operations": len(weighted) - quantized,
    }
