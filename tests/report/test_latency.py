"""What `latency` measures, in which order, and how it is summarised."""

import gc
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import report
from tfkd.report.latency import Latency, busy_note


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50))
def test_percentiles_are_the_stated_ones(times):
    found = report.Latency.of(times)
    ordered = sorted(times)
    for q, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        place = (len(times) - 1) * q / 100
        low = int(place)
        high = min(low + 1, len(times) - 1)
        expected = ordered[low] + (place - low) * (ordered[high] - ordered[low])
        assert value == pytest.approx(expected)
    assert found.mean == pytest.approx(sum(times) / len(times))
    assert found.runs == len(times)


def test_runners_take_turns_in_random_order_and_run_once_before_they_are_timed():
    order = []
    runners = {name: (lambda name=name: order.append(name)) for name in "abc"}
    report.latency(runners, warmup=1, runs=60)
    assert order[:3] == ["a", "b", "c"]
    assert order[3::2] == order[4::2]
    rounds = ["".join(order[i : i + 6 : 2]) for i in range(3, len(order), 6)]
    assert len(rounds) == 60
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6  # nobody always follows the same neighbour
    first = list(order)
    order.clear()
    report.latency(runners, warmup=1, runs=60)
    assert order == first


def test_a_neighbour_that_leaves_cold_caches_costs_the_next_one_nothing():
    last = [""]

    def runner(name):
        if last[0] == "cold":
            time.sleep(0.005)
        last[0] = name

    names = ("first", "cold", "after")
    runners = {name: (lambda name=name: runner(name)) for name in names}
    found = report.latency(runners, warmup=1, runs=9)
    assert max(found["first"].p50, found["after"].p50) < 2


def test_slow_and_fast_in_milliseconds():
    runners = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    found = report.latency(runners, warmup=1, runs=5)
    assert 20 <= found["slow"].p50 < 200
    assert found["fast"].p50 < 5
    assert found["slow"].runs == found["fast"].runs == 5


def test_one_argument_and_the_time_limit():
    seen = []
    found = report.latency(
        {"a": lambda x: (seen.append(x), time.sleep(0.02))}, 7, warmup=0, runs=1000, seconds=0.1
    )
    assert set(seen) == {7}
    assert 1 <= found["a"].runs <= 10


def test_the_garbage_collector_is_off_and_comes_back_even_after_an_error():
    states = []

    def runner():
        states.append(gc.isenabled())
        if len(states) == 4:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        report.latency({"a": runner}, warmup=1, runs=10)
    assert states == [True, False, False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (({},), "runners"),
        (([len],), "runners"),
        (({"a": 3},), r"runners\['a'\]"),
        (({"a": len}, None, {"runs": 0}), "runs"),
        (({"a": len}, None, {"warmup": -1}), "warmup"),
        (({"a": len}, None, {"seconds": 0}), "seconds"),
    ],
)
def test_bad_arguments(arguments, name):
    options = arguments[2] if len(arguments) > 2 else {}
    with pytest.raises((ValueError, TypeError), match=name):
        report.latency(*arguments[:2], **options)


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0]]])
def test_no_summary_of_nothing(bad):
    with pytest.raises(ValueError, match="milliseconds"):
        report.Latency.of(bad)


def test_machine_fits_into_json():
    found = json.loads(json.dumps(report.machine()))
    assert found["cores"] >= 1
    assert {"tfkd", "tensorflow", "tf_keras", "numpy"} <= set(found["versions"])
    assert found["processor"]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([1.0] * 15 + [9.0] * 5, ""),  # a quarter of the calls: the median holds
        ([1.0] * 5 + [3.0] * 15, "half of the calls of a took 3.0 times as long"),
        ([1.0] * 2 + [3.0] * 6, ""),  # too few calls to tell
        ([0.0] * 30, ""),
    ],
)
def test_a_busy_machine_is_told(times, said):
    quiet = Latency.of([2.0, 2.2] * 15)
    assert said in busy_note({"a": Latency.of(times), "b": quiet})
    assert bool(said) == bool(busy_note({"b": quiet, "a": Latency.of(times)}))
