"""Detectors as TFLite files: with their post-processing, or as the network alone."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.export import checking, made_up, tflite, tflite_float16
from tfkd.export import parity as verifying
from tfkd.export.detector import flatbuffer, parity
from tfkd.export.detector.tflite_postprocess import add_postprocess
from tfkd.export.named_function import NamedFunction
from tfkd.export.parity import ExportReport
from tfkd.export.tflite import Source
from tfkd.formats import detector_recipe, litert
from tfkd.formats.detector import DetectorPredictor
from tfkd.formats.detector_numpy import Detections
from tfkd.formats.detector_recipe import HEADS, DetectorRecipe

_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class DetectorReport(ExportReport):
    """An `ExportReport` of a detector.

    Attributes:
        heads: "postprocess" or "raw"; in an ONNX file the kind of suppression.
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
    model: Any,
    path: str | os.PathLike[str],
    anchors: Any,
    *,
    heads: str = "postprocess",
    mode: str | None = None,
    io: str = "float32",
    labels: Any = None,
    mean: Any = 127.5,
    std: Any = 127.5,
    data: Any = None,
    verify: Any = True,
    thresholds: Mapping[str, float] | None = None,
    keep_failed: bool = False,
    **decode_options: Any,
) -> DetectorReport:
    """Writes a detector as a `.tflite` file and, with `verify`, proves it in LiteRT.

    The file stands alone: `tfkd.export.load_detector` reads it without the model, and
    finds labels, anchors and thresholds in it. It takes one image at a time.

    With `heads="postprocess"` the file gives detections, by TFLite's own
    TFLite_Detection_PostProcess in float, whatever the network in front of it computes
    in. Outputs are named and ordered as those of TensorFlow's detectors: boxes
    (1, N, 4) as (ymin, xmin, ymax, xmax), classes (1, N), scores (1, N), count (1,).
    Labels and scaling stand in the file as TFLite metadata, so that MediaPipe's object
    detector takes it (`io` "float32" or "uint8").

    With `heads="raw"` the file gives the network's outputs, by the names of the model,
    and `load_detector` decodes them in NumPy as `tfkd.detection.decode` does.

    Args:
        model: a built `tf_keras.Model` of one input, images, whose output is a dict
            of offsets and logits, as those of `tfkd.models.ssd`; or such a model,
            quantized by `tfkd.quantization` for TFLite, and calibrated.
        path: where to write; the folder is made if need be.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        heads: "postprocess" or "raw".
        mode: as in `to_tflite`: "float32", "float16", "dynamic" or "int8".
        io: type of the input, "uint8" and "int8" with mode "int8" only; with "raw" of
            the outputs too. "uint8" takes the pixels as they are (its zero point is the
            rounded mean), which no `to_tflite` can promise.
        labels: names of the classes, without the background; None: their numbers.
        mean, std: the network takes (pixels − mean) / std: a number, or one for each
            channel.
        data: images for "int8" from a float model, in any form of `tfkd.example_inputs`:
            uint8 pixels, or scaled as in training.
        verify: True: a small check of the network, on made-up images; images, likewise,
            with objects in them: what the file detects is compared with what `model`
            detects (decoded by `tfkd.detection.decode`); False: no check. See
            `to_tflite`.
        thresholds: changes to what `verify` must reach: `min_found`, the share of
            objects of each that the other must find, and `max_score_difference`, mean.
            Defaults by mode: `tfkd.export.detector.parity.THRESHOLDS`.
        keep_failed: leave a file that failed in place, and raise all the same.
        **decode_options: of `tfkd.detection.decode`: score_threshold, iou_threshold,
            max_detections, variances, background, names of the outputs, ...

    Returns:
        A `DetectorReport`; `print(report)`. `report.numbers["detections"]` is
        what `tfkd.export.detector.parity.compare` returns; with "raw",
        `numbers["heads"]` compares the outputs themselves.

    Raises:
        TypeError, ValueError: if an argument is wrong, the model is no such detector,
            the converter refuses it, or the file fails its verification.
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
    source = tflite.prepare(model, mode, io, data, 1, convert)
    scaling = mean, std, io == "uint8"
    recipe = make_recipe(source.graph, anchors, heads, labels, scaling, decode_options)
    limits = parity.thresholds_for(source.kind, thresholds)
    examples = examples_for(verify, source.graph, source.calibration, convert)
    with artifacts.atomic_path(path) as temporary:
        network = source.convert(io, 1, float_outputs=heads == "postprocess")
        temporary.write_bytes(_written(network, recipe))
        numbers: dict[str, Any] = {**litert.operations(temporary)}
        if source.mode == "int8":
            numbers["in_float"] = litert.in_float(temporary)
        check = _Check(source, recipe, temporary, network, limits)
        failed = check_detector(examples, check, source.kind, numbers)
        if failed and source.mode == "float16":
            failed = [*failed, *tflite_float16.problems(source.graph.model)]
        if failed and not keep_failed:
            raise failure(failed, "No file was left.")
    record = {
        "format": "tflite detector",
        "model": source.graph.model.name,
        "mode": source.mode,
        "quantized": source.quantized,
        "io": io,
        "calibrated_on": source.calibrated_on,
        "thresholds": limits,
        "detector": recipe.to_json(),
    }
    manifest = artifacts.write_manifest(path, record, numbers=numbers)
    if failed:
        raise failure(failed, f"The file was kept: {os.fspath(path)}.")
    return DetectorReport(
        pathlib.Path(path), manifest["bytes"], source.mode, io, numbers, heads, recipe.labels
    )


def _written(data: bytes, recipe: DetectorRecipe) -> bytes:
    """The bytes of the file, from those of the network alone."""
    if recipe.pixels or recipe.heads == "postprocess":
        model = flatbuffer.opened(data)
        if recipe.pixels:
            flatbuffer.take_pixels(model, recipe.mean[0], recipe.std[0])
        if recipe.heads == "postprocess":
            add_postprocess(model, recipe)
        data = flatbuffer.packed(model)
    return detector_recipe.with_archive(data, recipe)


def failure(failed: list[str], end: str) -> ValueError:
    """The error of a file that is not good enough."""
    return ValueError(
        "The exported file does not detect what the Keras model does: " + "; ".join(failed)
        + f". {end} `thresholds` sets what is good enough."
    )  # fmt: skip


def scaled(images: Any, mean: Any, std: Any) -> Any:
    """uint8 pixels as the network takes them; everything else is left to `collect`."""
    if getattr(images, "dtype", None) != np.uint8:
        return images
    return ((np.asarray(images, np.float32) - np.float32(mean)) / np.float32(std)).astype("float32")


def make_recipe(
    graph: NamedFunction,
    anchors: Any,
    heads: str,
    labels: Any,
    scaling: tuple[Any, Any, bool],
    options: Mapping[str, Any],
) -> DetectorRecipe:
    """Holds a model against its anchors, labels and options; `scaling` is mean, std, pixels."""
    import tensorflow as tf

    from tfkd.detection import boxes as box_math
    from tfkd.detection.decoding import decode

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
        expected = "a model of one input, images of a fixed size"
        raise checks.value_error("model", expected, shown)
    outputs = graph.function(1).get_concrete_function().structured_outputs
    empty = {k: tf.zeros([1 if s is None else s for s in v.shape]) for k, v in outputs.items()}
    decode(empty, anchors, **options)  # its checks are all that is wanted
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
    """What a model's outputs detect, by `tfkd.detection.decode`."""
    from tfkd.detection.decoding import decode

    count = len(outputs[recipe.options["boxes"]])
    parts = []
    for start in range(0, count, _CHUNK):
        part = {k: v[start : start + _CHUNK] for k, v in outputs.items()}
        parts.append(decode(part, recipe.priors, **recipe.options))
    return {key: np.concatenate([part[key].numpy() for part in parts]) for key in parts[0]}


