"""Inputs of fitting statistics for the models of `real_models.py`: pictures and audio."""

from __future__ import annotations

import numpy as np


def pictures(source: str | None, count: int, size: int) -> np.ndarray:
    """Natural images (count, size, size, 3), 0 to 255."""
    import tensorflow as tf

    if source:
        with np.load(source) as file:
            images = file["x_test"][:count].astype("float32")
        return np.clip(tf.image.resize(images, (size, size), "bicubic").numpy(), 0, 255)
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)
    pieces = []
    for index in range(count):
        photo = photos[index % 2]
        side = int(rng.integers(size, min(photo.shape[:2])))
        top, left = (int(rng.integers(0, n - side)) for n in photo.shape[:2])
        piece = photo[top : top + side, left : left + side].astype("float32")
        pieces.append(tf.image.resize(piece, (size, size), antialias=True).numpy())
    return np.stack(pieces)


def scaled(size: int, source: str | None, count: int) -> np.ndarray:
    """Images in -1 to 1, as MTCNN and EfficientNet-Lite0 take them."""
    return (pictures(source, count, size) - 127.5) / 128


def grey(size: int, source: str | None, count: int) -> np.ndarray:
    """Images of one channel in -1 to 1."""
    return scaled(size, source, count) @ np.float32([[0.299], [0.587], [0.114]])


def caffe(size: int, source: str | None, count: int) -> np.ndarray:
    """Images as VGG16 takes them: blue, green, red, less their means."""
    images = pictures(source, count, size)[..., ::-1]
    return (images - np.array([104.00699, 116.66877, 122.67892])).astype("float32")


def chords(source: str | None, count: int) -> np.ndarray:
    """Two seconds each (count, 43844, 1) at 22,050 Hz: notes with overtones that fade."""
    del source
    rng = np.random.default_rng(0)
    seconds = np.arange(43844) / 22050
    audio = 0.002 * rng.normal(size=(count, len(seconds)))
    for one in audio:
        for start in np.arange(0, 2, 0.5):
            since = np.maximum(seconds - start, 0)
            for note in rng.integers(36, 84, rng.integers(1, 4)):
                pitch = 440 * 2 ** ((note - 69) / 12)
                tone = sum(np.sin(2 * np.pi * k * pitch * since) / k for k in range(1, 7))
                one += 0.15 * tone * np.exp(-4 * since) * (since > 0)
    return audio[..., None].astype("float32")
