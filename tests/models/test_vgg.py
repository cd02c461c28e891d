"""VGG-16 against its paper's table and hand counts."""

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd.models import vgg16

SMALL = {"num_classes": 3, "input_shape": (16, 16, 2), "widths": (2, 3, 4, 5, 6)}

# Of CIFAR images, by hand: side of the map, input channels, filters.
CONVOLUTIONS = [
    (32, 3, 64),
    (32, 64, 64),
    (16, 64, 128),
    (16, 128, 128),
    (8, 128, 256),
    (8, 256, 256),
    (8, 256, 256),
    (4, 256, 512),
    (4, 512, 512),
    (4, 512, 512),
    (2, 512, 512),
    (2, 512, 512),
    (2, 512, 512),
]


def test_parameters_and_macs_by_hand():
    model = vgg16()
    kernels = sum(9 * a * b for _, a, b in CONVOLUTIONS)
    norms = sum(4 * b for *_, b in CONVOLUTIONS)
    assert kernels == 14_710_464
    params = kernels + norms + 512 * 512 + 4 * 512 + 512 * 10 + 10
    assert model.count_params() == params == 14_996_682
    macs = sum(side * side * 9 * a * b for side, a, b in CONVOLUTIONS)
    assert macs == 313_196_544
    profile = tfkd.report.profile(model)
    assert profile.macs == macs + 512 * 512 + 512 * 10 == 313_463_808
    assert profile.params == params
    assert f"{params}" in vgg16.__doc__


def test_thirteen_convolutions_of_the_paper():
    model = vgg16()
    layers = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    found = [(x.output_shape[1], x.input_shape[-1], x.filters) for x in layers]
    assert found == CONVOLUTIONS
    assert all(x.kernel_size == (3, 3) and not x.use_bias for x in layers)
    # 13 convolutions and two of the three dense layers of the paper's 16.
    assert sum(isinstance(x, keras.layers.Dense) for x in model.layers) == 2
    # Every one of them but the head is normalized, then rectified.
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    rectifiers = [x for x in model.layers if isinstance(x, keras.layers.ReLU)]
    assert len(norms) == len(rectifiers) == 14


def test_stages_end_in_layers_of_their_name_at_half_the_size_each():
    model = vgg16(3, (48, 32, 3), (2, 3, 4, 5, 6))
    shapes = [model.get_layer(f"stage{i}").output_shape[1:] for i in range(1, 6)]
    assert shapes == [(48, 32, 2), (24, 16, 3), (12, 8, 4), (6, 4, 5), (3, 2, 6)]
    assert all(isinstance(model.get_layer(f"stage{i}"), keras.layers.ReLU) for i in range(1, 6))
    assert model.get_layer("hidden").output_shape == (None, 6)
    assert model.output_shape == (None, 3)
    assert model.name == "vgg16_2_3_4_5_6"
    assert vgg16(**SMALL, name="mine").name == "mine"


def test_logits_are_linear_in_the_hidden_features():
    model = vgg16(**SMALL)
    x = np.random.default_rng(0).normal(size=(6, 16, 16, 2)).astype(np.float32)
    features = keras.Model(model.input, model.get_layer("hidden").output)(x).numpy()
    kernel, bias = model.get_layer("logits").get_weights()
    got = model(x).numpy()
    np.testing.assert_allclose(got, features @ kernel + bias, atol=1e-5)
    assert np.ptp(got, axis=0).min() > 1e-3  # they depend on the input


def test_weight_decay_is_the_penalty_of_every_kernel():
    model = vgg16(**SMALL, weight_decay=0.5)
    kernels = [w.numpy() for w in model.trainable_weights if "kernel" in w.name]
    assert len(kernels) == 15
    want = 0.5 * sum((k.astype(np.float64) ** 2).sum() for k in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), want, rtol=1e-5)
    assert vgg16(**SMALL, weight_decay=0).losses == []


def test_logits_stay_float32_under_a_mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = vgg16(**SMALL)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("stage1").compute_dtype == "bfloat16"


def test_open_image_size():
    model = vgg16(3, (None, None, 1), (2, 2, 2, 2, 2))
    assert model(np.zeros((1, 16, 24, 1), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 0}, "`num_classes`"),
        ({"widths": (4,) * 4}, "five stage widths"),
        ({"widths": (4, 4, 4, 4, 0)}, "`widths`"),
        ({"widths": 16}, "`widths`"),
        ({"widths": "64"}, "`widths`"),
        ({"weight_decay": -1e-4}, "`weight_decay`"),
        ({"weight_decay": float("nan")}, "`weight_decay`"),
        ({"input_shape": (32, 32)}, "`input_shape`"),
        ({"input_shape": (32, 32, None)}, "`input_shape`"),
        ({"input_shape": (32, 15, 3)}, "at least 16"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        vgg16(**options)
