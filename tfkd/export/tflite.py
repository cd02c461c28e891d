"""Export to TFLite: conversion, post-training quantization, verification in LiteRT.

Sizes of a ResNet-20, for orientation: float32 1100 KB, float16 564 KB, dynamic
302 KB, int8 309 KB; int8 is also about three times as fast on one thread.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks
from tfkd.data.text import Encoder
from tfkd.example_inputs import collect
from tfkd.export import (
    attention_masks,
    checking,
    clipped_inputs,
    converter,
    tflite_float16,
    unsupported,
)
from tfkd.export.converter_child import CrashingLoops
from tfkd.export.detector import flatbuffer
from tfkd.export.model_metadata import Labels, Scaling, model_info, warn_of_scaling, with_info
from tfkd.export.named_function import NamedFunction, exportable, is_quantized
from tfkd.export.parity import ExportReport, measure
from tfkd.export.thresholds import Changes, Limits, failures, thresholds_for
from tfkd.formats import litert
from tfkd.formats.model_info import ENTRY
from tfkd.types import Data, Path

MODES = ("float32", "float16", "dynamic", "int8")
# Key of THRESHOLDS for a quantized model, whose ranges the converter need not estimate.
_AWARE = "quantized"
IO = ("float32", "int8", "uint8")
_WHAT = "The exported file does not match the Keras model"
_LONGEST_MESSAGE = 1500  # characters; the converter's messages may contain whole graphs
_WAY_OUT = (
    "Build recurrent layers with `unroll=True` (the weights fit), which avoids loops; or use "
    "quantization-aware training: tfkd.quantization.quantize."
)


def to_tflite(
    model: keras.Model,
    path: Path,
    mode: str | None = None,
    io: str = "float32",
    data: Data | None = None,
    verify: Data | bool = True,
    *,
    batch_size: int | None = 1,
    labels: Labels | None = None,
    mean: Scaling | None = None,
    std: Scaling | None = None,
    encoder: Encoder | None = None,
    thresholds: Changes | None = None,
    keep_failed: bool = False,
) -> ExportReport:
    """Exports `model` as a `.tflite` file and, with `verify`, verifies it in LiteRT.

    The file is written to `path` only if everything succeeds, with the numbers in a
    manifest `<path>.manifest.json` beside it. Inputs and outputs keep their names: those
    of the model's dicts, input layers or output layers.

    A `tfkd.quantization.QuantizedModel` is exported exactly as it computes: with the
    integer weights and the ranges that it was trained with. It is converted to plain
    layers by `tfkd.quantization.deploying.deployed`; the model itself is not changed.

    TensorFlow's converter runs in a child process, so that a crash becomes an
    exception: see `tfkd.export.converter`. tfkd resets the state of an LSTM before each
    run of a file. In your own code call the interpreter's `reset_all_variables()`.

    Args:
        model: a built `tf_keras.Model` with any number of inputs and outputs, or a
            calibrated `QuantizedModel` with target "tflite" or "both".
        path: where to write the file; missing folders are created.
        mode: "float32"; "float16": weights in 16 bits; "dynamic": weights with 1024
            elements or more in 8 bits, activations quantized at run time; "int8":
            integers throughout, from a float model by post-training quantization.
            Attention masks are moderated for that, see `tfkd.export.attention_masks`;
            models with loops, such as a GRU without `unroll=True`, are rejected. None:
            "int8" for a quantized model, which supports no other mode, else "float32".
        io: dtype of inputs and outputs; "int8" and "uint8" need mode "int8".
        data: calibration examples, preprocessed as in training, in any form of
            `tfkd.example_inputs`. They determine the activation ranges in mode "int8" of
            a float model and are required there; 100 to 500 are usual. Not for a
            quantized model, which has its ranges.
        verify: Examples, at least two, in any form of `tfkd.example_inputs`: on them the
            file must reach the thresholds, compared with `model` in inference mode (a
            quantized model includes its rounding). Use other examples than `data` for
            meaningful numbers. True: a small check on eight of the calibration examples
            or on synthetic inputs in the range that the first layers expect. It warns of
            deviations; only non-finite outputs or a mean error above a tenth of their
            range are errors. False: no check.
        batch_size: batch size of the file. 1 gives the simplest graph; None leaves it
            open. Other sizes that the model leaves open stay open: `Predictor` resizes the
            file to those of its input. In your own code call `resize_tensor_input` first.
        labels: names of the classes along the output's last axis: a list, or the path of a
            text file of one a line; for one of several outputs in a dict by its name.
            They go into the file as TFLite metadata, and come back as `Predictor.labels`.
        mean, std: an input is (pixels − mean) / std, as the file takes it; what the model's
            own Rescaling and Normalization layers do does not count. Scalars, or one
            number per channel. None: not recorded, but for a model that takes images and
            scales pixels itself 0 and 1. With io="uint8" the file then takes raw pixels.
            They go into the file likewise: `Predictor.scaling`. Warns if `data` or `verify`
            are not scaled so.
        encoder: the tokenizer of a model that takes token ids, which goes into the file:
            `Predictor.encoder`.
        thresholds: changes to the thresholds of `verify`: `max_error` and
            `max_mean_error` (fractions of the range of the Keras output),
            `min_agreement` (argmax on decided examples, see `tfkd.export.parity`; for
            outputs (batch, classes)), `max_clipped` and `min_dependence`; for one
            output in a dict by its name: `{"landmarks": {"min_agreement": 0}}`. An
            output that may be class scores or other numbers, such as one of a linear
            layer, is judged by agreement if `min_agreement` is given; otherwise by its
            errors, with a warning if few decided examples agree, and an error if very
            few do. The rules and the defaults by mode, or for "quantized" models, are
            in `tfkd.export.thresholds`.
        keep_failed: whether to keep a file that fails verification; the error is raised
            in either case.

    Returns:
        An `ExportReport`; `print(report)`. The operations of an int8 file that
        stayed in float are in `report.numbers["in_float"]` and in the manifest.

    Raises:
        TypeError: if `model` is not a plain tf_keras model (for a Distiller, pass
            `distiller.student`), or examples have the wrong type.
        ValueError: if an argument is wrong, a quantized model is not calibrated or was
            made for TensorRT only, the converter rejects the model or crashes on it,
            or the file fails its verification.
        OSError: if `path` cannot be written.

    Example:
        >>> import os, tempfile, numpy as np, tf_keras as keras
        >>> from tfkd import export
        >>> model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), name="logits")])
        >>> images = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export.to_tflite(model, os.path.join(folder, "m.tflite"), verify=images)
        >>> report.verified, report.numbers["argmax_agreement"], report.numbers["max_error"] < 1e-5
        (True, 1.0, True)
    """
    litert.require()  # before the model is traced and converted
    source = prepare(model, mode, io, data, batch_size)
    graph, mode = source.graph, source.mode
    limits = thresholds_for(source.kind, thresholds, graph.outputs)
    examples = checking.examples(verify, graph, source.plain, source.calibration)
    about = model_info(graph, labels, mean, std, encoder)
    if mean is not None or std is not None:
        given = examples.arrays if examples.source == checking.GIVEN else None
        arrays = [a for some in (source.calibration, given) for a in (some or {}).values()]
        warn_of_scaling(about, arrays, io)
    numbers: dict[str, Any] = {}
    recipe = {**source.recipe(io), **graph.order(), "batch_size": batch_size}
    recipe["thresholds"] = limits.recorded()
    if about:
        recipe[ENTRY] = about.to_json()
    with checking.written(path, recipe, numbers, _WHAT, keep_failed) as (file, failed):
        file.write_bytes(with_info(source.convert(io, batch_size), about, graph.inputs, io))
        source.count(file, numbers)
        compare_on = functools.partial(compare_file, graph, file)
        failed += checking.checked(examples, compare_on, limits, numbers)
        if failed and batch_size is not None:
            failed += _open_batch(source, io, examples, limits, numbers)
        if failed and mode == "int8":
            failed += attention_masks.problems(file)
        if failed and mode == "float16":
            failed += tflite_float16.problems(graph)
    path = pathlib.Path(path)
    return ExportReport(path, path.stat().st_size, mode, io, numbers)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checked model and how it is to be converted.

    Attributes:
        graph: the model, with which the file is compared.
        plain: the function that is converted.
        mode: mode of `to_tflite`.
        quantized: whether the model is a `QuantizedModel`.
        calibration: calibration examples by input name, or None.
    """

    graph: NamedFunction
    plain: NamedFunction
    mode: str
    quantized: bool
    calibration: dict[str, np.ndarray] | None

    @property
    def kind(self) -> str:
        """Key of the default thresholds: the mode, or "quantized"."""
        return _AWARE if self.quantized else self.mode

    @property
    def calibrated_on(self) -> int | None:
        """Number of calibration examples."""
        return None if self.calibration is None else len(next(iter(self.calibration.values())))

    def recipe(self, io: str) -> dict[str, Any]:
        """Entries of the manifest's recipe."""
        return {
            "format": "tflite",
            "model": self.graph.model.name,
            "mode": self.mode,
            "quantized": self.quantized,
            "io": io,
            "calibrated_on": self.calibrated_on,
        }

    def count(self, path: pathlib.Path, numbers: dict[str, Any]) -> None:
        """Adds the counts of a file's operations to `numbers`.

        Raises:
            ValueError: if LiteRT can't load the file.
        """
        try:
            numbers.update(litert.operations(path))
        except litert.Unloadable as error:
            raise ValueError(self._unloadable(path, error.said)) from error
        if self.mode == "int8":
            numbers["in_float"] = litert.in_float(path)
        if self.mode == "dynamic":
            numbers["int8_weights"] = litert.with_int8_weights(path)
            if not numbers["int8_weights"]:
                checks.warn(
                    "to_tflite: mode='dynamic' quantized nothing: no weight that it can hold in 8 "
                    "bits has 1024 elements or more. The file is as large as with mode='float32'."
                )
        if self.quantized:
            _warn_of_float(self.graph.model.report.left_in_float(numbers["in_float"]))

    def _unloadable(self, path: pathlib.Path, said: str) -> str:
        """Says that LiteRT can't load a file, and which layer holds the operation that it names."""
        name = self.graph.model.name
        number = re.search(r"Node number (\d+)", said)
        layer = None
        if number:
            result = flatbuffer.result_of(flatbuffer.opened(path.read_bytes()), int(number[1]))
            layer = unsupported.layer_of(self.plain.model, result)
        where = f" It is the layer {layer!r}: replace it, or" if layer else ""
        return (
            f"`model`: LiteRT can't load the file that TFLite's converter makes of {name!r}."
            f"{where or ' To run it,'} export with tfkd.export.to_onnx or to_saved_model. "
            f"LiteRT says: {said}"
        )

    def convert(self, io: str, batch_size: int | None, float_outputs: bool = False) -> bytes:
        """Converts to the bytes of a file; with `float_outputs`, `io` applies to inputs only."""
        types = io, "float32" if float_outputs else io
        data = _convert(self.plain, self.mode, types, self.calibration, batch_size)
        if self.mode == "int8":
            data = flatbuffer.with_float_inputs(data)
        if self.mode == "float16":
            data = tflite_float16.keep_large(
                data,
                lambda: _convert(self.plain, "float32", types, None, batch_size),
                tflite_float16.large_weights(self.graph),
            )
            if tflite_float16.has_vanishing(self.plain):
                data = tflite_float16.keep_small(
                    data, lambda: _convert(self.plain, "float32", types, None, batch_size)
                )
        return data


