"""The forms in which examples may be given: all give the same arrays, everywhere."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkd
from tfkd import example_inputs
from tfkd.curriculum import difficulty
from tfkd.example_inputs import ENDLESS, Input
from tfkd.export import checking
from tfkd.export.named_function import NamedFunction
from tfkd.formats.litert import Port
from tfkd.pruning.blocks.scores import read
from tfkd.report.compare import _labelled
from tfkd.runtime.inputs import arrays_for

L = keras.layers
FLOATS = Input("x", (4,), np.dtype("float32"))
PAIR = (Input("a", (2,), np.dtype("float32")), Input("b", (3,), np.dtype("float32")))


class Sequence(keras.utils.Sequence):
    """Batches as Keras's own."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Items:
    """What a PyDataset of Keras 3 has: a length and items, and no end of itself."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


def cut(size, *arrays):
    starts = range(0, len(arrays[0]), size)
    return [tuple(array[start : start + size] for array in arrays) for start in starts]


def dataset(parts, size):
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


# Form → (x, y, weights, size of a batch) → data; those with labels by themselves.
PLAIN = {
    "array": lambda x, y, w, size: x,
    "tensor": lambda x, y, w, size: tf.constant(x),
    "dict": lambda x, y, w, size: {"x": x},
    "batches": lambda x, y, w, size: [one for (one,) in cut(size, x)],
    "data set": lambda x, y, w, size: dataset(x, size),
    "data set of dicts": lambda x, y, w, size: dataset({"x": x}, size),
}
LABELLED = {
    "pair": lambda x, y, w, size: (x, y),
    "weighted": lambda x, y, w, size: (x, y, w),
    "dict with labels": lambda x, y, w, size: ({"x": x}, y),
    "batches with labels": lambda x, y, w, size: cut(size, x, y),
    "data set with labels": lambda x, y, w, size: dataset((x, y), size),
    "data set with weights": lambda x, y, w, size: dataset((x, y, w), size),
    "sequence": lambda x, y, w, size: Sequence(cut(size, x, y)),
    "items": lambda x, y, w, size: Items(cut(size, x, y)),
    "generator": lambda x, y, w, size: (part for part in cut(size, x, y)),
    "iterator of a data set": lambda x, y, w, size: iter(dataset((x, y), size)),
}
ENDLESS_FORMS = {
    "endless data set": lambda x, y, w, size: dataset((x, y), size).repeat(),
    "endless generator": lambda x, y, w, size: itertools.cycle(cut(size, x, y)),
}
FORMS = {**PLAIN, **LABELLED}


@st.composite
def examples(draw, forms=FORMS, least=1):
    """(x, y, size of a batch, data in some form)."""
    count, size = draw(st.integers(least, 9)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(count, 4)).astype("float32")
    y, w = rng.integers(0, 3, count), np.ones(count, "float32")
    return x, y, size, forms[draw(st.sampled_from(sorted(forms)))](x, y, w, size)


few = settings(max_examples=40, deadline=None)


def dense():
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(3, name="y")])
    model.set_weights([np.linspace(-1, 1, 12).reshape(4, 3), np.zeros(3)])
    return model


@pytest.fixture(scope="module")
def graph():
    return NamedFunction(dense())


@few
@given(examples())
def test_all_forms_give_the_same_batches(made):
    x, _, size, data = made
    found = list(example_inputs.batches("data", data, [FLOATS], batch_size=size))
    assert [len(batch.x["x"]) for batch in found] == [len(part) for (part,) in cut(size, x)]
    np.testing.assert_array_equal(np.concatenate([batch.x["x"] for batch in found]), x)


@few
@given(examples(ENDLESS_FORMS), st.integers(1, 20))
def test_max_examples_ends_what_has_no_end(made, count):
    x, _, _, data = made
    found = example_inputs.collect("data", data, [FLOATS], max_examples=count)["x"]
    np.testing.assert_array_equal(found, np.concatenate([x] * 20)[:count])


@few
@given(examples(LABELLED))
def test_labels_stay_with_their_examples(made):
    x, y, _, data = made
    found = example_inputs.arrays("data", data)
    rows = found.x["x"] if isinstance(found.x, dict) else found.x
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(found.y, y)


@pytest.fixture(scope="module")
def quantized():
    return tfkd.quantization.quantize(dense())


@pytest.fixture(scope="module")
def normed():
    return keras.Sequential([keras.Input((4,), name="x"), L.BatchNormalization()])


def test_calibrate(quantized):
    @few
    @given(examples())
    def same(made):
        x, _, _, data = made
        tfkd.quantization.calibrate(quantized, x)
        expected = quantized.ranges
        tfkd.quantization.calibrate(quantized, 2 * x + 1)
        tfkd.quantization.calibrate(quantized, data)
        assert quantized.ranges == expected

    same()


def test_recalibrate(normed):
    @few
    @given(examples())
    def same(made):
        x, _, size, data = made
        parts = [part for (part,) in cut(size, x)]
        assert tfkd.pruning.recalibrate(normed, data, batch_size=size) == len(parts)
        mean = np.mean([part.mean(0) for part in parts], 0)
        np.testing.assert_allclose(normed.layers[-1].moving_mean, mean, rtol=1e-4, atol=1e-6)

    same()


def test_verify(graph):
    @few
    @given(examples(least=2))
    def same(made):
        x, _, _, data = made
        found = checking.examples(data, graph)
        assert found.source == checking.GIVEN
        np.testing.assert_array_equal(found.arrays["x"], x)

    same()


@few
@given(examples())
def test_scores_of_layers(made):
    x, y, size, data = made
    found = list(read(dense(), data, batch_size=size))
    np.testing.assert_array_equal(np.concatenate([inputs[0] for inputs, _ in found]), x)
    if found[0][1] is not None:
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in found]), y)


@few
@given(examples(), st.booleans())
def test_predictors(made, quantized):
    x, _, _, data = made
    port = Port("x", (-1, 4), np.dtype("int8" if quantized else "float32"), 0.5, 3, 0)
    expected = np.clip(np.rint(x / np.float32(0.5)) + 3, -128, 127) if quantized else x
    np.testing.assert_array_equal(arrays_for([port], data)[0], expected)


def probabilities(model, x):
    scores = np.exp(x.astype("float64") @ model.get_weights()[0])
    return scores / scores.sum(1, keepdims=True)


def test_difficulty():
    teacher = dense()

    @settings(max_examples=8, deadline=None)
    @given(examples())
    def same(made):
        x, _, _, data = made
        found = difficulty.teacher_entropy(teacher, data, progress=False)
        p = probabilities(teacher, x)
        np.testing.assert_allclose(found.scores, -(p * np.log(p)).sum(1), rtol=1e-4)

    same()


def test_difficulty_with_the_labels_of_data():
    teacher = dense()

    @settings(max_examples=8, deadline=None)
    @given(examples(LABELLED))
    def same(made):
        x, y, _, data = made
        found = difficulty.teacher_loss(teacher, data, progress=False)
        p = probabilities(teacher, x)[np.arange(len(y)), y]
        np.testing.assert_allclose(found.scores, -np.log(p), rtol=1e-4)

    same()


def test_where_nothing_says_how_many_inputs_there_are_a_list_or_tuple_of_arrays_is_them():
    def sums(x):
        return (x[0] + x[1])[:, :3]

    x, y = np.arange(8, dtype="float32").reshape(2, 4), np.array([2, 0])
    expected = difficulty.teacher_loss(lambda x: 2 * x[:, :3], x, y, progress=False).scores
    for data in ([x, x], (x, x)):
        found = difficulty.teacher_loss(sums, data, y, progress=False).scores
        np.testing.assert_array_equal(found, expected)
    found = difficulty.teacher_loss(sums, ([x, x], y), progress=False).scores
    np.testing.assert_array_equal(found, expected)


def test_caches(tmp_path):
    number, teacher = itertools.count(), dense()
    forms = {name: form for name, form in FORMS.items() if "dict" not in name}  # keyed by x

    @settings(max_examples=8, deadline=None)
    @given(examples(forms))
    def same(made):
        x, _, _, data = made
        path = tmp_path / str(next(number))
        cache = tfkd.TeacherCache.build(path, teacher, data, dtype="float32", progress=False)
        expected = x @ teacher.get_weights()[0]
        found = cache.lookup(range(len(x)))["final_output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(cache.keyed(x)["index"], np.arange(len(x)))

    same()


@few
@given(examples(LABELLED))
def test_reports(made):
    x, y, _, data = made
    found, labels, mask = _labelled(data, None)
    np.testing.assert_array_equal(found["x"] if isinstance(found, dict) else found, x)
    np.testing.assert_array_equal(labels, y)
    assert mask is None or mask.all()


@pytest.mark.parametrize("labels", [False, True])
def test_two_inputs_are_not_an_input_and_its_label(labels):
    a, b = np.ones((3, 2), "float32"), np.zeros((3, 3), "float32")
    forms = [[a, b], {"a": a, "b": b}, {"b": b, "a": a}]
    forms = [(x, np.arange(3)) for x in [*forms, (a, b)]] if labels else [*forms, (a, b)]
    for data in forms:
        for given_as in (data, [data], iter([data])):
            (found,) = example_inputs.batches("data", given_as, PAIR, labels=True)
            assert list(found.x) == ["a", "b"] and (found.y is not None) == labels
            np.testing.assert_array_equal(found.x["a"], a)
            np.testing.assert_array_equal(found.x["b"], b)


def test_a_list_of_arrays_for_one_input_is_batches():
    a, b = np.ones((3, 4), "float32"), np.zeros((2, 4), "float32")
    assert [len(one.x["x"]) for one in example_inputs.batches("data", [a, b], [FLOATS])] == [3, 2]
    pairs = ((a, np.ones(3)), (b, np.ones(2)))
    assert [len(one.x["x"]) for one in example_inputs.batches("data", pairs, [FLOATS])] == [3, 2]


def test_without_a_limit_endless_data_stop_at_a_thousand_and_all_of_the_others_are_read():
    x = np.ones((40, 4), "float32")
    for data in (dataset(x, 40).repeat(), itertools.repeat(x), (x for _ in range(30))):
        assert len(example_inputs.collect("data", data, [FLOATS])["x"]) == ENDLESS
    for data in (dataset(x, 40).repeat(30), [x] * 30):
        assert len(example_inputs.collect("data", data, [FLOATS])["x"]) == 1200


def test_the_limit_is_where_reading_stops():
    read = []

    def endless():
        while True:
            read.append(1)
            yield np.ones((4, 4), "float32")

    assert len(example_inputs.collect("data", endless(), [FLOATS], max_examples=8)["x"]) == 8
    assert len(read) == 2


def test_data_sets_of_tfkd():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (6, 2, 2, 1), dtype="uint8"), np.array([0, 1] * 3)
    digits = tfkd.data.Dataset(x[:4], y[:4], x[4:], y[4:])
    image = Input("image", (2, 2, 1), np.dtype("float32"))
    for part, rows in (("train", slice(4)), ("test", slice(4, None))):
        found = example_inputs.collect("data", digits, [image], part=part)["image"]
        np.testing.assert_array_equal(found, digits.preprocess(x[rows]))
    pixels = image._replace(dtype=np.dtype("uint8"))
    np.testing.assert_array_equal(example_inputs.collect("data", digits, [pixels])["image"], x[:4])
    found, labels, _ = _labelled(digits, None)
    np.testing.assert_array_equal(found, digits.preprocess(x[4:]))
    np.testing.assert_array_equal(labels, y[4:])


X = np.ones((3, 4), "float32")
NAN = X.copy()
NAN[1, 2] = np.nan


@pytest.mark.parametrize(
    ("data", "inputs", "error", "words"),
    [
        (3, [FLOATS], TypeError, r"`data`: expected an array \(N, ...\).*received 3"),
        ("x.npy", [FLOATS], TypeError, "expected an array"),
        (X[:0], [FLOATS], ValueError, "at least one example"),
        ([], [FLOATS], ValueError, "at least one example"),
        (iter([]), [FLOATS], ValueError, "at least one example"),
        (X[:, :3], [FLOATS], ValueError, r"examples of shape \(batch, 4\) for input 'x'"),
        (X[0], [FLOATS], ValueError, "Add the batch axis"),
        (tf.data.Dataset.from_tensor_slices(X), [FLOATS], ValueError, "Add the batch axis"),
        ({"z": X}, [FLOATS], ValueError, r"the inputs \['x'\], received \['z'\]"),
        ({"imagee": X}, [FLOATS._replace(name="image")], ValueError, "Did you mean 'image'"),
        (NAN, [FLOATS], ValueError, "Example 1 holds NaN"),
        ([X, NAN], [FLOATS], ValueError, "Example 4 holds NaN"),
        (X.astype("uint8"), [FLOATS], TypeError, "dataset.preprocess"),
        (X, [FLOATS._replace(dtype=np.dtype("int32"))], TypeError, r"integers \(int32\)"),
        (300 * X.astype(int), [FLOATS._replace(dtype=np.dtype("uint8"))], ValueError, "of uint8"),
        ((X, np.ones(2)), [FLOATS], ValueError, "a label for each of 3 examples"),
        (X, PAIR, TypeError, r"a dict of arrays with the inputs \['a', 'b'\]"),
        ((X, X, X), PAIR, ValueError, "2 arrays in each batch"),
        ({"a": X[:, :2], "b": X[:2, :3]}, PAIR, ValueError, "as many examples for each input"),
    ],
)
def test_what_is_wrong_is_said(data, inputs, error, words):
    with pytest.raises(error, match=words):
        list(example_inputs.batches("data", data, inputs, labels=True))


def test_labels_that_are_dropped_are_not_looked_at():
    boxes = tf.ragged.constant([[1.0], [], [2.0, 3.0]])
    data = tf.data.Dataset.from_tensor_slices((X, {"boxes": boxes})).batch(2)
    np.testing.assert_array_equal(example_inputs.collect("data", data, [FLOATS])["x"], X)
    np.testing.assert_array_equal(example_inputs.arrays("data", data, labels=False).x, X)


def test_names_of_layers_that_are_no_identifiers_fit_those_of_files():
    found = example_inputs.collect("data", {"my-input/0": X}, [FLOATS._replace(name="my_input_0")])
    np.testing.assert_array_equal(found["my_input_0"], X)


def test_memory_maps_are_passed_on_unread(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert example_inputs.arrays("data", mapped).x is mapped


def test_data_that_shuffle_have_no_places():
    data = tf.data.Dataset.from_tensor_slices(X)
    example_inputs.in_order("data", data.batch(2))
    with pytest.raises(ValueError, match="to examples by index"):
        example_inputs.in_order("data", data.shuffle(3).batch(2))


def test_it_needs_neither_keras_nor_tensorflow():
    code = "import sys, tfkd.runtime, tfkd.example_inputs; print({*sys.modules} & {'tensorflow', "
    code += "'keras', 'tf_keras'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
