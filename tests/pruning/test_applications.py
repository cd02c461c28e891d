"""Networks that nobody here wrote: what is shrunk computes what the masked network computes.

`benchmarks/prune_applications.py` does the same for all families of
`tf_keras.applications`; these are small ones that differ most in their layers.
"""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from tfkd import pruning

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def nets(monkeypatch):
    """The checks of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import application_nets

    yield application_nets
    keras.backend.clear_session()


@pytest.mark.parametrize(
    "name, share",
    [
        ("MobileNetV3Small", 0.99),  # depthwise, squeeze-excite, hard-swish as operations
        # Grouped convolutions; layer normalizations and nested models.
        pytest.param("RegNetX002", 0.99, marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", 0.7, marks=pytest.mark.slow),
    ],
)
def test_shrunk_equals_masked(nets, name, share):
    record = nets.check(name)
    assert record["failures"] == []
    assert record["difference"] <= 1e-4
    assert min(record["variation"]) >= 0.2
    filters, all_filters = record["filters"]
    assert share <= filters / all_filters < 1
    # 30 % of all inputs and outputs: about half of the multiply-accumulates.
    before, after = record["macs"]
    assert 0.4 < after / before < (0.6 if share > 0.9 else 0.8)
    # All that the head and, in ConvNeXt, the layer normalizations keep has a reason.
    assert record["frozen"]["output of the model"] == 10
    assert (sum(record["frozen"].values()) == 10) == (name != "ConvNeXtTiny")


@pytest.fixture(scope="module")
def model():
    """A separable convolution, a depthwise one with bias, and batch normalizations."""
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(6, 3, name="a")(x)
    y = keras.layers.BatchNormalization(name="a_bn")(y)
    y = keras.layers.ReLU(name="relu")(y)
    y = keras.layers.DepthwiseConv2D(3, name="depth")(y)
    y = keras.layers.BatchNormalization(name="depth_bn")(y)
    y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(x, keras.layers.Dense(10, name="head")(y))


def test_the_mask_of_the_benchmark_is_what_a_reader_would_zero(nets, model):
    """By hand: filters 1 and 4 of `a`, and all that follows from them up to the head."""
    nets.randomize(model, 0)
    graph = pruning.analyse(model)
    removed = np.isin(np.arange(graph.units), graph.group("a").units[[1, 4]])
    before = {w.name: w.numpy() for w in model.weights}
    nets.mask(model, graph, removed)
    expected = {"a/kernel:0", "a/bias:0", "a_bn/gamma:0", "a_bn/beta:0", "depth/bias:0"}
    expected |= {"depth_bn/gamma:0", "depth_bn/beta:0"}
    for weight in model.weights:
        zero = before[weight.name].copy()
        if weight.name in expected:
            assert np.count_nonzero(zero) == zero.size or "bias" in weight.name
            zero[..., [1, 4]] = 0
        np.testing.assert_array_equal(weight.numpy(), zero, weight.name)


def tiny(name):
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(8, 3, name="a")(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="a_bn")(y))
    y = keras.layers.Conv2D(8, 3, name="b")(y)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization(name="b_bn")(y))
    return keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(y)))


@pytest.fixture
def of_tiny(nets, monkeypatch):
    """The record of a tiny network, of which a third of the filters are the head's."""
    monkeypatch.setattr(nets, "build", tiny)
    return lambda name="ConvNeXtTiny", **options: nets.check(name, **options)


def test_a_network_that_ignores_its_input_is_called_blind(nets, of_tiny, monkeypatch):
    assert of_tiny()["failures"] == []
    monkeypatch.setattr(nets, "images", lambda model, seed: np.ones((4, 8, 8, 3), "float32"))
    assert of_tiny()["failures"] == ["blind: outputs hardly depend on the input"]


def test_a_network_of_which_little_can_be_pruned_is_named(of_tiny):
    assert of_tiny("VGG16")["failures"] == ["too few filters can be pruned"]


def test_an_inexact_shrink_is_found(of_tiny, monkeypatch):
    """A beta that is 1 % of a gamma off, in the cut model's last batch normalization."""
    shrink = pruning.shrink

    def inexact(*args, **kwargs):
        small = shrink(*args, **kwargs)
        small.get_layer("b_bn").beta.assign_add([0.01] * small.get_layer("b").filters)
        return small

    monkeypatch.setattr(pruning, "shrink", inexact)
    assert of_tiny()["failures"] == ["shrunk differs from masked"]


def test_a_record_has_times_that_the_table_and_the_plot_show(of_tiny, tmp_path):
    pytest.importorskip("matplotlib")
    import prune_applications

    first = of_tiny(timed=True)
    assert first["planned"] >= 0.5 and all(value > 0 for value in first["seconds"].values())
    first = {**first, "seconds": {"analyse": 1, "plan": 2, "shrink": 5}, "layers": 10}
    # Four times the layers, twice the seconds: layers^0.5.
    second = {**first, "name": "ConvNeXtSmall", "layers": 40}
    second["seconds"] = {"analyse": 0, "plan": 0, "shrink": 16}
    text, holds = prune_applications.summary([first, second])
    assert "Longest: 16.0 s (ConvNeXtSmall)" in text and "layers^0.50" in text and holds
    prune_applications.plot([first, second], tmp_path / "seconds.png")
    assert (tmp_path / "seconds.png").read_bytes().startswith(b"\x89PNG")
    slow = {**second, "seconds": {"analyse": 0, "plan": 0, "shrink": 21}}
    assert not prune_applications.summary([first, slow])[1]
    steep = {**first, "seconds": {"analyse": 0, "plan": 0, "shrink": 0.1}}
    assert not prune_applications.summary([steep, second])[1]
    failed = {**first, "failures": ["shrunk differs from masked"]}
    assert not prune_applications.summary([failed, second])[1]


@pytest.mark.slow
def test_speed_counts_the_pruned_networks_and_judges_one_way(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import prune_speed

    from tfkd import models

    monkeypatch.setitem(prune_speed.MODELS, "resnet20", lambda: models.resnet(8))
    monkeypatch.setattr(prune_speed, "WAYS", (("inner", 8), ("coupled", 1)))
    options = types.SimpleNamespace(seed=0, macs_reduction=0.5, rounds=2, repeats=2)
    records = prune_speed.run("resnet20", options)
    assert [record["way"] for record in records] == [
        "whole",
        "inner, round_to=8",
        "coupled, round_to=1",
    ]
    for record in records[1:]:
        assert 0.3 < record["macs_left"] <= 0.5 and len(record["ratios"]) == 2
    assert all(width % 8 == 0 for width in records[1]["widths"])
    assert any(width % 8 for width in records[2]["widths"])

    def judged(ratio):
        record = {**records[1], "ratios": [ratio, ratio]}
        return prune_speed.verdict([records[0], record, records[2]], least=1.6)

    assert judged(1.7)[1] and not judged(1.5)[1]
    assert "1.70 times faster" in judged(1.7)[0]
