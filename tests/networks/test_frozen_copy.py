"""Frozen copies: exact, independent, and the same function with folded batch norms."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd

layers = keras.layers


def norm_count(model):
    return sum(
        isinstance(layer, layers.BatchNormalization)
        for layer in model._flatten_layers(include_self=False)
    )


def some(shape, seed=0, count=4):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def assert_same_function(model, copy, tolerance=1e-5):
    x = some(model.input_shape[1:])
    expected = model(x, training=False).numpy()
    spread = np.abs(expected - expected[:1]).max()
    assert spread > 1e-2, "the test's outputs do not depend on its inputs"
    np.testing.assert_allclose(copy(x), expected, rtol=tolerance, atol=tolerance * spread)


def assert_independent(model, copy):
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}
    assert not copy.trainable and not copy.trainable_variables


def test_a_copy_is_exact_and_the_model_goes_on_training():
    model = toys.net(seed=1)
    x, y = toys.data()
    copy = tfkd.frozen_copy(model, name="teacher")
    assert copy.name == "teacher" and type(copy) is type(model)
    expected = model(x).numpy()
    assert_independent(model, copy)
    assert model.trainable and model.trainable_variables

    distiller = tfkd.Distiller(copy, model, tfkd.losses.LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.5), toys.CROSSENTROPY)
    distiller.fit(x, y, epochs=3, verbose=0)
    np.testing.assert_array_equal(copy(x), expected)
    assert not np.allclose(model(x), expected)


@pytest.mark.parametrize("fold", [False, True])
def test_the_original_is_left_as_it_was(fold):
    model = toys.randomize(CASES["conv"]()[0], 1)
    config, before = model.get_config(), toys.weights_of(model)
    nodes = [len(layer.inbound_nodes) for layer in model.layers]
    tfkd.frozen_copy(model, dtype="bfloat16" if fold else None, fold_batch_norm=fold)
    assert model.get_config() == config
    toys.assert_untouched(before, model)
    assert [len(layer.inbound_nodes) for layer in model.layers] == nodes
    assert model.trainable


class WithConfig(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden, self.scores = layers.Dense(4, "tanh"), layers.Dense(units)

    def call(self, inputs):
        return self.scores(self.hidden(inputs))

    def get_config(self):
        return {"units": self.units}


class WithoutConfig(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.scores = layers.Dense(4, "tanh"), layers.Dense(3)

    def call(self, inputs):
        return self.scores(self.hidden(inputs))


class CanNotBeCopied(WithConfig):
    def __init__(self, units):
        super().__init__(units)

    def get_config(self):
        return {}


@pytest.mark.parametrize("cls", [WithConfig, WithoutConfig])
@pytest.mark.parametrize("compiled", [False, True])
def test_subclassed_models(cls, compiled):
    model = cls()
    x, y = toys.data()
    model(x)
    toys.randomize(model, 1)
    if compiled:
        model.compile("adam", toys.CROSSENTROPY)
        model.fit(x, y, verbose=0)
    copy = tfkd.frozen_copy(model)
    expected = model(x).numpy()
    np.testing.assert_array_equal(copy(x), expected)
    assert_independent(model, copy)
    model.hidden.kernel.assign_add(tf.ones_like(model.hidden.kernel))
    np.testing.assert_array_equal(copy(x), expected)


def sequential(*parts, shape):
    return keras.Sequential([keras.Input(shape), *parts])


def conv():
    return sequential(
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(3, 3, padding="same"),
        layers.BatchNormalization(scale=False),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(3),
        shape=(8, 8, 2),
    ), 0


def grouped():
    return sequential(
        layers.Conv2D(4, 3, groups=2),
        layers.BatchNormalization(center=False),
        layers.Conv2D(2, 1),
        shape=(6, 6, 2),
    ), 0


def depthwise():
    return sequential(
        layers.DepthwiseConv2D(3, depth_multiplier=3),
        layers.BatchNormalization(),
        layers.Conv2D(2, 1),
        shape=(6, 6, 2),
    ), 0


def transposed():
    return sequential(
        layers.Conv2DTranspose(5, 3, strides=2),
        layers.BatchNormalization(epsilon=0.1),
        layers.Conv2D(2, 1),
        shape=(4, 4, 3),
    ), 0


def one_axis():
    return sequential(
        layers.Conv1D(4, 3), layers.BatchNormalization(), layers.Conv1D(2, 1), shape=(8, 3)
    ), 0


def three_axes():
    return sequential(
        layers.Conv3D(4, 2), layers.BatchNormalization(), layers.Conv3D(2, 1), shape=(3, 3, 3, 2)
    ), 0


def dense():
    return sequential(
        layers.Dense(6, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dense(3),
        layers.BatchNormalization(),
        shape=(5,),
    ), 0


def dense_on_sequences():
    return sequential(
        layers.Dense(6), layers.BatchNormalization(axis=2), layers.Dense(3), shape=(4, 5)
    ), 0


def two_consumers():
    """The convolution's output is used twice: not folded. That of the norm may be."""
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same")(x)
    b = layers.BatchNormalization()(a)
    c = layers.Conv2D(4, 1)(layers.Add()([a, b]))
    d = layers.BatchNormalization()(c)
    return keras.Model(x, layers.Add()([d, layers.ReLU()(d)])), 1


