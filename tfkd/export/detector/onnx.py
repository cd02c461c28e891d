"""Export of detectors to ONNX, with or without non-maximum suppression (NMS) in the file."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from numpy.typing import ArrayLike

from tfkd import checks
from tfkd.detection import Anchors
from tfkd.export import checking
from tfkd.export.detector import onnx_nms, parity
from tfkd.export.detector.tflite import (
    NOT_FOUND,
    DetectorCheck,
    check_detector,
    examples_for,
    keras_detections,
    make_recipe,
    scaled,
)
from tfkd.export.named_function import NamedFunction
from tfkd.export.onnx import export
from tfkd.export.onnx.export import OnnxReport
from tfkd.formats import detector_numpy, onnx_session
from tfkd.formats.detector_recipe import DetectorRecipe
from tfkd.types import Data, Path

NMS = ("none", "onnx", "efficient_nms")


@dataclasses.dataclass(frozen=True)
class OnnxDetectorReport(OnnxReport, title="ONNX detector report"):
    """An `OnnxReport` of a detector.

    Attributes:
        nms: the non-maximum suppression in the file: "none", "onnx" or "efficient_nms".
        labels: name of each class.
    """

    nms: str
    labels: tuple[str, ...]

    def _kind(self) -> tuple[str, str]:
        return "target, mode, nms", f"{self.target}, {self.mode}, {self.nms}, opset {self.opset}"

    def _compared(self) -> list[tuple[str, str]]:
        what = "without the plugin, " if self.nms == "efficient_nms" else ""
        said = f"{self.numbers['examples']} examples, {what}in ONNX Runtime"
        return [("verified on", said), *parity.rows(self.numbers["detections"])]


def detector_to_onnx(
    model: keras.Model,
    path: Path,
    anchors: Anchors | ArrayLike,
    nms: str = "none",
    *,
    target: str | None = None,
    labels: Sequence[str] | None = None,
    mean: float | Sequence[float] = 127.5,
    std: float | Sequence[float] = 127.5,
    precision: str = "float32",
    layout: str = "nhwc",
    opset: int | None = None,
    batch_size: int | None = None,
    int8_weights: bool = True,
    verify: Data | bool = True,
    thresholds: Mapping[str, float] | None = None,
    keep_failed: bool = False,
    **decode_options: Any,
) -> OnnxDetectorReport:
    """Exports a detector as an ONNX file and, with `verify`, verifies it in ONNX Runtime.

    With `nms="none"` the file is that of `to_onnx`: it has the network's two outputs.
    With "onnx" it outputs detections by the standard operator NonMaxSuppression, with
    names and shapes as in `tfkd.detection.decode` (with at most `candidates` rows). With
    "efficient_nms" it outputs num_detections (B, 1), detection_boxes (B, N, 4) as
    (x1, y1, x2, y2), detection_scores (B, N) and detection_classes (B, N) by TensorRT's
    plugin EfficientNMS_TRT; rows after num_detections are undefined. Since only TensorRT
    can run the plugin, verification runs the graph before it and suppresses in NumPy. The
    plugin considers 4,096 candidates regardless of `candidates`.

    Labels and settings are stored in the file as metadata, "labels" and "tfkd_detector",
    in JSON. Images must be scaled by `mean` and `std` before they are fed.

    Args:
        model: as for `detector_to_tflite`; a quantized model must be one for TensorRT.
        path: where to write the file; missing folders are created.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        nms: "none", "onnx" or "efficient_nms".
        target: as for `to_onnx`; None: "tensorrt" with "efficient_nms", else
            "onnxruntime".
        labels, mean, std: as for `detector_to_tflite`.
        precision, layout, opset, batch_size, int8_weights: as for `to_onnx`. Decoding
            and suppression are always in float32.
        verify, thresholds, keep_failed: as for `detector_to_tflite`.
        **decode_options: options of `tfkd.detection.decode`.

    Returns:
        An `OnnxDetectorReport`; `print(report)`.

    Raises:
        TypeError, ValueError: if an argument is wrong, the model is not such a detector,
            tf2onnx rejects it, or the file breaks a rule of TensorRT or fails its
            verification.
        ImportError: if onnx, tf2onnx or onnxruntime is missing.
        OSError: if `path` cannot be written.
    """
    checks.one_of("nms", nms, NMS)
    target = target or ("tensorrt" if nms == "efficient_nms" else "onnxruntime")
    record = export.check_options(
        opset,
        target=target, precision=precision, layout=layout,
        batch_size=batch_size, int8_weights=int8_weights,
    )  # fmt: skip
    if nms == "efficient_nms" and target != "tensorrt":
        fix = "ONNX Runtime does not know the plugin: use nms='onnx'."
        raise checks.value_error("target", "'tensorrt' with nms='efficient_nms'", target, fix)
    source, plain, mode = export.deployable(model, precision, target)
    recipe = make_recipe(source, anchors, "raw", labels, (mean, std, False), decode_options)
    limits = parity.thresholds_for(mode, thresholds)
    examples = examples_for(verify, source, None, functools.partial(scaled, mean=mean, std=std))
    numbers: dict[str, Any] = {}
    record |= {"format": "onnx detector", "model": source.model.name, "mode": mode, "nms": nms}
    record |= {"thresholds": limits, "detector": recipe.to_json()}
    with checking.written(path, record, numbers, NOT_FOUND, keep_failed) as (file, failed):
        proto = export.build(plain, record, opset, numbers)
        network = proto.SerializeToString()
        numbers["operations"] += _add(proto, recipe, nms, plain.outputs)
        findings = export.write(proto, file, record, numbers, failed)
        options = {"fuse": target == "onnxruntime", "half": precision == "float16"}
        check = _Check(source, recipe, nms, layout, proto, file, network, options, limits)
        failed += check_detector(examples, check, mode, numbers)
        numbers["failures"] = failed
    path = pathlib.Path(path)
    properties = path, path.stat().st_size, mode, "float32", numbers, target, record["opset"]
    return OnnxDetectorReport(*properties, findings, nms, recipe.labels)


def _add(proto: Any, recipe: DetectorRecipe, nms: str, names: list[str]) -> int:
    """Appends the suppression and the metadata; returns the number of added nodes."""
    before = len(proto.graph.node)
    if nms == "onnx":
        onnx_nms.add_standard_nms(proto, recipe, names)
    elif nms == "efficient_nms":
        onnx_nms.add_efficient_nms(proto, recipe, names)
    for key, value in (("labels", list(recipe.labels)), ("tfkd_detector", recipe.to_json())):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)
    return len(proto.graph.node) - before


@dataclasses.dataclass(frozen=True)
class _Check(DetectorCheck):
    """Compares an ONNX file with its Keras model on images."""

    graph: NamedFunction
    recipe: DetectorRecipe
    nms: str
    layout: str
    proto: Any
    path: pathlib.Path
    network: bytes
    options: Mapping[str, bool]
    limits: Mapping[str, float]

    def network_outputs(
        self, images: dict[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares the network's outputs, from the file without suppression."""
        return export.compare_file(self.graph, self.network, images, self.layout, **self.options)

    def given(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares detections, and the network's outputs where the file has them."""
        expected = self.graph.predict(images)
        feeds = export.feeds_of(images, self.layout)
        if self.nms == "efficient_nms":
            found, numbers = self._before_plugin(feeds, expected)
        else:
            session = onnx_session.open_session(self.path, fuse=self.options["fuse"])
            found, numbers = self._whole(onnx_session.run_all(session, feeds), expected)
        threshold = self.recipe.options["score_threshold"]
        detections = keras_detections(expected, self.recipe)
        numbers["detections"] = parity.compare_detections(detections, found, threshold)
        if self.options["half"]:
            numbers["overflows"] = onnx_session.overflows(self.network, feeds)
        return {"examples": len(next(iter(images.values()))), **numbers}, {}

    def _whole(self, results: dict[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Any:
        """(detections of the file, comparison of the network's outputs if the file has them)."""
        if self.nms == "onnx":
            integers = ("classes", "num_detections")
            return {k: v.astype(np.int32) if k in integers else v for k, v in results.items()}, {}
        heads = dict(zip(expected, results.values(), strict=True))
        options = self.recipe.options
        numbers = parity.compare_heads(expected, heads, {}, options)
        return detector_numpy.decode(heads, self.recipe.priors, options), {"heads": numbers}

    def _before_plugin(
        self, feeds: dict[str, np.ndarray], expected: Mapping[str, np.ndarray]
    ) -> Any:
        """(detections by NumPy, comparison of the plugin's inputs)."""
        options = self.recipe.options
        part = onnx_nms.without_plugin(self.proto).SerializeToString()
        session = onnx_session.open_session(part, fuse=self.options["fuse"])
        boxes, scores = onnx_session.run_all(session, feeds).values()
        right = detector_numpy.corners(expected[options["boxes"]], self.recipe.priors, options)
        wanted = detector_numpy.activated(expected[options["classes"]], options["background"])
        clear = wanted.max(-1) > parity.SCORE
        errors = np.abs(boxes - right)[clear], np.abs(scores - wanted)
        numbers = {
            "object_box_error": float(errors[0].max()) if clear.any() else None,
            "score_error": float(errors[1].max()),
        }
        return detector_numpy.suppress(boxes, scores, options), {"plugin_inputs": numbers}
