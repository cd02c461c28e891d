"""A detector's student in a Distiller: totals by hand, files, replicas, graphs, pruning."""

from __future__ import annotations

import functools

import multibox_reference as reference
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from detection_toys import ANCHORS, detector, images, objects
from toys import logs

import tfkd
from tfkd import losses, schedules
from tfkd.curriculum import Stage
from tfkd.detection import UNLABELLED, Anchors, Matcher, TeacherBoxes
from tfkd.losses import MultiBoxLoss, MultiBoxSelection, multibox_objective

PRIORS = np.float64(ANCHORS.priors)
NAMES = (
    "multibox_soft_target",
    "multibox_confidence",
    "bounded_regression",
    "multibox_localization",
)
PARTS = ("multibox_confidence", "multibox_localization")
# Weights of the terms, temperature, weight of the background.
PRESETS = {
    "source": ((0.3, 0.7, 0.5, 1.0), 2.0, 1.5),
    "chen": ((0.5, 0.5, 0.5, 1.0), 1.0, 1.5),
}
X, Y = images(6), objects(6, seed=1)
WEIGHTS = np.float32([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])
SGD = keras.optimizers.SGD


def distil(
    preset="source",
    selection=None,
    loss=None,
    student=None,
    teacher=None,
    optimizer=None,
    compile_args=None,
    student_loss_weight=None,
    **kwargs,
):
    """A Distiller around toy detectors, compiled. Eager: most tests make a step or two."""
    arguments = multibox_objective(selection or Matcher(ANCHORS), preset, **kwargs)
    if student_loss_weight is not None:
        arguments["student_loss_weight"] = student_loss_weight
    distiller = tfkd.Distiller(teacher or detector(1, 6), student or detector(2), **arguments)
    distiller.compile(optimizer or SGD(0.0), loss, **(compile_args or {"run_eagerly": True}))
    # Made by the first step, its variables would have that traced twice.
    distiller.optimizer.build(distiller.trainable_variables)
    return distiller


def evaluate(distiller, y=Y, weights=None):
    return distiller.evaluate(X, y, 6, sample_weight=weights, verbose=0, return_dict=True)


def outputs_of(model):
    return {name: value.numpy() for name, value in model(X).items()}


def batch_of(distiller, y=Y, **kwargs):
    """What counts, by loops, of the models' outputs."""
    student, teacher = outputs_of(distiller.student), outputs_of(distiller.teacher)
    return reference.Batch(y, student, PRIORS, teacher, **kwargs)


@pytest.mark.parametrize("preset, weights", [("source", None), ("chen", WEIGHTS)])
def test_the_total_is_the_weighted_sum_of_the_terms(preset, weights):
    distiller = distil(preset, margin=0.5)
    expected, terms = reference.total(
        PRESETS[preset][0], batch_of(distiller), *PRESETS[preset][1:], margin=0.5, images=weights
    )
    history = distiller.fit(X, Y, 6, sample_weight=weights, verbose=0)
    for found in (logs(history), evaluate(distiller, weights=weights)):
        for name, term in zip(NAMES, terms, strict=True):
            assert found[name] == pytest.approx(term, rel=1e-4), name
        for name in ("loss", "total_loss", "distillation_loss"):
            assert found[name] == pytest.approx(expected, rel=1e-4), name
        assert found["student_loss"] == 0.0
    exact = sum(w * found[n] for w, n in zip(PRESETS[preset][0], NAMES, strict=True))
    assert found["loss"] == pytest.approx(exact, rel=1e-6)


def test_a_step_follows_the_gradients_by_hand():
    """SGD on the biases of the heads: sums of the gradients of all priors."""
    student = detector(2)
    distiller = distil("source", student=student, optimizer=SGD(0.1))
    batch = batch_of(distiller)
    soft, confidence, bounded, localization = PRESETS["source"][0]
    step = {
        "classes": soft * batch.soft(2.0, 1.5)[1] + confidence * batch.confidence()[1],
        "boxes": bounded * batch.bounded()[1] + localization * batch.localization()[1],
    }
    before = {name: student.get_layer(f"head_{name}").bias.numpy() for name in step}
    distiller.fit(X, Y, 6, verbose=0)
    for name, gradient in step.items():
        # The two priors of a cell come from one layer.
        gradient = gradient.reshape(6, 4, 2, -1).sum((0, 1)).ravel() / batch.count
        after = student.get_layer(f"head_{name}").bias.numpy()
        np.testing.assert_allclose(after, before[name] - 0.1 * gradient, rtol=1e-4, atol=1e-5)


