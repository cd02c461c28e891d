"""Callback that evaluates a detector by COCO metrics each epoch, with images for TensorBoard."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorboard.plugins.pr_curve import summary as pr_summary

from tfkd import checks
from tfkd.detection.boxes import HasPriors
from tfkd.detection.coco_evaluation import DetectionScores, ImageSize, coco_scores, pycocotools
from tfkd.detection.detecting import Detecting, NotFinite, check_images
from tfkd.detection.drawing import detection_pictures
from tfkd.detection.flat_boxes import Boxes, flat_detections, flat_ignored, flat_truth, names_of
from tfkd.detection.hits import curves, without_ignored
from tfkd.summaries import WritingCallback
from tfkd.types import Data, Path, Tensor

_POINTS = 101  # score thresholds of a curve of precision and recall


class DetectionReport(WritingCallback):
    """Adds COCO metrics of a detector to the logs, and its detections to TensorBoard.

    The model, or the student of a `tfkd.Distiller`, is evaluated on validation images. At
    the end of an epoch these metrics, in 0..1, are added to the logs:

        val_map           mean average precision over classes and IoU from 0.50 to 0.95
        val_map50         mean average precision over classes at IoU 0.5
        val_map50_<class> average precision at IoU 0.5 of each class that has an object

    Callbacks see only the logs of those before them: list this one before EarlyStopping,
    ModelCheckpoint, CSVLogger and TensorBoard. EarlyStopping and ModelCheckpoint need
    `mode="max"` with it, since their default for these names is "min".

    With a `log_dir`, the run `validation` shows the metrics (`detection/...`), the boxes
    drawn on the first images (tab Images), and precision-recall curves of each class by
    score threshold (tab PR Curves), by epoch.

    If a weight is NaN or infinite, the metrics are NaN, with a single warning.

    Args:
        data: images (N, H, W, 3), kept in memory; see `tfkd.report.detect`.
        truth: dict {"boxes": (N, M, 4), "classes": (N, M)} of these images; see
            `tfkd.report.detection`.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        class_names: C names; default "0", "1", ... In the logs, characters other than
            letters and digits become "_".
        frequency: epochs between two evaluations. In the other epochs the metrics are
            not in the logs, as with the `validation_freq` of `fit`.
        pictures: number of images to draw; 0: none.
        log_dir: the folder of a run, or the `TensorBoard` callback that writes to it;
            None writes nothing.
        prefix: prefix of the names in the logs.
        picture_threshold: detections with a lower score are not drawn.
        image_size: (height, width) in pixels for the metrics by object size, which take
            three times as long as the others; None omits them.
        batch_size: images per batch.
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
        image_size: ImageSize = None,
        batch_size: int = 32,
        preprocess: Callable[[np.ndarray], Tensor] | None = None,
        **decode_options: Any,
    ):
        super().__init__(getattr(log_dir, "log_dir", log_dir), "validation")
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
        self.prefix = checks.instance("prefix", prefix, str, "a string")
        self.picture_threshold = checks.fraction("picture_threshold", picture_threshold)
        self.image_size = image_size
        self._detect = Detecting(anchors, batch_size, preprocess, **decode_options)
        # Missing packages are reported now, rather than after the first epoch.
        pycocotools()
        if self.log_dir is not None and self.pictures:
            self._draw(0, None)
        self.scores: DetectionScores | None = None
        self._last_epoch, self._offset = -1, 0
        self._warned = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Resets the offset by which epochs continue those of earlier calls of `fit`."""
        self._offset = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluates if it is due, adds the metrics to the logs, and writes summaries."""
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
                checks.warn(f"DetectionReport, after epoch {epoch + 1}: {error}")
            return
        names = list(self.class_names)
        self.scores = coco_scores(found, self.truth, names, self.image_size)
        self._put(logs, self.scores)
        if self._writes():
            self._write(found, self.scores)

    def _put(self, logs: dict[str, float] | None, scores: DetectionScores | None) -> None:
        """Adds the metrics to the logs, or NaN if `scores` is None."""
        if logs is None:
            return
        logs[f"{self.prefix}map"] = math.nan if scores is None else scores.map
        logs[f"{self.prefix}map50"] = math.nan if scores is None else scores.map50
        for kind, name in self._present():
            value = math.nan if scores is None else float(scores.ap50[kind])
            logs[f"{self.prefix}map50_{name}"] = value

    def _present(self) -> list[tuple[int, str]]:
        """Number and log name of each class that has an object."""
        kinds = np.unique(self._real.classes).tolist()
        return [(kind, re.sub(r"\W+", "_", self.class_names[kind])) for kind in kinds]

    def _write(self, found: dict[str, np.ndarray], scores: DetectionScores) -> None:
        step = self._last_epoch
        with self._summaries(step):
            for name in ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar100"):
                value = getattr(scores, name)
                if not math.isnan(value):
                    tf.summary.scalar(f"detection/{name}", value)
            for kind, name in self._present():
                tf.summary.scalar(f"detection/map50_{name}", scores.ap50[kind])
            for index in range(min(self.pictures, len(self.images))):
                # Each has its own tag: their legends, and so their heights, may differ.
                page = self._draw(index, found)
                tf.summary.image(f"detection/picture_{index}", page[None])
            self._write_curves(found, step)

    def _draw(self, index: int, found: dict[str, np.ndarray] | None) -> np.ndarray:
        """Draws one image; `found` is None for a trial without detections."""
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
        """Writes precision-recall curves in the form of TensorBoard's tab PR Curves."""
        scored = without_ignored(flat_detections(found), self._real, flat_ignored(self.truth))
        right, wrong = curves(scored, self._real, len(self.class_names), _POINTS)
        for kind, name in self._present():
            there = int((self._real.classes == kind).sum())
            kept = right[kind] + wrong[kind]
            # Precision is 1 where no detection is kept.
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
