"""How much each unit is worth: one score a unit, by which the least go first.

A criterion looks at the filters of one layer as rows of a matrix, and gives one
number a row. A unit that several layers make has one number from each; they are
divided by the layer's mean first, so that a layer with large weights does not
outvote the others, and then averaged.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from tfkd import checks
from tfkd.networks.paths import layers_by_path
from tfkd.pruning.graph import KEPT, Graph, WeightAxis

ROWS = 128  # filters whose distances are taken at once
FilterScores = Callable[[np.ndarray], np.ndarray]


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

    The filter nearest to the geometric median of all says least that the others
    do not say: it has the lowest sum.

    Example:
        >>> import numpy as np
        >>> geometric_median(np.array([[0.0], [1.0], [5.0]])).tolist()
        [6.0, 5.0, 9.0]
    """
    # |a − b|² = |a|² + |b|² − 2ab; around their mean, so that less cancels. Some
    # rows at a time: all distances of a wide layer do not fit in a cache.
    centred = filters - filters.mean(axis=0)
    squares = np.einsum("nd,nd->n", centred, centred)
    turned = -2 * centred.T
    sums = np.zeros(len(filters))
    for start in range(0, len(filters), ROWS):
        rows = np.arange(start, min(start + ROWS, len(filters)))
        distances = centred[rows] @ turned
        distances += squares
        distances += squares[rows, None]
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        distances[rows - start, rows] = 0
        sums[rows] = distances.sum(axis=1, dtype=np.float64)
    return sums


FILTERS: dict[str, FilterScores] = {"l1": l1, "l2": l2, "geometric_median": geometric_median}
NAMES = (*FILTERS, "batch_norm", "random")


def known(criterion: Any) -> Any:
    """Accepts the name of a criterion, or a callable.

    Raises:
        TypeError: if it is neither a string nor a callable.
        ValueError: if there is no criterion of that name.
    """
    if callable(criterion):
        return criterion
    names = ", ".join(repr(name) for name in NAMES)
    expected = f"one of {names}, or a callable (units, weights) → (units,)"
    checks.instance("criterion", criterion, str, expected)
    if criterion not in NAMES:
        raise checks.value_error("criterion", expected, criterion, checks.near(criterion, NAMES))
    return criterion


def scores(graph: Graph, criterion: str | FilterScores = "l2", seed: int = 0) -> np.ndarray:
    """Scores every unit of a model by its current weights.

    Args:
        graph: of the model, from `analyse`.
        criterion: "l1" or "l2", the norm of the filter; "geometric_median", the
            sum of its distances to the layer's other filters of the group; "batch_norm",
            |gamma| of the batch normalizations behind it ("l2" for a group
            that has none, with a warning); "random", a control; or a callable
            that gets the filters of one layer, a float array (units, weights),
            and returns one score for each.
        seed: of "random"; the others do not draw.

    Returns:
        Float array (U,): the higher, the more a unit is worth. 1 is the mean of
        the unit's group (0 where all weights are zero; for "random", 0.5).

    Raises:
        TypeError, ValueError: if the criterion is not known, or a callable
            returns something else than finite numbers of shape (units,).
        ValueError: if weights are NaN or infinite; the layer is named.

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
    filters = _axes(graph, [axis for axis in graph.axes if axis.scored])
    for axis in {id(a): a for axes in filters.values() for a in axes}.values():
        _weights(graph, axis)  # raises on NaN, whatever the criterion
    if criterion == "random":
        return np.random.default_rng(seed).random(graph.units)
    function = FILTERS.get(criterion, l2) if isinstance(criterion, str) else criterion
    gammas = _axes(graph, _gammas(graph)) if criterion == "batch_norm" else {}
    if criterion == "batch_norm":
        _warn_without(graph, gammas)
    total, count = np.zeros(graph.units), np.zeros(graph.units)
    for index, group in enumerate(graph.groups):
        judge, axes = (l1, gammas[index]) if index in gammas else (function, filters[index])
        for axis in axes:
            units, rows = _filters(axis, _weights(graph, axis), group.units)
            total[units] += normalised(_checked(judge(rows), len(units), axis))
            count[units] += 1
    # A unit without filters of its own is as good as the mean.
    return np.where(count > 0, total / np.maximum(count, 1), 1.0)


def normalised(values: np.ndarray) -> np.ndarray:
    """Divides scores by the mean of their sizes; zeros stay zeros."""
    mean = np.abs(values).mean() if len(values) else 0.0
    return values / mean if mean > 0 else values


def _axes(graph: Graph, axes: list[WeightAxis]) -> dict[int, list[WeightAxis]]:
    """Index of a group → those of the axes that its units own."""
    owner = np.full(graph.units, -1)
    for index, group in enumerate(graph.groups):
        owner[group.units] = index
    found: dict[int, list[WeightAxis]] = defaultdict(list)
    for axis in axes:
        for index in np.unique(owner[axis.units[axis.units != KEPT]]).tolist():
            found[index].append(axis)
    return found


def _gammas(graph: Graph) -> list[WeightAxis]:
    """The gammas of batch normalizations: other normalizations have no moving statistics."""
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
        warnings.warn(
            'criterion "batch_norm": these groups have no batch normalization with a gamma, and '
            f'are scored by "l2": {shown}.',
            stacklevel=3,
        )


def _weights(graph: Graph, axis: WeightAxis) -> np.ndarray:
    """The weight of an axis, in float32 or float64; ValueError if it is not finite."""
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

    Where a unit has several indices on the axis, as many as the others of its
    group, their slices stand side by side in its row.
    """
    index = np.flatnonzero(np.isin(axis.units, group))
    index = index[np.argsort(axis.units[index], kind="stable")]
    units = np.unique(axis.units[index])
    rows = np.moveaxis(values, axis.axis, 0)[index]
    return units, rows.reshape(len(units), -1)


def _checked(result: Any, count: int, axis: WeightAxis) -> np.ndarray:
    """Accepts what a criterion returned: finite numbers, one for each filter."""
    result = np.asarray(result, np.float64)
    if result.shape != (count,):
        expected = f"a callable that returns shape ({count},) for the filters of {axis.layer!r}"
        raise checks.value_error("criterion", expected, result)
    if not np.isfinite(result).all():
        expected = f"a callable that returns finite scores for the filters of {axis.layer!r}"
        raise checks.value_error("criterion", expected, result)
    return result
