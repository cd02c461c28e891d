"""The plain model that a quantized one stands for: the same numbers, constant and folded."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tfkd
from tfkd.networks import batch_norm
from tfkd.quantization import deployed_layers
from tfkd.quantization.deploying import deployed
from tfkd.quantization.fixed_fake_quant import FixedQuantize
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor

layers = keras.layers
RNG = np.random.default_rng(0)
PLAIN = {"Dense", "Conv1D", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "DilatedConv2D"} | {
    "FlatDense",
    "ImageConv1D",
}


def randomize(model):
    """Weights for which every sum, bias and normalization matters."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        elif "gamma" in weight.name:
            weight.assign(rng.normal(1, 0.5, weight.shape))  # some are negative
        elif weight.shape.rank > 1:
            fan_in = np.prod(weight.shape[:-1])
            weight.assign(rng.normal(0, (2 / fan_in) ** 0.5, weight.shape))
        elif weight.shape.rank == 1:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def normed(x, filters, size=3, **kwargs):
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, **kwargs)(x)
    return layers.BatchNormalization()(x)


def image(*shape):
    return keras.Input(shape or (8, 8, 4), name="image")


def mobile():
    x = inputs = image()
    x = layers.ReLU(6.0)(normed(x, 6))
    y = layers.ReLU(6.0)(normed(x, 12, 1))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    x = layers.Add()([x, normed(y, 6, 1)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def gated():
    x = inputs = image()
    x = layers.Activation("swish")(normed(x, 6))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(3, 1, activation="relu")(gate)
    gate = layers.Conv2D(6, 1, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    gate = layers.Conv2D(6, 1, activation="hard_sigmoid")(x)
    x = layers.Multiply()([x, gate])
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def dense_block():
    x = inputs = image()
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(3, 3, padding="same")(y)])
    x = layers.AveragePooling2D()(x)
    y = layers.Conv2D(3, 1)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.BatchNormalization()(layers.Concatenate()([x, y]))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


def upsampled():
    x = inputs = image()
    y = layers.ReLU()(normed(x, 6, dilation_rate=2))
    y = layers.MaxPooling2D()(y)
    y = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(y)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Conv2D(3, 3, groups=1)(x))


def shared():
    inputs = [keras.Input((6, 6, 3), name=name) for name in ("left", "right")]
    convolution = layers.Conv2D(4, 3, activation="relu", name="eye")
    norm = layers.BatchNormalization(name="norm")
    a, b = (norm(convolution(x)) for x in inputs)
    flat = layers.Flatten()
    difference = layers.Dense(3)(flat(layers.Subtract()([a, b])))
    mean = layers.Dense(2, activation="tanh")(flat(layers.Average()([a, b])))
    return keras.Model(inputs, {"mean": mean, "difference": difference})


def nested():
    body = keras.Sequential(
        [
            image(6, 6, 3),
            layers.SeparableConv2D(4, 3),
            layers.BatchNormalization(),
            layers.PReLU(shared_axes=[1, 2]),
        ],
        name="body",
    )
    inputs = image(6, 6, 3)
    x = body(layers.Rescaling(2.0, 0.5)(inputs))
    x = layers.Dense(6, use_bias=False)(layers.Flatten()(x))
    x = layers.ReLU(max_value=1.0)(layers.BatchNormalization()(x))
    return keras.Model(inputs, [layers.Dense(3)(x), layers.LeakyReLU()(x)])


def scaled():
    """Branches as in Inception-ResNet and ConvNeXt, and factors behind every kind of layer."""
    x = inputs = image(6, 6, 4)
    y = layers.Conv2D(4, 1)(layers.Conv2D(3, 3, padding="same", activation="relu")(x))
    x = layers.ReLU()(CustomScaleLayer(0.2)([x, y]))
    y = layers.Dense(4)(layers.Dense(8, activation="relu")(x))
    x = x + StochasticDepth(0.5)(LayerScale(0.5, 4)(y))
    x = CustomScaleLayer(-0.5)([x, layers.MaxPooling2D(2, 1, padding="same")(x)])
    y = layers.Rescaling(0.5, -0.5)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    y = layers.Rescaling([0.5, 2.0])(layers.Conv2DTranspose(2, 2)(y))
    y = layers.Rescaling(3.0)(layers.Dense(3)(layers.Flatten()(y)))
    return keras.Model(inputs, y)


def resnet():
    return tfkd.models.resnet(8, input_shape=(8, 8, 3), widths=(4, 6))


BUILDERS = (resnet, mobile, gated, dense_block, upsampled, shared, nested, scaled)


