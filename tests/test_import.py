"""`import tfkd`: fast, without TensorFlow, and clear about the wrong Keras."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfkd

ROOT = Path(tfkd.__file__).resolve().parent.parent


def run(program: str, **environment: str) -> str:
    """Runs a program in a new Python, from the checkout; returns its last line."""
    env = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_import_takes_under_a_tenth_of_a_second():
    program = (
        "import time\nstart = time.perf_counter()\nimport tfkd\nprint(time.perf_counter() - start)"
    )
    # The best of five: what else runs on the machine is not tfkd's.
    assert min(float(run(program)) for _ in range(5)) < 0.1


def test_import_loads_neither_tensorflow_nor_keras_nor_numpy():
    program = (
        "import sys, tfkd\n"
        "dir(tfkd), tfkd.__version__\n"
        "print(sorted({'tensorflow', 'tf_keras', 'keras', 'numpy'} & set(sys.modules)))"
    )
    assert run(program) == "[]"


def test_schedules_checks_and_artifacts_load_no_tensorflow():
    program = (
        "import sys, tfkd\n"
        "tfkd.schedules.Linear(1, 0, 0, 10)(5), tfkd.checks, tfkd.artifacts\n"
        "print(sorted({'tensorflow', 'tf_keras', 'keras'} & set(sys.modules)))"
    )
    assert run(program) == "[]"


@pytest.mark.slow
def test_callbacks_load_tfmot_only_with_the_callback_that_needs_it():
    program = (
        "import sys, tfkd\n"
        "names = [tfkd.callbacks.TensorBoard.__name__]\n"
        "before = 'tensorflow_model_optimization' in sys.modules\n"
        "names.append(tfkd.callbacks.FilterDecay.__name__)\n"
        "print(before, 'tensorflow_model_optimization' in sys.modules, *names)"
    )
    assert run(program) == "False True TensorBoard FilterDecay"


def test_dir_lists_all_public_names_of_every_package():
    for package in ("tfkd", *(f"tfkd.{name}" for name in tfkd._MODULES)):
        module = importlib.import_module(package)
        assert set(getattr(module, "__all__", ())) <= set(dir(module)), package
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{package}.{name}"


def test_import_asks_for_keras_2_unless_the_user_has_chosen():
    program = "import os, tfkd; print(os.environ['TF_USE_LEGACY_KERAS'])"
    assert run(program) == "1"
    assert run(program, TF_USE_LEGACY_KERAS="0") == "0"


def test_tensorflow_imported_first_is_fine_while_tf_keras_is_unused():
    program = (
        "import tensorflow as tf, tfkd\ntfkd.losses\nprint(tf.keras.Model.__module__.split('.')[0])"
    )
    assert run(program) == "tf_keras"


@pytest.mark.slow
def test_keras_3_as_tf_keras_gives_a_clear_error_and_only_where_it_matters():
    program = (
        "import tensorflow as tf\n"
        "tf.keras.Model\n"
        "import tfkd\n"
        "value = tfkd.schedules.Constant(2)(0)\n"
        "try:\n"
        "    tfkd.Distiller\n"
        "except ImportError as error:\n"
        "    print(value, error)"
    )
    message = run(program)
    assert message.startswith("2.0 tfkd.Distiller needs Keras 2 (tf_keras)")
    for part in ("is Keras 3", "import tfkd", "TF_USE_LEGACY_KERAS=1"):
        assert part in message


def test_dir_lists_the_public_names():
    assert {"Distiller", "frozen_copy", "losses", "schedules", "__version__"} <= set(dir(tfkd))
    assert dir(tfkd) == sorted(tfkd.__all__)


@pytest.mark.parametrize("name", [n for n in dir(tfkd) if n != "__version__"])
def test_public_name_loads(name):
    value = getattr(tfkd, name)
    module = getattr(value, "__module__", None) or value.__name__
    assert module.startswith("tfkd.")
    assert getattr(tfkd, name) is value


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'tfkd' has no attribute 'Destiller'"):
        tfkd.Destiller  # noqa: B018
    with pytest.raises(ImportError):
        from tfkd import nothing  # noqa: F401
