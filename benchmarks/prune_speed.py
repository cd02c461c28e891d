"""Speed-up in LiteRT of networks pruned to half of their multiply-accumulates.

    python benchmarks/prune_speed.py
    python benchmarks/prune_speed.py --models resnet20 --rounds 100

Untrained networks for CIFAR: time does not depend on the values of the weights.
Each is planned in four ways, with `residual` "inner" or "coupled" and kept counts
in multiples of 8 or as they come, shrunk, and exported as float32 TFLite. The
files run in LiteRT with one thread and one image, in turns. A repeat is `--rounds`
rounds; a ratio is the median of the whole network by that of the smaller one
within the same repeat, and the range over the repeats stands beside it.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import harness
import numpy as np

import tfkd

MODELS = {
    "resnet20": lambda: tfkd.models.resnet(20),
    "resnet56": lambda: tfkd.models.resnet(56),
    "vgg16": lambda: tfkd.models.vgg16(),
}
WAYS = tuple(itertools.product(("inner", "coupled"), (8, 1)))
BEST = "inner, round_to=8"  # the way that suits the kernels, and is judged
Record = dict[str, Any]


def pruned(model: Any, macs_reduction: float) -> dict[str, Any]:
    """The whole network and four smaller ones by name; None where the target is out of reach."""
    from tfkd import pruning

    graph = pruning.analyse(model)
    found = {"whole": model}
    for residual, round_to in WAYS:
        name = f"{residual}, round_to={round_to}"
        try:
            plan = pruning.plan(graph, macs_reduction, residual=residual, round_to=round_to)
        except ValueError as error:
            print(f"{model.name}, {name}: {error}", flush=True)
            found[name] = None
            continue
        found[name] = pruning.shrink(model, pruning.select(model, plan))
    return found


def widths(model: Any) -> list[int]:
    """Output channels of the convolutions, in order."""
    import tf_keras as keras

    return [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def measure(models: dict[str, Any], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Median milliseconds of each model in each repeat; all take turns."""
    from tfkd import export, runtime

    runners = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, model) in enumerate(models.items()):
            path = pathlib.Path(folder, f"{index}.tflite")
            export.to_tflite(model, path)
            runners[name] = runtime.Predictor(path, threads=1).run_one
        shape = (1, *next(iter(models.values())).input_shape[1:])
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        jobs = {name: functools.partial(run_one, x) for name, run_one in runners.items()}
        found = [harness.medians(harness.in_turns(jobs, rounds, warmup=20)) for _ in range(repeats)]
    return {name: [one[name] for one in found] for name in models}


def run(name: str, args: Any) -> list[Record]:
    """The records of one network: the whole one, then each way."""
    import tf_keras as keras

    from tfkd import report

    keras.utils.set_random_seed(args.seed)
    models = pruned(MODELS[name](), args.macs_reduction)
    models = {way: model for way, model in models.items() if model is not None}
    medians = measure(models, args.rounds, args.repeats)
    profiles = {way: report.profile(model) for way, model in models.items()}
    records = []
    for way, model in models.items():
        ratios = [a / b for a, b in zip(medians["whole"], medians[way], strict=True)]
        record = {
            "model": name,
            "way": way,
            "widths": widths(model),
            "macs": profiles[way].macs,
            "macs_left": profiles[way].macs / profiles["whole"].macs,
            "params": profiles[way].params,
            "ms": medians[way],
            "ratios": ratios,
        }
        records.append(record)
    return records


def table(records: Sequence[Record]) -> str:
    """Markdown: one line for each network and way."""
    rows = []
    for record in records:
        ratios = record["ratios"]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        cells = [
            record["model"],
            record["way"],
            f"{100 * record['macs_left']:.1f} %",
            f"{record['params']:,}",
            f"{statistics.median(record['ms']):.3f}",
            "1" if record["way"] == "whole" else ratio,
        ]
        rows.append(cells)
    head = ["network", "way", "MACs left", "parameters", "ms (median)"]
    return harness.table([*head, "times faster, median (range)"], rows, left=2)


def verdict(records: Sequence[Record], least: float) -> tuple[str, bool]:
    """What the way that is judged gains on each network; and whether that is as expected."""
    lines, holds = [], True
    for name in dict.fromkeys(record["model"] for record in records):
        ratios = [r["ratios"] for r in records if (r["model"], r["way"]) == (name, BEST)]
        ratio = statistics.median(ratios[0]) if ratios else 0.0
        holds = holds and ratio >= least
        found = f"{ratio:.2f} times faster" if ratios else "the target is out of reach"
        lines.append(f"{name}: {found} ({BEST}), expected ≥ {least}.")
    return "\n".join(lines), holds


def main() -> None:
    parser = harness.Parser(__doc__, models=["resnet20"], rounds=5, repeats=1, least=0.0)
    names = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="networks")
    parser.add_argument("--rounds", type=int, default=500, help="runs of a file in a repeat")
    parser.add_argument("--repeats", type=int, default=5, help="medians of each file")
    parser.add_argument("--macs-reduction", type=float, default=0.5, help="share that goes")
    parser.add_argument(
        "--least", type=float, default=1.6, help="times faster, else it exits with 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args()
    records = [record for name in args.models for record in run(name, args)]
    said, holds = verdict(records, args.least)
    harness.show(args, f"{table(records)}\n{said}\n", records=records)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
