"""Export of detectors to TFLite, with post-processing in the file or with raw outputs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.detection import Anchors
from tfkd.detection import boxes as box_math
from tfkd.detection.decoding import decode
from tfkd.export import checking, made_up, tflite, tflite_float16
from tfkd.export import thresholds as verifying
from tfkd.export.converter import quiet
from tfkd.export.detector import flatbuffer, parity
from tfkd.export.detector.tflite_postprocess import add_postprocess
from tfkd.export.named_function import NamedFunction
from tfkd.export.parity import ExportReport
from tfkd.export.tflite_conversion import Source, prepare
from tfkd.formats import detector_recipe, litert
from tfkd.formats.batching import chunks
from tfkd.formats.detector import DetectorPredictor
from tfkd.formats.detector_numpy import Detections
from tfkd.formats.detector_recipe import HEADS, DetectorRecipe
from tfkd.types import Data, Path

NOT_FOUND = "The exported file does not detect what the Keras model does"
_CHUNK = 16  # Images that are decoded at a time: thousands of priors each take memory.


@dataclasses.dataclass(frozen=True)
class DetectorReport(ExportReport):
    """An `ExportReport` of a detector.

    Attributes:
        heads: "postprocess" or "raw": what the file outputs.
        labels: name of each class.
    """

    heads: str
    labels: tuple[str, ...]

    def _about(self) -> list[tuple[str, str]]:
        kind = f"{self.mode}, {self.io}, {self.heads}"
        return [("mode, io, heads", kind), ("operations", self._operations())]

    def _compared(self) -> list[tuple[str, str]]:
        said = f"{self.numbers['examples']} examples"
        return [("verified on", said), *parity.rows(self.numbers["detections"])]


def detector_to_tflite(
    model: keras.Model,
    path: Path,
    anchors: Anchors | ArrayLike,
    *,
    heads: str = "postprocess",
    mode: str | None = None,
    io: str = "float32",
    labels: Sequence[str] | None = None,
    mean: float | Sequence[float] = 127.5,
    std: float | Sequence[float] = 127.5,
    data: Data | None = None,
    verify: Data | bool = True,
    thresholds: Mapping[str, float] | None = None,
    keep_failed: bool = False,
    **decode_options: Any,
) -> DetectorReport:
    """Exports a detector as a `.tflite` file and, with `verify`, verifies it in LiteRT.

    The file is self-contained: it includes labels, anchors and thresholds, and
    `tfkd.export.load_detector` opens it without the model. It takes one image at a time.

    With `heads="postprocess"` the file outputs detections, by TFLite's own operation
    TFLite_Detection_PostProcess, in float whatever the mode of the network. Outputs are
    named and ordered as in TensorFlow's own detectors: boxes (1, N, 4) as
    (ymin, xmin, ymax, xmax), classes (1, N), scores (1, N), count (1,). TFLite metadata
    with labels and scaling make it a model for MediaPipe's object detector (with `io`
    "float32" or "uint8").

    With `heads="raw"` the file has the network's outputs with the names of the model,
    and `load_detector` decodes them in NumPy as `tfkd.detection.decode` does.

    Args:
        model: a built `tf_keras.Model` with one input, images, and a dict of offsets and
            logits as output, like that of `tfkd.models.ssd`; or such a model quantized by
            `tfkd.quantization` for TFLite and calibrated.
        path: where to write the file; missing folders are created.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        heads: what the file outputs, "postprocess" or "raw".
        mode: as in `to_tflite`: "float32", "float16", "dynamic" or "int8".
        io: dtype of the input and, with "raw", of the outputs; "uint8" and "int8" need
            mode "int8". A "uint8" input takes raw pixels: its scale is 1/std, its zero
            point the rounded mean.
        labels: names of the classes without the background; None: class indices.
        mean, std: the network expects (pixels − mean) / std: scalars, or one number per
            channel.
        data: calibration images for "int8" from a float model, in any form of
            `tfkd.example_inputs`: uint8 pixels, or floats scaled as in training.
        verify: images with objects in them, in the same forms: the detections of the file
            are compared with those of `model` (by `tfkd.detection.decode`). True: a small
            check of the network on synthetic images; False: no check. See `to_tflite`.
        thresholds: changes to the thresholds of `verify`: `min_found`, the fraction of
            the objects of either side that the other must detect, and
            `max_score_difference`, a mean. The defaults by mode are in
            `tfkd.export.detector.parity.THRESHOLDS`.
        keep_failed: whether to keep a file that fails verification; the error is raised
            in either case.
        **decode_options: options of `tfkd.detection.decode`: score_threshold,
            iou_threshold, max_detections, variances, background, output names, ...

    Returns:
        A `DetectorReport`; `print(report)`. `report.numbers["detections"]` holds the
        results of `tfkd.export.detector.parity.compare_detections`; with "raw",
        `numbers["heads"]` compares the network's outputs.

    Raises:
        TypeError, ValueError: if an argument is wrong, the model is not such a detector,
            the converter rejects it, or the file fails its verification.
        OSError: if `path` cannot be written.

    Example:
        >>> import os, tempfile, numpy as np, tf_keras as keras
        >>> from tfkd import export
        >>> image = keras.Input((8, 8, 3))
        >>> x = keras.layers.GlobalAveragePooling2D()(image)
        >>> box = keras.layers.Reshape((2, 4))(keras.layers.Dense(8)(x))
        >>> kind = keras.layers.Reshape((2, 3))(keras.layers.Dense(6)(x))
        >>> model = keras.Model(image, {"boxes": box, "classes": kind})
        >>> priors = np.float32([[0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.4, 0.4]])
        >>> path = os.path.join(tempfile.mkdtemp(), "m.tflite")
        >>> report = export.detector_to_tflite(model, path, priors, labels=["cat", "dog"])
        >>> detector = export.load_detector(path)
        >>> found = detector(np.zeros((5, 8, 8, 3), "uint8"))
        >>> detector.labels, found["boxes"].shape
        (('cat', 'dog'), (5, 100, 4))
    """
    checks.one_of("heads", heads, HEADS)
    convert = functools.partial(scaled, mean=mean, std=std)
    source = prepare(model, mode, io, data, 1, convert)
    scaling = mean, std, io == "uint8"
    recipe = make_recipe(source.graph, anchors, heads, labels, scaling, decode_options)
    limits = parity.thresholds_for(source.kind, thresholds)
    examples = examples_for(verify, source.graph, source.calibration, convert)
    numbers: dict[str, Any] = {}
    record = {**source.recipe(io), "format": "tflite detector", "thresholds": limits}
    record["detector"] = recipe.to_json()
    with checking.written(path, record, numbers, NOT_FOUND, keep_failed) as (file, failed):
        network = source.convert(io, 1, float_outputs=heads == "postprocess")
        file.write_bytes(_written(network, recipe))
        source.count(file, numbers)
        check = _Check(source, recipe, file, network, limits)
        failed += check_detector(examples, check, source.kind, numbers)
        if failed and source.mode == "float16":
            failed += tflite_float16.problems(source.graph)
    path = pathlib.Path(path)
    size = path.stat().st_size
    return DetectorReport(path, size, source.mode, io, numbers, heads, recipe.labels)


def _written(data: bytes, recipe: DetectorRecipe) -> bytes:
    """Adds input scaling, post-processing and recipe to the bytes of the network's file."""
    if recipe.pixels or recipe.heads == "postprocess":
        model = flatbuffer.opened(data)
        if recipe.pixels:
            flatbuffer.take_pixels(model, recipe.mean[0], recipe.std[0])
        if recipe.heads == "postprocess":
            add_postprocess(model, recipe)
        data = flatbuffer.packed(model)
    return detector_recipe.with_archive(data, recipe)