def test_a_hint_is_a_fifth_term_through_a_trained_adapter():
    distiller = distil("chen", hint=("hidden", "hidden"), hint_weight=2.0, student=detector(2, 6))
    weights = distiller.distillation_loss_weights
    assert weights == [0.5, 0.5, 0.5, 1.0, 2.0]
    # Equal width has an adapter too.
    (projector,) = distiller.projectors
    assert projector.trainable_weights[0].shape[-2:] == (6, 6)
    before = toys.weights_of(projector)
    distiller.optimizer.learning_rate.assign(0.1)
    found = logs(distiller.fit(X, Y, 6, verbose=0))
    expected = sum(w * found[n] for w, n in zip(weights, [*NAMES, "hint"], strict=True))
    assert found["loss"] == pytest.approx(expected, rel=1e-5) and found["hint"] > 0
    assert not np.allclose(before[0], projector.get_weights()[0])


def plain(loss, optimizer, student=None, **kwargs):
    model = student or detector(2)
    model.compile(optimizer, loss, **kwargs)
    model.optimizer.build(model.trainable_variables)
    return model


def test_the_loss_on_the_labels_is_one_in_keras_and_in_a_distiller():
    """Also where the last batch is smaller, with a regularizer and weights of images."""
    selection = MultiBoxSelection(Matcher(ANCHORS), 2.0, 1)
    student = functools.partial(detector, 2, regularizer="l2")
    loss = MultiBoxLoss(selection, 0.5, 2.0)
    eager = {"run_eagerly": True, "weighted_metrics": []}
    model = plain(loss, SGD(0.05), student(), **eager)
    distiller = tfkd.Distiller(
        detector(1, 6), student(), losses.MultiBoxSoftTarget(), student_loss_weight=1.0
    )
    distiller.compile(SGD(0.05), loss, **eager)
    arguments = {"batch_size": 4, "sample_weight": WEIGHTS, "verbose": 0}
    first, second = (m.fit(X, Y, shuffle=False, **arguments).history for m in (model, distiller))
    for name in ("loss", *PARTS):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5)
    toys.assert_same_weights(model, distiller.student, rtol=1e-5, atol=1e-6)
    first, second = (m.evaluate(X, Y, return_dict=True, **arguments) for m in (model, distiller))
    for name in ("loss", *PARTS):
        assert first[name] == pytest.approx(second[name], rel=1e-5)
    # By hand: as in Keras, batches count by their sizes.
    outputs, expected = outputs_of(model), []
    for rows in (slice(0, 4), slice(4, 6)):
        y, out = ({k: v[rows] for k, v in d.items()} for d in (Y, outputs))
        batch = reference.Batch(y, out, PRIORS, ratio=2.0, least=1)
        parts = (batch.confidence(), batch.localization())
        expected.append([batch.mean(part, WEIGHTS[rows]) for part in parts])
    means = np.average(expected, axis=0, weights=[4, 2])
    np.testing.assert_allclose([first[p] for p in PARTS], means, rtol=1e-4)
    penalty = float(tf.add_n(model.losses))
    assert penalty > 0
    assert first["loss"] == pytest.approx(means @ [0.5, 2.0] + penalty, rel=1e-4)
    assert second["student_loss"] == pytest.approx(means @ [0.5, 2.0], rel=1e-4)


def test_terms_beside_a_loss_on_the_labels_take_its_selection():
    selection = MultiBoxSelection(Matcher(ANCHORS), 1.0, 2)
    distiller = tfkd.Distiller(
        detector(1, 6),
        detector(2),
        [losses.MultiBoxSoftTarget(2.0), losses.BoundedRegression()],
        [0.5, 0.25],
        student_loss_weight=0.4,
    )
    distiller.compile(SGD(0.0), MultiBoxLoss(selection), run_eagerly=True)
    batch = batch_of(distiller, ratio=1.0, least=2)
    soft, bounded = batch.mean(batch.soft(2.0)), batch.mean(batch.bounded())
    labels = batch.mean(batch.confidence()) + batch.mean(batch.localization())
    found = evaluate(distiller)
    assert found["multibox_soft_target"] == pytest.approx(soft, rel=1e-4)
    assert found["bounded_regression"] == pytest.approx(bounded, rel=1e-4)
    assert found["student_loss"] == pytest.approx(labels, rel=1e-4)
    expected = 0.4 * labels + 0.6 * (0.5 * soft + 0.25 * bounded)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


class Counting:
    """A matcher that counts its calls."""

    def __init__(self):
        self.matcher, self.calls = Matcher(ANCHORS), 0

    def __call__(self, y):
        self.calls += 1
        return self.matcher(y)


