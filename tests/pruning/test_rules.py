"""Each kind of layer: which channels go together, which stay, and the cut model's outputs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from nets import assert_exact, reasons, sizes

from tfkd import pruning

layers = keras.layers
IMAGE = (6, 6, 3)


def head(y):
    """Flatten and a dense layer of three outputs."""
    return layers.Dense(3, name="head")(layers.Flatten(name="flat")(y))


def between(middle, shape=IMAGE, filters=6, **kwargs):
    """Model: a convolution "a", what `middle` makes of it, and the head."""
    conv = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[len(shape) - 1]
    x = keras.Input(shape)
    y = conv(filters, 3, padding="same", name="a", **kwargs)(x)
    return keras.Model(x, head(middle(y)))


A = "a.kernel:3 a.bias:0"

# id → (what stands between "a" and the head, the places that are zero), one group "a" of 6.
CHANNELWISE = {
    "nothing": (lambda y: y, A),
    "relu": (layers.ReLU(), A),
    "relu6": (layers.ReLU(6.0, 0.1), A),
    "leaky": (layers.LeakyReLU(), A),
    "elu": (layers.ELU(), A),
    "thresholded": (layers.ThresholdedReLU(0.2), A),
    **{
        name: (layers.Activation(name), A)
        for name in "linear relu elu selu swish gelu tanh softsign mish".split()
    },
    "tf function": (layers.Activation(tf.nn.relu6), A),
    "dropout": (layers.Dropout(0.5), A),
    "spatial dropout": (layers.SpatialDropout2D(0.5), A),
    "noise": (layers.GaussianNoise(0.5), A),
    "activity": (layers.ActivityRegularization(0.1), A),
    "rescaling": (layers.Rescaling(0.3), A),
    "max pool": (layers.MaxPooling2D(2, padding="same"), A),
    "average pool": (layers.AveragePooling2D(2), A),
    "global max": (layers.GlobalMaxPooling2D(), A),
    "global average": (layers.GlobalAveragePooling2D(keepdims=True), A),
    "padding": (layers.ZeroPadding2D(((1, 0), (2, 1))), A),
    "cropping": (layers.Cropping2D(1), A),
    "up nearest": (layers.UpSampling2D(2), A),
    "up bilinear": (layers.UpSampling2D(2, interpolation="bilinear"), A),
    "permute": (layers.Permute((3, 1, 2)), A),
    "reshape whole": (layers.Reshape((36, 6)), A),
    "reshape -1": (layers.Reshape((-1, 6)), A),
    "reshape c -1": (layers.Reshape((4, 9, -1)), A),
    "bn": (layers.BatchNormalization(name="n"), A + " n.gamma:0 n.beta:0"),
    "bn no scale": (
        layers.BatchNormalization(scale=False, name="n"),
        A + " n.beta:0 n.moving_mean:0",
    ),
    "bn no center": (layers.BatchNormalization(center=False, name="n"), A + " n.gamma:0"),
    "bn nothing": (
        layers.BatchNormalization(center=False, scale=False, name="n"),
        A + " n.moving_mean:0",
    ),
    "bn sync": (
        layers.BatchNormalization(synchronized=True, name="n"),
        A + " n.gamma:0 n.beta:0",
    ),
    "bn old sync": (
        layers.experimental.SyncBatchNormalization(name="n"),
        A + " n.gamma:0 n.beta:0",
    ),
    "prelu shared": (layers.PReLU(shared_axes=[1, 2], name="p"), A),
    "prelu": (layers.PReLU(name="p"), A),
    "prelu one": (layers.PReLU(shared_axes=[1, 2, 3], name="p"), A),
}


def fresh(layer):
    """A new layer of the same config: the table's layers are made only once."""
    return type(layer).from_config(layer.get_config()) if isinstance(layer, layers.Layer) else layer


