"""The result cache against a plain dictionary, and what its keys tell apart."""

import collections
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import artifacts
from tfkd.runtime import CacheInfo, Predictor
from tfkd.runtime.result_cache import ResultCache, key_of


class Model:
    """Doubles and sums; counts the rows that it ran."""

    def __init__(self):
        self.ran = []

    def __call__(self, arrays):
        (x,) = arrays
        self.ran += x[:, 0].tolist()
        return [2.0 * x, x.sum(1)]


def batch(values):
    return np.array([[v, -v, 1] for v in values], np.float32)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), max_size=12),
)
def test_the_least_recently_used_go_first(size, calls):
    cache, model = ResultCache(size), Model()
    kept, hits, misses, ran = collections.OrderedDict(), 0, 0, []
    for values in calls:
        x = batch(values)
        doubled, summed = cache.answer([x], model)
        np.testing.assert_array_equal(doubled, 2 * x)
        np.testing.assert_array_equal(summed, np.ones(len(x)))
        doubled[:] = np.nan  # the caller's own

        found = [v for v in values if v in kept]
        new = dict.fromkeys(v for v in values if v not in kept)
        for value in found:
            kept.move_to_end(value)
        hits, misses = hits + len(found), misses + len(values) - len(found)
        ran += new
        for value in new:
            kept[value] = None
        while len(kept) > size:
            kept.popitem(last=False)
        assert cache.info() == CacheInfo(hits, misses, len(kept), size)
        assert sorted(model.ran) == sorted(ran)
    cache.clear()
    assert cache.info() == CacheInfo(0, 0, 0, size) and cache.info().hit_rate == 0


def test_what_a_key_tells_apart():
    large = np.zeros((1, 1000), np.float32)
    changed = large.copy()
    changed[0, 999] = -0.0  # other bytes, though equal as a number
    rows = [
        (np.zeros((1, 4), np.float32),),
        (np.zeros((1, 2, 2), np.float32),),
        (np.zeros((1, 5), np.float32),),
        (np.full((1, 4), -0.0, np.float32),),
        (large,),
        (changed,),
        (large.reshape(1, 10, 100),),
        (np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)),
        (np.zeros((1, 8), np.float32), np.zeros((1, 0), np.float32)),
    ]
    assert len({key_of(row) for row in rows}) == len(rows)
    nan = np.full((1, 3), np.nan, np.float32)
    assert key_of([nan]) == key_of([nan.copy()])


def test_a_result_belongs_to_its_caller():
    cache, model = ResultCache(5), Model()
    one, two = batch([3]), batch([3, 4])
    for x in (one, one, two, two):
        first, _ = cache.answer([x], model)
        np.testing.assert_array_equal(first, 2 * x)
        first += 100
        x = x.copy()
    assert model.ran == [3.0, 4.0]


def test_an_input_that_is_changed_later_is_another():
    cache, model = ResultCache(5), Model()
    x = batch([3])
    cache.answer([x], model)
    x[:] = batch([5])
    np.testing.assert_array_equal(cache.answer([x], model)[0], batch([5]) * 2)


def test_errors_are_not_kept():
    cache = ResultCache(5)

    def fail(arrays):
        raise RuntimeError("no")

    for x in (batch([1]), batch([1, 2])):
        with pytest.raises(RuntimeError):
            cache.answer([x], fail)
    assert cache.info().size == 0


def test_threads_share_it():
    cache, model, wrong = ResultCache(8), Model(), []

    def hammer(seed):
        rng = np.random.default_rng(seed)
        for _ in range(300):
            x = batch(rng.integers(0, 16, rng.integers(1, 4)))
            if not np.array_equal(cache.answer([x], model)[0], 2 * x):
                wrong.append(x)

    threads = [threading.Thread(target=hammer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = cache.info()
    assert not wrong and info.size == 8 and info.hits > 0


def test_a_hit_takes_microseconds(tmp_path):
    import tf_keras as keras

    from tfkd import export

    model = keras.Sequential([keras.layers.Dense(3, input_shape=(64,))])
    path = export.to_tflite(model, tmp_path / "m.tflite").path
    assert artifacts.verify(path)
    predictor, x = Predictor(path, cache_size=10), np.ones((1, 64), np.float32)
    want, taken = predictor(x), []
    for _ in range(1000):
        start = time.perf_counter()
        got = predictor(x)
        taken.append(time.perf_counter() - start)
    np.testing.assert_array_equal(got, want)
    assert np.percentile(taken, 10) < 20e-6  # others may take the processor meanwhile
    assert predictor.cache_info() == CacheInfo(1000, 1, 1, 10)
    predictor.cache_clear()
    assert predictor.cache_info() == CacheInfo(0, 0, 0, 10)
