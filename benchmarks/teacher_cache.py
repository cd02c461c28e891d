"""Cost and savings of a teacher cache: time, disk space, memory.

    python benchmarks/teacher_cache.py step [--rounds 12]
    python benchmarks/teacher_cache.py bytes
    python benchmarks/teacher_cache.py memory
    python benchmarks/teacher_cache.py build

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
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfkd  # before TensorFlow: it asks for Keras 2

# isort: split
import numpy as np
import tf_keras as keras

from tfkd import losses, models

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TOKENS, WORDS = 48, 14_000


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2048, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 2048)


def texts() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(1, WORDS, (2048, TOKENS)).astype("int32")
    for row, length in zip(x, rng.integers(4, TOKENS + 1, len(x)), strict=True):
        row[length:] = 0
    return x, rng.integers(0, 2, 2048)


def teacher_of_images() -> keras.Model:
    """With statistics of the images: else random weights give scores beyond float16."""
    model = models.resnet(56)
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


def in_turns(steps: dict[str, Callable[[], float]], rounds: int, each: int) -> dict[str, list]:
    """Milliseconds of single steps; each round every variant makes a few."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for step in steps.values():
        for _ in range(3):
            step()
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            for _ in range(each):
                began = time.perf_counter()
                steps[name]()
                times[name].append(1000 * (time.perf_counter() - began))
    return times


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


def step(args: Any) -> None:
    print("| pair | student alone | live teacher | cached | cached / alone | live / cached |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in args.pairs or PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            each = 3 if "ResNet" in name else 10
            times = in_turns(variants(name, folder), args.rounds, each)
        ms = {key: statistics.median(values) for key, values in times.items()}
        ratios = (ms["cached"] / ms["student alone"], ms["live teacher"] / ms["cached"])
        shown = " | ".join([f"{value:.1f}" for value in ms.values()] + [f"{r:.3f}" for r in ratios])
        print(f"| {name} | {shown} |", flush=True)
    for name in args.pairs or PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: weights differ by {difference(name, folder):.2g} of the largest")


def measure_bytes(args: Any) -> None:
    rng = np.random.default_rng(0)
    print("| stored | bytes an example | 10^6 examples |")
    print("|---|---:|---:|")

    def row(name: str, **options: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = tfkd.TeacherCache.from_predictions(folder, source="random", **options)
            size = cache.bytes_per_example
            print(f"| {name} | {size:,} | {size:,} MB |")

    for classes in (10, 1000):
        for dtype in ("float16", "float32"):
            z = rng.normal(size=(8, classes))
            row(f"{classes:,} logits, {dtype}", outputs=z, dtype=dtype)
    x = rng.normal(size=(8, 4)).astype("float32")
    wide = keras.Sequential([keras.layers.Dense(1000, input_shape=(4,))])
    with tempfile.TemporaryDirectory() as folder:
        cache = tfkd.TeacherCache.build(folder, wide, x, top_k=20, temperature=4.0, progress=False)
        size = cache.bytes_per_example
        print(f"| best 20 of 1,000 and the rest, float16 | {size:,} | {size:,} MB |")
    features = rng.normal(size=(8, 8, 8, 64))
    z = rng.normal(size=(8, 10))
    row("10 logits and 8×8×64 features, float16", outputs=z, layers={"stage3": features})
    row("10 logits in 4 views, float16", outputs=rng.normal(size=(8, 4, 10)), views=4)


def child(count: int, outputs: bool) -> None:
    """Trains from a cache of so many examples; prints memory in MiB after 20 and 300 steps."""
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
        for number in range(1, 301):
            function(batches)
            if number in (20, 300):
                found[number] = memory()
    print("RESULT" + json.dumps(found))


def student_like() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(10, input_shape=(1,))])


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB, and what of it is no mapped file."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon")}


def measure_memory(args: Any) -> None:
    print("| examples | on disk | all memory, beyond without | growth over 280 steps | without |")
    print("|---:|---:|---:|---:|---:|")
    for count in (10_000, 100_000, 1_000_000):
        found = {}
        for outputs in ("with", "without"):
            command = [sys.executable, __file__, "child", str(count), outputs]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[outputs] = json.loads(done.stdout.split("RESULT")[1])
        more = found["with"]["300"]["VmRSS"] - found["without"]["300"]["VmRSS"]
        growth = [f["300"]["VmRSS"] - f["20"]["VmRSS"] for f in found.values()]
        print(
            f"| {count:,} | {36 * count / 1e6:.1f} MB | {more:+.1f} MiB | {growth[0]:+.1f} MiB | "
            f"{growth[1]:+.1f} MiB |",
            flush=True,
        )


def measure_build(args: Any) -> None:
    (x, _), teacher = images(), models.resnet(56)
    teacher.predict(x[:256], batch_size=256, verbose=0)
    times: dict[str, list[float]] = {"predict": [], "build": []}
    for _ in range(args.rounds):
        began = time.perf_counter()
        teacher.predict(x, batch_size=256, verbose=0)
        times["predict"].append(time.perf_counter() - began)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            tfkd.TeacherCache.build(folder, teacher, x, progress=False)
            times["build"].append(time.perf_counter() - began)
    a, b = (statistics.median(times[name]) for name in ("predict", "build"))
    print(f"ResNet-56 on {len(x)} images: predict {a:.2f} s, build {b:.2f} s, {b / a:.2f} times")


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), sys.argv[3] == "with")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "bytes", "memory", "build"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS))
    args = parser.parse_args()
    {"step": step, "bytes": measure_bytes, "memory": measure_memory, "build": measure_build}[
        args.what
    ](args)


if __name__ == "__main__":
    main()
