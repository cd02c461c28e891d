"""Results by class and example: confusion, agreement, examples that changed class."""

import numpy as np
import pytest

from tfkd import report, results
from tfkd.data.labels import read
from tfkd.report.class_details import Predicted

NAMES = ("cat", "dog", "owl")
#          right before   lost  gained  both wrong  same wrong
TRUTH = np.array([0, 0, 1, 1, 2, 2])
BEFORE = np.array([0, 0, 1, 0, 0, 1])
AFTER = np.array([0, 0, 2, 1, 1, 1])


def sure(classes, confidence):
    """Probabilities (N, 3) with this confidence in these classes."""
    rest = (1 - np.asarray(confidence)) / 2
    made = np.tile(rest[:, None], (1, 3))
    made[np.arange(len(classes)), classes] = confidence
    return made


P_BEFORE = sure(BEFORE, [0.9, 0.9, 0.7, 0.6, 0.5, 0.8])
P_AFTER = sure(AFTER, [0.8, 0.9, 0.55, 0.75, 0.45, 0.8])


def made(outputs, labels=TRUTH, **options):
    return Predicted.of(read(labels, outputs, **options))


def test_a_confusion_matrix_by_hand():
    found = made(P_AFTER).details(NAMES)
    expected = [[2, 0, 0], [0, 1, 1], [0, 2, 0]]
    assert found.confusion().tolist() == expected
    assert (found.truth, found.predicted, found.right) == ((2, 2, 2), (2, 3, 1), (2, 1, 0))
    assert found.recall == found.class_scores == (100.0, 50.0, 0.0)
    assert found.precision == (100.0, pytest.approx(100 / 3), 0.0)
    assert found.confused == ((2, 1, 2), (1, 2, 1))
    assert found.agreement is None and found.changes == ()


def test_a_class_without_examples_has_no_recall():
    found = made(P_AFTER[:3], TRUTH[:3]).details(NAMES)
    assert np.isnan(found.recall[2]) and found.recall[:2] == (100.0, 0.0)


def test_what_changed_against_the_original():
    found = made(P_AFTER).details(NAMES, "teacher", made(P_BEFORE))
    assert found.agreement == 50.0 and found.compared_with == "teacher"
    assert (found.changed, found.lost, found.gained) == (3, 1, 1)
    lost, gained, wrong = found.changes
    assert (lost.example, lost.truth, lost.before, lost.after) == (2, "dog", "dog", "owl")
    assert (lost.confidence_before, lost.confidence_after) == pytest.approx((0.7, 0.55))
    assert (gained.example, gained.kind) == (3, "gained") and lost.kind == "lost"
    assert (wrong.example, wrong.kind) == (4, "both wrong")
    assert "Agreement with teacher 50.00 %: 3 examples changed, 1 lost, 1 gained." in str(found)


def test_examples_to_show_are_of_all_kinds():
    labels = np.zeros(90, int)
    before = np.repeat([0, 1, 1], 30)  # right, wrong, wrong
    after = np.repeat([1, 0, 2], 30)  # lost, gained, both wrong
    pairs = (made(sure(one, np.linspace(0.5, 0.9, 90)), labels) for one in (after, before))
    new, old = pairs
    shown = new.details(NAMES, "x", old).to_show(24)
    kinds = [one.kind for one in shown]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "lost": 12, "gained": 6, "both wrong": 6
    }  # fmt: skip
    assert [one.example for one in shown[:2]] == [29, 28]  # the most confident first
    few = new.details(NAMES, "x", old)
    assert len(few.to_show(1000)) == 90


def test_ignored_examples_keep_the_numbers_of_the_others():
    mask = np.array([0, 0, 1, 1, 1, 1])
    found = made(P_AFTER, mask=mask).details(NAMES, "x", made(P_BEFORE, mask=mask))
    assert [one.example for one in found.changes] == [2, 3, 4]


def test_positions_of_an_example_are_counted_but_not_listed():
    labels, outputs = TRUTH.reshape(2, 3), (P_BEFORE.reshape(2, 3, 3), P_AFTER.reshape(2, 3, 3))
    before, after = (made(one, labels) for one in outputs)
    found = after.details(NAMES, "x", before)
    assert found.agreement == 50.0 and found.changed == 3 and found.changes == ()


def test_several_labels():
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    before = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.9], [0.4, 0.1]])
    after = np.array([[0.9, 0.1], [0.8, 0.3], [0.2, 0.9], [0.6, 0.1]])
    old, new = (made(one, labels, task="multi_label") for one in (before, after))
    found = new.details(["sun", "rain"], "x", old)
    assert found.multi_label and found.agreement == 50.0 and found.lost == 2
    # sun: 2 hits of 2 with 3 predicted; rain: 1 hit of 2 with 1 predicted.
    assert found.class_scores == (pytest.approx(100 * 4 / 5), pytest.approx(100 * 2 / 3))
    assert [one.truth for one in found.changes] == ["sun, rain", "none"]
    assert found.changes[0].after == "sun"
    with pytest.raises(ValueError, match="no confusion matrix"):
        found.confusion()


def test_a_regression_has_no_classes():
    assert Predicted.of(read([1.5, 2.0], [[1.0], [2.0]], task="regression")) is None


def test_json_and_back():
    found = made(P_AFTER).details(NAMES, "teacher", made(P_BEFORE))
    again = results.restored(report.ClassDetails, found.to_dict())
    assert again.to_dict() == found.to_dict()
    assert again.changes == found.changes and again.confusion().tolist() == (
        found.confusion().tolist()
    )


def test_compare_gives_them():
    x = np.concatenate([P_BEFORE, P_AFTER], 1).astype("float32")
    table = report.compare(
        {"before": lambda x: x[:, :3], "after": lambda x: x[:, 3:]},
        (x, TRUTH), runs=2, throughput_batch=None, class_names=NAMES,
    )  # fmt: skip
    before, after = (row.details for row in table.rows)
    assert before.agreement is None and before.class_names == NAMES
    assert (after.agreement, after.lost, after.gained) == (50.0, 1, 1)
    assert after.confusion().tolist() == [[2, 0, 0], [0, 1, 1], [0, 2, 0]]
    # ECE: confidences 0.8, 0.9, 0.55, 0.75, 0.45, 0.8 of right, right, wrong, right, wrong,
    # wrong; 0.75 and 0.8 are in the bin from 11/15 to 12/15.
    bins = [(0.8 + 0.75 + 0.8, 2), (0.9, 1), (0.55, 0), (0.45, 0)]
    expected = sum(abs(confidence - right) for confidence, right in bins) / 6
    assert after.ece == pytest.approx(expected, abs=1e-6)
    again = report.Table.from_dict(table.to_dict())
    assert again.to_dict() == table.to_dict() and again.text() == table.text()
