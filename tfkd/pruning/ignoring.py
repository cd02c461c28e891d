"""Resolves the `ignore` argument of `plan`: channel groups excluded from pruning."""

from __future__ import annotations

import numpy as np

from tfkd.networks import paths
from tfkd.pruning.graph import KEPT, Graph


def ignored_groups(graph: Graph, ignore: paths.Entries) -> tuple[str, ...]:
    """Returns the names of the groups that `ignore` selects.

    An entry (see `networks.paths`) is a layer that produces or normalizes channels, a nested
    model, or a group. A layer that only consumes channels can't be named: its inputs are
    removed whenever the layers that produce them lose channels.

    Raises:
        TypeError: if an entry is neither a string nor a layer.
        ValueError: if an entry matches nothing; the message suggests similar names.
    """
    members = _members(graph)
    # Layers whose channels are all frozen may be named too, to no effect.
    known = {axis.layer for axis in graph.axes}
    known.update(layer for item in graph.frozen for layer in item.layers)
    known.update(*members.values())
    expected = "names of layers with channels, or patterns"
    found = set(paths.matching("ignore", ignore, sorted(known), graph.model, expected))
    return tuple(name for name, own in members.items() if not own.isdisjoint(found))


def _members(graph: Graph) -> dict[str, set[str]]:
    """Group name → that name and the paths of the layers that produce or normalize the group."""
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