def test_priors_are_chosen_once_a_step_and_the_teacher_runs_once():
    matcher, counter = Counting(), toys.Counter()
    selection = MultiBoxSelection(matcher)
    teacher = detector(1, 6, layer=counter)
    counter.calls.assign(0)
    distiller = distil(
        selection=selection,
        teacher=teacher,
        loss=MultiBoxLoss(selection),
        student_loss_weight=0.5,
        optimizer=SGD(0.01),
        compile_args={"steps_per_execution": 2},
    )
    kernels = [teacher.get_layer(name).kernel for name in ("hidden", "head_boxes", "head_classes")]
    before = [kernel.numpy() for kernel in kernels]
    traced, step = [], distiller.train_step

    def counted(data):
        traced.append(1)
        return step(data)

    distiller.train_step = counted
    distiller.fit(X, Y, 2, epochs=2, verbose=0)
    assert matcher.calls == len(traced) < 6
    assert int(counter.calls) == 6 and int(distiller.optimizer.iterations) == 6
    assert not teacher.trainable_weights
    for old, new in zip(before, kernels, strict=True):
        np.testing.assert_array_equal(old, new)


def test_no_gradient_flows_into_the_teacher():
    distiller = distil(selection=MultiBoxSelection(Matcher(ANCHORS), teacher_boxes=TeacherBoxes(
        ANCHORS, 0.4, "everywhere", max_boxes=5)))  # fmt: skip
    distiller.teacher.trainable = True
    with tf.GradientTape() as tape:
        value = distiller.compute_loss(X, Y)
    weights = distiller.teacher.trainable_weights
    assert weights and set(map(type, tape.gradient(value, weights))) == {type(None)}


@pytest.mark.parametrize("where", ["unlabelled", "missing", "everywhere"])
def test_what_the_teacher_sees_is_learned(where):
    """Every term takes the teacher's boxes for objects, the loss on the labels too."""
    y = objects(6, seed=1)
    y["classes"][::2] = UNLABELLED
    add = TeacherBoxes(ANCHORS, 0.4, where, max_boxes=5)
    selection = MultiBoxSelection(Matcher(ANCHORS), teacher_boxes=add)
    distiller = distil(selection=selection, loss=MultiBoxLoss(selection), student_loss_weight=0.25)
    seen = {k: v.numpy() for k, v in add(y, outputs_of(distiller.teacher)).items()}
    assert (seen["classes"][::2] >= 0).any()
    batch = batch_of(distiller, seen)
    expected, terms = reference.total(PRESETS["source"][0], batch, 2.0, 1.5)
    found = evaluate(distiller, y)
    for name, term in zip(NAMES, terms, strict=True):
        assert found[name] == pytest.approx(term, rel=1e-4), name
    labels = terms[1] + terms[3]
    assert found["student_loss"] == pytest.approx(labels, rel=1e-4)
    assert found["loss"] == pytest.approx(0.25 * labels + 0.75 * expected, rel=1e-4)


def test_images_without_labels_teach_nothing_without_the_teachers_boxes():
    y = objects(6, seed=1)
    y["classes"][::2] = UNLABELLED
    distiller, rows = distil(), slice(1, None, 2)
    some = evaluate(distiller, y)
    alone = distiller.evaluate(
        X[rows], {k: v[rows] for k, v in y.items()}, 3, verbose=0, return_dict=True
    )
    assert some["loss"] > 0
    for name in NAMES:
        assert some[name] == pytest.approx(alone[name], rel=1e-5)
    nothing = {**y, "classes": np.full_like(y["classes"], UNLABELLED)}
    assert evaluate(distiller, nothing)["loss"] == 0.0


def test_weights_and_temperature_follow_their_schedules():
    linear = schedules.Linear
    distiller = distil(
        "chen",
        weights={"soft": linear(0.0, 1.0, 0, 4), "localization": linear(2.0, 0.0, 0, 4)},
        temperature=linear(1.0, 3.0, 0, 4),
        margin=linear(0.0, 4.0, 0, 4),
        background_weight=1.0,
    )
    batch = batch_of(distiller)
    for step in range(3):
        weights = (step / 4, 0.5, 0.5, 2 - step / 2)
        expected, terms = reference.total(weights, batch, 1 + step / 2, 1.0, margin=float(step))
        found = distiller.train_on_batch(X, Y, reset_metrics=True, return_dict=True)
        for name, term in zip(NAMES, terms, strict=True):
            assert found[name] == pytest.approx(term, rel=1e-4), (name, step)
        assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert distiller.scheduled_values(2) == {
        "student_loss_weight": 0.0,
        "weight/multibox_soft_target": 0.5,
        "weight/multibox_confidence": 0.5,
        "weight/bounded_regression": 0.5,
        "weight/multibox_localization": 1.0,
        "temperature/multibox_soft_target": 2.0,
    }


