"""Wrong labels: how many, which, and that the others stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import data


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 200),
    classes=st.integers(2, 9),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_just_that_many_are_wrong(count, classes, fraction, seed):
    labels = np.random.default_rng(1).integers(0, classes, count).astype(np.int32)
    noisy = data.noisy_labels(labels, fraction, classes, seed)
    assert (noisy != labels).sum() == round(fraction * count)
    assert noisy.dtype == labels.dtype and ((noisy >= 0) & (noisy < classes)).all()
    np.testing.assert_array_equal(noisy, data.noisy_labels(labels, fraction, classes, seed))


def test_every_other_class_is_as_likely():
    noisy = data.noisy_labels(np.full(9000, 2), 1.0, 4)
    np.testing.assert_allclose(np.bincount(noisy) / 9000, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": np.array([0.5])}, "`labels`"),
        ({"labels": np.array([3])}, "labels from 0 to 2"),
        ({"labels": np.array([-1])}, "labels from 0 to 2"),
        ({"fraction": 1.5}, "`fraction`"),
        ({"num_classes": 1}, "`num_classes`"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        data.noisy_labels(
            **{"labels": np.array([0]), "fraction": 0.5, "num_classes": 3, **arguments}
        )
