"""TensorFlow's TFLite converter, told by plain data: a SavedModel in, a file out.

Run as a script it is the process that `tfkd.export.converter` starts, which loads
nothing but TensorFlow: it reads tasks from its standard input, a line of JSON each, and
answers likewise on what was its standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

SIGNATURE = "serving_default"
# A process that has had no task for so long ends, and gives its memory back.
_IDLE_SECONDS = 300.0
_LOOK_SECONDS = 2.0
# LSTM and UNIDIRECTIONAL_SEQUENCE_LSTM in TFLite's schema, and which input is the cell state.
_LSTMS = (16, 44)
_CELL_STATE = 19
_CELL = 0.51


class CrashingLoops(ValueError):
    """A model on which TensorFlow's calibration would crash; `loops` are names in it."""

    def __init__(self, loops: list[str]):
        super().__init__("loops that read a tensor from outside: " + ", ".join(loops))
        self.loops = loops


def convert(task: Mapping[str, Any]) -> None:
    """Converts a SavedModel and writes the file.

    Args:
        task: "folder": of the SavedModel, whose signature is `serving_default`;
            "result": where to write; "mode": of `to_tflite`; "types": of inputs and of
            outputs, for mode "int8"; "samples": {input name: path of an .npy file} or
            None; "batch": of the samples; "custom_ops": whether they are allowed.

    Raises:
        CrashingLoops: if TensorFlow's calibration would crash on the model.
        Exception: whatever the converter raises.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(task["folder"], signature_keys=[SIGNATURE])
    mode, samples = task["mode"], task["samples"]
    converter.allow_custom_ops = task["custom_ops"]
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if samples is not None:
        converter.representative_dataset = lambda: _feed(samples, task["batch"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._quantize = _guarded(converter._quantize)
    if mode == "int8":
        into, out = map(tf.as_dtype, task["types"])
        converter.inference_input_type, converter.inference_output_type = into, out
    if mode == "int8" and samples is None:
        # A Dense layer of a quantized model has one scale, which older LiteRT needs.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    data = converter.convert()
    with open(task["result"], "wb") as file:
        file.write(data)


def _feed(samples: Mapping[str, str], batch: int) -> Iterator[dict[str, Any]]:
    """Whole batches by input name; the last one is filled up from the beginning."""
    import numpy as np

    arrays = {name: np.load(path, mmap_mode="r") for name, path in samples.items()}
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch) % count
        yield {name: array[rows] for name, array in arrays.items()}


def _guarded(quantize: Callable) -> Callable:
    """The converter's step from a float file to an int8 one, without its faults.

    Its calibration crashes on some loops. It carries the state of an LSTM over from one
    sample to the next, so that ranges depend on the order of the samples. And it makes
    LSTMs that compute nonsense where the cell state is small.
    """

    def run(data: bytes, *args: Any, **kwargs: Any) -> bytes:
        from tfkd.keras_internals import Calibrator
        from tfkd.keras_internals import schema_py_generated as schema

        graphs = schema.ModelT.InitFromPackedBuf(data, 0).subgraphs
        loops = crashing_loops(graphs)
        if loops:
            raise CrashingLoops(loops)
        if not any(tensor.isVariable for graph in graphs for tensor in graph.tensors):
            return quantize(data, *args, **kwargs)
        with mock.patch.object(Calibrator, "calibrate", _calibrate_anew):
            return quantize(data, *args, **kwargs)

    return run


def _calibrate_anew(calibrator: Any, samples: Callable) -> bytes:
    """`Calibrator.calibrate` that resets variable tensors before each sample."""
    from tfkd.keras_internals import Interpreter

    calibrator._interpreter = Interpreter(model_content=calibrator._model_content)
    for sample in samples():
        arrays = calibrator._create_input_array_from_dict(None, sample)
        calibrator._calibrator.Prepare([list(array.shape) for array in arrays])
        calibrator._calibrator.FeedTensor(arrays)
    return _with_wide_cells(calibrator._calibrator.Calibrate())


def _with_wide_cells(data: bytes) -> bytes:
    """A calibrated file in which the cell state of each LSTM reaches beyond ±0.5.

    Its scale is a power of two. TFLite's integer LSTM has no tanh for a range below ±1:
    it leaves out the operation without a word.
    """
    import numpy as np

    from tfkd.keras_internals import schema_py_generated as schema

    changed = bytearray(data)
    model = schema.Model.GetRootAs(changed, 0)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            kind = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
            if kind not in _LSTMS or operator.InputsLength() <= _CELL_STATE:
                continue
            found = graph.Tensors(operator.Inputs(_CELL_STATE)).Quantization()
            if found is not None and found.MinLength() and found.MaxLength():
                low, high = found.MinAsNumpy(), found.MaxAsNumpy()  # views of `changed`
                low[:], high[:] = np.minimum(low, -_CELL), np.maximum(high, _CELL)
    return bytes(changed)


def crashing_loops(graphs: Any) -> list[str]:
    """Names of results of the loops on which TensorFlow's calibration crashes.

    Those are the WHILE operations whose condition or body reads a float tensor that goes
    through the loop unchanged, as the inputs of every recurrent layer do.

    Args:
        graphs: subgraphs of a file, as objects of its schema.
    """
    found = []
    for graph in graphs:
        for operator in graph.operators:
            loop = operator.builtinOptions
            if type(loop).__name__ != "WhileOptionsT":
                continue
            condition, body = graphs[loop.condSubgraphIndex], graphs[loop.bodySubgraphIndex]
            if any(
                before == after and _is_float(body.tensors[before])
                and (_reads(body, before) or _reads(condition, condition.inputs[place]))
                for place, (before, after) in enumerate(zip(body.inputs, body.outputs, strict=True))
            ):  # fmt: skip
                name = graph.tensors[operator.outputs[0]].name or b"?"
                found.append(name.decode(errors="replace"))
    return found


def _is_float(tensor: Any) -> bool:
    return tensor.type in (0, 1)  # FLOAT32, FLOAT16


def _reads(graph: Any, tensor: int) -> bool:
    return any(tensor in operator.inputs for operator in graph.operators)


class _Clock:
    """When the process last had something to do."""

    def __init__(self) -> None:
        self.busy = False
        self.since = time.monotonic()

    def watch(self, parent: int) -> None:
        """Ends the process when its parent is gone, or when it has been idle for long."""
        while True:
            time.sleep(_LOOK_SECONDS)
            idle = not self.busy and time.monotonic() - self.since > _IDLE_SECONDS
            if idle or (os.name == "posix" and os.getppid() != parent):
                os._exit(0)


def memory() -> int:
    """Bytes that this process holds; 0 where that is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def main() -> None:
    """Answers tasks until standard input ends."""
    tasks = os.fdopen(os.dup(0), encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what anything prints does not get among the answers
    clock = _Clock()
    threading.Thread(target=clock.watch, args=(os.getppid(),), daemon=True).start()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    import tensorflow  # noqa: F401  (so that the first task finds it loaded)

    answer(ready=True)
    for line in tasks:
        clock.busy = True
        try:
            convert(json.loads(line))
            answer(memory=memory())
        except CrashingLoops as error:
            answer(loops=error.loops, memory=memory())
        except Exception as error:  # the converter has errors of many kinds
            answer(error=f"{error}" or type(error).__name__, memory=memory())
        clock.busy, clock.since = False, time.monotonic()
    sys.stderr.flush()
    os._exit(0)  # TensorFlow has nothing to put away


if __name__ == "__main__":
    main()
