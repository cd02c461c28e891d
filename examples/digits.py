"""Distillation, quantization and export of an image classifier, with a table of the results.

    python examples/digits.py
    python examples/digits.py --data=cifar10.npz --teacher=resnet56 --student=resnet20 --epochs=30
    python examples/digits.py --data=folder_of_images --student=resnet8:8,16,32

Trains a teacher; trains a small student alone and distilled from the teacher, with
several seeds; continues to distil the students with quantization-aware training, and
writes them as int8 TFLite files; measures everything in LiteRT; prints one table.
Writes models, TensorBoard logs, the table and two plots to `--out`.

The bundled digits are easy: with the usual split every model is nearly perfect. So
three quarters of them are the test part, which leaves 450 images for training. All
scores are those of the last epoch.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, Say, flag, parse

flag("data", "digits", "digits, a Keras name, a .npz file or a folder")
flag("out", None, "folder to write to; default saved_models/<data>")
flag("teacher", "resnet14:16,32,64", "resnetDEPTH[:width,width,...]")
flag("teachers", 1, "teachers, whose probabilities are averaged")
flag("student", None, "like --teacher, or mlp:units,...; default mlp:64 for digits, else resnet8")
flag("teacher-epochs", 100, "passes over the training images")
flag("epochs", 40, "passes for each student")
flag("quantize-epochs", 10, "passes for each student with rounding in the forward pass")
flag("seeds", 3, "students of each kind")
flag("batch-size", 32, "images per step")
flag("temperature", 4.0, "softens both models' probabilities")
flag("student-weight", 0.1, "weight of the true labels")
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging

from tfkd import checks, data, export, quantization, report
from tfkd.recipes.models import build as build_model

DIGITS_TEST_FRACTION = 0.75
TEACHER_RATE, STUDENT_RATE, QUANTIZE_RATE = 5e-3, 1e-2, 1e-3  # peaks of Adam's learning rate
CALIBRATION = 300  # training images for calibration
LOSS = {"from_logits": True}


@dataclasses.dataclass
class Run:
    """One trained model and its accuracy on the test images after each epoch."""

    model: keras.Model
    curve: list[float]


def load(spec: str) -> data.Dataset:
    """Loads the images; the digits with a small training part."""
    options = {"test_fraction": DIGITS_TEST_FRACTION} if spec == "digits" else {}
    dataset = data.load(spec, **options)
    return checks.instance("data", dataset, data.Dataset, "images (for texts: progressive.py)")


def student_spec(dataset: data.Dataset) -> str:
    """The value of --student, or a default for the data."""
    return FLAGS.student or ("mlp:64" if dataset.name == "digits" else "resnet8")


def build(spec: str, dataset: data.Dataset) -> keras.Model:
    """ "resnet8:4,8,16" → a residual network for the data set's images; "mlp:64" → dense layers."""
    return build_model(spec, dataset.num_classes, dataset.image_shape)


def fit(model, dataset, epochs, rate, seed, augment=None, log_dir=None) -> list[float]:
    """Trains a model or a Distiller; returns the test accuracy (%) after each epoch."""
    batch = min(FLAGS.batch_size, len(dataset.x_train))
    steps = data.steps_per_epoch(len(dataset.x_train), batch)
    train = data.batches(
        dataset.x_train,
        dataset.y_train,
        batch,
        seed=seed,
        augment=augment,
        preprocess=dataset.preprocess,
    )
    test = data.eval_batches(dataset.x_test, dataset.y_test, 500, preprocess=dataset.preprocess)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps * epochs)),
        keras.losses.SparseCategoricalCrossentropy(**LOSS),
        metrics=["accuracy"],
    )
    watch = [tfkd.callbacks.TensorBoard(str(log_dir))] if log_dir else []
    history = model.fit(
        train,
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=test,
        callbacks=watch,
        verbose=0,
    )
    return [100 * value for value in history.history["val_accuracy"]]


