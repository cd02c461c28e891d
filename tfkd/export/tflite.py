"""Keras to TFLite: converted by TensorFlow, run and compared in LiteRT.

Sizes of a ResNet-20, for orientation: float32 1100 KB, float16 564 KB, dynamic
302 KB, int8 309 KB; int8 is also about three times as fast on one thread.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.example_inputs import collect
from tfkd.export import attention_masks, checking, converter, tflite_float16
from tfkd.export.converter_child import CrashingLoops
from tfkd.export.named_function import NamedFunction, exportable, is_quantized
from tfkd.export.parity import ExportReport, measure, thresholds_for
from tfkd.formats import litert
from tfkd.networks import layer_weights
from tfkd.networks.layer_parts import parts

MODES = ("float32", "float16", "dynamic", "int8")
# Key of THRESHOLDS for a quantized model, whose int8 file has nothing to guess.
_AWARE = "quantized"
IO = ("float32", "int8", "uint8")
_LONGEST_MESSAGE = 1500
_WAY_OUT = (
    "Build recurrent layers with `unroll=True` (the weights fit), which leaves no loop; or train "
    "the model quantized: tfkd.quantization.quantize."
)


def to_tflite(
    model: Any,
    path: str | os.PathLike[str],
    mode: str | None = None,
    io: str = "float32",
    data: Any = None,
    verify: Any = True,
    *,
    batch_size: int | None = 1,
    thresholds: Mapping[str, float] | None = None,
    keep_failed: bool = False,
) -> ExportReport:
    """Writes `model` as a `.tflite` file and, with `verify`, proves it in LiteRT.

    The file appears at `path` only when all went well, with a manifest
    `<path>.manifest.json` beside it that holds the numbers. Inputs and outputs
    keep the names of the model (of its dict, its input layers, its output
    layers).

    A `tfkd.quantization.QuantizedModel` is written as it computes: its weights
    become the very integers that it was trained with, and its ranges those of
    the file. It is made plain for that by `tfkd.quantization.deploying.deployed`,
    which says how; the model itself is not changed.

    TensorFlow's converter runs in a process of its own, so that a crash of it is an
    error here: `tfkd.export.converter`. The state of an LSTM starts at zero in each run
    that tfkd makes of a file; who runs it otherwise calls `reset_all_variables()`.

    Args:
        model: a built `tf_keras.Model`; several inputs and outputs are fine. Or a
            calibrated `QuantizedModel` with target "tflite" or "both".
        path: where to write; the folder is made if need be.
        mode: "float32"; "float16": weights in 16 bits; "dynamic": weights in 8
            bits (those of 1024 numbers or more), activations quantized while it
            runs; "int8": integers throughout, from a float model by post-training
            quantization (attention masks are moderated for it, see
            `tfkd.export.attention_masks`; loops, as a GRU is one without `unroll=True`,
            are refused). None: "int8" for a quantized model, which has no other,
            else "float32".
        io: type of inputs and outputs, "int8" and "uint8" with mode "int8"
            only.
        data: examples as the model takes them (normalised), in any form of
            `tfkd.example_inputs`; needed for "int8" from a float model, which sets its
            ranges by them. 100 to 500 are usual. Not for a quantized model: it has its
            ranges.
        verify: True: a small check on eight of the calibration examples, or on made-up
            inputs in the range that the first layers expect. What it finds is a warning;
            an error only outputs that are not finite, or a mean error above a tenth of
            their range. Examples, in any form of `tfkd.example_inputs` and at least two:
            the file must reach the thresholds on these, against `model` in inference:
            with a quantized model as it rounds. Not the same as `data`, if the numbers
            are to mean something. False: no check.
        batch_size: of the file. 1 gives the simplest graph; None leaves the
            batch open.
        thresholds: changes to what `verify` must reach: `max_error`,
            `max_mean_error` (parts of the range of the Keras output),
            `min_agreement` (argmax, of the examples that rounding can't turn, see
            `tfkd.export.parity`; outputs (batch, classes) only),
            `max_clipped`, `min_dependence`. Defaults by mode, and "quantized":
            `tfkd.export.parity.THRESHOLDS`.
        keep_failed: leave a file that failed in place, and raise all the same.

    Returns:
        An `ExportReport`; `print(report)`. In an int8 file, operations that
        stayed float are in `report.numbers["in_float"]`, and so in the manifest.

    Raises:
        TypeError: if `model` is no plain Keras 2 model (for a Distiller pass
            `distiller.student`), or examples are of the wrong kind.
        ValueError: if an argument is wrong, a quantized model is not calibrated or
            made for TensorRT alone, the converter refuses the model or crashes on it,
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
    source = prepare(model, mode, io, data, batch_size)
    graph, mode = source.graph, source.mode
    limits = thresholds_for(source.kind, thresholds)
    examples = checking.examples(verify, graph, source.plain, source.calibration)
    with artifacts.atomic_path(path) as temporary:
        temporary.write_bytes(source.convert(io, batch_size))
        numbers: dict[str, Any] = {**litert.operations(temporary)}
        if mode == "int8":
            numbers["in_float"] = litert.in_float(temporary)
        compare_on = functools.partial(compare, graph, temporary)
        failed = checking.checked(examples, compare_on, limits, numbers)
        if failed and mode == "int8":
            failed = [*failed, *attention_masks.problems(temporary)]
        if failed and mode == "float16":
            failed = [*failed, *tflite_float16.problems(graph.model)]
        if failed and not keep_failed:
            raise _failed(failed, "No file was left.")
    recipe = {
        "format": "tflite",
        "model": model.name,
        "mode": mode,
        "quantized": source.quantized,
        "io": io,
        "batch_size": batch_size,
        "calibrated_on": source.calibrated_on,
        "thresholds": limits,
    }
    manifest = artifacts.write_manifest(path, recipe, numbers=numbers)
    if failed:
        raise _failed(failed, f"The file was kept: {os.fspath(path)}.")
    return ExportReport(pathlib.Path(path), manifest["bytes"], mode, io, numbers)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on its way into a file.

    Attributes:
        graph: the model, which the file is compared with.
        plain: what is converted.
        mode: of `to_tflite`.
        quantized: whether the model is a `QuantizedModel`.
        calibration: {input name: examples}, or None.
    """

    graph: NamedFunction
    plain: NamedFunction
    mode: str
    quantized: bool
    calibration: dict[str, np.ndarray] | None

    @property
    def kind(self) -> str:
        """Key of the thresholds: the mode, or "quantized"."""
        return _AWARE if self.quantized else self.mode

    @property
    def calibrated_on(self) -> int | None:
        """Number of examples."""
        return None if self.calibration is None else len(next(iter(self.calibration.values())))

    def convert(self, io: str, batch_size: int | None, float_outputs: bool = False) -> bytes:
        """The bytes of the file; `io` is for the inputs alone with `float_outputs`."""
        types = io, "float32" if float_outputs else io
        data = _convert(self.plain, self.mode, types, self.calibration, batch_size)
        if self.mode == "float16":
            data = tflite_float16.keep_large(
                data,
                lambda: _convert(self.plain, "float32", types, None, batch_size),
                tflite_float16.large_weights(self.graph.model),
            )
        return data


def prepare(
    model: Any, mode: str | None, io: str, data: Any, batch_size: int | None, convert: Any = None
) -> Source:
    """Checks a model and how it is to be written; arguments as in `to_tflite`.

    `convert` is applied to the arrays of `data`.
    """
    quantized = is_quantized(model)
    mode = mode or ("int8" if quantized else "float32")
    _check_options(mode, io, data, batch_size, quantized)
    converter.start()  # loads while the model is traced
    graph, plain = exportable(model, "tflite")
    layer_weights.check_float32("model", model, "LiteRT")
    calibration = None
    if data is not None:
        calibration = collect("data", data, graph.inputs, convert=convert)
        plain = attention_masks.moderated(graph, calibration)
    return Source(graph, plain, mode, quantized, calibration)


def _check_options(mode: str, io: str, data: Any, batch_size: int | None, quantized: bool) -> None:
    checks.one_of("mode", mode, MODES)
    checks.one_of("io", io, IO)
    if quantized:
        _check_quantized(mode, data)
    if io != "float32" and mode != "int8":
        fix = "Only a file that is integer throughout takes integers: use mode='int8'."
        raise checks.value_error("io", f"'float32' with mode={mode!r}", io, fix)
    if mode == "int8" and data is None and not quantized:
        fix = (
            "The ranges of activations are read off them: 100 to 500 normalised training images. "
            "Or train with them: tfkd.quantization.quantize."
        )
        raise checks.value_error("data", "example inputs with mode='int8'", None, fix)
    if mode != "int8" and data is not None:
        fix = "Or use mode='int8'."
        raise checks.value_error("data", f"None with mode={mode!r}", data, fix)
    if batch_size is not None:
        checks.positive_int("batch_size", batch_size)


def _check_quantized(mode: str, data: Any) -> None:
    """What can't be asked of a quantized model."""
    if mode != "int8":
        fix = "It computes in 8 bits. For other files export the float model it was made from."
        raise checks.value_error("mode", "'int8' or None with a quantized model", mode, fix)
    if data is not None:
        fix = "It has its ranges already: leave `data` out."
        raise checks.value_error("data", "None with a quantized model", data, fix)


