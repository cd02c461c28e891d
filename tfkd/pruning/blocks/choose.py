"""Layer selection for depth pruning: by position, by Block Influence, or by output change.

A student made of some of its teacher's layers starts with the teacher's weights
(DistilBERT, https://arxiv.org/abs/1910.01108). Which layers it inherits matters little
after long training, and much after short training. This module chooses the layers;
`cut_layers` removes the others.
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
from tfkd.types import Data

BY = ("position", "similarity", "damage")
POSITIONS = ("even", "first", "last")
Candidates = dict[str, list[Found]]


def choose_layers(
    model: keras.Model,
    keep: int | float,
    by: str = "position",
    data: Data | None = None,
    *,
    granularity: str | Iterable[str] | Callable[[str], str | None] | None = None,
    position: str = "even",
    greedy: bool = True,
    batch_size: int = 32,
    max_examples: int | None = None,
) -> LayerChoice:
    """Chooses which removable blocks of a model to keep, for `cut_layers`.

    Nothing is removed or trained here, and the model is not changed. A candidate is one
    block, or several that are kept or dropped together (see `granularity`).

    * "position" uses the order of the candidates only. "even" keeps evenly spaced ones,
      including the first and the last, as in DistilBERT (of 12 layers with keep=6: 0, 2,
      4, 7, 9, 11); "first" keeps those nearest to the input, which Sajjad et al. 2020
      found best on many tasks (https://arxiv.org/abs/2004.03844); "last" keeps those
      nearest to the output.
    * "similarity" drops the candidates whose output is most similar to their input. The
      score is Block Influence (ShortGPT, Men et al. 2024,
      https://arxiv.org/abs/2403.03853): 1 minus the mean cosine similarity of the two,
      over examples and positions, without positions masked by Keras. It takes one pass
      over the data.
    * "damage" drops the candidates whose removal changes the outputs least. The score is
      measured on the model without the candidate: the mean KL divergence of its class
      probabilities from those of the full model; or, with labels, the increase in
      cross-entropy, which is negative if the model improves. Heads may return logits or
      probabilities; a single output is treated as a sigmoid. The scores of several
      outputs are added.

    Args:
        model: a built functional or Sequential model. Blocks of nested models are
            included (see `find_blocks`).
        keep: number of candidates to keep, or a fraction of them between 0 and 1,
            rounded half up, but at least one candidate.
        by: "position", "similarity" or "damage".
        data: for the last two: examples as the model takes them, in any form of
            `tfkd.example_inputs`. "damage" reads them several times, and uses labels if
            there are any: class indices, or probabilities in the shape of the output. A
            few hundred examples are usually enough.
        granularity: which blocks form one candidate. None: each removable block is a
            candidate; of nested blocks only the outermost, except that a nested model
            that contains all other blocks is entered. "layer": blocks whose names agree
            up to the last underscore (`layer1_attention` and `layer1_mlp` of a
            `text_transformer`; whole stages of a ResNet). Patterns such as ["layer1_*",
            "layer2_*"]: each is a candidate. Or a function from the name of a block to
            the name of its candidate, or to None. Blocks without a candidate are kept.
        position: "even", "first" or "last".
        greedy: with "damage", drop the least harmful candidate, measure the others again
            without it, and so on. The score of a dropped candidate is then the damage of
            all drops up to it; that of a kept one is the damage if it had been dropped
            instead of the last. False: measure each candidate once, on its own.
        batch_size: examples per batch, if `data` are arrays.
        max_examples: maximum number of examples; None: as in `tfkd.example_inputs`.

    Returns:
        A `LayerChoice`, for `cut_layers(model, drop=choice)`.

    Raises:
        TypeError: if `model` is not a tf_keras model, or an argument has the wrong type.
        ValueError: if the model has no removable blocks; `keep` is out of range; a
            pattern matches nothing; data are missing, empty or NaN; or labels do not
            match the outputs.

    Example:
        >>> import tfkd
        >>> from tfkd import pruning
        >>> model = tfkd.models.text_transformer(50, 2, 8, layers=4, width=16)
        >>> choice = pruning.choose_layers(model, keep=2, granularity="layer")
        >>> print(choice)
        2 of 4 candidates kept, by position.
        <BLANKLINE>
        candidate  blocks                        score
        ---------  ----------------------------  -----  -----------
        layer1     layer1_attention, layer1_mlp      –  kept
        layer2     layer2_attention, layer2_mlp      –  dropped, 1.
        layer3     layer3_attention, layer3_mlp      –  dropped, 2.
        layer4     layer4_attention, layer4_mlp      –  kept
        >>> [b.name for b in pruning.find_blocks(pruning.cut_layers(model, drop=choice))]
        ['layer1_attention', 'layer1_mlp', 'layer4_attention', 'layer4_mlp']
    """
    checks.one_of("by", by, BY)
    checks.one_of("position", position, POSITIONS)
    checks.positive_int("batch_size", batch_size)
    checks.instance("greedy", greedy, bool, "True or False")
    graph = read(model)
    grouped = _candidates(find.find(graph), granularity)
    count = _count(keep, len(grouped))
    options: Any = {"batch_size": batch_size, "max_examples": max_examples}
    reader = functools.partial(layer_scores.read, model, data, again=by == "damage", **options)
    if by == "position":
        if data is not None:
            raise checks.value_error("data", "None with by='position', which reads none", data)
        kept = _kept_indices(len(grouped), count, position)
        drop = [name for index, name in enumerate(grouped) if index not in kept]
        scores: dict[str, float] = {}
    elif data is None:
        fix = "Pass examples as the model takes them: data=x, or data=(x, y) with labels."
        raise checks.value_error("data", f"examples with by={by!r}", None, fix)
    elif by == "similarity":
        scores = layer_scores.similarity(graph, grouped, reader)
        drop = sorted(grouped, key=scores.__getitem__)[: len(grouped) - count]
    else:
        drop, scores = layer_scores.damage(graph, grouped, len(grouped) - count, reader, greedy)
    return LayerChoice(
        keep=tuple(name for name in grouped if name not in drop),
        drop=tuple(drop),
        scores=scores,
        by=by,
        candidates={name: tuple(i.block.name for i in items) for name, items in grouped.items()},
        meaning=_meaning(by, greedy),
    )


def _meaning(by: str, greedy: bool) -> str:
    if by == "similarity":
        return "Block Influence, 1 − mean cosine similarity of input and output"
    if by == "position":
        return ""
    rest = " and those dropped before it" if greedy else ""
    return f"change of the outputs without the candidate{rest}"


def _count(keep: float, candidates: int) -> int:
    """Number of candidates to keep."""
    expected = f"a number of candidates from 1 to {candidates}, or a fraction between 0 and 1"
    if not checks.is_number(keep):
        raise checks.type_error("keep", expected, keep)
    if not isinstance(keep, numbers.Integral):
        if not 0 < keep < 1:
            raise checks.value_error("keep", expected, keep)
        return max(1, math.floor(keep * candidates + 0.5))
    count = checks.integer("keep", keep, 1, expected)
    if count > candidates:
        raise checks.value_error("keep", expected, keep)
    return count


def _kept_indices(candidates: int, count: int, position: str) -> list[int]:
    """Indices of the candidates to keep."""
    if position == "first":
        return list(range(count))
    if position == "last":
        return list(range(candidates - count, candidates))
    gaps = max(count - 1, 1)
    # i · (candidates − 1) / gaps, rounded half up in integer arithmetic.
    return [(2 * i * (candidates - 1) + gaps) // (2 * gaps) for i in range(count)]


def _candidates(found: list[Found], granularity: Any) -> Candidates:
    """Candidate → its blocks, in the order of the data flow."""
    removable = [item for item in found if item.block.removable]
    if not removable:
        reasons = [f"{item.block.name}: {item.block.reason}" for item in found]
        raise ValueError(
            "`model`: expected a model with blocks that can be removed, received one without. "
            f"{'; '.join(reasons[:4]) or 'It has no residual sum'}."
        )
    if callable(granularity):
        return _by_function(removable, granularity)
    if granularity is None or (isinstance(granularity, str) and granularity == "layer"):
        blocks = _disjoint(removable)
        if granularity is None:
            return {item.block.name: [item] for item in blocks}
        return _by_function(blocks, lambda name: name.rpartition("_")[0] or name)
    return _by_patterns(removable, granularity)


def _disjoint(removable: list[Found]) -> list[Found]:
    """Outermost blocks, which share no layer; enters a nested model that holds all others."""
    for item in removable:
        others = [other for other in removable if other is not item]
        several = any(not a.overlaps(b) for a in others for b in others)
        is_model = item.block.layers == (item.block.name,)
        if is_model and several and all(_holds(item, other) for other in others):
            return _disjoint(others)
    return [
        item
        for item in removable
        if not any(_holds(other, item) for other in removable if other is not item)
    ]


def _holds(outer: Found, inner: Found) -> bool:
    return all(any(a.holds(b) for a in outer.segments) for b in inner.segments)


def _by_function(blocks: list[Found], name_of: Callable[[str], str | None]) -> Candidates:
    expected = "a function that returns names or None"
    grouped: Candidates = {}
    for item in blocks:
        name = name_of(item.block.name)
        if name is not None:
            checks.instance("granularity", name, str, expected)
            grouped.setdefault(name, []).append(item)
    if not grouped:
        expected = "a function that returns a name for at least one block"
        fix = checks.listing([item.block.name for item in blocks])
        raise checks.value_error("granularity", expected, name_of, fix)
    return _checked_disjoint(grouped)


def _by_patterns(removable: list[Found], granularity: Any) -> Candidates:
    expected = 'None, "layer", patterns of block names, or a function of block names'
    patterns = [granularity] if isinstance(granularity, str) else granularity
    if not isinstance(patterns, Iterable) or isinstance(patterns, (bytes, dict)):
        raise checks.type_error("granularity", expected, granularity)
    grouped: Candidates = {}
    names = [item.block.name for item in removable]
    for pattern in patterns:
        checks.instance("granularity", pattern, str, expected)
        fits = paths.fitting(pattern, names, inside=False)
        if not fits:
            expected = "a pattern that matches removable blocks"
            raise paths.unmatched("granularity", expected, pattern, names)
        grouped[pattern] = [item for item in removable if item.block.name in fits]
    if not grouped:
        raise checks.value_error("granularity", "at least one pattern", granularity)
    place = {name: number for number, name in enumerate(names)}
    order = sorted(grouped, key=lambda name: place[grouped[name][0].block.name])
    return _checked_disjoint({name: grouped[name] for name in order})


def _checked_disjoint(grouped: Candidates) -> Candidates:
    """Raises if two candidates share a layer."""
    pairs = [(name, item) for name, items in grouped.items() for item in items]
    for index, (name, item) in enumerate(pairs):
        for other, second in pairs[index + 1 :]:
            if item.overlaps(second) and other != name:
                raise ValueError(
                    "`granularity`: expected candidates that share no layer, received "
                    f"{item.block.name!r} in {name!r} and {second.block.name!r} in {other!r}. "
                    "Assign each block to one candidate, or to None to leave it out."
                )
    return grouped
