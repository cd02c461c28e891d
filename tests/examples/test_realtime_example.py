"""From a transformer to the table of its cut, quantized and remembered forms."""

import json

import numpy as np
import pytest
from scripts import run

SHORT = (
    *("--teacher-epochs=1", "--epochs=1", "--quantize-epochs=1", "--width=8"),
    *("--seconds=0.3", "--choose=position", "--batch-size=64"),
)


@pytest.mark.slow
def test_it_cuts_distils_quantizes_and_serves(tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    words = {0: ("dull", "slow", "poor"), 1: ("fine", "quick", "rich")}
    for part, count in (("train", 128), ("test", 64)):
        labels = rng.integers(0, 2, count)
        rows = [f"a {' '.join(rng.choice(words[n], 3))} film\t{n}" for n in labels]
        (texts / f"{part}.tsv").write_text("\n".join(rows) + "\n")
        if part == "train":
            logits = np.stack([1.0 - labels, labels], 1)
    np.savez(tmp_path / "answers.npz", logits_train=logits)
    out = tmp_path / "out"
    answers = f"--answers={tmp_path / 'answers.npz'}"
    done = run("examples/realtime.py", *SHORT, f"--data={texts}", answers, f"--out={out}")
    assert done.returncode == 0, done.stderr[-3000:]

    rows = {row["model"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert list(rows) == [
        *("original", "half", "half, int8", "quarter", "quarter, float16", "quarter, dynamic"),
        *("quarter, int8", "seen before"),
    ]
    assert rows["quarter"]["macs"] < 0.6 * rows["half"]["macs"] < 0.6 * rows["original"]["macs"]
    assert rows["seen before"]["latency"]["p50"] < rows["quarter, int8"]["latency"]["p50"]
    assert "0 wrong" in done.stdout
    assert (
        "<svg" in (out / "table.html").read_text() or "base64" in (out / "table.html").read_text()
    )
    assert list((out / "logs").rglob("*tfevents*"))
    assert (out / "cache" / "cache.json").is_file()


def test_bad_numbers_are_found_before_training():
    done = run("examples/realtime.py", "--layers=3")
    assert done.returncode != 0
    assert "`layers`: expected at least 4" in done.stderr
