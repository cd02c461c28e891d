"""Dynamic batching of concurrent calls, without a worker thread and without delays.

A thread that finds no leader becomes the leader: it takes the queued calls, runs them as
one batch, distributes the results, and soon passes the lead on. A single caller runs at
once; under load batches grow by themselves, since calls queue up while one is running.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# A thread leads for at most this many batches, so that its own caller is not delayed.
_BATCHES = 4

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class _Request:
    """A call that is queued: its arrays, and later its results or error."""

    __slots__ = ("arrays", "count", "done", "error", "gate", "gone", "lead", "results", "shapes")

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays
        self.count = len(arrays[0])
        self.shapes = [array.shape[1:] for array in arrays]
        self.results: Sequence[np.ndarray] = ()
        self.error: Exception | None = None
        self.done = self.lead = self.gone = False
        self.gate = threading.Lock()  # Released when the call is done or is to lead.
        self.gate.acquire()


class Combiner:
    """Combines the calls of several threads into batches of up to `most` examples.

    Args:
        run: maps the arrays of a batch to results; called by one thread at a time.
        most: largest number of examples in one batch.
    """

    def __init__(self, run: Run, most: int):
        self._run, self._most = run, most
        self._lock = threading.Lock()
        self._queue: collections.deque[_Request] = collections.deque()
        self._led = False

    def submit(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Runs arrays of up to `most` examples; raises the exception of their run."""
        with self._lock:
            alone = not self._led
            if alone:
                self._led = True
            else:
                request = _Request(arrays)
                self._queue.append(request)
        if alone:
            try:
                results = self._run(arrays)
            except BaseException:
                self._pass_on()
                raise
            self._lead()
            return results
        try:
            request.gate.acquire()
        except BaseException:
            self._leave(request)
            raise
        if not request.done:
            self._lead(request)
        if request.error is not None:
            raise request.error
        return request.results

    def _lead(self, own: _Request | None = None) -> None:
        """Runs queued calls for a few batches, then passes the lead on.

        Running several batches in one thread saves thread switches, during which nothing
        would run: the callers of the last batch wake up meanwhile. After a few batches
        the thread returns to its own caller, who has been waiting.
        """
        group: list[_Request] = []
        try:
            for _ in range(_BATCHES):
                group = self._take()
                if not group:
                    return
                self._serve(group)
                for request in group:
                    if request is not own:
                        request.gate.release()
                group = []
        except BaseException:
            for request in group:
                if request.done and request is not own and request.gate.locked():
                    request.gate.release()
            self._pass_on([r for r in group if not r.done and r is not own])
            raise
        self._pass_on()

    def _take(self) -> list[_Request]:
        """Takes the next batch from the queue; if there is none, gives up the lead."""
        group: list[_Request] = []
        total = 0
        with self._lock:
            while self._queue:
                head = self._queue[0]
                if not head.gone:
                    if group and (
                        total + head.count > self._most or head.shapes != group[0].shapes
                    ):
                        break
                    group.append(head)
                    total += head.count
                self._queue.popleft()
            if not group:
                self._led = False
        return group

    def _serve(self, group: list[_Request]) -> None:
        """Runs requests as one batch; sets the results or the error of each."""
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
            for request in group:  # One by one, so that only faulty requests fail.
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
        """Makes the head of the queue the leader; puts back `left`, which were not served."""
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
        """Withdraws a request whose thread was interrupted while it waited."""
        with self._lock:
            request.gone = True
            lead = request.lead and not request.done
        if lead:
            self._pass_on()


def split(arrays: Sequence[np.ndarray], most: int, run: Run) -> list[Any]:
    """Runs (N, ...) arrays `most` examples at a time; returns the concatenated results."""
    parts = [run([a[s : s + most] for a in arrays]) for s in range(0, len(arrays[0]), most)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
