"""Counts are compared with hand counts written in the tests, and with TensorFlow's profiler."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import report
from tfkd.report import rules

L = keras.layers

# layer, input shape, parameters, [(terms, outputs)]: terms are products a number sums.
KINDS = {
    "conv1d": (L.Conv1D(5, 3), (10, 4), 3 * 4 * 5 + 5, [(12, 8 * 5)]),
    "conv2d": (L.Conv2D(6, 3, 2, "same"), (9, 9, 4), 9 * 4 * 6 + 6, [(36, 25 * 6)]),
    "conv2d_dilated": (L.Conv2D(6, 3, dilation_rate=2), (9, 9, 4), 222, [(36, 25 * 6)]),
    "conv3d": (L.Conv3D(2, 3, use_bias=False), (5, 5, 5, 3), 162, [(81, 27 * 2)]),
    "grouped": (L.Conv2D(8, 3, groups=2, padding="same"), (4, 4, 6), 224, [(27, 16 * 8)]),
    "depthwise": (
        L.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        (4, 4, 5),
        9 * 5 * 2 + 10,
        [(9, 16 * 10)],
    ),
    "depthwise1d": (L.DepthwiseConv1D(3, padding="same"), (7, 5), 15 + 5, [(3, 7 * 5)]),
    "separable": (
        L.SeparableConv2D(7, 3, padding="same", depth_multiplier=2),
        (4, 4, 5),
        9 * 5 * 2 + 10 * 7 + 7,
        [(9, 16 * 10), (10, 16 * 7)],
    ),
    "separable1d": (L.SeparableConv1D(7, 3), (6, 5), 15 + 35 + 7, [(3, 4 * 5), (5, 4 * 7)]),
    # Each of the 4·4·5 inputs is spread over 3·3·6 products.
    "transposed": (L.Conv2DTranspose(6, 3, 2, "same"), (4, 4, 5), 276, [(54, 80)]),
    "transposed1d": (L.Conv1DTranspose(6, 3, 2, "same"), (4, 5), 96, [(18, 20)]),
    "transposed3d": (L.Conv3DTranspose(2, 2, 2), (3, 3, 3, 4), 66, [(16, 108)]),
    "dense": (L.Dense(3), (7,), 24, [(7, 3)]),
    "dense_sequence": (L.Dense(3), (5, 7), 24, [(7, 15)]),
    "einsum": (L.EinsumDense("abc,cde->abde", (None, 2, 3)), (5, 7), 42, [(7, 30)]),
    "einsum_ellipsis": (L.EinsumDense("...x,xy->...y", 4), (5, 7), 28, [(7, 20)]),
    "einsum_sums_input": (L.EinsumDense("abc,cd->ad", 4), (5, 7), 28, [(35, 4)]),
    "time_distributed": (
        L.TimeDistributed(L.Conv2D(2, 3)),
        (6, 5, 5, 1),
        20,
        [(9, 6 * 9 * 2)],
    ),
    "locally_connected": (L.LocallyConnected1D(5, 3), (10, 4), 8 * (12 + 1) * 5, [(12, 8 * 5)]),
    # 10 steps; each of the 3 gates sums 4 products of the input and 5 of the state.
    "gru": (L.GRU(5), (10, 4), 3 * (4 + 5 + 2) * 5, [(4 + 5, 10 * 3 * 5)]),
    "lstm_of_both_ways": (
        L.Bidirectional(L.LSTM(5, return_sequences=True)),
        (10, 4),
        2 * 4 * (4 + 5 + 1) * 5,
        2 * [(4 + 5, 10 * 4 * 5)],
    ),
    "batch_norm": (L.BatchNormalization(), (4, 4, 5), 20, []),
    "layer_norm": (L.LayerNormalization(), (4, 5), 10, []),
    "embedding": (L.Embedding(11, 4), (6,), 44, []),
    "relu": (L.ReLU(), (4, 4, 5), 0, []),
    "max_pool": (L.MaxPooling2D(), (4, 4, 5), 0, []),
    "dropout": (L.Dropout(0.5), (5,), 0, []),
    "upsampling": (L.UpSampling2D(interpolation="bilinear"), (4, 4, 5), 0, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer_against_a_hand_count(kind):
    layer, shape, params, products = KINDS[kind]
    layer = type(layer).from_config(layer.get_config())
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    found = report.profile(model)
    assert found.params == params == model.count_params()
    assert found.macs == sum(terms * outputs for terms, outputs in products)
    assert found.flops == sum((2 * terms - 1) * outputs for terms, outputs in products)
    assert found.rows[0].output_shape == tuple(model.output_shape[1:])
    assert found.rows[0].kind == type(layer).__name__


def test_layers_that_multiply_their_inputs_by_hand():
    a, b = keras.Input((6, 4)), keras.Input((5, 4))
    values = (5, 6 * 4)  # each of 6·4 outputs is the sum of 5 weighted values
    outputs = {
        "dot": (L.Dot(axes=-1)([a, b]), [(4, 6 * 5)]),
        "cosine": (L.Dot(axes=(2, 2), normalize=True)([a, b]), [(4, 6 * 5)]),
        "vectors": (L.Dot(1)([L.Flatten()(a), L.Flatten()(a)]), [(24, 1)]),
        "attention": (L.Attention()([a, b]), [(4, 6 * 5), values]),
        "concat": (L.Attention(score_mode="concat")([a, b, b]), [values]),
        "additive": (L.AdditiveAttention()([a, b]), [(4, 6 * 5), values]),
        "sum": (L.AdditiveAttention(use_scale=False)([a, b]), [values]),
    }
    for name, (output, products) in outputs.items():
        inputs = keras.utils.get_source_inputs(output)
        found = report.profile(keras.Model(inputs, output)).macs
        assert found == sum(terms * count for terms, count in products), name


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_attention_by_hand(cross):
    targets, sources, depth, heads, key, value, out = 5, 6, 8, 2, 3, 4, 7
    a, b = keras.Input((targets, depth)), keras.Input((sources, depth))
    layer = L.MultiHeadAttention(heads, key, value, output_shape=out, name="attend")
    if not cross:
        sources, b = targets, a
    model = keras.Model([a, b] if cross else a, layer(a, value=b))
    macs = (
        targets * depth * heads * key
        + sources * depth * heads * key
        + sources * depth * heads * value
        + heads * targets * sources * (key + value)
        + targets * heads * value * out
    )
    found = report.profile(model)
    assert found.macs == macs
    assert [row.name for row in found.rows] == ["attend"]
    assert found.params == model.count_params()


@pytest.mark.parametrize(("axes", "macs"), [(-1, 7 * 5 * 3), ((1, 2), 5 * 7 * 5), (2, 7 * 5 * 3)])
def test_dot_sums_over_its_axis(axes, macs):
    a, b = keras.Input((5, 7)), keras.Input((3, 7) if axes in (-1, 2) else (5, 5))
    assert report.profile(keras.Model([a, b], L.Dot(axes, name="dot")([a, b]))).macs == macs
    a, b = keras.Input((6,)), keras.Input((6,))
    assert report.profile(keras.Model([a, b], L.Dot(1)([a, b]))).macs == 6


def resnet_macs(depth, widths, size, channels, classes):
    """The CIFAR residual network by the book: stem, 2n convolutions a stage, shortcuts, head."""
    n = (depth - 2) // 6
    total = size * size * 9 * channels * widths[0]
    before = widths[0]
    for index, width in enumerate(widths):
        size = size if index == 0 else size // 2
        total += size * size * 9 * width * (before + (2 * n - 1) * width)
        total += 0 if index == 0 else size * size * before * width  # the 1×1 shortcut
        before = width
    return total + before * classes


@pytest.mark.parametrize(("depth", "widths"), [(20, (16, 32, 64)), (8, (4, 8))])
def test_resnet_by_formula(depth, widths):
    model = tfkd.models.resnet(depth, widths=widths)
    found = report.profile(model)
    assert found.macs == resnet_macs(depth, widths, 32, 3, 10)
    assert found.params == model.count_params()
    assert found.unknown == ()


@pytest.mark.parametrize(
    ("widths", "size"), [((64, 128, 256, 512, 512), 32), ((4, 5, 6, 7, 8), 16)]
)
def test_vgg_by_formula(widths, size):
    macs, side, before = 0, size, 3
    for width, depth in zip(widths, (2, 2, 3, 3, 3), strict=True):
        macs += side * side * 9 * width * (before + (depth - 1) * width)
        side, before = side // 2, width
    macs += before * before + before * 10
    found = report.profile(tfkd.models.vgg16(10, (size, size, 3), widths))
    assert found.macs == macs
    assert found.unknown == ()
    # The count that papers give for 32 × 32 is 313 million.
    assert size != 32 or macs // 10**6 == 313


def test_paper_formula_of_a_convolution():
    inputs = keras.Input((32, 32, 16))
    model = keras.Model(inputs, L.Conv2D(64, 3, padding="same")(inputs))
    assert report.profile(model).flops == 32 * 32 * (2 * 16 * 9 - 1) * 64


def tensorflow_flops(model):
    """TensorFlow's own count on the frozen graph: two operations a multiply-accumulate."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(function)
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen.graph.as_graph_def(), name="")
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        options["output"] = "none"
        return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops


