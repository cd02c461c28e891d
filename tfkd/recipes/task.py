"""`Task`: what a run needs of its data, one class for class scores and one for boxes."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras as keras

from tfkd import data
from tfkd.recipes.data import Data
from tfkd.recipes.recipe import Recipe

CLIPNORM = 10.0  # of each gradient
# Batch normalizations stay as they are in a network of others that sees fewer examples.
LITTLE_DATA = 1000


class Task(abc.ABC):
    """Data in batches, losses, scores and files of one kind of network.

    Args:
        found: the data, in three parts. Choices are made on the second, the validation
            part; the third, the test part, is for the final scores.
        recipe: its settings of data.

    Attributes:
        kind: "images", "texts", "boxes" or "arrays".
        measure: name of the score, in tables and curves.
    """

    kind: str
    measure: ClassVar[str]

    def __init__(self, found: Data, recipe: Recipe):
        self.found, self.recipe, self.kind = found, recipe, found.kind
        self.batch = min(recipe.batch_size, len(found.train))
        self.steps = data.steps_per_epoch(len(found.train), self.batch)

    @property
    def little_data(self) -> bool:
        """Whether the statistics of the training data are worse than those of a network."""
        return len(self.found.train) < LITTLE_DATA

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.found.class_names

    @abc.abstractmethod
    def augment(self, views: int) -> Callable[..., Any] | None:
        """The augmentation for a number of views; None: there is none."""

    @abc.abstractmethod
    def batches(self, views: int, first_step: int) -> tf.data.Dataset:
        """Endless training batches from a step on, as a function of (seed, step)."""

    @abc.abstractmethod
    def validation(self) -> tf.data.Dataset | None:
        """Batches of the validation part for the curves, or None."""

    @abc.abstractmethod
    def calibration(self, count: int) -> Any:
        """So many training examples, as a network takes them."""

    @abc.abstractmethod
    def examples(self, count: int | None) -> Any:
        """So many test examples, as a network takes them; None: all."""

    @abc.abstractmethod
    def network(self, name: str | None, is_teacher: bool) -> keras.Model:
        """A new network for these data by its name; None: one that suits them."""

    @abc.abstractmethod
    def compile_alone(self, model: keras.Model, optimizer: Any) -> keras.Model:
        """Compiles a network for training on the labels; returns it."""

    def loss(self, settings: Any) -> str | None:
        """The loss on scores that a stage takes; None: the task has an objective of its own."""
        return None

    @abc.abstractmethod
    def distiller(
        self, teacher: Any, student: keras.Model, like: keras.Model, settings: Any, optimizer: Any
    ) -> keras.Model:
        """A compiled Distiller.

        Args:
            teacher: the teacher, or its cache.
            student: the student, which may be quantized.
            like: a float model whose outputs are of the student's kind.
            settings: a stage with `loss`, `temperature` and `label_weight`.
            optimizer: the optimizer.
        """

    @abc.abstractmethod
    def score(self, model: keras.Model, part: str = "test") -> float:
        """The score of a network, 0 to 1.

        Args:
            model: the network.
            part: "test", or "val", by which a run chooses.
        """

    @abc.abstractmethod
    def to_tflite(self, model: keras.Model, path: Any, io: str, count: int) -> Any:
        """Writes a .tflite file and verifies it on `count` examples (0: not at all).

        Raises:
            VerificationError: if it is not good enough. The file is kept.
        """

    @abc.abstractmethod
    def to_onnx(self, model: keras.Model, path: Any, count: int) -> Any:
        """Writes an .onnx file for TensorRT; as `to_tflite`."""

    def optimizer(self, rate: float, epochs: int) -> keras.optimizers.Optimizer:
        """Adam, whose learning rate falls to 0 along a cosine."""
        decay = keras.optimizers.schedules.CosineDecay(rate, max(self.steps * epochs, 1))
        return keras.optimizers.Adam(decay, clipnorm=CLIPNORM)
