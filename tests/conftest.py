"""One TensorFlow for all tests: quiet, Keras 2, two logical processors, seeded."""

from __future__ import annotations

import os
import time

STARTED = time.monotonic()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tfkd  # noqa: F401, I001  (before TensorFlow: it asks for Keras 2)

import pytest
import tensorflow as tf
from hypothesis import HealthCheck, settings

# These hold no examples; two of one name can't both be collected for them.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

# Tests that state no number of cases of their own take one of these two, the
# second with `--hypothesis-profile=all`. A case may trace or convert a model.
health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("few", deadline=None, max_examples=8, suppress_health_check=health)
settings.register_profile("all", deadline=None, max_examples=60, suppress_health_check=health)
settings.load_profile("few")


def pytest_addoption(parser):
    """Adds --minutes, which bounds the slow tests of a change."""
    parser.addoption("--minutes", type=float, help="skip the tests that would begin later")


def pytest_runtest_setup(item):
    """Skips what would begin after --minutes."""
    minutes = item.config.getoption("minutes")
    if minutes is not None and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"more than {minutes:g} minutes have passed (--minutes)")


def pytest_configure():
    """Splits the processor in two, for strategies; only possible before first use."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same seeds (Python, NumPy, TensorFlow)."""
    import tf_keras as keras

    keras.utils.set_random_seed(7)


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy over two processors for all tests.

    TensorFlow numbers collective operations anew in each strategy and keeps
    their shapes for the process: a second strategy with other shapes fails.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