def test_agrees_with_tensorflows_profiler():
    inputs = keras.Input((24, 24, 3))
    x = L.Conv2D(16, 5, use_bias=False)(inputs)
    x = L.Conv2D(24, 3, 2, "same", use_bias=False)(x)
    plain = keras.Model(inputs, L.DepthwiseConv2D(3, use_bias=False)(x))
    vgg = tfkd.models.vgg16(widths=(32, 64, 128, 256, 256))
    for model in (plain, tfkd.models.resnet(20), vgg):
        theirs = tensorflow_flops(model) / 2
        assert abs(report.profile(model).macs - theirs) <= 0.01 * theirs


def test_nested_and_shared_layers():
    backbone = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv1"), L.ReLU(name="relu")],
        name="backbone",
    )
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    joined = L.Add(name="add")([backbone(left), backbone(right)])
    model = keras.Model([left, right], joined)
    rows = {row.name: row for row in report.profile(model).rows}
    assert list(rows) == ["backbone/conv1", "backbone/relu", "add"]
    conv = rows["backbone/conv1"]
    assert (conv.calls, conv.params) == (2, 27 * 4 + 4)
    assert conv.macs == 2 * (27 * 36 * 4)
    assert conv.flops == 2 * ((2 * 27 - 1) * 36 * 4)


