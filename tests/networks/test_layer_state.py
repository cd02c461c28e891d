"""What layers keep beside their weights goes with every copy, check and count of a model."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import fingerprints, pruning, quantization, report
from tfkd.networks import accept, resources
from tfkd.progressive import Prune, rehearsing

L = keras.layers
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(32, 4)) * 5 + 20).astype("float32")
IMAGES = RNG.integers(0, 256, (8, 6, 6, 3)).astype("float32")
# "b" three times, "a" twice, "c" once: numbers 2, 3, 4 behind padding and unknown.
TEXTS = np.array([["b a b"], ["c b a"]])
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
GONE = [1, 3]  # units of "hidden" that are removed


@keras.saving.register_keras_serializable("tests")
class Center(L.Layer):
    """Computes with a constant that it makes of its weight."""

    def build(self, shape):
        self.mean = self.add_weight(name="mean", shape=shape[-1:], trainable=False)
        self.finalize_state()
        super().build(shape)

    def finalize_state(self):
        self.constant = self.mean.numpy()

    def call(self, x):
        return x - self.constant


@keras.saving.register_keras_serializable("tests")
class Unmarked(Center):
    """Its `build` does not end in Keras's, as that of many layers."""

    def build(self, shape):
        self.mean = self.add_weight(name="mean", shape=shape[-1:], trainable=False)
        self.finalize_state()


class Unregistered(Center):
    """A layer that Keras does not find by its name."""


