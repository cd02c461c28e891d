"""The view of an ONNX model that lint rules check, and the registration of rules."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tfkd.formats.onnx_nodes import all_nodes, attribute, require

if TYPE_CHECKING:
    import onnx

Found = Iterator[tuple[str, str]]


class View:
    """An indexed ONNX model.

    Attributes:
        model: the `onnx.ModelProto`.
        newest: the newest opset allowed.
        nodes: all nodes, including those in loops and branches.
        constants: arrays by tensor name.
        makers: the node that produces each tensor, by name.
        readers: the nodes that read each tensor, by name.
        pairs: whether there is any QuantizeLinear or DequantizeLinear.
    """

    def __init__(self, model: onnx.ModelProto, newest: int):
        to_array = require("onnx").numpy_helper.to_array
        self.model, self.newest = model, newest
        self.nodes = list(all_nodes(model.graph))
        self.constants = {i.name: to_array(i) for i in model.graph.initializer}
        self.makers: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.output:
                self.makers[name] = node
            for name in node.input:
                self.readers[name].append(node)
            if node.op_type == "Constant" and attribute(node, "value") is not None:
                self.constants[node.output[0]] = to_array(attribute(node, "value"))
        self.pairs = any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in self.nodes)

    def of(self, *kinds: str) -> list[Any]:
        """The nodes of some operation types."""
        return [node for node in self.nodes if node.op_type in kinds]

    def conversions(self) -> list[Any]:
        """All QuantizeLinear and DequantizeLinear nodes."""
        return self.of("QuantizeLinear", "DequantizeLinear")

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that produces a tensor, or None."""
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def source(self, name: str) -> str:
        """The tensor before a Q/DQ pair; the tensor itself if there is none."""
        for kind in ("DequantizeLinear", "QuantizeLinear"):
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == kind:
                name = maker.input[0]
        return name


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule; `check` yields (node, description of the problem) for each violation."""

    name: str
    level: str
    fix: str
    check: Callable[[View], Iterable[tuple[str, str]]]


def register(rules: list[Rule], name: str, level: str, fix: str) -> Callable:
    """Decorator that turns a function into a rule and appends it to `rules`."""

    def decorate(check: Callable[[View], Found]) -> Callable[[View], Found]:
        rules.append(Rule(name, level, fix, check))
        return check

    return decorate


def label(node: onnx.NodeProto) -> str:
    """The name by which a finding refers to a node."""
    return node.name or (node.output[0] if node.output else node.op_type)
