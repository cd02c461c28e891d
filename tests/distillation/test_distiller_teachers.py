"""Teachers of every kind, several of them, and softmax heads."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd.losses import FeatureDistillation, LogitsDistillation
from tfkd.teachers.forward import forward


def run(teacher, student=None, losses=None, optimizer=None, count=8, **compile_args):
    """Logs of one step on one batch, and the student."""
    student = student or net(seed=2)
    x, y = data(count)
    distiller = tfkd.Distiller(teacher, student, losses or LogitsDistillation(2.0))
    distiller.compile(
        optimizer or keras.optimizers.SGD(0.0),
        compile_args.pop("loss", CROSSENTROPY),
        **compile_args,
    )
    return logs(distiller.fit(x, y, batch_size=count, verbose=0))


def expected_kd(teacher_scores, temperature=2.0):
    x, _ = data()
    return toys.soft_targets(teacher_scores, net(seed=2)(x), temperature).mean()


def test_several_teachers_are_averaged_in_probability():
    teachers = [net(width, seed=width) for width in (3, 4, 7)]
    x, _ = data()
    p = np.mean([np.exp(toys.log_softmax(t(x))) for t in teachers], axis=0)
    found = run(teachers)
    np.testing.assert_allclose(found["logits_distillation"], expected_kd(np.log(p)), rtol=1e-5)
    choice = net(seed=2)(x).numpy().argmax(-1)
    np.testing.assert_allclose(found["agreement"], np.mean(p.argmax(-1) == choice), rtol=1e-6)


def test_several_sigmoid_teachers_are_averaged_in_probability():
    teachers = [net(seed=s) for s in (1, 5)]
    x, _ = data()
    p = np.mean([1 / (1 + np.exp(-t(x).numpy())) for t in teachers], axis=0)
    logit = np.log(p / (1 - p)) / 2
    t, s = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-net(seed=2)(x).numpy() / 2))
    kd = 4 * (t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))).sum(-1).mean()
    found = run(teachers, losses=LogitsDistillation(2.0, loss="binary_crossentropy"))
    np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-5)


def test_several_teachers_are_averaged_in_value_for_other_losses():
    teachers = [net(seed=1), net(seed=5)]
    x, _ = data()
    mean = (teachers[0](x) + teachers[1](x)) / 2
    found = run(teachers, losses=FeatureDistillation())
    expected = np.square(mean - net(seed=2)(x)).mean()
    np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-5)


def test_a_layer_comes_from_the_first_teacher_that_has_it():
    with_layer = net(seed=5)
    without = keras.Sequential([keras.layers.Dense(3, input_shape=(5,), name="only")])
    x, _ = data()
    weights = with_layer.get_weights()
    student = net(seed=2)
    hint = np.square(
        np.tanh(x @ weights[0] + weights[1])
        - np.tanh(x @ student.get_weights()[0] + student.get_weights()[1])
    ).mean()
    losses = FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    found = run([without, with_layer], student, losses)
    np.testing.assert_allclose(found["feature_distillation"], hint, rtol=1e-5)


def test_a_function_as_teacher():
    kernel = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    x, _ = data()
    found = run(lambda inputs: tf.matmul(inputs, kernel))
    np.testing.assert_allclose(found["logits_distillation"], expected_kd(x @ kernel), rtol=1e-5)

    class WithTraining:
        def __call__(self, inputs, training):
            assert training is False
            return tf.matmul(inputs, kernel)

    np.testing.assert_allclose(run(WithTraining())["loss"], found["loss"], rtol=1e-6)


@pytest.mark.parametrize("last", [None, "softmax"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_keras_3_model_as_teacher(last, eager):
    keras3 = pytest.importorskip("keras", minversion="3.0")
    if keras3.backend.backend() != "tensorflow":
        pytest.skip("Keras 3 does not run on TensorFlow here")
    x, _ = data()
    inputs = keras3.Input((5,))
    hidden = keras3.layers.Dense(6, activation="tanh", name="deep")(inputs)
    hidden = keras3.layers.Dropout(0.9)(keras3.layers.BatchNormalization()(hidden))
    teacher = keras3.Model(inputs, keras3.layers.Dense(3, activation=last)(hidden))
    before = [np.array(w) for w in teacher.get_weights()]
    scores = np.asarray(teacher(x, training=False))
    scores = np.log(scores) if last else scores
    deep = keras3.Model(inputs, teacher.get_layer("deep").output)(x)
    losses = [
        LogitsDistillation(2.0),
        FeatureDistillation(teacher_layer_name="deep", student_layer_name="hidden"),
    ]
    student = net(width=6, seed=2)
    hidden = np.tanh(x @ student.get_weights()[0] + student.get_weights()[1])
    kd = toys.soft_targets(scores, student(x), 2.0).mean()
    optimizer = keras.optimizers.SGD(0.1)
    found = run(teacher, student, losses, optimizer, run_eagerly=eager)
    np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-4)
    expected = np.square(np.asarray(deep) - hidden).mean()
    np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-5)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "call" not in vars(teacher.get_layer("deep"))


@pytest.mark.parametrize("eager", [False, True])
def test_a_restored_saved_model_as_teacher_with_a_softmax_hidden_in_it(tmp_path, eager):
    model = net(seed=1)
    module = tf.Module()
    module.model = model
    spec = tf.TensorSpec((None, 5), tf.float32, name="image")
    serve = tf.function(lambda image: {"p": tf.nn.softmax(model(image))}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    x, _ = data()
    found = run(tf.saved_model.load(str(tmp_path)), run_eagerly=eager)
    np.testing.assert_allclose(found["logits_distillation"], expected_kd(model(x)), rtol=1e-4)


def test_a_restored_saved_model_of_several_inputs_takes_them_by_name(tmp_path):
    spec = [tf.TensorSpec((None, 5), tf.float32, name=name) for name in ("b", "a")]
    module = tf.Module()
    serve = tf.function(lambda b, a: {"y": b - 0.5 * a}, input_signature=spec)
    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    call = forward(tf.saved_model.load(str(tmp_path)))
    b, a = data()[0], 3 + data()[0]
    np.testing.assert_allclose(call({"b": b, "a": a}), b - 0.5 * a, rtol=1e-6)
    for x in ([b, a], (b, a)):
        with pytest.raises(ValueError, match=r"pass a dict by name: \['a', 'b'\]"):
            call(x)


def test_a_keras_model_restored_by_tensorflow_as_teacher(tmp_path):
    x = keras.Input((5,))
    hidden = keras.layers.Dropout(0.9)(keras.layers.Dense(6, "tanh")(x))
    model = toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), 1)
    model.save(tmp_path / "teacher", save_format="tf")
    restored = tf.saved_model.load(str(tmp_path / "teacher"))
    found = run(restored)
    np.testing.assert_allclose(
        found["logits_distillation"], expected_kd(model(data()[0])), rtol=1e-4
    )


def test_subclassed_models_with_and_without_training_argument():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.scores = keras.layers.Dense(3, name="scores")

        def call(self, inputs):
            return self.scores(inputs)

    class WithTraining(Plain):
        def call(self, inputs, training=None):
            return self.scores(inputs) + (100.0 if training else 0.0)

    x, _ = data()
    for cls in (Plain, WithTraining):
        teacher, student = cls(), Plain()
        teacher(x)
        losses = [
            LogitsDistillation(2.0),
            FeatureDistillation(teacher_layer_name="scores", student_layer_name="scores"),
        ]
        found = run(teacher, student, losses)
        kd = toys.soft_targets(teacher(x, training=False), student(x), 2.0).mean()
        np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-5)
        hint = np.square(teacher(x, training=False) - student(x)).mean()
        np.testing.assert_allclose(found["feature_distillation"], hint, rtol=1e-5)


def headed(kind, seed):
    """The network of `toys.net`, with its probabilities made in several ways."""
    logits = net(seed=seed)
    if kind == "logits":
        return logits
    if kind == "dense":
        return net(seed=seed, last="softmax")
    x, z = logits.input, logits.output
    if kind == "layer":
        return keras.Model(x, keras.layers.Softmax()(z))
    if kind == "activation":
        return keras.Model(x, keras.layers.Activation("softmax", dtype="float32")(z))
    if kind == "sequential":
        return keras.Sequential([logits, keras.layers.Activation("softmax")])
    if kind == "nested":
        inner = net(seed=seed, last="softmax", name="inner")
        return keras.Model(x, keras.layers.Activation("linear")(inner(x)))
    return keras.Model(x, keras.layers.Lambda(lambda t: tf.nn.softmax(t))(z))


KINDS = ("dense", "nested", "lambda", "layer", "activation", "sequential")


@pytest.mark.parametrize(
    ("kind", "eager"),
    [
        *((kind, True) for kind in KINDS),
        *((kind, False) for kind in KINDS[:3]),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in KINDS[3:]),
    ],
)
def test_softmax_heads_are_undone(kind, eager):
    """Loss and step are those of the same networks with logits."""
    found = {}
    for head in ("logits", kind):
        student = headed(head, 2)
        found[head] = run(
            headed(head, 1),
            student,
            optimizer=keras.optimizers.SGD(0.5),
            run_eagerly=eager,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=head == "logits"),
        )
        found[head, "weights"] = student.get_weights()
    # Where only values tell (a lambda's softmax run eagerly) it is log p: less exact.
    for name, value in found["logits"].items():
        np.testing.assert_allclose(found[kind][name], value, rtol=1e-5, err_msg=name)
    for a, b in zip(found["logits", "weights"], found[kind, "weights"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_float32_softmax_after_mixed_precision_is_undone():
    def model(seed, head):
        x = keras.Input((5,))
        z = keras.layers.Dense(3, dtype="mixed_float16")(x)
        kind = "softmax" if head else "linear"
        out = keras.layers.Activation(kind, dtype="float32")(z)
        return toys.randomize(keras.Model(x, out), seed)

    found = [
        run(
            model(1, head),
            model(2, head),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not head),
        )
        for head in (False, True)
    ]
    for name in found[0]:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)


def test_very_sure_softmax_heads_give_no_nan():
    """A saturated softmax is 1, 0, 0: the scores before it are still known."""
    teacher, student = headed("dense", 1), headed("dense", 2)
    for model in (teacher, student):
        model.set_weights([200.0 * w for w in model.get_weights()])
    found = run(
        teacher,
        student,
        optimizer=keras.optimizers.SGD(0.1),
        loss="sparse_categorical_crossentropy",
    )
    assert found["logits_distillation"] > 10.0
    assert all(np.isfinite(value) for value in found.values())
    assert all(np.isfinite(w).all() for w in student.get_weights())
