"""The residual networks against the formulas of their paper."""

import numpy as np
import pytest
import tf_keras as keras

from tfkd.models import resnet


def parameters(depth, classes, channels, widths):
    """By hand: 3×3 convolutions without bias, BN of 4 numbers a channel, 1×1 projections."""
    count, width = 9 * channels * widths[0] + 4 * widths[0], widths[0]
    for stage, out in enumerate(widths):
        for block in range((depth - 2) // 6):
            inner = width if block == 0 else out
            count += 9 * inner * out + 4 * out + 9 * out * out + 4 * out
            if block == 0 and (stage > 0 or inner != out):
                count += inner * out + 4 * out
        width = out
    return count + width * classes + classes


@pytest.mark.parametrize(
    ("depth", "classes", "shape", "widths"),
    [
        (20, 10, (32, 32, 3), (16, 32, 64)),
        (8, 10, (8, 8, 1), (4, 8)),
        (14, 100, (32, 32, 3), (8, 8, 8)),
        (8, 2, (16, 12, 2), (3, 5, 7, 9)),
        (8, 5, (8, 8, 3), (6,)),
    ],
)
def test_parameters(depth, classes, shape, widths):
    model = resnet(depth, classes, shape, widths)
    assert model.count_params() == parameters(depth, classes, shape[-1], widths)
    assert model.output_shape == (None, classes)


def test_resnet_20_has_the_number_of_the_docstring():
    # The paper's 0.27 M; its shortcuts have no weights, the two projections here 2,944.
    projections = (16 * 32 + 4 * 32) + (32 * 64 + 4 * 64)
    assert projections == 2944
    assert resnet(20).count_params() == 274042 == 271098 + projections
    assert "274042" in resnet.__doc__


def test_depth_is_the_number_of_weighted_layers_without_projections():
    for depth in (8, 14):
        layers = resnet(depth, input_shape=(8, 8, 3)).layers
        convolutions = [
            x for x in layers if isinstance(x, keras.layers.Conv2D) and x.kernel_size == (3, 3)
        ]
        assert len(convolutions) + 1 == depth


def test_stages_end_in_layers_of_their_name_at_half_the_size_each():
    model = resnet(14, input_shape=(32, 24, 3), widths=(4, 6, 8))
    shapes = [model.get_layer(f"stage{i}").output_shape for i in (1, 2, 3)]
    assert shapes == [(None, 32, 24, 4), (None, 16, 12, 6), (None, 8, 6, 8)]
    assert all(isinstance(model.get_layer(f"stage{i}"), keras.layers.ReLU) for i in (1, 2, 3))
    assert (model.name, resnet(14).name) == ("resnet14_4_6_8", "resnet14")
    assert resnet(8, name="mine").name == "mine"


def test_logits_are_linear_in_the_pooled_features():
    model = resnet(8, 5, (8, 8, 1), (4, 8))
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
    features = keras.Model(model.input, model.get_layer("pool").output)(x).numpy()
    kernel, bias = model.get_layer("logits").get_weights()
    got = model(x).numpy()
    np.testing.assert_allclose(got, features @ kernel + bias, atol=1e-5)
    assert got.min() < 0
    assert np.ptp(got, axis=0).min() > 1e-3  # they depend on the input


def test_weight_decay_is_the_penalty_of_every_kernel():
    model = resnet(8, 3, (8, 8, 1), (4,), weight_decay=0.5)
    kernels = [w.numpy() for w in model.trainable_weights if "kernel" in w.name]
    want = 0.5 * sum((k.astype(np.float64) ** 2).sum() for k in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), want, rtol=1e-5)
    assert resnet(8, 3, (8, 8, 1), (4,), weight_decay=0).losses == []


def test_logits_stay_float32_under_a_mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = resnet(8, 3, (8, 8, 1), (4,))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("stage1").compute_dtype == "bfloat16"


def test_open_image_size():
    model = resnet(8, 3, (None, None, 1), (4, 8))
    assert model(np.zeros((1, 12, 20, 1), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 9}, "6n"),
        ({"depth": 2}, "6n"),
        ({"depth": 20.0}, "`depth`"),
        ({"num_classes": 0}, "`num_classes`"),
        ({"widths": ()}, "one to four"),
        ({"widths": (4,) * 5}, "one to four"),
        ({"widths": (4, 0)}, "`widths`"),
        ({"widths": 16}, "`widths`"),
        ({"widths": "16"}, "`widths`"),
        ({"weight_decay": -1e-4}, "`weight_decay`"),
        ({"weight_decay": float("nan")}, "`weight_decay`"),
        ({"input_shape": (32, 32)}, "`input_shape`"),
        ({"input_shape": (32, 32, None)}, "`input_shape`"),
        ({"input_shape": (32, 0, 3)}, "`input_shape`"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        resnet(**{"depth": 8, **options})
