"""Cost and savings of a teacher cache: time, disk space, memory.

    python benchmarks/teacher_cache.py step bytes memory build

step    A training step of the student alone, with the live teacher, and with the cache, each
        fed by its own pipeline (shuffled, gathered, from the cache looked up); all in turns
        in one process, medians. Pairs: ResNet-56 to ResNet-20 on 32×32×3 images, batch 128;
        a transformer of four layers to its quarter, and to a mean of word vectors, on
        48 tokens, batch 64. Then the weights after 20 steps, cached in float32 against live.
bytes   On disk for an example: logits of 10 and 1,000 classes, the best 20, features.
memory  Of a process that trains for 300 steps from a cache of 10^4, 10^5 and 10^6 examples
        beyond one that runs the same steps without it.
build   The pass over the data against `model.predict` of the same.

Random data and weights: what is measured does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import harness

WHAT = ("step", "bytes", "memory", "build")


def parse() -> Any:
    parser = harness.Parser(
        __doc__, rounds=1, pairs=["transformer to word vectors"], examples=[1000], depth=8,
        images=256, steps=40,
    )  # fmt: skip
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WHAT)}; all by default")
    parser.add_argument("--rounds", type=int, default=12, help="turns of each variant")
    parser.add_argument("--pairs", nargs="+", help="of the names in the table; all by default")
    millions = [10_000, 100_000, 1_000_000]
    parser.add_argument("--examples", type=int, nargs="+", default=millions, help="for memory")
    parser.add_argument("--steps", type=int, default=300, help="for memory")
    parser.add_argument("--depth", type=int, default=56, help="of the ResNet, for build")
    parser.add_argument("--images", type=int, default=2048, help="for build")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.what = args.what or WHAT
    if not set(args.what) <= set(WHAT):
        parser.error(f"what: expected of {', '.join(WHAT)}, received {' '.join(args.what)}")
    return args


if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = parse()

import tfkd  # before TensorFlow: it asks for Keras 2

# isort: split
import numpy as np
import tf_keras as keras

from tfkd import losses, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TOKENS, WORDS = 48, 14_000


def images(count: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 32, 32, 3)).astype("float32"), rng.integers(0, 10, count)


def texts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(1, WORDS, (2048, TOKENS)).astype("int32")
    for row, length in zip(x, rng.integers(4, TOKENS + 1, len(x)), strict=True):
        row[length:] = 0
    return x, rng.integers(0, 2, 2048)


def teacher_of_images(depth: int = 56) -> keras.Model:
    """With statistics of the images: else random weights give scores beyond float16."""
    keras.utils.set_random_seed(0)
    model = models.resnet(depth)
    tfkd.pruning.recalibrate(model, images()[0][:256])
    return model


def transformer(layers: int) -> keras.Model:
    return models.text_transformer(WORDS, 2, TOKENS, layers=layers, width=128, dropout=0.0)


def mlp() -> keras.Model:
    return models.text_mlp(WORDS, 2, TOKENS, width=32, hidden=(64,))


# Name → data, teacher, student, batch.
PAIRS: dict[str, tuple[Callable, Callable, Callable, int]] = {
    "ResNet-56 to ResNet-20": (images, teacher_of_images, lambda: models.resnet(20), 128),
    "transformer, 4 layers to 1": (texts, lambda: transformer(4), lambda: transformer(1), 64),
    "transformer to word vectors": (texts, lambda: transformer(4), mlp, 64),
}


def stepper(model: Any, dataset: Any) -> Callable[[], float]:
    """A function that makes one step and waits for it."""
    model.compile(keras.optimizers.SGD(0.01, 0.9), LOSS)
    function, batches = model.make_train_function(), iter(dataset)

    def step() -> float:
        return float(next(iter(function(batches).values())))

    return step


def variants(name: str, folder: str) -> dict[str, Callable[[], float]]:
    make, teacher_of, student_of, batch = PAIRS[name]
    (x, y), teacher = make(), teacher_of()
    soft = losses.LogitsDistillation(4.0)
    cache = tfkd.TeacherCache.build(folder, teacher, x, progress=False)
    plain = {"outputs": False}
    return {
        "student alone": stepper(student_of(), cache.batches(x, y, batch, **plain)),
        "live teacher": stepper(
            tfkd.Distiller(teacher, student_of(), soft), cache.batches(x, y, batch, **plain)
        ),
        "cached": stepper(tfkd.Distiller(cache, student_of(), soft), cache.batches(x, y, batch)),
    }


def difference(name: str, folder: str) -> float:
    """Largest relative difference of a weight after 20 steps, cached in float32 and live."""
    make, teacher_of, student_of, batch = PAIRS[name]
    (x, y), teacher = make(), teacher_of()
    cache = tfkd.TeacherCache.build(folder, teacher, x, dtype="float32", progress=False)
    first = student_of().get_weights()
    weights = []
    for one, outputs in ((cache, True), (teacher, False)):
        student = student_of()
        student.set_weights(first)
        distiller = tfkd.Distiller(one, student, losses.LogitsDistillation(4.0))
        distiller.compile(keras.optimizers.SGD(0.01, 0.9), LOSS)
        batches = cache.batches(x, y, batch, outputs=outputs)
        distiller.fit(batches, steps_per_epoch=20, verbose=0)
        weights.append(student.get_weights())
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*weights, strict=True))


def step(args: Any) -> str:
    rows = []
    for name in args.pairs or PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            each = 3 if "ResNet" in name else 10
            times = harness.in_turns(variants(name, folder), args.rounds, each, warmup=3)
        ms = harness.medians(times)
        ratios = (ms["cached"] / ms["student alone"], ms["live teacher"] / ms["cached"])
        with tempfile.TemporaryDirectory() as folder:
            off = difference(name, folder)
        shown = [f"{value:.1f}" for value in ms.values()] + [f"{ratio:.3f}" for ratio in ratios]
        rows.append([name, *shown, f"{off:.2g}"])
    head = ["pair", "student alone, ms", "live teacher, ms", "cached, ms", "cached / alone"]
    return harness.table([*head, "live / cached", "weights differ by"], rows)


def measure_bytes(args: Any) -> str:
    rng, rows = np.random.default_rng(0), []

    def row(name: str, **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = tfkd.TeacherCache.from_predictions(folder, source="random", **options)
            rows.append([name, f"{cache.bytes_per_example:,}"])

    for classes in (10, 1000):
        for dtype in ("float16", "float32"):
            z = rng.normal(size=(8, classes))
            row(f"{classes:,} logits, {dtype}", outputs=z, dtype=dtype)
    x = rng.normal(size=(8, 4)).astype("float32")
    wide = keras.Sequential([keras.layers.Dense(1000, input_shape=(4,))])
    with tempfile.TemporaryDirectory() as folder:
        cache = tfkd.TeacherCache.build(folder, wide, x, top_k=20, temperature=4.0, progress=False)
        rows.append(["best 20 of 1,000 and the rest, float16", f"{cache.bytes_per_example:,}"])
    features = rng.normal(size=(8, 8, 8, 64))
    z = rng.normal(size=(8, 10))
    row("10 logits and 8×8×64 features, float16", outputs=z, layers={"stage3": features})
    row("10 logits in 4 views, float16", outputs=rng.normal(size=(8, 4, 10)), views=4)
    return harness.table(["stored", "bytes an example"], rows)


def child(count: int, outputs: bool, steps: int) -> None:
    """Trains from a cache of so many examples; prints memory in MiB after 20 and all steps."""
    rng = np.random.default_rng(0)
    x = np.arange(count, dtype="int32")[:, None]
    with tempfile.TemporaryDirectory() as folder:
        z = rng.normal(size=(count, 10)).astype("float16")
        tfkd.TeacherCache.from_predictions(folder, z, x, source="random")
        del z
        cache = tfkd.TeacherCache(folder)
        student = keras.Sequential(
            [keras.layers.Lambda(lambda t: t / count, input_shape=(1,)), keras.layers.Dense(10)]
        )
        model = tfkd.Distiller(
            cache if outputs else student_like(), student, [losses.LogitsDistillation(4.0)]
        )
        model.compile("sgd", LOSS)
        y = np.zeros(count, "int32")
        batches = iter(cache.batches(x, y, 128, outputs=outputs))
        function = model.make_train_function()
        found = {}
        for number in range(1, steps + 1):
            function(batches)
            if number in (20, steps):
                found["last" if number == steps else "first"] = memory()
    print("RESULT" + json.dumps(found))


def student_like() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(10, input_shape=(1,))])


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB, and what of it is no mapped file."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon")}


def measure_memory(args: Any) -> str:
    rows = []
    for count in args.examples:
        found = {}
        for outputs in ("with", "without"):
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(count), outputs]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[outputs] = json.loads(done.stdout.split("RESULT")[1])
        more = found["with"]["last"]["VmRSS"] - found["without"]["last"]["VmRSS"]
        growth = [f["last"]["VmRSS"] - f["first"]["VmRSS"] for f in found.values()]
        shown = [f"{value:+.1f} MiB" for value in (more, *growth)]
        rows.append([f"{count:,}", f"{36 * count / 1e6:.1f} MB", *shown])
    head = ["examples", "on disk", "memory beyond the same run without the cache"]
    return harness.table([*head, f"growth over {args.steps - 20} steps", "without"], rows)


def measure_build(args: Any) -> str:
    (x, _), teacher = images(args.images), teacher_of_images(args.depth)

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            tfkd.TeacherCache.build(folder, teacher, x, progress=False)

    jobs = {"predict": lambda: teacher.predict(x, batch_size=256, verbose=0), "build": build}
    ms = harness.medians(harness.in_turns(jobs, args.rounds))
    row = [f"ResNet-{args.depth}", len(x), *(f"{v / 1e3:.2f}" for v in ms.values())]
    ratio = f"{ms['build'] / ms['predict']:.2f}"
    head = ["teacher", "images", "predict, s", "build, s", "build / predict"]
    return harness.table(head, [[*row, ratio]])


def main() -> None:
    if ARGS.child:
        return child(int(ARGS.child[0]), ARGS.child[1] == "with", ARGS.steps)
    measures = dict(zip(WHAT, (step, measure_bytes, measure_memory, measure_build), strict=True))
    harness.show(ARGS, "\n".join(measures[what](ARGS) for what in ARGS.what))


if __name__ == "__main__":
    main()
