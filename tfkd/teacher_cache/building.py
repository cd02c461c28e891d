"""Builds the files of a teacher cache, or resumes an incomplete one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfkd import checks, example_inputs, fingerprints
from tfkd.networks.accept import check_finite
from tfkd.teacher_cache import document, shards
from tfkd.teacher_cache.document import Document
from tfkd.teacher_cache.keys import SIZE, firsts, keys, read
from tfkd.teacher_cache.labelling import Labeller, Making
from tfkd.teacher_cache.predictions import check_repeats, predicted
from tfkd.teachers.forward import as_list, input_names, output_names, progress_bar
from tfkd.teachers.layout import Layout
from tfkd.types import Data, Structure, Teacher


def build(
    path: str | os.PathLike,
    teacher: Teacher,
    data: Data,
    making: Making,
    batch_size: int,
    shard_size: int | None,
    part: tuple[int, int],
    overwrite: bool,
    progress: bool,
) -> None:
    """Runs a teacher for every shard that is not finished; see `TeacherCache.build`."""
    known = 0 if making.preprocess else len(example_inputs.inputs_of(as_list(teacher)[0]))
    x, leaves, count = read(data, known or None)
    checks.positive_int("batch_size", batch_size)
    for one in as_list(teacher):
        check_finite("teacher", one)
    index, number = _check_part(part)
    labeller = Labeller(as_list(teacher), making)
    layout = labeller.layout(x)
    if shard_size is None:
        shard_size = shards.shard_size(count, making.views, forms(layout))
    checks.positive_int("shard_size", shard_size)
    digests = making.digests(teacher, fingerprints.digest(_keys(leaves, count)))
    settings = {**making.settings(), **_names(as_list(teacher), x, making)}
    wanted = Document(count, making.views, shard_size, layout, digests, settings)
    store = _prepare(path, wanted, overwrite)
    todo = [n for n in range(store.number) if n % number == index and store.problem(n)]
    store.check_space(len(todo))
    passes = sum(-(-len(store.rows(shard)) // batch_size) for shard in todo) * store.views
    bar = progress_bar(passes, progress)
    for shard in todo:
        store.write(shard, labeller.shard(store, shard, x, batch_size, bar))


def _names(teachers: list[Any], x: Structure, making: Making) -> dict[str, Any]:
    """Names of outputs and inputs that are matched by their places, for the Distiller."""
    found: dict[str, Any] = {"output_names": [output_names(one) for one in teachers]}
    if isinstance(x, (list, tuple)) and making.preprocess is None:
        found["input_names"] = [input_names(one) for one in teachers]
    return {key: names for key, names in found.items() if any(names)}


def write_predictions(
    path: str | os.PathLike,
    outputs: Structure,
    data: Data | None,
    source: str,
    activation: str | None,
    layers: Mapping[str, Any],
    dtype: str,
    views: int,
    overwrite: bool,
) -> None:
    """Writes outputs that exist already; see `TeacherCache.from_predictions`."""
    checks.instance("source", source, str, "text that describes what made the outputs")
    layout, arrays, count = predicted(outputs, activation, layers, dtype, views)
    leaves: list[Any] = []
    if data is not None:
        example_inputs.in_order("data", data)
        _, leaves, given = read(data)
        if given != count:
            raise checks.value_error("data", f"{count} examples, one for each output", given)
    known = _keys(leaves, count) if leaves else np.zeros((count, SIZE), np.uint8)
    if leaves:
        check_repeats(outputs, layers, firsts(known))
    digests = {
        "teacher": fingerprints.digest([source, sorted(layers)]),
        "outputs": fingerprints.digest(arrays),
        "data": fingerprints.digest(known) if leaves else None,
        "augment": None,
        "preprocess": None,
    }
    size = shards.shard_size(count, views, forms(layout))
    settings = {"dtype": dtype, "source": source}
    if activation == "linear":
        settings["activation"] = activation
    store = _prepare(path, Document(count, views, size, layout, digests, settings), overwrite)
    todo = [number for number in range(store.number) if store.problem(number)]
    store.check_space(len(todo))
    for number in todo:
        rows = store.rows(number)
        part = {name: array[rows.start : rows.stop] for name, array in arrays.items()}
        store.write(number, {shards.KEYS: known[rows.start : rows.stop], **part})


def forms(layout: Layout) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → shape and dtype of the arrays stored for one view of an example."""
    return {name: (tuple(spec.shape[1:]), spec.dtype.name) for name, spec in layout.spec().items()}


def shards_of(folder: Path, known: Document) -> shards.Shards:
    """The shards that a document describes."""
    sizes = (known.count, known.shard_size)
    return shards.Shards(folder, *sizes, forms(known.layout), known.views, known.fingerprint)


def _keys(leaves: list[Any], count: int) -> np.ndarray:
    step = 1 << 14
    parts = [keys(leaves, range(a, min(a + step, count))) for a in range(0, count, step)]
    return np.concatenate(parts)


def _prepare(path: str | os.PathLike, wanted: Document, overwrite: bool) -> shards.Shards:
    """Opens a folder for the cache that is wanted, which may exist there in part.

    Raises:
        ValueError: if the folder holds a cache with another origin.
    """
    folder = shards.make_folder(path)
    known = document.read(folder) if (folder / document.NAME).exists() and not overwrite else None
    names = [] if known is None else document.differences(known, wanted)
    if names:
        fix = (
            f"The cache there was made from another {' and another '.join(names)}: it is stale. "
            "Pass overwrite=True to rebuild it, or another path."
        )
        expected = "a folder without a cache, or one of the same teacher, data and settings"
        raise checks.value_error("path", expected, str(folder), fix)
    if known is None:
        wanted.write(folder)
        shards.free(folder, wanted.fingerprint)
        known = wanted
    return shards_of(folder, known)


def _check_part(part: Any) -> tuple[int, int]:
    expected = "(i, n) with 0 <= i < n, such as (worker, workers)"
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise checks.type_error("part", expected, part)
    index, number = checks.non_negative_int("part", part[0]), checks.positive_int("part", part[1])
    if index >= number:
        raise checks.value_error("part", expected, part)
    return index, number
