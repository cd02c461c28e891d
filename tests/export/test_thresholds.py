"""What differences of a file from its model are accepted."""

import math

import numpy as np
import pytest

from tfkd.export import parity
from tfkd.export.thresholds import doubts, failures, least_by_chance, thresholds_for

OPEN = {"max_error": 9.0, "max_mean_error": 9.0, "max_clipped": 1.0, "min_dependence": 0.0}


def judged(want, got, changes=None, mode="int8", codes=None, kind=None):
    """(failures, doubts) of one output y."""
    want, got = np.float32(want), np.float32(got)
    numbers = parity.measure({"y": want}, {"y": got}, {"y": codes})
    if kind:
        numbers["outputs"]["y"]["kind"] = kind
    limits = thresholds_for(mode, changes, ["y"])
    rank = {"y": want.ndim}
    return failures(numbers, limits, rank), doubts(numbers, limits, rank)


def exact(k, n, p):
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
def test_chance_is_the_exact_binomial_tail(share):
    for count in (1, 2, 8, 9, 64, 250, 1000):
        least = least_by_chance(count, share)
        assert exact(least, count, share) >= 0.05
        assert least == 0 or exact(least - 1, count, share) < 0.05


def test_ends_of_chance():
    assert least_by_chance(64, 1.0) == 64 and least_by_chance(64, 0.0) == 0
    assert least_by_chance(0, 0.9) == 0
    # By the normal distribution, which is near for ten million examples: 1.645 deviations.
    count, share = 10**7, 0.95
    normal = count * share - 1.645 * (count * share * (1 - share)) ** 0.5
    assert abs(least_by_chance(count, share) - normal) < 5


def answers(count, wrong, scale=1.0):
    """One-hot rows, of which the file has the last ones wrong."""
    want = np.eye(4)[np.arange(count) % 4] * scale
    got = want.copy()
    got[count - wrong :] = np.roll(want[count - wrong :], 1, 1)
    return want, got


def test_agreement_is_refused_below_what_chance_explains():
    limits = {**OPEN, "min_agreement": 0.95}
    assert judged(*answers(64, 4), limits) == ([], [])
    assert judged(*answers(64, 6), limits) == ([], [])
    (text,), doubt = judged(*answers(64, 7), limits)
    assert (
        "57 of 64 decided examples agree; at least 95 % are wanted; by chance 64 examples may "
        "show down to 58" in text
    )
    assert doubt == []


def test_a_file_must_agree_where_the_model_has_decided():
    """Ten near ties that turn are no failure; ten clear answers that turn are one."""
    want = np.zeros((100, 2))
    want[:, 0] = np.where(np.arange(100) < 10, 0.01, 5.0)
    clear = want.copy()
    clear[90:] = [[0.0, 5.0]]
    limits = {**OPEN, "min_agreement": 0.95}
    assert judged(want, want + np.float64([0.0, 0.02]), limits)[0] == []
    (text,), _ = judged(want, clear, limits)
    assert "80 of 90 decided examples agree" in text
    numbers = parity.measure({"y": np.float32(want)}, {"y": np.float32(clear)}, {})
    assert parity.agreement_text(numbers).startswith("90.00% (88.89% of the decided)")


def test_all_examples_count_if_few_are_decided():
    """80 near ties, of which 40 turn, beside 20 clear answers: 60 of 100 agree."""
    want = np.zeros((100, 2))
    want[:, 0] = np.where(np.arange(100) < 80, 0.01, 5.0)
    got = want.copy()
    got[:40, 1] = 0.5
    limits = {**OPEN, "min_agreement": 0.9}
    (text,), _ = judged(want, got, limits)
    assert "60 of 100 examples agree" in text and "decided 20 of them" in text
    # Without knowing that these are class scores it is a warning, however few agree.
    failed, (text,) = judged(want, got, OPEN)
    assert failed == [] and "60 of 100 examples agree" in text
    assert judged(want, got, {**OPEN, "y": {"min_agreement": 0}}) == ([], [])


