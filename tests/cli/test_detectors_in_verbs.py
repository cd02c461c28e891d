"""Verbs on a detector and its file."""

import json

import numpy as np
import pytest

from tfkd import detection, export, models

pytestmark = pytest.mark.slow
SIZE = 64


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """An untrained detector with its file, its anchors, and COCO data of eight images."""
    from PIL import Image

    root = tmp_path_factory.mktemp("detector")
    anchors = detection.Anchors.small(SIZE)
    model = models.ssd((4, 4, 8, 8, 8), 2, SIZE, anchors=anchors)
    model.save(root / "ssd.keras")
    anchors.save(root / "anchors.json")
    x = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype("uint8")
    # Without a threshold, so that an untrained one finds something.
    export.detector_to_tflite(
        model, root / "ssd.tflite", anchors, labels=["cell", "plate"], score_threshold=0.0
    )
    (root / "data" / "images").mkdir(parents=True)
    for number, image in enumerate(x):
        Image.fromarray(image).resize((80, 40)).save(root / f"data/images/{number}.png")
    boxes = [
        {"id": n, "image_id": n, "category_id": n % 2, "bbox": [8, 8, 16, 16]} for n in range(8)
    ]
    entries = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(8)],
        "annotations": boxes,
        "categories": [{"id": 0, "name": "cell"}, {"id": 1, "name": "plate"}],
    }
    (root / "data" / "annotations.json").write_text(json.dumps(entries))
    return root


def test_inspect_shows_labels_and_anchors(detector, tfkd):
    code, found, _ = tfkd("inspect", detector / "ssd.tflite", "--json")
    assert code == 0
    assert found["metadata"]["labels"] == ["cell", "plate"]
    assert "anchors, images 64×64×3" in found["metadata"]["detector"]


def test_predict_prints_boxes_in_pixels_of_the_image(detector, tmp_path, tfkd):
    image = detector / "data/images/0.png"
    code, found, _ = tfkd(
        "predict", detector / "ssd.tflite", image, "--top=3", f"--draw={tmp_path / 'x.png'}",
        "--json",
    )  # fmt: skip
    assert code == 0 and len(found["rows"]) == 3 and (tmp_path / "x.png").is_file()
    for row in found["rows"]:
        assert row["class"] in ("cell", "plate")
        assert 0 <= row["x1"] < row["x2"] <= 80 and 0 <= row["y1"] < row["y2"] <= 40


def test_predict_takes_a_keras_detector_with_its_anchors(detector, tmp_path, tfkd):
    """The boxes of the file, whose threshold is 0, that are above the usual 0.3 are the same."""
    image = detector / "data/images/0.png"
    code, found, _ = tfkd("predict", detector / "ssd.keras", image, "--json")
    assert code == 0
    _, file, _ = tfkd("predict", detector / "ssd.tflite", image, "--json")
    sure = [row for row in file["rows"] if row["confidence"] > 0.3]
    assert len(sure) == len(found["rows"]) > 0
    for row, other in zip(found["rows"], sure, strict=True):
        assert row["class"] == {"cell": "class 0", "plate": "class 1"}[other["class"]]
        assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        assert row["x1"] == pytest.approx(other["x1"], abs=0.2)
    (tmp_path / "alone.keras").write_bytes((detector / "ssd.keras").read_bytes())
    code, _, err = tfkd("predict", tmp_path / "alone.keras", image, "--draw=x.png")
    assert code == 2 and "needs anchors.json beside it" in err


def test_compare_scores_boxes(detector, tmp_path, tfkd):
    (tmp_path / "ssd.keras").write_bytes((detector / "ssd.keras").read_bytes())
    data = (f"--data={detector / 'data'}", "--runs=2", "--seconds=1", "--json")
    code, _, err = tfkd("compare", tmp_path / "ssd.keras", *data)
    assert code == 2 and "no anchors.json beside it" in err
    models = (detector / "ssd.keras", f"file={detector / 'ssd.tflite'}")
    code, found, _ = tfkd("compare", *models, *data)
    assert code == 0 and [row["model"] for row in found["rows"]] == ["ssd", "file"]
    # The same network: the same boxes.
    first, second = (row["scores"][0]["map"] for row in found["rows"])
    assert first == pytest.approx(second, abs=0.02)
