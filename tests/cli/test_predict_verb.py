"""`tfkd predict`."""

import json

import numpy as np
import pytest
import tf_keras as keras

from tfkd import data, export


def test_images_of_another_size(folder, tfkd):
    code, found, err = tfkd(
        "predict", folder / "bright.tflite", folder / "dark.png", folder / "bright.png", "--json"
    )
    assert code == 0 and "warning" not in err
    first = found["rows"][::2]
    assert [row["class"] for row in first] == ["dark", "bright"]
    assert all(row["probability"] > 0.9 for row in first)
    pair = found["rows"][:2]
    assert sum(row["probability"] for row in pair) == pytest.approx(1, abs=1e-3)


def test_a_folder_and_fewer_classes(folder, tmp_path, tfkd):
    (tmp_path / "bright.png").write_bytes((folder / "bright.png").read_bytes())
    code, text, _ = tfkd("predict", folder / "bright.tflite", tmp_path, "--top=1")
    lines = text.splitlines()
    assert code == 0 and len(lines) == 3 and lines[2].split()[1] == "bright"


def test_a_file_that_does_not_know_its_scaling(folder, tmp_path, tfkd):
    model = keras.models.load_model(folder / "bright.keras")
    model.save(tmp_path / "m.keras")
    code, _, err = tfkd("predict", tmp_path / "m.keras", folder / "dark.png")
    assert code == 0 and "does not say how it takes pixels: preprocess none" in err
    code, found, err = tfkd(
        "predict", tmp_path / "m.keras", folder / "dark.png", "--preprocess=-1-1", "--json"
    )
    assert (code, err) == (0, "") and found["rows"][0]["class"] == "0"


def test_a_model_of_keras_3(tmp_path, tfkd):
    keras_3 = pytest.importorskip("keras", minversion="3.0")
    model = keras_3.Sequential([keras_3.Input((4,)), keras_3.layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    x = np.eye(4, dtype="float32")[:1]
    np.save(tmp_path / "x.npy", x)
    code, found, _ = tfkd("predict", tmp_path / "m.keras", tmp_path / "x.npy", "--json")
    assert code == 0
    assert found["rows"][0]["class"] == str(int(np.argmax(np.asarray(model(x)))))


def test_arrays(folder, tmp_path, tfkd):
    np.save(tmp_path / "x.npy", np.full((2, 8, 8, 3), 0.9, "float32"))
    code, found, _ = tfkd("predict", folder / "bright.tflite", tmp_path / "x.npy", "--json")
    names = [row["example"].rpartition("/")[2] for row in found["rows"][::2]]
    assert code == 0 and names == ["x.npy[0]", "x.npy[1]"]
    assert found["rows"][0]["class"] == "bright"


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (127.5, True), (0.005, True)])
def test_arrays_in_another_range_are_told(folder, tmp_path, tfkd, factor, told):
    # The input of the file holds -1 to 1.
    np.save(
        tmp_path / "x.npy", factor * np.linspace(-1, 1, 192, dtype="float32").reshape(1, 8, 8, 3)
    )
    code, _, err = tfkd("predict", folder / "bright.tflite", tmp_path / "x.npy")
    assert code == 0 and ("scale them as the file takes them" in err) == told


def test_how_a_model_takes_pixels_is_found_in_it_or_beside_it(folder, tmp_path, tfkd):
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1)]
    bright = keras.models.load_model(folder / "bright.keras", compile=False)
    keras.Sequential([*layers, bright]).save(tmp_path / "own.keras")
    bright.save(tmp_path / "pruned.keras")
    scaling = {"name": "-1-1", "mean": [127.5], "std": [127.5], "why": ""}
    (tmp_path / "preprocess.json").write_text(json.dumps(scaling))
    (tmp_path / "run.json").write_text("{}")
    dark = folder / "dark.png"
    for name in ("own", "pruned"):
        code, found, err = tfkd("predict", tmp_path / f"{name}.keras", dark, "--top=1", "--json")
        assert (code, err) == (0, "") and found["rows"][0]["class"] == "0"


def test_a_model_of_strings(tmp_path, tfkd):
    for shape in ((), (1,)):
        layer = keras.layers.TextVectorization(output_sequence_length=1, vocabulary=["good", "bad"])
        text = keras.Input(shape, dtype="string")
        head = keras.layers.Embedding(4, 2, weights=[np.float32([[0, 0], [0, 0], [0, 9], [9, 0]])])
        keras.Model(text, keras.layers.Flatten()(head(layer(text)))).save(tmp_path / "m.keras")
        code, found, _ = tfkd("predict", tmp_path / "m.keras", "good", "bad", "--top=1", "--json")
        assert code == 0 and [row["class"] for row in found["rows"]] == ["1", "0"]


def test_texts(tmp_path, tfkd):
    encode = data.Encoder(("", "[UNK]", "good", "bad"), 4)
    ids = keras.Input((4,), dtype="int32")
    words, head = keras.layers.Embedding(4, 2), keras.layers.Dense(2)
    model = keras.Model(ids, head(keras.layers.GlobalAveragePooling1D()(words(ids))))
    words.set_weights([np.float32([[0, 0], [0, 0], [0, 8], [8, 0]])])
    head.set_weights([np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    export.to_tflite(
        model, tmp_path / "m.tflite", encoder=encode, labels=["negative", "positive"],
        verify=encode(["good", "bad film"]),
    )  # fmt: skip
    (tmp_path / "more.txt").write_text("bad\n\n")
    # As a run leaves its Keras models: tokenizer and names of classes beside them.
    model.save(tmp_path / "m.keras")
    encode.save(tmp_path / "m.keras.encoder.json")
    (tmp_path / "labels.txt").write_text("negative\npositive\n")
    (tmp_path / "run.json").write_text("{}")
    for file in ("m.tflite", "m.keras"):
        code, found, _ = tfkd(
            "predict", tmp_path / file, "A good film", tmp_path / "more.txt", "--top=1", "--json"
        )
        assert code == 0
        assert [(row["example"], row["class"]) for row in found["rows"]] == [
            ("A good film", "positive"),
            ("bad", "negative"),
        ]
    code, _, err = tfkd("predict", tmp_path / "m.tflite", "nothing.txt")
    assert code == 3 and "takes texts, and 'nothing.txt' is not there" in err


def test_wrong_input(folder, tmp_path, tfkd):
    (tmp_path / "broken.png").write_text("nothing")
    (tmp_path / "empty").mkdir()
    file, dark = folder / "bright.tflite", folder / "dark.png"
    for argv, code, said in [
        ([file, "nothing.png"], 3, "There is no file 'nothing.png'"),
        ([file, tmp_path / "broken.png"], 3, "broken.png"),
        ([file, tmp_path / "empty"], 3, "no image in the folder"),
        (["nothing.tflite", dark], 3, "nothing.tflite"),
        ([file, dark, "--top=0"], 2, "--top"),
        ([file, dark, "--draw=x.png"], 2, "no detector"),
        ([file, dark, "--preprocess=imagnet"], 3, "Did you mean 'imagenet'"),
        ([file], 2, "IMAGE|TEXT"),
    ]:
        found, out, err = tfkd("predict", *argv)
        assert (found, out) == (code, ""), argv
        assert said in err and "Traceback" not in err
