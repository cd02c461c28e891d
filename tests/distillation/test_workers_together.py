"""All parts in one training: two workers, or two replicas, train as one process does.

Each case is trained three times on the same global batches: by one process, by two
replicas of one process, and by two processes over loopback, which all cases share.
Distillation alone and a curriculum alone: test_replicas.py, curriculum/test_workers.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
import workers

import tfkd
from tfkd import losses, pruning, replicas
from tfkd.curriculum import Curriculum, pacing

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
        paced = Curriculum(data, scores, pacing.Linear(0.4, 8), BATCH, preprocess=cache.attach())
    else:
        paced = Curriculum((x, y), scores, 1.0, BATCH)
    make = lambda context: paced.batches(input_context=context)  # noqa: E731
    return cache, paced, replicas.distributed(make, BATCH, strategy)


def train(strategy, case, folder):
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
        model.compile(rate, toys.CROSSENTROPY)
    callbacks, decay = [], None
    if "decay" in case or "together" in case:
        plan = pruning.plan(student, filter_rate=0.5)
        schedule = pruning.AnnealedFilterDecay(0.5, 0, STEPS + 3, frequency=2)
        decay = tfkd.callbacks.FilterDecay(plan, schedule)
        callbacks.append(decay)
    if paced is not None:
        callbacks.append(tfkd.callbacks.CurriculumUpdate(paced))
    found = model.fit(data, steps_per_epoch=STEPS, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    trained = [student, *getattr(model, "projectors", ())]
    weights = [w.tolist() for part in trained for w in part.get_weights()]
    return weights, found.history, decay and decay.selection.to_dict()["removed"]


def train_all(strategy, folder):
    """What each worker process runs."""
    assert strategy.num_replicas_in_sync == 2
    return {case: train(strategy, case, folder) for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("cache")
    open_cache(found, toys.data(COUNT)[0])
    return str(found)


@pytest.fixture(scope="module")
def alone(folder):
    one = tf.distribute.get_strategy()
    return {case: train(one, case, folder) for case in CASES}


@pytest.fixture(scope="module")
def by_workers(folder):
    return workers.results(workers.start(train_all, folder))


def assert_alike(found, expected, tolerance):
    (weights, logs, selection), (mine, my_logs, my_selection) = found, expected
    assert selection == my_selection
    for other, value in zip(weights, mine, strict=True):
        np.testing.assert_allclose(other, value, rtol=tolerance, atol=tolerance)
    assert set(logs) == set(my_logs)
    for name, values in my_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_train_as_one_process(by_workers, alone, case):
    first, second = (found[case] for found in by_workers)
    assert first == second
    assert_alike(first, alone[case], TOLERANCES[case])


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_train_as_one(two_replicas, alone, folder, case):
    assert_alike(train(two_replicas, case, folder), alone[case], TOLERANCES[case])


@pytest.mark.parametrize("case", [case for case in CASES if "together" in case])
def test_together_is_all_of_it(alone, case):
    """Half of the filters are zero in the end, the pool has grown, both losses are there."""
    weights, logs, selection = alone[case]
    assert np.sum(~np.any(weights[0], axis=0)) == 3 and selection
    assert logs["sparsity"][-1] == 0.5 and logs["decay_rate"] == [pytest.approx(1 / 3), 0.0]
    assert logs["fraction"][0] < 1 == logs["fraction"][1]
    assert logs["feature_distillation"][-1] > 0 and logs["logits_distillation"][-1] > 0
