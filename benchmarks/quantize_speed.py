"""Speed-up of int8 over float32 in LiteRT, with and without pruning; cost of a QAT step.

    python benchmarks/quantize_speed.py
    python benchmarks/quantize_speed.py --models resnet20 --rounds 100
    python benchmarks/quantize_speed.py --models transformer32 transformer128 --steps 0

Untrained networks for CIFAR: time and size do not depend on the values of the
weights. Each is taken whole and with half of its multiply-accumulates cut out of the
residual blocks, in float32 and quantized by tfkd to int8 throughout. The four files run
in LiteRT with one thread and one image, in turns, and so do the steps: ResNet-56
teaches ResNet-20, in float and quantized for each target, one step each (--steps 0: not
run). The transformers (two layers of this width, 32 tokens of 1,000) are written in
float32, float16, with 8-bit weights alone ("dynamic") and in int8, where attention and
layer normalization stay float between integers. --rounds 0 tells sizes alone.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import tempfile
from typing import Any

import harness
import numpy as np
import prune_speed

import tfkd

STUDENTS = ("float", "tflite", "tensorrt", "both")
CALIBRATION = 64
TRANSFORMERS = {f"transformer{width}": width for width in (32, 64, 128)}


def images(count: int) -> np.ndarray:
    """Noise, scaled as images are."""
    return np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype("float32")


def quantized(model: Any, target: str) -> Any:
    """The model with ranges from noise."""
    q = tfkd.quantization.quantize(model, target=target, freeze_batch_norm=False)
    tfkd.quantization.calibrate(q, images(CALIBRATION))
    return q


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, (count, 32)).astype("int32")


def transformer_files(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Kind → report of a TFLite file of a transformer."""
    model = tfkd.models.text_transformer(1000, 2, 32, width=TRANSFORMERS[name])
    made = {
        mode: tfkd.export.to_tflite(model, folder / f"{mode}.tflite", mode=mode)
        for mode in ("float32", "float16", "dynamic")
    }
    q = tfkd.quantization.quantize(model)
    tfkd.quantization.calibrate(q, tokens(CALIBRATION))
    print(q.report.advice)
    return {**made, "int8": tfkd.export.to_tflite(q, folder / "int8.tflite")}


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


def latency(name: str, args: Any) -> list[list[str]]:
    """Rows of one network: size and time of each file, and how far from the first."""
    with tempfile.TemporaryDirectory() as folder:
        text = name in TRANSFORMERS
        made = (transformer_files if text else files)(name, pathlib.Path(folder))
        x, jobs = tokens(1) if text else images(1), {}
        for station, one in made.items():
            predictor = tfkd.runtime.Predictor(one.path, threads=1)
            codes = predictor.inputs[0].encode(x)
            jobs[station] = functools.partial(predictor.run_one, codes)
        repeats = [
            harness.medians(harness.in_turns(jobs, args.rounds, warmup=20))
            for _ in range(args.repeats if args.rounds else 0)
        ]
    first, rows = next(iter(made)), []
    for station, one in made.items():
        ratios = [found[first] / found[station] for found in repeats]
        cells = [f"{one.bytes / 1024:.0f}", f"{made[first].bytes / one.bytes:.2f}"]
        if ratios:
            cells.append(f"{statistics.median(found[station] for found in repeats):.3f}")
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        rows.append([name, station, *cells])
    return rows


def stepper(student: str, batch: int) -> Any:
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
    labels = np.arange(batch) % 10
    data = tf.data.Dataset.from_tensors((images(batch), labels)).repeat()
    batches = iter(data)
    function = distiller.make_train_function() or distiller.train_function
    return lambda: float(tf.nest.flatten(function(batches))[0])


def main() -> None:
    parser = harness.Parser(
        __doc__, models=["resnet20", "transformer32"], rounds=5, repeats=1, steps=1, batch=4
    )
    models = [*prune_speed.MODELS, *TRANSFORMERS]
    two = ["resnet20", "resnet56"]
    parser.add_argument("--models", nargs="+", choices=models, default=two, help="networks")
    parser.add_argument("--rounds", type=int, default=300, help="runs of a file in a repeat")
    parser.add_argument("--repeats", type=int, default=5, help="medians of each file")
    parser.add_argument("--steps", type=int, default=12, help="steps of each student")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    args = parser.parse_args()
    head = ["network", "file", "KiB", "times smaller"]
    head += ["ms (median)", "times faster, median (range)"] if args.rounds else []
    rows = [row for name in args.models for row in latency(name, args)]
    text, ms = harness.table(head, rows, left=2), {}
    if args.steps:
        steppers = {student: stepper(student, args.batch) for student in STUDENTS}
        ms = harness.medians(harness.in_turns(steppers, args.steps, warmup=2))
        rows = [[name, f"{value:.0f}", f"{value / ms['float']:.2f}"] for name, value in ms.items()]
        text += "\n" + harness.table(["student", "ms a step (median)", "times float"], rows)
    harness.show(args, text, ms=ms)


if __name__ == "__main__":
    main()
