"""Logits or probabilities: what ends a teacher or a student makes no difference.

Expected values are those of the scores, or of the probabilities' logarithms, in NumPy.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd import TeacherCache
from tfkd.curriculum import difficulty
from tfkd.losses import LogitsDistillation

L = keras.layers
X, Y = data(16)
BINARY = LogitsDistillation(2.0, loss="binary_crossentropy")


def said(function):
    """What a call returns, and what it warns of outputs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    words = ("probabilities", "logits", "independent labels")
    return result, [str(w.message) for w in caught if any(n in str(w.message) for n in words)]


def evaluated(teacher, student, loss=None, x=X, **options):
    """The loss of one batch, and the warnings."""
    distiller = tfkd.Distiller(teacher, student, loss or LogitsDistillation(2.0), None, 0.0)
    distiller.compile("sgd", **options)
    found, words = said(lambda: distiller.evaluate(x, verbose=0, return_dict=True))
    return found["logits_distillation"], words


def two(seed=1):
    """Two networks that end in a softmax, on one input."""
    x = keras.Input((5,))
    one, other = (net(seed=s, last="softmax")(x) for s in (seed, seed + 10))
    return x, one, other


def by_hand(z):
    return tf.exp(z) / tf.reduce_sum(tf.exp(z), -1, keepdims=True)


def permuted(x):
    p = L.Softmax(axis=1)(L.Reshape((3, 1))(net(seed=1)(x)))
    return L.Flatten()(L.Permute((2, 1))(p))


# Probabilities that do not come straight from a softmax; does the graph prove them?
ENDS = {
    "average": (lambda x, p, q: L.Average()([p, q]), False),
    "mean": (lambda x, p, q: tf.reduce_mean(tf.stack([p, q], 1), 1), False),
    "weighted": (lambda x, p, q: 0.3 * p + 0.7 * q, False),
    "clipped": (lambda x, p, q: tf.clip_by_value(p, 1e-7, 1.0), False),
    "by hand": (lambda x, p, q: by_hand(net(seed=1)(x)), False),
    "smoothed": (lambda x, p, q: 0.9 * p + 0.1 / 3, False),
    "axis 1": (lambda x, p, q: permuted(x), False),
    "reshape": (lambda x, p, q: L.Flatten()(L.Reshape((1, 1, 3))(p)), True),
    "log": (lambda x, p, q: tf.math.log(p), True),
}


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_of_any_making(end):
    function, proved = ENDS[end]
    models = [keras.Model(x, function(x, p, q)) for x, p, q in (two(1), two(2))]
    scores = [m.predict(X, verbose=0).astype(np.float64) for m in models]
    if end != "log":
        scores = [np.log(p) for p in scores]
    found, words = evaluated(*models)
    np.testing.assert_allclose(found, toys.soft_targets(*scores, 2.0).mean(), rtol=1e-4)
    sides = [] if proved else ["student: the graph does not show", "teacher: the graph does not"]
    assert len(words) == len(sides) and all(map(str.startswith, words, sides))


@pytest.mark.parametrize("is_declared", [False, True])
def test_a_quantized_mixture_of_distributions_is_still_probabilities(is_declared):
    """Its rows sum to 1 within some steps, and a p of 0 stands for all below half a step."""
    x, p, q = two()
    gate = L.Dense(2, activation="softmax")(x)
    stacked = L.Concatenate(axis=1)([L.Reshape((1, 3))(p), L.Reshape((1, 3))(q)])
    teacher = keras.Model(x, L.Dot(axes=(1, 1))([gate, stacked]))
    teacher.set_weights([6 * weight for weight in teacher.get_weights()])
    if is_declared:
        tfkd.losses.declare_outputs(teacher, "softmax")
    student = tfkd.quantization.quantize(teacher)
    tfkd.quantization.calibrate(student, X)
    rounded = student.predict(X, verbose=0)
    assert (rounded == 0).any() and 5e-3 < np.abs(rounded.sum(1) - 1).max() < 0.05
    # The copy of the teacher is what was declared of it, too.
    found, words = evaluated(tfkd.frozen_copy(teacher), student)
    assert len(words) == (0 if is_declared else 2)
    scores = np.log(teacher.predict(X, verbose=0)), np.log(np.maximum(rounded, 1 / 512))
    np.testing.assert_allclose(found, toys.soft_targets(*scores, 2.0).mean(), rtol=1e-3)