def test_a_nested_model_called_on_another_size():
    inner = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(4, 1, name="c")], name="inner")
    inputs = keras.Input((10, 10, 3))
    model = keras.Model(inputs, inner(L.AveragePooling2D(2)(inputs)))
    assert report.profile(model).macs == 25 * 3 * 4


def test_open_input_shape_is_asked_for():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, L.Conv2D(4, 3, padding="same")(inputs))
    with pytest.raises(ValueError, match="input_shape"):
        report.profile(model)
    assert report.profile(model, (6, 5, 3)).macs == 30 * 27 * 4
    for bad in ((6, 0, 3), (6, None, 3), "655"):
        with pytest.raises((ValueError, TypeError), match="input_shape"):
            report.profile(model, bad)


def test_shapes_of_several_inputs():
    parts = {"a": keras.Input((None, 3), name="a"), "b": keras.Input((None, 2), name="b")}
    model = keras.Model(parts, [L.Dense(4)(parts["a"]), L.Dense(5)(parts["b"])])
    assert report.profile(model, {"a": (7, 3), "b": (6, 2)}).macs == 7 * 3 * 4 + 6 * 2 * 5
    with pytest.raises(ValueError, match=r"input_shape.*keys"):
        report.profile(model, {"a": (7, 3)})
    model = keras.Model([parts["b"], parts["a"]], model.outputs)
    for shapes in ({"a": (7, 3), "b": (6, 2)}, [(6, 2), (7, 3)]):
        assert report.profile(model, shapes).macs == 7 * 3 * 4 + 6 * 2 * 5
    asked = r"For example input_shape=\{'b': \(32, 2\), 'a': \(32, 3\)\}"
    for wrong in (None, (7, 3), [(6, 2)], {"a": (7, 3)}, [(6, 2), (7, 4)], [(6, 2), (7,)]):
        with pytest.raises(ValueError, match=rf"`input_shape`: expected.*{asked}"):
            report.profile(model, wrong)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="sub")
        self.first, self.second = L.Dense(4, name="first"), L.Dense(2, name="second")

    def call(self, x):
        return self.second(tf.nn.relu(self.first(x)))


