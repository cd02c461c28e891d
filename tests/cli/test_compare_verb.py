"""`tfkd compare`."""

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export
from tfkd.cli import compare_classifiers
from tfkd.data import Encoder

QUICK = ("--runs=3", "--seconds=1")


def test_classes_are_matched_by_name(folder, tmp_path, tfkd):
    """The file has dark before bright; folders are read in the order of the alphabet."""
    from PIL import Image

    x, y = np.load(folder / "data.npz")["x_train"], np.load(folder / "data.npz")["y_train"]
    for number, (image, kind) in enumerate(zip(x, y, strict=True)):
        place = tmp_path / ("bright" if kind else "dark")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    argv = ("compare", folder / "bright.tflite", f"--data={tmp_path}", "--json", *QUICK)
    code, found, err = tfkd(*argv)
    assert code == 0 and "another order" in err
    assert found["rows"][0]["accuracy"]["mean"] == 100.0


def test_a_file(folder, tfkd):
    data = f"--data={folder / 'data.npz'}"
    code, text, err = tfkd("compare", f"int8={folder / 'bright.tflite'}", data, *QUICK)
    assert code == 0
    # Both kinds are far apart: it makes no mistake.
    assert text.splitlines()[2].split()[:2] == ["int8", "100.0"]
    assert "20 examples of the test part" in text and "as in the file" in err
    assert "calls its classes dark, bright, and data 0, 1" in err


def test_scores_that_do_not_fit_the_classes_and_guesses_are_told(folder, tmp_path, tfkd):
    x = np.load(folder / "data.npz")["x_train"]
    for classes in (2, 3):
        np.savez(tmp_path / f"{classes}.npz", x=x, y=np.arange(60) % classes)
    image = keras.Input((8, 8, 3))
    flat = keras.layers.GlobalAveragePooling2D()(image)
    guess = keras.layers.Dense(3, kernel_initializer="zeros")(flat)
    keras.Model(image, guess).save(tmp_path / "m.keras")
    keras.Model(image, [guess, flat]).save(tmp_path / "two.keras")
    code, _, err = tfkd("compare", tmp_path / "m.keras", f"--data={tmp_path / '2.npz'}", *QUICK)
    assert code == 0 and "m has 3 scores, the data have 2 classes" in err
    assert "m is no better than a guess on these data: 50.0 % right" in err
    data = f"--data={tmp_path / '3.npz'}"
    code, _, err = tfkd("compare", folder / "bright.tflite", data, *QUICK)
    assert code == 3 and "bright, with 2 scores" in err
    code, _, err = tfkd("compare", tmp_path / "two.keras", data, *QUICK)
    assert code == 3 and "inputs: 1, outputs: 2" in err


@pytest.mark.slow
def test_a_model_and_its_file_with_a_page(folder, tmp_path, tfkd):
    models = (folder / "bright.keras", f"int8={folder / 'bright.tflite'}")
    data, page = f"--data={folder / 'data.npz'}", tmp_path / "page"
    code, text, err = tfkd("compare", *models, data, f"--output={page}", *QUICK)
    assert code == 0
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["bright"][1] == rows["int8"][1] == "100.0"
    assert rows["bright"][2] == "26"  # 3·4 + 4 + 4·2 + 2
    assert "bright: preprocess -1-1" in err and "wrote" in err
    assert (page / "table.html").is_file() and (page / "table.json").is_file()
    # A second run does not replace the page unasked.
    code, out, err = tfkd("compare", *models, data, f"--output={page}")
    assert (code, out) == (2, "") and "--overwrite" in err


@pytest.mark.slow
def test_models_that_take_pixels_differently(folder, tmp_path, tfkd):
    """The second takes 0..255; measured together, each gets what it was made for."""
    image = keras.Input((8, 8, 3))
    inner = keras.models.load_model(folder / "bright.keras")
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(image)
    keras.Model(image, inner(x)).save(tmp_path / "raw.keras")
    code, found, err = tfkd(
        "compare", folder / "bright.keras", tmp_path / "raw.keras",
        f"--data={folder / 'data.npz'}", "--part=val", "--examples=4", "--json", *QUICK,
    )  # fmt: skip
    assert code == 0 and "raw: preprocess none: the model scales pixels itself" in err
    scores = {row["model"]: row["accuracy"]["mean"] for row in found["rows"]}
    assert scores == {"bright": 100.0, "raw": 100.0}


@pytest.mark.slow
def test_files_that_take_pixels_differently_are_refused(folder, tmp_path, tfkd):
    model = keras.models.load_model(folder / "bright.keras")
    x = np.random.default_rng(0).uniform(size=(4, 1, 1, 3)) * np.ones((4, 8, 8, 3))
    export.to_tflite(
        model, tmp_path / "other.tflite", verify=x.astype("float32"), mean=0.0, std=255.0
    )
    code, _, err = tfkd(
        "compare", folder / "bright.tflite", tmp_path / "other.tflite",
        f"--data={folder / 'data.npz'}", *QUICK,
    )  # fmt: skip
    assert code == 3 and "Compare them one by one" in err


