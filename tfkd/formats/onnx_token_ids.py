"""Which inputs of an ONNX file hold token ids, and how many rows their tables have.

The exporter writes it into the file's metadata: ONNX Runtime gives no access to the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_KEY = "tfkd.token_ids"
_MOVES = {"Cast", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Transpose", "Flatten"}
# Between a stored table and its Gather in a quantized file.
_STORED = {"DequantizeLinear", "QuantizeLinear", "Cast"}


def write(graph: onnx.GraphProto) -> list[dict[str, str]]:
    """The entries of the metadata: the rows of the smallest table that each input indexes."""
    makers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    tables = {table.name: table.dims[0] for table in graph.initializer if len(table.dims) == 2}
    inputs = {port.name for port in graph.input}
    rows: dict[str, int] = {}
    for node in graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type != "Gather" or axis != 0:
            continue
        table, ids = _source(node.input[0], makers, _STORED), _source(node.input[1], makers, _MOVES)
        if table in tables and ids in inputs:
            rows[ids] = min(rows.get(ids, tables[table]), tables[table])
    return [{"key": _KEY, "value": json.dumps(rows, sort_keys=True)}] if rows else []


def rows_of(metadata: Mapping[str, str]) -> dict[str, int]:
    """Rows of the table by input name, from a file's metadata; empty without such an entry."""
    return dict(json.loads(metadata[_KEY])) if _KEY in metadata else {}


def _source(name: str, makers: dict[str, Any], through: set[str]) -> str:
    while name in makers and makers[name].op_type in through:
        name = makers[name].input[0]
    return name
