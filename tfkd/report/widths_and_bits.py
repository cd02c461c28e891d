"""Search over widths and number formats: every pair planned, trained, exported and scored."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import tf_keras as keras

from tfkd import checks, pruning
from tfkd.report.compare import compare
from tfkd.report.latency import Latency
from tfkd.report.layer_times import MODES, LayerTimes
from tfkd.report.table import Table
from tfkd.types import Data, Path

Train = Callable[[keras.Model], "keras.Model | None"]


@dataclasses.dataclass(frozen=True)
class _Found:
    """One model of the search, its file and its time."""

    model: keras.Model
    path: pathlib.Path
    milliseconds: float


def search(
    model: keras.Model,
    data: Data,
    measure: LayerTimes,
    *,
    reductions: Sequence[float] = (0.0, 0.25, 0.5),
    modes: Sequence[str] = ("float32", "float16", "int8"),
    train: Train | None = None,
    calibration: Data | None = None,
    folder: Path | None = None,
    **options: object,
) -> Table:
    """Tries every width budget in every number format; the result has their Pareto front.

    For each format and each reduction of the time that the model takes in this format,
    widths are planned by measured time (`tfkd.pruning.plan`), the model is shrunk, trained
    by `train`, exported, and the file is scored. Equal widths are trained once.

    Args:
        model: a trained model; it is not changed.
        data: held-out (x, y), as in `tfkd.report.compare`, by which files are scored. Choose
            by them, and test the chosen one on others.
        measure: the table of times; its mode is set by the search.
        reductions: fractions of the time to save, from 0, the model as it is, to below 1.
        modes: "float32", "float16", "dynamic", "int8".
        train: trains a shrunk model in place, or returns a trained one; None: they are
            scored as they are cut.
        calibration: examples for the ranges of mode "int8", see `tfkd.export.to_tflite`.
        folder: where the files go, `int8_50.tflite` for half of the time; None: they are
            deleted.
        **options: further arguments of `tfkd.pruning.plan`, such as `residual`.

    Returns:
        A `Table` with a row for each pair: score, parameters, size and the measured time.
        `print(table)` names the front, `table.pareto()` returns it, `table.save(folder)`
        draws it. Reductions that can't be reached are in its notes.

    Raises:
        TypeError, ValueError: if an argument is wrong, or none of the pairs is possible.

    Example:
        >>> import numpy as np
        >>> from tfkd import models, report
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(8, 8, 8, 3)).astype("float32"), np.arange(8)
        >>> net = models.resnet(8, input_shape=(8, 8, 3), widths=(4, 8))
        >>> table = report.search(
        ...     net, (x, y), report.LayerTimes(), reductions=[0.0], modes=["float32"]
        ... )
        >>> table.pareto()
        ('float32',)
    """
    checks.instance("measure", measure, LayerTimes, "a tfkd.report.LayerTimes")
    modes = [checks.one_of("modes", mode, MODES) for mode in _several("modes", modes)]
    fractions = [checks.fraction("reductions", one) for one in _several("reductions", reductions)]
    if "int8" in modes and calibration is None:
        fix = "They calibrate the ranges of the int8 files. Or leave int8 out of `modes`."
        raise checks.value_error("calibration", "example inputs with mode 'int8'", None, fix)
    checks.optional(checks.function, "train", train)
    refused, found = [], {}
    trained: dict[tuple[int, ...], keras.Model] = {}
    with tempfile.TemporaryDirectory() as made:
        where = pathlib.Path(made if folder is None else folder)
        for mode in dict.fromkeys(modes):
            for fraction in dict.fromkeys(fractions):
                name = mode if fraction == 0 else f"{mode}, {100 * fraction:.3g} % less"
                try:
                    small = _narrowed(
                        model, fraction, measure.in_mode(mode), train, trained, options
                    )
                except pruning.OutOfReach as error:
                    ends = f"{error.least_ms:.3g} ms of {error.before_ms:.3g} ms"
                    refused.append(f"{name}: out of reach, the least is {ends}.")
                    continue
                times = measure.in_mode(mode)
                taken = times(model) if small is model else times.beside(small, model)
                path = _exported(small, mode, fraction, calibration, where)
                found[name] = _Found(small, path, taken)
        if not found:
            expected = "at least one that can be reached"
            raise checks.value_error("reductions", expected, fractions, " ".join(refused))
        return _table(found, data, refused)


def _several(name: str, values: Sequence) -> list:
    """A list of at least one value."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not len(values):
        raise checks.type_error(name, "a list of at least one", values)
    return list(values)


def _narrowed(
    model: keras.Model,
    fraction: float,
    measure: LayerTimes,
    train: Train | None,
    trained: dict[tuple[int, ...], keras.Model],
    options: dict,
) -> keras.Model:
    """The model that saves a fraction of the time, trained."""
    if fraction == 0:
        return model
    plan = pruning.plan(model, latency_reduction=fraction, measure=measure, **options)
    widths = tuple(plan.remove.values())
    if widths not in trained:
        small = pruning.shrink(model, pruning.select(model, plan))
        result = train(small) if train is not None else None
        trained[widths] = small if result is None else result
        checks.instance("train", trained[widths], keras.Model, "a function that returns a model")
    return trained[widths]


def _exported(
    model: keras.Model,
    mode: str,
    fraction: float,
    calibration: Data | None,
    folder: pathlib.Path,
) -> pathlib.Path:
    from tfkd import export

    path = folder / f"{mode}_{100 * fraction:.3g}.tflite"
    data = calibration if mode == "int8" else None
    export.to_tflite(model, path, mode, data=data)
    return path


def _table(found: dict[str, _Found], data: Data, refused: list[str]) -> Table:
    """Scores of the files, with the times of the search in place of those of `compare`."""
    files = {name: one.path for name, one in found.items()}
    like = {name: one.model for name, one in found.items()}
    table = compare(files, data, like=like, runs=1, throughput_batch=None)
    rows = [
        dataclasses.replace(
            row, latency=Latency.of([found[row.model].milliseconds]), throughput=None
        )
        for row in table.rows
    ]
    table = dataclasses.replace(table, rows=rows, notes=["Times are those of `measure`.", *refused])
    front = f"Pareto front: {'; '.join(table.pareto())}."
    return dataclasses.replace(table, notes=[front, *table.notes])
