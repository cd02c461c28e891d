"""Distils a large detector into a small one, and exports it with its boxes for phones.

    python examples/detection.py
    python examples/detection.py --data=VOC_DIR --size=160 --epochs=60

1. Train a teacher, an SSD with wide layers, on the labelled boxes.
2. Train a small SSD alone, and the same one with the teacher: on soft targets and, if
   `--labelled` leaves images without labels, on the teacher's boxes in these images.
3. Quantize the distilled student, distil it for a few more epochs (quantization-aware),
   and write one .tflite file that returns boxes, classes and scores.
4. Load only that file, detect the objects in the test images, and draw them.
5. Print one table: COCO mAP, size, latency.

The bundled data are scenes of several handwritten digits. `--data` takes a folder in the
layout of PASCAL VOC (Annotations, ImageSets/Main, JPEGImages). Writes models, TensorBoard
logs with pictures of each epoch, the table, plots and pictures to `--out`. All scores are
those of the last epoch.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, Say, flag, parse, positive

flag("data", "digits", "digits, or a folder in VOC layout")
flag("out", None, "folder to write to; default saved_models/detection_DATA")
flag("size", 96, "pixels of the networks' square input")
flag("images", 800, "training scenes of digits")
flag("labelled", None, "training images that keep labels; default all", type=int)
flag("teacher-epochs", 25, "passes that train the teacher")
flag("epochs", 20, "passes for each student")
flag("quantized-epochs", 3, "quantization-aware passes")
flag("batch-size", 16, "images per step")
flag("rate", 0.004, "peak of Adam's learning rate")
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging

from tfkd import checks, data, detection, report

THREADS = 1  # of the int8 file


def load() -> data.DetectionDataset:
    """Scenes of digits, or a VOC folder; faulty objects are skipped and counted."""
    if FLAGS.data == "digits":
        scenes = data.digit_scenes(FLAGS.images, size=FLAGS.size)
    else:
        scenes = data.voc(FLAGS.data, FLAGS.size, on_error="skip")
    return scenes


@dataclasses.dataclass
class Bench:
    """Trains detectors on one data set, all with the same anchors."""

    source: data.DetectionDataset
    out: pathlib.Path

    def __post_init__(self):
        cells = [-(-FLAGS.size // stride) for stride in (8, 16, 32)]
        _, boxes, classes = self.source.arrays("train")
        # Anchor sizes are fitted to the training boxes.
        self.anchors = detection.Anchors.fit(boxes[classes >= 0], [(n, n) for n in cells])
        self.matcher = detection.Matcher(self.anchors)
        self.steps = data.steps_per_epoch(len(self.source.x_train), FLAGS.batch_size)

    def model(self, kind: str) -> keras.Model:
        return tfkd.models.ssd(
            kind, self.source.num_classes, FLAGS.size, anchors=self.anchors, name=kind
        )

    def optimizer(self, epochs: int, peak: float) -> keras.optimizers.Optimizer:
        """Adam with cosine decay of the learning rate."""
        rate = keras.optimizers.schedules.CosineDecay(peak, self.steps * epochs)
        return keras.optimizers.Adam(rate, clipnorm=10.0)

    def fit(self, trained: Any, source: data.DetectionDataset, epochs: int, name: str) -> None:
        """Trains, and writes scores and pictures of every fifth epoch for TensorBoard."""
        x, boxes, classes = self.source.arrays("test")
        board = tfkd.callbacks.TensorBoard(str(self.out / "logs" / name))
        scores = tfkd.callbacks.DetectionReport(
            x[:100],
            {"boxes": boxes[:100], "classes": classes[:100]},
            self.anchors,
            self.source.class_names,
            frequency=5,
            log_dir=board,
        )
        trained.fit(
            data.detection_batches(source, FLAGS.batch_size, seed=1, augment=source.augment),
            steps_per_epoch=self.steps,
            epochs=epochs,
            callbacks=[scores, board],
            verbose=0,
        )

    def plain(self, kind: str, source: data.DetectionDataset, epochs: int, name: str):
        """A detector trained on the labels alone."""
        keras.utils.set_random_seed(1)
        model = self.model(kind)
        model.compile(
            self.optimizer(epochs, FLAGS.rate), loss=tfkd.losses.MultiBoxLoss(self.matcher)
        )
        self.fit(model, source, epochs, name)
        return model

    def distil(self, teacher, student, source, epochs: int, peak: float, name: str) -> None:
        """Trains a student on the labels and with the teacher."""
        objective = tfkd.losses.multibox_objective(self.matcher)
        distiller = tfkd.Distiller(teacher, student, **objective)
        distiller.compile(self.optimizer(epochs, peak))
        self.fit(distiller, source, epochs, name)

    def score(self, model: Any) -> report.DetectionScores:
        x, boxes, classes = self.source.arrays("test")
        return report.evaluate_detector(
            model, x, {"boxes": boxes, "classes": classes}, self.anchors, self.source.class_names
        )


def only_labelled(source: data.DetectionDataset) -> data.DetectionDataset:
    """The data without the unlabelled training images."""
    kept = ~(source.classes_train == detection.UNLABELLED).any(axis=1)
    parts = ("x_train", "boxes_train", "classes_train")
    return dataclasses.replace(source, **{name: getattr(source, name)[kept] for name in parts})


def quantize(bench: Bench, teacher, student, source) -> keras.Model:
    """Step 3: quantizes the student, and distils it for some more epochs."""
    quantized = tfkd.quantization.quantize(student, target="tflite", freeze_batch_norm=False)
    x = bench.source.x_train[:128]
    tfkd.quantization.calibrate(quantized, np.asarray(bench.source.preprocess(x)))
    if FLAGS.quantized_epochs:
        bench.distil(
            teacher, quantized, source, FLAGS.quantized_epochs, FLAGS.rate / 20, "quantized"
        )
    return quantized


def row(name: str, model: keras.Model, scores: Any) -> report.DetectionRow:
    """A row of the table for a Keras model, with parameters and MACs."""
    return report.DetectionRow(
        name, scores, model.count_params(), int(report.profile(model).macs), None, None
    )


def check_flags() -> None:
    """Checks the flags before anything is trained."""
    positive("size", "images", "labelled", "teacher-epochs", "epochs", "batch-size")
    checks.non_negative_int("quantized-epochs", FLAGS.quantized_epochs)


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    check_flags()
    say = Say()
    source = load()
    out = pathlib.Path(FLAGS.out or f"saved_models/detection_{source.name}")
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(source, out)
    say(f"{source!r}, {bench.anchors!r}")
    some = source if FLAGS.labelled is None else source.unlabel(FLAGS.labelled)
    teacher = bench.plain("teacher", only_labelled(some), FLAGS.teacher_epochs, "teacher")
    rows = [row("teacher", teacher, bench.score(teacher))]
    say(f"teacher: mAP50 {rows[0].scores[0].map50:.3f}")
    alone = bench.plain("student", only_labelled(some), FLAGS.epochs, "alone")
    rows.append(row("student alone", alone, bench.score(alone)))
    say(f"student alone: mAP50 {rows[1].scores[0].map50:.3f}")
    keras.utils.set_random_seed(1)
    student = bench.model("student")
    frozen = tfkd.frozen_copy(teacher, fold_batch_norm=True)
    if some.unlabelled:
        # Once, on whole images: detections in augmented images are worse.
        some = data.teacher_labels(some, frozen, detection.TeacherBoxes(bench.anchors))
    bench.distil(frozen, student, some, FLAGS.epochs, FLAGS.rate, "distilled")
    rows.append(row("student distilled", student, bench.score(student)))
    say(f"student distilled: mAP50 {rows[2].scores[0].map50:.3f}")
    for name, model in (("teacher", teacher), ("alone", alone), ("distilled", student)):
        model.save(out / f"{name}.keras")
    quantized = quantize(bench, frozen, student, some)
    say("exporting")
    rows.append(deploy(bench, quantized))
    table = report.DetectionTable(
        rows, [f"{source!r}; latency of the file in LiteRT, one image, one thread."]
    )
    table.save(out)
    print(table)
    say(f"wrote {out}; pictures of each epoch: tensorboard --logdir {out / 'logs'}")


def deploy(bench: Bench, quantized: keras.Model) -> report.DetectionRow:
    """Steps 3 and 4: writes the file, and scores its detections."""
    source, path = bench.source, bench.out / "detector.tflite"
    x, boxes, classes = source.arrays("test")
    seen = report.detect(quantized, x[:64], bench.anchors, score_threshold=0.3)
    if not np.any(seen["num_detections"]):
        print("The student detects nothing yet: its file can't be verified. Train longer.")
    tfkd.export.detector_to_tflite(
        quantized,
        path,
        bench.anchors,
        io="uint8",
        labels=source.class_names,
        verify=x[:64] if np.any(seen["num_detections"]) else True,
    )
    detector = tfkd.export.load_detector(path, threads=THREADS)
    found = detector(x)
    times = []
    for image in x[:50]:
        start = time.perf_counter()
        detector(image[None])
        times.append(1e3 * (time.perf_counter() - start))
    truth = {"boxes": boxes, "classes": classes}
    scores = report.detection(found, truth, source.class_names, image_size=source.image_shape[:2])
    report.detection_pictures(
        x[:12], found, truth, source.class_names, path=bench.out / "found.png", size=240
    )
    return report.DetectionRow(
        "distilled, int8 file", scores, None, None, path.stat().st_size, float(np.median(times))
    )


if __name__ == "__main__":
    main()