def test_the_loss_on_labels_tells_probabilities_from_logits_where_values_do_not():
    x = keras.Input((5,))
    half = keras.Model(x, tf.sigmoid(L.Dense(3)(x)) * 0.9)  # in [0, 1], but of no sum
    large = keras.Model(x, tf.nn.relu(L.Dense(3)(x)) * 5.0)
    for student, word in ((half, "taken as probabilities"), (large, "they are taken for logits")):
        _, words = evaluated(net(seed=1), student, loss=LogitsDistillation(2.0))
        assert not any(word in one for one in words)
        distiller = tfkd.Distiller(net(seed=1), student, LogitsDistillation(2.0))
        distiller.compile("sgd", "sparse_categorical_crossentropy")
        _, words = said(lambda made=distiller: made.evaluate(X, Y, verbose=0))
        assert sum(word in one for one in words) == 1


def test_two_teachers_as_a_list_or_as_one_model():
    x, p, q = two()
    found = [
        evaluated(teacher, net(seed=2))[0]
        for teacher in (
            [keras.Model(x, p), keras.Model(x, q)],
            keras.Model(x, L.Average()([p, q])),
        )
    ]
    mean = (keras.Model(x, p)(X).numpy() + keras.Model(x, q)(X).numpy()) / 2
    expected = toys.soft_targets(np.log(mean), net(seed=2)(X), 2.0).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("eager", [False, True])
def test_a_tagger_in_the_usual_form(eager):
    """TimeDistributed(Dense(C, "softmax")): sure of itself, and far from the student."""

    def tagger(seed, inner):
        x = keras.Input((7, 5))
        return toys.randomize(keras.Model(x, L.TimeDistributed(inner)(x)), seed, scale=20.0)

    x = np.random.default_rng(0).normal(size=(4, 7, 5)).astype(np.float32)
    nested = keras.Sequential([keras.Input((5,)), L.Dense(3), L.Softmax()])
    teacher, student = tagger(1, L.Dense(3, "softmax")), tagger(2, nested)
    kernels = [model.get_weights() for model in (teacher, student)]
    scores = [x @ kernel + bias for kernel, bias in kernels]
    found, words = evaluated(teacher, student, x=x, run_eagerly=eager)
    # Where no graph shows the scores they are log p, which ends at 1e-30.
    p = [np.maximum(np.exp(toys.log_softmax(z)), 1e-30) for z in scores]
    expected = toys.soft_targets(*(np.log(p) if eager else scores), 2.0).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-2 if eager else 1e-4)
    assert not words


SIGMOIDS = {
    "reshape": lambda z: L.Reshape((3,))(L.Reshape((3, 1))(L.Activation("sigmoid")(z))),
    "mean": lambda z: L.Average()([tf.sigmoid(z), tf.sigmoid(z / 2)]),
    "hard": L.Activation("hard_sigmoid"),
    "by hand": lambda z: 1 / (1 + tf.exp(-z)),
    "compiled": L.Lambda(tf.function(tf.sigmoid, autograph=False)),
}


@pytest.mark.parametrize("end", SIGMOIDS)
def test_multi_label_heads(end):
    def model(seed):
        logits = net(seed=seed)
        return keras.Model(logits.input, SIGMOIDS[end](logits.output))

    teacher, student = model(1), model(2)
    clip = 2.0**-25
    p, q = (np.clip(np.float64(m(X)), 1e-30, 1 - clip) for m in (teacher, student))
    t, s = (1 / (1 + np.exp(-np.log(r / (1 - r)) / 2)) for r in (p, q))
    kd = 4 * (t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))).sum(-1).mean()
    for eager in (False, True):
        found, words = evaluated(teacher, student, BINARY, run_eagerly=eager)
        np.testing.assert_allclose(found, kd, rtol=1e-4)
        assert len(words) == (2 if end == "compiled" else 0)  # else the graph proves the range


