"""Tables of distributed_cost.py, and its formula for more workers; see its docstring."""

from __future__ import annotations

import math
from typing import Any

import harness

NETWORKS = {"10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}  # bytes a second
LATENCY = 20e-6
WORKERS = (2, 8, 64, 512)


def paper(
    one: dict[str, Any], n: int, bandwidth: float, reduces: int, latency: float = LATENCY
) -> float:
    """Seconds of a step of n workers; see distributed_cost.py.

    Args:
        one: the figures of a model.
        n: workers.
        bandwidth: bytes a second.
        reduces: all-reduces a step.
        latency: seconds a hop.
    """
    sent = (2 * (n - 1) / n * one["bytes"] + (n - 1) * one["gathered"]) / bandwidth
    waited = (2 * reduces + one["gathers"]) * (n - 1) * latency
    return one["one"] / 1e3 + max(0.0, sent + waited)


def on_loopback(one: dict[str, Any]) -> float:
    """Milliseconds of a step of two workers by the formula, with the loopback's W and L."""
    added = one["all-reduce"] - one["one number"]
    bandwidth = one["bytes"] / (added / 1e3) if added > 0 else math.inf
    return 1e3 * paper(one, 2, bandwidth, one["reduces"], one["one number"] / 2e3)


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Three tables in Markdown: steps, throughput and the formula for two, more workers."""
    texts = [steps_table(found), speed_table(found)]
    rows = []
    for name, one in found.items():
        rest = max(0.0, one["two"] - on_loopback(one)) / 1e3
        counted = {
            "gradients alone": (1, 0.0),
            "all": (one["reduces"], 0.0),
            "all, and the rest": (one["reduces"], rest),
        }
        for network, bandwidth in NETWORKS.items():
            for what, (reduces, more) in counted.items():
                steps = [paper(one, n, bandwidth, reduces) + more for n in WORKERS]
                cells = [f"{100 * one['one'] / 1e3 / step:.0f} %" for step in steps]
                rows.append([name, network, what, *cells])
    head = ["model", "network", "counted", *(f"{n} workers" for n in WORKERS)]
    return "\n".join([*texts, harness.table(head, rows, left=3)])


def steps_table(found: dict[str, dict[str, Any]]) -> str:
    head = ["model", "batch a worker", "one process, ms", "two workers, ms", "input, ms"]
    head += ["all-reduce alone, ms", "one number, ms", "added up", "gathered"]
    rows = []
    for name, one in found.items():
        keys = ("one", "two", "input", "all-reduce", "one number")
        times = [f"{one[key]:.1f}" for key in keys]
        sizes = [f"{one[key] / 1e6:.2f} MB" for key in ("bytes", "gathered")]
        counts = f"{one['reduces']}, {one['gathers']}"
        rows.append([name, one["batch"], *times, *sizes, counts])
    return harness.table([*head, "all-reduces, gathers a step"], rows)


def speed_table(found: dict[str, dict[str, Any]]) -> str:
    head = ["model", "examples/s, one", "examples/s, two", "times faster"]
    head += ["two workers by the formula, ms", "measured / formula"]
    rows = []
    for name, one in found.items():
        speeds = [1e3 * n * one["batch"] / one[key] for n, key in ((1, "one"), (2, "two"))]
        cells = [f"{speed:.0f}" for speed in speeds] + [f"{speeds[1] / speeds[0]:.2f}"]
        expected = on_loopback(one)
        rows.append([name, *cells, f"{expected:.1f}", f"{one['two'] / expected:.2f}"])
    return harness.table(head, rows)