def output_too():
    """The convolution's output is an output of the model too: not folded."""
    x = keras.Input((5,))
    a = layers.Dense(4)(x)
    b = layers.BatchNormalization()(a)
    return keras.Model(x, layers.Concatenate()([a, b])), 1


def after_activation():
    return sequential(
        layers.Dense(6, "relu"),
        layers.BatchNormalization(),
        layers.Dense(3),
        layers.ReLU(),
        layers.BatchNormalization(),
        shape=(5,),
    ), 2


def other_axis():
    """Normalises positions, not channels: not folded."""
    return sequential(
        layers.Conv1D(4, 1), layers.BatchNormalization(axis=1), layers.Conv1D(2, 1), shape=(8, 3)
    ), 1


def shared():
    """One norm after two layers, and one layer before two norms: not folded."""
    x, y = keras.Input((5,), name="x"), layers.Dense(4)
    norm = layers.BatchNormalization()
    first = norm(layers.Dense(5)(x))
    second = norm(layers.Dense(5)(x))
    third = layers.BatchNormalization()(y(first))
    fourth = layers.BatchNormalization()(y(second))
    return keras.Model(x, layers.Concatenate()([third, fourth])), 3


def nested():
    inner = sequential(
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        shape=(6, 6, 2),
    )
    deeper_in = keras.Input((6, 6, 4))
    deeper = keras.Model(
        deeper_in, layers.BatchNormalization()(layers.Conv2D(3, 1)(deeper_in)), name="deeper"
    )
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(2, 1)(deeper(inner(x)))
    return keras.Model(x, layers.BatchNormalization()(y)), 0


def across_models():
    """The norm follows a nested model, not a convolution: not folded."""
    inner = sequential(layers.Dense(4), shape=(5,))
    x = keras.Input((5,))
    return keras.Model(x, layers.BatchNormalization()(inner(x))), 1


def norm_first():
    return sequential(
        layers.BatchNormalization(),
        layers.Dense(4),
        layers.BatchNormalization(),
        layers.Dense(2),
        shape=(5,),
    ), 1


def residual():
    x = keras.Input((6, 6, 4))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    y = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))), 0


def with_padding_and_dropout():
    return sequential(
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, 2),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Dropout(0.5),
        layers.SeparableConv2D(4, 3),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(2),
        shape=(8, 8, 2),
    ), 1


CASES = {
    case.__name__: case
    for case in (
        conv,
        grouped,
        depthwise,
        transposed,
        one_axis,
        three_axes,
        dense,
        dense_on_sequences,
        two_consumers,
        output_too,
        after_activation,
        other_axis,
        shared,
        nested,
        across_models,
        norm_first,
        residual,
        with_padding_and_dropout,
    )
}


@pytest.mark.parametrize("case", CASES)
def test_folded_batch_norm_is_the_same_function(case):
    model, left = CASES[case]()
    toys.randomize(model, 1)
    assert norm_count(model) > left or case in (
        "output_too",
        "after_activation",
        "other_axis",
        "shared",
        "across_models",
    )
    copy = tfkd.frozen_copy(model, fold_batch_norm=True)
    assert_same_function(model, copy)
    assert norm_count(copy) == left
    assert_independent(model, copy)


