"""RetinaNet's anchors, targets and detections against keras-cv's own."""

from __future__ import annotations

import json
import types

import keras_cv_toys
import numpy as np
import pytest
import tensorflow as tf
from detection_toys import objects
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_cv_toys import CLASSES, SIZE, as_ragged, keras_cv

from tfkd import detection, report
from tfkd.detection import UNLABELLED, Matcher, RetinaNetAnchors, keras_cv_objects
from tfkd.detection.boxes import decode_offsets, encode
from tfkd.detection.keras_cv_models import image_size_of, import_keras_cv

FORMATS = ("xyxy", "yxyx", "xywh", "center_xywh", "rel_xyxy", "rel_yxyx", "rel_xywh")
LEVELS = [
    {"size": s, "scales": keras_cv_toys.SCALES, "ratios": [0.5, 1.0, 2.0], "stride": 8 * 2**i}
    for i, s in enumerate((8.0, 16.0, 32.0, 64.0, 128.0))
]
ANCHORS = RetinaNetAnchors(SIZE, LEVELS)


@pytest.fixture(scope="module")
def model():
    return keras_cv_toys.retina_net(4, "center_xywh")


def outputs(count=3, seed=0):
    """Boxes inside their priors, and a few scores above one half."""
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-0.5, 0.5, (count, len(ANCHORS), 2))
    size = rng.uniform(-5, -1, (count, len(ANCHORS), 2))
    scores = rng.normal(-4, 2, (count, len(ANCHORS), CLASSES))
    return {
        "box": tf.constant(np.concatenate([shift, size], -1), tf.float32),
        "classification": tf.constant(scores, tf.float32),
    }


def relative(boxes, bounding_box_format, size=SIZE):
    return keras_cv.bounding_box.convert_format(
        tf.constant(boxes), bounding_box_format, "rel_xyxy", image_shape=(*size, 3)
    ).numpy()


@settings(deadline=None, max_examples=8)
@given(
    size=st.tuples(*[st.integers(20, 140)] * 2),
    levels=st.lists(
        st.tuples(st.floats(4, 200), st.sampled_from([8, 16, 24, 64, 128])), min_size=1, max_size=3
    ),
    scales=st.lists(st.floats(0.5, 2), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.3, 3), min_size=1, max_size=3),
    clip=st.booleans(),
    bounding_box_format=st.sampled_from(FORMATS),
)
def test_anchors_are_those_of_the_generator(
    size, levels, scales, ratios, clip, bounding_box_format
):
    sizes, strides = (list(row) for row in zip(*levels, strict=True))
    generator = keras_cv.layers.AnchorGenerator(
        bounding_box_format, sizes, scales, ratios, strides, clip_boxes=clip
    )
    rows = [
        relative(r, bounding_box_format, size) for r in generator(image_shape=(*size, 3)).values()
    ]
    anchors = RetinaNetAnchors(
        size,
        [{"size": a, "scales": scales, "ratios": ratios, "stride": b} for a, b in levels],
        clip,
    )
    corners = np.concatenate(rows)
    centers = np.concatenate(
        [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1
    )
    np.testing.assert_allclose(anchors.priors, centers, atol=2e-5)
    counted = [
        h * w * n for (h, w), n in zip(anchors.feature_sizes, anchors.per_location, strict=True)
    ]
    assert counted == [len(row) for row in rows] and len(anchors) == sum(counted)


def test_anchors_are_saved_as_a_few_numbers():
    config = json.loads(json.dumps(ANCHORS.get_config()))
    again = RetinaNetAnchors.from_config(config)
    assert again == ANCHORS and hash(again) == hash(ANCHORS)
    assert again != RetinaNetAnchors(SIZE, LEVELS, clip=False)
    np.testing.assert_array_equal(again.priors, ANCHORS.priors)
    assert not ANCHORS.priors.flags.writeable
    assert repr(ANCHORS).startswith("RetinaNetAnchors(1161 priors of 64x96 pixels, 8x12·9 + 4x6·9")


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    bounding_box_format=st.sampled_from(FORMATS),
    thresholds=st.sampled_from([(0.5, 0.4), (0.6, 0.3), (0.4, 0.4)]),
    ragged=st.booleans(),
)
def test_targets_are_those_of_the_label_encoder(seed, bounding_box_format, thresholds, ragged):
    encoder = keras_cv.models.retinanet.LabelEncoder(
        bounding_box_format,
        keras_cv_toys.anchor_generator(bounding_box_format),
        positive_threshold=thresholds[0],
        negative_threshold=thresholds[1],
    )
    y = objects(3, 5, seed, CLASSES)
    given_y = as_ragged(y) if ragged else y
    theirs, kinds = encoder(
        tf.zeros((3, *SIZE, 3)), keras_cv_objects(given_y, bounding_box_format, SIZE)
    )
    matcher = Matcher(ANCHORS, *thresholds, every_object=False, order="yxhw")
    mine, kinds = matcher(given_y), kinds.numpy()
    # −2: ignored, −1: background
    expected = np.where(kinds == -2, -1, np.maximum(kinds + 1, 0))
    np.testing.assert_array_equal(mine["classes"], expected)
    found = kinds >= 0
    np.testing.assert_allclose(mine["boxes"].numpy()[found], theirs.numpy()[found], atol=1e-4)
    assert (mine["boxes"].numpy()[~found] == 0).all()