def test_logits_are_not_taken_for_probabilities():
    """Zeros, small ones, ReLU, those of an untrained student."""
    x = keras.Input((5,))
    zeros = keras.Model(x, 0.5 * L.Dense(3, kernel_initializer="zeros")(x))
    small = keras.Model(x, 1e-3 * L.Dense(3)(x))
    relu = keras.Model(x, L.ReLU()(net(seed=3)(x)))
    for loss, kd in ((LogitsDistillation(2.0), toys.soft_targets), (BINARY, bernoulli)):
        for student in (zeros, small, relu):
            student.trainable = True
            found, words = evaluated(net(seed=1), student, loss)
            expected = kd(net(seed=1)(X), student(X), 2.0).mean()
            np.testing.assert_allclose(found, expected, rtol=1e-4)
            assert not words


def bernoulli(teacher, student, temperature):
    """T² · KL of each example between sigmoids, from scores."""
    t, s = (1 / (1 + np.exp(-np.float64(z) / temperature)) for z in (teacher, student))
    kl = t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))
    return temperature**2 * kl.sum(-1)


def shifted(last, by=0.0):
    """Three units whose scores all differ from those of another such network by one number."""
    model = net(seed=1, last=last)
    kernel, bias = model.get_layer("scores").get_weights()
    model.get_layer("scores").set_weights([kernel, bias + by])
    return model


BCE = keras.losses.BinaryCrossentropy
COMPILED = {
    "name": ("sigmoid", "binary_crossentropy"),
    "function": ("sigmoid", keras.losses.binary_crossentropy),
    "logits": (None, BCE(from_logits=True)),
    "smooth": (None, BCE(from_logits=True, label_smoothing=0.1)),
    "focal": (None, keras.losses.BinaryFocalCrossentropy(from_logits=True)),
    "hinge": (None, "hinge"),
    "graph": ("sigmoid", "mse"),
    "hard": ("hard_sigmoid", "binary_crossentropy"),
}
OF_CLASSES = {
    "soft targets": LogitsDistillation(2.0),
    "crossentropy": LogitsDistillation(2.0, loss="categorical_crossentropy"),
    "decoupled": tfkd.losses.DecoupledDistillation(2.0),
    "pearson": tfkd.losses.PearsonDistillation(2.0),
    "transformed": tfkd.losses.TransformedTeacherMatching(2.0),
}
LABELS = np.ones((16, 3), np.float32)


def words_of_labels(teacher, student, term, loss, y=LABELS, x=X, evaluate=True):
    """The logs of `evaluate`, and the warnings of independent labels."""
    distiller = tfkd.Distiller(teacher, student, term, student_loss_weight=0.1)
    distiller.compile("sgd", loss)
    found, words = said(lambda: distiller.evaluate(x, y, verbose=0, return_dict=True))
    again = said(lambda: distiller.evaluate(x, y, verbose=0))[1]
    assert not again  # once is enough
    return found, [one for one in words if "independent labels" in one]


@pytest.mark.parametrize("case", COMPILED)
def test_independent_labels_are_not_compared_as_classes_in_silence(case):
    last, loss = COMPILED[case]
    found, words = words_of_labels(
        shifted(last), shifted(last, 1.0), OF_CLASSES["soft targets"], loss
    )
    if case not in ("hard", "graph"):
        np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-4)  # it is blind
    assert len(words) == 1 and 'Pass loss="binary_crossentropy"' in words[0]
    told = {"sigmoid": "it ends in sigmoids", "hard_sigmoid": "is binary_crossentropy"}
    assert told.get(last, "the loss given to `compile` is") in words[0]
    found, words = words_of_labels(shifted(last), shifted(last, 1.0), BINARY, loss)
    assert not words and found["distillation_loss"] > 0.01


@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name != "soft targets"])
def test_every_loss_on_classes_tells_that_labels_need_another(name):
    models, loss = (shifted("sigmoid"), shifted("sigmoid", 1.0)), "binary_crossentropy"
    y = np.eye(3, dtype="float32")[Y]
    _, words = words_of_labels(*models, OF_CLASSES[name], loss, y)
    option = name == "crossentropy"
    fix = (
        "to LogitsDistillation" if option else 'use LogitsDistillation(loss="binary_crossentropy")'
    )
    assert len(words) == 1 and fix in words[0]


