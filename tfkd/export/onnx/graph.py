"""An editable ONNX graph: producers, consumers and constants; reproducible order and names.

What a converter writes depends on counters and on the order of Python sets. So
`Wiring.close` orders and names everything by structure alone: the same model gives the
same bytes. Node names keep the path of the Keras layer from which they come
("block1/conv/Conv2D"), so that findings can be traced back.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd.formats.onnx_nodes import attribute, needs, require, subgraphs
from tfkd.networks.layer_parts import free_name

if TYPE_CHECKING:
    import onnx

_COUNTER = re.compile(r"__\d+")
# Names of the operands of an operation, in order, from which constants get their names.
_SLOTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), ("x", "weight", "bias")),
    "MatMul": ("x", "weight"),
    "BatchNormalization": ("x", "gamma", "beta", "mean", "variance"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), ("x", "scale", "zero_point")),
    "PRelu": ("x", "alpha"),
    "Clip": ("x", "min", "max"),
}
_PAIR = {"QuantizeLinear": "Quantize", "DequantizeLinear": "Dequantize"}
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
# Names of TensorFlow operations within a layer's name scope.
_OPERATIONS = "Conv2D MatMul depthwise conv2d_transpose Tensordot Conv1D BiasAdd".split()


class Wiring:
    """The graph of an ONNX model while it is being edited.

    Args:
        model: an `onnx.ModelProto`, which `close` changes.

    Attributes:
        nodes: the nodes, in any order until `close`.
        constants: arrays of initializers and Constant nodes by tensor name.
    """

    def __init__(self, model: onnx.ModelProto):
        onnx = require("onnx")
        self.model = model
        to_array = onnx.numpy_helper.to_array
        self.constants = {i.name: to_array(i) for i in model.graph.initializer}
        self.nodes = []
        for node in model.graph.node:
            value = attribute(node, "value") if node.op_type == "Constant" else None
            if value is None:
                self.nodes.append(node)
            else:
                self.constants[node.output[0]] = to_array(value)
        self._fresh = 0

    def makers(self) -> dict[str, Any]:
        """The node that produces each tensor, by tensor name, in the graph's current state."""
        return {name: node for node in self.nodes for name in node.output}

    def readers(self) -> dict[str, list[Any]]:
        """The nodes that read each tensor, by name; None among them marks a graph output."""
        found: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in needs(node):
                found[name].append(node)
        for output in self.model.graph.output:
            found[output.name].append(None)
        return found

    def fresh(self, base: str) -> str:
        """A tensor name that is not in use."""
        self._fresh += 1
        return f"{base}__{self._fresh}__tfkd"

    def constant(self, base: str, value: np.ndarray) -> str:
        """Adds a constant; returns its name."""
        name = self.fresh(base)
        self.constants[name] = np.asarray(value)
        return name

    def node(
        self, kind: str, inputs: list[str], name: str, output: str = "", **attributes: Any
    ) -> str:
        """Adds a node with one output; returns the name of the output."""
        onnx = require("onnx")
        output = output or self.fresh(name)
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def reroute(self, old: str, new: str, only: Callable[[Any], bool] = lambda node: True) -> None:
        """Makes the nodes that read `old`, and fulfil `only`, read `new`."""
        for node in self.nodes:
            if old in node.input and only(node):
                node.input[:] = [new if name == old else name for name in node.input]

    def ranks(self) -> dict[str, int]:
        """Ranks by tensor name, as far as ONNX's shape inference finds them."""
        onnx = require("onnx")
        self._write()
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }

    def sort(self) -> None:
        """Orders the nodes topologically, depth first from the outputs; drops unused nodes."""
        makers = self.makers()
        done: set[int] = set()
        ordered: list[Any] = []
        for output in self.model.graph.output:
            stack = [(makers[output.name], False)] if output.name in makers else []
            while stack:
                node, ready = stack.pop()
                if ready:
                    ordered.append(node)
                    continue
                if id(node) in done:
                    continue
                done.add(id(node))
                stack.append((node, True))
                before = [makers[name] for name in needs(node) if name in makers]
                stack += [(n, False) for n in reversed(before) if id(n) not in done]
        self.nodes = ordered

    def _write(self) -> None:
        onnx = require("onnx")
        self.sort()
        graph = self.model.graph
        # Copies, since clearing graph.node frees the nodes that live in it.
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        used: dict[str, None] = {}
        for node in nodes:
            used.update(dict.fromkeys(needs(node)))
        used.update(dict.fromkeys(output.name for output in graph.output))
        from_array = onnx.numpy_helper.from_array
        graph.initializer.extend(
            from_array(np.asarray(self.constants[name], order="C"), name)
            for name in used
            if name in self.constants
        )
        self.nodes = list(graph.node)

    def close(self, ports: Mapping[str, str], prefix: str = "") -> onnx.ModelProto:
        """Writes the graph back, in its order and with its names.

        Args:
            ports: names of the graph's inputs and outputs by tensor name.
            prefix: prefix to remove from node names.

        Returns:
            The model.
        """
        self.sort()
        self.separate_outputs()
        self._merge_constants()
        self._merge_nodes()
        self.sort()
        taken = set(ports.values())
        renamed = dict(ports)
        makers = self.makers()
        for node in self.nodes:
            node.name = _unique(self._base(node, prefix, makers), taken)
            _rename_made(node, node.name, renamed, taken)
            slots = _SLOTS.get(node.op_type, ())
            for index, name in enumerate(needs(node)):
                if name in self.constants and name not in renamed:
                    slot = slots[index] if index < len(slots) else str(index)
                    renamed[name] = _unique(f"{node.name}.{slot}", taken)
        self.constants = {renamed.get(n, n): value for n, value in self.constants.items()}
        for node in self.nodes:
            _apply(node, renamed)
        for port in (*self.model.graph.input, *self.model.graph.output):
            port.name = renamed[port.name]
        self._write()
        return self.model

    def _base(self, node: Any, prefix: str, makers: Mapping[str, Any]) -> str:
        """The name of a node before numbering: the path of its layer and its operation."""
        if node.op_type in _PAIR and "weight" not in node.name:
            source = node.input[0]
            while source in makers and makers[source].op_type in _PAIR:
                source = makers[source].input[0]
            name = makers[source].name if source in makers else source.partition(":")[0]
            return f"{name}/{_PAIR[node.op_type]}"
        if node.op_type == "Transpose":
            source = node.input[0]
            return f"{makers[source].name if source in makers else source}/Transpose".replace(
                ":0", ""
            )
        base = _COUNTER.sub("", node.name or node.op_type).removeprefix(prefix)
        return (base or node.op_type).replace("__tfkd", "")

    def name_weighted(self, prefix: str) -> None:
        """Names operations with weights after the layers that hold the weights."""
        for node in self.nodes:
            if node.op_type in ("Conv", "ConvTranspose", "MatMul"):
                paths = [_layer(name, prefix) for name in (*node.input[1:], *node.output)]
                layer = next((path for path in paths if path), None)
                if layer and node.input[1] in self.constants:
                    node.name = f"{layer}/{node.op_type}"

    def separate_outputs(self) -> None:
        """Adds an Identity to outputs that are also an input, a constant or another output."""
        seen = {i.name for i in self.model.graph.input} | set(self.constants)
        for output in self.model.graph.output:
            if output.name in seen:
                output.name = self.node("Identity", [output.name], "Identity")
            seen.add(output.name)

    def _merge_constants(self) -> None:
        """Merges constants of equal content, dtype and shape."""
        first: dict[Any, str] = {}
        same: dict[str, str] = {}
        for node in self.nodes:
            for name in needs(node):
                if name in self.constants and name not in same:
                    value = np.asarray(self.constants[name], order="C")
                    digest = hashlib.sha256(value.tobytes()).digest()
                    same[name] = first.setdefault((value.dtype.str, value.shape, digest), name)
        for node in self.nodes:
            _apply(node, same)

    def _merge_nodes(self) -> None:
        """Common-subexpression elimination: of equal nodes with equal inputs the first stays."""
        outputs = {output.name for output in self.model.graph.output}
        first: dict[Any, Any] = {}
        same: dict[str, str] = {}
        for node in self.nodes:
            _apply(node, same)
            if any(True for _ in subgraphs(node)) or node.op_type in _RANDOM:
                continue
            parts = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            key = node.op_type, node.domain, tuple(node.input), tuple(parts), len(node.output)
            kept = first.setdefault(key, node)
            if kept is not node and not outputs & set(node.output):
                same.update(zip(node.output, kept.output, strict=True))


