"""Detections against a slow decoder in NumPy, and against keras-cv's."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfkd.detection.decoding import decode

VARIANCES = (0.1, 0.1, 0.2, 0.2)


def random_case(seed, batch=2, priors=30, classes=3, spread=2.0):
    """Priors crowded enough that boxes suppress each other."""
    rng = np.random.default_rng(seed)
    anchors = np.concatenate(
        [rng.uniform(0, 1, (priors, 2)), rng.uniform(0.1, 0.6, (priors, 2))], 1
    ).astype("float32")
    outputs = {
        "boxes": rng.normal(0, 1, (batch, priors, 4)).astype("float32"),
        "classes": rng.normal(0, spread, (batch, priors, classes)).astype("float32"),
    }
    return outputs, anchors


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_scores(logits, background):
    if not background:
        return 1 / (1 + np.exp(-logits))
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True))[..., 1:]


def slow_decode(outputs, anchors, score, iou, limit, pool, background, agnostic):
    """[(score, class, box), ...] for each image, one box at a time, in float64."""
    scores = slow_scores(outputs["classes"].astype(np.float64), background)
    images = []
    for offsets, rows in zip(outputs["boxes"].astype(np.float64), scores, strict=True):
        pairs = [(rows[p, c], p, c) for p in range(len(anchors)) for c in range(rows.shape[1])]
        pairs = sorted((r for r in pairs if r[0] > score), key=lambda r: -r[0])[:pool]
        kept = []
        for value, p, c in pairs:
            (px, py, pw, ph), (dx, dy, dw, dh) = anchors[p].astype(np.float64), offsets[p]
            cx, cy = px + dx * VARIANCES[0] * pw, py + dy * VARIANCES[1] * ph
            w, h = pw * np.exp(dw * VARIANCES[2]), ph * np.exp(dh * VARIANCES[3])
            box = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, 1)
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            rivals = [b for _, k, b in kept if agnostic or k == c]
            if all(overlap(box, b) <= iou for b in rivals):
                kept.append((value, c, box))
        images.append(kept[:limit])
    return images


def check(found, expected, limit):
    for i, rows in enumerate(expected):
        count = len(rows)
        assert int(found["num_detections"][i]) == count
        np.testing.assert_allclose(found["confidence"][i, :count], [r[0] for r in rows], atol=1e-5)
        np.testing.assert_array_equal(found["classes"][i, :count], [r[1] for r in rows])
        if count:
            np.testing.assert_allclose(found["boxes"][i, :count], [r[2] for r in rows], atol=1e-5)
        assert (found["boxes"][i, count:].numpy() == -1).all()
        assert (found["classes"][i, count:].numpy() == -1).all()
        assert (found["confidence"][i, count:].numpy() == 0).all()
    assert found["boxes"].shape == (len(expected), limit, 4)


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 5),
    score=st.sampled_from([0.0, 0.02, 0.3]),
    iou=st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]),
    limit=st.sampled_from([3, 10, 200]),
    pool=st.sampled_from([5, 40, 400]),
    background=st.booleans(),
    agnostic=st.booleans(),
)
def test_equal_to_a_slow_decoder(seed, classes, score, iou, limit, pool, background, agnostic):
    outputs, anchors = random_case(seed, classes=classes)
    found = decode(
        outputs,
        anchors,
        score_threshold=score,
        iou_threshold=iou,
        max_detections=limit,
        candidates=pool,
        background=background,
        class_agnostic=agnostic,
    )
    slow = slow_decode(outputs, anchors, score, iou, limit, pool, background, agnostic)
    check(found, slow, limit)


def test_a_box_that_was_suppressed_suppresses_no_other():
    # b overlaps a and c; a and c do not overlap: a beats b, and so c stays.
    priors = np.array([[0.2, 0.5, 0.2, 0.2], [0.28, 0.5, 0.2, 0.2], [0.36, 0.5, 0.2, 0.2]], "f4")
    logits = np.array([[[0, 6.0], [0, 5.0], [0, 4.0]]], "f4")
    outputs = {"boxes": np.zeros((1, 3, 4), "f4"), "classes": logits}
    found = decode(outputs, priors, iou_threshold=0.3)
    assert int(found["num_detections"][0]) == 2
    np.testing.assert_allclose(found["boxes"][0, :2, 0], [0.1, 0.26], atol=1e-6)


def test_a_chain_as_long_as_the_pool_is_settled():
    # Each box overlaps its neighbours alone: every second one stays.
    x = np.arange(60) * 0.012 + 0.1
    priors = np.stack([x, np.full(60, 0.5), np.full(60, 0.02), np.full(60, 0.2)], 1).astype("f4")
    logits = np.stack([np.zeros(60), 8 - 0.1 * np.arange(60)], 1)[None].astype("f4")
    outputs = {"boxes": np.zeros((1, 60, 4), "f4"), "classes": logits}
    found = decode(outputs, priors, iou_threshold=0.2)
    assert int(found["num_detections"][0]) == 30
    np.testing.assert_allclose(found["boxes"][0, :30, 0], x[::2] - 0.01, atol=1e-6)


def test_equal_to_keras_cv():
    import keras_cv

    from tfkd.detection import boxes as box_math

    outputs, anchors = random_case(3, batch=3, priors=80, classes=4)
    found = decode(outputs, anchors, candidates=1000)
    layer = keras_cv.layers.MultiClassNonMaxSuppression(
        "rel_xyxy",
        from_logits=False,
        iou_threshold=0.45,
        confidence_threshold=0.02,
        max_detections=100,
        max_detections_per_class=100,
    )
    corners = box_math.clip(box_math.decode_offsets(outputs["boxes"], anchors))
    scores = tf.nn.softmax(outputs["classes"])[..., 1:]
    theirs = layer(corners, scores, image_shape=(100, 100, 3))
    np.testing.assert_array_equal(found["num_detections"], theirs["num_detections"])
    np.testing.assert_array_equal(found["classes"], theirs["classes"])
    for i, count in enumerate(found["num_detections"].numpy()):
        assert count > 20
        np.testing.assert_allclose(found["boxes"][i, :count], theirs["boxes"][i, :count], atol=1e-6)
        ours, other = found["confidence"][i, :count], theirs["confidence"][i, :count]
        np.testing.assert_allclose(ours, other, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph_with_an_open_batch(jit):
    outputs, anchors = random_case(4)
    spec = {k: tf.TensorSpec([None, None, v.shape[-1]]) for k, v in outputs.items()}
    compiled = tf.function(lambda o: decode(o, anchors), input_signature=[spec], jit_compile=jit)
    eager = decode(outputs, anchors)
    for name, value in compiled(outputs).items():
        np.testing.assert_allclose(value, eager[name], atol=1e-6)
    shapes = compiled.get_concrete_function().structured_outputs
    assert shapes["boxes"].shape.as_list() == [None, 100, 4]
    assert shapes["classes"].shape.as_list() == [None, 100]


def test_in_a_tf_data_pipeline():
    outputs, anchors = random_case(5, batch=4)
    rows = tf.data.Dataset.from_tensor_slices(outputs).batch(2)
    rows = rows.map(lambda o: decode(o, anchors, max_detections=7))
    assert rows.element_spec["boxes"].shape.as_list() == [None, 7, 4]
    found = tf.concat([row["boxes"] for row in rows], 0)
    np.testing.assert_array_equal(found, decode(outputs, anchors, max_detections=7)["boxes"])


@pytest.mark.parametrize("graph", [False, True])
def test_no_gradient_flows_through_it(graph):
    outputs, anchors = random_case(6)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = decode({**outputs, "boxes": x}, anchors)
            loss = tf.reduce_sum(found["boxes"]) + tf.reduce_sum(x)
        return tape.gradient(loss, x)

    step = tf.function(step) if graph else step
    np.testing.assert_array_equal(step(tf.constant(outputs["boxes"])), np.ones((2, 30, 4)))


def test_offsets_with_y_first():
    outputs, anchors = random_case(11)
    swapped = {**outputs, "boxes": outputs["boxes"][..., [1, 0, 3, 2]]}
    variances = (0.1, 0.2, 0.3, 0.4)
    found = decode(swapped, anchors, order="yxhw", variances=(0.2, 0.1, 0.4, 0.3))
    expected = decode(outputs, anchors, variances=variances)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-6)


def test_half_precision_is_decoded_in_float32():
    outputs, anchors = random_case(7)
    half = {k: v.astype("float16") for k, v in outputs.items()}
    found = decode(half, anchors)
    assert found["boxes"].dtype == tf.float32
    exact = decode({k: v.astype("float32") for k, v in half.items()}, anchors)
    np.testing.assert_array_equal(found["confidence"], exact["confidence"])


def test_infinite_offsets_and_nan_give_no_detection_and_no_nan():
    outputs, anchors = random_case(8)
    outputs["boxes"][0, :10] = 1e30
    outputs["boxes"][0, 10:20] = np.nan
    outputs["classes"][1, :20] = np.nan
    found = decode(outputs, anchors)
    assert np.isfinite(found["boxes"]).all() and np.isfinite(found["confidence"]).all()
    rest = {k: v[1:, 20:] for k, v in outputs.items()}
    alone = decode(rest, anchors[20:])
    np.testing.assert_array_equal(found["boxes"][1], alone["boxes"][0])
    assert int(found["num_detections"][0]) > 0


def test_boxes_outside_the_image_are_dropped():
    priors = np.array([[0.5, 0.5, 0.2, 0.2], [1.2, 0.5, 0.2, 0.2]], "f4")
    outputs = {
        "boxes": np.zeros((1, 2, 4), "f4"),
        "classes": np.array([[[0, 3.0], [0, 4.0]]], "f4"),
    }
    found = decode(outputs, priors, max_detections=5)
    assert found["num_detections"].numpy().tolist() == [1]
    np.testing.assert_allclose(found["boxes"][0, 0], [0.4, 0.4, 0.6, 0.6], atol=1e-6)


def test_names_and_an_object_with_priors():
    class Holder:
        priors = random_case(9)[1]

    outputs, anchors = random_case(9)
    named = {"box": outputs["boxes"], "classification": outputs["classes"]}
    found = decode(named, Holder(), background=False, boxes="box", classes="classification")
    same = decode(outputs, anchors, background=False)
    np.testing.assert_array_equal(found["classes"], same["classes"])
    assert found["classes"].numpy().max() == 2


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"outputs": [1, 2]}, TypeError, "`outputs`"),
        ({"boxes": "boxs"}, ValueError, "Did you mean 'boxes'"),
        ({"anchors": np.ones((5, 4), "f4")}, ValueError, "anchors with which the model was built"),
        ({"classes": "boxes", "boxes": "classes"}, ValueError, r"`outputs\['classes'\]`"),
        ({"score_threshold": 2}, ValueError, "`score_threshold`"),
        ({"iou_threshold": -1}, ValueError, "`iou_threshold`"),
        ({"max_detections": 0}, ValueError, "`max_detections`"),
        ({"candidates": 1.5}, TypeError, "`candidates`"),
        ({"variances": (0.1, 0.2)}, ValueError, "`variances`"),
    ],
)
def test_bad_arguments_are_named(change, kind, text):
    outputs, anchors = random_case(10)
    arguments = {"outputs": outputs, "anchors": anchors, **change}
    with pytest.raises(kind, match=text):
        decode(**arguments)
