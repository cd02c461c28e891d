"""Frozen forward passes of teachers, and averages over teacher ensembles.

A teacher is a tf_keras model, a Keras 3 model, a restored SavedModel or any
callable on tensors, or a list of these. It runs with `training=False` (if it takes
this argument), and no gradient flows into it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.losses.base import snake_case
from tfkd.losses.heads import scores_behind
from tfkd.networks.accept import refuse_distiller
from tfkd.networks.layer_parts import flat_layers
from tfkd.teachers.features import FINAL, Taps
from tfkd.teachers.precomputed import PrecomputedTeacher
from tfkd.types import Structure, Teacher


def as_list(teacher: Teacher, side: str = "teacher") -> list[Any]:
    """One or several teachers (or models of another `side`) as a list, each checked.

    Raises:
        TypeError: if one is a Distiller.
        ValueError: if one is not a model or callable, or the list is empty.
    """
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    if not teachers:
        raise checks.value_error(side, "a model or a non-empty list of models", teacher)
    for one in teachers:
        refuse_distiller(side, one)
        runs = callable(one) or getattr(one, "signatures", None)
        if not (runs or isinstance(one, PrecomputedTeacher)):
            fix = "Load it first: keras.models.load_model(path)." if isinstance(one, str) else None
            expected = "a Keras model, a SavedModel, a callable, or a list of these"
            raise checks.value_error(side, expected, one, fix)
    return teachers


def output_names(model: Any) -> list[str | None] | None:
    """The names of a model's list of outputs, with None for those that Keras generated.

    Generated names count the layers that a process has made, so they say nothing of what an
    output means. Without a list of outputs the result is None: those of a dict have keys.
    """
    if not isinstance(attribute(model, "output"), (list, tuple)):
        return None
    kinds = {layer.name: type(layer).__name__ for layer in getattr(model, "layers", ())}
    names = getattr(model, "output_names", None) or ()
    return [None if _is_generated(name, kinds.get(name)) else name for name in names]


def input_names(model: Any) -> list[str | None] | None:
    """As `output_names`, of the inputs: the keys of a dict in the order of a list of arrays."""
    form = attribute(model, "input")
    if isinstance(form, Mapping):
        return sorted(form)
    if not isinstance(form, (list, tuple)):
        return None
    names = [tensor.name for tensor in tf.nest.flatten(form)]
    return [None if _is_generated(name, "Input") else name for name in names]


def attribute(model: Any, name: str) -> Any:
    """An attribute such as `output`; None if there is none, or none of a single value."""
    try:
        return getattr(model, name, None)
    except (AttributeError, ValueError, RuntimeError):  # of models not built, or called twice
        return None


def _is_generated(name: str, kind: str | None) -> bool:
    if kind is None:
        return False
    kind = {"Functional": "model|functional", "Input": "input|input_layer|keras_tensor"}.get(
        kind, snake_case(kind)
    )
    return "tf." in name or re.fullmatch(f"({kind})(_[0-9]+)?", name) is not None


def freeze(teacher: Teacher) -> None:
    """Sets `trainable = False` if the teacher has this attribute."""
    if hasattr(teacher, "trainable"):
        teacher.trainable = False


def forward(teacher: Any) -> Callable[..., Any]:
    """The teacher as a callable: a model itself, a SavedModel by its serving signature."""
    if callable(teacher):
        return teacher
    signatures = teacher.signatures
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures))
    return _from_signature(signatures[name])


def _from_signature(signature: Any) -> Callable[[Any], Any]:
    names = sorted(signature.structured_input_signature[1])

    def call(x):
        if isinstance(x, dict):
            outputs = signature(**x)
        else:
            values = x if isinstance(x, (list, tuple)) else [x]
            if len(values) != 1 or len(names) != 1:
                # The order of a signature's inputs may change from process to process.
                fix = f"A SavedModel does not hold their order: pass a dict by name: {names}."
                received = f"{len(values)} arrays in order"
                raise checks.value_error("x", "arrays by name", received, fix)
            outputs = signature(**{names[0]: values[0]})
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    return call


def progress_bar(passes: int, wanted: bool) -> keras.utils.Progbar | None:
    """A progress bar over forward passes; None if it is not wanted, or would fill a log."""
    in_terminal = sys.stdout is not None and sys.stdout.isatty()
    shown = in_terminal or "ipykernel" in sys.modules
    return keras.utils.Progbar(passes, unit_name="batch") if wanted and passes and shown else None


class Teachers:
    """Runs one or several teachers; each is run once per call.

    Args:
        teachers: list of teachers.
        names: layers whose outputs to return; of several teachers, those of the
            first that has the layer.
    """

    def __init__(self, teachers: list[Any], names: list[str]):
        self.taps = []
        left = list(dict.fromkeys(names))
        for index, teacher in enumerate(teachers):
            is_last = index == len(teachers) - 1
            mine = [n for n in left if is_last or _has(teacher, n)]
            left = [n for n in left if n not in mine]
            self.taps.append(Taps(forward(teacher), mine, "teacher"))
        self._kwargs = [{"training": False} if _knows_training(t.model) else {} for t in self.taps]

    @property
    def outputs(self) -> list[str]:
        """Names of the returned outputs."""
        return [FINAL, *(n for taps in self.taps for n in taps.layers)]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape of an output, or None if it is not known before the teacher runs."""
        for taps in self.taps:
            if name == FINAL or name in taps.layers:
                return taps.static_shape(name)
        return None

    def runner(self, number: int) -> Callable[[Any], Any]:
        """The function x → final output of one teacher."""
        model, kwargs = self.taps[number].model, self._kwargs[number]
        return lambda x: model(x, **kwargs)

    def __call__(self, x: Structure) -> tuple[list[Any], dict[str, Any]]:
        """Returns the final outputs, one per teacher, and the features by layer name."""
        finals, features = [], {}
        for taps, kwargs in zip(self.taps, self._kwargs, strict=True):
            outputs = tf.nest.map_structure(_stop, taps(x, **kwargs))
            finals.append(outputs.pop(FINAL))
            features.update(outputs)
        return finals, features


