"""Students on CIFAR-10 that learn one teacher's scores by different losses.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/narrow8000 \
        --widths 8 16 32 --depth 20 --images 8000 --epochs 40 --policy float32
    python benchmarks/distill_losses.py --data cifar10.npz --teacher saved_models/narrow8000 \
        --tries --held-out 2000 --epochs 8 --seeds 1
    python benchmarks/distill_losses.py --data cifar10.npz --teacher saved_models/narrow8000

All students read the same batches in the same order: those of a TeacherCache with all scores
for --views versions of each image, one for every epoch, so that none comes twice. They are
kept in memory (1.5 GB by default). The seed is that of the initial weights, the same for all
losses; the number of steps is the same, too. A size may end in pixels, as in `8:8,16,32@16`:
the student starts with a mean over squares, and sees that many by as many.

--tries compares the settings of TRIES, as many for each loss, with the first student only;
to be used with --held-out, which scores training images that are held out. The first
setting of each loss is the one that was best there, and is used otherwise. Accuracy is that
of the last epoch on all test images, agreement the share of them for which the student has
the teacher's class. Each finished run is a record in --out, and is not made again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from typing import Any, NamedTuple

import harness
import made_up
import numpy as np
from cifar_teacher import (
    BATCH,
    WEIGHT_DECAY,
    classes_of,
    cosine_sgd,
    load_base,
    part_of,
    weights_of,
)

import tfkd

LOSSES = {
    "alone": ("labels alone", "LogitsDistillation"),
    "kd": ("soft targets", "LogitsDistillation"),
    "balanced": ("soft targets, balanced by gradient norm", "LogitsDistillation"),
    "standardized": ("soft targets, standardized", "LogitsDistillation"),
    "dkd": ("decoupled (DKD)", "DecoupledDistillation"),
    "dist": ("correlations (DIST)", "PearsonDistillation"),
    "ttm": ("transformed teacher (TTM)", "TransformedTeacherMatching"),
    "wttm": ("transformed teacher, weighted (WTTM)", "TransformedTeacherMatching"),
}
ALWAYS = {"standardized": {"standardize": True}, "ttm": {"weighted": False}}


class Setting(NamedTuple):
    """A Distiller's `student_loss_weight` and `distillation_loss_weights`, options of the loss."""

    labels: float
    weight: float
    options: dict[str, float]

    def __str__(self):
        options = [f"{name} {value:g}" for name, value in self.options.items()]
        return ", ".join([f"{self.labels:g} labels", f"{self.weight:g} × loss", *options])


