"""`Terminal`: messages and progress on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, TextIO, TypeVar

from tfkd import results

Item = TypeVar("Item")

_WIDTH = 24  # of a bar in characters
_REDRAW = 0.1  # seconds between two states of a bar
_LINE = 5.0  # seconds between two lines, where there is no terminal
_STEP = 0.1  # or this share of the whole


class Terminal:
    """What a verb prints with.

    Args:
        as_json: `print` prints JSON, and there is no progress.
        quiet: no messages and no progress; warnings and results remain.
        out: where results go; default standard output.

    Attributes:
        resume_hint: the command that continues after an interruption; a verb sets it as soon
            as there is something to continue with.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False, out: TextIO | None = None):
        self.as_json = as_json
        self.quiet = quiet
        self.resume_hint: str | None = None
        self._out = sys.stdout if out is None else out
        self._began = time.monotonic()
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """Prints a message, with the seconds since the start, on standard error."""
        if not self.quiet:
            self._error_line(f"[{time.monotonic() - self._began:5.1f} s] {text}")

    def warn(self, text: str) -> None:
        """Prints a warning on standard error, each text once, also with --quiet."""
        if text not in self._warned:
            self._warned.add(text)
            self._error_line(f"warning: {text}")

    def error(self, text: str) -> None:
        """Prints an error on standard error."""
        self._error_line(text)

    def print(self, result: results.Result | Mapping[str, Any]) -> None:
        """Prints the result of a verb on standard output: text, or with --json one object.

        Call it once: standard output then holds one JSON object and nothing else.
        """
        if self.as_json:
            text = json.dumps(results.plain(result), ensure_ascii=False, indent=2)
        elif isinstance(result, Mapping):
            rows = [(name, value) for name, value in results.plain(result).items()]
            text = results.Grid((), rows, left=2).text()
        else:
            text = result.text()
        print(text, file=self._out, flush=True)

    @contextlib.contextmanager
    def progress(self, total: int | None, label: str) -> Iterator[Progress]:
        """A bar on a terminal, else a line every few seconds; nothing with --json or --quiet.

        Example:
            >>> from tfkd.cli.terminal import Terminal
            >>> with Terminal(quiet=True).progress(2, "Reading") as bar:
            ...     for _ in range(2):
            ...         bar.advance()
            >>> bar.done
            2
        """
        bar = Progress(total, label, silent=self.as_json or self.quiet)
        try:
            yield bar
        finally:
            bar.close()

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yields the items with their `progress`; `total` is needed if they have no length."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.progress(total, label) as bar:
            for item in items:
                yield item
                bar.advance()

    @staticmethod
    def _error_line(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """How much of something is done; `Terminal.progress` makes it.

    Args:
        total: number of steps; None: not known.
        label: what is done.
        silent: print nothing.
    """

    def __init__(self, total: int | None, label: str, silent: bool = False):
        self.total, self.label, self.done = total, label, 0
        self._silent = silent
        self._is_bar = sys.stderr.isatty()
        self._began = self._printed = time.monotonic()
        self._first: tuple[int, float] | None = None  # steps and time of the first count
        self._printed_share = 0.0
        self._width = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts further steps; `note` is shown behind the bar, such as a loss."""
        self.update(self.done + steps, note)

    def update(self, done: int, note: str = "") -> None:
        """Sets the number of steps that are done."""
        self.done = done
        if self._silent:
            return
        now = time.monotonic()
        self._first = self._first or (done, now)
        share = done / self.total if self.total else 0.0
        waited = now - self._printed
        if self._is_bar:
            if waited >= _REDRAW or done == self.total:
                self._draw(share, now, note)
        elif waited >= _LINE or (share - self._printed_share >= _STEP and waited >= 1):
            self._printed_share = share
            print(self._state(share, now, note), file=sys.stderr, flush=True)
            self._printed = now

    def close(self) -> None:
        """Removes the bar."""
        if self._width and not self._silent:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def _draw(self, share: float, now: float, note: str) -> None:
        text = self._state(share, now, note, bar=True)
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width, self._printed = len(text), now

    def _state(self, share: float, now: float, note: str, bar: bool = False) -> str:
        elapsed = now - self._began
        if not self.total:
            return f"{self.label}: {self.done:,}, {duration(elapsed)}" + (note and f", {note}")
        filled = round(_WIDTH * min(share, 1.0))
        drawn = "█" * filled + "░" * (_WIDTH - filled) + " " if bar else ""
        # The first count holds compiling, and what a resumed run had done before: not its pace.
        done, since = self._first or (0, self._began)
        steps = self.done - done
        left = (now - since) * (self.total - self.done) / steps if steps else None
        more = "" if left is None else f", {duration(left)} left"
        text = f"{self.label}: {drawn}{self.done:,} of {self.total:,} ({share:.0%}){more}"
        return text + (note and f", {note}")


def duration(seconds: float) -> str:
    """Seconds as text.

    Example:
        >>> duration(8.4), duration(75), duration(7500)
        ('8 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
