"""Export to TFLite: conversion, post-training quantization, verification in LiteRT.

Sizes of a ResNet-20, for orientation: float32 1100 KB, float16 564 KB, dynamic
302 KB, int8 309 KB; int8 is also about three times as fast on one thread.

Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
import warnings
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.data.text import Encoder
from tfkd.export import attention_masks, checking, clipped_inputs, tflite_float16
from tfkd.export.model_metadata import Labels, Scaling, model_info, warn_of_scaling, with_info
from tfkd.export.named_function import NamedFunction
from tfkd.export.parity import ExportReport, measure
from tfkd.export.tflite_conversion import Source, prepare
from tfkd.export.thresholds import Changes, Limits, failures, thresholds_for
from tfkd.formats import litert
from tfkd.formats.model_info import ENTRY
from tfkd.types import Data, Path

_WHAT = "The exported file does not match the Keras model"


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
