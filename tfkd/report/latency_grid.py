"""Times models at several numbers of threads and batch sizes, all in turns."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfkd import artifacts, checks
from tfkd.report import inference, printing, targets
from tfkd.report.latency import Latency, in_turns, per_second_text
from tfkd.report.latency import machine as this_machine

HEAD = ("model", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "mean ms", "examples/s")
NONE = "–"


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

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of the table's head."""
        threads = NONE if self.threads is None else str(self.threads)
        times = self.latency
        if times is None:
            return (self.model, threads, str(self.batch), *[NONE] * 5)
        numbers = (f"{time:.3f}" for time in (times.p50, times.p90, times.p99, times.mean))
        rate = per_second_text(times.throughput(self.batch))
        return (self.model, threads, str(self.batch), *numbers, rate)


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """What `latency_table` measured; prints itself, and writes Markdown and JSON.

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

    rows: Iterable[LatencyRow]
    notes: Iterable[str] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=this_machine)

    def __post_init__(self):
        rows = tuple(self.rows)
        if not rows:
            raise checks.value_error("rows", "at least one row", rows)
        for row in rows:
            checks.instance("rows", row, LatencyRow, "rows of type tfkd.report.LatencyRow")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))

    def _cells(self) -> list[tuple[str, ...]]:
        return [row.cells() for row in self.rows]

    def _notes(self) -> list[str]:
        return [*self.notes, printing.machine_line(self.machine)]

    def text(self) -> str:
        """The table as plain text, the notes and the machine below."""
        return "\n\n".join([printing.text(HEAD, self._cells()), "\n".join(self._notes())])

    __str__ = text

    def markdown(self) -> str:
        """The table in GitHub's Markdown, the notes and the machine below."""
        lines = printing.markdown(HEAD, self._cells())
        for note in self._notes():
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything in full precision, fit for JSON."""
        rows = []
        for row in self.rows:
            fields = dataclasses.asdict(row) | {"throughput": row.throughput}
            rows.append({key: value for key, value in fields.items() if value is not None})
        return {"rows": rows, "notes": list(self.notes), "machine": dict(self.machine)}

    def show(self) -> None:
        """Prints the table: with rich where it is installed, else as plain text."""
        printing.show(HEAD, self._cells(), ["\n".join(self._notes())])

    def save(self, folder: str | os.PathLike) -> pathlib.Path:
        """Writes `latency.md` and `latency.json`; returns the folder, made if need be."""
        folder = pathlib.Path(folder)
        artifacts.write_text(folder / "latency.md", self.markdown())
        artifacts.write_json(folder / "latency.json", self.as_dict())
        return folder


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
        A `LatencyTable`: `.show()`, `.text()`, `.markdown()`, `.as_dict()`,
        `.save(folder)`; its `rows` are sorted by model, threads and batch size as
        they were given.

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
            mend = "It holds one batch size at a time. Pass its path."
            raise checks.type_error(f"models[{name!r}]", "a path, for several batches", model, mend)
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