def test_wrong_usage(folder, tmp_path, tfkd):
    keras_file, data = folder / "bright.keras", f"--data={folder / 'data.npz'}"
    (tmp_path / "table.html").write_text("earlier")
    (tmp_path / "texts.tsv").write_text("".join(f"text {n}\t{n % 2}\n" for n in range(20)))
    keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]).save(tmp_path / "five.keras")
    for argv, code, said in [
        (
            [tmp_path / "five.keras", data],
            3,
            "takes examples of 5, and those of data are 8×8×3",
        ),
        ([keras_file], 2, "--data"),
        ([keras_file, f"bright={keras_file}", data], 2, "Two models are called 'bright'"),
        ([keras_file, data, "--original=brigt"], 2, "--original: expected one of bright"),
        ([keras_file, data, "--size=a"], 2, "--size"),
        ([keras_file, data, "--runs=0"], 2, "--runs"),
        ([keras_file, data, f"--output={tmp_path}"], 2, "holds table.html already"),
        ([keras_file, "--data=nothing"], 3, "There is no file or folder 'nothing'"),
        (["nothing.keras", data], 3, "there is no file"),
        ([keras_file, f"--data={tmp_path / 'texts.tsv'}"], 3, "holds a tokenizer"),
    ]:
        found, out, err = tfkd("compare", *argv)
        assert (found, out) == (code, ""), argv
        assert said in err and "Traceback" not in err


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_model_of_strings_alone(tmp_path, tfkd, shape):
    layer = keras.layers.TextVectorization(output_sequence_length=1, vocabulary=["dull", "fine"])
    text = keras.Input(shape, dtype="string")
    head = keras.layers.Embedding(4, 2, weights=[np.float32([[0, 0], [0, 0], [9, 0], [0, 9]])])
    keras.Model(text, keras.layers.Flatten()(head(layer(text)))).save(tmp_path / "m.keras")
    rows = [f"{('dull', 'fine')[n % 2]} text {n}\t{n % 2}" for n in range(40)]
    (tmp_path / "d.tsv").write_text("\n".join(rows))
    data = f"--data={tmp_path / 'd.tsv'}"
    code, found, _ = tfkd("compare", tmp_path / "m.keras", data, "--json", *QUICK)
    assert code == 0 and found["rows"][0]["accuracy"]["mean"] == 100.0


def test_a_model_of_strings_and_a_file_of_token_ids(tmp_path):
    words = ["good", "bad"]
    layer = keras.layers.TextVectorization(output_sequence_length=4, vocabulary=words)
    rest = [keras.layers.Embedding(4, 2), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((1,), dtype="string"), layer, *rest])
    ids = keras.Sequential([keras.Input((4,), dtype="int32"), *rest])
    for name, kept in (("same", words), ("other", ["bad", "good"])):
        encode = Encoder(("", "[UNK]", *kept), 4)
        verify = encode(["good", "bad"])
        export.to_tflite(ids, tmp_path / f"{name}.tflite", encoder=encode, verify=verify)
    opened = {"model": model, "file": tmp_path / "same.tflite"}
    paths = {"model": str(tmp_path / "m.keras"), "file": str(opened["file"])}
    found, encode = compare_classifiers._without_strings(opened, paths)
    assert encode.vocabulary[2:] == ("good", "bad")
    tokens = np.int32([[2, 1, 0, 0], [3, 0, 0, 0]])
    np.testing.assert_allclose(found["model"](tokens), ids(tokens), atol=1e-6)
    assert found["file"] == opened["file"]
    with pytest.raises(ValueError, match="other and model have different tokenizers"):
        opened = {"model": model, "other": tmp_path / "other.tflite"}
        compare_classifiers._without_strings(opened, paths | {"other": str(opened["other"])})


def test_a_tokenizer_beside_a_model_of_token_ids(tmp_path, tfkd):
    ids = keras.Input((1,), dtype="int32")
    head = keras.layers.Embedding(4, 2, weights=[np.float32([[0, 0], [0, 0], [9, 0], [0, 9]])])
    keras.Model(ids, keras.layers.Flatten()(head(ids))).save(tmp_path / "m.keras")
    Encoder(("", "[UNK]", "dull", "fine"), 1).save(tmp_path / "m.keras.encoder.json")
    rows = [f"{('dull', 'fine')[n % 2]} text {n}\t{n % 2}" for n in range(40)]
    (tmp_path / "d.tsv").write_text("\n".join(rows))
    data = f"--data={tmp_path / 'd.tsv'}"
    code, found, _ = tfkd("compare", tmp_path / "m.keras", data, "--json", *QUICK)
    assert code == 0 and found["rows"][0]["accuracy"]["mean"] == 100.0
