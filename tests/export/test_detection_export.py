"""Detectors as TFLite files: what they find, against Keras and against LiteRT alone."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tf_keras as keras
from flatbuffers_by_hand import entries, fields, follow, text_at

from tfkd import artifacts, export, quantization, runtime
from tfkd.detection.decoding import decode
from tfkd.export import tflite_conversion
from tfkd.export.detector import flatbuffer, parity, tflite_metadata, tflite_postprocess
from tfkd.export.named_function import NamedFunction
from tfkd.formats import detector_numpy
from tfkd.formats.detector_recipe import OUTPUTS

LABELS = ["cell", "plate"]
RNG = np.random.default_rng(0)
CELLS = 4


def pictures(count):
    """Bright blobs on a dark ground, uint8."""
    images = RNG.integers(0, 60, (count, 16, 16, 3))
    for image in images:
        for _ in range(2):
            y, x = RNG.integers(0, 12, 2)
            image[y : y + 4, x : x + 4, RNG.integers(0, 3)] += 190
    return images.astype("uint8")


IMAGES = pictures(40)


def toy_priors():
    centers = (np.arange(CELLS) + 0.5) / CELLS
    y, x = np.meshgrid(centers, centers, indexing="ij")
    sizes = np.array([[0.3, 0.3], [0.5, 0.25]])
    cells = np.stack([x, y], -1).reshape(-1, 1, 2)
    whole = np.concatenate(
        [np.broadcast_to(cells, (CELLS**2, 2, 2)), np.broadcast_to(sizes, (CELLS**2, 2, 2))], -1
    )
    return whole.reshape(-1, 4).astype("float32")


PRIORS = toy_priors()


def toy(background=True, names=("boxes", "classes")):
    """A detector with random weights, most of whose priors are background."""
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(8, 4, strides=4, padding="same", use_bias=False, name="stem")(image)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU(6.0, name="relu")(x)
    classes = len(LABELS) + background
    box = keras.layers.Conv2D(2 * 4, 1, name="box_head")(x)
    kind = keras.layers.Conv2D(2 * classes, 1, name="class_head")(x)
    box = keras.layers.Reshape((-1, 4), name="boxes")(box)
    kind = keras.layers.Reshape((-1, classes), name="classes")(kind)
    model = keras.Model(image, dict(zip(names, (box, kind), strict=True)), name="toy")
    rng = np.random.default_rng(5)
    for weight in model.weights:
        if len(weight.shape) == 4:
            scale = 2.5 if "class_head" in weight.name else 1.0
            weight.assign(rng.normal(0, scale / weight.shape[2] ** 0.5, weight.shape))
    offset = [1.5, 0, 0] * 2 if background else [-2.0] * 4
    model.get_layer("class_head").bias.assign(offset)
    return model


@pytest.fixture(scope="module")
def detector():
    model = toy()
    found = keras_finds(model, IMAGES)
    per_image = (found["confidence"] > 0.3).sum(1)
    assert per_image.min() >= 1 and per_image.max() < 20
    assert set(found["classes"][found["confidence"] > 0.3]) == {0, 1}
    return model


def keras_finds(model, images, **options):
    outputs = model(images.astype("float32") / 127.5 - 1, training=False)
    return {k: v.numpy() for k, v in decode(outputs, PRIORS, **options).items()}


def run_by_hand(path, images):
    """LiteRT without any of tfkd: outputs of the signature by name, a row an image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    rows = [runner(**{name: image[None]}) for image in images]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def clear(found, score=0.3):
    return found["confidence"] > score


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    """{heads: report} of verified float files; not to be changed."""
    folder = tmp_path_factory.mktemp("files")
    options = {"labels": LABELS, "verify": IMAGES, "max_detections": 25}
    return {
        heads: export.detector_to_tflite(
            detector, folder / f"{heads}.tflite", PRIORS, heads=heads, **options
        )
        for heads in ("postprocess", "raw")
    }


