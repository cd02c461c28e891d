"""`read`: what labels and outputs are found to be, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd.data.labels import read

RNG = np.random.default_rng(0)
TRUTH = np.array([0, 2, 1, 1])
SCORES = np.array([[3.0, 1, 0], [0, 1, 2], [0, 5, 1], [9, 1, 1]])  # the last is wrong
RIGHT = [True, True, True, False]


@pytest.mark.parametrize(
    "labels",
    [
        TRUTH,
        TRUTH[:, None].astype("float32"),
        TRUTH.tolist(),
        tf.constant(TRUTH),
        np.eye(3, dtype="uint8")[TRUTH],
        tf.constant(np.eye(3)[TRUTH], tf.bfloat16),
    ],
)
def test_class_numbers_and_one_hot_rows(labels):
    found = read(labels, SCORES)
    assert (found.task, found.classes, found.threshold, found.doubt) == (
        "classification",
        3,
        None,
        "",
    )
    assert found.labels.tolist() == TRUTH.tolist() and found.right.tolist() == RIGHT


NAMES = ["Käse", "Brot", "Wein"]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(NAMES)[TRUTH],
        np.array(NAMES, object)[TRUTH][:, None],
        np.array([name.encode() for name in NAMES])[TRUTH],
        ["Ka\u0308se", "Wein", "Brot", "Brot"],  # ä as a and two dots
    ],
)
def test_names_of_classes(labels):
    assert read(labels, SCORES, class_names=NAMES).labels.tolist() == TRUTH.tolist()


def test_one_unit_tells_two_classes_apart():
    for outputs, limit in (([[0.4], [0.6], [0.2]], 0.5), ([[-1.0], [2.0], [-3.0]], 0.0)):
        for form in (outputs, np.ravel(outputs)):
            found = read([0, 1, 1], form)
            assert (found.task, found.threshold, found.doubt) == ("classification", limit, "")
            assert found.right.tolist() == [True, True, False]
    # 8-bit probabilities may pass 1 a little; a threshold of one's own counts.
    assert read([1.0, 0.0], [[1.004], [0.3]]).threshold == 0.5
    assert read([0, 1], [0.6, 0.8], threshold=0.7).right.tolist() == [True, True]
    assert read(["no", "yes"], [-1, 1], class_names=["no", "yes"]).right.all()


def test_several_labels_an_example():
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    outputs = np.array([[0.9, 0.1, 0.8], [0.2, 0.1, 0.7], [0.6, 0.8, 0.9]])
    for scores, limit in ((outputs, 0.5), (np.log(outputs / (1 - outputs)), 0.0)):
        found = read(labels, scores)
        assert (found.task, found.threshold) == ("multi_label", limit)
        assert f"threshold of {limit:g}" in found.doubt and "multi_label" in found.doubt
        assert found.right.tolist() == [True, False, True]
    # By chance each row has one 1: the values say one-hot, what is told counts.
    by_chance = np.eye(3, dtype=int)
    assert read(by_chance, SCORES[:3]).task == "classification"
    doubtful = read(by_chance, outputs)
    assert doubtful.task == "classification" and 'task="multi_label"' in doubtful.doubt
    told = read(by_chance, outputs, task="multi_label")
    assert (told.task, told.doubt) == ("multi_label", "")


def test_numbers_to_be_predicted():
    for labels, outputs in (
        (RNG.normal(size=(20, 3)), RNG.normal(size=(20, 3))),
        (RNG.normal(size=20), RNG.normal(size=(20, 1))),
        (RNG.integers(18, 90, (20, 1)), RNG.normal(size=20)),
        (RNG.normal(size=(4, 6, 2)), RNG.normal(size=(4, 6, 2))),
    ):
        found = read(labels, outputs)
        assert found.task == "regression" and 'task="regression"' in found.doubt
        np.testing.assert_array_equal(found.labels.ravel(), labels.ravel())
    # 0 and 1 may be numbers too, if one says so.
    assert read([0, 1], [[0.2], [0.9]], task="regression").task == "regression"


def test_soft_rows_are_a_class_each_and_said():
    found = read([[0.9, 0.05, 0.05], [0.1, 0.2, 0.7]], SCORES[:2])
    assert found.labels.tolist() == [0, 2] and "soft labels" in found.doubt


def test_places_of_sequences_and_images():
    outputs = RNG.normal(size=(2, 4, 5, 3))
    answers = outputs.argmax(-1)
    for labels in (answers, answers[..., None], np.eye(3)[answers]):
        assert read(labels, outputs).right.sum() == 40
    wrong = answers.copy()
    wrong[0, :, 0] = 255
    found = read(wrong, outputs, ignore_class=255)
    assert found.right.tolist() == [True] * 36
    mask = np.ones((2, 4, 5), int)
    mask[0, :, 0] = 0
    assert len(read(wrong, outputs, mask=mask).labels) == 36
    assert len(read(wrong, outputs, mask=[0, 1]).labels) == 20
    # One unit a place, as of a mask of foreground.
    there = (wrong == 255).astype(int)
    found = read(there, there[..., None] * 2.0 - 1)
    assert (found.task, found.right.sum()) == ("classification", 40)


SOFTMAX = [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]
NAN, INF = SCORES.copy(), SCORES.copy()
NAN[2, 1], INF[1, 0] = np.nan, -np.inf


@pytest.mark.parametrize(
    ("labels", "outputs", "options", "said"),
    [
        (TRUTH, NAN, {}, "`outputs`.*Example 2 holds NaN"),
        (TRUTH, INF, {}, "`outputs`.*Example 1 holds infinity"),
        ([0, np.nan, 1, 1], SCORES, {}, "`labels`.*Example 1 holds NaN"),
        (TRUTH + 1, SCORES, {}, r"from 0 to 2, received 3.*labels - 1"),
        ([0, -1, 2, 1], SCORES, {}, "received -1.*example 1.*ignore_class"),
        ([0, 1.5, 2, 1], SCORES, {}, "`labels`.*class numbers.*example 1 is 1.5"),
        (TRUTH[:3], SCORES, {}, "`labels`.*for 4 examples"),
        (np.eye(4)[TRUTH], SCORES, {}, "`labels`.*for 4 examples"),
        ([[1, 1, 0], [1, 0, 0]], SOFTMAX, {}, "one-hot rows.*example 0 holds 2 ones"),
        ([[0, 0, 0], [1, 0, 0]], SCORES[:2], {"task": "classification"}, "example 0 is not"),
        ([[1, 0, 2], [1, 0, 0]], SCORES[:2], {"task": "multi_label"}, "example 0 is not"),
        (np.eye(3) * 255, SCORES[:3], {}, "`labels`.*0 and 1.*two values"),
        ([-1, 1, 1], [-0.5, 0.2, 3], {}, r"received \[-1, 1\]"),
        ([1, 2, 2], [[-0.5], [0.2], [3]], {}, r"received \[1, 2\]"),
        ([0, 1, 2], [0.1, 0.4, 2.0], {"task": "classification"}, "received 2.*example 2"),
        (TRUTH, SCORES, {"task": "regression"}, "shape of the outputs"),
        (TRUTH == 1, SCORES, {}, r"`labels`.*bool.*astype\(int\)"),
        (TRUTH.astype(object), SCORES, {}, "`labels`.*object"),
        (["a", None, "b", "c"], SCORES, {"class_names": "a b c".split()}, "`labels`.*object"),
        ([[0], [1, 2]], SCORES[:2], {}, "`labels`.*NumPy says"),
        ([], np.zeros((0, 3)), {}, "`outputs`"),
        (TRUTH, SCORES, {"mask": [0, 0, 0, 0]}, "at least one label"),
        (TRUTH, SCORES, {"mask": [1, 0]}, r"`mask`.*\(4,\)"),
        (["x"] * 4, SCORES, {}, "class_names="),
        (["a", "b", "c", "bb"], SCORES, {"class_names": list("abc")}, "'bb'.*example 3.*mean 'b'"),
        (["a"] * 4, SCORES, {"class_names": ["a", "a", "b"]}, "`class_names`.*differ"),
        (["a"] * 4, SCORES, {"class_names": ["a", "b"]}, "`class_names`.*3 names"),
        (TRUTH, SCORES, {"task": "multilabel"}, "`task`.*multi_label"),
        (np.zeros(3), np.zeros((3, 1)), {}, "`outputs`.*unit are 0"),
        ([[0, 1], [1, 9]], np.ones((2, 2, 3)), {"mask": [[0, 1], [0, 1]]}, "9.*example 1"),
    ],
)  # fmt: skip
def test_what_is_refused(labels, outputs, options, said):
    with pytest.raises(ValueError, match=said):
        read(labels, outputs, **options)


def test_outputs_that_are_no_numbers():
    for outputs in (SCORES > 1, SCORES.astype(str), SCORES.astype(complex)):
        with pytest.raises(TypeError, match="`outputs`.*numbers"):
            read(TRUTH, outputs)
