"""Loads and runs what was exported, on a device without TensorFlow if need be.

`from tfkd.runtime import Predictor` needs NumPy and `ai-edge-litert` alone, and so does
`DetectorPredictor`, for the files of detectors.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.export import litert
from tfkd.export.detection_running import DetectorPredictor
from tfkd.export.litert import Port

__all__ = ["DetectorPredictor", "Predictor"]


class Predictor:
    """Runs a `.tflite` file in LiteRT.

    A call takes real numbers and gives real numbers in float32, whatever the
    file stores: int8 and uint8 are quantized and dequantized with its scale and
    zero point. Batches of any size are taken: an open batch is resized, a fixed
    one is fed its own size at a time.

    One `Predictor` belongs to one thread: LiteRT keeps one set of tensors for
    each. To predict in several threads, make one in each. `threads` is another
    matter: how many LiteRT uses within one call; 1 is the setting in which
    latencies compare.

    Args:
        path: a `.tflite` file. If a manifest stands beside it, the file is
            checked against it first.
        threads: threads within one call.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no TFLite file, is damaged, or LiteRT cannot run it.
        ImportError: if ai-edge-litert is not installed.

    Example:
        >>> import os, tempfile, numpy as np, tf_keras as keras
        >>> from tfkd import export, runtime
        >>> model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), name="logits")])
        >>> folder = tempfile.mkdtemp()
        >>> report = export.to_tflite(model, os.path.join(folder, "m.tflite"))
        >>> predictor = runtime.Predictor(report.path)
        >>> predictor(np.ones((5, 4), "float32")).shape
        (5, 3)
        >>> [(port.name, port.shape) for port in predictor.outputs]
        [('logits', (1, 3))]
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        checks.instance("path", path, (str, os.PathLike), "the path of a .tflite file")
        self.path = pathlib.Path(path)
        self.threads = checks.positive_int("threads", threads)
        if self.path.is_file() and artifacts.manifest_path(self.path).is_file():
            artifacts.verify(self.path)
        self._interpreter = litert.open_interpreter(self.path, threads)
        self._inputs, self._outputs = litert.ports(self._interpreter)

    def __repr__(self) -> str:
        return f"Predictor({str(self.path)!r}, threads={self.threads})"

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The file's inputs: name, shape with the batch, dtype, scale, zero point."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The file's outputs, likewise."""
        return self._outputs

    def predict(self, x: Any) -> Any:
        """Runs a batch.

        Args:
            x: (N, ...) array; for a file with several inputs a dict of arrays
                by name. Floats are real numbers. Integers are taken where the
                file takes integers of the same type: for a quantized input they
                are codes as they are.

        Returns:
            (N, ...) float32 array; for several outputs a dict by name.

        Raises:
            TypeError: if an array is of the wrong kind.
            ValueError: if a name or shape is wrong, `x` is empty, or it holds
                NaN where integers are computed.
        """
        arrays = self._arrays(x)
        result = litert.run_all(self._interpreter, arrays)
        return result if len(self._outputs) > 1 else result[self._outputs[0].name]

    __call__ = predict

    def run_one(self, *arrays: np.ndarray) -> Any:
        """Runs the file once with nothing around it: the path to time.

        Nothing is checked, converted or dequantized.

        Args:
            *arrays: one for each of `inputs`, of exactly its shape and dtype
                (`inputs[0].encode(x)` makes codes of real numbers).

        Returns:
            What the file gives: an array, or a tuple in the order of `outputs`
            (`outputs[0].decode(codes)` makes real numbers of codes).
        """
        interpreter = self._interpreter
        for port, array in zip(self._inputs, arrays, strict=True):
            interpreter.set_tensor(port.index, array)
        interpreter.invoke()
        if len(self._outputs) == 1:
            return interpreter.get_tensor(self._outputs[0].index)
        return tuple(interpreter.get_tensor(port.index) for port in self._outputs)

    def _arrays(self, x: Any) -> dict[str, np.ndarray]:
        """Checks what came in; returns {input name: array}."""
        names = [port.name for port in self._inputs]
        if not isinstance(x, Mapping):
            if len(names) > 1:
                raise checks.type_error("x", f"a dict of arrays with the inputs {names}", x)
            x = {names[0]: x}
        if set(x) != set(names):
            raise checks.value_error("x", f"the inputs {names}", sorted(map(str, x)))
        arrays = {port.name: _check(port, x[port.name]) for port in self._inputs}
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise checks.value_error("x", "as many examples for each input", counts)
        return arrays


def _check(port: Port, value: Any) -> np.ndarray:
    """Checks one array against one input of a file."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise checks.type_error("x", f"an array for input {port.name!r}", value)
    value = np.asarray(value)
    shape = port.shape[1:]
    fits = value.ndim == len(port.shape) and all(
        want in (-1, got) for want, got in zip(shape, value.shape[1:], strict=True)
    )
    if not fits:
        shown = ", ".join(["batch", *("any" if s < 0 else str(s) for s in shape)])
        mend = "One example? Add the batch axis: `x[None]`." if value.shape == shape else None
        raise checks.value_error("x", f"shape ({shown}) for input {port.name!r}", value, mend)
    if len(value) == 0:
        raise checks.value_error("x", "at least one example", value)
    if port.dtype.kind == "f" or (port.quantized and value.dtype != port.dtype):
        if value.dtype.kind != "f":
            mend = "Scale images as the model was trained: `dataset.preprocess(images)`."
            raise checks.type_error("x", f"float values for input {port.name!r}", value, mend)
        if port.quantized and not np.isfinite(value).all():
            raise checks.value_error("x", "finite values: NaN has no integer code", value)
    elif not port.quantized and value.dtype.kind != port.dtype.kind:
        raise checks.type_error("x", f"{port.dtype} values for input {port.name!r}", value)
    return value
