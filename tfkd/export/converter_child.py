"""The child process of `tfkd.export.converter`: converts SavedModels to TFLite files.

Run as a script it imports nothing but TensorFlow, reads tasks as lines of JSON from
standard input, and answers in lines of JSON on standard output. It also works around
bugs in TensorFlow's int8 calibration.
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
# The child ends after this idle time, to free its memory.
_IDLE_SECONDS = 300.0
_POLL_SECONDS = 2.0
# Codes of LSTM and UNIDIRECTIONAL_SEQUENCE_LSTM in TFLite's schema; index of the cell state
# among their inputs.
_LSTMS = (16, 44)
_CELL_STATE = 19
# The smallest range of a cell state: its scale, a power of two, then covers ±1.
_CELL_RANGE = 0.51


class CrashingLoops(ValueError):
    """TensorFlow's calibration would crash on the model; `loops` names its loops."""

    def __init__(self, loops: list[str]):
        super().__init__("loops that read a tensor from outside: " + ", ".join(loops))
        self.loops = loops


def convert(task: Mapping[str, Any]) -> None:
    """Converts a SavedModel and writes the file.

    Args:
        task: "folder": path of the SavedModel, whose signature is `serving_default`;
            "result": path of the file to write; "mode": mode of `to_tflite`; "types":
            dtypes of inputs and outputs, for mode "int8"; "samples": path of an .npy
            file by input name, or None; "batch": batch size of the calibration;
            "custom_ops": whether custom operations are allowed.

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
        # A quantized model's Dense layers have per-tensor scales, which older LiteRT requires.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    data = converter.convert()
    with open(task["result"], "wb") as file:
        file.write(data)


def _feed(samples: Mapping[str, str], batch: int) -> Iterator[dict[str, Any]]:
    """Yields full batches by input name; the last one is filled up with the first examples."""
    import numpy as np

    arrays = {name: np.load(path, mmap_mode="r") for name, path in samples.items()}
    count = len(next(iter(arrays.values())))
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch) % count
        yield {name: array[rows] for name, array in arrays.items()}


def _guarded(quantize: Callable) -> Callable:
    """Wraps the converter's post-training quantization with work-arounds for three bugs.

    Calibration crashes on some loops. It carries the state of an LSTM over from one
    sample to the next, so that ranges depend on the order of the samples. And LSTMs with
    a small cell state compute wrong results.
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
    """`Calibrator.calibrate`, except that variable tensors are reset before each sample."""
    from tfkd.keras_internals import Interpreter

    calibrator._interpreter = Interpreter(model_content=calibrator._model_content)
    for sample in samples():
        arrays = calibrator._create_input_array_from_dict(None, sample)
        calibrator._calibrator.Prepare([list(array.shape) for array in arrays])
        calibrator._calibrator.FeedTensor(arrays)
    return _with_wide_cells(calibrator._calibrator.Calibrate())


def _with_wide_cells(data: bytes) -> bytes:
    """Widens the calibrated range of each LSTM's cell state beyond ±0.5.

    The scale is a power of two, so that the range becomes ±1. For smaller ranges
    TFLite's integer LSTM silently omits the tanh.
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
                low[:], high[:] = np.minimum(low, -_CELL_RANGE), np.maximum(high, _CELL_RANGE)
    return bytes(changed)


def crashing_loops(graphs: Any) -> list[str]:
    """Names the loops on which TensorFlow's calibration crashes, by their first result.

    They are the WHILE operations whose condition or body reads a loop-invariant float
    tensor, as the inputs of every recurrent layer are.

    Args:
        graphs: subgraphs of a file, as objects of TFLite's schema.
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
    """Ends an idle or orphaned process."""

    def __init__(self) -> None:
        self.busy = False
        self.since = time.monotonic()

    def watch(self, parent: int) -> None:
        """Ends the process when its parent is gone or it has been idle for too long."""
        while True:
            time.sleep(_POLL_SECONDS)
            idle = not self.busy and time.monotonic() - self.since > _IDLE_SECONDS
            if idle or (os.name == "posix" and os.getppid() != parent):
                os._exit(0)


def memory() -> int:
    """Resident memory of this process in bytes; 0 if it is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def main() -> None:
    """Answers tasks until standard input ends."""
    tasks = os.fdopen(os.dup(0), encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # Anything printed goes to standard error and not among the answers.
    clock = _Clock()
    threading.Thread(target=clock.watch, args=(os.getppid(),), daemon=True).start()

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    import tensorflow  # noqa: F401  (loaded before the first task arrives)

    answer(ready=True)
    for line in tasks:
        clock.busy = True
        try:
            convert(json.loads(line))
            answer(memory=memory())
        except CrashingLoops as error:
            answer(loops=error.loops, memory=memory())
        except Exception as error:  # The converter raises exceptions of many types.
            answer(error=f"{error}" or type(error).__name__, memory=memory())
        clock.busy, clock.since = False, time.monotonic()
    sys.stderr.flush()
    os._exit(0)  # Skips TensorFlow's slow destructors.


if __name__ == "__main__":
    main()