@pytest.mark.parametrize("kind", CHANNELWISE)
def test_layers_that_work_channel_by_channel(kind):
    middle, places = CHANNELWISE[kind]
    model = between(fresh(middle))
    graph, selection, small = assert_exact(model, places)
    assert sizes(graph) == {"a": (6, "a")}
    assert reasons(graph) == {"head": "output of the model"}
    assert small.get_layer("a").filters == 6 - selection.count == 4
    assert small.output_shape == (None, 3)


@pytest.mark.parametrize("function", ["relu", "swish", "tanh", "selu", layers.LeakyReLU(0.3)])
def test_activation_inside_a_layer(function):
    graph, _, _ = assert_exact(between(lambda y: y, activation=function), A)
    assert sizes(graph) == {"a": (6, "a")}


# Where f(0) is not 0, a dead channel is still a constant to the next convolution.
@pytest.mark.parametrize(
    "middle",
    [
        layers.Activation("sigmoid"),
        layers.Activation("softplus"),
        layers.Activation("hard_sigmoid"),
        layers.Activation("exponential"),
        layers.ReLU(negative_slope=0.1, threshold=0.5),
        layers.Rescaling(2.0, 1.0),
        layers.Softmax(axis=1),
    ],
    ids=lambda layer: layer.get_config().get("activation", type(layer).__name__),
)
def test_a_value_that_is_not_zero_stays_where_channels_mix(middle):
    def build(y):
        return layers.Conv2D(4, 3, name="b")(fresh(middle)(y))

    graph, _, _ = assert_exact(between(build), "b.kernel:3 b.bias:0")
    assert sizes(graph) == {"b": (4, "b")}
    assert reasons(graph)["a"] == "not zero where b mixes channels"


def test_a_batch_norm_makes_any_value_zero_again():
    def build(y):
        y = layers.BatchNormalization(name="n")(layers.Activation("sigmoid")(y))
        return layers.Conv2D(4, 3, name="b")(y)

    places = "a.kernel:3=a a.bias:0=a n.gamma:0=a n.beta:0=a b.kernel:3=b b.bias:0=b"
    graph, _, _ = assert_exact(between(build), places)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}


@pytest.mark.parametrize("scale", [True, False])
def test_a_batch_norm_without_scale_cannot(scale):
    def build(y):
        y = layers.BatchNormalization(scale=scale, name="n")(layers.Activation("sigmoid")(y))
        return layers.Conv2D(4, 3, name="b")(y)

    assert ("a" in sizes(pruning.analyse(between(build)))) is scale


# What stands in the middle, the reason why "a" stays; every reason names its layer.
@keras.saving.register_keras_serializable(package="tests")
def relu(x):
    """A function of the name of a known one."""
    return tf.reverse(x, [-1])


class Unknown(layers.Layer):
    """Doubles its input; nothing is known of it."""

    def call(self, x):
        return 2.0 * x


