"""tf.data pipelines of training batches with the cached teacher outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfkd import checks, example_inputs, replicas
from tfkd.data import label_forms, pipelines
from tfkd.data.batches import shuffled_rows, steps_per_epoch, with_length
from tfkd.teacher_cache import views as view_making
from tfkd.types import Structure, Tensor


class Values(NamedTuple):
    """Keyed examples, labels and sample weights, each an array or nested arrays."""

    keyed: Mapping[str, Any]
    y: Any
    sample_weight: Any

    def checked(self) -> tuple[Any, int]:
        """The values as tensors, and the number of examples.

        Raises:
            TypeError: for labels that are objects, weights that are objects or text.
            ValueError: if lengths differ.
        """
        count = len(self.keyed["index"])
        for name, value in (("y", self.y), ("sample_weight", self.sample_weight)):
            if value is not None and example_inputs.length(name, value) != count:
                raise checks.value_error(name, f"{count} rows, one for each example", value)
            for leaf in [] if value is None else tf.nest.flatten(value):
                label_forms.check_numbers(name, leaf, text=name == "y")
        kept = [self.keyed, self.y, self.sample_weight]
        if self.sample_weight is None:
            kept = kept[: 1 if self.y is None else 2]
        elif self.y is None:
            raise checks.value_error("y", "labels, with sample_weight", None)
        return tf.nest.map_structure(tf.convert_to_tensor, tuple(kept)), count


class Attach:
    """Maps a keyed batch to the student's inputs with the teacher's outputs.

    Args:
        cache: a `TeacherCache`.
        augment, preprocess: the functions that the cache was built with.
        seed: seed of the augmentation.
    """

    def __init__(self, cache: Any, augment: Any, preprocess: Any, seed: int):
        self._cache = cache
        self._augment, self._preprocess, self._seed = augment, preprocess, seed

    def __call__(self, batch: Mapping[str, Any], seed: Tensor | None = None) -> dict[str, Any]:
        """Attaches the outputs.

        Args:
            batch: {"inputs", "index"}, optionally with "view" (B,).
            seed: int32 (2,), from which views are drawn if the batch has none.
        """
        view = self._view(batch, seed)
        x = self._seen(batch["inputs"], batch["index"], view)
        spec = self._cache.layout.spec()
        dtypes = [form.dtype for form in spec.values()]
        read = tf.numpy_function(self._cache.read, [batch["index"], view], dtypes, stateful=False)
        # In eager mode numpy_function returns a single output without a list.
        read = read if isinstance(read, (list, tuple)) else [read]
        size = batch["index"].shape[0]
        outputs = {}
        for (name, form), value in zip(spec.items(), read, strict=True):
            value.set_shape((size, *form.shape[1:]))
            outputs[name] = value
        return self._cache.attached(x, outputs)

    def inputs(self, batch: Mapping[str, Any], seed: Tensor | None = None) -> Structure:
        """The student's inputs without the teacher's outputs."""
        return self._seen(batch["inputs"], batch["index"], self._view(batch, seed))

    def _seen(self, x: Any, index: Any, view: Any) -> Any:
        if self._augment is not None:
            x = view_making.augmented(self._augment, x, index, view, self._seed)
        return x if self._preprocess is None else self._preprocess(x)

    def _view(self, batch: Mapping[str, Any], seed: Any) -> Any:
        if not isinstance(batch, Mapping) or not {"inputs", "index"} <= set(batch):
            expected = 'a batch {"inputs": ..., "index": ...} of cache.keyed(x)'
            raise checks.value_error("batch", expected, batch)
        index = batch["index"]
        if "view" in batch:
            return tf.cast(batch["view"], tf.int32)
        if self._cache.views == 1:
            return tf.zeros_like(index, tf.int32)
        if seed is None:
            expected = f"a seed to draw one of the {self._cache.views} views from"
            fix = 'Pass attach as `augment` of a Curriculum, or put "view" (B,) into the batch.'
            raise checks.value_error("seed", expected, seed, fix)
        size, views = tf.shape(index), self._cache.views
        return tf.random.stateless_uniform(size, seed, maxval=views, dtype=tf.int32)


def batches(
    attach: Callable[[Any], Any],
    values: Values,
    views: int,
    batch_size: int,
    seed: int,
    epochs: int | None,
    start_step: int,
    input_context: tf.distribute.InputContext | None,
) -> tf.data.Dataset:
    """Implements `TeacherCache.batches`."""
    tensors, count = values.checked()
    steps = steps_per_epoch(count, batch_size)
    checks.integer("seed", seed, 0, "an integer of at least 0")
    checks.non_negative_int("start_step", start_step)
    checks.optional(checks.positive_int, "epochs", epochs)
    first, size = replicas.rows_of_worker(input_context, batch_size)

    def make(step, rows):
        rows = rows[first : first + size]
        rows.set_shape((size,))
        keyed, *others = tf.nest.map_structure(lambda t: tf.gather(t, rows), tensors)
        epoch = tf.cast(step // steps, tf.int32)
        made = attach({**keyed, "view": (keyed["index"] + epoch) % views})
        return (made, *others) if others else made

    rows = shuffled_rows(count, batch_size, seed, epochs, start_step)
    dataset = pipelines.mapped(rows, make, pipelines.parallel())
    return with_length(dataset, steps, epochs, start_step)


def in_order(attach: Callable[[Any], Any], values: Values, batch_size: int) -> tf.data.Dataset:
    """Implements `TeacherCache.eval_batches`."""
    tensors, _ = values.checked()
    checks.positive_int("batch_size", batch_size)

    def make(*batch):
        keyed, *others = batch
        made = attach({**keyed, "view": tf.zeros_like(keyed["index"])})
        return (made, *others) if others else made

    source = tf.data.Dataset.from_tensor_slices(tensors).batch(batch_size)
    return pipelines.mapped(source, make, pipelines.parallel())