def test_zeros_for_a_map_of_few_peaks_are_refused():
    """Each number is within its limits: the peaks are fewer than 1 % of the positions."""
    want = np.zeros((4, 1000, 3))
    want[np.arange(4), np.arange(4) * 7] = 1.0
    (text, peaks), _ = judged(want, np.zeros_like(want))
    assert "peak_error 1 is above 0.25" in peaks
    assert "output 'y' is 0 everywhere and for every input in the file" in text
    still = np.tile(want[:1], (4, 1, 1))
    assert "is the same for every input in the file" in judged(want, still)[0][0]
    assert "hardly depends on the input in the file" in judged(want, want * 5e-4)[0][0]
    assert judged(want, want * 0.8) == ([], [])
    settled = {"min_dependence": 0, "max_error": 1}
    assert judged(want, np.zeros_like(want), settled) == ([], [])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("kept", "peaks", "refused"),
    [
        (0.1, 20, True),
        (0.1, 5, True),  # in a quarter of the examples
        (0.7, 20, True),
        (0.8, 20, False),
        (1.0, 20, False),
        (0.1, 1, False),  # a single example is an outlier
        (1.3, 20, False),  # higher peaks, in less than 1 % of the positions
    ],
)
def test_a_map_that_loses_its_peaks_is_refused(kept, peaks, refused, sign):
    want = np.random.default_rng(0).uniform(0, 0.02, (20, 16, 16, 1))
    got = want.copy()
    rows = np.arange(peaks)
    want[rows, rows % 16, 3], got[rows, rows % 16, 3] = 1.0, kept
    failed, doubt = judged(sign * want, sign * got)
    assert doubt == [] and len(failed) == refused
    # By hand: the peaks, from 0 to 1, are 1 − kept lower.
    assert all(f"peak_error {1 - kept:.1g}" in text for text in failed)
    # The same in one of three channels, the others of which reach farther.
    others = np.random.default_rng(1).uniform(0, 9, (20, 16, 16, 2))
    failed, _ = judged(*(sign * np.concatenate([others, a], 3) for a in (want, got)))
    assert len(failed) == refused
    # Without an axis of channels.
    failed, _ = judged(sign * want[..., 0], sign * got[..., 0])
    assert any("peak_error" in text for text in failed) == refused
    settled = {"y": {"max_error": 1}}
    assert judged(sign * want, sign * got, settled) == ([], [])


def test_a_map_of_classes_with_other_borders_keeps_its_peaks():
    """At a border the file decides otherwise; each class still reaches 1 elsewhere."""
    want = np.zeros((6, 40, 40, 2))
    for n in range(6):
        want[n, : 18 + n, :, 0] = want[n, 18 + n :, :, 1] = 1.0
    got = want.copy()
    got[:, 23, :15] = want[:, 0, :15]
    assert judged(want, got) == ([], [])


def two_scales(count=200, wide=1000.0, columns=1):
    """A column from 0 to `wide`, then `columns` from 0.1 to 0.9."""
    rng = np.random.default_rng(0)
    want = np.concatenate(
        [rng.uniform(0, wide, (count, 1)), rng.uniform(0.1, 0.9, (count, columns))], axis=1
    )
    return np.float32(want)


def rounded(values, steps=255):
    """As int8 rounds an output: to `steps` equal steps over the range with 0."""
    step = (max(values.max(), 0) - min(values.min(), 0)) / steps
    return np.rint(values / step) * step


def test_a_column_that_the_file_loses_is_refused_though_all_else_is_within_limits():
    want = two_scales()  # a step is 3.9
    (text,), doubt = judged(want, rounded(want))
    assert (
        doubt == [] and "output 'y': column 1 of axis 1 is 0 everywhere and for every input" in text
    )
    low, high = want[:, 1].min(), want[:, 1].max()
    assert f"the Keras model's goes from {low:.4g} to {high:.4g}" in text
    assert "an output of their own" in text and "thresholds={'y': {'min_dependence': 0}}" in text
    assert judged(want, rounded(want), {"y": {"min_dependence": 0}}) == ([], [])
    # A head of a detector: corners in pixels and twenty scores, at each of 50 anchors.
    head = two_scales(columns=20).reshape(4, 50, 21)
    (text,), _ = judged(head, rounded(head))
    assert "columns 1 to 20 of axis 2 are 0 everywhere" in text
    # A step of 0.24: scores that fill 0.1 … 0.9 keep 3.4 steps, rare ones are lost.
    near = two_scales(wide=60, columns=20)
    near[:, 1:11] = near[:, 1:11] ** 8
    _, (text,) = judged(near, rounded(near))
    assert "of axis 1 are off by large parts of their ranges" in text
    turned = np.moveaxis(head, 2, 1)
    (text,), _ = judged(turned, rounded(turned))
    assert "columns 1 to 20 of axis 1 are 0 everywhere" in text