def scaled(images: Any, mean: float | Sequence[float], std: float | Sequence[float]) -> Any:
    """Scales uint8 pixels to the network's input; returns everything else as it is."""
    if getattr(images, "dtype", None) != np.uint8:
        return images
    return ((np.asarray(images, np.float32) - np.float32(mean)) / np.float32(std)).astype("float32")


def make_recipe(
    graph: NamedFunction,
    anchors: Anchors | ArrayLike,
    heads: str,
    labels: Sequence[str] | None,
    scaling: tuple[float | Sequence[float], float | Sequence[float], bool],
    options: Mapping[str, Any],
) -> DetectorRecipe:
    """Checks that anchors, labels and options fit a model; `scaling` is (mean, std, pixels)."""
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(decode).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in options:
        checks.one_of("decode_options", key, known)
    options = {**known, **options}
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 3 or -1 in graph.inputs[0].shape:
        shown = [(i.name, i.shape) for i in graph.inputs]
        fix = "Priors belong to one size: x = keras.Input(shape), then keras.Model(x, model(x))."
        raise checks.value_error(
            "model", "a model of one input, images of a fixed size", shown, fix
        )
    with quiet():
        outputs = graph.function(1).get_concrete_function().structured_outputs
    empty = {k: tf.zeros([1 if s is None else s for s in v.shape]) for k, v in outputs.items()}
    decode(empty, anchors, **options)  # Only for its checks of the arguments.
    classes = outputs[options["classes"]].shape[-1] - int(options["background"])
    options["variances"] = [float(v) for v in options["variances"]]
    size = graph.inputs[0].shape
    return DetectorRecipe(
        heads,
        detector_recipe.check_labels(labels, classes),
        size,
        *detector_recipe.check_scaling(*scaling, size[2]),
        options,
        box_math.check_priors(anchors),
    )


