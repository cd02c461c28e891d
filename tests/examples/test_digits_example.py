"""The demo and its benchmark from end to end, on a small data set of the user's own."""

import json

import numpy as np
import pytest
import scripts

SMALL = (
    *("--teacher=resnet8:8", "--student=resnet8:4", "--teacher-epochs=4", "--epochs=4"),
    *("--teachers=2", "--seeds=2", "--batch-size=16", "--quantize-epochs=1"),
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Three classes of 8×8 images: a bright square at one of three places, and noise."""
    random = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = random.integers(0, 60, (96, 8, 8, 1))
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 180
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    x = x.astype("uint8")
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return path


def run(script, *options):
    return scripts.run(script, *SMALL, *options)


@pytest.mark.slow
def test_demo_writes_models_logs_table_and_plots(toy, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    done = run("examples/digits.py", f"--data={toy}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("teacher", "student alone", "student distilled", "distilled, int8"):
        assert name in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        *("teacher_2.keras", "student_alone_2.keras", "student_distilled_1.keras"),
        *("student_int8_1.tflite", "student_int8_2.tflite", "table.md", "table.json"),
        *("student_int8_1.npz", "student_int8_2.npz"),
        *("accuracy_latency.png", "test_accuracy_curves.png", "logs"),
    }
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        *("teacher_0", "teacher_1", "alone_1", "alone_2", "distilled_1", "distilled_2"),
        *("int8_1", "int8_2"),
    }
    table = json.loads((tmp_path / "table.json").read_text())
    assert [len(row["accuracy"]["values"]) for row in table["rows"]] == [2, 2, 2, 2]
    assert all(row["macs"] and row["size"] and row["latency"] for row in table["rows"])
    curves = table["curves"]["test accuracy (%)"]
    assert np.shape(curves["student distilled"]) == (2, 4)
    last = [curve[-1] for curve in curves["student alone"]]
    assert table["rows"][1]["accuracy"]["values"] == pytest.approx(last, abs=1e-3)


@pytest.mark.slow
def test_benchmark_prints_a_table_and_writes_every_seed(toy, tmp_path):
    path = tmp_path / "found.json"
    done = run("benchmarks/distill_digits.py", f"--data={toy}", f"--json={path}")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert found["settings"]["seeds"] == 2
    assert np.shape(found["curves"]["distilled"]) == (2, 4)
    gain = np.array(found["curves"]["distilled"])[:, -1] - np.array(found["curves"]["alone"])[:, -1]
    assert f"{gain.mean():.2f} ± {gain.std(ddof=1):.2f}" in done.stdout
    assert found["table"] in done.stdout


def test_a_wrong_model_name_is_found_before_anything_is_trained_or_written(toy, tmp_path):
    out = tmp_path / "out"
    done = run("examples/digits.py", f"--data={toy}", f"--out={out}", "--student=alexnet")
    assert done.returncode != 0
    assert "resnetDEPTH" in done.stderr
    assert "training" not in done.stdout and not out.exists()
