"""Paces: their formulas in NumPy, and what they refuse."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import schedules
from tfkd.curriculum import pacing
from tfkd.curriculum.pacing import Adaptive, Geometric, Linear, Pieces, Root, Step

FRACTIONS = st.floats(1e-4, 1.0)
quick = settings(deadline=None, max_examples=60)
EXAMPLES = [
    pacing.Fixed(0.5),
    Linear(0.2, 50),
    Linear(0.3, 40, 0.6),
    Root(0.1, 60, p=3),
    Root(0.01, 30, p=0.5),
    Geometric(0.05, 20),
    Step(0.1, 10, 1.7),
    Pieces([5, 9], [0.2, 0.9, 0.4]),
]


def interval(start, end):
    return min(start, end), max(start, end)


@quick
@given(a=FRACTIONS, b=FRACTIONS, steps=st.integers(1, 10**6), part=st.floats(0, 1.2))
def test_linear_and_geometric_follow_their_formulas(a, b, steps, part):
    start, end = interval(a, b)
    step = int(part * steps)
    q = min(step / steps, 1)
    np.testing.assert_allclose(Linear(start, steps, end)(step), start + (end - start) * q)
    want = start * np.power(end / start, q)
    np.testing.assert_allclose(Geometric(start, steps, end)(step), want, rtol=1e-9)


@quick
@given(
    a=FRACTIONS,
    b=FRACTIONS,
    p=st.floats(0.2, 30),
    steps=st.integers(1, 10**6),
    part=st.floats(0, 1.2),
)
def test_root_follows_its_formula_for_any_power(a, b, p, steps, part):
    start, end = interval(a, b)
    step = int(part * steps)
    q = np.float64(min(step / steps, 1))
    want = (start**p + (end**p - start**p) * q) ** (1 / p)
    np.testing.assert_allclose(Root(start, steps, end, p)(step), want, rtol=1e-6)


def test_root_with_a_huge_power_does_not_underflow():
    # startᵖ is 0 in float64; at half of the way the fraction is (½)^(1/p) of the end.
    np.testing.assert_allclose(Root(0.01, 100, p=400)(50), 0.5 ** (1 / 400), rtol=1e-6)
    assert Root(0.01, 100, p=400)(0) == 0.01


def test_root_is_not_always_a_square_root():
    linear = Linear(0.2, 100)
    np.testing.assert_allclose(
        [Root(0.2, 100, p=1)(s) for s in range(101)], [linear(s) for s in range(101)]
    )
    assert (
        Root(0.2, 100, p=5)(50) > Root(0.2, 100, p=2)(50) > linear(50) > Root(0.2, 100, p=0.5)(50)
    )


@quick
@given(
    start=st.floats(0.01, 1),
    every=st.integers(1, 50),
    factor=st.floats(1.05, 5),
    step=st.integers(0, 5000),
)
def test_step_multiplies_at_each_jump(start, every, factor, step):
    want = min(1.0, start * factor ** (step // every)) if step // every < 400 else 1.0
    np.testing.assert_allclose(Step(start, every, factor)(step), want, rtol=1e-6)


def test_pieces_by_hand():
    pace = Pieces([3, 5], [0.5, 0.25, 1.0])
    assert [pace(step) for step in range(7)] == [0.5, 0.5, 0.5, 0.25, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("pace", EXAMPLES, ids=repr)
def test_numbers_and_tensors_agree_and_the_last_step_is_the_last(pace):
    steps = range(0, pace.last_step + 3)
    compiled = tf.function(pace, input_signature=[tf.TensorSpec((), tf.int64)])
    for step in steps:
        value = pace(step)
        assert 0 < value <= 1
        np.testing.assert_allclose(compiled(tf.constant(step, tf.int64)), value, rtol=1e-5)
    assert pace(pace.last_step) == pace(10**9)
    if pace.last_step:
        assert pace(pace.last_step - 1) != pace(pace.last_step)


@pytest.mark.parametrize("pace", EXAMPLES, ids=repr)
def test_a_pace_goes_through_json(pace):
    text = json.dumps(schedules.serialize(pace))
    assert schedules.deserialize(json.loads(text)) == pace
    assert copy.deepcopy(pace) == pace


def test_names_do_not_clash_with_those_of_schedules():
    assert isinstance(schedules.deserialize(schedules.serialize(Linear(0.5, 3))), Linear)
    plain = schedules.Linear(0, 1, 0, 3)
    assert isinstance(schedules.deserialize(schedules.serialize(plain)), schedules.Linear)


@pytest.mark.parametrize(
    ("fraction", "count", "want"),
    [(0.3, 10, 3), (0.1 + 0.2, 10, 3), (0.31, 10, 4), (1.0, 7, 7), (1e-12, 7, 1), (2 / 3, 3, 2)],
)
def test_pool_size_rounds_up_but_not_for_rounding(fraction, count, want):
    assert pacing.pool_size(fraction, count) == want


def test_pool_sizes_are_those_of_every_step():
    assert Linear(0.2, 4).pool_sizes(10).tolist() == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(0.0, 5), "`start`: expected a fraction above 0 and at most 1"),
        (lambda: Linear(0.5, 5, 1.5), "`end`: expected a fraction above 0 and at most 1"),
        (lambda: Linear(0.5, 5, 0.4), "hardest_first"),
        (lambda: Linear(0.5, 0), "`steps`"),
        (lambda: Linear(float("nan"), 5), "`start`"),
        (lambda: Root(0.5, 5, p=0), "`p`"),
        (lambda: Step(0.5, 5, 1.0), "`factor`: expected a number above 1"),
        (lambda: Step(0.5, 5, end=0.2), "`end`"),
        (lambda: Pieces([3, 3], [0.1, 0.2, 0.3]), "increasing"),
        (lambda: Pieces([3], [0.1]), "2 fractions"),
        (lambda: Pieces([3], [0.1, 2]), "at most 1"),
        (lambda: pacing.Fixed(-1), "`fraction`"),
        (lambda: Adaptive(0.5, growth=1), "`growth`"),
        (lambda: Adaptive(0.5, end=0.1), "`end`"),
        (lambda: Adaptive(0.5, mode="best"), "`mode`"),
        (lambda: Adaptive(0.5, tolerance=-1), "`tolerance`"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear("a", 5),
        lambda: Linear(0.5, 5.5),
        lambda: Pieces(3, [0.1]),
        lambda: Adaptive(0.5, monitor=3),
    ],
)
def test_bad_types(make):
    with pytest.raises(TypeError, match="expected"):
        make()


def run(pace, values):
    return [round(pace.update({pace.monitor: value}), 6) for value in values]


def test_adaptive_waits_for_patience_and_stops_at_the_end():
    pace = Adaptive(0.2, growth=2, end=0.7, patience=2)
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
    pace = Adaptive(0.25, growth=2, tolerance=0.05)
    assert run(pace, [0.5, 0.5, 0.46, 0.3, 0.3, 0.3]) == [0.25, 0.5, 1.0, 0.5, 0.25, 0.25]


def test_adaptive_knows_which_way_is_better():
    loss = Adaptive(0.5, growth=2, monitor="val_loss")
    assert run(loss, [1.0, 0.9, 0.9]) == [0.5, 0.5, 1.0]
    named = Adaptive(0.5, growth=2, monitor="val_error", mode="max")
    assert run(named, [1.0, 0.9]) == [0.5, 1.0]


def test_adaptive_ignores_what_is_below_min_delta():
    assert run(Adaptive(0.5, growth=2, min_delta=0.1), [0.5, 0.55]) == [0.5, 1.0]


def test_adaptive_names_a_missing_or_broken_metric():
    pace = Adaptive(0.5)
    with pytest.raises(ValueError, match="Did you mean 'val_acc'"):
        pace.update({"val_acc": 0.5, "loss": 1.0})
    with pytest.raises(ValueError, match="NaN"):
        pace.update({"val_accuracy": float("nan")})


def test_adaptive_state_is_kept_by_a_checkpoint(tmp_path):
    first = Adaptive(0.25, growth=2, patience=2)
    run(first, [0.5, 0.5, 0.5, 0.5])
    path = tf.train.Checkpoint(pace=first).save(str(tmp_path / "c"))
    second = Adaptive(0.25, growth=2, patience=2)
    tf.train.Checkpoint(pace=second).restore(path).assert_consumed()
    assert second() == first() == 0.5
    assert run(second, [0.5, 0.5]) == run(first, [0.5, 0.5]) == [1.0, 1.0]
