"""Export to ONNX for ONNX Runtime and TensorRT: conversion, Q/DQ placement, verification."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import __version__, checks
from tfkd.export import checking, clipped_inputs
from tfkd.export.named_function import NamedFunction, exportable, is_quantized
from tfkd.export.onnx import qdq
from tfkd.export.onnx.convert import NEWEST, convert
from tfkd.export.onnx.float16 import to_float16
from tfkd.export.onnx.graph import Wiring
from tfkd.export.parity import ExportReport, clipped_rows, compared_rows, measure
from tfkd.export.tensorrt_lint.lint import Findings, lint_model
from tfkd.export.tflite_float16 import large_weights, problems
from tfkd.export.thresholds import Changes, thresholds_for
from tfkd.formats import onnx_session, onnx_token_ids
from tfkd.formats.onnx_nodes import require
from tfkd.networks import accept
from tfkd.results import Grid
from tfkd.types import Data, Path

TARGETS = ("onnxruntime", "tensorrt")
PRECISIONS = ("float32", "float16")
LAYOUTS = ("nhwc", "nchw")
_WHAT = "The exported file is not good enough"
_OPSET = 17  # TensorRT 8.5 and later can read it.
_OLDEST = 13  # The first opset with per-channel quantization scales.
# The first opset whose Q and DQ accept float16. After 18, the newest that tf2onnx writes, it
# only adds dtypes, so that the version number alone can be raised.
_HALF_PAIRS = 19


@dataclasses.dataclass(frozen=True)
class OnnxReport(ExportReport, title="ONNX report"):
    """An `ExportReport` of an ONNX file.

    Attributes:
        target: "onnxruntime" or "tensorrt".
        opset: opset of the file.
        findings: findings of `lint_tensorrt`, with target "tensorrt"; else None.
    """

    target: str
    opset: int
    findings: Findings | None

    def _about(self) -> list[tuple[str, str]]:
        numbers = self.numbers
        return [
            self._kind(),
            ("operations", str(numbers["operations"])),
            ("with weights", f"{numbers['weighted']} ({numbers['quantized']} in int8)"),
        ]

    def _kind(self) -> tuple[str, str]:
        return "target, mode", f"{self.target}, {self.mode}, opset {self.opset}"

    def _compared(self) -> list[tuple[str, str]]:
        return compared_rows(self.numbers, " in ONNX Runtime") + clipped_rows(self.numbers)

    def parts(self) -> list[Grid]:
        """A table of the file's properties, its parity with the model, and lint findings."""
        (table,) = super().parts()
        if self.findings is None:
            return [table]
        lint = [("lint", self.findings.summary()), ("engine", "not verified here")]
        return [dataclasses.replace(table, rows=[*table.rows, *lint])]