def test_folding_keeps_several_outputs_in_their_form():
    x = keras.Input((5,))
    a = layers.BatchNormalization(name="norm")(layers.Dense(4, name="dense")(x))
    b = layers.Dense(2)(layers.ReLU()(a))
    model = toys.randomize(keras.Model(x, {"a": a, "b": b}), 1)
    copy = tfkd.frozen_copy(model, fold_batch_norm=True)
    values = some((5,))
    expected, found = model(values), copy(values)
    assert set(found) == {"a", "b"} and norm_count(copy) == 0
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype,tolerance", [("bfloat16", 3e-2), ("float16", 3e-3)])
@pytest.mark.parametrize("case", ["conv", "nested", "residual", "dense"])
def test_half_precision_is_close_and_returns_float32(case, dtype, tolerance):
    model = toys.randomize(CASES[case]()[0], 1, scale=0.4)
    copy = tfkd.frozen_copy(model, dtype=dtype, fold_batch_norm=True)
    x = some(model.input_shape[1:], count=16)
    expected, found = model(x).numpy(), copy(x)
    assert found.dtype == tf.float32
    spread = expected.max() - expected.min()
    assert np.abs(found - expected).max() < tolerance * spread
    types = {layer.dtype for layer in copy._flatten_layers(include_self=False) if layer.weights}
    assert dtype in types


def test_float32_of_a_mixed_precision_model():
    model = sequential(
        layers.Dense(6, dtype="mixed_bfloat16"), layers.Dense(3, dtype="float32"), shape=(5,)
    )
    copy = tfkd.frozen_copy(toys.randomize(model, 1), dtype="float32")
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    x = some((5,))
    np.testing.assert_allclose(copy(x), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{"fold_batch_norm": True}, {"dtype": "bfloat16"}])
def test_as_the_teacher_of_a_resnet(options):
    model = toys.randomize(tfkd.models.resnet(8, num_classes=4, input_shape=(16, 16, 3)), 1, 0.1)
    teacher = tfkd.frozen_copy(model, **options)
    if "dtype" not in options:
        assert norm_count(model) > 5 > norm_count(teacher) == 0
    student = tfkd.models.resnet(8, num_classes=4, input_shape=(16, 16, 3))
    x, y = some((16, 16, 3)), np.arange(4)
    distiller = tfkd.Distiller(
        teacher,
        student,
        [
            tfkd.losses.LogitsDistillation(4.0),
            tfkd.losses.FeatureDistillation(
                teacher_layer_name="stage2", student_layer_name="stage2"
            ),
        ],
    )
    distiller.compile(keras.optimizers.SGD(0.01), toys.CROSSENTROPY)
    kd = toys.soft_targets(model(x, training=False), student(x, training=True), 4.0).mean()
    found = toys.logs(distiller.fit(x, y, batch_size=4, verbose=0))
    np.testing.assert_allclose(found["logits_distillation"], kd, rtol=0.1)
    assert np.isfinite(found["loss"])


def test_a_copy_is_saved_and_loaded(tmp_path):
    model = toys.randomize(CASES["nested"]()[0], 1)
    copy = tfkd.frozen_copy(model, fold_batch_norm=True)
    copy.save(str(tmp_path / "teacher.keras"))
    loaded = keras.models.load_model(str(tmp_path / "teacher.keras"))
    x = some((6, 6, 2))
    np.testing.assert_allclose(loaded(x), copy(x), rtol=1e-6)


@pytest.mark.parametrize("where", ["kernel", "bias", "nested", "folded"])
def test_weights_beyond_float16_are_refused_and_bfloat16_holds_them(where):
    first = layers.Dense(4, name="large")
    if where == "nested":
        first = sequential(first, shape=(4,))
    model = sequential(first, layers.BatchNormalization(), layers.Dense(3), shape=(4,))
    large = first.layers[-1] if where == "nested" else first
    kernel, bias = large.get_weights()
    factor = 1.0 if where in ("bias", "folded") else 4e5
    large.set_weights([kernel * factor, bias + (2e5 if where == "bias" else 0)])
    # γ / √(σ² + ε) of the norm makes the kernel large, or the outputs small again.
    gamma, beta, mean, variance = model.layers[1].get_weights()
    gamma = gamma * (1e6 if where == "folded" else 1e-5)
    model.layers[1].set_weights([gamma, beta, mean, variance])
    fold = where == "folded"
    with pytest.raises(ValueError, match=r"`dtype`: .*'bfloat16'.*'large/.*65504"):
        tfkd.frozen_copy(model, dtype="float16", fold_batch_norm=fold)
    copy = tfkd.frozen_copy(model, dtype="bfloat16", fold_batch_norm=fold)
    x = some((4,), count=16)
    expected, found = model(x).numpy(), copy(x).numpy()
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_weights_that_become_0_in_float16_are_named():
    model = sequential(layers.Dense(4, name="small"), layers.Dense(3), shape=(4,))
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([kernel * 1e-9, bias])
    with pytest.warns(UserWarning, match=r"'small/kernel:0'.*6e-08.*bfloat16"):
        tfkd.frozen_copy(model, dtype="float16")