def test_classes_of_which_one_is_true_are_compared_as_such():
    """Also those trained by binary_crossentropy, and losses that need no softmax."""
    one_hot = np.eye(3, dtype="float32")[Y]
    x = keras.Input((5,))
    hand = keras.Model(x, by_hand(net(seed=2)(x)))
    unit = lambda seed: net(seed=seed, classes=1, last="sigmoid")  # noqa: E731
    kl, bce = OF_CLASSES["soft targets"], BCE(from_logits=True)
    for teacher, student, term, loss, y in (
        (net(last="softmax"), net(seed=2, last="softmax"), kl, "binary_crossentropy", one_hot),
        (net(last="softmax"), net(seed=2), kl, bce, one_hot),
        (net(last="softmax"), hand, kl, "binary_crossentropy", one_hot),
        (net(last="sigmoid"), net(seed=2), kl, CROSSENTROPY, Y),
        (net(), net(seed=2), LogitsDistillation(2.0, loss="mse"), bce, one_hot),
        (net(), net(seed=2), tfkd.losses.ExpectedErrorLoss(), bce, one_hot),
        (unit(1), unit(2), BINARY, "binary_crossentropy", np.float32(Y > 0)),
    ):
        assert not words_of_labels(teacher, student, term, loss, y)[1]


def test_a_teacher_or_a_declaration_tells_of_labels_without_a_loss_on_them(tmp_path):
    teacher, soft = net(last="sigmoid"), LogitsDistillation(2.0)
    function = tfkd.losses.declare_outputs(lambda x: teacher(x), "sigmoid")
    for one in (teacher, function):
        _, words = evaluated(one, net(seed=2), soft)
        assert len(words) == 1 and "its teacher ends in sigmoids" in words[0]
    for top_k in (None, 2):
        cache = TeacherCache.build(
            tmp_path / str(top_k), teacher, X, top_k=top_k, temperature=top_k, progress=False
        )
        distiller = tfkd.Distiller(cache, net(seed=2), soft, None, 0.0)
        distiller.compile("sgd")
        batches = cache.batches(X, Y, batch_size=16)
        _, words = said(lambda d=distiller, b=batches: d.fit(b, steps_per_epoch=1, verbose=0))
        assert len(words) == 1 and "independent labels" in words[0]
    # The mean of several teachers is one of classes, too, whatever compares it.
    several = LogitsDistillation(2.0, loss="mse")
    _, words = evaluated([teacher, net(seed=3, last="sigmoid")], net(seed=2), several)
    assert len(words) == 1 and "averages its teachers by a softmax" in words[0]


def test_labels_are_found_in_each_output():
    """A dict whose keys are not the names of the layers, and a list."""

    def model(seed, form):
        x = keras.Input((5,))
        tags, kind, flag = L.Dense(3, name="a")(x), L.Dense(3, name="b")(x), L.Dense(1)(x)
        outputs = {"tags": tags, "kind": kind, "flag": flag}
        return toys.randomize(keras.Model(x, form(outputs)), seed)

    bce = BCE(from_logits=True)
    losses = {"tags": bce, "kind": CROSSENTROPY, "flag": bce}
    kl, labels = "kl_divergence", {"tags": LABELS, "kind": Y, "flag": Y > 0}
    right = {"tags": "binary_crossentropy", "kind": kl, "flag": None}
    wrong = {**right, "tags": kl}
    for form, place in ((dict, 2), (lambda outputs: list(outputs.values()), 0)):
        models = (model(1, form), model(2, form))
        y = form({name: np.float32(value) for name, value in labels.items()})
        for terms, count in ((wrong, 1), (right, 0)):
            term = LogitsDistillation(2.0, loss=form(terms))
            _, words = words_of_labels(*models, term, form(losses), y)
            assert len(words) == count
            assert not words or words[0].startswith(f"student, output {place}: ")
    # Only one output has a loss on labels: it is not taken for that of all.
    term = LogitsDistillation(2.0, loss={**wrong, "tags": None})
    assert not words_of_labels(model(1, dict), model(2, dict), term, {"tags": bce}, labels)[1]


