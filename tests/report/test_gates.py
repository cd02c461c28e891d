"""Gates at their boundaries, values that are missing, budgets that can't be reached."""

import dataclasses
import math

import numpy as np
import pytest

from tfkd import report, results
from tfkd.report.class_details import ClassDetails


def row(name, accuracy=None, size=None, p50=None, **options):
    stats = None if accuracy is None else report.seed_stats(accuracy)
    times = None if p50 is None else report.Latency(p50, p50, p50, p50, 10)
    return report.Row(name, stats, size=size, latency=times, **options)


def details(right, of=(100, 100), **options):
    return ClassDetails(("cat", "dog"), of, of, right, **options)


BASE = row("base", 93.1, 400_000, 5.0, details=details((90, 96)))


def check(gates, final, **options):
    verdict = report.judge(report.Gates(**gates), BASE, final, **options)
    (found,) = verdict.checks
    return verdict, found


@pytest.mark.parametrize(
    ("gate", "wanted", "passes", "fails"),
    [
        # 93.1 − 92.1 is 0.9999999999999858 in float64, and 93.1 − 91.9 is 1.1999999999999886.
        ("max_drop", 1.0, row("x", 92.1), row("x", 92.0)),
        ("max_drop", 1.2, row("x", 91.9), row("x", 91.89)),
        ("size", 100_000, row("x", size=100_000), row("x", size=100_001)),
        ("latency_ms", 2.0, row("x", p50=2.0), row("x", p50=2.0001)),
        ("max_class_drop", 2.0, row("x", details=details((90, 94))),
         row("x", details=details((95, 93)))),
        ("min_agreement", 97.5, row("x", details=details((90, 96), agreement=97.5)),
         row("x", details=details((90, 96), agreement=97.4))),
    ],
)  # fmt: skip
def test_a_value_that_equals_its_gate_passes(gate, wanted, passes, fails):
    verdict, found = check({gate: wanted}, passes)
    assert verdict.accepted and found.passed and found.by is None
    verdict, found = check({gate: wanted}, fails)
    assert verdict.status == "REGRESSED" and not found.passed and found.by > 0
    assert found.title in verdict.sentence and "failed by" in verdict.sentence


def test_a_share_of_float_operations_at_its_gate():
    assert check({"max_float_share": 0.25}, row("x"), float_share=0.25)[0].accepted
    assert not check({"max_float_share": 0.0}, row("x"), float_share=0.01)[0].accepted


def test_the_share_of_multiply_accumulates_is_that_of_the_rows_or_the_one_given():
    base, half = (dataclasses.replace(BASE, macs=macs) for macs in (4_000, 2_000))
    gates = report.Gates(max_macs_share=0.5)
    assert report.judge(gates, base, half).accepted
    (found,) = report.judge(gates, base, base).checks
    assert not found.passed and found.measured == 1.0 and found.by == 0.5
    assert found.cells()[1:3] == ("at most 50.00 %", "100.00 %")
    (found,) = report.judge(gates, base, base, macs_share=0.4).checks
    assert found.passed and found.measured == 0.4
    (found,) = report.judge(gates, base, dataclasses.replace(BASE, macs=None)).checks
    assert not found.passed and "are not known" in found.note


def test_the_worst_class_is_named_and_a_gain_is_no_drop():
    # cat gains 5 points, dog loses 3.
    _, found = check({"max_class_drop": 2.0}, row("x", details=details((95, 93))))
    assert found.measured == 3.0 and found.by == 1.0 and found.note == "class dog"
    verdict, found = check({"max_drop": 0.0}, row("x", 94.1))
    assert verdict.accepted and found.measured == pytest.approx(-1.0)
    assert "−1.00 points" in verdict.text()


def test_a_class_without_examples_has_no_drop():
    base = dataclasses.replace(BASE, details=details((90, 0), of=(100, 0)))
    final = row("x", details=details((89, 0), of=(100, 0)))
    (found,) = report.judge(report.Gates(max_class_drop=1.0), base, final).checks
    assert found.passed and found.measured == 1.0 and found.note == "class cat"


@pytest.mark.parametrize("gate", [field.name for field in dataclasses.fields(report.Gates)])
def test_what_was_asked_and_not_measured_is_no_pass(gate):
    verdict, found = check({gate: 1}, report.Row("x"))
    assert verdict.status == "REGRESSED" and found.measured is None and found.by is None
    assert found.note
    assert f"{found.title} was not measured" in verdict.sentence and found.note in verdict.sentence


