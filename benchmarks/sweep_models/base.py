"""What a model of the sweep is: how it is built, and what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

WORDS = ("apple", "pear", "plum", "fig", "unknown", "straße", "")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the sweep.

    Attributes:
        name, family: how it is called in the table.
        build: makes it anew.
        heads: what its outputs are, one word for all or one for each: "logits", "softmax",
            "sigmoid" or "values". Distillation losses follow it.
        high: integer inputs are in [0, high).
        size: what an open size of an input gets.
        batch: examples a step.
        scale: of the inputs.
        whole: True if inputs are whole numbers though their type is float.
        low: True if it computes in 16 bits: the tolerances are wider.
        masked: True if a mask, or a state, decides what a loss counts.
        shape: of one example, for models that do not say it.
        custom: layers of its own, by name, to load it.
    """

    name: str
    family: str
    build: Callable[[], Any]
    heads: str | Sequence[str] = "logits"
    high: int = 10
    size: int = 12
    batch: int = 4
    scale: float = 1.0
    whole: bool = False
    low: bool = False
    masked: bool = False
    shape: tuple[int, ...] | None = None
    custom: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fresh(self, seed: int) -> Any:
        """The model with weights that depend on `seed` alone, none of them at its default."""
        keras.backend.reset_uids()  # the same names each time
        keras.utils.set_random_seed(seed)
        model = self.build()
        rng = np.random.default_rng(seed)
        for weight in model.weights:
            if not hasattr(weight, "name"):
                continue  # the words of a TextVectorization
            name, shape = weight.name.split("/")[-1].split(":")[0], tuple(weight.shape)
            if name == "moving_mean":
                weight.assign(rng.normal(0, 0.2, shape))
            elif name == "moving_variance":
                weight.assign(rng.uniform(0.5, 1.5, shape))
            elif name in ("gamma", "beta", "bias") and weight.trainable:
                weight.assign(np.asarray(weight) + rng.normal(0, 0.1, shape))
        return model

    def examples(self, model: Any, seed: int = 0, batches: int = 2) -> Any:
        """Inputs in the structure that the model takes."""
        rng = np.random.default_rng(seed)
        if self.shape is not None:
            return rng.normal(size=(batches * self.batch, *self.shape)).astype("float32")
        count = batches * self.step(model)
        return tf.nest.map_structure(lambda spec: self._draw(spec, count, rng), model.input)

    def step(self, model: Any) -> int:
        """Examples in a batch: those of a model whose batch is fixed, else `batch`."""
        fixed = [spec.shape[0] for spec in tf.nest.flatten(getattr(model, "inputs", None) or ())]
        return next(filter(None, fixed), self.batch)

    def _draw(self, spec: Any, count: int, rng: np.random.Generator) -> np.ndarray:
        shape = (count, *(size or self.size for size in spec.shape[1:]))
        dtype = tf.as_dtype(spec.dtype)
        if dtype == tf.string:
            return rng.choice(np.array(WORDS, object), shape)
        if dtype == tf.bool:
            return rng.random(shape) < 0.7
        if dtype.is_integer or self.whole:
            return rng.integers(0, self.high, shape).astype(dtype.as_numpy_dtype)
        return (self.scale * rng.normal(size=shape)).astype(dtype.as_numpy_dtype)


MODELS: dict[str, Entry] = {}


def model(family: str, **about: Any) -> Callable[[Callable], Callable]:
    """Puts a function that builds a model on the list, under its own name."""

    def put(build: Callable) -> Callable:
        MODELS[build.__name__] = Entry(build.__name__, family, build, **about)
        return build

    return put
