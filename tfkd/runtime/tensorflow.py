"""Backend for SavedModel folders and `.keras` files: TensorFlow, with XLA on request."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import artifacts, checks
from tfkd.formats.forks import check_tensorflow
from tfkd.formats.litert import Port
from tfkd.formats.saved_model import GRAPH_FILE, SIGNATURE, verify_saved_model
from tfkd.runtime.backend import Refused, arranged, powers

if TYPE_CHECKING:
    import tf_keras as keras

# XLA compiles once per batch size, so there are few sizes: powers of two up to this one.
_COMPILED_MOST = 64
_LONGEST = 500  # characters of TensorFlow's messages


class Function:
    """A function of arrays that returns a dict of tensors; it is thread-safe.

    See `tfkd.runtime.backend.Backend`.
    """

    call_cost = 8.0  # Dispatch takes as long as several examples of a small network.
    shared = True

    def __init__(
        self,
        kind: str,
        call: Any,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        batch: int | None,
        jit_compile: bool,
        ordered: bool = True,
    ):
        self.kind = f"{kind}, XLA" if jit_compile else kind
        self.inputs, self.outputs, self.ordered = tuple(inputs), tuple(outputs), ordered
        fixed = self.inputs[0].shape[0]
        self.sizes: tuple[int, ...] | None = None
        if fixed != -1:
            self.sizes = (fixed,)
        elif jit_compile:
            self.sizes = powers(batch or _COMPILED_MOST)
        self.most: int | None = None
        self._call = call
        self._refusals = require().errors.InvalidArgumentError
        self._names = [port.name for port in self.inputs]
        self._wanted = [port.name for port in self.outputs]

    def run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs a batch."""
        try:
            results = self._call(arrays)
        except self._refusals as error:
            # TensorFlow puts where before what.
            lines = [line for line in error.message.splitlines() if line.strip()]
            said = [line for line in lines if not line.lstrip().startswith(("[[", "File", "("))]
            expected = "values that the operations of the model accept"
            received = ", ".join(checks.describe(array) for array in arrays)
            fix = f"TensorFlow says: {(said or lines)[-1].strip()[:_LONGEST]}"
            raise Refused(f"`data`: expected {expected}, received {received}. {fix}") from error
        return [results[name].numpy() for name in self._wanted]

    def close(self) -> None:
        """Does nothing: the function is freed after the last running call."""


def require() -> Any:
    """Imports TensorFlow.

    Raises:
        ImportError: if it is not installed.
        RuntimeError: if TensorFlow was used before this process was forked.
    """
    check_tensorflow()
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "Running a SavedModel or a .keras file needs TensorFlow and tf_keras. "
            "Install them with `pip install tfkd`."
        ) from error
    return tensorflow


def open_saved_model(
    path: pathlib.Path, batch: int | None, jit_compile: bool, verify: bool = True
) -> Function:
    """Opens the signature of a SavedModel; with `verify`, its manifest is checked first.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: if the folder is not a SavedModel, is damaged, differs from its
            manifest, or has several signatures but no `serving_default`.
    """
    if not (path / GRAPH_FILE).is_file():
        expected = f"a SavedModel: a folder with a {GRAPH_FILE}"
        raise checks.value_error("path", expected, os.fspath(path))
    recipe: Mapping[str, Any] = {}
    graph = path / GRAPH_FILE
    if artifacts.manifest_path(graph).is_file():
        recipe = (verify_saved_model(path) if verify else artifacts.read_manifest(graph))["recipe"]
    tf = require()
    try:
        loaded = tf.saved_model.load(os.fspath(path))
    except Exception as error:  # Damaged files raise exceptions of many types.
        raise checks.value_error(
            "path", "a SavedModel that TensorFlow can load", os.fspath(path), f"It says: {error}"
        ) from error
    names = list(loaded.signatures)
    name = SIGNATURE if SIGNATURE in names or len(names) != 1 else names[0]
    if name not in names:
        expected = f"a SavedModel with the signature {SIGNATURE!r} or a single one"
        raise checks.value_error("path", expected, names)
    serve = loaded.signatures[name]
    specs = serve.structured_input_signature[1]
    # Their order in the signature may change from process to process.
    into, out = sorted(specs.items()), sorted(serve.structured_outputs.items())
    inputs, outputs, ordered = arranged(
        [_port(n, s, i) for i, (n, s) in enumerate(into)],
        [_port(n, s, i) for i, (n, s) in enumerate(out)],
        recipe,
    )
    ports = [(port.name, port.dtype) for port in inputs]

    def call(*tensors: Any) -> Any:
        return serve(**{name: tensor for (name, _), tensor in zip(ports, tensors, strict=True)})

    run = tf.function(call, jit_compile=True) if jit_compile else call

    def forward(arrays: Sequence[np.ndarray]) -> Any:
        return run(*[tf.constant(array) for array in arrays])

    forward.kept = loaded  # type: ignore[attr-defined]  # It keeps the variables alive.
    return Function("TensorFlow", forward, inputs, outputs, batch, jit_compile, ordered)


def load_keras(
    path: pathlib.Path, custom_objects: Mapping[str, Any] | None = None, safe_mode: bool = True
) -> keras.Model:
    """Loads a `.keras` file.

    Raises:
        ImportError: if tf_keras is not installed.
        ValueError: if tf_keras cannot load it.
    """
    require()
    from tfkd.networks import keras_files

    return keras_files.load("path", path, custom_objects, safe_mode)


def open_keras(model: keras.Model, batch: int | None, jit_compile: bool) -> Function:
    """Makes a backend of a Keras model; inputs and outputs are named as in its exports."""
    import tensorflow as tf

    from tfkd.export.named_function import NamedFunction, check_runnable

    check_runnable(model)
    graph = NamedFunction(model)
    plain = graph.function(None)
    concrete = plain.get_concrete_function()
    inputs = [
        Port(item.name, (-1, *item.shape), item.dtype, 0.0, 0, i)
        for i, item in enumerate(graph.inputs)
    ]
    outputs = [_port(n, s, i) for i, (n, s) in enumerate(concrete.structured_outputs.items())]
    run = tf.function(plain, jit_compile=True) if jit_compile else concrete

    def forward(arrays: Sequence[np.ndarray]) -> Any:
        return run(*[tf.constant(array) for array in arrays])

    forward.kept = graph  # type: ignore[attr-defined]
    return Function("tf_keras", forward, inputs, outputs, batch, jit_compile)


def _port(name: str, spec: Any, index: int) -> Port:
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    shape = spec.shape
    known = dtype.kind in "biufO" or spec.dtype.is_floating  # NumPy's kind of bfloat16 is "V".
    if not known or shape.rank is None or not shape.rank:
        expected = f"a model whose inputs and outputs are batches of numbers or texts ({name!r})"
        raise checks.value_error("path", expected, spec)
    return Port(name, tuple(-1 if s is None else s for s in shape), dtype, 0.0, 0, index)
