"""What meets the faults of TensorFlow, and that it is said once, before training."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import known_faults
from tfkd.known_faults import overflowing_layers, overflows, register_width

AVX512 = {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.mark.parametrize(
    ("flags", "limit", "width"),
    [
        (AVX512, "", 16),
        (AVX512, "avx2", 8),
        (AVX512, "AVX2_VNNI_2", 8),
        (AVX512, "AVX512_CORE", 16),
        (AVX512, "SSE41", 0),
        (AVX512, "AVX", 0),
        (AVX512 - {"avx512dq"}, "", 8),
        ({"avx2"}, "AVX512_CORE", 8),
        ({"avx", "sse4_1"}, "", 0),
        (set(), "", 0),
    ],
)
def test_the_width_of_registers_is_read_from_the_flags(flags, limit, width):
    assert register_width(flags, limit) == width


# Each row was run, with a guard page behind every block of memory, on AVX-512 and (by
# ONEDNN_MAX_CPU_ISA) on AVX2: batches of 1 to 32, 1 to 8 threads.
@pytest.mark.parametrize(
    ("kernel", "strides", "channels", "size", "dtype", "on_avx512", "on_avx2"),
    [
        ((1, 1), (2, 2), 4, (60, 60), "float32", True, True),
        ((1, 1), (2, 2), 8, (60, 60), "float32", True, False),
        ((1, 1), (2, 2), 15, (60, 60), "float32", True, False),
        ((1, 1), (2, 2), 16, (60, 60), "float32", False, False),
        ((1, 1), (2, 2), 17, (60, 60), "float32", False, False),
        ((1, 1), (2, 2), 1, (32, 32), "float32", True, True),
        ((1, 1), (3, 3), 4, (60, 60), "float32", True, True),
        ((1, 1), (2, 3), 4, (60, 60), "float32", True, True),
        ((1, 1), (2, 1), 4, (60, 60), "float32", True, True),
        ((1, 1), (1, 1), 4, (60, 60), "float32", False, False),
        ((1, 1), (2, 2), 4, (59, 59), "float32", False, False),
        ((1, 1), (2, 2), 4, (60, 61), "float32", False, False),
        ((1, 1), (2, 2), 4, (8, 8), "float32", False, True),
        ((1, 1), (2, 2), 4, (2, 34), "float32", True, True),
        ((1, 1), (2, 2), 4, (2, 16), "float32", False, False),
        ((1, 1), (2, 2), 4, (None, None), "float32", True, True),
        ((1, 1), (2, 2), 4, (None, 59), "float32", False, False),
        ((1, 1), (2, 2), 4, (60, 60), "bfloat16", True, False),
        ((1, 1), (2, 2), 4, (60, 60), "float16", False, False),
        ((1, 1), (2, 2), 4, (60, 60), "float64", False, False),
        ((2, 2), (2, 2), 4, (60, 60), "float32", False, False),
        ((3, 3), (2, 2), 4, (60, 60), "float32", False, False),
        ((1,), (2,), 4, (3600,), "float32", True, True),
        ((1, 1, 1), (2, 2, 2), 4, (16, 16, 16), "float32", False, False),
    ],
)
def test_when_the_workspace_is_too_small(
    kernel, strides, channels, size, dtype, on_avx512, on_avx2
):
    assert overflows(kernel, strides, channels, size, dtype, 16) is on_avx512
    assert overflows(kernel, strides, channels, size, dtype, 8) is on_avx2
    assert overflows(kernel, strides, channels, size, dtype, 0) is False


def test_convolutions_are_found_wherever_they_are():
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((60, 60, 4)), layers.Conv2D(8, 1, 2, name="nested")], name="inner"
    )
    x = keras.Input((60, 60, 4))
    frozen = layers.Conv2D(8, 1, 2, name="frozen", trainable=False)(x)
    odd = layers.Conv2D(8, 1, 2, name="odd")(layers.Cropping2D(((0, 1), (0, 0)))(x))
    wide = layers.Conv2D(8, 1, 2, name="wide")(layers.Conv2D(16, 3, 2, name="three")(x))
    back = layers.Conv2DTranspose(3, 1, 2, name="back")(inner(x))  # 3 channels at 60×60
    wide_back = layers.Conv2DTranspose(16, 1, 2, name="wide_back")(inner(x))
    grouped = layers.Conv2D(8, 1, 2, groups=2, name="grouped")(x)
    depthwise = layers.DepthwiseConv2D(1, 2, name="depthwise")(x)
    outputs = [frozen, odd, wide, back, wide_back, grouped, depthwise]
    model = keras.Model(x, outputs)
    assert list(overflowing_layers(model, 16)) == ["nested", "back"]
    assert overflowing_layers(model, 16)["nested"] == "strides 2×2, 4 channels at 60×60"

    frames = keras.Sequential(
        [keras.Input((3, 60, 60, 4)), layers.TimeDistributed(layers.Conv2D(8, 1, 2, name="each"))]
    )
    open_size = keras.Sequential([keras.Input((None, None, 4)), layers.Conv2D(8, 1, 2, name="c")])
    lines = keras.Sequential([keras.Input((3600, 4)), layers.Conv1D(8, 1, 2, name="line")])
    assert overflowing_layers(frames, 16) == {"each": "strides 2×2, 4 channels at 60×60"}
    assert overflowing_layers(open_size, 16) == {"c": "strides 2×2, 4 channels at ?×?"}
    assert overflowing_layers(lines, 16) == {"line": "strides 2, 4 channels at 3600"}


def test_quantized_convolutions_are_found():
    model = keras.Sequential([keras.Input((60, 60, 4)), keras.layers.Conv2D(8, 1, 2, name="c")])
    assert len(overflowing_layers(tfkd.quantization.quantize(model), 16)) == 1


def test_no_model_of_tfkd_meets_it_at_its_documented_widths():
    models = tfkd.models
    built = [
        models.resnet(20),
        models.resnet(8, 10, (8, 8, 1), (16, 32)),
        models.vgg16(widths=(16, 16, 16, 16, 16)),
        models.ssd("student", 3, 64),
        models.ssd("depthwise", 3, 64, head="depthwise"),
        models.text_transformer(50, 3, 8, 1, 16, 2),
    ]
    for model in built:
        assert overflowing_layers(model, 16) == overflowing_layers(model, 8) == {}, model.name
    digits = models.resnet(8, 10, (8, 8, 1), (4, 8))  # 16 positions, 4 channels
    assert overflowing_layers(digits, 16) == {}
    assert list(overflowing_layers(digits, 8)) == ["stage2_block1_0_conv"]


def cut_net():
    """A network as pruning leaves it: 4 channels into a convolution with strides."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((20, 20, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.Conv2D(16, 1, 2, name="shortcut"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="scores"),
        ],
        name="cut",
    )