def copied(report, folder):
    """A copy of a file, without its manifest."""
    return pathlib.Path(shutil.copy(report.path, folder / "m.tflite"))


@pytest.mark.parametrize("heads", ["postprocess", "raw"])
def test_a_float_file_finds_what_keras_finds(detector, files, heads):
    report = files[heads]
    numbers = report.numbers["detections"]
    assert report.verified and numbers["objects"] > 60
    assert numbers["found"] == numbers["confirmed"] == 1
    loaded = export.load_detector(report.path)
    assert loaded.labels == tuple(LABELS) and loaded.size == (16, 16, 3)
    found = loaded(IMAGES)
    expected = keras_finds(detector, IMAGES, max_detections=25)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
    assert "objects in the file" in report.text()


@pytest.mark.parametrize(
    ("heads", "mode", "io_type"),
    [("postprocess", "int8", "uint8"), ("raw", "dynamic", "float32"), ("raw", "int8", "int8")],
)
def test_other_modes_find_nearly_the_same(detector, tmp_path, heads, mode, io_type):
    report = export.detector_to_tflite(
        detector,
        tmp_path / "m.tflite",
        PRIORS,
        heads=heads,
        mode=mode,
        io=io_type,
        data=pictures(30) if mode == "int8" else None,
        verify=IMAGES,
    )
    numbers = report.numbers["detections"]
    assert numbers["objects"] > 60 and min(numbers["found"], numbers["confirmed"]) > 0.9
    again = export.load_detector(report.path)(IMAGES)
    again = parity.compare_detections(keras_finds(detector, IMAGES), again)
    assert again["found"] == pytest.approx(numbers["found"])
    in_float = [row["operation"] for row in report.numbers.get("in_float", [])]
    if heads == "postprocess":
        # The network is in integers, what comes behind it is not.
        assert in_float[-1] == "TFLite_Detection_PostProcess" and "SOFTMAX" in in_float
        assert "CONV_2D" not in in_float
    else:
        assert not in_float


def test_the_standard_operation_with_its_outputs_in_their_order(detector, files):
    path = files["postprocess"].path
    found = run_by_hand(path, IMAGES.astype("float32") / 127.5 - 1)
    assert [found[name].shape for name in OUTPUTS] == [(40, 25, 4), (40, 25), (40, 25), (40,)]
    expected = keras_finds(detector, IMAGES, max_detections=25)
    for i in range(len(IMAGES)):
        count = clear(expected, 0.1)[i].sum()
        np.testing.assert_allclose(
            found[OUTPUTS[2]][i, :count], expected["confidence"][i, :count], atol=1e-5
        )
        np.testing.assert_array_equal(found[OUTPUTS[1]][i, :count], expected["classes"][i, :count])
        boxes = np.clip(found[OUTPUTS[0]][i, :count], 0, 1)
        np.testing.assert_allclose(boxes[:, [1, 0, 3, 2]], expected["boxes"][i, :count], atol=1e-5)
    model = flatbuffer.opened(path.read_bytes())
    graph = model.subgraphs[0]
    assert [graph.tensors[i].name.decode() for i in graph.outputs] == list(OUTPUTS)
    # MediaPipe's tools number the outputs by their tensors.
    assert list(graph.outputs) == sorted(graph.outputs)
    assert [list(graph.tensors[i].shape) for i in graph.outputs] == [
        [1, 25, 4],
        [1, 25],
        [1, 25],
        [1],
    ]


