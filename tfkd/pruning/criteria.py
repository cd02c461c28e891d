"""Importance scores of prunable units: L1 and L2 norm, geometric median, batch-norm gamma.

Those that need more than the weights, such as `tfkd.pruning.Taylor`, are `GraphScores`.

A criterion takes the filters of one layer as the rows of a matrix and returns one score per
row. A unit that several coupled layers produce has one score from each of them: these are
divided by the layer's mean score, so that a layer with large weights does not dominate, and
then averaged.
"""

from __future__ import annotations

import abc
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from tfkd import checks
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.graph import KEPT, Graph, WeightAxis

ROWS = 128  # filters per chunk of the distance matrix, so that a chunk fits in a cache
FilterScores = Callable[[np.ndarray], np.ndarray]


class GraphScores(abc.ABC):
    """Base class of criteria that score all units of a model at once."""

    @abc.abstractmethod
    def of_graph(self, graph: Graph) -> np.ndarray:
        """Scores of all units (U,), at least 0, which are comparable between groups."""


Criterion: TypeAlias = "str | FilterScores | GraphScores"


def l1(filters: np.ndarray) -> np.ndarray:
    """Sum of absolute weights of each filter: (n, d) → (n,), arXiv:1608.08710.

    Example:
        >>> import numpy as np
        >>> l1(np.array([[3.0, -4.0], [0.0, 1.0]])).tolist()
        [7.0, 1.0]
    """
    return np.abs(filters).sum(axis=1, dtype=np.float64)


def l2(filters: np.ndarray) -> np.ndarray:
    """Euclidean norm of each filter: (n, d) → (n,), arXiv:1808.06866.

    Example:
        >>> import numpy as np
        >>> l2(np.array([[3.0, -4.0], [0.0, 1.0]])).tolist()
        [5.0, 1.0]
    """
    return np.sqrt(np.einsum("nd,nd->n", filters, filters, dtype=np.float64))


def geometric_median(filters: np.ndarray) -> np.ndarray:
    """Sum of each filter's distances to all others: (n, d) → (n,), arXiv:1811.00250.

    The filter closest to the geometric median of all filters has the lowest sum. It is the
    most redundant one: the remaining filters represent it best.

    Example:
        >>> import numpy as np
        >>> geometric_median(np.array([[0.0], [1.0], [5.0]])).tolist()
        [6.0, 5.0, 9.0]
    """
    # |a − b|² = |a|² + |b|² − 2a·b, a matrix product. Filters are centred first because the
    # formula cancels badly in float32 where norms are large and distances small.
    centred = filters - filters.mean(axis=0)
    squares = np.einsum("nd,nd->n", centred, centred)
    doubled = -2 * centred.T
    sums = np.zeros(len(filters))
    for start in range(0, len(filters), ROWS):
        rows = np.arange(start, min(start + ROWS, len(filters)))
        distances = centred[rows] @ doubled
        distances += squares
        distances += squares[rows, None]
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        distances[rows - start, rows] = 0
        sums[rows] = distances.sum(axis=1, dtype=np.float64)
    return sums


FILTERS: dict[str, FilterScores] = {"l1": l1, "l2": l2, "geometric_median": geometric_median}
NAMES = (*FILTERS, "batch_norm", "random")


def known(criterion: Criterion) -> Criterion:
    """Accepts the name of a criterion, a callable, or `GraphScores`.

    Raises:
        TypeError: if it is none of these.
        ValueError: if there is no criterion of that name.
    """
    if isinstance(criterion, GraphScores):
        return criterion
    if callable(criterion) and not isinstance(criterion, type):
        return criterion
    names = ", ".join(repr(name) for name in NAMES)
    expected = f"one of {names}, a callable (units, weights) → (units,), or Taylor(data)"
    checks.instance("criterion", criterion, str, expected)
    if criterion not in NAMES:
        fix = checks.near(criterion, NAMES)
        if criterion == "taylor":
            fix = "It needs examples: pass tfkd.pruning.Taylor((x, y))."
        raise checks.value_error("criterion", expected, criterion, fix)
    return criterion


