"""The task of classifiers of images and of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, data, export, losses
from tfkd.distillation import Distiller
from tfkd.recipes import stages
from tfkd.recipes.data import Data
from tfkd.recipes.models import open_model
from tfkd.recipes.recipe import Recipe
from tfkd.recipes.scaling import Scaling
from tfkd.recipes.task import Task
from tfkd.teachers import output_kinds

_EVALUATED = 256  # test examples in a batch
# Mirrored digits are other digits, or none.
_NOT_FLIPPED = ("digits", "mnist")


class Classifying(Task):
    """A classifier with one output, of scores or of probabilities.

    Args:
        found: the data; of texts token ids.
        recipe: the settings.
        scaling: the scaling of pixels; None: the network takes examples as they are.
        encoder: the tokenizer of texts.
    """

    measure = "accuracy"

    def __init__(
        self,
        found: Data,
        recipe: Recipe,
        scaling: Scaling | None = None,
        encoder: data.Encoder | None = None,
    ):
        super().__init__(found, recipe)
        self.scaling, self.encoder = scaling, encoder

    def augment(self, views: int) -> Callable[..., Any] | None:
        """Shifts by an eighth of the side, and flips unless they are digits."""
        if views == 1 or self.kind != "images" or not self.recipe.augment:
            return None
        flip = self.found.name not in _NOT_FLIPPED
        return data.shift_and_flip(max(self.found.example_shape[0] // 8, 1), flip=flip)

    def batches(self, views: int, first_step: int) -> tf.data.Dataset:
        """Batches of (x, y)."""
        return data.batches(
            self.found.train.x,
            self.found.train.y,
            self.batch,
            seed=self.recipe.seed,
            augment=self.augment(views),
            preprocess=self.scaling,
            start_step=first_step,
        )

    def validation(self) -> tf.data.Dataset:
        """Batches of the validation part."""
        val = self.found.val
        return data.eval_batches(val.x, val.y, _EVALUATED, preprocess=self.scaling)

    def calibration(self, count: int) -> np.ndarray:
        """So many training examples."""
        return self._ready(self.found.train.x[self._some(len(self.found.train), count)])

    def examples(self, count: int | None) -> np.ndarray:
        """So many test examples."""
        return self._ready(self.found.test.x[self._some(len(self.found.test), count)])

    def _some(self, total: int, count: int | None) -> Any:
        """Rows of so many examples, in order, drawn by the seed; all for None."""
        if count is None or count >= total:
            return slice(None)
        order = np.random.default_rng(self.recipe.seed).permutation(total)
        return np.sort(order[:count])

    def _ready(self, x: np.ndarray) -> np.ndarray:
        if self.scaling is None:
            return x
        parts = (x[start : start + 1024] for start in range(0, len(x), 1024))
        return np.concatenate([np.asarray(self.scaling(part)) for part in parts])

    def network(self, name: str | None, is_teacher: bool) -> keras.Model:
        """A network by the name that `open_model` takes."""
        sizes: dict[str, Any] = {"num_classes": self.found.num_classes}
        if self.encoder is not None:
            names = ("text_transformer", "text_mlp")
            sizes["vocab_size"] = len(self.encoder.vocabulary)
            sizes["max_length"] = self.encoder.max_length
        else:
            sizes["input_shape"] = shape = self.found.example_shape
            names = ("resnet20", "resnet8")
            if len(shape) != 3:
                names = ("mlp:128,128", "mlp:16")
            elif shape[0] < 16:
                names = ("resnet14:16,32", "resnet8:8,16")
        role = "model" if is_teacher else "student"
        return open_model(name or names[not is_teacher], role=role, **sizes)

    def compile_alone(self, model: keras.Model, optimizer: Any) -> keras.Model:
        """Compiles with the cross-entropy of the labels."""
        loss, metric = self._loss(model)
        model.compile(optimizer, loss, metrics=[metric])
        return model

    def loss(self, settings: Any) -> str:
        """The loss that the stage names; else DIST for a new student of enough classes."""
        can_correlate = self.found.num_classes >= stages.DIST_CLASSES
        usual = "dist" if settings.stage == "distil" and can_correlate else "soft_targets"
        return getattr(settings, "loss", None) or usual

    def distiller(
        self, teacher: Any, student: keras.Model, like: keras.Model, settings: Any, optimizer: Any
    ) -> keras.Model:
        """A Distiller with the loss of the stage."""
        loss, metric = self._loss(like)
        objective: losses.DistillationLoss
        if self.loss(settings) == "dist":
            objective = losses.PearsonDistillation(settings.temperature)
        else:
            objective = losses.LogitsDistillation(
                settings.temperature,
                loss="binary_crossentropy" if like.output_shape[-1] == 1 else "kl_divergence",
            )
        made = Distiller(teacher, student, objective, student_loss_weight=settings.label_weight)
        made.compile(optimizer, loss, metrics=[metric])
        return made

    def _loss(self, model: keras.Model) -> tuple[Any, Any]:
        """The loss on the labels and the metric that fit a model's output."""
        shape = model.output_shape
        classes = self.found.num_classes
        binary = classes == 2 and isinstance(shape, tuple) and shape[-1:] == (1,)
        if not isinstance(shape, tuple) or len(shape) != 2 or not (binary or shape[1] >= classes):
            expected = f"a classifier with one output of {classes} scores, as the data have classes"
            raise checks.value_error("model", expected, f"outputs of shape {shape}")
        sample = self.calibration(output_kinds.EXAMPLES)
        seen = output_kinds.look(model, model, sample)
        squashed = seen.proved in ("softmax", "sigmoid") or (
            seen.proved is None and seen.seen == ("unit" if binary else "one")
        )
        if binary:
            loss = keras.losses.BinaryCrossentropy(from_logits=not squashed)
            threshold = 0.5 if squashed else 0.0
            return loss, keras.metrics.BinaryAccuracy("accuracy", threshold=threshold)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not squashed)
        return loss, keras.metrics.SparseCategoricalAccuracy("accuracy")

    def score(self, model: keras.Model, part: str = "test") -> float:
        """Accuracy."""
        chosen = self.found.test if part == "test" else self.found.val
        x, y = self._ready(chosen.x), chosen.y
        outputs = model.predict(x, batch_size=_EVALUATED, verbose=0)
        if outputs.shape[-1] == 1:
            threshold = self._loss(model)[1].get_config()["threshold"]
            return float(np.mean((outputs[:, 0] > threshold) == y))
        return float(np.mean(outputs.argmax(-1) == y))

    def to_tflite(self, model: keras.Model, path: Any, io: str, count: int) -> Any:
        """A file with names of classes, and the scaling of pixels or the vocabulary."""
        mean, std = _numbers(self.scaling)
        labels = self.class_names if self.found.num_classes == _scores(model) else None
        return export.to_tflite(
            model,
            path,
            io=io,
            labels=labels,
            mean=mean,
            std=std,
            encoder=self.encoder,
            verify=self.examples(count) if count else False,
            keep_failed=True,
        )

    def to_onnx(self, model: keras.Model, path: Any, count: int) -> Any:
        """A file for TensorRT; what it takes stands beside it."""
        if self.encoder is not None:
            self.encoder.save(f"{path}.encoder.json")
        verify = self.examples(count) if count else False
        return export.to_onnx(model, path, target="tensorrt", verify=verify, keep_failed=True)


def _numbers(scaling: Scaling | None) -> tuple[Any, Any]:
    """Mean and deviation of pixels, as scalars where there is one number; None if unknown."""
    if scaling is None or scaling.to_pixels is None:
        return None, None
    parts = (scaling.mean, scaling.std)
    return tuple(p[0] if len(p) == 1 else p for p in parts)  # type: ignore[return-value]


def _scores(model: keras.Model) -> int:
    return int(model.output_shape[-1])
