"""Runs a detector's `.tflite` file, with nothing else than the file."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from tfkd import artifacts, checks, example_inputs
from tfkd.formats import detector_numpy, detector_recipe, forks, litert
from tfkd.formats.detector_numpy import Detections
from tfkd.formats.detector_recipe import OUTPUTS


class DetectorPredictor:
    """Finds objects in images by a file that `detector_to_tflite` wrote.

    The file is all it needs: labels, size and scaling of the images, thresholds and
    anchors stand in it. Its outputs are found by their names. It runs in
    ai-edge-litert, without TensorFlow; one object belongs to one thread.

    Args:
        path: the `.tflite` file. If a manifest stands beside it, the file is checked
            against it first.
        threads: threads within one call.

    Attributes:
        labels: name of each class.
        size: height, width and channels of the images.
        heads: "raw" or "postprocess": what the file computes; calls give the same.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged, or LiteRT cannot run it.
        ImportError: if ai-edge-litert is not installed.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        checks.instance("path", path, (str, os.PathLike), "the path of a .tflite file")
        self.path = pathlib.Path(path)
        self.threads = checks.positive_int("threads", threads)
        if self.path.is_file() and artifacts.manifest_path(self.path).is_file():
            artifacts.verify(self.path)
        self.recipe = detector_recipe.read(self.path)
        self._interpreter = litert.open_interpreter(self.path, threads)
        forks.tell(self)
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
        """Pickled as path and threads: where it is unpickled, the file is opened anew."""
        return type(self), (os.path.abspath(self.path), self.threads)

    def after_fork(self) -> None:
        """In the child of a fork, where the interpreter's threads are gone."""
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

    def predict(self, data: Any) -> Detections:
        """Finds the objects of a batch.

        Args:
            data: images (N, height, width, channels), in any form of
                `tfkd.example_inputs`: pixels in uint8, or floats scaled as in training.

        Returns:
            "boxes" (N, M, 4) as (x1, y1, x2, y2) within 0 and 1, "confidence" (N, M),
            "classes" (N, M) int32, "num_detections" (N,) int32, by falling confidence;
            rows beyond it have box and class -1 and confidence 0.

        Raises:
            TypeError: if the images are of another kind.
            ValueError: if their shape is wrong.
        """
        result = self.outputs(data)
        if self.heads == "raw":
            return detector_numpy.decode(result, self.recipe.priors, self.recipe.options)
        return _collected(result, self.recipe.options["max_detections"])

    __call__ = predict

    def outputs(self, data: Any) -> dict[str, np.ndarray]:
        """What the file computes, as it is: float32 arrays by name of the output."""
        images = np.asarray(example_inputs.arrays("data", data, 1, labels=False, part="test").x)
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            fix = "Pixels are uint8; floats are taken as scaled already."
            raise checks.type_error("data", "uint8 or floating-point images", images, fix)
        if images.shape[1:] != self.size:
            fix = "One image? Add the batch axis: `images[None]`."
            raise checks.value_error(
                "data",
                f"at least one image, of shape (N, {', '.join(map(str, self.size))})",
                images,
                fix if images.shape == self.size else "Resize them.",
            )
        found = [self._run(image) for image in np.split(self.recipe.fed(images), len(images))]
        return {name: np.concatenate([row[name] for row in found]) for name in found[0]}

    def _run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        if self._interpreter is None:
            self._interpreter = litert.open_interpreter(self.path, self.threads)
        feeds = {self._input.name: image}
        return litert.run(self._interpreter, [self._input], self._outputs, feeds)


def load_detector(path: str | os.PathLike, threads: int = 1) -> DetectorPredictor:
    """Opens a detector's `.tflite` file to find objects with it.

    Args:
        path: a file that `detector_to_tflite` wrote.
        threads: threads within one call.

    Returns:
        A `tfkd.runtime.DetectorPredictor`; call it on uint8 images (N, H, W, 3).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged, or LiteRT cannot run it.
        ImportError: if ai-edge-litert is not installed.
    """
    return DetectorPredictor(path, threads)


def _collected(result: dict[str, np.ndarray], count: int) -> Detections:
    """The four outputs of the post-processing in the form of `tfkd.detection.decode`."""
    boxes, kinds, scores, numbers = (result[name] for name in OUTPUTS)
    images = []
    for box, kind, score, number in zip(boxes, kinds, scores, numbers, strict=True):
        box = np.clip(box[: int(number)][:, [1, 0, 3, 2]], 0.0, 1.0)
        valid = (box[:, 2:] > box[:, :2]).all(-1)
        found = kind[: int(number)][valid].astype(np.int32)
        images.append((box[valid], score[: int(number)][valid], found))
    return detector_numpy.padded(images, count)