def to_onnx(
    model: keras.Model,
    path: Path,
    target: str = "onnxruntime",
    *,
    precision: str = "float32",
    layout: str = "nhwc",
    opset: int | None = None,
    batch_size: int | None = None,
    int8_weights: bool = True,
    verify: Data | bool = True,
    thresholds: Changes | None = None,
    keep_failed: bool = False,
) -> OnnxReport:
    """Exports `model` as an ONNX file and, with `verify`, verifies it in ONNX Runtime.

    The file is written to `path` only if everything succeeds, with the numbers in a
    manifest `<path>.manifest.json` beside it. Exports are reproducible byte for byte.
    Inputs and outputs keep their names. A quantized model becomes a graph with explicit
    QuantizeLinear and DequantizeLinear nodes, as TensorRT requires.

    Args:
        model: a built `tf_keras.Model`, or a calibrated model of `tfkd.quantization`.
        path: where to write the file; missing folders are created.
        target: "onnxruntime", or "tensorrt": the graph is also checked against
            TensorRT's rules (`lint_tensorrt`), and findings of level "error" raise.
        precision: "float32", or "float16": constants and activations in half precision,
            with a Cast at inputs and outputs, which stay float32.
        layout: layout of inputs of rank 4: "nhwc" as in Keras, or "nchw" as in
            TensorRT, which saves a transpose.
        opset: 13 to 18; None: 17, which TensorRT 8.5 and later can read, or 19 for
            quantized models in float16, which need it.
        batch_size: batch size of the file; None leaves it open.
        int8_weights: whether quantized weights are stored as int8 with a
            DequantizeLinear, in a quarter of the size. False: as float32 with
            QuantizeLinear and DequantizeLinear, for TensorRT 8, which takes no other
            form; the numbers are the same.
        verify: True, False or at least two examples; see `to_tflite`.
        thresholds: changes to the thresholds of `verify`; see `to_tflite`.
        keep_failed: whether to keep a file that fails verification; the error is raised
            in either case.

    Returns:
        An `OnnxReport`; `print(report)`.

    Raises:
        TypeError: if `model` is not a plain tf_keras model, or examples have the wrong
            type.
        ValueError: if an argument is wrong, tf2onnx rejects the model, or the file
            breaks a rule of TensorRT or fails its verification.
        ImportError: if onnx, tf2onnx or onnxruntime is missing.
        OSError: if `path` cannot be written.

    Example:
        >>> import os, tempfile, numpy as np, tf_keras as keras
        >>> from tfkd import export
        >>> model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), name="logits")])
        >>> images = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export.to_onnx(model, os.path.join(folder, "m.onnx"), verify=images)
        >>> report.verified, report.opset, report.numbers["max_error"] < 1e-5
        (True, 17, True)
    """
    recipe = check_options(
        opset,
        target=target, precision=precision, layout=layout,
        batch_size=batch_size, int8_weights=int8_weights,
    )  # fmt: skip
    for package in ("onnx", "tf2onnx", "onnxruntime"):  # before the model is traced
        require(package)
    source, plain, mode = deployable(model, precision, target)
    limits = thresholds_for(mode, thresholds, source.outputs)
    examples = checking.examples(verify, source, plain)
    numbers: dict[str, Any] = {}
    recipe |= {"model": source.model.name, "mode": mode, **source.order()}
    recipe["thresholds"] = limits.recorded()
    with checking.written(path, recipe, numbers, _WHAT, keep_failed) as (file, failed):
        proto = build(plain, recipe, opset, numbers)
        findings = write(proto, file, recipe, numbers, failed)
        _check_types(examples, file, layout)
        fuse, half = target == "onnxruntime", precision == "float16"
        compare_on = functools.partial(
            compare_file, source, file, layout=layout, fuse=fuse, half=half
        )
        differs = checking.checked(examples, compare_on, limits, numbers)
        failed += differs
        if differs and precision == "float16":
            failed += problems(source)
        numbers["failures"] = failed
    path = pathlib.Path(path)
    size, reached = path.stat().st_size, recipe["opset"]
    return OnnxReport(path, size, mode, "float32", numbers, target, reached, findings)


def _check_types(found: checking.VerifyData, path: pathlib.Path, layout: str) -> None:
    """Raises for a model in float64 if ONNX Runtime has no such form of its operations."""
    model = found.graph.model
    if accept.in_float64(model) is None:
        return
    try:
        session = onnx_session.open_session(path)
        if found.arrays is not None:
            onnx_session.run_all(session, feeds_of(found.arrays, layout))
    except ImportError:
        pass  # Without ONNX Runtime nothing can be said.
    except Exception:  # It raises exceptions of types of its own.
        accept.check_float32("model", model, "For this model, ONNX Runtime")


def check_options(opset: int | None, **options: Any) -> dict[str, Any]:
    """Checks the arguments of `to_onnx`; returns them as entries of the manifest's recipe."""
    for name, known in (("target", TARGETS), ("precision", PRECISIONS), ("layout", LAYOUTS)):
        checks.one_of(name, options[name], known)
    checks.instance("int8_weights", options["int8_weights"], bool, "True or False")
    if options["batch_size"] is not None:
        checks.positive_int("batch_size", options["batch_size"])
    if opset is not None:
        wanted = f"an opset from {_OLDEST} to {_HALF_PAIRS}, or None"
        checks.integer("opset", opset, _OLDEST, wanted)
        if opset > _HALF_PAIRS:
            raise checks.value_error("opset", wanted, opset)
    return {"format": "onnx", **options}


def deployable(
    model: keras.Model, precision: str, target: str
) -> tuple[NamedFunction, NamedFunction, str]:
    """Returns (function to compare with, function to convert, mode of the thresholds)."""
    reader = "The conversion to float16" if precision == "float16" else None
    reader = "TensorRT" if target == "tensorrt" else reader
    graph, plain = exportable(model, "tensorrt", float32=reader)
    if is_quantized(model):
        # A model for both targets also quantizes tensors that stay float in the ONNX file.
        return graph, plain, "quantized" if model.target == "tensorrt" else "int8"
    fixed = any(type(layer).__name__ == "FixedQuantize" for layer in graph.layers)
    return graph, plain, "quantized" if fixed else precision


