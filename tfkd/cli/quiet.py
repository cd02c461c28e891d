"""Import of TensorFlow without its log lines, and without those of its libraries."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

# What TensorFlow's C++ libraries write to file descriptor 2 whatever the log level is: log
# lines of the levels INFO and WARNING from before absl::InitializeLog, and that they do so.
_NOISE = re.compile(
    rb"(WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\]"  # glog: I0000 00:00:1795.0 195 port.cc:1]
    # There is no GPU: 303 comes from the library that stands in for CUDA's.
    rb"|E\d{4} .*failed call to cuInit: .*\(303\)"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] )"  # TensorFlow's: 2026-01-01 00:00:00.0: I ...
)
_LIBRARIES = r"(tensorflow|tf_keras|keras|tensorflow_model_optimization|google|jax|numpy)\b"


def is_noise(line: bytes) -> bool:
    """Whether a line is a log message of TensorFlow's libraries below the level ERROR.

    Example:
        >>> is_noise(b"I0000 00:00:1795818324.038991   19501 port.cc:153] oneDNN is on.")
        True
        >>> is_noise(b"E0000 00:00:1795818324.038991   19501 dso_loader.cc:9] no such file")
        False
    """
    return _NOISE.match(line) is not None


@contextlib.contextmanager
def without_log_lines() -> Iterator[None]:
    """Leaves out noise that is written to file descriptor 2; passes on all else afterwards."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # sys.stderr may be closed
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            rest = b"".join(line for line in held if not is_noise(line))
            if rest:
                os.write(2, rest)


def environment() -> None:
    """Sets what has to be set before TensorFlow is imported; what the user set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # Python warnings, also those of processes that are started from here.
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", module=_LIBRARIES)


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras 2 without their log lines; takes two seconds, once.

    Each verb calls this after it has checked its flags and before it imports modules of tfkd
    that need TensorFlow.

    Raises:
        ImportError: if TensorFlow can't be imported, or `tf.keras` is Keras 3.
    """
    if "tensorflow" in sys.modules and "tf_keras" in sys.modules:
        return
    environment()
    with without_log_lines():
        import tensorflow as tf
        import tf_keras  # noqa: F401
        from absl import logging

        tf.get_logger().setLevel("ERROR")
        logging.set_verbosity(logging.ERROR)
        tf.config.list_physical_devices()  # looks for GPUs, and logs that there are none
