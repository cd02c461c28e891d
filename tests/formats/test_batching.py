"""Splitting arrays into batches, and joining results."""

import numpy as np

from tfkd.formats import batching


def test_chunks_cover_all_examples_in_order():
    x = np.arange(5)
    parts = list(batching.chunks({"x": x, "y": -x}, 2))
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part["y"].tolist() for part in parts] == [[0, -1], [-2, -3], [-4]]


def test_the_last_example_fills_up_the_last_batch():
    assert [rows.tolist() for rows in batching.padded_rows(5, 3)] == [[0, 1, 2], [3, 4, 4]]


def test_results_are_joined_by_name_in_float32():
    found = batching.joined([{"b": [1], "a": [[2]]}, {"b": [3, 4], "a": [[5], [6]]}])
    assert list(found) == ["b", "a"]
    assert found["a"].dtype == np.float32
    assert found["a"].tolist() == [[2], [5], [6]]
    assert found["b"].tolist() == [1, 3, 4]
