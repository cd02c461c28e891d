"""TensorFlow's TFLite converter in a child process, so that its crashes become exceptions.

The converter is native code, and some models crash it, which would lose all that was
trained in the same process. In a child process a crash is an exception in the parent,
and leaked memory is freed with the child. Since importing TensorFlow takes seconds, one
child serves all conversions of a process, and starts while the model is traced. It ends
with its parent, after five idle minutes, or once it uses more than 1.5 GiB.

With the environment variable TFKD_CONVERT_IN_PROCESS=1 no child is started: for
debugging, and where a process must not start others.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import checks
from tfkd.export import converter_child
from tfkd.export.converter_child import SIGNATURE, CrashingLoops
from tfkd.formats import litert

_IN_PROCESS = "TFKD_CONVERT_IN_PROCESS"
_MOST_BYTES = 3 << 29  # 1.5 GiB
_LAST_LINES = 5
# The child uses this process's search path, but does not import the user's main module.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)


class ConverterError(Exception):
    """The converter rejected a model; the text is the converter's message."""


class ConverterCrash(Exception):
    """The converter's process died during a conversion; the text tells how."""


class _NoChild(Exception):
    """No child process could be started; the text tells why."""


class _Ended(Exception):
    """The child ended with the return code `code`; `output` is the end of its stderr."""

    def __init__(self, code: int, output: str):
        super().__init__(code, output)
        self.code, self.output = code, output


class _Child:
    """A running child process."""

    def __init__(self) -> None:
        reason = _why_no_child()
        if reason is not None:
            raise _NoChild(reason)
        self._stderr: Any = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        command = [sys.executable, "-c", _START, paths, converter_child.__file__]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                # No GPU: the parent may have allocated all its memory. A session of its own:
                # Ctrl-C in the parent must not reach the child.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._stderr.close()
            raise _NoChild(str(error)) from error
        self._ready = False

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a task to the child and waits for its answer.

        Raises:
            _NoChild: if the child did not start.
            _Ended: if the child ended.
        """
        if not self._ready:
            try:
                self._ready = bool(self._read())
            except _Ended as end:
                raise _NoChild(f"it ended at once ({_how(end.code)}): {end.output}") from None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(task).encode("ascii") + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._end() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._end()
        return dict(json.loads(line))

    def _end(self) -> _Ended:
        code = self.process.wait()
        with contextlib.suppress(OSError, ValueError):
            size = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(size - 4000, 0))  # The last lines are enough.
        text = self._stderr.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _Ended(code, "; ".join(lines[-_LAST_LINES:]))

    def close(self) -> None:
        """Kills the child."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Closes the pipes to a child that has ended, or that belongs to the forking process."""
        if self.process.returncode is None:
            self.process.returncode = 0  # Keeps `Popen` from waiting for another's child.
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


_lock = threading.Lock()
_child: _Child | None = None
_given_up = False


def start() -> None:
    """Starts the child in advance, so that it loads TensorFlow in the background."""
    if _in_process() or _given_up or not _lock.acquire(blocking=False):
        return
    try:
        _running()
    except _NoChild:
        pass  # `convert` warns of it.
    finally:
        _lock.release()