def test_shrink_and_fit_say_it_once_for_each_model(monkeypatch):
    monkeypatch.setattr(known_faults, "environment_width", lambda: 16)
    model = cut_net()
    selection = tfkd.pruning.select(model, tfkd.pruning.plan(model, macs_reduction=0.3))
    with pytest.warns(RuntimeWarning, match="'shortcut'.*TF_ENABLE_ONEDNN_OPTS=0") as caught:
        small = tfkd.pruning.shrink(model, selection)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        known_faults.warn_of_overflow(small)  # said by shrink


def test_fit_says_it_before_training(monkeypatch):
    monkeypatch.setattr(known_faults, "environment_width", lambda: 16)
    monkeypatch.setattr(keras.Model, "fit", lambda self, *args, **kwargs: None)
    x = np.zeros((4, 20, 20, 1), "float32")
    distiller = tfkd.Distiller(
        cut_net(), cut_net(), tfkd.losses.LogitsDistillation(), student_loss_weight=0
    )
    distiller.compile("adam")
    with pytest.warns(RuntimeWarning, match="1×1 kernel.*fewer than 16.*'shortcut'"):
        distiller.fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        distiller.fit(x)
        monkeypatch.setattr(known_faults, "environment_width", lambda: 0)
        tfkd.Distiller(
            cut_net(), cut_net(), tfkd.losses.LogitsDistillation(), student_loss_weight=0
        ).fit(x)


@pytest.mark.parametrize("missing", ["onednn", "linux", "x86"])
def test_elsewhere_nothing_is_met(monkeypatch, missing):
    monkeypatch.setattr(known_faults, "_uses_onednn", lambda: missing != "onednn")
    monkeypatch.setattr(known_faults, "_cpu_flags", lambda: AVX512)
    monkeypatch.setattr("sys.platform", "darwin" if missing == "linux" else "linux")
    machine = "aarch64" if missing == "x86" else "x86_64"
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert known_faults.environment_width() == 0
    model = cut_net()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        known_faults.warn_of_overflow(model)


def test_the_environment_is_that_of_this_process(monkeypatch):
    monkeypatch.setattr(known_faults, "_uses_onednn", lambda: True)
    monkeypatch.setattr(known_faults, "_cpu_flags", lambda: AVX512)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    assert known_faults.environment_width() == 16
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert known_faults.environment_width() == 8
