"""Runs teachers over all views of all examples, and collects the outputs to store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, fingerprints
from tfkd.networks.paths import names_of
from tfkd.teacher_cache import views
from tfkd.teacher_cache.keys import keys
from tfkd.teacher_cache.shards import KEYS, Shards
from tfkd.teachers import output_kinds
from tfkd.teachers.class_scores import is_regression, losses_of
from tfkd.teachers.forward import Teachers, computes_in_float16
from tfkd.teachers.layout import Layout, Slot, take, top_k_forms
from tfkd.teachers.precomputed import scores_of
from tfkd.teachers.top_k import top_k
from tfkd.types import Structure, Teacher

DTYPES = ("float16", "float32")
# Relative difference of outputs that counts as random: float16 rounds to 1/2048.
_AGAIN = 1e-2


@dataclasses.dataclass(frozen=True)
class Making:
    """Settings of the outputs and their storage: arguments of `TeacherCache.build`."""

    layers: Any
    dtype: str
    top_k: int | None = None
    temperature: float | None = None
    views: int = 1
    augment: Callable[[Any, Any], Any] | None = None
    preprocess: Callable[[Any], Any] | None = None
    seed: int = 0

    def __post_init__(self):
        checks.one_of("dtype", self.dtype, DTYPES)
        object.__setattr__(self, "layers", names_of("layers", self.layers))
        checks.positive_int("views", self.views)
        checks.integer("seed", self.seed, 0, "an integer of at least 0")
        self._check_top_k()
        for name in ("augment", "preprocess"):
            checks.optional(checks.function, name, getattr(self, name))
        if self.views > 1 and self.augment is None:
            expected = "1 without `augment`: all views would be the same"
            raise checks.value_error("views", expected, self.views, "Pass `augment`.")

    def _check_top_k(self) -> None:
        if self.top_k is None:
            if self.temperature is not None:
                expected = "None without top_k: all scores serve every temperature"
                raise checks.value_error("temperature", expected, self.temperature)
            return
        checks.positive_int("top_k", self.top_k)
        if self.temperature is None:
            fix = "The rest bucket holds at one temperature: pass that of LogitsDistillation."
            expected = "the temperature of the loss, with top_k"
            raise checks.value_error("temperature", expected, None, fix)
        checks.positive("temperature", self.temperature)

    def settings(self) -> dict[str, Any]:
        """The settings that cache.json records as values."""
        names = ("dtype", "layers", "top_k", "temperature", "seed")
        return {name: getattr(self, name) for name in names}

    def digests(self, teacher: Teacher, data: str) -> dict[str, str | None]:
        """The SHA-256 fingerprints that cache.json records: teacher, data and functions."""
        return {
            "teacher": fingerprints.digest([teacher, self.layers]),
            "data": data,
            "augment": fingerprints.digest(self.augment),
            "preprocess": fingerprints.digest(self.preprocess),
        }


class Labeller:
    """Runs teachers on batches and returns the arrays to store.

    Args:
        teachers: list of teachers.
        making: which outputs to store, and how the views are made.
    """

    def __init__(self, teachers: list[Any], making: Making):
        self._teachers, self._making = Teachers(teachers, making.layers), making
        self._in_float16 = any(computes_in_float16(one) for one in teachers)
        self._structure: Any = None
        self._squashes: list[str | None] = []
        self._kinds: list[str | None] = []
        self._function: Any = None

    def layout(self, x: Structure, sample: Structure | None = None) -> Layout:
        """The layout of the outputs, from a first batch.

        Args:
            x: at least one example.
            sample: examples from which the kinds of outputs are inferred; default: those
                of x.
        """
        self._infer_kinds(output_kinds.examples(x) if sample is None else sample)
        first = tf.nest.map_structure(lambda array: array[:2], x)
        count = len(tf.nest.flatten(first)[0])
        made = self._run(first, range(count), 0)
        self._check_again(made, self._run(first, range(count), 0))
        making, finals = self._making, []
        for name, squash in zip(self._final_names(), self._squashes, strict=True):
            if making.top_k is None:
                shape, dtype = made[name].shape[1:], made[name].dtype.name
            else:
                shape = (*made[f"{name}.values"].shape[1:-1], self._classes)
                dtype = making.dtype
            finals.append(Slot(name, shape, dtype, squash))
        features = {
            layer: Slot(name, made[name].shape[1:], made[name].dtype.name)
            for layer, name in self._feature_names().items()
        }
        best = (making.top_k, making.temperature)
        return Layout(self._structure, tuple(finals), features, *best, len(self._structure))

    def _check_again(self, made: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> None:
        """Warns if the teacher is not deterministic, since a cache stores a single output."""
        for name in made:
            one, other = (np.asarray(v[name], np.float64) for v in (made, again))
            scale = max(float(np.abs(one).max(initial=0)), 1e-30)
            if np.isfinite(one).all() and not np.allclose(one, other, 0.0, _AGAIN * scale):
                what = "the teacher or `augment`" if self._making.augment else "the teacher"
                checks.warn(
                    f"TeacherCache: {what} gives other outputs for the same examples in a second "
                    f"run (off by {np.abs(one - other).max() / scale:.1%} of the largest, in "
                    f"{name}): something in it is random without a seed, such as dropout with "
                    "training=True. The cache stores one random sample. Turn it off, or average "
                    "several passes and pass them to TeacherCache.from_predictions."
                )
                return

    def _infer_kinds(self, sample: Any) -> None:
        """Determines whether each final output is logits or probabilities."""
        self._kinds = []
        for number, taps in enumerate(self._teachers.taps):
            teach = self._teachers.runner(number)

            def run(x: Any, teach: Callable[[Any], Any] = teach) -> Any:
                return teach(self._inputs(x, tf.range(tf.shape(tf.nest.flatten(x)[0])[0]), 0))

            found = output_kinds.look(taps.model, run, sample)
            losses = losses_of(taps.model, taps.model, len(tf.nest.flatten(found)))
            # Numbers that a regression loss was trained on may lie in [0, 1], too.
            wants = [None if is_regression(loss) else "either" for loss in losses]
            self._kinds += output_kinds.settle("teacher", found, wants)

    def _final_names(self) -> list[str]:
        return [f"final.{leaf}" for leaf in range(len(self._squashes))]

    def _feature_names(self) -> dict[str, str]:
        return {layer: f"feature.{number}" for number, layer in enumerate(self._making.layers)}

    def shard(
        self,
        shards: Shards,
        number: int,
        x: Structure,
        batch_size: int,
        bar: keras.utils.Progbar | None,
    ) -> dict:
        """All arrays of a shard by name: outputs (n, views, ...), and the keys.

        Raises:
            ValueError: if an output is NaN or infinite, or its shape varies.
        """
        rows = shards.rows(number)
        arrays = {
            name: np.empty((len(rows), shards.views, *shape), dtype)
            for name, (shape, dtype) in shards.forms.items()
        }
        for start in range(rows.start, rows.stop, batch_size):
            part = range(start, min(start + batch_size, rows.stop))
            batch = tf.nest.map_structure(lambda a, p=part: a[p.start : p.stop], x)
            for view in range(shards.views):
                self._into(arrays, self._run(batch, part, view), part, start - rows.start, view)
                if bar is not None:
                    bar.add(1)
        return {KEYS: keys(tf.nest.flatten(x), rows), **arrays}

    def _into(
        self, arrays: dict, made: dict[str, np.ndarray], part: range, at: int, view: int
    ) -> None:
        for name, values in made.items():
            target = arrays[name][at : at + len(part), view]
            if values.shape != target.shape:
                raise ValueError(
                    f"`teacher`: expected outputs of one shape, received {name} of shape "
                    f"{values.shape[1:]} for examples {part.start} to {part.stop - 1} and "
                    f"{target.shape[1:]} before. Pad the inputs to one size."
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
                fix = "Check its input and the teacher's weights"
                if self._in_float16:
                    fix += ", or compute in bfloat16: float16 ends at 65504."
                elif self._making.dtype == "float16":
                    fix += ", or store float32: float16 ends at 65504."
                else:
                    fix += "."
                raise ValueError(
                    f"`teacher`: expected finite outputs, received NaN or infinity in {name} of "
                    f"example {part.start + bad}, view {view}. {fix}"
                )
            target[...] = values

    def _run(self, batch: Any, part: range, view: int) -> dict[str, np.ndarray]:
        tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
        index = tf.range(part.start, part.stop, dtype=tf.int32)
        if self._function is None:
            specs = tf.nest.map_structure(
                lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), (tensors, index)
            )
            signature = [*specs, tf.TensorSpec((), tf.int32)]
            self._function = tf.function(self._outputs, input_signature=signature)
        made = self._function(tensors, index, tf.constant(view, tf.int32))
        return {name: value.numpy() for name, value in made.items()}

    def _inputs(self, x: Any, index: Any, view: Any) -> Any:
        """The inputs of the teachers: augmented and preprocessed."""
        making = self._making
        if making.augment is not None:
            view = tf.fill(tf.shape(index), view)
            x = views.augmented(making.augment, x, index, view, making.seed)
        if making.preprocess is not None:
            x = making.preprocess(x)
        return tf.nest.map_structure(output_kinds.single, x)

    def _outputs(self, x: Any, index: Any, view: Any) -> dict[str, Any]:
        finals, features = self._teachers(self._inputs(x, index, view))
        leaves: list[Any] = []
        self._structure = [take(final, leaves) for final in finals]
        kinds = self._kinds if len(self._kinds) == len(leaves) else [None] * len(leaves)
        pairs = [scores_of(leaf, kind) for leaf, kind in zip(leaves, kinds, strict=True)]
        self._squashes = [squash for _, squash in pairs]
        made = {}
        for name, (scores, _) in zip(self._final_names(), pairs, strict=True):
            if self._making.top_k is None:
                made[name] = self._stored(scores)
            else:
                made.update(self._best_of(name, scores))
        for layer, name in self._feature_names().items():
            made[name] = self._stored(features[layer])
        return made

    def _best_of(self, name: str, scores: Any) -> dict[str, Any]:
        if not scores.dtype.is_floating or len(scores.shape) < 2:
            raise checks.value_error("top_k", "a teacher of class scores (B, ..., C)", scores)
        self._classes = scores.shape[-1]
        best, temperature = self._making.top_k, self._making.temperature
        assert best is not None and temperature is not None
        parts = top_k(scores, best, temperature)._asdict()
        forms = top_k_forms(Slot(name, tuple(scores.shape[1:]), self._making.dtype), best)
        return {f"{name}.{part}": tf.cast(parts[part], forms[part][1]) for part in parts}

    def _stored(self, tensor: Any) -> Any:
        if tf.nest.is_nested(tensor):
            raise ValueError(
                "`layers`: expected layers with one output, received one with several. Name a "
                "layer after it."
            )
        return tf.cast(tensor, self._making.dtype) if tensor.dtype.is_floating else tensor
