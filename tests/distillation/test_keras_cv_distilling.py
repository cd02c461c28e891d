"""keras-cv's RetinaNet and YOLOV8Detector as teacher and student of a Distiller."""

from __future__ import annotations

import keras_cv_toys
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from detection_toys import objects
from keras_cv_toys import CLASSES, SIZE, as_ragged, keras_cv

import tfkd
from tfkd import detection, losses
from tfkd.detection import UNLABELLED, keras_cv_objects
from tfkd.networks.paths import find_layer

X, Y = keras_cv_toys.images(4), objects(4, 3, seed=2, classes=CLASSES)


@pytest.fixture(scope="module")
def retina_nets():
    """A teacher that keras-cv trained, in the smallest way, and a student."""
    keras.utils.set_random_seed(3)
    teacher, student = keras_cv_toys.retina_net(8), keras_cv_toys.retina_net(4, "center_xywh")
    teacher.compile("smoothl1", "focal", optimizer=keras.optimizers.SGD(0.01), run_eagerly=True)
    batches = tf.data.Dataset.from_tensors((X, Y))
    own = batches.map(lambda x, y: (x, keras_cv_objects(y, teacher.bounding_box_format, SIZE)))
    history = teacher.fit(own, verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["box_loss"][0] > 0
    return teacher, student


@pytest.fixture(scope="module")
def yolos():
    keras.utils.set_random_seed(4)
    return keras_cv_toys.yolo(16, "xyxy"), keras_cv_toys.yolo(8)


def outputs(model, seed=0):
    """What a model might say, moderately."""
    rng = np.random.default_rng(seed)
    shapes = {name: (4, *shape[1:]) for name, shape in model.output_shape.items()}
    found = {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}
    if "class" in model.output_names:  # YOLOV8Detector: probabilities
        found["classes"] = 1 / (1 + np.exp(-found["classes"]))
    return {name: tf.constant(value) for name, value in found.items()}


def terms(objective):
    return dict(
        zip(
            ("soft", "teacher's", "confidence", "localization"),
            sorted(objective["distillation_losses"][:4], key=order),
            strict=True,
        )
    )


def order(loss):
    kinds = (
        (losses.MultiBoxSoftTarget, losses.DenseSoftTarget),
        (losses.BoundedRegression, losses.LocalizationDistillation),
        (losses.MultiBoxConfidence, losses.DenseConfidence),
        (losses.MultiBoxLocalization, losses.DenseLocalization),
    )
    return next(i for i, pair in enumerate(kinds) if isinstance(loss, pair))


def weights_of(model):
    return [v.numpy() for v in model.variables]


@pytest.mark.slow
def test_a_retina_net_learns_from_another(retina_nets):
    teacher, student = retina_nets
    before = weights_of(teacher)
    arguments = losses.retina_net_objective(teacher, student, hint="P4")
    assert arguments["distillation_loss_weights"] == [0.25, 1.0, 0.1, 0.25, 0.5]
    distiller = tfkd.Distiller(teacher, student, **arguments)
    distiller.compile(keras.optimizers.Adam(3e-3))
    batches = tf.data.Dataset.from_tensors(tf.nest.map_structure(lambda v: v[:2], (X, Y)))
    history = distiller.fit(batches.repeat(3), epochs=3, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    for name in ("multibox_soft_target", "multibox_confidence", "multibox_localization", "hint"):
        assert history[name][-1] < history[name][0], name
    assert history["student_loss"] == [0.0] * 3
    for old, new in zip(before, weights_of(teacher), strict=True):
        np.testing.assert_array_equal(old, new)
    check_detections(distiller.student)


def check_detections(student):
    """`predict` of the trained student and `tfkd.detection.decode` find the same."""
    head = detection.retina_net_head(student)
    student.prediction_decoder = keras_cv.layers.NonMaxSuppression(
        student.bounding_box_format, from_logits=True, confidence_threshold=0.1, max_detections=9
    )
    student.run_eagerly = True
    theirs = student.predict(X, verbose=0)
    mine = detection.decode(
        student(X), **head, score_threshold=0.1, iou_threshold=0.5, class_agnostic=True
    )
    first = keras_cv.bounding_box.convert_format(
        theirs["boxes"][:, :1], student.bounding_box_format, "rel_xyxy", image_shape=(*SIZE, 3)
    )
    assert theirs["num_detections"].min() > 0
    np.testing.assert_allclose(mine["boxes"][:, :1], np.clip(first, 0, 1), atol=1e-5)
    np.testing.assert_allclose(mine["confidence"][:, 0], theirs["confidence"][:, 0], atol=1e-5)


@pytest.mark.slow
def test_the_labels_terms_are_keras_cvs_loss(retina_nets):
    teacher, student = retina_nets
    student.compile("smoothl1", "focal")
    each = terms(losses.retina_net_objective(teacher, student))
    mine, theirs = outputs(student), outputs(student, 1)
    expected = student.compute_loss(
        tf.constant(X), keras_cv_objects(Y, "center_xywh", SIZE), mine, None
    )
    values = {name: float(loss.compute_loss(theirs, mine, y=Y)) for name, loss in each.items()}
    total = values["confidence"] + 0.25 * values["localization"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert values["soft"] > 0 and values["teacher's"] > 0
    for name in ("soft",):
        assert float(each[name].compute_loss(mine, mine, y=Y)) == pytest.approx(0, abs=1e-5)


def test_soft_targets_leave_out_what_the_encoder_ignores(retina_nets):
    teacher, student = retina_nets
    soft = terms(losses.retina_net_objective(teacher, student))["soft"]
    target = soft.selection.matcher(Y)["classes"].numpy()
    mine = outputs(student)
    moved = mine["classification"].numpy()
    moved[target == -1] += 3.0
    assert (target == -1).sum() > 0 and (target > 0).sum() > 0
    theirs = {**mine, "classification": tf.constant(moved)}
    assert float(soft.compute_loss(theirs, mine, y=Y)) == pytest.approx(0, abs=1e-6)
    # Bernoulli's KL, over the number of anchors with an object.
    theirs = outputs(student, 1)
    t, s = (np.float64(o["classification"]) for o in (theirs, mine))
    p, q = (1 / (1 + np.exp(-z)) for z in (t, s))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = each.sum(-1)[target >= 0].sum() / (target > 0).sum()
    np.testing.assert_allclose(soft.compute_loss(theirs, mine, y=Y), expected, rtol=1e-4)


def test_without_any_object_loss_and_gradient_are_finite(retina_nets):
    teacher, student = retina_nets
    each = terms(losses.retina_net_objective(teacher, student))
    nothing = {"boxes": tf.fill((4, 1, 4), -1.0), "classes": tf.fill((4, 1), -1)}
    theirs, mine = outputs(student), outputs(student, 1)

    with tf.GradientTape() as tape:
        tape.watch(mine)
        total = tf.add_n([loss.compute_loss(theirs, mine, y=nothing) for loss in each.values()])
    found = tape.gradient(total, mine)
    assert np.isfinite(total) and total > 0
    assert np.isfinite(found["classification"]).all() and np.abs(found["box"]).max() == 0


def test_the_feature_pyramid_as_a_hint_and_ragged_objects(retina_nets):
    teacher, student = retina_nets
    arguments = losses.retina_net_objective(
        teacher, student, weights={"soft": None, "bounded": None}, hint="pyramid", hint_weight=2.0
    )
    distiller = tfkd.Distiller(teacher, student, **arguments)
    distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    padded, ragged = (
        distiller.evaluate(tf.data.Dataset.from_tensors((X, y)), verbose=0, return_dict=True)
        for y in (Y, as_ragged(Y))
    )
    assert padded == ragged
    levels = [model.feature_pyramid(model.feature_extractor(X)) for model in (teacher, student)]
    pairs = list(zip(*levels, strict=True))
    apart = sum(np.mean(np.square(theirs - mine)) for theirs, mine in pairs)
    assert len(pairs) == 5 and padded["hint"] == pytest.approx(apart, rel=1e-4)
    assert padded["distillation_loss"] == pytest.approx(
        padded["multibox_confidence"] + 0.25 * padded["multibox_localization"] + 2 * padded["hint"],
        rel=1e-5,
    )


def tensors(structure):
    return {name: tf.constant(value) for name, value in structure.items()}


def test_the_student_of_another_kind_learns_the_teachers_boxes(retina_nets):
    """What the error of `retina_net_objective` says, word for word."""
    teacher, anchors = retina_nets[0], detection.Anchors([(2, 3)], scales=[(0.3, 0.6)])
    image = keras.Input((*SIZE, 3))
    maps = keras.layers.AveragePooling2D(32)(image)
    heads = {
        name: keras.layers.Reshape((-1, size))(keras.layers.Conv2D(2 * size, 1)(maps))
        for name, size in (("boxes", 4), ("classes", CLASSES + 1))
    }
    student = keras.Model(image, heads)
    with pytest.raises(TypeError, match=r"`student`: .*RetinaNet, .*teacher's boxes as labels"):
        losses.retina_net_objective(teacher, student)
    boxes = detection.TeacherBoxes(**detection.retina_net_head(teacher), score_threshold=0.05)
    selection = losses.MultiBoxSelection(detection.Matcher(anchors), teacher_boxes=boxes)
    arguments = losses.multibox_objective(selection, weights={"soft": None, "bounded": None})
    distiller = tfkd.Distiller(teacher, student, **arguments)
    distiller.compile("adam", run_eagerly=True)
    unlabelled = {"boxes": tf.fill((4, 1, 4), -1.0), "classes": tf.fill((4, 1), UNLABELLED)}
    logs = distiller.train_on_batch(X, unlabelled, return_dict=True)
    assert logs["multibox_localization"] > 0  # there are objects: the teacher's
    plain = tfkd.Distiller(
        teacher, student, **losses.multibox_objective(detection.Matcher(anchors))
    )
    plain.compile("adam", run_eagerly=True)
    with pytest.raises(ValueError, match=r"`teacher`: .*'classes'.*teacher_boxes=tfkd.detection"):
        plain.train_on_batch(X, tensors(Y))


def test_anchors_that_differ_are_refused_where_they_count(retina_nets):
    teacher, student = retina_nets
    encoder = student.label_encoder
    other = keras_cv_toys.anchor_generator(sizes=(9.0, 16.0, 32.0, 64.0, 128.0))
    own = student.anchor_generator
    try:
        student.anchor_generator = other
        with pytest.raises(ValueError, match=r"1161 anchors each, of different.*'bounded': No"):
            losses.retina_net_objective(teacher, student)
        left = losses.retina_net_objective(
            teacher, student, weights={"soft": None, "bounded": None}
        )
        assert len(left["distillation_losses"]) == 2
        student.anchor_generator = own
        student.label_encoder = keras_cv.models.retinanet.LabelEncoder(
            "center_xywh", own, box_variance=(0.2, 0.2, 0.2, 0.2)
        )
        with pytest.raises(ValueError, match=r"the variances \(0.1, 0.1, 0.2, 0.2\) and \(0.2,"):
            losses.retina_net_objective(teacher, student)
        student.label_encoder = keras.layers.Layer()
        with pytest.raises(ValueError, match="`student`: .*retinanet.LabelEncoder, received <"):
            losses.retina_net_objective(teacher, student)
    finally:
        student.anchor_generator, student.label_encoder = own, encoder
    try:
        teacher.num_classes = 7
        with pytest.raises(ValueError, match="`teacher`: expected 3 classes.*received 7"):
            losses.retina_net_objective(teacher, student)
    finally:
        teacher.num_classes = CLASSES


def test_thresholds_are_those_of_the_encoder(retina_nets):
    teacher, student = retina_nets
    encoder = student.label_encoder
    try:
        student.label_encoder = keras_cv.models.retinanet.LabelEncoder(
            "center_xywh", student.anchor_generator, 0.7, 0.2
        )
        arguments = losses.retina_net_objective(
            teacher, student, negative_ratio=3.0, every_object=True, focal_alpha=None
        )
    finally:
        student.label_encoder = encoder
    selection = arguments["distillation_losses"][0].selection
    matcher = selection.matcher
    assert (matcher.threshold, matcher.ignore_from, matcher.every_object) == (0.7, 0.2, True)
    assert (selection.negative_ratio, selection.scores) == (3.0, "sigmoid")
    again = losses.MultiBoxSelection.from_config(selection.get_config())
    np.testing.assert_array_equal(again.matcher(Y)["classes"], matcher(Y)["classes"])


@pytest.mark.slow
def test_a_yolo_learns_from_another(yolos):
    teacher, student = yolos
    arguments = losses.yolo_v8_objective(teacher, student, hint="P3")
    assert arguments["distillation_loss_weights"] == [0.5, 1.5, 0.5, 7.5, 0.5]
    # Which points the labels' terms count changes from step to step, and their sum with it:
    # the others must fall.
    arguments["distillation_loss_weights"][:2] = [50.0, 50.0]
    distiller = tfkd.Distiller(teacher, student, **arguments)
    distiller.compile(keras.optimizers.Adam(2e-3), run_eagerly=True)
    seen = []
    for _ in range(4):
        distiller.reset_metrics()
        seen.append(distiller.train_on_batch(X, tensors(Y), return_dict=True))
    for name in ("dense_soft_target", "localization_distillation"):
        assert seen[-1][name] < seen[0][name], name
    assert all(np.isfinite(list(logs.values())).all() for logs in seen)
    student.run_eagerly = True
    found = student.predict(X, verbose=0)
    assert found["boxes"].shape == (4, 100, 4) and np.isfinite(found["boxes"]).all()


def test_the_labels_terms_are_yolos_loss(yolos):
    """Also in a graph, where keras-cv's own padding would make its loss NaN."""
    teacher, student = yolos
    student.compile("ciou", "binary_crossentropy")
    each = terms(losses.yolo_v8_objective(teacher, student))
    mine, own = outputs(student), keras_cv_objects(Y, student.bounding_box_format, SIZE)
    assert (Y["classes"] < 0).any() and (Y["classes"] >= 0).any()
    expected = student.compute_loss(tf.constant(X), own, mine)

    @tf.function
    def compute(y):
        confidence, localization = (
            each[name].compute_loss(None, mine, y=y) for name in ("confidence", "localization")
        )
        return 0.5 * confidence + 7.5 * localization

    np.testing.assert_allclose(compute(tensors(Y)), expected, rtol=1e-4)


def test_no_labels_are_needed_for_what_the_teacher_says(yolos):
    teacher, student = yolos
    arguments = losses.yolo_v8_objective(
        teacher, student, weights={"confidence": None, "localization": None}, temperature=2.0
    )
    each = arguments["distillation_losses"]
    assert [loss.temperature for loss in each] == [2.0, 1.0]
    theirs, mine = outputs(teacher), outputs(student, 1)
    assert all(float(loss.compute_loss(theirs, mine)) > 0 for loss in each)
    assert all(float(loss.compute_loss(mine, mine)) == pytest.approx(0, abs=1e-6) for loss in each)


def test_pairs_that_do_not_fit_are_refused(retina_nets, yolos):
    with pytest.raises(TypeError, match=r"`student`: expected a keras_cv.models.RetinaNet"):
        losses.retina_net_objective(retina_nets[0], yolos[0])
    with pytest.raises(TypeError, match=r"`teacher`: expected a keras_cv.models.YOLOV8Detector"):
        losses.yolo_v8_objective(retina_nets[0], yolos[0])
    with pytest.raises(ValueError, match=r"`image_size`: expected the size of .*\(64, 96\)"):
        losses.yolo_v8_objective(*yolos, image_size=128)
    with pytest.raises(ValueError, match=r"`hint`: expected one of 'P3', 'P4', 'P5', or \(teach"):
        losses.yolo_v8_objective(*yolos, hint="pyramid")
    with pytest.raises(ValueError, match=r"`hint`: expected one of .*'P5', 'pyramid', or"):
        losses.retina_net_objective(*retina_nets, hint="P2")
    with pytest.raises(ValueError, match="`weights`: expected one of 'soft', 'distances', 'conf"):
        losses.yolo_v8_objective(*yolos, weights={"bounded": 1.0})


def test_layers_are_found_inside_and_by_attribute():
    inner = keras.Sequential([keras.layers.Dense(2, input_shape=(2,), name="deep")])
    twins = [keras.Sequential([keras.layers.Dense(2, name="twin")]) for _ in range(2)]
    model = keras.Sequential([inner, *twins])
    model.build((None, 2))
    model.held = inner.layers[0]
    assert find_layer(model, "deep", "student") is inner.layers[0]
    assert find_layer(model, "held", "student") is inner.layers[0]
    with pytest.raises(ValueError, match=r"`student_layer_name`: .*'twin'.*sequential\w*/twin"):
        find_layer(model, "twin", "student")