FROZEN = {
    "softmax": (layers.Softmax(name="s"), "s takes a softmax over channels"),
    "softmax function": (
        layers.Activation("softmax", name="s"),
        "s takes a softmax over channels",
    ),
    "layer norm": (layers.LayerNormalization(name="s"), "s takes a mean over channels"),
    "layer norm of space": (
        layers.LayerNormalization(axis=(1, 2), name="s"),
        "s has a scale along another axis than the channels",
    ),
    "group norm": (layers.GroupNormalization(3, name="s"), "s takes a mean over channels"),
    "unit norm": (layers.UnitNormalization(name="s"), "s takes a mean over channels"),
    "bn of rows": (
        layers.BatchNormalization(axis=1, name="s"),
        "s normalizes another axis than the channels",
    ),
    "bn with renorm": (
        layers.BatchNormalization(renorm=True, name="s"),
        "s has statistics for renormalization",
    ),
    "resizing": (layers.Resizing(5, 5, name="s"), "no rule for s, a Resizing"),
    "lambda": (layers.Lambda(lambda x: x + 1.0, name="s"), "no rule for s, a Lambda"),
    "custom": (Unknown(name="s"), "no rule for s, a Unknown"),
    "alpha dropout": (layers.AlphaDropout(0.1, name="s"), "no rule for s, a AlphaDropout"),
    "function of the user": (
        layers.Activation(relu, name="s"),
        "s applies 'relu', which is not known to be elementwise",
    ),
    "rescaling of each": (
        layers.Rescaling([1.0, 2, 3, 4, 5, 6], name="s"),
        "s has a separate constant for each channel",
    ),
    "reshape apart": (
        layers.Reshape((6, 6, 2, 3), name="s"),
        "s spreads channels over several axes",
    ),
    "permuted pool": (
        lambda y: layers.MaxPooling2D(2, name="s")(layers.Permute((3, 1, 2))(y)),
        "s works along another axis than the channels",
    ),
    "permuted conv": (
        lambda y: layers.Conv2D(1, 1, name="s")(layers.Permute((3, 1, 2))(y)),
        "s works along another axis than the channels",
    ),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_layers_that_keep_all_channels(kind):
    middle, reason = FROZEN[kind]

    def build(y):
        y = middle(y) if kind.startswith("permuted") else fresh(middle)(y)
        return layers.Dense(4, name="b")(layers.Flatten()(y))

    graph, _, small = assert_exact(between(build), "b.kernel:1=b b.bias:0=b")
    assert sizes(graph)["b"] == (4, "b")
    assert "a" not in sizes(graph)
    assert reason in reasons(graph)["a"]
    assert small.get_layer("a").filters == 6


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_read_channels_and_keep_their_own(kind):
    def build(y):
        return getattr(layers, kind)(4, name="rnn")(layers.Reshape((36, 6))(y))

    graph, _, small = assert_exact(between(build), A)
    assert sizes(graph) == {"a": (6, "a")}
    assert small.get_layer("rnn").cell.kernel.shape[0] == 4


def test_recurrent_layers_with_states_keep_all_channels():
    x = keras.Input((5, 3))
    state = layers.Dense(4, name="start")(layers.GlobalAveragePooling1D()(x))
    y = layers.GRU(4, name="rnn")(layers.Dense(6, name="a")(x), initial_state=state)
    graph, _, _ = assert_exact(keras.Model(x, layers.Dense(3, name="head")(y)))
    assert sizes(graph) == {}
    assert reasons(graph)["a"] == reasons(graph)["start"] == "rnn takes initial states as inputs"


def test_a_wrapper_of_an_unknown_layer_keeps_all_channels():
    x = keras.Input((5, 3))
    y = layers.Dense(6, name="a")(x)
    y = layers.TimeDistributed(Unknown(), name="t")(y)
    y = layers.Bidirectional(layers.RNN(layers.LSTMCell(4)), name="rnn")(
        layers.Dense(5, name="b")(y)
    )
    graph, _, _ = assert_exact(keras.Model(x, layers.Dense(3, name="head")(y)))
    assert sizes(graph) == {}
    assert reasons(graph)["a"] == "no rule for the layer inside t"
    assert reasons(graph)["b"] == "no rule for the layer inside rnn"


def test_the_layers_of_a_model_inside_a_wrapper_are_named():
    parts = [layers.Conv2D(6, 3, name="conv"), layers.Flatten(), layers.Dense(5, name="dense")]
    cnn = keras.Sequential([keras.Input((4, 4, 3)), *parts], name="cnn")
    x = keras.Input((2, 4, 4, 3))
    y = layers.Dense(7, name="a")(layers.Flatten()(layers.TimeDistributed(cnn, name="t")(x)))
    graph, _, _ = assert_exact(keras.Model(x, layers.Dense(3, name="head")(y)))
    assert sizes(graph) == {"a": (7, "a")}
    hidden = [one for one in graph.frozen if one.name.startswith("t/")]
    assert [(one.name, one.channels) for one in hidden] == [("t/conv", 6), ("t/dense", 5)]
    assert {one.reason for one in hidden} == {"in the model inside t, which is not analysed"}
    plan = pruning.plan(graph.model, filter_rate=0.5)
    assert "t/conv" in plan.text() and pruning.plan(graph.model, filter_rate=0.5, ignore="conv")


@pytest.mark.parametrize("inner", ["dense", "conv", "depthwise", "bn"])
def test_time_distributed_layers(inner):
    x = keras.Input((4, 5, 6, 3))
    y = layers.TimeDistributed(layers.Conv2D(6, 3, padding="same"), name="a")(x)
    layer = {
        "dense": layers.Dense(4),
        "conv": layers.Conv2D(4, 3, activation="relu"),
        "depthwise": layers.DepthwiseConv2D(3),
        "bn": layers.BatchNormalization(),
    }[inner]
    y = layers.TimeDistributed(layer, name="b")(y)
    graph, _, _ = assert_exact(keras.Model(x, head(y)))
    own = {"b": (4, "b")} if inner in ("dense", "conv") else {}
    assert sizes(graph) == {"a": (6, "a"), **own}


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("abc,cd->abd", (5, 6)), ("abc,cd->abd", (None, 6)), ("...x,xy->...y", 6)],
)
def test_einsum_dense_that_is_a_dense_layer(equation, shape):
    x = keras.Input((5, 3))
    y = layers.EinsumDense(equation, shape, bias_axes=equation[-1], name="a")(x)
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "a.kernel:1 a.bias:0")
    assert sizes(graph) == {"a": (6, "a")}


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("abc,bcd->ad", (4,)), ("abc,cde->abde", (5, 2, 2)), ("abc,bd->adc", (4, 6))],
)
def test_einsum_dense_that_is_something_else(equation, shape):
    x = keras.Input((5, 3))
    y = layers.EinsumDense(equation, shape, name="s")(layers.Dense(6, name="a")(x))
    graph, _, _ = assert_exact(keras.Model(x, head(y)))
    assert sizes(graph) == {}
    assert reasons(graph)["a"].startswith("s (")


