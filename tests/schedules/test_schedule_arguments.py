"""Schedules: what they accept and refuse, equality, callables and classes of one's own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from tfkd import checks, schedules
from tfkd.schedules import Constant, Cosine, Exponential, Linear, Piecewise, Root, Staircase, Warmup


@pytest.mark.parametrize("number", [3, 0.25, np.float32(0.5), np.int64(2)])
def test_numbers_stay_numbers(number):
    assert schedules.get("weight", number) is number
    plain = schedules.serialize(number)
    assert plain == number and type(plain) in (int, float)
    assert schedules.deserialize(plain) is plain
    value = schedules.value_at(number, 10)
    assert value == number and type(value) is float


def test_equality_is_by_class_and_arguments():
    assert Linear(1, 2, 0, 3) == Linear(1.0, 2.0, 0, np.int64(3))
    assert Linear(1, 2, 0, 3) != Linear(1, 2, 0, 4)
    assert Linear(1, 2, 0, 3) != Cosine(1, 2, 0, 3)
    assert repr(Linear(1, 2, end_step=3)) == "Linear(start=1.0, end=2.0, begin_step=0, end_step=3)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        Linear(1, 2, 0, 3).start = 5.0


def test_plain_callable_is_called_with_the_step_and_cannot_be_saved():
    halves = schedules.get("weight", lambda step: 0.5 * step)
    assert schedules.value_at(halves, 3) == 1.5
    doubled = schedules.get("weight", lambda step: 2 * tf.cast(step, tf.float64))
    value = tf.function(lambda s: schedules.value_at(doubled, s))(tf.constant(4))
    assert value.dtype == tf.float32 and float(value) == 8.0
    clocks = schedules.get("weight", lambda step: 1 if step < 2 else math.sqrt(step))
    np.testing.assert_allclose(clocks(np.array([[0], [9]])), [[1], [3]])
    warm = Warmup(doubled, 8)
    assert float(warm(tf.constant(4))) == 4.0
    for schedule in (halves, warm):
        with pytest.raises(ValueError, match="which can be saved"):
            schedules.serialize(schedule)
    with pytest.raises(ValueError, match="a scalar from each step"):
        schedules.get("weight", lambda step: tf.zeros(2))(tf.constant(0))
    with pytest.raises(ValueError, match="a scalar from each step"):
        schedules.get("weight", lambda step: tf.zeros(2))(tf.constant([1, 2, 3]))


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(4, 0, 0, 10),
        Cosine(0, 4, 0, 10),
        Piecewise([1, 2], [1, -1, 1]),
        Warmup(4.0, 10),
        Warmup(Constant(0), 0),
        Constant(0),
    ],
    ids=repr,
)
def test_check_refuses_a_schedule_that_reaches_a_bad_value(schedule):
    with pytest.raises(ValueError, match="`temperature`.*above 0.*The schedule"):
        schedules.get("temperature", schedule, checks.positive)
    assert schedules.get("weight", schedule) is schedule


def test_check_accepts_a_schedule_whose_ends_are_good():
    for schedule in (Linear(4, 1, 0, 10), Warmup(Linear(4, 1, 0, 10), 0)):
        assert schedules.get("temperature", schedule, checks.positive) is schedule


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Constant("a"), TypeError, "`value`"),
        (lambda: Constant(True), TypeError, "`value`"),
        (lambda: Constant(float("nan")), ValueError, "`value`.*finite"),
        (lambda: Constant(1e39), ValueError, "`value`.*1e38"),
        (lambda: Linear(float("inf"), 1, 0, 2), ValueError, "`start`"),
        (lambda: Linear(0, float("nan"), 0, 2), ValueError, "`end`"),
        (lambda: Linear(0, 1), TypeError, "`end_step`.*None"),
        (lambda: Linear(0, 1, 0, 2.5), TypeError, "`end_step`"),
        (lambda: Linear(0, 1, -1, 2), ValueError, "`begin_step`"),
        (lambda: Cosine(0, 1, 5, 4), ValueError, "`end_step`.*begin_step, 5.*received 4"),
        (lambda: Exponential(0, 1, 0, 4), ValueError, "`start`.*above 0"),
        (lambda: Exponential(1, -1, 0, 4), ValueError, "`end`.*above 0"),
        (lambda: Exponential(1, 1e-38, 0, 4), ValueError, "`end`.*above 0"),
        (lambda: Piecewise([], [1]), ValueError, "`boundaries`"),
        (lambda: Piecewise([3, 3], [1, 2, 3]), ValueError, "`boundaries`.*increasing"),
        (lambda: Piecewise([3], [1]), ValueError, "`values`.*2 values"),
        (lambda: Piecewise(3, [1, 2]), TypeError, "`boundaries`.*list"),
        (lambda: Piecewise([3.0], [1, 2]), TypeError, "`boundaries`"),
        (lambda: Piecewise([3], [1, float("nan")]), ValueError, "`values`"),
        (lambda: Root(-0.1, 1, 0, 4), ValueError, "`start`.*at least 0"),
        (lambda: Root(0, 1, 0, 4, p=0), ValueError, "`p`.*above 0"),
        (lambda: Root(0, 1, 0, 4, p="2"), TypeError, "`p`"),
        (lambda: Staircase(0, 1, 4, 2), ValueError, "`start`.*above 0"),
        (lambda: Staircase(0.5, "1", 4, 2), TypeError, "`end`"),
        (lambda: Staircase(0.5, 1, 0, 2), ValueError, "`every`"),
        (lambda: Staircase(0.5, 1, 4.0, 2), TypeError, "`every`"),
        (lambda: Staircase(0.5, 1, 4, 1.0), ValueError, "`factor`.*above 1, to get from 0.5 to"),
        (lambda: Staircase(1, 0.5, 4, 2), ValueError, "`factor`.*between 0 and 1"),
        (lambda: Staircase(1, 0.5, 4, -0.5), ValueError, "`factor`"),
        (lambda: Warmup("a", 2), TypeError, "`schedule`"),
        (lambda: Warmup(1.0, -1), ValueError, "`steps`"),
        (lambda: Warmup(1e39, 1), ValueError, "`schedule`"),
        (lambda: Constant(1)(0.5), TypeError, "`step`"),
        (lambda: Constant(1)(True), TypeError, "`step`"),
        (lambda: Constant(1)(np.array([0.5])), TypeError, "`step`"),
        (lambda: Constant(1)(np.array([True])), TypeError, "`step`"),
        (lambda: Constant(1)(np.float64(1)), TypeError, "`step`"),
        (lambda: Constant(1)([1, 2]), TypeError, "`step`"),
        (lambda: Constant(1)("0"), TypeError, "`step`"),
        (lambda: Constant(1)(tf.constant(0.5)), TypeError, "`step`"),
        (lambda: Constant(1)(tf.constant([True])), TypeError, "`step`"),
        (lambda: schedules.get("t", None), TypeError, "`t`.*a schedule"),
        (lambda: schedules.get("t", float), TypeError, "`t`"),
        (lambda: schedules.get("t", "4", expected="a number"), TypeError, "`t`: expected a number"),
        (lambda: schedules.get("t", float("nan")), ValueError, "`t`"),
        (lambda: schedules.get("t", 0, checks.positive), ValueError, "`t`.*above 0"),
        (lambda: schedules.serialize("a"), TypeError, "`value`"),
        (lambda: schedules.deserialize([1]), TypeError, "`obj`"),
        (lambda: schedules.deserialize({"class_name": "Linear"}), TypeError, "`obj`"),
        (
            lambda: schedules.deserialize({"class_name": "Linera", "config": {}}),
            ValueError,
            "Did you mean 'Linear'",
        ),
        (lambda: schedules.register(int), TypeError, "`cls`"),
    ],
)
def test_bad_argument(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_own_schedule_can_be_registered_and_saved():
    @dataclasses.dataclass(frozen=True)
    class Saw(schedules.Schedule):
        period: int

        def _at(self, step, ops):
            return step % self.period

    with pytest.raises(ValueError, match=r"tfkd\.schedules\.register"):
        schedules.serialize(Saw(3))
    schedules.register(Saw)
    again = schedules.deserialize(schedules.serialize(Saw(3)))
    assert [again(s) for s in range(5)] == [0, 1, 2, 0, 1]
    assert float(again(tf.constant(5))) == 2.0
    impostor = type("Linear", (Saw,), {})
    with pytest.raises(ValueError, match="no other schedule has"):
        schedules.register(impostor)
