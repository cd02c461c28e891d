"""Curriculum distillation in stages: easy examples first, by the teacher's loss.

    python examples/progressive.py
    python examples/progressive.py --noise=0.4
    python examples/progressive.py --data=folder_with_tsv --epochs=10 --teacher-epochs=5
    python examples/progressive.py --data=cifar10.npz --noise=0.4 --student=resnet8

1. Train a teacher on the training labels, of which `--noise` makes a fraction wrong (the
   test labels stay clean).
2. Score the difficulty of every example by the teacher's loss on its label.
3. Train small students with the same number of steps: alone; distilled; and in stages:
   first the easiest part of the data at a high temperature, then more and more of it,
   finally with a smaller learning rate. With label noise the hardest part is never used,
   as it contains most of the wrong labels.
4. Print one table, and precision, recall and F1 of each class for the progressive student.

Images (the bundled digits, a Keras name, a .npz file, a folder) or texts (a folder with
train.tsv and test.tsv). Writes models, difficulty scores, TensorBoard logs, the table and
plots to `--out`. All scores are those of the last epoch.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, Say, flag, parse, positive

flag("data", "digits", "digits, a Keras name, a .npz file or a folder")
flag("out", None, "folder to write to; default saved_models/progressive_DATA")
flag("noise", 0.0, "fraction of wrong training labels, in [0, 1)")
flag(
    "student", None, "mlp:units or resnetDEPTH[:width,...]; default mlp:64, resnet8 for photographs"
)
flag("teacher-epochs", 40, "passes that train the teacher")
flag("epochs", 40, "passes for each student")
flag("seeds", 3, "students of each kind")
flag("batch-size", 32, "examples per step")
flag("rate", 0.003, "peak of Adam's learning rate")
flag("temperature", 4.0, "softens both models' probabilities")
flag("student-weight", 0.3, "weight of the labels")
flag("start", 0.3, "fraction of the data used at first")
flag("end", None, "fraction used at last; default 1 − noise", type=float)
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging

from tfkd import checks, curriculum, data, report, schedules
from tfkd.curriculum import Curriculum, Stage

DIGITS_TEST_FRACTION = 0.75
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Task:
    """Training and test arrays, and the models for them."""

    source: Any
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    augment: Any = None

    @property
    def is_text(self) -> bool:
        return isinstance(self.source, data.TokenDataset)

    @property
    def preprocess(self):
        """Scales images; token ids are taken as they are."""
        return None if self.is_text else self.source.preprocess

    def teacher(self) -> keras.Model:
        """A transformer for texts, a residual network for images."""
        if self.is_text:
            return tfkd.models.text_transformer(
                self.source.vocab_size, self.source.num_classes, self.source.max_length
            )
        widths = (16, 32) if self.source.image_shape[0] < 16 else (16, 32, 64)
        return tfkd.models.resnet(14, self.source.num_classes, self.source.image_shape, widths)

    def student(self) -> keras.Model:
        """The model of --student, or a default for the data."""
        small = self.is_text or self.source.image_shape[0] < 16
        spec = FLAGS.student or ("mlp:64" if small else "resnet8")
        name, _, sizes = spec.partition(":")
        try:
            widths = tuple(int(size) for size in sizes.split(",")) if sizes else ()
            depth = 0 if name == "mlp" else int(name.removeprefix("resnet"))
        except ValueError:
            expected = "mlp:units,... or resnetDEPTH[:width,...]"
            raise checks.value_error("student", expected, spec, "Try mlp:64.") from None
        return self._mlp(widths) if name == "mlp" else self._resnet(depth, widths)

    def _mlp(self, units: tuple[int, ...]) -> keras.Model:
        source = self.source
        if self.is_text:
            return tfkd.models.text_mlp(
                source.vocab_size, source.num_classes, source.max_length, hidden=units
            )
        layers = [keras.layers.Dense(n, "relu") for n in units]
        head = keras.layers.Dense(source.num_classes, name="logits")
        image = keras.Input(source.image_shape)
        return keras.Sequential([image, keras.layers.Flatten(), *layers, head], name="mlp")

    def _resnet(self, depth: int, widths: tuple[int, ...]) -> keras.Model:
        if self.is_text:
            raise checks.value_error("student", "mlp:units, for texts", FLAGS.student)
        options = {"widths": widths} if widths else {}
        return tfkd.models.resnet(
            depth, self.source.num_classes, self.source.image_shape, **options
        )


def load() -> Task:
    """The data, with label noise if --noise is given."""
    options = {"test_fraction": DIGITS_TEST_FRACTION} if FLAGS.data == "digits" else {}
    source: Any = data.load(FLAGS.data, **options)
    if isinstance(source, data.TextDataset):
        source = source.vectorize()
    is_photo = not isinstance(source, data.TokenDataset) and source.image_shape[0] >= 16
    augment = data.shift_and_flip(source.image_shape[0] // 8) if is_photo else None
    y = data.noisy_labels(source.y_train, FLAGS.noise, source.num_classes)
    return Task(source, source.x_train, y, source.x_test, source.y_test, augment)


class Bench:
    """Trains models on one task, each for the same number of steps."""

    def __init__(self, task: Task, out: pathlib.Path):
        self.task, self.logs = task, out / "logs"
        self.batch = min(FLAGS.batch_size, len(task.x_train))
        self.steps = data.steps_per_epoch(len(task.x_train), self.batch)
        self.test = data.eval_batches(task.x_test, task.y_test, 500, preprocess=task.preprocess)

    def optimizer(self, epochs: int) -> keras.optimizers.Optimizer:
        """Adam with cosine decay of the learning rate."""
        rate = keras.optimizers.schedules.CosineDecay(FLAGS.rate, self.steps * epochs)
        return keras.optimizers.Adam(rate)

    def plain(self, seed: int):
        """Shuffled batches of all the data."""
        task = self.task
        return data.batches(
            task.x_train, task.y_train, self.batch, seed=seed,
            augment=task.augment, preprocess=task.preprocess,
        )  # fmt: skip

    def fit(self, model, train, name: str, epochs: int | None = None):
        """Returns the test accuracy (%) after each epoch; stages have epochs of their own."""
        model.compile(self.optimizer(epochs or FLAGS.epochs), LOSS, metrics=["accuracy"])
        length = {} if epochs is None else {"epochs": epochs}
        history = model.fit(
            train,
            steps_per_epoch=self.steps,
            validation_data=self.test,
            callbacks=[tfkd.callbacks.TensorBoard(str(self.logs / name))],
            verbose=0,
            **length,
        )
        return [100 * value for value in history.history["val_accuracy"]]

    def train_teacher(self):
        keras.utils.set_random_seed(0)
        teacher = self.task.teacher()
        epochs = FLAGS.teacher_epochs
        return teacher, self.fit(teacher, self.plain(0), "teacher", epochs)

    def train_student(self, kind: str, teacher, scores, seed: int):
        """A student of one kind, and its curve."""
        keras.utils.set_random_seed(seed)
        student, name = self.task.student(), f"{kind}_{seed}"
        if kind == "alone":
            return student, self.fit(student, self.plain(seed), name, FLAGS.epochs)
        soft = tfkd.losses.LogitsDistillation(FLAGS.temperature)
        options = {"student_loss_weight": FLAGS.student_weight}
        if kind == "distilled":
            distiller = tfkd.Distiller(teacher, student, soft, **options)
            return student, self.fit(distiller, self.plain(seed), name, FLAGS.epochs)
        staged = tfkd.ProgressiveDistiller(teacher, student, self.stages(), soft, **options)
        return student, self.fit(staged, self.paced(scores, seed), name)

    def stages(self) -> list[Stage]:
        """The easiest part at a high temperature; a growing part; the final part."""
        first = max(FLAGS.epochs // 8, 1)
        last = max(FLAGS.epochs // 4, 1)
        middle = FLAGS.epochs - first - last
        end = end_fraction()
        grow = schedules.Root(FLAGS.start, end, end_step=self.steps * middle)
        return [
            Stage(first, "easy", fraction=FLAGS.start, temperature=2 * FLAGS.temperature),
            Stage(middle, "growing", fraction=grow),
            Stage(last, "all", fraction=end),
        ]

    def paced(self, scores, seed: int) -> Curriculum:
        """The data ordered by difficulty; the stages set the pacing."""
        task = self.task
        return Curriculum(
            (task.x_train, task.y_train), scores, 1.0, self.batch, seed=seed,
            augment=task.augment, preprocess=task.preprocess,
        )  # fmt: skip


def end_fraction() -> float:
    return 1.0 - FLAGS.noise if FLAGS.end is None else FLAGS.end


def score(bench: Bench, teacher, out: pathlib.Path, say: Say):
    """Step 2: difficulty scores by the teacher's loss; how many easy labels are correct."""
    task = bench.task
    scores = curriculum.difficulty.teacher_loss(
        teacher,
        task.x_train,
        task.y_train,
        preprocess=task.preprocess,
        path=out / "difficulty.npz",
        progress=False,
    )
    say(repr(scores))
    if FLAGS.noise:
        easy = np.argsort(np.asarray(scores))[: len(scores) // 2]
        right = 100 * np.mean(task.y_train[easy] == task.source.y_train[easy])
        all_right = 100 - 100 * FLAGS.noise
        say(
            f"{right:.0f} % of the labels of the easiest half are correct, {all_right:.0f} % of all"
        )
    return scores


def check_flags() -> None:
    """Checks the flags before anything is trained."""
    positive("teacher-epochs", "seeds", "batch-size")
    checks.integer("epochs", FLAGS.epochs, 3, "at least 3 epochs, one for each stage")
    checks.fraction("noise", FLAGS.noise)
    for name, value in (("start", FLAGS.start), ("end", end_fraction())):
        checks.positive(name, checks.fraction(name, value))
    if end_fraction() < FLAGS.start:
        raise checks.value_error("end", f"at least --start, {FLAGS.start}", end_fraction())


def measure(bench: Bench, teacher, runs, curves, out: pathlib.Path) -> None:
    """Step 4: the table, and each class of the first progressive student."""
    task = bench.task
    x_test = task.x_test if task.preprocess is None else np.asarray(task.preprocess(task.x_test))
    names = {"alone": "student alone", "distilled": "distilled", "progressive": "progressive"}
    models = {"teacher": teacher} | {names[k]: found for k, found in runs.items()}
    table = report.compare(models, (x_test, task.y_test))
    notes = [
        f"{task.source!r}; {100 * FLAGS.noise:.0f} % wrong training labels, {FLAGS.seeds} seeds of "
        "each student, mean ± standard deviation, last epoch.",
        *table.notes,
    ]
    shown = {"teacher": [curves["teacher"]]} | {names[k]: curves[k] for k in runs}
    table = dataclasses.replace(table, notes=notes, curves={"test accuracy (%)": shown})
    table.save(out)
    print(table)
    outputs = runs["progressive"][0].predict(x_test, verbose=0)
    classes = report.classification(task.y_test, outputs, task.source.class_names)
    classes.save(out)
    print(classes)


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    check_flags()
    say = Say()
    task = load()
    task.student()  # reports a wrong name before training
    out = pathlib.Path(FLAGS.out or f"saved_models/progressive_{task.source.name}")
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(task, out)
    say(repr(task.source))
    teacher, curve = bench.train_teacher()
    say(f"teacher: {curve[-1]:.1f} %")
    scores = score(bench, teacher, out, say)
    runs: dict[str, list[Any]] = {"alone": [], "distilled": [], "progressive": []}
    curves: dict[str, Any] = {"teacher": curve} | {kind: [] for kind in runs}
    for seed in range(1, FLAGS.seeds + 1):
        for kind, found in runs.items():
            student, curve = bench.train_student(kind, teacher, scores, seed)
            student.save(out / f"{kind}_{seed}.keras")
            found.append(student)
            curves[kind].append(curve)
            say(f"{kind}, seed {seed}: {curve[-1]:.1f} %")
    say("measuring")
    measure(bench, teacher, runs, curves, out)
    say(f"wrote {out}; view the runs with: tensorboard --logdir {bench.logs}")


if __name__ == "__main__":
    main()