def keras_detections(outputs: Mapping[str, np.ndarray], recipe: DetectorRecipe) -> Detections:
    """Decodes a model's outputs to detections with `tfkd.detection.decode`."""
    parts = [decode(p, recipe.priors, **recipe.options) for p in chunks(outputs, _CHUNK)]
    return {key: np.concatenate([part[key].numpy() for part in parts]) for key in parts[0]}


def examples_for(
    verify: Data | bool,
    graph: NamedFunction,
    calibration: Mapping[str, np.ndarray] | None,
    convert: Callable[[Any], Any],
) -> checking.VerifyData:
    """`checking.examples` for a detector, whose synthetic inputs are scaled random pixels."""
    (image,) = graph.inputs

    def make() -> dict[str, np.ndarray]:
        pixels = made_up.pixels(image.shape)
        return {image.name: convert(pixels) if image.dtype.kind == "f" else pixels}

    return checking.examples(verify, graph, None, calibration, make, least=1, convert=convert)


class DetectorCheck:
    """Compares a detector's file with its Keras model on images; the formats derive from it."""

    limits: Mapping[str, float]
    given: checking.Compare
    network_outputs: checking.Compare

    def made_up(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares the network's outputs, since synthetic images need not contain objects."""
        numbers, ranks = self.network_outputs(images)
        detections = self.given(images)[0]["detections"]
        doubts = parity.doubts(detections, self.limits)
        return {**numbers, "detections": detections, "doubts": doubts}, ranks


def check_detector(
    examples: checking.VerifyData, check: DetectorCheck, kind: str, numbers: dict[str, Any]
) -> list[str]:
    """`checking.checked` by detections on given images, by the network's outputs on others."""
    return checking.checked(
        examples,
        check.given if examples.source == checking.GIVEN else check.made_up,
        verifying.thresholds_for(kind, None),
        numbers,
        lambda found, _: parity.failures(found["detections"], check.limits),
    )


@dataclasses.dataclass(frozen=True)
class _Check(DetectorCheck):
    """Compares a TFLite file with its Keras model on images.

    Attributes:
        source, recipe: the model.
        path: path of the file.
        network: the bytes of a TFLite file of the network without post-processing.
        limits: thresholds of `tfkd.export.detector.parity`.
    """

    source: Source
    recipe: DetectorRecipe
    path: pathlib.Path
    network: bytes
    limits: Mapping[str, float]

    def given(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares detections, and the network's outputs where the file has them."""
        expected = self.source.graph.predict(images)
        predictor = DetectorPredictor(self.path)
        (arrays,) = images.values()
        threshold = self.recipe.options["score_threshold"]
        detections = parity.compare_detections(
            keras_detections(expected, self.recipe), predictor(arrays), threshold
        )
        numbers: dict[str, Any] = {"examples": len(arrays), "detections": detections}
        if self.recipe.heads == "raw":
            limits = litert.output_limits(self.path)
            numbers["heads"] = parity.compare_heads(
                expected, predictor.outputs(arrays), limits, self.recipe.options
            )
        return numbers, {}

    def network_outputs(
        self, images: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares the network's outputs, from a file without post-processing."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.tflite"
            path.write_bytes(self.network)
            return tflite.compare_file(self.source.graph, path, images)
