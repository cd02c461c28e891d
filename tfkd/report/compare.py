"""Comparison of models and exported files on one test set, each measured as deployed."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.data.label_forms import check_numbers
from tfkd.example_inputs.inputs import by_name
from tfkd.report import inference
from tfkd.report import targets as running
from tfkd.report.accuracy import UNSCORED, Judge
from tfkd.report.latency import Latency, busy_note, in_turns
from tfkd.report.profile import profile
from tfkd.report.table import Row, Table
from tfkd.types import Data


def compare(
    models: Mapping[str, Any],
    data: Data,
    *,
    threads: int = 1,
    like: Mapping[str, keras.Model] | None = None,
    runs: int = 300,
    seconds: float | None = 30.0,
    throughput_batch: int | None = 32,
    original: str | None = None,
    output: str | None = None,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
    ignore_class: int | None = None,
    threshold: float | None = None,
) -> Table:
    """Compares models and exported files on one test set, in one table.

    Latency and file size of a Keras model are those of its float32 TFLite file, which
    is exported to a temporary folder, so that all models are measured in the same kind
    of runtime, in turns. A model that TFLite can't hold, such as one that takes texts, is
    measured as a SavedModel, with a warning that says why. The accuracy is that of the
    Keras model. A Keras 3 model is
    converted by `tfkd.from_keras3`; if that fails, and for TensorFlow modules and
    layers, a compiled function is measured. Latency is the time for one example in the
    file's input dtype, including the copies to and from the interpreter; a Python
    function is timed as it is, and the table notes this.

    Everything runs in inference mode: callables that take `training` get
    `training=False`. Variables that change nevertheless are restored, with a warning; a
    function that trains the model that it calls is an error, as its scores would not be
    those of the model.

    The score is the accuracy; for a multi-label classification the subset accuracy and
    the mean average precision; for a regression the mean absolute error. See
    `tfkd.report.score`.

    Throughput, in examples per second, is the batch size divided by the mean time of a
    call with `throughput_batch` examples. A file with a fixed batch size uses that
    size; if it is not 1, the file has no latency for one example. A Keras model is
    exported a second time for that batch size.

    Args:
        models: name → built `tf_keras` or Keras 3 model, path of any file that
            `tfkd.runtime.Predictor` runs, `Predictor`, or callable x → outputs; or a
            list of one kind: the same model trained with several seeds, whose score is
            shown as mean ± standard deviation. The first of them is measured for the
            other columns.
        data: (x, y) or (x, y, sample_weight), or batches of these, in any form of
            `tfkd.example_inputs`; of a data set of `tfkd.data` the test part. y are
            labels in any form of `tfkd.report.score`: class numbers or names (N,),
            one-hot (N, C), and others. Examples or positions with weight 0 are ignored,
            all others have equal weight.
        threads: threads of one call. A `Predictor` or callable keeps its own, and
            SavedModels and .keras files use those of the process.
        like: name → Keras model from which parameters and MACs of a file are counted.
        runs: measured runs of each model; a third of them, but at least 5, for the
            throughput.
        seconds: time limit of the latency and of the throughput measurement, each;
            None: no limit.
        throughput_batch: examples per call, for the throughput; None: one, with the
            throughput computed from the runs of the latency.
        original: name of the model that the others are compared with; None: the
            first.
        output: name of the output that is scored, for models with several; latencies are those
            of the whole model. `data` then has its labels, or a dict of labels by output.
        task: "classification", "multi_label" or "regression"; None: inferred from the
            labels and the first model's outputs.
        class_names: C names, by which labels given as text are looked up.
        ignore_class: class number of labels to ignore, such as -1 or 255.
        threshold: an output of a single unit or of several labels above it is positive;
            None: 0.5 for a model whose outputs are all in [0, 1], else 0.

    Returns:
        A `Table`, of a classification with the `details` of each row by class and by example,
        against the original: `print` it, `.save(folder)` it; `.against()`, `.pareto()`,
        `.to_tensorboard(folder)`.

    Raises:
        TypeError: if a model is none of these (of a Distiller pass the student), or a
            file does not accept `data`.
        ValueError: for an empty dict or data set, boxes (see `report.evaluate_detector` and
            `report.DetectionTable`), a model with several outputs of which
            `output` names none, inconsistent labels and outputs, a function that changes
            the weights of its model, or names in `like` or `original` that are not in
            `models`.
        ImportError: if the runtime of a file is not installed.

    Example:
        >>> import numpy as np, tf_keras as keras
        >>> from tfkd import report
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
        >>> table = report.compare({"dense": model, "half": lambda x: x[:, :3] / 2}, (x, y), runs=5)
        >>> table.rows[0].params, table.rows[0].macs, table.rows[0].latency.runs
        (15, 12, 5)
        >>> [row.throughput_batch for row in table.rows]
        [32, 32]
    """
    checks.positive_int("threads", threads)
    batch = 1 if throughput_batch is None else throughput_batch
    checks.positive_int("throughput_batch", batch)
    checks.instance("output", output, (str, type(None)), "the name of an output, or None")
    groups = {n: _members(n, value) for n, value in running.checked_models(models).items()}
    like = dict(like or {})
    named = [("like", name) for name in like] + [("original", original)] * bool(original)
    for argument, name in named:
        if name not in groups:
            raise checks.value_error(argument, "names that are in `models`", name)
    x, y, mask = _labelled(data, output)
    told: Any = {"task": task, "class_names": class_names, "threshold": threshold}
    judge = Judge(y, mask=mask, ignore_class=ignore_class, **told)
    with inference.Unchanged(groups) as watch, tempfile.TemporaryDirectory() as made:
        groups, notes = _converted(groups, x)
        like = {name: running.converted(name, model, x)[0] for name, model in like.items()}
        firsts = {name: group[0] for name, group in groups.items()}
        folder = pathlib.Path(made)
        targets = {n: running.opened(n, m, threads, folder, x=x) for n, m in firsts.items()}
        sizes = {name: running.size_of(target) for name, target in targets.items()}
        kinds = {name: inference.kind_of(target) for name, target in targets.items()}
        for name, group in groups.items():
            judge.take(name, _outputs(name, group, targets[name], x, threads, folder, output))
            told = inference.knows_training(group[0])
            watch.check(f"models[{name!r}]", name, refuse=not told)
        times, note = _latencies(targets, x, threads, runs, seconds)
        if batch > 1:
            for name, model in firsts.items():
                if isinstance(model, keras.Model) and running.fixed_batch(targets[name]):
                    targets[name] = running.opened(name, model, threads, folder, batch)
        rates, rate_note = _throughputs(targets, x, times, batch, runs, seconds)
        for name in groups:
            watch.check(f"models[{name!r}]", name)
    rows = []
    for name in groups:
        params, macs = _counts(like.get(name, firsts[name]), x)
        scores, (rate, per_call) = judge.scores(name), rates[name]
        rows.append(Row(
            name, params=params, macs=macs, size=sizes[name], latency=times.get(name),
            throughput=rate, throughput_batch=per_call, runtime=kinds[name],
            details=judge.details(name, original or next(iter(groups))), **scores,
        ))  # fmt: skip
    notes = [note, rate_note, *judge.notes(), *notes, *running.kind_notes(kinds, firsts)]
    return Table(rows, notes, original=original)


def _converted(groups: dict[str, list[Any]], x: Any) -> tuple[dict[str, list[Any]], list[str]]:
    """The models with Keras 3 models converted, and notes on the conversions."""
    found, notes = {}, []
    for name, group in groups.items():
        pairs = [running.converted(name, model, x) for model in group]
        found[name] = [model for model, _ in pairs]
        notes += list(dict.fromkeys(note for _, note in pairs if note))
    return found, notes


def _latencies(
    targets: Mapping[str, Any], x: Any, threads: int, runs: int, seconds: float | None
) -> tuple[dict[str, Latency], str]:
    """Latency of one example for the models that accept one, and a note."""
    made = {name: running.call(name, target, x, 1) for name, target in targets.items()}
    calls = {name: call for name, call in made.items() if call is not None}
    times = in_turns(calls, 10, runs, seconds) if calls else {}
    taken = next(iter(times.values())).runs if times else 0
    note = f"Latency: one example, {running.threads_text(threads)}, {taken} runs each, in turns."
    note += busy_note(times)
    for name in targets:
        if name not in times:
            batch = running.fixed_batch(targets[name])
            note += f" {name} takes {batch} examples per call, so it has no latency of one."
    return times, note


def _throughputs(
    targets: Mapping[str, Any],
    x: Any,
    times: Mapping[str, Latency],
    batch: int,
    runs: int,
    seconds: float | None,
) -> tuple[dict[str, tuple[float, int]], str]:
    """Name → (examples per second, examples per call), and a note."""
    batches = {name: running.fixed_batch(target) or batch for name, target in targets.items()}
    calls: dict[str, Any] = {
        name: running.call(name, targets[name], x, size)
        for name, size in batches.items()
        if size > 1 or name not in times
    }
    few = max(runs // 3, min(runs, 5))
    found = in_turns(calls, 3, few, seconds) if calls else {}
    rates = {
        name: (found.get(name, times.get(name)).throughput(size), size)  # type: ignore[union-attr]
        for name, size in batches.items()
    }
    taken = next(iter(found.values())).runs if found else next(iter(times.values())).runs
    many = "one example" if batch == 1 else f"{batch} examples"
    own = ", ".join(f"{name}: {size}" for name, size in batches.items() if size != batch)
    many += f" a call ({own})" if own else " a call"
    return rates, f"Throughput: {many}, {taken} runs each, in turns."


def _members(name: str, value: Any) -> list[Any]:
    """One model or path, or a list of one kind, as a list."""
    expected = f"{running.EXPECTED}, or a list of one kind"
    group = list(value) if isinstance(value, (list, tuple)) else [value]
    group = [running.checked_model(name, one, expected) for one in group]
    kinds = {
        next((kind for kind in (keras.Model, pathlib.Path) if isinstance(one, kind)), object)
        for one in group
    }
    if len(kinds) != 1:
        raise checks.type_error(f"models[{name!r}]", expected, value)
    return group


def _labelled(data: Any, output: str | None) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Returns the examples, the labels of the output, and the mask of scored examples."""
    if isinstance(data, DetectionDataset):
        raise _boxes(data)
    x, y, weight = running.examples(data)
    if isinstance(y, Mapping) and "classes" in y and np.shape(y.get("boxes"))[2:] == (4,):
        raise _boxes(y)
    if y is None:
        expected = "labels with the examples: (x, y), or such batches"
        raise checks.type_error("data", expected, data, UNSCORED)
    y, weight = (_of_output(one, output, example_inputs.length("data", x)) for one in (y, weight))
    if weight is not None:
        check_numbers("sample_weight", np.asarray(weight))
    return x, np.asarray(y), None if weight is None else np.asarray(weight) != 0


