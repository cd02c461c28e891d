"""Latency table of models for several numbers of threads and batch sizes, interleaved."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfkd import checks
from tfkd.report import inference, targets
from tfkd.report.latency import Latency, busy_note, in_turns, machine_line, per_second_text
from tfkd.report.model_table import ModelTable
from tfkd.results import Format, Grid, Lines, three_digits
from tfkd.types import Data

TIMES = ("p50", "p90", "p99", "mean")
HEAD = ("model", "threads", "batch", *(f"{time} ms" for time in TIMES), "examples/s")
FORMATS: dict[str, Format] = dict.fromkeys(HEAD[3:-1], three_digits)
FORMATS["examples/s"] = per_second_text


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One model at one number of threads and one batch size.

    Attributes:
        model: name of the model.
        threads: threads of a call; None for a callable, where they are not known.
        batch: examples per call.
        latency: time of a call; None if the file does not support the batch size.
    """

    model: str
    threads: int | None
    batch: int
    latency: Latency | None = None

    @property
    def throughput(self) -> float | None:
        """Examples per second: batch / mean time."""
        return None if self.latency is None else self.latency.throughput(self.batch)

    def values(self) -> tuple[Any, ...]:
        """The values in the order of the table's columns."""
        times = (getattr(self.latency, name, None) for name in TIMES)
        return (self.model, self.threads, self.batch, *times, self.throughput)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return dataclasses.asdict(self) | {"throughput": self.throughput}


@dataclasses.dataclass(frozen=True)
class LatencyTable(ModelTable, title="Latency", file_name="latency"):
    """The result of `latency_table`; a `tfkd.results.Result`.

    Attributes:
        rows: one `LatencyRow` per combination of model, threads and batch size.
        notes: sentences below the table.
        machine: description of the machine (`tfkd.report.machine()`).

    Example:
        >>> from tfkd import report
        >>> times = report.Latency.of([3.0, 5.0])
        >>> print(report.LatencyTable([report.LatencyRow("a", 1, 32, times)], machine={}))
        model  threads  batch  p50 ms  p90 ms  p99 ms  mean ms  examples/s
        -----  -------  -----  ------  ------  ------  -------  ----------
        a            1     32   4.000   4.800   4.980    4.000       8,000
        <BLANKLINE>
        Measured on None, None cores; .
    """

    row_type = LatencyRow

    def parts(self) -> list[Grid | Lines]:
        """The table, the notes and the machine."""
        table = Grid(HEAD, [row.values() for row in self.rows], FORMATS)
        return [table, Lines([*self.notes, machine_line(self.machine)])]


