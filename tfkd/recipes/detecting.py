"""The task of detectors: SSD on boxes in VOC or COCO files."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, data, detection, export, losses, models, report
from tfkd.distillation import Distiller
from tfkd.recipes.data import Data, Part
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.task import Task

STRIDES = (8, 16, 32)  # of the feature maps on which the heads look
NETWORKS = ("teacher", "student", "depthwise", "tiny")
_SEEN = 0.3  # score from which a detection counts when a file is compared with its model


class Detecting(Task):
    """A detector with the outputs of `tfkd.models.ssd`, for pixels / 127.5 − 1.

    Args:
        found: images with boxes.
        recipe: the settings.
        anchors: those of a given model; None: fitted to the training boxes.
    """

    measure = "mAP"

    def __init__(self, found: Data, recipe: Recipe, anchors: detection.Anchors | None = None):
        super().__init__(found, recipe)
        self.source: Any = found.source
        self.anchors = anchors or self._fitted()
        self.matcher = detection.Matcher(self.anchors)

    def _fitted(self) -> detection.Anchors:
        height, width = self.source.image_shape[:2]
        cells = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
        _, boxes, classes = self.source.arrays("train")
        try:
            return detection.Anchors.fit(boxes[classes >= 0], cells, seed=self.recipe.seed)
        except ValueError:  # fewer sizes of boxes than priors
            return detection.Anchors.small((height, width))

    def augment(self, views: int) -> Callable[..., Any] | None:
        """The augmentation of the data set, which moves the boxes too."""
        return self.source.augment if self.recipe.augment else None

    def batches(self, views: int, first_step: int) -> tf.data.Dataset:
        """Batches of images and their boxes."""
        return data.detection_batches(
            self.source,
            self.batch,
            seed=self.recipe.seed,
            augment=self.augment(views),
            start_step=first_step,
        )

    def validation(self) -> None:
        """None: mean average precision is no metric of a step."""

    def calibration(self, count: int) -> np.ndarray:
        """So many training images, scaled."""
        return np.asarray(self.source.preprocess(_some(self.source.x_train, count, self.recipe)))

    def examples(self, count: int | None) -> np.ndarray:
        """So many test images, as pixels."""
        return _some(self.source.x_test, count, self.recipe)

    def network(self, name: str | None, is_teacher: bool) -> keras.Model:
        """An SSD: teacher, student, depthwise or tiny, or widths such as "16,32,64,64"."""
        name = name or ("teacher" if is_teacher else "student")
        backbone: Any = name
        if name not in NETWORKS:
            parts = name.split(",")
            if not all(part.strip().isdecimal() for part in parts):
                expected = f"one of {', '.join(NETWORKS)}, or widths such as 16,32,64,64"
                raise checks.value_error("network", expected, name, checks.near(name, NETWORKS))
            backbone = tuple(map(int, parts))
        size = self.source.image_shape[:2]
        return models.ssd(backbone, self.found.num_classes, size, anchors=self.anchors)

    def compile_alone(self, model: keras.Model, optimizer: Any) -> keras.Model:
        """Compiles with SSD's loss."""
        model.compile(optimizer, loss=losses.MultiBoxLoss(self.matcher))
        return model

    def distiller(
        self, teacher: Any, student: keras.Model, like: keras.Model, settings: Any, optimizer: Any
    ) -> keras.Model:
        """A Distiller with the terms of boxes and classes, which weigh the labels themselves."""
        made = Distiller(teacher, student, **losses.multibox_objective(self.matcher))
        made.compile(optimizer)
        return made

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """The boxes of the test images."""
        return {"boxes": self.found.test.boxes, "classes": self.found.test.y}

    def score(self, model: keras.Model, part: str = "test") -> float:
        """Mean average precision."""
        chosen = self.found.test if part == "test" else self.found.val
        found = float(self._scores(model, chosen).map)
        return 0.0 if np.isnan(found) else found

    def scores(self, model: Any) -> report.DetectionScores:
        """COCO's scores of a Keras model on the test images."""
        return self._scores(model, self.found.test)

    def _scores(self, model: Any, part: Part) -> report.DetectionScores:
        truth = {"boxes": part.boxes, "classes": part.y}
        return report.evaluate_detector(model, part.x, truth, self.anchors, self.class_names)

    def to_tflite(self, model: keras.Model, path: Any, io: str, count: int) -> Any:
        """A file that returns boxes, classes and scores, with labels and anchors in it."""
        return export.detector_to_tflite(
            model,
            path,
            self.anchors,
            io=io,
            labels=self.class_names,
            verify=self._verifiable(model, count),
            keep_failed=True,
        )

    def to_onnx(self, model: keras.Model, path: Any, count: int) -> Any:
        """A file for TensorRT with the two outputs of the network."""
        return export.detector_to_onnx(
            model,
            path,
            self.anchors,
            target="tensorrt",
            labels=self.class_names,
            verify=self._verifiable(model, count),
            keep_failed=True,
        )

    def _verifiable(self, model: keras.Model, count: int) -> Any:
        """Test images in which the model detects something; True if there are none."""
        if not count:
            return False
        x = self.examples(count)
        found = report.detect(model, x, self.anchors, score_threshold=_SEEN)
        return x if np.any(found["num_detections"]) else True


def anchors_file(path: str | pathlib.Path) -> pathlib.Path | None:
    """The file of a detector's anchors: MODEL.anchors.json, or anchors.json in its folder."""
    path = pathlib.Path(path)
    beside = pathlib.Path(f"{path}.anchors.json"), path.parent / "anchors.json"
    return next((file for file in beside if file.is_file()), None)


def anchors_of(path: str | pathlib.Path) -> detection.Anchors:
    """The anchors beside the file of a detector.

    Raises:
        ValueError: if there are none.
    """
    file = anchors_file(path)
    if file is None:
        fix = (
            "Anchors are not in a detector's graph: write them with `anchors.save(path)`. For a "
            "classifier give images in one folder a class; a detector is made by `tfkd fit`."
        )
        expected = "a detector with anchors.json beside it, as the data are boxes"
        raise checks.value_error("model", expected, str(path), fix)
    return detection.Anchors.load(file)


def _some(images: np.ndarray, count: int | None, recipe: Recipe) -> np.ndarray:
    if count is None or count >= len(images):
        return images
    return images[np.sort(np.random.default_rng(recipe.seed).permutation(len(images))[:count])]
