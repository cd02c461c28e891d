"""Examples in two parts or with two labels, and odd pixels: said, with count and the first."""

import warnings

import numpy as np
import pytest
from PIL import Image

from tfkd import data

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (10, 4, 4, 3)).astype(np.uint8)
Y = np.arange(10) % 2


def said(make):
    """The messages of the warnings, which must point at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    assert all(warning.filename == __file__ for warning in caught)
    return made, [str(warning.message) for warning in caught]


def as_npz(folder, *arrays):
    path = folder / "toy.npz"
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return path


@pytest.mark.parametrize("kind", ["uint8", "float32", "npz"])
def test_images_in_both_parts(tmp_path, kind):
    x = (X / 255).astype(np.float32) if kind == "float32" else X
    arrays = x[:8], Y[:8], x[[8, 3, 9, 3, 5]], Y[[8, 3, 9, 3, 5]]
    if kind == "npz":
        path = as_npz(tmp_path, *arrays)
        made, messages = said(lambda: data.npz(path))
    else:
        made, messages = said(lambda: data.Dataset(*arrays, name="toy"))
    (message,) = messages
    assert message.startswith("toy: 3 of the 5 images of the test part are in the training part")
    assert "the first: x_test[1] is x_train[3]." in message
    # A part of it is not looked at again.
    assert said(lambda: made.subset(train=4))[1] == []


def test_nothing_is_said_of_parts_that_share_nothing():
    almost = X[:2].copy()
    almost[0, 3, 3, 2] ^= 1
    almost[1] = almost[1, ::-1]
    assert said(lambda: data.Dataset(X, Y, almost, Y[:2]))[1] == []
    assert said(lambda: data.Dataset(X[[0, 0, 1]], Y[[0, 0, 1]], X[2:], Y[2:]))[1] == []


def test_one_image_with_two_labels():
    x, y = X[[0, 1, 2, 1, 4, 1]], np.array([0, 1, 0, 0, 1, 1])
    _, (message,) = said(lambda: data.Dataset(x, y, X[5:], Y[5:], ("cat", "dog")))
    assert "data: 1 of the images has the content of an earlier one and another label" in message
    assert "x_train[3] with label 'cat' is x_train[1] with label 'dog'" in message
    _, messages = said(lambda: data.Dataset(X[:4], Y[:4], X[[0]], 1 - Y[[0]]))
    assert [("in the training part" in m, "another label" in m) for m in messages] == [
        (True, False),
        (False, True),
    ]


def test_files_are_named(tmp_path):
    for number, image in enumerate(X[:6]):
        file = tmp_path / ("train", "test")[number % 3 == 2] / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    Image.fromarray(X[0]).save(tmp_path / "test/a/copy.bmp")  # other bytes, the same pixels
    made, (message,) = said(lambda: data.image_folder(tmp_path))
    assert (len(made.x_train), len(made.x_test)) == (4, 3)
    assert "1 of the 3 images of the test part is in the training part too" in message
    assert "the first: test/a/copy.bmp is train/a/0.png." in message


def test_a_copy_may_come_to_the_other_side_of_a_split(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("L", (3, 3), 10 * ord(name) % 251).save(tmp_path / name / f"{number}.png")
    _, (message,) = said(lambda: data.image_folder(tmp_path, test_fraction=0.5))
    assert "2 of the 2 images of the test part" in message


def test_images_with_boxes_in_both_parts():
    boxes, classes = [[[0.1, 0.2, 0.5, 0.6]]] * 4, [[0]] * 4
    fields = (X[:4], boxes, classes, X[[5, 6, 2, 2]], boxes, classes)
    made, (message,) = said(lambda: data.DetectionDataset(*fields, name="toy"))
    assert "toy: 2 images of the test part are in the training part too, by content" in message
    assert "the first: x_test[2] is x_train[2]" in message
    assert [(f.kind, f.is_note) for f in made.findings] == [("same image", True)] * 2
    small, messages = said(lambda: made.unlabel(keep=2).subset(3))
    assert (small.findings, messages) == (made.findings, [])


def test_texts_in_two_parts():
    fields = {"x_train": ["fine", "dull", "fine"], "y_train": [1, 0, 1], "x_test": ["so", "dull"]}
    fields |= {"y_test": [0, 1], "x_dev": ["so", "fine", "new"], "y_dev": [0, 1, 0]}
    _, messages = said(lambda: data.TextDataset(**fields, class_names=("bad", "good")))
    assert len(messages) == 4
    assert "1 of the 2 texts of the test part is in the training part too" in messages[0]
    assert "x_test[1] ('dull') is x_train[1] ('dull')" in messages[0]
    assert "1 of the 3 texts of the dev part is in the test part too" in messages[1]
    assert "1 of the 3 texts of the dev part is in the training part too" in messages[2]
    assert "x_test[1] ('dull') with label 'good'" in messages[3]
    assert "x_train[1] ('dull') with label 'bad'" in messages[3]


# Arrays of the right kind that do not look it.


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_parts_in_two_units_are_said(kind):
    x = X.astype(kind)
    test = (x[8:] / 255).astype("float32") if kind == "float32" else x[8:] // 128
    _, (message,) = said(lambda: data.Dataset(x[:8], Y[:8], test, Y[8:]))
    assert "pixels of x_train span" in message and "divided by 255" in message
    assert said(lambda: data.Dataset(x[:8], Y[:8], x[8:] // 8, Y[8:]))[1] == []


def test_channels_first_are_said():
    x = RNG.integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    _, (message,) = said(lambda: data.Dataset(x[:4], Y[:4], x[4:], Y[4:6]))
    assert "8 channels and a height of 3. Channels first? Pass `np.moveaxis" in message
