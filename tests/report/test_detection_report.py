"""Scores, curves and tables of detectors as a user asks for them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tfkd import report
from tfkd.data import digit_scenes
from tfkd.report import detection_plots

BOX, OTHER, FAR = [0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.3, 0.9]


def scores(*rows, names=("a", "b"), truth=((0, BOX), (0, OTHER), (1, FAR)), **kwargs):
    """Scores of one image; rows of (class, score, box)."""
    found = {
        "boxes": np.array([box for _, _, box in rows], float).reshape(-1, 4),
        "classes": [kind for kind, _, _ in rows],
        "confidence": [score for _, score, _ in rows],
    }
    real = {"boxes": [box for _, box in truth], "classes": [kind for kind, _ in truth]}
    return report.detection([found], [real], list(names), **kwargs)


# Class a: right, wrong, right. Class b: not found.
SOME = scores((0, 0.9, BOX), (0, 0.7, FAR), (0, 0.3, OTHER))
AP_A = (51 + 50 * 2 / 3) / 101
ALL = scores((0, 0.9, BOX), (0, 0.8, OTHER), (1, 0.4, FAR))


def one_prior(images):
    """A detector with one prior, always sure of class 1."""
    logits = np.tile(np.float32([0, -9, 9]), (len(images), 1, 1))
    return {"boxes": np.zeros((len(images), 1, 4), "float32"), "classes": logits}


PRIORS = np.float32([[0.5, 0.5, 0.2, 0.4]])
FOUND = [0.4, 0.3, 0.6, 0.7]


def test_compare_says_which_function_scores_boxes():
    images = np.zeros((2, 8, 8, 3), "float32")
    truth = {"boxes": np.array([[FOUND], [BOX]]), "classes": np.array([[1], [0]])}
    words = r"not boxes.*report\.evaluate_detector\(.*report\.DetectionTable\("
    for data in ((images, truth), digit_scenes(count=1, test_count=1, size=64)):
        with pytest.raises(ValueError, match=words):
            report.compare({"one": one_prior}, data)


def test_a_detector_is_run_and_scored():
    images = np.zeros((4, 50, 200, 3), np.uint8)
    truth = {
        "boxes": [[FOUND, BOX], [FOUND, FOUND], [FOUND, FOUND], [FOUND, FOUND]],
        "classes": [[1, 0], [1, -1], [1, -1], [-1, -1]],
    }
    got = report.evaluate_detector(one_prior, images, truth, PRIORS, ["a", "b"], batch_size=3)
    # Class b: three of four detections are right, and all scores are equal, so that the
    # order of images decides: precision 1 throughout. Class a: nothing.
    assert got.ap50.tolist() == [0.0, 1.0] and got.map50 == 0.5
    assert got.detections.tolist() == [0, 4] and got.truth.tolist() == [1, 3]
    # 40 by 20 pixels are small; 0.3 · 200 by 0.4 · 50 are 1,200 pixels, and medium.
    assert got.map_small == 1.0 and got.map_medium == 0.0
    bigger = report.evaluate_detector(
        one_prior, images, truth, PRIORS, ["a", "b"], image_size=(500, 1000)
    )
    assert np.isnan(bigger.map_small) and bigger.map_large == 0.5
    few = report.evaluate_detector(one_prior, images, truth, PRIORS, score_threshold=1.0)
    assert few.map == 0.0 and few.detections.tolist() == [0, 0]


def drawn(monkeypatch, *args):
    """The axes of the figure that would be written."""
    kept = []
    monkeypatch.setattr(detection_plots, "write_figure", lambda figure, path: kept.append(figure))
    report.precision_recall_plot(*args, "unused.png")
    return kept[0].axes


def test_a_line_for_each_class_and_their_mean(monkeypatch):
    (axes,) = drawn(monkeypatch, SOME)
    a, dot, b, mean = axes.lines
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"a  {AP_A:.3f}", "b  0.000", f"mean  {AP_A / 2:.3f}"]
    np.testing.assert_allclose(a.get_xdata(), np.arange(101) / 100)
    np.testing.assert_allclose(a.get_ydata(), [1.0] * 51 + [2 / 3] * 50)
    # Scores from 0.5 reach half of the objects. The wrong one lies below the envelope.
    np.testing.assert_allclose(dot.get_xydata(), [[0.5, 1.0]])
    assert b.get_xydata().tolist() == [[0.0, 0.0]]
    np.testing.assert_allclose(mean.get_ydata(), [0.5] * 51 + [1 / 3] * 50)


def test_a_class_without_an_object_is_not_drawn(monkeypatch):
    alone = scores((0, 0.9, BOX), (1, 0.9, BOX), truth=[(0, BOX)])
    (axes,) = drawn(monkeypatch, alone)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a  1.000"]


def test_several_detectors_side_by_side(monkeypatch):
    axes = drawn(monkeypatch, {"one": SOME, "two": ALL})
    assert [a.get_title(loc="left") for a in axes] == ["mean of the classes", "a", "b"]
    legends = [[t.get_text() for t in a.get_legend().get_texts()] for a in axes]
    assert legends[0] == [f"one  {AP_A / 2:.3f}", "two  1.000"]
    assert legends[1] == [f"one  {AP_A:.3f}", "two  1.000"]
    assert legends[2] == ["one  0.000", "two  1.000"]
    # With many classes, the mean alone.
    truth = [(kind, BOX) for kind in range(6)]
    many = scores((0, 0.9, BOX), names="abcdef", truth=truth)
    assert len(drawn(monkeypatch, {"one": many, "two": many})) == 1


def test_the_plot_is_a_png(tmp_path):
    path = report.precision_recall_plot(SOME, tmp_path / "new" / "curve.png")
    assert Image.open(path).size[0] > 600


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "DetectionScores"),
        (3, "DetectionScores"),
        ({"one": 3}, "scores['one']"),
        (scores(truth=[]), "a class with an object"),
        ({"one": SOME, "two": scores(names=("a", "c"))}, "the classes of the others"),
        ({"one": SOME, "two": scores(truth=[(0, BOX), (1, FAR)])}, "the same data"),
    ],
)
def test_bad_scores(value, text, tmp_path):
    with pytest.raises((TypeError, ValueError)) as error:
        report.precision_recall_plot(value, tmp_path / "curve.png")
    assert text in str(error.value)


def test_the_table_has_classes_seeds_and_costs():
    latency = report.Latency(
        **{**dict.fromkeys(report.Latency.__dataclass_fields__, 1), "p50": 2.5}
    )
    rows = [
        report.DetectionRow("big", ALL, 1_200_000, 164_000_000, 5 * 2**20, latency),
        report.DetectionRow("small|s", [ALL, SOME], latency=0.75),
    ]
    table = report.DetectionTable(rows, ["A note."], {"processor": "abacus", "cores": 2})
    lines = [line.split("  ") for line in table.text().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["model", "mAP", "mAP50", "a", "b", "parameters", "MACs", "file", "p50 ms"]
    big = ["1.000", "1.000", "1.000", "1.000", "1,200,000", "164 M", "5.0 MiB", "2.500"]
    assert cells[2] == ["big", *big]
    # Over the seeds 1 and AP_A / 2: half of the distance from the mean, times √2.
    mean, sd = (1 + AP_A / 2) / 2, (1 - AP_A / 2) / 2**0.5
    assert cells[3][2] == f"{mean:.3f} ± {sd:.3f}" and cells[3][-1] == "0.750"
    assert cells[5] == [
        "Images: 1, objects: 3. A class's column is its AP50. Mean ± standard deviation over seeds."
    ]
    assert cells[6] == ["A note."]
    markdown = table.markdown().splitlines()
    assert markdown[1] == "|---|" + "---:|" * 8
    assert markdown[3].startswith("| small\\|s | ")
    assert markdown[-1] == "Latency measured on abacus, 2 cores."


def test_a_class_without_an_object_is_a_dash():
    alone = scores((0, 0.9, BOX), truth=[(0, BOX)])
    row = report.DetectionTable([report.DetectionRow("x", alone)]).text().splitlines()[2]
    assert row.split() == ["x", "1.000", "1.000", "1.000", "–", "–", "–", "–", "–"]


def test_the_table_is_saved(tmp_path):
    table = report.DetectionTable([report.DetectionRow("x", SOME), report.DetectionRow("y", ALL)])
    folder = table.save(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == [
        "detectors.html", "detectors.json", "detectors.md", "precision_recall.png"
    ]  # fmt: skip
    read = json.loads((folder / "detectors.json").read_text("utf-8"))
    assert read["rows"][1]["model"] == "y" and read["rows"][1]["scores"][0]["map50"] == 1.0
    assert (folder / "detectors.md").read_text("utf-8") == table.markdown()
    bare = table.save(tmp_path / "bare", plots=False)
    assert len(list(bare.iterdir())) == 3


def test_bad_rows():
    with pytest.raises(TypeError, match="one per seed"):
        report.DetectionRow("x", 0.5)
    with pytest.raises(TypeError, match="one per seed"):
        report.DetectionRow("x", [])
    with pytest.raises(ValueError, match="seed 1"):
        report.DetectionRow("x", [SOME, scores(names=("a", "c"))])
    with pytest.raises(ValueError, match="latency"):
        report.DetectionRow("x", SOME, latency=-1.0)
    with pytest.raises(ValueError, match="at least one row"):
        report.DetectionTable([])
    with pytest.raises(TypeError, match="DetectionRow"):
        report.DetectionTable([SOME])
    with pytest.raises(ValueError, match="'y'"):
        other = report.DetectionRow("y", scores(truth=[(0, BOX)]))
        report.DetectionTable([report.DetectionRow("x", SOME), other])
