"""Labels, input scaling and vocabulary in exported files: checks, and TFLite metadata of them.

The metadata are a flatbuffer in Google's format, which Android's and MediaPipe's classifiers
read: names of inputs and outputs, normalization of images, and which file inside holds the
labels. tfkd's own reader, `tfkd.formats.model_info`, takes them from a JSON file beside those.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.data.text import Encoder
from tfkd.example_inputs import Input
from tfkd.export import made_up
from tfkd.export.converter import quiet
from tfkd.export.detector import flatbuffer
from tfkd.export.detector.tflite_metadata import Writer
from tfkd.export.detector.tflite_postprocess import add_metadata
from tfkd.export.named_function import NamedFunction
from tfkd.formats import associated_files
from tfkd.formats.detector_recipe import check_scaling
from tfkd.formats.model_info import MEMBER, ModelInfo

Labels = Sequence[str] | str | os.PathLike | Mapping[str, Any]
Scaling = float | Sequence[float]

_PARSER = "1.0.0"
# Ranges of pixels may be exceeded by this part, for the rounding of calibration.
_SLACK = 0.05
_VOCABULARY = "vocabulary.txt"
_GRAYSCALE, _RGB = 2, 1
_FEATURES, _IMAGE = 1, 2  # members of the union ContentProperties
_NORMALIZATION = 1  # member of the union ProcessUnitOptions
_AXIS_LABELS, _WORDS = 2, 5  # types of associated files: TENSOR_AXIS_LABELS, VOCABULARY


def model_info(
    graph: NamedFunction,
    labels: Labels | None,
    mean: Scaling | None,
    std: Scaling | None,
    encoder: Encoder | None,
) -> ModelInfo:
    """Checks the arguments of an exporter against the model; without any it is empty."""
    if labels is None and mean is None and std is None and encoder is None:
        return ModelInfo()
    return ModelInfo(_labels(graph, labels), _scaling(graph, mean, std), _encoder(graph, encoder))


def _labels(graph: NamedFunction, labels: Labels | None) -> dict[str, tuple[str, ...]]:
    if labels is None:
        return {}
    with quiet():
        outputs = graph.function(1).get_concrete_function().structured_outputs
    sizes = {name: outputs[name].shape[-1:].as_list() for name in graph.outputs}
    if not isinstance(labels, Mapping):
        if len(sizes) > 1:
            fix = f"For example: labels={{{graph.outputs[0]!r}: [...]}}."
            expected = f"a dict of labels by output: {graph.outputs}"
            raise checks.value_error("labels", expected, labels, fix)
        labels = dict.fromkeys(sizes, labels)
    found = {}
    for name, given in labels.items():
        checks.one_of("labels", name, sizes)
        where = "labels" if len(sizes) == 1 else f"labels[{name!r}]"
        found[name] = _names(where, given)
        size = next(iter(sizes[name]), None)
        if size != len(found[name]):
            expected = f"{size} names, one for each element of the output {name!r}"
            fix = f"These are {len(found[name])}."
            raise checks.value_error(where, expected, list(found[name]), fix)
    return found


def _names(where: str, given: Any) -> tuple[str, ...]:
    """A list of names, or those in the lines of a text file."""
    if isinstance(given, (str, os.PathLike)):
        try:
            given = pathlib.Path(given).read_text(encoding="utf-8").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            expected = "a list of names, or the path of a text file of one a line"
            raise checks.value_error(where, expected, given, f"{error}.") from error
    if not isinstance(given, Sequence):
        raise checks.type_error(where, "a list of names, or the path of a text file", given)
    for name in given:
        if not isinstance(name, str) or not name.strip() or len(name.splitlines()) != 1:
            raise checks.value_error(where, "names of one line of text each", name)
    return tuple(given)


def _scaling(
    graph: NamedFunction, mean: Scaling | None, std: Scaling | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What is given; else that of a model that scales pixels itself, for images."""
    images = [one for one in graph.inputs if _is_image(one)]
    if mean is None and std is None:
        ranges = dict(zip(graph.inputs, made_up.expected_ranges(graph), strict=True))
        own = [ranges[one] for one in images]
        in_pixels = [r is not None and _spans(r.low, 0) and _spans(r.high, 255) for r in own]
        return ((0.0,), (1.0,)) if own and all(in_pixels) else None
    if len(graph.inputs) != 1:
        expected = "None for a model of several inputs"
        raise checks.value_error("mean" if mean is not None else "std", expected, mean or std)
    channels = graph.inputs[0].shape[-1] if graph.inputs[0].shape else 1
    mean, std = 0.0 if mean is None else mean, 1.0 if std is None else std
    return check_scaling(mean, std, False, channels)[:2]


