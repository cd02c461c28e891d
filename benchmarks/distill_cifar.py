"""A student on CIFAR-10 alone, distilled from a live teacher, and from a cached one.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/narrow \
        --widths 8 16 32 --depth 20 --images 8000 --epochs 40 --policy float32
    python benchmarks/distill_cifar.py --data cifar10.npz --teacher saved_models/narrow

The arms:

    alone       labels only
    distilled   the teacher runs in every step, on freshly augmented images
    bfloat16    the same, with a folded copy of the teacher in bfloat16
    cached      a TeacherCache of --views augmented versions of each image
    top-k       the same cache with the --top-k highest of the ten scores
    all-views   a cache of as many versions as there are epochs: none comes twice

Every arm sees the same images in the same order, has the same initial weights for a
seed, and makes the same number of steps. Arms without a cache see the same augmented
images, and arms with one those of the cache. Accuracy is that of the last epoch on all
test images, or on training images that are held out, on which settings are chosen.
Each finished run is a record in --out, and is not made again.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any, NamedTuple

import harness
import made_up
from cifar_teacher import BATCH, accuracy_of, cosine_sgd, load_base, part_of, weights_of

import tfkd

ARMS = {
    "alone": "alone",
    "distilled": "distilled, fresh augmentation",
    "bfloat16": "distilled, bfloat16 teacher",
    "cached": "cached, {views} views, all scores",
    "top-k": "cached, {views} views, top {top_k} scores",
    "all-views": "cached, {epochs} views, all scores",
}
PAIRS = [("distilled", "alone"), ("bfloat16", "distilled"), ("cached", "distilled")]
PAIRS += [("all-views", "distilled"), ("cached", "alone"), ("top-k", "cached"), ("top-k", "alone")]


class Given(NamedTuple):
    """What all runs have in common."""

    data: Any
    scale: Any
    teacher: Any
    teacher_accuracy: float


def cache_of(arm, args, given, folder, options):
    """The teacher's outputs on disk, as an arm reads them."""
    views = args.epochs if arm == "all-views" else args.views
    few = {"top_k": args.top_k, "temperature": args.temperature} if arm == "top-k" else {}
    options = {**options, **few, "views": views, "progress": False}
    return tfkd.TeacherCache.build(folder, given.teacher, given.data.x_train, **options)


def train(arm, seed, args, given):
    """One run: returns its record."""
    import tf_keras as keras

    data, scale, teacher = given.data, given.scale, given.teacher
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    student = tfkd.models.resnet(args.depth, widths=args.widths, weight_decay=5e-4)
    steps = tfkd.data.steps_per_epoch(len(data.x_train), BATCH)
    options = {"seed": seed, "augment": tfkd.data.shift_and_flip(4), "preprocess": scale}
    with tempfile.TemporaryDirectory() as folder:
        feed = tfkd.data
        if arm == "bfloat16":
            teacher = tfkd.frozen_copy(teacher, dtype="bfloat16", fold_batch_norm=True)
        elif arm in ("cached", "top-k", "all-views"):
            teacher = feed = cache_of(arm, args, given, folder, options)
        model = student
        if arm != "alone":
            loss = tfkd.losses.LogitsDistillation(args.temperature)
            weight = args.student_loss_weight
            model = tfkd.Distiller(teacher, student, loss, student_loss_weight=weight)
        model.compile(
            cosine_sgd(steps * args.epochs, args.peak),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        batches = feed.batches(data.x_train, data.y_train, BATCH, **options)
        history = model.fit(batches, steps_per_epoch=steps, epochs=args.epochs, verbose=0)
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": 100 * accuracy_of(student, data, scale),
        "teacher_accuracy": given.teacher_accuracy,
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
    }


def tables(records, args, made):
    """Accuracy of each arm, and the differences between pairs of arms, seed by seed."""
    found = {arm: {} for arm in ARMS}
    for record in records:
        found[record["arm"]][record["seed"]] = record["accuracy"]
    where = f"{args.held_out:,} held-out" if args.held_out else "all test"
    head = [f"CIFAR-10, {args.images:,} training images", f"accuracy % on {where} images", "seeds"]
    about = f"teacher ResNet-{made['depth']} {tuple(made['widths'])}, {made['epochs']} epochs"
    about += f" of {made.get('images', 0):,} images"
    rows = [[about, *([f"{records[0]['teacher_accuracy']:.2f}", "one"] if records else "––")]]
    student = f"student ResNet-{args.depth} {tuple(args.widths)}, {args.epochs} epochs"
    for arm, by_seed in found.items():
        what, values = ARMS[arm].format(**vars(args)), list(by_seed.values())
        if values:
            line = ", ".join(f"{value:.2f}" for value in values)
            rows.append([f"{student}: {what}", harness.spread(values), line])
    gaps = []
    for one, other in PAIRS:
        both = [found[one][seed] - found[other][seed] for seed in found[one].keys() & found[other]]
        if both:
            gaps.append([f"{one} minus {other}", harness.spread(both)])
    text = harness.table(head, rows)
    return text + ("\n" + harness.table(["seed by seed", "points"], gaps) if gaps else "")


def main():
    parser = harness.Parser(
        __doc__, "saved_models/distill_cifar", data=made_up.cifar, teacher=made_up.base,
        images=256, epochs=2, seeds=1, widths=[4], views=2, arms=["alone", "distilled", "top-k"],
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--teacher", default="saved_models/narrow", help="its folder")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="of all")
    parser.add_argument("--depth", type=int, default=8, help="of the student, a ResNet")
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32], help="of its stages")
    parser.add_argument("--epochs", type=int, default=15, help="passes of a student")
    parser.add_argument("--seeds", type=int, default=3, help="students of each arm")
    parser.add_argument("--images", type=int, default=8_000, help="training images")
    parser.add_argument("--held-out", type=int, default=0, help="score on so many training images")
    parser.add_argument("--peak", type=float, default=0.1, help="of the learning rate")
    parser.add_argument("--temperature", type=float, default=4.0, help="of the soft targets")
    parser.add_argument("--student-loss-weight", type=float, default=0.1, help="of the labels")
    parser.add_argument("--views", type=int, default=4, help="of each image in a cache")
    parser.add_argument("--top-k", type=int, default=3, help="scores in a cache of some")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    if not args.data and not args.table:
        parser.error("--data is needed to train")
    harness.threads(args.threads)
    (teacher, made), given, digests = load_base(args.teacher), None, {}
    if not args.table:
        data, scale = part_of(args.data, args.images, args.held_out)
        given = Given(data, scale, teacher, 100 * accuracy_of(teacher, data, scale))
        digests = {
            "images": harness.digest(args.data),
            "teacher": harness.digest(weights_of(args.teacher)),
        }
    store, records = harness.Records(args, **digests), []
    for seed in range(args.seeds):
        for arm in args.arms:
            run = {**harness.settings(args, "seeds", "arms", "teacher"), "arm": arm, "seed": seed}
            make = functools.partial(train, arm, seed, args, given)
            if record := store.run(f"{arm}-{seed}", run, make):
                records.append(record)
    brief = [{k: v for k, v in record.items() if k != "history"} for record in records]
    harness.show(args, tables(records, args, made), runs=brief)


if __name__ == "__main__":
    main()
