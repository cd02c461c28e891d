"""Plans by time: a budget is met within 10 % below, or refused with the least that is possible.

Times come from formulas here; tests/report/test_layer_times.py has measured ones.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import pruning
from tfkd.pruning import time_budget
from tfkd.pruning.timing import Clock

L = keras.layers
CASES = settings(deadline=None, max_examples=60)


def tiles(channels, tile):
    return math.ceil(channels / tile) * tile


class Formula:
    """A chain of layers, each from one group to the next; kernels that compute tiles of outputs.

    The whole takes `overhead` milliseconds and `factor` times the sum of the layers.
    """

    def __init__(self, sizes, costs, tile=8, overhead=0.0, factor=1.0):
        self.sizes, self.costs, self.tile = np.array(sizes), costs, tile
        self.overhead, self.factor, self.wholes = overhead, factor, []

    def layers(self, counts):
        ends = [3, *(self.sizes - counts).tolist(), 10]
        pairs = zip(self.costs, itertools.pairwise(ends), strict=True)
        return [cost * a * tiles(b, self.tile) / 1e3 for cost, (a, b) in pairs]

    def total(self, counts):
        return sum(self.layers(counts))

    def around(self, group, counts):
        return sum(self.layers(counts)[group : group + 2])

    def whole(self, counts):
        self.wholes.append(counts.copy())
        return self.overhead + self.factor * self.total(counts)


@st.composite
def problems(draw):
    count = draw(st.integers(3, 6))
    sizes = draw(st.lists(st.sampled_from([64, 96, 128, 256]), min_size=count, max_size=count))
    costs = draw(st.lists(st.floats(0.5, 4.0), min_size=count + 1, max_size=count + 1))
    overhead, factor = draw(st.floats(0, 20.0)), draw(st.floats(0.6, 1.5))
    clock = Formula(sizes, costs, draw(st.sampled_from([1, 4, 8, 16])), overhead, factor)
    seed = draw(st.integers(0, 99))
    return clock, [np.sort(np.random.default_rng(seed).random(size)) for size in sizes]


@CASES
@given(problems(), st.floats(0.02, 0.98))
def test_a_budget_is_met_within_ten_percent_or_refused_with_the_least(problem, part):
    clock, ranked = problem
    allowed = [time_budget.levels(size, None, 1) for size in clock.sizes.tolist()]
    narrowest = clock.whole(np.array([level[-1] for level in allowed]))
    before = clock.whole(0 * clock.sizes)
    budget = part * before
    try:
        found = time_budget.fit(clock, allowed, ranked, budget)
    except time_budget.Unreachable as error:
        assert error.least == pytest.approx(narrowest) and narrowest > budget
        assert error.before == before
        return
    assert narrowest <= budget
    assert found.before == before and found.after == clock.whole(found.counts) <= budget
    assert all(c in level for c, level in zip(found.counts, allowed, strict=True))
    if found.after < 0.9 * budget:  # no step of one group leads nearer
        for group, level in enumerate(allowed):
            wider = found.counts.copy()
            wider[group] = level[max(np.searchsorted(level, wider[group]) - 1, 0)]
            again = clock.whole(wider)
            assert again > budget or again == found.after


@settings(deadline=None, max_examples=20)
@given(problems(), st.floats(0.3, 0.9))
def test_the_time_that_a_budget_leaves_is_used(problem, part):
    clock, ranked = problem
    clock.tile, clock.overhead = 1, 0.0
    allowed = [np.arange(size) for size in clock.sizes.tolist()]
    budget = part * clock.whole(0 * clock.sizes)
    found = time_budget.fit(clock, allowed, ranked, budget)
    assert 0.97 * budget <= found.after <= 0.98 * budget


@settings(deadline=None, max_examples=20)
@given(problems(), st.floats(0.3, 0.9))
def test_widths_that_are_no_faster_are_not_taken(problem, part):
    clock, ranked = problem
    clock.tile = 8
    allowed = [np.arange(size) for size in clock.sizes.tolist()]  # every width from all to one
    # Costs of inputs do not matter here: every width is a step of its own then.
    clock.layers = lambda counts: [
        cost * tiles(width, 8)
        for cost, width in zip(clock.costs, (clock.sizes - counts).tolist(), strict=False)
    ]
    clock.around = lambda group, counts: clock.layers(counts)[group]
    budget = clock.overhead + part * (clock.whole(0 * clock.sizes) - clock.overhead)
    found = time_budget.fit(clock, allowed, ranked, budget)
    assert ((clock.sizes - found.counts) % 8 == 0).all()


def test_little_more_is_lost_than_by_the_best_of_all_widths():
    rng, apart = np.random.default_rng(0), []
    for _ in range(20):
        sizes, costs = rng.choice([32, 64, 96], 3), rng.uniform(0.5, 4, 4).tolist()
        clock = Formula(sizes, costs, int(rng.choice([1, 8, 16])))
        allowed = [time_budget.levels(size, 16, 1) for size in sizes.tolist()]
        ranked = [np.sort(rng.random(size) + 0.3) for size in sizes]

        def loss(counts, ranked=ranked):
            pairs = zip(ranked, counts, strict=True)
            return -sum(math.log(r[count:].sum() / r.sum()) for r, count in pairs)

        goal = 0.5 * clock.total(0 * sizes)
        found = time_budget.narrowed(clock, allowed, ranked, goal)
        every = map(np.array, itertools.product(*allowed))
        apart.append(loss(found) / min(loss(c) for c in every if clock.total(c) <= goal))
        assert clock.total(found) <= goal
    assert min(apart) + 1e-9 >= 1 and np.mean(apart) < 1.03


def chain(widths=(24, 40), name="conv"):
    """Convolutions of these widths, average pooling and a Dense "head"."""
    x = y = keras.Input((6, 6, 3))
    for i, width in enumerate(widths):
        y = L.Conv2D(width, 3, padding="same", activation="relu", name=f"{name}{i}")(y)
    return keras.Model(x, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(y)))


def convolutions(model):
    """(input channels, filters) of each convolution of a model."""
    found = [layer for layer in model.layers if isinstance(layer, L.Conv2D)]
    return [(layer.input_shape[-1], layer.filters) for layer in found]


def by_hand(model):
    """0.5 ms, and 1 µs for each pair of an input channel and a filter, in tiles of 8."""
    return 0.5 + sum(a * tiles(b, 8) for a, b in convolutions(model)) / 1e3


def test_the_shrunk_model_takes_the_time_that_the_plan_says():
    model = chain()
    plan = pruning.plan(model, latency_ms=1.0, measure=by_hand)
    # 0.5 + (3 · 24 + 24 · 40) / 1000
    assert plan.ms_before == pytest.approx(1.532)
    small = pruning.shrink(model, pruning.select(model, plan), verify=False)
    assert by_hand(small) == plan.ms_after and 0.9 <= plan.ms_after <= 1.0
    assert all(b % 4 == 0 for _, b in convolutions(small))
    assert plan.latency_reduction == pytest.approx(1 - plan.ms_after / 1.532)
    last = plan.text().splitlines()[-1]
    assert last.startswith(f"target 1 ms, measured {plan.ms_after:.3g} ms instead of 1.53 ms (")
    assert plan.to_dict()["ms_after"] == plan.ms_after


def test_a_fraction_of_the_time_and_data_and_a_graph():
    graph = pruning.analyse(chain())
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
    plan = pruning.plan(graph, latency_reduction=0.4, measure=by_hand, data=x)
    assert 0.9 * 0.6 * 1.532 <= plan.ms_after <= 0.6 * 1.532
    assert plan.change.examples == 8
    assert "target 40.0 % less, measured" in plan.text()
    again = pruning.plan(graph, latency_reduction=0.4, measure=by_hand)
    assert again.remove == plan.remove


def test_layers_are_measured_alone_and_once_for_each_width():
    seen = []

    def measure(model):
        seen.append(model)
        return by_hand(model)

    pruning.plan(chain((24, 24, 24)), latency_reduction=0.5, measure=measure)
    alone = [convolutions(m) for m in seen if len(m.layers) == 2]
    alone = [found[0] for found in alone if found]
    assert (3, 24) in alone and (24, 24) in alone
    assert len(set(alone)) == len(alone)  # conv1 and conv2 are alike at first
    wholes = [m for m in seen if len(m.layers) > 2]
    assert len(wholes) <= 6 and len(convolutions(wholes[0])) == 3


def test_the_group_that_saves_most_for_what_it_loses_is_narrowed():
    def measure(model):
        return 1.0 + sum(b for layer, b in named(model) if layer == "slow")

    def named(model):
        return [(layer.name, layer.filters) for layer in model.layers if hasattr(layer, "filters")]

    x = keras.Input((4, 4, 3))
    y = L.Conv2D(16, 3, name="fast")(x)
    y = L.GlobalAveragePooling2D()(L.Conv2D(16, 1, name="slow")(y))
    model = keras.Model(x, L.Dense(2, name="head")(y))
    plan = pruning.plan(model, latency_ms=9.0, measure=measure)
    assert plan.remove == {"fast": 0, "slow": 8}


def test_open_sizes_are_measured_at_input_shape():
    x = keras.Input((None, None, 3))
    y = L.Conv2D(16, 3, activation="relu", name="conv")(x)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(y)))

    def measure(model):
        (shape,) = [tuple(one.shape)[1:] for one in model.inputs]
        if shape[-1] == 3:
            assert shape == (9, 7, 3)
        inner = [one for one in model.layers if isinstance(one, keras.Model)]
        return 1.0 + sum(b for _, b in convolutions(inner[0] if inner else model))

    plan = pruning.plan(model, latency_ms=10.0, measure=measure, input_shape=(9, 7, 3))
    assert plan.remove == {"conv": 8}
    with pytest.raises(ValueError, match="fixed sizes of the inputs with latency_ms.*input_shape"):
        pruning.plan(model, latency_ms=10.0, measure=measure)


def test_a_nested_model_and_attention():
    x = keras.Input((6, 8))
    inner = keras.Sequential([keras.Input((6, 8)), L.Dense(16, "relu", name="inner")], name="block")
    y = inner(L.Add()([x, L.MultiHeadAttention(4, 4, name="attention")(x, x)]))
    y = L.GlobalAveragePooling1D()(L.Dense(8)(y))
    model = keras.Model(x, L.Dense(2)(y))
    plan = pruning.plan(model, latency_reduction=0.2, measure=lambda m: m.count_params() + 1.0)
    small = pruning.shrink(model, pruning.select(model, plan), verify=False)
    assert small.count_params() + 1.0 == plan.ms_after <= 0.8 * (model.count_params() + 1.0)


def test_whole_models_are_measured_beside_the_model_as_it_is():
    """A machine that becomes slower once the whole is measured doesn't make it remove more."""
    whole = chain((24, 24, 24))

    class Slower:
        speed = 1.0

        def __call__(self, model):
            found = self.speed * by_hand(model)
            self.speed = 1.5
            return found

        def beside(self, model, other):
            assert convolutions(other) == convolutions(whole) != convolutions(model)
            return by_hand(model)

    expected = pruning.plan(whole, latency_reduction=0.3, measure=by_hand)
    plan = pruning.plan(whole, latency_reduction=0.3, measure=Slower())
    assert plan.remove == expected.remove
    assert (plan.ms_before, plan.ms_after) == (expected.ms_before, expected.ms_after)
    misled = pruning.plan(whole, latency_reduction=0.3, measure=Slower().__call__)
    assert sum(misled.remove.values()) > sum(plan.remove.values())


