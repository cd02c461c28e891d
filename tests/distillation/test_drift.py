"""A student that leaves its teacher on few images is said so, and one that learns is not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd.distillation import drift
from tfkd.distillation.sample import is_repeatable

L = keras.layers
RNG = np.random.default_rng(3)
PATTERNS = RNG.normal(size=(4, 8, 8, 1))
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
from_arrays = tf.data.Dataset.from_tensor_slices


def examples(count, only=None):
    labels = RNG.integers(0, 4, count) if only is None else np.full(count, only)
    x = PATTERNS[labels] + RNG.normal(0, 1.0, (count, 8, 8, 1))
    return x.astype("float32"), labels


def network():
    x = keras.Input((8, 8, 1), name="image")
    y = x
    for _ in range(3):
        y = L.Conv2D(16, 3, padding="same", use_bias=False)(y)
        y = L.ReLU()(L.BatchNormalization(momentum=0.9)(y))
    return keras.Model(x, L.Dense(4)(L.GlobalAveragePooling2D()(y)))


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(keras.optimizers.Adam(5e-3), CE)
    x, y = examples(1024)
    model.fit(x, y, epochs=5, verbose=0)
    tfkd.pruning.recalibrate(model, x)  # statistics of the last steps are still on their way
    return model


TEST = examples(400)[0]
FEW = examples(48, only=1)[0]  # of one class: their statistics are not those of all


def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def agreement(a, b):
    a, b = (model.predict(TEST, verbose=0).argmax(1) for model in (a, b))
    return (a == b).mean()


def distil(teacher, student, x, y=None, weight=0, rate=1e-5, **options):
    """What is said; the Distiller."""
    loss = tfkd.losses.LogitsDistillation(2.0)
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=weight)
    distiller.compile(keras.optimizers.Adam(rate), CE)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        distiller.fit(x, y, verbose=0, **{"epochs": 6, **options})
    return [str(w.message) for w in found if "further from its teacher" in str(w.message)]


def test_few_images_of_one_class_do_not_ruin_a_quantized_model(trained):
    teacher, kept = tfkd.frozen_copy(trained), {}
    for freeze in (True, False):
        q = tfkd.quantization.quantize(trained, freeze_batch_norm=freeze)
        tfkd.quantization.calibrate(q, FEW)
        before = agreement(trained, q)
        said = distil(teacher, q, FEW, batch_size=16)
        kept[freeze] = agreement(trained, q) - before
        assert len(said) == (0 if freeze else 1)
        assert freeze or "freeze_batch_norm" in said[0]
    assert kept[True] > -0.01
    assert kept[False] < -0.05  # what the default was once


def test_a_float_model_is_said_once_with_what_to_do(trained):
    (message,) = distil(tfkd.frozen_copy(trained), copy_of(trained), FEW, batch_size=16)
    for words in ("inference mode", "layer.trainable = False", "1e-5"):
        assert words in message
    assert "freeze_batch_norm" not in message  # of quantize, which was not used
    frozen = copy_of(trained)
    for layer in frozen.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.trainable = False
    assert distil(tfkd.frozen_copy(trained), frozen, FEW, batch_size=16) == []


def test_nothing_is_said_of_batch_normalization_where_there_is_none():
    teacher = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(4)])
    wrong = np.argmin(teacher.predict(FEW, verbose=0), 1)
    (message,) = distil(teacher, copy_of(teacher), FEW, wrong, 0.9, 1e-2, epochs=4)
    assert "lower learning rate" in message and "student_loss_weight" in message
    assert "ormalization" not in message and "frozen" not in message


def test_a_new_student_comes_nearer_and_nothing_is_said(trained):
    teacher = tfkd.frozen_copy(trained)
    x, y = examples(256)
    assert distil(teacher, network(), FEW, rate=1e-2) == []
    assert distil(teacher, network(), x, y, 0.5, 1e-2, epochs=3) == []
    assert distil(teacher, copy_of(trained), *examples(1024), 0.1, 1e-5, epochs=2) == []


@pytest.mark.slow
def test_other_forms_of_data_teachers_and_outputs(trained, tmp_path):
    teacher = tfkd.frozen_copy(trained)
    few = from_arrays(FEW).batch(16)
    shuffled = from_arrays((FEW, np.zeros(48))).shuffle(48, seed=1).batch(16)
    test = (TEST[:128], np.zeros(128))
    assert len(distil(teacher, copy_of(trained), few)) == 1
    assert len(distil(teacher, copy_of(trained), {"image": FEW}, batch_size=16)) == 1
    assert len(distil(teacher, copy_of(trained), shuffled, validation_data=test)) == 1
    cache = tfkd.TeacherCache.build(tmp_path / "cache", trained, FEW)
    batches = cache.batches(FEW, None, 16)
    assert len(distil(cache, copy_of(trained), batches, steps_per_epoch=3)) == 1


def test_several_outputs(trained):
    inner = trained.layers[-2].output
    keras.utils.set_random_seed(1)
    several = keras.Model(trained.input, [trained.output, L.Dense(3)(5.0 * inner)])
    assert len(distil(tfkd.frozen_copy(several), copy_of(several), FEW, batch_size=16)) == 1


def test_a_generator_loses_no_example(trained):
    read = []

    def generate():
        for first in range(0, 48, 16):
            read.append(first)
            yield FEW[first : first + 16]

    assert distil(tfkd.frozen_copy(trained), copy_of(trained), generate(), epochs=1) == []
    assert read == [0, 16, 32]


def test_which_data_sets_are_read_twice():
    plain = from_arrays(FEW)
    steps = tfkd.data.batches(FEW, None, 16, seed=0)

    def generate():
        yield FEW

    generated = tf.data.Dataset.from_generator(generate, output_types=tf.float32)
    noisy = plain.map(lambda x: x + tf.random.normal((8, 8, 1)))
    counted = plain.map(lambda x: tf.py_function(lambda v: v, [x], tf.float32))
    good = (plain, plain.batch(4).prefetch(2), plain.map(lambda x: 2 * x).repeat(), steps)
    assert all(map(is_repeatable, good))
    bad = (plain.shuffle(9, seed=1), plain.shuffle(10**6), plain.cache(), generated, noisy, counted)
    assert not any(map(is_repeatable, bad))
    assert is_repeatable(plain.shuffle(9, seed=1, reshuffle_each_iteration=False))


@pytest.mark.slow
def test_training_is_the_same_with_and_without_the_check(trained, monkeypatch):
    weights = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(drift, "watched", lambda owner, args, kwargs: (args, kwargs))
        keras.utils.set_random_seed(5)
        student = copy_of(trained)
        data = from_arrays(FEW).shuffle(48, seed=2).batch(16)
        distil(
            tfkd.frozen_copy(trained),
            student,
            data,
            epochs=2,
            validation_data=(TEST, np.zeros(400)),
        )
        weights.append(student.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_divergence_by_hand():
    teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]])
    p = np.exp(2.0) / (np.exp(2.0) + 1)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    found = drift._divergences(tf.constant(teacher), tf.constant(student), False)
    np.testing.assert_allclose(found, [np.log(2) - entropy] * 2)
    # One sigmoid of z is a softmax of (z, 0).
    alone = drift._divergences(tf.constant([[2.0]]), tf.constant([[0.0]]), True)
    np.testing.assert_allclose(alone, found)


def test_regression(trained):
    x = keras.Input((6,))
    inner = L.BatchNormalization(momentum=0.5)(L.Dense(8)(x))
    teacher = keras.Model(x, L.Dense(2)(L.ReLU()(inner)))
    data = RNG.normal(5, 3, size=(64, 6)).astype("float32")  # the statistics are those of none
    tfkd.pruning.recalibrate(teacher, RNG.normal(size=(64, 6)).astype("float32"))
    student = copy_of(teacher)
    distiller = tfkd.Distiller(
        tfkd.frozen_copy(teacher), student, tfkd.losses.FeatureDistillation(), student_loss_weight=0
    )
    distiller.compile(keras.optimizers.Adam(1e-5))
    with pytest.warns(UserWarning, match="of the teacher's variance"):
        distiller.fit(data, batch_size=16, epochs=2, verbose=0)