def latency_table(
    models: Mapping[str, Any],
    data: Data,
    *,
    threads: int | Sequence[int] = (1,),
    batch_sizes: int | Sequence[int] = (1,),
    warmup: int = 5,
    runs: int = 200,
    seconds: float | None = 60.0,
) -> LatencyTable:
    """Measures every model at every number of threads and batch size, in one process.

    After a warm-up, all combinations are measured in turns, as in `latency`. A file is
    run on examples in its input dtype, without checks and conversions. A Keras model is
    measured as its float32 TFLite file, exported for each batch size; pass
    `model.__call__` to time Keras itself. A Keras 3 model is converted by
    `tfkd.from_keras3`; if that fails, and for TensorFlow modules, a compiled function is
    measured. The threads of a callable cannot be set, so it is measured once for each
    batch size; it gets `training=False` if it takes this argument. Variables that change
    while a model runs are restored, with a warning.

    Args:
        models: name → path of any file that `tfkd.runtime.Predictor` runs, built
            `tf_keras` or Keras 3 model, or callable x → outputs. Also a `Predictor`, with
            its own threads, and for a single batch size if its file's is not fixed.
        data: examples, in any form of `tfkd.example_inputs`. A batch consists of the
            first of them, repeated if there are fewer.
        threads: number or numbers of threads of one call. TensorFlow, which runs
            SavedModels and .keras files, has one setting for the process instead.
        batch_sizes: number or numbers of examples per call. A file with a fixed batch
            size is measured at that size only; other sizes show a dash.
        warmup: unmeasured rounds before the measurement.
        runs: measured rounds.
        seconds: time limit: stop after the round in which it is exceeded; None: no
            limit.

    Returns:
        A `LatencyTable`: `print` it, `.save(folder)` it; its `rows` are in the order of
        the given models, threads and batch sizes.

    Raises:
        TypeError: if a model is none of these (of a Distiller pass the student), or a
            file does not accept `data`.
        ValueError: if a number is out of range, there are no models or examples, or no
            file supports any of the batch sizes.
        ImportError: if the runtime of a file is not installed.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> models = {"mean": np.mean, "sort": np.sort}
        >>> table = report.latency_table(models, np.ones((4, 8)), batch_sizes=(1, 16), runs=20)
        >>> [(row.model, row.batch, row.latency.runs) for row in table.rows]
        [('mean', 1, 20), ('mean', 16, 20), ('sort', 1, 20), ('sort', 16, 20)]
    """
    models = targets.checked_models(models)
    given = {name: targets.checked_model(name, model) for name, model in models.items()}
    x = targets.examples(data).x
    grid = _numbers("threads", threads), _numbers("batch_sizes", batch_sizes)
    held = {name: [model] for name, model in given.items()}
    with inference.Unchanged(held) as watch, tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        pairs = {name: targets.converted(name, model, x) for name, model in given.items()}
        notes = [note for _, note in pairs.values() if note]
        places: list[tuple[str, int | None, int]] = []
        calls, kinds = {}, {}
        for name, (model, _) in pairs.items():
            for count, batch, target, call in _calls(name, model, x, *grid, folder):
                kinds[name] = inference.kind_of(target)
                if call is not None:
                    calls[str(len(places))] = call
                places.append((name, count, batch))
        if not calls:
            expected = "a batch size that at least one file takes"
            raise checks.value_error("batch_sizes", expected, grid[1])
        times = in_turns(calls, warmup, runs, seconds)
        for name in given:
            watch.check(f"models[{name!r}]", name)
    notes += targets.kind_notes(kinds, {name: model for name, (model, _) in pairs.items()})
    rows = [LatencyRow(*place, times.get(str(i))) for i, place in enumerate(places)]
    taken = next(iter(times.values())).runs
    note = f"{taken} runs each, in turns, after {warmup} to warm up."
    named = [f"{name}, {batch} a call" for name, _, batch in places]
    note += busy_note({name: times[str(i)] for i, name in enumerate(named) if str(i) in times})
    return LatencyTable(rows, [note, *notes])


def _calls(name: str, model: Any, x: Any, threads: list[int], batches: list[int], folder):
    """Yields (threads, batch, target, a call or None) for one model, threads first."""
    import tf_keras as keras

    path, files = model, {}
    counts: list[Any] = list(threads)
    if not isinstance(model, (keras.Model, pathlib.Path)):
        predictor = targets.is_predictor(model)
        counts = [getattr(model, "threads", None) if predictor else None]
        if predictor and len(batches) > 1 and targets.fixed_batch(model) is None:
            fix = "It holds one batch size at a time. Pass its path."
            raise checks.type_error(f"models[{name!r}]", "a path, for several batches", model, fix)
    for count in counts:
        for batch in batches:
            if isinstance(model, keras.Model):
                # Threads are set in the interpreter, so they share a file.
                if batch not in files:
                    made = targets.opened(name, model, count, folder, batch)
                    files[batch] = made.path
                    if targets.fixed_batch(made) is None:  # a SavedModel
                        files = dict.fromkeys(batches, made.path)
                path = files[batch]
            # A target for each combination, so that inputs are resized only once.
            target = targets.opened(name, path, count or 1, folder, x=x)
            yield count, batch, target, targets.call(name, target, x, batch)


def _numbers(argument: str, values: Any) -> list[int]:
    """One or several positive integers as a list without duplicates, in order."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        values = [values]
    numbers = [checks.positive_int(argument, value) for value in values]
    if not numbers:
        raise checks.value_error(argument, "at least one number", values)
    return list(dict.fromkeys(numbers))
