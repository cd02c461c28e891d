"""Resolves `keep` and `drop`: names, indices and patterns of blocks and layers to remove."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.networks import paths
from tfkd.networks.call_graph import CallGraph
from tfkd.pruning.blocks.choice import LayerChoice
from tfkd.pruning.blocks.segment import Block, Found, parts, problem, segment_of


def entries(argument: str, value: Any) -> list[paths.Entry | int]:
    """`keep` or `drop` as a list; a single entry becomes a list of one."""
    expected = "names, indices or patterns of blocks"
    found = paths.entries(argument, value, (numbers.Integral,), expected)
    return [int(entry) if isinstance(entry, numbers.Integral) else entry for entry in found]


def _matching(argument: str, entry: Any, found: Sequence[Found], model: Any) -> list[Found]:
    """The blocks that an entry names; in `keep` a nested model stands for its blocks."""
    if isinstance(entry, int):
        if not -len(found) <= entry < len(found):
            expected = f"an index into the {len(found)} blocks of find_blocks(model)"
            raise checks.value_error(argument, expected, entry)
        return [found[entry]]
    exact = [item for item in found if item.block.name == entry]
    names = [item.block.name for item in found]
    fits = paths.fitting(entry, names, model, inside=argument == "keep")
    return exact or [item for item in found if item.block.name in fits]


def _no_match(argument: str, entry: Any, choices: Iterable[str]) -> ValueError:
    what = "blocks" if argument == "keep" else "blocks or layers"
    expected = f"the name of {what}, or a pattern that matches some"
    return paths.unmatched(argument, expected, entry, choices)


def other_than(
    entries: Sequence[paths.Entry | int], found: Sequence[Found], model: keras.Model
) -> list[Found]:
    """The removable blocks that share no layer with a kept block."""
    names = [item.block.name for item in found]
    if not any(item.block.removable for item in found):
        reasons = [f"{item.block.name}: {item.block.reason}" for item in found]
        raise ValueError(
            "`keep`: expected a model with blocks that can be removed, received one without. "
            f"{'; '.join(reasons[:4]) or 'It has no residual sum'}. Name layers in `drop`."
        )
    stay: list[Found] = []
    for entry in entries:
        fits = _matching("keep", entry, found, model)
        if not fits:
            raise _no_match("keep", entry, names)
        stay += fits
    removable = [item for item in found if item.block.removable]
    return [item for item in removable if not any(item.overlaps(other) for other in stay)]


def dropped(
    entries: Sequence[paths.Entry | int],
    found: Sequence[Found],
    graph: CallGraph,
    skipped: dict[str, str],
) -> list[Found]:
    """The blocks and layers that entries of `drop` name."""
    if not entries:
        raise checks.value_error("drop", "at least one block or layer", entries)
    known = list(paths.layers_by_path(graph.model))
    chosen: list[Found] = []
    named: list[str] = []
    for entry in entries:
        fits = _matching("drop", entry, found, graph.model)
        is_pattern = isinstance(entry, str) and entry not in [f.block.name for f in fits]
        removable = [item for item in fits if item.block.removable]
        refused = [item.block for item in fits if not item.block.removable]
        layers = [] if fits else paths.fitting(entry, known, graph.model, inside=False)
        if fits and (not removable or (refused and not is_pattern)):
            expected = "a block that can be removed"
            reason = f"{refused[0].name!r} can't be removed: {refused[0].reason}."
            raise checks.value_error("drop", expected, entry, reason)
        if not fits and not layers:
            raise _no_match("drop", entry, [item.block.name for item in found] + known)
        skipped.update({block.name: block.reason for block in refused})
        chosen += [item for item in removable if item not in chosen]
        named += [p for p in layers if not any(p.startswith(f"{outer}/") for outer in layers)]
    return chosen + _layers(dict.fromkeys(named), graph)


def of_choice(argument: str, choice: LayerChoice, found: Sequence[Found]) -> list[Found]:
    """The blocks that a `LayerChoice` drops."""
    blocks = {item.block.name: item for item in found if item.block.removable}
    for name in (name for names in choice.candidates.values() for name in names):
        if name not in blocks:
            expected = "a choice made for this model, with its removable blocks"
            raise checks.value_error(argument, expected, name, checks.near_or_all(name, blocks))
    return [blocks[name] for name in choice.dropped_blocks]


def _layers(named: Iterable[str], graph: CallGraph) -> list[Found]:
    """Turns layers into segments to remove, one for each connected component."""
    models = graph.levels()
    levels: dict[str, list[str]] = {}
    for path in named:
        # A layer name may contain slashes: take the longest prefix that is a nested model.
        prefix = max((p for p in models if path.startswith(p)), key=len)
        levels.setdefault(prefix, []).append(path[len(prefix) :])
    found = []
    for prefix, names in levels.items():
        level = models[prefix]
        for part in parts({call.key for name in names for call in level.calls_of(name)}, level):
            segment = segment_of(level, prefix, part)
            reason = segment if isinstance(segment, str) else problem(level, segment)
            inside = [prefix + key[0] for key in level.calls if key in part]
            if reason:
                shown = ", ".join(repr(path) for path in inside[:4])
                more = f" and {len(inside) - 4} more" if len(inside) > 4 else ""
                raise ValueError(
                    "`drop`: expected layers with one tensor in and one tensor out of the same "
                    f"shape and type, received {shown}{more}: {reason}. Name all layers between "
                    "two such tensors, or a block of find_blocks(model)."
                )
            found.append(_as_found(prefix, inside, segment))
    return found


def _as_found(prefix: str, paths: list[str], segment: Any) -> Found:
    name = paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
    ends = prefix + segment.source[0], prefix + segment.target[0]
    return Found(Block(name, tuple(paths), *ends, removable=True), (segment,), ends[1])
