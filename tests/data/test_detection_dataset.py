"""Images with boxes in memory: padding, what is refused, and smaller data sets made of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfkd import data
from tfkd.detection import UNLABELLED

X = np.zeros((3, 6, 8, 3), np.uint8)
BOX = [0.1, 0.2, 0.5, 0.6]
BOXES = [[BOX], [], [BOX, [0, 0, 1, 1]]]
CLASSES = [[1], [], [0, 1]]


def dataset(boxes=BOXES, classes=CLASSES, x=X, **options):
    test = {"x_test": X, "boxes_test": BOXES, "classes_test": CLASSES}
    return data.DetectionDataset(x, boxes, classes, **{**test, **options})


def random_dataset(counts, classes=3, seed=0):
    """`counts[i]` random boxes in image i, of which every pixel is i."""
    rng = np.random.default_rng(seed)
    x = np.broadcast_to(
        np.arange(len(counts), dtype=np.uint8)[:, None, None, None], (len(counts), 2, 2, 3)
    )
    corners = [np.sort(rng.uniform(0.01, 0.99, (n, 2, 2)), axis=1) for n in counts]
    boxes = [c.reshape(n, 4) for c, n in zip(corners, counts, strict=True)]
    labels = [rng.integers(0, classes, n) for n in counts]
    names = [f"class {i}" for i in range(classes)]
    return data.DetectionDataset(x, boxes, labels, x, boxes, labels, names), boxes, labels


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_lists_are_padded_and_lose_nothing(counts, seed):
    made, boxes, labels = random_dataset(counts, seed=seed)
    assert made.max_boxes == max(1, *counts, 1)
    assert made.object_counts().tolist() == counts
    for row, (some, numbers) in enumerate(zip(boxes, labels, strict=True)):
        n = counts[row]
        np.testing.assert_array_equal(made.boxes_train[row, :n], some.astype(np.float32))
        np.testing.assert_array_equal(made.classes_train[row, :n], numbers)
        assert (made.boxes_train[row, n:] == -1).all()
        assert (made.classes_train[row, n:] == -1).all()
    again = data.DetectionDataset(*made.arrays("train"), *made.arrays("test"), made.class_names)
    np.testing.assert_array_equal(again.boxes_train, made.boxes_train)
    np.testing.assert_array_equal(again.classes_test, made.classes_test)


def test_both_parts_get_one_width():
    made = dataset(boxes=[[BOX], [], None], classes=[[1], [], None])
    assert made.boxes_train.shape == made.boxes_test.shape == (3, 2, 4)
    assert made.classes_train.tolist() == [[1, -1], [-1, -1], [-2, -2]]
    assert made.boxes_train.dtype == np.float32
    assert made.classes_train.dtype == np.int32


def test_what_is_no_box_is_minus_one_even_between_boxes():
    boxes = np.full((3, 3, 4), 0.3, np.float32)
    boxes[:, ::2] = BOX
    classes = np.array([[2, -1, 0], [-2, -1, -1], [-1, -1, -1]])
    made = dataset(boxes, classes)
    assert made.boxes_train[0, 1].tolist() == [-1] * 4
    assert made.boxes_train[0, 2].tolist() == pytest.approx(BOX)
    assert (made.boxes_train[1:] == -1).all()
    assert (made.classes_train[1] == UNLABELLED).all()
    assert boxes[0, 1, 0] == np.float32(0.3), "the caller's array is left alone"


def test_what_it_says_of_itself():
    made = dataset(class_names=("cat", "dog"), name="pets")
    assert repr(made) == (
        "DetectionDataset('pets', 3 + 3 images (6, 8, 3), 3 + 3 objects of 2 classes)"
    )
    assert made.unlabelled == 0
    assert "2 images unlabelled" in repr(made.unlabel(1))
    assert (made.num_classes, made.image_shape) == (2, (6, 8, 3))
    assert dataset().class_names == ("0", "1")


def test_preprocess():
    pixels = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(dataset().preprocess(pixels), [-1, -0.6, 1], atol=1e-6)
    assert dataset().preprocess(pixels).dtype.name == "float32"


def test_rounding_beyond_the_edge_is_clipped():
    made = dataset(boxes=[[[-1e-4, 0, 1.0002, 1]], [], []], classes=[[0], [], []])
    assert made.boxes_train[0, 0].tolist() == [0, 0, 1, 1]


@given(seed=st.integers(0, 2**31), few=st.integers(1, 8), more=st.integers(0, 4))
def test_subsets_are_nested_and_keep_images_with_their_boxes(seed, few, more):
    made, _, _ = random_dataset([1, 2, 3, 0, 2, 5, 1, 1, 4, 2, 3, 1])
    small, large = made.subset(few, seed), made.subset(few + more, seed)
    which = small.x_train[:, 0, 0, 0].tolist()
    assert len(which) == few
    assert which == sorted(which)
    assert set(which) <= set(large.x_train[:, 0, 0, 0].tolist())
    np.testing.assert_array_equal(small.boxes_train, made.boxes_train[which])
    np.testing.assert_array_equal(small.classes_train, made.classes_train[which])
    assert small.max_boxes == made.max_boxes
    assert len(small.x_test) == 12
    assert len(made.subset(test=5, seed=seed).x_test) == 5


def test_unlabel_keeps_images_and_the_labels_of_some():
    made, _, _ = random_dataset([1, 2, 3, 0, 2])
    once = made.unlabel(keep=3, seed=4)
    assert once.unlabelled == 2
    kept = once.classes_train[:, 0] != UNLABELLED
    np.testing.assert_array_equal(once.boxes_train[kept], made.boxes_train[kept])
    assert (once.classes_train[~kept] == UNLABELLED).all()
    assert (once.boxes_train[~kept] == -1).all()
    np.testing.assert_array_equal(once.x_train, made.x_train)
    np.testing.assert_array_equal(once.classes_test, made.classes_test)
    assert (once.object_counts()[~kept] == 0).all()
    for seed in range(5):
        twice = once.unlabel(keep=1, seed=seed).classes_train[:, 0] != UNLABELLED
        assert twice.sum() == 1
        assert kept[twice].all()
    with pytest.raises(ValueError, match="`keep`: expected at most 3"):
        once.unlabel(keep=4)


@given(fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_drop_boxes_leaves_the_rest_as_it_was(fraction, seed):
    made, _, _ = random_dataset([1, 2, 3, 0, 2, 5])
    less = made.drop_boxes(fraction, seed)
    assert less.object_counts().sum() == 13 - round(fraction * 13)
    kept = less.classes_train >= 0
    np.testing.assert_array_equal(less.classes_train[kept], made.classes_train[kept])
    np.testing.assert_array_equal(less.boxes_train[kept], made.boxes_train[kept])
    assert (less.boxes_train[~kept] == -1).all()
    assert made.object_counts().sum() == 13


def test_drop_boxes_leaves_unlabelled_images_unlabelled():
    made, _, _ = random_dataset([1, 2, 3])
    assert made.unlabel(1).drop_boxes(1.0).classes_train.max(axis=1).tolist().count(-2) == 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"x": [1, 2]}, TypeError, "np.stack"),
        ({"x": X[..., 0]}, ValueError, "Grey"),
        ({"x": X[..., :1]}, ValueError, "Grey"),
        ({"x": X / 255}, TypeError, "np.rint"),
        ({"x": X.astype(int) - 1}, ValueError, "0..255"),
        ({"x": X[:0]}, ValueError, "at least one image"),
        ({"x_test": X[:, :4]}, ValueError, "`x_test`.*like x_train"),
        ({"boxes": BOXES[:2]}, ValueError, "`boxes_train`: expected 3 entries"),
        ({"classes": 3}, TypeError, "`classes_train`"),
        ({"boxes": [[BOX[:3]], [], []], "classes": [[0], [], []]}, ValueError, "image 0"),
        ({"classes": [[1], [], [0]]}, ValueError, "2 classes, one per box.*image 2"),
        ({"classes": [[1.0], [], [0, 1]]}, TypeError, "integer classes"),
        ({"boxes": [[BOX], None, []], "classes": [[1], [], []]}, ValueError, "None in both"),
        ({"classes": [[-4], [], [0, 1]]}, ValueError, "-3 for an object to ignore.*-4"),
        ({"classes": [[1], [], [0, -2]]}, ValueError, "or in none.*image 2"),
        ({"boxes": [[[0, 0, 0, 1]], [], []], "classes": [[-3], [], []]}, ValueError, "x1 < x2"),
        ({"boxes": [[[1, 2, NAN, 4]], [], []], "classes": [[0], [], []]}, ValueError, "finite"),
        ({"boxes": [[[1, 2, 30, 4]], [], []], "classes": [[0], [], []]}, ValueError, "Pixels?"),
        ({"boxes": [[], [], [BOX, [0.5, 0, 0.5, 1]]], "classes": [[], [], [0, 0]]}, ValueError,
         "x1 < x2.*box 1 of image 2"),
        ({"boxes": np.zeros((3, 2, 5)), "classes": np.zeros((3, 2), int)}, ValueError, "N, M, 4"),
        ({"boxes": np.zeros((3, 2, 4)), "classes": np.zeros((3, 1), int)}, ValueError, "one class"),
        ({"boxes": np.zeros((3, 2, 4)), "classes": np.zeros((3, 2))}, TypeError, "integer classes"),
        ({"class_names": "ab"}, TypeError, "`class_names`"),
        ({"class_names": ("a",)}, ValueError, "2 names or more"),
        ({"class_names": ("a", "a")}, ValueError, "names that differ"),
        ({"augment": 3}, TypeError, "`augment`"),
    ],
)  # fmt: skip
def test_what_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        dataset(**options)


def test_bad_arguments_of_its_methods():
    made = dataset()
    with pytest.raises(ValueError, match="`split`: expected one of 'train', 'test'"):
        made.arrays("val")
    with pytest.raises(ValueError, match="`count`: expected at most 3"):
        made.subset(4)
    with pytest.raises(ValueError, match="`test`: expected at most 3"):
        made.subset(test=4)
    with pytest.raises(ValueError, match="`fraction`"):
        made.drop_boxes(1.5)
    with pytest.raises(ValueError, match="`seed`"):
        made.unlabel(1, seed=-1)
