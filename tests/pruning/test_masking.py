"""What is done to a model in place: slices set to zero, and put back."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from nets import randomize
from toys import assert_untouched, weights_of

from tfkd import pruning
from tfkd.pruning import masking
from tfkd.pruning.rules import registry

layers = keras.layers


class Rolled(layers.Layer):
    """Channel i of the output is channel i − 1 of the input."""

    def call(self, inputs):
        return keras.backend.concatenate([inputs[..., -1:], inputs[..., :-1]])


def net(middle=None):
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.ReLU(name="relu")(middle(y) if middle else y)
    y = layers.Conv2D(3, 3, name="next")(y)
    return randomize(keras.Model(x, y))


def removing(model, *positions):
    return pruning.Selection({"conv": positions}, pruning.analyse(model).fingerprint)


def test_apply_selection_zeroes_just_the_slices():
    model = net()
    before = {w.name: w.numpy() for w in model.weights}
    pruning.apply_selection(model, removing(model, 1, 3))
    for weight in model.weights:
        expected = before[weight.name].copy()
        zeroed = ("conv/kernel", "conv/bias", "norm/gamma", "norm/beta", "norm/moving_mean")
        if weight.name.startswith(zeroed):
            expected[..., [1, 3]] = 0
        np.testing.assert_array_equal(weight.numpy(), expected, err_msg=weight.name)


@pytest.mark.parametrize("good", [True, False])
def test_shrink_leaves_the_weights_bit_for_bit_whether_it_succeeds_or_not(good, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    rule = lambda call: call.same(call.input)  # noqa: E731  (wrong: it rolls the channels)
    pruning.register_rule(Rolled, rule)
    model = net(None if good else Rolled(name="rolled"))
    before = weights_of(model)
    if good:
        pruning.shrink(model, removing(model, 0, 2))
    else:
        with pytest.raises(ValueError, match="expected the shrunk model to equal the masked one"):
            pruning.shrink(model, removing(model, 0, 2))
    assert_untouched(before, model)


def test_weights_come_back_when_the_comparison_is_interrupted():
    model = net()
    before, graph = weights_of(model), pruning.analyse(model)
    with pytest.raises(KeyboardInterrupt), masking.masked(graph, np.ones(graph.units, bool)):
        assert not model.get_layer("conv").kernel.numpy().any()
        raise KeyboardInterrupt
    assert_untouched(before, model)


def test_zero_times_nan_is_zero_and_the_rest_keeps_every_bit():
    model = net()
    kernel = model.get_layer("conv").kernel
    value = kernel.numpy()
    value[0, 0, 0, 1] = np.nan
    kernel.assign(value)
    slices = masking.Slices(pruning.analyse(model))
    slices.zero(np.array([False, True, False, False]))
    expected = value.copy()
    expected[..., 1] = 0
    np.testing.assert_array_equal(kernel.numpy(), expected)
    np.testing.assert_array_equal(slices.zero_units(), [False, True, False, False])
    slices.scale(np.array([0.5, 1, 1, 1]))
    expected[..., 0] *= 0.5
    np.testing.assert_array_equal(kernel.numpy(), expected)


def test_selection_of_another_type_is_named():
    with pytest.raises(TypeError, match=r"expected a tfkd.pruning.Selection, received dict"):
        pruning.apply_selection(net(), {"conv": [0]})
