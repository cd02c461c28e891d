"""Chooses which blocks of a model stay: by their place, by what they change, by what they cost.

A student made of some of its teacher's layers begins with the teacher's weights
(https://arxiv.org/abs/1910.01108). Which layers it gets matters little if it trains
long, and much if it does not. This module chooses, `cut_layers` cuts.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import tf_keras as keras

from tfkd import checks
from tfkd.networks import paths
from tfkd.pruning.blocks import find
from tfkd.pruning.blocks import scores as layer_scores
from tfkd.pruning.blocks.choice import LayerChoice
from tfkd.pruning.blocks.cut import read
from tfkd.pruning.blocks.segment import Found

BY = ("position", "similarity", "damage")
POSITIONS = ("even", "first", "last")
Units = dict[str, list[Found]]


def choose_layers(
    model: keras.Model,
    keep: int | float,
    by: str = "position",
    data: Any = None,
    *,
    units: str | Iterable[str] | Callable[[str], str | None] | None = None,
    position: str = "even",
    greedy: bool = True,
    batch_size: int = 32,
    max_examples: int | None = None,
) -> LayerChoice:
    """Chooses which removable blocks of a model stay, for `cut_layers`.

    Nothing is cut or trained here, and the model is not changed.

    * "position" looks at nothing but the order. "even" spreads those that stay
      evenly, the first and the last among them, as DistilBERT does (of 12 layers and
      keep=6: 0, 2, 4, 7, 9, 11); "first" keeps those nearest to the input, which
      Sajjad et al. 2020 found best on many tasks (https://arxiv.org/abs/2004.03844);
      "last" those nearest to the output.
    * "similarity": the units go whose output is most like their input. The score is
      Block Influence (ShortGPT, Men et al. 2024, https://arxiv.org/abs/2403.03853):
      1 − the mean cosine between the two, over examples and places; places that Keras
      masks are left out. One pass over the data, batch by batch.
    * "damage": the units go without which the outputs change least. The score is
      measured on the model without the unit: the mean KL divergence of its class
      probabilities from the whole model's; with labels the rise in cross-entropy,
      which is below 0 where the model is better without. Heads that end in a softmax
      or return logits are both fine; one with a single number is taken for a
      sigmoid. Several outputs: the sum.

    Args:
        model: a built functional or Sequential model. Blocks of nested models are
            chosen from too (`find_blocks`).
        keep: how many units stay, or which share of them (above 0 and below 1, at
            least one unit, halves up).
        by: "position", "similarity" or "damage".
        data: for the last two: examples as the model takes them, in any form of
            `tfkd.example_inputs`. "damage" reads them several times, and uses labels
            where there are such: class numbers, or probabilities in the shape of the
            output. A few hundred examples are usual.
        units: how blocks belong together. None: each removable block is a unit of its
            own; of blocks inside one another the outermost are, but a nested model
            that holds all others is entered. "layer": blocks whose names are equal up
            to their last underscore are one unit (`layer1_attention` and `layer1_mlp`
            of a `text_transformer`; of a ResNet that would be whole stages). Patterns
            such as ["layer1_*", "layer2_*"]: each is a unit. Or a function from a
            block's name to its unit's, None for a block that is in none. Blocks in no
            unit stay.
        position: "even", "first" or "last".
        greedy: with "damage", remove the least harmful unit, measure the others again
            without it, and so on. A dropped unit's score is then the damage of all that
            went up to it, a kept one's what the damage were if it had gone in place of
            the last. False: measure each unit alone, once.
        batch_size: examples at once, where `data` are arrays.
        max_examples: read no further; None: as in `tfkd.example_inputs`.

    Returns:
        A `LayerChoice`, for `cut_layers(model, drop=choice)`.

    Raises:
        TypeError: if `model` is no tf_keras model, or an argument is of the wrong kind.
        ValueError: if the model has no removable blocks; `keep` is out of range; a
            pattern fits none; data are missing, empty or hold NaN; or labels do not fit.

    Example:
        >>> import tfkd
        >>> from tfkd import pruning
        >>> model = tfkd.models.text_transformer(50, 2, 8, layers=4, width=16)
        >>> choice = pruning.choose_layers(model, keep=2, units="layer")
        >>> print(choice)
        2 of 4 units stay, by position.
        <BLANKLINE>
        unit    blocks                        score
        ------  ----------------------------  -----  --------
        layer1  layer1_attention, layer1_mlp      –  stays
        layer2  layer2_attention, layer2_mlp      –  goes, 1.
        layer3  layer3_attention, layer3_mlp      –  goes, 2.
        layer4  layer4_attention, layer4_mlp      –  stays
        >>> [b.name for b in pruning.find_blocks(pruning.cut_layers(model, drop=choice))]
        ['layer1_attention', 'layer1_mlp', 'layer4_attention', 'layer4_mlp']
    """
    checks.one_of("by", by, BY)
    checks.one_of("position", position, POSITIONS)
    checks.positive_int("batch_size", batch_size)
    checks.instance("greedy", greedy, bool, "True or False")
    graph = read(model)
    found = find.find(graph)
    grouped = _units(found, units)
    count = _count(keep, len(grouped))
    options: Any = {"batch_size": batch_size, "max_examples": max_examples}
    reader = functools.partial(layer_scores.read, model, data, again=by == "damage", **options)
    if by == "position":
        if data is not None:
            raise checks.value_error("data", "None with by='position', which looks at none", data)
        stay = _places(len(grouped), count, position)
        drop = [unit for place, unit in enumerate(grouped) if place not in stay]
        scores: dict[str, float] = {}
    elif data is None:
        mend = "Pass examples as the model takes them: data=x, or data=(x, y) with labels."
        raise checks.value_error("data", f"examples with by={by!r}", None, mend)
    elif by == "similarity":
        scores = layer_scores.similarity(graph, grouped, reader)
        drop = sorted(grouped, key=scores.__getitem__)[: len(grouped) - count]
    else:
        drop, scores = layer_scores.damage(graph, grouped, len(grouped) - count, reader, greedy)
    return LayerChoice(
        keep=tuple(unit for unit in grouped if unit not in drop),
        drop=tuple(drop),
        scores=scores,
        by=by,
        units={unit: tuple(i.block.name for i in items) for unit, items in grouped.items()},
        meaning=_meaning(by, greedy),
    )


def _meaning(by: str, greedy: bool) -> str:
    if by == "similarity":
        return "Block Influence, 1 − mean cosine of input and output"
    if by == "position":
        return ""
    rest = "and those that went before" if greedy else "alone"
    return f"change of the outputs without the unit {rest}"


def _count(keep: Any, units: int) -> int:
    """How many of the units stay."""
    expected = f"a number of units from 1 to {units}, or a share between 0 and 1"
    if not checks.is_number(keep):
        raise checks.type_error("keep", expected, keep)
    if not isinstance(keep, numbers.Integral):
        if not 0 < keep < 1:
            raise checks.value_error("keep", expected, keep)
        return max(1, math.floor(keep * units + 0.5))
    count = checks.integer("keep", keep, 1, expected)
    if count > units:
        raise checks.value_error("keep", expected, keep)
    return count


def _places(units: int, count: int, position: str) -> list[int]:
    """Indices of the units that stay."""
    if position == "first":
        return list(range(count))
    if position == "last":
        return list(range(units - count, units))
    gaps = max(count - 1, 1)
    # i · (units − 1) / gaps, rounded, halves up, in integers.
    return [(2 * i * (units - 1) + gaps) // (2 * gaps) for i in range(count)]


def _units(found: list[Found], units: Any) -> Units:
    """Unit → its blocks, in the order of the data."""
    removable = [item for item in found if item.block.removable]
    if not removable:
        reasons = [f"{item.block.name}: {item.block.reason}" for item in found]
        raise ValueError(
            "`model`: expected a model with blocks that can be removed, received one without. "
            f"{'; '.join(reasons[:4]) or 'It has no residual sum'}."
        )
    if callable(units):
        return _by_function(removable, units)
    if units is None or (isinstance(units, str) and units == "layer"):
        blocks = _apart(removable)
        if units is None:
            return {item.block.name: [item] for item in blocks}
        return _by_function(blocks, lambda name: name.rpartition("_")[0] or name)
    return _by_patterns(removable, units)


def _apart(removable: list[Found]) -> list[Found]:
    """Blocks that lie apart: the outermost, but inside a model that holds all others."""
    for item in removable:
        others = [other for other in removable if other is not item]
        apart = any(not a.overlaps(b) for a in others for b in others)
        is_model = item.block.layers == (item.block.name,)
        if is_model and apart and all(_holds(item, other) for other in others):
            return _apart(others)
    return [
        item
        for item in removable
        if not any(_holds(other, item) for other in removable if other is not item)
    ]


def _holds(outer: Found, inner: Found) -> bool:
    return all(any(a.holds(b) for a in outer.stretches) for b in inner.stretches)


def _by_function(blocks: list[Found], unit_of: Callable[[str], Any]) -> Units:
    grouped: Units = {}
    for item in blocks:
        unit = unit_of(item.block.name)
        if unit is not None:
            unit = checks.instance("units", unit, str, "a function that returns names or None")
            grouped.setdefault(unit, []).append(item)
    if not grouped:
        mend = checks.listing([item.block.name for item in blocks])
        raise checks.value_error("units", "a unit for some block", unit_of, mend)
    return _checked_apart(grouped)


def _by_patterns(removable: list[Found], units: Any) -> Units:
    expected = 'None, "layer", patterns of block names, or a function of them'
    patterns = [units] if isinstance(units, str) else units
    if not isinstance(patterns, Iterable) or isinstance(patterns, (bytes, dict)):
        raise checks.type_error("units", expected, units)
    grouped: Units = {}
    names = [item.block.name for item in removable]
    for pattern in patterns:
        checks.instance("units", pattern, str, expected)
        fits = paths.fitting(pattern, names, inside=False)
        if not fits:
            expected = "a pattern that fits removable blocks"
            raise paths.unmatched("units", expected, pattern, names)
        grouped[pattern] = [item for item in removable if item.block.name in fits]
    if not grouped:
        raise checks.value_error("units", "at least one pattern", units)
    place = {name: number for number, name in enumerate(names)}
    order = sorted(grouped, key=lambda unit: place[grouped[unit][0].block.name])
    return _checked_apart({unit: grouped[unit] for unit in order})


def _checked_apart(grouped: Units) -> Units:
    """Raises unless no two units share a layer."""
    pairs = [(unit, item) for unit, items in grouped.items() for item in items]
    for index, (unit, item) in enumerate(pairs):
        for other, second in pairs[index + 1 :]:
            if item.overlaps(second) and other != unit:
                raise ValueError(
                    "`units`: expected units that share no layer, received "
                    f"{item.block.name!r} in {unit!r} and {second.block.name!r} in {other!r}. "
                    "Give each block to one unit, None for those to leave out."
                )
    return grouped