def test_what_is_already_fast_enough_stays():
    with pytest.warns(UserWarning, match="removes nothing: the model takes 1.53 ms as it is"):
        plan = pruning.plan(chain(), latency_ms=2.0, measure=by_hand)
    assert not any(plan.remove.values()) and plan.ms_after == plan.ms_before


def test_far_out_of_reach_is_said_before_any_layer_is_measured():
    formula = Formula([64, 64], [1.0, 1.0, 1.0], overhead=5.0)
    allowed = [np.arange(0, 57, 8)] * 2
    with pytest.raises(time_budget.Unreachable) as caught:
        time_budget.fit(formula, allowed, [np.arange(64.0)] * 2, budget=0.01)
    assert [counts.tolist() for counts in formula.wholes] == [[0, 0], [56, 56]]
    assert caught.value.least == pytest.approx(5.0 + (3 * 8 + 8 * 8 + 8 * 16) / 1e3)


def test_out_of_reach_says_the_least():
    # The narrowest: widths 4 and 8 in tiles of 8, 0.5 + (3 · 8 + 4 · 8) / 1000.
    with pytest.raises(
        pruning.OutOfReach, match=r"latency_ms.*least.* 0.556 ms of 1.53 ms \(63.7 % less"
    ) as caught:
        pruning.plan(chain(), latency_ms=0.5, measure=by_hand)
    assert caught.value.least_ms == pytest.approx(0.556)
    assert caught.value.before_ms == pytest.approx(1.532)
    with pytest.raises(ValueError, match="latency_reduction.*least.*min_channels below 16"):
        pruning.plan(chain(), latency_reduction=0.6, measure=by_hand, min_channels=16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"latency_ms": 1.0}, r"`measure`: expected what measures time.*tfkd.report.LayerTimes"),
        ({"latency_ms": 0.0, "measure": by_hand}, "`latency_ms`: expected a finite number above 0"),
        ({"latency_reduction": 1.2, "measure": by_hand}, "between 0 and 1"),
        ({"latency_ms": 1.0, "macs_reduction": 0.5}, "exactly one of .*latency_ms"),
        ({"macs_reduction": 0.5, "measure": by_hand}, "`measure`: expected None with macs_reduct"),
        ({"latency_ms": 1.0, "measure": by_hand, "scope": "global"}, "`scope`: .*Leave it out"),
        ({"latency_ms": 1.0, "measure": lambda model: float("nan")}, "returns milliseconds"),
        ({"latency_ms": 1.0, "measure": lambda model: None}, "returns milliseconds"),
    ],
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        pruning.plan(chain(), **arguments)


def test_times_of_layers_add_up_by_hand():
    graph = pruning.analyse(chain())
    clock = Clock(graph, by_hand)
    counts = np.array([8, 16])
    # Each layer alone has the 0.5 ms; the head has no convolution.
    assert clock.total(counts) == pytest.approx(1.5 + (3 * 16 + 16 * 24) / 1e3)
    assert clock.around(0, counts) == pytest.approx(1.0 + (3 * 16 + 16 * 24) / 1e3)
    assert clock.around(1, counts) == pytest.approx(1.0 + 16 * 24 / 1e3)
    assert clock.whole(counts) == pytest.approx(0.5 + (3 * 16 + 16 * 24) / 1e3)
