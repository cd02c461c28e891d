"""Each private symbol of tf_keras, TensorFlow and tfmot is there; nothing else imports one."""

from __future__ import annotations

import importlib
import types

import pytest

from tfkd import keras_internals


@pytest.mark.parametrize("name", sorted(keras_internals.SYMBOLS))
def test_symbol_is_where_the_table_says(name):
    value = getattr(keras_internals, name)
    if isinstance(value, types.ModuleType):
        assert value is importlib.import_module(f"{keras_internals.SYMBOLS[name]}.{name}")
    else:
        assert callable(value) or name == "ExternalStatePolicy"
        assert value.__name__ == name


def test_unknown_symbol_is_an_attribute_error():
    with pytest.raises(AttributeError, match="keras_internals.*has no attribute 'Nothing'"):
        _ = keras_internals.Nothing