def _has(teacher: Any, name: str) -> bool:
    try:
        Taps(teacher, [name], "teacher")
    except ValueError:
        return False
    return True


def computes_in_float16(model: Any) -> bool:
    """Whether a layer of a model computes in float16, whose largest number is 65504."""
    layers = flat_layers(model)
    return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers)


def _knows_training(model: Any) -> bool:
    if isinstance(model, keras.Model):
        return True
    target = model.call if hasattr(model, "call") else model
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
    return "training" in parameters


def _stop(tensor: Any) -> Any:
    stopped = tf.stop_gradient(tensor)
    for name in ("_keras_mask", "_keras_logits"):
        if getattr(tensor, name, None) is not None:
            setattr(stopped, name, getattr(tensor, name))
    return stopped


def same_shapes(outputs: list[Any]) -> None:
    """Raises ValueError unless several teachers' outputs can be averaged."""
    forms = [[tuple(leaf.shape[1:]) for leaf in tf.nest.flatten(one)] for one in outputs]
    for form in forms[1:]:
        pairs = zip(forms[0], form, strict=False)
        alike = all(tf.TensorShape(a).is_compatible_with(b) for a, b in pairs)
        if len(form) != len(forms[0]) or not alike:
            text = (
                "several teachers must have outputs of the same shape to be averaged: shapes "
                f"without the batch axis are {forms}. Leave out those that differ."
            )
            raise checks.plain(ValueError(text))


def mean_value(outputs: list[Any]) -> Structure:
    """The mean of several teachers' outputs, output by output."""
    if len(outputs) == 1:
        return outputs[0]
    same_shapes(outputs)
    return tf.nest.map_structure(lambda *z: tf.add_n([_float(e) for e in z]) / len(z), *outputs)


def mean_probability(logits: list[Any], sigmoids: list[bool]) -> Structure:
    """Logits of the mean of several teachers' probabilities, output by output.

    Softmax: log((1/n) Σ softmax(z_i)). Sigmoid: the log-odds of (1/n) Σ σ(z_i).

    Args:
        logits: the final outputs of each teacher.
        sigmoids: for each output, whether its scores are independent sigmoids.
    """
    if len(logits) == 1:
        return logits[0]
    same_shapes(logits)
    each = zip(*(tf.nest.flatten(one) for one in logits), strict=True)
    means = [
        _log_odds(list(z)) if is_sigmoid else _log_mean([tf.nn.log_softmax(_float(s)) for s in z])
        for z, is_sigmoid in zip(each, sigmoids, strict=True)
    ]
    return tf.nest.pack_sequence_as(logits[0], means)


def _float(scores: Any) -> Any:
    return tf.cast(scores, tf.float32)


def _log_mean(logs: list[Any]) -> Any:
    return tf.reduce_logsumexp(tf.stack(logs), axis=0) - tf.math.log(float(len(logs)))


def _log_odds(scores: list[Any]) -> Any:
    on = _log_mean([tf.math.log_sigmoid(_float(z)) for z in scores])
    return on - _log_mean([tf.math.log_sigmoid(-_float(z)) for z in scores])


def to_logits(outputs: Structure, kinds: list[str | None] | None = None) -> Any:
    """Logits of every output, those behind a final softmax or sigmoid.

    Args:
        outputs: outputs of a model.
        kinds: kind of each, from `output_kinds.settle`; None: not determined.
    """
    leaves = tf.nest.flatten(outputs)
    if kinds is None or len(kinds) != len(leaves):
        kinds = [None] * len(leaves)
    pairs = zip(leaves, kinds, strict=True)
    return tf.nest.pack_sequence_as(outputs, [_to_logits(leaf, kind) for leaf, kind in pairs])


def _to_logits(tensor: Any, kind: str | None) -> Any:
    logits = scores_behind(tensor, kind)
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None and logits is not tensor:
        logits._keras_mask = mask
    return logits