def test_attention_of_its_inputs_width():
    x = keras.Input((5, 3))
    q, v = layers.Dense(6, name="q")(x), layers.Dense(4, name="v")(x)
    y = layers.MultiHeadAttention(2, 3, output_shape=7, name="m")(q, v)
    own = "m._output_dense.kernel:2=m m._output_dense.bias:0=m "
    places = own + "q.kernel:1=q q.bias:0=q v.kernel:1=v v.bias:0=v"
    graph, _, small = assert_exact(keras.Model(x, head(y)), places)
    assert sizes(graph) == {"q": (6, "q"), "v": (4, "v"), "m": (7, "m")}
    assert small.get_layer("m").output_shape[-1] == 4


def test_masking_with_a_number_that_is_not_zero_looks_at_dead_channels():
    def build(mask_value):
        return between(layers.Masking(mask_value), (5, 2))

    assert sizes(pruning.analyse(build(0.0))) == {"a": (6, "a")}
    assert sizes(pruning.analyse(build(1.0))) == {}


# Layers with filters: "a" → the layer "b" → head. Groups by hand; b has 8 filters.
B2 = "a.kernel:3=a a.bias:0=a b.kernel:3=b b.bias:0=b"
FILTERS = {
    "conv1": (
        lambda: between(layers.Conv1D(8, 3, 2, "same", name="b"), (7, 3)),
        "a.kernel:2=a a.bias:0=a b.kernel:2=b b.bias:0=b",
    ),
    "conv1 causal": (
        lambda: between(layers.Conv1D(8, 3, padding="causal", name="b"), (7, 3)),
        "a.kernel:2=a a.bias:0=a b.kernel:2=b b.bias:0=b",
    ),
    "conv2": (lambda: between(layers.Conv2D(8, 3, 2, name="b")), B2),
    "conv2 dilated": (lambda: between(layers.Conv2D(8, 3, dilation_rate=2, name="b")), B2),
    "conv3": (
        lambda: between(layers.Conv3D(8, 2, name="b"), (4, 4, 4, 2)),
        "a.kernel:4=a a.bias:0=a b.kernel:4=b b.bias:0=b",
    ),
    "transposed1": (
        lambda: between(layers.Conv1DTranspose(8, 3, 2, name="b"), (7, 3)),
        "a.kernel:2=a a.bias:0=a b.kernel:1=b b.bias:0=b",
    ),
    "transposed2": (
        lambda: between(layers.Conv2DTranspose(8, 3, 2, "same", name="b")),
        "a.kernel:3=a a.bias:0=a b.kernel:2=b b.bias:0=b",
    ),
    "transposed3": (
        lambda: between(layers.Conv3DTranspose(8, 2, name="b"), (3, 3, 3, 2)),
        "a.kernel:4=a a.bias:0=a b.kernel:3=b b.bias:0=b",
    ),
    "separable1": (
        lambda: between(layers.SeparableConv1D(8, 3, depth_multiplier=2, name="b"), (7, 3)),
        "a.kernel:2=a a.bias:0=a b.pointwise_kernel:2=b b.bias:0=b",
    ),
    "separable2": (
        lambda: between(layers.SeparableConv2D(8, 3, depth_multiplier=2, name="b")),
        "a.kernel:3=a a.bias:0=a b.pointwise_kernel:3=b b.bias:0=b",
    ),
    "dense": (
        lambda: between(layers.Dense(8, name="b")),
        "a.kernel:3=a a.bias:0=a b.kernel:1=b b.bias:0=b",
    ),
}


