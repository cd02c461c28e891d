"""Labels and sample weights of other forms, other ranks and other kinds, through `fit`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import losses

L = keras.layers
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
N, C = 8, 3
RNG = np.random.default_rng(7)
X = RNG.normal(size=(N, 5)).astype("float32")
Y = np.arange(N) % C
W = RNG.uniform(0.2, 2, N).astype("float32")


def net(units=C):
    i = keras.Input((5,))
    return keras.Model(i, L.Dense(units)(i))


def distiller(*terms, loss=SPARSE, weight=0.5, units=C, **options):
    terms = list(terms) or [losses.LogitsDistillation(2.0)]
    made = tfkd.Distiller(net(units), net(units), terms, student_loss_weight=weight)
    made.compile(keras.optimizers.SGD(0.0), loss, **options)
    return made


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forms(y):
    """Labels in each of the usual forms."""
    return {"(N,)": y, "(N, 1)": y[:, None], "one-hot": np.eye(C, dtype=y.dtype)[y]}


def logs(made, x, y, w=None, **options):
    """Logs of fit and evaluate: learning is off, so that they agree."""
    history = made.fit(x, y, sample_weight=w, verbose=0, **options).history
    fitted = {name: values[0] for name, values in history.items()}
    seen = made.evaluate(x, y, sample_weight=w, verbose=0, return_dict=True)
    for name, value in seen.items():
        assert fitted[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    return seen


# What NumPy says each loss is, from logits of teacher and student.


def crossentropy(made):
    return -np.log(softmax(made.student.predict(X, verbose=0))[np.arange(N), Y])


def expected_error(made):
    return 1 - softmax(made.student.predict(X, verbose=0))[np.arange(N), Y]


def soft_targets(made):
    t, s = (m.predict(X, verbose=0) / 2.0 for m in (made.teacher, made.student))
    return 4.0 * (softmax(t) * np.log(softmax(t) / softmax(s))).sum(-1)


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        ((Y, Y[:, None]), (W, W[:, None])),
        pytest.param((Y[:, None], Y), (W[:, None], W), marks=pytest.mark.slow),
        pytest.param((Y, Y), (W, W[:, None]), marks=pytest.mark.slow),
        ((Y[:, None], Y), (None, W)),
    ],
)
def test_ranks_that_change_from_one_fit_to_the_next(labels, weights):
    made = distiller(losses.LogitsDistillation(2.0), losses.ExpectedErrorLoss(),
                     metrics=["accuracy"], weighted_metrics=["accuracy"])  # fmt: skip
    hits = made.student.predict(X, verbose=0).argmax(-1) == Y
    for y, w in zip(labels, weights, strict=True):
        seen = logs(made, X, y, w)
        flat = np.ones(N) if w is None else w.reshape(-1)
        assert seen["student_loss"] == pytest.approx(np.mean(flat * crossentropy(made)), rel=1e-4)
        assert seen["logits_distillation"] == pytest.approx(
            np.mean(flat * soft_targets(made)), rel=1e-4
        )
        assert seen["expected_error_loss"] == pytest.approx(
            np.mean(flat * expected_error(made)), rel=1e-4
        )
        assert seen["accuracy"] == pytest.approx(hits.mean())


def test_every_form_of_labels_after_every_other():
    """Without a loss on the labels of Keras's, which takes but one form."""
    terms = [losses.ExpectedErrorLoss(), losses.DecoupledDistillation()]
    made = distiller(*terms, loss=None, weight=0)
    seen = []
    a, b, c = forms(Y)
    for form in (a, b, c, a, c, b, a):  # each of the six ordered pairs once
        kwargs = {"sample_weight": W, "verbose": 0, "return_dict": True}
        seen.append(made.evaluate(X, forms(Y)[form], **kwargs))
        assert seen[-1] == pytest.approx(seen[0], rel=1e-5)
    assert seen[0]["expected_error_loss"] == pytest.approx(
        np.mean(W * expected_error(made)), rel=1e-4
    )


