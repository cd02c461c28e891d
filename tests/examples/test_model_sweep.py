"""The sweep over models tells refusals from bare errors and wrong results, and counts them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import tfkd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import model_sweep
import sweep_cells


def caught(call):
    try:
        call()
    except Exception as error:
        return model_sweep.judged(error)
    raise AssertionError("nothing was raised")


def test_names_are_read_as_the_models_are_registered():
    names = model_sweep.names_of_models()
    assert len(names) >= 120
    assert names == {name: entry.family for name, entry in sweep_cells.MODELS.items()}
    assert tuple(sweep_cells.CELLS) == model_sweep.CELLS
    assert set(model_sweep.SMALLEST) <= set(names)


def test_a_refusal_is_tfkds_and_short():
    assert caught(lambda: tfkd.pruning.plan("model"))["result"] == "refused"
    bare = caught(lambda: np.zeros(3) + np.zeros(4))
    assert (bare["result"], bare["type"], bare["where"]) == ("BARE", "ValueError", "")
    long = caught(lambda: tfkd.checks.one_of("x" * 2000, 1, [2]))
    assert (long["result"], long["where"][:14]) == ("BARE", "tfkd/checks.py")


def test_outputs_are_compared_by_name_or_by_what_they_hold():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(4.0).reshape(2, 2)
    near = a.copy()
    near[1, 2] += 1
    assert sweep_cells.compare({"a": a, "b": b}, {"b": b, "a": a}, 0.0) == ""
    assert "called" in sweep_cells.compare({"a": a, "b": b}, {"x": b, "y": a}, 0.0)
    with pytest.raises(sweep_cells.Wrong, match="off by 0.2 of its range, 0.0333 in the mean"):
        sweep_cells.compare({"": a}, {"": near}, 0.1)
    sweep_cells.compare({"": a}, {"": near}, 0.1, mean=True)
    for other in (a[:, :2], a * np.nan):
        with pytest.raises(sweep_cells.Wrong):
            sweep_cells.compare({"": a}, {"": other}, 0.1)
    with pytest.raises(sweep_cells.Wrong, match="1 outputs, expected 2"):
        sweep_cells.compare({"a": a, "b": b}, {"a": a}, 0.1)


def test_a_linear_model_goes_the_whole_way(tmp_path):
    entry = sweep_cells.MODELS["linear"]
    for cell in ("distil", "freeze", "quantize"):
        assert sweep_cells.CELLS[cell](entry, tmp_path) == ""


def test_what_is_neither_equal_nor_refused_is_listed():
    records = [
        {"model": "m", "cell": "onnx", "result": result, "text": f"it is {result}"}
        for result in ("equal", "BARE")
    ]
    records[0]["cell"] = "tflite"
    assert model_sweep.table(records).splitlines()[2] == "| m | BARE | equal |"
    lines = model_sweep.counts(records).splitlines()
    assert "| all 2 cells | 1 | 0 | 0 | 1 | 0 | 0 |" in lines
    assert "    it is BARE" in lines and "    it is equal" not in lines