@pytest.mark.parametrize("kind", FILTERS)
def test_layers_with_filters_of_their_own(kind):
    build, places = FILTERS[kind]
    graph, _, small = assert_exact(build(), places)
    assert sizes(graph) == {"a": (6, "a"), "b": (8, "b")}
    layer = small.get_layer("b")
    assert getattr(layer, "filters", getattr(layer, "units", None)) == 5
    assert small.get_layer("a").filters == 4


def test_no_bias():
    model = between(layers.Conv2D(8, 3, use_bias=False, name="b"), use_bias=False)
    graph, _, _ = assert_exact(model, "a.kernel:3=a b.kernel:3=b")
    assert sizes(graph) == {"a": (6, "a"), "b": (8, "b")}


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("rank", [1, 2])
def test_depthwise_repeats_each_channel(multiplier, rank):
    kind = {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D}[rank]
    model = between(
        kind(3, depth_multiplier=multiplier, padding="same", name="d"), (7, 6, 3)[-rank - 1 :]
    )
    m = multiplier
    places = f"a.kernel:{rank + 1} a.bias:0 d.depthwise_kernel:{rank} d.bias:0/{m}"
    graph, _, small = assert_exact(model, places)
    assert sizes(graph) == {"a": (6, "a")}
    assert small.get_layer("d").output_shape[-1] == 4 * m


def test_depthwise_of_the_models_input_keeps_its_channels():
    x = keras.Input(IMAGE)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, name="d")(x)
    model = keras.Model(x, head(layers.Conv2D(4, 1, name="b")(y)))
    graph, _, _ = assert_exact(model, "b.kernel:3 b.bias:0")
    assert sizes(graph) == {"b": (4, "b")}


def test_grouped_convolution_ties_the_offsets_of_its_groups():
    # 6 inputs in 3 groups of 2; 12 outputs in 3 groups of 4.
    model = between(layers.Conv2D(12, 3, groups=3, name="g"))
    places = "a.kernel:3%2=a a.bias:0%2=a g.kernel:3%4=g g.bias:0%4=g"
    graph, _, small = assert_exact(model, places)
    assert sizes(graph) == {"a": (2, "a"), "g": (4, "g")}
    assert small.get_layer("a").filters == 3  # one of the two offsets, in three groups
    assert small.get_layer("g").filters == 6
    assert small.get_layer("g").groups == 3


def test_convolution_with_one_input_a_group_is_depthwise():
    model = between(layers.Conv2D(12, 3, groups=6, name="g"))
    places = "a.kernel:3 a.bias:0 g.kernel:3/2 g.bias:0/2"
    graph, _, small = assert_exact(model, places)
    assert sizes(graph) == {"a": (6, "a")}
    assert (small.get_layer("g").groups, small.get_layer("g").filters) == (4, 8)


