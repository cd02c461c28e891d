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

import pathlib
from typing import Any

import harness
import made_up
import shared

shared.PARSER = harness.Parser(
    __doc__, data=made_up.sentences, answers=made_up.answers, epochs=1, teacher_epochs=1,
    quantize_epochs=1, seeds=1, width=8, rounds=10,
)  # fmt: skip
shared.flag("seeds", 3, "runs of everything, from --seed on")
shared.flag("rounds", 500, "runs of each file for its latency")

import realtime  # its flags and its training: parses, and imports tfkd first

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging
from shared import FLAGS

from tfkd import artifacts, models, report, runtime

CHOICES = ("position", "similarity", "damage")


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
        if bench.seed == FLAGS.seed:
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
            bench.distil(cache, small, bench.epochs)
            runs.add(bench, f"{size}, {choice}", small)
        aware = realtime.quantized(bench, cache, small, FLAGS.quantize_epochs)
        path = realtime.write(bench, aware, f"{size}_int8_{bench.seed}")
        runs.add(bench, f"{size}, int8", path, small)
        if bench.seed == FLAGS.seed:
            for mode in ("float16", "dynamic"):
                path = realtime.write(bench, small, f"{size}_{mode}", mode)
                runs.add(bench, f"{size}, {mode}", path, small)


def others(bench: realtime.Bench, runs: Runs, original: keras.Model, cache: Any) -> None:
    labelled = realtime.cut(bench, original, 0.25, "damage")
    bench.fit(labelled, bench.plain(), bench.epochs)
    runs.add(bench, "quarter, labels", labelled)
    fresh = bench.transformer(1)
    bench.distil(cache, fresh, bench.epochs)
    runs.add(bench, "quarter, from nothing", fresh)
    words = models.text_mlp(
        bench.data.vocabulary, bench.data.classes, bench.data.x_train.shape[1], dropout=0.5
    )
    bench.distil(cache, words, 2 * bench.epochs, slower=0.5)
    runs.add(bench, "word vectors", words)


def table(bench: realtime.Bench, runs: Runs) -> str:
    """Accuracy of every arm; then the cost of what would be deployed."""
    rows = []
    for name, values in runs.accuracy.items():
        gains = np.array(values) - np.array(runs.accuracy["original"][: len(values)])
        shown = "" if name == "original" else ", ".join(f"{gain:+.1f}" for gain in gains)
        rows.append([name, harness.spread(values, 1), shown])
    text = harness.table(["arm", "accuracy %", "minus original, by seed"], rows)
    names = [n for n in runs.models if "," not in n or n.endswith(("damage", "int8", "16", "mic"))]
    found = {name: runs.models[name] for name in names}
    last = runs.models["quarter, int8"]
    found["quarter, int8, seen before"] = realtime.repeated(bench, last)
    data = (bench.data.x_test, bench.data.y_test)
    made = report.compare(found, data, like=runs.like, runs=FLAGS.rounds, seconds=60.0)
    made.save(runs.out)
    return f"{text}\n{made.markdown()}"


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    realtime.check_flags()
    out = pathlib.Path(FLAGS.out or "saved_models/realtime_text")
    out.mkdir(parents=True, exist_ok=True)
    runs = Runs(out)
    sequences = realtime.load(FLAGS.data)
    for seed in range(FLAGS.seed, FLAGS.seed + FLAGS.seeds):
        keras.utils.set_random_seed(seed)
        bench = realtime.Bench(sequences, out, seed)
        original = realtime.train_original(bench, FLAGS.layers, bench.teacher_epochs, FLAGS.answers)
        runs.add(bench, "original", original)
        cache = realtime.write_down(bench, original)
        students(bench, runs, original, cache)
        others(bench, runs, original, cache)
    harness.show(FLAGS, table(bench, runs), accuracy=runs.accuracy)


if __name__ == "__main__":
    main()
