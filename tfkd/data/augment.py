"""Image augmentation for classification: random crop and flip as a function of the seed."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfkd import checks
from tfkd.types import Tensor


def shift_and_flip(padding: int = 4, flip: bool = True) -> Callable[[Tensor, Tensor], tf.Tensor]:
    """The usual CIFAR augmentation: reflection padding, random crop, horizontal flip.

    Reference: He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385

    Args:
        padding: pixels of reflected border on each side; the crop's offset is
            uniform in [0, 2·padding] for each image.
        flip: whether to mirror half of the images left to right; not for
            digits or letters.

    Returns:
        `augment(images, seed)`: (B, H, W, C) and an int32 seed of shape (2,) →
        (B, H, W, C), with a crop and flip drawn for each image. The same images
        and seed give the same result in every process.

    Raises:
        ValueError: if `padding` is negative; or, when called, if the images are not
            (B, H, W, C) with sides longer than `padding`, as reflection requires.

    Example:
        >>> import tensorflow as tf
        >>> from tfkd import data
        >>> images = tf.random.uniform((2, 8, 8, 1))
        >>> data.shift_and_flip(2)(images, tf.constant([0, 7])).shape
        TensorShape([2, 8, 8, 1])
    """
    checks.non_negative_int("padding", padding)

    def augment(images: Tensor, seed: Tensor) -> tf.Tensor:
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
            end = 2 * padding + 1
            offsets = tf.random.stateless_uniform((2, batch), seed, maxval=end, dtype=tf.int32)
            rows = offsets[0][:, None] + tf.range(height)[None]
            columns = offsets[1][:, None] + tf.range(width)[None]
            images = tf.gather(padded, rows, axis=1, batch_dims=1)
            images = tf.gather(images, columns, axis=2, batch_dims=1)
        if flip:
            # A seed of its own, so that flips do not depend on the offsets of the crops.
            other = seed + tf.constant([1_000_003, 0], seed.dtype)
            mirrored = tf.random.stateless_uniform((batch,), other) < 0.5
            images = tf.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return images

    return augment
