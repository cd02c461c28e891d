"""Depth pruning: removes residual blocks, transformer layers or nested models from a model.

A residual block computes x + f(x). Without it the next block reads x, which is the same
function if f = 0. A deep model thus yields a shallower student that starts with the weights
of its teacher (DistilBERT, https://arxiv.org/abs/1910.01108, takes every second layer of a
transformer in this way).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, overload

import tf_keras as keras
from absl import logging

from tfkd import checks
from tfkd.networks import edit_config
from tfkd.networks.accept import check_finite, check_graph
from tfkd.networks.call_graph import CallGraph, Key, Ref, resolve
from tfkd.networks.paths import Entry, layers_by_path
from tfkd.pruning.blocks import find, match
from tfkd.pruning.blocks.choice import LayerChoice
from tfkd.pruning.blocks.segment import Block, Found, Segment
from tfkd.results import Result

Name: TypeAlias = Entry | int
Names: TypeAlias = Name | Iterable[Name]
Choice: TypeAlias = Names | LayerChoice | None


@dataclasses.dataclass(frozen=True)
class Cut(Result):
    """Report of `cut_layers`.

    Attributes:
        removed: names of the blocks, and paths of the single layers, that were removed.
        kept: names of the removable blocks that were kept.
        skipped: block → why it was kept although it matches a pattern in `drop`.
        layers: paths of all layers that the new model no longer has: those of the removed
            blocks, and those that fed nothing else.
        params_before, params_after: number of parameters before and after.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: dict[str, str]
    layers: tuple[str, ...]
    params_before: int
    params_after: int

    def parts(self) -> list[str]:
        """A text that lists removed and skipped blocks."""
        share = 1 - self.params_after / self.params_before if self.params_before else 0.0
        lines = [
            f"Removed {', '.join(self.removed) or 'nothing'}: {len(self.layers)} layers, "
            f"parameters {self.params_before:,} → {self.params_after:,} (−{share:.1%})."
        ]
        lines += [f"Not {name}: {reason}." for name, reason in self.skipped.items()]
        return ["\n".join(lines)]


def find_blocks(model: keras.Model) -> tuple[Block, ...]:
    """Lists the blocks of a model and tells which can be removed.

    A residual block consists of the layers between a tensor x and the sum x + f(x) (`Add`,
    `x + y`, `tf.add`), including the activation or normalization after the sum if x comes
    from one of the same kind. A nested model whose output has the shape of its input is a
    block, too. Pre-norm transformers have two blocks per layer, attention and MLP. Blocks
    whose shortcut has layers of its own (a projection) are listed, but not removable.

    Args:
        model: a built functional or Sequential model. Blocks in nested models are named
            by their path, such as `backbone/block3`.

    Returns:
        One `Block` each, those of the outer model first, in the order of the data flow.

    Raises:
        TypeError: if `model` is not a tf_keras model.
        ValueError: if it is not built, is subclassed, or shares a layer between two nested
            models.

    Example:
        >>> import tfkd
        >>> blocks = tfkd.pruning.find_blocks(tfkd.models.resnet(14))
        >>> [block.name for block in blocks if block.removable]
        ['stage1_block1', 'stage1_block2', 'stage2_block2', 'stage3_block2']
        >>> blocks[2].name, blocks[2].reason[:56]
        ('stage2_block1', "its shortcut passes through 'stage2_block1_0_conv', 'sta")
    """
    return tuple(item.block for item in find.find(read(model)))


