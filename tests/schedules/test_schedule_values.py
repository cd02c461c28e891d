"""Schedules: expected values by hand or from NumPy; numbers and tensors agree."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import schedules
from tfkd.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Root,
    Staircase,
    Warmup,
)

CURVES = (Linear, Cosine, Exponential, Root)
EXAMPLES = [
    Constant(3),
    Linear(8, 2, 0, 100),
    Cosine(1, 0, 3, 9),
    Exponential(8, 0.1, 2, 7),
    Piecewise([3, 6], [1, 2, 0.5]),
    Root(0.1, 1, 2, 9, p=3),
    Root(1, 0, 0, 10, p=0.5),
    Staircase(0.1, 1, 3, 1.7),
    Staircase(8, 1, 2, 0.5),
    Warmup(Linear(1, 0.25, 0, 10), 5),
    Warmup(0.5, 0),
    Linear(0, 1, 5, 5),
]
STEPS = st.integers(0, 10**6)
VALUES = st.floats(1e-6, 1e6)

quick = settings(deadline=None, max_examples=50)


def expected(curve, start, end, begin_step, end_step, step):
    """The formula in NumPy."""
    if begin_step == end_step:
        part = np.float64(step >= end_step)
    else:
        part = np.clip((step - begin_step) / (end_step - begin_step), 0, 1)
    if curve is Exponential:
        return start * (end / start) ** part
    if curve is Root:
        return (start**2 * (1 - part) + end**2 * part) ** 0.5
    if curve is Cosine:
        part = (1 - np.cos(np.pi * part)) / 2
    return start + (end - start) * part


@pytest.mark.parametrize("curve", CURVES)
@quick
@given(start=VALUES, end=VALUES, begin=STEPS, length=st.integers(0, 10**5), step=STEPS)
def test_curve_follows_its_formula(curve, start, end, begin, length, step):
    value = curve(start, end, begin, begin + length)(step)
    want = expected(curve, start, end, begin, begin + length, step)
    np.testing.assert_allclose(value, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("curve", CURVES)
@quick
@given(start=VALUES, end=VALUES, begin=STEPS, length=st.integers(0, 50))
def test_curve_is_monotone_and_meets_its_ends_exactly(curve, start, end, begin, length):
    curve = curve(start, end, begin, begin + length)
    values = [curve(step) for step in range(max(begin - 2, 0), begin + length + 3)]
    sign = 1 if end >= start else -1
    assert all(sign * (b - a) >= 0 for a, b in itertools.pairwise(values))
    assert curve(begin + length) == end == values[-1]
    if length:
        assert curve(begin) == start == values[0]
    assert curve(10**12) == end


@pytest.mark.parametrize("curve", CURVES)
def test_equal_begin_and_end_make_a_jump(curve):
    jump = curve(2.0, 1.0, 5, 5)
    assert [jump(step) for step in (0, 4, 5, 6)] == [2.0, 2.0, 1.0, 1.0]
    assert curve(2.0, 1.0, 0, 0)(0) == 1.0


def test_piecewise_begins_a_value_at_its_boundary():
    pieces = Piecewise([2, 5], [1.0, 10.0, 100.0])
    assert [pieces(s) for s in range(7)] == [1.0, 1.0, 10.0, 10.0, 10.0, 100.0, 100.0]


@quick
@given(
    a=st.floats(1e-3, 1),
    b=st.floats(1e-3, 1),
    p=st.floats(0.2, 30),
    steps=st.integers(1, 10**6),
    part=st.floats(0, 1.2),
)
def test_root_follows_its_formula_for_any_power(a, b, p, steps, part):
    step = int(part * steps)
    q = min(step / steps, 1)
    want = (a**p * (1 - q) + b**p * q) ** (1 / p)
    root = Root(a, b, end_step=steps, p=p)
    np.testing.assert_allclose(root(step), want, rtol=1e-6)
    np.testing.assert_allclose(root(tf.constant(step)), want, rtol=1e-3)


def test_root_at_its_limits():
    # startᵖ is 0 in float64; at half of the way the value is (½)^(1/p) of the end.
    np.testing.assert_allclose(Root(0.01, 1, 0, 100, p=400)(50), 0.5 ** (1 / 400), rtol=1e-6)
    assert Root(0.01, 1, 0, 100, p=400)(0) == 0.01
    np.testing.assert_allclose(Root(0, 3, 0, 100)(25), 1.5)
    assert Root(0, 0, 0, 9)(5) == 0.0 and Root(2, 2, 0, 9)(5) == 2.0
    # With p to 0 it becomes a constant factor at each step, with p = 1 a straight line.
    for step in (tf.constant(5), 5):
        np.testing.assert_allclose(Root(0.01, 1, 0, 10, p=1e-9)(step), 0.1, rtol=1e-5)
        np.testing.assert_allclose(Root(1, 0.2, 0, 10, p=1)(step), 0.6, rtol=1e-6)


@quick
@given(
    start=st.floats(0.01, 1, exclude_max=True),
    every=st.integers(1, 50),
    factor=st.floats(1.05, 5),
    step=st.integers(0, 5000),
)
def test_staircase_multiplies_at_each_jump(start, every, factor, step):
    jumps = min(step // every, 400)
    stairs = Staircase(start, 1.0, every, factor)
    np.testing.assert_allclose(stairs(step), min(1.0, start * factor**jumps), rtol=1e-6)
    falling = Staircase(1.0, start, every, 1 / factor)
    np.testing.assert_allclose(falling(step), max(start, factor**-jumps), rtol=1e-6)


def test_warmup_multiplies_what_the_inner_schedule_says_at_the_same_step():
    warm = Warmup(Linear(1.0, 0.0, 0, 10), 4)
    want = [(1 - s / 10) * min(s / 4, 1) for s in range(11)]
    np.testing.assert_allclose([warm(s) for s in range(11)], want, atol=1e-12)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_tensor_and_integer_agree(schedule, jit):
    compiled = tf.function(schedule, jit_compile=jit)
    for step in range(12):
        value = compiled(tf.constant(step, tf.int64))
        assert value.dtype == tf.float32 and value.shape == ()
        np.testing.assert_allclose(value, schedule(step), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_arrays_and_tensors_of_steps_give_the_value_of_each(schedule):
    steps = np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 99]])
    want = np.array([[schedule(int(step)) for step in row] for row in steps])
    for dtype in (np.int64, np.uint8):
        found = schedule(steps.astype(dtype))
        assert type(found) is np.ndarray and found.dtype == np.float64
        np.testing.assert_array_equal(found, want)
    found = schedule(tf.constant(steps, tf.int32))
    assert found.dtype == tf.float32 and found.shape == (2, 6)
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-7)
    any_shape = tf.function(schedule, input_signature=[tf.TensorSpec(None, tf.int64)])
    for some in (steps, steps[0], steps[0, 3]):
        found = any_shape(some)
        assert found.shape == some.shape
        np.testing.assert_allclose(found, schedule(some), rtol=2e-6, atol=1e-7)
    assert schedule(np.zeros((0, 3), int)).shape == schedule(tf.zeros((0, 3), tf.int32)).shape


LASTS = (0, 100, 9, 7, 6, 9, 10, 15, 6, 10, 0, 5)


@pytest.mark.parametrize(("schedule", "last"), zip(EXAMPLES, LASTS, strict=True), ids=repr)
def test_from_the_last_step_on_the_value_stays(schedule, last):
    assert schedule.last_step == last
    assert set(schedule(np.arange(last, last + 200))) == {schedule(10**9)}
    if last:
        assert schedule(last - 1) != schedule(last)


def test_the_last_step_of_a_callable_is_not_known():
    unknown = schedules.get("weight", lambda step: 0.5)
    assert unknown.last_step is None and Warmup(unknown, 5).last_step is None


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_variable_every_integer_dtype_and_numpy_steps(schedule):
    want = schedule(4)
    assert schedule(np.int32(4)) == want and isinstance(schedule(np.int64(4)), float)
    assert schedule(np.array(4)) == want
    for dtype in (tf.int32, tf.int64, tf.uint8):
        np.testing.assert_allclose(schedule(tf.Variable(4, dtype=dtype)), want, rtol=2e-6)


def test_schedule_follows_a_variable_inside_one_compiled_function():
    step, traces = tf.Variable(0, dtype=tf.int64), []

    @tf.function
    def advance():
        traces.append(1)
        value = Linear(0.0, 1.0, 0, 4)(step)
        step.assign_add(1)
        return value

    assert [float(advance()) for _ in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert len(traces) == 1


def test_tensor_values_stay_finite_and_inside_at_extremes():
    for schedule in (Exponential(1e-37, 1e38, 0, 10**9), Linear(-1e38, 1e38, 0, 3)):
        low, high = min(schedule.end_values()), max(schedule.end_values())
        for step in (0, 1, 2, 10**8, 2**62):
            value = float(schedule(tf.constant(step, tf.int64)))
            assert math.isfinite(value)
            assert np.float32(low) <= value <= np.float32(high)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_round_trip_through_json(schedule):
    text = json.dumps(schedules.serialize(schedule))
    again = schedules.deserialize(json.loads(text))
    assert again == schedule and hash(again) == hash(schedule)
    assert type(again) is type(schedule) and repr(again) == repr(schedule)
    assert [again(s) for s in range(12)] == [schedule(s) for s in range(12)]
    assert pickle.loads(pickle.dumps(schedule)) == schedule == copy.deepcopy(schedule)