@pytest.mark.parametrize(
    ("wide", "failed", "doubted"), [(1000, 1, 0), (150, 0, 1), (60, 0, 1), (25, 0, 0), (5, 0, 0)]
)
def test_a_coarse_column_is_a_warning(wide, failed, doubted):
    """0.8 of `wide` / 255: 0.2 steps, 1.4, 3.4, 8.2, 41. Below four it is a large error."""
    want = two_scales(wide=wide)
    failures_, doubts_ = judged(want, rounded(want))
    assert (len(failures_), len(doubts_)) == (failed, doubted)
    assert all("column 1 of axis 1 is off by a large part of its range" in text for text in doubts_)


def test_rare_peaks_count_and_so_does_what_lies_far_from_0():
    want = two_scales()
    want[:, 1] = np.where(np.arange(200) % 50, 0.01, 0.9)
    assert "column 1 of axis 1 is 0 everywhere" in judged(want, rounded(want))[0][0]
    # Beside many that are the same for every input.
    alone = np.concatenate([want[:, 1:], np.full((200, 30), 1000.0)], axis=1)
    assert "column 0 of axis 1 is 0 everywhere" in judged(alone, rounded(alone))[0][-1]
    # A pressure of 100000 ± 100 beside another quantity: a step is 392.
    want[:, 0] = want[:, 0] / 5 + 99900
    (text,), _ = judged(want, rounded(want))
    assert "column" in text


def test_what_is_small_by_its_nature_is_no_alarm():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 100)) + np.linspace(-9, 0, 100)
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    independent = 1 / (1 + np.exp(6 - scores))  # rare labels
    unit = scores * np.geomspace(1e-3, 1, 100)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    still = two_scales()
    still[:, 1] = 0.5  # does not depend on the input in the model either
    noise = two_scales()
    noise[:, 1] = 5 + rng.normal(size=200) * 1e-7  # rounding of float32
    for values in (probabilities, independent, unit, still, noise):
        assert min(np.ptp(values, 0)) < np.ptp(values) / 255
        assert judged(values, rounded(values), {"min_agreement": 0}) == ([], [])
    want = two_scales()
    assert judged(want, rounded(want), OPEN | {"min_dependence": 1e-3}, kind="classes")[0] == []


def test_silent_channels_among_many_are_no_alarm():
    """Ranges of 200 channels from 10 down in small steps; then one is far off."""
    rng = np.random.default_rng(0)
    for least in (0.1, 0.01, 1e-4):  # of which a step of 0.04 loses up to three quarters
        want = np.float32(rng.uniform(size=(300, 200)) * 10 * np.geomspace(1, least, 200))
        assert judged(want, rounded(want), {"min_agreement": 0}) == ([], [])
    want[:, :199] = rng.uniform(size=(300, 199)) * 10
    want[:, 199] = rng.uniform(size=300) * 0.01
    (text,), _ = judged(want, rounded(want), {"min_agreement": 0})
    assert "column 199" in text


# 20 of 100 answers wrong: beyond chance below 0.9, but not below 0.75.
SOME, MANY = 20, 40


@pytest.mark.parametrize(
    ("scale", "wrong", "changes", "kind", "failed", "doubted"),
    [
        (1, 5, {}, None, 0, 0),
        (1, SOME, {}, None, 1, 0),  # probabilities
        (7, SOME, {}, None, 0, 1),  # numbers
        (7, MANY, {}, None, 1, 0),
        (7, SOME, {"min_agreement": 0.9}, None, 1, 0),
        (7, SOME, {"y": {"min_agreement": 0.9}}, None, 1, 0),
        (7, MANY, {"y": {"min_agreement": 0}}, None, 0, 0),
        (1, MANY, {"y": {"min_agreement": 0}}, None, 0, 0),
        (1, MANY, {"min_agreement": 0}, None, 0, 0),
        (7, SOME, {}, "classes", 1, 0),  # declared as logits
        (7, MANY, {}, "values", 0, 0),  # declared as sigmoids
    ],
)
def test_agreement_judges_class_scores(scale, wrong, changes, kind, failed, doubted):
    found = judged(*answers(100, wrong, scale), {**OPEN, **changes}, kind=kind)
    assert tuple(map(len, found)) == (failed, doubted)


def test_the_doubt_names_the_output_and_how_to_settle_it():
    _, (text,) = judged(*answers(100, SOME, 7), OPEN)
    assert "output 'y': 80 of 100 decided examples agree" in text
    assert "thresholds={'y': {'min_agreement': 0.9}} says that it does, and 0 that" in text
    (text,), _ = judged(*answers(100, MANY, 7), OPEN)
    assert "thresholds={'y': {'min_agreement': 0}}" in text


