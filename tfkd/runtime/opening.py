"""Selection of the backend for a file, and the artefacts on disk that speed up the next start."""

from __future__ import annotations

import dataclasses
import mmap
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tfkd import __version__, artifacts, checks
from tfkd.formats.saved_model import GRAPH_FILE
from tfkd.networks.layer_parts import parts
from tfkd.runtime import stored
from tfkd.runtime.backend import Backend, check_agreement
from tfkd.runtime.stored import Store

ENDINGS = {f".{kind}": kind for kind in ("tflite", "onnx", "keras")}
ENDINGS |= {".engine": "tensorrt", ".plan": "tensorrt"}
# Allowed error of optimized graphs, relative to the largest output.
_TOLERANCE = 1e-4
# Protobuf encoding of the key "location" in a tensor's external_data: field 1, 8 bytes long.
_EXTERNAL = b"\x0a\x08location"


@dataclasses.dataclass(frozen=True)
class Options:
    """The checked options of a `Predictor`."""

    threads: int
    batch: int | None
    store: Store | None
    providers: tuple[str, ...] | None
    jit_compile: bool
    tensorrt: bool
    custom_objects: Mapping[str, Any] | None
    safe_mode: bool


def kind_of(path: pathlib.Path) -> str:
    """The format of a file: "tflite", "onnx", "keras", "tensorrt" or "saved_model".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has another format.
    """
    if path.is_dir():
        return "saved_model"
    if not path.is_file():
        raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        with path.open("rb") as file:
            if file.read(8)[4:] == b"TFL3":
                return "tflite"
        known = ", ".join(ENDINGS)
        fix = None
        if path.suffix.lower() in (".h5", ".hdf5"):
            fix = "Load it with tf_keras and save it as .keras."
        expected = f"a file that ends in {known}, or the folder of a SavedModel"
        raise checks.value_error("path", expected, os.fspath(path), fix)
    return kind


def open_backend(path: pathlib.Path, options: Options) -> Backend:
    """Opens a file in its runtime.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has an unknown format, its runtime can't
            run it, or an option does not apply to its format.
        ImportError: if its runtime is not installed.
        RuntimeError: if it needs a GPU and there is none.
    """
    kind = kind_of(path)
    _fits(kind, options)
    recipe: Mapping[str, Any] = {}
    if kind != "saved_model" and artifacts.manifest_path(path).is_file():
        recipe = (options.store.verify if options.store else artifacts.verify)(path)["recipe"]
    if kind == "tflite":
        return _tflite(path, options, recipe)
    if kind == "onnx":
        return _onnx(path, options)
    if kind == "keras":
        return _keras(path, options)
    if kind == "saved_model":
        from tfkd.runtime import tensorflow

        return tensorflow.open_saved_model(path, options.batch, options.jit_compile)
    from tfkd.runtime.tensorrt import TensorRT

    return TensorRT(path)


def _fits(kind: str, options: Options) -> None:
    """Raises if an option does not apply to the format."""
    if options.providers is not None and (kind != "onnx" or options.tensorrt):
        raise checks.value_error("providers", "None for what isn't run by ONNX Runtime", kind)
    if options.tensorrt and kind != "onnx":
        fix = "An engine is used as it was built."
        raise checks.value_error("tensorrt", "True for an .onnx file only", kind, fix)
    if options.jit_compile and kind not in ("keras", "saved_model"):
        raise checks.value_error("jit_compile", "True for a .keras file or a SavedModel only", kind)
    if options.custom_objects is not None and kind != "keras":
        raise checks.value_error("custom_objects", "None for what is no .keras file", kind)
    if not options.safe_mode and kind != "keras":
        fix = "No other file holds Python code."
        raise checks.value_error("safe_mode", "True for what is no .keras file", kind, fix)


def _tflite(path: pathlib.Path, options: Options, recipe: Mapping[str, Any]) -> Backend:
    from tfkd.runtime import compiled
    from tfkd.runtime.tflite import TFLite

    if options.store is not None:
        arguments = path, options.store, options.threads, options.batch, recipe
        found = compiled.open_compiled(*arguments)
        if found is not None:
            return found
    return TFLite(path, options.threads, options.batch, recipe)


