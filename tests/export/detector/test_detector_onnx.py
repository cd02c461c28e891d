"""Detectors as ONNX files: with the standard suppression, and with TensorRT's plugin."""

import json

import numpy as np
import onnx
import pytest
import tf_keras as keras

from tfkd import artifacts, export, quantization
from tfkd.detection.decoding import decode
from tfkd.export.detector import onnx_nms
from tfkd.formats import onnx_session
from tfkd.formats.onnx_nodes import attribute

RNG = np.random.default_rng(2)
IMAGES = RNG.uniform(-1, 1, (20, 8, 8, 3)).astype("float32")
CENTERS = np.stack(np.meshgrid([0.2, 0.5, 0.8], [0.2, 0.5, 0.8]), -1).reshape(-1, 1, 2)
PRIORS = np.concatenate(
    [np.repeat(CENTERS, 2, 1), np.broadcast_to([[0.4, 0.4], [0.6, 0.3]], (9, 2, 2))], -1
)
PRIORS = PRIORS.reshape(-1, 4).astype("float32")
CLASSES = 3


def toy(background=True):
    """18 priors, many of whose boxes reach over the border, with crowded objects."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 4, strides=2, activation="relu", name="stem")(image)
    depth = CLASSES + background
    box = keras.layers.Conv2D(8, 1, name="box_head")(x)
    kind = keras.layers.Conv2D(2 * depth, 1, name="class_head")(x)
    outputs = {
        "boxes": keras.layers.Reshape((-1, 4), name="box")(box),
        "classes": keras.layers.Reshape((-1, depth), name="kind")(kind),
    }
    model = keras.Model(image, outputs, name="toy")
    rng = np.random.default_rng(4)
    for weight in model.weights:
        if len(weight.shape) == 4:
            size = np.prod(weight.shape[:-1]) ** -0.5
            scale = 5 if "class_head" in weight.name else 1.5
            weight.assign(rng.normal(0, scale * size, weight.shape))
    return model


@pytest.fixture(scope="module")
def detector():
    model = toy()
    found = decode(model(IMAGES), PRIORS)
    assert set(np.unique(found["classes"])) == {-1, 0, 1, 2}
    wide = decode(model(IMAGES), PRIORS, iou_threshold=1.0)
    # The suppression has something to do.
    assert found["num_detections"].numpy().sum() < 0.8 * wide["num_detections"].numpy().sum()
    return model


def session_outputs(path, images):
    """ONNX Runtime without the rest of tfkd."""
    session = onnx_session.open_session(path)
    names = [port.name for port in session.get_outputs()]
    (port,) = session.get_inputs()
    return dict(zip(names, session.run(None, {port.name: images}), strict=True))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"target": "tensorrt"}),
        ({"class_agnostic": True, "candidates": 20, "max_detections": 6}, {"layout": "nchw"}),
        (
            {"background": False, "order": "yxhw", "score_threshold": 0.4, "candidates": 12},
            {"opset": 13, "batch_size": 20},
        ),
        ({"max_detections": 30, "iou_threshold": 0.2}, {"opset": 18}),
    ],
)
def test_standard_suppression_finds_what_decode_finds(detector, tmp_path, options, arguments):
    model = detector if options.get("background", True) else toy(background=False)
    path = tmp_path / "m.onnx"
    report = export.detector_to_onnx(
        model, path, PRIORS, "onnx", verify=IMAGES, **arguments, **options
    )
    assert report.numbers["detections"]["found"] == report.numbers["detections"]["confirmed"] == 1
    images = IMAGES.transpose(0, 3, 1, 2) if "layout" in arguments else IMAGES
    found, expected = session_outputs(path, images), decode(model(IMAGES), PRIORS, **options)
    assert list(found) == ["boxes", "confidence", "classes", "num_detections"]
    rows = found["confidence"].shape[1]
    assert rows == min(options.get("max_detections", 100), 400, options.get("candidates", 54), 54)
    assert rows >= expected["num_detections"].numpy().max()
    for name, value in found.items():
        wanted = expected[name][:, :rows] if value.ndim > 1 else expected[name]
        assert value.dtype == wanted.numpy().dtype
        np.testing.assert_allclose(value, wanted, atol=1e-5, err_msg=name)


def test_the_plugin_with_its_inputs_and_attributes(detector, tmp_path):
    path = tmp_path / "m.onnx"
    report = export.detector_to_onnx(
        detector, path, PRIORS, "efficient_nms", labels=["a", "b", "c"], verify=IMAGES,
        score_threshold=0.1, iou_threshold=0.4, max_detections=7,
    )  # fmt: skip
    assert report.target == "tensorrt" and not len(report.findings)
    assert report.numbers["detections"]["found"] == 1
    assert report.numbers["plugin_inputs"]["object_box_error"] < 1e-6
    assert report.numbers["plugin_inputs"]["score_error"] < 1e-5
    assert "without the plugin" in report.text() and "not verified here" in report.text()
    model = onnx.load(path)
    (plugin,) = [node for node in model.graph.node if node.op_type == "EfficientNMS_TRT"]
    names = ("plugin_version", "background_class", "score_activation", "box_coding")
    assert [attribute(plugin, name) for name in names] == ["1", -1, 0, 0]
    assert attribute(plugin, "max_output_boxes") == 7
    assert attribute(plugin, "score_threshold") == pytest.approx(0.1)
    assert attribute(plugin, "iou_threshold") == pytest.approx(0.4)
    outputs = {
        port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
        for port in model.graph.output
    }
    assert list(plugin.output) == list(outputs)
    assert outputs == {
        "num_detections": ["batch", 1],
        "detection_boxes": ["batch", 7, 4],
        "detection_scores": ["batch", 7],
        "detection_classes": ["batch", 7],
    }
    part = tmp_path / "part.onnx"
    part.write_bytes(onnx_nms.without_plugin(model).SerializeToString())
    boxes, scores = session_outputs(part, IMAGES).values()
    raw = detector(IMAGES)
    exp = np.exp(raw["classes"] - np.max(raw["classes"], -1, keepdims=True))
    np.testing.assert_allclose(scores, (exp / exp.sum(-1, keepdims=True))[..., 1:], atol=1e-5)
    offsets = raw["boxes"].numpy() * [0.1, 0.1, 0.2, 0.2]
    middle = offsets[..., :2] * PRIORS[:, 2:] + PRIORS[:, :2]
    half = np.exp(offsets[..., 2:]) * PRIORS[:, 2:] / 2
    whole = np.concatenate([middle - half, middle + half], -1)
    assert (whole < 0).any() and (whole > 1).any()
    np.testing.assert_allclose(boxes, np.clip(whole, 0, 1), atol=1e-6)
    entries = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert entries["labels"] == ["a", "b", "c"]
    assert entries["tfkd_detector"]["options"]["max_detections"] == 7


def test_a_quantized_detector_keeps_its_pairs(detector, tmp_path):
    quantized = quantization.quantize(detector, target="tensorrt")
    quantization.calibrate(quantized, IMAGES)
    path = tmp_path / "m.onnx"
    report = export.detector_to_onnx(quantized, path, PRIORS, "efficient_nms", verify=IMAGES)
    assert report.mode == "quantized" and report.numbers["quantized"] == 3
    assert not len(report.findings)
    numbers = report.numbers["detections"]
    assert min(numbers["found"], numbers["confirmed"]) > 0.95
    recipe = artifacts.verify(path)["recipe"]
    assert recipe["nms"] == "efficient_nms" and recipe["int8_weights"]


def test_without_suppression_it_is_the_file_of_to_onnx(detector, tmp_path):
    report = export.detector_to_onnx(detector, tmp_path / "a.onnx", PRIORS, verify=IMAGES)
    export.to_onnx(detector, tmp_path / "b.onnx")
    ours, plain = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx")
    assert ours.graph == plain.graph
    assert report.numbers["heads"]["object_agreement"] == 1
    assert report.numbers["detections"]["found"] == 1
    assert report.findings is None and "objects in the file" in report.text()


@pytest.mark.parametrize("nms", ["none", "onnx", "efficient_nms"])
def test_without_examples_the_network_is_compared_on_made_up_images(detector, tmp_path, nms):
    report = export.detector_to_onnx(
        detector, tmp_path / "m.onnx", PRIORS, nms, precision="float16"
    )
    check = report.numbers["check"]
    assert report.compared_on == "8 made-up inputs" and "8 made-up inputs" in report.text()
    assert 0 < check["max_error"] < 1e-2 and check["overflows"] == []


def test_a_wrong_tail_is_found_out(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_nms, "MAX_LOG_SIZE", np.float32(-0.5))
    path = tmp_path / "m.onnx"
    for nms in ("onnx", "efficient_nms"):
        with pytest.raises(ValueError, match=r"less than 0\.99.*No file was left"):
            export.detector_to_onnx(detector, path, PRIORS, nms, verify=IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nms": "efficient"}, "Did you mean 'efficient_nms'"),
        ({"nms": "efficient_nms", "target": "onnxruntime"}, "use nms='onnx'"),
        ({"precision": "int8"}, "`precision`"),
        ({"anchors": PRIORS[1:]}, "anchors with which the model was built"),
        ({"labels": ["a"]}, "`labels`"),
    ],
)
def test_bad_arguments_are_named(detector, tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        export.detector_to_onnx(detector, tmp_path / "m.onnx", **{"anchors": PRIORS, **change})
    assert not list(tmp_path.iterdir())