def train(model, **kwargs):
    return logs(model.fit(X, Y, batch_size=3, shuffle=False, verbose=0, **kwargs))


def assert_goes_on(original, path):
    train(original)
    original.save(path)
    loaded = keras.models.load_model(path)
    loaded.run_eagerly = True
    assert train(loaded) == pytest.approx(train(original), rel=1e-5)
    toys.assert_same_weights(original, loaded, rtol=1e-5, atol=1e-6)
    return loaded


def test_a_saved_distiller_goes_on_training(tmp_path):
    add = TeacherBoxes(ANCHORS, 0.4, "missing", max_boxes=5)
    selection = MultiBoxSelection(Matcher(ANCHORS, 0.6, 0.4), 2.0, 1, add)
    original = distil(
        selection=selection,
        loss=MultiBoxLoss(selection, 1.0, 2.0),
        optimizer="adam",
        student_loss_weight=0.5,
        temperature=schedules.Linear(1.0, 3.0, 0, 4),
        hint=("hidden", "hidden"),
    )
    loaded = assert_goes_on(original, str(tmp_path / "distiller.keras"))
    pairs = zip(original.distillation_losses, loaded.distillation_losses, strict=True)
    for one, other in pairs:
        assert one.get_config() == other.get_config()
    assert loaded.loss.get_config() == original.loss.get_config()


def test_a_saved_model_with_the_loss_goes_on_training(tmp_path):
    original = plain(MultiBoxLoss(Matcher(ANCHORS)), "adam", run_eagerly=True)
    loaded = assert_goes_on(original, str(tmp_path / "student.keras"))
    assert isinstance(loaded.loss, MultiBoxLoss)


def dataset(arrays, batch):
    made = tf.data.Dataset.from_tensor_slices(arrays).batch(batch)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return made.with_options(options)


def assert_replicas_alike(strategy, build):
    """7 images in batches of 3 + 3 + 1, all objects in every other one: one replica has most."""
    y = objects(7, 4, seed=2)
    y["boxes"][1::2], y["classes"][1::2] = -1.0, -1
    data = dataset((images(7), y, np.float32([1, 2, 0.5, 1, 1, 3, 2])), 3)
    results = []
    for one in (tf.distribute.get_strategy(), strategy):
        with one.scope():
            keras.utils.set_random_seed(4)
            model = build(run_eagerly=one is not strategy)
        found = logs(model.fit(data, verbose=0))
        student = getattr(model, "student", model)
        results.append((found, student.get_weights()))
    (first, mine), (second, theirs) = results
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_replicas_are_one(two_replicas):
    """N is that of the global batch. The loss is made outside the strategy's scope."""
    add = TeacherBoxes(ANCHORS, 0.4, "missing", max_boxes=5)
    selection = MultiBoxSelection(Matcher(ANCHORS), min_negatives=1, teacher_boxes=add)
    loss = MultiBoxLoss(selection)

    def build(**compile_args):
        return distil(
            selection=selection,
            loss=loss,
            student=detector(2, regularizer="l2"),
            student_loss_weight=0.3,
            optimizer=SGD(0.02, 0.9),
            hint=("hidden", "hidden"),
            compile_args={"weighted_metrics": [], **compile_args},
        )

    assert_replicas_alike(two_replicas, build)


@pytest.mark.slow
def test_two_replicas_of_a_plain_model_are_one(two_replicas):
    loss = MultiBoxLoss(Matcher(ANCHORS))

    def build(**compile_args):
        student = detector(2, regularizer="l2")
        return plain(loss, SGD(0.02), student, weighted_metrics=[], **compile_args)

    assert_replicas_alike(two_replicas, build)


def test_a_mixed_bfloat16_student():
    """Losses are those of its rounded outputs, in float32; the weights stay float32."""
    distiller = distil(student=detector(2, dtype="mixed_bfloat16"), optimizer=SGD(0.05))
    student = distiller.student(X)
    assert student["boxes"].dtype == tf.bfloat16
    student = {name: tf.cast(value, tf.float32).numpy() for name, value in student.items()}
    batch = reference.Batch(Y, student, PRIORS, outputs_of(distiller.teacher))
    expected, _ = reference.total(PRESETS["source"][0], batch, 2.0, 1.5)
    assert evaluate(distiller)["loss"] == pytest.approx(expected, rel=1e-3)
    first = train(distiller)["loss"]
    assert train(distiller)["loss"] < first
    assert all(w.dtype == tf.float32 for w in distiller.student.trainable_weights)


