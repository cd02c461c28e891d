"""Keras's own distillation tests, run against tfkd with only the imports changed.

The files are read from the installed Keras 3.15 (its wheel carries them); no
copy is kept here. `keras` becomes tf_keras, with the one function of `keras.ops`
that the tests call; `TestCase` becomes TensorFlow's.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys
import types
import unittest

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfkd

REPLACED = {
    "import keras": "from keras_names import keras",
    "from keras.src.distillation.distillation_loss import FeatureDistillation": (
        "from tfkd.losses import FeatureDistillation"
    ),
    "from keras.src.distillation.distillation_loss import LogitsDistillation": (
        "from tfkd.losses import LogitsDistillation"
    ),
    "from keras.src.distillation.distiller import Distiller": "from tfkd import Distiller",
    "from keras.src.testing import TestCase": "from keras_names import TestCase",
}
EXPECTED_TESTS = {"distiller_test.py": 10, "distillation_loss_test.py": 5}


class KerasNames(types.ModuleType):
    """tf_keras under the name `keras`, with `ops.convert_to_tensor`."""

    ops = types.SimpleNamespace(convert_to_tensor=tf.convert_to_tensor)

    def __getattr__(self, name):
        return getattr(tf_keras, name)


def keras_test_file(name):
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        pytest.skip("Keras 3 is not installed")
    # Python 3.10 gets an older Keras 3, whose distillation is another.
    version = importlib.metadata.version("keras")
    if not version.startswith("3.15."):
        pytest.skip(f"Keras {version} is installed, not 3.15")
    path = pathlib.Path(spec.origin).parent / "src" / "distillation" / name
    if not path.exists():
        pytest.skip("the installed Keras 3 does not carry its distillation tests")
    return path


def rewritten(source):
    lines = source.splitlines()
    imports = [line for line in lines if line in REPLACED]
    foreign = [
        line
        for line in lines
        if line.startswith(("import ", "from ")) and "keras" in line and line not in REPLACED
    ]
    assert not foreign, f"imports that are not accounted for: {foreign}"
    assert len(imports) >= 4
    return "\n".join(REPLACED.get(line, line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED_TESTS))
@pytest.mark.filterwarnings("ignore:loss=")
def test_keras_own_distillation_tests_pass(name, monkeypatch):
    names = types.ModuleType("keras_names")
    names.keras = KerasNames("keras")
    names.TestCase = tf.test.TestCase
    monkeypatch.setitem(sys.modules, "keras_names", names)
    path = keras_test_file(name)
    module = types.ModuleType(f"compat_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(rewritten(path.read_text()), str(path), "exec"), module.__dict__)

    np.random.seed(0)
    tf.random.set_seed(0)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    result = unittest.TestResult()
    suite.run(result)
    problems = "\n".join(text for _, text in result.failures + result.errors)
    assert result.wasSuccessful(), problems
    # tf.test.TestCase adds one test of its own (test_session) to each class.
    ran = result.testsRun - len(result.skipped)
    assert ran >= EXPECTED_TESTS[name], f"only {ran} tests ran"
    assert tfkd.Distiller is module.Distiller
