"""What from_keras3 refuses: missing parts, other outputs, wrong arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from keras3_toys import IMAGE, L, check, keras, ops, through

import tfkd

ROOT = Path(tfkd.__file__).resolve().parent.parent


@keras.saving.register_keras_serializable(package="tests")
class Twice(L.Layer):
    """A layer that only its author knows."""

    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="tests")
class LoudDense(L.Dense):
    """Looks like Dense, and is not."""

    def call(self, x):
        return super().call(x) + 1


@keras.saving.register_keras_serializable(package="tests")
class Odd(keras.regularizers.Regularizer):
    def __call__(self, x):
        return ops.sum(x)

    def get_config(self):
        return {}


def test_everything_missing_is_listed():
    x = keras.Input((8, 4), name="x")
    y = Twice(name="mine")(x)
    y = L.RMSNormalization(name="rms")(y)
    y = L.Dense(4, activation="sparsemax", kernel_regularizer=Odd(), name="dense")(y)
    y = L.Lambda(lambda t: t, name="secret")(y)
    y = L.MultiHeadAttention(2, 2, use_gate=True, name="gated")(y, y)
    y = ops.sort(y, axis=1)
    inner_x = keras.Input((8, 4))
    inner = keras.Model(inner_x, LoudDense(4, name="loud")(inner_x), name="inner")
    y = ops.max(inner(y), axis=1, initial=0.0)
    with pytest.raises(ValueError) as caught:
        tfkd.from_keras3(keras.Model(x, y, name="net"))
    lines = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    for start, part in {
        "- mine: ": "Twice",
        "- rms: ": "RMSNormalization",
        "- dense: argument activation": "'sparsemax'",
        "- dense: argument kernel_regularizer": "tests>Odd",
        "- secret: ": "Lambda",
        "- gated: ": "use_gate=True",
        "- sort": "Sort",
        "- inner/loud: ": "LoudDense",
        "- max": "Max: initial=0.0",
    }.items():
        assert [line for line in lines if line.startswith(start) and part in line], (start, lines)
    assert len(lines) == 9
    assert "custom_layers" in str(caught.value) and "'net'" in str(caught.value)


def test_custom_layers():
    @keras.saving.register_keras_serializable(package="tests")
    class Scale(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), name="factor")

        def call(self, x):
            return x * self.factor

    def replaced(layer):
        return tf_keras.layers.DepthwiseConv2D(1, use_bias=False, name=layer.name)

    model = through(IMAGE, Scale(name="scale"))
    with pytest.raises(ValueError, match=r"scale: \[\(4,\)\], in tf_keras \[\(1, 1, 4, 1\)\]"):
        tfkd.from_keras3(model, custom_layers={Scale: replaced})

    class Scale2(tf_keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), name="factor")

        def call(self, x):
            return x * self.factor

    check(model, custom_layers={Scale: lambda layer: Scale2(name=layer.name)})
    with pytest.raises(ValueError, match="returned no tf_keras layer"):
        tfkd.from_keras3(model, custom_layers={Scale: lambda layer: layer})


def test_verify_finds_a_wrong_layer():
    model = through((5,), L.Dense(3), Twice(name="mine"))
    wrong = {Twice: lambda layer: tf_keras.layers.Rescaling(2.001, name=layer.name)}
    with pytest.raises(ValueError, match="expected the converted model to equal 'net' to 1e-05"):
        tfkd.from_keras3(model, custom_layers=wrong)
    with pytest.raises(ValueError, match="received a difference of"):
        tfkd.from_keras3(model, custom_layers=wrong, verify=np.ones((2, 5), "float32"))
    made = tfkd.from_keras3(model, custom_layers=wrong, verify=False)
    assert made.get_layer("mine").scale == 2.001


def test_verify_refuses_nan():
    model = through((5,), L.Dense(3, name="d"))
    model.get_layer("d").kernel.assign(np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="difference of nan"):
        tfkd.from_keras3(model)
    assert np.isnan(tfkd.from_keras3(model, verify=False).get_weights()[0]).all()


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: keras.Sequential([L.Dense(3)], name="s"), "s: is not built"),
        (lambda: Subclassed(name="mine"), "is a subclassed model"),
    ],
)
def test_models_without_a_graph(model, text):
    with pytest.raises(ValueError, match=text):
        tfkd.from_keras3(model())


def test_wrong_arguments():
    x = tf_keras.Input((3,))
    with pytest.raises(TypeError, match="It is a tf_keras model already"):
        tfkd.from_keras3(tf_keras.Model(x, tf_keras.layers.Dense(2)(x)))
    for wrong in (3, "model.keras", L.Dense(3), keras.optimizers.Adam()):
        with pytest.raises(TypeError, match="a functional or Sequential model of Keras 3"):
            tfkd.from_keras3(wrong)
    model = through((5,), L.Dense(3))
    with pytest.raises(TypeError, match="custom_layers"):
        tfkd.from_keras3(model, custom_layers=[Twice])
    with pytest.raises(TypeError, match="custom_layers"):
        tfkd.from_keras3(model, custom_layers={Twice: 3})


def test_without_keras_3(monkeypatch):
    model = through((5,), L.Dense(3))
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match="pip install 'keras>=3'"):
        tfkd.from_keras3(model)


@pytest.mark.slow
def test_module_needs_no_keras_3():
    program = (
        "import sys\n"
        "sys.modules['keras'] = None\n"
        "from tfkd.interop import from_keras3\n"
        "try:\n    from_keras3(3)\n"
        "except TypeError:\n    print('no keras')"
    )
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no keras"
