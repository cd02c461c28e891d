"""Orders: every prefix holds the easiest, in the shares that classes have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd.curriculum import ordering

quick = settings(deadline=None, max_examples=60)
SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=60).map(np.array)


@quick
@given(scores=SCORES, seed=st.integers(0, 99))
def test_easiest_first_sorts_and_hardest_first_sorts_the_other_way(scores, seed):
    order = ordering.ranked(scores, None, seed=seed)
    np.testing.assert_array_equal(scores[order], np.sort(scores))
    order = ordering.ranked(scores, None, "hardest_first", seed)
    np.testing.assert_array_equal(scores[order], np.sort(scores)[::-1])


@quick
@given(data=st.data(), classes=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_prefix_is_balanced_and_each_class_comes_easiest_first(data, classes, seed):
    count = data.draw(st.integers(classes, 80))
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    scores = rng.normal(size=count) + 10 * labels
    order = ordering.ranked(scores, labels, seed=seed)
    assert sorted(order) == list(range(count))
    shares = np.bincount(labels, minlength=classes) / count
    for size in range(1, count + 1):
        found = np.bincount(labels[order[:size]], minlength=classes)
        # Each class is within half an example of its share of the prefix, and the
        # prefix within half an example a class of its size.
        assert (np.abs(found - size * shares) <= 0.5 + classes * (shares / 2 + 0.5)).all()
    for number in range(classes):
        own = scores[order][labels[order] == number]
        np.testing.assert_array_equal(own, np.sort(own))


def test_without_balance_an_easy_class_would_come_alone():
    scores, labels = np.arange(8.0), np.array([0] * 4 + [1] * 4)
    assert set(labels[ordering.ranked(scores, None)[:4]]) == {0}
    assert np.bincount(labels[ordering.ranked(scores, labels)[:4]]).tolist() == [2, 2]


def test_random_order_ignores_scores_and_follows_the_seed():
    first = ordering.ranked(np.arange(50.0), None, "random", 1)
    np.testing.assert_array_equal(first, ordering.ranked(-np.arange(50.0), None, "random", 1))
    assert (first != ordering.ranked(np.arange(50.0), None, "random", 2)).any()
    assert sorted(first) == list(range(50))


def test_equal_scores_do_not_keep_the_order_of_the_file():
    order = ordering.ranked(np.zeros(100), None)
    assert np.abs(order[:50] - np.arange(50)).mean() > 10


@pytest.mark.parametrize(
    "labels",
    [np.array([[1], [0]]), np.array([1, 0]), np.array([[0, 1], [1, 0]]), np.array([1.0, 0.0])],
)
def test_class_numbers_of_every_form(labels):
    assert ordering.class_numbers(labels, 2).tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels", [None, np.array([0.5, 1.0]), np.zeros((2, 2)), np.array([1]), "ab"]
)
def test_what_has_no_classes_is_refused(labels):
    with pytest.raises(ValueError, match="balance_classes=False"):
        ordering.class_numbers(labels, 2)