def _boxes(received: Any) -> ValueError:
    return checks.value_error(
        "data",
        "labels of classes or numbers, not boxes",
        received,
        "Detectors are scored by report.evaluate_detector(model, images, truth, anchors), files "
        "by report.detection(export.load_detector(path)(images), truth); for a table with their "
        "mAP, sizes and times pass these to report.DetectionTable([report.DetectionRow(...)]).",
    )


def _of_output(values: Any, output: str | None, examples: int) -> Any:
    """Labels or weights of one output, of those of several by name."""
    if isinstance(values, Mapping):
        if output not in values:
            expected = f"the one whose labels are to be scored: {', '.join(map(repr, values))}"
            raise checks.value_error("output", expected, output)
        return values[output]
    if isinstance(values, (list, tuple)) and len(values) < examples:
        lengths = [np.shape(one)[:1] for one in values]
        if lengths and set(lengths) == {(examples,)}:
            fix = 'Give a dict of them by output, and name one: compare(..., output="logits").'
            received = f"labels for {len(values)} outputs"
            raise checks.value_error("data", "the labels of one output", received, fix)
    return values


def _outputs(
    name: str,
    group: list[Any],
    first: Any,
    x: Any,
    threads: int,
    folder: pathlib.Path,
    output: str | None,
) -> Iterator[np.ndarray]:
    """Outputs of each model of a group; `first` is the opened target of the first model."""
    for model in group:
        target = first
        if isinstance(model, keras.Model):
            target = model
        elif model is not group[0] and getattr(first, "path", None) != model:
            target = running.opened(name, model, threads, folder, x=x)
        made = running.outputs(name, target, x, output)
        if target is first and callable(model) and not running.is_predictor(model):
            again = running.outputs(name, target, example_inputs.take(x, slice(8)), output)
            inference.warn_if_random(f"models[{name!r}]", made[: len(again)], again)
        yield made


def _counts(model: Any, x: Any) -> tuple[int | None, int | None]:
    """(parameters, MACs of an example of these sizes); (None, None) for a file."""
    if not isinstance(model, keras.Model):
        return None, None
    specs, shapes = example_inputs.inputs_of(model), None
    if any(-1 in spec.shape for spec in specs):
        given = by_name("data", x, specs)
        sizes = {spec.name: np.shape(given[spec.name])[1:] for spec in specs}
        shapes = example_inputs.packed(model, sizes)
    counted = profile(model, shapes)
    return counted.params, counted.macs
