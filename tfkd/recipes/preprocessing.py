"""The scaling of pixels that a model expects and does not do itself, found by its answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import flat_layers
from tfkd.recipes.data import Data, Part, chance
from tfkd.recipes.scaling import AUTO, STANDARDIZE, Scaling, named, range_text, to_pixels

_EXAMPLES = 256
# A scaling is recognized by accuracy if it is this many standard errors above chance.
_SIGMAS = 4.0


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
        return Scaling("none", why=f"the images hold {range_text(images)}", to_pixels=None)
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
        said = f"the images hold {range_text(images)}; " if is_float else ""
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
    return (
        f"the images hold {range_text(images)}, and no scaling makes the model better than chance"
    )


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