def test_boxes_at_and_beyond_the_border(tmp_path):
    """They are cut before doubles are suppressed, and nothing is left of what lies outside."""
    image = keras.Input((4, 4, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    box = keras.layers.Reshape((3, 4))(keras.layers.Dense(12, kernel_initializer="zeros")(x))
    dense = keras.layers.Dense(6, kernel_initializer="zeros")
    kind = keras.layers.Reshape((3, 2))(dense(x))
    dense.bias.assign([0, 3, 0, 2, 0, 1])
    model = keras.Model(image, {"boxes": box, "classes": kind})
    # Uncut, the second overlaps the first by 0.4, cut by 1. The third lies outside.
    priors = np.float32([[0.1, 0.5, 0.2, 0.2], [-0.05, 0.5, 0.5, 0.2], [1.5, 0.5, 0.2, 0.2]])
    path = tmp_path / "m.tflite"
    export.detector_to_tflite(model, path, priors)
    found = export.load_detector(path)(np.zeros((1, 4, 4, 3), "uint8"))
    assert found["num_detections"].tolist() == [1]
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 0.4, 0.2, 0.6], atol=1e-6)
    by_hand = run_by_hand(path, np.zeros((1, 4, 4, 3), "float32"))
    assert by_hand[OUTPUTS[3]].tolist() == [1]


def test_raw_heads_are_the_outputs_of_the_model(detector, files):
    report = files["raw"]
    path, x = report.path, IMAGES.astype("float32") / 127.5 - 1
    found, expected = run_by_hand(path, x), detector(x)
    assert set(found) == {"boxes", "classes"}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)
    heads = report.numbers["heads"]
    assert heads["object_agreement"] == 1 and heads["object_priors"] > 60
    assert heads["object_offset_error"] < 1e-5 and heads["max_error"] < 1e-5
    # The same file serves the general Predictor.
    assert set(runtime.Predictor(path)(x[:2])) == {"boxes", "classes"}


def test_a_quantized_model(detector, tmp_path):
    x = pictures(40).astype("float32") / 127.5 - 1
    quantized = quantization.quantize(detector, target="tflite")
    quantization.calibrate(quantized, x)
    path = tmp_path / "m.tflite"
    report = export.detector_to_tflite(
        quantized, path, PRIORS, io="uint8", labels=LABELS, verify=IMAGES
    )
    numbers = report.numbers["detections"]
    assert report.mode == "int8" and min(numbers["found"], numbers["confirmed"]) > 0.9
    manifest = artifacts.read_manifest(path)
    assert manifest["recipe"]["quantized"] and manifest["recipe"]["detector"]["pixels"]
    assert manifest["numbers"]["detections"] == numbers


@pytest.mark.parametrize("heads", ["raw", "postprocess"])
def test_without_examples_the_network_is_compared_on_made_up_images(
    detector, tmp_path, heads, monkeypatch
):
    path = tmp_path / "m.tflite"
    report = export.detector_to_tflite(detector, path, PRIORS, heads=heads)
    check = report.numbers["check"]
    assert report.compared_on == "8 made-up inputs" and not report.verified
    assert set(check["outputs"]) == {"boxes", "classes"} and check["max_error"] < 1e-4
    assert "8 made-up inputs" in report.text() and check["detections"]["examples"] == 8
    if heads == "raw":
        return
    wrong = tflite_conversion.Source.convert
    other = keras.models.clone_model(detector)

    def convert(source, *arguments, **options):
        other.set_weights([0.3 * w for w in detector.get_weights()])
        return wrong(dataclasses.replace(source, plain=NamedFunction(other)), *arguments, **options)

    monkeypatch.setattr(tflite_conversion.Source, "convert", convert)
    with pytest.raises(ValueError, match=r"mean_error .* is above 0\.1 \(on 8 made-up inputs\)"):
        export.detector_to_tflite(detector, tmp_path / "w.tflite", PRIORS, heads=heads)
    assert not (tmp_path / "w.tflite").exists()


