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


def test_images_for_a_run_of_other_numbers_than_pixels_are_refused(folder, tmp_path, tfkd):
    (tmp_path / "m.keras").write_bytes((folder / "bright.keras").read_bytes())
    why = "the images hold floats from -1 to 1"
    scaling = {"name": "none", "mean": [0.0], "std": [1.0], "why": why, "to_pixels": None}
    (tmp_path / "preprocess.json").write_text(json.dumps(scaling))
    (tmp_path / "run.json").write_text("{}")
    code, out, err = tfkd("predict", tmp_path / "m.keras", folder / "dark.png")
    assert (code, out) == (3, "") and f"{why}. Pass arrays" in err
    code, found, err = tfkd(
        "predict", tmp_path / "m.keras", folder / "dark.png", "--preprocess=-1-1", "--json"
    )
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


def answered(tfkd, tmp_path, model, x, kind="keras", **options):
    """The probabilities of the first example by class, and the note, as the command prints."""
    file = tmp_path / f"m.{kind}"
    if kind == "keras":
        model.save(file)
    elif kind == "tflite":
        export.to_tflite(model, file, **options)
    else:
        export.to_onnx(model, file, target="onnxruntime", **options)
    np.save(tmp_path / "x.npy", x)
    code, found, err = tfkd("predict", file, tmp_path / "x.npy", "--top=2000", "--json")
    assert (code, err) == (0, "")
    rows = [row for row in found["rows"] if row["example"].endswith("x.npy[0]")]
    values = {row["class"]: row["probability"] for row in rows if "class" in row}
    return values or rows[0]["first_values"], found.get("note", "")


def dense(units, activation=None, bias=0.0, features=4):
    """A model whose outputs are a matrix of fixed numbers times its inputs."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(units, activation)])
    kernel = rng.normal(size=(features, units)).astype("float32")
    model.set_weights([kernel, np.full(units, bias, "float32")])
    return model


X = np.random.default_rng(1).normal(size=(64, 4)).astype("float32")


@pytest.mark.parametrize("kind", ["keras", "tflite", "onnx"])
def test_probabilities_are_not_squashed_again(tfkd, tmp_path, kind):
    for activation in ("softmax", "sigmoid"):
        model = dense(3, activation)
        found, note = answered(
            tfkd, tmp_path, model, X, kind, **({} if kind == "keras" else {"verify": X})
        )
        expected = np.asarray(model(X))[0]
        assert [found[str(n)] for n in range(3)] == pytest.approx(expected, abs=1e-3)
        assert ("of its own" in note) == (activation == "sigmoid")


def test_an_int8_softmax_of_many_classes(tfkd, tmp_path):
    """Codes of 1/256 do not sum to 1."""
    model = dense(1000, "softmax")
    found, _ = answered(tfkd, tmp_path, model, X, "tflite", mode="int8", data=X, verify=X)
    assert max(found.values()) == pytest.approx(np.asarray(model(X))[0].max(), abs=2 / 256)


@pytest.mark.parametrize(("kind", "x"), [("keras", X[:1]), ("tflite", X), ("keras", X)])
def test_a_logit_is_one_whatever_other_examples_give(tfkd, tmp_path, kind, x):
    """Logits in 0..1 look like probabilities."""
    model = dense(1)
    model.set_weights([np.float32([[0.1], [0], [0], [0]]), np.float32([0.3])])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    options = {} if kind == "keras" else {"verify": X}
    if kind == "tflite":  # as a run leaves its files: a loss is not kept in them
        (tmp_path / "labels.txt").write_text("no\nyes\n")
        (tmp_path / "run.json").write_text("{}")
    found, note = answered(tfkd, tmp_path, model, x, kind, **options)
    chance = 1 / (1 + np.exp(-(0.1 * x[0, 0] + 0.3)))
    assert list(found.values()) == pytest.approx([chance, 1 - chance], abs=1e-3)
    assert next(iter(found)) == ("1" if kind == "keras" else "yes") and note == ""


@pytest.mark.parametrize(
    ("units", "loss", "transform"),
    [
        (3, keras.losses.BinaryCrossentropy(from_logits=True), lambda z: 1 / (1 + np.exp(-z))),
        (3, keras.losses.CategoricalCrossentropy(from_logits=True), None),
        (3, "binary_crossentropy", None),  # against its values, which leave 0..1
    ],
)
def test_the_compiled_loss_says_what_outputs_are(tfkd, tmp_path, units, loss, transform):
    model = dense(units)
    model.compile("adam", loss)
    found, _ = answered(tfkd, tmp_path, model, X)
    scores = np.float64(model(X))[0]
    expected = transform(scores) if transform else np.exp(scores) / np.exp(scores).sum()
    assert [found[str(n)] for n in range(units)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_regression_is_shown_in_numbers(tfkd, tmp_path, units, suffix):
    model = dense(units, bias=100.0)
    model.compile("adam", "mse")
    model.save(tmp_path / f"r.{suffix}")
    np.save(tmp_path / "x.npy", X[:1])
    code, found, _ = tfkd("predict", tmp_path / f"r.{suffix}", tmp_path / "x.npy", "--json")
    assert code == 0
    assert found["rows"][0]["first_values"] == pytest.approx(np.asarray(model(X))[0], abs=1e-3)


def test_what_is_assumed_of_an_output_is_said(tfkd, tmp_path):
    found, note = answered(tfkd, tmp_path, dense(1, bias=5.0), X, "tflite", verify=X)
    assert "shown as it is" in note and found == pytest.approx(
        np.asarray(dense(1, bias=5.0)(X))[0], abs=1e-3
    )
    _, note = answered(tfkd, tmp_path, dense(3), X, "tflite", verify=X)
    assert note == "Softmax of its 3 numbers, which are taken for scores of classes."