def scores(graph: Graph, criterion: Criterion = "l2", seed: int = 0) -> np.ndarray:
    """Scores every unit of a model by its current weights.

    Args:
        graph: the model's graph, from `analyse`.
        criterion: "l1" or "l2", the norm of the filter; "geometric_median", the
            sum of its distances to the layer's other filters of the group; "batch_norm",
            |gamma| of the batch normalizations that follow it (network slimming,
            arXiv:1708.06519; "l2" with a warning for a group without one); "random", a
            baseline; a `tfkd.pruning.Taylor`, the change of a loss on examples; or a
            callable that takes the filters of one layer, a float array
            (units, weights), and returns one score per filter.
        seed: seed of "random"; the other criteria are deterministic.

    Returns:
        Float array (U,): the higher the score, the more important the unit. The mean of
        each group is 1 (0 where all weights are zero; 0.5 for "random"); that of `Taylor`
        is 1 over the whole model.

    Raises:
        TypeError, ValueError: if the criterion is not known, or a callable
            returns anything but finite numbers of shape (units,).
        ValueError: if weights are NaN or infinite; the message names the layer.

    Example:
        >>> import tf_keras as keras
        >>> from tfkd import pruning
        >>> x = keras.Input((2,))
        >>> y = keras.layers.Dense(2, "relu", name="hidden")(x)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y))
        >>> model.get_layer("hidden").kernel.assign([[3.0, 0.0], [4.0, 15.0]])
        <tf.Variable ...>
        >>> pruning.criteria.scores(pruning.analyse(model)).tolist()
        [0.5, 1.5]
    """
    known(criterion)
    checks.non_negative_int("seed", seed)
    filters = by_group(graph, [axis for axis in graph.axes if axis.scored])
    for axis in {id(a): a for axes in filters.values() for a in axes}.values():
        _weights(graph, axis)  # raises on NaN, whatever the criterion
    if criterion == "random":
        return np.random.default_rng(seed).random(graph.units)
    if isinstance(criterion, GraphScores):
        return normalised(_checked(criterion.of_graph(graph), graph.units, "all units"))
    function = FILTERS.get(criterion, l2) if isinstance(criterion, str) else criterion
    gammas = by_group(graph, gates(graph)) if criterion == "batch_norm" else {}
    if criterion == "batch_norm":
        _warn_without(graph, gammas)
    total, count = np.zeros(graph.units), np.zeros(graph.units)
    for index, group in enumerate(graph.groups):
        # The L1 norm of a single gamma is |gamma|.
        score, axes = (l1, gammas[index]) if index in gammas else (function, filters[index])
        for axis in axes:
            units, rows = _filters(axis, _weights(graph, axis), group.units)
            name = f"the filters of {axis.layer!r}"
            total[units] += normalised(_checked(score(rows), len(units), name))
            count[units] += 1
    # A unit without filters of its own gets the mean score.
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)


def ranked(graph: Graph, criterion: Criterion, scores: np.ndarray) -> list[np.ndarray]:
    """Scores of each group's units, ascending, made comparable between groups.

    Norms are divided by their mean in each group; `GraphScores` are comparable as they are.

    Args:
        graph: the model's graph.
        criterion: the criterion of the scores.
        scores: float array (U,), from `scores`.
    """
    scale = (lambda values: values) if isinstance(criterion, GraphScores) else normalised
    return [np.sort(scale(scores[group.units])) for group in graph.groups]


def normalised(values: np.ndarray) -> np.ndarray:
    """Divides scores by their mean magnitude; all-zero scores stay zero."""
    mean = np.abs(values).mean() if len(values) else 0.0
    return values / mean if mean > 0 else values


def by_group(graph: Graph, axes: Iterable[WeightAxis]) -> dict[int, list[WeightAxis]]:
    """Index of a group → the axes on which its units own slices."""
    owner = np.full(graph.units, -1)
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
    found: dict[int, list[WeightAxis]] = defaultdict(list)
    for axis in axes:
        for index in np.unique(owner[axis.units[axis.units != KEPT]]).tolist():
            found[index].append(axis)
    return found


def gates(graph: Graph) -> list[WeightAxis]:
    """The gammas of batch normalizations, told from other norms by their moving statistics."""
    layers = layers_by_path(graph.model)
    return [
        axis
        for axis in graph.axes
        if axis.weight == "gamma" and hasattr(layers[axis.layer], "moving_variance")
    ]


def _warn_without(graph: Graph, gammas: dict[int, list[WeightAxis]]) -> None:
    names = [group.name for index, group in enumerate(graph.groups) if index not in gammas]
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        checks.warn(
            'criterion "batch_norm": these groups have no batch normalization with a gamma, and '
            f'are scored by "l2" instead: {shown}.'
        )


def _weights(graph: Graph, axis: WeightAxis) -> np.ndarray:
    """The weight that an axis belongs to, as float32 or float64; raises if it is not finite."""
    values = graph.variable(axis.layer, axis.weight).numpy()
    if values.dtype != np.float64:
        values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ValueError(
            f"`model`: expected finite weights, received NaN or infinity in {axis.weight} of layer "
            f"{axis.layer!r}. Load weights from before the training diverged."
        )
    return values


def _filters(
    axis: WeightAxis, values: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The units of a group on an axis, sorted, and their filters as rows (units, weights).

    Where a unit owns several indices of the axis (all units of a group own equally many),
    their slices are concatenated in its row.
    """
    index = np.flatnonzero(np.isin(axis.units, group))
    index = index[np.argsort(axis.units[index], kind="stable")]
    units = np.unique(axis.units[index])
    return units, np.moveaxis(values, axis.axis, 0)[index].reshape(len(units), -1)


def _checked(result: Any, count: int, what: str) -> np.ndarray:
    """Accepts the result of a criterion: one finite number for each of `what`."""
    result = np.asarray(result, np.float64)
    if result.shape != (count,):
        expected = f"a callable that returns shape ({count},) for {what}"
        raise checks.value_error("criterion", expected, result)
    if not np.isfinite(result).all():
        expected = f"a callable that returns finite scores for {what}"
        raise checks.value_error("criterion", expected, result)
    return result