@overload
def cut_layers(
    model: keras.Model,
    keep: Choice = ...,
    drop: Choice = ...,
    *,
    return_report: Literal[False] = ...,
) -> keras.Model: ...
@overload
def cut_layers(
    model: keras.Model, keep: Choice = ..., drop: Choice = ..., *, return_report: Literal[True]
) -> tuple[keras.Model, Cut]: ...
def cut_layers(
    model: keras.Model, keep: Choice = None, drop: Choice = None, *, return_report: bool = False
) -> keras.Model | tuple[keras.Model, Cut]:
    """Removes whole blocks from a model and copies the weights of the rest.

    Layers that read the output of a removed block read its input instead. The remaining
    layers keep their names. The new model is not compiled and shares no variable with the
    old one, which is not changed.

    Args:
        model: a built functional or Sequential model.
        keep: the blocks to keep; all other removable blocks are removed, except for those
            inside or around a kept one. Names or indices of `find_blocks`, patterns such as
            "stage1_*", nested models or their names; one entry or a list. An empty list
            removes all. Or a `LayerChoice`, which has the same effect as `keep` and `drop`.
        drop: the blocks to remove, given in the same way. A pattern skips blocks that can't
            be removed; naming such a block is an error. Entries that match no block are
            names or patterns of layers: connected layers are removed together, and must
            have a single input and a single output tensor of the same shape and dtype.
        return_report: also return a `Cut`, which lists what was removed. It is logged in
            any case (absl, level INFO).

    Returns:
        The smaller model; with `return_report=True` the pair (model, `Cut`).

    Raises:
        TypeError: if `model` is not a tf_keras model, or an entry is not a name or index.
        ValueError: if not exactly one of `keep` and `drop` is given; an entry matches
            nothing; a block can't be removed; no layer would be left; or the model is not
            built, is subclassed, or can't be rebuilt from its config.

    Example:
        >>> import tfkd
        >>> from tfkd.pruning import cut_layers
        >>> model = tfkd.models.resnet(20)
        >>> small, cut = cut_layers(model, drop="stage*_block2", return_report=True)
        >>> print(cut)
        Removed stage1_block2, stage2_block2, stage3_block2: 21 layers, parameters 274,042 → \
176,378 (−35.6%).
        >>> small.get_layer("logits").output_shape
        (None, 10)
    """
    graph = read(model)
    found = find.find(graph)
    if (keep is None) == (drop is None):
        raise ValueError(
            "`keep`, `drop`: expected exactly one of the two, received "
            f"{'neither' if keep is None else 'both'}. Say which blocks stay, or which go: "
            f"{checks.listing([f.block.name for f in found if f.block.removable])}"
        )
    skipped: dict[str, str] = {}
    choice = keep if drop is None else drop
    if isinstance(choice, LayerChoice):
        chosen = match.of_choice("keep" if drop is None else "drop", choice, found)
    elif drop is None:
        chosen = match.other_than(match.entries("keep", keep), found, model)
    else:
        chosen = match.dropped(match.entries("drop", drop), found, graph, skipped)
    made = without(graph, [segment for item in chosen for segment in item.segments])
    check_finite("model", made)
    removed = tuple(item.block.name for item in chosen)
    remaining = layers_by_path(made)
    report = Cut(
        removed=removed,
        kept=tuple(
            item.block.name for item in found if item.block.removable and not _is_cut(item, chosen)
        ),
        skipped=skipped,
        layers=tuple(path for path in layers_by_path(model) if path not in remaining),
        params_before=model.count_params(),
        params_after=made.count_params(),
    )
    logging.info("%s: %s", model.name, report)
    return (made, report) if return_report else made


def read(model: keras.Model) -> CallGraph:
    """Checks a model and returns its call graph; raises if blocks can't be removed from it."""
    graph = check_graph("model", model)
    edit_config.refuse_ties(graph)
    return graph


def _is_cut(item: Found, chosen: Sequence[Found]) -> bool:
    cuts = [segment for other in chosen for segment in other.segments]
    return all(any(cut.holds(segment) for cut in cuts) for segment in item.segments)


def without(graph: CallGraph, segments: Sequence[Segment]) -> keras.Model:
    """Rebuilds the model without some segments and copies the weights of the rest."""
    levels = graph.levels()
    moved: dict[str, dict[Ref, Ref]] = {}
    gone: dict[str, set[Key]] = {}
    for segment in _outermost(segments):
        moved.setdefault(segment.prefix, {})[segment.target] = segment.source
        gone.setdefault(segment.prefix, set()).update(segment.calls)
    for prefix, wires in moved.items():
        for ref in levels[prefix].outputs:
            end = resolve(ref, wires)
            if end != ref and levels[prefix].maker(end).is_input:
                name = prefix[:-1] or graph.model.name
                raise ValueError(
                    "`keep`, `drop`: expected some layers to stay, received a choice that leaves "
                    f"nothing between the input and the output of {name!r}. "
                    "Keep one of its blocks."
                )
    return edit_config.rebuild(
        graph, lambda config: edit_config.without_calls(config, graph, moved, gone)
    )


def _outermost(segments: Sequence[Segment]) -> list[Segment]:
    """The segments that are not inside another one, which is removed as a whole."""
    found: list[Segment] = []
    for segment in segments:
        if not any(other.holds(segment) for other in found):
            found = [other for other in found if not segment.holds(other)] + [segment]
    for first, second in itertools.combinations(found, 2):
        if first.overlaps(second):
            ends = [f"{s.prefix}{s.target[0]}" for s in (first, second)]
            raise ValueError(
                "`drop`: expected blocks that are disjoint or nested, received two that share "
                f"layers and end at {ends[0]!r} and {ends[1]!r}. Remove one, then the other."
            )
    return found