def build(
    graph: NamedFunction, recipe: Mapping[str, Any], opset: int | None, numbers: dict[str, Any]
) -> Any:
    """Returns the finished `onnx.ModelProto`, and adds its counts to `numbers`.

    `recipe` is that of `check_options`, `opset` as in `to_onnx`.
    """
    wanted, precision = opset or _OPSET, recipe["precision"]
    options = recipe["batch_size"], recipe["layout"] == "nchw"
    wiring = convert(graph, min(wanted, NEWEST), *options)
    if precision == "float16" and any(n.op_type == "QuantizeLinear" for n in wiring.nodes):
        if opset is not None and opset < _HALF_PAIRS:
            fix = "Older versions of QuantizeLinear don't accept float16. Leave `opset` out."
            raise checks.value_error("opset", f"{_HALF_PAIRS} with float16", opset, fix)
        wanted = _HALF_PAIRS
        wiring = convert(graph, NEWEST, *options)
    wiring.name_weighted(f"{graph.model.name}/")
    qdq.plain_resize(wiring)
    qdq.pair_constants(wiring)
    qdq.close_pairs(wiring)
    qdq.move_pairs(wiring)
    qdq.drop_doubled(wiring)
    qdq.join_dense(wiring)
    qdq.quantize_weights(wiring, recipe["int8_weights"])
    numbers.update(qdq.count(wiring))
    if precision == "float16":
        to_float16(wiring, large_weights(graph))
    return _finish(wiring, graph, wanted)


def _finish(wiring: Wiring, graph: NamedFunction, opset: int) -> Any:
    """Sets names, versions and open dimensions: everything that does not affect the results."""
    onnx = require("onnx")
    model = wiring.model
    ports = {p.name: i.name for p, i in zip(model.graph.input, graph.inputs, strict=True)}
    wiring.sort()
    wiring.separate_outputs()
    taken = set(ports.values())
    for port, name in zip(model.graph.output, graph.outputs, strict=True):
        # In Keras an input and an output may have the same name; in ONNX they may not.
        ports[port.name] = name if name not in taken else f"{name}_output"
    model = wiring.close(ports, f"{graph.model.name}/")
    for port in (*model.graph.input, *model.graph.output):
        for axis, dimension in enumerate(port.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_value") or dimension.dim_value <= 0:
                dimension.dim_param = "batch" if axis == 0 else f"{port.name}_{axis}"
    model.graph.name = graph.model.name
    model.graph.doc_string = model.doc_string = ""
    model.producer_name, model.producer_version = "tfkd", __version__
    del model.opset_import[:], model.metadata_props[:]
    found = onnx_token_ids.write(model.graph)
    model.metadata_props.extend(onnx.StringStringEntryProto(**entry) for entry in found)
    model.opset_import.append(onnx.helper.make_opsetid("", opset))
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    return model


def write(
    proto: Any,
    path: pathlib.Path,
    recipe: dict[str, Any],
    numbers: dict[str, Any],
    failed: list[str],
) -> Findings | None:
    """Writes a model; returns the findings of `lint_tensorrt` with target "tensorrt".

    Adds the opset to `recipe`, the findings to `numbers`, and its errors to `failed`.

    Raises:
        ValueError: if the file does not pass onnx.checker.
    """
    onnx = require("onnx")
    findings = lint_model(proto) if recipe["target"] == "tensorrt" else None
    recipe["opset"] = proto.opset_import[0].version
    numbers["findings"] = None if findings is None else [str(f) for f in findings]
    failed += [f"TensorRT: {f}" for f in findings.errors] if findings else []
    path.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except Exception as error:  # The checker raises exceptions of several types.
        raise ValueError(
            f"`model`: the ONNX file does not pass onnx.checker, which says: {error}"
        ) from error
    return findings


def compare_file(
    graph: NamedFunction,
    path: Path | bytes,
    images: dict[str, np.ndarray],
    layout: str = "nhwc",
    fuse: bool = True,
    half: bool = False,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs file and Keras model on the same inputs; returns (numbers, rank of each output).

    For a float16 file, `half`, the numbers include `overflows`.
    """
    expected = graph.predict(images)
    session = onnx_session.open_session(path, fuse=fuse)
    results = onnx_session.run_all(session, feeds_of(images, layout))
    received = dict(zip(expected, results.values(), strict=True))
    ranks = {name: value.ndim for name, value in expected.items()}
    numbers = measure(expected, received, {})
    numbers["inputs"] = clipped_inputs.measure(images, clipped_inputs.ranges_of_onnx(path))
    if half:
        numbers["overflows"] = onnx_session.overflows(path, feeds_of(images, layout))
    return numbers, ranks


def feeds_of(images: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """Transposes images to the layout of a file's inputs."""
    return {
        k: v.transpose(0, 3, 1, 2) if layout == "nchw" and v.ndim == 4 else v
        for k, v in images.items()
    }