def test_subclassed_model_and_that_its_saved_shape_stays_open():
    model = Subclassed()
    with pytest.raises(ValueError, match="built"):
        report.profile(model)
    model.build((None, 3))
    found = report.profile(model, (3,))
    assert found.macs == 3 * 4 + 4 * 2
    assert [row.name for row in found.rows] == ["first", "second"]
    assert model.save_spec() is None
    model(np.zeros((5, 3), "float32"))
    assert model.save_spec()[0][0].shape.as_list() == [None, 3]


class Strange(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight("scale", (shape[-1],))

    def call(self, x):
        return x * self.scale


def test_a_layer_with_weights_and_no_rule_is_unknown_until_taught():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Strange(name="odd")(L.Dense(6)(inputs)))
    found = report.profile(model)
    assert found.unknown == ("odd",)
    assert found.macs is None and found.flops is None
    assert found.known_macs == 36
    assert "unknown for: odd" in found.text() and "at least 36" in found.text()
    assert found.params == 42 + 6
    report.register(Strange, lambda call: ((1, call.output[-1]),))
    try:
        taught = report.profile(model)
    finally:
        rules._RULES.pop(Strange)
    assert (taught.macs, taught.flops, taught.unknown) == (42, 6 * 11 + 6, ())


def test_hidden_products_are_unknown_not_zero():
    inputs = keras.Input((4, 6))
    gram = keras.Model(inputs, tf.matmul(inputs, inputs, transpose_b=True))
    assert report.profile(gram).macs is None
    recurrent = keras.Model(inputs, L.RNN(L.LSTMCell(3), name="lstm")(inputs))
    found = report.profile(recurrent)
    assert found.unknown == ("lstm",)
    assert found.params == recurrent.count_params()
    scaled = keras.Model(inputs, L.Lambda(lambda x: 2 * x)(inputs))
    assert report.profile(scaled).macs == 0


class Attention(keras.Model):
    """Multiplies in its own call, between its layers."""

    def __init__(self):
        super().__init__(name="own")
        self.project = L.Dense(4, name="project")

    def call(self, x):
        y = self.project(x)
        return tf.einsum("btc,bsc->bts", y, y)


def test_products_in_a_models_own_call_are_unknown():
    model = Attention()
    model(np.zeros((2, 3, 5), "float32"))
    found = report.profile(model, (3, 5))
    assert found.unknown == ("own",)
    assert found.known_macs == 3 * 5 * 4
    assert found.params == 24


def test_table_is_aligned_and_its_totals_are_the_sums():
    found = report.profile(tfkd.models.resnet(8, widths=(4, 8)))
    lines = str(found).splitlines()
    assert len({len(line) for line in lines if "FLOPs" not in line and line.strip()}) == 1
    assert f"{found.macs:,}" in lines[-1] and f"{found.params:,}" in lines[-1]
    assert found.macs == sum(row.macs for row in found.rows)
    assert math.isclose(found.flops / found.macs, 2, rel_tol=0.05)


def test_profiling_leaves_the_model_and_keras_alone():
    model = tfkd.models.resnet(8, widths=(4,))
    call, before = L.Layer.__call__, model.get_weights()
    report.profile(model)
    assert L.Layer.__call__ is call
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [None, "resnet20", L.Dense(3)])
def test_not_a_model(bad):
    with pytest.raises(TypeError, match="`model`"):
        report.profile(bad)


def test_register_checks_its_arguments():
    with pytest.raises(TypeError, match="`layer_class`"):
        report.register(int, lambda call: ())
    with pytest.raises(TypeError, match="`rule`"):
        report.register(Strange, 3)


@pytest.mark.parametrize("stateful", [False, True])
def test_a_batch_of_fixed_size_counts_one_example(stateful):
    layers = [L.GRU(5, stateful=stateful), L.Dense(3)]
    model = keras.Sequential([keras.Input(batch_shape=(4, 6, 3)), *layers])
    assert report.profile(model).rows[-1].macs == 5 * 3
    x = keras.Input(batch_shape=(4, 6))
    parts = L.Dense(2, use_bias=False)(tf.reshape(x, (4, 2, 3)))
    assert report.profile(keras.Model(x, parts)).macs == 2 * 3 * 2


def test_a_sequential_model_that_was_built_on_one_batch():
    model = keras.Sequential([keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten()])
    model(np.zeros((5, 8, 8, 1), "float32"))
    found = report.profile(model)
    assert found.macs == 6 * 6 * 9 * 4
    assert [row.calls for row in found.rows] == [1, 1]