def test_prelu_with_its_own_slope_for_each_channel_is_gathered():
    model = between(layers.PReLU(shared_axes=[1, 2], name="p"))
    _, selection, small = assert_exact(model)
    stays = np.delete(np.arange(6), selection.removed["a"])
    expected = model.get_layer("p").alpha.numpy()[..., stays]
    np.testing.assert_array_equal(small.get_layer("p").alpha.numpy(), expected)


def test_embedding_loses_columns():
    x = keras.Input((5,), dtype="int32")
    y = layers.Embedding(9, 6, name="e")(x)
    model = keras.Model(x, head(layers.Conv1D(4, 3, name="b")(y)))
    graph, _, small = assert_exact(model, "e.embeddings:1=e b.kernel:2=b b.bias:0=b")
    assert sizes(graph) == {"e": (6, "e"), "b": (4, "b")}
    assert small.get_layer("e").output_dim == 4


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Average", "Maximum", "Minimum", "Multiply"])
def test_a_merge_ties_its_branches(kind):
    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(6, 3, name=name)(x) for name in "ab"]
    y = getattr(layers, kind)(name="m")(branches)
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "a.kernel:3 a.bias:0 b.kernel:3 b.bias:0")
    assert sizes(graph) == {"a": (6, "a", "b")}
    assert graph.group("a").residual is (kind != "Multiply")


def test_three_branches_and_the_input_itself():
    x = keras.Input((6, 6, 4))
    y = layers.Add(name="m")([layers.Conv2D(4, 1, name=n)(x) for n in "ab"])
    y = layers.Add(name="k")([layers.Conv2D(4, 1, name="c")(y), x])
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "a.kernel:3 a.bias:0 b.kernel:3 b.bias:0")
    assert sizes(graph) == {"a": (4, "a", "b")}
    assert reasons(graph)["c"] == "k couples it to frozen channels"


@pytest.mark.parametrize("kind", ["Add", "Multiply", "Maximum"])
def test_a_merge_that_broadcasts_space_ties(kind):
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    z = layers.GlobalAveragePooling2D(keepdims=True)(layers.Conv2D(6, 3, name="b")(x))
    graph, _, _ = assert_exact(
        keras.Model(x, head(getattr(layers, kind)()([y, z]))),
        "a.kernel:3 a.bias:0 b.kernel:3 b.bias:0",
    )
    assert sizes(graph) == {"b": (6, "b", "a")}


def test_a_merge_of_other_ranks():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    z = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="b")(x))
    model = keras.Model(x, head(layers.Multiply()([y, z])))
    graph, _, _ = assert_exact(model, "a.kernel:3 a.bias:0 b.kernel:3 b.bias:0")
    assert sizes(graph) == {"b": (6, "b", "a")}


def test_a_map_spread_over_all_channels_stays():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    z = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="map")(x)
    model = keras.Model(x, head(layers.Multiply(name="m")([y, z])))
    graph, _, _ = assert_exact(model, A)
    assert sizes(graph) == {"a": (6, "a")}
    assert reasons(graph)["map"] == "m broadcasts it over all channels"


def test_a_sum_with_a_spread_map_is_not_zero():
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    z = layers.Conv2D(1, 3, padding="same", name="map")(x)
    graph = pruning.analyse(keras.Model(x, head(layers.Add(name="m")([y, z]))))
    assert sizes(graph) == {}
    assert reasons(graph)["a"] == "not zero where head mixes channels"


def test_concatenation_keeps_the_groups_apart():
    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(n, 3, name=name)(x) for name, n in (("a", 6), ("b", 4))]
    y = layers.Concatenate()([*branches, layers.Cropping2D(1)(x)])
    y = layers.BatchNormalization(name="n")(y)
    places = (
        "a.kernel:3=a a.bias:0=a b.kernel:3=b b.bias:0=b "
        "n.gamma:0=a n.beta:0=a n.gamma:0+6=b n.beta:0+6=b"
    )
    graph, _, small = assert_exact(keras.Model(x, head(y)), places)
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}
    assert small.get_layer("n").gamma.shape == (4 + 2 + 3,)


