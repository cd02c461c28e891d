"""TFLite files in the LiteRT interpreter: opening, running by tensor name, op statistics.

Nothing here imports TensorFlow, so that a device needs `ai-edge-litert` alone.
An int8 or uint8 tensor represents real numbers as r = scale · (code − zero_point):
https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import checks
from tfkd.formats.batching import joined, padded_rows
from tfkd.types import Path

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

_MAGIC = b"TFL3"
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST")
_logged = False  # whether the delegate has been created in this process


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards what C++ code writes to standard error, in the whole process."""
    with contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # Some services run without standard error.
            yield
            return
        stack.callback(os.close, kept)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
        stack.callback(os.dup2, kept, 2)
        yield


@dataclasses.dataclass(frozen=True)
class Port:
    """One input or output tensor of a file.

    Attributes:
        name: name in the file's signature.
        shape: shape including the batch axis; -1 where the size is open.
        dtype: dtype in the file: float32, int8, uint8, int32, ...
        scale: quantization scale; 0 if the tensor is not quantized.
        zero_point: the code that represents 0.0.
        index: index of the tensor in the interpreter.

    Example:
        >>> port = Port("x", (1, 2), np.dtype("int8"), 0.5, -1, 0)
        >>> codes = port.encode(np.float32([0.5, 1000]))
        >>> codes.tolist(), port.decode(codes).tolist(), port.limits
        ([0, 127], [0.5, 64.0], (-63.5, 64.0))
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float
    zero_point: int
    index: int

    @property
    def open_sizes(self) -> bool:
        """Whether the size of an axis other than the batch is open."""
        return min(self.shape[1:], default=1) < 1

    @property
    def quantized(self) -> bool:
        """Whether the tensor holds integer codes of real numbers."""
        return self.scale > 0 and self.dtype.kind in "iu"

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Quantizes real numbers: clip(round(r / scale) + zero_point); codes are unchanged."""
        if not self.quantized or values.dtype == self.dtype:
            return values.astype(self.dtype, copy=False)
        limits = np.iinfo(self.dtype)
        codes = np.rint(values.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        return np.clip(codes, limits.min, limits.max).astype(self.dtype)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Dequantizes codes to float32; other numbers are only cast, texts are left as they are."""
        if codes.dtype == object:
            return codes
        if not self.quantized:
            return codes.astype(np.float32, copy=False)
        return (codes.astype(np.float32) - self.zero_point) * np.float32(self.scale)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and largest real number that a code represents; None for floats."""
        if not self.quantized:
            return None
        info = np.iinfo(self.dtype)
        low, high = ((code - self.zero_point) * self.scale for code in (info.min, info.max))
        return low, high


def _port(name: str, details: dict[str, Any]) -> Port:
    scale, zero_point = details["quantization"]
    shape = details.get("shape_signature")
    shape = details["shape"] if shape is None or not len(shape) else shape
    return Port(
        name, tuple(int(s) for s in shape), np.dtype(details["dtype"]), float(scale),
        int(zero_point), int(details["index"]),
    )  # fmt: skip


class Unloadable(ValueError):
    """LiteRT can't load a TFLite file; `said` is its message."""

    def __init__(self, path: str, said: str):
        expected = "a TFLite file that LiteRT can run"
        super().__init__(checks.value_error("path", expected, path, f"LiteRT says: {said}"))
        self.said = said


class NotRunnable(ValueError):
    """LiteRT can't run a file with open sizes on inputs of the shapes that they have."""

    def __init__(self, inputs: Sequence[Port], arrays: Sequence[np.ndarray]):
        pairs = zip(inputs, arrays, strict=True)
        shown = ", ".join(f"{port.name!r} of shape {np.shape(array)}" for port, array in pairs)
        ways = ["batch_size=1"] if any(port.shape[0] == -1 for port in inputs) else []
        if any(port.open_sizes for port in inputs):
            ways.append("fixed sizes: x = keras.Input(shape), then keras.Model(x, model(x))")
        super().__init__(
            f"LiteRT can't run the file on {shown}, though the file leaves these sizes open. "
            "Operations of the model hold others, or need larger ones. Run it on other sizes, or "
            f"export the model with {' or '.join(ways)}."
        )


def require() -> Any:
    """Imports LiteRT's interpreter.

    Raises:
        ImportError: if ai-edge-litert is not installed.
    """
    with checks.needed("Running a .tflite file needs ai-edge-litert", "litert"):
        from ai_edge_litert import interpreter
    return interpreter


def open_interpreter(path: Path, threads: int = 1, delegate: bool = True) -> Interpreter:
    """Opens a `.tflite` file in LiteRT.

    Args:
        path: the file.
        threads: number of threads within one call.
        delegate: whether XNNPACK may replace operations. Without it the interpreter
            has exactly the operations of the file.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter`, allocated unless the file leaves sizes
        of its inputs open beside the batch: few networks take inputs of size 1.

    Raises:
        ImportError: if ai-edge-litert is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a TFLite file or LiteRT cannot run it.
    """
    checks.positive_int("threads", threads)
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`path`: there is no file {path!r}.")
    with open(path, "rb") as file:
        if file.read(8)[4:] != _MAGIC:
            raise checks.value_error("path", "a TFLite file (its bytes 4 to 8 are TFL3)", path)
    litert = require()
    kind = litert.OpResolverType
    resolver = kind.AUTO if delegate else kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with quiet_stderr():  # Loading XNNPACK logs to standard error.
            interpreter = litert.Interpreter(
                path, num_threads=threads, experimental_op_resolver_type=resolver
            )
            inputs = itertools.starmap(_port, (("", d) for d in interpreter.get_input_details()))
            if not any(port.open_sizes for port in inputs):
                interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise Unloadable(path, str(error)) from error
    return interpreter


def ports(interpreter: Interpreter) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Returns (inputs, outputs), by the names of the signature where there is one."""
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        into, out = runner.get_input_details(), runner.get_output_details()
    else:
        into = {d["name"]: d for d in interpreter.get_input_details()}
        out = {d["name"]: d for d in interpreter.get_output_details()}
    inputs, outputs = (tuple(itertools.starmap(_port, some.items())) for some in (into, out))
    return inputs, outputs


def run(
    interpreter: Interpreter,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    feeds: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Runs one batch of real numbers by input name; returns float32 by output name.

    Open sizes become those of the batch. Variable tensors, such as the state of an LSTM,
    start at zero, as in the Keras model.

    Raises:
        NotRunnable: if sizes are open, and LiteRT can't run the file on these.
    """
    arrays = [np.ascontiguousarray(port.encode(feeds[port.name])) for port in inputs]
    resizable = any(-1 in port.shape for port in inputs)
    try:
        if resizable:
            resize(interpreter, inputs, [array.shape for array in arrays])
        for port, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(port.index, array)
        interpreter.reset_all_variables()
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        if not resizable:
            raise
        raise NotRunnable(inputs, arrays) from error
    return {port.name: port.decode(interpreter.get_tensor(port.index)) for port in outputs}


def resize(
    interpreter: Interpreter, inputs: Sequence[Port], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Gives the inputs their shapes, and allocates; does nothing if they have them already."""
    for port, shape in zip(inputs, shapes, strict=True):
        interpreter.resize_tensor_input(port.index, shape)
    _allocate(interpreter)


def _allocate(interpreter: Interpreter) -> None:
    """Allocates; what XNNPACK logs once in a process is discarded."""
    global _logged
    with contextlib.nullcontext() if _logged else quiet_stderr():
        interpreter.allocate_tensors()
    _logged = True


def has_variables(path: Path) -> bool:
    """Whether a file has variable tensors, which keep their values from run to run.

    They hold the state of an LSTM or of an SVDF filter. Resource variables, in which a
    Keras layer with `stateful=True` keeps its state on purpose, don't count.
    """
    from ai_edge_litert import schema_py_generated as schema

    if not os.path.getsize(path):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = schema.Model.GetRootAs(data, 0)
        graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
        found = any(g.Tensors(i).IsVariable() for g in graphs for i in range(g.TensorsLength()))
        del model, graphs  # Their views of `data` would keep the map from being closed.
        return found


def run_all(interpreter: Interpreter, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs (N, ...) arrays of any N through a file of any batch size.

    Open sizes become those of the arrays. With a fixed batch size B the arrays are fed B
    examples at a time; the last batch is padded by repeating its last example, and the
    surplus results are dropped.

    Args:
        interpreter: from `open_interpreter`.
        feeds: real numbers (N, ...) by input name.

    Returns:
        float32 arrays (N, ...) by output name.
    """
    inputs, outputs = ports(interpreter)
    count = len(feeds[inputs[0].name])
    batch = inputs[0].shape[0]
    if batch == -1:
        return run(interpreter, inputs, outputs, feeds)
    batches = ({k: v[rows] for k, v in feeds.items()} for rows in padded_rows(count, batch))
    whole = joined(run(interpreter, inputs, outputs, one) for one in batches)
    return {name: value[:count] for name, value in whole.items()}


def operations(path: Path) -> dict[str, int]:
    """Counts the operations of a file and those that compute in float.

    Returns:
        "operations": all except QUANTIZE and DEQUANTIZE; "float_operations": those of
        them with a float32 or float16 result; "conversions": QUANTIZE and DEQUANTIZE,
        of which an int8 file needs one per float input and output.
    """
    found = [details for details, _ in _operations(path)]
    computing = [details for details in found if details["op_name"] not in _CONVERSIONS]
    return {
        "operations": len(computing),
        "float_operations": sum(map(_is_float, computing)),
        "conversions": len(found) - len(computing),
    }


def in_float(path: Path) -> list[dict[str, str]]:
    """Lists the operations of a file that compute in float.

    Returns:
        For each, in the order of the file, "operation", its type, and "tensor", the
        name of its result, which contains the layer's name.
    """
    return [
        {"operation": details["op_name"], "tensor": tensor}
        for details, tensor in _operations(path)
        if details["op_name"] not in _CONVERSIONS and _is_float(details)
    ]


def with_int8_weights(path: Path) -> int:
    """Counts the operations with a float result that read weights in 8 bits."""
    interpreter = open_interpreter(path, delegate=False)
    kinds = {d["index"]: np.dtype(d["dtype"]) for d in interpreter.get_tensor_details()}
    return sum(
        details["op_name"] not in _CONVERSIONS
        and _is_float(details)
        and any(kinds.get(int(index)) == np.int8 for index in details["inputs"])
        for details, _ in _operations(path)
    )


def _operations(path: Path) -> list[tuple[dict[str, Any], str]]:
    """LiteRT's details of each operation of a file, with the name of its first result."""
    interpreter = open_interpreter(path, delegate=False)
    names = {d["index"]: d["name"] for d in interpreter.get_tensor_details()}
    return [
        (details, names.get(int(details["outputs"][0]), "") if len(details["outputs"]) else "")
        for details in interpreter._get_ops_details()
    ]


def _is_float(details: dict[str, Any]) -> bool:
    return any(np.dtype(t).kind == "f" for t in details["result_types"])


def output_limits(path: Path) -> dict[str, tuple[float, float, float] | None]:
    """(smallest, largest, step) of the codes of each output; None for a float output.

    If the last operation dequantizes a float output, the codes before it are meant.
    """
    interpreter = open_interpreter(path, delegate=False)
    tensors = {d["index"]: d for d in interpreter.get_tensor_details()}
    before = {
        int(op["outputs"][0]): int(op["inputs"][0])
        for op in interpreter._get_ops_details()
        if op["op_name"] in _CONVERSIONS
    }
    limits = {}
    for port in ports(interpreter)[1]:
        source = port
        if not port.quantized and port.index in before:
            source = _port(port.name, tensors[before[port.index]])
        limits[port.name] = (*source.limits, source.scale) if source.limits else None
    return limits


def last_operations(path: Path) -> dict[str, str]:
    """The operation that computes each output, such as "SOFTMAX"; "" for one that none does.

    Operations that only convert or reshape its result are passed over.
    """
    interpreter = open_interpreter(path, delegate=False)
    makers = {int(o): op for op in interpreter._get_ops_details() for o in op["outputs"]}
    found = {}
    for port in ports(interpreter)[1]:
        maker = makers.get(port.index)
        while maker is not None and maker["op_name"] in (*_CONVERSIONS, *_RESHAPING):
            maker = makers.get(int(maker["inputs"][0]))
        found[port.name] = "" if maker is None else maker["op_name"]
    return found
