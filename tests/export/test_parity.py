"""The metrics by which a file is compared with its model, against numbers by hand."""

import numpy as np
import pytest

from tfkd.export import parity


def one(want, got, codes=None):
    return parity.measure({"y": np.float32(want)}, {"y": np.float32(got)}, {"y": codes})


def test_measure_by_hand():
    numbers = one([[0.0, 4.0], [2.0, 1.0]], [[0.5, 3.0], [1.0, 1.5]], (0.5, 3.0, 0.5))
    assert numbers["argmax_agreement"] == 0.5
    # The second leads by 1, less than twice the mean error of 0.75: it is undecided.
    assert numbers["decided_agreement"] == 1.0 and numbers["outputs"]["y"]["decided"] == 1
    assert numbers["max_error"] == 1 / 4 and numbers["p99_error"] is None
    assert numbers["mean_error"] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4 / 4)
    # 4.0 is two steps above 3.0; 0.0 is one step below 0.5, as TFLite's own rule may be.
    assert numbers["clipped"] == 1 / 4
    assert numbers["dependence"] == 3 / 4
    assert numbers["outputs"]["y"]["range"] == [0.0, 4.0]
    assert numbers["outputs"]["y"]["kind"] == "unknown"


def test_the_last_step_of_softmax_and_tanh_is_not_clipped():
    softmax = one(
        [[1.0, 0.0], [0.0, 1.0]], [[255 / 256, 0], [0, 255 / 256]], (0, 255 / 256, 1 / 256)
    )
    assert softmax["clipped"] == 0 and softmax["max_error"] == 1 / 256
    tanh = one([[1.0, -1.0]], [[127 / 128, -1.0]], (-1.0, 127 / 128, 1 / 128))
    assert tanh["clipped"] == 0


@pytest.mark.parametrize(
    ("beyond", "step", "clipped"),
    [
        (0.9, 1.0, 0.0),  # within the last step
        (1.1, 1.0, 0.5),
        (1.1, 1e-3, 0.5),
        (0.5, 1e-3, 0.0),  # many steps, but less than 1 % of the range
    ],
)
def test_clipped_is_what_lies_beyond_a_step_and_a_hundredth(beyond, step, clipped):
    last = 100.0 - beyond  # of the range [0, 100]
    assert one([[0.0, 100.0]], [[0.0, last]], (0.0, last, step))["clipped"] == clipped
    # The same below the first code.
    assert one([[0.0, -100.0]], [[0.0, -last]], (-last, 0.0, step))["clipped"] == clipped


def test_the_error_of_99_percent_of_the_positions():
    want = np.zeros((2, 10, 10, 3))  # 200 positions
    want[0, 0, 0] = 1.0
    got = want.copy()
    got[1, 0, :2, 1] += 0.5  # 1 % of them
    numbers = one(want, got)
    assert numbers["max_error"] == 0.5 and numbers["p99_error"] == 0.0
    got[1, 5, 5, 2] += 0.25  # the third
    assert one(want, got)["p99_error"] == 0.25
    assert one(want, np.where(got == 0.25, np.nan, got))["p99_error"] == 0.5
    # The worst of several maps; other outputs have none.
    both = {"a": np.float32(want), "b": np.float32([[0, 1], [1, 0]])}
    assert parity.measure(both, {**both, "a": np.float32(got)}, {})["p99_error"] == 0.25


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


LOGITS = np.random.default_rng(0).normal(size=(50, 4)) * 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (softmax(LOGITS), "classes"),
        (np.log(softmax(LOGITS)), "classes"),
        (np.rint(softmax(LOGITS) * 256) / 256, "classes"),  # of a quantized model
        (LOGITS, "unknown"),
        (np.tanh(LOGITS), "unknown"),
        (np.maximum(LOGITS, 0), "unknown"),
        (1 / (1 + np.exp(-LOGITS)), "unknown"),
        (-np.abs(LOGITS), "unknown"),
        (softmax(LOGITS)[:, :1], "unknown"),
        (softmax(LOGITS).reshape(25, 2, 4), "classes"),  # at each position
        (LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True), "values"),
        (softmax(LOGITS)[:, 0], "unknown"),
    ],
)
def test_class_scores_are_known_by_their_values(values, kind):
    assert one(values, values)["outputs"]["y"]["kind"] == kind


def test_agreement_is_told_as_far_as_it_means_something():
    """Embeddings have none; numbers that may be coordinates are told by their errors first."""
    unit = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    numbers = one(unit, unit[:, ::-1])
    assert numbers["argmax_agreement"] is None and parity.agreement_text(numbers) == "-"
    numbers = one(LOGITS, LOGITS)
    names = [name for name, _ in parity.compared_rows(numbers)]
    assert names[1:] == ["max error / range", "mean error / range", "argmax agreement"]
    assert parity.agreement_text(numbers) == "100.00%, if the outputs are class scores"
    names = [name for name, _ in parity.compared_rows(one(softmax(LOGITS), softmax(LOGITS)))]
    assert names[1] == "argmax agreement"
    both = {"a": np.float32(LOGITS), "b": np.float32(unit)}
    worse = {"a": both["a"], "b": both["b"][:, ::-1]}
    assert parity.measure(both, worse, {})["argmax_agreement"] == 1


def test_the_table_tells_the_maximum_of_maps_from_what_counts():
    want = np.zeros((1, 20, 20, 1))
    want[0, 0, 0] = 1.0
    got = want.copy()
    got[0, 1, 0] += 0.5
    numbers = one(want, got)
    rows = dict(parity.compared_rows(numbers))
    assert rows["max error / range"] == "5.00e-01 (99 % of positions: 0.00e+00)"
    rows = dict(parity.compared_rows(one([[0.0, 1.0]], [[0.0, 0.5]])))
    assert rows["max error / range"] == "5.00e-01"