TRIES = {
    "alone": [Setting(1, 0, {"temperature": 4})],  # at 1 no teacher runs
    "kd": [
        Setting(0.1, 3, {"temperature": 4}),
        Setting(0.1, 1, {"temperature": 4}),
        Setting(0.1, 1, {"temperature": 2}),
        Setting(0.1, 10, {"temperature": 4}),
    ],
    "balanced": [
        Setting(0.5, 2, {"temperature": 4}),
        Setting(0.5, 1, {"temperature": 4}),
        Setting(0.5, 4, {"temperature": 4}),
        Setting(0.5, 2, {"temperature": 2}),
    ],
    "standardized": [
        Setting(0.1, 30, {"temperature": 2}),
        Setting(0.1, 10, {"temperature": 2}),
        Setting(0.1, 3, {"temperature": 2}),
        Setting(0.1, 10, {"temperature": 1}),
    ],
    "dkd": [
        Setting(0.5, 3, {"temperature": 4, "beta": 2}),
        Setting(0.5, 1, {"temperature": 4, "beta": 2}),
        Setting(0.5, 1, {"temperature": 4, "beta": 8}),
        Setting(0.1, 1, {"temperature": 4, "beta": 2}),
    ],
    "dist": [
        Setting(0.5, 2, {"temperature": 4}),
        Setting(0.5, 2, {"temperature": 1}),
        Setting(0.1, 1, {"temperature": 1}),
        Setting(0.5, 6, {"temperature": 4}),
    ],
    "ttm": [
        Setting(0.1, 3, {"temperature": 2}),
        Setting(0.1, 1, {"temperature": 4}),
        Setting(0.1, 1, {"temperature": 2}),
        Setting(0.1, 3, {"temperature": 4}),
    ],
    "wttm": [
        Setting(0.1, 3, {"temperature": 2}),
        Setting(0.1, 1, {"temperature": 5}),
        Setting(0.1, 1, {"temperature": 2}),
        Setting(0.5, 1, {"temperature": 5}),
    ],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """What all runs have in common."""

    data: Any
    scale: Any
    teacher: Any
    classes: Any  # that the teacher gives to the test images


class Size(NamedTuple):
    """A student."""

    depth: int
    widths: tuple[int, ...]
    pixels: int = 32

    def __str__(self):
        small = f", {self.pixels} × {self.pixels} pixels" if self.pixels != 32 else ""
        return f"ResNet-{self.depth} {self.widths}{small}"

    @classmethod
    def read(cls, text):
        """Of depth, widths and perhaps pixels, as `8:8,16,32@16`."""
        text, _, pixels = text.partition("@")
        depth, widths = text.split(":")
        return cls(int(depth), tuple(map(int, widths.split(","))), int(pixels or 32))

    def made(self):
        import tf_keras as keras

        shape, options = (self.pixels, self.pixels, 3), {"weight_decay": WEIGHT_DECAY}
        net = tfkd.models.resnet(self.depth, input_shape=shape, widths=self.widths, **options)
        mean = keras.layers.AveragePooling2D(32 // self.pixels, input_shape=(32, 32, 3))
        return net if self.pixels == 32 else keras.Sequential([mean, net])


@functools.lru_cache(maxsize=1)
def scored(out, views, given):
    """A TeacherCache, kept in a folder, and its batches of `views` epochs, kept in memory."""
    x, y = given.data.x_train, given.data.y_train
    options = {"seed": 0, "augment": tfkd.data.shift_and_flip(4), "preprocess": given.scale}
    folder, keep = pathlib.Path(out) / "scores", {"overwrite": True, "progress": False}
    cache = tfkd.TeacherCache.build(folder, given.teacher, x, views=views, **options, **keep)
    batches = cache.batches(x, y, BATCH, epochs=views, **options).cache()
    for _ in batches:  # a cache is only used again when it was filled to its end
        pass
    return cache, batches


def train(loss, setting, size, seed, args, given):
    """One run: returns its record."""
    import tf_keras as keras

    data = given.data
    cache, batches = scored(args.out, args.views, given)
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    student, kind = size.made(), getattr(tfkd.losses, LOSSES[loss][1])
    objective = kind(**setting.options, **ALWAYS.get(loss, {}))
    model = tfkd.Distiller(cache, student, objective, setting.weight, setting.labels)
    steps = tfkd.data.steps_per_epoch(len(data.x_train), BATCH)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(cosine_sgd(steps * args.epochs, args.peak), labels)
    balance = [tfkd.callbacks.LossBalance(batches)] if loss == "balanced" else []
    fitted = model.fit(
        batches, steps_per_epoch=steps, epochs=args.epochs, verbose=0, callbacks=balance
    )
    factors = fitted.history.get("balance/logits_distillation")
    classes = classes_of(student, data, given.scale)
    return {
        "loss": loss,
        "setting": str(setting),
        "student": str(size),
        "seed": seed,
        "accuracy": 100 * float(np.mean(classes == data.y_test)),
        "agreement": 100 * float(np.mean(classes == given.classes)),
        "factors": factors,
        "teacher_accuracy": 100 * float(np.mean(given.classes == data.y_test)),
    }


def tables(records, args, made):
    """For each student accuracy and agreement, and the differences to soft targets by seed."""
    where = f"{args.held_out:,} held-out" if args.held_out else "all test"
    about = f"CIFAR-10, {args.images:,} training images, {args.epochs} epochs"
    head = [about, "setting", f"accuracy % on {where} images", "agreement %", "seeds"]
    teacher = f"teacher {Size(made['depth'], tuple(made['widths']))}, {made['epochs']} epochs"
    score = f"{records[0]['teacher_accuracy']:.2f}" if records else "–"
    rows, gaps, found = [[teacher, "", score, "", "one"]], [], {}
    for one in records:
        found.setdefault((one["student"], one["loss"], one["setting"]), []).append(one)
    soft = {(s, one["seed"]): one for (s, n, _), all_ in found.items() if n == "kd" for one in all_}
    for (student, loss, setting), all_ in found.items():
        accuracies, agreements = ([one[k] for one in all_] for k in ("accuracy", "agreement"))
        line = ", ".join(f"{value:.2f}" for value in accuracies)
        name = f"{student}: {LOSSES[loss][0]}"
        agreed = harness.spread(agreements, 1)
        rows.append([name, setting, harness.spread(accuracies), agreed, line])
        both = [
            one["accuracy"] - soft[student, one["seed"]]["accuracy"]
            for one in all_
            if (student, one["seed"]) in soft
        ]
        if loss != "kd" and both:
            line = ", ".join(f"{value:+.2f}" for value in both)
            gaps.append([name, harness.spread(both), line])
    text = harness.table(head, rows, 2)
    if gaps and not args.tries:
        text += "\n" + harness.table(["minus soft targets, seed by seed", "points", "seeds"], gaps)
    return text


def main():
    parser = harness.Parser(
        __doc__, "saved_models/distill_losses", data=made_up.cifar, teacher=made_up.base,
        images=256, epochs=2, views=2, seeds=1, students=[Size(8, (4,), 16)],
        losses=["alone", "kd", "balanced", "dist"],
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--teacher", default="saved_models/narrow8000", help="its folder")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="of all")
    sizes = [Size(8, (8, 16, 32), 16), Size(8, (8, 16), 16), Size(14, (8, 16, 32), 16)]
    parser.add_argument("--students", nargs="+", type=Size.read, default=sizes, help="their sizes")
    parser.add_argument("--tries", action="store_true", help="try settings, with one student")
    parser.add_argument("--epochs", type=int, default=15, help="passes of a student")
    parser.add_argument("--views", type=int, default=15, help="of each image in a cache")
    parser.add_argument("--seeds", type=int, default=3, help="students of each loss")
    parser.add_argument("--images", type=int, default=8_000, help="training images")
    parser.add_argument("--held-out", type=int, default=0, help="score on so many training images")
    parser.add_argument("--peak", type=float, default=0.1, help="of the learning rate")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    if not args.data and not args.table:
        parser.error("--data is needed to train")
    if args.epochs > args.views:
        parser.error("--views has to be at least --epochs: no version of an image comes twice")
    harness.threads(args.threads)
    (teacher, made), given, digests = load_base(args.teacher), None, {}
    if not args.table:
        data, scale = part_of(args.data, args.images, args.held_out)
        given = Given(data, scale, teacher, classes_of(teacher, data, scale))
        digests = {
            "images": harness.digest(args.data),
            "teacher": harness.digest(weights_of(args.teacher)),
        }
    store, records = harness.Records(args, **digests), []
    tried = [(n, one) for n in args.losses for one in TRIES[n][: None if args.tries else 1]]
    students = args.students[:1] if args.tries else args.students
    which = "seeds", "losses", "students", "teacher", "tries"
    for (loss, setting), seed, size in itertools.product(tried, range(args.seeds), students):
        run = {**harness.settings(args, *which), "seed": seed, "loss": loss, "student": str(size)}
        run["setting"] = str(setting)
        make = functools.partial(train, loss, setting, size, seed, args, given)
        if record := store.run(f"{loss}, {size}, {seed}", run, make):
            records.append(record)
    records.sort(key=lambda record: [*map(str, students)].index(record["student"]))
    harness.show(args, tables(records, args, made), runs=records)


if __name__ == "__main__":
    main()
