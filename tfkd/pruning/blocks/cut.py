"""Cuts whole blocks out of a model: residual blocks, transformer layers, nested models.

A residual block computes x + f(x). Without it the next block reads x, which is
the same function if f was zero; so a deep model gives a shallower student that
begins with the weights of its teacher (https://arxiv.org/abs/1910.01108 takes
every second layer of a transformer in this way).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import tf_keras as keras
from absl import logging

from tfkd import checks
from tfkd.networks import edit_config, layer_weights
from tfkd.networks.accept import check_model
from tfkd.networks.call_graph import CallGraph, Key, Ref, resolve
from tfkd.networks.paths import Entry, layers_by_path
from tfkd.pruning.blocks import find, match
from tfkd.pruning.blocks.choice import LayerChoice
from tfkd.pruning.blocks.segment import Block, Found, Stretch
from tfkd.results import Result

Name: TypeAlias = Entry | int
Names: TypeAlias = Name | Iterable[Name]


@dataclasses.dataclass(frozen=True)
class Cut(Result):
    """What `cut_layers` did.

    Attributes:
        removed: names of the blocks, and paths of the single layers, that were cut.
        kept: names of the removable blocks that stayed.
        skipped: block → why a pattern in `drop` that fits it did not cut it.
        layers: paths of all layers that the new model no longer has: those of
            the blocks, and those that only fed them.
        params_before, params_after: weights of the model before and after.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: dict[str, str]
    layers: tuple[str, ...]
    params_before: int
    params_after: int

    def parts(self) -> list[str]:
        """What was removed, and what was not."""
        share = 1 - self.params_after / self.params_before if self.params_before else 0.0
        lines = [
            f"Removed {', '.join(self.removed) or 'nothing'}: {len(self.layers)} layers, "
            f"parameters {self.params_before:,} → {self.params_after:,} (−{share:.1%})."
        ]
        lines += [f"Not {name}: {reason}." for name, reason in self.skipped.items()]
        return ["\n".join(lines)]


def find_blocks(model: keras.Model) -> tuple[Block, ...]:
    """Lists the blocks of a model and says which can be removed.

    A block is what lies between a tensor and a sum that adds that tensor to
    what became of it (`Add`, `x + y`, `tf.add`), with the activation or
    normalization after the sum if the tensor comes from one of its kind; or a
    nested model whose output has the shape of its input. Pre-norm transformers
    have two blocks a layer, attention and MLP. Blocks whose shortcut passes
    through layers of its own (a projection) are listed, but not removable.

    Args:
        model: a built functional or Sequential model. Blocks in nested models
            have their path, `backbone/block3`.

    Returns:
        A `Block` each, those of the outer model first, in the order of the data.

    Raises:
        TypeError: if `model` is no tf_keras model.
        ValueError: if it is unbuilt, subclassed, or holds a layer in two nested models.

    Example:
        >>> import tfkd
        >>> blocks = tfkd.pruning.find_blocks(tfkd.models.resnet(14))
        >>> [block.name for block in blocks if block.removable]
        ['stage1_block1', 'stage1_block2', 'stage2_block2', 'stage3_block2']
        >>> blocks[2].name, blocks[2].reason[:56]
        ('stage2_block1', "its shortcut passes through 'stage2_block1_0_conv', 'sta")
    """
    return tuple(item.block for item in find.find(read(model)))


def cut_layers(
    model: keras.Model,
    keep: Names | LayerChoice | None = None,
    drop: Names | LayerChoice | None = None,
    *,
    return_report: bool = False,
) -> Any:
    """Removes whole blocks of a model and copies the weights of the rest.

    What read the output of a removed block reads its input instead. The other
    layers keep their names; the new model shares nothing with the old one,
    which is not changed, and is not compiled.

    Args:
        model: a built functional or Sequential model.
        keep: the blocks that stay; all other removable ones go, but for those
            inside or around one that stays. Names or indices of `find_blocks`,
            patterns such as "stage1_*", nested models or their names; one, or
            several in a list. An empty list removes all. Or what
            `choose_layers` chose; `drop` with the same is no different.
        drop: the blocks that go, in the same way. A pattern leaves blocks out
            that can't be removed; a name or index of one is an error. Where no
            block fits, names and patterns of layers: those that are connected
            are cut together, and need one tensor in and one tensor out of
            the same shape and type.
        return_report: return also a `Cut`, which says what was removed. It is
            logged in any case (absl, level INFO).

    Returns:
        The smaller model; with `return_report=True` the pair (model, `Cut`).

    Raises:
        TypeError: if `model` is no tf_keras model or an entry no name or index.
        ValueError: if not exactly one of `keep` and `drop` is given, an entry
            fits nothing, a block can't be removed, nothing would be left, or
            the model is unbuilt, subclassed or can't be made from its config.

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
    made = without(graph, [stretch for item in chosen for stretch in item.stretches])
    layer_weights.check_finite("model", made)
    removed = tuple(item.block.name for item in chosen)
    left = layers_by_path(made)
    report = Cut(
        removed=removed,
        kept=tuple(
            item.block.name for item in found if item.block.removable and not _is_cut(item, chosen)
        ),
        skipped=skipped,
        layers=tuple(path for path in layers_by_path(model) if path not in left),
        params_before=model.count_params(),
        params_after=made.count_params(),
    )
    logging.info("%s: %s", model.name, report)
    return (made, report) if return_report else made


def read(model: Any) -> CallGraph:
    """The graph of a model whose blocks can be found and cut; raises for another."""
    check_model("model", model)
    graph = CallGraph(model)
    edit_config.refuse_ties(graph)
    return graph


def _is_cut(item: Found, chosen: Sequence[Found]) -> bool:
    cuts = [stretch for other in chosen for stretch in other.stretches]
    return all(any(cut.holds(stretch) for cut in cuts) for stretch in item.stretches)


def without(graph: CallGraph, stretches: Sequence[Stretch]) -> keras.Model:
    """Makes the model without these stretches, with the weights of the rest."""
    levels = graph.levels()
    moved: dict[str, dict[Ref, Ref]] = {}
    gone: dict[str, set[Key]] = {}
    for stretch in _outermost(stretches):
        moved.setdefault(stretch.prefix, {})[stretch.target] = stretch.source
        gone.setdefault(stretch.prefix, set()).update(stretch.calls)
    for prefix, wires in moved.items():
        for ref in levels[prefix].outputs:
            end = resolve(ref, wires)
            if end != ref and levels[prefix].maker(end).is_input:
                name = prefix[:-1] or graph.model.name
                raise ValueError(
                    "`keep`, `drop`: expected some layers to stay, received a choice that leaves "
                    f"nothing between the input and the output of {name!r}. "
                    "Keep a block of it."
                )
    return edit_config.rebuild(
        graph, lambda config: edit_config.without_calls(config, graph, moved, gone)
    )


def _outermost(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The stretches without those inside another, which go with it."""
    found: list[Stretch] = []
    for stretch in stretches:
        if not any(other.holds(stretch) for other in found):
            found = [other for other in found if not stretch.holds(other)] + [stretch]
    for first, second in itertools.combinations(found, 2):
        if first.overlaps(second):
            ends = [f"{s.prefix}{s.target[0]}" for s in (first, second)]
            raise ValueError(
                "`drop`: expected blocks that lie apart or one inside the other, received two that "
                f"share layers and end at {ends[0]!r} and {ends[1]!r}. Remove one, then the other."
            )
    return found
