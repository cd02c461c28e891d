"""Interleaved latency benchmark: median, percentiles and throughput of callables.

The speed of a machine drifts with clock frequency and other load. Interleaved runs
are exposed to the same drift, so their ratios hold even if the times do not. But they
also find the CPU caches as another runner left them: a call of TensorFlow doubles the
time of a small LiteRT model that follows it. So each timed call follows an untimed one
of the same runner, and the order is random, for what a single call does not restore.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfkd import checks

_BUSY = 1.5  # a median above this times the 10th percentile is that of a disturbed measurement
_ENOUGH = 20  # calls from which a 10th percentile says something
_PACKAGES = ("tfkd", "tensorflow", "tf_keras", "numpy", "ai-edge-litert", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Latency:
    """Latency of one call over all measured runs.

    Percentiles interpolate linearly between the two nearest runs (NumPy's
    `method="linear"`): with n sorted times, percentile q lies at index
    (n − 1)·q/100. With fewer than 100 runs p99 is close to the slowest run.

    Attributes:
        p50: median, milliseconds.
        p90: 90th percentile, milliseconds.
        p99: 99th percentile, milliseconds.
        mean: arithmetic mean, milliseconds.
        runs: number of measured runs.
        spread: half of the interquartile range, milliseconds.
        times: the measured times in milliseconds, in order of measurement; () if not kept.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    runs: int
    spread: float = 0.0
    times: tuple[float, ...] = dataclasses.field(
        default=(), repr=False, compare=False, metadata={"saved": True}
    )

    @classmethod
    def of(cls, milliseconds: ArrayLike) -> Latency:
        """Summarises measured times in milliseconds.

        Example:
            >>> from tfkd.report import Latency
            >>> Latency.of([1.0, 2.0, 3.0, 4.0]).p50
            2.5
        """
        times = np.asarray(milliseconds, np.float64)
        if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
            raise checks.value_error("milliseconds", "at least one finite time", milliseconds)
        ends = np.percentile(times, (25, 50, 75, 90, 99), method="linear")
        p25, p50, p75, p90, p99 = (float(end) for end in ends)
        kept = tuple(np.round(times, 6).tolist())
        return cls(p50, p90, p99, float(times.mean()), int(times.size), (p75 - p25) / 2, kept)

    def throughput(self, batch: int = 1) -> float:
        """Examples per second for calls with `batch` examples: batch / mean.

        Example:
            >>> from tfkd.report import Latency
            >>> Latency.of([3.0, 5.0]).throughput(batch=32)
            8000.0
        """
        return 1e3 * checks.positive_int("batch", batch) / self.mean


def latency(
    runners: Mapping[str, Callable[..., Any]],
    data: Any = None,
    *,
    warmup: int = 10,
    runs: int = 200,
    seconds: float | None = None,
) -> dict[str, Latency]:
    """Times callables in turns, with warm caches.

    Each round takes the runners in another, random order (the same in every measurement)
    and calls each of them twice: the first call brings its code and weights back into the
    CPU caches, the second is timed. Python's garbage collector is off during the
    measurement. A runner that takes `training` gets `training=False`. Variables that
    change while a model runs are restored, with a warning.

    Args:
        runners: name → callable. Models and layers are called eagerly in Python: to
            measure them as deployed, use `latency_table`.
        data: the argument of every runner; None: they are called without arguments.
        warmup: unmeasured rounds before the measurement.
        runs: measured rounds.
        seconds: time limit: stop after the round in which it is exceeded; None: no
            limit.

    Returns:
        Name → `Latency`, all with the same number of runs.

    Raises:
        ValueError: if there is no runner or a number is out of range.
        TypeError: if a runner is not callable, or is a Keras 3 model or a Distiller.

    Example:
        >>> from tfkd import report
        >>> times = report.latency({"sum": sum, "sorted": sorted}, [3, 1, 2], runs=20)
        >>> times["sum"].runs, times["sum"].p50 <= times["sum"].p99
        (20, True)
    """
    from tfkd.networks.accept import refuse_distiller, refuse_keras_3
    from tfkd.report import inference

    checks.instance("runners", runners, Mapping, "a dict of name → callable")
    for name, runner in runners.items():
        argument = f"runners[{name!r}]"
        refuse_distiller(argument, runner)
        refuse_keras_3(argument, runner, "a callable of Python")
        checks.function(argument, runner)
    watch = inference.Unchanged({name: [runner] for name, runner in runners.items()})
    calls = {name: inference.in_inference(runner) for name, runner in runners.items()}
    try:
        if data is not None:
            calls = {name: functools.partial(call, data) for name, call in calls.items()}
        return in_turns(calls, warmup, runs, seconds)
    finally:
        for name in runners:
            watch.check(f"runners[{name!r}]", name)