def _spans(end: Any, wanted: float) -> bool:
    return bool(abs(float(tf.reduce_max(tf.abs(tf.cast(end, tf.float32) - wanted)))) < 1.0)


def _is_image(one: Input) -> bool:
    return len(one.shape) == 3 and one.shape[-1] in (1, 3) and one.dtype.kind in "fu"


def _encoder(graph: NamedFunction, encoder: Encoder | None) -> Encoder | None:
    if encoder is None:
        return None
    checks.instance("encoder", encoder, Encoder, "a tfkd.data.Encoder: `tokens.encode`")
    lengths = [one.shape[0] for one in graph.inputs if len(one.shape) == 1]
    if encoder.max_length not in lengths and -1 not in lengths:
        expected = f"one whose texts fit an input of {lengths or [i.shape for i in graph.inputs]}"
        received = f"{encoder.max_length} tokens a text"
        raise checks.value_error("encoder", expected, received)
    tables = [one.input_dim for one in graph.layers if isinstance(one, keras.layers.Embedding)]
    if tables and max(tables) < len(encoder.vocabulary):
        expected = f"at most {max(tables)} words, the size of the model's embedding"
        raise checks.value_error("encoder", expected, f"{len(encoder.vocabulary)} words")
    return encoder


def with_info(data: bytes, info: ModelInfo, inputs: Sequence[Input], io: str) -> bytes:
    """The bytes of a `.tflite` file with metadata and associated files."""
    if not info:
        return data
    model = flatbuffer.opened(data)
    if info.scaling is not None and _is_rescaled(info, io):
        _take_pixels(model, *info.scaling)
    members = {_file(i): associated_files.lines(n) for i, n in enumerate(info.labels.values())}
    if info.encoder is not None:
        members[_VOCABULARY] = associated_files.lines(info.encoder.vocabulary)
    add_metadata(flatbuffer.schema(), model, _metadata(model, info, inputs))
    members[MEMBER] = json.dumps(info.to_json(), indent=2, ensure_ascii=False).encode()
    return associated_files.packed(flatbuffer.packed(model), members)


def _is_rescaled(info: ModelInfo, io: str) -> bool:
    """Whether a uint8 input is to take raw pixels that the model takes scaled."""
    return io == "uint8" and info.scaling != ((0.0,), (1.0,))


def differs(scaling: tuple[Sequence[float], Sequence[float]], low: Any, high: Any) -> bool:
    """Whether inputs from `low` to `high`, which may be channels, are no scaled pixels.

    They then reach beyond (0 − mean) / std or (255 − mean) / std, or fill hardly any of it.
    """
    mean, std = map(np.asarray, scaling)
    first, last = (0 - mean) / std, (255 - mean) / std
    slack = _SLACK * (last - first)
    beyond = (low < first - slack) | (high > last + slack)
    return bool(np.any(beyond) or np.all(high - low < slack))


def warn_of_scaling(info: ModelInfo, arrays: Sequence[np.ndarray], io: str) -> None:
    """Warns if examples (N, ..., channels) are no scaled pixels.

    An input that `with_info` makes take pixels is judged there, by its range.
    """
    if info.scaling is None or _is_rescaled(info, io):
        return
    for array in arrays:
        if array.ndim < 2 or array.dtype.kind not in "iuf":
            continue
        channels = array.reshape(-1, array.shape[-1]).astype(float)
        low, high = channels.min(0), channels.max(0)
        if differs(info.scaling, low, high):
            mean, std = map(np.asarray, info.scaling)
            first, last = ((pixel - mean) / std for pixel in (0, 255))
            checks.warn(
                f"`mean`, `std`: the model's inputs go from {low.min():.3g} to {high.max():.3g}, "
                f"and scaled pixels from {first.min():.3g} to {last.max():.3g}. The file says that "
                "it takes the latter, and its readers scale pixels so; are these examples scaled "
                "by them?"
            )
            return