def test_models_that_do_not_fit_together():
    other = Anchors([2], scales=[(0.4, 0.5, 0.7)])
    with pytest.raises(ValueError, match=r"same priors and classes.*\(6, 12, 3\).*\(6, 8, 3\)"):
        distil(teacher=detector(1, 6, other)).fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="same shape.*12, 4.*8, 4.*same anchors"):
        distil(teacher=detector(1, 6, other), weights={"soft": None}).fit(X, Y, verbose=0)
    alone = tfkd.Distiller(
        detector(1), detector(2), losses.MultiBoxSoftTarget(), student_loss_weight=0
    )
    alone.compile(run_eagerly=True)
    with pytest.raises(ValueError, match="`selection`.*another loss"):
        alone.fit(X, Y, verbose=0)


def ragged(y):
    rows = [kinds >= 0 for kinds in y["classes"]]
    lengths = [int(row.sum()) for row in rows]
    return {
        name: tf.RaggedTensor.from_row_lengths(
            np.concatenate([v[row] for v, row in zip(value, rows, strict=True)]), lengths
        )
        for name, value in y.items()
    }


@functools.cache
def trained_on_padded():
    distiller = distil(optimizer=SGD(0.05))
    return train(distiller), distiller.student


@pytest.mark.parametrize("kind", ["no objects", "ragged", "matched by the data set"])
def test_forms_of_objects(kind):
    """Batches without objects do no harm; ragged and matched targets are the padded ones."""
    matcher = Matcher(ANCHORS)
    selection = MultiBoxSelection(None if kind == "matched by the data set" else matcher)
    y = {"no objects": objects(6, 0), "ragged": ragged(Y), "matched by the data set": matcher(Y)}
    distiller = distil(selection=selection, optimizer=SGD(0.05))
    before = toys.weights_of(distiller.student)
    found = logs(distiller.fit(dataset((X, y[kind]), 3), verbose=0))
    if kind == "no objects":
        assert found["loss"] == 0.0
        toys.assert_untouched(before, distiller.student)
        return
    logged, student = trained_on_padded()
    assert found == pytest.approx(logged, rel=1e-5)
    toys.assert_same_weights(distiller.student, student, rtol=1e-5, atol=1e-6)


def test_in_stages():
    """First the teacher's hints, then all terms."""
    objective = multibox_objective(Matcher(ANCHORS), hint=("hidden", "hidden"))
    distiller = tfkd.ProgressiveDistiller(
        detector(1, 6),
        detector(2),
        [
            Stage(1, temperature=4.0, distillation_loss_weights=[0, 0, 0, 0, 1.0]),
            Stage(2, learning_rate=0.02),
        ],
        **objective,
    )
    distiller.compile(SGD(0.05), run_eagerly=True)
    history = distiller.fit(X, Y, batch_size=3, verbose=0).history
    assert history["stage"] == [0, 1, 1]
    assert history["total_loss"][0] == pytest.approx(history["hint"][0], rel=1e-5)
    assert history["loss"][2] < history["loss"][1]
    assert set(NAMES) < set(history)


def test_an_ssd_student_loses_its_redundant_filters_while_it_learns():
    anchors = Anchors.small(64)
    build = functools.partial(tfkd.models.ssd, num_classes=3, input_size=64, anchors=anchors)
    student = build((4, 4, 8, 8, 8))
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    y = objects(2, 3, seed=3, classes=3)
    terms = multibox_objective(Matcher(anchors), "source")
    distiller = tfkd.Distiller(build((4, 4, 8, 8, 12)), student, **terms)
    distiller.compile("adam", run_eagerly=True)
    plan = tfkd.pruning.plan(student, filter_rate=0.5)
    schedule = tfkd.pruning.AnnealedFilterDecay(0.5, begin_step=0, end_step=3)
    decay = tfkd.callbacks.FilterDecay(plan, schedule)
    distiller.fit(x, y, 2, epochs=4, callbacks=[decay], verbose=0)
    assert decay.history[-1][1] == 0.0
    small = tfkd.pruning.shrink(student, decay.selection)
    assert small.count_params() < 0.6 * student.count_params()
    masked, shrunk = student(x), small(x)
    for name in ("boxes", "classes"):
        assert shrunk[name].shape == (2, len(anchors), 4)
        np.testing.assert_allclose(shrunk[name], masked[name], rtol=1e-4, atol=1e-5)
