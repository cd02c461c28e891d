"""How a network takes pixels: scalings by name, and which one a network seems to expect."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import flat_layers

# Name → mean and standard deviation of pixels in 0..255.
SCALINGS: dict[str, tuple[Any, Any]] = {
    "none": (0.0, 1.0),
    "0..1": (0.0, 255.0),
    "-1..1": (127.5, 127.5),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
STANDARDIZE = "standardize"
EXPECTED = (
    'one of "none" (raw pixels), "0..1", "-1..1", "imagenet" (its mean and deviation), '
    '"standardize" (those of the training images), or "MEAN,STD" in pixels'
)
_EARLY = 6  # layers among which a network scales pixels itself


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images → the input of a network: resized, if they are of another size, and scaled.

    Attributes:
        name: name of the scaling.
        mean, std: the input is (pixels − mean) / std; numbers, or one for each channel.
        size: height and width to resize to, or None.
    """

    name: str
    mean: Any
    std: Any
    size: tuple[int, int] | None = None

    def __call__(self, images: Any) -> tf.Tensor:
        """(B, H, W, C) → float32."""
        x = tf.cast(images, tf.float32)
        if self.size is not None:
            x = tf.image.resize(x, self.size)
        return (x - np.float32(self.mean)) / np.float32(self.std)

    @property
    def is_even(self) -> bool:
        """Whether all channels are scaled alike, as a uint8 input needs it."""
        return np.size(np.unique(self.mean)) == 1 and np.size(np.unique(self.std)) == 1

    @property
    def scaling(self) -> tuple[Any, Any]:
        """Mean and deviation as `to_tflite` takes them: scalars where the channels are alike."""
        if self.is_even:
            return float(np.ravel(self.mean)[0]), float(np.ravel(self.std)[0])
        return tuple(map(float, self.mean)), tuple(map(float, self.std))


def named(name: str, found: Any, size: tuple[int, int] | None) -> Pixels:
    """A scaling by its name.

    Args:
        name: see `EXPECTED`.
        found: the data, of which "standardize" takes the training images.
        size: as in `Pixels`.

    Raises:
        ValueError: if there is no such scaling.
    """
    if name in SCALINGS:
        mean, std = SCALINGS[name]
        if np.ndim(mean) and found.example_shape[-1] != len(mean):
            fix = f"The images have {found.example_shape[-1]} channels."
            raise checks.value_error("preprocess", "a scaling for their channels", name, fix)
        return Pixels(name, mean, std, size)
    if name == STANDARDIZE:
        source, factor = found.source, 255.0 if found.train.x.dtype == np.uint8 else 1.0
        std = np.where(source.std > 0, source.std, 1.0)
        return Pixels(name, tuple(source.mean * factor), tuple(std * factor), size)
    try:
        mean, std = map(float, name.split(","))
    except ValueError:
        near = checks.near(name, [*SCALINGS, STANDARDIZE])
        raise checks.value_error("preprocess", EXPECTED, name, near) from None
    return Pixels(name, mean, checks.positive("preprocess", std), size)


def scales_itself(model: keras.Model) -> bool:
    """Whether a network begins with a Rescaling or Normalization layer."""
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    early = flat_layers(model, include_self=False)[:_EARLY]
    return any(isinstance(layer, kinds) for layer in early)


def ask(found: Any, size: tuple[int, int] | None, score: Any) -> ValueError:
    """The error that asks for a scaling, with the score of each.

    Args:
        found: the data.
        size: as in `Pixels`.
        score: a `Pixels` → the accuracy with it, 0 to 1.
    """
    shown = []
    for name in (*SCALINGS, STANDARDIZE):
        try:
            shown.append((score(named(name, found, size)), name))
        except ValueError:
            continue
    shown.sort(reverse=True)
    listed = ", ".join(f'"{name}" {100 * value:.1f} %' for value, name in shown)
    return ValueError(
        f"`preprocess`: expected {EXPECTED}: the model does not scale pixels itself, and its file "
        f"does not say how it was trained. Accuracy with each on some validation images: {listed}. "
        f'Pass the one of its training (--preprocess={shown[0][1]}, "preprocess" in a recipe).'
    )
