"""Which layers are int8, and which tensors have a range, by hand for small graphs."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth

from tfkd.networks.call_graph import CallGraph
from tfkd.quantization.operations import operations_of
from tfkd.quantization.placement import place

L = keras.layers


def image():
    return keras.Input((8, 8, 4), name="image")


def decide(outputs, target="tflite", fallback="output_only", floats=None):
    """{layer: Decision} of the graph that ends in `outputs`."""
    inputs = keras.utils.get_source_inputs(outputs[0] if isinstance(outputs, list) else outputs)
    operations = operations_of(CallGraph(keras.Model(inputs, outputs)))
    rows = place(list(operations.values()), target, fallback, floats or {})
    return {row.layer: row for row in rows}


def ranges(rows):
    return [name for name, row in rows.items() if row.output]


def marked(rows):
    return [name for name, row in rows.items() if row.tensorrt]


def conv(x, name, **kwargs):
    return L.Conv2D(4, 3, padding="same", name=name, **kwargs)(x)


def test_convolution_normalization_and_relu_have_one_range():
    x = conv(image(), "conv")
    x = L.ReLU(6.0, name="relu")(L.BatchNormalization(name="norm")(x))
    rows = decide(x)
    assert ranges(rows) == ["image", "relu"]
    assert [row.action for row in rows.values()] == ["int8", "int8", "fused", "fused"]


@pytest.mark.parametrize(
    "layer",
    [LayerScale(0.5, 4, name="x"), L.Rescaling(2.0, name="x"), L.Rescaling([1, 2, 3, 4], name="x")],
    ids=lambda layer: type(layer).__name__,
)
def test_factors_of_channels_are_a_part_of_the_convolution_before_them(layer):
    rows = decide(L.Add(name="add")([x := conv(image(), "first"), layer(conv(x, "conv"))]), "both")
    assert ranges(rows) == ["image", "first", "x", "add"]
    assert (rows["x"].action, rows["x"].why) == ("fused", "one kernel with 'conv'")
    # TensorRT adds within that convolution.
    assert marked(rows) == ["image", "first"]


def test_factors_of_channels_that_stand_alone_have_a_range():
    x = L.Activation("swish", name="swish")(conv(image(), "conv"))
    rows = decide(L.ReLU(name="relu")(LayerScale(0.5, 4, name="x")(x)))
    assert ranges(rows) == ["image", "conv", "swish", "relu"]
    assert (rows["x"].action, rows["x"].why) == ("int8", "a scale and an offset of each channel")


def test_a_tensor_with_two_readers_or_that_is_an_output_ends_its_unit():
    x = conv(image(), "conv")
    y = L.ReLU(name="relu")(x)
    z = L.Multiply(name="mul")([x, y])
    assert ranges(decide(z)) == ["image", "conv", "relu", "mul"]
    x = conv(image(), "conv")
    assert ranges(decide([x, L.ReLU(name="relu")(x)])) == ["image", "conv", "relu"]


def test_normalization_after_an_activation_stands_alone():
    x = L.BatchNormalization(name="norm")(conv(image(), "conv", activation="relu"))
    assert ranges(decide(L.ReLU(name="relu")(x))) == ["image", "conv", "relu"]


def test_a_convolution_that_is_called_twice_takes_in_no_normalization():
    layer = L.Conv2D(4, 1, name="conv")
    first = L.BatchNormalization(name="norm")(layer(image()))
    rows = decide(layer(first))
    assert ranges(rows) == ["image", "conv", "norm"]
    assert rows["norm"].action == "int8"


@pytest.mark.parametrize(
    "layer",
    [
        L.MaxPooling2D(name="x"),
        L.Flatten(name="x"),
        L.Reshape((64, 4), name="x"),
        L.Permute((2, 1, 3), name="x"),
        L.ZeroPadding2D(name="x"),
        L.Cropping2D(name="x"),
        L.UpSampling2D(name="x"),
        L.Dropout(0.5, name="x"),
        StochasticDepth(0.5, name="x"),
        L.Activation("linear", name="x"),
        L.GlobalMaxPooling2D(name="x"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_move_numbers_have_no_range(layer):
    rows = decide(layer(conv(image(), "conv")))
    assert ranges(rows) == ["image", "conv"]
    assert rows["x"].action == "same grid"


@pytest.mark.parametrize(
    "layer",
    [
        L.AveragePooling2D(name="x"),
        L.GlobalAveragePooling2D(name="x"),
        L.PReLU(name="x"),
        L.LeakyReLU(name="x"),
        L.ReLU(max_value=3.0, name="x"),
        L.Activation("swish", name="x"),
        L.Activation("softmax", name="x"),
        L.UpSampling2D(interpolation="bilinear", name="x"),
        L.Rescaling(np.ones((8, 8, 4)), name="x"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_compute_have_a_range(layer):
    rows = decide(layer(conv(image(), "conv")))
    assert ranges(rows) == ["image", "conv", "x"]
    assert rows["x"].action == "int8"


def test_only_the_output_of_a_concatenation_has_a_range_if_nobody_else_reads_the_inputs():
    start = image()
    a = L.MaxPooling2D(name="pool")(conv(start, "a"))
    b = L.MaxPooling2D(name="pool_b")(conv(start, "b"))
    rows = decide([L.Concatenate(name="cat")([a, b]), L.Activation("swish", name="swish")(b)])
    assert set(ranges(rows)) == {"image", "b", "swish", "cat"}
    assert "cat" in rows["a"].why
    fixed = L.Concatenate(name="cat")([conv(start, "c"), L.Activation("tanh", name="tanh")(start)])
    assert set(ranges(decide(fixed))) == {"image", "tanh", "cat"}


def residual(second="conv"):
    x = L.ReLU(name="start")(conv(image(), "first"))
    y = L.BatchNormalization(name="norm")(conv(x, "second"))
    y = L.ReLU(name="branch")(y) if second == "relu" else y
    y = L.Dropout(0.2, name="drop")(y) if second == "dropout" else y
    return L.ReLU(name="end")(L.Add(name="add")([x, y]))


def test_a_sum_and_its_relu_have_one_range():
    assert ranges(decide(residual())) == ["image", "start", "norm", "end"]


def test_tensorrt_leaves_one_branch_of_a_sum_open():
    rows = decide(L.Conv2D(2, 1, name="last")(residual()), "both")
    assert marked(rows) == ["image", "start", "end"]
    assert ranges(rows) == ["image", "start", "norm", "end", "last"]
    rows = decide(L.Conv2D(2, 1, name="last")(residual()), "tensorrt")
    assert ranges(rows) == marked(rows) == ["image", "start", "end"]


def test_tensorrt_quantizes_a_branch_that_ends_in_an_activation():
    assert marked(decide(residual("relu"), "both")) == ["image", "start", "branch"]


def test_a_dropout_at_the_end_of_a_branch_is_not_there_for_tensorrt():
    assert marked(decide(residual("dropout"), "both")) == ["image", "start"]


def test_of_two_convolutions_that_are_summed_tensorrt_leaves_the_last_open():
    start = image()
    a = conv(start, "a")
    b = conv(L.ReLU(name="relu")(conv(start, "b1")), "b2")
    assert set(marked(decide(L.Add(name="add")([a, b]), "both"))) == {"image", "a", "relu"}


def test_tensorrt_looks_through_layers_that_move_numbers():
    x = L.MaxPooling2D(name="pool")(L.Activation("swish", name="swish")(conv(image(), "conv")))
    rows = decide(L.Dense(2, name="dense")(L.Flatten(name="flat")(x)), "tensorrt")
    assert marked(rows) == ["image", "swish"]
    assert rows["swish"].action == "output only"


def test_tensorrt_reads_average_pooling_in_8_bits_but_not_max_pooling():
    x = conv(image(), "conv")
    assert marked(decide(L.AveragePooling2D(name="pool")(x), "both")) == ["image", "conv"]
    assert marked(decide(L.MaxPooling2D(name="pool")(conv(image(), "conv")), "both")) == ["image"]


def normalized():
    x = L.LayerNormalization(name="ln")(conv(image(), "conv"))
    return L.ReLU(name="relu")(conv(x, "next"))


def test_layers_without_an_integer_form_follow_the_fallback():
    rows = decide(normalized())
    assert rows["ln"].action == "output only"
    assert ranges(rows) == ["image", "conv", "ln", "relu"]
    rows = decide(normalized(), fallback="noop")
    assert rows["ln"].action == "float"
    # What reads it can't be int8 either, but its reader's readers can.
    assert rows["next"].action == "output only"
    assert "'ln', which stays float" in rows["next"].why
    assert ranges(rows) == ["image", "conv", "relu"]
    with pytest.raises(ValueError, match=r"'ln' \(LayerNormalization.*skip"):
        decide(normalized(), fallback="error")
    decide(normalized(), fallback="error", floats={"ln": "wanted"})


def test_tensorrt_goes_on_in_int8_behind_a_float_layer():
    rows = decide(normalized(), "tensorrt", "noop")
    assert rows["next"].action == "int8"
    assert ranges(rows) == ["image", "ln"]


def relu(x):
    return tf.sin(x)


@pytest.mark.parametrize("function", [tf.sin, relu, lambda x: 2 * x, L.LeakyReLU()])
def test_activations_that_are_not_of_keras_compute_in_float(function):
    rows = decide(L.Activation(function, name="own")(conv(image(), "conv")))
    assert rows["conv"].action == "int8" and rows["own"].action == "output only"
    assert "has no form in 8-bit integers" in rows["own"].why


def test_a_layer_may_be_kept_float():
    rows = decide(residual(), floats={"second": "left out"})
    assert rows["second"].action == "float"
    assert rows["second"].why == "left out"
    assert rows["norm"].action == "output only"


def test_integers_have_no_range():
    ids = keras.Input((5,), dtype="int32", name="ids")
    rows = decide(L.Dense(2, name="dense")(L.Embedding(9, 4, name="table")(ids)))
    assert ranges(rows) == ["table", "dense"]
    assert rows["ids"].action == "float"


def test_functions_on_tensors_are_known():
    import tensorflow as tf

    x = tf.nn.relu(conv(image(), "conv"))
    x = tf.reshape(x * 2.0 + x, (-1, 64, 4))
    rows = decide(tf.math.cumsum(x, axis=1))
    actions = [row.action for row in rows.values()]
    assert actions == ["int8", "int8", "fused", "int8", "int8", "same grid", "output only"]


class Logarithm(L.Layer):
    def call(self, x):
        return tf.math.log(1 + tf.square(x))


def test_between_layers_that_all_compute_in_float_there_is_no_range():
    """What a logarithm reads, as the power of a spectrum, has no room in 8 bits."""
    power = Logarithm(name="power")(conv(image(), "conv"))
    moved = L.Reshape((8, 8, 4), name="moved")(power)
    rows = decide(conv(Logarithm(name="log")(moved), "last"))
    assert ranges(rows) == ["image", "conv", "log", "last"]
    assert [rows[name].action for name in ("power", "moved", "log")] == [
        "float",
        "float",
        "output only",
    ]
    assert "only layers without one read it" in rows["power"].why
    # What a convolution reads, too, or the model returns, is on a grid.
    also = decide([conv(power, "other"), Logarithm(name="log")(moved)])
    assert "power" in ranges(also) and also["power"].action == "output only"
    assert "power" in ranges(decide([power, Logarithm(name="log")(moved)]))


def test_a_relu_that_no_kernel_has_is_computed_in_float():
    for options in ({"threshold": 0.1}, {"max_value": 4.0, "negative_slope": 0.1}):
        row = decide(conv(L.ReLU(name="relu", **options)(image()), "conv"))["relu"]
        assert (row.action, row.output) == ("output only", True) and "ReLU" in row.why


def test_what_clips_by_its_range_keeps_it_before_a_concatenation():
    rows = decide(L.Concatenate(name="concat")([conv(x := image(), "a"), L.ReLU(0.5, name="b")(x)]))
    assert ranges(rows) == ["image", "b", "concat"]