def test_uint8_takes_pixels_as_they_are(detector, tmp_path):
    path = tmp_path / "m.tflite"
    # Dark examples: the converter's own scale would cover a part of the pixels.
    dark = pictures(30) // 2
    export.detector_to_tflite(
        detector, path, PRIORS, mode="int8", io="uint8", data=dark, heads="raw"
    )
    (port,) = runtime.Predictor(path).inputs
    assert port.dtype == np.uint8 and port.zero_point == 128
    assert port.scale == pytest.approx(1 / 127.5)
    by_hand, loaded = run_by_hand(path, dark), export.load_detector(path)
    outputs = loaded.outputs(dark)
    (first, second) = (outputs[k] for k in ("boxes", "classes"))
    ports = {p.name: p for p in runtime.Predictor(path).outputs}
    np.testing.assert_array_equal(ports["boxes"].decode(by_hand["boxes"]), first)
    np.testing.assert_array_equal(ports["classes"].decode(by_hand["classes"]), second)
    # Floats, scaled as in training, are the same pixels.
    scaled = loaded.outputs(dark.astype("float32") / 127.5 - 1)
    np.testing.assert_array_equal(scaled["boxes"], first)
    expected = detector(dark.astype("float32") / 127.5 - 1)["classes"]
    assert np.abs(second - expected).mean() < 0.02 * np.ptp(expected)


def test_a_detector_like_retina_net(tmp_path):
    """Sigmoid scores, no background, other names, y before x."""
    model = toy(background=False, names=("box", "classification"))
    options = {"background": False, "boxes": "box", "classes": "classification", "order": "yxhw"}
    expected = keras_finds(model, IMAGES, **options)
    assert clear(expected).sum() > 40
    path = tmp_path / "m.tflite"
    report = export.detector_to_tflite(model, path, PRIORS, verify=IMAGES, **options)
    assert report.numbers["detections"]["found"] == 1
    found = export.load_detector(path)(IMAGES)
    np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-5)


def test_suppression_across_classes(detector, tmp_path):
    path = tmp_path / "m.tflite"
    report = export.detector_to_tflite(
        detector, path, PRIORS, verify=IMAGES, class_agnostic=True, iou_threshold=0.2
    )
    per_class = keras_finds(detector, IMAGES, iou_threshold=0.2)
    assert report.numbers["detections"]["objects"] < clear(per_class).sum()


def test_metadata_as_mediapipe_reads_it(files):
    """Slots by the schema, https://github.com/google-ai-edge/mediapipe, metadata_schema.fbs."""
    path = files["postprocess"].path
    model = flatbuffer.opened(path.read_bytes())
    (entry,) = [e for e in model.metadata if e.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    recipe = export.load_detector(path).recipe
    assert data == tflite_metadata.metadata(recipe)
    data = tflite_metadata.metadata(
        dataclasses.replace(recipe, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    )
    assert data[4:8] == b"M001"
    root = fields(data, follow(data, 0))
    assert text_at(data, root[7]) == "1.2.0"
    (graph_at,) = entries(data, root[3])
    graph = fields(data, follow(data, graph_at))
    (image_at,) = entries(data, graph[2])
    image = fields(data, follow(data, image_at))
    (unit_at,) = entries(data, image[4])
    unit = fields(data, follow(data, unit_at))
    assert data[unit[0]] == 1  # NormalizationOptions
    options = fields(data, follow(data, unit[1]))
    for slot, expected in ((0, [1, 2, 3]), (1, [4, 5, 6])):
        values = [np.frombuffer(data, "<f4", 1, at)[0] for at in entries(data, options[slot])]
        assert values == expected
    outputs = [fields(data, follow(data, at)) for at in entries(data, graph[3])]
    names = [text_at(data, output[0]) for output in outputs]
    assert names == ["location", "category", "score", "number of detections"]
    content = fields(data, follow(data, outputs[0][3]))
    assert data[content[0]] == 3  # BoundingBoxProperties
    box = fields(data, follow(data, content[1]))
    order = [int.from_bytes(data[at : at + 4], "little") for at in entries(data, box[0])]
    assert order == [1, 0, 3, 2] and data[box[1]] == 1  # left, top, right, bottom; BOUNDARIES
    (file_at,) = entries(data, outputs[1][6])
    file = fields(data, follow(data, file_at))
    assert text_at(data, file[0]) == "labels.txt" and data[file[2]] == 3  # TENSOR_VALUE_LABELS
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split() == LABELS
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}


def test_weights_lie_aligned(files):
    path = files["postprocess"].path
    parts = flatbuffer.schema()
    root = parts.Model.GetRootAsModel(path.read_bytes(), 0)
    places = []
    for i in range(root.BuffersLength()):
        buffer = root.Buffers(i)
        if buffer.DataLength():
            places.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(places) > 5 and all(place % 16 == 0 for place in places)


def test_the_same_model_gives_the_same_bytes(detector, files, tmp_path):
    path = tmp_path / "m.tflite"
    export.detector_to_tflite(detector, path, PRIORS, labels=LABELS, max_detections=25)
    assert path.read_bytes() == files["postprocess"].path.read_bytes()


def test_numpy_decodes_as_tensorflow_does():
    rng = np.random.default_rng(1)
    cases = ((True, False, "xywh"), (False, False, "yxhw"), (True, True, "xywh"))
    for background, agnostic, order in cases:
        outputs = {
            "boxes": rng.normal(0, 1, (3, 32, 4)).astype("float32"),
            "classes": rng.normal(0, 2, (3, 32, 4)).astype("float32"),
        }
        options = {
            "variances": (0.1, 0.1, 0.2, 0.2), "score_threshold": 0.05, "iou_threshold": 0.4,
            "max_detections": 40, "candidates": 50, "background": background,
            "boxes": "boxes", "classes": "classes", "class_agnostic": agnostic, "order": order,
        }  # fmt: skip
        expected = decode(outputs, PRIORS, **options)
        found = detector_numpy.decode(outputs, PRIORS, options)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)


