"""Paces: which schedules are one, sizes of the pool, and the pace that waits for a metric."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import schedules
from tfkd.curriculum import AdaptivePace
from tfkd.curriculum.pace import accept, pool_sizes
from tfkd.schedules import Constant, Exponential, Linear, Piecewise, Root, Staircase, Warmup

FRACTIONS = st.floats(1e-4, 1.0)


@dataclasses.dataclass(frozen=True)
class Outside(schedules.Schedule):
    """Leaves (0, 1] between its ends, which it does not tell."""

    last_step = 4

    def _at(self, step, ops):
        return ops.choose(step == 2, 1.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Endless(schedules.Schedule):
    def _at(self, step, ops):
        return ops.choose(step % 2 == 0, 1.0, 0.5)


@settings(deadline=None, max_examples=60)
@given(
    a=FRACTIONS,
    b=FRACTIONS,
    steps=st.integers(1, 200),
    p=st.floats(0.2, 30),
    count=st.integers(1, 10**6),
)
def test_pool_sizes_are_those_of_the_formulas(a, b, steps, p, count):
    start, end = min(a, b), max(a, b)
    q = np.arange(steps + 1) / steps
    formulas = {
        Linear(start, end, end_step=steps): start + (end - start) * q,
        Root(start, end, end_step=steps, p=p): (start**p + (end**p - start**p) * q) ** (1 / p),
        Exponential(start, end, end_step=steps): start * (end / start) ** q,
        Staircase(start, end, every=steps, factor=1e9): np.where(q < 1, start, end),
        Piecewise([steps], [end, start]): np.where(q < 1, end, start),
    }
    for pace, fractions in formulas.items():
        found = pool_sizes(accept("pace", pace), count)
        if start == end:
            assert set(found.tolist()) == {max(np.ceil(round(start * count, 6)), 1)}
            continue
        # What rounds to a whole number of examples may be one more or less.
        near = [np.ceil(np.clip(fractions * count + slack, 1, count)) for slack in (-2e-6, 2e-6)]
        assert found.dtype == np.int64 and np.all((near[0] <= found) & (found <= near[1]))
        assert len(found) == pace.last_step + 1


@pytest.mark.parametrize(
    ("fraction", "count", "want"),
    [(0.3, 10, 3), (0.1 + 0.2, 10, 3), (0.31, 10, 4), (1.0, 7, 7), (1e-12, 7, 1), (2 / 3, 3, 2)],
)
def test_a_pool_is_rounded_up_but_not_for_rounding(fraction, count, want):
    assert pool_sizes(accept("pace", fraction), count).tolist() == [want]


def test_pools_are_those_of_every_step_or_level():
    assert pool_sizes(Linear(0.2, 1.0, end_step=4), 10).tolist() == [2, 4, 6, 8, 10]
    assert pool_sizes(Piecewise([1, 3], [0.5, 0.2, 1.0]), 10).tolist() == [5, 2, 2, 10]
    assert pool_sizes(AdaptivePace(0.3, growth=2), 10).tolist() == [3, 6, 10]


def test_numbers_become_schedules_and_paces_stay():
    pace, adaptive = Linear(0.5, 1.0, end_step=3), AdaptivePace(0.5)
    assert accept("pace", 0.5) == Constant(0.5)
    assert accept("pace", pace) is pace and accept("pace", adaptive) is adaptive


@pytest.mark.parametrize(
    ("pace", "error", "words"),
    [
        (0, ValueError, "`fraction`: expected a fraction above 0 and at most 1"),
        (float("nan"), ValueError, "`fraction`"),
        (Linear(0.0, 1.0, end_step=5), ValueError, "`fraction`.*received 0.0.*Linear"),
        (Root(0.5, 1.5, end_step=5), ValueError, "at most 1, received 1.5"),
        (Piecewise([3], [0.1, 2]), ValueError, "at most 1"),
        (Warmup(1.0, 5), ValueError, "above 0"),
        (Endless(), ValueError, "stops changing.*`last_step`"),
        (Warmup(Endless(), 0), ValueError, "stops changing.*`last_step`"),
        (lambda step: 0.5, TypeError, "subclass of tfkd.schedules.Schedule"),
        (Linear, TypeError, "a schedule of tfkd.schedules"),
        ("half", TypeError, "AdaptivePace"),
        (True, TypeError, "a number in"),
        (None, TypeError, "a number in"),
    ],
)
def test_what_is_no_pace(pace, error, words):
    with pytest.raises(error, match=words):
        accept("fraction", pace)


def test_values_between_the_ends_are_looked_at():
    with pytest.raises(ValueError, match="`pace`: expected a fraction .* received .*1.5"):
        pool_sizes(accept("pace", Outside()), 10)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: AdaptivePace(0.0), ValueError, "`start`"),
        (lambda: AdaptivePace(0.5, growth=1), ValueError, "`growth`"),
        (lambda: AdaptivePace(0.5, end=0.1), ValueError, "`end`"),
        (lambda: AdaptivePace(0.5, mode="best"), ValueError, "`mode`"),
        (lambda: AdaptivePace(0.5, tolerance=-1), ValueError, "`tolerance`"),
        (lambda: AdaptivePace(0.5, monitor=3), TypeError, "expected"),
    ],
)
def test_bad_arguments_of_the_adaptive_pace(make, error, words):
    with pytest.raises(error, match=words):
        make()


def run(pace, values):
    return [round(pace.update({pace.monitor: value}), 6) for value in values]


def test_adaptive_waits_for_patience_and_stops_at_the_end():
    pace = AdaptivePace(0.2, growth=2, end=0.7, patience=2)
    #           better  no   no → ×2  better  no   no → ×2 (end)  no, no: nothing left
    assert run(pace, [0.5, 0.5, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]) == [
        0.2,
        0.2,
        0.4,
        0.4,
        0.4,
        0.7,
        0.7,
        0.7,
    ]


def test_adaptive_falls_back_when_the_metric_drops_and_not_below_the_start():
    pace = AdaptivePace(0.25, growth=2, tolerance=0.05)
    assert run(pace, [0.5, 0.5, 0.46, 0.3, 0.3, 0.3]) == [0.25, 0.5, 1.0, 0.5, 0.25, 0.25]


def test_adaptive_knows_which_way_is_better():
    loss = AdaptivePace(0.5, growth=2, monitor="val_loss")
    assert run(loss, [1.0, 0.9, 0.9]) == [0.5, 0.5, 1.0]
    named = AdaptivePace(0.5, growth=2, monitor="val_error", mode="max")
    assert run(named, [1.0, 0.9]) == [0.5, 1.0]


def test_adaptive_ignores_what_is_below_min_delta():
    assert run(AdaptivePace(0.5, growth=2, min_delta=0.1), [0.5, 0.55]) == [0.5, 1.0]


def test_adaptive_names_a_missing_or_broken_metric():
    pace = AdaptivePace(0.5)
    with pytest.raises(ValueError, match="Did you mean 'val_acc'"):
        pace.update({"val_acc": 0.5, "loss": 1.0})
    with pytest.raises(ValueError, match="NaN"):
        pace.update({"val_accuracy": float("nan")})


def test_adaptive_state_is_kept_by_a_checkpoint(tmp_path):
    first = AdaptivePace(0.25, growth=2, patience=2)
    run(first, [0.5, 0.5, 0.5, 0.5])
    path = tf.train.Checkpoint(pace=first).save(str(tmp_path / "c"))
    second = AdaptivePace(0.25, growth=2, patience=2)
    tf.train.Checkpoint(pace=second).restore(path).assert_consumed()
    assert second() == first() == 0.5
    assert run(second, [0.5, 0.5]) == run(first, [0.5, 0.5]) == [1.0, 1.0]
