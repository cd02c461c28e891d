"""SSD detectors through pruning, quantization and distillation, on six kinds of backbones."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd import models, pruning, quantization
from tfkd.detection.anchors import Anchors

SIZE = 32
ANCHORS = Anchors([8, 4], [(0.1, 0.2), 0.4])
FURTHER = Anchors([4, 2, 1], [0.1, 0.4, 0.8])
FINE = Anchors([16, 8], [0.1, 0.3])
CLASSES = 2


def small():
    return models.ssd((4, 6, 8), CLASSES, SIZE, anchors=ANCHORS)


def depthwise():
    backbone = models.ssd_backbone((4, 6, 8), (SIZE, SIZE, 3), depthwise=True)
    return models.ssd(backbone, CLASSES, anchors=ANCHORS, head="depthwise")


def further():
    # The last level is one cell with one prior: its Reshape keeps the channels' axis.
    return models.ssd((4, 6, 8), CLASSES, SIZE, anchors=FURTHER)


def of_keras_cv(kind, **settings):
    keras_cv = pytest.importorskip("keras_cv")
    settings = {**settings, "include_rescaling": False, "input_shape": (SIZE, SIZE, 3)}
    backbone = getattr(keras_cv.models, kind)(**settings)
    return models.ssd(backbone, CLASSES, anchors=ANCHORS)


def efficientnet_lite():
    return of_keras_cv(
        "EfficientNetLiteBackbone",
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 1],
        stackwise_input_filters=[8, 8, 8],
        stackwise_output_filters=[8, 8, 16],
        stackwise_expansion_ratios=[1, 2, 2],
        stackwise_strides=[2, 2, 1],
    )


def resnet_v1():
    return of_keras_cv(
        "ResNetBackbone",
        stackwise_filters=[4, 6],
        stackwise_blocks=[1, 1],
        stackwise_strides=[1, 2],
    )


def densenet():
    return of_keras_cv("DenseNetBackbone", stackwise_num_repeats=[1, 1], growth_rate=4)


def mobilenet_v2():
    backbone = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None
    )
    # Its first blocks; the rest would only take the tests' time.
    levels = ["block_1_expand_relu", "block_3_expand_relu"]
    return models.ssd(backbone, CLASSES, None, levels, FINE)


KINDS = [small, depthwise, further, efficientnet_lite, resnet_v1, densenet, mobilenet_v2]


def images(count=8):
    return np.random.default_rng(0).normal(size=(count, SIZE, SIZE, 3)).astype("float32")


def built(kind):
    """A detector whose normalizations have seen images, with biases that are not zero."""
    keras.utils.set_random_seed(0)
    model = kind()
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in (layer.beta, layer.moving_mean):
                weight.assign(random.normal(0.0, 0.1, weight.shape))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(random.normal(0.0, 0.1, layer.bias.shape))
    return model


class Chain(NamedTuple):
    """A detector, the plan for it, and what is left of it."""

    model: keras.Model
    plan: pruning.Plan
    cut: keras.Model


@functools.cache
def chain(kind):
    """The model keeps all its filters, those that go set to zero."""
    model = built(kind)
    plan = pruning.plan(model, macs_reduction=0.3, residual="coupled")
    selection = pruning.select(model, plan)
    cut = pruning.shrink(model, selection, verify=False)
    pruning.apply_selection(model, selection)
    return Chain(model, plan, cut)


def is_head(layer):
    kind, _, level = layer.name.partition("_")
    return kind in ("boxes", "classes") and level.isdigit()


def differences(first, second):
    return {key: float(tf.reduce_max(tf.abs(first[key] - second[key]))) for key in first}


def objects(count=8):
    """One object in each image."""
    low = np.random.default_rng(2).uniform(0.0, 0.5, (count, 1, 2))
    boxes = np.concatenate([low, low + 0.3], -1).astype("float32")
    return {"boxes": boxes, "classes": np.arange(count)[:, None] % CLASSES}


def distilling(teacher, student, kind, **more):
    """A Distiller with all terms of a detector's objective."""
    anchors = {further: FURTHER, mobilenet_v2: FINE}.get(kind, ANCHORS)
    selection = tfkd.detection.Matcher(anchors)
    return tfkd.Distiller(teacher, student, **tfkd.losses.multibox_objective(selection, **more))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pruning_keeps_the_heads_outputs_and_cuts_the_backbone(kind):
    model, plan, cut = chain(kind)
    heads = [layer for layer in model.layers if is_head(layer)]
    reasons = {name: frozen.reason for frozen in plan.graph.frozen for name in frozen.layers}
    for layer in heads:
        assert reasons[layer.name]
        assert reasons[layer.name] in plan.text()
        assert cut.get_layer(layer.name).filters == layer.filters
    assert {group.name for group in plan.graph.groups}.isdisjoint(reasons)
    x = images(2)
    masked, found = model(x, training=False), cut(x, training=False)
    assert list(found) == ["boxes", "classes"]
    assert cut.output_names == model.output_names
    for key, difference in differences(masked, found).items():
        assert difference <= 1e-4 * np.ptp(masked[key])
    before, after = tfkd.report.profile(model).macs, tfkd.report.profile(cut).macs
    assert after <= 0.7 * before
    assert plan.macs_after == after


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (small, "both"),
        (depthwise, "tflite"),
        (further, "tensorrt"),
        (efficientnet_lite, "both"),
        (resnet_v1, "tensorrt"),
        (densenet, "both"),
        (mobilenet_v2, "tflite"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_left_is_quantized_and_taught_by_the_whole(kind, target):
    (model, _, cut), x = chain(kind), images()
    q = quantization.quantize(cut, target=target)
    heads = [layer.name for layer in cut.layers if is_head(layer)]
    assert {q.report.of(name).action for name in heads} == {"int8"}
    quantization.calibrate(q, x)
    expected, found = model(x, training=False), q(x, training=False)
    assert list(found) == q.output_names == ["boxes", "classes"]
    for key in expected:
        error = np.mean(np.square(expected[key] - found[key]))
        assert 0 < error < 0.05 * np.var(expected[key])
    # Tracing takes longer than a step: done once, with hints.
    hint = ("stage2", "stage2") if kind is small else None
    distiller = distilling(model, q, kind, hint=hint)
    distiller.compile("sgd", run_eagerly=hint is None)
    teacher, student = model.get_weights(), [w.numpy() for w in q.trainable_weights]
    history = distiller.fit(x, objects(), batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for old, new in zip(teacher, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    pairs = zip(q.trainable_weights, student, strict=True)
    taught = {w.name.split("_")[0].split("/")[-1] for w, old in pairs if (w.numpy() != old).any()}
    assert {"boxes", "classes"} < taught


def test_a_quantized_detector_is_saved_and_loaded(tmp_path):
    q, x = quantization.quantize(chain(depthwise).cut), images()
    quantization.calibrate(q, x)
    quantization.save(q, tmp_path / "q")
    again = quantization.load(tmp_path / "q")(x, training=False)
    assert list(again) == ["boxes", "classes"]
    assert differences(q(x, training=False), again) == {"boxes": 0.0, "classes": 0.0}


def test_filters_decay_in_a_student_of_two_outputs():
    teacher, student, x = built(small), built(small), images()
    plan = pruning.plan(student, macs_reduction=0.3)
    schedule = pruning.AnnealedFilterDecay(0.5, 0, 2, frequency=1)
    decay = tfkd.callbacks.FilterDecay(plan, schedule)
    distiller = distilling(teacher, student, small)
    distiller.compile("adam", run_eagerly=True)
    distiller.fit(x, objects(), batch_size=2, verbose=0, callbacks=[decay])
    cut = pruning.shrink(student, decay.selection, verify=x)
    assert cut.count_params() < student.count_params()
    for key, difference in differences(student(x), cut(x)).items():
        assert difference < 1e-4, key
