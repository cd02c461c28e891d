"""Table of measured times of layers and models in LiteRT, here or on a device, kept in a file.

A machine's speed drifts with its clock frequency and with other work. So a model is timed in
turns with a reference, one convolution, and what counts is the ratio of the two; the table
holds it times the reference's milliseconds, which are measured once for each table. A machine
that is shared slows some kinds of layers more than others, and a convolution says little of
them: whole models are compared with the model that they were cut from.
"""

from __future__ import annotations

import copy
import json
import pathlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import artifacts, checks, fingerprints
from tfkd.formats import litert
from tfkd.pruning.masking import random_inputs
from tfkd.report import device_command
from tfkd.report.latency import machine
from tfkd.results import Grid, Result, three_digits
from tfkd.types import Path

MODES = ("float32", "float16", "dynamic", "int8")
_FEWEST, _ROUNDS, _SECONDS = 7, 41, 3.0  # no more than the fewest once so long
_LONGER = 2  # times as many rounds, and as long, for a model beside another
_BLOCK_MS, _LEAST_CALLS = 2.0, 3  # of calls in a row, in each round
_CALIBRATION = 16  # random examples, for the ranges of an int8 file
_HERE = ("ai-edge-litert", "tensorflow")  # their versions change times


class LayerTimes(Result):
    """Measures models as TFLite files; what was measured once is read from the table.

    `times(model)` are the milliseconds of one call with one example: the `measure` of
    `tfkd.pruning.plan`. Two models of the same layers and shapes have one entry, whatever
    their weights and names.

    Args:
        path: JSON file of the table, read if it is there and written after each
            measurement; None: the table is kept in memory.
        mode: "float32", "float16", "dynamic" or "int8", as in `tfkd.export.to_tflite`; inputs
            and outputs of "int8" are integers, and its ranges come from random inputs, on
            which time does not depend.
        threads: threads of one call.
        command: a shell command that runs a file elsewhere, with `{model}` for its path, and
            prints what TFLite's benchmark_model does ("Inference timings in us: … Inference
            (avg): 1234.5"). The file is always called `model.tflite`, for example
            `adb push {model} /data/local/tmp && adb shell /data/local/tmp/benchmark_model
            --graph=/data/local/tmp/model.tflite`. None: LiteRT runs it here.

    Raises:
        TypeError, ValueError: if an argument is wrong, or the file is no table, or one of
            another machine, number of threads, command or version.

    Example:
        >>> import pathlib, tempfile, tf_keras as keras
        >>> from tfkd import report
        >>> path = pathlib.Path(tempfile.mkdtemp(), "times.json")
        >>> times = report.LayerTimes(path)
        >>> model = keras.Sequential([keras.layers.Dense(4, input_shape=(8,))])
        >>> times(model) > 0 and times(model) == report.LayerTimes(path)(model)
        True
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        mode: str = "float32",
        threads: int = 1,
        command: str | None = None,
    ):
        self.mode = checks.one_of("mode", mode, MODES)
        self.threads = checks.positive_int("threads", threads)
        self.command = checks.optional(device_command.checked, "command", command)
        self.path = None if path is None else pathlib.Path(path)
        self._table: dict[str, Any] = {"measured_with": self._origin(), "times": {}}
        self._reference: list[Callable[[], Any]] = []
        if self.path is not None and self.path.exists():
            self._table = self._read()

    def in_mode(self, mode: str) -> LayerTimes:
        """The same table, for another mode of the files."""
        other = copy.copy(self)
        other.mode = checks.one_of("mode", mode, MODES)
        return other

    def __call__(self, model: keras.Model) -> float:
        """Milliseconds of one call of a built model.

        Raises:
            TypeError, ValueError: if it can't be exported in this mode.
            RuntimeError: if the command fails or prints no time.
        """
        checks.instance("model", model, keras.Model, "a built tf_keras model")
        return self._known(self._key(model), model, lambda: self._timed(model))

    def beside(self, model: keras.Model, other: keras.Model) -> float:
        """Milliseconds of a model: those of another one times the ratio of the two.

        They run in turns, so that a machine that has become slower, or faster, since the other
        one was measured changes nothing. `tfkd.pruning.plan` compares pruned models so with the
        model as it is.

        Args:
            model: a built model.
            other: what it is compared with, for example the model before pruning.

        Raises:
            TypeError, ValueError, RuntimeError: as for a call.

        Example:
            >>> import tf_keras as keras
            >>> from tfkd import report
            >>> small = keras.Sequential([keras.layers.Dense(4, input_shape=(8,))])
            >>> large = keras.Sequential([keras.layers.Dense(9, input_shape=(8,))])
            >>> report.LayerTimes().beside(small, large) > 0
            True
        """
        known = self(other)
        checks.instance("model", model, keras.Model, "a built tf_keras model")
        key = f"{self._key(model)}:{fingerprints.structure(other)[:20]}"
        return self._known(key, model, lambda: known * self._ratio(model, other))

    def _key(self, model: keras.Model) -> str:
        return f"{self.mode}:{fingerprints.structure(model)[:20]}"

    def _known(self, key: str, model: keras.Model, timed: Callable[[], float]) -> float:
        """What the table has under a key, measured and written if it is not there."""
        times = self._table["times"]
        if key not in times:
            times[key] = {"layers": _described(model), "mode": self.mode, "ms": timed()}
            self._write()
        return float(times[key]["ms"])

    def parts(self) -> list[Grid | str]:
        """The table, slowest first, and where it was measured."""
        rows = [(e["layers"], e["mode"], e["ms"]) for e in self._table["times"].values()]
        rows.sort(key=lambda row: -row[2])
        grid = Grid(("layers", "mode", "ms"), rows, {"ms": three_digits}, left=(0, 1))
        return [grid, "Measured with " + _origin_text(self._table["measured_with"]) + "."]

    def to_dict(self) -> dict[str, Any]:
        """The table as it is in the file."""
        return copy.deepcopy(self._table)

    def _origin(self) -> dict[str, Any]:
        here = machine()
        versions = {name: here["versions"].get(name, "none") for name in _HERE}
        if self.command is not None:
            return {"command": self.command, "tensorflow": versions["tensorflow"]}
        return {"processor": here["processor"], "threads": self.threads, **versions}

    def _read(self) -> dict[str, Any]:
        expected = "a table of tfkd.report.LayerTimes"
        try:
            table = json.loads(pathlib.Path(str(self.path)).read_text(encoding="utf-8"))
            found, times = table["measured_with"], table["times"]
            valid = isinstance(found, dict) and all(
                checks.is_number(entry["ms"]) and entry["ms"] > 0 for entry in times.values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            valid = False
        if not valid:
            fix = "Delete it, or pass the path of another file."
            raise checks.value_error("path", expected, str(self.path), fix)
        if found != (here := self._origin()):
            fix = (
                f"It was measured with {_origin_text(found)}. Pass another path: each device and "
                "each setting has a table of its own."
            )
            raise checks.value_error(
                "path", f"a table measured with {_origin_text(here)}", str(self.path), fix
            )
        return dict(table)

    def _write(self) -> None:
        if self.path is None:
            return
        if self.path.exists():  # another process may have added to it
            self._table["times"].update(
                {k: v for k, v in self._read()["times"].items() if k not in self._table["times"]}
            )
        artifacts.write_json(self.path, self._table)

    def _timed(self, model: keras.Model) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = _exported(model, pathlib.Path(folder, "model.tflite"), self.mode)
            if self.command is not None:
                return device_command.milliseconds(self.command, path)
            if not self._reference:
                self._reference.append(_reference(self.threads))
            reference = self._reference[0]
            if "reference_ms" not in self._table:
                known = statistics.median(_block(reference) for _ in range(_ROUNDS))
                self._table["reference_ms"] = known
            ratio = _in_turns(_call(path, self.threads), reference)
            return float(self._table["reference_ms"] * ratio)

    def _ratio(self, model: keras.Model, other: keras.Model) -> float:
        """How many times as long as another one a model takes."""
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as beside:
            paths = [
                _exported(one, pathlib.Path(where, "model.tflite"), self.mode)
                for one, where in ((model, folder), (other, beside))
            ]
            if self.command is not None:
                taken = [device_command.milliseconds(self.command, path) for path in paths]
                return taken[0] / taken[1]
            call, reference = (_call(path, self.threads) for path in paths)
            return _in_turns(call, reference, _LONGER)


def _in_turns(call: Callable[[], Any], reference: Callable[[], Any], longer: int = 1) -> float:
    """How many times as long as a reference a call takes: the median over many turns."""
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < _FEWEST or (
        len(ratios) < longer * _ROUNDS and time.perf_counter() - began < longer * _SECONDS
    ):
        ratios.append(_block(call) / _block(reference))
    return statistics.median(ratios)


def _block(call: Callable[[], Any]) -> float:
    """Median milliseconds of calls in a row, after one that warms the caches."""
    call()
    taken: list[int] = []
    while len(taken) < _LEAST_CALLS or sum(taken) < 1e6 * _BLOCK_MS:
        began = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - began)
    return statistics.median(taken) / 1e6


def _reference(threads: int) -> Callable[[], Any]:
    """A call of one convolution, which takes some tens of microseconds."""
    x = keras.Input((32, 32, 16))
    model = keras.Model(x, keras.layers.Conv2D(16, 3, padding="same")(x))
    with tempfile.TemporaryDirectory() as folder:
        path = _exported(model, pathlib.Path(folder, "reference.tflite"), "float32")
        return _call(path, threads)


def _exported(model: keras.Model, path: pathlib.Path, mode: str) -> pathlib.Path:
    from tfkd import export

    data, io = None, "float32"
    if mode == "int8":
        io = mode  # a layer alone must not be timed with conversions that the whole lacks
        drawn = tf.nest.flatten(random_inputs(model, _CALIBRATION))
        data = dict(zip(model.input_names, map(np.asarray, drawn), strict=True))
    with warnings.catch_warnings():  # They are for files that are kept.
        warnings.simplefilter("ignore")
        return export.to_tflite(model, path, mode, io, data, verify=False).path


def _call(path: pathlib.Path, threads: int) -> Callable[[], Any]:
    """A call of a file on random numbers; zeros where it takes integers, such as token ids."""
    interpreter = litert.open_interpreter(path, threads)
    rng = np.random.default_rng(0)
    for port in litert.ports(interpreter)[0]:
        if port.open_sizes:
            fix = "Pass input_shape to tfkd.pruning.plan, or build it with fixed sizes."
            raise checks.value_error("model", "a model whose sizes are fixed", port.shape, fix)
        values = rng.normal(size=port.shape) if port.dtype.kind == "f" else np.zeros(port.shape)
        interpreter.set_tensor(port.index, values.astype(port.dtype))
    return interpreter.invoke


def _described(model: keras.Model) -> str:
    """One line for people: what is computed, from and to which shapes."""
    kinds = [type(one).__name__ for one in model.layers]
    kinds = [kind for kind in kinds if kind != "InputLayer"]
    shapes = [tuple(one.shape)[1:] for one in (*model.inputs, *model.outputs)]
    into = ", ".join(map(str, shapes[: len(model.inputs)]))
    out = ", ".join(map(str, shapes[len(model.inputs) :]))
    what = kinds[0] if len(kinds) == 1 else f"{model.name}, {len(kinds)} layers"
    sizes = f", {model.count_params():,} parameters"
    return f"{what}: {into} → {out}{sizes}"


def _origin_text(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in origin.items())
