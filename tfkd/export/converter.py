"""TensorFlow's TFLite converter in a process of its own, which may crash.

The converter is native code, and some models end the process that it runs in, with all
that was trained there. So it runs in a child process: a crash there is an error here,
and what memory it leaks is given back. Importing TensorFlow takes seconds: one child
serves all conversions of a process, and loads while the model is traced. It ends with
this process, after five idle minutes, or once it has grown beyond 1.5 GiB.

With the environment variable TFKD_CONVERT_IN_PROCESS=1 no child is started: for
debugging, and where a process may start no other.
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
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfkd.export import converter_child
from tfkd.export.converter_child import SIGNATURE, CrashingLoops
from tfkd.formats import litert

_IN_PROCESS = "TFKD_CONVERT_IN_PROCESS"
_MOST_BYTES = 3 << 29
_LAST_LINES = 5
# The child imports what this process would, and nothing of the user's program.
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)


class ConverterError(Exception):
    """The converter refused a model; its text is the converter's."""


class ConverterCrash(Exception):
    """The converter's process ended while it converted; its text says how."""


class _NoChild(Exception):
    """No process could be started; its text says why."""


class _Ended(Exception):
    """The process ended; `code` as `subprocess` has it, `said` its last words."""

    def __init__(self, code: int, said: str):
        super().__init__(code, said)
        self.code, self.said = code, said


class _Child:
    """A running process."""

    def __init__(self) -> None:
        reason = _unfit()
        if reason is not None:
            raise _NoChild(reason)
        self._said: Any = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        command = [sys.executable, "-c", _START, paths, converter_child.__file__]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                # The parent may hold all memory of the GPU. And its Ctrl-C is its own.
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._said.close()
            raise _NoChild(str(error)) from error
        self._ready = False

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Has a task done.

        Raises:
            _NoChild: if the process did not even start.
            _Ended: if it ended.
        """
        if not self._ready:
            try:
                self._ready = bool(self._read())
            except _Ended as end:
                raise _NoChild(f"it ended at once ({_how(end.code)}): {end.said}") from None
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
            size = self._said.seek(0, os.SEEK_END)
            self._said.seek(max(size - 4000, 0))
        text = self._said.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _Ended(code, "; ".join(lines[-_LAST_LINES:]))

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.forget()

    def forget(self) -> None:
        """Lets go of a process that has ended, or is another's."""
        if self.process.returncode is None:
            self.process.returncode = 0  # so that nobody waits for what is no child of ours
        for file in (self.process.stdin, self.process.stdout, self._said):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


_lock = threading.Lock()
_child: _Child | None = None
_given_up = False


def start() -> None:
    """Starts the process ahead, if there is none: it loads TensorFlow meanwhile."""
    if _asked_for() or _given_up or not _lock.acquire(blocking=False):
        return
    try:
        _running()
    except _NoChild:
        pass  # said when it is needed
    finally:
        _lock.release()


def convert(
    module: Any,
    function: Any,
    mode: str,
    types: tuple[str, str] = ("float32", "float32"),
    calibration: Mapping[str, np.ndarray] | None = None,
    batch: int = 1,
    custom_ops: bool = False,
) -> bytes:
    """Converts a function.

    Args:
        module: a `tf.Module` that holds the function and what it uses.
        function: a `tf.function` with an input signature, of tensors to a dict.
        mode: of `to_tflite`.
        types: of inputs and of outputs, for mode "int8".
        calibration: {input name: examples} for post-training quantization.
        batch: of the examples.
        custom_ops: whether the file may hold operations that TFLite does not have.

    Returns:
        The bytes of the file.

    Raises:
        CrashingLoops: if TensorFlow's calibration is known to crash on the model.
        ConverterError: if the converter refuses it.
        ConverterCrash: if the converter's process ends.
    """
    import tensorflow as tf

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
    if not (_asked_for() or _given_up):
        try:
            return _in_child(task)
        except _NoChild as error:
            _warn(str(error))
    try:
        with quiet():
            converter_child.convert(task)
    except CrashingLoops:
        raise
    except Exception as error:  # the converter has errors of many kinds
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
                answer = _running().ask(task)  # it had been idle for long
        except _Ended as end:
            _stop()
            raise ConverterCrash(_crash(end)) from None
        except BaseException:  # interrupted: what it does now is of no use
            _stop()
            raise
        if answer.get("memory", 0) > _MOST_BYTES:
            _stop()
    if "loops" in answer:
        raise CrashingLoops(answer["loops"])
    if "error" in answer:
        raise ConverterError(answer["error"])


def _running() -> _Child:
    """The process; a new one where it has ended."""
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
    """In the child of a fork: the process, and who holds the lock, are the parent's."""
    global _child, _lock
    _lock = threading.Lock()
    child, _child = _child, None
    if child is not None:
        child.forget()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _asked_for() -> bool:
    return os.environ.get(_IN_PROCESS, "").strip() not in ("", "0")


def _unfit() -> str | None:
    """Why no process can be started; None if one can."""
    if getattr(sys, "frozen", False):
        return "this program is frozen into an executable file"
    name = os.path.basename(sys.executable or "").lower()
    if not name.startswith(("python", "pypy")):
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
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return {"SIGSEGV": "segmentation fault", "SIGABRT": "abort"}.get(name, name)


def _crash(end: _Ended) -> str:
    killed = end.code == -9
    text = f"it ended by {_how(end.code)}"
    if killed:
        text += ", as the system does when memory runs out: convert on a machine with more of it"
    return f"{text}. Its last words: {end.said or 'none'}"


def _saved(calibration: Mapping[str, np.ndarray], folder: pathlib.Path) -> dict[str, str]:
    """Paths of the examples by input name, written as files that the child maps."""
    paths = {}
    for number, (name, array) in enumerate(calibration.items()):
        paths[name] = os.fspath(folder / f"samples_{number}.npy")
        np.save(paths[name], array, allow_pickle=False)
    return paths


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TensorFlow's chatter: C++ on standard error, logging, warnings."""
    import tensorflow as tf

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