def test_an_object_below_the_threshold_has_a_prior_or_none():
    y = {"boxes": tf.constant([[[0.0, 0.0, 0.02, 0.02]]]), "classes": tf.constant([[1]])}
    for every, count in ((True, 1), (False, 0)):
        found = Matcher(ANCHORS, every_object=every)(y)["classes"].numpy()
        assert (found == 2).sum() == count
        assert (
            Matcher.from_config(Matcher(ANCHORS, every_object=every).get_config())(y)["classes"]
            .numpy()
            .tolist()
            == found.tolist()
        )


def test_the_order_of_offsets():
    boxes, priors = np.float32([[0.1, 0.2, 0.5, 0.9]]), np.float32([[0.4, 0.4, 0.2, 0.5]])
    variances = (0.1, 0.2, 0.3, 0.4)  # of the offsets as they stand
    plain = encode(boxes, priors, (1.0,) * 4).numpy()[0]
    offsets = encode(boxes, priors, variances, "yxhw")
    np.testing.assert_allclose(offsets[0], plain[[1, 0, 3, 2]] / np.float32(variances), rtol=1e-5)
    np.testing.assert_allclose(decode_offsets(offsets, priors, variances, "yxhw"), boxes, atol=1e-6)


def test_the_head_of_a_model(model):
    head = detection.retina_net_head(model)
    assert head["anchors"] == ANCHORS
    assert head["variances"] == (0.1, 0.1, 0.2, 0.2)
    assert model.output_shape["box"] == (None, len(ANCHORS), 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_detections_are_those_of_keras_cv(model, seed):
    raw = outputs(seed=seed)
    theirs = model.decode_predictions(raw, tf.zeros((3, *SIZE, 3)))
    # keras-cv takes the best class of a prior, and lets all classes suppress each other.
    mine = detection.decode(
        raw,
        **detection.retina_net_head(model),
        score_threshold=0.5,
        iou_threshold=0.5,
        class_agnostic=True,
        candidates=len(ANCHORS),
    )
    assert int(tf.reduce_min(theirs["num_detections"])) > 10
    np.testing.assert_array_equal(mine["num_detections"], theirs["num_detections"])
    np.testing.assert_array_equal(mine["classes"], theirs["classes"])
    for i, count in enumerate(theirs["num_detections"].numpy()):
        boxes = relative(theirs["boxes"][i, :count], "center_xywh")
        np.testing.assert_allclose(mine["boxes"][i, :count], boxes, atol=1e-6)
        np.testing.assert_allclose(
            mine["confidence"][i, :count], theirs["confidence"][i, :count], atol=1e-6
        )


def test_a_retina_net_is_scored_on_images(model):
    head, images = detection.retina_net_head(model), keras_cv_toys.images(2)
    first = detection.decode(model(images), **head, score_threshold=0.0, max_detections=1)
    truth = {name: first[name].numpy() for name in ("boxes", "classes")}
    scores = report.evaluate_detector(
        model, images, truth, **head, score_threshold=0.0, max_detections=1
    )
    assert scores.map50 == 1.0


def test_boxes_of_a_retina_net_as_labels(model):
    head, raw = detection.retina_net_head(model), outputs(1)
    add = detection.TeacherBoxes(**head, max_boxes=4)
    again = detection.TeacherBoxes.from_config(json.loads(json.dumps(add.get_config())))
    y = {"boxes": tf.fill((1, 2, 4), -1.0), "classes": tf.fill((1, 2), UNLABELLED)}
    best = detection.decode(raw, **head, score_threshold=0.5, max_detections=4)
    for one in (add, again):
        found = one(y, raw)
        np.testing.assert_array_equal(found["classes"][:, 2:], best["classes"])
        np.testing.assert_allclose(found["boxes"][:, 2:], best["boxes"])


class Shifted(keras_cv.layers.AnchorGenerator):
    """A generator of one's own."""

    def __call__(self, image=None, image_shape=None):
        rows = super().__call__(image, image_shape)
        return {level: row + 1.0 for level, row in rows.items()}


def test_a_generator_of_ones_own_gives_its_priors(model):
    own = model.anchor_generator
    try:
        model.anchor_generator = Shifted("xyxy", [8.0], [1.0], [1.0], [8])
        with pytest.raises(ValueError, match="`model`: expected as many anchors .* 1161, .* 96"):
            detection.retina_net_head(model)
        sizes, strides = [8.0, 16.0, 32.0, 64.0, 128.0], [8, 16, 32, 64, 128]
        ratios = [0.5, 1.0, 2.0]
        model.anchor_generator = Shifted(
            "xyxy", sizes, keras_cv_toys.SCALES, ratios, strides, clip_boxes=True
        )
        priors = detection.retina_net_head(model)["anchors"]
    finally:
        model.anchor_generator = own
    assert isinstance(priors, np.ndarray)
    shift = np.float32([1 / 96, 1 / 64, 0, 0])
    np.testing.assert_allclose(priors, ANCHORS.priors + shift, atol=1e-5)


BOX = np.float32([[[0.25, 0.5, 0.75, 0.625]]])
IN_FORMAT = {
    "xyxy": [24, 32, 72, 40],
    "yxyx": [32, 24, 40, 72],
    "xywh": [24, 32, 48, 8],
    "center_xywh": [48, 36, 48, 8],
    "center_yxhw": [36, 48, 8, 48],
    "rel_xyxy": [0.25, 0.5, 0.75, 0.625],
    "rel_yxyx": [0.5, 0.25, 0.625, 0.75],
    "rel_xywh": [0.25, 0.5, 0.5, 0.125],
}


@pytest.mark.parametrize("bounding_box_format", IN_FORMAT)
def test_objects_in_the_formats_of_keras_cv(bounding_box_format):
    y = {
        "boxes": np.concatenate([BOX, np.full((1, 1, 4), -1.0, np.float32)], 1),
        "classes": [[2, -1]],
    }
    found = keras_cv_objects(y, bounding_box_format, SIZE)
    assert found["boxes"].dtype == found["classes"].dtype == tf.float32
    np.testing.assert_array_equal(found["boxes"][0, 0], IN_FORMAT[bounding_box_format])
    np.testing.assert_array_equal(found["classes"], [[2, -1]])
    padding = found["boxes"][0, 1].numpy()
    assert padding.min() <= -1.0  # what YOLOV8Detector takes for padding
    corners = relative(padding[None], bounding_box_format)[0]
    assert (corners[2:] > corners[:2]).all() and (corners[2:] <= -1).all()


def test_unlabelled_and_ragged_objects():
    y = {"boxes": -np.ones((1, 1, 4), np.float32), "classes": [[UNLABELLED]]}
    assert keras_cv_objects(y, "xyxy", 64)["classes"].numpy().tolist() == [[-1]]
    ragged = as_ragged({"boxes": np.concatenate([BOX, -BOX]), "classes": np.array([[1], [-1]])})
    found = keras_cv_objects(ragged, "xyxy", SIZE)
    assert found["classes"].numpy().tolist() == [[1], [-1]]
    np.testing.assert_array_equal(found["boxes"][0, 0], IN_FORMAT["xyxy"])


def test_the_size_of_images():
    fixed, free = (
        types.SimpleNamespace(name="net", inputs=[types.SimpleNamespace(shape=(None, *s, 3))])
        for s in ((64, 96), (None, None))
    )
    assert image_size_of(fixed) == image_size_of(fixed, [64, 96]) == (64, 96)
    assert image_size_of(free, 128) == (128, 128)
    with pytest.raises(ValueError, match=r"`image_size`.*'net' takes images of any.*None"):
        image_size_of(free)
    with pytest.raises(ValueError, match=r"`image_size`.*the size of 'net', \(64, 96\).*128"):
        image_size_of(fixed, 128)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: RetinaNetAnchors(SIZE, []), ValueError, "`levels`: expected at least one level"),
        (lambda: RetinaNetAnchors(SIZE, [3]), TypeError, "`levels`: expected a dict of size, sc"),
        (
            lambda: RetinaNetAnchors(SIZE, [{"size": 8}]),
            ValueError,
            r"`levels`: expected a dict of size, scales, ratios, stride, received \['size'\]",
        ),
        (
            lambda: RetinaNetAnchors(SIZE, [{**LEVELS[0], "ratios": [1.0, 0.0]}]),
            ValueError,
            r"`levels\['ratios'\]`: expected a finite number above 0, received 0.0",
        ),
        (lambda: RetinaNetAnchors((64,), LEVELS), ValueError, r"`image_size`.*\(height, width\)"),
        (lambda: RetinaNetAnchors((64, 0), LEVELS), ValueError, "`image_size`.*at least 1"),
        (lambda: RetinaNetAnchors(SIZE, LEVELS, clip=1), TypeError, "`clip`: expected True or"),
        (lambda: Matcher(ANCHORS, every_object=1), TypeError, "`every_object`: expected True or"),
        (lambda: Matcher(ANCHORS, order="hwyx"), ValueError, "`order`: expected one of 'xywh'"),
        (
            lambda: detection.decode(outputs(1), ANCHORS, order="yx"),
            ValueError,
            "`order`: expected one of 'xywh', 'yxhw', received 'yx'",
        ),
        (
            lambda: detection.TeacherBoxes(ANCHORS, order="yx"),
            ValueError,
            "`order`: expected one of",
        ),
        (
            lambda: detection.retina_net_head(object()),
            TypeError,
            "`model`: expected a keras_cv.models.RetinaNet, received <object",
        ),
        (lambda: keras_cv_objects({"boxes": BOX}, "xyxy", SIZE), ValueError, "`y`: expected obj"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_without_keras_cv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "keras_cv", None)
    with pytest.raises(ImportError, match=r'This needs keras-cv. .*"tfkd\[detection\]"'):
        import_keras_cv("This")
