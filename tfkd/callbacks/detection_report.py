"""Scores a detector at the end of an epoch, and shows what it finds."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorboard.plugins.pr_curve import summary as pr_summary

from tfkd import checks, replicas
from tfkd.detection.boxes import HasPriors
from tfkd.detection.coco_evaluation import DetectionScores, coco_scores, pycocotools
from tfkd.detection.detecting import Detecting, NotFinite, check_images
from tfkd.detection.drawing import detection_pictures
from tfkd.detection.flat_boxes import Boxes, flat_detections, flat_truth, names_of
from tfkd.detection.hits import curves
from tfkd.types import Data, Path, Tensor

_POINTS = 101


class DetectionReport(keras.callbacks.Callback):
    """Puts COCO's scores of a detector in the logs, and its pictures in TensorBoard.

    The model, or the student of a `tfkd.Distiller`, is run over images that it is not
    trained on. At the end of an epoch these are put in the logs, in 0..1:

        val_map           mean over classes, and over overlaps (IoU) from 0.50 to 0.95
        val_map50         mean over classes, at IoU 0.5
        val_map50_<class> of each class that has an object

    Callbacks see what those before them have put there: this one stands before
    EarlyStopping, ModelCheckpoint, CSVLogger and TensorBoard. EarlyStopping and
    ModelCheckpoint take `mode="max"` with it; what they would guess is "min".

    With a `log_dir`, the run `validation` gets the scores (`detection/...`), the boxes
    drawn on the first images (tab Images), and precision against recall of each class
    at thresholds of the score (tab PR Curves), by epoch.

    If a weight is NaN or infinite, the scores are NaN, and a warning says so once.

    Args:
        data: images (N, H, W, 3), kept in memory; see `tfkd.report.detect`.
        truth: dict {"boxes": (N, M, 4), "classes": (N, M)} of these images; see
            `tfkd.report.detection`.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        class_names: C names; default "0", "1", ... In the logs, what is neither letter
            nor digit becomes "_".
        frequency: epochs between two evaluations. In epochs without one the scores are
            not in the logs, as with the `validation_freq` of `fit`.
        pictures: how many images to draw; 0: none.
        log_dir: the folder of a run, or the `TensorBoard` callback that has it; None
            writes nothing.
        prefix: of the names in the logs.
        picture_threshold: detections below this score are not drawn.
        image_size: (height, width) in pixels for the scores by size of objects, which
            take three times the time of the others; None leaves them out.
        batch_size: images a batch.
        preprocess: a function of a batch of images; None: pixels / 127.5 − 1 for uint8.
        **decode_options: of `tfkd.detection.decode`.

    Attributes:
        scores: the `DetectionScores` of the last evaluation, or None.

    Raises:
        TypeError, ValueError: for a bad argument.
        ImportError: if pycocotools, or Pillow for pictures, is not installed.

    Example:
        >>> import numpy as np, tf_keras as keras, tfkd
        >>> images = np.zeros((2, 8, 8, 3), "uint8")
        >>> truth = {"boxes": [[[0.4, 0.3, 0.6, 0.7]]] * 2, "classes": [[0], [0]]}
        >>> pixels = keras.Input((8, 8, 3))
        >>> flat = keras.layers.Flatten()(pixels)
        >>> model = keras.Model(pixels, {
        ...     "boxes": keras.layers.Reshape((1, 4))(keras.layers.Dense(4)(flat)),
        ...     "classes": keras.layers.Reshape((1, 2))(keras.layers.Dense(2)(flat)),
        ... })
        >>> model.compile("sgd", "mse")
        >>> priors = np.float32([[0.5, 0.5, 0.2, 0.4]])
        >>> scoring = tfkd.callbacks.DetectionReport(images, truth, priors, ["cell"])
        >>> y = {"boxes": np.zeros((2, 1, 4)), "classes": np.zeros((2, 1, 2))}
        >>> logs = model.fit(images / 127.5 - 1, y, verbose=0, callbacks=[scoring]).history
        >>> sorted(name for name in logs if "map" in name)
        ['val_map', 'val_map50', 'val_map50_cell']
    """

    def __init__(
        self,
        data: Data,
        truth: Boxes,
        anchors: HasPriors | np.ndarray,
        class_names: Sequence[str] | None = None,
        frequency: int = 1,
        pictures: int = 8,
        log_dir: Path | keras.callbacks.TensorBoard | None = None,
        prefix: str = "val_",
        picture_threshold: float = 0.5,
        image_size: float | Sequence[float] | np.ndarray | None = None,
        batch_size: int = 32,
        preprocess: Callable[[np.ndarray], Tensor] | None = None,
        **decode_options: Any,
    ):
        super().__init__()
        self.images = check_images(data)
        self._real = flat_truth(truth)
        if self._real.count != len(self.images):
            expected = f"truth of {len(self.images)} images, as many as in `data`"
            raise checks.value_error("truth", expected, f"{self._real.count} images")
        if not len(self._real.classes):
            raise checks.value_error("truth", "at least one object", "none")
        self.truth = truth
        self.class_names = names_of(class_names, self._real, self._real)
        logged = [name for _, name in self._present()]
        if len(set(logged)) < len(logged):
            expected = "names that differ in their letters and digits"
            raise checks.value_error("class_names", expected, list(self.class_names))
        self.frequency = checks.positive_int("frequency", frequency)
        self.pictures = checks.non_negative_int("pictures", pictures)
        folder = getattr(log_dir, "log_dir", log_dir)
        if folder is not None:
            checks.instance("log_dir", folder, (str, os.PathLike), "a folder, or None")
        self.log_dir = folder
        self.prefix = checks.instance("prefix", prefix, str, "a string")
        self.picture_threshold = checks.fraction("picture_threshold", picture_threshold)
        self.image_size = image_size
        self._detect = Detecting(anchors, batch_size, preprocess, **decode_options)
        # Found out now, rather than after the first epoch.
        pycocotools()
        if self.log_dir is not None and self.pictures:
            self._draw(0, None)
        self.scores: DetectionScores | None = None
        self._writer: tf.summary.SummaryWriter | None = None
        self._last_epoch, self._offset = -1, 0
        self._warned = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Epochs are counted on from an earlier call of `fit`, as TensorBoard's are."""
        self._offset = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluates, if it is due; puts the scores in the logs, and writes."""
        if epoch + self._offset <= self._last_epoch:
            self._offset = self._last_epoch + 1 - epoch
        self._last_epoch = epoch + self._offset
        if (epoch + 1) % self.frequency:
            return
        student = getattr(self.model, "student", self.model)
        try:
            found = self._detect(student, self.images)
        except NotFinite as error:
            self._put(logs, None)
            if not self._warned:
                self._warned = True
                warnings.warn(f"DetectionReport, after epoch {epoch + 1}: {error}", stacklevel=2)
            return
        names = list(self.class_names)
        self.scores = coco_scores(found, self.truth, names, self.image_size)
        self._put(logs, self.scores)
        if self.log_dir is not None and replicas.writes(self.model):
            self._write(found, self.scores)

    def _put(self, logs: dict[str, float] | None, scores: DetectionScores | None) -> None:
        """The scores into the logs; None: NaN."""
        if logs is None:
            return
        logs[f"{self.prefix}map"] = math.nan if scores is None else scores.map
        logs[f"{self.prefix}map50"] = math.nan if scores is None else scores.map50
        for kind, name in self._present():
            value = math.nan if scores is None else float(scores.ap50[kind])
            logs[f"{self.prefix}map50_{name}"] = value

    def _present(self) -> list[tuple[int, str]]:
        """Number and name, fit for a log, of the classes that have an object."""
        kinds = np.unique(self._real.classes).tolist()
        return [(kind, re.sub(r"\W+", "_", self.class_names[kind])) for kind in kinds]

    def _write(self, found: dict[str, np.ndarray], scores: DetectionScores) -> None:
        if self._writer is None:
            folder = os.path.join(self.log_dir, "validation")  # type: ignore[arg-type]
            self._writer = tf.summary.create_file_writer(folder)
        step = self._last_epoch
        with tf.summary.record_if(True), self._writer.as_default(step=step):
            for name in ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar100"):
                value = getattr(scores, name)
                if not math.isnan(value):
                    tf.summary.scalar(f"detection/{name}", value)
            for kind, name in self._present():
                tf.summary.scalar(f"detection/map50_{name}", scores.ap50[kind])
            for index in range(min(self.pictures, len(self.images))):
                # Each with a tag of its own: they differ in height, by their legends.
                page = self._draw(index, found)
                tf.summary.image(f"detection/picture_{index}", page[None])
            self._write_curves(found, step)
        self._writer.flush()

    def _draw(self, index: int, found: dict[str, np.ndarray] | None) -> np.ndarray:
        """The picture of one image; None: without detections, to try it."""
        mine = self._real.images == index
        truth = {"boxes": self._real.boxes[mine], "classes": self._real.classes[mine]}
        one = {"boxes": np.zeros((0, 4)), "classes": [], "confidence": []}
        if found is not None:
            one = {name: values[index : index + 1] for name, values in found.items()}
        return detection_pictures(
            self.images[index : index + 1], [one], [truth], list(self.class_names),
            score_threshold=self.picture_threshold, size=400,
        )  # fmt: skip

    def _write_curves(self, found: dict[str, np.ndarray], step: int) -> None:
        """Precision against recall, in the form of TensorBoard's own tab."""
        right, wrong = curves(flat_detections(found), self._real, len(self.class_names), _POINTS)
        for kind, name in self._present():
            there = int((self._real.classes == kind).sum())
            kept = right[kind] + wrong[kind]
            # No detection is wrong where none is kept.
            precision = np.where(kept > 0, right[kind] / np.maximum(kept, 1), 1.0)
            record = pr_summary.raw_data_pb(
                f"detection/precision_recall/{name}",
                true_positive_counts=right[kind],
                false_positive_counts=wrong[kind],
                true_negative_counts=np.zeros(_POINTS),
                false_negative_counts=there - right[kind],
                precision=precision,
                recall=right[kind] / there,
                num_thresholds=_POINTS,
                display_name=name,
            )
            tf.summary.experimental.write_raw_pb(record.SerializeToString(), step=step)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Closes the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