def _warn_of_float(names: list[str]) -> None:
    if names:
        shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" * (len(names) > 8))
        checks.warn(
            f"The exported file computes {shown} in float, though q.report counts them as "
            "integers: TensorFlow's converter finds no integer form of their operations, which "
            "report.numbers['in_float'] lists. The results are those of the quantized model, but "
            "hardware that computes in integers alone can't run the file."
        )


def prepare(
    model: keras.Model,
    mode: str | None,
    io: str,
    data: Data | None,
    batch_size: int | None,
    convert: Callable[[Any], Any] | None = None,
) -> Source:
    """Checks a model and its export options; arguments as in `to_tflite`.

    `convert` is applied to the arrays of `data`.
    """
    quantized = is_quantized(model)
    mode = mode or ("int8" if quantized else "float32")
    _check_options(mode, io, data, batch_size, quantized)
    converter.start()  # The child imports TensorFlow while the model is traced.
    graph, plain = exportable(model, "tflite", float32="LiteRT")
    calibration = None
    if data is not None:
        calibration = collect("data", data, graph.inputs, convert=convert)
        _warn_of_open_sizes(graph, calibration)
        plain = attention_masks.moderated(graph, calibration)
    return Source(graph, plain, mode, quantized, calibration)


def _warn_of_open_sizes(graph: NamedFunction, calibration: dict[str, np.ndarray]) -> None:
    names = [one.name for one in graph.inputs if -1 in one.shape]
    if names:
        shown = ", ".join(f"{name!r} {calibration[name].shape[1:]}" for name in names)
        checks.warn(
            f"to_tflite: the ranges of this int8 file hold for sizes like those of `data`: {shown}"
            ". At others, sums over an open axis may leave them, and are clipped. Calibrate with "
            "the largest sizes, and pass `verify` at those that you will use."
        )


