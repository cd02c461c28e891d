"""Accuracy and its spread over seeds."""

import statistics
import warnings

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


def test_each_task_has_its_score():
    rng = np.random.default_rng(0)
    y = (rng.uniform(size=(200, 5)) < 0.5).astype(int)
    p = np.where(y, 0.9, 0.1) + rng.uniform(-0.05, 0.05, y.shape)
    with pytest.warns(UserWarning, match="multi-label.*threshold of 0.5"):
        assert report.accuracy(y, p) == 100.0
    p[:50, 0] = 1 - p[:50, 0]
    assert report.accuracy(y, p, task="multi_label") == 75.0
    t = rng.normal(size=(200, 3))
    with pytest.warns(UserWarning, match="regression.*mean absolute error"):
        assert report.accuracy(t, t * 1e-3 - 7) == pytest.approx(np.abs(t * 0.999 + 7).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report.accuracy(t, t - 7, task="regression") == pytest.approx(7.0)
        assert report.accuracy(["b", "a"], [[1, 2], [1, 2]], class_names=["a", "b"]) == 50.0
        assert report.accuracy([1, 0], [[0.7], [0.6]]) == 50.0


def test_a_score_says_what_it_is():
    found = report.score([[0.5, 1.5]], [[0.75, 1.0]], task="regression")
    assert (found.value, found.accuracy, found.mean_absolute_error) == (0.375, None, 0.375)
    assert str(found) == "mean absolute error 0.375 of 1 examples"
    words = np.array([[0, 1, -1], [1, -1, -1]])
    outputs = np.array([[[2, 1], [1, 2], [9, 1]], [[3, 1], [9, 1], [9, 1]]])
    found = report.score(words, outputs, ignore_class=-1)
    assert (found.examples, found.accuracy) == (3, pytest.approx(200 / 3))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**16), st.integers(2, 40), st.integers(2, 4))
def test_mean_average_precision_as_scikit_learn(seed, examples, labels):
    """Scores have few values, so that ties are frequent."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, (examples, labels)), rng.integers(0, 6, (examples, labels)) / 5
    y[0] = 1  # each label is there at least once
    found = report.score(y, p, task="multi_label").average_precision
    assert found == pytest.approx(100 * metrics.average_precision_score(y, p, average="macro"))


def test_labels_that_no_example_has_are_left_out_of_the_mean():
    y, p = np.array([[1, 0], [0, 0]]), np.array([[0.3, 0.9], [0.6, 0.1]])
    assert report.score(y, p, task="multi_label").average_precision == 50.0
    nothing = report.score(0 * y, p * 0, task="multi_label")
    assert (nothing.average_precision, nothing.subset_accuracy) == (None, 100.0)


def test_standard_errors_by_hand():
    found = report.score([0, 1, 1, 0], [[2, 1], [0, 3], [5, 4], [8, 1]])  # 3 of 4 are right
    assert found.standard_error == pytest.approx(100 * (0.75 * 0.25 / 4) ** 0.5)
    found = report.score([20.0, 30.0, 31.5], [[21.0], [28.0], [31.5]], task="regression")
    assert found.standard_error == pytest.approx(np.std([1.0, 2.0, 0.0]) / 3**0.5)
    stats = report.seed_stats(75.0, found.standard_error)
    assert stats.noise == found.standard_error and report.seed_stats(75.0).noise == 0
    assert report.seed_stats([74.0, 76.0], 1.0).noise == pytest.approx(2**0.5)
