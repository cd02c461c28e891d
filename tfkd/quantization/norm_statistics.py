"""Whether the moving statistics of batch normalizations fit the data that they see.

In inference a batch normalization expects values x with E(x − μ)² = σ², by its
moving mean μ and variance σ². A network that was trained for a few steps, or cut
and not trained on, sees others; then ranges that are read with these statistics fit
neither training, which takes the statistics of the batch, nor a network that has
settled.

The mean of (x − μ)² holds the variance within the data and the shift of their mean
together. So it is near σ² also for few examples or those of one class, whose own
variance is small because their mean lies elsewhere.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd.networks.layer_parts import flat_layers

# Examples that are looked at: few are enough, and more make calibration slower.
EXAMPLES = 16
# Settled networks lie between 0.5 and 1.8, for single images of one class as well.
_LIMIT = 4.0
# Of the mean over channels, which a few of them can raise.
_LIMIT_OF_SOME = 32.0
_SHOWN = 5


def is_batch_norm(layer: Any) -> bool:
    """True for a layer with moving statistics that batches move."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "momentum")


class NormStatistics:
    """Mean squared distances from the moving means, in units of the moving variances."""

    def __init__(self, model: keras.Model):
        self._norms = [layer for layer in flat_layers(model) if is_batch_norm(layer)]
        self._sums: dict[int, np.ndarray] = {}
        self._counts: dict[int, int] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at what the layers read in eager calls."""
        for norm in self._norms:
            # Past Keras, which goes through all attributes of a layer when one is set.
            vars(norm)["call"] = self._seeing(norm, norm.call)
        try:
            yield
        finally:
            for norm in self._norms:
                del vars(norm)["call"]

    def _seeing(self, norm: Any, call: Any) -> Any:
        def with_look(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if self._counts.get(id(norm), 0) < EXAMPLES:
                # NumPy: an operation of TensorFlow takes longer than all of this.
                self._add(norm, np.asarray(inputs)[:EXAMPLES])
            return call(inputs, training=training, mask=mask)

        return with_look

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
        """Layer whose statistics do not fit → how many times as far from the mean values lie."""
        found = {}
        for norm in self._norms:
            if id(norm) not in self._sums:
                continue
            squares = self._sums[id(norm)] / self._counts[id(norm)]
            variance = np.asarray(norm.moving_variance, np.float64).ravel()
            ratios = (squares + norm.epsilon) / (variance + norm.epsilon)
            gamma = getattr(norm, "gamma", None)
            if gamma is not None:  # What is multiplied by 0 does not matter.
                ratios = ratios[np.ravel(gamma) != 0]
            if not len(ratios):
                continue
            mean, typical = float(ratios.mean()), float(np.exp(np.log(ratios).mean()))
            if mean > _LIMIT_OF_SOME or mean < 1 / _LIMIT:
                found[norm.name] = float(np.sqrt(mean))
            elif typical > _LIMIT:
                found[norm.name] = float(np.sqrt(typical))
        return found

    def warn(self) -> None:
        """Says once which layers' statistics do not fit."""
        found = self.far()
        if not found:
            return
        worst = sorted(found.items(), key=lambda item: -abs(np.log(item[1])))
        shown = ", ".join(f"{name!r} ({factor:.2g} times)" for name, factor in worst[:_SHOWN])
        more = f" and {len(worst) - _SHOWN} more" if len(worst) > _SHOWN else ""
        warnings.warn(
            f"calibrate: the moving statistics of {len(found)} of {len(self._norms)} batch "
            f"normalizations do not fit `data`: {shown}{more}. So many times as far from the "
            "moving mean as the moving variance says do values lie there. The network was "
            "trained for too few steps since it was made or cut, or `data` are scaled otherwise "
            "than in its training. Its outputs in inference and the ranges set now are of little "
            "use, and training on from here can end in NaN or stand still. Take the statistics "
            "anew, tfkd.pruning.recalibrate(model, data) on the float model, then quantize and "
            "calibrate again.",
            stacklevel=3,
        )