def in_turns(
    runners: Mapping[str, Callable[[], Any]], warmup: int, runs: int, seconds: float | None
) -> dict[str, Latency]:
    """Implements `latency` for checked calls without arguments in inference mode."""
    if not runners:
        raise checks.value_error("runners", "at least one callable", runners)
    checks.non_negative_int("warmup", warmup)
    checks.positive_int("runs", runs)
    checks.optional(checks.positive, "seconds", seconds)
    names = list(runners)
    for _ in range(warmup):
        for name in names:
            runners[name]()
    times: dict[str, list[int]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        limit = None if seconds is None else time.perf_counter() + seconds
        rng = np.random.default_rng(0)
        for _ in range(runs):
            for place in rng.permutation(len(names)):
                name = names[place]
                runner = runners[name]
                runner()
                began = time.perf_counter_ns()
                runner()
                times[name].append(time.perf_counter_ns() - began)
            if limit is not None and time.perf_counter() > limit:
                break
    finally:
        if collecting:
            gc.enable()
    return {name: Latency.of(np.asarray(taken) / 1e6) for name, taken in times.items()}


def per_second_text(rate: float) -> str:
    """Formats examples per second: as integers, below 100 with three digits.

    Example:
        >>> from tfkd.report.latency import per_second_text
        >>> per_second_text(96_618.4), per_second_text(3.14159)
        ('96,618', '3.14')
    """
    return f"{rate:,.0f}" if rate >= 99.95 else f"{rate:#.3g}".rstrip(".")


def busy_note(times: Mapping[str, Latency]) -> str:
    """A sentence if other work disturbed most calls of a model, else "".

    Models that take longer are interrupted more often, so that not even ratios hold then.

    Example:
        >>> from tfkd.report.latency import Latency, busy_note
        >>> busy_note({"a": Latency.of([1.0] * 30)})
        ''
        >>> busy_note({"a": Latency.of([1.0, 4.0, 4.0] * 9)})[:43]
        ' The machine was busy: half of the calls of'
    """
    slower = {}
    for name, one in times.items():
        if len(one.times) >= _ENOUGH and (fast := float(np.percentile(one.times, 10))) > 0:
            slower[name] = one.p50 / fast
    worst = max(slower, key=lambda name: slower[name], default="")
    if not worst or slower[worst] <= _BUSY:
        return ""
    return (
        f" The machine was busy: half of the calls of {worst} took {slower[worst]:.1f} times as "
        "long as its fastest tenth, or longer. These times say little, and so do their ratios: "
        "measure again with nothing beside it."
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """Describes `machine()` in one sentence: processor, cores, versions."""
    parts = [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    where = f"{machine.get('processor')}, {machine.get('cores')} cores"
    return f"Measured on {where}; {', '.join(parts)}."


def machine() -> dict[str, Any]:
    """Describes the machine and software of a measurement.

    Returns:
        `processor`, `cores` (available to this process), `os`, `python`, and `versions`
        of tfkd, tensorflow, tf_keras, numpy, ai-edge-litert and onnxruntime, as far as
        they are installed.

    Example:
        >>> from tfkd import report
        >>> report.machine()["cores"] >= 1
        True
    """
    return {
        "processor": _processor(),
        "cores": _cores(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions():
    import tfkd

    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package == "tfkd":  # imported from a source tree without being installed
                yield package, tfkd.__version__