def detections(*images):
    """Detections from [(box, score, class), ...] for each image."""
    rows = []
    for image in images:
        box, score, kind = ([r[i] for r in image] for i in range(3))
        rows.append((np.reshape(box, (-1, 4)), np.array(score), np.array(kind, np.int32)))
    return detector_numpy.padded(rows, 4)


def test_matching_counts_by_hand():
    a, b = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    near = (0.1, 0.1, 0.5, 0.48)  # IoU 0.95 with a
    far = (0.1, 0.1, 0.5, 0.44)  # IoU 0.85
    first = detections([(a, 0.9, 0), (b, 0.8, 1), (b, 0.2, 0)], [(a, 0.5, 0)])
    second = detections([(near, 0.7, 0), (b, 0.25, 1)], [(far, 0.5, 0)])
    numbers = parity.compare_detections(first, second)
    # Found: a as near; b with a score under 0.3. Not found: a as far.
    assert numbers["objects"] == 3 and numbers["objects_in_file"] == 2
    assert numbers["found"] == pytest.approx(2 / 3) and numbers["confirmed"] == pytest.approx(1 / 2)
    assert numbers["score_difference"] == pytest.approx((0.2 + 0.55) / 2)
    assert numbers["max_score_difference"] == pytest.approx(0.55)
    assert numbers["box_iou"] == pytest.approx((0.95 + 1) / 2)
    other_class = detections([(a, 0.9, 1)], [])
    assert parity.compare_detections(first, other_class)["found"] == 0
    twice = detections([(a, 0.9, 0), (near, 0.8, 0)], [])
    once = detections([(a, 0.9, 0)], [])
    assert parity.compare_detections(twice, once)["found"] == 0.5
    limits = {"min_found": 0.5, "max_score_difference": 0.4}
    assert len(parity.failures(numbers, limits)) == 0
    limits = {"min_found": 0.6, "max_score_difference": 0.3}
    assert len(parity.failures(numbers, limits)) == 2
    nothing = parity.compare_detections(detections([]), detections([]))
    assert "no object" in parity.failures(nothing, limits)[0]