@pytest.mark.parametrize(("form", "column"), [("(N,)", True), ("(N, 1)", False), ("one-hot", True)])
def test_data_sets_without_shapes(form, column):
    """A generator that says nothing of the ranks of labels and weights."""
    w = W[:, None] if column else W
    kinds = (tf.float32, tf.int64, tf.float32)
    data = tf.data.Dataset.from_generator(
        lambda: iter([(X, forms(Y)[form], w)] * 2), kinds, ((None, 5), None, None)
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if form == "one-hot" else SPARSE
    made = distiller(losses.LogitsDistillation(2.0), losses.ExpectedErrorLoss(), loss=loss,
                     metrics=["accuracy"])  # fmt: skip
    seen = made.evaluate(data, verbose=0, return_dict=True)
    assert seen["student_loss"] == pytest.approx(np.mean(W * crossentropy(made)), rel=1e-4)
    assert seen["expected_error_loss"] == pytest.approx(np.mean(W * expected_error(made)), rel=1e-4)
    assert np.isfinite(made.fit(data, verbose=0).history["loss"]).all()
    own = distiller(losses.DecoupledDistillation(), loss=losses.ExpectedErrorLoss())
    seen = own.evaluate(data, verbose=0, return_dict=True)
    assert seen["student_loss"] == pytest.approx(np.mean(W * expected_error(own)), rel=1e-4)


def test_one_score_and_targets_of_other_ranks():
    y = (np.arange(N) % 2).astype("float32")
    bce = keras.losses.BinaryCrossentropy(from_logits=True)
    made = distiller(losses.ExpectedErrorLoss(), loss=bce, units=1, metrics=["accuracy"])
    z = made.student.predict(X, verbose=0)[:, 0]
    want = np.mean(W * np.log1p(np.exp(-np.where(y > 0, z, -z))))
    for labels, w in ((y, W), (y[:, None], W[:, None])):
        assert logs(made, X, labels, w)["student_loss"] == pytest.approx(want, rel=1e-4)
    mse = distiller(losses.BoundedRegression(), loss="mse", units=1)
    z = mse.student.predict(X, verbose=0)[:, 0]
    for labels in (y, y[:, None]):
        seen = mse.evaluate(X, labels, verbose=0, return_dict=True)
        assert seen["student_loss"] == pytest.approx(np.mean((z - y) ** 2), rel=1e-4)


def test_targets_that_fit_no_known_rank_are_refused_in_words():
    made = distiller()
    made.fit(X, Y, verbose=0)
    rows = np.eye(C, dtype=Y.dtype)[Y]
    with pytest.raises(ValueError, match="`y`: expected class numbers, without the axis"):
        made.fit(X, rows, verbose=0)
    forms = (tf.TensorSpec(X.shape, X.dtype), tf.TensorSpec(None, Y.dtype))
    batches = tf.data.Dataset.from_generator(lambda: [(X, rows)], output_signature=forms)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="`y`: expected targets"):
        made.fit(batches, verbose=0)


# Weights of positions.


def segmenter():
    return keras.Sequential([
        keras.Input((8, 8, 3)), L.Conv2D(4, 3, padding="same", name="same"),
        L.Conv2D(4, 3, strides=2, padding="same", name="half"), L.UpSampling2D(), L.Conv2D(C, 1),
    ])  # fmt: skip


TERMS = {
    "attention": lambda: losses.AttentionTransfer("same", "same"),
    "relations": losses.RelationalDistillation,
    "half": lambda: losses.FeatureDistillation("mse", "half", "half"),
}


@pytest.mark.parametrize("name", TERMS)
def test_weights_of_pixels_beside_losses_of_examples_and_of_other_places(name):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4, 8, 8, 3)).astype("float32"), rng.integers(0, C, (4, 8, 8))
    w = rng.uniform(size=(4, 8, 8)).astype("float32")
    teacher, student = segmenter(), segmenter()
    made = tfkd.Distiller(teacher, student, TERMS[name](), student_loss_weight=0.5)
    made.compile(keras.optimizers.SGD(0.0), SPARSE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = logs(made, x, y, w)
    said = [str(one.message) for one in caught if "the mean of each example's" in str(one.message)]
    assert len(said) == 1 and made.distillation_losses[0].name in said[0]
    p = np.take_along_axis(softmax(student.predict(x, verbose=0)), y[..., None], -1)[..., 0]
    assert seen["student_loss"] == pytest.approx(np.mean(-np.log(p) * w), rel=1e-4)
    # The same by weights of examples, of a Distiller whose loss on the labels is left out.
    plain = tfkd.Distiller(teacher, student, TERMS[name](), student_loss_weight=0)
    plain.compile(keras.optimizers.SGD(0.0))
    want = logs(plain, x, y, w.mean((1, 2)))[plain.distillation_losses[0].name]
    assert seen[made.distillation_losses[0].name] == pytest.approx(want, rel=1e-4)


def test_weights_of_pixels_where_a_loss_has_pixels_are_not_averaged():
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(4, 8, 8, 3)).astype("float32"), rng.uniform(size=(4, 8, 8))
    teacher, student = segmenter(), segmenter()
    made = tfkd.Distiller(teacher, student, losses.LogitsDistillation(1.0), student_loss_weight=0)
    made.compile(keras.optimizers.SGD(0.0))
    p, q = (softmax(m.predict(x, verbose=0)) for m in (teacher, student))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = logs(made, x, np.zeros(4), w)
    want = np.mean((p * np.log(p / q)).sum(-1) * w)
    assert seen["logits_distillation"] == pytest.approx(want, rel=1e-3)


