"""The command `tfkd`: one verb for each thing that people do with a model.

A verb is a module of this package with two functions: `flags(parser)` defines its flags, and
`run(args, terminal) -> int` does the work and returns an exit code. The module is imported
only when its verb is called, and imports neither TensorFlow nor what needs it at its top:
`run` checks the flags first, calls `tfkd.cli.quiet.import_tensorflow()`, and imports the rest.

`run` reports wrong combinations of flags as `UsageError`; what functions of tfkd raise for
bad data or models (ValueError, TypeError, OSError, ImportError) it lets through: `main`
prints the message and returns the exit code.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence

from tfkd.cli import exit_codes, quiet
from tfkd.cli.parsing import Verb, parse
from tfkd.cli.terminal import Terminal

VERBS = (
    Verb("compress", "tfkd.cli.compress", "Make a model small and fast: prune, quantize, export"),
    Verb("fit", "tfkd.cli.fit", "Train a small model from data, with a teacher's help"),
    Verb("run", "tfkd.cli.run", "Run a recipe"),
    Verb("resume", "tfkd.cli.resume", "Go on with a run that was interrupted"),
    Verb("inspect", "tfkd.cli.inspect", "Show what is in a model or a file"),
    Verb("compare", "tfkd.cli.compare", "Measure accuracy, latency and size of models"),
    Verb("predict", "tfkd.cli.predict", "Run a file on images or texts"),
    Verb("doctor", "tfkd.cli.doctor", "Check this installation, and say how to mend it"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: that of the process); returns the exit code.

    Example:
        >>> from tfkd import cli
        >>> cli.main(["--version"])
        tfkd 0.1.0
        0
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal may lack ×, – and █.
    # What else sets os.environ or warnings in this process gets them back.
    with warnings.catch_warnings():
        try:
            args, module = parse(argv, VERBS)
        except SystemExit as stop:
            return int(stop.code or 0)
        terminal = Terminal(args.json, args.quiet)
        args.command = shlex.join(["tfkd", *argv])
        quiet.environment()
        warnings.showwarning = lambda message, *_, **__: terminal.warn(str(message))
        # What others print does not belong to the result.
        with contextlib.redirect_stdout(sys.stderr):
            return _run(module.run, args, terminal)


def _run(run, args, terminal: Terminal) -> int:
    """Calls a verb's `run`, and turns what it raises into a message and an exit code."""
    try:
        if args.imports:
            quiet.import_tensorflow()
            from tfkd.recipes.python_data import import_module

            import_module(args.imports, f"--imports={args.imports}")
        return run(args, terminal)
    except KeyboardInterrupt:
        hint = terminal.resume_hint
        terminal.error("interrupted" + (f"; go on with: {hint}" if hint else ""))
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has left (`tfkd ... | head`): nothing more is printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exit_codes.DONE
    except Exception as error:
        code = code_of(error)
        if args.debug or code == exit_codes.FAULT:
            traceback.print_exc()
        if code == exit_codes.FAULT:
            terminal.error("This is a fault of tfkd; please report it with the lines above.")
        else:
            terminal.error(f"error: {_message(error, code)}")
        return code


def code_of(error: BaseException) -> int:
    """The exit code for an exception.

    Example:
        >>> code_of(ValueError("`path`: expected ...")), code_of(OSError(28, "No space left"))
        (3, 5)
    """
    if isinstance(error, exit_codes.UsageError):
        return exit_codes.USAGE
    if isinstance(error, exit_codes.NotMetError):
        return exit_codes.NOT_MET
    full = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in full:
        return exit_codes.NO_SPACE
    if any(kind.__name__ == "ResourceExhaustedError" for kind in type(error).__mro__):
        return exit_codes.NO_SPACE  # TensorFlow's, which is not imported for its name
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return exit_codes.BAD_INPUT
    return exit_codes.FAULT


def _message(error: BaseException, code: int) -> str:
    if code != exit_codes.NO_SPACE:
        return str(error)
    detail = str(error).splitlines()[:1]
    advice = "free some space, or choose another --output" if hasattr(error, "errno") else (
        "use smaller images, a smaller --batch_size or a smaller model"
    )  # fmt: skip
    return ": ".join(["out of space or memory", *detail]) + f". To mend it, {advice}."
