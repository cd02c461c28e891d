"""Object detection with a self-contained `.tflite` file, without TensorFlow."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from tfkd import artifacts, checks, example_inputs
from tfkd.formats import detector_numpy, detector_recipe, forks, litert
from tfkd.formats.detector_numpy import Detections
from tfkd.formats.detector_recipe import OUTPUTS
from tfkd.types import Data, Path


class DetectorPredictor:
    """Detects objects in images with a file that `detector_to_tflite` wrote.

    The file holds all that is needed: labels, image size and scaling, thresholds and
    anchors. It runs in ai-edge-litert, without TensorFlow. A predictor is not
    thread-safe: use one per thread.

    Args:
        path: the `.tflite` file. If there is a manifest beside it, the file is checked
            against it first.
        threads: number of threads within one call.

    Attributes:
        labels: name of each class.
        size: height, width and channels of the images.
        heads: "raw" or "postprocess": what the file computes. Predictions have the same
            form either way.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file was not written by `detector_to_tflite`, is damaged, or
            LiteRT cannot run it.
        ImportError: if ai-edge-litert is not installed.
    """

    def __init__(self, path: Path, threads: int = 1):
        checks.instance("path", path, (str, os.PathLike), "the path of a .tflite file")
        self.path = pathlib.Path(path)
        self.threads = checks.positive_int("threads", threads)
        if self.path.is_file() and artifacts.manifest_path(self.path).is_file():
            artifacts.verify(self.path)
        self.recipe = detector_recipe.read(self.path)
        self._interpreter = litert.open_interpreter(self.path, threads)
        forks.register(self)
        (self._input,), self._outputs = litert.ports(self._interpreter)
        options = self.recipe.options
        wanted = OUTPUTS if self.heads == "postprocess" else (options["boxes"], options["classes"])
        names = {port.name for port in self._outputs}
        if not set(wanted) <= names:
            expected = f"a file with the outputs {list(wanted)}"
            raise checks.value_error("path", expected, sorted(names))

    def __repr__(self) -> str:
        return f"DetectorPredictor({str(self.path)!r}, threads={self.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles path and threads; unpickling opens the file again."""
        return type(self), (os.path.abspath(self.path), self.threads)

    def after_fork(self) -> None:
        """Runs in the child of a fork: drops the interpreter, whose threads are gone."""
        forks.keep_forever(self._interpreter)
        self._interpreter = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.recipe.labels

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return self.recipe.size

    @property
    def heads(self) -> str:
        """What the file computes: "raw" or "postprocess"."""
        return self.recipe.heads

    def predict(self, data: Data) -> Detections:
        """Detects the objects in a batch of images.

        Args:
            data: images (N, height, width, channels), in any form of
                `tfkd.example_inputs`: uint8 pixels, or floats scaled as in training.

        Returns:
            "boxes" (N, M, 4) float32 as (x1, y1, x2, y2) in [0, 1], "confidence" (N, M)
            float32, "classes" (N, M) int32 and "num_detections" (N,) int32. Rows are
            sorted by descending confidence; those after the last detection have box and
            class -1 and confidence 0.

        Raises:
            TypeError: if the images are neither uint8 nor floating-point.
            ValueError: if their shape is wrong.
        """
        result = self.outputs(data)
        if self.heads == "raw":
            return detector_numpy.decode(result, self.recipe.priors, self.recipe.options)
        return _collected(result, self.recipe.options["max_detections"])

    __call__ = predict

    def outputs(self, data: Data) -> dict[str, np.ndarray]:
        """The file's own outputs, before decoding: float32 arrays by output name."""
        # As codes of a quantized input are, pixels in uint8 are taken beside real numbers.
        spec = example_inputs.Input("images", self.size, np.dtype(np.uint8), quantized=True)
        options: Any = {"part": "test", "whole": True}
        images = example_inputs.collect("data", data, [spec], **options)["images"]
        found = [self._run(image) for image in np.split(self.recipe.fed(images), len(images))]
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

    def _run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if self._interpreter is None:
            self._interpreter = litert.open_interpreter(self.path, self.threads)
        feeds = {self._input.name: image}
        return litert.run(self._interpreter, [self._input], self._outputs, feeds)


def load_detector(path: Path, threads: int = 1) -> DetectorPredictor:
    """Opens a detector's `.tflite` file.

    Args:
        path: a file that `detector_to_tflite` wrote.
        threads: number of threads within one call.

    Returns:
        A `tfkd.runtime.DetectorPredictor`; call it on uint8 images (N, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file was not written by `detector_to_tflite`, is damaged, or
            LiteRT cannot run it.
        ImportError: if ai-edge-litert is not installed.
    """
    return DetectorPredictor(path, threads)


def _collected(result: dict[str, np.ndarray], count: int) -> Detections:
    """Converts the outputs of TFLite's post-processing to the form of `tfkd.detection.decode`."""
    boxes, kinds, scores, numbers = (result[name] for name in OUTPUTS)
    images = []
    for box, kind, score, number in zip(boxes, kinds, scores, numbers, strict=True):
        # TFLite has (ymin, xmin, ymax, xmax).
        box = np.clip(box[: int(number)][:, [1, 0, 3, 2]], 0.0, 1.0)
        valid = (box[:, 2:] > box[:, :2]).all(-1)
        found = kind[: int(number)][valid].astype(np.int32)
        images.append((box[valid], score[: int(number)][valid], found))
    return detector_numpy.padded(images, count)