@keras.saving.register_keras_serializable("tests")
class Limits(L.experimental.preprocessing.PreprocessingLayer):
    """Learns numbers that are in no weight, and has no get_config."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.limits, self.scale = [0.0], np.ones(4, "float32")

    def learn(self, x):
        self.limits, self.scale = [float(x.min())], x.std(0)

    def call(self, x):
        return (x - self.limits[0]) / self.scale


def with_ends(inputs, h):
    """`hidden` and `head` behind a front, with weights that differ from unit to unit."""
    h = L.Dense(6, "relu", name="hidden")(h)
    model = keras.Model(inputs, L.Dense(3, name="head")(h))
    for name in ("hidden", "head"):
        layer = model.get_layer(name)
        layer.set_weights([RNG.normal(size=w.shape) for w in layer.get_weights()])
    return model


def by_hand(model, front, removed=()):
    """What a model of `with_ends` computes where its front computes `front`."""
    (k1, b1), (k2, b2) = (model.get_layer(name).get_weights() for name in ("hidden", "head"))
    hidden = np.maximum(front @ k1 + b1, 0)
    hidden[:, list(removed)] = 0
    return hidden @ k2 + b2


def adapted(data=X, shape=(4,), **arguments):
    layer = L.Normalization(**arguments)
    layer.adapt(data)
    inputs = keras.Input(shape)
    return inputs, layer


def normalization():
    inputs, layer = adapted()
    front = (X - X.mean(0)) / X.std(0)
    return with_ends(inputs, layer(inputs)), X, front


def inverted():
    inputs, layer = adapted(invert=True)
    return with_ends(inputs, layer(inputs)), X, X.mean(0) + X * X.std(0)


def other_axis():
    rows = X.reshape(8, 4, 4)
    inputs, layer = adapted(rows, (4, 4), axis=1)
    model = with_ends(inputs, L.Flatten()(layer(inputs)))
    mean, deviation = rows.mean((0, 2)), rows.std((0, 2))
    return model, rows, ((rows - mean[:, None]) / deviation[:, None]).reshape(8, 16)


def given_arrays():
    inputs = keras.Input((4,))
    layer = L.Normalization(mean=X.mean(0), variance=X.var(0))
    return with_ends(inputs, layer(inputs)), X, (X - X.mean(0)) / X.std(0)


def as_in_efficientnet():
    """Rescaling, a Normalization whose numbers were assigned, and Rescaling again."""
    inputs = keras.Input((6, 6, 3))
    layer = L.Normalization()
    h = L.Rescaling(1 / DEVIATION)(layer(L.Rescaling(1 / 255)(inputs)))
    layer.adapt_mean.assign(MEAN)
    layer.adapt_variance.assign(DEVIATION**2)
    layer.finalize_state()
    h = L.Conv2D(5, 1, name="conv")(h)
    h = L.GlobalAveragePooling2D()(L.BatchNormalization()(h))
    model = with_ends(inputs, h)
    front = (IMAGES / 255 - MEAN) / DEVIATION / DEVIATION
    kernel = model.get_layer("conv").kernel.numpy()[0, 0]
    return model, IMAGES, (front @ kernel).mean((1, 2)) / np.sqrt(1 + 1e-3)


def deep_inside():
    """In a TimeDistributed, in a Sequential, in a Sequential."""
    rows = X.reshape(8, 4, 4)
    _, layer = adapted()
    inner = keras.Sequential([keras.Input((4, 4)), L.TimeDistributed(layer), L.Flatten()])
    outer = keras.Sequential([keras.Input((4, 4)), inner])
    inputs = keras.Input((4, 4))
    front = ((rows - X.mean(0)) / X.std(0)).reshape(8, 16)
    return with_ends(inputs, outer(inputs)), rows, front


def shared():
    inputs, layer = adapted()
    other = keras.Input((4,))
    model = with_ends([inputs, other], L.Concatenate()([layer(inputs), layer(other)]))
    front = (X - X.mean(0)) / X.std(0)
    return model, [X, X[::-1]], np.concatenate([front, front[::-1]], 1)


def own_constant(kind=Center):
    inputs, layer = keras.Input((4,)), kind()
    model = with_ends(inputs, layer(inputs))
    layer.mean.assign(X.mean(0))
    layer.finalize_state()
    return model, X, X - X.mean(0)


def unmarked():
    return own_constant(Unmarked)


def unregistered():
    return own_constant(Unregistered)


def own_numbers():
    inputs, layer = keras.Input((4,)), Limits()
    layer.learn(X)
    return with_ends(inputs, layer(inputs)), X, (X - X.min()) / X.std(0)


def bins():
    layer = L.Discretization(num_bins=4, output_mode="multi_hot")
    layer.adapt(X[:, :1])
    inputs = keras.Input((1,))
    numbers = np.digitize(X[:, 0], np.float32(layer.bin_boundaries))
    return with_ends(inputs, layer(inputs)), X[:, :1], np.eye(4)[numbers]


def bins_of_words():
    """Bins as numbers, inside a nested model."""
    layer = L.Discretization(num_bins=4)
    layer.adapt(X[:, :1])
    inputs = keras.Input((1,))
    inner = keras.Sequential([keras.Input((1,)), layer, L.Embedding(4, 5, name="table")])
    numbers = np.digitize(X[:, 0], np.float32(layer.bin_boundaries))
    model = with_ends(inputs, L.Flatten()(inner(inputs)))
    return model, X[:, :1], inner.get_layer("table").embeddings.numpy()[numbers]


def texts():
    layer = L.TextVectorization(9, output_sequence_length=3)
    layer.adapt(TEXTS)
    inputs = keras.Input((1,), dtype="string")
    h = L.Embedding(9, 5, name="words")(layer(inputs))
    model = with_ends(inputs, L.Flatten()(h))
    table = model.get_layer("words").embeddings.numpy()
    return model, TEXTS, table[[[2, 3, 2], [4, 2, 3]]].reshape(2, 15)


def weighed_texts():
    layer = L.TextVectorization(output_mode="tf_idf")
    layer.adapt(TEXTS)
    inputs = keras.Input((1,), dtype="string")
    # log(1 + documents / (1 + documents with the word)), as Keras has it; unknown: the mean.
    b, a, c = np.log(1 + 2 / 3), np.log(1 + 2 / 3), np.log(1 + 2 / 2)
    front = np.array([[0, 2 * b, a, 0], [0, b, a, c]])
    return with_ends(inputs, layer(inputs)), TEXTS, front


def numbers_looked_up():
    layer = L.IntegerLookup(output_mode="one_hot")
    layer.adapt(np.array([[7], [7], [5]]))
    inputs = keras.Input((1,), dtype="int64")
    front = np.eye(3)[[1, 2, 0]]
    return with_ends(inputs, layer(inputs)), np.array([[7], [5], [9]]), front


def words_set_later():
    layer = L.StringLookup(vocabulary=["a", "b"])
    layer.set_vocabulary(["b", "c"])
    inputs = keras.Input((1,), dtype="string")
    model = with_ends(inputs, L.Flatten()(L.Embedding(3, 5, name="words")(layer(inputs))))
    table = model.get_layer("words").embeddings.numpy()
    return model, np.array([["a"], ["b"], ["c"]]), table[[0, 1, 2]]


KINDS = [normalization, inverted, other_axis, given_arrays, shared, own_constant, own_numbers]
KINDS += [unmarked, unregistered, texts, numbers_looked_up, words_set_later]


def off(model, x, expected):
    """The largest difference, as a part of the range."""
    found = model(tf.nest.map_structure(tf.constant, x), training=False)
    return np.abs(found - expected).max() / np.ptp(expected)


def with_a_block(model):
    """The model with a residual block before its head, which `cut_layers` takes out again."""
    h = model.get_layer("hidden").output
    more = L.Add(name="sum")([h, L.Dense(6, name="block")(h)])
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, model.get_layer("head")(more))


def shrunk_off(model, x, front, **verify):
    """How far a model without two of its hidden units is from what these leave behind."""
    graph = pruning.analyse(model)
    group = next(g for g in graph.groups if g.layers == ("hidden",))
    selection = pruning.Selection({group.name: GONE}, graph.fingerprint)
    small = pruning.shrink(model, selection, **verify)
    assert small.get_layer("hidden").units == 4
    return off(small, x, by_hand(model, front, GONE))


@pytest.mark.parametrize("net", KINDS)
def test_every_kind_of_state_is_copied(net):
    model, x, front = net()
    expected = by_hand(model, front)
    assert off(model, x, expected) < 1e-5
    assert off(tfkd.frozen_copy(model), x, expected) < 1e-5
    # Without the check, which would find it.
    assert shrunk_off(model, x, front, verify=False) < 1e-5


@pytest.mark.parametrize(
    "net", [as_in_efficientnet, deep_inside, bins, bins_of_words, weighed_texts]
)
def test_every_copy_computes_the_same(net):
    model, x, front = net()
    expected = by_hand(model, front)
    assert off(tfkd.frozen_copy(model), x, expected) < 1e-5
    assert off(tfkd.frozen_copy(model, fold_batch_norm=True), x, expected) < 1e-5
    assert off(tfkd.frozen_copy(model, dtype="bfloat16"), x, expected) < 0.05
    assert off(rehearsing._copy(model), x, expected) < 1e-5
    assert off(pruning.cut_layers(with_a_block(model), drop="sum"), x, expected) < 1e-5
    assert shrunk_off(model, x, front, verify=False) < 1e-5
    assert shrunk_off(model, x, front, verify=x) < 1e-5
    assert Prune(filter_rate=0.4)(model).count_params() < model.count_params()
    assert off(model, x, expected) < 1e-5


@pytest.mark.parametrize(
    "net", [normalization, deep_inside, own_constant, unmarked, bins, weighed_texts]
)
def test_a_quantized_model_and_its_file_compute_the_same(net, tmp_path):
    model, x, front = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = quantization.quantize(model)
    quantization.calibrate(q, x)
    assert off(q, x, by_hand(model, front)) < 0.03
    loaded = quantization.load(quantization.save(q, tmp_path / "q.npz"))
    np.testing.assert_array_equal(loaded(x), q(x))


def test_a_file_of_words_is_not_needed_again(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a\nb")
    inputs = keras.Input((1,), dtype="string")
    layer = L.StringLookup(vocabulary=str(words), output_mode="one_hot")
    model = with_ends(inputs, layer(inputs))
    words.unlink()
    expected = by_hand(model, np.eye(3)[[1, 2, 0]])
    assert off(tfkd.frozen_copy(model), np.array([["a"], ["b"], ["?"]]), expected) < 1e-5


def test_what_no_file_can_hold_is_refused_by_name(tmp_path):
    model, x, _ = own_numbers()
    q = quantization.quantize(model)
    quantization.calibrate(q, x)
    with pytest.raises(ValueError, match=r"\(Limits\), which keeps 'limits'.*add_weight"):
        quantization.save(q, tmp_path / "q.npz")
    assert not list(tmp_path.iterdir())


def test_what_no_copy_can_hold_is_refused_by_name():
    model, _, _ = own_numbers()
    model.layers[1].book = object()
    with pytest.raises(ValueError, match="'limits.*which keeps 'book', a object"):
        tfkd.frozen_copy(model)


def test_copies_can_be_adapted_and_given_weights_again():
    model, x, front = bins()
    frozen = tfkd.frozen_copy(model)
    layer = frozen.layers[1]
    assert layer.num_bins == 4 and layer.is_adapted
    frozen.set_weights(model.get_weights())
    assert off(frozen, x, by_hand(model, front)) < 1e-5
    layer.adapt(np.arange(100.0)[:, None])
    np.testing.assert_allclose(layer.bin_boundaries, [25, 50, 75], atol=2)
    assert model.layers[1].bin_boundaries != layer.bin_boundaries


def test_a_model_of_its_own_class_keeps_its_constants():
    @keras.saving.register_keras_serializable("tests")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm, self.head = L.Normalization(), L.Dense(2)

        def call(self, x):
            return self.head(self.norm(x))

    model = Own()
    model.norm.adapt(X)
    model(X)
    kernel, bias = model.head.get_weights()
    expected = (X - X.mean(0)) / X.std(0) @ kernel + bias
    assert off(tfkd.frozen_copy(model), X, expected) < 1e-5


def test_a_normalization_stays_exact_in_a_half_precision_copy():
    # 2**-8 of 5000 is more than the whole spread.
    inputs, layer = adapted(X + 5000)
    model = with_ends(inputs, layer(inputs))
    expected = by_hand(model, (X - X.mean(0)) / X.std(0))
    assert off(tfkd.frozen_copy(model, dtype="bfloat16"), X + 5000, expected) < 0.05
    assert tfkd.frozen_copy(model, dtype="bfloat16").get_layer("hidden").dtype == "bfloat16"


def test_models_of_texts_are_distilled_profiled_and_told_apart(tmp_path):
    model, x, _ = texts()
    student = texts()[0]
    profile = report.profile(model)
    assert profile.macs == 15 * 6 + 6 * 3
    assert profile.params == model.count_params() == 9 * 5 + 15 * 6 + 6 + 6 * 3 + 3
    plan = pruning.plan(model, filter_rate=0.4)
    assert plan.macs_before == profile.macs and plan.params_before == profile.params
    distiller = tfkd.Distiller(
        model, student, tfkd.losses.LogitsDistillation(1.0), student_loss_weight=0.0
    )
    distiller.compile("sgd", None)
    teacher, mine = (m.predict(x, verbose=0) for m in (model, student))
    p, s = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (teacher, mine))
    found = distiller.evaluate(x, verbose=0, return_dict=True)["logits_distillation"]
    np.testing.assert_allclose(found, (np.exp(p) * (p - s)).sum(1).mean(), rtol=1e-4)
    distiller.fit(x, verbose=0)
    # Words are state: other words, another fingerprint; the same again, the same.
    assert fingerprints.digest(model) == fingerprints.digest(tfkd.frozen_copy(model))
    before = fingerprints.digest(model)
    model.layers[1].set_vocabulary(["b", "c", "a"])
    assert fingerprints.digest(model) != before
    cache = tfkd.TeacherCache.build(tmp_path / "cache", model, x, batch_size=2)
    assert len(cache) == 2


def test_quantize_says_which_files_cannot_hold_words_and_the_rest_can(tmp_path):
    model, x, front = texts()
    name = model.layers[1].name
    with pytest.warns(UserWarning, match=rf"'{name}' \(TextVectorization\).*split it after"):
        q = quantization.quantize(model)
    quantization.calibrate(q, x)
    for written in (model, q):
        with pytest.raises(
            ValueError, match=r"'text_vec\w+' \(TextVectorization\).*to_saved_model"
        ):
            tfkd.export.to_tflite(written, tmp_path / "m.tflite")
    numbers, _, _ = numbers_looked_up()
    with pytest.raises(ValueError, match=r"'integer_lookup\w*' \(IntegerLookup\).*split"):
        tfkd.export.to_onnx(numbers, tmp_path / "m.onnx")
    rest = keras.Model(model.get_layer(name).output, model.outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = quantization.quantize(rest)
    quantization.calibrate(q, np.array([[2, 3, 2], [4, 2, 3]]))
    assert off(q, np.array([[2, 3, 2], [4, 2, 3]]), by_hand(model, front)) < 0.03


def test_the_equation_of_an_einsum_is_no_text_of_the_model():
    x = keras.Input((3, 4))
    model = keras.Model(x, tf.einsum("bij,bij->bi", x, x))
    assert resources.text_layers(model) == []


def test_layers_of_texts_words_and_resources():
    fruit, size = keras.Input((1,), dtype="string", name="fruit"), keras.Input((1,), name="size")
    found = L.StringLookup(vocabulary=["pear", "fig"], output_mode="one_hot")(fruit)
    long = tf.cast(tf.strings.length(fruit), "float32")
    crop = L.RandomCrop(2, 2)(L.Reshape((1, 1, 1))(size))
    h = L.Concatenate()([found, long, L.Flatten()(crop)])
    model = keras.Model([fruit, size], h)
    kinds = [type(one).__name__ for one in resources.text_layers(model)]
    assert sorted(kinds) == ["StringLookup", "TFOpLambda"]
    assert resources.words(model) == ["fig", "pear"]
    table, generator = resources.tracked(model)
    assert int(table.size()) == 2 and isinstance(generator, tf.random.Generator)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_everywhere(value, tmp_path):
    model, _, _ = normalization()
    plan = pruning.plan(model, filter_rate=0.4)
    selection = pruning.select(model, plan)
    layer = model.get_layer("head")
    layer.bias.assign([0, value, 0])
    export, y = tfkd.export, np.zeros(len(X), int)
    for call in (
        lambda: pruning.recalibrate(model, X),
        lambda: tfkd.frozen_copy(model),
        lambda: tfkd.frozen_copy(model, dtype="bfloat16"),
        lambda: quantization.quantize(model),
        lambda: pruning.plan(model, filter_rate=0.4),
        lambda: pruning.select(model, plan),
        lambda: pruning.shrink(model, selection, verify=False),
        lambda: pruning.cut_layers(with_a_block(model), drop="sum"),
        lambda: export.to_tflite(model, tmp_path / "m.tflite"),
        lambda: export.to_onnx(model, tmp_path / "m.onnx"),
        lambda: export.to_saved_model(model, tmp_path / "m"),
    ):
        with pytest.raises(ValueError, match="`model`: expected finite weights.*of 'head'"):
            call()
    difficulty = tfkd.curriculum.difficulty
    for call in (
        lambda: tfkd.TeacherCache.build(tmp_path / "cache", model, X),
        lambda: tfkd.TeacherCache.build(tmp_path / "cache", [normalization()[0], model], X),
        lambda: difficulty.teacher_loss(model, X, y),
        lambda: difficulty.student_loss(model, X, y),
    ):
        with pytest.raises(
            ValueError, match="`(teacher|student)`: expected finite weights.*'head'"
        ):
            call()
    q = quantization.quantize(normalization()[0])
    quantization.calibrate(q, X)
    q.get_layer("head").layer.bias.assign([0, value, 0])
    for call in (
        lambda: quantization.calibrate(q, X),
        lambda: quantization.save(q, tmp_path / "q.npz"),
    ):
        with pytest.raises(ValueError, match="`q`: expected finite weights"):
            call()
    assert not list(tmp_path.iterdir())
    accept.check_finite("model", keras.Sequential([L.Dense(2)]))  # not built: nothing yet


def test_weights_behind_a_relu_that_hides_them_are_refused():
    # TensorFlow's relu makes 0 of NaN, so that the outputs are finite.
    model, _, _ = normalization()
    model.get_layer("hidden").kernel.assign(np.full((4, 6), np.nan))
    with pytest.raises(ValueError, match="`teacher`: expected finite weights.*'hidden'"):
        tfkd.curriculum.difficulty.teacher_entropy(model, X)


def test_lost_statistics_are_restored_by_recalibrate():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.BatchNormalization(momentum=0.5)(inputs))
    model.layers[1].moving_variance.assign([1, np.nan, 1, np.inf])
    pruning.recalibrate(model, X)
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-3)
    np.testing.assert_allclose(model(X), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("net", [bins, bins_of_words, own_constant])
def test_a_distiller_file_that_would_forget_is_refused(net, tmp_path):
    loss = tfkd.losses.LogitsDistillation(2.0)
    plain = keras.Sequential([keras.Input(net()[0].input_shape[1:]), L.Dense(3)])
    for teacher, student in ((net()[0], plain), (plain, net()[0])):
        student.trainable = True
        distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
        with pytest.raises(ValueError, match="`filepath`: expected weights alone.*has learned"):
            distiller.save(tmp_path / "d.keras")
    assert not list(tmp_path.iterdir())


def test_a_distiller_file_keeps_what_keras_keeps(tmp_path):
    model, x, front = normalization()
    distiller = tfkd.Distiller(
        model, normalization()[0], tfkd.losses.LogitsDistillation(2.0), student_loss_weight=0.0
    )
    distiller.compile("sgd", None)
    distiller.evaluate(x, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert off(loaded.teacher, x, by_hand(model, front)) < 1e-5
