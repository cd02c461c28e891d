"""Calls of several threads run together, without a thread of its own and without waiting.

Who finds nobody running becomes the leader, takes what has queued up, runs it as one
batch, hands the results out and passes the lead on. A caller alone runs at once; under
load batches grow by themselves, since calls queue up while one is running.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class _Request:
    """One caller's arrays, and what comes of them."""

    __slots__ = ("arrays", "count", "done", "error", "gate", "gone", "lead", "results", "shapes")

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays
        self.count = len(arrays[0])
        self.shapes = [array.shape[1:] for array in arrays]
        self.results: Sequence[np.ndarray] = ()
        self.error: Exception | None = None
        self.done = self.lead = self.gone = False
        self.gate = threading.Lock()  # closed until it is done or is to lead
        self.gate.acquire()


class Combiner:
    """Runs what several threads submit, up to `most` examples at once.

    Args:
        run: arrays of a batch → results; called by one thread at a time.
        most: examples in one batch.
    """

    def __init__(self, run: Run, most: int):
        self._run, self._most = run, most
        self._lock = threading.Lock()
        self._queue: collections.deque[_Request] = collections.deque()
        self._led = False

    def submit(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs checked arrays of up to `most` examples; raises what their run raises."""
        with self._lock:
            alone = not self._led
            if alone:
                self._led = True
            else:
                request = _Request(arrays)
                self._queue.append(request)
        if alone:
            try:
                return self._run(arrays)
            finally:
                self._pass_on()
        try:
            request.gate.acquire()
        except BaseException:
            self._leave(request)
            raise
        if not request.done:
            self._lead()
        if request.error is not None:
            raise request.error
        return request.results

    def _lead(self) -> None:
        """Runs the head of the queue, and what fits beside it."""
        group: list[_Request] = []
        try:
            with self._lock:
                total, shapes = 0, self._queue[0].shapes
                while self._queue:
                    head = self._queue[0]
                    if total + head.count > self._most or head.shapes != shapes:
                        break
                    group.append(self._queue.popleft())
                    total += head.count
            self._serve(group)
        finally:
            # The lead first: its next batch runs while this one's callers wake up.
            left = [request for request in group[1:] if not request.done]
            self._pass_on(left)
            for request in group[1:]:
                if request.done:
                    request.gate.release()

    def _serve(self, group: list[_Request]) -> None:
        """Gives each request its results or its error."""
        try:
            if len(group) == 1:
                results = self._run(group[0].arrays)
            else:
                joined = zip(*[request.arrays for request in group], strict=True)
                results = self._run([np.concatenate(arrays) for arrays in joined])
        except Exception as error:
            if len(group) == 1:
                group[0].error, group[0].done = error, True
                return
            for request in group:  # whose fault it is shows when each runs alone
                self._serve([request])
            return
        start = 0
        for request in group:
            end = start + request.count
            whole = len(group) == 1
            # Copies, so that no caller holds the whole batch or sees another's rows.
            request.results = results if whole else [r[start:end].copy() for r in results]
            request.done = True
            start = end

    def _pass_on(self, left: Sequence[_Request] = ()) -> None:
        """Makes the head of the queue the leader; `left` were taken and not served."""
        with self._lock:
            self._queue.extendleft(reversed(left))
            while self._queue and self._queue[0].gone:
                self._queue.popleft()
            if self._queue:
                head = self._queue[0]
                head.lead = True
                head.gate.release()
            else:
                self._led = False

    def _leave(self, request: _Request) -> None:
        """Takes out a request whose thread was interrupted while it waited."""
        with self._lock:
            request.gone = True
            lead = request.lead and not request.done
        if lead:
            self._pass_on()


def split(arrays: Sequence[np.ndarray], most: int, run: Run) -> list[Any]:
    """Runs (N, ...) arrays `most` examples at a time; returns the results joined."""
    count = len(arrays[0])
    parts = [run([a[s : s + most] for a in arrays]) for s in range(0, count, most)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
