"""ONNX files in ONNX Runtime: opening sessions, running by name, float16 overflow detection."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfkd import checks
from tfkd.formats.batching import joined, padded_rows
from tfkd.formats.onnx_nodes import require
from tfkd.types import Path

if TYPE_CHECKING:
    import onnxruntime

CPU = ("CPUExecutionProvider",)
_CHUNK = 64  # Examples per call, which limits memory.
_SHOWN = 3
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operations that may give infinity from finite numbers in any precision.
_INFINITE = ("Div", "Reciprocal", "Log", "Where")


def open_session(
    path: Path | bytes,
    threads: int = 1,
    providers: Sequence[str] = CPU,
    *,
    fuse: bool = True,
    write: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Opens an ONNX file.

    Args:
        path: the file, or its content as bytes.
        threads: number of threads within one call.
        providers: ONNX Runtime's execution providers in order of preference.
        fuse: whether ONNX Runtime optimizes the graph. Without it every operation runs as
            it stands in the file: no Q/DQ pair is fused into an integer kernel. For files
            that are optimized already.
        write: where ONNX Runtime writes the optimized file.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        ImportError: if onnxruntime is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if ONNX Runtime lacks a provider or cannot run the file.
    """
    checks.positive_int("threads", threads)
    if not isinstance(path, bytes):
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"`path`: there is no file {path!r}.")
    runtime = require("onnxruntime")
    there = runtime.get_available_providers()
    if not providers or not set(providers) <= set(there):
        fix = "Each comes with a build of ONNX Runtime: onnxruntime-gpu has CUDA's."
        raise checks.value_error("providers", f"some of {there}", list(providers), fix)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 4
    if not fuse:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if write is not None:
        options.optimized_model_filepath = os.fspath(write)
    try:
        return runtime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has one exception class per status code.
        raise checks.value_error(
            "path", "an ONNX file that ONNX Runtime can run", path, f"It says: {error}"
        ) from error


def run_all(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs (N, ...) arrays through a session of any batch size.

    An open batch is run with two sizes, 1 and up to 64, so that a file which works with
    one size only fails. With a fixed batch size B the arrays are fed B examples at a
    time; the last batch is padded by repeating its last example, and the surplus results
    are dropped.

    Args:
        session: from `open_session`.
        feeds: arrays (N, ...) by input name.

    Returns:
        float32 arrays (N, ...) by output name.
    """
    names = [output.name for output in session.get_outputs()]
    count = len(next(iter(feeds.values())))
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int):
        rows = padded_rows(count, batch)
    else:
        rows = [np.arange(1)]
        rows += [np.arange(s, min(s + _CHUNK, count)) for s in range(1, count, _CHUNK)]
    batches = ({k: v[some] for k, v in feeds.items()} for some in rows)
    whole = joined(dict(zip(names, session.run(names, one), strict=True)) for one in batches)
    return {name: value[:count] for name, value in whole.items()}


def overflows(path: Path | bytes, feeds: Mapping[str, np.ndarray], count: int = 8) -> list[str]:
    """Finds operations of a float16 file whose results overflow; describes the first few.

    On processors ONNX Runtime fuses operations and computes in float32 between them, so
    that the outputs don't show an overflow. Therefore all intermediate tensors are
    requested as outputs.

    Args:
        path: the file, or its content as bytes.
        feeds: arrays (N, ...) by input name.
        count: number of examples to run, from the first.

    Returns:
        One sentence per operation.
    """
    onnx = require("onnx")
    content = path if isinstance(path, bytes) else pathlib.Path(path).read_bytes()
    model = onnx.load_model_from_string(content)
    del model.graph.output[:]
    makers = {name: node for node in model.graph.node for name in node.output if name}
    for name in makers:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = open_session(model.SerializeToString())
    halves = [one.name for one in session.get_outputs() if one.type == "tensor(float16)"]
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else 1
    found: dict[str, None] = {}
    for start in range(0, min(count, len(next(iter(feeds.values())))), size):
        rows = np.arange(start, start + size) % len(next(iter(feeds.values())))
        results = session.run(halves, {name: value[rows] for name, value in feeds.items()})
        made = dict(zip(halves, results, strict=True))
        for name, value in made.items():
            node = makers[name]
            before = [made[one] for one in node.input if one in made]
            if np.isfinite(value).all() or node.op_type in _INFINITE:
                continue
            # −∞ is fine where a mask of −1e9 is added to scores, but not after a weight.
            large = np.isinf(value) if node.op_type in _WEIGHTED else np.isposinf(value)
            if large.any() and all(np.isfinite(one).all() for one in before):
                found[node.name or name] = None
    return [
        f"{name!r} leaves the range of float16, which ends at 65504: use precision='float32'"
        for name in list(found)[:_SHOWN]
    ]