def test_concatenation_in_space_lays_channels_on_each_other():
    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(6, 3, name=name)(x) for name in "ab"]
    y = layers.Conv2D(4, 3, name="c")(layers.Concatenate(axis=1)(branches))
    places = "a.kernel:3=a a.bias:0=a b.kernel:3=a b.bias:0=a c.kernel:3=c c.bias:0=c"
    graph, _, _ = assert_exact(keras.Model(x, head(y)), places)
    assert sizes(graph) == {"a": (6, "a", "b"), "c": (4, "c")}


def test_concatenation_in_space_with_what_stays():
    x = keras.Input(IMAGE)
    y = layers.Concatenate(axis=2, name="cat")([layers.Conv2D(3, 1, name="a")(x), x])
    graph = pruning.analyse(keras.Model(x, head(y)))
    assert sizes(graph) == {}
    assert reasons(graph)["a"] == "cat couples it to frozen channels"


def test_concatenation_along_axes_that_differ():
    x = keras.Input((6, 6, 6))
    y = layers.Permute((3, 1, 2))(layers.Conv2D(6, 1, name="a")(x))
    z = layers.Conv2D(6, 1, name="b")(x)
    graph = pruning.analyse(keras.Model(x, head(layers.Concatenate(name="cat")([y, z]))))
    assert sizes(graph) == {}
    assert "cat joins tensors whose channels are on different axes" in reasons(graph)["a"]


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "softplus"])
def test_squeeze_and_excite(gate):
    x = keras.Input(IMAGE)
    y = layers.Conv2D(6, 3, name="a")(x)
    s = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(y))
    s = layers.Conv2D(4, 1, activation="relu", name="down")(s)
    s = layers.Conv2D(6, 1, activation=gate, name="up")(s)
    places = "a.kernel:3=a a.bias:0=a down.kernel:3=down down.bias:0=down"
    graph, _, small = assert_exact(keras.Model(x, head(layers.Multiply()([y, s]))), places)
    assert sizes(graph) == {"a": (6, "a", "up"), "down": (4, "down")}
    assert small.get_layer("up").filters == 4


def test_layer_scale_and_stochastic_depth():
    from tf_keras.src.applications import convnext

    def build(y):
        z = layers.Activation("sigmoid")(layers.Conv2D(6, 1, name="b")(y))
        z = convnext.LayerScale(0.5, 6, name="scale")(z)
        return layers.Add()([y, convnext.StochasticDepth(0.1)(z)])

    graph, _, small = assert_exact(between(build), A + " scale.gamma:0 b.kernel:3 b.bias:0")
    assert sizes(graph) == {"a": (6, "a", "b")}
    assert small.get_layer("scale").gamma.shape == (4,)


def test_scaled_sum_of_inception_resnet():
    from tf_keras.src.applications import inception_resnet_v2

    x = keras.Input(IMAGE)
    branches = [layers.Conv2D(6, 3, name=name)(x) for name in "ab"]
    y = inception_resnet_v2.CustomScaleLayer(0.3)(branches)
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "a.kernel:3 a.bias:0 b.kernel:3 b.bias:0")
    assert sizes(graph) == {"a": (6, "a", "b")}


def test_flatten_tiles_the_channels():
    model = between(lambda y: y)
    _, selection, small = assert_exact(model)
    # Rows of the head's kernel are positions × channels, channels last.
    stays = np.delete(np.arange(6), selection.removed["a"])
    rows = (np.arange(36)[:, None] * 6 + stays).reshape(-1)
    expected = model.get_layer("head").kernel.numpy()[rows]
    np.testing.assert_array_equal(small.get_layer("head").kernel.numpy(), expected)


def test_flatten_channels_first():
    def build(y):
        y = layers.Permute((3, 1, 2))(y)  # batch, channels, height, width
        return layers.Dense(4, name="b")(layers.Flatten(data_format="channels_first")(y))

    graph, _, _ = assert_exact(between(build), "a.kernel:3=a a.bias:0=a b.kernel:1=b b.bias:0=b")
    assert sizes(graph) == {"a": (6, "a"), "b": (4, "b")}


