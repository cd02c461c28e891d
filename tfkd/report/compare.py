"""Fills a table from models and test data: each model as it would be deployed."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.report.accuracy import accuracy, seed_stats
from tfkd.report.latency import latency
from tfkd.report.profile import profile
from tfkd.report.table import Row, Table


def compare(
    models: Mapping[str, Any],
    data: Any,
    *,
    threads: int = 1,
    like: Mapping[str, keras.Model] | None = None,
    runs: int = 300,
    seconds: float | None = 30.0,
) -> Table:
    """Compares Keras models and `.tflite` files on one test set, in one table.

    The latency and the file size of a Keras model are those of its float32
    TFLite file, made in a temporary folder, so that all rows are measured in one
    runtime, taking turns. Its accuracy is its own. Latency is that of one
    example in the file's own type, the copying in and out of the interpreter
    included.

    Args:
        models: name → built `tf_keras` model, or path of a `.tflite` file, or a
            list of one kind: the same model from several seeds, whose accuracy
            is shown as mean ± standard deviation. The first one stands for all
            in the other columns.
        data: (x, y), x of shape (N, ...) as the models take it and y of shape
            (N,) or one-hot (N, C); or a `tf.data.Dataset` of such batches.
        threads: threads for one call.
        like: name → Keras model whose parameters and MACs a `.tflite` file has.
        runs: measured runs of each model.
        seconds: stop measuring after this time; None: no limit.

    Returns:
        A `Table`: `.show()`, `.text()`, `.markdown()`, `.save(folder)`.

    Raises:
        TypeError: if a model is neither a Keras model nor a path.
        ValueError: for an empty dict or data set, or names in `like` that are
            not in `models`.
        ImportError: if ai-edge-litert is not installed.

    Example:
        >>> import numpy as np, tf_keras as keras
        >>> from tfkd import report
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> table = report.compare({"dense": model}, (x, y), runs=5)
        >>> table.rows[0].params, table.rows[0].macs, table.rows[0].latency.runs
        (15, 12, 5)
    """
    checks.positive_int("threads", threads)
    members = {name: _members(name, value) for name, value in _checked(models).items()}
    like = dict(like or {})
    for name in like:
        if name not in members:
            raise checks.value_error("like", "names that are in `models`", name)
    x, y = _arrays(data)

    from tfkd import export, runtime

    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, pathlib.Path] = {}
        for index, (name, group) in enumerate(members.items()):
            files[name] = pathlib.Path(folder, f"{index}.tflite")
            if isinstance(group[0], keras.Model):
                export.to_tflite(group[0], files[name])
            else:
                files[name] = group[0]
        predictors = {name: runtime.Predictor(path, threads) for name, path in files.items()}
        runners = {name: _runner(predictor, x[:1]) for name, predictor in predictors.items()}
        times = latency(runners, runs=runs, seconds=seconds)
        rows = []
        for name, group in members.items():
            values = [_accuracy(one, x, y, threads) for one in group]
            counts = _counts(like.get(name, group[0]))
            size = files[name].stat().st_size
            rows.append(Row(name, seed_stats(values), *counts, size, times[name]))
    taken = times[rows[0].model].runs
    note = f"Latency: one example, {_threads(threads)}, {taken} runs each, in turns."
    return Table(rows, [note])


def _runner(predictor: Any, example: np.ndarray) -> Callable[[], Any]:
    """One run on one example, already in the file's own type."""
    codes = np.ascontiguousarray(predictor.inputs[0].encode(example))
    return lambda: predictor.run_one(codes)


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _checked(models: Any) -> Mapping[str, Any]:
    checks.instance("models", models, Mapping, "a dict of name → model or path")
    if not models:
        raise checks.value_error("models", "at least one model", models)
    return models


def _members(name: str, value: Any) -> list[Any]:
    """One model or path, or a list of one kind → a list."""
    group = list(value) if isinstance(value, (list, tuple)) else [value]
    group = [pathlib.Path(v) if isinstance(v, (str, os.PathLike)) else v for v in group]
    kinds = {keras.Model if isinstance(v, keras.Model) else type(v) for v in group}
    if len(kinds) != 1 or not isinstance(group[0], (keras.Model, pathlib.Path)):
        raise checks.type_error(
            f"models[{name!r}]", "a tf_keras model, a .tflite path, or a list of one kind", value
        )
    for path in group:
        if isinstance(path, pathlib.Path) and not path.is_file():
            raise checks.value_error(f"models[{name!r}]", "a file that exists", str(path))
    return group


def _arrays(data: Any) -> tuple[np.ndarray, np.ndarray]:
    expected = "(x, y) or a tf.data.Dataset of (x, y) batches"
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise checks.value_error("data", "a data set with an end", data)
        pairs = [(np.asarray(b[0]), np.asarray(b[1])) for b in data.as_numpy_iterator()]
        if not pairs:
            raise checks.value_error("data", "at least one batch", data)
        x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = (np.asarray(part) for part in data)
    else:
        raise checks.type_error("data", expected, data)
    if len(x) == 0 or len(x) != len(y):
        raise checks.value_error("data", "as many labels as examples, at least one", (x, y))
    return x, y


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray, threads: int) -> float:
    if isinstance(model, keras.Model):
        return accuracy(y, model.predict(x, batch_size=256, verbose=0))
    from tfkd import runtime

    return accuracy(y, runtime.Predictor(model, threads)(x))


def _counts(model: Any) -> tuple[int | None, int | None]:
    """(parameters, MACs); a file does not say."""
    if not isinstance(model, keras.Model):
        return None, None
    counted = profile(model)
    return counted.params, counted.macs
