"""Importance scores of blocks: Block Influence (cosine similarity) and change of the outputs."""

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
from tfkd.pruning.blocks.segment import Found, Segment
from tfkd.teachers import output_kinds
from tfkd.types import Data

Grouped = Mapping[str, Sequence[Found]]
Batches = Iterator[tuple[list[tf.Tensor], Any]]
Reader = Callable[[], Batches]  # starts a new pass over the data
Scorer = Callable[[list[Any]], list[tuple[Any, Any]]]  # inputs → (logits, mask) per output


def read(model: keras.Model, data: Data, **options: Any) -> Batches:
    """Yields (inputs in order, labels or None) per batch; options of `example_inputs.batches`."""
    inputs = example_inputs.inputs_of(model)
    for x, y, _ in example_inputs.batches("data", data, inputs, labels=True, **options):
        yield [tf.constant(array) for array in x.values()], y


def similarity(graph: CallGraph, candidates: Grouped, reader: Reader) -> dict[str, float]:
    """Candidate → Block Influence: 1 − the mean cosine similarity of its input and output.

    The influences of several separate segments, or of several calls, are added.
    """
    runs = [run for items in candidates.values() for run in _runs(items)]
    owners = [name for name, items in candidates.items() for _ in _runs(items)]
    probe = _Probe(graph, "", runs)

    @tf.function
    def measure(inputs: list[Any]) -> list[tuple[Any, Any]]:
        seen: dict[Segment, list[tuple[Any, Any]]] = {run: [] for run in runs}
        probe(inputs, seen)
        return [_added([_cosines(before, after) for before, after in seen[run]]) for run in runs]

    totals = np.zeros((len(runs), 2))
    for inputs, _ in reader():
        totals += np.asarray([[float(total), float(count)] for total, count in measure(inputs)])
    scores = dict.fromkeys(candidates, 0.0)
    for owner, (total, count) in zip(owners, totals, strict=True):
        scores[owner] += float(1.0 - total / max(count, 1.0))
    return _finite(scores)


def damage(
    graph: CallGraph, candidates: Grouped, drops: int, reader: Reader, greedy: bool
) -> tuple[list[str], dict[str, float]]:
    """(candidates to drop, in order; candidate → change of the outputs without it)."""
    model = graph.model
    kinds = _output_kinds(model, reader)
    full = _scorer(model, kinds)
    dropped: list[str] = []
    scores: dict[str, float] = {}
    for _ in range(max(drops, 1) if greedy else 1):
        rest = [name for name in candidates if name not in dropped]
        for name in rest:
            items = [item for one in (*dropped, name) for item in candidates[one]]
            cut = without(graph, [segment for item in items for segment in item.segments])
            scores[name] = _distance(full, _scorer(cut, kinds), reader)
        _finite(scores)
        if greedy and drops:
            dropped.append(min(rest, key=scores.__getitem__))
    if not greedy:
        dropped = sorted(candidates, key=scores.__getitem__)[:drops]
    return dropped, scores


def _finite(scores: dict[str, float]) -> dict[str, float]:
    bad = next((name for name, score in scores.items() if not np.isfinite(score)), None)
    if bad is not None:
        received = f"NaN or infinity at {bad!r}"
        raise checks.value_error("model", "finite values in all layers", received)
    return scores


# Similarity -------------------------------------------------------------------------------


def _runs(items: Sequence[Found]) -> list[Segment]:
    """The segments of a candidate, with consecutive ones merged."""
    runs: list[Segment] = []
    for segment in (s for item in items for s in item.segments):
        last = runs[-1] if runs else None
        if last and last.prefix == segment.prefix and last.target == segment.source:
            runs[-1] = Segment(last.prefix, last.calls | segment.calls, last.source, segment.target)
        else:
            runs.append(segment)
    return runs


class _Probe:
    """Computes the inputs and outputs of segments, in nested models too.

    The tensors of a nested model belong to its own graph, so each nesting level gets a
    probe model over the same layers.

    Args:
        graph: call graph of the level.
        prefix: path of the level, with a slash at its end; "" for the outer model.
        runs: the segments to observe, at all levels.
    """

    def __init__(self, graph: CallGraph, prefix: str, runs: Sequence[Segment]):
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

    def __call__(self, inputs: Sequence[Any], seen: dict[Segment, list[tuple[Any, Any]]]) -> None:
        """Appends (input, output) to `seen` for each segment, once for each call."""
        tensors = tf.nest.flatten(self._model(list(inputs), training=False))
        known = dict(zip(self._refs, tensors, strict=True))
        for run in self._own:
            seen[run].append((known[run.source], known[run.target]))
        for probe, refs in self._inner:
            probe([known[ref] for ref in refs], seen)


def _cosines(before: Any, after: Any) -> tuple[Any, Any]:
    """Sum of the cosine similarities over all positions that are not masked, and their number."""
    a, b = tf.cast(before, tf.float32), tf.cast(after, tf.float32)
    mask = mask_of(before)
    # The cosine of zero vectors is undefined: 1 if both are zero, 0 if one is.
    zeros = tf.reduce_all(tf.equal(a, 0.0) & tf.equal(b, 0.0), -1)
    # TensorFlow's default epsilon of 1e-12 would shorten vectors with norms below 1e-6.
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


def _output_kinds(model: keras.Model, reader: Reader) -> list[str | None]:
    """Whether each output is logits or probabilities."""
    inputs, _ = next(reader())
    found = output_kinds.look(model, lambda x: _run(model, x), output_kinds.examples(inputs))
    return output_kinds.settle("model", found, output_kinds.by_size(found))


def _run(model: keras.Model, inputs: list[Any]) -> Any:
    return model(tf.nest.pack_sequence_as(input_form(model), inputs), training=False)


def _scorer(model: keras.Model, kinds: list[str | None]) -> Scorer:
    """A function from inputs to (logits, mask or None) of each output."""

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


def _distance(full: Scorer, cut: Scorer, reader: Reader) -> float:
    """Mean KL divergence, or with labels the mean increase in cross-entropy, over outputs."""
    totals = counts = np.zeros(1)
    for inputs, y in reader():
        labels = tf.nest.flatten(y)
        old, new = full(inputs), cut(inputs)
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
    """Sum over the unmasked examples and positions of one batch, and their number."""
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
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(target, scores), -1)
    return -tf.reduce_sum(target * tf.nn.log_softmax(scores), -1)


def _targets(labels: np.ndarray, scores: Any) -> np.ndarray:
    """Converts class indices or probabilities to probabilities in the shape of the scores."""
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
