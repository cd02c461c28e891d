"""SSD detectors: counts by hand, the order of the outputs, and what the heads read."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import models
from tfkd.detection.anchors import Anchors

WIDTHS = (4, 6, 8, 8, 8)
L = keras.layers


def heads(model):
    """What each class head reads: layer → (height, width, channels)."""
    found = {}
    for layer in model.layers:
        if layer.name.startswith("classes_") and layer.name[8:].isdigit():
            found[layer.input.node.layer.name] = tuple(layer.input.shape[1:])
    return found


def plain(size=32):
    """A backbone with maps of 16, 8 and 4 cells."""
    x = inputs = keras.Input((size, size, 3))
    for index in range(3):
        x = L.Conv2D(4, 3, 2, "same", name=f"half{index}")(x)
    return keras.Model(inputs, x, name="plain")


def counted(side, widths, depth, levels, outputs):
    """Weights and multiply-accumulates of a stack of 3×3 convolutions with heads."""
    params = macs = 0
    before = 3
    maps = []
    for stage, width in enumerate(widths):
        side = math.ceil(side / 2)
        for _ in range(depth if stage else 1):
            params += 9 * before * width + 4 * width
            macs += side * side * 9 * before * width
            before = width
        maps.append((side, width))
    for side, width in maps[-levels:]:
        params += 9 * width * outputs + outputs
        macs += side * side * 9 * width * outputs
    return params, macs


@pytest.mark.parametrize(
    ("preset", "widths", "depth"),
    [
        ("teacher", (24, 48, 96, 160, 192), 2),
        ("student", (8, 12, 24, 40, 48), 1),
        ("tiny", (4, 6, 12, 20, 24), 1),
    ],
)
def test_presets_by_hand(preset, widths, depth):
    model = models.ssd_small(3, widths=preset)
    # Two priors a cell, four offsets and four logits each.
    params, macs = counted(160, widths, depth, 3, 2 * 4 + 2 * 4)
    profile = tfkd.report.profile(model)
    assert (model.count_params(), profile.macs) == (params, macs)
    assert model.output["boxes"].shape == (None, 1050, 4)
    assert model.output["classes"].shape == (None, 1050, 4)


def test_depthwise_backbone_and_heads_by_hand():
    model = models.ssd_small(2, 32, (4, 6, 8), 1, True, Anchors([4], [0.2]), "depthwise")
    stem = 9 * 3 * 4 + 4 * 4
    stages = (9 * 4 + 4 * 4 + 4 * 6 + 4 * 6) + (9 * 6 + 4 * 6 + 6 * 8 + 4 * 8)
    both = 2 * (9 * 8 + 4 * 8) + (8 * 4 + 4) + (8 * 3 + 3)
    assert model.count_params() == stem + stages + both
    assert heads(model) == {"classes_0_relu": (4, 4, 8)}


def test_ssd300_is_the_papers_network():
    model = models.ssd300(20)
    assert heads(model) == {
        "stage4": (38, 38, 512),
        "fc7": (19, 19, 1024),
        "extra2": (10, 10, 512),
        "extra3": (5, 5, 256),
        "extra4": (3, 3, 256),
        "extra5": (1, 1, 256),
    }
    assert model.output["boxes"].shape == (None, 8732, 4)
    assert model.output["classes"].shape == (None, 8732, 21)
    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    pairs += [(256, 512)] + [(512, 512)] * 5
    kernels = [9 * a * b for a, b in pairs] + [9 * 512 * 1024, 1024 * 1024]
    widths = [b for _, b in pairs] + [1024, 1024]
    further = [(1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)]
    for before, inner, width in further:
        kernels += [before * inner, 9 * inner * width]
        widths += [inner, width]
    norms = [4 * width for width in widths]
    maps = [(512, 4), (1024, 6), (512, 6), (256, 6), (256, 4), (256, 4)]
    last = [(9 * width + 1) * count * 25 for width, count in maps]
    assert model.count_params() == sum(kernels) + sum(norms) + sum(last) == 26_309_550


def test_ssd300_on_another_backbone():
    backbone = models.ssd_backbone(WIDTHS, (300, 300, 3))
    model = models.ssd300(3, backbone)
    assert model.output["classes"].shape == (None, 8732, 4)
    levels = ["stage3", "stage4", "stage5", "extra3", "extra4", "extra5"]
    assert list(heads(model)) == levels
    assert list(heads(models.ssd300(3, backbone, [8, 16]))) == [*levels[:2], "extra2", *levels[3:]]


def test_outputs_stand_where_the_priors_stand():
    """A network that writes each cell's place into its offsets gives the priors' places."""
    anchors = Anchors([(4, 8), (2, 4)], [(0.1, 0.2), (0.3, 0.4, 0.5)])
    x = inputs = keras.Input((16, 32, 2))
    x = L.Dense(2, kernel_initializer="identity")(L.AveragePooling2D(4)(x))
    x = L.AveragePooling2D(2, name="coarse")(x)
    model = models.ssd(keras.Model(inputs, x), 1, anchors=anchors)
    for level, sizes in enumerate(anchors.sizes):
        kernel, bias = model.get_layer(f"boxes_{level}").get_weights()
        kernel[:] = 0
        for index, (w, h) in enumerate(sizes):
            kernel[1, 1, :, 4 * index : 4 * index + 2] = np.eye(2)
            bias[4 * index + 2 : 4 * index + 4] = w, h
        model.get_layer(f"boxes_{level}").set_weights([kernel, bias])
        kernel, bias = model.get_layer(f"classes_{level}").get_weights()
        marks = [[level, index] for index in range(len(sizes))]
        model.get_layer(f"classes_{level}").set_weights([0 * kernel, np.ravel(marks)])
    y, x = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(32) + 0.5) / 32, indexing="ij")
    outputs = model(np.stack([x, y], -1)[None].astype("float32"))
    np.testing.assert_allclose(outputs["boxes"][0], anchors.priors, atol=1e-6)
    expected = [[0, 0], [0, 1]] * 32 + [[1, 0], [1, 1], [1, 2]] * 8
    np.testing.assert_array_equal(outputs["classes"][0], expected)


def test_background_begins_as_likely_as_asked():
    anchors = Anchors([4, 2], [(0.1, 0.2), 0.4])
    model = models.ssd(plain(), 3, anchors=anchors, background=0.97)
    # Zeros pass the convolutions without a bias: the heads give their own.
    outputs = model(np.zeros((1, 32, 32, 3), "float32"))
    chances = tf.nn.softmax(outputs["classes"]).numpy()
    np.testing.assert_allclose(chances[..., 0], 0.97, rtol=1e-5)
    np.testing.assert_allclose(chances[..., 1:], 0.01, rtol=1e-4)
    assert not outputs["boxes"].numpy().any()
    again = keras.models.clone_model(model)(np.zeros((1, 32, 32, 3), "float32"))
    np.testing.assert_allclose(again["classes"], outputs["classes"])
    alike = models.ssd(plain(), 3, anchors=anchors)(np.zeros((1, 32, 32, 3), "float32"))
    assert not alike["classes"].numpy().any()


def test_outputs_are_named_and_float32_under_a_mixed_policy():
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = models.ssd_small(3, 32, WIDTHS, anchors=Anchors([4, 2], [0.1, 0.4]))
        outputs = model(np.ones((1, 32, 32, 3), "float32"))
    finally:
        keras.mixed_precision.set_global_policy(before)
    assert model.output_names == ["boxes", "classes"]
    assert {key: value.dtype for key, value in outputs.items()} == dict.fromkeys(
        ["boxes", "classes"], tf.float32
    )
    assert model.get_layer("stage3").output.dtype == tf.bfloat16


def test_one_level_has_no_concatenation_of_one():
    model = models.ssd(plain(), 2, anchors=Anchors([4], [(0.2, 0.3)]))
    assert not any(isinstance(layer, L.Concatenate) for layer in model.layers)
    assert model.output_names == ["boxes", "classes"]
    assert model.output["classes"].shape == (None, 32, 3)


def test_stages_have_their_names_and_sizes():
    backbone = models.ssd_backbone(WIDTHS, (50, 36, 1), depth=2)
    sizes = [backbone.get_layer(f"stage{k}").output_shape[1:] for k in range(1, 6)]
    assert sizes == [(25, 18, 4), (13, 9, 6), (7, 5, 8), (4, 3, 8), (2, 2, 8)]
    model = models.ssd(backbone, 3)
    assert [layer for layer in heads(model)] == ["stage3", "stage4", "stage5"]
    assert model.input_shape == (None, 50, 36, 1)


def test_the_detector_has_the_backbones_own_layers_up_to_its_last_level():
    x = inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(4, 3, 8, "same", name="map")(x)
    y = L.Dense(5, name="head")(L.GlobalAveragePooling2D()(x))
    classifier = keras.Model(inputs, y)
    model = models.ssd(classifier, 2, anchors=Anchors([4], [0.2]))
    assert model.get_layer("map") is classifier.get_layer("map")
    assert not {"head"} & {layer.name for layer in model.layers}


def residual():
    """Strided blocks as in ResNetV2: layers of the size before the stride in a branch."""
    inputs = keras.Input((32, 32, 3))
    x = L.Conv2D(6, 3, 2, "same", name="out16")(inputs)
    for side in (8, 4):
        y = L.Conv2D(2, 1, name=f"narrow{side}")(L.ReLU()(x))
        y = L.ZeroPadding2D(1)(y)
        y = L.Conv2D(6, 3, 2, name=f"strided{side}")(y)
        shortcut = L.Conv2D(6, 1, 2, name=f"shortcut{side}")(x)
        x = L.Add(name=f"out{side}")([y, shortcut])
    x = L.ZeroPadding2D(1, name="frame")(x)
    x = L.Conv2D(6, 3, 2, name="strided2")(x)
    return keras.Model(inputs, x)


def test_a_level_is_the_last_map_that_all_is_made_from():
    anchors = Anchors([16, 8, 4], [0.1, 0.2, 0.4])
    for levels in (None, (2, 4, 8)):
        model = models.ssd(residual(), 2, feature_levels=levels, anchors=anchors)
        # Not `narrow8`, of 16 cells, and not `frame`, which rounds to stride 8 too.
        assert list(heads(model)) == ["out16", "out8", "out4"]


def test_with_long_skips_a_level_is_the_last_map_of_its_size():
    inputs = keras.Input((16, 16, 3))
    a = L.Conv2D(4, 3, 2, "same", name="a8")(inputs)
    b = L.Conv2D(4, 3, 2, "same", name="b4")(a)
    c = L.Conv2D(4, 3, 1, "same", name="c4")(b)
    up = L.UpSampling2D(2, name="up8")(c)
    both = L.Concatenate(name="both8")([a, up])
    model = models.ssd(keras.Model(inputs, both), 2, anchors=Anchors([8, 4], [0.2, 0.4]))
    assert list(heads(model)) == ["both8", "c4"]


def test_levels_by_name_and_further_levels():
    anchors = Anchors([8, 4, 2, 1], [0.1, 0.2, 0.4, 0.8])
    model = models.ssd(plain(), 2, feature_levels=["half1", "half2"], anchors=anchors)
    assert list(heads(model)) == ["half1", "half2", "extra2", "extra3"]
    # 3 cells to 1: no stride does that, a convolution without padding does.
    model = models.ssd(plain(24), 2, anchors=Anchors([3, 1], [0.2, 0.8]))
    assert model.get_layer("extra1_2_conv").padding == "valid"
    assert heads(model)["extra1"][:2] == (1, 1)


def test_keras_cv_names_its_own_levels():
    keras_cv = pytest.importorskip("keras_cv")
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[4, 4],
        stackwise_blocks=[1, 1],
        stackwise_strides=[1, 2],
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )
    anchors = Anchors([8, 4], [0.2, 0.4])
    names = [backbone.pyramid_level_inputs[level] for level in ("P2", "P3")]
    for levels in (None, ("P2", "P3"), (4, 8), names):
        assert list(heads(models.ssd(backbone, 2, None, levels, anchors))) == names


def test_saved_and_cloned_models_give_the_same(tmp_path):
    keras.utils.set_random_seed(1)
    anchors = Anchors([3, 1], [(0.1, 0.2), 0.8])
    model = models.ssd((4, 6, 8), 3, 24, anchors=anchors, head="depthwise", background=0.9)
    x = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype("float32")
    expected = model(x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (loaded, clone, tfkd.frozen_copy(model)):
        found = other(x)
        assert list(found) == ["boxes", "classes"]
        assert list(other.output_names) == model.output_names
        for key in found:
            np.testing.assert_array_equal(found[key], expected[key])


GOOD = {"backbone": WIDTHS, "num_classes": 3, "input_size": 64}


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"head": "dense"}, ValueError, "'conv', 'depthwise'"),
        ({"background": 1.0}, ValueError, "below 1"),
        ({"background": "much"}, TypeError, "background"),
        ({"backbone": "techer"}, ValueError, "Did you mean 'teacher'"),
        ({"backbone": 5}, TypeError, "name of a preset, or widths"),
        ({"backbone": ()}, ValueError, "at least one"),
        ({"input_size": (64, 64, 3)}, ValueError, r"\(height, width\)"),
        ({"input_size": 0}, ValueError, "input_size"),
        ({"anchors": [0.1]}, TypeError, "Anchors"),
        ({"anchors": Anchors([9, 4], [0.1, 0.2])}, ValueError, "32x32, 16x16, 8x8, 4x4, 2x2"),
        ({"anchors": Anchors([8, 5], [0.1, 0.2])}, ValueError, r"half of the level before, \(4"),
        ({"feature_levels": "stage3"}, TypeError, "feature_levels"),
        ({"feature_levels": []}, TypeError, "feature_levels"),
        ({"feature_levels": ["stage33"]}, ValueError, "Did you mean 'stage3'"),
        ({"feature_levels": [8, 64]}, ValueError, "2, 4, 8, 16, 32"),
        ({"feature_levels": [4, 16, 32]}, ValueError, r"feature_sizes\[0\] = \(16, 16\).*stage2"),
        ({"feature_levels": [4, 8, 16, 32]}, ValueError, "at most 3 levels"),
    ],
)
def test_bad_arguments(change, kind, text):
    with pytest.raises(kind, match=text):
        models.ssd(**{**GOOD, **change})


def test_backbones_that_do_not_fit():
    with pytest.raises(ValueError, match="input_size"):
        models.ssd(plain(32), 2, 64)
    inputs = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="an input of a fixed size"):
        models.ssd(keras.Model(inputs, L.Conv2D(2, 3)(inputs)), 2)
    flat = keras.Input((8,))
    with pytest.raises(ValueError, match="one input"):
        models.ssd(keras.Model(flat, L.Dense(2)(flat)), 2)

    class Own(keras.Model):
        pass

    with pytest.raises(ValueError, match="functional"):
        models.ssd(Own(), 2)
    backbone = plain()
    pooled = L.GlobalAveragePooling2D(name="pooled")(backbone.output)
    with pytest.raises(ValueError, match="'pooled' to be one map"):
        models.ssd(keras.Model(backbone.input, pooled), 2, None, ["pooled"])
    with pytest.raises(ValueError, match="a model with weights"):
        models.ssd(keras.Model(rows := keras.Input((8, 8, 3)), L.ReLU()(rows)), 2)
    with pytest.raises(TypeError, match="widths"):
        models.ssd_backbone(3)
    with pytest.raises(ValueError, match="widths"):
        models.ssd_small(3, widths="large")