def _onnx(path: pathlib.Path, options: Options) -> Backend:
    from tfkd.formats.onnx_session import CPU
    from tfkd.runtime.onnx import Onnx

    if options.tensorrt:
        from tfkd.runtime import tensorrt

        if options.store is not None:
            return tensorrt.TensorRT(tensorrt.engine_for(path, options.store, options.batch))
        with tempfile.TemporaryDirectory() as folder:
            store = Store(pathlib.Path(folder))
            return tensorrt.TensorRT(tensorrt.engine_for(path, store, options.batch))
    providers = options.providers or CPU
    if options.store is not None:
        found = _optimized(path, options.store, options.threads, providers)
        if found is not None:
            return Onnx(found, options.threads, providers, fuse=False)
    return Onnx(path, options.threads, providers)


def _optimized(
    path: pathlib.Path, store: Store, threads: int, providers: Sequence[str]
) -> pathlib.Path | None:
    """The optimized ONNX file, created if necessary; None, with a warning, if that fails."""
    from tfkd.formats.onnx_nodes import require
    from tfkd.runtime.onnx import Onnx

    recipe = {
        "format": "optimized_onnx",
        "model_sha256": store.digest(path),
        "onnxruntime": str(require("onnxruntime").__version__),
        "providers": list(providers),
        "processor": stored.processor(),
    }
    kept = store.name(path.stem, recipe, ".onnx")
    try:
        if store.find(kept, recipe) is None:
            if _external(path):
                raise ValueError("its weights are in separate files")

            def make(temporary: pathlib.Path) -> dict[str, Any]:
                plain = Onnx(path, threads, providers, write=temporary)
                check_agreement(plain, Onnx(temporary, threads, providers, fuse=False), _TOLERANCE)
                return {}

            store.create(kept, recipe, make)
        return kept
    except (OSError, ValueError, RuntimeError) as error:
        stored.warn_uncached(path, error)
        return None


def _external(path: pathlib.Path) -> bool:
    """Whether an ONNX file has weights in separate files, which its SHA-256 does not cover."""
    if not os.path.getsize(path):
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_EXTERNAL) >= 0


def _keras(path: pathlib.Path, options: Options) -> Backend:
    from tfkd.export.saved_model import to_saved_model
    from tfkd.runtime import tensorflow

    batch, jit_compile = options.batch, options.jit_compile
    if options.store is None or options.custom_objects is not None or not options.safe_mode:
        model = tensorflow.load_keras(path, options.custom_objects, options.safe_mode)
        return tensorflow.open_keras(model, batch, jit_compile)
    tf = tensorflow.require()
    store = options.store
    recipe = {
        "format": "saved_model",
        "model_sha256": store.digest(path),
        "tensorflow": str(tf.__version__),
        "tfkd": __version__,
    }
    folder = store.name(path.stem, recipe, "")
    opened = (folder, batch, jit_compile, False)
    if folder.exists():
        try:
            _settle(folder, store)
            return tensorflow.open_saved_model(*opened)
        except (OSError, ValueError, KeyError) as error:
            stored.warn_recreated(folder, str(error))
            shutil.rmtree(folder, ignore_errors=True)
    model = tensorflow.load_keras(path)
    plain = tensorflow.open_keras(model, batch, jit_compile)
    if _has_custom_layers(model):
        return plain  # Changes in the code of custom layers would not be detected.
    try:
        to_saved_model(model, folder, verify=False)  # It is compared below.
        _settle(folder, store)
        found = tensorflow.open_saved_model(*opened)
        try:
            check_agreement(plain, found, _TOLERANCE)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return found
    except (OSError, ValueError, RuntimeError) as error:
        stored.warn_uncached(path, error)
        return plain


def _settle(folder: pathlib.Path, store: Store) -> None:
    """Checks the files of a stored SavedModel against its manifest."""
    for name, entry in store.verify(folder / GRAPH_FILE)["files"].items():
        if store.digest(folder / name) != entry["sha256"]:
            raise ValueError(f"{name} has another SHA-256 than its manifest says")


def _has_custom_layers(model: Any) -> bool:
    """Whether a model has layers that are neither from tf_keras nor from tfkd."""
    return any(
        hasattr(layer, "get_config")
        and type(layer).__module__.split(".")[0] not in ("tf_keras", "tfkd")
        for layer in parts(model)
    )