def _take_pixels(model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
    """Makes a uint8 input take raw pixels, if its range is that of scaled pixels."""
    check_scaling(mean, std, True, len(mean))
    graph = model.subgraphs[0]
    found = graph.tensors[graph.inputs[0]].quantization
    scale, zero = float(found.scale[0]), int(found.zeroPoint[0])
    low, high = (scale * (code - zero) for code in (0, 255))
    ends = [(pixel - mean[0]) / std[0] for pixel in (0, 255)]
    if differs((mean, std), low, high):
        checks.warn(
            f"`mean`, `std`: the model's inputs go from {low:.3g} to {high:.3g}, and scaled pixels "
            f"from {ends[0]:.3g} to {ends[1]:.3g}. The uint8 input keeps the former range, so that "
            "it does not take raw pixels; are these examples scaled by them?"
        )
        return
    flatbuffer.take_pixels(model, mean[0], std[0])


def _file(index: int) -> str:
    return associated_files.LABELS if not index else f"labels_{index}.txt"


def _metadata(model: Any, info: ModelInfo, inputs: Sequence[Input]) -> bytes:
    """The flatbuffer; tensors are in the order of the file."""
    writer = Writer()
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    specs = {one.name: one for one in inputs}
    into = [_input(writer, info, specs[n]) for n in _ordered(graph.inputs, signature.inputs)]
    out = [_output(writer, info, name) for name in _ordered(graph.outputs, signature.outputs)]
    subgraph = writer.table({2: writer.tables(into), 3: writer.tables(out)})
    root = {
        0: writer.text("Classifier" if info.labels else "Model"),
        3: writer.tables([subgraph]),
        7: writer.text(_PARSER),
    }
    return writer.finish(writer.table(root))


def _ordered(indices: Sequence[int], entries: Sequence[Any]) -> list[str]:
    """The names of a signature in the order of the file's tensors."""
    names = {int(entry.tensorIndex): entry.name.decode() for entry in entries}
    return [names[int(index)] for index in indices]


def _input(writer: Writer, info: ModelInfo, spec: Input) -> int:
    """TensorMetadata of an input."""
    slots = {0: writer.text(spec.name)}
    if _is_image(spec):
        color = writer.table({}, Int8={0: _GRAYSCALE if spec.shape[-1] == 1 else _RGB})
        slots[3] = writer.table({1: color}, Uint8={0: _IMAGE})
    else:
        slots[3] = writer.table({1: writer.table({})}, Uint8={0: _FEATURES})
    if info.scaling is not None:
        mean, std = info.scaling
        options = writer.table({0: writer.numbers(mean), 1: writer.numbers(std)})
        slots[4] = writer.tables([writer.table({1: options}, Uint8={0: _NORMALIZATION})])
        ends = [[(p - m) / s for m, s in zip(mean, std, strict=True)] for p in (255.0, 0.0)]
        slots[5] = writer.table({i: writer.numbers(end) for i, end in enumerate(ends)})
    if info.encoder is not None and len(spec.shape) == 1:
        slots[6] = writer.tables([_associated(writer, _VOCABULARY, _WORDS)])
    return writer.table(slots)


def _output(writer: Writer, info: ModelInfo, name: str) -> int:
    """TensorMetadata of an output."""
    slots = {0: writer.text(name)}
    slots[3] = writer.table({1: writer.table({})}, Uint8={0: _FEATURES})
    if name in info.labels:
        file = _file(list(info.labels).index(name))
        slots[6] = writer.tables([_associated(writer, file, _AXIS_LABELS)])
    return writer.table(slots)


def _associated(writer: Writer, name: str, kind: int) -> int:
    return writer.table({0: writer.text(name)}, Int8={2: kind})
