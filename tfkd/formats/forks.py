"""Fork safety of native runtimes: in the child of a fork their threads are gone.

Objects opened before a fork, and also their destructors, may wait in the child for
threads that no longer exist. LiteRT and ONNX Runtime can open a file again there.
TensorFlow, once it has run anything, and GPUs can't be used at all.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from typing import Any, Protocol

WAY_OUT = (
    "Start the child with multiprocessing.get_context('spawn') or 'forkserver': a Predictor that "
    "is passed to it opens its file anew there. Or fork first, before TensorFlow is used."
)


class _ForkAware(Protocol):
    def after_fork(self) -> None:
        """Called in the child, whose only thread is the one that forked."""


_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_tensorflow_unusable = False


def register(target: _ForkAware) -> None:
    """Registers an object: `target.after_fork()` is called in the child of every fork."""
    _registered.add(target)


def keep_forever(target: object) -> None:
    """Leaks an object on purpose: its destructor would wait for threads that are gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(target))


def check_tensorflow() -> None:
    """Raises RuntimeError if TensorFlow was used before this process was forked."""
    if _tensorflow_unusable:
        raise RuntimeError(
            "TensorFlow was used before this process was forked, and has lost its threads: it "
            f"would wait for ever. {WAY_OUT}"
        )


def _after_fork() -> None:
    global _tensorflow_unusable
    # Only an initialized eager context has threads; importing TensorFlow starts none.
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if context is not None and getattr(context, "_initialized", True):
        _tensorflow_unusable = True
    for target in list(_registered):
        target.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
