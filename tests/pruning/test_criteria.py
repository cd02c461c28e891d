"""Scores against NumPy: by layer, over coupled layers, with bad weights and bad callables."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tf_keras as keras

from tfkd.networks.call_graph import CallGraph
from tfkd.pruning import analyse, criteria
from tfkd.pruning.graph import KEPT, Graph, Group, WeightAxis

L = keras.layers


def chain(seed=0, bn=True):
    """conv1 (6 filters) → BN → ReLU → conv2 (4, no BN) → dense "head"."""
    x = keras.Input((5, 5, 2))
    y = L.Conv2D(6, 3, name="conv1")(x)
    if bn:
        y = L.BatchNormalization(name="bn1")(y)
    y = L.Conv2D(4, 3, name="conv2")(L.ReLU()(y))
    y = L.GlobalAveragePooling2D()(L.ReLU()(y))
    return randomized(keras.Model(x, L.Dense(3, name="head")(y)), seed)


def summed(seed=0):
    """conv_a + conv_b (5 filters each) → ReLU → dense "head"."""
    x = keras.Input((4, 4, 2))
    y = L.Conv2D(5, 3, padding="same", name="conv_a")(x)
    y = L.Add()([y, L.Conv2D(5, 1, name="conv_b")(x)])
    y = L.GlobalAveragePooling2D()(L.ReLU()(y))
    return randomized(keras.Model(x, L.Dense(3, name="head")(y)), seed)


def randomized(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def rows(model, layer):
    """Filters of a layer as rows, in float64."""
    kernel = model.get_layer(layer).kernel.numpy().astype(np.float64)
    return np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)


def distances(filters):
    return np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])


BY_HAND = {
    "l1": lambda filters: np.abs(filters).sum(1),
    "l2": lambda filters: np.sqrt((filters**2).sum(1)),
    "geometric_median": distances,
}


def dense_graph(units, seed=0, width=None):
    """A Dense layer "hidden" whose outputs belong to `units` as a test says."""
    units = np.array(units)
    x = keras.Input((3,))
    y = L.Dense(width or len(units), name="hidden")(x)
    model = randomized(keras.Model(x, y), seed)
    numbers = np.unique(units[units != KEPT])
    group = Group("hidden", numbers, ("hidden",), False)
    axis = WeightAxis("hidden", "kernel", 1, units, True, True)
    return Graph(CallGraph(model), [group], [], [axis], [], [], len(numbers))


@pytest.mark.parametrize("criterion", list(BY_HAND))
def test_scores_of_one_layer_are_numpys_divided_by_their_mean(criterion):
    model = chain()
    graph = analyse(model)
    scores = criteria.scores(graph, criterion)
    assert scores.shape == (10,) and scores.dtype == np.float64
    for name in ("conv1", "conv2"):
        expected = BY_HAND[criterion](rows(model, name))
        found = scores[graph.group(name).units]
        np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("criterion", list(BY_HAND))
def test_layers_of_a_coupled_group_count_alike_whatever_their_size(criterion):
    model = summed()
    before = criteria.scores(analyse(model), criterion)
    parts = [BY_HAND[criterion](rows(model, name)) for name in ("conv_a", "conv_b")]
    expected = np.mean([part / part.mean() for part in parts], axis=0)
    np.testing.assert_allclose(before, expected, rtol=1e-5)
    kernel = model.get_layer("conv_b").kernel
    kernel.assign(1000 * kernel)
    np.testing.assert_allclose(criteria.scores(analyse(model), criterion), before, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, criteria.ROWS, criteria.ROWS + 1, 300])
def test_geometric_median_is_the_sum_of_distances_for_any_number_of_filters(count):
    filters = np.random.default_rng(count).normal(3, 1, size=(count, 4))
    np.testing.assert_allclose(criteria.geometric_median(filters), distances(filters), atol=1e-9)


def test_geometric_median_of_equal_filters_is_zero():
    filters = np.full((5, 9), 7.25, np.float32)
    np.testing.assert_array_equal(criteria.geometric_median(filters), np.zeros(5))


@pytest.mark.parametrize("criterion", list(BY_HAND))
def test_indices_of_one_unit_are_judged_as_one_filter(criterion):
    graph = dense_graph([0, 1, 2, 0, 1, 2])
    kernel = graph.model.get_layer("hidden").kernel.numpy().astype(np.float64)
    joined = np.concatenate([kernel[:, :3], kernel[:, 3:]]).T  # (3 units, 2 · 3 weights)
    expected = BY_HAND[criterion](joined)
    found = criteria.scores(graph, criterion)
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-5)


def test_kept_filters_have_no_part_in_the_scores():
    graph = dense_graph([KEPT, 0, 1, KEPT])
    kernel = graph.model.get_layer("hidden").kernel
    expected = np.abs(kernel.numpy()[:, 1:3]).sum(0)
    found = criteria.scores(graph, "l1")
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)


def test_batch_norm_takes_the_size_of_gamma_and_l2_where_there_is_none():
    model = chain()
    model.get_layer("bn1").gamma.assign([-4.0, 1.0, 2.0, 0.0, 1.0, 4.0])
    graph = analyse(model)
    with pytest.warns(UserWarning, match="conv2") as caught:
        scores = criteria.scores(graph, "batch_norm")
    assert len(caught) == 1 and "conv1" not in str(caught[0].message)
    np.testing.assert_allclose(scores[graph.group("conv1").units], [2, 0.5, 1, 0, 0.5, 2])
    np.testing.assert_array_equal(
        scores[graph.group("conv2").units],
        criteria.scores(graph, "l2")[graph.group("conv2").units],
    )


def test_batch_norm_averages_over_the_batch_norms_of_a_group():
    x = keras.Input((4, 4, 2))
    first = L.BatchNormalization(name="a")(L.Conv2D(2, 1, name="conv_a")(x))
    second = L.BatchNormalization(name="b")(L.Conv2D(2, 1, name="conv_b")(x))
    y = L.GlobalAveragePooling2D()(L.Add()([first, second]))
    model = keras.Model(x, L.Dense(2)(y))
    model.get_layer("a").gamma.assign([1.0, 3.0])
    model.get_layer("b").gamma.assign([30.0, 10.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = criteria.scores(analyse(model), "batch_norm")
    np.testing.assert_allclose(scores, [(0.5 + 1.5) / 2, (1.5 + 0.5) / 2])


def test_gamma_of_another_normalization_is_not_a_batch_norms():
    x = keras.Input((3,))
    y = L.LayerNormalization(name="norm")(L.Dense(2, name="hidden")(x))
    model = randomized(keras.Model(x, y), 0)
    units = np.arange(2)
    axes = [
        WeightAxis("hidden", "kernel", 1, units, True, True),
        WeightAxis("norm", "gamma", 0, units, True),
    ]
    graph = Graph(
        CallGraph(model), [Group("hidden", units, ("hidden",), False)], [], axes, [], [], 2
    )
    with pytest.warns(UserWarning, match="hidden"):
        scores = criteria.scores(graph, "batch_norm")
    np.testing.assert_array_equal(scores, criteria.scores(graph, "l2"))


def test_random_depends_on_the_seed_alone():
    first, other = analyse(chain(seed=0)), analyse(chain(seed=1))
    scores = criteria.scores(first, "random", seed=3)
    np.testing.assert_array_equal(scores, criteria.scores(other, "random", seed=3))
    assert np.abs(scores - criteria.scores(first, "random", seed=4)).max() > 0.01
    assert len(set(scores.tolist())) == first.units


def test_a_callable_gets_the_filters_as_rows():
    model = chain()
    graph = analyse(model)
    seen = []

    def largest(filters):
        seen.append(filters)
        return np.abs(filters).max(axis=1)

    scores = criteria.scores(graph, largest)
    np.testing.assert_array_equal(seen[0], rows(model, "conv1").astype(np.float32))
    np.testing.assert_array_equal(seen[1], rows(model, "conv2").astype(np.float32))
    expected = np.abs(rows(model, "conv2")).max(1)
    np.testing.assert_allclose(
        scores[graph.group("conv2").units], expected / expected.mean(), rtol=1e-6
    )


def test_negative_scores_of_a_callable_keep_their_order():
    graph = dense_graph([0, 1, 2, 3])
    scores = criteria.scores(graph, lambda filters: np.array([-4.0, -1.0, -2.0, -3.0]))
    np.testing.assert_array_equal(np.argsort(scores), [0, 3, 2, 1])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros(3), r"shape \(4,\)"),
        (np.zeros((4, 1)), r"shape \(4,\)"),
        (1.0, r"shape \(4,\)"),
        (np.array([0, 1, np.nan, 2]), "finite scores"),
    ],
)
def test_a_callable_must_return_one_finite_number_for_each_filter(result, message):
    with pytest.raises(ValueError, match=f"criterion.*{message}.*hidden"):
        criteria.scores(dense_graph([0, 1, 2, 3]), lambda filters: result)


@pytest.mark.parametrize("criterion", [*criteria.NAMES, criteria.l1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(criterion, value):
    model = chain()
    kernel = model.get_layer("conv2").kernel.numpy()
    kernel[0, 0, 0, 1] = value
    model.get_layer("conv2").kernel.assign(kernel)
    with pytest.raises(ValueError, match="NaN or infinity in kernel of layer 'conv2'"):
        criteria.scores(analyse(model), criterion)


@pytest.mark.filterwarnings("ignore:criterion")
def test_gammas_that_are_not_finite_are_an_error_where_they_are_used():
    model = chain()
    model.get_layer("bn1").gamma.assign([1, 1, np.nan, 1, 1, 1])
    with pytest.raises(ValueError, match="gamma of layer 'bn1'"):
        criteria.scores(analyse(model), "batch_norm")


@pytest.mark.parametrize("criterion", [*BY_HAND, "batch_norm"])
@pytest.mark.filterwarnings("ignore:criterion")
def test_zero_filters_score_zero_and_divide_by_nothing(criterion):
    model = chain()
    for variable in model.variables:
        variable.assign(np.zeros(variable.shape))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(criteria.scores(analyse(model), criterion), np.zeros(10))


def test_some_zero_filters_are_the_lowest():
    model = chain()
    kernel = model.get_layer("conv1").kernel.numpy()
    kernel[..., [1, 4]] = 0
    model.get_layer("conv1").kernel.assign(kernel)
    graph = analyse(model)
    scores = criteria.scores(graph, "l2")[graph.group("conv1").units]
    assert set(np.argsort(scores)[:2]) == {1, 4}
    assert (scores[[1, 4]] == 0).all()


def test_names_are_checked_with_near_matches():
    graph = analyse(chain())
    with pytest.raises(ValueError, match="Did you mean 'geometric_median'"):
        criteria.scores(graph, "geometric_mean")
    with pytest.raises(ValueError, match="'l1', 'l2'"):
        criteria.scores(graph, "taylor")
    with pytest.raises(TypeError, match="criterion.*callable"):
        criteria.scores(graph, 2)
    with pytest.raises(ValueError, match="seed"):
        criteria.scores(graph, "random", seed=-1)


def test_scores_change_no_weight():
    model = chain()
    before = [v.numpy() for v in model.variables]
    for criterion in BY_HAND:
        criteria.scores(analyse(model), criterion)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
