"""Recipes that train with a teacher, by the loss and the weight of the labels that they set.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/narrow8000 \
        --widths 8 16 32 --depth 20 --images 8000 --epochs 40 --policy float32
    python benchmarks/recipe_losses.py --data cifar10.npz --teacher saved_models/narrow8000 \
        --sentences sst2

Cases: students of the teacher and its pruning on the training images of the teacher, with
--held-out others as the validation part; a student on the digits, and one of sentences
(--sentences, a folder as SST-2), with a teacher that a recipe trains first. A setting is
`loss:label_weight`. The Adam of recipes does not see the size of a loss, so the weight of the
labels is the only one: 0.0357 is 0.1 with three times the weight of the teacher, and 0.3333
is 0.5 with twice that. Accuracy is that of the last epoch on the validation part; with --test
on the test part, too. A seed is that of weights and of the order of the batches, the same for
all settings. Each finished run is a record in --out, and is not made again.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import tempfile

import harness
import made_up
import numpy as np
from cifar_teacher import load_base, part_of, weights_of

SETTINGS = ["soft_targets:0.3", "soft_targets:0.1", "soft_targets:0.0357", "dist:0.3", "dist:0.1"]
SHORT = ["soft_targets:0.3", "dist:0.3"]
# Name → what it is, its stage with what is set there, and its settings unless they are given.
CASES = {
    "wide": ("ResNet-8 (8, 16, 32)", {"stage": "distil", "student": "resnet8:8,16,32"}, SETTINGS),
    "narrow": ("ResNet-8 (8, 16)", {"stage": "distil", "student": "resnet8:8,16"}, SETTINGS),
    "digits": ("digits, ResNet-8 (8, 16)", {"stage": "distil"}, SETTINGS),
    "prune": ("ResNet-20, 70 % pruned", {"stage": "prune", "macs_reduction": 0.7}, SHORT),
    "texts": ("sentences, mean of word vectors", {"stage": "distil"}, SETTINGS[:3]),
}
SHORT_CASES = ("prune", "texts")  # which train in a third of --epochs
TEACHER = {"digits": 30, "texts": 3}  # epochs of a teacher that a recipe trains


def images_of(args, folder):
    """The settings of recipes with the CIFAR-10 teacher; writes its file and the data."""
    data, scale = part_of(args.data, args.images)
    held, _ = part_of(args.data, args.images, args.held_out)
    np.savez(
        folder / "images.npz", x_train=data.x_train, y_train=data.y_train,
        x_val=held.x_test, y_val=held.y_test, x_test=data.x_test, y_test=data.y_test,
    )  # fmt: skip
    load_base(args.teacher)[0].save(folder / "images.keras")
    low, high = (np.asarray(scale(np.full((1, 3), pixel))[0]) for pixel in (0, 255))
    std = 255 / (high - low)
    numbers = ",".join(f"{value:.4f}" for value in (*(-low * std), *std))
    model, data = str(folder / "images.keras"), str(folder / "images.npz")
    return {"model": model, "data": data, "preprocess": numbers}


def texts_of(args, folder):
    """The settings of recipes for sentences; writes fewer of them."""
    (folder / "texts").mkdir()
    for part in ("train", "dev", "test"):
        rows = (pathlib.Path(args.sentences) / f"{part}.tsv").read_text().splitlines()
        order = np.random.default_rng(0).permutation(len(rows))[: args.images]
        text = "".join(f"{rows[i]}\n" for i in sorted(order))
        (folder / "texts" / f"{part}.tsv").write_text(text)
    return {"data": str(folder / "texts")}


def taught(made, epochs, output):
    """The settings of recipes with a teacher that a recipe trains, of seed 0."""
    from tfkd.recipes import Recipe
    from tfkd.recipes.voice import Plain

    stage = {"stage": "train_teacher", "epochs": epochs}
    run = Recipe.from_dict({**made, "stages": [stage]}).run(output, voice=Plain(quiet=True))
    return {**made, "model": run.files["teacher"]}


def prepared(name, args, folder, known):
    """The settings that the recipes of a case have in common, made once."""
    kind = name if name in ("digits", "texts") else "images"
    if kind not in known:
        if kind == "images":
            known[kind] = images_of(args, folder)
        else:
            digits = {"data": "digits", "val_fraction": 0.3}
            made = digits if kind == "digits" else texts_of(args, folder)
            known[kind] = taught(made, min(TEACHER[kind], 3 * args.epochs), folder / f"{kind}_run")
    return known[kind]


def train(name, setting, seed, args, folder, known):
    """One run: returns its record."""
    from tfkd.recipes import Recipe
    from tfkd.recipes.voice import Plain

    loss, _, weight = setting.partition(":")
    stage = {**CASES[name][1], "epochs": epochs_of(name, args), "loss": loss}
    stage["label_weight"] = float(weight)
    document = {**prepared(name, args, folder, known), "seed": seed, "stages": [stage]}
    with tempfile.TemporaryDirectory() as output:
        run = pathlib.Path(output)
        Recipe.from_dict(document).run(run, voice=Plain(quiet=True))
        found = json.loads((run / "metrics" / f"{stage['stage']}.json").read_text())
    validated = found["curves"][stage["stage"]]["val_accuracy"][-1]
    return {"case": name, "loss": loss, "setting": setting, "seed": seed,
            "validated": 100 * validated, "tested": 100 * found["score"]}  # fmt: skip


def epochs_of(name, args):
    return max(args.epochs // 3, 1) if name in SHORT_CASES else args.epochs


def tables(records, args):
    """Accuracies of each case and setting, and the differences of losses by seed."""
    parts = ["validated", "tested"][: 1 + args.test]
    head = ["case", "epochs", "loss", "labels", "validation part %", "seeds"]
    head += ["test part %", "seeds"] * args.test
    found, rows, gaps = {}, [], []
    for one in records:
        found.setdefault((one["case"], one["setting"]), []).append(one)
    for (case, setting), runs in found.items():
        row = [CASES[case][0], epochs_of(case, args), *setting.split(":")]
        for part in parts:
            values = [one[part] for one in runs]
            row += [harness.spread(values), ", ".join(f"{value:.2f}" for value in values)]
        rows.append(row)
    text = harness.table(head, rows)
    for case, part in itertools.product(args.cases, parts):
        settings = [setting for name, setting in found if name == case]
        if len(settings) == 2 and args.seeds > 1:
            one, other = ([run[part] for run in found[case, s]] for s in settings)
            values = [b - a for a, b in zip(one, other, strict=True)]
            name = f"{CASES[case][0]}, {part}: {settings[1]} minus {settings[0]}"
            line = ", ".join(f"{value:+.2f}" for value in values)
            gaps.append([name, harness.spread(values), line])
    return text + ("\n" + harness.table(["seed by seed", "points", "seeds"], gaps) if gaps else "")


def main():
    parser = harness.Parser(
        __doc__, "saved_models/recipe_losses", data=made_up.cifar, teacher=made_up.base,
        sentences=made_up.sentences, images=200, held_out=100, epochs=1,
        cases=["narrow", "texts"], settings=["soft_targets:0.3"],
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--teacher", default="saved_models/narrow8000", help="its folder")
    parser.add_argument("--sentences", help="a folder with train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="of all")
    parser.add_argument("--settings", nargs="+", help="loss:label_weight, for all cases")
    parser.add_argument("--images", type=int, default=8_000, help="training images or sentences")
    parser.add_argument("--held-out", type=int, default=2_000, help="images to validate")
    parser.add_argument("--epochs", type=int, default=10, help="passes; a third in SHORT_CASES")
    parser.add_argument("--first-seed", type=int, default=0, help="of the seeds")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting")
    parser.add_argument("--test", action="store_true", help="show the scores of the test part")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    if not args.table and (not args.data or ("texts" in args.cases and not args.sentences)):
        parser.error("--data is needed to train, and --sentences for the case texts")
    harness.threads(args.threads)
    digests = {}
    if not args.table:
        files = [args.data, weights_of(args.teacher), *([args.sentences] if args.sentences else [])]
        digests = {"files": harness.digest(*files)}
    store, records, known = harness.Records(args, **digests), [], {}
    which = "teacher", "sentences", "cases", "settings", "first_seed", "seeds", "test"
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            for setting, seed in itertools.product(args.settings or CASES[case][2], seeds):
                run = {**harness.settings(args, *which), "case": case}
                run |= {"setting": setting, "seed": seed}
                make = functools.partial(
                    train, case, setting, seed, args, pathlib.Path(folder), known
                )
                if record := store.run(f"{case}, {setting}, {seed}", run, make):
                    records.append(record)
    harness.show(args, tables(records, args), runs=records)


if __name__ == "__main__":
    main()
