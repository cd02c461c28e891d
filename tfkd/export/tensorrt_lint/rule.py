"""What the rules of `lint_tensorrt` look at, and what a rule is."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfkd.formats.onnx_nodes import all_nodes, attribute, require

Found = Iterator[tuple[str, str]]


class View:
    """A model as the rules look at it.

    Attributes:
        model: the `onnx.ModelProto`.
        newest: the newest opset allowed.
        nodes: all nodes, those inside loops and branches too.
        constants: {tensor: array}.
        makers: {tensor: node}.
        readers: {tensor: nodes}.
        pairs: whether anything is quantized.
    """

    def __init__(self, model: Any, newest: int):
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
        """The nodes of some kinds."""
        return [node for node in self.nodes if node.op_type in kinds]

    def conversions(self) -> list[Any]:
        """All QuantizeLinear and DequantizeLinear."""
        return self.of("QuantizeLinear", "DequantizeLinear")

    def dequantized(self, name: str) -> Any:
        """The DequantizeLinear that makes a tensor, or None."""
        maker = self.makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def source(self, name: str) -> str:
        """The tensor before a pair of Q and DQ."""
        for kind in ("DequantizeLinear", "QuantizeLinear"):
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == kind:
                name = maker.input[0]
        return name


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule: `check` yields (node, what is the matter) for each place that breaks it."""

    name: str
    level: str
    fix: str
    check: Callable[[View], Iterable[tuple[str, str]]]


def register(rules: list[Rule], name: str, level: str, fix: str) -> Callable:
    """Decorator: makes a rule of a function and appends it to `rules`."""

    def decorate(check: Callable[[View], Found]) -> Callable[[View], Found]:
        rules.append(Rule(name, level, fix, check))
        return check

    return decorate


def label(node: Any) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)
