"""Isomorphic ranking: units are ranked among the groups of the same substructure only.

See Fang et al. 2024, Isomorphic Pruning (https://arxiv.org/abs/2407.04616): scores of unlike
structures, such as depthwise and dense convolutions, are distributed differently, so that a
ranking of all would remove nearly all units of one kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from tfkd.networks.paths import layers_by_path
from tfkd.pruning.criteria import by_group
from tfkd.pruning.graph import Graph, Group, WeightAxis


def classes(graph: Graph, left_alone: Callable[[Group], object]) -> list[Hashable]:
    """A key for each group, equal for groups of the same substructure.

    The substructure is the set of weights whose slices a unit owns, as producer or as reader:
    the types of their layers, their kernel sizes and the axes, whatever the widths.

    Args:
        graph: the model's graph.
        left_alone: whether a group is not pruned; such a group is like no other.
    """

    layers = layers_by_path(graph.model)

    def sign(axis: WeightAxis) -> tuple[str, ...]:
        layer = layers[axis.layer]
        size = str(getattr(layer, "kernel_size", ""))
        return type(layer).__name__, size, axis.weight, str(axis.axis), str(axis.zeroed)

    owned = by_group(graph, graph.axes)
    return [
        group.name if left_alone(group) else tuple(sorted(map(sign, owned[index])))
        for index, group in enumerate(graph.groups)
    ]


def quantiles(ranked: Sequence[np.ndarray], classes: Sequence[Hashable]) -> list[np.ndarray]:
    """Replaces each score by its quantile among all groups of its class, in (0, 1].

    If the units of the lowest quantiles are removed, each class loses the same fraction.

    Args:
        ranked: scores of each group's units, ascending.
        classes: a key for each group.

    Example:
        >>> found = quantiles([[1.0, 4.0], [2.0, 3.0], [9.0, 9.5]], ["a", "a", "b"])
        >>> [one.tolist() for one in found]
        [[0.25, 1.0], [0.5, 0.75], [0.5, 1.0]]
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(classes):
        members[key].append(index)
    found = [np.zeros(0)] * len(ranked)
    for indices in members.values():
        together = np.concatenate([ranked[index] for index in indices])
        places = np.empty(len(together))
        places[np.argsort(together, kind="stable")] = np.arange(1, len(together) + 1)
        ends = np.cumsum([len(ranked[index]) for index in indices])[:-1]
        for index, part in zip(indices, np.split(places / len(together), ends), strict=True):
            found[index] = part
    return found
