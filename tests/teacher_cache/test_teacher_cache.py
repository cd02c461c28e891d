"""A cache holds what the teacher says, and training from it is training with the teacher."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CROSSENTROPY, data, net

import tfkd
from tfkd import TeacherCache, losses, schedules
from tfkd.teacher_cache import keys as key_functions
from tfkd.teacher_cache.keys import places
from tfkd.teachers.layout import Layout, Slot, TopK, put, take
from tfkd.teachers.precomputed import split
from tfkd.teachers.top_k import bucketed, top_k

X, Y = data(20)


def noisy(batch, seed):
    """An augmentation that draws numbers for the batch."""
    return batch + 0.5 * tf.random.stateless_normal(tf.shape(batch), seed)


def scaled(batch):
    return 2.0 * batch


FUNCTIONS = {"augment": noisy, "preprocess": scaled}
HINT = losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")


def build(path, teacher, x=X, **options):
    options = {"dtype": "float32", "progress": False, **options}
    return TeacherCache.build(path, teacher, x, **options)


def train(teacher, batches, distillation=None, student=None, epochs=2, steps=5, **compile_args):
    """Weights of the student and of projectors after a few steps, and the history."""
    keras.utils.set_random_seed(3)
    student = student or net(4, seed=5)
    distiller = tfkd.Distiller(teacher, student, distillation or losses.LogitsDistillation(2.0))
    options = {"optimizer": keras.optimizers.SGD(0.1, 0.9), "loss": CROSSENTROPY, **compile_args}
    distiller.compile(**options)
    history = distiller.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)
    trained = [student, *distiller.projectors]
    return [w for model in trained for w in model.get_weights()], history.history


def assert_alike(first, second, tolerance=1e-6):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def scores_by_numpy(model, x):
    """Logits of toys.net."""
    hidden, scores = model.get_layer("hidden"), model.get_layer("scores")
    h = np.tanh(x @ hidden.kernel.numpy() + hidden.bias.numpy())
    return h @ scores.kernel.numpy() + scores.bias.numpy(), h


@pytest.mark.parametrize("last", [None, "softmax"])
def test_it_holds_the_scores_and_features_of_each_example(tmp_path, last):
    teacher = net(8, seed=2, last=last)
    cache = build(tmp_path / "c", teacher, layers=["hidden"], shard_size=8, batch_size=3)
    found = cache.lookup([19, 0, 7, 8])
    z, h = scores_by_numpy(teacher, X[[19, 0, 7, 8]])
    np.testing.assert_allclose(found["final_output"], z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["hidden"], h, rtol=1e-5, atol=1e-5)
    assert (len(cache), cache.views, cache.layers) == (20, 1, ("hidden",))
    assert cache.bytes_per_example == 16 + 4 * (3 + 8)
    # Any NumPy reads the files.
    assert np.load(tmp_path / "c" / "00000.final.0.npy").shape == (8, 1, 3)


def test_numbers_of_a_regression_are_not_taken_for_probabilities(tmp_path):
    numbers = keras.layers.Lambda(lambda z: tf.abs(tf.sin(z)))  # in [0, 1]
    teacher = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2), numbers])
    with pytest.warns(UserWarning, match="taken for probabilities"):
        build(tmp_path / "unknown", teacher)
    teacher.compile("sgd", keras.losses.Huber())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = build(tmp_path / "numbers", teacher)
    expected = np.abs(np.sin(X @ teacher.get_weights()[0]))
    np.testing.assert_allclose(cache.lookup(range(20))["final_output"], expected, rtol=1e-5)


def test_a_view_is_the_augmentation_of_one_example_alone(tmp_path):
    teacher = net(8, seed=2)
    cache = build(tmp_path, teacher, views=3, augment=noisy, preprocess=scaled, seed=4)
    seed = np.array([6, np.int64(2 * 1_000_033 + 4)], np.int32)  # example 6, view 2
    seen = 2.0 * noisy(X[6:7], tf.constant(seed)).numpy()
    z, _ = scores_by_numpy(teacher, seen)
    np.testing.assert_allclose(cache.lookup([6], 2)["final_output"], z, rtol=1e-4, atol=1e-4)
    batch = cache.attach(noisy, scaled)(
        {"inputs": X[[1, 6]], "index": tf.constant([1, 6]), "view": tf.constant([0, 2])}
    )
    np.testing.assert_allclose(split(batch)[0][1:], seen, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "functions"),
    [
        ({}, {}),
        (
            {"views": 3, "augment": noisy, "preprocess": scaled},
            {"augment": noisy, "preprocess": scaled},
        ),
    ],
    ids=["one view", "three views"],
)
@pytest.mark.parametrize(
    ("loss", "layers"),
    [
        pytest.param(losses.LogitsDistillation(2.0), [], marks=pytest.mark.slow),
        (losses.DecoupledDistillation(2.0), []),
        (
            [
                losses.LogitsDistillation(3.0),
                losses.FeatureDistillation(
                    teacher_layer_name="hidden", student_layer_name="hidden"
                ),
            ],
            ["hidden"],
        ),
    ],
    ids=["soft targets", "decoupled", "features"],
)
def test_training_equals_that_with_the_live_teacher(tmp_path, loss, layers, options, functions):
    teacher = net(8, seed=2, last="softmax")
    cache = build(tmp_path, teacher, layers=layers, shard_size=7, **options)
    cached, logs = train(cache, cache.batches(X, Y, 4, seed=1, **functions), loss)
    live, others = train(teacher, cache.batches(X, Y, 4, seed=1, outputs=False, **functions), loss)
    assert_alike(cached, live)
    assert set(logs) == set(others)
    for name, values in logs.items():
        np.testing.assert_allclose(values, others[name], rtol=1e-5, atol=1e-6)


def test_float16_is_near(tmp_path):
    teacher = net(8, seed=2)
    cache = build(tmp_path, teacher, dtype="float16")
    cached, _ = train(cache, cache.batches(X, Y, 4))
    live, _ = train(teacher, cache.batches(X, Y, 4, outputs=False))
    assert_alike(cached, live, 1e-3)
    assert any((a != b).any() for a, b in zip(cached, live, strict=True))


def test_several_teachers_and_outputs_by_name(tmp_path):
    def two(width, seed):
        x = keras.Input((5,))
        hidden = keras.layers.Dense(width, "tanh", name="hidden")(x)
        scores = keras.layers.Dense(3, "softmax", name="scores")(hidden)
        flag = keras.layers.Dense(1, "sigmoid", name="flag")(hidden)
        return toys.randomize(keras.Model(x, {"scores": scores, "flag": flag}), seed)

    teachers = [two(8, 2), two(6, 3)]
    loss = losses.LogitsDistillation(
        2.0, {"scores": "kl_divergence", "flag": "binary_crossentropy"}
    )
    y = {"scores": Y, "flag": (Y > 0).astype("float32")[:, None]}
    labels = {
        "scores": keras.losses.SparseCategoricalCrossentropy(),
        "flag": keras.losses.BinaryCrossentropy(),
    }
    cache = build(tmp_path, teachers)
    cached, _ = train(cache, cache.batches(X, y, 4), loss, two(4, 5), loss=labels)
    live = cache.batches(X, y, 4, outputs=False)
    assert_alike(cached, train(teachers, live, loss, two(4, 5), loss=labels)[0])


def test_a_detector_learns_from_stored_heads(tmp_path):
    import detection_toys as toy

    matcher = tfkd.detection.Matcher(toy.ANCHORS)
    x, y = toy.images(8), toy.objects(8)
    teacher = toy.detector(2, 8)
    cache = build(tmp_path, teacher, x)

    def weights(teacher, outputs):
        selection = losses.MultiBoxSelection(matcher)
        objective = losses.multibox_objective(selection, "source")
        student = toy.detector(5)
        distiller = tfkd.Distiller(teacher, student, **objective)
        distiller.compile(keras.optimizers.SGD(0.05))
        batches = cache.batches(x, y, 4, outputs=outputs)
        distiller.fit(batches, steps_per_epoch=2, epochs=2, verbose=0)
        return student.get_weights()

    assert_alike(weights(cache, True), weights(teacher, False))


@pytest.mark.parametrize("last", [None, "softmax"])
def test_a_saved_model_teaches_by_its_scores_and_by_its_outputs(tmp_path, last):
    teacher = net(8, seed=2, last=last)
    tfkd.export.to_saved_model(teacher, tmp_path / "s")
    restored = tf.saved_model.load(str(tmp_path / "s"))
    cache = build(tmp_path / "c", restored)
    np.testing.assert_allclose(
        toys.log_softmax(cache.lookup(np.arange(20))["final_output"]),
        toys.log_softmax(scores_by_numpy(teacher, X)[0]),
        rtol=1e-4,
        atol=1e-4,
    )
    # A hint on the outputs as they are: probabilities, where the teacher ends in a softmax.
    hint = losses.FeatureDistillation()
    student = net(4, seed=5, last=last)
    expected = np.mean((teacher(X[:4]).numpy() - student(X[:4]).numpy()) ** 2)
    distiller = tfkd.Distiller(cache, student, hint, student_loss_weight=0.0)
    distiller.compile("sgd")
    found = distiller.evaluate(cache.eval_batches(X[:4], None, 4), verbose=0, return_dict=True)
    np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-4)


def test_files_are_read_by_preprocess(tmp_path):
    for number, row in enumerate(X):
        np.save(tmp_path / f"{number}.npy", row)
    names = np.array([str(tmp_path / f"{number}.npy") for number in range(len(X))])

    def read(paths):
        def load(each):
            return np.stack([np.load(path.decode()) for path in each])

        x = tf.numpy_function(load, [paths], tf.float32)
        x.set_shape((None, 5))
        return x

    teacher = net(8, seed=2)
    cache = build(tmp_path / "c", teacher, names, preprocess=read)
    z = cache.lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(z, teacher(X), rtol=1e-5, atol=1e-5)
    batches = cache.batches(names, Y, 4, preprocess=read)
    live = train(teacher, cache.batches(names, Y, 4, preprocess=read, outputs=False))[0]
    assert_alike(train(cache, batches)[0], live)


def test_padding_stays_masked(tmp_path):
    def tagger(width, seed):
        tokens = keras.Input((6,), dtype="int32")
        h = keras.layers.Embedding(10, width, mask_zero=True)(tokens)
        return toys.randomize(keras.Model(tokens, keras.layers.Dense(3)(h)), seed)

    tokens = np.random.default_rng(0).integers(1, 10, (12, 6))
    tokens[:, 4:] = 0
    y = np.random.default_rng(1).integers(0, 3, (12, 6))
    teacher = tagger(8, 2)
    for best in ({}, {"top_k": 2, "temperature": 2.0}):
        cache = build(tmp_path / str(len(best)), teacher, tokens, **best)
        cached, logs = train(cache, cache.batches(tokens, y, 4), None, tagger(4, 5), steps=3)
        batches = cache.batches(tokens, y, 4, outputs=False)
        live, others = train(teacher, batches, None, tagger(4, 5), steps=3)
        # With k = C − 1 the rest is one class: nothing is lost.
        assert_alike(cached, live, 1e-5)
        assert logs["agreement"] == others["agreement"]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([0.5, 1.0, 4.0]))
def test_the_rest_is_one_outcome(seed, k, temperature):
    rng = np.random.default_rng(seed)
    teacher, student = (3 * rng.normal(size=(4, 8)).astype(np.float32) for _ in range(2))
    pair = bucketed(top_k(tf.constant(teacher), k, temperature), tf.constant(student), temperature)

    def probabilities(z):
        return np.exp(toys.log_softmax(z.astype(np.float64) / temperature))

    order = np.argsort(-teacher, 1)
    for found, z in zip(pair, (teacher, student), strict=True):
        p = np.take_along_axis(probabilities(z), order, 1)
        expected = np.concatenate([p[:, :k], p[:, k:].sum(1, keepdims=True)], 1)
        np.testing.assert_allclose(probabilities(found.numpy()), expected, rtol=2e-4, atol=1e-6)


def test_gradients_reach_the_classes_left_out(tmp_path):
    teacher, student = tf.constant([[5.0, 4.0, 0.0, -1.0]]), tf.Variable([[0.0, 1.0, 2.0, 3.0]])
    with tf.GradientTape() as tape:
        pair = bucketed(top_k(teacher, 2, 1.0), student, 1.0)
        loss = losses.LogitsDistillation(1.0).compute_loss(*pair)
    gradient = tape.gradient(loss, student).numpy()[0]
    p = np.exp(toys.log_softmax(np.array([0.0, 1.0, 2.0, 3.0])))
    t = np.exp(toys.log_softmax(np.array([5.0, 4.0, 0.0, -1.0])))
    rest, own = t[2:].sum(), p[2:] / p[2:].sum()
    np.testing.assert_allclose(gradient, [*(p[:2] - t[:2]), *(p[2:] - rest * own)], atol=1e-5)


def test_few_bytes_for_many_classes(tmp_path):
    teacher = net(8, seed=2, classes=1000)
    whole = build(tmp_path / "a", teacher, dtype="float16")
    best = build(tmp_path / "b", teacher, dtype="float16", top_k=20, temperature=4.0)
    assert whole.bytes_per_example == 16 + 2 * 1000
    assert best.bytes_per_example == 16 + 20 * (2 + 2) + 4
    found = best.lookup([3])["final_output"]
    assert isinstance(found, TopK)
    z, _ = scores_by_numpy(teacher, X[3:4])
    order = np.argsort(-z[0])
    np.testing.assert_array_equal(found.indices[0], order[:20])
    rest = 4.0 * np.log(np.exp(z[0, order[20:]] / 4.0).sum())
    np.testing.assert_allclose(found.rest[0, 0], rest, rtol=1e-5)


def test_examples_find_their_outputs_in_any_order(tmp_path):
    teacher = net(8, seed=2)
    cache = build(tmp_path, teacher, shard_size=6)
    some = np.array([13, 2, 2, 19, 7])
    keyed = cache.keyed(X[some])
    np.testing.assert_array_equal(keyed["index"], some)
    batch = next(iter(cache.eval_batches(X[some], Y[some], 5)))
    stored = split(batch[0])[1][cache.identity]["final.0"]
    np.testing.assert_allclose(stored, teacher(X[some]), rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 9), max_size=8)
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_places_are_those_of_the_first_equal_row(known, wanted):
    rows = key_functions.keys([np.array(known)], range(len(known)))
    asked = [key_functions.keys([np.array([w])], range(1)) for w in wanted]
    asked = np.concatenate(asked) if asked else np.zeros((0, 16), np.uint8)
    found = places(rows, asked)
    if not (rows.shape == asked.shape and (rows == asked).all()):
        expected = [known.index(w) if w in known else -1 for w in wanted]
        assert found.tolist() == expected


def test_keys_tell_content_shape_and_type_apart():
    def key(*arrays):
        return key_functions.keys(list(arrays), range(1)).tobytes()

    one = np.arange(4, dtype=np.int32)[None]
    assert key(one) == key(one.copy())
    others = [one.astype(np.int64), one.reshape(1, 2, 2), one + 1, one.astype(np.float32)]
    assert len({key(one), *(key(other) for other in others), key(one, one)}) == 6
    words = np.array(["a", "b"])
    assert key_functions.keys([words], range(2)).tobytes()[:16] != key(words[1:])


def test_validation_says_what_can_be_known(tmp_path):
    teacher = net(8, seed=2)
    cache = build(tmp_path / "a", teacher)
    distiller = tfkd.Distiller(cache, net(4, seed=5), losses.LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY, metrics=["accuracy"])
    x, y = data(6, seed=9)
    alone = distiller.evaluate(x, y, return_dict=True, verbose=0)
    assert set(alone) == {"loss", "total_loss", "student_loss", "accuracy"}
    expected = toys.crossentropy(y, distiller.student(x).numpy()).mean()
    np.testing.assert_allclose([alone["loss"], alone["student_loss"]], expected, rtol=1e-5)
    # Another data set of the same teacher has a cache of its own.
    other = build(tmp_path / "b", teacher, x)
    found = distiller.evaluate(other.eval_batches(x, y, 4), return_dict=True, verbose=0)
    live = tfkd.Distiller(teacher, distiller.student, losses.LogitsDistillation(2.0))
    live.compile("sgd", CROSSENTROPY, metrics=["accuracy"])
    expected = live.evaluate(x, y, batch_size=4, return_dict=True, verbose=0)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        distiller.predict(other.eval_batches(x, None, 4), verbose=0),
        distiller.student(x),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "how",
    [
        "steps_per_execution",
        pytest.param("jit_compile", marks=pytest.mark.slow),
        "mixed_float16",
        "run_eagerly",
    ],
)
def test_it_trains_as_fit_does(tmp_path, how):
    cache = build(tmp_path, net(8, seed=2))
    student, options = net(4, seed=5), {}
    if how == "mixed_float16":
        x = keras.Input((5,))
        h = keras.layers.Dense(4, "tanh", dtype="mixed_float16")(x)
        student = keras.Model(x, keras.layers.Dense(3, dtype="float32")(h))
    else:
        options[how] = 5 if how == "steps_per_execution" else True
    _, history = train(cache, cache.batches(X, Y, 4), None, student, epochs=6, **options)
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]


def test_a_curriculum_hands_on_what_the_teacher_said(tmp_path):
    from tfkd.curriculum import Curriculum

    teacher = net(8, seed=2)
    cache = build(tmp_path / "a", teacher)
    hard = X.sum(1)

    def paced(x, **options):
        return Curriculum((x, Y), hard, schedules.Linear(0.5, 1.0, end_step=8), 4, **options)

    known = paced(cache.keyed(X), preprocess=cache.attach())
    cached, _ = train(cache, known.batches())
    assert_alike(cached, train(teacher, paced(X).batches())[0])

    views = build(tmp_path / "b", teacher, views=2, augment=noisy)
    moving = paced(views.keyed(X), augment=views.attach(augment=noisy))
    plain = paced(views.keyed(X), augment=views.attach(augment=noisy).inputs)
    cached, _ = train(views, moving.batches())
    assert_alike(cached, train(teacher, plain.batches())[0])


def test_stages_train_from_a_cache(tmp_path):
    from tfkd.curriculum import Curriculum, Stage

    cache = build(tmp_path, net(8, seed=2))
    paced = Curriculum((cache.keyed(X), Y), X.sum(1), 1.0, 4, preprocess=cache.attach())
    stages = [Stage(1, "easy", fraction=0.5), Stage(1, "all", fraction=1.0)]
    staged = tfkd.ProgressiveDistiller(
        cache, net(4, seed=5), stages, losses.LogitsDistillation(2.0)
    )
    staged.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    history = staged.fit(paced, verbose=0)
    assert len(history.history["distillation_loss"]) == 2


def test_batches_are_a_function_of_the_step(tmp_path):
    cache = build(tmp_path, net(8, seed=2), views=3, augment=noisy)

    def seen(**options):
        batches = cache.batches(X, Y, 4, seed=1, augment=noisy, epochs=3, **options)
        return [tf.nest.flatten(batch) for batch in batches]

    whole, late = seen(), seen(start_step=7)
    assert (len(whole), len(late)) == (15, 8)
    for first, second in zip(whole[7:], late, strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
    # Three epochs show each example in each of its views: 60 different rows.
    rows = np.concatenate([np.asarray(batch[0]) for batch in whole])
    assert len(np.unique(rows, axis=0)) == 60


def test_workers_share_a_batch(tmp_path):
    cache = build(tmp_path, net(8, seed=2))
    whole = next(iter(cache.batches(X, Y, 4, seed=1)))
    parts = []
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 2)
        parts.append(next(iter(cache.batches(X, Y, 4, seed=1, input_context=context))))
    for a, b, c in zip(*map(tf.nest.flatten, (whole, *parts)), strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))


def test_a_saved_distiller_finds_its_cache(tmp_path):
    teacher = net(8, seed=2)
    cache = build(tmp_path / "c", teacher)
    distiller = tfkd.Distiller(cache, net(4, seed=5), losses.LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    distiller.fit(cache.batches(X, Y, 4), steps_per_epoch=2, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    toys.assert_same_weights(loaded.student, distiller.student)
    loaded.fit(loaded.teacher.batches(X, Y, 4), steps_per_epoch=2, verbose=0)
    build(tmp_path / "c", net(8, seed=6), overwrite=True)
    with pytest.raises(ValueError, match="rebuilt"):
        keras.models.load_model(tmp_path / "d.keras")


def test_tensorboard_writes_of_a_cached_teacher(tmp_path):
    cache = build(tmp_path / "c", net(8, seed=2))
    distiller = tfkd.Distiller(cache, net(4, seed=5), losses.LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    board = tfkd.callbacks.TensorBoard(tmp_path / "logs")
    distiller.fit(cache.batches(X, Y, 4), steps_per_epoch=5, verbose=0, callbacks=[board])
    assert list((tmp_path / "logs").rglob("events*"))


@given(
    st.recursive(
        st.just("leaf"),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    )
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_structures_come_back(structure):
    leaves = []
    taken = take(structure, leaves)
    numbers = list(range(len(leaves)))
    assert put(taken, leaves) == structure
    slots = tuple(Slot(f"final.{n}", (3,), "float32") for n in numbers)
    layout = Layout([taken], slots, {"a/b": Slot("feature.0", (2, 2), "float16")})
    assert Layout.from_dict(dataclasses.asdict(layout)) == layout