def augmentation(dataset: data.Dataset):
    """Random shifts by an eighth of the height; flips, except for digits."""
    digits = dataset.name in ("digits", "mnist")
    return data.shift_and_flip(dataset.image_shape[0] // 8, flip=not digits)


def train_teachers(dataset, logs: pathlib.Path | None = None) -> list[Run]:
    """Trains the large model on augmented images, with one or more seeds."""
    runs = []
    for seed in range(FLAGS.teachers):
        keras.utils.set_random_seed(seed)
        model = build(FLAGS.teacher, dataset)
        log_dir = logs / f"teacher_{seed}" if logs else None
        augment, epochs = augmentation(dataset), FLAGS.teacher_epochs
        curve = fit(model, dataset, epochs, TEACHER_RATE, seed, augment, log_dir)
        runs.append(Run(model, curve))
    return runs


def train_student(dataset, seed, teachers=None, log_dir=None) -> Run:
    """Trains the small model alone or distilled; everything else is the same."""
    keras.utils.set_random_seed(seed)
    student = build(student_spec(dataset), dataset)
    trained = student if teachers is None else guided(student, teachers)
    curve = fit_student(trained, dataset, FLAGS.epochs, STUDENT_RATE, seed, log_dir)
    return Run(student, curve)


def guided(student, teachers) -> tfkd.Distiller:
    """A Distiller for the student."""
    return tfkd.Distiller(
        teachers,
        student,
        distillation_losses=[tfkd.losses.LogitsDistillation(temperature=FLAGS.temperature)],
        distillation_loss_weights=[1.0],
        student_loss_weight=FLAGS.student_weight,
    )


def fit_student(trained, dataset, epochs, rate, seed, log_dir) -> list[float]:
    """`fit` with the augmentation of a student."""
    # So small a student does not benefit from augmented 8×8 digits.
    augment = None if dataset.name == "digits" else augmentation(dataset)
    return fit(trained, dataset, epochs, rate, seed, augment, log_dir)


def quantize_student(student, teachers, dataset, seed, log_dir) -> Run:
    """Quantizes the student to 8 bits, and distils it further (quantization-aware)."""
    quantized = quantization.quantize(student, freeze_batch_norm=False)
    sample = dataset.preprocess(dataset.x_train[:CALIBRATION])
    quantization.calibrate(quantized, np.asarray(sample))
    trained = guided(quantized, teachers)
    curve = fit_student(trained, dataset, FLAGS.quantize_epochs, QUANTIZE_RATE, seed, log_dir)
    return Run(quantized, curve)


def train_all(dataset, out: pathlib.Path, say: Say) -> dict[str, list[Run]]:
    """Returns the teachers and the students: trained alone, distilled, and quantized."""
    say(f"training {FLAGS.teachers} × {FLAGS.teacher} for {FLAGS.teacher_epochs} epochs")
    logs = out / "logs"
    runs: dict[str, list[Run]] = {"teacher": train_teachers(dataset, logs)}
    say("teachers: " + ", ".join(f"{run.curve[-1]:.1f} %" for run in runs["teacher"]))
    guides = [run.model for run in runs["teacher"]]
    runs |= {"alone": [], "distilled": [], "int8": []}
    for seed in range(1, FLAGS.seeds + 1):
        for kind in ("alone", "distilled", "int8"):
            log_dir = logs / f"{kind}_{seed}"
            if kind == "int8":
                student = runs["distilled"][-1].model
                run = quantize_student(student, guides, dataset, seed, log_dir)
            else:
                teachers = guides if kind == "distilled" else None
                run = train_student(dataset, seed, teachers, log_dir)
            runs[kind].append(run)
            say(f"student {kind}, seed {seed}: {run.curve[-1]:.1f} %")
    for kind, group in runs.items():
        name = kind if kind == "teacher" else f"student_{kind}"
        for number, run in enumerate(group, start=1):
            if kind == "int8":
                quantization.save(run.model, out / f"{name}_{number}.npz")
            else:
                run.model.save(out / f"{name}_{number}.keras")
    return runs


def convert(runs: list[Run], x_test, out: pathlib.Path, say: Say) -> list[pathlib.Path]:
    """Writes each quantized student as an integer-only file, verified on test images."""
    files = []
    for seed, run in enumerate(runs, start=1):
        path = out / f"student_int8_{seed}.tflite"
        # An open batch, so that the throughput is measured with batches of one size.
        written = export.to_tflite(run.model, path, io="int8", batch_size=None, verify=x_test[:500])
        agreement = 100 * written.numbers["argmax_agreement"]
        say(f"{path.name}: agrees with the Keras model on {agreement:.1f} % of test images")
        files.append(path)
    return files


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    say = Say()
    dataset = load(FLAGS.data)
    for spec in (FLAGS.teacher, student_spec(dataset)):
        build(spec, dataset)  # reports a wrong name before the training of the teacher
    out = pathlib.Path(FLAGS.out or pathlib.Path("saved_models", dataset.name))
    out.mkdir(parents=True, exist_ok=True)
    say(repr(dataset))
    runs = train_all(dataset, out, say)

    x_test = np.asarray(dataset.preprocess(dataset.x_test))
    files = convert(runs["int8"], x_test, out, say)
    say("measuring")
    names = {"teacher": "teacher", "alone": "student alone", "distilled": "student distilled"}
    models: dict[str, Any] = {names[k]: [run.model for run in runs[k]] for k in names}
    models["distilled, int8"] = files
    like = {"distilled, int8": runs["distilled"][0].model}
    table = report.compare(models, (x_test, dataset.y_test), like=like)
    curves = {names[k]: [run.curve for run in runs[k]] for k in names}
    notes = [
        f"{dataset!r}; {FLAGS.teachers} × teacher, {FLAGS.seeds} seeds of each student, "
        "mean ± standard deviation, last epoch.",
        *table.notes,
    ]
    table = dataclasses.replace(table, notes=notes, curves={"test accuracy (%)": curves})
    table.save(out)
    print(table)
    say(f"wrote {out}; view the runs with: tensorboard --logdir {out / 'logs'}")


if __name__ == "__main__":
    main()
