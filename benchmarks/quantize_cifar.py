"""int8 on CIFAR-10: after training, quantization-aware, and with the float model as teacher.

    python benchmarks/quantize_cifar.py --data cifar10.npz --base saved_models/base

Starts from a network that `cifar_teacher.py` has trained. The ways to its int8 file,
for TFLite and for TensorRT:

    float      the network as it is
    longer     trained on in float for as many epochs as the aware ones
    after      ranges from 512 training images, weights as they are (after training)
    aware      the same, then trained on with rounding and clipping in the forward pass
    aware-skd  the same, with the float network as the teacher

Accuracy is that of the file, run in LiteRT or in ONNX Runtime on all test images, at
the last epoch. Every file's size; the time of one image in LiteRT on one thread, the
files in turns. Each finished run is a JSON file in --out and is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from cifar_teacher import BATCH, cosine_sgd, load, load_base

import tfkd

WAYS = ("float", "longer", "after", "aware", "aware-skd")
TARGETS = ("tflite", "tensorrt", "both")
CALIBRATION = 512
LENIENT = {"max_error": 1e9, "max_mean_error": 1e9, "min_agreement": 0.0, "max_clipped": 1.0}
Record = dict[str, Any]


class Ground:
    """The data, and what every run starts from."""

    def __init__(self, args: Any):
        x_train, y_train, x_test, y_test, self.scale = load(args.data)
        data = tfkd.data.Dataset(x_train, y_train, x_test, y_test)
        self.data = data.subset(train=args.images)
        self.x_test = np.asarray(self.scale(x_test))
        # Ranges from images that are spread over the classes, as the training images are.
        chosen = np.random.default_rng(0).choice(len(self.data.x_train), CALIBRATION, False)
        self.calibration = np.asarray(self.scale(self.data.x_train[chosen]))
        self.folder = pathlib.Path(args.base)
        self.epochs, self.peak = args.epochs, args.peak

    def model(self) -> Any:
        """The trained network, anew."""
        return load_base(self.folder)[0]


def train(model: Any, ground: Ground, seed: int, teacher: Any = None) -> float:
    """Trains for the epochs of the benchmark; returns seconds a step."""
    import tf_keras as keras

    steps = tfkd.data.steps_per_epoch(len(ground.data.x_train), BATCH)
    batches = tfkd.data.batches(
        ground.data.x_train,
        ground.data.y_train,
        BATCH,
        seed=seed,
        augment=tfkd.data.shift_and_flip(4),
        preprocess=ground.scale,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained = model
    if teacher is not None:
        trained = tfkd.Distiller(
            teacher, model, tfkd.losses.LogitsDistillation(4.0), student_loss_weight=0.1
        )
    trained.compile(cosine_sgd(steps * ground.epochs, ground.peak), loss)
    began = time.perf_counter()
    trained.fit(batches, steps_per_epoch=steps, epochs=ground.epochs, verbose=0)
    return (time.perf_counter() - began) / (steps * ground.epochs)


def make(way: str, target: str, ground: Ground, seed: int) -> tuple[Any, float | None]:
    """(the model of one run, seconds a training step)."""
    model = ground.model()
    if way == "float":
        return model, None
    if way == "longer":
        return model, train(model, ground, seed)
    quantized = tfkd.quantization.quantize(model, target=target, freeze_batch_norm=False)
    tfkd.quantization.calibrate(quantized, ground.calibration)
    if way == "after":
        return quantized, None
    teacher = tfkd.frozen_copy(model) if way == "aware-skd" else None
    return quantized, train(quantized, ground, seed, teacher)


def export(model: Any, target: str, path: pathlib.Path, x: np.ndarray) -> Record:
    """Writes and verifies the files of a model; returns their numbers."""
    found = {}
    if target in ("tflite", "both"):
        made = tfkd.export.to_tflite(
            model, path.with_suffix(".tflite"), verify=x[:500], thresholds=LENIENT
        )
        found["tflite"] = {"bytes": made.bytes, **made.numbers}
    if target in ("tensorrt", "both"):
        file = path.with_suffix(".onnx")
        made = tfkd.export.to_onnx(
            model,
            file,
            target="tensorrt",
            verify=x[:500],
            thresholds=LENIENT,
        )
        errors = [f for f in tfkd.export.lint_tensorrt(file) if f.level == "error"]
        found["onnx"] = {"bytes": made.bytes, **made.numbers, "lint_errors": len(errors)}
    return found


def accuracy(path: pathlib.Path, x: np.ndarray, y: np.ndarray) -> float:
    """Of a file on all images, in per cent."""
    if path.suffix == ".tflite":
        predictor = tfkd.runtime.Predictor(path)
        logits = np.concatenate([predictor(x[i : i + 1]) for i in range(len(x))])
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = [x[i : i + 500] for i in range(0, len(x), 500)]
        logits = np.concatenate([session.run(None, {name: part})[0] for part in parts])
    return 100 * float((logits.argmax(1) == y).mean())


def run(way: str, target: str, ground: Ground, seed: int, path: pathlib.Path) -> Record:
    """One run, from the trained network to measured files."""
    import tf_keras as keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    began = time.time()
    model, step = make(way, target, ground, seed)
    files = export(model, target, path, ground.x_test)
    for kind, numbers in files.items():
        file = path.with_suffix("." + kind)
        numbers["accuracy"] = accuracy(file, ground.x_test, ground.data.y_test)
    minutes = (time.time() - began) / 60
    return {
        "way": way,
        "target": target,
        "seed": seed,
        "step_seconds": step,
        "files": files,
        "minutes": minutes,
    }


def todo(seeds: int) -> list[tuple[str, str, int]]:
    """(way, target, seed) of all runs, the first seed of every one first."""
    once = [("float", "both", 0)]
    once += [("after", target, 0) for target in TARGETS]
    again = []
    for seed in range(seeds):
        again.append(("longer", "both", seed))
        again += [(way, target, seed) for way in ("aware", "aware-skd") for target in TARGETS]
    return once + again


def table(records: list[Record]) -> str:
    """Accuracy, size and agreement for each way, target and kind of file."""
    lines = [
        "| way | quantized for | file | accuracy % | KiB | agrees with Keras | seconds a step |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for way, target in dict.fromkeys((r["way"], r["target"]) for r in records):
        mine = [r for r in records if (r["way"], r["target"]) == (way, target)]
        for kind in mine[0]["files"]:
            found = [r["files"][kind] for r in mine]
            accuracies = [one["accuracy"] for one in found]
            spread = f" ± {np.std(accuracies, ddof=1):.2f}" if len(found) > 1 else ""
            steps = [r["step_seconds"] for r in mine if r["step_seconds"]]
            cells = [
                way,
                target if way not in ("float", "longer") else "–",
                kind,
                f"{np.mean(accuracies):.2f}{spread} ({len(found)})",
                f"{np.mean([one['bytes'] for one in found]) / 1024:.0f}",
                f"{min(one['argmax_agreement'] for one in found):.3f}",
                f"{np.median(steps):.3f}" if steps else "–",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def latency(out: pathlib.Path) -> str:
    """Times of the TFLite files of the first seed, in turns on one thread."""
    files = {path.stem: str(path) for path in sorted(out.glob("*-s0.tflite"))}
    runners, x = {}, np.zeros((1, 32, 32, 3), "float32")
    for name, path in files.items():
        predictor = tfkd.runtime.Predictor(path)
        codes = predictor.inputs[0].encode(x)
        runners[name] = lambda run=predictor.run_one, codes=codes: run(codes)
    found = tfkd.report.latency(runners, runs=1000)
    base = found["float-both-s0"].p50
    lines = ["| file | ms (median) | times faster |", "|---|---:|---:|"]
    lines += [f"| {k} | {1e3 * v.p50:.3f} | {base / v.p50:.2f} |" for k, v in found.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--base", required=True, help="folder of cifar_teacher.py")
    parser.add_argument("--out", default="saved_models/quantize_cifar")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--peak", type=float, default=0.005)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    args = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    ground, records = Ground(args), []
    for way, target, seed in todo(args.seeds):
        if target not in args.targets and way not in ("float", "longer"):
            continue
        path = out / f"{way}-{target}-s{seed}"
        record = path.with_suffix(".json")
        if not record.exists():
            made = run(way, target, ground, seed, path)
            tfkd.artifacts.write_json(record, made)
            found = {k: round(v["accuracy"], 2) for k, v in made["files"].items()}
            print(f"{path.name}: {found} in {made['minutes']:.1f} min", flush=True)
        records.append(json.loads(record.read_text()))
    text = table(records) + "\n" + latency(out)
    tfkd.artifacts.write_text(out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