def _failed(failed: list[str], end: str) -> ValueError:
    return ValueError(
        "The exported file does not match the Keras model: " + "; ".join(failed) + f". {end} "
        "`thresholds` sets what is good enough."
    )


def compare(
    graph: NamedFunction, path: str | os.PathLike[str], images: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs file and Keras model on the same images; returns (numbers, rank of each output)."""
    expected = graph.predict(images)
    received = litert.run_all(litert.open_interpreter(path), images)
    numbers = measure(expected, received, litert.output_limits(path))
    return numbers, {name: value.ndim for name, value in expected.items()}


def _convert(
    graph: NamedFunction,
    mode: str,
    types: tuple[str, str],
    calibration: dict[str, np.ndarray] | None,
    batch_size: int | None,
) -> bytes:
    """Returns the bytes of the file; `types` are those of inputs and of outputs."""
    import tensorflow as tf

    module = tf.Module()
    module.forward = graph.function(batch_size)
    # Variables alone: saving the Keras model itself would trace every layer again.
    module.kept = list(graph.model.variables)
    try:
        return converter.convert(module, module.forward, mode, types, calibration, batch_size or 1)
    except CrashingLoops as error:
        expected = "'float32', 'float16' or 'dynamic' for a model with loops inside"
        where = ", ".join(error.loops if any("/" in n for n in error.loops) else _rolled(graph))
        fix = f"TensorFlow's int8 calibration crashes on those in {where}. {_WAY_OUT}"
        raise checks.value_error("mode", expected, mode, fix) from error
    except converter.ConverterCrash as error:
        fix = f" Has it loops or branches? {_WAY_OUT}" if calibration is not None else ""
        raise ValueError(
            f"`model`: TensorFlow's converter crashed on {graph.model.name!r}: {error}. It ran in "
            f"a process of its own: this one goes on, and no file was written.{fix}"
        ) from error
    except Exception as error:  # the converter has errors of many kinds
        text = str(error)
        text = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."
        fix = ""
        if mode == "int8":
            fix = " An operation without an integer form? mode='dynamic' leaves such in float."
        if batch_size is None and "TensorListReserve" in text:
            fix = " Its loops need a batch of a fixed size: pass batch_size=1, or unroll=True."
        raise ValueError(
            f"`model`: TFLite's converter refuses {graph.model.name!r}.{fix} It says: {text}"
        ) from error


def _rolled(graph: NamedFunction) -> list[str]:
    """Names of the recurrent layers that are written as loops."""
    layers = parts(graph.model)
    return sorted({layer.name for layer in layers if getattr(layer, "unroll", None) is False})
