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
files in turns. Each finished run is a record in --out and is not made again.
"""

from __future__ import annotations

import functools
import pathlib
import time
from typing import Any

import harness
import made_up
import numpy as np
from cifar_teacher import BATCH, cosine_sgd, load, load_base, weights_of

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
        count = min(CALIBRATION, len(self.data.x_train))
        chosen = np.random.default_rng(0).choice(len(self.data.x_train), count, False)
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
    model, step = make(way, target, ground, seed)
    files = export(model, target, path, ground.x_test)
    for kind, numbers in files.items():
        file = path.with_suffix("." + kind)
        numbers["accuracy"] = accuracy(file, ground.x_test, ground.data.y_test)
    return {"way": way, "target": target, "seed": seed, "step_seconds": step, "files": files}


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
    rows = []
    for way, target in dict.fromkeys((r["way"], r["target"]) for r in records):
        mine = [r for r in records if (r["way"], r["target"]) == (way, target)]
        for kind in mine[0]["files"]:
            found = [r["files"][kind] for r in mine]
            accuracies = [one["accuracy"] for one in found]
            steps = [r["step_seconds"] for r in mine if r["step_seconds"]]
            cells = [
                way,
                target if way not in ("float", "longer") else "–",
                kind,
                f"{harness.spread(accuracies)} ({len(found)})",
                f"{np.mean([one['bytes'] for one in found]) / 1024:.0f}",
                f"{min(one['argmax_agreement'] for one in found):.3f}",
                f"{np.median(steps):.3f}" if steps else "–",
            ]
            rows.append(cells)
    head = ["way", "quantized for", "file", "accuracy %", "KiB", "agrees with Keras"]
    return harness.table([*head, "seconds a step"], rows)


def latency(files: dict[str, pathlib.Path], rounds: int) -> str:
    """Times of TFLite files, in turns on one thread; the first is what others are faster than."""
    runners, x = {}, np.zeros((1, 32, 32, 3), "float32")
    for name, path in files.items():
        predictor = tfkd.runtime.Predictor(path)
        codes = predictor.inputs[0].encode(x)
        runners[name] = functools.partial(predictor.run_one, codes)
    found = harness.medians(harness.in_turns(runners, rounds, warmup=10))
    base = next(iter(found.values()))
    rows = [[name, f"{ms:.3f}", f"{base / ms:.2f}"] for name, ms in found.items()]
    return harness.table(["file", "ms (median)", "times faster"], rows)


def main() -> None:
    parser = harness.Parser(
        __doc__, "saved_models/quantize_cifar", data=made_up.cifar, base=made_up.base, images=256,
        epochs=1, seeds=1, targets=["tflite", "both"], rounds=10,
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--base", required=True, help="folder of cifar_teacher.py")
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, default=3, help="passes where it trains")
    parser.add_argument("--peak", type=float, default=0.005, help="of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="of what trains")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="of files")
    parser.add_argument("--rounds", type=int, default=1000, help="runs of each file")
    args = parser.parse_args()
    ground, digests = None, {}
    if not args.table:
        harness.threads(args.threads)
        ground = Ground(args)
        read = {"images": args.data, "base": weights_of(args.base)}
        digests = {name: harness.digest(path) for name, path in read.items()}
    store, records, files = harness.Records(args, **digests), [], {}
    store.folder.mkdir(parents=True, exist_ok=True)
    for way, target, seed in todo(args.seeds):
        if target not in args.targets and way not in ("float", "longer"):
            continue
        made = {**harness.settings(args, "base", "rounds", "seeds", "targets")}
        made |= {"way": way, "target": target, "seed": seed}
        name = f"{way}-{target}-{seed}"
        path = store.path(name, made).with_suffix("")
        record = store.run(name, made, functools.partial(run, way, target, ground, seed, path))
        if record:
            records.append(record)
            file = store.file(name, made).with_suffix(".tflite")
            if seed == 0 and file.exists():
                files[name] = file
    text = table(records) + "\n" + (latency(files, args.rounds) if files else "")
    tfkd.artifacts.write_text(store.folder / "table.md", text)
    harness.show(args, text, records=records)


if __name__ == "__main__":
    main()
