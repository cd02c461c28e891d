"""Runs: the stages in order, what a folder keeps, resuming, refusing, verdicts."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import tf_keras as keras

from tfkd import artifacts, export, known_faults, pruning, runtime
from tfkd.export.checking import VerificationError
from tfkd.recipes import (
    Recipe,
    RecipeError,
    engine,
    judging,
    opening,
    planning,
    pruning_stage,
    resume,
    run,
)
from tfkd.recipes.classifying import Classifying
from tfkd.recipes.data import warn_of_guessing
from tfkd.recipes.outcome import InfeasibleError
from tfkd.recipes.run_folder import OutputError, RunFolder
from tfkd.recipes.run_state import Done
from tfkd.recipes.training import Backup, Training
from tfkd.recipes.voice import Plain

TRAINED = [
    {"stage": "prune", "method": "decay", "epochs": 2, "macs_reduction": 0.3, "views": 1},
    {"stage": "quantize", "epochs": 1, "calibration": 16},
]
JUDGED = [{"stage": "export", "examples": 8}, {"stage": "verify", "runs": 5}, "report"]
QUIET = Plain(quiet=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Bright and dark images, and a network that tells them apart."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.integers(0, 120, (120, 8, 8, 1)) + 130 * y[:, None, None, None]
    x = x.astype("uint8")
    np.savez(folder / "d.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, name="logits"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(x[:90] / 127.5 - 1, y[:90], epochs=12, verbose=0)
    model.save(folder / "m.keras")
    return folder


def recipe_of(sources, stages, **settings):
    return Recipe.from_dict({
        "model": str(sources / "m.keras"), "data": str(sources / "d.npz"), "preprocess": "-1-1",
        "batch_size": 16, "stages": stages, **settings,
    })  # fmt: skip


@pytest.fixture
def stages_of(monkeypatch):
    """Replaces the work of stages by functions of the run: name → function."""

    def replace(**made):
        def nothing(going, settings):
            return Done()

        everything = dict.fromkeys(engine._MAKERS, nothing) | made
        monkeypatch.setattr(engine, "_MAKERS", everything)

    return replace


def test_a_folder_holds_one_run_and_says_what_it_is(sources, tmp_path, stages_of):
    stages_of()
    recipe = recipe_of(sources, ["quantize", "export"], seed=3)
    outcome = run(recipe, tmp_path / "o", voice=QUIET, command="tfkd run r.json")
    assert outcome.status == "DONE" and outcome.accepted
    kept = json.loads((tmp_path / "o" / "run.json").read_text())
    assert kept["status"] == "done" and kept["seed"] == 3 and kept["command"] == "tfkd run r.json"
    assert [s["status"] for s in kept["stages"].values()] == ["done", "done"]
    assert set(kept["hashes"]) == {"data", "model"} and kept["versions"]["tensorflow"]
    assert Recipe.load(tmp_path / "o" / "recipe.json") == recipe
    with pytest.raises(OutputError, match="this very run, finished"):
        run(recipe, tmp_path / "o", voice=QUIET)
    with pytest.raises(OutputError, match="the run of another recipe"):
        run(recipe_of(sources, ["export"]), tmp_path / "o", voice=QUIET)


@pytest.mark.parametrize(
    ("reduction", "epochs", "method", "curves"),
    [(0.3, 2, "hard", {"prune": 2}), (0.8, 2, "decay", {"prune_decay": 1, "prune": 1}),
     (0.8, 8, "decay", {"prune_decay": 2, "prune": 6}), (0.8, 1, "hard", {"prune": 1})],
)  # fmt: skip
def test_filters_decay_by_default_where_most_go(
    sources, tmp_path, reduction, epochs, method, curves
):
    stage = {"stage": "prune", "epochs": epochs, "macs_reduction": reduction, "views": 1}
    run(recipe_of(sources, [stage]), tmp_path / "o", voice=QUIET)
    made = RunFolder.open(tmp_path / "o").record("prune")
    assert made["method"] == method
    assert {name: len(kept["loss"]) for name, kept in made["curves"].items()} == curves


@pytest.mark.parametrize(("limit", "method"), [(82, "hard"), (83, "decay")])
def test_many_examples_teach_again_what_is_cut(sources, tmp_path, monkeypatch, limit, method):
    """Of the 45 training examples of each class 4 are held back."""
    monkeypatch.setattr(pruning_stage, "DECAY_BELOW", limit)
    stage = {"stage": "prune", "epochs": 2, "macs_reduction": 0.8, "views": 1}
    run(recipe_of(sources, [stage]), tmp_path / "o", voice=QUIET)
    assert RunFolder.open(tmp_path / "o").record("prune")["method"] == method


@pytest.fixture
def three(tmp_path):
    """A recipe for images of three grey levels and a network: stages → recipe."""
    y = np.arange(60) % 3
    x = np.random.default_rng(0).integers(0, 80, (60, 8, 8, 1)) + 80 * y[:, None, None, None]
    x = x.astype("uint8")
    np.savez(tmp_path / "d.npz", x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    keras.utils.set_random_seed(0)
    keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, name="logits"),
    ]).save(tmp_path / "m.keras")  # fmt: skip
    return lambda stages: recipe_of(tmp_path, stages)


def test_dist_is_for_three_classes_or_more(sources, three, tmp_path):
    stages = [{"stage": "distil"}, {"stage": "prune", "macs_reduction": 0.3}, "quantize"]
    for recipe, student in ((recipe_of(sources, stages), "soft_targets"), (three(stages), "dist")):
        task = opening.opened(recipe)[0]
        taken = [task.loss(stage) for stage in recipe.stages]
        assert taken == [student, "soft_targets", "soft_targets"]
    stages = [{"stage": "prune", "loss": "dist", "macs_reduction": 0.3}, "export"]
    with pytest.raises(RecipeError, match=r"stages\[0\]\.loss: .*'soft_targets'.* 2 classes"):
        run(recipe_of(sources, stages), tmp_path / "o", voice=QUIET)
    assert not (tmp_path / "o").exists()


def test_the_loss_of_a_stage_is_kept_and_said_once(three, tmp_path):
    said = []

    class Listening(Plain):
        def say(self, text):
            said.append(text)

    decay = {"stage": "prune", "macs_reduction": 0.3, "method": "decay", "epochs": 2, "views": 1}
    rounding = {"stage": "quantize", "epochs": 1, "label_weight": 0.25}
    run(three([{**decay, "loss": "dist"}, rounding]), tmp_path / "o", voice=Listening(quiet=True))
    stages = json.loads((tmp_path / "o" / "run.json").read_text())["stages"]
    assert {name: entry["loss"] for name, entry in stages.items()} == {
        "prune": "dist", "quantize": "soft_targets",
    }  # fmt: skip
    assert [text for text in said if "loss: " in text and "trial" not in text] == [
        "prune: loss: 0.3 × labels + 0.7 × dist",
        "quantize: loss: 0.25 × labels + 0.75 × soft_targets",
    ]
    assert sum("prune: scores divided by" in text for text in said) == 1


@pytest.mark.parametrize("end", ["logits", "softmax", "softmax layer", "scaled twice"])
def test_probabilities_of_a_student_of_correlations_fit_the_labels(three, tmp_path, end):
    """Scores are divided by the temperature of the highest likelihood."""
    logits = keras.layers.Dense(3, "softmax" if end == "softmax" else None)
    layers = [keras.Input((8, 8, 1)), keras.layers.GlobalAveragePooling2D(), logits]
    layers += [keras.layers.Softmax()] if end == "softmax layer" else []
    layers += [keras.layers.Rescaling(2.0)] if end == "scaled twice" else []
    keras.utils.set_random_seed(0)
    keras.Sequential(layers).save(tmp_path / "s.keras")
    stage = {"stage": "distil", "student": str(tmp_path / "s.keras"), "loss": "dist", "epochs": 2}
    recipe = three([{**stage, "learning_rate": 0.05}])
    if end == "scaled twice":
        with pytest.warns(UserWarning, match="probabilities of .* may say little.*soft_targets"):
            run(recipe, tmp_path / "o", voice=QUIET)
        assert json.loads((tmp_path / "o/metrics/distil.json").read_text())["temperature"] is None
        return
    run(recipe, tmp_path / "o", voice=QUIET)
    task = opening.opened(recipe)[0]
    model = keras.models.load_model(tmp_path / "o" / "student.keras")
    z = model.predict(task.validation(), verbose=0).astype(float)
    z = np.log(z) if "softmax" in end else z
    n, y = len(z), task.found.val.y
    wanted = np.where(np.eye(3)[y] == 1, n + 1, 1 / 2) / (n + 2)

    def loss(factor):
        powers = np.exp(factor * (z - z.max(1, keepdims=True)))
        return -(wanted * np.log(powers / powers.sum(1, keepdims=True))).sum()

    assert loss(1.0) <= min(loss(0.97), loss(1.03)) + 1e-6
    assert json.loads((tmp_path / "o/metrics/distil.json").read_text())["temperature"] > 0


@pytest.mark.parametrize("loss", ["soft_targets", "dist"])
def test_losses_have_the_values_of_their_formulas(three, loss):
    stage = {"stage": "distil", "student": "mlp:16", "loss": loss, "label_weight": 0.2}
    recipe = three([{**stage, "temperature": 2.0}])
    task, teacher = opening.opened(recipe)
    student = task.network("mlp:16", is_teacher=False)
    made = task.distiller(teacher, student, student, recipe.stages[0], keras.optimizers.Adam())
    x, y = next(iter(task.batches(0, 0)))
    found = made.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)["total_loss"]

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(-1, keepdims=True)

    theirs, mine = (np.asarray(model(x, training=False), float) for model in (teacher, student))
    labels = -np.log(softmax(mine)[np.arange(len(x)), y]).mean()
    p, q = softmax(theirs / 2), softmax(mine / 2)
    if loss == "dist":
        pairs = [*zip(p, q, strict=True)], [*zip(p.T, q.T, strict=True)]
        kd = sum(np.mean([1 - np.corrcoef(*pair)[0, 1] for pair in each]) for each in pairs)
    else:
        kd = (p * np.log(p / q)).sum(-1).mean()
    assert found == pytest.approx(0.2 * labels + 0.8 * 4 * kd, rel=1e-3)


@pytest.mark.parametrize("setting", ["data", "model"])
def test_a_run_that_is_resumed_elsewhere(sources, tmp_path, stages_of, monkeypatch, setting):
    def stopped(going, settings):
        raise KeyboardInterrupt

    stages_of(export=stopped)
    monkeypatch.chdir(sources)
    name = {"data": "d.npz", "model": "m.keras"}[setting]
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(sources, ["export"], **{setting: name}), tmp_path / "o", voice=QUIET)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name}.*in which it was started"):
        resume(tmp_path / "o", voice=QUIET)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "edit", [lambda text: text.replace('"seed": 3', '"seed": 4'), lambda text: text[:-20]]
)
def test_an_edited_recipe_is_not_passed_over(sources, tmp_path, stages_of, edit, finished):
    def stopped(going, settings):
        raise KeyboardInterrupt

    stages_of(**({} if finished else {"export": stopped}))
    recipe = recipe_of(sources, ["quantize", "export"], seed=3)
    if finished:
        run(recipe, tmp_path / "o", voice=QUIET)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "o", voice=QUIET)
    file = tmp_path / "o" / "recipe.json"
    written = file.read_text()
    file.write_text(edit(written))
    with pytest.raises(OutputError, match=r"recipe.json was edited.*tfkd run .*recipe.json --out"):
        resume(tmp_path / "o", voice=QUIET)
    file.write_text(written.replace("\n", "\n\n"))  # the same recipe, laid out differently
    stages_of()
    assert resume(tmp_path / "o", voice=QUIET).accepted


@pytest.mark.parametrize(
    ("unit", "offset", "name", "scaling"),
    [
        (
            255,
            0,
            None,
            ((127.5,), (127.5,)),
        ),  # pixels as floats from 0 to 1, which decides by itself
        (255, 0, "-1-1", ((127.5,), (127.5,))),
        (1, 0, None, ((127.5,), (127.5,))),  # pixels as floats from 0 to 255
        (127.5, -1, None, None),  # as the model takes them
    ],
)
def test_images_of_floats(sources, tmp_path, unit, offset, name, scaling):
    """The file says how it takes pixels, whatever the training images were."""
    with np.load(sources / "d.npz") as arrays:
        made = {
            key: np.float32(value / unit + offset) if key[0] == "x" else value
            for key, value in arrays.items()
        }
    np.savez(tmp_path / "f.npz", **made)
    settings = {"data": str(tmp_path / "f.npz"), "preprocess": name}
    run(recipe_of(sources, [JUDGED[0]], **settings), tmp_path / "o", voice=QUIET)
    with runtime.Predictor(tmp_path / "o" / "model.tflite") as predictor:
        assert predictor.scaling == scaling


@pytest.mark.parametrize("budget", ["macs:60%", "size:9KB", "latency:99ms"])
def test_layers_of_open_sizes_are_counted_at_the_size_of_the_data(sources, tmp_path, budget):
    image = keras.Input((None, None, 1))
    hidden = keras.layers.Conv2D(16, 3, activation="relu", name="hidden")(image)
    hidden = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(hidden)
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(hidden))
    keras.Model(image, scores).save(tmp_path / "m.keras")
    stage = {"stage": "prune", "epochs": 0}
    model = {"model": str(tmp_path / "m.keras"), "budget": budget}
    run(recipe_of(sources, [stage], **model), tmp_path / "o", voice=QUIET)
    plan = RunFolder.open(tmp_path / "o").record("prune")["plan"]
    # 6 × 6 positions of 3 × 3 × 1 × 16, 4 × 4 positions of 3 × 3 × 16 × 16, and the Dense layer.
    assert plan["macs_before"] == 36 * 9 * 16 + 16 * 9 * 256 + 16 * 2
    if budget.startswith("macs"):
        assert plan["macs_after"] <= 0.6 * plan["macs_before"]


def test_a_budget_of_macs_is_a_gate(sources, tmp_path):
    """6 × 6 positions of 3 × 3 weights for each of 8 filters, and 2 weights behind each."""
    prune = {"stage": "prune", "epochs": 0, "round_to": 1}
    outcome = run(recipe_of(sources, [prune, *JUDGED], budget="macs:60%"), tmp_path / "o")
    checks = {one.gate: one for one in judging_of(tmp_path / "o").checks}
    assert outcome.accepted and checks["max_macs_share"].wanted == 0.6
    assert checks["max_macs_share"].measured == pytest.approx(4 / 8)
    gates = {"max_drop": None, "max_macs_share": 0.5}
    less = recipe_of(sources, [prune | {"macs_reduction": 0.2}, *JUDGED], gates=gates)
    outcome = run(less, tmp_path / "less", voice=QUIET)
    assert outcome.status == "REGRESSED"
    assert "multiply-accumulates left 75.00 %, wanted at most 50.00 %" in outcome.sentence


def judging_of(folder):
    return judging.restored(RunFolder.open(folder).record("verify"))[1]


def test_a_loss_names_the_stage_and_what_to_try(sources, tmp_path):
    """All that the network knows is in its smallest filter, which is cut out."""
    model = keras.models.load_model(sources / "m.keras")
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 8))
    kernel[..., 0] = 0.01
    bright = np.zeros((8, 2))
    bright[0] = -900, 900
    model.get_layer("conv").set_weights([kernel, np.zeros(8)])
    model.get_layer("logits").set_weights([bright, np.array([9.0, -9.0])])
    model.save(tmp_path / "m.keras")
    stages = [{"stage": "prune", "epochs": 0, "round_to": 1}, {"stage": "quantize", "epochs": 0}]
    made = recipe_of(
        sources, [*stages, *JUDGED], model=str(tmp_path / "m.keras"), budget="macs:80%"
    )
    outcome = run(made, tmp_path / "o", voice=QUIET)
    before, after = [
        f"{100 * RunFolder.open(tmp_path / 'o').record(stage)['score']:.2f}"
        for stage in ("prune", "quantize")
    ]
    assert outcome.status == "REGRESSED" and before == after == "50.00"
    assert outcome.advice == (
        "Most of it is lost in prune, from 100.00 to 50.00: give it more epochs than 0, or let it "
        "remove less (now macs:80%)."
    )
    assert outcome.advice in str(outcome)
    assert outcome.advice in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert resume(tmp_path / "o", voice=QUIET).advice == outcome.advice


def test_what_only_onednn_stands_in_the_way_of_is_said(sources, tmp_path, monkeypatch):
    """As a processor with registers for 16 channels, whose gradients fail on fewer."""
    image = keras.Input((8, 8, 1))
    hidden = keras.layers.UpSampling2D(3)(image)
    hidden = keras.layers.Conv2D(32, 3, activation="relu", name="first")(hidden)
    hidden = keras.layers.Conv2D(16, 1, 2, name="shortcut")(hidden)
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(hidden))
    keras.Model(image, scores).save(tmp_path / "m.keras")
    monkeypatch.setattr(known_faults, "environment_width", lambda: 16)
    stage = {"stage": "prune", "epochs": 0, "method": "hard", "macs_reduction": 0.7}
    made = recipe_of(sources, [stage], model=str(tmp_path / "m.keras"))
    outcome = run(made, tmp_path / "o", voice=QUIET)
    assert outcome.status == "INFEASIBLE"
    assert "TF_ENABLE_ONEDNN_OPTS=0 multiples of 8 meet it" in outcome.sentence
    monkeypatch.setattr(known_faults, "environment_width", lambda: 0)
    run(made, tmp_path / "without", voice=QUIET)
    plan = RunFolder.open(tmp_path / "without").record("prune")["plan"]
    assert plan["remove"] == {"first": 24, "shortcut": 0}


def test_layers_of_unknown_cost_are_named():
    image = keras.Input((None, None, 1))
    hidden = keras.layers.Conv2D(16, 3, name="hidden")(image)
    hidden = keras.layers.Conv2D(16, 3, name="conv")(hidden)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalMaxPool2D()(hidden)))
    told = planning.sentence(pruning.plan(model, params_reduction=0.3))
    assert told.endswith("MACs are not known of hidden, conv, and left out")
    sized = pruning.plan(model, params_reduction=0.3, input_shape=(8, 8, 1))
    assert planning.sentence(sized).endswith("of the parameters")


def test_a_folder_with_other_files_is_not_touched(sources, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="other files; nothing was overwritten"):
        run(recipe_of(sources, ["export"]), tmp_path, voice=QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_bad_data_leaves_no_folder(sources, tmp_path):
    recipe = Recipe.from_dict({"model": "mlp:4", "data": "nowhere", "stages": ["export"]})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(recipe, tmp_path / "o", voice=QUIET)
    assert not (tmp_path / "o").exists()


def test_a_wrong_network_is_found_before_anything_is_trained(sources, tmp_path):
    stages = ["train_teacher", {"stage": "distil", "student": "resnt8"}, "export"]
    recipe = Recipe.from_dict({"data": str(sources / "d.npz"), "stages": stages})
    with pytest.raises(ValueError, match="'resnt8'.*'resnet'"):
        run(recipe, tmp_path / "o", voice=QUIET)
    assert not (tmp_path / "o").exists()


def test_scores_and_classes_that_differ_in_number_are_told(sources, tmp_path):
    for scores in (1, 3):
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        model.add(keras.layers.Dense(scores))
        model.save(tmp_path / f"{scores}.keras")
    with pytest.warns(UserWarning, match="3.keras has 3 scores, the data have 2 classes"):
        opening.opened(recipe_of(sources, ["quantize"], model=str(tmp_path / "3.keras")))
    opening.opened(recipe_of(sources, ["quantize"], model=str(tmp_path / "1.keras")))
    data = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1)).astype("uint8")
    np.savez(tmp_path / "d.npz", x=data, y=np.arange(12) % 3)
    with pytest.raises(ValueError, match="3 scores, as the data have classes, .*with 2 scores"):
        opening.opened(recipe_of(sources, ["quantize"], data=str(tmp_path / "d.npz")))


@pytest.mark.parametrize("ports", [(2, 1), (1, 2)])
def test_a_model_of_several_inputs_or_outputs_is_refused(sources, tmp_path, ports):
    images = [keras.Input((8, 8, 1)) for _ in range(ports[0])]
    flat = keras.layers.Flatten()(sum(images))
    heads = [keras.layers.Dense(2)(flat) for _ in range(ports[1])]
    keras.Model(images, heads).save(tmp_path / "m.keras")
    said = f"`model`: .*one input and output.*inputs: {ports[0]}, outputs: {ports[1]}"
    with pytest.raises(ValueError, match=said):
        opening.opened(recipe_of(sources, ["quantize"], model=str(tmp_path / "m.keras")))


def test_a_vocabulary_for_images_is_refused(sources):
    with pytest.raises(ValueError, match="`vocabulary`: .*holds images: leave it out"):
        opening.opened(recipe_of(sources, ["quantize"], vocabulary="words.txt"))


@pytest.mark.parametrize(("right", "told"), [(10, True), (14, True), (19, False)])
def test_a_model_that_guesses_is_told(right, told, recwarn):
    # Ten of 20 labels are of one class: chance is 50 %, and two standard errors are 22 points.
    warn_of_guessing("m", right / 20, np.arange(20) % 2)
    assert [f"{5 * right}.0 % right" in str(one.message) for one in recwarn] == [True] * told


@pytest.mark.parametrize(
    ("frozen", "epochs", "told"),
    [
        ((), 1, None),
        (("conv",), 1, "(1: conv)"),
        (("conv", "logits"), 1, "(2: conv, logits)"),
        (("conv",), 0, None),  # nothing is trained
    ],
)
def test_frozen_layers_that_are_trained_are_told(
    sources, tmp_path, stages_of, recwarn, frozen, epochs, told
):
    model = keras.models.load_model(sources / "m.keras", compile=False)
    for name in frozen:
        model.get_layer(name).trainable = False
    model.save(tmp_path / "m.keras")
    stages_of()
    settings = {"stage": "quantize", "epochs": epochs, "calibration": 16}
    recipe = recipe_of(sources, [settings, "export"], model=str(tmp_path / "m.keras"))
    run(recipe, tmp_path / "o", voice=QUIET)
    said = [str(one.message) for one in recwarn if "frozen" in str(one.message)]
    assert len(said) == (told is not None) and all(told in one for one in said)


def test_a_new_network_that_guesses_is_told(tmp_path):
    """Labels that have nothing to do with the images: what it lost says nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8, 1)).astype("uint8"), np.arange(60) % 2
    np.savez(tmp_path / "d.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    teacher = {"stage": "train_teacher", "network": "mlp:2", "epochs": 1}
    recipe = Recipe.from_dict({"data": str(tmp_path / "d.npz"), "stages": [teacher, *JUDGED]})
    outcome = run(recipe, tmp_path / "o", voice=QUIET)
    assert "no better than a guess" in outcome.advice and "Train longer" in outcome.text()
    assert "no better than a guess" in (tmp_path / "o" / "report.html").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_run_that_stops_goes_on_after_its_last_finished_stage(
    sources, tmp_path, stages_of, error
):
    seen = []

    def wrote(going, settings):
        seen.append(settings.stage)
        artifacts.write_text(going.folder.file("a.txt"), "a")
        return Done({"a": "a.txt"}, {"n": 1})

    def stops(going, settings):
        raise error

    stages_of(quantize=wrote, export=stops)
    recipe = recipe_of(sources, ["quantize", "export"])
    with pytest.raises(type(error)):
        run(recipe, tmp_path / "o", voice=QUIET)
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    assert RunFolder.open(tmp_path / "o").document["status"] == status
    with pytest.raises(OutputError, match="tfkd resume"):
        run(recipe, tmp_path / "o", voice=QUIET)
    stages_of(quantize=wrote)
    assert resume(tmp_path / "o", voice=QUIET).files == {"a": str(tmp_path / "o" / "a.txt")}
    assert seen == ["quantize"]


def test_changed_files_and_other_data_are_not_mixed_in(sources, tmp_path, stages_of):
    def wrote(going, settings):
        artifacts.write_text(going.folder.file("a.txt"), "a")
        return Done({"a": "a.txt"})

    def stops(going, settings):
        raise KeyboardInterrupt

    stages_of(quantize=wrote, export=stops)
    data = tmp_path / "d.npz"
    data.write_bytes((sources / "d.npz").read_bytes())
    recipe = recipe_of(sources, ["quantize", "export"], data=str(data))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "o", voice=QUIET)
    held = dict(np.load(data))
    held["x_train"] = held["x_train"][::-1].copy()
    np.savez(data, **held)
    with pytest.raises(ValueError, match="the data with which the run began"):
        resume(tmp_path / "o", voice=QUIET)
    (tmp_path / "o" / "a.txt").write_text("b")
    with pytest.raises(OutputError, match="'quantize' wrote, is changed"):
        resume(tmp_path / "o", voice=QUIET)
    with pytest.raises(OutputError, match="holds run.json"):
        resume(tmp_path / "nothing", voice=QUIET)


