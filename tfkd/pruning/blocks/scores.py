"""How much the units of a model matter: what they change, and what the model is without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.losses.base import mask_of
from tfkd.losses.heads import scores_behind
from tfkd.losses.logits import bernoulli_kl, kl_from_logits
from tfkd.networks.call_graph import CallGraph, Ref
from tfkd.networks.layer_parts import input_form
from tfkd.pruning.blocks.cut import without
from tfkd.pruning.blocks.segment import Found, Stretch
from tfkd.teachers import output_kinds

Grouped = Mapping[str, Sequence[Found]]
Batches = Iterator[tuple[list[Any], Any]]
Reader = Callable[[], Batches]  # `read` of a model and data; reads them anew


def read(model: keras.Model, data: Any, **options: Any) -> Batches:
    """(inputs in order, labels or None) of each batch; options of `example_inputs.batches`."""
    inputs = example_inputs.inputs_of(model)
    for x, y, _ in example_inputs.batches("data", data, inputs, labels=True, **options):
        yield [tf.constant(array) for array in x.values()], y


def similarity(graph: CallGraph, units: Grouped, reader: Reader) -> dict[str, float]:
    """Unit → Block Influence: 1 − the mean cosine between what goes in and what comes out.

    A unit of several stretches that lie apart, or that is called several times, has
    the sum of theirs.
    """
    runs = [run for items in units.values() for run in _runs(items)]
    owners = [unit for unit, items in units.items() for _ in _runs(items)]
    probe = _Probe(graph, "", runs)

    @tf.function
    def measure(inputs: list[Any]) -> list[tuple[Any, Any]]:
        seen: dict[Stretch, list[tuple[Any, Any]]] = {run: [] for run in runs}
        probe(inputs, seen)
        return [_added([_cosines(before, after) for before, after in seen[run]]) for run in runs]

    totals = np.zeros((len(runs), 2))
    for inputs, _ in reader():
        totals += np.asarray([[float(total), float(count)] for total, count in measure(inputs)])
    scores = dict.fromkeys(units, 0.0)
    for owner, (total, count) in zip(owners, totals, strict=True):
        scores[owner] += float(1.0 - total / max(count, 1.0))
    return _finite(scores)


def damage(
    graph: CallGraph, units: Grouped, drops: int, reader: Reader, greedy: bool
) -> tuple[list[str], dict[str, float]]:
    """The units to drop, in order, and unit → how much the outputs change without it."""
    model = graph.model
    kinds = _told(model, reader)
    whole = _scorer(model, kinds)
    gone: list[str] = []
    scores: dict[str, float] = {}
    for _ in range(max(drops, 1) if greedy else 1):
        for unit in units:
            if unit not in gone:
                cut = [s for name in (*gone, unit) for item in units[name] for s in item.stretches]
                scores[unit] = _distance(whole, _scorer(without(graph, cut), kinds), reader)
        _finite(scores)
        if greedy and drops:
            gone.append(min((u for u in units if u not in gone), key=scores.__getitem__))
    if not greedy:
        gone = sorted(units, key=scores.__getitem__)[:drops]
    return gone, scores


def _finite(scores: dict[str, float]) -> dict[str, float]:
    bad = next((unit for unit, score in scores.items() if not np.isfinite(score)), None)
    if bad is not None:
        received = f"NaN or infinity at {bad!r}"
        raise checks.value_error("model", "finite values in all layers", received)
    return scores


# Similarity -------------------------------------------------------------------------------


def _runs(items: Sequence[Found]) -> list[Stretch]:
    """The stretches of a unit; those that follow each other are one."""
    runs: list[Stretch] = []
    for stretch in (s for item in items for s in item.stretches):
        last = runs[-1] if runs else None
        if last and last.prefix == stretch.prefix and last.target == stretch.source:
            calls = last.calls | stretch.calls
            runs[-1] = Stretch(last.prefix, calls, last.source, stretch.target)
        else:
            runs.append(stretch)
    return runs


class _Probe:
    """Shows what goes into stretches and comes out of them, in nested models too.

    A nested model's tensors are those of its own graph, so each level has a model of
    its own over the same layers; calling it leaves no trace in them.

    Args:
        graph: of the level.
        prefix: of the level.
        runs: all stretches to look at.
    """

    def __init__(self, graph: CallGraph, prefix: str, runs: Sequence[Stretch]):
        self._own = [run for run in runs if run.prefix == prefix]
        self._inner: list[tuple[_Probe, tuple[Ref, ...]]] = []
        for call in graph.calls.values():
            inside = f"{prefix}{call.name}/"
            if any(run.prefix.startswith(inside) for run in runs):
                self._inner.append((_Probe(graph.nested[call.name], inside, runs), call.inputs))
        refs = [ref for run in self._own for ref in (run.source, run.target)]
        refs += [ref for _, inputs in self._inner for ref in inputs]
        self._refs = list(dict.fromkeys(refs))
        self._model = keras.Model(graph.model.inputs, [graph.tensors[ref] for ref in self._refs])

    def __call__(self, inputs: Sequence[Any], seen: dict[Stretch, list[tuple[Any, Any]]]) -> None:
        """Appends (input, output) to `seen` for each stretch, once for each call."""
        tensors = tf.nest.flatten(self._model(list(inputs), training=False))
        known = dict(zip(self._refs, tensors, strict=True))
        for run in self._own:
            seen[run].append((known[run.source], known[run.target]))
        for probe, refs in self._inner:
            probe([known[ref] for ref in refs], seen)


def _cosines(before: Any, after: Any) -> tuple[Any, Any]:
    """Sum of the cosines over all places that are not masked, and the number of these."""
    a, b = tf.cast(before, tf.float32), tf.cast(after, tf.float32)
    mask = mask_of(before)
    # 0 and 0 are alike; 0 and anything else are not.
    zeros = tf.reduce_all(tf.equal(a, 0.0) & tf.equal(b, 0.0), -1)
    product = tf.reduce_sum(
        tf.math.l2_normalize(a, -1, 1e-30) * tf.math.l2_normalize(b, -1, 1e-30), -1
    )
    cosines = tf.where(zeros, 1.0, product)
    used = tf.ones_like(cosines)
    if mask is not None:
        mask = tf.cast(mask, tf.float32)
        while len(mask.shape) < len(used.shape):
            mask = mask[..., None]
        used *= mask
    return tf.reduce_sum(cosines * used), tf.reduce_sum(used)


def _added(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    return tf.add_n([pair[0] for pair in pairs]), tf.add_n([pair[1] for pair in pairs])


# Damage -----------------------------------------------------------------------------------


def _told(model: keras.Model, reader: Reader) -> list[str | None]:
    """What each output is, logits or probabilities."""
    inputs, _ = next(reader())
    found = output_kinds.look(model, lambda x: _run(model, x), output_kinds.examples(inputs))
    return output_kinds.settle("model", found, output_kinds.by_size(found))


def _run(model: keras.Model, inputs: list[Any]) -> Any:
    return model(tf.nest.pack_sequence_as(input_form(model), inputs), training=False)


def _scorer(
    model: keras.Model, kinds: list[str | None]
) -> Callable[[list[Any]], list[tuple[Any, Any]]]:
    """Inputs → (scores before a softmax, mask or None) of each output."""

    @tf.function
    def scores(inputs: list[Any]) -> list[tuple[Any, Any]]:
        outputs = tf.nest.flatten(_run(model, inputs))
        each = zip(outputs, kinds or [None] * len(outputs), strict=True)
        return [(_with_classes(scores_behind(t, kind)), mask_of(t)) for t, kind in each]

    for tensor in tf.nest.flatten(model.outputs):
        if not tensor.dtype.is_floating:
            expected = "outputs that are scores of classes with by='damage'"
            raise checks.value_error("model", expected, tensor)
    return scores


def _with_classes(scores: Any) -> Any:
    scores = tf.cast(scores, tf.float32)
    return scores if len(scores.shape) > 1 else scores[:, None]


def _distance(whole: Any, cut: Any, reader: Reader) -> float:
    """Mean KL of each output, or its mean rise in cross-entropy, summed over outputs."""
    totals = counts = np.zeros(1)
    for inputs, y in reader():
        labels = tf.nest.flatten(y)
        old, new = whole(inputs), cut(inputs)
        if len(labels) not in (1, len(old)) or (len(labels) == 1 < len(old) and y is not None):
            raise checks.value_error("data", f"labels for each of {len(old)} outputs", y)
        labels = labels if len(labels) == len(old) else labels * len(old)
        each = [
            _one_output(before, after, mask, label)
            for (before, mask), (after, _), label in zip(old, new, labels, strict=True)
        ]
        totals = totals + np.asarray([total for total, _ in each], np.float64)
        counts = counts + np.asarray([count for _, count in each], np.float64)
    return float(np.sum(totals / np.maximum(counts, 1.0)))


def _one_output(whole: Any, cut: Any, mask: Any, labels: Any) -> tuple[float, float]:
    """Sum over the examples and places of one batch that are not masked, and their number."""
    binary = whole.shape[-1] == 1
    if labels is None:
        values = (bernoulli_kl if binary else kl_from_logits)(whole, cut)
    else:
        target = _targets(labels, whole)
        values = _crossentropy(target, cut, binary) - _crossentropy(target, whole, binary)
    used = np.ones(values.shape)
    if mask is not None:
        mask = np.asarray(mask, np.float64)
        used *= mask.reshape(mask.shape + (1,) * (used.ndim - mask.ndim))
    return float(np.sum(np.asarray(values, np.float64) * used)), float(used.sum())


def _crossentropy(target: Any, scores: Any, binary: bool) -> Any:
    if binary:
        loss = tf.nn.sigmoid_cross_entropy_with_logits(target, scores)
        return tf.reduce_sum(loss, -1)
    return -tf.reduce_sum(target * tf.nn.log_softmax(scores), -1)


def _targets(labels: np.ndarray, scores: Any) -> np.ndarray:
    """Class numbers or probabilities → probabilities in the shape of the scores."""
    shape, classes = tuple(scores.shape), int(scores.shape[-1])
    expected = f"class numbers from 0 to {max(classes, 2) - 1}, or probabilities of shape {shape}"
    if not (labels.dtype.kind in "iufb" and np.isfinite(labels).all()):
        raise checks.value_error("data", f"labels that are {expected}", labels)
    if labels.shape == shape and (classes > 1 or (len(shape) > 1 and classes == 1)):
        if labels.min() < 0 or labels.max() > 1:
            raise checks.value_error("data", f"labels that are {expected}", labels)
        return labels.astype(np.float32)
    numbers = labels[..., 0] if labels.shape == (*shape[:-1], 1) else labels
    whole = numbers.shape == shape[:-1] and np.all(numbers == np.floor(numbers))
    if not whole or numbers.min() < 0 or numbers.max() >= max(classes, 2):
        raise checks.value_error("data", f"labels that are {expected}", labels)
    numbers = numbers.astype(np.int64)
    if classes == 1:
        return numbers[..., None].astype(np.float32)
    return np.eye(classes, dtype=np.float32)[numbers]
