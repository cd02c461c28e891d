"""What a fork does to native code: its threads are gone in the child, its locks stay.

What was opened before a fork may wait in the child for threads that are not there, and
so may its freeing. LiteRT and ONNX Runtime can open a file anew there. TensorFlow, once
it has run anything, and a GPU can't be used at all.
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


class _Forked(Protocol):
    def after_fork(self) -> None:
        """Called in the child, whose only thread is the one that forked."""


_living: weakref.WeakSet[Any] = weakref.WeakSet()
_tensorflow_is_dead = False


def tell(what: _Forked) -> None:
    """Has `what.after_fork()` called in the child of each fork, as long as it lives."""
    _living.add(what)


def keep_forever(what: Any) -> None:
    """Lets an object never be freed: its destructor would wait for threads that are gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))


def check_tensorflow() -> None:
    """Raises RuntimeError where TensorFlow was used before this process was forked."""
    if _tensorflow_is_dead:
        raise RuntimeError(
            "TensorFlow was used before this process was forked, and has lost its threads: it "
            f"would wait for ever. {WAY_OUT}"
        )


def _after_fork() -> None:
    global _tensorflow_is_dead
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if context is not None and getattr(context, "_initialized", True):
        _tensorflow_is_dead = True
    for what in list(_living):
        what.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
