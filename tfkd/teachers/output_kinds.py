"""Determines once, before use, whether a model returns logits or probabilities.

The graph proves it for most models (`tfkd.losses.heads.proof`). Otherwise a few examples
are run and their outputs inspected; the result then holds for the whole run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.heads import DECLARED_LOGITS, ROUNDED_SOFTMAX, proof
from tfkd.losses.ranges import NO_PROBABILITY, end_of, in_unit
from tfkd.networks.call_graph import maker_of
from tfkd.networks.layer_parts import input_form, output_form
from tfkd.networks.layer_state import DECLARED
from tfkd.teachers.precomputed import split
from tfkd.types import Data, Structure

EXAMPLES = 32  # examples whose outputs are inspected
_FEW = 16  # examples generated, or below which given ones are augmented
_FUNCTIONAL = (keras.Sequential.__bases__[0], keras.Sequential)
_DECLARE = (
    "Declare what they are with tfkd.losses.declare_outputs(model, kind), where kind is 'logits', "
    "'softmax' or 'sigmoid'."
)


@dataclasses.dataclass
class Evidence:
    """Evidence for the kind of one output.

    Attributes:
        shape: shape of the output with the batch axis.
        declared: the kind declared by the user, one of `heads.KINDS`, or None.
        proved: the kind that the graph proves, one of `heads.KINDS`, or None.
        in_unit: whether the graph proves values in [0, 1].
        seen: kind of the values: "one" (rows are distributions), "unit" (all in [0, 1]),
            "zero", "other", or None if no values were inspected.
        oddity: why rows of probabilities are not a distribution, or None.
        step: the step of which the values are multiples, as quantized ones are; or 0.
        end: the last operations of the graph; None if it was not traced.
    """

    shape: tuple[int | None, ...] = ()
    declared: str | None = None
    proved: str | None = None
    in_unit: bool = False
    seen: str | None = None
    oddity: str | None = None
    step: float = 0.0
    end: Any = None


def look(model: Any, run: Callable[[Any], Any], sample: Structure | None) -> Any:
    """Evidence for each output, in the structure of the outputs; None if the model fails.

    Args:
        model: the model.
        run: x → its outputs; traced once, and run once if the graph proves too little.
        sample: a batch of inputs, or None.
    """
    is_declared = bool(declared(model, 1))
    found = None if is_declared else of_last_layers(model)
    if found is None and sample is not None:
        try:
            found = _traced(run, sample)
        except Exception:  # the error is raised again when the model is run in earnest
            return None
    if found is not None and is_declared:
        leaves = tf.nest.flatten(found)
        for leaf, kind in zip(leaves, declared(model, len(leaves)), strict=False):
            leaf.declared = kind
    return found


def declared(model: Any, count: int) -> list[str]:
    """The kinds of `count` outputs by `tfkd.losses.declare_outputs`; [] if it was not used."""
    said = getattr(model, DECLARED, None)
    if isinstance(said, str):
        return [said] * count
    return [] if said is None else tf.nest.flatten(said)


def of_last_layers(model: Any) -> Any:
    """Evidence from the last layers of a functional model; None: it has to be traced."""
    if type(model) not in _FUNCTIONAL or not getattr(model, "outputs", None):
        return None
    kinds = [_of_layer(maker_of(tensor)) for tensor in model.outputs]
    if None in kinds:
        return None
    shapes = [tuple(tensor.shape) for tensor in model.outputs]
    each = [Evidence(s, proved=k) for s, k in zip(shapes, kinds, strict=True)]
    nested = output_form(model)
    return each[0] if nested is None else tf.nest.pack_sequence_as(nested, each)


def _of_layer(layer: Any) -> str | None:
    activation = getattr(layer, "activation", None)
    if type(layer) is keras.layers.Softmax:
        return "softmax" if layer.axis == -1 else None
    if type(layer) not in (keras.layers.Dense, keras.layers.Conv2D, keras.layers.Activation):
        return None
    if activation is keras.activations.linear and getattr(layer, "use_bias", False):
        return "logits"
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    if activation is keras.activations.softmax and not channels_first:
        return "softmax"
    return "sigmoid" if activation is keras.activations.sigmoid else None


def _traced(run: Callable[[Any], Any], sample: Any) -> Any:
    found: list[Any] = []

    def outputs(x: Any) -> list[Any]:
        made = tf.nest.map_structure(tf.convert_to_tensor, run(x))
        found[:] = [tf.nest.map_structure(_shown, made)]
        return tf.nest.flatten(made)

    sample = tf.nest.map_structure(tf.convert_to_tensor, sample)
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), sample)
    function = tf.function(outputs, autograph=False).get_concrete_function(specs)
    evidence = tf.nest.flatten(found[0])
    if any(one.proved is None for one in evidence):
        for one, value in zip(evidence, function(sample), strict=True):
            see(one, value.numpy())
    return found[0]


def _shown(tensor: Any) -> Evidence:
    if not tensor.dtype.is_floating:
        return Evidence(tuple(tensor.shape), proved="logits")
    proved = proof(tensor)
    kind = None if proved is None else proved.kind
    return Evidence(
        tuple(tensor.shape), proved=kind, in_unit=in_unit(tensor), end=end_of(tensor.op)
    )


def compare(one: Any, other: Any, from_logits: Sequence[bool | None]) -> list[bool | None]:
    """Lets outputs of two models whose graphs end alike count as one kind, as they must be.

    What is declared of one output holds for both, and values that leave [0, 1] in one model
    show that neither returns probabilities.

    Args:
        one, other: the results of `look`, which are changed.
        from_logits: for each output of `one`, as for `settle`.

    Returns:
        `from_logits` for the outputs of `other`.
    """
    pairs = list(zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=False))
    said: list[bool | None] = [None] * len(pairs)
    for number, (mine, theirs) in enumerate(pairs):
        if mine is None or theirs is None or mine.end is None or mine.end != theirs.end:
            continue
        said[number] = from_logits[number]
        mine.declared = theirs.declared = mine.declared or theirs.declared
        if "other" in (mine.seen, theirs.seen):
            mine.seen = theirs.seen = "other"
    return said


def see(evidence: Evidence, values: np.ndarray) -> None:
    """Adds the evidence of the values of some examples, (N, ..., C)."""
    if evidence.end is not None and evidence.end[0] in NO_PROBABILITY:
        evidence.seen = "other"
        return
    if values.ndim < 2:
        values = values[:, None]
    whole = np.asarray(values, np.float64)
    rows = whole.reshape(-1, whole.shape[-1])
    rows = rows[np.isfinite(rows).all(-1)]
    if not rows.size:
        return
    rows = rows[(rows != 0).any(-1)]  # masked positions may be zero
    evidence.seen = "unit" if rows.size else "zero"
    if not rows.size:
        return
    if rows.min() < 0 or rows.max() > 1.001:
        evidence.seen = "other"
        return
    classes, sums = rows.shape[-1], rows.sum(-1)
    # Outputs of int8 models are multiples of a step, each off by a step or so.
    evidence.step = _step(rows)
    room = max(1e-2, min(classes * evidence.step, 0.5))
    if classes < 2:
        return
    if np.abs(sums - 1).max() < room:
        evidence.seen = "one"
    elif np.abs(sums - np.rint(sums[0])).max() < 1e-2 and 2 <= np.rint(sums[0]) <= classes / 2:
        count = int(np.rint(sums[0]))
        evidence.oddity = f"each row sums to {count}, as {count} concatenated distributions do"
    elif np.isfinite(whole).all():
        others = range(1, whole.ndim - 1)
        axis = next((a for a in others if np.abs(whole.sum(a) - 1).max() < 1e-2), None)
        if axis is not None:
            evidence.oddity = f"they sum to 1 over axis {axis}, not over the last"


def _step(rows: np.ndarray) -> float:
    """The step of which all values are multiples, as those of int8 outputs; 0 without one."""
    levels = np.unique(np.round(rows, 9))
    if not 3 <= len(levels) <= 256:
        return 0.0
    step = np.diff(levels).min()
    counts = levels / step
    return float(step) if step > 1e-3 and np.abs(counts - np.rint(counts)).max() < 0.05 else 0.0


def by_size(evidence: Any) -> list[str]:
    """Default kinds by the number of scores: a single one is a sigmoid, several a softmax."""
    if evidence is None:
        return []
    return [
        "sigmoid" if one.shape and one.shape[-1] == 1 else "softmax"
        for one in tf.nest.flatten(evidence)
    ]


def settle(
    side: str, evidence: Any, wants: Sequence[str | None], from_logits: Sequence[bool | None] = ()
) -> list[str | None]:
    """Decides the kind of each output, one of `heads.KINDS`; None: tested in each batch.

    Args:
        side: "teacher" or "student", for messages.
        evidence: the result of `look`.
        wants: for each output how it will be used: "softmax", "sigmoid", "either", or None
            if it is not.
        from_logits: for each output whether the loss on the labels expects logits; None:
            not known.

    Warns:
        UserWarning: if the values decide, or contradict the graph or the loss.
    """
    leaves = [None] * len(wants) if evidence is None else tf.nest.flatten(evidence)
    said = [*from_logits, *[None] * len(wants)]
    kinds: list[str | None] = []
    for number, (one, want) in enumerate(zip(leaves, wants, strict=False)):
        name = side if len(leaves) == 1 else f"{side}, output {number}"
        kinds.append(None if one is None else _settled(name, one, want, said[number]))
    return kinds


def _settled(name: str, one: Evidence, want: str | None, from_logits: bool | None) -> str | None:
    if one.declared is not None:
        special = {"logits": DECLARED_LOGITS, "softmax": ROUNDED_SOFTMAX if one.step else "softmax"}
        return special.get(one.declared, one.declared)
    if want is None or one.proved in ("softmax", "sigmoid"):
        return one.proved or "logits"
    if want != "sigmoid" and (one.seen == "one" or one.oddity is not None):
        return _as_softmax(name, one, from_logits)
    if one.proved == "logits":
        return "logits"
    if want == "softmax":
        if one.seen == "unit" and from_logits is False:
            return _as_softmax(name, one, from_logits)
        if one.seen == "other" and from_logits is False:
            _warn_of_logits(name)
        return None if one.seen is None else "logits"
    if one.in_unit:
        return "sigmoid"
    if one.seen in ("unit", "one"):
        return _as_sigmoid(name, from_logits)
    if one.seen == "other" and want == "sigmoid" and from_logits is False:
        _warn_of_logits(name)
    return None if one.seen is None else "logits"


def _warn_of_logits(name: str) -> None:
    checks.warn(
        f"{name}: its outputs leave [0, 1], so they are taken for logits, but the loss given "
        f"to `compile` takes them for probabilities. Pass it as an instance with "
        f"from_logits=True. {_DECLARE}"
    )


def _as_softmax(name: str, one: Evidence, from_logits: bool | None) -> str:
    if one.oddity is not None:
        checks.warn(
            f"{name}: its outputs are probabilities, but not of one distribution over the last "
            f"axis: {one.oddity}. Their logarithms are compared over the last axis all the same. "
            "Give the model one output for each distribution, with its classes on the last axis."
        )
    elif one.seen == "unit":
        checks.warn(
            f"{name}: its outputs are all in [0, 1], and the loss given to `compile` takes them "
            "for probabilities, though their rows do not sum to 1. They are taken as "
            f"probabilities (scores log p). {_DECLARE}"
        )
    elif one.proved == "logits" or from_logits:
        against = "its graph ends in" if one.proved else "the loss given to `compile` expects"
        checks.warn(
            f"{name}: {against} logits, but its outputs are probabilities: all in [0, 1], and "
            f"every row sums to 1. They are taken as probabilities (scores log p). {_DECLARE}"
        )
    else:
        checks.warn(
            f"{name}: the graph does not show a softmax at its end, but its outputs are "
            "probabilities: all in [0, 1], and every row sums to 1. They are taken as such "
            f"(scores log p). {_DECLARE}"
        )
    return ROUNDED_SOFTMAX if one.step else "softmax"


def _as_sigmoid(name: str, from_logits: bool | None) -> str:
    if from_logits:
        checks.warn(
            f"{name}: its outputs look like probabilities (all in [0, 1]), but the loss given to "
            f"`compile` has from_logits=True, so they are taken for logits. {_DECLARE}"
        )
        return "logits"
    checks.warn(
        f"{name}: the graph does not show a sigmoid at its end, but its outputs are all in [0, 1]. "
        f"They are taken for probabilities (scores log p − log(1 − p)). {_DECLARE}"
    )
    return "sigmoid"


def examples(x: Data, model: Any = None) -> Structure | None:
    """A small batch of inputs: the first of `x`, or random ones if `x` must not be read.

    Args:
        x: nested arrays or tensors; a data set, of which only the spec is used (reading it
            might change its order); or anything else.
        model: gives the input spec if `x` does not.

    Returns:
        Inputs of some examples, or None if no spec is known.
    """
    x = split(x)[0]
    leaves = tf.nest.flatten(x)
    if x is not None and all(_is_array(leaf) for leaf in leaves):
        return _more(tf.nest.map_structure(lambda a: single(a[:EXAMPLES]), x))
    form = getattr(x, "element_spec", None)
    form = split(form[0] if isinstance(form, tuple) and form else form)[0]
    if form is None and leaves and all(map(_has_form, leaves)):
        form = x
    if form is None or not all(map(_has_form, tf.nest.flatten(form))):
        form = input_form(model)
        form = getattr(model, "inputs", None) if form is None else form
    if form is None or not all(map(_has_shape, tf.nest.flatten(form))):
        return None
    rng = np.random.default_rng(0)
    made = tf.nest.map_structure(lambda spec: _made_up(spec, rng), form)
    return None if any(leaf is None for leaf in tf.nest.flatten(made)) else made


def _has_shape(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _has_form(leaf: Any) -> bool:
    return isinstance(leaf, (tf.TensorSpec, tf.Tensor))


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, tf.__internal__.EagerTensor):
        return bool(leaf.shape.rank) and len(leaf) > 0
    return isinstance(leaf, np.ndarray) and leaf.ndim > 0 and len(leaf) > 0


def single(array: Any) -> Any:
    """Converts to a tensor, float64 to float32, as Keras's `fit` and `predict` do."""
    tensor = tf.convert_to_tensor(array)
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.float64 else tensor


def _more(x: Any) -> Any:
    """Adds scaled and negated copies of few float examples, for more evidence."""
    leaves = tf.nest.flatten(x)
    if len(leaves[0]) >= _FEW or not all(leaf.dtype.is_floating for leaf in leaves):
        return x
    return tf.nest.map_structure(lambda t: tf.concat([t, 3 * t, t[::-1] / 3, -t], 0), x)


def _made_up(spec: Any, rng: np.random.Generator) -> Any:
    if spec.shape.rank is None or spec.shape.rank == 0:
        return None
    shape = (_FEW, *(32 if size is None else size for size in spec.shape[1:]))
    dtype = tf.as_dtype(spec.dtype)
    if dtype.is_floating:
        scale = np.resize([0.3, 1.0, 3.0], _FEW).reshape(-1, *[1] * (len(shape) - 1))
        return tf.cast(rng.normal(size=shape) * scale, dtype)
    if dtype.is_integer or dtype.is_bool:
        return tf.cast(rng.integers(0, 256 if dtype == tf.uint8 else 2, shape), dtype)
    return None
