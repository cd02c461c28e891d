"""Batches of images with boxes: what stands together stays together, in every process alike."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd import data

COUNT = 7


def toy():
    """Image i is of colour i, and has i % 3 boxes that begin at i / 10."""
    x = np.zeros((COUNT, 4, 4, 3), np.uint8) + np.arange(COUNT, dtype=np.uint8)[:, None, None, None]
    boxes = [[[i / 10, 0.1 * j, 1, 1] for j in range(i % 3)] for i in range(COUNT)]
    classes = [[i] * (i % 3) for i in range(COUNT)]
    return data.DetectionDataset(x, boxes, classes, x[::-1], boxes[::-1], classes[::-1])


TOY = toy()


def colours(images):
    """Which images these are."""
    return np.rint((images.numpy()[:, 0, 0, 0] + 1) * 127.5).astype(int)


@pytest.mark.parametrize(("seed", "start", "batch"), [(0, 1, 3), (2**33, 4, 2), (7, 9, 2)])
def test_a_later_start_gives_the_same_batches(seed, start, batch):
    options = {"seed": seed, "augment": data.augment_boxes(shift=0.3), "epochs": 2}
    whole = list(data.detection_batches(TOY, batch, **options))
    rest = list(data.detection_batches(TOY, batch, start_step=start, **options))
    assert len(whole) == 2 * (COUNT // batch)
    assert len(rest) == max(len(whole) - start, 0)
    for one, other in zip(whole[start:], rest, strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_boxes_and_classes_stay_together():
    seen = []
    for images, targets in data.detection_batches(TOY, 3, seed=5, epochs=1):
        assert images.dtype == tf.float32
        assert images.shape == (3, 4, 4, 3)
        assert (targets["boxes"].shape, targets["classes"].shape) == ((3, 2, 4), (3, 2))
        which = colours(images)
        np.testing.assert_array_equal(targets["boxes"], TOY.boxes_train[which])
        np.testing.assert_array_equal(targets["classes"], TOY.classes_train[which])
        seen += which.tolist()
    assert len(set(seen)) == len(seen) == 6


def test_augmentation_gets_images_targets_and_a_seed_of_its_own_a_step():
    def augment(images, targets, seed):
        return images * 0 + tf.cast(seed[1], tf.float32), {**targets, "seed": seed[0]}

    batches = list(data.detection_batches(TOY, 3, seed=9, augment=augment, epochs=2))
    assert [float(images[0, 0, 0, 0]) for images, _ in batches] == [0, 1, 2, 3]
    assert [int(targets["seed"]) for _, targets in batches] == [9] * 4


def test_length_is_known_and_shapes_are_fixed():
    endless = data.detection_batches(TOY, 3, augment=TOY.augment)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    images, targets = endless.element_spec
    assert images.shape == (3, 4, 4, 3)
    assert targets["boxes"].shape == (3, 2, 4)
    assert targets["classes"].shape == (3, 2)
    assert data.detection_batches(TOY, 3, epochs=4).cardinality() == 8


def test_the_test_part_can_be_trained_on_too():
    images, targets = next(iter(data.detection_batches(TOY, COUNT, split="test")))
    order = COUNT - 1 - colours(images)
    np.testing.assert_array_equal(targets["boxes"], TOY.boxes_test[order])


def test_images_without_labels_stay_so():
    bare = TOY.unlabel(keep=2)
    batches = data.detection_batches(bare, COUNT, augment=data.augment_boxes(zoom=2), epochs=1)
    _, targets = next(iter(batches))
    assert (targets["classes"].numpy() == -2).all(axis=1).sum() == COUNT - 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_eval_batches_keep_order_and_lose_nothing(split):
    parts = list(data.detection_eval_batches(TOY, 3, split))
    assert [len(images) for images, _ in parts] == [3, 3, 1]
    _, boxes, classes = TOY.arrays(split)
    order = list(range(COUNT)) if split == "train" else list(range(COUNT))[::-1]
    assert np.concatenate([colours(images) for images, _ in parts]).tolist() == order
    np.testing.assert_array_equal(np.concatenate([t["boxes"] for _, t in parts]), boxes)
    np.testing.assert_array_equal(np.concatenate([t["classes"] for _, t in parts]), classes)


def test_eval_batches_of_arrays():
    x = TOY.x_train[:2]
    ((images, targets),) = data.detection_eval_batches(
        (x, [[[0, 0, 1, 0.5]], None], [[4], None]), 8
    )
    np.testing.assert_allclose(images, x / 127.5 - 1, atol=1e-6)
    assert targets["boxes"].numpy().tolist() == [[[0, 0, 1, 0.5]], [[-1] * 4]]
    assert targets["classes"].numpy().tolist() == [[4], [-2]]


def test_bad_arguments():
    with pytest.raises(TypeError, match="a DetectionDataset"):
        data.detection_batches(data.digits, 4)
    with pytest.raises(TypeError, match="`augment`"):
        data.detection_batches(TOY, 4, augment=1)
    with pytest.raises(ValueError, match="at most the number of examples, 7"):
        data.detection_batches(TOY, 8)
    with pytest.raises(ValueError, match="`split`"):
        data.detection_batches(TOY, 4, split="tset")
    with pytest.raises(TypeError, match="or a tuple"):
        data.detection_eval_batches(TOY.x_test, 4)
    with pytest.raises(ValueError, match="or a tuple"):
        data.detection_eval_batches((TOY.x_test, TOY.boxes_test), 4)
    with pytest.raises(ValueError, match="`boxes`: expected 7 entries"):
        data.detection_eval_batches((TOY.x_test, [], []), 4)