def test_errors():
    with pytest.raises(TypeError, match="`model`: expected a tf_keras model, received 3"):
        tfkd.frozen_copy(3)
    unbuilt = keras.Sequential([layers.Dense(3)])
    with pytest.raises(ValueError, match="`model`: .*unbuilt.*Input"):
        tfkd.frozen_copy(unbuilt)
    model = toys.net()
    with pytest.raises(ValueError, match="`dtype`: .*'bfloat16'.*received 'bf16'"):
        tfkd.frozen_copy(model, dtype="bf16")
    subclassed = WithConfig()
    subclassed(np.zeros((1, 5), np.float32))
    stubborn = CanNotBeCopied(3)
    stubborn(np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match="`model`: .*CanNotBeCopied.*TypeError.*get_config"):
        tfkd.frozen_copy(stubborn)
    for options in ({"dtype": "bfloat16"}, {"fold_batch_norm": True}):
        with pytest.raises(ValueError, match="`model`: .*functional or Sequential.*WithConfig"):
            tfkd.frozen_copy(subclassed, **options)


class Tied(keras.layers.Layer):
    """Holds another layer, which no config can name."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return tf.matmul(x, self.embedding.embeddings, transpose_b=True)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("layer", [False, True])
def test_weights_tied_past_the_config_are_refused_by_name(layer, fold):
    embedding, x = keras.layers.Embedding(7, 4), keras.Input((3,))
    y = keras.layers.Flatten()(keras.layers.Dense(4)(embedding(x)[:, :1]))
    out = Tied(embedding)(y) if layer else tf.matmul(y, embedding.embeddings, transpose_b=True)
    with pytest.raises(ValueError, match="`model`: .* again from (its|their) config") as e:
        tfkd.frozen_copy(keras.Model(x, out), fold_batch_norm=fold)
    assert "get_config" in str(e.value) and len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_recurrent_layers_are_copied_in_half_precision(dtype, wrapped):
    """Their weights start as orthogonal matrices, which TensorFlow can't make in bfloat16."""
    layers = keras.layers
    inside = layers.Bidirectional(layers.LSTM(4)) if wrapped else layers.GRU(4)
    model = keras.Sequential([keras.Input((5, 3)), inside, layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    want = model.predict(x, verbose=0)
    got = tfkd.frozen_copy(model, dtype=dtype).predict(x, verbose=0)
    assert np.abs(got - want).max() < 0.05 * np.ptp(want)


def test_batch_norms_that_use_the_batch_are_told():
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.BatchNormalization(name="bn")(x, training=True))
    with pytest.warns(UserWarning, match=r"frozen_copy: 'bn' is called with training=True"):
        tfkd.frozen_copy(model)


@pytest.mark.parametrize("options", [{}, {"fold_batch_norm": True}, {"dtype": "bfloat16"}])
def test_lambdas_keep_their_functions(options):
    """What a function refers to is in memory; its code alone would not hold it."""
    shift, scale = np.float32([1, 2, 3]), toys.net  # an array and an object of another module

    def shifted(x):
        return x + tf.cast(shift, x.dtype) if scale is toys.net else x

    x = keras.Input((4, 3))
    y = layers.TimeDistributed(layers.Lambda(lambda t: 2 * t))(layers.Lambda(shifted)(x))
    inner = keras.Sequential([layers.Lambda(lambda t: t - shift[0], input_shape=(4, 3))])
    copy = tfkd.frozen_copy(keras.Model(x, inner(y)), **options)
    values = np.round(some((4, 3)))  # exact in bfloat16
    np.testing.assert_array_equal(copy(values), (values + shift) * 2 - 1)


def test_a_subclassed_model_that_is_not_registered():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    x = some((3,))
    np.testing.assert_array_equal(model(x), tfkd.frozen_copy(model)(x))