def _check_options(mode: str, io: str, data: Any, batch_size: int | None, quantized: bool) -> None:
    checks.one_of("mode", mode, MODES)
    checks.one_of("io", io, IO)
    if quantized and mode != "int8":
        fix = "It computes in 8 bits. For other files export the float model it was made from."
        raise checks.value_error("mode", "'int8' or None with a quantized model", mode, fix)
    if io != "float32" and mode != "int8":
        fix = "Integer inputs and outputs need an integer-only file: use mode='int8'."
        raise checks.value_error("io", f"'float32' with mode={mode!r}", io, fix)
    calibrated = mode == "int8" and not quantized
    if calibrated and data is None:
        fix = (
            "They calibrate the activation ranges: 100 to 500 normalised training images. "
            "Or use quantization-aware training: tfkd.quantization.quantize."
        )
        raise checks.value_error("data", "example inputs with mode='int8'", None, fix)
    if data is not None and not calibrated:
        kind = "a quantized model, which has its ranges" if quantized else f"mode={mode!r}"
        raise checks.value_error("data", f"None with {kind}", data, "Leave `data` out.")
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size)


def compare_file(
    graph: NamedFunction, path: Path, images: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs file and Keras model on the same inputs; returns (numbers, rank of each output)."""
    expected = graph.predict(images)
    received = litert.run_all(litert.open_interpreter(path), images)
    numbers = measure(expected, received, litert.output_limits(path))
    numbers["inputs"] = clipped_inputs.measure(images, clipped_inputs.ranges_of_tflite(path))
    return numbers, {name: value.ndim for name, value in expected.items()}


def _open_batch(
    source: Source,
    io: str,
    examples: checking.VerifyData,
    limits: Limits,
    numbers: dict[str, Any],
) -> list[str]:
    """Says so if a file that is wrong, beyond rounding, is right with an open batch.

    TensorFlow's converter makes other operations for a fixed batch, and some of them are
    wrong, such as for a concatenation of what was unstacked from a stack.
    """
    rows = numbers.get("check", numbers).get("outputs", {}).items()
    near = (row["mean_error"] <= limits.of(name)["max_mean_error"] for name, row in rows)
    if source.mode != "float32" and all(near):
        return []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What a conversion warns of was said at the first.
        file = pathlib.Path(folder) / "open.tflite"
        try:
            file.write_bytes(source.convert(io, None))
            compare_on = functools.partial(compare_file, source.graph, file)
            with source.graph.unchanged():
                found, ranks = checking.compared(examples, compare_on)
            if failures(found, limits, ranks):
                return []
        except (ValueError, RuntimeError):  # Some models need a fixed batch.
            return []
    return ["with batch_size=None the file matches: TensorFlow's converter errs for a fixed batch"]


def _convert(
    graph: NamedFunction,
    mode: str,
    types: tuple[str, str],
    calibration: dict[str, np.ndarray] | None,
    batch_size: int | None,
) -> bytes:
    """Converts to the bytes of a file; `types` are the dtypes of inputs and of outputs."""
    module = graph.module(batch_size)
    try:
        return converter.convert(module, module.forward, mode, types, calibration, batch_size or 1)
    except CrashingLoops as error:
        expected = "'float32', 'float16' or 'dynamic' for a model with loops inside"
        where = ", ".join(error.loops if any("/" in n for n in error.loops) else _rolled(graph))
        fix = f"TensorFlow's int8 calibration crashes on those in {where}. {_WAY_OUT}"
        raise checks.value_error("mode", expected, mode, fix) from error
    except converter.ConverterCrash as error:
        fix = f" Does it have loops or branches? {_WAY_OUT}" if calibration is not None else ""
        raise ValueError(
            f"`model`: TensorFlow's converter crashed on {graph.model.name!r}: {error}. It ran in "
            f"a process of its own: this one goes on, and no file was written.{fix}"
        ) from error
    except Exception as error:  # The converter raises exceptions of many types.
        if batch_size is None and "TensorListReserve" in str(error):
            expected = f"a fixed one for the loops in {graph.model.name!r}"
            fix = "Pass batch_size=1, or build recurrent layers with unroll=True."
            raise checks.value_error("batch_size", expected, None, fix) from error
        lacking = unsupported.in_compiler_text(str(error))
        if lacking and not any(kind.startswith("TensorList") for kind in lacking):
            if batch_size is None and _converts(graph, mode, types, calibration):
                expected = f"a fixed one for {graph.model.name!r}"
                said, _ = unsupported.listed(graph.model, lacking)
                fix = f"With an open batch TFLite can't express {said}. Pass batch_size=1."
                raise checks.value_error("batch_size", expected, None, fix) from error
            others = "tfkd.export.to_saved_model or to_onnx"
            said = unsupported.message(graph.model, "TFLite", lacking, others)
            raise ValueError(said) from error
        text = unsupported.plain_text(str(error), _LONGEST_MESSAGE)
        fix = ""
        if calibration is not None:
            fix = " mode='dynamic' leaves operations without an integer form in float."
        elif mode == "int8":
            fix = " `skip` of tfkd.quantization.quantize leaves the layers that it names in float."
        raise ValueError(
            f"`model`: TFLite's converter refuses {graph.model.name!r}.{fix} It says: {text}"
        ) from error


def _converts(
    graph: NamedFunction,
    mode: str,
    types: tuple[str, str],
    calibration: dict[str, np.ndarray] | None,
) -> bool:
    """Whether the converter takes a model with a batch size of 1; arguments as in `_convert`."""
    try:
        _convert(graph, mode, types, calibration, 1)
    except ValueError:
        return False
    return True


def _rolled(graph: NamedFunction) -> list[str]:
    """Names of the recurrent layers that are converted to loops."""
    return sorted({layer.name for layer in graph.layers if getattr(layer, "unroll", None) is False})
