"""Accuracy and its spread over seeds."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import report


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_mean_and_sample_standard_deviation(values):
    found = report.seed_stats(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.sd == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert found.values == tuple(values)


def test_formats():
    assert str(report.seed_stats([92.7, 93.1, 93.5])) == "93.1 ± 0.4"
    assert report.seed_stats([92.7, 93.1, 93.5]).format(2) == "93.10 ± 0.40"
    assert str(report.seed_stats(93.14)) == "93.1"
    assert report.seed_stats([93.14]).sd is None


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [[1.0, 2.0]], "abc", None])
def test_seed_stats_refuses(bad):
    with pytest.raises((ValueError, TypeError), match="`values`"):
        report.seed_stats(bad)


def test_accuracy_of_sparse_column_and_one_hot_labels():
    outputs = np.array([[3.0, 1, 0], [0, 1, 2], [0, 5, 1], [9, 1, 1]])
    labels = np.array([0, 2, 0, 1])
    for form in (labels, labels[:, None], np.eye(3)[labels]):
        assert report.accuracy(form, outputs) == 50.0


@pytest.mark.parametrize(
    ("labels", "outputs"),
    [
        ([0, 1], np.zeros((3, 2))),
        ([0], np.zeros((1, 1))),
        (np.zeros((0,)), np.zeros((0, 3))),
        (np.zeros((2, 4)), np.zeros((2, 3))),
        ([0, 1], np.zeros(2)),
    ],
)
def test_accuracy_refuses_shapes_that_do_not_belong_together(labels, outputs):
    with pytest.raises(ValueError, match="`(labels|outputs)`"):
        report.accuracy(labels, outputs)
