"""Overhead of curriculum learning: scoring the examples, and making the batches.

    python benchmarks/curriculum_cost.py --rounds 11 --json curriculum_cost.json
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

import functools
import statistics
from collections.abc import Callable

import harness
import numpy as np

import tfkd

BATCH = 128
PULLED = 20  # batches of a pipeline alone for one step: more than it has made ahead
Jobs = dict[str, Callable[[], object]]


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return x, rng.integers(0, 10, count).astype("int32")


def scale(batch):
    import tensorflow as tf

    return tf.cast(batch, tf.float32) / 255.0


def scoring(count: int, depth: int) -> Jobs:
    """Variants of one pass over `count` images, each a function to be timed."""
    import tensorflow as tf

    from tfkd.curriculum import difficulty
    from tfkd.curriculum.scoring import Scorer

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
        "bare": lambda: loop(traced),
        "scorer": lambda: scorer(x, labels, 256, False),
        "bare, fresh": lambda: loop(forward()),
        "teacher_loss": score,
    }


def feeding(count: int, depth: int) -> Jobs:
    """A training step fed in two ways; and the two pipelines alone."""
    x, y = images(count)
    more = {"augment": tfkd.data.shift_and_flip(4), "preprocess": scale}
    pace = tfkd.schedules.Linear(0.3, 1.0, end_step=10_000)
    curriculum = tfkd.curriculum.Curriculum(
        (x, y), np.random.default_rng(1).normal(size=count), pace, BATCH, **more
    )
    datasets = {
        "batches": lambda: tfkd.data.batches(x, y, BATCH, **more),
        "curriculum": curriculum.batches,
    }
    jobs: Jobs = {}
    for name, dataset in datasets.items():
        jobs[f"step, {name}"] = step_of(depth, iter(dataset()))
    for name, dataset in datasets.items():
        jobs[name] = functools.partial(next, iter(dataset()))
    return jobs


def step_of(depth: int, iterator) -> Callable[[], float]:
    import tensorflow as tf
    import tf_keras as keras

    model = tfkd.models.resnet(depth)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, 0.9), loss)
    function = model.make_train_function()
    return lambda: float(tf.nest.flatten(function(iterator))[0])  # reading waits for the step


def table(title: str, times: dict[str, list[float]]) -> str:
    found = {name: (statistics.median(t), min(t), max(t)) for name, t in times.items()}
    rows = [[name, *(f"{ms:.2f}" for ms in three)] for name, three in found.items()]
    return harness.table([title, "ms (median)", "min", "max"], rows) + "\n"


def main() -> None:
    parser = harness.Parser(
        __doc__, rounds=1, images=300, pool=500, steps=1, teacher_depth=8, student_depth=8
    )
    parser.add_argument("--rounds", type=int, default=11, help="turns of each variant")
    parser.add_argument("--images", type=int, default=5_000, help="scored in one pass")
    parser.add_argument("--pool", type=int, default=50_000, help="images that batches are of")
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--teacher-depth", type=int, default=56, help="of a ResNet")
    parser.add_argument("--student-depth", type=int, default=20, help="of a ResNet")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    harness.threads(args.threads)
    passes = harness.in_turns(scoring(args.images, args.teacher_depth), args.rounds)
    jobs = feeding(args.pool, args.student_depth)
    each = {name: args.steps * (1 if "step" in name else PULLED) for name in jobs}
    fed = harness.in_turns(jobs, args.rounds, each)
    ms = harness.medians(passes) | {
        # Of a pipeline the mean: most batches are there already, and some are waited for.
        name: statistics.median(times) if "step" in name else statistics.mean(times)
        for name, times in fed.items()
    }
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
    text = table(f"a pass over {args.images:,} images", passes) + table(f"a batch of {BATCH}", fed)
    text += harness.table(["ratio", ""], [[label, f"{r:.3f}"] for label, r in ratios.items()])
    harness.show(args, text, ms=ms, ratios=ratios)


if __name__ == "__main__":
    main()
