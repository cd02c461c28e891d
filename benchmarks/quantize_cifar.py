"""int8 on CIFAR-10: after training, quantization-aware, and with the float model as teacher.

    python benchmarks/quantize_cifar.py --data cifar10.npz --base saved_models/base
    python benchmarks/quantize_cifar.py --data cifar10.npz --network mobile --images 10000

Starts from a ResNet that `cifar_teacher.py` has trained (--base), or from the network of
mobile_net.py, which it trains itself, anew for each seed. The ways to its int8 file,
for TFLite, for TensorRT and for both:

    float      the network as it is
    longer     trained on in float for as many epochs as the aware ones
    after      ranges from 512 training images, weights as they are (after training)
    aware      the same, then trained on with rounding and clipping in the forward pass
    aware-skd  the same, with the float network as the teacher

Accuracy is that of the file, run in LiteRT or in ONNX Runtime on all test images, at
the last epoch; beside it, how far it is from the float network of the same seed. Every
file's size; the time of one image in LiteRT on one thread, the files in turns (--rounds 0:
not measured). Each finished run is a record in --out and is not made again.
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

    def __init__(self, args: Any, store: harness.Records):
        x_train, y_train, x_test, y_test, self.scale = load(args.data)
        data = tfkd.data.Dataset(x_train, y_train, x_test, y_test)
        self.data = data.subset(train=args.images)
        self.x_test = np.asarray(self.scale(x_test))
        # Ranges from images that are spread over the classes, as the training images are.
        count = min(CALIBRATION, len(self.data.x_train))
        chosen = np.random.default_rng(0).choice(len(self.data.x_train), count, False)
        self.calibration = np.asarray(self.scale(self.data.x_train[chosen]))
        self.args, self.store = args, store

    def model(self, seed: int) -> Any:
        """The trained network, anew."""
        if self.args.network == "resnet":
            return load_base(self.args.base)[0]
        return trained_mobile(self, seed)


def train_mobile(ground: Ground, seed: int, path: pathlib.Path) -> Record:
    """Trains the network of mobile_net.py, and writes its weights."""
    import mobile_net
    import tf_keras as keras

    keras.utils.set_random_seed(seed)
    model = mobile_net.build()
    train(model, ground, seed, ground.args.base_epochs, ground.args.base_peak)
    model.save_weights(str(path))
    return {"seed": seed}


def trained_mobile(ground: Ground, seed: int) -> Any:
    """The network of a seed, trained if that has no record yet."""
    import mobile_net

    keys = ("network", "images", "base_epochs", "base_peak")
    made = {**{key: getattr(ground.args, key) for key in keys}, "seed": seed}
    name, store = f"base-{seed}", ground.store
    path = store.path(name, made).with_suffix(".weights.h5")
    store.run(name, made, functools.partial(train_mobile, ground, seed, path))
    model = mobile_net.build()
    model.load_weights(str(store.file(name, made).with_suffix(".weights.h5")))
    return model


def train(
    model: Any, ground: Ground, seed: int, epochs: int, peak: float, teacher: Any = None
) -> float:
    """Trains with one cosine cycle; returns seconds a step."""
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
    trained.compile(cosine_sgd(steps * epochs, peak), loss)
    began = time.perf_counter()
    trained.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)
    return (time.perf_counter() - began) / (steps * epochs)


def make(way: str, target: str, ground: Ground, seed: int) -> tuple[Any, float | None]:
    """(the model of one run, seconds a training step)."""
    model, how = ground.model(seed), (seed, ground.args.epochs, ground.args.peak)
    if way == "float":
        return model, None
    if way == "longer":
        return model, train(model, ground, *how)
    quantized = tfkd.quantization.quantize(model, target=target, freeze_batch_norm=False)
    tfkd.quantization.calibrate(quantized, ground.calibration)
    if way == "after":
        return quantized, None
    teacher = tfkd.frozen_copy(model) if way == "aware-skd" else None
    return quantized, train(quantized, ground, *how, teacher)


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


def todo(args: Any) -> list[tuple[str, str, int]]:
    """(way, target, seed) of all runs, the first seed of every one first."""
    found = []
    for seed in range(args.seeds):
        if seed == 0 or args.network == "mobile":  # there is one ResNet, of --base
            found.append(("float", "both", seed))
            found += [("after", target, seed) for target in args.targets]
        found.append(("longer", "both", seed))
        found += [(way, target, seed) for way in WAYS[3:] for target in args.targets]
    return found


def table(records: list[Record]) -> str:
    """Accuracy, size and agreement for each way, target and kind of file."""
    rows = []
    floats = {r["seed"]: r["files"] for r in records if r["way"] == "float"}
    for way, target in dict.fromkeys((r["way"], r["target"]) for r in records):
        mine = [r for r in records if (r["way"], r["target"]) == (way, target)]
        for kind in mine[0]["files"]:
            found = [r["files"][kind] for r in mine]
            accuracies = [one["accuracy"] for one in found]
            # There may be one float network for all seeds.
            bases = [floats.get(r["seed"], floats.get(0)) for r in mine]
            gains = [a - b[kind]["accuracy"] for a, b in zip(accuracies, bases, strict=True) if b]
            steps = [r["step_seconds"] for r in mine if r["step_seconds"]]
            cells = [
                way,
                target if way not in ("float", "longer") else "–",
                kind,
                f"{harness.spread(accuracies)} ({len(found)})",
                "" if way == "float" else harness.spread(gains),
                f"{np.mean([one['bytes'] for one in found]) / 1024:.0f}",
                f"{min(one['argmax_agreement'] for one in found):.3f}",
                f"{np.median(steps):.3f}" if steps else "–",
            ]
            rows.append(cells)
    head = ["way", "quantized for", "file", "accuracy % (seeds)", "minus float, by seed", "KiB"]
    return harness.table([*head, "agrees with Keras", "seconds a step"], rows, left=3)


def accuracies_of(record: Record) -> Record:
    """A record without the other figures of its files."""
    found = {kind: one["accuracy"] for kind, one in record["files"].items()}
    return {**{key: record[key] for key in ("way", "target", "seed")}, "accuracy": found}


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
        base_epochs=1,
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    nets = ("resnet", "mobile")
    parser.add_argument("--network", choices=nets, default="resnet", help="of --base or its own")
    parser.add_argument("--base", help="folder of cifar_teacher.py, for the ResNet")
    parser.add_argument("--base-epochs", type=int, default=25, help="passes of the mobile network")
    parser.add_argument("--base-peak", type=float, default=0.1, help="of its learning rate")
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument("--epochs", type=int, default=3, help="passes where it trains")
    parser.add_argument("--peak", type=float, default=0.005, help="of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="of what trains")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="of files")
    parser.add_argument("--rounds", type=int, default=1000, help="runs of each file")
    args = parser.parse_args()
    if args.network == "resnet" and args.base is None:
        parser.error("--network resnet needs --base, a folder of cifar_teacher.py")
    digests = {}
    if not args.table:
        read = {"images": args.data, "base": args.base and weights_of(args.base)}
        digests = {name: harness.digest(path) for name, path in read.items() if path}
    store, records, files = harness.Records(args, **digests), [], {}
    store.folder.mkdir(parents=True, exist_ok=True)
    harness.threads(args.threads)
    ground = None if args.table else Ground(args, store)
    for way, target, seed in todo(args):
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
    text = table(records) + "\n" + (latency(files, args.rounds) if files and args.rounds else "")
    tfkd.artifacts.write_text(store.folder / "table.md", text)
    harness.show(args, text, accuracies=[accuracies_of(record) for record in records])


if __name__ == "__main__":
    main()
