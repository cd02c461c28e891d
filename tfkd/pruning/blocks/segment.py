"""What can be cut out of a model: calls between one tensor and another, and why not."""

from __future__ import annotations

import dataclasses
import itertools

from tfkd.networks.call_graph import CallGraph, Key, Ref


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a model between one tensor and another.

    Attributes:
        name: what the names of its layers begin with (`stage1_block2`), or the
            path of its last sum where they have no beginning of their own.
        layers: paths of its layers, in the order of the data.
        input: path of the layer that makes the tensor that goes in.
        output: path of the layer that makes the tensor that comes out.
        removable: True if what reads the output can read the input instead.
        reason: why it is not removable; "" if it is.
    """

    name: str
    layers: tuple[str, ...]
    input: str
    output: str
    removable: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Stretch:
    """What a cut takes out of the model at `prefix`: readers of `target` read `source`."""

    prefix: str
    calls: frozenset[Key]
    source: Ref
    target: Ref

    def holds(self, other: Stretch) -> bool:
        """True if all calls of the other are among its own, or in a nested model that it calls."""
        if self.prefix == other.prefix:
            return other.calls <= self.calls
        return any(other.prefix.startswith(f"{self.prefix}{name}/") for name, _ in self.calls)

    def overlaps(self, other: Stretch) -> bool:
        """True if the two share a call, or one holds the nested model that the other is in."""
        shared = self.prefix == other.prefix and bool(self.calls & other.calls)
        return shared or self.holds(other) or other.holds(self)


@dataclasses.dataclass(frozen=True)
class Found:
    """A block, the stretches that go with it (one for each call of a nested model), its end."""

    block: Block
    stretches: tuple[Stretch, ...]
    end: str

    def overlaps(self, other: Found) -> bool:
        """True if they share a layer."""
        pairs = itertools.product(self.stretches, other.stretches)
        return any(a.overlaps(b) for a, b in pairs)


def problem(graph: CallGraph, stretch: Stretch) -> str:
    """Why the readers of a stretch's output can't read its input; "" if they can."""
    return changed(graph, stretch) or tapped(graph, stretch)


def changed(graph: CallGraph, stretch: Stretch) -> str:
    """How what comes out differs in kind from what goes in; "" if it does not."""
    before, after = graph.spec(stretch.source), graph.spec(stretch.target)
    if before.shape != after.shape:
        return f"it changes the shape from {before.shape} to {after.shape}"
    if before.dtype != after.dtype:
        return f"it changes the type from {before.dtype} to {after.dtype}"
    return ""


def tapped(graph: CallGraph, stretch: Stretch) -> str:
    """What else reads from inside a stretch; "" if nothing does."""
    for key in stretch.calls:
        for ref in graph.calls[key].outputs:
            if ref == stretch.target:
                continue
            if ref in graph.outputs:
                return f"its layer {ref[0]!r} is an output of the model"
            for reader in graph.readers[ref]:
                if reader not in stretch.calls:
                    return f"its layer {ref[0]!r} also feeds {reader[0]!r}, which is outside of it"
    return ""


def parts(keys: set[Key], graph: CallGraph) -> list[set[Key]]:
    """Splits calls into those that are connected with one another, in order."""
    found: list[set[Key]] = []
    for key in (k for k in graph.calls if k in keys):
        near = {ref[:2] for ref in graph.calls[key].inputs} & keys
        joined = [part for part in found if part & near]
        found = [part for part in found if part not in joined]
        found.append({key}.union(*joined))
    return found


def stretch_of(graph: CallGraph, prefix: str, part: set[Key]) -> Stretch | str:
    """The stretch that is just these connected calls, or why there is none."""
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
    for refs, what in ((sources, "goes in"), (targets, "comes out")):
        if len(refs) != 1:
            names = " and ".join(repr(ref[0]) for ref in refs) or "nothing"
            return f"one tensor must be what {what}, but here it is {len(refs)}: of {names}"
    return Stretch(prefix, frozenset(part), sources[0], targets[0])