def examples_for(
    verify: Any, graph: NamedFunction, calibration: Any, convert: Callable[[Any], Any]
) -> checking.Examples:
    """What a detector's file is compared on; made-up images are pixels, scaled."""
    (image,) = graph.inputs

    def make() -> dict[str, np.ndarray]:
        pixels = made_up.pixels(image.shape)
        return {image.name: convert(pixels) if image.dtype.kind == "f" else pixels}

    return checking.examples(verify, graph, None, calibration, make, least=1, convert=convert)


def check_detector(
    examples: checking.Examples, check: Any, kind: str, numbers: dict[str, Any]
) -> list[str]:
    """`checking.checked`: by what is detected on given images, else by the network's outputs."""
    return checking.checked(
        examples,
        check.given if examples.source == checking.GIVEN else check.made_up,
        verifying.thresholds_for(kind, None),
        numbers,
        lambda found, _: parity.failures(found["detections"], check.limits),
    )


@dataclasses.dataclass(frozen=True)
class _Check:
    """Runs the file and Keras on the same images.

    Attributes:
        source, recipe: the model.
        path: of the file.
        network: the bytes of a file of the network alone.
        limits: of `detection_matching`.
    """

    source: Source
    recipe: DetectorRecipe
    path: pathlib.Path
    network: bytes
    limits: Mapping[str, float]

    def given(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares detections, and the outputs where they are seen."""
        expected = self.source.graph.predict(images)
        predictor = DetectorPredictor(self.path)
        (arrays,) = images.values()
        threshold = self.recipe.options["score_threshold"]
        detections = parity.compare(
            keras_detections(expected, self.recipe), predictor(arrays), threshold
        )
        numbers: dict[str, Any] = {"examples": len(arrays), "detections": detections}
        if self.recipe.heads == "raw":
            limits = litert.output_limits(self.path)
            numbers["heads"] = parity.compare_heads(
                expected, predictor.outputs(arrays), limits, self.recipe.options
            )
        return numbers, {}

    def made_up(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares the network's outputs: on made-up images there need be no objects."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "network.tflite"
            path.write_bytes(self.network)
            numbers, ranks = tflite.compare(self.source.graph, path, images)
        detections = self.given(images)[0]["detections"]
        doubts = parity.doubts(detections, self.limits)
        return {**numbers, "detections": detections, "doubts": doubts}, ranks