def test_weights_without_labels_are_refused_and_the_way_out_works():
    """Keras drops them without a word."""
    made = distiller(loss=None, weight=0)
    for call in (made.fit, made.evaluate):
        with pytest.raises(ValueError, match="`sample_weight`.*none without labels.*np.zeros"):
            call(X, sample_weight=W, verbose=0)
    seen = logs(made, X, np.zeros(N), W)
    assert seen["logits_distillation"] == pytest.approx(np.mean(W * soft_targets(made)), rel=1e-4)


# Labels that are no numbers.


TEXT = np.array(["a", "b", "c"])[Y]
NO_NUMBERS = {
    "text": (TEXT, "not text.*np.unique"),
    "bytes": (TEXT.astype("S"), "not text.*np.unique"),
    "text as objects": (TEXT.astype(object), "not text.*np.unique"),
    "column": (TEXT[:, None], "not text.*np.unique"),
    "list": (list(TEXT), "not text.*np.unique"),
    "tensor": (tf.constant(TEXT), "not text.*np.unique"),
    "numbers as objects": (Y.astype(object), "not objects.*tolist"),
    "missing": (np.array([None] * N), "not objects"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_labels_that_are_no_numbers_are_refused_before_anything_runs(name):
    y, said = NO_NUMBERS[name]
    made = distiller()
    for call in (made.fit, made.evaluate):
        with pytest.raises(TypeError, match=f"`y`: expected numbers, {said}"):
            call(X, y, verbose=0)
    with pytest.raises(TypeError, match="`y`: expected numbers"):
        made.fit(X, Y, validation_data=(X, y), verbose=0)


def test_the_way_out_that_is_named():
    names, numbers = np.unique(TEXT, return_inverse=True)
    assert [names[number] for number in numbers] == list(TEXT)
    distiller().evaluate(X, numbers, verbose=0)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", SPARSE,
                                  keras.losses.categorical_crossentropy,
                                  losses.ExpectedErrorLoss()])  # fmt: skip
def test_text_in_data_sets_and_generators(loss):
    data = tf.data.Dataset.from_tensor_slices((X, TEXT)).batch(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = distiller(loss=loss)
    with pytest.raises(TypeError, match="`y`: expected numbers, not text"):
        made.fit(data, verbose=0)
    with pytest.raises(TypeError, match="`y`: expected numbers, not text"):
        made.fit(iter([(X, TEXT)]), verbose=0)


def test_text_in_weights():
    with pytest.raises(TypeError, match="`sample_weight`: expected numbers, not text.*astype"):
        distiller().fit(X, Y, sample_weight=TEXT, verbose=0)


@pytest.mark.parametrize("term", [losses.ExpectedErrorLoss, losses.DecoupledDistillation])
def test_text_where_a_distillation_loss_alone_reads_it(term):
    with pytest.raises(TypeError, match="`y`: expected class numbers.*np.unique"):
        distiller(term(), loss=None, weight=0).fit(X, TEXT, verbose=0)


def test_a_loss_of_ones_own_may_read_text():
    def loss(y, scores):
        numbers = tf.strings.unicode_decode(y, "UTF-8").to_tensor()[:, 0] - ord("a")
        return keras.losses.sparse_categorical_crossentropy(numbers, scores, from_logits=True)

    made = distiller(loss=loss)
    seen = logs(made, X, TEXT)
    assert seen["student_loss"] == pytest.approx(np.mean(crossentropy(made)), rel=1e-4)


def test_scores_of_difficulty_refuse_text_with_the_way_out():
    for y in (TEXT, TEXT.astype(object), Y.astype(object)):
        with pytest.raises(
            TypeError, match=r"`labels`: expected 8 class numbers.*np\.unique.*astype"
        ):
            tfkd.curriculum.difficulty.teacher_loss(net(), X, y, progress=False)


def test_labels_beside_a_cache(tmp_path):
    """Ranks that change, and what is no number, in the batches of a TeacherCache."""
    cache = tfkd.TeacherCache.build(tmp_path / "cache", net(), X)
    made = tfkd.Distiller(cache, net(), losses.LogitsDistillation(2.0), student_loss_weight=0.5)
    made.compile(keras.optimizers.SGD(0.0), SPARSE)
    want = pytest.approx(np.mean(W * crossentropy(made)), rel=1e-3)
    for y, w in ((Y, W), (Y[:, None], W[:, None])):
        batches = cache.batches(X, y, N, sample_weight=w, epochs=1)
        assert made.fit(batches, verbose=0).history["student_loss"][0] == want
    with pytest.raises(TypeError, match="`y`: expected numbers, not text"):
        made.fit(cache.batches(X, TEXT, 4, epochs=1), verbose=0)
    with pytest.raises(TypeError, match="`y`: expected numbers, not objects"):
        cache.batches(X, Y.astype(object), 4)
    with pytest.raises(TypeError, match="`sample_weight`: expected numbers, not text"):
        cache.batches(X, Y, 4, sample_weight=TEXT)
