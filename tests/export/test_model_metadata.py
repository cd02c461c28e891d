"""Labels, scaling and vocabulary that travel with a file, and come back from it."""

import json
import warnings
import zipfile

import numpy as np
import pytest
import tf_keras as keras
from flatbuffers_by_hand import entries, fields, follow, text_at

import tfkd
from tfkd import artifacts, export
from tfkd.data import Encoder
from tfkd.export.detector import flatbuffer
from tfkd.runtime import Predictor

layers = keras.layers
LABELS = ("cat", "dog", "grüner Frosch")
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (64, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="photo")
    x = layers.Flatten()(layers.Conv2D(4, 3, strides=2, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(3, name="kind")(x))


@pytest.mark.parametrize("mode", ["float32", "float16", "dynamic", "int8", "quantized"])
def test_labels_and_scaling_come_back_from_the_file_alone(model, tmp_path, mode):
    path, source = tmp_path / "m.tflite", model
    if mode == "quantized":
        source = tfkd.quantization.quantize(model)
        tfkd.quantization.calibrate(source, IMAGES)
    told = {"labels": LABELS, "mean": 127.5, "std": 127.5}
    mode = None if mode == "quantized" else mode
    data = IMAGES if mode == "int8" else None
    export.to_tflite(source, path, mode, data=data, verify=IMAGES, **told)
    info = artifacts.verify(path)["recipe"]["info"]
    assert info == {"labels": {"kind": list(LABELS)}, "mean": [127.5], "std": [127.5]}
    artifacts.manifest_path(path).unlink()
    predictor = Predictor(path)
    assert predictor.labels == LABELS and predictor.scaling == ((127.5,), (127.5,))
    assert predictor.encoder is None
    assert [p.name for p in (*predictor.inputs, *predictor.outputs)] == ["photo", "kind"]
    expected = model.predict(IMAGES, verbose=0)
    assert np.abs(predictor(IMAGES) - expected).max() < 0.05 * np.ptp(expected)


def test_the_metadata_are_googles(model, tmp_path):
    """Slots by the schema, https://github.com/google-ai-edge/mediapipe, metadata_schema.fbs."""
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, verify=False, labels=LABELS, mean=[1, 2, 3], std=[4, 5, 6])
    opened = flatbuffer.opened(path.read_bytes())
    (entry,) = [e for e in opened.metadata if e.name == b"TFLITE_METADATA"]
    found = bytes(opened.buffers[entry.buffer].data)
    assert found[4:8] == b"M001"
    root = fields(found, follow(found, 0))
    (graph_at,) = entries(found, root[3])
    graph = fields(found, follow(found, graph_at))
    (image_at,), (kind_at,) = (entries(found, graph[slot]) for slot in (2, 3))
    image = fields(found, follow(found, image_at))
    assert text_at(found, image[0]) == "photo"
    content = fields(found, follow(found, image[3]))
    assert found[content[0]] == 2  # ImageProperties
    assert found[fields(found, follow(found, content[1]))[0]] == 1  # RGB
    (unit_at,) = entries(found, image[4])
    unit = fields(found, follow(found, unit_at))
    assert found[unit[0]] == 1  # NormalizationOptions
    numbers = fields(found, follow(found, unit[1]))
    stats = fields(found, follow(found, image[5]))
    for table, slot, expected in (
        (numbers, 0, [1, 2, 3]),
        (numbers, 1, [4, 5, 6]),
        (stats, 0, [254 / 4, 253 / 5, 252 / 6]),
        (stats, 1, [-1 / 4, -2 / 5, -3 / 6]),
    ):
        values = [np.frombuffer(found, "<f4", 1, at)[0] for at in entries(found, table[slot])]
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    kind = fields(found, follow(found, kind_at))
    assert text_at(found, kind[0]) == "kind"
    (file_at,) = entries(found, kind[6])
    file = fields(found, follow(found, file_at))
    assert text_at(found, file[0]) == "labels.txt" and found[file[2]] == 2  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)


