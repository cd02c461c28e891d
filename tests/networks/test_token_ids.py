"""Ids outside of an Embedding: one error, of arrays before training, of batches in their step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY

import tfkd
from tfkd.networks import token_ids

L = keras.layers
GOOD, LABELS = np.array([[0, 1], [2, 9]] * 4, "int32"), np.zeros(8, "int32")


def text_model(rows, dtype="int32"):
    tokens = keras.Input((2,), dtype=dtype, name="tokens")
    x = L.GlobalAveragePooling1D()(L.Embedding(rows, 3, name="words")(tokens))
    return keras.Model(tokens, L.Dense(3)(x))


def with_id(number):
    ids = GOOD.copy()
    ids[1, 1] = number
    return ids


def distiller(teacher_rows=10, student_rows=10, **options):
    models = text_model(teacher_rows), text_model(student_rows)
    made = tfkd.Distiller(*models, tfkd.losses.LogitsDistillation(2.0))
    made.compile("sgd", CROSSENTROPY, **options)
    return made


@pytest.mark.parametrize(("rows", "side"), [((10, 9), "student"), ((9, 10), "teacher")])
def test_arrays_are_checked_before_training(rows, side):
    words = f"token ids from 0 to 8, .* Embedding 'words' of the {side}, received ids from 0 to 9"
    made = distiller(*rows)
    for call in (made.fit, made.evaluate):
        with pytest.raises(ValueError, match=words):
            call(GOOD, LABELS, verbose=0)
        with pytest.raises(ValueError, match=words):
            call({"tokens": tf.constant(GOOD)}, LABELS, verbose=0)
    assert int(made.optimizer.iterations) == 0


def test_validation_data_and_negative_ids():
    with pytest.raises(ValueError, match="`validation_data`: .* received ids from -1 to 9"):
        distiller().fit(GOOD, LABELS, validation_data=(with_id(-1), LABELS))
    distiller().fit(GOOD, LABELS, validation_data=(GOOD, LABELS), verbose=0)


@pytest.mark.parametrize("number", [10, -1])
def test_batches_say_the_same_in_their_step(number):
    batches = tf.data.Dataset.from_tensor_slices((with_id(number), LABELS)).batch(4)
    made = distiller()
    words = f"token ids from 0 to 9, .* Embedding 'words' of the student, received the id {number}"
    for call in (made.fit, made.evaluate):
        with pytest.raises(ValueError, match=words) as caught:
            call(batches, verbose=0)
        assert len(str(caught.value).splitlines()) == 1


def test_other_errors_of_a_step_stay_what_they_are():
    batches = tf.data.Dataset.from_tensor_slices((GOOD, LABELS)).batch(4)
    batches = batches.map(lambda x, y: (tf.ensure_shape(x, (3, 2)), y))
    with pytest.raises(tf.errors.InvalidArgumentError):
        distiller().fit(batches, verbose=0)


def moved(tokens):
    x = L.Reshape((1, 2))(tf.cast(tokens, "int64"))
    return L.TimeDistributed(L.Embedding(10, 3, name="words"))(x)


def nested(tokens):
    inner = keras.Input((2,), dtype="int32")
    model = keras.Model(inner, L.Embedding(10, 3, name="words")(L.Permute((1,))(inner)))
    return model(tokens)


def computed(tokens):
    return L.Embedding(10, 3, name="words")(tokens % 10)


@pytest.mark.parametrize(("path", "known"), [(moved, True), (nested, True), (computed, False)])
def test_ids_are_followed_as_far_as_they_stay_what_they_are(path, known):
    tokens, number = keras.Input((2,), dtype="int32"), keras.Input((1,), name="number")
    model = keras.Model([number, tokens], [L.Flatten()(path(tokens)), number])
    x = [np.full((8, 1), 50.0), with_id(10)]
    if known:
        with pytest.raises(ValueError, match="`x`: .* of the model, received ids from 0 to 10"):
            token_ids.check("x", x, [("model", model)])
    else:
        token_ids.check("x", x, [("model", model)])


def test_a_sequential_model_and_ids_as_floats():
    model = keras.Sequential([L.Embedding(10, 3, input_length=2), L.Flatten()])
    model.build((None, 2))
    token_ids.check("x", GOOD.astype("float32") + 0.9, [("model", model)])
    with pytest.raises(ValueError, match="received ids from 1 to 10"):
        token_ids.check("x", GOOD.astype("float32") + 1, [("model", model)])
