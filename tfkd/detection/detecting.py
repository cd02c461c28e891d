"""Runs a detector on images in memory and decodes its outputs to detections."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.detection.boxes import HasPriors, check_priors
from tfkd.detection.decoding import decode
from tfkd.networks.accept import refuse_distiller
from tfkd.types import Data, Structure, Tensor

# A model, or a function such as a `tfkd.runtime.Predictor`, from images to encoded outputs.
Detector: TypeAlias = "keras.Model | Callable[[tf.Tensor], Mapping[str, Tensor]]"

KEYS = ("boxes", "confidence", "classes", "num_detections")


class NotFinite(ValueError):
    """A model whose weights or outputs are NaN or infinite."""


def detect(
    model: Detector,
    data: Data,
    anchors: HasPriors | np.ndarray,
    batch_size: int = 32,
    preprocess: Callable[[np.ndarray], Tensor] | None = None,
    **decode_options: Any,
) -> dict[str, np.ndarray]:
    """Detects objects in images: runs a detector, decodes its outputs and applies NMS.

    Args:
        model: a tf_keras model or a function from a batch of images to a dict {"boxes":
            (B, P, 4) offsets, "classes": (B, P, C + 1) logits, the background first}, as
            those of `tfkd.models.ssd`. A model runs in inference mode and is traced once
            for all batches; a function, such as a `tfkd.runtime.Predictor` of a TFLite
            file, is called with a float32 tensor.
        data: images (N, H, W, 3), at least one, in any form of `tfkd.example_inputs`, or a
            list of them; of a data set of `tfkd.data` the test part.
        anchors: the model's `tfkd.detection.Anchors`, or its priors (P, 4).
        batch_size: images a batch.
        preprocess: a function of a batch of images; None: pixels / 127.5 − 1 for
            uint8, and floating-point images as they are.
        **decode_options: of `tfkd.detection.decode`, such as score_threshold,
            iou_threshold and max_detections.

    Returns:
        dict {"boxes": (N, K, 4) corners relative to the image, "confidence": (N, K),
        "classes": (N, K), "num_detections": (N,)}, padded with -1, confidence with 0.

    Raises:
        TypeError, ValueError: for a bad argument, and if the model's outputs are not
            finite.

    Example:
        >>> import numpy as np
        >>> from tfkd import report
        >>> def model(images):  # one prior, always of class 1
        ...     count = len(images)
        ...     logits = np.tile(np.float32([0, -9, 9]), (count, 1, 1))
        ...     return {"boxes": np.zeros((count, 1, 4), "float32"), "classes": logits}
        >>> priors = np.float32([[0.5, 0.5, 0.2, 0.4]])
        >>> found = report.detect(model, np.zeros((3, 8, 8, 3), "uint8"), priors)
        >>> found["num_detections"], found["classes"][:, 0]
        (array([1, 1, 1], dtype=int32), array([1, 1, 1], dtype=int32))
        >>> found["boxes"][0, 0].round(2)
        array([0.4, 0.3, 0.6, 0.7], dtype=float32)
    """
    return Detecting(anchors, batch_size, preprocess, **decode_options)(model, data)


class Detecting:
    """`detect` for repeated calls with one model, which is traced once; same arguments."""

    def __init__(
        self,
        anchors: HasPriors | np.ndarray,
        batch_size: int = 32,
        preprocess: Callable[[np.ndarray], Tensor] | None = None,
        **decode_options: Any,
    ):
        self.priors = check_priors(anchors)
        self.batch_size = checks.positive_int("batch_size", batch_size)
        self.preprocess = None if preprocess is None else checks.function("preprocess", preprocess)
        # All arguments but the first two, `outputs` and `anchors`.
        known = [name for name in inspect.signature(decode).parameters][2:]
        for name, value in decode_options.items():
            if name not in known:
                fix = checks.near(name, known) or f"There are: {', '.join(known)}."
                raise checks.type_error(name, "an option of tfkd.detection.decode", value, fix)
        self._options = decode_options
        self._model: Any = None
        self._traced: dict[tuple[Any, ...], Any] = {}

    def __call__(self, model: Detector, data: Data) -> dict[str, np.ndarray]:
        """Detects objects in images (N, H, W, 3)."""
        images = check_images(data)
        if model is not self._model:
            refuse_distiller("model", model)
            self._model, self._traced = checks.function("model", model), {}
        self._check_weights()
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, len(images), self.batch_size):
            batch = self._prepared(images[first : first + self.batch_size])
            found, finite = self._run(batch)
            if not bool(finite):
                raise NotFinite(
                    "`model`: expected finite outputs, received NaN or infinity for images from "
                    f"{first} on. Its weights are finite: check the images after `preprocess`."
                )
            parts.append({key: np.asarray(found[key]) for key in KEYS})
        return {key: np.concatenate([part[key] for part in parts]) for key in KEYS}

    def _check_weights(self) -> None:
        """Raises NotFinite for NaN in the weights, which a ReLU can hide from the outputs."""
        weights = self._model.weights if isinstance(self._model, keras.Model) else []
        floats = [weight for weight in weights if weight.dtype.is_floating]
        broken = [w.name for w in floats if not bool(tf.reduce_all(tf.math.is_finite(w)))]
        if broken:
            raise NotFinite(
                "`model`: expected finite weights, received NaN or infinity in "
                f"{len(broken)} of {len(weights)}: {', '.join(broken[:3])}"
                f"{', ...' if len(broken) > 3 else ''}. Its training has diverged: "
                "go back to an earlier checkpoint, or train with a lower learning rate."
            )

    def _prepared(self, batch: np.ndarray) -> tf.Tensor:
        if self.preprocess is not None:
            return tf.cast(self.preprocess(batch), tf.float32)
        if batch.dtype == np.uint8:
            return tf.cast(batch, tf.float32) / 127.5 - 1.0  # 0..255 to −1..1
        return tf.cast(batch, tf.float32)

    def _run(self, batch: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        if isinstance(self._model, keras.Model):
            return self._call(self._found, batch)
        return self._call(self._decoded, self._heads(self._model(batch)))

    def _call(self, function: Callable[..., Any], inputs: Structure) -> Any:
        """Traces `function` for any batch size: the last batch is smaller than the others."""
        specs = tf.nest.map_structure(
            lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), inputs
        )
        key = tuple(tf.nest.flatten(specs))
        if key not in self._traced:
            # A concrete function: TensorFlow warns of retracing if the same lines of code
            # trace many models.
            self._traced[key] = tf.function(function).get_concrete_function(specs)
        return self._traced[key](inputs)

    def _heads(self, outputs: Mapping[str, Tensor]) -> dict[str, tf.Tensor]:
        """The outputs that are decoded, as tensors."""
        names = [self._options.get(key, key) for key in ("boxes", "classes")]
        if not isinstance(outputs, Mapping) or not set(names) <= set(outputs):
            decode(outputs, self.priors, **self._options)  # raises the right error
        return {name: tf.convert_to_tensor(outputs[name]) for name in names}

    def _found(self, batch: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return self._decoded(self._heads(self._model(batch, training=False)))

    def _decoded(self, heads: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        found = decode(heads, self.priors, **self._options)
        # A score of NaN is not above any threshold and would look like "nothing found".
        finite = [tf.reduce_all(tf.math.is_finite(value)) for value in heads.values()]
        return found, tf.reduce_all(finite)


def check_images(data: Data) -> np.ndarray:
    """Accepts at least one image of three channels, as an array (N, H, W, 3)."""
    if isinstance(data, list) and data and np.ndim(data[0]) == 3:
        data = np.stack(data)
    images = np.asarray(example_inputs.arrays("data", data, 1, labels=False, part="test").x)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise checks.value_error("data", "at least one image, as (N, H, W, 3)", images)
    if images.dtype.kind not in "iuf":
        raise checks.type_error("data", "numbers", images)
    return images
