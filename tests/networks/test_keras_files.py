"""`.keras` files: code in them runs by choice only, and what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras

from tfkd.interop.converting import load_keras3
from tfkd.networks import keras_files

L = keras.layers


class Own(L.ReLU):
    """A layer that Keras does not know by name."""


@pytest.fixture
def file(tmp_path):
    inner = keras.Sequential([L.Lambda(lambda x: -x, input_shape=(2,), name="minus")], name="inner")
    outer = L.TimeDistributed(L.Lambda(lambda x: x + 1, name="plus"))
    x = keras.Input((2,))
    y = L.Reshape((2,))(outer(L.Reshape((2, 1))(Own()(inner(x)))))
    keras.Model(x, y).save(tmp_path / "m.keras")
    return tmp_path / "m.keras"


def test_code_is_refused_by_the_names_of_its_layers(file):
    said = r"`path`: .*without Python code.*m\.keras.*'minus', 'plus'\. .*safe_mode=False"
    with pytest.raises(ValueError, match=said):
        keras_files.load("path", file, {"Own": Own})
    model = keras_files.load("path", file, {"Own": Own}, safe_mode=False)
    np.testing.assert_array_equal(model(np.float32([[1, -2]])), [[1, 3]])


def test_what_else_is_wrong(tmp_path):
    file = tmp_path / "m.keras"
    keras.Sequential([keras.Input((2,)), Own()]).save(file)
    with pytest.raises(ValueError, match="`model`: .*can load.*Your own Own must be in `custom_o"):
        keras_files.load("model", file)
    file.write_bytes(b"other")
    with pytest.raises(ValueError, match="`path`: expected a .keras file that tf_keras can load"):
        keras_files.load("path", file)


def test_code_in_a_file_of_keras_3_is_refused_alike(tmp_path):
    keras_3 = pytest.importorskip("keras", minversion="3.0")
    layers = [keras_3.Input((2,)), keras_3.layers.Lambda(lambda x: -x, name="minus")]
    keras_3.Sequential(layers).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="without Python code.*'minus'.*safe_mode=False"):
        load_keras3(tmp_path / "m.keras")
