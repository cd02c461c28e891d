"""keras-cv's detectors, as small as their constructors make them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

with contextlib.redirect_stdout(io.StringIO()):
    keras_cv = pytest.importorskip("keras_cv")

# Not square, so that an x taken for a y is seen.
SIZE = (64, 96)
CLASSES = 3
SCALES = [1.0, 2 ** (1 / 3), 2 ** (2 / 3)]


def anchor_generator(bounding_box_format="xyxy", sizes=(8.0, 16.0, 32.0, 64.0, 128.0), clip=True):
    return keras_cv.layers.AnchorGenerator(
        bounding_box_format,
        sizes=list(sizes),
        scales=SCALES,
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        clip_boxes=clip,
    )


def retina_net(filters, bounding_box_format="xyxy", sizes=(8.0, 16.0, 32.0, 64.0, 128.0)):
    """ResNet with one block of each stack, and heads of one hidden layer instead of three."""
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[filters] * 4,
        stackwise_blocks=[1] * 4,
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=(*SIZE, 3),
    )

    def head(channels, bias):
        return keras_cv.models.retinanet.PredictionHead(9 * channels, bias, num_conv_layers=1)

    return keras_cv.models.RetinaNet(
        backbone,
        CLASSES,
        bounding_box_format,
        anchor_generator=anchor_generator(bounding_box_format, sizes),
        classification_head=head(CLASSES, keras.initializers.Constant(-2.0)),
        box_head=head(4, "zeros"),
    )


def yolo(channels, bounding_box_format="rel_xyxy"):
    backbone = keras_cv.models.YOLOV8Backbone(
        stackwise_channels=[channels] * 4,
        stackwise_depth=[1] * 4,
        include_rescaling=False,
        input_shape=(*SIZE, 3),
    )
    return keras_cv.models.YOLOV8Detector(backbone, CLASSES, bounding_box_format, fpn_depth=1)


def as_ragged(y):
    """Padded objects without the padding."""
    kept = y["classes"] >= 0
    rows = {k: [list(v[i][kept[i]]) for i in range(len(v))] for k, v in y.items()}
    return {
        "boxes": tf.ragged.constant(rows["boxes"], tf.float32, ragged_rank=1, inner_shape=(4,)),
        "classes": tf.ragged.constant(rows["classes"], tf.int32, ragged_rank=1),
    }


def images(count=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SIZE, 3)).astype(np.float32)