def test_what_can_not_be_met_is_a_verdict(sources, tmp_path, stages_of):
    def impossible(going, settings):
        raise InfeasibleError("latency_ms", "latency:1ms: the least is 3.1 ms", 3.1)

    stages_of(quantize=impossible)
    outcome = run(recipe_of(sources, ["quantize"]), tmp_path / "a", voice=QUIET)
    assert (outcome.status, outcome.accepted) == ("INFEASIBLE", False)
    assert RunFolder.open(tmp_path / "a").document["verdict"]["least"] == 3.1


def test_a_backup_continues_weights_optimizer_and_curves(tmp_path):
    def training():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        x = np.arange(12.0).reshape(4, 3) / 12
        import tensorflow as tf

        data = tf.data.Dataset.from_tensors((x, x[:, :2])).repeat()
        return Training("t", model, model, lambda first: data, 2, 3)

    whole = training()
    curves = whole.run(tmp_path / "a.npz", tmp_path / "logs", QUIET)
    part = training()
    part.epochs = 2
    part.run(tmp_path / "b.npz", tmp_path / "logs", QUIET)
    later = training()
    assert later.run(tmp_path / "b.npz", tmp_path / "logs", QUIET) == curves
    for a, b in zip(whole.student.get_weights(), later.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert Backup(tmp_path / "none.npz", later).restore() == 0


@pytest.mark.slow
def test_a_file_that_differs_from_its_model_is_kept_and_judged(sources, tmp_path, monkeypatch):
    def differs(self, model, path, io, count):
        made = export.to_tflite(model, path, mode="float32", verify=False)
        raise VerificationError(f"The exported file does not match: {made.bytes} bytes")

    monkeypatch.setattr(Classifying, "to_tflite", differs)
    outcome = run(recipe_of(sources, JUDGED), tmp_path / "o", voice=QUIET)
    assert outcome.status == "REGRESSED" and not outcome.accepted
    assert "REGRESSED: model.tflite: The exported file does not match" in outcome.sentence
    assert (tmp_path / "o" / "model.tflite").stat().st_size > 0
    assert "does not match" in (tmp_path / "o" / "report.md").read_text()


@pytest.mark.slow
def test_the_same_recipe_makes_the_same_bits_also_if_it_was_interrupted(
    sources, tmp_path, monkeypatch
):
    recipe = recipe_of(sources, [*TRAINED, *JUDGED], gates={"max_drop": 20})
    whole = run(recipe, tmp_path / "a", voice=QUIET)
    assert whole.accepted, whole.sentence
    written = Backup.on_epoch_end
    stops = {"prune_decay": 1, "prune": 1}

    def interrupted(self, epoch, logs=None):
        written(self, epoch, logs)
        if stops.pop(self.training.name, None):
            raise KeyboardInterrupt

    monkeypatch.setattr(Backup, "on_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "b", voice=QUIET)
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "b", voice=QUIET)
    again = resume(tmp_path / "b", voice=QUIET)
    assert not stops and again.accepted
    sums = [artifacts.sha256(tmp_path / name / "model.tflite") for name in "ab"]
    assert sums[0] == sums[1]
    for name in ("report.html", "report.json", "labels.txt", "recipe.json"):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert not (tmp_path / "b" / "work").exists()
    third = run(Recipe.load(tmp_path / "a" / "recipe.json"), tmp_path / "c", voice=QUIET)
    assert artifacts.sha256(third.files["tflite"]) == sums[0]
