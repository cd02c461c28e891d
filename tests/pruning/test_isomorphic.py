"""Isomorphic ranking: which groups are alike, and plans whose classes lose the same fraction."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

from tfkd import models, pruning
from tfkd.pruning import isomorphic

L = keras.layers


def scaled(model, seed=0):
    """Filters whose norms differ between layers as well as within each."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, (L.Conv2D, L.Dense)):
            kernel, *bias = layer.get_weights()
            spread = rng.uniform(0.1, 1) * rng.random(kernel.shape[-1]) ** rng.uniform(0.2, 3)
            layer.set_weights([kernel * spread, *bias])
    return model


def inner(names, number):
    return [name for name in names if name.endswith(f"_{number}_conv")]


def test_inner_convolutions_of_all_stages_are_alike():
    graph = pruning.analyse(models.resnet(14))
    found = isomorphic.classes(graph, lambda group: False)
    names = [group.name for group in graph.groups]
    keys = dict(zip(names, found, strict=True))
    blocks = inner(names, 1)
    assert len(blocks) == 6 and len({keys[name] for name in blocks}) == 1
    # The channels of a stage belong to other layers, and those of the first one to its input.
    others = [keys[group.name] for group in graph.groups if group.residual]
    assert others and keys[blocks[0]] not in others


def test_depthwise_expansions_differ_from_dense_convolutions():
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(8, 1, name="dense1")(x)
    y = L.Conv2D(8, 1, name="expand1")(y)
    y = L.DepthwiseConv2D(3, name="depth1")(y)
    y = L.Conv2D(12, 1, name="expand2")(y)
    y = L.DepthwiseConv2D(3, name="depth2")(y)
    y = L.Conv2D(4, 1, name="last")(y)
    graph = pruning.analyse(keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y))))
    found = isomorphic.classes(graph, lambda group: False)
    keys = {group.name: key for group, key in zip(graph.groups, found, strict=True)}
    assert keys["expand1"] == keys["expand2"]
    assert len({keys["dense1"], keys["expand1"], keys["last"]}) == 3


def test_a_group_that_is_left_alone_is_like_no_other():
    graph = pruning.analyse(models.resnet(8))
    found = isomorphic.classes(graph, lambda group: group.name == "stage1_block1_1_conv")
    names = [group.name for group in graph.groups]
    one, two, three = (found[names.index(f"stage{n}_block1_1_conv")] for n in (1, 2, 3))
    assert one != two == three


def ranks(scores):
    """The share of a class that scores no higher, by counting."""
    return [[np.mean(np.concatenate(scores) <= value) for value in one] for one in scores]


def test_quantiles_are_shares_of_the_class():
    rng = np.random.default_rng(0)
    scores = [np.sort(rng.random(size)) for size in (4, 7, 3, 5)]
    found = isomorphic.quantiles(scores, ["a", "b", "a", "b"])
    expected = [None] * 4
    expected[0], expected[2] = ranks([scores[0], scores[2]])
    expected[1], expected[3] = ranks([scores[1], scores[3]])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other)


def test_each_class_loses_the_same_fraction_by_rank():
    """Two Dense layers of 8 with batch normalization are alike; two of 4 without are alike."""
    x = keras.Input((3,))
    y = x
    for number in range(2):
        y = L.Dense(8, name=f"norm{number}")(y)
        y = L.ReLU()(L.BatchNormalization()(y))
    for number in range(2):
        y = L.Dense(4, "relu", name=f"plain{number}")(y)
    model = scaled(keras.Model(x, L.Dense(2)(y)))
    plan = pruning.plan(model, filter_rate=0.5, scope="isomorphic")
    counts = plan.remove
    classes = isomorphic.classes(plan.graph, plan.left_alone)
    assert classes[0] == classes[1] != classes[2] == classes[3]
    norms = {
        name: np.linalg.norm(model.get_layer(name).kernel, axis=0)
        for name in ("norm0", "norm1", "plain0", "plain1")
    }
    shares = {n: norms[n] / norms[n].mean() for n in norms}
    for key in dict.fromkeys(classes):
        names = [g.name for g, k in zip(plan.graph.groups, classes, strict=True) if k == key]
        together = np.concatenate([shares[name] for name in names])
        removed = sum(counts[name] for name in names)
        assert removed == len(together) // 2
        lowest = np.sort(together)[removed - 1]
        assert [counts[n] for n in names] == [int((shares[n] <= lowest).sum()) for n in names]


@pytest.mark.parametrize("criterion", ["l2", "batch_norm"])
def test_plan_meets_its_target_and_is_minimal(criterion):
    model = scaled(models.resnet(8))
    plan = pruning.plan(model, macs_reduction=0.4, scope="isomorphic", criterion=criterion)
    graph = plan.graph
    assert plan.macs_reduction >= 0.4
    inner_counts = {name: count for name, count in plan.remove.items() if count}
    for name in inner_counts:
        removed = np.zeros(graph.units, bool)
        for group in graph.groups:
            removed[group.units[: plan.remove[group.name] - (group.name == name)]] = True
        assert (plan.macs_before - graph.macs(removed)) / plan.macs_before < 0.4
    small = pruning.shrink(model, pruning.select(model, plan))
    assert small.get_layer(name).filters == graph.group(name).size - plan.remove[name]
