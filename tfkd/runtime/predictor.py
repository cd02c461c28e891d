"""`Predictor`: thread-safe inference with exported files of any format."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkd import checks
from tfkd.example_inputs import OPEN_SIZES
from tfkd.formats import forks, model_info
from tfkd.formats.litert import Port
from tfkd.formats.model_info import ModelInfo
from tfkd.formats.onnx_session import CPU
from tfkd.runtime import opening
from tfkd.runtime.backend import Backend, Refused, powers, zeros
from tfkd.runtime.batches import Batches
from tfkd.runtime.combining import Combiner, split
from tfkd.runtime.inputs import arrays_for
from tfkd.runtime.result_cache import CacheInfo, ResultCache
from tfkd.runtime.stored import Store, folder_for
from tfkd.types import Data, Path

if TYPE_CHECKING:
    from tfkd.data.text import Encoder


class Predictor:
    """Runs a `.tflite`, `.onnx`, `.keras` or TensorRT file or a SavedModel.

    Calls take real numbers and return float32, whatever the file stores: inputs and
    outputs in int8 and uint8 are quantized and dequantized with their scale and zero
    point. A .keras file may also compute in half precision, and one of a .keras file or a
    SavedModel may take or return texts, which are bytes (UTF-8) in outputs. Batches of any
    size are accepted: an open batch is run as it is; for a fixed batch size the examples
    are split and padded. Other open sizes are those of each call's examples; a .tflite file
    is resized when they change, which takes 0.1 ms or more.

    A `Predictor` is thread-safe. LiteRT and TensorRT run one call at a time; with
    `batch`, waiting calls are combined into one batch. ONNX Runtime and TensorFlow run
    calls concurrently.

    A `Predictor` can be pickled and so passed to other processes, which open the file
    again. After a fork, LiteRT and ONNX Runtime open the file again at the child's first
    call; TensorFlow and GPUs can't be used in the child, and the call raises
    RuntimeError.

    Args:
        path: the file, or the folder of a SavedModel. If there is a manifest beside it,
            the file is checked against it first.
        threads: number of threads within one call; latencies are comparable at 1.
            TensorFlow has a setting for the whole process, which is not changed.
        cache_size: number of examples whose results are cached, so that they are not
            computed again. Examples are the same if their bytes are. 0: no cache.
        batch: largest number of examples of concurrent calls that are combined; None:
            calls are not combined. It adds no thread, and no delay for a single caller.
        warmup: number of runs on zeros at opening, for each batch size if `batch` is
            given, so that the first call is as fast as later ones. Other open sizes are 32,
            or else 128, 8 or 1, whichever the file accepts.
        artifacts_dir: a folder for artefacts that speed up the next start; "auto":
            `~/.cache/tfkd` (or in XDG_CACHE_HOME, if that is set); None: none. They are
            XNNPACK's packed weights for .tflite files from 8 MiB, the optimized graph
            for .onnx, a SavedModel for .keras, and the engine for TensorRT. They are
            verified before use and created again, with a warning, if they are stale or
            damaged. The folder may be deleted at any time.
        providers: ONNX Runtime's execution providers in order of preference; None: the
            CPU.
        jit_compile: whether to compile a .keras file or SavedModel with XLA. Since it is
            compiled once per batch size, batches are padded to powers of two.
        tensorrt: whether to build a TensorRT engine from an .onnx file and run that.
        custom_objects: custom layers in a .keras file, by name. The folder for artefacts is
            not used for it then, since changes of their code would not be seen.
        safe_mode: refuse a .keras file with Python code, in Lambda layers. Set it to False
            for a file that you trust, which is then not kept as an artefact either.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has an unknown format, is damaged, or its runtime can't
            run it; if an argument is wrong or does not apply to the format.
        ImportError: if the runtime is not installed.
        RuntimeError: if an engine is to be run without an NVIDIA GPU.

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

        With a result cache, and closed at the end:

        >>> x = np.eye(4, dtype="float32")
        >>> with runtime.Predictor(report.path, cache_size=100) as predictor:
        ...     first, second = predictor(x[:3]), predictor(x)
        >>> info = predictor.cache_info()
        >>> info.hits, info.misses, info.size, round(info.hit_rate, 2)
        (3, 4, 4, 0.43)
    """

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        cache_size: int = 0,
        batch: int | None = None,
        *,
        warmup: int = 1,
        artifacts_dir: Path | None = None,
        providers: Sequence[str] | None = None,
        jit_compile: bool = False,
        tensorrt: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        safe_mode: bool = True,
    ):
        checks.instance("path", path, (str, os.PathLike), "the path of a file or folder")
        self.path = pathlib.Path(path)
        self.threads = checks.positive_int("threads", threads)
        self.batch = None if batch is None else checks.positive_int("batch", batch)
        checks.non_negative_int("cache_size", cache_size)
        checks.non_negative_int("warmup", warmup)
        if isinstance(providers, str):
            raise checks.type_error("providers", "a list of names", providers)
        if custom_objects is not None:
            checks.instance("custom_objects", custom_objects, Mapping, "a dict of classes by name")
        checks.instance("safe_mode", safe_mode, bool, "True or False")
        folder = folder_for(artifacts_dir)
        store = None if folder is None else Store(folder)
        names = None if providers is None else tuple(providers)
        self._options = opening.Options(
            threads, batch, store, names, bool(jit_compile), bool(tensorrt), custom_objects,
            safe_mode,
        )  # fmt: skip
        self._again = {
            "threads": threads, "cache_size": cache_size, "batch": batch, "warmup": warmup,
            "artifacts_dir": artifacts_dir, "providers": names, "jit_compile": jit_compile,
            "tensorrt": tensorrt, "custom_objects": custom_objects, "safe_mode": safe_mode,
        }  # fmt: skip
        backend = opening.open_backend(self.path, self._options)
        self._kind, self._ordered = backend.kind, backend.ordered
        self._inputs, self._outputs = backend.inputs, backend.outputs
        self._run = Batches(backend, rows=batch is not None or cache_size > 0)
        self._combiner = None if batch is None else Combiner(self._run, batch)
        self._compute = self._run if self._combiner is None else self._combined
        self._cache = ResultCache(cache_size) if cache_size else None
        self._one_output = len(self._outputs) == 1
        # Dtype and shape of a single input, for a fast path without further checks.
        self._dtype = self._rest = None
        texts = self._inputs[0].dtype == object  # The elements of these are checked.
        if len(self._inputs) == 1 and len(self._inputs[0].shape) > 1 and not texts:
            self._dtype, self._rest = self._inputs[0].dtype, self._inputs[0].shape[1:]
        try:
            self._warm(warmup, backend.sizes)
        except BaseException:
            self.close()
            raise
        forks.register(self)

    def _warm(self, runs: int, sizes: tuple[int, ...] | None) -> None:
        """Runs batches of zeros of each size; open sizes get the first at which that works."""
        batches = sizes or powers(self.batch or 1)
        batches = batches if self.batch else batches[:1]
        if not any(port.open_sizes for port in self._inputs):
            try:
                self._run_zeros(runs, batches)
            except Exception as error:  # Each runtime raises exceptions of its own types.
                expected = f"a file that {self._kind} can run"
                fix = f"On a batch of zeros it says: {error}"
                raise checks.value_error("path", expected, os.fspath(self.path), fix) from error
            return
        for size in OPEN_SIZES:  # The model may accept none of them.
            with contextlib.suppress(Exception):
                return self._run_zeros(runs, batches, size)

    def _run_zeros(self, runs: int, batches: Sequence[int], size: int = 1) -> None:
        with contextlib.suppress(Refused):  # Zeros or empty texts may not be in its vocabulary.
            for batch in batches:
                for _ in range(runs):
                    self._run(zeros(self._inputs, batch, size))

    def __repr__(self) -> str:
        text = f"Predictor({str(self.path)!r}, threads={self.threads}"
        if self._cache is not None:
            text += f", cache_size={self._cache.info().max_size}"
        if self.batch is not None:
            text += f", batch={self.batch}"
        return f"{text}) in {self._kind}{', closed' if self._run.closed else ''}"

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def kind(self) -> str:
        """The runtime of the file: "LiteRT", "ONNX Runtime", ..."""
        return self._kind

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The file's inputs: name, shape with the batch axis, dtype, scale, zero point.

        They are in the order of the model's inputs, which .onnx and .keras files hold, and
        for .tflite files and SavedModels the manifest beside them.
        """
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The file's outputs, likewise."""
        return self._outputs

    @functools.cached_property
    def _info(self) -> ModelInfo:
        return model_info.read(self.path, tuple(port.name for port in self._outputs))

    @property
    def labels(self) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
        """Names of the classes, if the file has them; a dict by output of a file with several."""
        found = dict(self._info.labels)
        if len(found) > 1 or (found and not self._one_output):
            return found
        return next(iter(found.values()), None)

    @property
    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std), if recorded: an input is (pixels − mean) / std."""
        return self._info.scaling

    @property
    def encoder(self) -> Encoder | None:
        """The tokenizer that came with the file, or None: `predictor(predictor.encoder(x))`."""
        return self._info.encoder

    def predict(self, data: Data) -> np.ndarray | dict[str, np.ndarray]:
        """Runs a batch.

        Args:
            data: examples in any form of `tfkd.example_inputs`: an array (N, ...); for a
                file with several inputs a dict of arrays by name, or a list in the order
                of the model's inputs; or batches, which are concatenated. Without the
                exporter's manifest the order of a .tflite file or SavedModel is not
                known, and a list is refused. Floats are real numbers. Integers are accepted
                where the file has integer inputs; for a quantized input they are codes.

        Returns:
            A float32 array (N, ...), or one of bytes for texts, or a dict of them by name for
            several outputs. The caller owns them.

        Raises:
            TypeError: if an array has the wrong dtype.
            ValueError: if a name or shape is wrong, `data` are empty, a token id is outside
                of an Embedding, a quantized input gets NaN or infinity, or TensorFlow refuses
                a value, such as a word that is not in a vocabulary; if this `Predictor` is
                closed.
        """
        array: Any = data
        if (
            type(array) is np.ndarray
            and array.dtype == self._dtype
            and array.shape[1:] == self._rest
            and array.size
            and array.flags.c_contiguous
        ):
            arrays: Sequence[np.ndarray] = (array,)
        else:
            arrays = self.encode(data)
        if self._cache is None:
            results = self._compute(arrays)
        else:
            self._run.check_open()
            results = self._cache.answer(arrays, self._compute)
        if self._one_output:
            return results[0]
        return {p.name: result for p, result in zip(self._outputs, results, strict=True)}

    __call__ = predict

    def encode(self, data: Data) -> list[np.ndarray]:
        """Checks `data`, as for `predict`; returns the arrays that `run_one` takes."""
        return arrays_for(self._inputs, data, self._ordered)

    def run_one(self, *arrays: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Runs the file once without checks, conversions and cache, for latency measurements.

        Args:
            *arrays: one per input, of exactly its shape and dtype (`encode(data)` makes
                them of real numbers).

        Returns:
            The raw output, or a tuple of them in the order of `outputs`
            (`outputs[0].decode(codes)` dequantizes).
        """
        if len(arrays) != len(self._inputs):
            expected = f"{len(self._inputs)} arrays, one for each input"
            raise checks.value_error("arrays", expected, len(arrays))
        results = self._run.raw(arrays)
        return results[0] if self._one_output else tuple(results)

    def cache_info(self) -> CacheInfo:
        """Hits, misses, size, max_size and hit_rate of the result cache."""
        return CacheInfo(0, 0, 0, 0) if self._cache is None else self._cache.info()

    def cache_clear(self) -> None:
        """Empties the result cache and resets its counters."""
        if self._cache is not None:
            self._cache.clear()

    def close(self) -> None:
        """Closes the file after the running calls have ended; later calls raise ValueError."""
        self._run.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles path and arguments; unpickling opens the file again."""
        self._run.check_open()
        return _opened, (type(self), os.path.abspath(self.path), self._again)

    def after_fork(self) -> None:
        """Runs in the child of a fork, where the runtime's threads are gone."""
        self._run.after_fork(self._reopened)
        if self._combiner is not None:
            assert self.batch is not None
            self._combiner = Combiner(self._run, self.batch)
        if self._cache is not None:
            self._cache.after_fork()

    def _reopened(self) -> Backend:
        """Opens a new backend in a process that was forked after this one was opened."""
        on_gpu = self._options.tensorrt or set(self._options.providers or CPU) != set(CPU)
        if on_gpu or not self._kind.startswith(("LiteRT", "ONNX")):
            raise RuntimeError(
                f"This Predictor of {str(self.path)!r} was opened before the process was forked, "
                f"and {self._kind} can't be used after a fork. {forks.WAY_OUT}"
            )
        return opening.open_backend(self.path, self._options)

    def _combined(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs arrays in a batch with the concurrent calls of other threads."""
        assert self._combiner is not None and self.batch is not None
        if len(arrays[0]) > self.batch:
            return split(arrays, self.batch, self._combiner.submit)
        return self._combiner.submit(arrays)


def _opened(kind: type[Predictor], path: str, arguments: dict[str, Any]) -> Predictor:
    """Makes a Predictor from its pickled arguments."""
    return kind(path, **arguments)
