"""Distillation losses of tfkd beside those of torchdistill, on the same made-up numbers.

    python -m venv saved_models/torch
    saved_models/torch/bin/pip install torch==2.13.0
    saved_models/torch/bin/pip install --no-deps torchdistill==1.1.5
    python benchmarks/losses_peers.py --peer saved_models/torch/bin/python

Values and gradients by the student's numbers. Where the two follow other conventions, one is
brought to the other's by a factor or an argument, which the table names:

    T²          torchdistill multiplies soft targets by it only together with a loss on labels
    √(n − 1)    its standard deviation of n scores divides by it, tfkd's by √n: its T is smaller
    all pairs   its means over pairs and triples count each example with itself
    positions   its loss is the mean over positions, tfkd's the sum

Without a peer that has torchdistill, the values of tfkd are printed alone.
"""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import harness
import numpy as np

import tfkd
from tfkd import artifacts

PEER = "torchdistill"
CLASSES, SIZE, CHANNELS = 100, 8, 32
ANGLES = 64  # examples in the loss on angles, of which there are as many to the power of 3


def losses(batch: int) -> dict[str, tuple[Any, str, dict[str, Any], float, str, int]]:
    """By name: loss, torchdistill's class, its arguments, the factor of its value, why, examples.

    Args:
        batch: examples.
    """
    own = tfkd.losses
    few = min(batch, ANGLES)
    unbiased = float(np.sqrt((CLASSES - 1) / CLASSES))  # its Z-scores are so much smaller
    relations = {"reduction": "mean"}
    apart = few**3 / (few * (few - 1) * (few - 2))
    return {
        "soft targets, T = 4": (
            own.LogitsDistillation(4.0), "KDLoss", {"temperature": 4.0, "alpha": 0.0},
            16.0, "T²", batch,
        ),
        "soft targets, standardized, T = 2": (
            own.LogitsDistillation(2.0, standardize=True), "LogitStdKDLoss",
            {"temperature": 2.0 * unbiased, "alpha": 0.0}, 4.0, "T², √(n − 1)", batch,
        ),
        "DIST, T = 4, β = 1, γ = 2": (
            own.PearsonDistillation(4.0, beta=1.0, gamma=2.0), "DISTLoss",
            {"tau": 4.0, "beta": 1.0, "gamma": 2.0}, 1.0, "", batch,
        ),
        "relations, distances": (
            own.RelationalDistillation(1.0, 0.0), "RKDLoss",
            {"dist_factor": 1.0, "angle_factor": 0.0, **relations},
            batch / (batch - 1), "all pairs", batch,
        ),
        "relations, angles": (
            own.RelationalDistillation(0.0, 1.0), "RKDLoss",
            {"dist_factor": 0.0, "angle_factor": 1.0, **relations}, apart, "all pairs", few,
        ),
        "attention maps": (
            own.AttentionTransfer("features", "features"), "ATLoss", {"mode": "code"},
            float(SIZE**2), "positions", batch,
        ),
    }  # fmt: skip


def arrays(batch: int, seed: int) -> dict[str, np.ndarray]:
    """Float32 scores (batch, classes) and feature maps (batch, size, size, channels)."""
    rng, found = np.random.default_rng(seed), {}
    for side in ("teacher", "student"):
        found[f"{side} scores"] = rng.normal(size=(batch, CLASSES))
        found[f"{side} maps"] = rng.normal(size=(batch, SIZE, SIZE, CHANNELS))
    return {name: values.astype(np.float32) for name, values in found.items()}


def pair(numbers: dict[str, np.ndarray], kind: str, count: int) -> list[np.ndarray]:
    """What the teacher and the student give to a loss of this class."""
    what = "maps" if kind == "ATLoss" else "scores"
    return [numbers[f"{side} {what}"][:count] for side in ("teacher", "student")]


def own_value(loss: Any, teacher: np.ndarray, student: np.ndarray) -> tuple[float, np.ndarray]:
    """Value of a loss of tfkd, and its gradient."""
    import tensorflow as tf

    given = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(given)
        value = loss.compute_loss(tf.constant(teacher), given)
    return float(value), tape.gradient(value, given).numpy()


