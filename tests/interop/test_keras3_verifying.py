"""The comparison that from_keras3 ends with: rounding passes, anything else does not."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras
from keras3_toys import IMAGE, L, check, keras, ops, through

import tfkd

ZERO_AND_ONE = np.array([[0.0], [1.0]], "float32")


@keras.saving.register_keras_serializable(package="tests")
class Fifth(L.Layer):
    """x / 5."""

    def call(self, x):
        return x / 5


class Times(tf_keras.layers.Layer):
    """x · factor; for Fifth, in another way than there: rounded elsewhere."""

    def __init__(self, factor=0.2, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def fifth_as(factor):
    return {Fifth: lambda layer: Times(factor, name=layer.name, dtype=layer.dtype_policy.name)}


def plain(*chain):
    """A model without weights of one number."""
    return through((1,), *chain)


def test_fused_batch_normalization_differs_by_rounding_only():
    chain = [layer for _ in range(6) for layer in (L.Conv2D(4, 1), L.BatchNormalization())]
    model = through(IMAGE, *chain)
    made = tfkd.from_keras3(model, tolerance=0)
    norms = [one for one in made.layers if isinstance(one, tf_keras.layers.BatchNormalization)]
    assert len(norms) == 6 and all(layer.fused for layer in norms)
    x = np.random.default_rng(0).normal(size=(8, *IMAGE)).astype("float32")
    assert np.abs(model(x) - made(x)).max() > 0  # There is something to forgive.
    check(model)


def test_layer_normalization_differs_by_rounding_only():
    model = through((5, 16), *(L.LayerNormalization() for _ in range(4)))
    tfkd.from_keras3(model, tolerance=0)


def test_float64_decides_where_float32_can_not():
    model = plain(Fifth(name="mine"), lambda x: ops.sin(x * 1e5))
    x = np.random.default_rng(0).normal(size=(64, 1)).astype("float32")
    made = tfkd.from_keras3(model, verify=x, custom_layers=fifth_as(0.2))
    assert np.abs(model(x) - made(x)).max() > 1e-4
    assert made.get_layer("mine").dtype == "float32"
    # A factor that is wrong by 1e-9 moves the sine by 1e-4, in float64 too.
    with pytest.raises(ValueError, match=r"to 1e-05 .* \(in float64: [0-9.]+e-0[45]\)"):
        tfkd.from_keras3(model, verify=x, custom_layers=fifth_as(0.2 + 1e-9))


def test_both_numbers_are_given_and_a_tolerance_accepts_them():
    wrong = fifth_as(0.2 * 1.001)
    model = plain(Fifth(name="mine"))
    text = r"received a difference of 0\.001 in 'mine' \(in float64: 0\.001\)"
    with pytest.raises(ValueError, match=text):
        tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=wrong)
    with pytest.raises(ValueError, match=r"to 0\.0009 of the output's range"):
        tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=wrong, tolerance=9e-4)
    tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=wrong, tolerance=2e-3)


def test_half_precision_has_a_tolerance_of_its_own():
    model = plain(Fifth(name="mine", dtype="mixed_float16"))
    wrong = fifth_as(0.2 * 1.005)
    tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=wrong)
    with pytest.raises(ValueError, match=r"to 0\.001 .* difference of 0\.00[0-9]+ in 'mine'\. If"):
        tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=wrong, tolerance=1e-3)


def test_a_layer_that_can_not_be_built_in_float64():
    class Stubborn(Fifth):
        @classmethod
        def from_config(cls, config):
            raise RuntimeError("only once")

    model = plain(Stubborn(name="mine"))
    custom = {Stubborn: lambda layer: Times(0.3, name=layer.name)}
    with pytest.raises(ValueError, match=r"\(in float64: it can't be built, RuntimeError\)"):
        tfkd.from_keras3(model, verify=ZERO_AND_ONE, custom_layers=custom)


def test_normalization_in_float64_rounds_as_keras_3_does():
    numbers = {"mean": [0.485] * 4, "variance": [0.229**2] * 4}
    model = through(IMAGE, L.Normalization(**numbers, dtype="float64"), dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, *IMAGE))
    np.testing.assert_array_equal(model(x), tfkd.from_keras3(model, tolerance=0)(x))


@pytest.mark.parametrize("wrong", [-1e-5, float("nan"), float("inf")])
def test_tolerance_out_of_range(wrong):
    with pytest.raises(ValueError, match="`tolerance`: expected a finite number"):
        tfkd.from_keras3(plain(ops.relu), tolerance=wrong)


@pytest.mark.parametrize("wrong", ["1e-5", True, [1e-5]])
def test_tolerance_of_another_type(wrong):
    with pytest.raises(TypeError, match="`tolerance`: expected a finite number"):
        tfkd.from_keras3(plain(ops.relu), tolerance=wrong)
