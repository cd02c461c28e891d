"""Overhead of curriculum learning: scoring the examples, and making the batches.

    python benchmarks/curriculum_cost.py [--rounds 11] [--json curriculum_cost.json]
    taskset -c 0 python benchmarks/curriculum_cost.py --rounds 3 --images 1000 --threads 1

All variants live in one process and take turns; figures are ratios of medians. Images
are random, 32×32×3 of uint8; what they show does not change the time.

Scoring, a pass of ResNet-56 over --images:
  bare          a loop over batches through one traced function, outputs thrown away
  scorer        the same examples scored, function traced before (scores that are renewed)
  bare, fresh   the loop with a function that is traced anew
  teacher_loss  the public function: fingerprint, tracing, scores

Batches, ResNet-20, batch 128, shift and flip, of 50,000 images in memory:
  step, batches     a training step fed by tfkd.data.batches
  step, curriculum  the same fed by Curriculum.batches, with a pace that grows
  batches           the pipeline alone, a batch
  curriculum        the same
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfkd
from tfkd import schedules
from tfkd.curriculum import Curriculum, difficulty
from tfkd.curriculum.scoring import Scorer

BATCH = 128
PULLED = 20  # batches of a pipeline alone for one step: more than it has made ahead

Turn = tuple[Callable[[], None], int]  # what is timed, and how many units it makes


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return x, rng.integers(0, 10, count).astype("int32")


def scale(batch):
    import tensorflow as tf

    return tf.cast(batch, tf.float32) / 255.0


def scoring(count: int, depth: int) -> dict[str, Turn]:
    """Variants of one pass over `count` images, each a function to be timed."""
    import tensorflow as tf

    teacher = tfkd.models.resnet(depth)
    x, y = images(count)
    labels = y.astype(np.int64)
    spec = [tf.TensorSpec((None, 32, 32, 3), tf.uint8)]

    def forward():
        return tf.function(lambda b: teacher(scale(b), training=False), input_signature=spec)

    def loop(function):
        for start in range(0, count, 256):
            function(tf.constant(x[start : start + 256])).numpy()

    traced, scorer = forward(), Scorer("teacher", teacher, difficulty._crossentropy, scale)

    def score():
        difficulty.teacher_loss(teacher, x, y, preprocess=scale, progress=False)

    return {
        "bare": (lambda: loop(traced), 1),
        "scorer": (lambda: scorer(x, labels, 256, False), 1),
        "bare, fresh": (lambda: loop(forward()), 1),
        "teacher_loss": (score, 1),
    }


def feeding(count: int, depth: int, steps: int) -> dict[str, Turn]:
    """Training steps fed in two ways, `steps` a turn; and the two pipelines alone."""
    x, y = images(count)
    more = {"augment": tfkd.data.shift_and_flip(4), "preprocess": scale}
    pace = schedules.Linear(0.3, 1.0, end_step=10_000)
    curriculum = Curriculum(
        (x, y), np.random.default_rng(1).normal(size=count), pace, BATCH, **more
    )
    datasets = {
        "batches": lambda: tfkd.data.batches(x, y, BATCH, **more),
        "curriculum": curriculum.batches,
    }
    variants: dict[str, Turn] = {}
    for name, dataset in datasets.items():
        variants[f"step, {name}"] = (step_of(depth, iter(dataset()), steps), steps)
    for name, dataset in datasets.items():
        pulled = PULLED * steps
        variants[name] = (pull_of(iter(dataset()), pulled), pulled)
    return variants


def step_of(depth: int, iterator, steps: int) -> Callable[[], None]:
    import tensorflow as tf
    import tf_keras as keras

    model = tfkd.models.resnet(depth)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, 0.9), loss)
    function = model.make_train_function()

    def turn():
        for _ in range(steps):
            float(tf.nest.flatten(function(iterator))[0])  # reading waits for the step

    return turn


def pull_of(iterator, steps: int) -> Callable[[], None]:
    def turn():
        for _ in range(steps):
            next(iterator)

    return turn


def measure(variants: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a unit of each variant: every round gives each its turn."""
    for turn, _ in variants.values():
        turn()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, (turn, units) in variants.items():
            began = time.perf_counter()
            turn()
            times[name].append((time.perf_counter() - began) / units * 1e3)
    return times


def show(title: str, times: dict[str, list[float]]) -> dict[str, float]:
    print(f"| {title} | ms (median) | min | max |\n|---|---:|---:|---:|")
    ms = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"| {name} | {ms[name]:.2f} | {min(values):.2f} | {max(values):.2f} |")
    print(flush=True)
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=5_000, help="scored in one pass")
    parser.add_argument("--pool", type=int, default=50_000, help="images that batches are of")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--teacher-depth", type=int, default=56)
    parser.add_argument("--student-depth", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--json")
    args = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    passes = measure(scoring(args.images, args.teacher_depth), args.rounds)
    ms = show(f"a pass over {args.images:,} images", passes)
    fed = measure(feeding(args.pool, args.student_depth, args.steps), args.rounds)
    ms |= show(f"a batch of {BATCH}", fed)
    step = ms["step, batches"]
    ratios = {
        "scorer / bare pass": ms["scorer"] / ms["bare"],
        "teacher_loss / bare pass, both traced anew": ms["teacher_loss"] / ms["bare, fresh"],
        "teacher_loss / bare pass": ms["teacher_loss"] / ms["bare"],
        "step by curriculum / step by batches": ms["step, curriculum"] / step,
        "curriculum's pipeline alone / step": ms["curriculum"] / step,
        "batches' pipeline alone / step": ms["batches"] / step,
        "the two pipelines' difference / step": (ms["curriculum"] - ms["batches"]) / step,
    }
    for label, ratio in ratios.items():
        print(f"{label}: {ratio:.3f}")
    if args.json:
        record = {"ms": ms, "ratios": ratios, "times": passes | fed, "settings": vars(args)}
        tfkd.artifacts.write_json(args.json, record)


if __name__ == "__main__":
    main()
