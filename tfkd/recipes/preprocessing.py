"""Scaling of pixels that a model expects and does not do itself: by name, or found by values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import flat_layers
from tfkd.recipes.data import Data, Part, chance

# (mean, std) of pixels in 0..255, by the range that the model takes.
NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),  # the images as they are
    "0-255": ((0.0,), (1.0,)),
    "0-1": ((0.0,), (255.0,)),
    "-1-1": ((127.5,), (127.5,)),
    # The statistics of ImageNet that PyTorch's models and keras's "torch" mode take.
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
AUTO, STANDARDIZE = "auto", "standardize"
FORMS = (
    "auto, none, 0-255, 0-1, -1-1, imagenet, standardize, or numbers mean,std of pixels (0..255)"
)
_NEW_NETWORKS = "-1-1"  # how networks that a run trains itself take pixels
_BRIGHT = 128.0  # pixels that never reach it do not fill their range
_EXAMPLES = 256
# A scaling is recognized by accuracy if it is this many standard errors above chance.
_SIGMAS = 4.0


@dataclasses.dataclass(frozen=True)
class Scaling:
    """An input is (pixels − mean) / std, each of one number or of one per channel.

    `mean` and `std` are what `tfkd.export.to_tflite` takes under these names.

    Attributes:
        name: as `named` takes it.
        mean, std: of pixels in 0..255.
        why: how it was found.
        to_pixels: what images of floats are multiplied by to be pixels in 0..255: 255 for
            those in 0..1. None: they are no pixels; `mean` and `std` are in their units.

    Example:
        >>> import numpy as np
        >>> from tfkd.recipes.preprocessing import named
        >>> named("-1-1")(np.uint8([[[[0], [255]]]])).ravel().tolist()
        [-1.0, 1.0]
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    why: str = ""
    to_pixels: float | None = 1.0

    def __call__(self, images: Any) -> Any:
        """Scales (B, H, W, C) images to float32; arrays stay arrays, tensors tensors."""
        is_array = isinstance(images, np.ndarray)
        is_float = images.dtype.kind == "f" if is_array else images.dtype.is_floating
        unit = (self.to_pixels or 1.0) if is_float else 1.0
        # Not the images by the unit: this leaves those bit for bit that need nothing.
        mean, std = (np.float32(np.divide(part, unit)) for part in (self.mean, self.std))
        if is_array:
            return (images.astype(np.float32) - mean) / std
        return (tf.cast(images, tf.float32) - mean) / std

    def __str__(self) -> str:
        return f"preprocess {self.name}" + (f": {self.why}" if self.why else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` gives it back."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}


def from_json(values: Mapping[str, Any]) -> Scaling:
    """The inverse of `Scaling.to_json`."""
    mean, std = (tuple(map(float, values[key])) for key in ("mean", "std"))
    return Scaling(values["name"], mean, std, values.get("why", ""), values.get("to_pixels", 1.0))


def to_pixels(images: np.ndarray) -> float | None:
    """What images are multiplied by to be pixels in 0..255, by their values.

    Returns:
        1 for numbers in 0..255; 255 for floats in 0..1; None for others, such as
        standardized images.
    """
    if images.dtype == np.uint8:
        return 1.0
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        return None
    return 255.0 if high <= 1 and images.dtype.kind == "f" else 1.0


def named(name: str, data: Data | None = None) -> Scaling:
    """A scaling by name, or by its numbers.

    Args:
        name: one of `NAMED`; "standardize": mean and standard deviation of the training
            images by channel; or numbers, first the means and then the standard deviations,
            of pixels in 0..255: "127.5,127.5" or "123,116,103,58,57,57". Those of pixels in
            0..1, as PyTorch's are, are recognized by their size: "0.5,0.5".
        data: for "standardize", to check the number of channels, and for the range of images
            of floats; None: pixels in 0..255.

    Raises:
        ValueError: if it is none of these, or does not fit the images.
    """
    images = None if data is None or data.kind not in ("images", "boxes") else data.train.x
    unit = 1.0 if images is None else to_pixels(images)
    if name == STANDARDIZE:
        if data is None:
            raise checks.value_error("preprocess", "a name that needs no data", name)
        return _standardized(data, unit)
    if name in NAMED and unit is None and name != "none":
        fix = (
            f"The images hold {_range(images)}: pass none if the model takes them as they are, "
            "standardize, or the numbers of their mean and standard deviation."
        )
        raise checks.value_error("preprocess", "a scaling of pixels, and images of such", name, fix)
    if name == "none" and unit is not None:
        return Scaling(name, (0.0,), (unit,), to_pixels=unit)
    found = Scaling(name, *NAMED[name]) if name in NAMED else _numbers(name, unit)
    channels = data.example_shape[-1] if data is not None and data.example_shape else None
    if channels and len(found.mean) not in (1, channels):
        received = f"{name}, for {len(found.mean)} channels"
        raise checks.value_error("preprocess", f"numbers for {channels} channels", received)
    return dataclasses.replace(found, to_pixels=unit)


def for_new_network(data: Data) -> Scaling:
    """The scaling for a network that is yet to be trained: to −1..1 where pixels fill 0..255."""
    unit = to_pixels(data.train.x)
    if unit is None or data.train.x.max() * unit < _BRIGHT:
        found = named(STANDARDIZE, data)
        return dataclasses.replace(found, why=f"the images hold {_range(data.train.x)}")
    return named(_NEW_NETWORKS, data)


def _range(images: Any) -> str:
    kind = "floats" if images.dtype.kind == "f" else "numbers"
    return f"{kind} from {float(images.min()):.3g} to {float(images.max()):.3g}"


def for_limits(limits: tuple[float, float] | None) -> Scaling:
    """The scaling whose range is nearest to that of a file's quantized input.

    Args:
        limits: smallest and largest number that the input holds; None for a float input,
            for which raw pixels are taken.

    Example:
        >>> from tfkd.recipes.preprocessing import for_limits
        >>> for_limits((-1.0, 0.992)).name, for_limits((0.0, 255.0)).name
        ('-1-1', 'none')
    """
    if limits is None:
        return dataclasses.replace(named("none"), why="raw pixels are taken")
    ranges = {"none": (0.0, 255.0), "0-1": (0.0, 1.0), "-1-1": (-1.0, 1.0)}
    distance = {
        name: abs(np.log((high - low) / (limits[1] - limits[0]))) + abs(low - limits[0]) / high
        for name, (low, high) in ranges.items()
    }
    best = min(distance, key=lambda name: distance[name])
    why = f"its input holds {limits[0]:.3g} to {limits[1]:.3g}"
    return dataclasses.replace(named(best), why=why)


def _numbers(name: str, unit: float | None) -> Scaling:
    try:
        values = tuple(float(part) for part in name.split(","))
    except ValueError:
        values = ()
    half = len(values) // 2
    if not values or len(values) % 2 or not np.isfinite(values).all() or min(values[half:]) <= 0:
        fix = checks.near(name, [*NAMED, AUTO, STANDARDIZE])
        raise checks.value_error("preprocess", FORMS, name, fix)
    mean, std = values[:half], values[half:]
    if unit is not None and max(std) < 1 and min(mean) >= 0 and max(mean) <= 1:
        mean, std = (tuple(255 * value for value in part) for part in (mean, std))
        return Scaling(name, mean, std, "these are the numbers of pixels in 0..1")
    return Scaling(name, mean, std)


def _standardized(data: Data, unit: float | None) -> Scaling:
    images = data.train.x
    axes = tuple(range(images.ndim - 1))
    mean = images.mean(axis=axes, dtype=np.float64) * (unit or 1.0)
    std = np.maximum(images.std(axis=axes, dtype=np.float64) * (unit or 1.0), 1e-6)
    rounded = [tuple(round(float(v), 4) for v in values) for values in (mean, std)]
    why = "mean and standard deviation of the training images"
    return Scaling(STANDARDIZE, rounded[0], rounded[1], why, unit)


def scaling_for(model: Any, data: Data, name: str = AUTO) -> Scaling:
    """The scaling that a model's images need: by name, or found by values.

    With "auto": none, if the model has a Rescaling or Normalization layer and the images are
    pixels in 0..255, or if they are floats that are no pixels; else the scaling under which
    the model is right most often on some training examples, if that is above chance; else the
    one under which the statistics of its first batch normalization are those it was trained
    with; else, for an untrained model, none for floats and `standardize` for integers.

    Args:
        model: a tf_keras model, or a callable.
        data: what `open_data` returned.
        name: "auto" or a name that `named` takes.

    Returns:
        A `Scaling`, whose `why` says how it was found.

    Raises:
        ValueError: if there is no such scaling.
    """
    if name != AUTO:
        return named(name, data)
    if data.kind not in ("images", "boxes"):
        return Scaling("none", why="the examples are not images")
    images, does_itself = data.train.x, scales_itself(model)
    unit, is_float = to_pixels(images), images.dtype.kind == "f"
    if unit is None:
        return Scaling("none", why=f"the images hold {_range(images)}", to_pixels=None)
    if does_itself and unit == 1:
        return dataclasses.replace(named("none", data), why="the model scales pixels itself")
    names = ["none", "0-1" if unit == 1 else "0-255"]
    if not does_itself:
        colour = ["imagenet"] if data.example_shape[-1] == 3 else []
        names += ["-1-1", *colour, STANDARDIZE]
    candidates = [named(one, data) for one in names]
    part = _some(data.train)
    found = _by_accuracy(model, data, candidates, part)
    if found is None:
        found = _by_statistics(model, candidates, part.x[:64])
    if found is not None:
        said = f"the images hold {_range(images)}; " if is_float else ""
        return dataclasses.replace(found, why=said + found.why)
    if is_float:
        return dataclasses.replace(candidates[0], why=_float_already(model, images))
    if data.kind == "boxes":
        return dataclasses.replace(named("-1-1"), why="the range of tfkd's detectors")
    return candidates[-1]


def _float_already(model: Any, images: np.ndarray) -> str:
    """Why float images are taken as they are; warns if the model seems to expect pixels."""
    low, high = float(images.min()), float(images.max())
    layers = [one for one in flat_layers(model) if isinstance(one, keras.layers.Rescaling)]
    if layers and max(-low, high) <= 1 and np.max(np.abs(layers[0].scale)) < 0.1:
        checks.warn(
            f"The images hold numbers from {low:.3g} to {high:.3g}, and the model multiplies them "
            f"by {np.max(layers[0].scale):.3g}, as if they were from 0 to 255. If it was trained "
            "on those, pass preprocess 0-255."
        )
    return f"the images hold {_range(images)}, and no scaling makes the model better than chance"


def scales_itself(model: Any) -> bool:
    """Whether a model has a Rescaling or Normalization layer."""
    kinds = (keras.layers.Rescaling, keras.layers.Normalization)
    return isinstance(model, keras.Model) and any(
        isinstance(layer, kinds) for layer in flat_layers(model)
    )


def _some(part: Part) -> Part:
    """Up to 256 examples, evenly spaced."""
    rows = np.unique(np.linspace(0, len(part) - 1, _EXAMPLES).astype(int))
    return part.rows(rows)


def _by_accuracy(model: Any, data: Data, candidates: list[Scaling], part: Part) -> Scaling | None:
    """The candidate with the highest accuracy; None if none is above chance.

    Among those that are within the error of the measurement, the batch normalizations
    decide, or else the order of the candidates.
    """
    if data.kind != "images":
        return None
    rates = []
    for candidate in candidates:
        outputs = np.asarray(_run(model, candidate(part.x)))
        if outputs.ndim != 2 or outputs.shape[1] not in (1, data.num_classes):
            return None
        if outputs.shape[1] == 1:
            middle = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0
            guessed = (outputs[:, 0] > middle).astype(int)
        else:
            guessed = outputs.argmax(axis=1)
        rates.append(float((guessed == part.y).mean()))
    guessed_right, error = chance(part.y)
    if max(rates) <= guessed_right + _SIGMAS * error:
        return None
    close = [c for c, rate in zip(candidates, rates, strict=True) if rate >= max(rates) - error]
    best = candidates[int(np.argmax(rates))]
    if len(close) > 1:
        usual = close[0] if part.x.dtype.kind == "f" else best
        best = _by_statistics(model, close, part.x[:64]) or usual
    shown = ", ".join(f"{c.name} {100 * r:.0f} %" for c, r in zip(candidates, rates, strict=True))
    return dataclasses.replace(best, why=f"accuracy on {len(part)} training images: {shown}")


def _run(model: Any, images: np.ndarray) -> Any:
    """Outputs of a model in inference mode, of the first output if there are several."""
    batches = [images[start : start + 64] for start in range(0, len(images), 64)]
    if isinstance(model, keras.Model):
        return np.concatenate([_first(model(x, training=False)) for x in batches])
    call = model
    if not callable(model):
        from tfkd.teachers.forward import forward

        call = forward(model)
    return np.concatenate([_first(call(tf.constant(x))) for x in batches])


def _first(outputs: Any) -> np.ndarray:
    return np.asarray(tf.nest.flatten(outputs)[0])


def _by_statistics(model: Any, candidates: list[Scaling], images: np.ndarray) -> Scaling | None:
    """The candidate that fits the first batch normalization best; None without a trained one."""
    found = _first_norm(model)
    if found is None:
        return None
    before, layer = found
    mean, variance = (np.float64(v) for v in (layer.moving_mean, layer.moving_variance))
    distances = []
    for candidate in candidates:
        values = np.float64(before(candidate(images), training=False))
        axes = tuple(i for i in range(values.ndim) if i != values.ndim - 1)
        seen = values.mean(axis=axes), values.var(axis=axes) + layer.epsilon
        distances.append(_divergence(*seen, mean, variance + layer.epsilon))
    best = candidates[int(np.argmin(distances))]
    why = f"it fits the statistics of the batch normalization {layer.name!r} best"
    return dataclasses.replace(best, why=why)


def _divergence(mean_a: Any, var_a: Any, mean_b: Any, var_b: Any) -> float:
    """Median over channels of the symmetric KL divergence of two normal distributions."""
    square = (mean_a - mean_b) ** 2
    both = (var_a + square) / var_b + (var_b + square) / var_a
    return float(np.median(0.5 * both - 1))


def _first_norm(model: Any) -> tuple[keras.Model, Any] | None:
    """The first batch normalization with trained statistics, and the model up to it."""
    if not isinstance(model, keras.Model):
        return None
    networks = [m for m in (model, *flat_layers(model)) if isinstance(m, keras.Model)]
    for network in networks:
        for layer in getattr(network, "layers", ()):
            if not isinstance(layer, keras.layers.BatchNormalization) or layer.axis not in ([3], 3):
                continue
            fresh = np.allclose(layer.moving_mean, 0) and np.allclose(layer.moving_variance, 1)
            try:
                return None if fresh else (keras.Model(network.inputs, layer.input), layer)
            except (AttributeError, ValueError, TypeError):
                return None  # a shared layer, or one of a model that is no graph
    return None