def quantized(build, target):
    model = randomize(build())
    feeds = [RNG.normal(size=(32, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    q = tfkd.quantization.quantize(model, target)
    inputs = feeds if len(feeds) > 1 else feeds[0]
    data = dict(zip(model.input_names, feeds, strict=True))
    tfkd.quantization.calibrate(q, data if len(feeds) > 1 else feeds[0])
    return q, inputs


@pytest.fixture(scope="module")
def cases():
    made = {}

    def case(build, target):
        if (build, target) not in made:
            made[build, target] = quantized(build, target)
        return made[build, target]

    return case


@pytest.mark.parametrize(
    ("build", "target"),
    [(b, "tflite") for b in BUILDERS] + [(b, "both") for b in (resnet, gated, scaled)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_deployed_model_computes_what_the_quantized_one_does(cases, build, target):
    q, inputs = cases(build, target)
    before = [weight.numpy() for weight in q.weights]
    plain = deployed(q, "tflite")
    want, got = q(inputs, training=False), plain(inputs)
    assert plain.output_names == q.output_names
    assert plain.input_names == q.input_names
    tf.nest.assert_same_structure(want, got)
    for a, b in zip(tf.nest.flatten(want), tf.nest.flatten(got), strict=True):
        a, b = a.numpy(), b.numpy()
        # Float rounding moves a sum that lies between two codes; few, and little.
        assert np.abs(a - b).mean() < 5e-4 * np.ptp(a)
        assert np.abs(a - b).max() < 0.03 * np.ptp(a)
    kinds = {type(layer) for layer in plain.layers}
    assert not kinds & {QuantizedLayer, QuantizedTensor, layers.BatchNormalization}
    assert not plain.trainable_weights
    for weight, value in zip(q.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_weights_lie_on_the_grid_that_a_converter_finds(cases, build):
    plain = deployed(cases(build, "tflite")[0])
    count = 0
    for layer in plain.layers:
        if type(layer).__name__ not in PLAIN:
            continue
        kernel = layer.get_weights()[0].astype(np.float64)
        if isinstance(layer, layers.DepthwiseConv2D):
            kernel = kernel.reshape(*kernel.shape[:2], -1)
        if isinstance(layer, layers.Conv2DTranspose):
            kernel = kernel.swapaxes(2, 3)
        axes = None if isinstance(layer, layers.Dense) else tuple(range(kernel.ndim - 1))
        codes = kernel / (np.abs(kernel).max(axes, keepdims=True) / 127)
        assert np.abs(codes - np.rint(codes)).max() < 1e-4
        count += 1
    assert count >= 2


def test_a_dense_layer_with_a_batch_normalization_keeps_its_integers(cases):
    q, _ = cases(nested, "tflite")
    (layer,) = (x for x in deployed(q).layers if isinstance(x, deployed_layers.LimitedConv2D))
    kernel = layer.get_weights()[0].reshape(-1, 6).astype(np.float64)
    codes = np.rint(kernel / (np.array(layer.limits) / 127))
    weight = q.get_layer(layer.name).layer.kernel.numpy().astype(np.float64)
    want = np.rint(weight / (np.abs(weight).max() / 127))
    np.testing.assert_array_equal(np.abs(codes), np.abs(want))


def test_folding_a_batch_normalization_by_hand():
    norm = layers.BatchNormalization(epsilon=0.25)
    norm.build((None, 2))
    gamma, beta, mean, variance = [2.0, -3.0], [1.0, 0.5], [4.0, -1.0], [0.75, 2.0]
    norm.set_weights([np.array(v, np.float32) for v in (gamma, beta, mean, variance)])
    kernel = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    new, bias = batch_norm.folded(layers.Dense(2), kernel, np.array([1.0, 2.0], np.float32), norm)
    # k = γ/√(σ² + ε) = 2/1 and −3/1.5; bias = β + (b − μ)·k.
    np.testing.assert_allclose(new, [[2.0, -4.0], [6.0, 8.0]], rtol=1e-6)
    np.testing.assert_allclose(bias, [1.0 - 3.0 * 2.0, 0.5 + 3.0 * -2.0], rtol=1e-6)


def test_folding_one_factor_for_all_channels_by_hand():
    kernel = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    by_two = layers.Rescaling(2.0, 1.0)
    new, bias = batch_norm.folded(layers.Dense(2), kernel, np.array([1.0, 2.0], np.float32), by_two)
    np.testing.assert_array_equal(new, [[2.0, 4.0], [6.0, -8.0]])
    np.testing.assert_array_equal(bias, [3.0, 5.0])
    # (height, width, channels, multiplier); transposed (height, width, filters, channels).
    for layer, shape in (
        (layers.DepthwiseConv2D(1, depth_multiplier=3), (1, 1, 2, 3)),
        (layers.Conv2DTranspose(6, 1), (1, 1, 6, 2)),
    ):
        new, bias = batch_norm.folded(layer, np.ones(shape, np.float32), None, by_two)
        np.testing.assert_array_equal(new, np.full(shape, 2.0))
        np.testing.assert_array_equal(bias, np.ones(6))


@pytest.mark.parametrize("invert", [False, True])
def test_scale_and_offset_of_a_normalization(invert):
    norm = layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0], invert=invert)
    x = RNG.normal(size=(5, 2)).astype(np.float32)
    want = norm(x).numpy()
    scale, offset = batch_norm.scale_and_offset(norm)
    np.testing.assert_allclose(x * scale + offset, want, atol=1e-6)


DILATED = {
    "Conv2D": ((4, 3), (2, 9, 7, 3)),
    "DepthwiseConv2D": ((3,), (2, 9, 7, 3)),
    "Conv1D": ((4, 3), (2, 9, 3)),
    "Conv1D of sequences": ((4, 3), (2, 5, 9, 3)),
}


@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
@pytest.mark.parametrize("kind", DILATED)
def test_a_dilated_convolution_is_one_operation_with_the_same_result(padding, kind):
    (arguments, shape), name = DILATED[kind], kind.split()[0]
    if padding == "causal" and shape != (2, 9, 3):
        pytest.skip("Keras pads sequences alone so")
    options = {"padding": padding, "dilation_rate": 2, "bias_initializer": "ones"}
    owners = (layers, name), (deployed_layers, ("Image" if name == "Conv1D" else "Dilated") + name)
    a, b = (getattr(*one)(*arguments, **options) for one in owners)
    x = RNG.normal(size=shape).astype(np.float32)
    a(x), b.build(x.shape)
    b.set_weights(a.get_weights())
    np.testing.assert_allclose(a(x), b(x), atol=1e-5)
    graph = tf.function(b).get_concrete_function(tf.TensorSpec((None, *shape[1:]))).graph
    assert not any("BatchND" in op.type for op in graph.get_operations())


def test_a_bias_of_equal_elements_differs_in_its_last_bit():
    inputs = image()
    model = keras.Model(inputs, layers.Conv2D(3, 2, bias_initializer="ones", name="conv")(inputs))
    q = tfkd.quantization.quantize(model)
    tfkd.quantization.calibrate(q, RNG.normal(size=(4, 8, 8, 4)).astype(np.float32))
    bias = deployed(q).get_layer("conv").bias.numpy()
    np.testing.assert_array_equal(bias, np.float32([1, 1, 1 - 2**-24]))


def test_for_tensorrt_only_what_it_reads_is_rounded(cases):
    q, x = cases(resnet, "both")
    plain = deployed(q, "tensorrt")
    ranges = [layer for layer in plain.layers if isinstance(layer, FixedQuantize)]
    assert len(ranges) == sum(row.tensorrt for row in q.report)
    assert len(ranges) < sum(row.output for row in q.report)
    for layer in ranges:
        assert layer.low == -layer.high
        assert (layer.emit, layer.narrow_range) == ("quantize_dequantize", True)
    # The input of every convolution and of the dense layer comes from a range.
    for layer in plain.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            assert isinstance(layer.input.node.layer, FixedQuantize), layer.name
    want = q(x).numpy()
    assert np.abs(plain(x).numpy() - want).mean() < 0.02 * np.ptp(want)


def test_for_tensorrt_a_range_stands_at_the_reader_behind_layers_that_move_numbers():
    inputs = image()
    x = layers.Conv2D(3, 3, activation="relu", name="first")(inputs)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.ZeroPadding2D(name="pad")(x)
    x = layers.Conv2D(3, 3, name="second")(x)
    q, _ = quantized(lambda: keras.Model(inputs, x), "both")
    plain = deployed(q, "tensorrt")
    behind = plain.get_layer("second").input.node.layer
    assert isinstance(behind, FixedQuantize)
    assert behind.input.node.layer.name == "pad"
    assert behind.high == plain.get_layer("first_range").high


def test_what_cannot_be_deployed_is_refused_and_says_why(cases):
    model = randomize(resnet())
    with pytest.raises(TypeError, match="quantize"):
        deployed(model)
    with pytest.raises(ValueError, match=r"tfkd\.quantization\.calibrate"):
        deployed(tfkd.quantization.quantize(model))
    q, _ = cases(resnet, "tflite")
    with pytest.raises(ValueError, match="'both'"):
        deployed(q, "tensorrt")
    with pytest.raises(ValueError, match="target"):
        deployed(q, "onnx")
