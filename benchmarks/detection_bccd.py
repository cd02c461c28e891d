"""SSD distillation on blood cells (BCCD), to a student a tenth of the teacher's size.

    python benchmarks/detection_bccd.py teacher --data bccd
    python benchmarks/detection_bccd.py students --data bccd
    python benchmarks/detection_bccd.py students --table
    python benchmarks/detection_bccd.py few --data bccd --teacher-epochs 25 --epochs 50

BCCD has 205 training images and 72 test images of red and white blood cells and
platelets, here at 160 x 160 pixels. mAP50 is that of COCO on the test images, at the
last epoch. The teacher has five stages of (24, 48, 96, 160, 192) channels, the student
(8, 12, 24, 40, 48); both have the same 1,050 priors. Every run of a student has the same
number of steps, one cosine cycle of Adam, and of a seed the same initial weights. Arms:

    alone             the labels, no teacher
    default           tfkd's weights of the four terms
    source            0.3 soft + 0.7 confidence + 0.5 bounded + 1 localization, background 1.5
    source, plain     the same with background weight 1
    chen              0.5 soft (T = 1, background 1.5) + 0.5 confidence + 0.5 bounded + 1
                      localization; "chen, hint" adds 0.5 of a hint on the third stage
    soft, bounded, hint   alone, and this term beside it, with weight 0.5; "soft 1" and so on
                      with that weight
    labels less       0.7 confidence + 1 localization and nothing else
    boxes             the teacher's boxes above 0.5 in the whole images, written once, in
                      place of all labels, and 0.5 soft; "boxes only" without the soft
                      targets; "boxes, in the step": found anew in every augmented batch
    40 alone          labels on 40 images, and only these, in as many steps as all others
    40 alone, short   the same for as many epochs: a fifth of the steps
    40, boxes         those, and the teacher's boxes on the other 165, and 0.5 soft
    10 alone; 10, boxes   the same with 10 images
    40, boxes only    "40, boxes" without the soft targets
    40, soft          the 40 images alone, their labels and 0.5 soft
    40, fitted        "40, boxes only" with a score threshold fitted for each class
    40, fitted, half  the same, and the 40 images are repeated until they are half of all
    40, ignored       "40, boxes only", and detections from 0.1 to 0.5 are ignored, neither
                      objects nor background; "40, fitted, ignored" has both
    40, fitted, soft  "40, boxes" with fitted thresholds
    10, boxes only; 10, fitted   the same with 10 images

`few` asks whether a teacher helps that knows no more labels than its student: for each seed
it trains a teacher on the labels of 40 images alone (--labelled), and then the students that
have the labels of the same 40. Each finished run is a record in --out and is not made again.
Every run is scored on the 87 validation images, too, to choose settings: --part val.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import time
from typing import Any

import harness
import made_up
import numpy as np
from detection_arms import ARMS, FEW, Arm

import tfkd

CLASSES = ("RBC", "WBC", "Platelets")
SIZE = 160
BATCH = 16
PEAK = 2e-3


PARTS = ("val", "test")


class Bench:
    """The data, the anchors and the models."""

    def __init__(self, args: Any):
        self.args = args
        read = functools.partial(tfkd.data.voc, args.data, SIZE, class_names=CLASSES)
        scored = {part: read(test=part, on_error="skip") for part in PARTS}
        self.scored = {part: data.arrays("test") for part, data in scored.items()}
        self.data = scored["test"]
        # The pictures are 640 x 480 and squeezed to squares: a round cell becomes narrow.
        self.anchors = tfkd.detection.Anchors.small(SIZE, aspect=0.75)
        self.matcher = tfkd.detection.Matcher(self.anchors)
        self.augment = tfkd.data.augment_boxes(flip=True, flip_vertical=True, shift=0.15)

    def model(self, kind: str) -> Any:
        return tfkd.models.ssd(kind, len(CLASSES), SIZE, anchors=self.anchors, name=kind)

    def score(self, model: Any, part: str | None = None) -> tfkd.report.DetectionScores:
        """On the images of a part, by default that of --part."""
        x, boxes, classes = self.scored[part or self.args.part]
        truth = {"boxes": boxes, "classes": classes}
        return tfkd.report.evaluate_detector(model, x, truth, self.anchors, CLASSES)

    def optimizer(self, steps: int) -> Any:
        import tf_keras as keras

        rate = keras.optimizers.schedules.CosineDecay(PEAK, steps)
        return keras.optimizers.Adam(rate, clipnorm=10.0)

    def fit(self, trained: Any, data: Any, seed: int, epochs: int, short: bool = False) -> float:
        """Trains with as many steps as `epochs` of all images have; returns seconds."""
        steps = tfkd.data.steps_per_epoch(len((data if short else self.data).x_train), BATCH)
        batches = tfkd.data.detection_batches(data, BATCH, seed=seed, augment=self.augment)
        start = time.perf_counter()
        trained.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)
        return time.perf_counter() - start


def train_teacher(args: Any) -> dict[str, Any]:
    """Trains the teacher, and saves it; returns its record."""
    import tf_keras as keras

    bench = Bench(args)
    keras.utils.set_random_seed(args.teacher_seed)
    teacher = bench.model("teacher")
    steps = tfkd.data.steps_per_epoch(len(bench.data.x_train), BATCH) * args.teacher_epochs
    teacher.compile(bench.optimizer(steps), loss=tfkd.losses.MultiBoxLoss(bench.matcher))
    data = bench.data
    if args.labelled is not None:
        data = only_labelled(data.unlabel(keep=args.labelled, seed=args.teacher_seed))
    seconds = bench.fit(teacher, data, args.teacher_seed, args.teacher_epochs)
    teacher.save(teacher_file(args))
    found = result_of("teacher", args.teacher_seed, args.teacher_epochs, seconds, bench, teacher)
    return {**found, "student": "teacher"}


def teacher_file(args: Any) -> pathlib.Path:
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    few = "" if args.labelled is None else f"-{args.labelled}-{args.teacher_seed}"
    return pathlib.Path(args.out) / f"teacher{few}.keras"


def result_of(
    arm: str, seed: int, epochs: int, seconds: float, bench: Bench, model: Any
) -> dict[str, Any]:
    counted = tfkd.report.profile(model)
    return {
        "arm": arm,
        "seed": seed,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        "scores": {part: numbers(bench.score(model, part)) for part in PARTS},
        "macs": int(counted.macs),
        "parameters": int(model.count_params()),
    }


def numbers(scores: tfkd.report.DetectionScores) -> dict[str, float]:
    """mAP50, mAP, and the AP50 of every class."""
    found = {"map50": scores.map50, "map": scores.map}
    found |= dict(zip(CLASSES, scores.ap50, strict=True))
    return {name: round(float(value), 4) for name, value in found.items()}


def train_student(bench: Bench, teacher: Any, name: str, seed: int) -> dict[str, Any]:
    """One run of a student; returns its record."""
    import tf_keras as keras

    args, arm = bench.args, ARMS[name]
    keras.utils.set_random_seed(seed)
    student = bench.model(args.student)
    data, boxes = images_of(bench, teacher, arm, seed)
    steps = args.epochs * tfkd.data.steps_per_epoch(
        len((data if arm.short else bench.data).x_train), BATCH
    )
    selection = tfkd.losses.MultiBoxSelection(bench.matcher, teacher_boxes=boxes)
    if arm.preset is None:
        trained = student
        trained.compile(bench.optimizer(steps), loss=tfkd.losses.MultiBoxLoss(selection))
    else:
        objective = tfkd.losses.multibox_objective(
            selection, arm.preset, weights=arm.weights, **arm.options
        )
        trained = tfkd.Distiller(teacher, student, **objective)
        trained.compile(bench.optimizer(steps))
    seconds = bench.fit(trained, data, seed, args.epochs, arm.short)
    if args.keep and seed == 0:
        student.save(pathlib.Path(args.out) / f"{name.replace(', ', '-').replace(' ', '-')}.keras")
    found = result_of(name, seed, args.epochs, seconds, bench, student)
    return {**found, "student": args.student}


def images_of(bench: Bench, teacher: Any, arm: Arm, seed: int) -> tuple[Any, Any]:
    """What a student is trained on, and the boxes that its steps add."""
    data, boxes = bench.data, None
    if arm.labelled is not None:
        data = data.unlabel(keep=arm.labelled, seed=seed)
    if arm.where is not None:
        boxes = tfkd.detection.TeacherBoxes(
            bench.anchors, arm.threshold, arm.where, ignore_from=arm.ignore_from
        )
    elif arm.labelled is not None:
        data = only_labelled(data)
    if boxes is not None and arm.once:
        options = {} if arm.preset else arm.options
        return tfkd.data.teacher_labels(data, teacher, boxes, **options), None
    return data, boxes


def only_labelled(data: Any) -> Any:
    """The labelled training images alone, each as often as fills a batch."""
    kept = np.flatnonzero(~(data.classes_train == tfkd.detection.UNLABELLED).any(axis=1))
    kept = np.tile(kept, -(-BATCH // len(kept)))
    return dataclasses.replace(
        data,
        x_train=data.x_train[kept],
        boxes_train=data.boxes_train[kept],
        classes_train=data.classes_train[kept],
    )


def run_teacher(args: Any) -> list[Any]:
    """The record of the teacher, made if there is none."""
    store = harness.Records(args, **({} if args.table else {"images": harness.digest(args.data)}))
    keys = ("teacher_epochs", "teacher_seed", "labelled")
    run = {key: getattr(args, key) for key in keys}
    return [store.run(f"teacher-{args.teacher_seed}", run, lambda: train_teacher(args))]


def run_students(args: Any) -> list[Any]:
    """The records of all arms of a seed, then of the next seed, made if there are none."""
    import tf_keras as keras

    bench, teacher, digests = None, None, {}
    if not args.table:
        digests = {
            "images": harness.digest(args.data),
            "teacher": harness.digest(teacher_file(args)),
        }
        bench = Bench(args)
        teacher = keras.models.load_model(teacher_file(args), compile=False)
        teacher = tfkd.frozen_copy(teacher, fold_batch_norm=True, dtype=args.teacher_dtype)
    store, found = harness.Records(args, **digests), []
    for seed in args.seeds:
        for name in args.arms or ARMS:
            keys = ("teacher_dtype", "student", "epochs", "keep")
            run = {key: getattr(args, key) for key in keys} | {"seed": seed}
            run |= {"arm": name, **dataclasses.asdict(ARMS[name])}
            make = functools.partial(train_student, bench, teacher, name, seed)
            found.append(store.run(f"{args.student}-{name}-{seed}", run, make))
    return found


def run_few(args: Any) -> tuple[list[Any], list[Any]]:
    """The records of teachers with few labels, and of the students that have the same ones."""
    teachers, students = [], []
    for seed in args.seeds:
        own = {"teacher_seed": seed, "seeds": [seed], "labelled": args.labelled or 40}
        one = argparse.Namespace(**{**vars(args), **own, "arms": args.arms or FEW})
        teachers += run_teacher(one)
        students += run_students(one)
    return teachers, students


def table(runs: list[dict[str, Any]], part: str) -> str:
    """Mean and standard deviation of every arm."""
    head = ["arm", "mAP50 %", "mAP %", "RBC", "WBC", "platelets", "against alone, paired", "seeds"]
    rows = [row_of(name, runs, part) for name in dict.fromkeys(run["arm"] for run in runs)]
    about = "{student}, {epochs} epochs, {macs:,} MACs, {parameters:,} parameters\n\n"
    return about.format(**runs[0]) + harness.table(head, rows)


def row_of(name: str, runs: list[dict[str, Any]], part: str) -> list[str]:
    base = f"{name[:2]} alone" if name[:2] in ("40", "10") else "alone"
    of = {
        arm: {r["seed"]: r["scores"][part] for r in runs if r["arm"] == arm} for arm in (name, base)
    }
    scores = [100 * r["map50"] for r in of[name].values()]
    gains = [
        100 * (r["map50"] - of[base][seed]["map50"])
        for seed, r in of[name].items()
        if seed in of[base] and name != base
    ]
    means = [np.mean([100 * r[key] for r in of[name].values()]) for key in ("map", *CLASSES)]
    gain = harness.spread(gains, 1) if gains else ""
    gain = f"+{gain}" if gain and gain[0] not in "-–" else gain
    each = [f"{value:.1f}" for value in means]
    return [name, harness.spread(scores, 1), *each, gain, str(len(scores))]


def main() -> None:
    small = {"data": made_up.cells, "teacher_epochs": 1, "epochs": 1, "seeds": [0]}
    arms = ["alone", "default", "10 alone", "boxes"]
    parser = harness.Parser(
        __doc__, "saved_models/bccd", **small, arms=arms, student="tiny", labelled=8
    )
    what = ["teacher", "students", "few"]
    parser.add_argument("what", nargs="?", choices=what, help="teacher and students by default")
    parser.add_argument("--data", default="bccd", help="folder in VOC layout")
    parser.add_argument("--teacher-epochs", type=int, default=150, help="passes of the teacher")
    parser.add_argument("--teacher-seed", type=int, default=0, help="of its weights and batches")
    parser.add_argument("--labelled", type=int, help="images whose labels the teacher has")
    parser.add_argument("--part", default="test", choices=PARTS, help="images of the table")
    parser.add_argument("--teacher-dtype", choices=["bfloat16"], help="of the folded copy")
    parser.add_argument("--student", default="student", help="a preset of models.ssd")
    parser.add_argument("--epochs", type=int, default=100, help="passes of a student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of students")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="all by default")
    parser.add_argument("--keep", action="store_true", help="save the students of seed 0")
    args = parser.parse_args()
    if args.what == "few":
        teachers, students = run_few(args)
    else:
        teachers = run_teacher(args) if args.what != "students" else []
        students = run_students(args) if args.what != "teacher" else []
    groups = [[run for run in runs if run] for runs in (teachers, students)]
    text = "\n".join(table(runs, args.part) for runs in groups if runs)
    harness.show(args, text or "no run has a record", records=[*groups[0], *groups[1]])


if __name__ == "__main__":
    main()
