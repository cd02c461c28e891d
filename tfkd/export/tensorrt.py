"""Building of TensorRT engines from ONNX files, on a machine with an NVIDIA GPU and TensorRT.

The network is strongly typed: precision is determined by the tensor types and the
QuantizeLinear and DequantizeLinear nodes of the ONNX file alone. An engine works on one
type of GPU and with one version of TensorRT only. So its manifest records both and the
SHA-256 of the ONNX file, and an existing engine is rebuilt only if one of them, or an
argument, has changed.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import pathlib
import sys
from types import ModuleType
from typing import Any

from tfkd import artifacts, checks
from tfkd.export.tensorrt_lint.lint import lint_model
from tfkd.formats.onnx_nodes import load
from tfkd.results import Result
from tfkd.types import Path

_NAME_BYTES = 256


@dataclasses.dataclass(frozen=True)
class EngineReport(Result):
    """An engine that `build_engine` built or found.

    Attributes:
        path: the engine.
        bytes: its size.
        key: digest of ONNX file, GPU and TensorRT version; names the timing cache.
        gpu: name of the GPU.
        version: version of TensorRT.
        reused: whether an existing engine was kept.
    """

    path: pathlib.Path
    bytes: int
    key: str
    gpu: str
    version: str
    reused: bool


def build_engine(
    onnx: Path,
    path: Path,
    *,
    timing_cache: Path | None = None,
    workspace: int | None = None,
    min_batch: int = 1,
    opt_batch: int = 8,
    max_batch: int = 32,
) -> EngineReport:
    """Builds a TensorRT engine from an ONNX file.

    The file is first checked with `lint_tensorrt`. The engine is written to `path`
    once it is complete, with a manifest beside it. Its precision is that of the file:
    use `to_onnx(..., precision="float16")` or a quantized model.

    Args:
        onnx: the ONNX file, preferably from `to_onnx(target="tensorrt")`.
        path: where to write the engine; missing folders are created.
        timing_cache: a folder for TensorRT's kernel timings, which make further builds
            of the same file much faster; None: no cache.
        workspace: limit of a layer's scratch memory in bytes; None: no limit.
        min_batch: smallest batch size of the optimization profile. The three sizes are
            used only if the file has an open batch.
        opt_batch: the batch size for which the engine is tuned.
        max_batch: the largest batch size.

    Returns:
        An `EngineReport`.

    Raises:
        ImportError: if NVIDIA's `tensorrt` package is not installed.
        RuntimeError: if there is no GPU, or the build fails.
        FileNotFoundError: if there is no ONNX file.
        ValueError: if an argument is wrong, the file breaks a rule of TensorRT, or
            its parser rejects it.
        OSError: if `path` cannot be written.
    """
    if workspace is not None:
        checks.positive_int("workspace", workspace)
    batches = _batches(min_batch, opt_batch, max_batch)
    model = load(onnx)
    shapes = _open_shapes(model, batches)
    trt = require_tensorrt()
    gpu = gpu_name()
    findings = lint_model(model, ".".join(str(trt.__version__).split(".")[:2]))
    if findings.errors:
        fix = "TensorRT would refuse it:\n" + findings.text()
        raise checks.value_error("onnx", "a file without lint errors", os.fspath(onnx), fix)
    digest = artifacts.sha256(onnx)
    recipe = {
        "format": "tensorrt",
        "onnx": pathlib.Path(onnx).name,
        "onnx_sha256": digest,
        "gpu": gpu,
        "tensorrt": str(trt.__version__),
        "workspace": workspace,
        "batch": list(batches) if shapes else None,
    }
    key = hashlib.sha256(f"{digest}\n{gpu}\n{trt.__version__}".encode()).hexdigest()[:32]
    manifest = _existing(path, recipe)
    reused = manifest is not None
    if manifest is None:
        cache = None
        if timing_cache is not None:
            cache = pathlib.Path(timing_cache) / f"{key}.timing"
        with artifacts.atomic_path(path) as temporary:
            temporary.write_bytes(_build(trt, pathlib.Path(onnx), shapes, cache, workspace))
        manifest = artifacts.write_manifest(path, recipe, key=key)
    return EngineReport(
        pathlib.Path(path), manifest["bytes"], key, gpu, str(trt.__version__), reused
    )


def _batches(least: int, best: int, most: int) -> tuple[int, int, int]:
    names = ("min_batch", "opt_batch", "max_batch")
    for name, value in zip(names, (least, best, most), strict=True):
        checks.positive_int(name, value)
    if not least <= best <= most:
        raise checks.value_error(", ".join(names), "sizes in rising order", (least, best, most))
    return least, best, most


def _open_shapes(model: Any, batches: tuple[int, int, int]) -> dict[str, list[tuple[int, ...]]]:
    """Minimum, optimum and maximum shape of each input with an open batch, by name."""
    shapes = {}
    weights = {i.name for i in model.graph.initializer}
    for port in model.graph.input:
        if port.name in weights:
            continue
        sizes = [d.dim_value or -1 for d in port.type.tensor_type.shape.dim]
        if -1 in sizes[1:]:
            fix = "Give the Keras model's input its sizes and export it again."
            expected = f"fixed sizes but for the batch in input {port.name!r}"
            raise checks.value_error("onnx", expected, sizes, fix)
        if sizes[:1] == [-1]:
            shapes[port.name] = [(batch, *sizes[1:]) for batch in batches]
    return shapes


def require_tensorrt() -> ModuleType:
    """Imports NVIDIA's `tensorrt` package.

    Raises:
        ImportError: if it is missing or a stub.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise ImportError(
            "Building an engine needs NVIDIA's `tensorrt` package, version 10 or later, which no "
            "extra of tfkd brings: install the one for your CUDA from NVIDIA. The ONNX file can "
            f"be made, linted and verified without. Python says: {error}"
        ) from error
    if not hasattr(tensorrt, "Builder"):
        raise ImportError("The package `tensorrt` found here is a stub without a Builder.")
    return tensorrt