SAME_ENDS = {
    "tanh": lambda: L.Activation("tanh"),
    "relu": L.ReLU,
    "scaled": lambda: L.Lambda(lambda z: 0.9 * tf.sigmoid(z)),
    "average": lambda: lambda z: L.Average()([tf.sigmoid(z), tf.sigmoid(2 * z)]),
    "compiled": lambda: L.Lambda(tf.function(lambda z: tf.sigmoid(z), autograph=False)),
    "softplus": lambda: L.Activation("softplus"),
}


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("end", SAME_ENDS)
def test_a_copy_of_the_student_is_read_as_the_student_is(end, units):
    def model():
        x = keras.Input((4,))
        z = L.Dense(units, kernel_initializer=keras.initializers.Constant(0.1))(x)
        return keras.Model(x, SAME_ENDS[end]()(z))

    x = np.abs(np.random.default_rng(0).normal(size=(32, 4))).astype(np.float32)
    y = np.arange(32) % (2 if units == 1 else 3)
    cls = BCE if units == 1 else keras.losses.SparseCategoricalCrossentropy
    term = LogitsDistillation(4.0, loss="binary_crossentropy" if units == 1 else "kl_divergence")
    for from_logits in (True, False):
        for teacher in (model(), [model(), model()]):
            distiller = tfkd.Distiller(teacher, model(), term, student_loss_weight=0.1)
            distiller.compile("sgd", cls(from_logits=from_logits))
            found, words = said(lambda d=distiller: d.evaluate(x, y, verbose=0, return_dict=True))
            np.testing.assert_allclose(found["distillation_loss"], 0.0, atol=1e-5)
            # What is said of one is said of all.
            assert len({one.split(":", 1)[1] for one in words}) == len(words) / (
                1 + len(distiller._teacher_feature_extractor.taps)
            )
            assert not (words and from_logits and end in ("tanh", "softplus"))


def test_values_of_either_model_show_what_an_end_in_common_returns():
    """A teacher of large values and a student that still returns small ones, of one form."""

    def model(kernel):
        x = keras.Input((4,))
        start = keras.initializers.Constant(kernel)
        return keras.Model(x, L.ReLU()(L.Dense(1, kernel_initializer=start)(x)))

    x = np.abs(np.random.default_rng(0).normal(size=(32, 4))).astype(np.float32)
    term = LogitsDistillation(2.0, loss="binary_crossentropy")
    for kernels in ((2.0, 0.05), (0.05, 2.0)):
        teacher, student = map(model, kernels)
        found, words = evaluated(teacher, student, term, x)
        expected = bernoulli(teacher(x), student(x), 2.0).mean()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert not words
    # A declaration of one holds for its copy, too.
    declared = tfkd.losses.declare_outputs(model(0.05), "logits")
    for pair in ((declared, model(0.02)), (model(0.02), declared)):
        declared.trainable = True
        found, words = evaluated(*pair, term, x)
        expected = bernoulli(*(one(x) for one in pair), 2.0).mean()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert not words


def test_ends_that_differ_inside_a_function_are_told_apart():
    def model(function):
        x = keras.Input((4,))
        z = L.Dense(1, kernel_initializer="ones")(x)
        return keras.Model(x, L.Lambda(tf.function(function, autograph=False))(z))

    x = np.abs(np.random.default_rng(0).normal(size=(32, 4))).astype(np.float32)
    teacher, student = model(lambda z: tf.sigmoid(z)), model(lambda z: tf.nn.relu(z))
    found, words = evaluated(teacher, student, LogitsDistillation(2.0, "binary_crossentropy"), x)
    z = x.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, bernoulli(z, z, 2.0).mean(), atol=1e-4)
    assert len(words) == 1 and words[0].startswith("teacher: the graph does not show a sigmoid")


def test_only_what_a_loss_reads_is_looked_at():
    """A dict of outputs: classes by hand, and a box in [0, 1] that no score is."""

    def model(seed):
        scores = net(seed=seed)
        box = L.Lambda(tf.function(tf.sigmoid, autograph=False))(scores.output)
        return keras.Model(scores.input, {"box": box, "class": by_hand(scores.output)})

    teacher, student = model(1), model(2)
    loss = LogitsDistillation(2.0, loss={"box": None, "class": "kl_divergence"})
    found, words = evaluated(teacher, student, loss)
    expected = toys.soft_targets(net(seed=1)(X), net(seed=2)(X), 2.0).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert [w.split(":")[0] for w in words] == ["student, output 1", "teacher, output 1"]
    decoupled = tfkd.losses.DecoupledDistillation(2.0, output="class")
    distiller = tfkd.Distiller(teacher, student, decoupled)
    distiller.compile("sgd", {"box": "mse", "class": "sparse_categorical_crossentropy"})
    labels = {"box": np.zeros((16, 3), np.float32), "class": Y}
    assert len(said(lambda: distiller.evaluate(X, labels, verbose=0))[1]) == 2


