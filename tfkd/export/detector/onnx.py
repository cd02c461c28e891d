"""Detectors as ONNX files: the network alone, or with its suppression of doubles."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.export.detector import onnx_nms, parity
from tfkd.export.detector.tflite import (
    check_detector,
    examples_for,
    failure,
    keras_detections,
    make_recipe,
    scaled,
)
from tfkd.export.named_function import NamedFunction
from tfkd.export.onnx import export
from tfkd.export.onnx.export import OnnxReport
from tfkd.export.tensorrt_lint.lint import lint_model
from tfkd.formats import detector_numpy, onnx_session
from tfkd.formats.detector_recipe import DetectorRecipe

NMS = ("none", "onnx", "efficient_nms")


@dataclasses.dataclass(frozen=True)
class OnnxDetectorReport(OnnxReport, title="ONNX detector report"):
    """An `OnnxReport` of a detector.

    Attributes:
        nms: "none", "onnx" or "efficient_nms".
        labels: name of each class.
    """

    nms: str
    labels: tuple[str, ...]

    def _kind(self) -> tuple[str, str]:
        about = f"{self.target}, {self.mode}, {self.nms}, opset {self.opset}"
        return "target, mode, nms", about

    def _compared(self) -> list[tuple[str, str]]:
        what = "without the plugin, " if self.nms == "efficient_nms" else ""
        said = f"{self.numbers['examples']} examples, {what}in ONNX Runtime"
        return [("verified on", said), *parity.rows(self.numbers["detections"])]


def detector_to_onnx(
    model: Any,
    path: str | os.PathLike[str],
    anchors: Any,
    nms: str = "none",
    *,
    target: str | None = None,
    labels: Any = None,
    mean: Any = 127.5,
    std: Any = 127.5,
    precision: str = "float32",
    layout: str = "nhwc",
    opset: int | None = None,
    batch_size: int | None = None,
    int8_weights: bool = False,
    verify: Any = True,
    thresholds: Mapping[str, float] | None = None,
    keep_failed: bool = False,
    **decode_options: Any,
) -> OnnxDetectorReport:
    """Writes a detector as an ONNX file and, with `verify`, proves it in ONNX Runtime.

    With `nms="none"` the file is that of `to_onnx`: the network's two outputs. With
    "onnx" it gives detections, named and shaped as those of `tfkd.detection.decode`
    (with at most `candidates` rows), by the standard operator. With "efficient_nms" it
    gives TensorRT's num_detections (B, 1), detection_boxes (B, N, 4) as
    (x1, y1, x2, y2), detection_scores and detection_classes (B, N), by the plugin
    EfficientNMS_TRT; rows beyond num_detections mean nothing. Only TensorRT runs it,
    so that the check runs all before it and suppresses in NumPy; the plugin looks at
    4,096 candidates whatever `candidates` says.

    Labels and settings stand in the file as metadata, "labels" and "tfkd_detector", in
    JSON. The network takes images scaled by `mean` and `std`, which the file does not do.

    Args:
        model: as for `detector_to_tflite`; a quantized model is one for TensorRT.
        path: where to write; the folder is made if need be.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        nms: "none", "onnx" or "efficient_nms".
        target: as for `to_onnx`; None: "tensorrt" with "efficient_nms", else
            "onnxruntime".
        labels, mean, std: as for `detector_to_tflite`.
        precision, layout, opset, batch_size, int8_weights: as for `to_onnx`. What comes
            behind the network is in float32.
        verify, thresholds, keep_failed: as for `detector_to_tflite`.
        **decode_options: of `tfkd.detection.decode`.

    Returns:
        An `OnnxDetectorReport`; `print(report)`.

    Raises:
        TypeError, ValueError: if an argument is wrong, the model is no such detector,
            tf2onnx refuses it, or the file breaks a rule of TensorRT or fails its
            verification.
        ImportError: if onnx, tf2onnx or onnxruntime is missing.
        OSError: if `path` cannot be written.
    """
    checks.one_of("nms", nms, NMS)
    target = target or ("tensorrt" if nms == "efficient_nms" else "onnxruntime")
    record = export.check_options(target, precision, layout, opset, batch_size, int8_weights)
    if nms == "efficient_nms" and target != "tensorrt":
        fix = "ONNX Runtime does not know the plugin: use nms='onnx'."
        raise checks.value_error("target", "'tensorrt' with nms='efficient_nms'", target, fix)
    source, plain, mode = export.deployable(model, precision)
    scaling = mean, std, False
    recipe = make_recipe(source, anchors, "raw", labels, scaling, decode_options)
    limits = parity.thresholds_for(mode, thresholds)
    convert = functools.partial(scaled, mean=mean, std=std)
    examples = examples_for(verify, source, None, convert)
    with artifacts.atomic_path(path) as temporary:
        proto, numbers = export.build(plain, precision, layout, opset, batch_size, int8_weights)
        network = proto.SerializeToString()
        numbers["operations"] += _add(proto, recipe, nms, plain.outputs)
        findings = lint_model(proto) if target == "tensorrt" else None
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        failed = [f"TensorRT: {f}" for f in findings.errors] if findings else []
        export.check_file(temporary)
        options = {"fuse": target == "onnxruntime", "half": precision == "float16"}
        check = _Check(source, recipe, nms, layout, proto, temporary, network, options, limits)
        failed += check_detector(examples, check, mode, numbers)
        numbers["failures"] = failed
        if failed and not keep_failed:
            raise failure(failed, "No file was left.")
    numbers["findings"] = None if findings is None else [str(f) for f in findings]
    record |= {"format": "onnx detector", "model": source.model.name, "mode": mode, "nms": nms}
    record |= {"thresholds": limits, "detector": recipe.to_json()}
    record["opset"] = reached = proto.opset_import[0].version
    manifest = artifacts.write_manifest(path, record, numbers=numbers)
    if failed:
        raise failure(failed, f"The file was kept: {os.fspath(path)}.")
    return OnnxDetectorReport(
        pathlib.Path(path), manifest["bytes"], mode, "float32", numbers, target, reached,
        findings, nms, recipe.labels,
    )  # fmt: skip


def _add(proto: Any, recipe: DetectorRecipe, nms: str, names: list[str]) -> int:
    """Adds what comes behind the network, and the metadata; returns the number of nodes."""
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
class _Check:
    """Runs a file and Keras on the same images."""

    graph: NamedFunction
    recipe: DetectorRecipe
    nms: str
    layout: str
    proto: Any
    path: pathlib.Path
    network: bytes
    options: Mapping[str, bool]
    limits: Mapping[str, float]

    def made_up(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares the network's outputs: on made-up images there need be no objects."""
        numbers, ranks = export.compare(
            self.graph, self.network, images, self.layout, **self.options
        )
        detections = self.given(images)[0]["detections"]
        doubts = parity.doubts(detections, self.limits)
        return {**numbers, "detections": detections, "doubts": doubts}, ranks

    def given(self, images: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, int]]:
        """Compares detections, and the outputs where they are seen."""
        expected = self.graph.predict(images)
        feeds = export.feeds_of(images, self.layout)
        if self.nms == "efficient_nms":
            found, numbers = self._before_plugin(feeds, expected)
        else:
            session = onnx_session.open_session(self.path, fuse=self.options["fuse"])
            results = onnx_session.run_all(session, feeds)
            found, numbers = self._whole(results, expected)
        threshold = self.recipe.options["score_threshold"]
        detections = keras_detections(expected, self.recipe)
        numbers["detections"] = parity.compare(detections, found, threshold)
        if self.options["half"]:
            numbers["overflows"] = onnx_session.overflows(self.network, feeds)
        return {"examples": len(next(iter(images.values()))), **numbers}, {}

    def _whole(self, results: dict[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Any:
        """Detections of the file, and how the network's outputs compare where they are seen."""
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
        """What the plugin reads, and the detections that NumPy makes of it."""
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
