"""ONNX to a TensorRT engine, on a machine with an NVIDIA GPU and TensorRT.

The network is strongly typed: what runs in int8 or float16 is what the ONNX file
says, by its QuantizeLinear and DequantizeLinear and its types, and nothing else.
An engine fits one GPU and one version of TensorRT. So its manifest holds both
and the SHA-256 of the ONNX file, and an engine that is there already is built
again only if one of them, or an argument, has changed.

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
from typing import Any

from tfkd import artifacts, checks
from tfkd.export.tensorrt_lint.lint import lint_model
from tfkd.formats.onnx_nodes import load
from tfkd.results import Result

_NAME_BYTES = 256


@dataclasses.dataclass(frozen=True)
class EngineReport(Result):
    """What `build_engine` made.

    Attributes:
        path: the engine.
        bytes: its size.
        key: of ONNX file, GPU and TensorRT version; names the timing cache.
        gpu: name of the GPU.
        version: of TensorRT.
        reused: whether it was there already.
    """

    path: pathlib.Path
    bytes: int
    key: str
    gpu: str
    version: str
    reused: bool


def build_engine(
    onnx: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    timing_cache: str | os.PathLike[str] | None = None,
    workspace: int | None = None,
    min_batch: int = 1,
    opt_batch: int = 8,
    max_batch: int = 32,
) -> EngineReport:
    """Builds a TensorRT engine from an ONNX file.

    The file is held against `lint_tensorrt` first. The engine appears at `path`
    only when it was built, with a manifest beside it. Precision is that of the
    file: `to_onnx(..., precision="float16")` and quantized models.

    Args:
        onnx: the ONNX file, best from `to_onnx(target="tensorrt")`.
        path: where to write the engine; the folder is made if need be.
        timing_cache: a folder for TensorRT's measurements, which make the next
            build of the same file much shorter; None keeps none.
        workspace: bytes that a layer may use while it runs; None for all there is.
        min_batch: smallest batch, where the file leaves it open.
        opt_batch: the one the engine is tuned for.
        max_batch: the largest.

    Returns:
        An `EngineReport`.

    Raises:
        ImportError: if NVIDIA's `tensorrt` package is not installed.
        RuntimeError: if there is no GPU, or TensorRT fails to build.
        FileNotFoundError: if there is no ONNX file.
        ValueError: if an argument is wrong, the file breaks a rule of TensorRT, or
            its parser refuses it.
        OSError: if `path` cannot be written.
    """
    if workspace is not None:
        checks.positive_int("workspace", workspace)
    batches = _batches(min_batch, opt_batch, max_batch)
    model = load(onnx)
    shapes = _open_shapes(model, batches)
    trt = _tensorrt()
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
    there = _same(path, recipe)
    if there is None:
        cache = None
        if timing_cache is not None:
            cache = pathlib.Path(timing_cache) / f"{key}.timing"
        with artifacts.atomic_path(path) as temporary:
            temporary.write_bytes(_build(trt, pathlib.Path(onnx), shapes, cache, workspace))
        manifest = artifacts.write_manifest(path, recipe, key=key)
    else:
        manifest = there
    return EngineReport(
        pathlib.Path(path), manifest["bytes"], key, gpu, str(trt.__version__), there is not None
    )


def _batches(least: int, best: int, most: int) -> tuple[int, int, int]:
    names = ("min_batch", "opt_batch", "max_batch")
    for name, value in zip(names, (least, best, most), strict=True):
        checks.positive_int(name, value)
    if not least <= best <= most:
        raise checks.value_error(", ".join(names), "sizes in rising order", (least, best, most))
    return least, best, most


def _open_shapes(model: Any, batches: tuple[int, int, int]) -> dict[str, list[tuple[int, ...]]]:
    """{input with an open batch: its smallest, usual and largest shape}."""
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


def _tensorrt() -> Any:
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
    """Name of the first NVIDIA GPU, from its driver.

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


def _same(path: str | os.PathLike[str], recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an engine at `path` that was made the same way and is whole."""
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
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # Later versions know no other networks, and may drop the flag.
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
        if not config.set_timing_cache(timings, False):  # of another build: start anew
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(logger.errors) or "nothing"
        raise RuntimeError(f"TensorRT could not build an engine from {onnx}. It says: {said}")
    if cache is not None and timings is not None:
        artifacts.write_bytes(cache, bytes(timings.serialize()))
    return bytes(plan)


def _logger(trt: Any) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Errors()