def test_several_gates_in_one_verdict():
    gates = report.Gates(max_drop=1.0, size=90_000, latency_ms=2.0)
    verdict = report.judge(gates, BASE, row("tiny", 92.5, 100_000, 2.5))
    assert [one.gate for one in verdict.failed] == ["latency_ms", "size"]
    assert verdict.text().splitlines()[0] == (
        "REGRESSED: latency, median 2.500 ms, wanted at most 2.000 ms: failed by 0.500 ms; size "
        "of the file 100,000 bytes, wanted at most 90,000 bytes: failed by 10,000 bytes."
    )
    assert (verdict.model, verdict.original) == ("tiny", "base")
    assert results.restored(report.Verdict, verdict.to_dict()) == verdict


def test_no_gate_accepts_and_says_so():
    assert str(report.judge(report.Gates(), BASE, row("x"))) == "ACCEPTED: no gate was asked."


def test_a_budget_that_cannot_be_reached():
    verdict, found = check({"latency_ms": 2.0}, row("x", p50=3.5), least={"latency_ms": 3.1})
    assert verdict.status == "INFEASIBLE" and found.least == 3.1
    assert "infeasible: the least is 3.100 ms" in verdict.sentence
    # There need not be a model.
    verdict, found = check({"latency_ms": 2.0}, None, least={"latency_ms": 3.1})
    assert verdict.status == "INFEASIBLE" and found.measured is None and verdict.model == ""
    # What was measured counts, not what was said to be possible; nor what is below the gate.
    assert check({"latency_ms": 2.0}, row("x", p50=1.9), least={"latency_ms": 3.1})[0].accepted
    verdict, _ = check({"latency_ms": 2.0}, row("x", p50=3.5), least={"latency_ms": 1.0})
    assert verdict.status == "REGRESSED"


def detector(name, ap):
    """A row of a detector of two classes; `ap` is that of both, and of each at IoU 0.5."""
    truth = [{"boxes": [[0.1, 0.1, 0.4, 0.5]], "classes": [0]}]
    found = [{"boxes": [[0.1, 0.1, 0.4, 0.5]], "classes": [0], "confidence": [0.9]}]
    scores = report.detection(found, truth, ["cell", "platelet"])
    made = dataclasses.replace(scores, map=np.mean(ap), ap50=np.array(ap))
    return report.DetectionRow(name, made, size=10, latency=2.5)


def test_gates_of_detectors_are_in_hundredths():
    pytest.importorskip("pycocotools")
    before, after = detector("base", [0.50, math.nan]), detector("x", [0.48, math.nan])
    before, after = (
        dataclasses.replace(
            one, scores=[dataclasses.replace(one.scores[0], map=float(one.scores[0].ap50[0]))]
        )
        for one in (before, after)
    )
    gates = report.Gates(max_map_drop=2.0, max_class_drop=1.5, latency_ms=2.5, max_drop=1.0)
    verdict = report.judge(gates, before, after)
    found = {one.gate: one for one in verdict.checks}
    assert found["max_map_drop"].passed and found["max_map_drop"].measured == pytest.approx(2.0)
    assert not found["max_class_drop"].passed and found["max_class_drop"].note == "class cell"
    assert found["latency_ms"].passed
    assert "max_map_drop" in found["max_drop"].note and not found["max_drop"].passed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_drop": -1}, "`max_drop`"),
        ({"min_agreement": 101}, "a percentage from 0 to 100"),
        ({"max_ece": 5}, "`max_ece`"),
        ({"size": 0}, "`size`"),
        ({"latency_ms": "2ms"}, "`latency_ms`"),
    ],
)
def test_gates_refuse(values, words):
    with pytest.raises((ValueError, TypeError), match=words):
        report.Gates(**values)


def test_judge_refuses():
    gates = report.Gates(latency_ms=2.0)
    with pytest.raises(ValueError, match="`least`.*latency_ms"):
        report.judge(gates, BASE, BASE, least={"latency": 2.0})
    with pytest.raises(ValueError, match="`final`.*`least`"):
        report.judge(gates, BASE, None)
    with pytest.raises(TypeError, match="`gates`"):
        report.judge({"latency_ms": 2.0}, BASE, BASE)