def test_a_file_that_finds_other_objects_fails(detector, tmp_path, monkeypatch):
    """Boxes half as far from where they belong."""
    path = tmp_path / "m.tflite"
    right = tflite_postprocess._operation
    wrong = '"x_scale" value { f: 20.0', '"x_scale" value { f: 10.0'
    monkeypatch.setattr(
        tflite_postprocess, "_operation", lambda r: right(r).replace(wrong[1], wrong[0])
    )
    with pytest.raises(ValueError, match="The file was kept"):
        export.detector_to_tflite(detector, path, PRIORS, verify=IMAGES, keep_failed=True)
    assert artifacts.verify(path)["numbers"]["failures"]


def test_an_untrained_model_proves_nothing(tmp_path):
    model = toy()
    model.get_layer("class_head").bias.assign([99.0, 0, 0] * 2)
    with pytest.raises(ValueError, match="finds no object.*No file was left"):
        export.detector_to_tflite(model, tmp_path / "m.tflite", PRIORS, verify=IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"heads": "both"}, "`heads`"),
        ({"labels": ["one"]}, "`labels`"),
        ({"labels": ["a", "a"]}, "`labels`"),
        ({"labels": ["a", "b\nc"]}, "`labels`"),
        ({"anchors": PRIORS[:-1]}, "anchors with which the model was built"),
        ({"mean": [1.0, 2.0]}, "`mean`"),
        ({"std": 0}, "`std`"),
        ({"score_treshold": 0.5}, "Did you mean 'score_threshold'"),
        ({"boxes": "box"}, "Did you mean 'boxes'"),
        ({"mode": "int8"}, "`data`"),
        ({"thresholds": {"min_fond": 1}}, "Did you mean 'min_found'"),
        (
            {
                "mode": "int8",
                "io": "uint8",
                "data": IMAGES,
                "mean": [1, 2, 3],
                "std": [1, 1, 1],
            },
            "one number with io='uint8'",
        ),
    ],
)
def test_bad_arguments_are_named(detector, tmp_path, change, text):
    arguments = {"anchors": PRIORS, "path": tmp_path / "m.tflite", **change}
    with pytest.raises(ValueError, match=text):
        export.detector_to_tflite(detector, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_no_detector_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,))])
    with pytest.raises(ValueError, match="images of a fixed size"):
        export.detector_to_tflite(model, tmp_path / "m.tflite", PRIORS)


def test_images_and_files_that_do_not_fit(files, tmp_path):
    loaded = export.load_detector(files["postprocess"].path)
    with pytest.raises(ValueError, match=r"x\[None\]"):
        loaded(IMAGES[0])
    with pytest.raises(ValueError, match="examples of shape .batch, "):
        loaded(IMAGES[:, :8])
    with pytest.raises(TypeError, match="uint8"):
        loaded(IMAGES.astype("int64"))
    with pytest.raises(FileNotFoundError):
        export.load_detector(tmp_path / "none.tflite")
    path = copied(files["postprocess"], tmp_path)
    data = path.read_bytes()
    for wrong in (
        data[: data.index(b"PK")],  # no archive
        data.replace(b'"format": 1', b'"format": 2'),
        data.replace(b'"heads": "postprocess"', b'"heads": "postproces?"'),
        data.replace(b"tfkd_detector.json", b"tfkd_detektor.json"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="detector_to_tflite"):
            export.load_detector(path)
    shutil.copy(artifacts.manifest_path(files["postprocess"].path), tmp_path)
    artifacts.manifest_path(tmp_path / "postprocess.tflite").rename(artifacts.manifest_path(path))
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match="truncated"):
        export.load_detector(path)


def test_a_file_is_read_alone_and_without_tensorflow(files, tmp_path):
    path = copied(files["raw"], tmp_path)
    np.save(tmp_path / "x.npy", IMAGES[:2])
    program = (
        "import sys, numpy as np\n"
        "from tfkd.runtime import DetectorPredictor\n"
        f"found = DetectorPredictor({str(path)!r})(np.load({str(tmp_path / 'x.npy')!r}))\n"
        "print('tensorflow' in sys.modules, found['num_detections'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = export.load_detector(path)(IMAGES[:2])["num_detections"].tolist()
    assert done.stdout.strip() == f"False {expected}", done.stderr