def test_coordinates_are_judged_by_their_errors():
    """Ten coordinates of which two are nearly the largest, as those of a face."""
    random = np.random.default_rng(0)
    want = np.tile(np.linspace(0.1, 0.9, 10), (200, 1)) + random.normal(0, 0.05, (200, 10))
    want[:, 8] = want[:, 9] + random.choice([-0.03, 0.03], 200)
    got = want + random.normal(0, 0.007, want.shape)
    got[:20, 8] -= 0.06 * np.sign(got[:20, 8] - got[:20, 9])  # 20 decided pairs that turn
    failed, doubted = judged(want, got, mode="dynamic")
    assert failed == [] and len(doubted) == 1
    wrong = got.copy()
    wrong[3, 0] += np.ptp(want) / 3
    assert "max_error" in judged(want, wrong, mode="int8")[0][0]


def test_a_third_of_the_range_on_a_few_elements_is_refused():
    want, got = answers(400, 0)
    got[::200, 0] = np.abs(got[::200, 0] - 1 / 3)
    (text,), _ = judged(want, got, codes=(0, 255 / 256, 1 / 256))
    assert "max_error 0.333 is above 0.25" in text


def a_map(share, error, count=10_000):
    """A map of `count` positions with one channel, of which a share is off by `error`."""
    want = np.random.default_rng(0).uniform(0, 1, (2, count // 2, 1))
    want[0, 0], want[1, 0] = 0, 1
    got = want.copy()
    got[1, 1 : 1 + round(share * count)] += error
    return want, got


@pytest.mark.parametrize(
    ("share", "error", "mode", "words"),
    [
        (0.005, 0.9, "int8", []),
        (0.01, 0.9, "int8", []),
        (0.012, 0.9, "int8", ["p99_error 0.9 is above 0.25; more than 1 % of its positions are"]),
        (0.4, 0.2, "int8", ["mean_error 0.08 is above 0.05"]),
        # One position in 200 is far off, where rounding explains nothing.
        (0.005, 0.9, "float32", ["mean_error 0.0045 is above 0.0001"]),
        (0.00005, 0.9, "float32", []),
    ],
)
def test_maps_are_judged_by_position(share, error, mode, words):
    failed, doubted = judged(*a_map(share, error), mode=mode)
    assert len(failed) == len(words) and doubted == []
    assert all(word in text for word, text in zip(words, failed, strict=True))


def test_the_argmax_of_a_map_counts_if_it_is_asked_for():
    want, got = (array.reshape(5, 20, 4) for array in answers(100, SOME))
    assert judged(want, got, OPEN) == ([], [])
    assert judged(want, got, {**OPEN, "min_agreement": 0.9}) == ([], [])
    (text,), _ = judged(want, got, {**OPEN, "y": {"min_agreement": 0.9}})
    assert "80 of 100 decided positions agree" in text


def test_thresholds_of_one_output():
    limits = thresholds_for("int8", {"max_error": 0.5, "a": {"max_error": 0.1}}, ["a", "b"])
    assert limits.of("a")["max_error"] == 0.1 and limits.of("b")["max_error"] == 0.5
    assert limits.of("a")["min_agreement"] == limits.of("b")["min_agreement"] == 0.9
    assert limits.recorded()["outputs"] == {"a": {"max_error": 0.1}}
    assert "outputs" not in thresholds_for("int8", {"max_error": 1}, ["a"]).recorded()
    # An output may bear the name of a threshold: a dict is for the output.
    named = thresholds_for("int8", {"max_error": {"max_error": 0.1}}, ["max_error"])
    assert named.of("max_error")["max_error"] == 0.1 and named.shared["max_error"] == 0.25


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"max_eror": 1}, ValueError, "Did you mean 'max_error'"),
        ({"landmark": {"max_error": 1}}, ValueError, "Did you mean 'landmarks'"),
        ({"landmark": 1}, ValueError, "Did you mean 'landmarks'"),
        ({"landmarks": {"max_eror": 1}}, ValueError, "`thresholds.*landmarks.*'max_error'"),
        ({"landmarks": {"max_error": -1}}, ValueError, "landmarks.*max_error"),
        ({"landmarks": 0.1}, TypeError, "dict of thresholds for the output 'landmarks'"),
        ({"max_error": {"max_error": 1}}, TypeError, "max_error"),
        ({"min_agreement": 95}, ValueError, "between 0 and 1"),
        ({"max_error": "1"}, TypeError, "max_error"),
    ],
)
def test_bad_thresholds(changes, error, said):
    with pytest.raises(error, match=said):
        thresholds_for("int8", changes, ["landmarks", "boxes"])
