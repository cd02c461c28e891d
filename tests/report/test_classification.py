"""Precision, recall and F1 against counts of hits and misses in NumPy."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import artifacts, report

LABELS = [0, 0, 0, 1, 1, 2]
ANSWERS = [0, 0, 1, 1, 2, 2]


def outputs_of(answers, classes=3):
    """Logits whose largest is at the answer."""
    return np.eye(classes)[answers] * 3.0 - 1.5


def by_hand(labels, answers, classes):
    """One row (precision, recall, F1, support) a class, in percent; 0 for 0/0."""
    labels, answers = np.array(labels), np.array(answers)
    rows = []
    for c in range(classes):
        hits = np.sum((labels == c) & (answers == c))
        given, there = np.sum(answers == c), np.sum(labels == c)
        p, r = hits / max(given, 1), hits / max(there, 1)
        f1 = 2 * p * r / (p + r) if hits else 0.0
        rows.append([100 * p, 100 * r, 100 * f1, there])
    return np.array(rows)


def numbers(scores):
    return [scores.precision, scores.recall, scores.f1, scores.support]


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(2, 5))
def test_scores_and_means_by_hand(draw, classes):
    pair = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1))
    pairs = draw.draw(st.lists(pair, min_size=1, max_size=30))
    labels, answers = (list(column) for column in zip(*pairs, strict=True))
    found = report.classification(labels, outputs_of(answers, classes))
    want = by_hand(labels, answers, classes)
    np.testing.assert_allclose([numbers(row) for row in found.classes], want, atol=1e-9)
    count = len(labels)
    np.testing.assert_allclose(numbers(found.macro), [*want[:, :3].mean(0), count], atol=1e-9)
    weighted = (want[:, :3] * want[:, 3:]).sum(0) / count
    np.testing.assert_allclose(numbers(found.weighted), [*weighted, count], atol=1e-9)
    assert found.accuracy == pytest.approx(100 * np.mean(np.equal(labels, answers)))
    assert found.accuracy == report.accuracy(labels, outputs_of(answers, classes))


def test_forms_of_labels_and_names():
    outputs = outputs_of(ANSWERS)
    found = report.classification(LABELS, outputs, ["a", "b", "c"])
    for labels in (np.array(LABELS)[:, None], np.eye(3)[LABELS]):
        assert report.classification(labels, outputs, ("a", "b", "c")) == found
    assert [row.name for row in found.classes] == ["a", "b", "c"]
    assert [row.name for row in report.classification(LABELS, outputs).classes] == ["0", "1", "2"]


def test_the_table_as_text_and_printed(capsys):
    found = report.classification(LABELS, outputs_of(ANSWERS), ["a", "b|c", "d"])
    text = str(found)
    lines = text.splitlines()
    # a: 2 of 2 given, 2 of 3 found. b: 1 of 2, 1 of 2. d: 1 of 2, 1 of 1.
    assert lines[2].split() == ["a", "100.0", "66.7", "80.0", "3"]
    assert lines[3].split() == ["b|c", "50.0", "50.0", "50.0", "2"]
    assert lines[4].split() == ["d", "50.0", "100.0", "66.7", "1"]
    assert lines[6].split() == ["mean", "66.7", "72.2", "65.6", "6"]
    assert lines[7].split() == ["weighted", "mean", "75.0", "66.7", "67.8", "6"]
    assert lines[-1] == "Accuracy 66.7 % of 6 examples."
    assert len({len(line) for line in lines[:8]}) == 1
    print(found)
    assert capsys.readouterr().out == text + "\n"


def test_markdown_is_one_table_with_escaped_bars():
    found = report.classification(LABELS, outputs_of(ANSWERS), ["a", "b|c", "d"])
    lines = found.markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 7
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    assert "| b\\|c | 50.0 | 50.0 | 50.0 | 2 |" in lines
    assert lines[-1] == "Accuracy 66.7 % of 6 examples."


def test_as_json(tmp_path):
    found = report.classification(LABELS, outputs_of(ANSWERS), ["a", "b", "c"])
    artifacts.write_json(tmp_path / "scores.json", found.to_dict())
    read = json.loads((tmp_path / "scores.json").read_text())
    assert set(read) == {"classes", "accuracy", "macro", "weighted"}
    assert read["classes"][0]["name"] == "a"
    assert read["classes"][0]["recall"] == pytest.approx(200 / 3)
    assert read["macro"]["support"] == 6


def test_a_class_that_is_never_there_and_one_never_given():
    found = report.classification([0, 0, 1], outputs_of([0, 2, 0]))
    assert numbers(found.classes[1]) == [0, 0, 0, 1]
    assert numbers(found.classes[2]) == [0, 0, 0, 0]


NAN = outputs_of(ANSWERS)
NAN[4, 1] = np.nan


@pytest.mark.parametrize(
    ("labels", "outputs", "names", "said"),
    [
        ([0, 1], np.zeros((3, 2)), None, "`labels`.*3 examples"),
        ([0], np.zeros((1, 1)), None, "`outputs`"),
        ([], np.zeros((0, 3)), None, "`outputs`"),
        ([0, 1], np.zeros(2), None, "`outputs`"),
        ([0], [["a", "b"]], None, "`outputs`.*numbers"),
        (np.zeros((2, 4)), np.zeros((2, 3)), None, "`labels`"),
        ([0.0, 1.5], np.zeros((2, 3)), None, "`labels`.*class numbers"),
        ([0, 3], np.zeros((2, 3)), None, "`labels`.*0 to 2, received 3"),
        ([0, -1], np.zeros((2, 3)), None, "`labels`.*received -1"),
        (LABELS, NAN, None, "Example 4 holds NaN"),
        (LABELS, outputs_of(ANSWERS), ["a", "b"], "`class_names`.*3 names"),
        (LABELS, outputs_of(ANSWERS), "abc", "`class_names`"),
    ],
)
def test_what_is_refused(labels, outputs, names, said):
    with pytest.raises((TypeError, ValueError), match=said):
        report.classification(labels, outputs, names)


def test_whole_numbers_may_be_floats():
    as_floats = np.array(LABELS, np.float32)
    expected = report.classification(LABELS, outputs_of(ANSWERS))
    assert report.classification(as_floats, outputs_of(ANSWERS)) == expected
    assert report.classification(as_floats[:, None], outputs_of(ANSWERS)) == expected
    found = report.classification(np.float32([0, 1, 1, 1]), [0.2, 0.7, 0.4, 0.9])
    assert found.accuracy == 75


def test_several_labels_an_example():
    y = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    p = np.array([[0.9, 0.2], [0.8, 0.7], [0.6, 0.1], [0.3, 0.4]])
    with pytest.warns(UserWarning, match="multi-label"):
        found = report.classification(y, p, ["sun", "rain"])
    # sun: 3 said, 2 of them right, 2 of 2 found. rain: 1 of 1 right, 1 of 2 found.
    want = [[200 / 3, 100, 80, 2], [100, 50, 200 / 3, 2]]
    np.testing.assert_allclose([numbers(row) for row in found.classes], want)
    assert found.accuracy == 50.0 and found.average_precision == 100.0
    note = "Subset accuracy 50.0 % of 4 examples. Mean average precision 100.0 %."
    assert str(found).endswith(note)
    assert found.to_dict()["subset_accuracy"] == 50.0 and "accuracy" not in found.to_dict()


def test_names_as_labels_places_and_one_unit():
    names = ["a", "b", "c"]
    assert report.classification([names[i] for i in LABELS], outputs_of(ANSWERS), names) == (
        report.classification(LABELS, outputs_of(ANSWERS), names)
    )
    tagged = np.reshape([*LABELS[:5], -1], (2, 3)), outputs_of(ANSWERS).reshape(2, 3, 3)
    found = report.classification(*tagged, ignore_class=-1)
    assert found == report.classification(LABELS[:5], outputs_of(ANSWERS[:5]))
    one = report.classification([0, 1, 1], [[-1.0], [2.0], [-3.0]], ["no", "yes"])
    assert [row.name for row in one.classes] == ["no", "yes"]
    assert one.classes[1].recall == 50.0 and one.classes[1].precision == 100.0


def test_numbers_have_no_classes():
    numbers = np.random.default_rng(0).normal(size=(5, 3))
    for options in ({}, {"task": "regression"}):
        with pytest.raises(ValueError, match="tfkd.report.score"):
            report.classification(numbers, numbers, **options)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"tfkd\[demo\]"):
        report.classification(LABELS, outputs_of(ANSWERS))