def convert(
    module: tf.Module,
    function: Callable[..., Any],
    mode: str,
    types: tuple[str, str] = ("float32", "float32"),
    calibration: Mapping[str, np.ndarray] | None = None,
    batch: int = 1,
    custom_ops: bool = False,
) -> bytes:
    """Converts a function.

    Args:
        module: a `tf.Module` that tracks the function and its variables.
        function: a `tf.function` with an input signature that returns a dict of tensors.
        mode: mode of `to_tflite`.
        types: dtypes of the inputs and of the outputs, for mode "int8".
        calibration: examples by input name for post-training quantization.
        batch: batch size of the calibration.
        custom_ops: whether the file may contain operations that TFLite lacks.

    Returns:
        The bytes of the file.

    Raises:
        CrashingLoops: if TensorFlow's calibration is known to crash on the model.
        ConverterError: if the converter rejects it.
        ConverterCrash: if the converter's process dies.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).absolute()
        with quiet():
            saved = os.fspath(folder / "model")
            tf.saved_model.save(module, saved, signatures={SIGNATURE: function})
        result = folder / "result.tflite"
        task = {
            "folder": saved,
            "result": os.fspath(result),
            "mode": mode,
            "types": types,
            "samples": None if calibration is None else _saved(calibration, folder),
            "batch": batch,
            "custom_ops": custom_ops,
        }
        _run(task)
        return result.read_bytes()


def _run(task: Mapping[str, Any]) -> None:
    if not (_in_process() or _given_up):
        try:
            return _in_child(task)
        except _NoChild as error:
            _warn(str(error))
    try:
        with quiet():
            converter_child.convert(task)
    except CrashingLoops:
        raise
    except Exception as error:  # The converter raises exceptions of many types.
        raise ConverterError(str(error)) from error


def _in_child(task: Mapping[str, Any]) -> None:
    with _lock:
        try:
            try:
                answer = _running().ask(task)
            except _Ended as end:
                _stop()
                if end.code:
                    raise
                answer = _running().ask(task)  # The old child ended after its idle time.
        except _Ended as end:
            _stop()
            raise ConverterCrash(_crash(end)) from None
        except BaseException:  # After an interrupt its answer would be out of step.
            _stop()
            raise
        if answer.get("memory", 0) > _MOST_BYTES:
            _stop()
    if "loops" in answer:
        raise CrashingLoops(answer["loops"])
    if "error" in answer:
        raise ConverterError(answer["error"])


def _running() -> _Child:
    """The child process; a new one if the last has ended."""
    global _child
    if _child is not None and _child.process.poll() is not None:
        _stop()
    if _child is None:
        _child = _Child()
    return _child


def _stop() -> None:
    global _child
    child, _child = _child, None
    if child is not None:
        child.close()


def _forked() -> None:
    """Runs in the child of a fork: the converter's process and the lock are the parent's."""
    global _child, _lock
    _lock = threading.Lock()
    child, _child = _child, None
    if child is not None:
        child.forget()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _in_process() -> bool:
    return os.environ.get(_IN_PROCESS, "").strip() not in ("", "0")


def _why_no_child() -> str | None:
    """The reason why no child can be started; None if one can."""
    if getattr(sys, "frozen", False):
        return "this program is frozen into an executable file"
    if not os.path.basename(sys.executable or "").lower().startswith(("python", "pypy")):
        return f"sys.executable is {sys.executable!r}, which is no Python"
    if not os.path.isfile(converter_child.__file__):
        return f"there is no file {converter_child.__file__}"
    return None


def _warn(reason: str) -> None:
    global _given_up
    if not _given_up:
        _given_up = True
        text = (
            "TensorFlow's converter runs in this process, since it could not be given one of its "
            f"own: {reason}. If it crashes, so does this process."
        )
        checks.warn(text, RuntimeWarning)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return {"SIGSEGV": "segmentation fault", "SIGABRT": "abort"}.get(name, name)


def _crash(end: _Ended) -> str:
    killed = end.code == -9  # SIGKILL, which the system's out-of-memory killer sends.
    text = f"it ended by {_how(end.code)}"
    if killed:
        text += ", as the system does when memory runs out: convert on a machine with more of it"
    return f"{text}. Its last output: {end.output or 'none'}"


def _saved(calibration: Mapping[str, np.ndarray], folder: pathlib.Path) -> dict[str, str]:
    """Writes the examples to .npy files, which the child maps; returns paths by input name."""
    paths = {}
    for number, (name, array) in enumerate(calibration.items()):
        paths[name] = os.fspath(folder / f"samples_{number}.npy")
        np.save(paths[name], array, allow_pickle=False)
    return paths


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TensorFlow: C++ output on standard error, logging, Python warnings."""
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), litert.quiet_stderr():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
