"""Removable segments of a call graph: single input, single output, equal shape and dtype."""

from __future__ import annotations

import dataclasses
import itertools

from tfkd.networks.call_graph import CallGraph, Key, Ref


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a model between an input and an output tensor.

    Attributes:
        name: common prefix of the names of its layers (`stage1_block2`), or the path of
            its final sum if they have no unique prefix.
        layers: paths of its layers, in the order of the data flow.
        input: path of the layer that produces its input tensor.
        output: path of the layer that produces its output tensor.
        removable: True if the readers of the output can read the input instead.
        reason: why it is not removable; "" if it is.
    """

    name: str
    layers: tuple[str, ...]
    input: str
    output: str
    removable: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Calls to remove from the (nested) model at `prefix`; readers of `target` read `source`."""

    prefix: str
    calls: frozenset[Key]
    source: Ref
    target: Ref

    def holds(self, other: Segment) -> bool:
        """True if it contains all calls of the other, or calls the nested model they are in."""
        if self.prefix == other.prefix:
            return other.calls <= self.calls
        return any(other.prefix.startswith(f"{self.prefix}{name}/") for name, _ in self.calls)

    def overlaps(self, other: Segment) -> bool:
        """True if they share a call, or one contains the nested model that the other is in."""
        shared = self.prefix == other.prefix and bool(self.calls & other.calls)
        return shared or self.holds(other) or other.holds(self)


@dataclasses.dataclass(frozen=True)
class Found:
    """A block, its segments (one for each call of a nested model), and the path of its end."""

    block: Block
    segments: tuple[Segment, ...]
    end: str

    def overlaps(self, other: Found) -> bool:
        """True if they share a layer."""
        return any(a.overlaps(b) for a, b in itertools.product(self.segments, other.segments))


def problem(graph: CallGraph, segment: Segment) -> str:
    """Why the readers of a segment's output can't read its input; "" if they can."""
    return changed(graph, segment) or tapped(graph, segment)


def changed(graph: CallGraph, segment: Segment) -> str:
    """How the output differs from the input in shape or dtype; "" if it does not."""
    before, after = graph.spec(segment.source), graph.spec(segment.target)
    if before.shape != after.shape:
        return f"it changes the shape from {before.shape} to {after.shape}"
    if before.dtype != after.dtype:
        return f"it changes the dtype from {before.dtype} to {after.dtype}"
    return ""


def tapped(graph: CallGraph, segment: Segment) -> str:
    """Which reader outside of a segment uses a tensor inside it; "" if none does."""
    for key in segment.calls:
        for ref in graph.calls[key].outputs:
            if ref == segment.target:
                continue
            if ref in graph.outputs:
                return f"its layer {ref[0]!r} is an output of the model"
            for reader in graph.readers[ref]:
                if reader not in segment.calls:
                    return f"its layer {ref[0]!r} also feeds {reader[0]!r}, which is outside of it"
    return ""


def parts(keys: set[Key], graph: CallGraph) -> list[set[Key]]:
    """Splits calls into connected components, in order."""
    found: list[set[Key]] = []
    for key in (k for k in graph.calls if k in keys):
        near = {ref[:2] for ref in graph.calls[key].inputs} & keys
        joined = [part for part in found if part & near]
        found = [part for part in found if part not in joined]
        found.append({key}.union(*joined))
    return found


def segment_of(graph: CallGraph, prefix: str, part: set[Key]) -> Segment | str:
    """The segment that consists of connected calls, or why they do not form one."""
    calls = [graph.calls[key] for key in graph.calls if key in part]
    if any(call.is_input for call in calls):
        return "it is an input of the model"
    sources = [ref for call in calls for ref in call.inputs if ref[:2] not in part]
    sources = list(dict.fromkeys(sources))
    targets = [
        ref
        for call in calls
        for ref in call.outputs
        if ref in graph.outputs or any(key not in part for key in graph.readers[ref])
    ]
    for refs, what in ((sources, "input"), (targets, "output")):
        if len(refs) != 1:
            names = " and ".join(repr(ref[0]) for ref in refs) or "nothing"
            return f"they must have one {what} tensor, but have {len(refs)}: of {names}"
    return Segment(prefix, frozenset(part), sources[0], targets[0])
