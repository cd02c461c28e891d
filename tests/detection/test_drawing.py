"""Pictures of detections: what is drawn where, and what is written."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tfkd.detection import IGNORED, drawing
from tfkd.detection.drawing import COLOURS, detection_pictures

BLACK = np.zeros((1, 100, 100, 3), np.uint8)
# With size=200, which makes two pixels of one: where the picture begins.
LEFT, TOP = 12, 6 + 17


def found(*rows):
    """One image: rows of (class, score, box)."""
    return {
        "boxes": np.array([box for _, _, box in rows], float).reshape(-1, 4),
        "classes": [kind for kind, _, _ in rows],
        "confidence": [score for _, score, _ in rows],
    }


def real(*rows):
    return {"boxes": [box for _, box in rows], "classes": [kind for kind, _ in rows]}


def is_colour(page, kind):
    return (page == np.array(ImageColor.getrgb(COLOURS[kind]))).all(-1)


@pytest.fixture
def texts(monkeypatch):
    """What is written on pictures."""
    seen = []
    write = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        seen.append(text)
        return write(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return seen


BOX = [0.2, 0.3, 0.6, 0.8]
FAR = [0.7, 0.05, 0.95, 0.25]


def test_a_detection_is_a_solid_box_and_a_missed_object_a_dashed_one():
    # Scaled twofold: x from 40 to 120, y from 60 to 160.
    solid = is_colour(detection_pictures(BLACK, [found((1, 0.9, BOX))], size=200), 1)
    column = solid[TOP + 65 : TOP + 155, LEFT + 40]
    assert column.all()
    assert solid[TOP + 160, LEFT + 45 : LEFT + 115].all()
    assert solid[TOP + 65 : TOP + 155, LEFT + 120].all()
    assert not solid[TOP + 65 : TOP + 155, LEFT + 45 : LEFT + 115].any()
    assert not solid[TOP + 165 :, LEFT : LEFT + 200][:30].any()
    page = detection_pictures(BLACK, [found()], [real((1, BOX))], size=200)
    column = is_colour(page, 1)[TOP + 65 : TOP + 155, LEFT + 40]
    assert 0.3 < column.mean() < 0.8
    # An object that is found has no dashes of its class's colour.
    both = detection_pictures(BLACK, [found((0, 0.9, BOX))], [real((0, BOX))], size=200)
    assert not is_colour(both, 1).any() and is_colour(both, 0).any()


def test_labels_say_what_is_right_wrong_and_missed(texts):
    detections = [found((0, 0.9, BOX), (1, 0.61, FAR), (0, 0.8, BOX), (0, 0.49, FAR))]
    truth = [real((0, BOX), (0, FAR))]
    detection_pictures(BLACK, detections, truth, ["cell", "dust"], size=200)
    labels = ["cell", "cell 0.80 ?", "dust 0.61 ?", "cell 0.90"]
    legend = ["cell", "dust", "solid: detected", "white label: wrong", "dashed: missed"]
    assert sorted(texts[:4]) == sorted(labels)
    assert texts[4:] == ["1 right, 2 wrong, 1 missed", *legend, "thin white: found"]


def test_what_is_in_an_object_to_ignore_is_not_wrong(texts):
    detections = [found((0, 0.9, BOX), (1, 0.61, FAR))]
    detection_pictures(BLACK, detections, [real((0, BOX), (IGNORED, FAR))], size=200)
    assert "1 right, 0 wrong, 0 missed" in texts


def test_without_truth_nothing_is_wrong(texts):
    images = np.repeat(BLACK, 2, 0)
    detection_pictures(images, [found((0, 0.9, BOX)), found()], size=200)
    assert texts == ["0 0.90", "0: 1 detected", "1: 0 detected", "0", "solid: detected"]


def test_a_lower_threshold_shows_more(texts):
    detections = [found((0, 0.9, BOX), (0, 0.4, FAR))]
    detection_pictures(BLACK, detections, score_threshold=0.4, size=200)
    assert set(texts) >= {"0 0.90", "0 0.40", "2 detected"}


def test_more_detections_than_images_are_not_drawn(texts):
    detections = [found((0, 0.9, BOX)), found((0, 0.8, BOX))]
    detection_pictures(BLACK, detections, [real((0, BOX)), real()], size=200)
    assert "1 right, 0 wrong, 0 missed" in texts and "0 0.80" not in texts


def test_sizes_columns_and_floats(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 60, 3)).astype(np.uint8)
    page = detection_pictures(images, [found()] * 5, columns=2, size=120)
    # Columns of 120 and rows of 60 pixels, gaps of 12; lines of 17 above and below.
    assert page.shape == (6 + 3 * (60 + 17 + 12) + 17 + 6, 12 + 2 * 132, 3)
    # Without enlarging, the picture stands there as it is.
    small = detection_pictures(images, [found()] * 5, columns=2, size=64)
    assert small.shape[1] == 12 + 2 * 76
    large = np.random.default_rng(0).integers(0, 256, (1, 80, 80, 3)).astype(np.uint8)
    page = detection_pictures(large, [found()], size=80)
    np.testing.assert_array_equal(page[6 + 17 :][:80, 12:92], large[0])
    floats = large / np.float32(127.5) - 1
    np.testing.assert_array_equal(page, detection_pictures(floats, [found()], size=80))
    path = detection_pictures(large, [found()], size=80, path=tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), page)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=12))
def test_labels_stay_in_the_picture(boxes):
    image = Image.new("RGB", (150, 90))
    pen = drawing._Pen(ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(10), image.size, 2)
    for a, b, c, d in boxes:
        box = np.array([min(a, c), min(b, d), max(a, c), max(b, d)])
        pen.solid(box, COLOURS[0])
        pen.dashed(box, COLOURS[1])
        pen.tag(box, "cell 0.93", COLOURS[0], True)
    tags = np.array(pen._tags)
    assert (tags >= 0).all() and (tags[:, 2] < 150).all() and (tags[:, 3] < 90).all()


def test_labels_make_room_for_each_other():
    image = Image.new("RGB", (300, 300))
    pen = drawing._Pen(ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(10), image.size, 2)
    for _ in range(4):
        pen.tag(np.array([0.2, 0.3, 0.9, 0.8]), "cell 0.93", COLOURS[0], True)
    for a, b in itertools.combinations(pen._tags, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_long_legend_is_broken_into_rows():
    font = ImageFont.load_default(10)
    placed = drawing._legend(font, 150, 17, [(k, f"class {k}") for k in range(9)], True)
    assert [text for *_, text in placed][:9] == [f"class {k}" for k in range(9)]
    rows = [row for _, row, _, _ in placed]
    assert rows == sorted(rows) and rows[-1] > 2
    for left, _, kind, text in placed:
        assert left + font.getlength(text) + (17 if kind is not None else 0) <= 151


def test_letters_are_read_on_every_colour():
    assert {drawing._on(ink) for ink in COLOURS} == {drawing._INK, drawing._PAPER}
    assert drawing._on("#F0E442") == drawing._INK and drawing._on("#0072B2") == drawing._PAPER


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"tfkd\[detection\]"):
        detection_pictures(BLACK, [found()])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": BLACK[0]}, "(N, H, W, 3)"),
        ({"images": BLACK.astype(np.int64)}, "uint8"),
        ({"images": BLACK + 200.0}, "floats in -1..1"),
        ({"images": np.repeat(BLACK, 2, 0)}, "at least the 2 images"),
        ({"truth": [real((5, BOX))]}, "below 2"),
        ({"columns": 0}, "columns"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"size": 10}, "64 pixels"),
        ({"class_names": "ab"}, "a list of names"),
    ],
)
def test_bad_arguments(change, text):
    arguments = {"images": BLACK, "detections": [found()], "class_names": ["a", "b"], **change}
    with pytest.raises((TypeError, ValueError)) as error:
        detection_pictures(**arguments)
    assert text in str(error.value)
