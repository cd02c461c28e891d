"""Recipes: reading, writing, the schema, and every mistake with the path of its field."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tfkd.recipes import Recipe, RecipeError

GOOD = {
    "model": "m.keras",
    "data": "cifar10.npz",
    "budget": "macs:50%",
    "stages": ["prune", "quantize", "export", "verify", "report"],
}


def wrong(**changes):
    """The document with changes; `None` in place of a value removes it."""
    return {k: v for k, v in {**GOOD, **changes}.items() if v != "remove"}


def stage(name, **settings):
    """The document with one stage's settings changed."""
    stages = [{"stage": s, **settings} if s == name else s for s in GOOD["stages"]]
    return wrong(stages=stages)


# What is wrong → the path of the field, and what its message says.
MISTAKES = {
    "a list in place of a document": ([1], "(the document)", "an object with settings"),
    "unknown setting": (wrong(modle="m"), "modle", "Did you mean 'model'?"),
    "no data": (wrong(data="remove"), "data", "it is required"),
    "data is a number": (wrong(data=3), "data", "a path or the name of a data set"),
    "no model and no teacher": (wrong(model="remove"), "model", "'train_teacher'"),
    "model is a list": (wrong(model=["m"]), "model", "or null, received ['m'] (list)"),
    "no stages": (wrong(stages="remove"), "stages", "a list of stages"),
    "empty stages": (wrong(stages=[]), "stages", "received []"),
    "stages is a name": (wrong(stages="prune"), "stages", "a list of stages"),
    "a stage is a number": (wrong(stages=["prune", 7]), "stages[1]", "received 7"),
    "misspelled stage": (wrong(stages=["prune", "quantise"]), "stages[1].stage", "'quantize'?"),
    "a stage without a name": (wrong(stages=[{"epochs": 2}]), "stages[0].stage", "received None"),
    "unknown setting of a stage": (stage("prune", epoch=2), "stages[0].epoch", "'epochs'?"),
    "epochs is text": (stage("prune", epochs="3"), "stages[0].epochs", "received '3' (str)"),
    "epochs is negative": (stage("quantize", epochs=-1), "stages[1].epochs", "at least 0"),
    "epochs is true": (stage("quantize", epochs=True), "stages[1].epochs", "received True (bool)"),
    "a rate of 0": (stage("prune", learning_rate=0), "stages[0].learning_rate", "above 0"),
    "a rate that is not finite": (
        stage("prune", learning_rate=float("nan")), "stages[0].learning_rate", "received nan",
    ),
    "a share above 1": (stage("prune", label_weight=1.5), "stages[0].label_weight", "at most 1"),
    "another method": (stage("prune", method="hart"), "stages[0].method", "Did you mean 'hard'?"),
    "names in place of a list": (stage("prune", ignore="logits"), "stages[0].ignore", "a list"),
    "a flag as text": (
        stage("quantize", freeze_batch_norm="no"), "stages[1].freeze_batch_norm", "true or false",
    ),
    "a reduction beside a budget": (
        stage("prune", macs_reduction=0.5), "stages[0].macs_reduction", "'macs:50%'",
    ),
    "neither reduction nor budget": (
        wrong(budget=None), "stages[0].macs_reduction", "no budget",
    ),
    "decay in one epoch": (
        stage("prune", method="decay", epochs=1), "stages[0].epochs", "at least 2",
    ),
    "a budget of another kind": (wrong(budget="mac:50%"), "budget", "Did you mean 'macs'?"),
    "a budget without a number": (wrong(budget="macs"), "budget", '"latency:2ms"'),
    "a budget in another unit": (wrong(budget="size:2ms"), "budget", "'kb'"),
    "a budget of everything": (wrong(budget="macs:100%"), "budget", "below 100 %"),
    "latency for TensorRT": (
        wrong(budget="latency:2ms", target="tensorrt"), "budget", "latency is measured in LiteRT",
    ),
    "a budget without pruning": (
        wrong(stages=["quantize", "export"]), "budget", "'prune'",
    ),
    "another target": (wrong(target="tflight"), "target", "Did you mean 'tflite'?"),
    "another task": (wrong(task="image"), "task", "Did you mean 'images'?"),
    "stages in another order": (
        wrong(stages=["quantize", "prune"]), "stages[1].stage", "train_teacher → distil → prune",
    ),
    "a stage twice": (
        wrong(stages=["prune", "prune"]), "stages[1].stage", "each stage once",
    ),
    "a verdict without files": (
        wrong(stages=["prune", "verify"]), "stages[1].stage", "a stage 'export' before 'verify'",
    ),
    "a page without a verdict": (
        wrong(stages=["prune", "export", "report"]), "stages[2].stage", "a stage 'verify'",
    ),
    "a teacher beside a model": (
        wrong(stages=["train_teacher", "prune"]), "stages[0].stage", "the model is the teacher",
    ),
    "uint8 without quantizing": (
        wrong(stages=["prune", {"stage": "export", "input": "uint8"}]), "stages[1].input",
        "without a stage 'quantize'",
    ),
    "uint8 for TensorRT": (
        {**stage("export", input="uint8"), "target": "tensorrt"}, "stages[2].input", "takes floats",
    ),
    "uint8 for texts": (
        {**stage("export", input="uint8"), "task": "texts"}, "stages[2].input", "token ids",
    ),
    "pixels of texts": (wrong(task="texts", preprocess="0-1"), "preprocess", "null for texts"),
    "one column": (wrong(columns=["text"]), "columns", "two different ones"),
    "a column twice": (wrong(columns=["1", "1"]), "columns", "two different ones"),
    "columns of images": (wrong(task="images", columns=["0", "1"]), "columns", "none for images"),
    "words of images": (wrong(task="images", vocabulary="v.txt"), "vocabulary", "token ids"),
    "views without augmentation": (
        {**stage("prune", views=4), "augment": False}, "stages[0].views", "without augmentation",
    ),
    "another loss": (stage("prune", loss="dits"), "stages[0].loss", "Did you mean 'dist'?"),
    "a loss for boxes": (
        {**stage("prune", loss="soft_targets"), "task": "boxes"}, "stages[0].loss",
        "an objective of their own; received 'soft_targets'",
    ),
    "gates as a list": (wrong(gates=[1]), "gates", "an object with gates"),
    "an unknown gate": (wrong(gates={"max_drops": 1}), "gates.max_drops", "'max_drop'"),
    "a gate that is text": (wrong(gates={"max_drop": "1 %"}), "gates.max_drop", "a number"),
    "a negative gate": (wrong(gates={"latency_ms": -2}), "gates.latency_ms", "above 0"),
    "another version of the format": (wrong(format=7), "format", "received 7"),
    "a size of one pixel": (wrong(size=1), "size", "at least 8"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_each_mistake_is_named_with_its_path(what):
    document, path, text = MISTAKES[what]
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict(document)
    (mistake,) = raised.value.mistakes
    assert mistake.path == path
    assert text in mistake.text, mistake.text


def test_all_mistakes_are_reported_at_once():
    document = {
        "data": 5, "modle": "m", "target": "phone", "seed": -1, "gates": {"max_drop": "no"},
        "stages": ["purne", {"stage": "quantize", "epochs": "2", "skp": []}],
    }  # fmt: skip
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict(document, "r.json")
    assert {m.path for m in raised.value.mistakes} == {
        "data", "modle", "target", "seed", "gates.max_drop", "stages[0].stage", "stages[1].epochs",
        "stages[1].skp",
    }  # fmt: skip
    assert str(raised.value).startswith("r.json has 8 mistakes; nothing was started:\n")


def test_a_good_recipe_is_read_and_written_again(tmp_path):
    recipe = Recipe.from_dict(GOOD)
    assert [s.stage for s in recipe.stages] == GOOD["stages"]
    recipe.save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json") == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_only_keeps_the_stages_that_write_and_judge():
    document = wrong(budget=None)
    document["stages"] = [{"stage": "prune", "macs_reduction": 0.5}, *GOOD["stages"][1:]]
    kept = Recipe.from_dict(document).only(["quantize"])
    assert [s.stage for s in kept.stages] == ["quantize", "export", "verify", "report"]


def test_files_that_hold_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe"):
        Recipe.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RecipeError, match="this is no JSON"):
        Recipe.load(tmp_path / "bad.json")
    (tmp_path / "twice.json").write_text('{"data": "digits", "seed": 1, "seed": 2}')
    with pytest.raises(RecipeError, match="each setting once, received 'seed' twice"):
        Recipe.load(tmp_path / "twice.json")
    (tmp_path / "model.keras").write_bytes(b"PK\x03\x04\x91\xff")
    with pytest.raises(RecipeError, match="model.keras.*\n.*a file of another kind"):
        Recipe.load(tmp_path / "model.keras")


def test_the_schema_knows_every_setting_and_its_default():
    schema = Recipe.schema()
    assert schema["required"] == ["data", "stages"]
    assert schema["properties"]["target"]["enum"] == ["tflite", "tensorrt", "both"]
    stages = schema["properties"]["stages"]["items"]["anyOf"]
    (prune,) = [s for s in stages if s.get("properties", {}).get("stage") == {"const": "prune"}]
    assert prune["properties"]["criterion"]["default"] == "l2"
    assert schema["properties"]["gates"]["properties"]["max_drop"]["default"] == 1.0


def test_validation_does_not_load_tensorflow():
    code = "import sys; from tfkd.recipes import Recipe; "
    code += f"Recipe.from_dict({GOOD!r}); print('tensorflow' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "False\n"