def gpu_name() -> str:
    """Name of the first NVIDIA GPU, as its driver reports it.

    Raises:
        RuntimeError: if there is none.
    """
    name = ctypes.create_string_buffer(_NAME_BYTES)
    device = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), 0)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
        )
    except OSError:
        failed = 1
    if failed:
        raise RuntimeError(
            "Building an engine needs an NVIDIA GPU with its driver, and none was found: an "
            "engine is tuned on the GPU that it will run on. Copy the ONNX file there."
        )
    return name.value.decode(errors="replace")


def _existing(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an intact engine at `path` with the same recipe, or None."""
    with contextlib.suppress(ValueError):
        manifest = artifacts.verify(path)
        if manifest["recipe"] == recipe:
            return manifest
    return None


def _build(
    trt: Any,
    onnx: pathlib.Path,
    shapes: dict[str, list[tuple[int, ...]]],
    cache: pathlib.Path | None,
    workspace: int | None,
) -> bytes:
    """Returns the serialized engine."""
    logger = error_logger(trt)
    builder = trt.Builder(logger)
    # Later versions build strongly typed networks only and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx.read_bytes()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        fix = f"It says: {errors}"
        raise checks.value_error("onnx", "a file that TensorRT's parser takes", str(onnx), fix)
    config = builder.create_builder_config()
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        config.add_optimization_profile(profile)
    timings = None
    if cache is not None:
        timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
        if not config.set_timing_cache(timings, False):  # It belongs to another GPU or version.
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(logger.errors) or "nothing"
        raise RuntimeError(f"TensorRT could not build an engine from {onnx}. It says: {said}")
    if cache is not None and timings is not None:
        artifacts.write_bytes(cache, bytes(timings.serialize()))
    return bytes(plan)


def error_logger(trt: Any) -> Any:
    """A TensorRT logger that collects errors in its list `errors` and prints nothing."""

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Errors()
