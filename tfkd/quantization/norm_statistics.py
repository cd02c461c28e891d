"""Check of batch-norm moving statistics against calibration data, to detect stale ones.

In inference a batch normalization with moving mean μ and moving variance σ² expects inputs
x with E(x − μ)² = σ². This does not hold for a network that was trained for only a few
steps, or pruned without further training. Ranges calibrated with such statistics fit
neither training, which uses batch statistics, nor the network after more training.

The mean of (x − μ)² covers both the variance of the data and the shift of their mean. It is
therefore close to σ² even for few examples or a single class, whose variance is small but
whose mean is shifted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks
from tfkd.networks.layer_parts import flat_layers

# Examples observed per layer: few are enough, and more slow calibration down.
EXAMPLES = 16
# Limits of E(x − μ)² / σ²: trained networks lie between 0.5 and 1.8, even for single images.
_LIMIT = 4.0  # for the geometric mean over channels, and inverted for the arithmetic mean
_LIMIT_OF_MEAN = 32.0  # for the arithmetic mean, which a few channels can raise
_SHOWN = 5  # layers named in the warning


def is_batch_norm(layer: keras.layers.Layer) -> bool:
    """True for a layer with moving statistics that training updates."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "momentum")


class NormStatistics:
    """Ratios E(x − μ)² / σ² of the inputs of all batch normalizations of a model."""

    def __init__(self, model: keras.Model):
        self._norms = [layer for layer in flat_layers(model) if is_batch_norm(layer)]
        self._sums: dict[int, np.ndarray] = {}
        self._counts: dict[int, int] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Observes the inputs of the layers in eager calls."""
        for norm in self._norms:
            # Bypass Keras's attribute tracking, which is slow.
            vars(norm)["call"] = self._observed(norm, norm.call)
        try:
            yield
        finally:
            for norm in self._norms:
                del vars(norm)["call"]

    def _observed(self, norm: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def observed(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if self._counts.get(id(norm), 0) < EXAMPLES:
                # In NumPy, since the overhead of eager TensorFlow operations is larger.
                self._add(norm, np.asarray(inputs)[:EXAMPLES])
            return call(inputs, training=training, mask=mask)

        return observed

    def _add(self, norm: Any, x: np.ndarray) -> None:
        own = norm.axis if isinstance(norm.axis, (list, tuple)) else [norm.axis]
        own = [axis % x.ndim for axis in own]
        others = tuple(axis for axis in range(x.ndim) if axis not in own)
        sizes = [x.shape[axis] if axis in own else 1 for axis in range(x.ndim)]
        distances = x - norm.moving_mean.numpy().reshape(sizes)
        found = np.square(distances).mean(others, dtype=np.float64).ravel()
        self._sums[id(norm)] = self._sums.get(id(norm), 0.0) + len(x) * found
        self._counts[id(norm)] = self._counts.get(id(norm), 0) + len(x)

    def far(self) -> dict[str, float]:
        """Layer with mismatched statistics → RMS distance from μ as a multiple of σ."""
        found = {}
        for norm in self._norms:
            if id(norm) not in self._sums:
                continue
            squares = self._sums[id(norm)] / self._counts[id(norm)]
            variance = np.asarray(norm.moving_variance, np.float64).ravel()
            ratios = (squares + norm.epsilon) / (variance + norm.epsilon)
            gamma = getattr(norm, "gamma", None)
            if gamma is not None:  # Channels that are multiplied by 0 do not matter.
                ratios = ratios[np.ravel(gamma) != 0]
            if not len(ratios):
                continue
            mean, typical = float(ratios.mean()), float(np.exp(np.log(ratios).mean()))
            if mean > _LIMIT_OF_MEAN or mean < 1 / _LIMIT:
                found[norm.name] = float(np.sqrt(mean))
            elif typical > _LIMIT:
                found[norm.name] = float(np.sqrt(typical))
        return found

    def warn(self) -> None:
        """Warns once if statistics do not fit, naming the layers."""
        found = self.far()
        if not found:
            return
        worst = sorted(found.items(), key=lambda item: -abs(np.log(item[1])))
        shown = ", ".join(f"{name!r} ({factor:.2g} times)" for name, factor in worst[:_SHOWN])
        more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
        checks.warn(
            f"calibrate: the moving statistics of {len(found)} of {len(self._norms)} batch "
            f"normalizations do not fit `data`: {shown}{more}. The factor is the RMS distance of "
            "the inputs from the moving mean, relative to the moving standard deviation. The "
            "network was trained for too few steps since it was created or pruned, or `data` are "
            "not scaled as in training. Its outputs in inference and the ranges set now are "
            "unreliable, and further training may diverge or stall. Re-estimate the statistics "
            "of the float model with tfkd.pruning.recalibrate(model, data), then quantize and "
            "calibrate again; in a run of `tfkd compress` the stage `prune` does it, and "
            "`--preprocess` says how the model takes pixels."
        )
