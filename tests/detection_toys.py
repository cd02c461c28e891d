"""Small detectors, and objects at random, for tests of detection."""

from __future__ import annotations

import numpy as np
import tf_keras as keras
import toys

from tfkd import detection

CLASSES = 2
# Two in each of four cells.
ANCHORS = detection.Anchors([2], scales=[(0.4, 0.7)])
PRIORS = len(ANCHORS)


def detector(seed, width=4, anchors=ANCHORS, regularizer=None, dtype=None, layer=None):
    """(4, 6) → "hidden", for each of four cells → {"boxes": (P, 4), "classes": (P, C + 1)}."""
    each = anchors.per_location[0]
    image = keras.Input((4, 6))
    # Not convolutions: TensorFlow's fail on a batch without examples, as a replica may get.
    hidden = keras.layers.Dense(
        width, "tanh", kernel_regularizer=regularizer, name="hidden", dtype=dtype
    )(image)
    if layer is not None:
        hidden = layer(hidden)
    outputs = {}
    for name, size in (("boxes", 4), ("classes", CLASSES + 1)):
        maps = keras.layers.Dense(each * size, name=f"head_{name}", dtype=dtype)(hidden)
        outputs[name] = keras.layers.Reshape((-1, size), name=name, dtype=dtype)(maps)
    return toys.randomize(keras.Model(image, outputs), seed)


def images(count=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4, 6)).astype(np.float32)


def objects(count=6, most=3, seed=0, classes=CLASSES, grid=None):
    """Between 0 and `most` objects an image, padded; on a grid there are many equal overlaps."""
    rng = np.random.default_rng(seed)
    boxes = np.full((count, most, 4), -1.0, np.float32)
    kinds = np.full((count, most), -1, np.int32)
    for i in range(count):
        n = rng.integers(0, most + 1)
        sides = rng.uniform(0.1, 0.8, (n, 2))
        low = rng.uniform(0, 1, (n, 2)) * (1 - sides)
        found = np.concatenate([low, low + sides], 1)
        if grid:
            found = np.round(found * grid) / grid  # some have no area then
        boxes[i, :n], kinds[i, :n] = found, rng.integers(0, classes, n)
    return {"boxes": boxes, "classes": kinds}


def outputs(count=6, seed=0, priors=PRIORS, scores=CLASSES + 1, scale=1.5):
    """What a detector might say."""
    rng = np.random.default_rng(seed)
    return {
        "boxes": (scale * rng.normal(size=(count, priors, 4))).astype(np.float32),
        "classes": (scale * rng.normal(size=(count, priors, scores))).astype(np.float32),
    }
