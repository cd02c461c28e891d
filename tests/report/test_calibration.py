"""Expected calibration error by hand, and what counts as a confidence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import report
from tfkd.data.labels import read
from tfkd.report.calibration import confidences


def test_the_error_by_hand():
    # Bins of a fifth: 0.3 and 0.35 in (0.2, 0.4], 0.9 twice and 1.0 in (0.8, 1.0].
    found = report.calibration_error(
        [0.3, 0.35, 0.9, 0.9, 1.0], [True, False, True, False, True], bins=5
    )
    low, high = abs(1 / 2 - 0.325), abs(2 / 3 - 2.8 / 3)
    assert found.ece == pytest.approx(2 / 5 * low + 3 / 5 * high)
    assert found.counts == (0, 2, 0, 0, 3)
    np.testing.assert_allclose(found.confidence[1::3], [0.325, 2.8 / 3])
    np.testing.assert_allclose(found.accuracy[1::3], [1 / 2, 2 / 3])
    assert np.isnan(found.confidence[0]) and np.isnan(found.accuracy[2])


def test_a_confidence_at_the_end_of_a_bin_belongs_to_it():
    # Also if it is a float32, whose 0.6 is 0.60000002.
    for dtype in ("float32", "float64"):
        values = np.array([0.0, 0.2, 0.6, 1.0], dtype)
        found = report.calibration_error(values, [True] * 4, bins=5)
        assert found.counts == (2, 0, 1, 0, 1)


def test_fifteen_bins_and_a_calibrated_model():
    found = report.calibration_error(np.full(10, 0.7), np.arange(10) < 7)
    assert len(found.counts) == 15 and found.ece == pytest.approx(0.0)
    assert "Expected calibration error 0.0000." in str(found)


@pytest.mark.parametrize(
    "bad", [([], []), ([0.5], [True, False]), ([1.2], [True]), ([np.nan], [1])]
)
def test_it_refuses(bad):
    with pytest.raises(ValueError, match="`confidence`"):
        report.calibration_error(*bad)


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


LOGITS = np.array([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0], [-1.0, 0.0, 4.0]])
LABELS = np.array([0, 1, 2])


def test_logits_probabilities_and_int8_probabilities_agree():
    expected = softmax(LOGITS).max(-1)
    np.testing.assert_allclose(confidences(read(LABELS, LOGITS)), expected)
    np.testing.assert_allclose(confidences(read(LABELS, softmax(LOGITS))), expected)
    codes = np.rint(softmax(LOGITS) * 256) / 256  # rows no longer sum to 1
    np.testing.assert_allclose(confidences(read(LABELS, codes)), expected, atol=1 / 256)
    np.testing.assert_allclose(confidences(read(LABELS, np.log(softmax(LOGITS)))), expected)


def test_a_single_unit_is_as_sure_of_no_as_of_yes():
    labels, odds = np.array([0, 1, 1]), np.array([-2.0, 0.5, 3.0])
    positive = 1 / (1 + np.exp(-odds))
    expected = np.where(odds > 0, positive, 1 - positive)
    np.testing.assert_allclose(confidences(read(labels, odds)), expected)
    np.testing.assert_allclose(confidences(read(labels, positive)), expected)


def test_each_of_several_labels_has_a_confidence():
    labels = np.array([[1, 0], [1, 1]])
    found = confidences(read(labels, [[0.9, 0.2], [0.4, 0.6]], task="multi_label"))
    np.testing.assert_allclose(found, [[0.9, 0.8], [0.6, 0.6]])


def test_numbers_have_none():
    assert confidences(read([1.5, 2.5], [[1.0], [2.0]], task="regression")) is None


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.floats(0.05, 20.0), st.booleans(), st.integers(0, 1000))
def test_the_temperature_has_the_highest_likelihood(classes, size, squashed, seed):
    rng = np.random.default_rng(seed)
    true = 3 * rng.normal(size=(2000, classes))
    odds = np.exp(true - true.max(1, keepdims=True))
    p = odds / odds.sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random((2000, 1))).sum(1).clip(max=classes - 1)
    z = size * true
    wanted = np.where(np.eye(classes)[y] == 1, 2001, 1 / (classes - 1)) / 2002

    def likelihood(t):
        return (wanted * (z / t - np.log(np.exp(z / t).sum(1, keepdims=True)))).sum()

    given_scores = z
    if squashed:
        given_scores = np.exp(z - z.max(1, keepdims=True))
        given_scores /= given_scores.sum(1, keepdims=True)
        z = np.log(np.maximum(given_scores, np.finfo("float32").tiny))
    found = report.fit_temperature(given_scores, y)
    assert likelihood(found) >= max(likelihood(0.98 * found), likelihood(1.02 * found))
    assert found == pytest.approx(size, rel=0.35)


def test_a_model_that_is_right_on_all_of_few_examples_is_not_made_certain():
    found = report.fit_temperature(3 * np.eye(3)[[0, 1, 2, 0]], [0, 1, 2, 0])
    sure = np.exp(3 / found) / (np.exp(3 / found) + 2)
    assert sure == pytest.approx(5 / 6, rel=1e-3)  # (N + 1) / (N + 2)


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (np.zeros((4, 1)), [0] * 4, r"`scores`.*2 classes or more.*\(4, 1\)"),
        (np.zeros((0, 3)), [], "`scores`"),
        (np.zeros((4, 3)), [0] * 3, "`scores`.*labels"),
        (np.eye(3), [0, 1, 3], "`labels`.*below 3"),
        (np.eye(3), [0.0, 1.0, 2.0], "`labels`.*below 3"),
        (np.full((3, 3), np.nan), [0, 1, 2], "`scores`.*finite"),
        (np.ones((3, 3)), [0, 1, 2], "`scores`.*the same for all classes"),
    ],
)
def test_scores_without_a_temperature(scores, labels, said):
    with pytest.raises(ValueError, match=said):
        report.fit_temperature(scores, np.array(labels))
