"""Running detectors over images, and which of what they find is right."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st

from tfkd.detection.decoding import decode
from tfkd.detection.detecting import Detecting, NotFinite, detect
from tfkd.detection.flat_boxes import flat_detections, flat_truth
from tfkd.detection.hits import curves, hits

PRIORS = np.float32([[0.25, 0.25, 0.3, 0.3], [0.75, 0.25, 0.3, 0.4], [0.5, 0.75, 0.5, 0.3]])


def detector(relu=False, last=None, size=6):
    """Three priors, two classes; from a flattened image; `last` stands behind the boxes."""
    pixels = keras.Input((size, size, 3))
    features = keras.layers.Flatten()(pixels)
    if relu:
        features = keras.layers.ReLU(6.0)(keras.layers.Dense(4, name="hidden")(features))
    boxes = keras.layers.Dense(12)(features)
    boxes = keras.layers.Reshape((3, 4))(boxes if last is None else last(boxes))
    logits = keras.layers.Reshape((3, 3))(keras.layers.Dense(9)(features))
    return keras.Model(pixels, {"boxes": boxes, "classes": logits})


def photographs(count=7, size=6):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_batches_give_what_the_whole_gives():
    model, images = detector(), photographs()
    found = detect(model, images, PRIORS, batch_size=3, score_threshold=0.1, max_detections=4)
    outputs = model(images / np.float32(127.5) - 1.0)
    whole = decode(outputs, PRIORS, score_threshold=0.1, max_detections=4)
    assert set(found) == set(whole) and found["boxes"].shape == (7, 4, 4)
    assert found["num_detections"].sum() > 0
    for key, value in whole.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)


def test_a_model_is_traced_once_for_all_batches_and_calls():
    traces = []

    class Count(keras.layers.Layer):
        def call(self, inputs):
            traces.append(inputs.shape)
            return inputs

    model, images = detector(last=Count()), photographs()
    traces.clear()
    detecting = Detecting(PRIORS, batch_size=3)
    for part in (images, images[:2], images[:3]):
        detecting(model, part)
    assert traces == [(None, 12)]
    # Another model's detections are its own.
    other = detector()
    expected = detect(other, images, PRIORS)["boxes"]
    np.testing.assert_allclose(detecting(other, images)["boxes"], expected, atol=1e-5)


def test_many_models_are_run_without_a_warning(caplog):
    def model(batch):
        return {"boxes": np.zeros((1, 3, 4)), "classes": np.zeros((1, 3, 2))}

    for _ in range(7):
        detect(model, photographs(1), PRIORS)
    assert "retracing" not in caplog.text


def test_training_only_layers_rest():
    pixels = keras.Input((6, 6, 3))
    features = keras.layers.Dropout(0.9)(keras.layers.Flatten()(pixels))
    boxes = keras.layers.Reshape((3, 4))(keras.layers.Dense(12)(features))
    logits = keras.layers.Reshape((3, 3))(keras.layers.Dense(9)(features))
    model = keras.Model(pixels, {"boxes": boxes, "classes": logits})
    one, two = (detect(model, photographs(), PRIORS)["confidence"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("images", "preprocess", "expected"),
    [
        (np.full((1, 2, 2, 3), 255, np.uint8), None, 1.0),
        (np.zeros((1, 2, 2, 3), np.uint8), None, -1.0),
        (np.full((1, 2, 2, 3), 0.25), None, 0.25),
        (np.full((1, 2, 2, 3), 200, np.uint8), lambda batch: batch / 100, 2.0),
    ],
)
def test_what_the_model_sees(images, preprocess, expected):
    seen = []

    def model(batch):
        seen.append(batch)
        return {"boxes": np.zeros((1, 3, 4)), "classes": np.zeros((1, 3, 2))}

    detect(model, images, PRIORS, preprocess=preprocess)
    assert seen[0].dtype == tf.float32 and seen[0].shape == (1, 2, 2, 3)
    np.testing.assert_allclose(seen[0], expected)


def test_options_and_other_names_of_heads():
    def model(batch):
        logits = np.tile(np.float32([[[-9.0, 9.0]]]), (len(batch), 3, 1))
        return {"box": np.zeros((len(batch), 3, 4), "float32"), "scores": logits}

    options = {"boxes": "box", "classes": "scores", "max_detections": 2, "background": False}
    found = detect(model, photographs(2), PRIORS, **options)
    assert found["classes"].tolist() == [[1, 1]] * 2


def test_a_broken_model_is_refused_though_a_relu_hides_it():
    model = detector(relu=True)
    kernel = model.get_layer("hidden").kernel
    kernel.assign(tf.fill(kernel.shape, np.nan))
    with pytest.raises(NotFinite, match=r"1 of 6: hidden/kernel:0\. Its training has diverged"):
        detect(model, photographs(), PRIORS)


def test_outputs_that_are_not_finite_are_refused():
    def model(batch):
        broken = np.where(np.arange(len(batch)) == 1, np.nan, 0.0)[:, None, None]
        return {"boxes": np.zeros((len(batch), 3, 4)), "classes": np.zeros((1, 3, 2)) + broken}

    with pytest.raises(ValueError, match="images from 4 on"):
        detect(lambda b: model(b) if len(b) == 3 else detector()(b), photographs(), PRIORS, 4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": 3}, "a callable"),
        ({"data": photographs()[0]}, "(N, H, W, 3)"),
        ({"data": photographs()[:0]}, "at least one example"),
        ({"data": photographs()[..., :1]}, "(N, H, W, 3)"),
        ({"data": np.full((1, 2, 2, 3), "a")}, "numbers"),
        ({"anchors": PRIORS[:, :3]}, "(P, 4)"),
        ({"anchors": PRIORS[:2]}, "anchors with which the model was built"),
        ({"batch_size": 0}, "batch_size"),
        ({"preprocess": 3}, "preprocess"),
        ({"score_treshold": 0.1}, "'score_threshold'"),
        ({"model": lambda b: b}, "outputs"),
    ],
)
def test_bad_arguments(change, text):
    arguments = {"model": detector(), "data": photographs(), "anchors": PRIORS, **change}
    with pytest.raises((TypeError, ValueError)) as error:
        detect(**arguments)
    assert text in str(error.value)


def overlap(a, b):
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def some_boxes(rng, count):
    low = rng.random((count, 2)) * 0.6
    return np.concatenate([low, low + 0.1 + 0.3 * rng.random((count, 2))], 1)


@given(st.integers(0, 2**32))
def test_hits_and_their_counts_against_loops(seed):
    rng = np.random.default_rng(seed)
    found, real = [], []
    for _ in range(3):
        objects = some_boxes(rng, rng.integers(0, 5))
        near = objects + 0.05 * rng.normal(size=objects.shape)
        near = near[(near[:, 2:] > near[:, :2]).all(1)]
        boxes = np.concatenate([near, some_boxes(rng, rng.integers(0, 4))])
        real.append({"boxes": objects, "classes": rng.integers(0, 2, len(objects))})
        found.append(
            {
                "boxes": boxes,
                "classes": rng.integers(0, 2, len(boxes)),
                "confidence": rng.random(len(boxes)),
            }
        )
    flat, truth = flat_detections(found), flat_truth(real)
    taken = {}
    for place in np.argsort(-flat.scores):
        best, chosen = 0.5, -1
        for other in range(len(truth.boxes)):
            same = flat.images[place] == truth.images[other]
            same = same and flat.classes[place] == truth.classes[other]
            here = overlap(flat.boxes[place], truth.boxes[other]) if same else 0.0
            if here >= best and other not in taken.values():
                best, chosen = here, other
        taken[place] = chosen if chosen >= 0 else None
    expected = [-1 if taken[place] is None else taken[place] for place in range(len(flat.boxes))]
    assert hits(flat, truth).tolist() == expected
    right, wrong = curves(flat, truth, 2, count=5)
    for kind in range(2):
        for index, threshold in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
            kept = (flat.classes == kind) & (flat.scores >= threshold)
            assert right[kind, index] == (kept & (np.array(expected) >= 0)).sum()
            assert wrong[kind, index] == (kept & (np.array(expected) < 0)).sum()