def test_global_pooling_channels_first():
    def build(y):
        return layers.GlobalAveragePooling2D(data_format="channels_first")(
            layers.Permute((3, 1, 2))(y)
        )

    assert sizes(assert_exact(between(build), A)[0]) == {"a": (6, "a")}


def test_repeat_vector():
    x = keras.Input((5,))
    y = layers.RepeatVector(4)(layers.Dense(6, name="a")(x))
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "a.kernel:1 a.bias:0")
    assert sizes(graph) == {"a": (6, "a")}


@pytest.mark.parametrize("rank", [1, 3])
def test_shapes_in_one_and_three_dimensions(rank):
    def build(y):
        for kind in ("ZeroPadding", "MaxPooling", "UpSampling", "Cropping", "AveragePooling"):
            y = getattr(layers, f"{kind}{rank}D")()(y)
        y = getattr(layers, f"SpatialDropout{rank}D")(0.1)(y)
        return getattr(layers, f"GlobalMaxPooling{rank}D")()(y)

    graph, _, _ = assert_exact(between(build, (8,) * rank + (2,)), f"a.kernel:{rank + 1} a.bias:0")
    assert sizes(graph) == {"a": (6, "a")}


def test_a_reshape_that_lays_a_zero_and_a_nonzero_copy_on_one_channel():
    # concat(y, sigmoid(y)) → (2, 6): channel i lies on both rows; the second is not zero.
    x = keras.Input((5,))
    y = layers.Dense(6, name="a")(x)
    y = layers.Reshape((2, 6))(layers.Concatenate()([y, layers.Activation("sigmoid")(y)]))
    y = layers.Conv1D(4, 1, name="b")(y)
    graph, _, _ = assert_exact(keras.Model(x, head(y)), "b.kernel:2 b.bias:0")
    assert sizes(graph) == {"b": (4, "b")}
    assert reasons(graph)["a"] == "not zero where b mixes channels"


class Scale(layers.Layer):
    """A factor and an offset of its own for each channel."""

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=shape[-1:])
        self.offset = self.add_weight(name="offset", shape=shape[-1:])

    def call(self, x):
        return x * self.factor + self.offset


@pytest.fixture
def rules():
    """The table of rules as it was, after the test."""
    from tfkd.pruning.rules import registry

    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)


def scale_rule(call):
    for name in ("factor", "offset"):
        call.weight(name, 0, call.at(call.input, -1), zeroed=True)
    return call.same(call.input)


def test_a_custom_layer_stays_until_a_rule_is_taught(rules):
    model = between(Scale(name="s"))
    assert "a" not in sizes(pruning.analyse(model))
    pruning.register_rule(Scale, scale_rule)
    graph, _, small = assert_exact(model, A + " s.offset:0")
    assert sizes(graph) == {"a": (6, "a")}
    assert small.get_layer("s").factor.shape == (4,)


def test_a_rule_is_not_for_subclasses(rules):
    class Child(Scale):
        pass

    pruning.register_rule(Scale, scale_rule)
    assert sizes(pruning.analyse(between(Child(name="s")))) == {}


def test_a_wrong_rule_is_found_when_shrinking(rules):
    from nets import randomize, some

    def wrong(call):  # leaves the offset where it is: a dead channel is not zero
        call.weight("factor", 0, call.at(call.input, -1))
        call.weight("offset", 0, call.at(call.input, -1))
        return call.same(call.input)

    pruning.register_rule(Scale, wrong)
    model = randomize(between(Scale(name="s")))
    selection = some(pruning.analyse(model))
    with pytest.raises(ValueError, match="expected the shrunk model to equal the masked one"):
        pruning.shrink(model, selection)
    assert pruning.shrink(model, selection, verify=False).get_layer("a").filters == 4


def test_register_rule_says_what_it_takes():
    with pytest.raises(TypeError, match="layer_class"):
        pruning.register_rule("Scale", scale_rule)
    with pytest.raises(TypeError, match="rule"):
        pruning.register_rule(Scale, None)
