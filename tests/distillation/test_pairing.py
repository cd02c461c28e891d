"""Inputs and outputs of teacher and student that have the same names in another order."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, data

import tfkd
from tfkd import TeacherCache
from tfkd.losses import DecoupledDistillation, FeatureDistillation, LogitsDistillation

L = keras.layers
X, Y = data(16, inputs=3)
LABELS = {"cat": Y, "dog": Y}
BY_NAME = {"cat": CROSSENTROPY, "dog": CROSSENTROPY}


def heads(order, form=list, names=("cat", "dog"), width=3):
    """The scores 5x for "cat" and −5x for "dog", of which `names` says what they are called."""
    x = keras.Input((3,))
    made = {}
    for what, name, scale in zip(("cat", "dog"), names, (5.0, -5.0), strict=True):
        start = keras.initializers.Identity(scale)
        made[what] = L.Dense(width, use_bias=False, kernel_initializer=start, name=name)(x)
    outputs = [made[what] for what in order]
    return keras.Model(x, dict(zip(order, outputs, strict=True)) if form is dict else form(outputs))


def distilled(teacher, student, x=X, y=LABELS, loss=BY_NAME, term=None):
    distiller = tfkd.Distiller(teacher, student, term or LogitsDistillation(4.0))
    distiller.compile("sgd", loss)
    return distiller.evaluate(x, y, verbose=0, return_dict=True)


@pytest.mark.parametrize("form", [list, tuple])
def test_outputs_of_the_same_names_in_another_order_are_refused(form):
    teacher, student = heads(["cat", "dog"], form), heads(["dog", "cat"], form)
    terms = [LogitsDistillation(4.0), DecoupledDistillation(output=0), FeatureDistillation("mse")]
    for one in (teacher, [heads(["dog", "cat"], form), teacher]):
        for term in terms:
            with pytest.raises(ValueError, match=r"\['cat', 'dog'\].*student.*\['dog', 'cat'\]"):
                tfkd.Distiller(one, student, term)
    # What the message tells to do.
    reordered = keras.Model(teacher.inputs, form([teacher.outputs[i] for i in [1, 0]]))
    for right in (distilled(reordered, student), distilled(heads(["dog", "cat"], form), student)):
        np.testing.assert_allclose(right["distillation_loss"], 0.0, atol=1e-5)
        assert right["agreement"] == 1.0


def test_outputs_by_key_and_losses_on_layers_know_no_order():
    found = distilled(heads(["cat", "dog"], dict), heads(["dog", "cat"], dict))
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
    hint = FeatureDistillation("mse", "cat", "cat")
    found = distilled(heads(["cat", "dog"]), heads(["dog", "cat"]), term=hint)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)


def test_three_outputs_are_put_back_as_the_message_says():
    def model(order):
        x = keras.Input((3,))
        scores = [L.Dense(3, kernel_initializer="ones")(x) * scale for scale in range(3)]
        made = dict(zip("abc", scores, strict=True))
        made = {n: L.Activation("linear", name=f"{n}_out")(z) for n, z in made.items()}
        return keras.Model(x, [made[name] for name in order])

    teacher, student = model("abc"), model("cab")
    with pytest.raises(ValueError, match=r"for i in \[2, 0, 1\]"):
        tfkd.Distiller(teacher, student, LogitsDistillation(4.0))
    right = keras.Model(teacher.inputs, [teacher.outputs[i] for i in [2, 0, 1]])
    found = distilled(right, student, y=[Y, Y, Y], loss=CROSSENTROPY)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        (("dense", "dense_1"), ("dense_1", "dense")),  # Keras counts layers, whatever they mean
        (("dense_4", "dense_5"), ("dense", "dense_1")),
        (("cat", "dog"), ("dog", "bird")),  # other names may be other things
    ],
)
def test_names_that_tell_nothing_are_no_complaint(names):
    teacher, student = (heads(["cat", "dog"], names=each) for each in names)
    found = distilled(teacher, student, y=[Y, Y], loss=CROSSENTROPY)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)


def test_one_name_among_generated_ones_is_enough():
    teacher = heads(["cat", "dog"], names=("cat", "dense_7"))
    student = heads(["dog", "cat"], names=("cat", "dense_3"))
    with pytest.raises(ValueError, match=r"\['cat', '\(no name\)'\]"):
        tfkd.Distiller(teacher, student, LogitsDistillation(4.0))


def test_a_keras_3_teacher_in_another_order_is_refused():
    keras3 = pytest.importorskip("keras")
    x = keras3.Input((3,))
    teacher = keras3.Model(x, [keras3.layers.Dense(3, name=name)(x) for name in ("cat", "dog")])
    with pytest.raises(ValueError, match="outputs in the same order"):
        tfkd.Distiller(teacher, heads(["dog", "cat"]), LogitsDistillation(4.0))
    distilled(teacher, heads(["cat", "dog"]))


def test_stored_outputs_in_another_order_are_refused(tmp_path):
    teacher = heads(["cat", "dog"])
    cache = TeacherCache.build(tmp_path / "a", teacher, X, progress=False)
    remote = tfkd.teacher_cache.RemoteTeacher(teacher, X)
    for stored in (cache, TeacherCache(tmp_path / "a"), remote):
        with pytest.raises(ValueError, match=r"\['cat', 'dog'\].*build the cache"):
            tfkd.Distiller(stored, heads(["dog", "cat"]), LogitsDistillation(4.0))
    batches = cache.batches(X, LABELS, batch_size=16)
    distiller = tfkd.Distiller(cache, heads(["cat", "dog"]), LogitsDistillation(4.0))
    distiller.compile("sgd", BY_NAME)
    found = distiller.evaluate(batches, steps=1, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-3)
    # The fingerprint of a teacher has no order of outputs: without names it would be reused.
    with pytest.raises(ValueError, match="another output_names"):
        TeacherCache.build(tmp_path / "a", heads(["dog", "cat"]), X, progress=False)


def inputs(order, sizes=None, names=None):
    """A model on p and q that scores 3p − 5q, with its inputs in this order."""
    sizes, names = sizes or {"p": 3, "q": 3}, names or {"p": "p", "q": "q"}
    made = {name: keras.Input((sizes[name],), name=names[name]) for name in "pq"}
    parts = [
        L.Dense(3, use_bias=False, kernel_initializer=keras.initializers.Identity(scale))(made[n])
        for n, scale in (("p", 3.0), ("q", -5.0))
    ]
    return keras.Model([made[name] for name in order], L.Add()(parts))


def test_a_list_of_inputs_is_refused_where_the_models_order_them_otherwise(tmp_path):
    p, q = X, X[::-1].copy()
    teacher, student, by_name = inputs("pq"), inputs("qp"), {"p": p, "q": q}
    for feed in (by_name, tf.data.Dataset.from_tensors((by_name, Y))):
        y = None if isinstance(feed, tf.data.Dataset) else Y
        found = distilled(teacher, student, feed, y, CROSSENTROPY)
        np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
    distiller = tfkd.Distiller(teacher, student, LogitsDistillation(4.0))
    distiller.compile("sgd", CROSSENTROPY)
    batch = tf.data.Dataset.from_tensors(((q, p), Y))
    refused = pytest.raises(ValueError, match=r"list of inputs.*\['p', 'q'\].*\['q', 'p'\]")
    for call in (
        lambda: distiller.fit([q, p], Y, verbose=0),
        lambda: distiller.evaluate([q, p], Y, verbose=0),
        lambda: distiller.fit(batch, verbose=0),
        lambda: distiller.train_on_batch([q, p], Y),
        lambda: distiller.fit((((q, p), Y) for _ in range(2)), steps_per_epoch=1, verbose=0),
    ):
        with refused:
            call()
    reordered = keras.Model([teacher.inputs[i] for i in [1, 0]], teacher.outputs)
    found = distilled(reordered, student, [q, p], Y, CROSSENTROPY)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
    # A cache of a list does not tell whose order it is in.
    cache = TeacherCache.build(tmp_path, teacher, [q, p], progress=False)
    distiller = tfkd.Distiller(cache, student, LogitsDistillation(4.0))
    distiller.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match="to the cache, too"):
        distiller.fit(cache.batches([q, p], Y, batch_size=16), steps_per_epoch=1, verbose=0)


def test_inputs_of_other_sizes_or_without_names():
    """By name they fit although the places do not; generated names tell of no order."""
    sizes, x = {"p": 3, "q": 5}, {"p": X, "q": np.ones((16, 5), np.float32)}
    found = distilled(inputs("pq", sizes), inputs("qp", sizes), x, Y, CROSSENTROPY)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
    teacher = inputs("pq", names={"p": "input_7", "q": "input_8"})
    student = inputs("pq", names={"p": "input_8", "q": "input_7"})
    found = distilled(teacher, student, [X, X[::-1].copy()], Y, CROSSENTROPY)
    np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
