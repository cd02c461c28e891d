"""Conversion of a checked model to the bytes of a TFLite file, and the errors of the converter."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks
from tfkd.example_inputs import collect
from tfkd.export import attention_masks, converter, tflite_float16, unsupported
from tfkd.export.converter_child import CrashingLoops
from tfkd.export.detector import flatbuffer
from tfkd.export.named_function import NamedFunction, exportable, is_quantized
from tfkd.formats import litert
from tfkd.types import Data

MODES = ("float32", "float16", "dynamic", "int8")
IO = ("float32", "int8", "uint8")
# Key of THRESHOLDS for a quantized model, whose ranges the converter need not estimate.
_AWARE = "quantized"
_LONGEST_MESSAGE = 1500  # characters; the converter's messages may contain whole graphs
_WAY_OUT = (
    "Build recurrent layers with `unroll=True` (the weights fit), which avoids loops; or use "
    "quantization-aware training: tfkd.quantization.quantize."
)


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