def by_torchdistill(folder: str) -> None:
    """Runs in the environment of torchdistill: values and gradients of `asked.json`."""
    import json
    import pathlib

    import numpy as np
    import torch
    from torchdistill.losses import mid_level

    home, found = pathlib.Path(folder), {}
    with np.load(home / "numbers.npz") as packed:
        numbers = dict(packed)
    for name, (kind, arguments, teacher, student) in json.loads(
        (home / "asked.json").read_text()
    ).items():
        ends = [torch.from_numpy(numbers[key]) for key in (teacher, student)]
        if kind == "ATLoss":  # channels first
            ends = [end.permute(0, 3, 1, 2).contiguous() for end in ends]
            side = {"io": "output", "path": "x"}
            arguments["at_pairs"] = {"one": {"teacher": side, "student": side}}
        for key in ("student", "teacher"):
            if kind == "RKDLoss":
                arguments[f"{key}_output_path"] = "x"
            else:
                arguments |= {f"{key}_module_path": "x", f"{key}_module_io": "output"}
        ends[1].requires_grad_(True)
        loss = getattr(mid_level, kind)(**arguments)
        value = loss({"x": {"output": ends[1]}}, {"x": {"output": ends[0]}})
        value.backward()
        gradient = ends[1].grad
        found[f"{name} value"] = value.detach().numpy()
        found[f"{name} gradient"] = (
            gradient.permute(0, 2, 3, 1) if kind == "ATLoss" else gradient
        ).numpy()
    np.savez(home / "found.npz", **found)


def peer_values(
    python: str, numbers: dict[str, np.ndarray], batch: int
) -> dict[str, tuple[float, np.ndarray]]:
    """Value and gradient of each loss by torchdistill, in another environment; {} without it."""
    if subprocess.run([python, "-c", f"import {PEER}"], capture_output=True).returncode:
        print(f"{PEER} is left out: {python} can't import it.")
        return {}
    asked, given = {}, {}
    for name, (_, kind, arguments, _, _, count) in losses(batch).items():
        keys = [f"{name} teacher", f"{name} student"]
        given |= zip(keys, pair(numbers, kind, count), strict=True)
        asked[name] = (kind, arguments, *keys)
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        np.savez(home / "numbers.npz", **given)
        artifacts.write_json(home / "asked.json", asked)
        code = f"{inspect.getsource(by_torchdistill)}\nby_torchdistill({folder!r})"
        future = "from __future__ import annotations\n"
        subprocess.run([python, "-c", future + code], check=True)
        with np.load(home / "found.npz") as packed:
            return {
                name: (float(packed[f"{name} value"]), packed[f"{name} gradient"]) for name in asked
            }


def parse() -> Any:
    parser = harness.Parser(__doc__, batch=8)
    parser.add_argument("--peer", default=sys.executable, help="Python that has torchdistill")
    parser.add_argument("--batch", type=int, default=128, help="examples")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers")
    return parser.parse_args()


def main() -> None:
    args = parse()
    numbers = arrays(args.batch, args.seed)
    peers, rows, figures = peer_values(args.peer, numbers, args.batch), [], {}
    for name, (loss, kind, _, factor, why, count) in losses(args.batch).items():
        value, gradient = own_value(loss, *pair(numbers, kind, count))
        figures[name] = {"tfkd": value}
        row = [name, f"{value:.6f}", "", "", "", ""]
        if name in peers:
            other, slope = peers[name][0] * factor, peers[name][1] * factor
            apart = float(abs(gradient - slope).max() / abs(slope).max())
            figures[name] |= {PEER: other, "of the gradient": apart}
            off = f"{abs(value - other) / abs(other):.1e}"
            row[2:] = [f"{other:.6f}", off, f"{apart:.1e}", why]
        rows.append(row)
    head = ["loss", "tfkd", PEER, "difference, relative", "of the gradient, of its largest"]
    text = harness.table([*head, "brought together by"], rows)
    harness.show(args, text, figures=figures)


if __name__ == "__main__":
    main()
