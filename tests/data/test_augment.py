"""Each augmented image is one of the (2p + 1)² · 2 crops that NumPy makes of it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfkd import data


def crops(image, padding, flip):
    """All crops of one image, by NumPy: {bytes: (row, column, mirrored)}."""
    height, width = image.shape[:2]
    border = [(padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(image, border, mode="reflect")
    found = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[row : row + height, column : column + width]
            for mirrored in (False, True) if flip else (False,):
                found[(crop[:, ::-1] if mirrored else crop).tobytes()] = (row, column, mirrored)
    return found


@given(
    padding=st.integers(0, 3),
    flip=st.booleans(),
    channels=st.integers(1, 3),
    seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
)
def test_each_image_is_a_crop_of_itself(padding, flip, channels, seed):
    images = np.random.default_rng(seed).integers(0, 255, (6, 5, 7, channels)).astype(np.uint8)
    out = data.shift_and_flip(padding, flip)(images, tf.constant(seed, tf.int32)).numpy()
    assert out.dtype == np.uint8
    for before, after in zip(images, out, strict=True):
        assert after.tobytes() in crops(before, padding, flip)


def test_all_offsets_and_both_directions_come_about_equally_often():
    image = np.random.default_rng(0).normal(size=(6, 6, 1)).astype(np.float32)
    where = crops(image, 1, True)
    out = data.shift_and_flip(1)(np.repeat(image[None], 1800, 0), tf.constant([5, 9])).numpy()
    drawn = [where[after.tobytes()] for after in out]
    counts = np.unique(np.array(drawn, int), axis=0, return_counts=True)[1]
    assert len(counts) == 18  # 3 rows x 3 columns x 2 directions
    assert abs(counts - 100).max() < 50  # mean 100, standard deviation 10


def test_the_seed_decides():
    images = tf.random.stateless_uniform((16, 8, 8, 1), [1, 2])
    augment = data.shift_and_flip(2)
    one = augment(images, tf.constant([0, 7]))
    np.testing.assert_array_equal(one, augment(images, tf.constant([0, 7])))
    assert not np.array_equal(one, augment(images, tf.constant([0, 8])))
    assert not np.array_equal(one, augment(images, tf.constant([1, 7])))


@pytest.mark.parametrize("padding", [-1, 1.5, "4"])
def test_bad_padding(padding):
    with pytest.raises((TypeError, ValueError), match="`padding`"):
        data.shift_and_flip(padding)


@pytest.mark.parametrize("shape", [(2, 4, 8, 1), (2, 8, 8), (8, 8)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="more than 4 pixels a side"):
        data.shift_and_flip(4)(np.zeros(shape, np.float32), tf.constant([0, 0]))