def test_it_is_decided_once_and_no_step_tests_values():
    runs = tf.Variable(0)

    def teacher(x):
        runs.assign_add(1)
        return by_hand(net_(x))

    net_ = net(seed=1)
    distiller = tfkd.Distiller(teacher, net(seed=2), LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    options = {"validation_data": (X, Y), "epochs": 2, "batch_size": 8, "verbose": 0}
    _, words = said(lambda: distiller.fit(X, Y, **options))
    assert len(words) == 1
    # To decide, to measure the distance before the first epoch, and in each step.
    assert runs.numpy() == 1 + 1 + 2 * (2 + 2)
    batches = iter(tf.data.Dataset.from_tensors((X, Y)))
    graph = distiller.test_function.get_concrete_function(batches).graph
    types = {op.type for op in graph.get_operations()}
    types |= {n.op for f in graph.as_graph_def().library.function for n in f.node_def}
    assert "All" not in types and "Square" not in types
    expected = toys.soft_targets(net_(X), distiller.student(X), 2.0).mean()
    # Batches and arrays of which nothing was seen before.
    for call in (distiller.test_on_batch, distiller.evaluate):
        fresh = tfkd.Distiller(teacher, distiller.student, LogitsDistillation(2.0), None, 0.0)
        fresh.compile("sgd")
        found = call.__func__(fresh, X, return_dict=True)["logits_distillation"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_student_learns_the_same_under_a_strategy_and_in_many_steps_at_once(two_replicas):
    def student():
        x, p, q = two(2)
        return keras.Model(x, L.Average()([p, q]))

    weights, losses = [], []
    for how in ("plain", "mirrored"):
        strategy = two_replicas if how == "mirrored" else tf.distribute.get_strategy()
        with strategy.scope():
            model = student()
            distiller = tfkd.Distiller(net(seed=1), model, LogitsDistillation(2.0), None, 0.5)
            steps = 2 if how == "mirrored" else 1
            loss = "sparse_categorical_crossentropy"
            distiller.compile(keras.optimizers.SGD(0.5), loss, steps_per_execution=steps)
        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()
        found = said(lambda d=distiller, b=dataset: d.fit(b, steps_per_epoch=2, verbose=0))
        losses.append(logs(found[0])["logits_distillation"])
        weights.append(model.get_weights())
        assert len(found[1]) == 1
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_loaded_distiller_decides_again(tmp_path):
    x, p, q = two()
    teacher = keras.Model(x, L.Average()([p, q]))
    distiller = tfkd.Distiller(teacher, net(seed=2), LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    before = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    after, words = said(lambda: loaded.evaluate(X, Y, verbose=0, return_dict=True))
    assert len(words) == 1
    np.testing.assert_allclose(after["logits_distillation"], before["logits_distillation"])
    mean = (keras.Model(x, p)(X).numpy() + keras.Model(x, q)(X).numpy()) / 2
    expected = toys.soft_targets(np.log(mean), net(seed=2)(X), 2.0).mean()
    np.testing.assert_allclose(after["logits_distillation"], expected, rtol=1e-5)


def test_the_loss_on_labels_knows_what_was_decided():
    """The expected error of one unit behind a compiled function, which shows nothing."""
    logit = net(seed=2, classes=1)
    unit = keras.Model(
        logit.input, L.Lambda(tf.function(tf.sigmoid, autograph=False))(logit.output)
    )
    distiller = tfkd.Distiller(net(seed=1, classes=1), unit, BINARY)
    distiller.compile("sgd", tfkd.losses.ExpectedErrorLoss())
    y = (Y > 0).astype("float32")
    found, words = said(lambda: distiller.evaluate(X, y, verbose=0, return_dict=True))
    p = np.float64(unit(X))[:, 0]
    np.testing.assert_allclose(found["student_loss"], 1 - np.where(y, p, 1 - p).mean(), rtol=1e-5)
    kd = bernoulli(net(seed=1, classes=1)(X), logit(X), 2.0).mean()
    np.testing.assert_allclose(found["logits_distillation"], kd, rtol=1e-4)
    assert len(words) == 1


def test_caches_difficulties_damage_and_checks_read_heads_alike(tmp_path):
    """Two layers averaged in one model against what its probabilities say."""
    x, p, q = two()
    teacher = keras.Model(x, L.Average()([p, q]))
    mean = np.float64(teacher(X))
    expected = toys.soft_targets(np.log(mean), net(seed=2)(X), 2.0).mean()
    built = lambda: TeacherCache.build(tmp_path / "a", teacher, X, dtype="float32", progress=False)  # noqa: E731
    cache, words = said(built)
    assert len(words) == 1
    given = lambda **kind: TeacherCache.from_predictions(  # noqa: E731
        tmp_path / f"b{kind}", teacher(X).numpy(), X, source="s", dtype="float32", **kind
    )
    predicted, words = said(given)
    assert len(words) == 1 and 'Pass activation="softmax"' in words[0].replace("'", '"')
    for stored in (cache, predicted):
        distiller = tfkd.Distiller(stored, net(seed=2), LogitsDistillation(2.0))
        distiller.compile("sgd", CROSSENTROPY)
        batches = stored.batches(X, Y, batch_size=16)
        found = distiller.evaluate(batches, steps=1, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["logits_distillation"], expected, rtol=1e-5)
    scores, words = said(lambda: difficulty.teacher_loss(teacher, X, Y, progress=False).scores)
    np.testing.assert_allclose(scores, -np.log(mean[np.arange(16), Y]), rtol=1e-5)
    assert len(words) == 1
    check = tfkd.callbacks.TeacherCheck((X, Y), margin=1.0)
    distiller = tfkd.Distiller([net(seed=1, last="softmax"), teacher], net(seed=2), BINARY)
    distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    history = distiller.fit(X, Y, verbose=0, callbacks=[check]).history
    both = (np.float64(net(seed=1, last="softmax")(X)) + mean) / 2
    assert history["teacher_score"] == pytest.approx([np.mean(both.argmax(-1) == Y)])


def test_a_cache_of_probabilities_in_the_place_of_scores_is_found(tmp_path):
    """As earlier versions wrote them."""
    p = np.exp(toys.log_softmax(net(seed=1)(X))).astype(np.float32)
    options = {"source": "s", "dtype": "float32"}
    stored = TeacherCache.from_predictions(tmp_path, p, X, activation="linear", **options)
    assert stored.layout.finals[0].squash is None  # the user has said so
    document = tmp_path / "cache.json"
    assert '"activation"' in document.read_text()
    object.__setattr__(stored._document, "settings", {"source": "s", "dtype": "float32"})
    layout, words = said(stored._with_inferred_kinds)
    assert layout.finals[0].squash == "Probability" and "Build it again" in words[0]
    stored.layout = layout
    distiller = tfkd.Distiller(stored, net(seed=2), LogitsDistillation(2.0))
    distiller.compile("sgd", CROSSENTROPY)
    batches = stored.batches(X, Y, batch_size=16)
    found = distiller.evaluate(batches, steps=1, verbose=0, return_dict=True)
    expected = toys.soft_targets(net(seed=1)(X), net(seed=2)(X), 2.0).mean()
    np.testing.assert_allclose(found["logits_distillation"], expected, rtol=1e-5)


def test_damage_is_measured_in_scores():
    """A residual classifier whose softmax stands before a clip."""

    def model(clipped):
        x = keras.Input((4,))
        y = x
        for name in "ab":
            y = L.Add(name=f"add_{name}")([y, L.Dense(4, "tanh", name=f"dense_{name}")(y)])
        p = L.Dense(3, "softmax", name="scores")(y)
        return toys.randomize(keras.Model(x, tf.clip_by_value(p, 1e-7, 1.0) if clipped else p), 0)

    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    found = [
        tfkd.pruning.choose_layers(model(clipped), 1, "damage", x).scores
        for clipped in (False, True)
    ]
    assert list(found[0]) == list(found[1])
    np.testing.assert_allclose(list(found[1].values()), list(found[0].values()), rtol=1e-3)
