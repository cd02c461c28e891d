"""All parts in one training: two workers, or two replicas, train as one process does.

Each case is trained three times on the same global batches: by one process, by two
replicas of one process, and by two processes over loopback, which all cases share.
Distillation alone: test_replicas.py.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
import workers

import tfkd
from tfkd import losses, pruning, replicas, schedules
from tfkd.curriculum import Curriculum

COUNT, BATCH, EPOCHS = 48, 8, 2
STEPS = COUNT // BATCH

# SGD: rounding alone. Adam divides by √v, and batch normalization by the deviation of the
# batch: where these are small, rounding is made larger.
TOLERANCES = {
    "decay": 1e-6,
    "cache": 1e-6,
    "together": 1e-6,
    "together, batch norm and Adam": 1e-5,
}
CASES = list(TOLERANCES)
# The last case has all parts in it; the others say which part is at fault.
MARKED = [pytest.param(case, marks=pytest.mark.slow) for case in CASES[:-1]] + CASES[-1:]


def net(width, seed, norm=False):
    x = keras.Input((5,))
    # Batch normalization takes a bias away: its gradient is rounding, which Adam scales up.
    h = keras.layers.Dense(width, use_bias=not norm, name="hidden")(x)
    if norm:
        h = keras.layers.BatchNormalization(synchronized=True)(h)
    h = keras.layers.Activation("tanh", name="active")(h)
    return toys.randomize(keras.Model(x, keras.layers.Dense(3, name="scores")(h)), seed)


def distilled(teacher, norm):
    hint = losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="active")
    kinds = [losses.LogitsDistillation(2.0), hint]
    return tfkd.Distiller(teacher, net(6, 2, norm), kinds, [1.0, 0.5], student_loss_weight=0.3)


def open_cache(folder, x):
    return tfkd.TeacherCache.build(
        folder, net(8, 1), x, layers=["hidden"], dtype="float32", progress=False
    )


def data_of(case, folder, strategy):
    """The curriculum, if the case has one, and what `fit` is given."""
    x, y = toys.data(COUNT)
    cache = open_cache(folder, x) if "cache" in case or "together" in case else None
    if case == "cache":
        make = lambda context: cache.batches(x, y, BATCH, seed=3, input_context=context)  # noqa: E731
        return cache, None, replicas.distributed(make, BATCH, strategy)
    paced, scores = None, x.sum(1)
    if cache is not None:
        data = (cache.keyed(x), y)
        paced = Curriculum(
            data, scores, schedules.Linear(0.4, 1.0, end_step=8), BATCH, preprocess=cache.attach()
        )
    else:
        paced = Curriculum((x, y), scores, 1.0, BATCH)
    make = lambda context: paced.batches(input_context=context)  # noqa: E731
    return cache, paced, replicas.distributed(make, BATCH, strategy)


def train(strategy, case, folder, log_dir=None):
    """Weights of student and projectors, the logs, and the filters that are left out."""
    cache, paced, data = data_of(case, folder, strategy)
    norm = "norm" in case
    with strategy.scope():
        keras.utils.set_random_seed(4)  # a projector starts alike
        if case == "decay":
            model, student = (net(6, 2),) * 2
        else:
            model = distilled(cache or net(8, 1), norm)
            student = model.student
        rate = keras.optimizers.Adam(0.01) if "Adam" in case else keras.optimizers.SGD(0.1, 0.9)
        model.compile(rate, toys.CROSSENTROPY, ["accuracy"])
    callbacks, decay = [], None
    if "decay" in case or "together" in case:
        plan = pruning.plan(student, filter_rate=0.5)
        schedule = pruning.AnnealedFilterDecay(0.5, 0, STEPS + 3, frequency=2)
        decay = tfkd.callbacks.FilterDecay(plan, schedule, log_dir=log_dir)
        callbacks.append(decay)
    if paced is not None:
        callbacks.append(tfkd.callbacks.CurriculumUpdate(paced, log_dir=log_dir))
    if log_dir is not None:
        board = tfkd.callbacks.TensorBoard(log_dir, per_step=2, histogram_freq=1)
        callbacks.append(board)
    by_step = []
    see = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: by_step.append(logs))
    callbacks.append(see)
    found = model.fit(data, steps_per_epoch=STEPS, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    if case != "decay":  # Keras alone adds the logs of a step up over workers
        found.history["by_step"] = [[logs[n] for n in sorted(logs)] for logs in by_step]
    x, y = toys.data(10, seed=5)  # a part of a batch, and without the teacher's outputs
    test = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    found.history["test"] = list(model.evaluate(test, verbose=0, return_dict=True).values())
    trained = [student, *getattr(model, "projectors", ())]
    weights = [w.tolist() for part in trained for w in part.get_weights()]
    return weights, found.history, decay and decay.selection.to_dict()["removed"]


def scored_anew(strategy):
    """The order of a curriculum after the student, with statistics of its own, scored it."""
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dense(3),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), toys.CROSSENTROPY)
    x, y = toys.data(COUNT)
    paced = Curriculum((x, y), x.sum(1), 1.0, BATCH)
    data = replicas.distributed(
        lambda context: paced.batches(input_context=context), BATCH, strategy
    )
    callbacks = [tfkd.callbacks.CurriculumUpdate(paced, refresh_every=1)]
    model.fit(data, steps_per_epoch=STEPS, epochs=2, verbose=0, callbacks=callbacks)
    return paced.ranking.tolist()


def score_a_detector(strategy, log_dir):
    """One epoch, with scores and a picture of what is found."""
    with strategy.scope():
        pixels = keras.Input((8, 8, 3))
        flat = keras.layers.BatchNormalization()(keras.layers.Flatten()(pixels))
        boxes = keras.layers.Reshape((1, 4), name="boxes")(keras.layers.Dense(4)(flat))
        classes = keras.layers.Reshape((1, 2), name="classes")(keras.layers.Dense(2)(flat))
        model = keras.Model(pixels, {"boxes": boxes, "classes": classes})
        model.compile("sgd", "mse")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    truth = {"boxes": [[[0.4, 0.3, 0.6, 0.7]]] * 4, "classes": [[0]] * 4}
    priors = np.float32([[0.5, 0.5, 0.2, 0.4]])
    report = tfkd.callbacks.DetectionReport(
        images, truth, priors, ["cell"], pictures=1, log_dir=log_dir
    )
    y = {"boxes": np.zeros((4, 1, 4), "float32"), "classes": np.zeros((4, 1, 2), "float32")}
    data = tf.data.Dataset.from_tensor_slices((images / np.float32(127.5) - 1, y)).batch(4)
    return model.fit(data, verbose=0, callbacks=[report]).history["val_map"]


def train_on_the_curriculum(strategy):
    """The weights after two epochs of batches that Keras shares out, and the fractions seen."""
    with strategy.scope():
        distiller = tfkd.Distiller(
            toys.net(8, seed=2), toys.net(4), tfkd.losses.LogitsDistillation(2.0)
        )
        distiller.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    x, y = toys.data(COUNT)
    paced = Curriculum((x, y), x.sum(1), schedules.Linear(0.4, 1.0, end_step=8), BATCH)
    history = distiller.fit(
        paced.batches(),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[tfkd.callbacks.CurriculumUpdate(paced)],
    )
    return [w.tolist() for w in distiller.student.get_weights()], history.history["fraction"]


def train_all(strategy, folder, log_dir, cases):
    """What each worker process runs."""
    assert strategy.num_replicas_in_sync == 2
    logged = CASES[-1]
    found = {
        case: train(strategy, case, folder, log_dir if case == logged else None) for case in cases
    }
    found["curriculum"] = train_on_the_curriculum(strategy)
    found["map"] = score_a_detector(strategy, log_dir)
    return {**found, "ranking": scored_anew(strategy), "pid": os.getpid()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("cache")
    open_cache(found, toys.data(COUNT)[0])
    return str(found)


@pytest.fixture(scope="module")
def cases(request):
    """Those of the tests that are to run, and the last one."""
    params = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {p.params.get("case") for p in params if p}
    return [case for case in CASES if case in asked or case == CASES[-1]]


@pytest.fixture(scope="module")
def alone(folder, cases):
    one = tf.distribute.get_strategy()
    return {case: train(one, case, folder) for case in cases}


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def by_workers(folder, log_dir, cases):
    return workers.results(workers.start(train_all, folder, str(log_dir), cases))


def assert_alike(found, expected, tolerance):
    (weights, logs, selection), (mine, my_logs, my_selection) = found, expected
    assert selection == my_selection
    for other, value in zip(weights, mine, strict=True):
        np.testing.assert_allclose(other, value, rtol=tolerance, atol=tolerance)
    assert set(logs) == set(my_logs)
    for name, values in my_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", MARKED)
def test_two_workers_train_as_one_process(by_workers, alone, case):
    first, second = (found[case] for found in by_workers)
    assert first == second
    assert_alike(first, alone[case], TOLERANCES[case])


@pytest.mark.slow
def test_two_workers_share_a_curriculum_as_keras_does(by_workers):
    weights, fractions = train_on_the_curriculum(tf.distribute.get_strategy())
    for found in by_workers:
        theirs, seen = found["curriculum"]
        assert seen == fractions
        for mine, other in zip(weights, theirs, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_chief_alone_writes_logs(by_workers, log_dir):
    """TensorBoard, filter decay, curriculum and detection, in one folder of both workers."""
    files = [path for path in log_dir.rglob("*") if path.is_file()]
    pids = {path.name.split(".")[-3] for path in files}
    runs = [path.parent.relative_to(log_dir).as_posix() for path in files]
    assert sorted(runs) == [".", "curriculum", "filter_decay", "train", "validation"]
    assert pids == {str(by_workers[0]["pid"])}
    assert by_workers[0]["map"] == by_workers[1]["map"]


@pytest.mark.slow
def test_workers_agree_on_an_order_that_the_student_gave(by_workers):
    """Batch normalization has other statistics on each worker: scores would differ."""
    first, second = (found["ranking"] for found in by_workers)
    assert sorted(first) == list(range(COUNT)) and first == second


@pytest.mark.parametrize("case", MARKED)
def test_two_replicas_train_as_one(two_replicas, alone, folder, case):
    assert_alike(train(two_replicas, case, folder), alone[case], TOLERANCES[case])


@pytest.mark.parametrize("case", MARKED[2:])
def test_together_is_all_of_it(alone, case):
    """Half of the filters are zero in the end, the pool has grown, both losses are there."""
    weights, logs, selection = alone[case]
    assert np.sum(~np.any(weights[0], axis=0)) == 3 and selection
    assert logs["sparsity"][-1] == 0.5 and logs["decay_rate"] == [pytest.approx(1 / 3), 0.0]
    assert logs["fraction"][0] < 1 == logs["fraction"][1]
    assert logs["feature_distillation"][-1] > 0 and logs["logits_distillation"][-1] > 0
