"""Which groups a user asked to leave alone, by names or patterns of layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import numpy as np

from tfkd import checks
from tfkd.pruning.graph import KEPT, Graph


def ignored_groups(graph: Graph, ignore: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the groups that entries of `ignore` match.

    An entry is the name or path of a layer that makes or normalizes channels
    (`backbone/conv1` or `conv1`), of a nested model (`backbone`), of a group, or
    a pattern with `*`, `?` or `[…]`. A layer that only reads channels is not
    asked: it follows those that make them.

    Raises:
        TypeError: if an entry is not a string.
        ValueError: if an entry matches nothing; near matches are named.
    """
    entries = [ignore] if isinstance(ignore, str) else _list(ignore)
    if not entries:
        return ()
    members = _members(graph)
    # Layers of which all channels stay anyway may be named too.
    others = {axis.layer for axis in graph.axes}
    others.update(layer for item in graph.frozen for layer in item.layers)
    staying = set().union(*(_names(layer) for layer in others))
    found: set[str] = set()
    for entry in entries:
        groups = {name for name, names in members.items() if _matches(entry, names)}
        if not groups and not _matches(entry, staying):
            raise _unknown(entry, staying.union(*members.values()))
        found |= groups
    return tuple(group.name for group in graph.groups if group.name in found)


def _list(ignore: Iterable[str]) -> list[str]:
    expected = "a sequence of names of layers"
    if not isinstance(ignore, Iterable):
        raise checks.type_error("ignore", expected, ignore)
    return [checks.instance("ignore", entry, str, expected) for entry in ignore]


def _members(graph: Graph) -> dict[str, set[str]]:
    """Group name → all names that stand for it."""
    owner = np.full(graph.units, -1)
    members = {}
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
        members[group.name] = {group.name}.union(*(_names(layer) for layer in group.layers))
    for axis in graph.axes:
        if axis.zeroed:
            for index in np.unique(owner[axis.units[axis.units != KEPT]]).tolist():
                members[graph.groups[index].name] |= _names(axis.layer)
    return members


def _names(path: str) -> set[str]:
    """The path of a layer, its own name, and the models that hold it."""
    parts = path.split("/")
    return {"/".join(parts[:i]) for i in range(1, len(parts) + 1)} | {parts[-1]}


def _matches(entry: str, names: set[str]) -> bool:
    return entry in names or any(fnmatch.fnmatchcase(name, entry) for name in names)


def _unknown(entry: str, names: set[str]) -> ValueError:
    mend = checks.near(entry, sorted(names))
    if mend is None:
        shown = ", ".join(repr(name) for name in sorted(names)[:12])
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        mend = f"Layers with channels are: {shown}{more}."
    return checks.value_error("ignore", "names or patterns of layers with channels", entry, mend)
