"""The verbs that make runs: compress, fit, run, resume; their recipes and exit codes."""

from __future__ import annotations

import errno
import json
import signal

import numpy as np
import pytest
import tf_keras as keras

from tfkd import cli
from tfkd.cli import run as running
from tfkd.recipes import Recipe, engine
from tfkd.recipes.outcome import Outcome
from tfkd.recipes.training import Training


@pytest.fixture
def recipe_of(monkeypatch):
    """A command line → the recipe that it would run."""

    def made(*argv):
        seen = []
        monkeypatch.setattr(running, "start", lambda recipe, *_: seen.append(recipe) or 0)
        assert cli.main([*argv]) == 0
        return seen[0]

    return made


def test_compress_prunes_and_quantizes_by_default(recipe_of):
    recipe = recipe_of("compress", "m.keras", "--data=d.npz", "--max-drop=0.5", "--seed=3")
    assert [s.stage for s in recipe.stages] == ["prune", "quantize", "export", "verify", "report"]
    assert (recipe.budget, recipe.gates.max_drop, recipe.seed) == ("macs:50%", 0.5, 3)
    assert recipe.preprocess is None and recipe.target == "tflite"


def test_flags_of_compress_become_settings(recipe_of):
    recipe = recipe_of(
        "compress", "m.keras", "--data=d", "--steps=quantize", "--target=both", "--epochs=20",
        "--preprocess=-1-1", "--size=64,96", "--gate=latency_ms=2", "--gate=size=90000",
        "--augment=no", "--input=uint8",
    )  # fmt: skip
    assert [s.stage for s in recipe.stages] == ["quantize", "export", "verify", "report"]
    assert recipe.stage("quantize").epochs == 4  # a fifth, as of the defaults
    assert (recipe.preprocess, recipe.size, recipe.augment) == ("-1-1", (64, 96), False)
    assert (recipe.gates.latency_ms, recipe.gates.size) == (2.0, 90000)
    assert recipe.stage("export").input == "uint8" and recipe.budget is None


def test_fit_trains_the_teacher_or_takes_it(recipe_of, tmp_path):
    recipe = recipe_of("fit", "photos", "--student=resnet8", "--quick")
    names = ["train_teacher", "distil", "quantize", "export", "verify", "report"]
    assert [s.stage for s in recipe.stages] == names
    assert {recipe.stage(n).epochs for n in names[:3]} == {1}
    (tmp_path / "t.keras").touch()
    recipe = recipe_of("fit", "photos", f"--teacher={tmp_path / 't.keras'}", "--budget=macs:40%")
    assert [s.stage for s in recipe.stages][:3] == ["distil", "prune", "quantize"]
    assert recipe.model == str(tmp_path / "t.keras")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["compress", "m.keras"], "--data"),
        (["compress", "m.keras", "--data=d", "--steps=prun"], "expected some of prune,quantize"),
        (["compress", "m.keras", "--data=d", "--budget=mac:5%"], "budget: expected a budget"),
        (["compress", "m.keras", "--data=d", "--gate=max_drops=1"], "'max_drop'"),
        (["compress", "m.keras", "--data=d", "--gate=size"], "expected NAME=NUMBER"),
        (["compress", "m.keras", "--data=d", "--steps=quantize", "--budget=macs:50%"], "'prune'"),
        (["fit", "d", "--epochs=0"], "stages[0].epochs: expected a whole number of at least 1"),
        (["run", "nowhere.json"], "no recipe 'nowhere.json'"),
        (["resume", "nowhere"], "which holds run.json"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2(argv, said, capsys):
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_with_mistakes_lists_them_and_starts_nothing(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps({"data": 3, "stages": ["purne"], "sed": 1}))
    assert cli.main(["run", str(tmp_path / "r.json"), f"--output={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    for line in ("sed: there is no", "data: expected a path", "stages[0].stage: expected one of"):
        assert line in said
    assert not (tmp_path / "o").exists()


def test_bad_data_ends_with_3_and_one_message(tmp_path, capsys):
    argv = ["compress", "resnet8", f"--data={tmp_path / 'none.npz'}", f"--output={tmp_path / 'o'}"]
    assert cli.main(argv) == 3
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
    assert "There is no file or folder" in line


@pytest.mark.parametrize(
    ("made", "code", "said"),
    [
        (("ACCEPTED", "ACCEPTED: the gate is met."), 0, "the gate is met"),
        (("REGRESSED", "REGRESSED: drop of accuracy 3 points"), 4, "3 points"),
        (("INFEASIBLE", "INFEASIBLE: the least is 3 ms"), 4, "the least is 3 ms"),
        (KeyboardInterrupt(), 130, "tfkd resume"),
        (signal.SIGTERM, 130, "tfkd resume"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "space"),
    ],
)
def test_the_end_of_a_run_is_the_exit_code(made, code, said, tmp_path, monkeypatch, capsys):
    def stand_in(recipe, output, *, voice, command):
        assert command.startswith("tfkd run ")
        output.mkdir()
        (output / "run.json").touch()
        if isinstance(made, BaseException):
            raise made
        if isinstance(made, signal.Signals):
            signal.raise_signal(made)
        return Outcome(*made, folder=output, files={"tflite": "m.tflite"})

    monkeypatch.setattr(engine, "run", stand_in)
    recipe = Recipe.from_dict({"model": "resnet8", "data": "digits", "stages": ["export"]})
    recipe.save(tmp_path / "r.json")
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["run", str(tmp_path / "r.json"), f"--output={tmp_path / 'o'}"]) == code
    written = capsys.readouterr()
    assert said in written.out + written.err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def sources(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = (rng.integers(0, 120, (80, 8, 8, 1)) + 130 * y[:, None, None, None]).astype("uint8")
    np.savez(tmp_path / "d.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, name="logits"),
    ]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    return [str(tmp_path / "m.keras"), f"--data={tmp_path / 'd.npz'}", "--preprocess=0-1"]


@pytest.mark.slow
def test_a_dry_run_prints_plan_and_time_and_writes_nothing(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Training, "seconds", lambda self: self.steps * self.epochs)  # 1 s each
    argv = ["compress", *sources, "--budget=macs:70%", "--batch_size=8", "--dry_run", "--json"]
    assert cli.main(argv) == 0
    plan = json.loads(capsys.readouterr().out)
    prune, quantize = plan["planned"][:2]
    assert (prune["epochs"], prune["steps"], quantize["epochs"]) == (10, 5, 2)
    # 10 epochs of 5 steps, and a trial of 20 steps for each of four learning rates.
    assert prune["seconds"] == pytest.approx(130) and quantize["seconds"] == 10
    assert "conv" in plan["pruning"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "m.keras"]


@pytest.mark.slow
def test_compress_makes_a_verified_file(sources, tmp_path, capsys):
    out = tmp_path / "o"
    argv = ["compress", *sources, "--steps=quantize", "--quick", "--max_drop=50", "--batch_size=8"]
    assert cli.main([*argv, f"--output={out}", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["status"] == "ACCEPTED" and outcome["files"]["tflite"] == str(
        out / "model.tflite"
    )
    assert json.loads((out / "run.json").read_text())["command"].startswith("tfkd compress ")
    assert cli.main([*argv, f"--output={out}"]) == 2
    assert "this very run, finished" in capsys.readouterr().err
    assert cli.main(["resume", str(out)]) == 0
