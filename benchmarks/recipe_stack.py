"""Decay, distillation and int8 in one recipe, beside each of them alone, at 8 times fewer MACs.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/narrow8000 \
        --widths 8 16 32 --depth 20 --images 8000 --epochs 40 --policy float32
    python benchmarks/recipe_stack.py --data cifar10.npz --teacher saved_models/narrow8000

The network is compressed as `tfkd compress` does it, by the stages `prune` and `quantize` with
itself as teacher, on the images that trained it; --held-out others are the validation part.
Accuracy is that on the test images, of the network after each stage, or with --validation that
on the held-out ones after pruning, to choose settings. A seed is that of the order of the
batches. Each finished run is a record in --out, and is not made again.
"""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile

import harness
import made_up
from cifar_teacher import weights_of
from recipe_losses import images_of

# Settings of `prune` (None: none) and whether the network is quantized afterwards.
WAYS = {
    "int8 alone": (None, True),
    "cut at once": ({"method": "hard", "loss": "soft_targets"}, False),
    "cut at once, DIST": ({"method": "hard", "loss": "dist"}, False),
    "decay": ({"method": "decay", "loss": "soft_targets"}, False),
    "decay, DIST": ({"method": "decay", "loss": "dist"}, False),
    "decay, DIST, int8": ({"method": "decay", "loss": "dist"}, True),
}


def train(way, seed, made, args):
    """One run: returns its record."""
    from tfkd.recipes import Recipe
    from tfkd.recipes.voice import Plain

    prune, quantize = WAYS[way]
    reduction = {"stage": "prune", "macs_reduction": args.macs_reduction, "epochs": args.epochs}
    stages = [] if prune is None else [reduction | prune]
    stages += ["quantize"] if quantize else []
    found = {"way": way, "seed": seed}
    with tempfile.TemporaryDirectory() as output:
        run = pathlib.Path(output) / "run"
        document = {**made, "seed": seed, "stages": stages}
        Recipe.from_dict(document).run(run, voice=Plain(quiet=True))
        for stage in ("prune", "quantize"):
            file = run / "metrics" / f"{stage}.json"
            if file.is_file():
                written = json.loads(file.read_text())
                found[stage] = 100 * written["score"]
                if stage == "prune":
                    found["rate"] = written["learning_rate"]
                    found["validation"] = 100 * written["curves"]["prune"]["val_accuracy"][-1]
    return found


def validation_table(records):
    """Accuracy on the held-out images after pruning, and the learning rate that was taken."""
    rows = []
    for way in dict.fromkeys(one["way"] for one in records):
        runs = [one for one in records if one["way"] == way and "validation" in one]
        if runs:
            values = [one["validation"] for one in runs]
            rates = ", ".join(str(one["rate"]) for one in runs)
            line = ", ".join(f"{value:.2f}" for value in values)
            rows.append([way, harness.spread(values), line, rates])
    head = ["network", "accuracy % on held-out images", "seeds", "learning rates"]
    return harness.table(head, rows)


def table(records, base):
    """Accuracy after each stage, and how far from the network as it was."""
    rows = [["as it was", f"{base:.2f}", "", "", ""]]
    for way in dict.fromkeys(one["way"] for one in records):
        for stage in ("prune", "quantize"):
            values = [one[stage] for one in records if one["way"] == way and stage in one]
            if values:
                gaps = harness.spread([value - base for value in values])
                line = ", ".join(f"{value:.2f}" for value in values)
                rows.append([way, harness.spread(values), gaps, stage, line])
    head = ["network", "accuracy % on all test images", "points", "after", "seeds"]
    return harness.table(head, rows)


def main():
    parser = harness.Parser(
        __doc__, "saved_models/recipe_stack", data=made_up.cifar, teacher=made_up.base,
        images=200, held_out=100, epochs=2, seeds=1, macs_reduction=0.5,
    )  # fmt: skip
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--teacher", default="saved_models/narrow8000", help="the network's folder")
    parser.add_argument("--macs-reduction", type=float, default=0.875, help="share that goes")
    parser.add_argument("--images", type=int, default=8_000, help="training images")
    parser.add_argument("--held-out", type=int, default=2_000, help="images to validate")
    parser.add_argument("--epochs", type=int, default=30, help="of pruning")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of all")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way")
    parser.add_argument("--validation", action="store_true", help="print the held-out accuracy")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    harness.threads(args.threads)
    digests = {"files": harness.digest(args.data, weights_of(args.teacher))}
    store, records = harness.Records(args, **digests), []
    base = (
        100
        * json.loads((weights_of(args.teacher).parent / "teacher.json").read_text())[
            "test_accuracy_float32"
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        made = images_of(args, pathlib.Path(folder))
        for seed in range(args.seeds):
            for way in args.ways:
                run = {
                    **harness.settings(args, "teacher", "ways", "seeds", "validation"),
                    "way": way,
                }
                make = functools.partial(train, way, seed, made, args)
                if record := store.run(f"{way}, {seed}", run | {"seed": seed}, make):
                    records.append(record)
    records.sort(key=lambda one: list(WAYS).index(one["way"]))
    printed = validation_table(records) if args.validation else table(records, base)
    harness.show(args, printed, runs=records)


if __name__ == "__main__":
    main()
