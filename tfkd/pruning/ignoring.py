"""Which groups a user asked to leave alone, by names or patterns of layers."""

from __future__ import annotations

import numpy as np

from tfkd.networks import paths
from tfkd.pruning.graph import KEPT, Graph


def ignored_groups(graph: Graph, ignore: paths.Entries) -> tuple[str, ...]:
    """Returns the names of the groups that entries of `ignore` name.

    An entry, as in `networks.paths`, is a layer that makes or normalizes channels, a nested
    model, or a group. A layer that only reads channels is not asked: it follows those that
    make them.

    Raises:
        TypeError: if an entry is neither a string nor a layer.
        ValueError: if an entry matches nothing; near matches are named.
    """
    members = _members(graph)
    # Layers of which all channels stay anyway may be named too.
    known = {axis.layer for axis in graph.axes}
    known.update(layer for item in graph.frozen for layer in item.layers)
    known.update(*members.values())
    expected = "names of layers with channels, or patterns"
    found = set(paths.matching("ignore", ignore, sorted(known), graph.model, expected))
    return tuple(name for name, own in members.items() if not own.isdisjoint(found))


def _members(graph: Graph) -> dict[str, set[str]]:
    """Group name → itself, and the paths of the layers that make or normalize its channels."""
    owner = np.full(graph.units, -1)
    members = {}
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
        members[group.name] = {group.name, *group.layers}
    for axis in graph.axes:
        if axis.zeroed:
            for index in np.unique(owner[axis.units[axis.units != KEPT]]).tolist():
                members[graph.groups[index].name].add(axis.layer)
    return members
