"""Exports print nothing of their own, whatever TensorFlow and the converters log."""

import logging
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import export, quantization

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype("float32")


@keras.utils.register_keras_serializable("test_quiet")
class Loud(layers.Layer):
    """Writes and logs what TensorFlow does, whenever it is traced or run eagerly."""

    def call(self, x):
        os.write(2, b"fully_quantize: 0, inference_type: 6, input_inference_type: FLOAT32\n")
        tf.get_logger().warning("5 out of the last 5 calls triggered tf.function retracing")
        logging.getLogger("absl").warning("Importing a function with a custom gradient")
        return x * 2.0


@pytest.fixture
def streams(capfd):
    """What reaches the file descriptors 1 and 2, with all loggers at INFO."""
    loggers = [tf.get_logger(), *map(logging.getLogger, ("absl", "tf2onnx"))]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    yield capfd
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def network(loud=True):
    """Grouped convolutions are compiled by XLA, which logs that."""
    model = keras.Sequential([keras.Input((6, 6, 4)), *([Loud()] if loud else [])])
    model.add(layers.Conv2D(8, 3, groups=2))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(3))
    return model


def silent(streams, function, *args, **options):
    streams.readouterr()
    function(*args, **options)
    assert tuple(streams.readouterr()) == ("", "")


@pytest.mark.parametrize(
    "verify", [IMAGES, pytest.param(True, marks=pytest.mark.slow)], ids=["given", "made up"]
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tflite", {}),
        ("tflite", {"mode": "float16"}),
        ("tflite", {"mode": "dynamic"}),
        ("tflite", {"mode": "int8", "data": IMAGES}),
        ("onnx", {}),
        ("onnx", {"precision": "float16", "target": "tensorrt"}),
        ("saved_model", {}),
    ],
)
def test_nothing_is_printed(tmp_path, streams, kind, options, verify):
    silent(
        streams, getattr(export, f"to_{kind}"), network(), tmp_path / "m", verify=verify, **options
    )


@pytest.mark.slow
def test_nor_by_the_converter_in_this_process(tmp_path, streams, monkeypatch):
    monkeypatch.setenv("TFKD_CONVERT_IN_PROCESS", "1")
    options = {"mode": "int8", "data": IMAGES, "verify": IMAGES}
    silent(streams, export.to_tflite, network(), tmp_path / "m.tflite", **options)


@pytest.mark.parametrize("kind", ["tflite", "onnx", "saved_model"])
def test_nor_by_quantized_models(tmp_path, streams, kind):
    model = quantization.quantize(network(loud=False), target="both")
    quantization.calibrate(model, IMAGES)
    silent(streams, getattr(export, f"to_{kind}"), model, tmp_path / "m", verify=IMAGES)


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_nor_by_detectors(tmp_path, streams, kind):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(Loud()(image))
    boxes = layers.Reshape((2, 4))(layers.Dense(8)(x))
    classes = layers.Reshape((2, 3))(layers.Dense(6)(x))
    model = keras.Model(image, {"boxes": boxes, "classes": classes})
    priors = np.float32([[0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.4, 0.4]])
    to_file = getattr(export, f"detector_to_{kind}")
    silent(streams, to_file, model, tmp_path / "m", priors)
