"""A painted rectangle and its box go through every augmentation together."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfkd import data
from tfkd.detection import IGNORED, PADDING

STILL = {"flip": False, "shift": 0.0, "brightness": 0.0, "contrast": 0.0}
SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
# A size a compilation: few, but not square.
SIZES = [(16, 24), (21, 15)]
BATCH = 12


def painted(size, seed):
    """(B, H, W, 3) images of -1 with a rectangle of 1, and its box in whole pixels."""
    height, width = size
    rng = np.random.default_rng(seed)
    images = np.full((BATCH, height, width, 3), -1, np.float32)
    corners = np.empty((BATCH, 4), int)
    for image, corner in zip(images, corners, strict=True):
        x1, y1 = rng.integers(1, width - 3), rng.integers(0, height - 3)
        corner[:] = x1, y1, rng.integers(x1 + 3, width + 1), rng.integers(y1 + 3, height + 1)
        image[y1 : corner[3], x1 : corner[2]] = 1
    sides = np.array([width, height, width, height])
    boxes = np.full((BATCH, 3, 4), -1, np.float32)
    boxes[:, 1] = corners / sides
    classes = np.full((BATCH, 3), -1, np.int32)
    classes[:, 1] = np.arange(BATCH)
    classes[0, 1] = IGNORED  # moves like the others
    return images, {"boxes": boxes, "classes": classes}, corners


def extent(image, least):
    """(x1, y1, x2, y2) in pixels of what is at least as bright as this, or None."""
    seen = image[..., 0] >= least
    if not seen.any():
        return None
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(
    seed=SEEDS,
    size=st.sampled_from(SIZES),
    shift=st.sampled_from([0.0, 0.15, 0.6]),
    flip=st.booleans(),
    vertical=st.booleans(),
    fill=st.sampled_from(["zero", "mean"]),
)
def test_mirrors_and_shifts_keep_pixels_and_boxes_together(seed, size, shift, flip, vertical, fill):
    images, targets, corners = painted(size, seed)
    # No part of a rectangle of at most 24 × 21 pixels is as near to this as rounding is.
    keep = 0.4001
    augment = data.augment_boxes(
        **{**STILL, "flip": flip, "shift": shift}, flip_vertical=vertical, fill=fill, keep=keep
    )
    out, moved = augment(images, targets, tf.constant(seed, tf.int32))
    scale = np.array([size[1], size[0], size[1], size[0]])
    for i, image in enumerate(out.numpy()):
        x1, y1, x2, y2 = corners[i]
        left = (image[..., 0] == 1).sum() / ((x2 - x1) * (y2 - y1))
        assert moved["classes"][i, 1] == (targets["classes"][i, 1] if left >= keep else -1), left
        if left >= keep:
            np.testing.assert_allclose(moved["boxes"][i, 1] * scale, extent(image, 1), atol=1e-3)
        else:
            assert (moved["boxes"][i].numpy() == -1).all()
        assert (moved["boxes"].numpy()[i, ::2] == -1).all()


@given(seed=SEEDS, size=st.sampled_from(SIZES), zoom=st.sampled_from([(0.6, 1.0), (1.0, 1.8), 1.5]))
def test_zoom_keeps_pixels_and_boxes_together(seed, size, zoom):
    images, targets, _ = painted(size, seed)
    augment = data.augment_boxes(
        flip=True, flip_vertical=True, shift=0.1, zoom=zoom, brightness=0, contrast=0, keep=0.2
    )
    out, moved = augment(images, targets, tf.constant(seed, tf.int32))
    scale = np.array([size[1], size[0], size[1], size[0]])
    for i, image in enumerate(out.numpy()):
        if moved["classes"][i, 1] == PADDING:
            continue
        # An edge is blurred over a pixel of the source: 1.8 pixels here. Pixels above 0.5
        # begin at most that far from it.
        box = moved["boxes"][i, 1].numpy() * scale
        if min(box[2] - box[0], box[3] - box[1]) > 4:
            np.testing.assert_allclose(box, extent(image, 0.5), atol=1.4)


def test_a_box_stays_from_two_fifths_of_its_area_on():
    images = np.zeros((400, 10, 20, 3), np.float32)
    targets = {"boxes": np.tile(np.float32([[0, 0, 0.5, 1]]), (400, 1, 1))}
    targets["classes"] = np.zeros((400, 1), int)
    _, moved = data.augment_boxes(**{**STILL, "shift": 0.45})(images, targets, [8, 9])
    boxes = moved["boxes"].numpy()[:, 0]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[moved["classes"].numpy()[:, 0] == 0]
    assert 0.2 - 1e-6 <= areas.min() < 0.22
    assert 20 < len(areas) < 380


def test_zoom_grows_objects_by_its_factor():
    images, targets, _ = painted((16, 24), 1)
    targets["boxes"][:, 1] = [0.4, 0.4, 0.6, 0.7]
    for zoom, factor in (((0.5, 0.5), 0.5), ((1.25, 1.25), 1.25)):
        augment = data.augment_boxes(**STILL, zoom=zoom, keep=0.999)
        _, moved = augment(images, targets, [3, 4])
        whole = moved["classes"].numpy()[:, 1] >= 0
        boxes = moved["boxes"].numpy()[whole, 1]
        assert whole.sum() > 3
        np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], 0.2 * factor, atol=1e-3)
        np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], 0.3 * factor, atol=1e-3)


def test_zoom_alone_stays_within_the_image_or_shows_all_of_it():
    images, targets, _ = painted((16, 24), 1)
    targets["boxes"][:, 1] = [0, 0, 1, 1]
    options = {**STILL, "flip": True, "flip_vertical": True}
    _, moved = data.augment_boxes(**options, zoom=(0.5, 0.5))(images, targets, [3, 4])
    boxes = moved["boxes"].numpy()[:, 1]
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 0.5, atol=1e-6)
    assert np.unique(boxes.round(4)[:, 0]).size == BATCH
    _, moved = data.augment_boxes(**options, zoom=(2.0, 2.0), keep=0.1)(images, targets, [3, 4])
    np.testing.assert_allclose(moved["boxes"].numpy()[:, 1], [[0, 0, 1, 1]] * BATCH, atol=1e-6)


@given(seed=SEEDS, size=st.sampled_from(SIZES), both=st.booleans())
def test_mirroring_twice_gives_the_image_back(seed, size, both):
    images, targets, _ = painted(size, seed)
    images += np.random.default_rng(seed).normal(size=images.shape).astype(np.float32)
    augment = data.augment_boxes(**{**STILL, "flip": True}, flip_vertical=both)
    once = augment(images, targets, tf.constant(seed, tf.int32))
    back, moved = augment(*once, tf.constant(seed, tf.int32))
    np.testing.assert_array_equal(back, images)
    np.testing.assert_allclose(moved["boxes"], targets["boxes"], atol=1e-6)
    np.testing.assert_array_equal(moved["classes"], targets["classes"])


@pytest.mark.parametrize("options", [{}, {"zoom": 1}, {"zoom": (1.0, 1.0), "fill": "mean"}])
def test_no_strength_no_change(options):
    images, targets, _ = painted((16, 24), 0)
    out, same = data.augment_boxes(**STILL, **options)(images, targets, [1, 2])
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(same["boxes"], targets["boxes"])
    np.testing.assert_array_equal(same["classes"], targets["classes"])


def test_the_seed_decides_and_a_graph_gives_the_same():
    images, targets, _ = painted((16, 24), 0)
    augment = data.augment_boxes(flip_vertical=True, zoom=1.3, saturation=0.2)
    one = tf.nest.flatten(augment(images, targets, tf.constant([0, 7])))
    graph = tf.nest.flatten(tf.function(augment)(images, targets, tf.constant([0, 7])))
    for a, b in zip(one, graph, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(one, tf.nest.flatten(augment(images, targets, [0, 7])), strict=True):
        np.testing.assert_array_equal(a, b)
    for seed in ([0, 8], [1, 7]):
        assert not np.array_equal(one[-1], augment(images, targets, seed)[0])


def test_half_are_mirrored_and_shifts_reach_both_ends_equally():
    images = np.zeros((600, 2, 10, 3), np.float32)
    images[:, :, 2] = 1
    box = np.tile(np.float32([[0.2, 0, 0.3, 1]]), (600, 1, 1))
    targets = {"boxes": box, "classes": np.zeros((600, 1), int)}
    _, moved = data.augment_boxes(**{**STILL, "flip": True})(images, targets, [5, 6])
    mirrored = np.isclose(moved["boxes"].numpy()[:, 0, 0], 0.7).sum()
    assert abs(mirrored - 300) < 5 * 12.3  # standard deviation 12.3
    _, moved = data.augment_boxes(**{**STILL, "shift": 0.2})(images, targets, [5, 6])
    steps = np.rint(moved["boxes"].numpy()[:, 0, 0] * 10).astype(int) - 2
    counts = np.bincount(steps + 2, minlength=5)
    assert len(counts) == 5
    assert abs(counts - 120).max() < 5 * 9.8


def test_images_that_nobody_has_labelled_stay_so():
    images, targets, _ = painted((16, 24), 0)
    targets["classes"][::2] = -2
    targets["boxes"][::2] = -1
    _, moved = data.augment_boxes(shift=0.9, zoom=2)(images, targets, [3, 4])
    assert (moved["classes"].numpy()[::2] == -2).all()
    assert (moved["boxes"].numpy()[::2] == -1).all()
    assert (moved["classes"].numpy()[1::2] > -2).all()


def test_what_comes_in_from_outside():
    images, targets, _ = painted((16, 24), 2)
    for zoom in (None, (0.5, 0.5)):
        for fill in ("zero", "mean"):
            augment = data.augment_boxes(**{**STILL, "shift": 0.3}, zoom=zoom, fill=fill)
            out = augment(images, targets, [1, 1])[0].numpy()
            wanted = images.mean((1, 2)) if fill == "mean" else np.zeros((BATCH, 3))
            corners = out[:, [0, 0, -1, -1], [0, -1, 0, -1]]
            ground = np.isclose(np.abs(corners), 1).all(-1)
            new = np.isclose(corners, wanted[:, None], atol=1e-5).all(-1)
            assert (ground | new).all()
            assert new.any(axis=1).sum() > BATCH / 2


def test_light():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (200, 2, 2, 3)).astype(np.float32)
    targets = {"boxes": np.full((200, 1, 4), -1.0), "classes": np.full((200, 1), -1)}

    def change(**options):
        return data.augment_boxes(**{**STILL, **options})(images, targets, [1, 2])[0].numpy()

    added = change(brightness=0.3) - images
    assert np.ptp(added, axis=(1, 2, 3)).max() < 1e-5
    assert -0.3 <= added.min() < -0.25 < 0.25 < added.max() <= 0.3001
    factors = change(contrast=0.2) / images
    assert np.ptp(factors, axis=(1, 2, 3)).max() < 1e-4
    assert 0.7999 <= factors.min() < 0.82
    assert 1.18 < factors.max() < 1.2001
    luma = images @ np.array([0.299, 0.587, 0.114])
    factors = (change(saturation=0.5) - luma[..., None]) / (images - luma[..., None])
    spread = np.abs(factors - np.median(factors, axis=(1, 2, 3), keepdims=True))
    assert np.median(spread) < 1e-5
    assert 0.49 < np.median(factors, axis=(1, 2, 3)).min() < 0.55


def test_one_more_option_leaves_the_draws_of_the_others():
    images, targets, _ = painted((16, 24), 0)
    one = data.augment_boxes(brightness=0, contrast=0)(images, targets, [3, 4])[1]
    more = data.augment_boxes(saturation=0.1)(images, targets, [3, 4])[1]
    np.testing.assert_array_equal(one["boxes"], more["boxes"])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"shift": -0.1}, ValueError, "`shift`"),
        ({"brightness": "a"}, TypeError, "`brightness`"),
        ({"contrast": 1.5}, ValueError, "`contrast`"),
        ({"keep": 2}, ValueError, "`keep`"),
        ({"fill": "mena"}, ValueError, "Did you mean 'mean'"),
        ({"zoom": 0.5}, ValueError, "a number from 1"),
        ({"zoom": (2, 1)}, ValueError, "The smaller one first"),
        ({"zoom": (0, 1)}, ValueError, "`zoom`"),
        ({"zoom": "12"}, TypeError, "`zoom`"),
    ],
)
def test_bad_options(options, error, said):
    with pytest.raises(error, match=said):
        data.augment_boxes(**options)


def test_bad_images_and_targets():
    images, targets, _ = painted((16, 24), 0)
    augment = data.augment_boxes()
    with pytest.raises(ValueError, match="of fixed size"):
        augment(images[..., :1], targets, [1, 2])
    with pytest.raises(TypeError, match="dataset.preprocess"):
        augment(images.astype(np.uint8), targets, [1, 2])
    with pytest.raises(TypeError, match="`targets`"):
        augment(images, targets["boxes"], [1, 2])