def test_labels_of_one_of_two_outputs_from_a_text_file(model, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    box = layers.Dense(4, name="box")(model.layers[-2].output)
    both = keras.Model(model.input, {"kind": model.output, "box": box})
    with pytest.raises(ValueError, match=r"`labels`: expected a dict of labels by output"):
        export.to_tflite(both, tmp_path / "m.tflite", labels=LABELS)
    path = tmp_path / "m.tflite"
    export.to_tflite(both, path, verify=False, labels={"kind": tmp_path / "names.txt"})
    assert Predictor(path).labels == {"kind": LABELS} and Predictor(path).scaling is None


def test_what_a_model_does_itself_need_not_be_done_again(tmp_path):
    model = keras.Sequential([layers.Rescaling(1 / 127.5, -1, input_shape=(8, 8, 3))])
    model.add(layers.Flatten())
    model.add(layers.Dense(3))
    export.to_tflite(model, tmp_path / "m.tflite", verify=False, labels=LABELS)
    assert Predictor(tmp_path / "m.tflite").scaling == ((0.0,), (1.0,))


def test_a_uint8_input_takes_raw_pixels(model, tmp_path):
    pixels = RNG.integers(0, 256, (64, 8, 8, 3)).astype("uint8")
    scaled = (pixels.astype("float32") - 127.5) / 127.5
    options = {"mode": "int8", "io": "uint8", "mean": 127.5, "std": 127.5}
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, data=scaled, verify=scaled, **options)
    expected = model.predict(scaled, verbose=0)
    assert np.abs(Predictor(path)(pixels) - expected).max() < 0.05 * np.ptp(expected)
    with pytest.warns(UserWarning, match="does not take raw pixels"):
        export.to_tflite(model, path, data=3 * scaled, verify=3 * scaled, **options)


@pytest.mark.parametrize("io", ["float32", "int8", "uint8", None])
@pytest.mark.parametrize(
    ("mean", "std", "factor", "warned"),
    [
        (127.5, 127.5, 1, False),
        ([127.5] * 3, [127.5] * 3, 1, False),
        (0, 255, 1, True),  # images in −1 … 1, said to be in 0 … 1
        (127.5, 127.5, 3, True),
        (0, 1, 1, True),  # said to be in 0 … 255
        (127.5, 1, 1, True),
        (127.5, 1, 120, False),
    ],
)
def test_a_scaling_that_contradicts_the_examples_is_said(
    model, tmp_path, io, mean, std, factor, warned
):
    """With a float input as with one of pixels; None: a float file."""
    options = {"mode": "int8", "io": io, "data": factor * IMAGES} if io else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = tmp_path / "m.tflite"
        export.to_tflite(model, path, verify=factor * IMAGES, mean=mean, std=std, **options)
    texts = [str(w.message) for w in caught if "scaled pixels" in str(w.message)]
    assert len(texts) == warned and all(w.filename == __file__ for w in caught)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"labels": LABELS[:2]}, ValueError, "expected 3 names, .* 'kind'"),
        ({"labels": [*LABELS, "bird"]}, ValueError, "expected 3 names, .* 'kind'"),
        ({"labels": "missing.txt"}, ValueError, "the path of a text file"),
        ({"labels": 3}, TypeError, "`labels`: expected a list of names"),
        ({"labels": ["a", "b", "c\nd"]}, ValueError, "one line of text"),
        ({"labels": {"sort": LABELS}}, ValueError, "'kind'.*'sort'"),
        ({"mean": [1, 2]}, ValueError, "`mean`: expected a number, or 3 of them"),
        ({"std": 0}, ValueError, "`std`"),
        ({"encoder": LABELS}, TypeError, "`encoder`: expected a tfkd.data.Encoder"),
    ],
)
def test_what_does_not_fit_is_refused(model, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        export.to_tflite(model, tmp_path / "m.tflite", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_travels_with_the_file(tmp_path):
    encode = Encoder(("", "[UNK]", "good", "film", "Öl"), 4)
    ids = keras.Input((4,), dtype="int32", name="ids")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(5, 3)(ids))
    model = keras.Model(ids, layers.Dense(2, name="mood")(x))
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, verify=False, labels=["bad", "good"], encoder=encode)
    predictor = Predictor(path)
    assert predictor.encoder == encode and predictor.labels == ("bad", "good")
    tokens = predictor.encoder(["a good film", "Öl"])
    np.testing.assert_allclose(predictor(tokens), model.predict(tokens, verbose=0), atol=1e-6)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("vocabulary.txt").decode().splitlines() == list(encode.vocabulary)
    model.save(tmp_path / "m.keras")
    assert Predictor(tmp_path / "m.keras").encoder is None
    encode.save(tmp_path / "m.keras.encoder.json")
    assert Predictor(tmp_path / "m.keras").encoder == encode
    for wrong in (Encoder(encode.vocabulary, 5), Encoder((*encode.vocabulary, "x"), 4)):
        with pytest.raises(ValueError, match="`encoder`"):
            export.to_tflite(model, path, encoder=wrong)


def test_damaged_information_is_refused(model, tmp_path):
    path = tmp_path / "m.tflite"
    export.to_tflite(model, path, verify=False, labels=LABELS)
    manifest = artifacts.manifest_path(path)
    assert json.loads(manifest.read_text())["recipe"]["info"]["labels"]["kind"] == list(LABELS)
    path.write_bytes(path.read_bytes().replace(b'"labels"', b'"lapels"'))
    manifest.unlink()
    with pytest.raises(ValueError, match="labels and settings can't be read"):
        _ = Predictor(path).labels
