"""Runs files without tfkd, compares outputs by NumPy, prints the table; for `real_models.py`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import harness
import numpy as np

from tfkd.results import size_text

CALLS = 30  # of one example, of which the median is the latency
Record = dict[str, Any]
Outputs = dict[str, np.ndarray]


def against(expected: Outputs, received: Outputs, kinds: dict[str, str]) -> Record:
    """Errors and agreement of the worst output, and of each."""
    rows = {}
    for name, kind in kinds.items():
        want, have = expected[name].astype("float64"), received[name].astype("float64")
        error = np.abs(have - want) / (np.ptp(want) or 1.0)
        row: Record = {"mean_error": float(error.mean()), "max_error": float(error.max())}
        if kind != "numbers":
            if kind == "classes":
                same = want.argmax(-1) == have.argmax(-1)
            else:
                same = (want > 0.5) == (have > 0.5)
            row["agreement"] = float(same.mean())
        rows[name] = row
    worst: Record = {key: max(row[key] for row in rows.values()) for key in row if "error" in key}
    agreements = [row["agreement"] for row in rows.values() if "agreement" in row]
    return {**worst, "agreement": min(agreements, default=None), "outputs": rows}


def run_tflite(path: pathlib.Path, x: np.ndarray) -> tuple[Outputs, float]:
    """Outputs of a file by name, one example after the other, and milliseconds for one."""
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(str(path), num_threads=1).get_signature_runner()
    (name,) = signature.get_input_details()
    return _one_by_one(lambda one: signature(**{name: one}), x)


def run_onnx(path: pathlib.Path, x: np.ndarray) -> tuple[Outputs, float]:
    """The same of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    names = [one.name for one in session.get_outputs()]
    return _one_by_one(lambda one: dict(zip(names, session.run(None, {name: one}), strict=True)), x)


def _one_by_one(call: Callable[[np.ndarray], Any], x: np.ndarray) -> tuple[Outputs, float]:
    rows = [call(one[None]) for one in x]
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return found, timed(lambda: call(x[:1]))


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of a call, the median of some."""
    return harness.medians(harness.in_turns({"call": call}, CALLS))["call"]


def table(records: dict[str, dict[str, Record]]) -> str:
    """A line for each step of each model, and how many went well."""
    rows = [row(name, step, one) for name, steps in records.items() for step, one in steps.items()]
    found = [one["outcome"] for steps in records.values() for one in steps.values()]
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in ("ok", "refused", "broke"))
    head = ["model", "step", "", "mean error", "max error", "agreement", "kept", "size", "ms", ""]
    return harness.table(head, rows, left=3) + f"\n{len(found)} steps: {counts}.\n"


def row(name: str, step: str, record: Record) -> list[str]:
    """One line."""
    return [
        name,
        step,
        record["outcome"],
        share(record.get("mean_error")),
        share(record.get("max_error")),
        share(record.get("agreement"), 1),
        share(record.get("kept"), 1),
        size_text(record["bytes"]) if "bytes" in record else "",
        f"{record['ms']:.3g}" if "ms" in record else "",
        record.get("text", "").replace("|", "\\|"),
    ]


def share(value: float | None, digits: int = 2) -> str:
    """A part as per cent; what is too small to show so as a power of ten."""
    if value is None:
        return ""
    return f"{value:.0e}" if 0 < value < 1e-4 else f"{100 * value:.{digits}f} %"
