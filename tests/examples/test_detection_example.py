"""The detector's way from scenes to a file with boxes, from end to end."""

import json

import pytest
from PIL import Image
from scripts import run


@pytest.mark.slow
def test_it_trains_teaches_quantizes_and_reads_its_file(tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("matplotlib")
    pytest.importorskip("pycocotools")
    pytest.importorskip("sklearn")
    small = ("--images=48", "--size=64", "--teacher-epochs=1", "--epochs=1", "--labelled=32")
    done = run("examples/detection.py", *small, "--quantized-epochs=1", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]

    table = json.loads((tmp_path / "detectors.json").read_text())
    names = ["teacher", "student alone", "student distilled", "distilled, int8 file"]
    assert [row["model"] for row in table["rows"]] == names
    assert (tmp_path / "detectors.md").is_file()
    assert list((tmp_path / "logs").rglob("*tfevents*"))
    with Image.open(tmp_path / "found.png") as page:
        assert page.width > 4 * 200

    # The file alone says what it finds, and in which classes.
    import numpy as np

    import tfkd

    detector = tfkd.export.load_detector(tmp_path / "detector.tflite")
    found = detector(np.zeros((2, 64, 64, 3), "uint8"))
    assert list(detector.labels) == [str(n) for n in range(10)]
    assert found["boxes"].shape[0] == 2 and found["boxes"].shape[2] == 4


def test_bad_numbers_are_found_before_training():
    done = run("examples/detection.py", "--labelled=0")
    assert done.returncode != 0
    assert "`labelled`: expected an integer of at least 1, received 0" in done.stderr
