"""Speed-up of int8 over float32 in LiteRT, with and without pruning; cost of a QAT step.

    python benchmarks/quantize_speed.py [--models resnet20 resnet56] [--rounds 300]
        [--repeats 5] [--steps 12] [--out saved_models/quantize_speed]

Untrained networks for CIFAR: time and size do not depend on the values of the
weights. Each is taken whole and with half of its multiply-accumulates cut out of the
residual blocks, in float32 and quantized by tfkd to int8 throughout. The four files run
in LiteRT with one thread and one image, in turns, and so do the steps: ResNet-56
teaches ResNet-20, in float and quantized for each target, one step each.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import prune_speed

import tfkd

BATCH = 64
STUDENTS = ("float", "tflite", "tensorrt", "both")
CALIBRATION = 64


def images(count: int) -> np.ndarray:
    """Noise, scaled as images are."""
    return np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype("float32")


def quantized(model: Any, target: str) -> Any:
    """The model with ranges from noise."""
    q = tfkd.quantization.quantize(model, target=target, freeze_batch_norm=False)
    tfkd.quantization.calibrate(q, images(CALIBRATION))
    return q


def files(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Station → report of its TFLite file."""
    from tfkd import pruning

    whole = prune_speed.MODELS[name]()
    plan = pruning.plan(whole, macs_reduction=0.5, residual="inner", round_to=8)
    small = pruning.shrink(whole, pruning.select(whole, plan))
    made = {}
    for station, model in (("whole", whole), ("pruned", small)):
        made[f"{station}, float32"] = tfkd.export.to_tflite(model, folder / f"{station}.tflite")
        made[f"{station}, int8"] = tfkd.export.to_tflite(
            quantized(model, "tflite"), folder / f"{station}_int8.tflite", io="int8"
        )
    return made


def latency(name: str, args: Any) -> str:
    """Rows of one network: size and time of each file, and how far from the first."""
    with tempfile.TemporaryDirectory() as folder:
        made = files(name, pathlib.Path(folder))
        runners = {}
        for station, one in made.items():
            predictor = tfkd.runtime.Predictor(one.path, threads=1)
            codes = predictor.inputs[0].encode(images(1))
            runners[station] = lambda run=predictor.run_one, codes=codes: run(codes)
        medians: dict[str, list[float]] = {station: [] for station in made}
        for _ in range(args.repeats):
            found = tfkd.report.latency(runners, warmup=20, runs=args.rounds)
            for station, times in found.items():
                medians[station].append(times.p50)
    first = next(iter(made))
    lines = []
    for station, one in made.items():
        ratios = [a / b for a, b in zip(medians[first], medians[station], strict=True)]
        cells = [
            name,
            station,
            f"{one.bytes / 1024:.0f}",
            f"{made[first].bytes / one.bytes:.2f}",
            f"{statistics.median(medians[station]):.3f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stepper(student: str) -> Any:
    """A function that makes one distillation step and waits for it."""
    import tensorflow as tf
    import tf_keras as keras

    model = tfkd.models.resnet(20)
    if student != "float":
        model = quantized(model, student)
    distiller = tfkd.Distiller(
        tfkd.models.resnet(56), model, tfkd.losses.LogitsDistillation(4.0), student_loss_weight=0.1
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    labels = np.arange(BATCH) % 10
    data = tf.data.Dataset.from_tensors((images(BATCH), labels)).repeat()
    batches = iter(data)
    function = distiller.make_train_function() or distiller.train_function
    return lambda: float(tf.nest.flatten(function(batches))[0])


def steps(rounds: int) -> str:
    """Rows: milliseconds of a step, and the ratio to float."""
    steppers = {student: stepper(student) for student in STUDENTS}
    times: dict[str, list[float]] = {student: [] for student in STUDENTS}
    for turn in range(rounds + 2):
        for student, step in steppers.items():
            began = time.perf_counter()
            step()
            if turn >= 2:
                times[student].append(time.perf_counter() - began)
    base = statistics.median(times["float"])
    medians = {student: statistics.median(found) for student, found in times.items()}
    return "\n".join(f"| {k} | {1e3 * v:.0f} | {v / base:.2f} |" for k, v in medians.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = list(prune_speed.MODELS)
    parser.add_argument("--models", nargs="+", choices=models, default=["resnet20", "resnet56"])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", default="saved_models/quantize_speed")
    args = parser.parse_args()
    text = (
        "| network | file | KiB | times smaller | ms (median) | times faster, median (range) |\n"
        "|---|---|---:|---:|---:|---:|\n"
    )
    text += "\n".join(latency(name, args) for name in args.models)
    text += "\n\n| student | ms a step (median) | times float |\n|---|---:|---:|\n"
    text += steps(args.steps) + "\n"
    tfkd.artifacts.write_text(pathlib.Path(args.out, "table.md"), text)
    print(text)


if __name__ == "__main__":
    main()
