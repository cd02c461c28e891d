"""ONNX helpers: optional imports, loading of files, node attributes, subgraphs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tfkd import checks
from tfkd.types import Path

if TYPE_CHECKING:
    import onnx

_PASSED = (
    "QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity",
    "Cast",
)  # fmt: skip


def require(package: str) -> ModuleType:
    """Imports an optional package of the extra `tensorrt`.

    Raises:
        ImportError: if the package is missing; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"ONNX files need {package}. Install it with `pip install 'tfkd[tensorrt]'`."
        ) from error


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of one attribute of a node, with text as `str`; `default` if it has none."""
    onnx = require("onnx")
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Adds or replaces one attribute of a node."""
    onnx = require("onnx")
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node: branches of If, bodies of Loop and Scan."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of all its subgraphs."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def needs(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, including outer tensors that its subgraphs read."""
    names = [name for name in node.input if name]
    for inner in subgraphs(node):
        own = {i.name for i in (*inner.input, *inner.initializer)}
        own |= {name for child in inner.node for name in child.output}
        read = [name for child in inner.node for name in needs(child)]
        names += [name for name in (*read, *(o.name for o in inner.output)) if name not in own]
    return names


def load(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file.

    Raises:
        TypeError: if `path` is not a path.
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an ONNX file.
        ImportError: if onnx is not installed.
    """
    checks.instance("path", path, (str, os.PathLike), "the path of an .onnx file")
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path`: there is no file {path!r}.")
    onnx = require("onnx")
    try:
        model = onnx.load(path)
    except Exception as error:  # Protobuf raises its own DecodeError.
        raise checks.value_error("path", "an ONNX file", path, f"It says: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise checks.value_error("path", "an ONNX file", path, "It holds no graph.")
    return model


def last_operations(path: Path) -> dict[str, str]:
    """The type of the node that computes each output, such as "Softmax"; "" if none does.

    Nodes that only convert or reshape its result are passed over.
    """
    graph = load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for output in graph.output:
        maker = makers.get(output.name)
        while maker is not None and maker.op_type in _PASSED:
            maker = makers.get(maker.input[0])
        found[output.name] = "" if maker is None else maker.op_type
    return found
