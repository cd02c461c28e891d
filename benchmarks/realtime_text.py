"""Depth pruning, distillation and quantization of a transformer on SST-2, over seeds.

    python benchmarks/realtime_text.py --data=sst2 --answers=minilm.npz --out=saved_models/rt

The way of examples/realtime.py, whose functions and flags these are, for --seeds seeds. The
original: a transformer of four layers, 128 wide, taught by the logits that
benchmarks/minilm_embeddings.py made in PyTorch (`--answers`), read through
`TeacherCache.from_predictions`. All models below learn from what the original says, kept
in a `TeacherCache`. Arms, with the same batches, steps and learning rates for each seed:

    half, <choice>        two of its layers, chosen by position, similarity or damage
    quarter, <choice>     one of them
    quarter, labels       the layer of `damage`, trained on the labels alone
    quarter, from nothing a random layer, distilled
    ..., int8             of `damage`, quantized while distilled, as a TFLite file
    word vectors          `models.text_mlp`, distilled from the original

Accuracy is that of the last epoch on the test sentences. Latency, files and throughput are
those of seed 0's models.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "examples"))

import realtime  # imports tfkd first

# isort: split
import numpy as np
import tf_keras as keras
from absl import app, flags, logging

from tfkd import artifacts, models, report, runtime

SEEDS = flags.DEFINE_integer("seeds", 3, "runs of everything")
CHOICES = ("position", "similarity", "damage")
EPOCHS, TEACHER_EPOCHS, QUANTIZE_EPOCHS = 4, 6, 2


class Runs:
    """Accuracies by arm, and the models of seed 0."""

    def __init__(self, out: pathlib.Path):
        self.out = out
        self.accuracy: dict[str, list[float]] = {}
        self.models: dict[str, Any] = {}
        self.like: dict[str, keras.Model] = {}

    def add(self, bench: realtime.Bench, name: str, model: Any, like: Any = None) -> None:
        if isinstance(model, pathlib.Path):
            outputs = runtime.Predictor(model)(bench.data.x_test)
            value = report.accuracy(bench.data.y_test, outputs)
        else:
            value = bench.accuracy(model)
        self.accuracy.setdefault(name, []).append(value)
        if bench.seed == 0:
            self.models[name] = model
            if like is not None:
                self.like[name] = like
        bench.say(f"seed {bench.seed}, {name}: {value:.2f}")
        artifacts.write_json(self.out / "accuracy.json", self.accuracy)


def students(bench: realtime.Bench, runs: Runs, original: keras.Model, cache: Any) -> None:
    for share, size in ((0.5, "half"), (0.25, "quarter")):
        for choice in CHOICES:
            small = realtime.cut(bench, original, share, choice)
            runs.add(bench, f"{size}, {choice}, only cut", small)
            bench.distil(cache, small, EPOCHS)
            runs.add(bench, f"{size}, {choice}", small)
        aware = realtime.quantized(bench, cache, small, QUANTIZE_EPOCHS)
        path = realtime.write(bench, aware, f"{size}_int8_{bench.seed}")
        runs.add(bench, f"{size}, int8", path, small)
        if bench.seed == 0:
            for mode in ("float16", "dynamic"):
                path = realtime.write(bench, small, f"{size}_{mode}", mode)
                runs.add(bench, f"{size}, {mode}", path, small)


def others(bench: realtime.Bench, runs: Runs, original: keras.Model, cache: Any) -> None:
    labelled = realtime.cut(bench, original, 0.25, "damage")
    bench.fit(labelled, bench.plain(), EPOCHS)
    runs.add(bench, "quarter, labels", labelled)
    fresh = bench.transformer(1)
    bench.distil(cache, fresh, EPOCHS)
    runs.add(bench, "quarter, from nothing", fresh)
    words = models.text_mlp(
        bench.data.vocabulary, bench.data.classes, bench.data.x_train.shape[1], dropout=0.5
    )
    bench.distil(cache, words, 2 * EPOCHS, slower=0.5)
    runs.add(bench, "word vectors", words)


def table(bench: realtime.Bench, runs: Runs) -> None:
    """Accuracy of every arm; then the cost of what would be deployed."""
    print("\n| arm | accuracy % | minus original, by seed |\n|---|---:|---|")
    for name, values in runs.accuracy.items():
        gains = np.array(values) - np.array(runs.accuracy["original"][: len(values)])
        shown = "" if name == "original" else ", ".join(f"{gain:+.1f}" for gain in gains)
        print(f"| {name} | {report.seed_stats(values).format()} | {shown} |")
    names = [n for n in runs.models if "," not in n or n.endswith(("damage", "int8", "16", "mic"))]
    found = {name: runs.models[name] for name in names}
    last = runs.models["quarter, int8"]
    found["quarter, int8, seen before"] = realtime.repeated(bench, last)
    data = (bench.data.x_test, bench.data.y_test)
    made = report.compare(found, data, like=runs.like, runs=500, seconds=60.0)
    made.save(runs.out)
    print(made.markdown())


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    out = pathlib.Path(realtime.OUT.value or "saved_models/realtime_text")
    out.mkdir(parents=True, exist_ok=True)
    runs = Runs(out)
    sequences = realtime.load(realtime.DATA.value)
    for seed in range(SEEDS.value):
        keras.utils.set_random_seed(seed)
        bench = realtime.Bench(sequences, out, seed)
        original = realtime.train_original(
            bench, realtime.LAYERS.value, TEACHER_EPOCHS, realtime.ANSWERS.value
        )
        runs.add(bench, "original", original)
        cache = realtime.write_down(bench, original)
        students(bench, runs, original, cache)
        others(bench, runs, original, cache)
    table(bench, runs)
    print(json.dumps(report.machine()))


if __name__ == "__main__":
    app.run(main)
