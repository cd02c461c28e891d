"""Speed-up in LiteRT of networks pruned to half of their multiply-accumulates.

    python benchmarks/prune_speed.py [--rounds 500] [--repeats 5] [--models resnet20 ...]
        [--macs-reduction 0.5] [--out saved_models/prune_speed]

Untrained networks for CIFAR: time does not depend on the values of the weights.
Each is planned in four ways, with `residual` "inner" or "coupled" and kept counts
in multiples of 8 or as they come, shrunk, and exported as float32 TFLite. The
files run in LiteRT with one thread and one image, in turns. A repeat is `--rounds`
rounds; a ratio is the median of the whole network by that of the smaller one
within the same repeat, and the range over the repeats stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

import tfkd

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

MODELS = {
    "resnet20": lambda: tfkd.models.resnet(20),
    "resnet56": lambda: tfkd.models.resnet(56),
    "vgg16": lambda: tfkd.models.vgg16(),
}
WAYS = tuple(itertools.product(("inner", "coupled"), (8, 1)))
BEST = "inner, round_to=8"  # the way that suits the kernels, and is judged
LEAST = 1.6  # times faster
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
    from tfkd import export, report, runtime

    runners = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, model) in enumerate(models.items()):
            path = pathlib.Path(folder, f"{index}.tflite")
            export.to_tflite(model, path)
            runners[name] = runtime.Predictor(path, threads=1).run_one
        shape = (1, *next(iter(models.values())).input_shape[1:])
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        medians: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats):
            for name, times in report.latency(runners, x, warmup=20, runs=rounds).items():
                medians[name].append(times.p50)
    return medians


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
    lines = [
        "| network | way | MACs left | parameters | ms (median) | times faster, median (range) |",
        "|---|---|---:|---:|---:|---:|",
    ]
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
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(records: Sequence[Record]) -> tuple[str, bool]:
    """What the way that is judged gains on each network; and whether that is as expected."""
    lines, holds = [], True
    for name in dict.fromkeys(record["model"] for record in records):
        ratios = [r["ratios"] for r in records if (r["model"], r["way"]) == (name, BEST)]
        ratio = statistics.median(ratios[0]) if ratios else 0.0
        holds = holds and ratio >= LEAST
        found = f"{ratio:.2f} times faster" if ratios else "the target is out of reach"
        lines.append(f"{name}: {found} ({BEST}), expected ≥ {LEAST}.")
    return "\n".join(lines), holds


def parse(argv: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--macs-reduction", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="saved_models/prune_speed")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    records = [record for name in args.models for record in run(name, args)]
    said, holds = verdict(records)
    text = f"{table(records)}\n\n{said}\n"
    out = pathlib.Path(args.out)
    tfkd.artifacts.write_text(out / "table.md", text)
    whole = {"options": vars(args), "machine": tfkd.report.machine(), "records": records}
    tfkd.artifacts.write_json(out / "speed.json", whole)
    print(text)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
