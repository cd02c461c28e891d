"""Pictures of examples of odd dtypes, ranges, sizes and numbers of channels."""

import base64
import io

import numpy as np
import pytest

from tfkd import report

pil = pytest.importorskip("PIL.Image")


def opened(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(pil.open(io.BytesIO(base64.b64decode(data))))


def one(images, **options):
    return opened(report.thumbnails(images, [0], **options)["0"])


RAMP = np.array([[0, 51], [102, 255]])  # grey levels


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (RAMP.astype("uint8"), RAMP),
        (RAMP.astype("int64"), RAMP),
        (RAMP.astype("float32"), RAMP),
        ((RAMP / 255).astype("float16"), RAMP),
        ((RAMP / 127.5 - 1).astype("float64"), RAMP),
        (RAMP > 60, 255 * (RAMP > 60)),
        # Of any other range the smallest value is black, the largest white.
        ((RAMP * 20).astype("uint16"), RAMP),
        ((RAMP * 0.02 - 2.6).astype("float32"), RAMP),
        ((RAMP.astype(int) - 128).astype("int8"), RAMP),
        # Equal values, and values that are no numbers, are no error.
        (np.full((2, 2), 7.5e5), np.zeros((2, 2))),
        (np.full((2, 2), np.nan), np.zeros((2, 2))),
    ],
)
def test_dtypes_and_ranges(images, expected):
    np.testing.assert_allclose(one(images[None]), expected, atol=1)
    np.testing.assert_allclose(one(images[None, ..., None]), expected, atol=1)


def test_colours_transparency_and_other_channels():
    rgb = np.stack([RAMP, RAMP // 2, RAMP // 4], -1).astype("uint8")
    np.testing.assert_array_equal(one(rgb[None]), rgb)
    rgba = np.concatenate([rgb, rgb[..., :1]], -1)
    np.testing.assert_array_equal(one(rgba[None]), rgba)
    np.testing.assert_array_equal(one(rgb[None, ..., :2]), rgb[..., 0])


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), (1, 1)), ((300, 200), (96, 64)), ((1, 900), (1, 96))]
)
def test_sizes(size, expected):
    assert one(np.zeros((1, *size), "uint8")).shape[:2] == expected


def test_indices_are_the_names():
    found = report.thumbnails(np.arange(3, dtype="uint8").reshape(3, 1, 1), [2, 0])
    assert {name: int(opened(url)[0, 0]) for name, url in found.items()} == {"2": 2, "0": 0}
    assert report.thumbnails(np.zeros((3, 4, 4)), []) == {}


@pytest.mark.parametrize(
    ("images", "examples", "words"),
    [
        (np.zeros((3, 4)), None, "`images`"),
        (np.array([["a"]]), None, "`images`"),
        (np.zeros((3, 4, 4)), [3], "indices from 0 to 2"),
    ],
)
def test_it_refuses(images, examples, words):
    with pytest.raises(ValueError, match=words):
        report.thumbnails(images, examples)


def test_a_drawn_picture():
    picture = np.arange(48, dtype="uint8").reshape(4, 4, 3)
    np.testing.assert_array_equal(opened(report.data_url(picture)), picture)
    with pytest.raises(ValueError, match="`picture`"):
        report.data_url(picture / 2)
