"""Teachers in the pipeline, here or on a tf.data service, teach what they teach at hand."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd import losses, schedules
from tfkd.curriculum import Curriculum
from tfkd.teacher_cache import RemoteTeacher, TeacherCache

service = tf.data.experimental.service
X, Y = toys.data(24)
BATCH, STEPS = 8, 3


@contextlib.contextmanager
def served(count):
    """The address of a dispatcher with workers, all in this process."""
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=0, protocol="grpc"))
    where = dispatcher.target.split("://")[1]
    config = service.WorkerConfig(dispatcher_address=where)
    servers = [service.WorkerServer(config) for _ in range(count)]
    yield dispatcher.target
    for server in servers:
        server._stop()
    dispatcher._stop()


@pytest.fixture(scope="module")
def address():
    with served(1) as found:
        yield found


def teacher(seed=1, last=None):
    x = keras.Input((5,))
    h = keras.layers.Dense(8, name="hidden")(x)
    h = keras.layers.BatchNormalization()(h)
    scores = keras.layers.Dense(3, last, name="scores")(keras.layers.Dropout(0.5)(h))
    return toys.randomize(keras.Model(x, scores), seed)


def distil(given, data, epochs=2):
    keras.utils.set_random_seed(4)  # a projector starts alike
    hint = losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    kinds = [losses.LogitsDistillation(2.0), hint]
    distiller = tfkd.Distiller(given, toys.net(4), kinds, student_loss_weight=0.3)
    distiller.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    history = distiller.fit(data, steps_per_epoch=STEPS, epochs=epochs, verbose=0).history
    weights = [w for part in (distiller.student, *distiller.projectors) for w in part.get_weights()]
    return weights, history


def batches():
    return tfkd.data.batches(X, Y, BATCH, seed=3)


@pytest.mark.parametrize(("where", "last"), [("here", None), ("on the service", "softmax")])
def test_same_weights_as_with_the_live_teacher(address, where, last):
    given = teacher(last=last)
    remote = RemoteTeacher(given, X, None if where == "here" else address, layers="hidden")
    mine, my_logs = distil(given, batches())
    theirs, logs = distil(remote, remote.attach(batches()))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)
    assert set(logs) == set(my_logs)
    for name, values in my_logs.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5, err_msg=name)


def test_several_teachers_inputs_in_a_dict_and_half_precision(address):
    """Two teachers on {"a", "b"}, and batches of which the last is smaller."""

    def net(seed):
        a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
        joined = keras.layers.Concatenate()([a, b])
        return toys.randomize(keras.Model([a, b], keras.layers.Dense(3)(joined)), seed)

    x = {"a": X, "b": X[:, :2] - 1}
    teachers = [net(1), net(2)]
    spec = {"a": tf.TensorSpec((None, 5)), "b": tf.TensorSpec((None, 2))}
    remote = RemoteTeacher(teachers, spec, address, dtype="float16")
    data = remote.attach(tf.data.Dataset.from_tensor_slices(x).batch(10))
    outputs = [batch["tfkd_teacher"][remote.identity] for batch in data]
    for number, one in enumerate(teachers):
        found = np.concatenate([batch[f"final.{number}"] for batch in outputs])
        assert found.dtype == np.float16
        w, b = one.get_weights()
        expected = np.concatenate([x["a"], x["b"]], 1) @ w + b
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_later_training_of_the_model_does_not_change_a_remote_teacher():
    given = teacher()
    remote = RemoteTeacher(given, X)
    data = remote.attach(tf.data.Dataset.from_tensor_slices(X).batch(BATCH))
    before = next(iter(data))["tfkd_teacher"][remote.identity]["final.0"].numpy()
    toys.randomize(given, 9)
    after = next(iter(data))["tfkd_teacher"][remote.identity]["final.0"].numpy()
    np.testing.assert_array_equal(before, after)


def test_it_stands_for_a_cache_of_the_same_teacher(tmp_path):
    """One identity: data with the outputs of the one train a Distiller with the other."""
    given = teacher()
    cache = TeacherCache.build(tmp_path, given, X, layers="hidden", progress=False)
    remote = RemoteTeacher(given, X, layers=["hidden"])
    assert remote.identity == cache.identity
    distil(cache, remote.attach(batches()), epochs=1)


def test_several_workers_share_the_data():
    """DYNAMIC: every batch once, with the right outputs, in whatever order."""
    given, seen = teacher(), []
    source = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with served(2) as address:
        remote = RemoteTeacher(given, X, address)
        for batch, _ in remote.attach(source, service.ShardingPolicy.DYNAMIC):
            x, outputs = batch["tfkd_inputs"], batch["tfkd_teacher"][remote.identity]["final.0"]
            np.testing.assert_allclose(outputs, given(x, training=False), rtol=1e-5, atol=1e-6)
            seen += x.numpy().tolist()
    assert sorted(seen) == sorted(X.tolist())


@pytest.mark.parametrize("kind", ["numpy_function", "from_generator"])
def test_data_that_cannot_travel_are_refused(address, kind):
    if kind == "from_generator":
        signature = tf.TensorSpec((8, 5), tf.float32)
        data = tf.data.Dataset.from_generator(lambda: iter([X[:8]]), output_signature=signature)
    else:
        data = (
            tf.data.Dataset.from_tensor_slices(X)
            .batch(8)
            .map(lambda x: tf.ensure_shape(tf.numpy_function(np.abs, [x], tf.float32), (8, 5)))
        )
    with pytest.raises(ValueError, match="PyFunc"):
        RemoteTeacher(teacher(), X, address).attach(data)
    RemoteTeacher(teacher(), X).attach(data)  # here they can be called


def test_a_service_that_is_not_there():
    remote = RemoteTeacher(teacher(), X, "grpc://localhost:1")
    with pytest.raises(ConnectionError, match="DispatchServer"):
        remote.attach(batches())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"service": "localhost:5000"}, ValueError, "grpc://host:port"),
        ({"service": 5000}, TypeError, "grpc://host:port"),
        ({"layers": ["hiden"]}, ValueError, "hidden"),
        ({"layers": [3]}, TypeError, "names of layers"),
        ({"dtype": "int8"}, ValueError, "float16"),
        ({"job_name": 3}, TypeError, "job_name"),
        ({"x": "x"}, TypeError, "batch of inputs"),
        ({"x": tf.TensorSpec((None, None))}, ValueError, "known except for the batch"),
        ({"x": tf.TensorSpec(())}, ValueError, "first axis is the batch"),
        ({"teacher": 3}, ValueError, "teacher"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {"teacher": teacher(), "x": X, **change}
    with pytest.raises(error, match=words):
        RemoteTeacher(**arguments)


def test_a_cache_needs_no_service(tmp_path):
    cache = TeacherCache.build(tmp_path, teacher(), X, progress=False)
    with pytest.raises(ValueError, match="needs no service"):
        RemoteTeacher(cache, X)


@pytest.mark.parametrize("data", [X, "x"])
def test_only_data_sets_are_attached_to(data):
    with pytest.raises(TypeError, match=r"tf.data.Dataset of batches"):
        RemoteTeacher(teacher(), X).attach(data)


@pytest.mark.parametrize("x", [X[:, :4], {"a": X}, X.reshape(24, 5, 1)])
def test_data_of_another_form(x):
    data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(4)
    with pytest.raises(ValueError, match="batches whose inputs are"):
        RemoteTeacher(teacher(), X).attach(data)


def test_a_teacher_of_more_than_two_gigabytes(monkeypatch):
    monkeypatch.setattr("tfkd.teacher_cache.remote._MOST", 100)
    with pytest.raises(ValueError, match="at most 2 GiB"):
        RemoteTeacher(teacher(), X)


def test_layers_that_it_does_not_give():
    remote = RemoteTeacher(teacher(), X)
    with pytest.raises(ValueError, match="a layer that a RemoteTeacher"):
        distil(remote, remote.attach(batches()))


def test_a_curriculum_travels_as_it_is(address):
    paced = Curriculum((X, Y), X.sum(1), schedules.Linear(0.4, 1.0, end_step=8), BATCH)
    there = RemoteTeacher(teacher(), X, address).attach(paced.batches())
    for (batch, y), (x, mine) in zip(there.take(6), paced.batches(), strict=False):
        np.testing.assert_array_equal(batch["tfkd_inputs"], x)
        np.testing.assert_array_equal(y, mine)
