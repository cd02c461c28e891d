"""The operations of a flat functional model: each call, what its layer is, and who reads whom."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from tfkd.networks.call_graph import Call, CallGraph, Key
from tfkd.networks.rebuild import ADDED
from tfkd.quantization.layer_roles import INTEGER, Kind, kind_of
from tfkd.quantization.wrappers import QuantizedLayer


@dataclasses.dataclass(eq=False)
class Operation:
    """One call of a layer, as an integer runtime sees it.

    Attributes:
        call: the call.
        kind: what its layer is.
        shared: the layer is called more than once.
        inputs, readers: the operations whose tensors it reads, and that read its own.
        is_output: the model returns a tensor of it.
    """

    call: Call
    kind: Kind
    shared: bool
    inputs: list[Operation] = dataclasses.field(default_factory=list)
    readers: list[Operation] = dataclasses.field(default_factory=list)
    is_output: bool = False

    @property
    def layer(self) -> Any:
        """The layer."""
        return self.call.layer

    @property
    def plain(self) -> Any:
        """The layer, without the wrapper that quantizes it."""
        return _plain(self.layer)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.call.name

    @property
    def index(self) -> int:
        """Of this call among those of its layer."""
        return self.call.number

    @property
    def only_reader(self) -> Operation | None:
        """The operation that alone sees its output; None if there are more, or the user does."""
        return self.readers[0] if len(self.readers) == 1 and not self.is_output else None


def operations_of(graph: CallGraph) -> dict[Key, Operation]:
    """The operations of a flat model by their calls, each after those that it reads."""
    found: dict[Key, Operation] = {}
    counts = Counter(name for name, _ in graph.calls)
    returned = {ref[:2] for ref in graph.outputs}
    for key, call in graph.calls.items():
        # What an added loss or metric reads is deployed without it.
        if isinstance(call.layer, ADDED):
            continue
        kind = kind_of(_plain(call.layer), call)
        if not all(tensor.dtype.is_floating for tensor in call.makes):
            kind = dataclasses.replace(kind, role=INTEGER)
        inputs = [found[one] for one in dict.fromkeys(ref[:2] for ref in call.inputs)]
        found[key] = Operation(call, kind, counts[call.name] > 1, inputs, is_output=key in returned)
        for other in inputs:
            other.readers.append(found[key])
    return found


def _plain(layer: Any) -> Any:
    return layer.layer if isinstance(layer, QuantizedLayer) else layer
