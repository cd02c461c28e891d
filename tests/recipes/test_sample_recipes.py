"""The recipes of examples/recipes: each is valid, and runs on tiny made-up data."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tf_keras as keras

from tfkd import export, runtime
from tfkd.recipes import Recipe, RecipeError, run, token_models
from tfkd.recipes.voice import Plain

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "examples" / "recipes"
FILES = sorted(FOLDER.glob("*.json"))
QUIET = Plain(quiet=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_valid(path):
    recipe = Recipe.load(path)
    assert [s.stage for s in recipe.stages][-3:] == ["export", "verify", "report"]
    assert len(FILES) == 4


def tiny(name, folder, **changes):
    """A sample recipe with one epoch of each stage, short measurements and other sources."""
    values = json.loads((FOLDER / name).read_text()) | {"batch_size": 8} | changes
    stages = [{"stage": s} if isinstance(s, str) else dict(s) for s in values["stages"]]
    for stage in stages:
        if "epochs" in stage:
            stage |= {"epochs": 1}
        if stage["stage"] == "verify":
            stage |= {"runs": 5, "seconds": 1}
        if stage["stage"] == "export":
            stage["examples"] = 8
        if stage["stage"] == "prune":
            stage["round_to"] = 2
    return Recipe.from_dict(values | {"stages": stages, "gates": {"max_drop": 100}})


@pytest.fixture
def images(tmp_path):
    """Red and blue images."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.integers(0, 100, (60, 16, 16, 3))
    x[..., 0] += 150 * y[:, None, None]
    x = x.astype("uint8")
    path = tmp_path / "d.npz"
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return str(path)


def network(path):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(image, keras.layers.Dense(2, "softmax", name="scores")(x)).save(path)
    return str(path)


@pytest.mark.slow
def test_images_become_an_int8_file_that_takes_pixels(tmp_path, images):
    model = network(tmp_path / "m.keras")
    outcome = run(
        tiny("mobilenet_phone.json", tmp_path, model=model, data=images, preprocess="0-1"),
        tmp_path / "o",
        voice=QUIET,
    )
    assert outcome.accepted, outcome.sentence
    predictor = runtime.Predictor(outcome.files["tflite"])
    assert predictor.labels == ("0", "1")
    assert predictor.inputs[0].dtype == np.uint8


@pytest.mark.slow
def test_the_file_for_tensorrt_keeps_its_rules(tmp_path, images):
    model = network(tmp_path / "m.keras")
    outcome = run(
        tiny("resnet_jetson.json", tmp_path, model=model, data=images, preprocess="0-1"),
        tmp_path / "o",
        voice=QUIET,
    )
    assert outcome.accepted, outcome.sentence
    assert not export.lint_tensorrt(outcome.files["tensorrt"]).errors
    assert json.loads((tmp_path / "o" / "preprocess.json").read_text())["std"] == [255.0]


@pytest.mark.slow
def test_texts_become_a_file_that_takes_texts(tmp_path):
    lines = [f"{'good' if i % 2 else 'bad'} film number {'abcdefghij'[i % 10]}{i}\t{i % 2}\n"
             for i in range(60)]  # fmt: skip
    (tmp_path / "train.tsv").write_text("".join(lines[:40]))
    (tmp_path / "test.tsv").write_text("".join(lines[40:]))
    layer = keras.layers.TextVectorization(50, output_sequence_length=6)
    layer.adapt([line.split("\t")[0] for line in lines[:40]])
    model = keras.Sequential([
        keras.Input((1,), dtype="string"), layer, keras.layers.Embedding(50, 8),
        keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(8, "relu", name="hidden"),
        keras.layers.Dense(1, "sigmoid", name="score"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    texts = np.array([[line.split("\t")[0]] for line in lines[:40]])
    model.fit(texts, np.arange(40) % 2, epochs=12, verbose=0)
    model.save(tmp_path / "m.keras")
    recipe = tiny("text_classifier.json", tmp_path, model=str(tmp_path / "m.keras"),
                  data=str(tmp_path), budget="macs:80%")  # fmt: skip
    outcome = run(recipe, tmp_path / "o", voice=QUIET)
    assert outcome.accepted, outcome.sentence
    predictor = runtime.Predictor(outcome.files["tflite"])
    assert predictor.encoder(["good film"]).shape == (1, 6)
    beside = token_models.beside(str(tmp_path / "o" / "pruned.keras"))
    assert beside.vocabulary == tuple(layer.get_vocabulary())


@pytest.mark.slow
def test_boxes_become_a_detector_with_its_labels_inside(tmp_path, voc_folder):
    changes = {"data": str(voc_folder), "size": 64}
    recipe = tiny("detector.json", tmp_path, **changes)
    outcome = run(recipe, tmp_path / "o", voice=QUIET)
    assert outcome.accepted, outcome.sentence
    assert export.load_detector(outcome.files["tflite"]).labels == ("blue", "red")
    rows = {row.model: row for row in outcome.table.rows}
    assert set(rows) == {"original", "student", "model.tflite"}
    for name, row in rows.items():
        assert row.size > 0 and 0 < row.p50 <= row.latency.p99, name
    # 8-bit weights of a quarter of the bytes; boxes and tables of anchors are the same.
    assert rows["student"].size > 1.5 * rows["model.tflite"].size
    page = json.loads((tmp_path / "o" / "report.json").read_text())
    assert page["table"]["rows"][0]["latency"]["p50"] == rows["original"].p50


def test_a_loss_for_what_turns_out_to_be_boxes_is_refused(tmp_path, voc_folder):
    stages = ["train_teacher", {"stage": "distil", "loss": "dist"}]
    recipe = Recipe.from_dict({"data": str(voc_folder), "size": 64, "stages": stages})
    with pytest.raises(RecipeError, match=r"stages\[1\]\.loss: expected null for boxes"):
        run(recipe, tmp_path / "o", voice=QUIET)
    assert not (tmp_path / "o").exists()


@pytest.fixture
def voc_folder(tmp_path):
    """Red and blue squares on grey, in VOC layout."""
    image_module = pytest.importorskip("PIL.Image")
    root, rng = tmp_path / "voc", np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    names = [f"i{n:02}" for n in range(24)]
    for index, name in enumerate(names):
        pixels = rng.integers(100, 130, (64, 64, 3)).astype("uint8")
        x, y = rng.integers(4, 36, 2)
        kind = ("red", "blue")[index % 2]
        pixels[y : y + 24, x : x + 24] = (220, 20, 20) if kind == "red" else (20, 20, 220)
        image_module.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><object><name>{kind}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}"
            f"</ymin><xmax>{x + 24}</xmax><ymax>{y + 24}</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:18]) + "\n")
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names[18:]) + "\n")
    return root
