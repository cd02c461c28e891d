"""Processes of a test's own, as forks of one that has imported TensorFlow and not used it.

That saves each of them the seconds of an import.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_MODULES = ["tfkd", "tensorflow", "tf_keras", "tensorflow_model_optimization"]
# Where nothing can be forked, each process imports them itself.
_METHODS = multiprocessing.get_all_start_methods()
_SERVER = multiprocessing.get_context("forkserver" if "forkserver" in _METHODS else "spawn")
_SERVER.set_forkserver_preload(_MODULES)


def _main(function, args, environment, out, err):
    """What a fork does: as a script, with its output in two files."""
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY), number)
    # The streams that a fork inherits may be other files than 1 and 2.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.exit(code)


class Fork:
    """A process that calls `function(*args)`, which pickle must be able to name.

    Args:
        function: at the top of a module.
        *args: what pickle can hold.
        **environment: variables to set.
    """

    def __init__(self, function, *args, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("out", "err")]
        for file in self._files:
            file.touch()
        task = (function, args, environment, *map(str, self._files))
        self.process = _SERVER.Process(target=_main, args=task)
        self.process.start()

    def wait(self, timeout=300) -> subprocess.CompletedProcess:
        """What it printed, and its return code; it is killed if it takes longer."""
        try:
            self.process.join(timeout)
            if self.process.exitcode is None:
                raise subprocess.TimeoutExpired(str(self.process), timeout)
            printed = [file.read_text() for file in self._files]
            return subprocess.CompletedProcess(self.process, self.process.exitcode, *printed)
        finally:
            self.process.kill()
            self._folder.cleanup()
