"""Temperature scaling of a classifier's last layer, so that its probabilities fit the labels."""

from __future__ import annotations

import numpy as np
import tf_keras as keras

from tfkd import checks, report
from tfkd.networks.layer_parts import flat_layers
from tfkd.recipes.run_state import Run

_PASSED = (keras.layers.Activation, keras.layers.Softmax, keras.layers.Flatten)
_SQUASHED = (keras.activations.linear, keras.activations.softmax)
_COMPARED = 64  # examples on which the scaled layer is compared with the scaled scores
_CLOSE = 1e-3


def scale(run: Run, stage: str, model: keras.Model) -> float | None:
    """Divides the weights of the last layer by the temperature that fits the validation part.

    A correlation with the teacher does not see how large scores are, so a student that learns
    by it is as sure of its classes as chance and the few labels have left it.

    Args:
        run: the run.
        stage: the stage.
        model: a classifier, whose predictions stay what they are.

    Returns:
        The temperature; None if the model does not end in one layer of weights and a softmax,
        which is warned of.
    """
    outputs = model.predict(run.task.validation(), verbose=0)
    found = report.fit_temperature(outputs, run.task.found.val.y)
    layer = next(
        (one for one in reversed(flat_layers(model)) if not isinstance(one, _PASSED)), None
    )
    x = run.task.calibration(_COMPARED)
    before = model.predict(x, verbose=0)
    if isinstance(layer, keras.layers.Dense) and layer.activation in _SQUASHED:
        weights = layer.get_weights()
        layer.set_weights([weight / found for weight in weights])
        if _are_scaled(model.predict(x, verbose=0), before, found):
            run.voice.say(
                f"{stage}: scores divided by {found:.3g}, so that the probabilities fit the labels "
                "of the validation part"
            )
            return found
        layer.set_weights(weights)
    checks.warn(
        f"{stage}: the probabilities of {model.name!r} may say little, as it has learned the order "
        "of its teacher's scores and not their size, and does not end in a Dense layer (and a "
        'softmax) that could be scaled. Its classes are not affected. With "loss": "soft_targets" '
        "it learns the teacher's probabilities."
    )
    return None


def _are_scaled(after: np.ndarray, before: np.ndarray, found: float) -> bool:
    """Whether scores, or the logarithms of probabilities, have been divided by a number."""
    for values in ((after, before), (np.log(after.clip(1e-30)), np.log(before.clip(1e-30)))):
        new, old = (value - value.mean(-1, keepdims=True) for value in values)
        if np.allclose(new * found, old, atol=_CLOSE * max(np.abs(old).max(), _CLOSE)):
            return True
    return False
