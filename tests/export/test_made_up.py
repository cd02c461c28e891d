"""Made-up inputs: in the range that a model's first layers expect."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.export.made_up import made_up, pixels
from tfkd.export.named_function import NamedFunction
from tfkd.quantization.fixed_fake_quant import FixedQuantize

layers = keras.layers
PIXELS = (0.0, 255.0)


def image(first, shape=(4, 4, 3), dtype="float32"):
    x = keras.Input(shape, dtype=dtype)
    return keras.Model(x, layers.Flatten()(first(x)))


def words(first, dtype="float32"):
    x = keras.Input((40,), dtype=dtype)
    return keras.Model(x, first(x))


def statistics(layer, mean, variance):
    layer.build((None, 4, 4, 3))
    gamma, beta, *_ = layer.get_weights()
    layer.set_weights([gamma, beta, np.full(3, mean), np.full(3, variance)])
    return layer


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale, self.dense = layers.Rescaling(1 / 255), layers.Dense(2)

    def call(self, x):
        return self.dense(self.scale(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 12), np.float32))
    return model


def nested():
    inner = image(layers.Rescaling(1 / 127.5, -1))
    return image(lambda x: inner(layers.RandomFlip()(x)))


# Model, and the ends of the range, by hand.
RANGES = {
    "0 to 1": (lambda: image(layers.Rescaling(1 / 255)), *PIXELS),
    "-1 to 1": (lambda: image(layers.Rescaling(1 / 127.5, -1)), *PIXELS),
    "from 0 to 1": (lambda: image(layers.Rescaling(2.0, -1.0)), 0, 1),
    "uint8": (lambda: image(layers.Rescaling(1 / 255), dtype="uint8"), *PIXELS),
    "uint8 alone": (lambda: image(lambda x: tf.cast(x, "float32"), dtype="uint8"), *PIXELS),
    "operations": (lambda: image(lambda x: x / 127.5 - 1), *PIXELS),
    "augmented": (
        lambda: image(lambda x: layers.Rescaling(1 / 255)(layers.ZeroPadding2D(1)(x))),
        *PIXELS,
    ),
    "mean": (lambda: image(layers.Normalization(mean=100.0, variance=400.0)), 60, 140),
    # (x / 255 − 0.5) / 0.2, of which ±2 are wanted.
    "scaled, then mean": (
        lambda: image(
            lambda x: layers.Normalization(mean=0.5, variance=0.04)(layers.Rescaling(1 / 255)(x))
        ),
        0.1 * 255,
        0.9 * 255,
    ),
    "batch norm": (
        lambda: image(statistics(layers.BatchNormalization(), 50.0, 25.0)), 40, 60,
    ),
    "nested": (nested, *PIXELS),
    "subclassed": (subclassed, *PIXELS),
    "quantized": (lambda: image(FixedQuantize(-3.0, 5.0)), -3, 5),
}  # fmt: skip


@pytest.mark.parametrize("case", RANGES)
def test_numbers_fill_the_range_that_the_first_layers_expect(case):
    make, low, high = RANGES[case]
    (values,) = made_up(NamedFunction(make())).values()
    assert len(values) == 8
    span = high - low
    assert low <= values.min() < low + 0.2 * span and high - 0.2 * span < values.max() <= high
    if values.dtype.kind == "f":
        assert np.abs(values - np.rint(values)).max() > 0.1


WHOLE = {
    "embedding": (lambda: words(layers.Embedding(7, 2)), 0, 6),
    "masked": (lambda: words(layers.Embedding(7, 2, mask_zero=True)), 1, 6),
    "two tables": (
        lambda: words(
            lambda x: layers.Add()([layers.Embedding(9, 2)(x), layers.Embedding(5, 2)(x)])
        ),
        0,
        4,
    ),
    "categories": (
        lambda: words(layers.CategoryEncoding(6, output_mode="multi_hot"), "int32"), 0, 5,
    ),
    "one hot": (lambda: words(lambda x: tf.one_hot(x, 4), "int64"), 0, 3),
    "gathered": (lambda: words(lambda x: tf.gather(np.ones((5, 2), "float32"), x), "int32"), 0, 4),
    "behind a cast": (lambda: words(lambda x: layers.Embedding(3, 2)(tf.cast(x, "int32"))), 0, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_whole_numbers_for_tables(case):
    make, low, high = WHOLE[case]
    (values,) = made_up(NamedFunction(make())).values()
    assert set(np.unique(values)) == set(range(low, high + 1))


KNOWN = ["apple", "fig"]
TEXTS = {
    "lookup": (lambda: layers.StringLookup(vocabulary=KNOWN), KNOWN, 1),
    "texts": (lambda: layers.TextVectorization(vocabulary=KNOWN), KNOWN, 4),
    "hashing": (lambda: layers.Hashing(3), [str(number) for number in range(100)], 1),
    "nested": (
        lambda: keras.Sequential(
            [layers.StringLookup(vocabulary=KNOWN, input_shape=(1,)), layers.Embedding(3, 2)]
        ),
        KNOWN,
        1,
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_of_the_vocabulary(case):
    make, words, count = TEXTS[case]
    x = keras.Input((1,), dtype="string")
    (values,) = made_up(NamedFunction(keras.Model(x, make()(x)))).values()
    parts = [text.split(" ") for text in values.ravel()]
    assert values.shape == (8, 1) and {len(one) for one in parts} == {count}
    found = {word for one in parts for word in one}
    assert len(found) > 1 and found <= set(words)


def test_several_inputs_each_of_its_kind():
    a, b = keras.Input((200,), name="a"), keras.Input((6, 6, 3), name="b")
    c = keras.Input((30,), dtype="bool", name="c")
    parts = [a, layers.Flatten()(layers.Rescaling(1 / 255)(b)), tf.cast(c, "float32")]
    model = keras.Model({"a": a, "b": b, "c": c}, layers.Concatenate()(parts))
    values = made_up(NamedFunction(model))
    # Where nothing is known: unit variance.
    assert abs(values["a"].mean()) < 0.1 and abs(values["a"].std() - 1) < 0.1
    assert values["b"].max() > 200 and values["c"].dtype == bool and values["c"].any()
    again = made_up(NamedFunction(model))
    for name, value in values.items():
        np.testing.assert_array_equal(value, again[name])


def test_few_examples_of_large_inputs_and_a_size_for_open_ones():
    open_model = image(lambda x: layers.GlobalAveragePooling2D()(x), (None, 64, 3))
    assert made_up(NamedFunction(open_model), size=5)[open_model.input_names[0]].shape == (
        8,
        5,
        64,
        3,
    )
    assert pixels((1024, 1024, 3)).shape == (2, 1024, 1024, 3)
