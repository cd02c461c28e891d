"""Which batches a number of examples is run in, against all ways there are."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd.formats.litert import Port
from tfkd.runtime.backend import plan, powers
from tfkd.runtime.batches import Batches


def test_powers():
    assert [powers(n) for n in (1, 2, 3, 8, 9)] == [
        (1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 9)
    ]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    st.sets(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.25, 1.0, 8.0]),
)
def test_no_way_costs_less(sizes, count, call_cost):
    sizes = tuple(sorted(sizes))
    ways = [
        way
        for length in range(1, count + 1)
        for way in itertools.combinations_with_replacement(sizes, length)
        if sum(way) >= count
    ]
    found = plan(sizes, count, call_cost)
    assert set(found) <= set(sizes) and sum(found) >= count > sum(found) - found[-1]
    assert sum(found) + call_cost * len(found) == min(sum(w) + call_cost * len(w) for w in ways)


class Toy:
    """Adds its two inputs, in int8 with scale 0.5; notes the sizes that it ran."""

    kind, shared, call_cost = "toy", False, 0.25

    def __init__(self, sizes, most=None, lost=False):
        self.sizes, self.most, self.lost, self.ran, self.closed = sizes, most, lost, [], 0
        self.inputs = tuple(Port(n, (-1, 2), np.dtype("int8"), 0.0, 0, 0) for n in "ab")
        self.outputs = (Port("sum", (-1, 2), np.dtype("int8"), 0.5, 1, 0),)

    def run(self, arrays):
        self.ran.append(len(arrays[0]))
        result = arrays[0] + arrays[1]
        return [result[0] if self.lost else result]

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("sizes", "most", "count", "ran"),
    [
        (None, None, 7, [7]),
        (None, 3, 7, [3, 3, 1]),
        ((3,), None, 7, [3, 3, 3]),
        ((1, 2, 4), None, 7, [4, 2, 1]),
        ((1, 2, 4), None, 1, [1]),
        ((2, 3), None, 1, [2]),
    ],
)
def test_what_is_run(sizes, most, count, ran):
    toy, rng = Toy(sizes, most), np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (2, count, 2)).astype(np.int8)
    (got,) = Batches(toy, rows=True)([a, b])
    np.testing.assert_array_equal(got, (a + b - 1.0) * 0.5)
    assert got.dtype == np.float32 and toy.ran == ran


def test_outputs_without_a_batch_are_found_out():
    x = np.zeros((1, 2), np.int8)
    (got,) = Batches(Toy(None, lost=True), rows=False)([x, x])
    assert got.shape == (2,)
    for toy, rows, count in [(Toy(None, lost=True), True, 1), (Toy((3,), lost=True), False, 1)]:
        with pytest.raises(ValueError, match="rows can't be told apart"):
            Batches(toy, rows=rows)([x[:count]] * 2)


def test_closing_waits_and_happens_once():
    toy = Toy(None)
    started, release, run = threading.Event(), threading.Event(), toy.run

    def slow(arrays):
        started.set()
        release.wait(5)
        return run(arrays)

    toy.run = slow
    batches, x, got = Batches(toy, rows=True), np.zeros((2, 2), np.int8), []
    caller = threading.Thread(target=lambda: got.extend(batches([x, x])))
    caller.start()
    started.wait(5)
    closer = threading.Thread(target=batches.close)
    closer.start()
    assert not toy.closed
    release.set()
    caller.join(5)
    closer.join(5)
    batches.close()
    assert len(got) == 1 and toy.closed == 1
    with pytest.raises(ValueError, match="closed"):
        batches([x, x])
