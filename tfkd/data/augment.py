"""Augmentations of image batches: pure functions of (images, seed)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfkd import checks


def shift_and_flip(padding: int = 4, flip: bool = True):
    """The usual CIFAR augmentation: pad, crop at random, mirror at random.

    Args:
        padding: pixels of reflected border on each side; the crop's offset is
            uniform in [0, 2·padding] for each image.
        flip: whether to mirror half of the images left to right; not for
            digits or letters.

    Returns:
        `augment(images, seed)`: (B, H, W, C) and an int32 seed of shape (2,) →
        (B, H, W, C), each image moved on its own. The same images and seed
        give the same result in every process.

    Raises:
        ValueError: if `padding` is negative; or, when called, if images are no
            (B, H, W, C) with sizes above `padding` (a border is reflected).

    Example:
        >>> import tensorflow as tf
        >>> from tfkd import data
        >>> images = tf.random.uniform((2, 8, 8, 1))
        >>> data.shift_and_flip(2)(images, tf.constant([0, 7])).shape
        TensorShape([2, 8, 8, 1])
    """
    checks.non_negative_int("padding", padding)

    def augment(images: Any, seed: Any) -> Any:
        images, seed = tf.convert_to_tensor(images), tf.convert_to_tensor(seed)
        sizes = images.shape[1:3].as_list() if images.shape.rank == 4 else []
        if not sizes or None in sizes or min(sizes) <= padding:
            expected = f"images (B, H, W, C) of fixed size, more than {padding} pixels a side"
            raise checks.value_error("images", expected, images, "Use a smaller `padding`.")
        batch = tf.shape(images)[0]
        height, width = sizes
        if padding:
            border = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
            padded = tf.pad(images, border, mode="REFLECT")
            offsets = tf.random.stateless_uniform(
                (2, batch), seed, maxval=2 * padding + 1, dtype=tf.int32
            )
            rows = offsets[0][:, None] + tf.range(height)[None]
            columns = offsets[1][:, None] + tf.range(width)[None]
            images = tf.gather(padded, rows, axis=1, batch_dims=1)
            images = tf.gather(images, columns, axis=2, batch_dims=1)
        if flip:
            other = seed + tf.constant([1_000_003, 0], seed.dtype)
            mirrored = tf.random.stateless_uniform((batch,), other) < 0.5
            images = tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return images

    return augment