def _layer(tensor: str, prefix: str) -> str:
    """Path of the layer in a tensor's name: "net/block/c1/Conv2D/ReadVariableOp:0" → "block/c1"."""
    parts = _COUNTER.sub("", tensor).partition(":")[0].removeprefix(prefix).split("/")[:-1]
    if len(parts) > 1 and parts[-1] in _OPERATIONS:
        parts.pop()
    return "/".join(parts)


def _unique(base: str, taken: set[str]) -> str:
    name = free_name(base, taken)
    taken.add(name)
    return name


def _rename_made(node: Any, base: str, renamed: dict[str, str], taken: set[str]) -> None:
    """Chooses names for the outputs of a node and for everything in its subgraphs."""
    for index, name in enumerate(node.output):
        if name and name not in renamed:
            renamed[name] = _unique(f"{base}:{index}", taken)
    for number, inner in enumerate(subgraphs(node)):
        for value in (*inner.input, *inner.initializer):
            renamed[value.name] = _unique(f"{base}/{number}", taken)
        for child in inner.node:
            plain = _COUNTER.sub("", child.name or child.op_type).rpartition("/")[2]
            child.name = _unique(f"{base}/{plain}", taken)
            _rename_made(child, child.name, renamed, taken)


def _apply(node: Any, renamed: Mapping[str, str]) -> None:
    """Renames tensors in a node and its subgraphs."""
    node.input[:] = [renamed.get(name, name) for name in node.input]
    node.output[:] = [renamed.get(name, name) for name in node.output]
    for inner in subgraphs(node):
        for value in (*inner.input, *inner.initializer, *inner.output):
            value.name = renamed.get(value.name, value.name)
        del inner.value_info[:]
        for child in inner.node:
            _apply(child, renamed)
