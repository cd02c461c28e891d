"""Times models at several numbers of threads and batch sizes, all in turns."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfkd import checks
from tfkd.report import inference, targets
from tfkd.report.latency import Latency, in_turns, machine_line, per_second_text
from tfkd.report.model_table import ModelTable
from tfkd.results import Format, Grid, Lines

TIMES = ("p50", "p90", "p99", "mean")
HEAD = ("model", "threads", "batch", *(f"{time} ms" for time in TIMES), "examples/s")
FORMATS: dict[str, Format] = dict.fromkeys(HEAD[3:-1], ".3f") | {"examples/s": per_second_text}


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One model at one number of threads and one batch size.

    Attributes:
        model: name.
        threads: threads within a call; None for a callable that does not say.
        batch: examples in a call.
        latency: time of a call; None if the file does not take so many examples.
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
        """The row, in the order of the table's head."""
        times = (getattr(self.latency, name, None) for name in TIMES)
        return (self.model, self.threads, self.batch, *times, self.throughput)

    def to_dict(self) -> dict[str, Any]:
        """The row fit for JSON."""
        return dataclasses.asdict(self) | {"throughput": self.throughput}


@dataclasses.dataclass(frozen=True)
class LatencyTable(ModelTable, title="Latency", file_name="latency"):
    """What `latency_table` measured; a `tfkd.results.Result`.

    Attributes:
        rows: every combination of model, threads and batch size.
        notes: sentences that stand below the table.
        machine: where it was measured (`tfkd.report.machine()`).

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
    data: Any,
    *,
    threads: int | Sequence[int] = (1,),
    batch_sizes: int | Sequence[int] = (1,),
    warmup: int = 5,
    runs: int = 200,
    seconds: float | None = 60.0,
) -> LatencyTable:
    """Measures every model at every number of threads and batch size, in one process.

    All combinations take turns, after all have been warmed, as in `latency`. A file
    is run on examples in its own type, without checks and conversions around it. A
    Keras model is measured as its float32 TFLite file, exported for each batch size;
    pass `model.__call__` to time Keras itself. A Keras 3 model is converted by
    `tfkd.from_keras3`; where that can't be, and for TensorFlow modules, a compiled
    function is measured. A callable has the threads that it has, so it is measured
    once for each batch size; it gets `training=False` if it takes the word. Variables
    that change while a model runs get their values back, and a warning says so.

    Args:
        models: name → path of any file that `tfkd.runtime.Predictor` runs, built
            `tf_keras` or Keras 3 model, or callable x → outputs. Also a `Predictor`, with the
            threads that it has, and at one batch size only if its file's is open.
        data: examples, in any form of `tfkd.example_inputs`. A batch is the first of
            them, repeated where there are fewer.
        threads: threads within one call: a number, or several. TensorFlow, which runs
            SavedModels and .keras files, has one setting for the process instead.
        batch_sizes: examples in one call: a number, or several. A file of a fixed
            batch size is measured at that alone; at others the table has a dash.
        warmup: rounds before the measuring, not counted.
        runs: measured rounds.
        seconds: stop earlier, after the first round that ends later than this
            many seconds of measuring; None: no limit.

    Returns:
        A `LatencyTable`: `print` it, `.save(folder)` it; its `rows` are sorted
        by model, threads and batch size as they were given.

    Raises:
        TypeError: if a model is none of these (of a Distiller pass the student), or a
            file does not take `data`.
        ValueError: if a number is out of range, there is no model or example, or no
            file takes any of the batch sizes.
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
        times = in_turns(calls, warmup=warmup, runs=runs, seconds=seconds)
        for name in given:
            watch.check(f"models[{name!r}]", name)
    notes += targets.kind_notes(kinds, {name: model for name, (model, _) in pairs.items()})
    rows = [LatencyRow(*place, times.get(str(i))) for i, place in enumerate(places)]
    taken = next(iter(times.values())).runs
    return LatencyTable(rows, [f"{taken} runs each, in turns, after {warmup} to warm up.", *notes])


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
                # Threads are the interpreter's; the file is the same.
                if batch not in files:
                    files[batch] = targets.opened(model, count, folder, batch).path
                path = files[batch]
            # Each has a target of its own: an open batch is resized only once.
            target = targets.opened(path, count or 1, folder, x=x)
            yield count, batch, target, targets.call(name, target, x, batch)


def _numbers(argument: str, values: Any) -> list[int]:
    """One positive integer, or several → those that differ, in order."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        values = [values]
    numbers = [checks.positive_int(argument, value) for value in values]
    if not numbers:
        raise checks.value_error(argument, "at least one number", values)
    return list(dict.fromkeys(numbers))
