"""Pruning of tfkd beside that of Torch-Pruning: the same base, MACs and training.

    python -m venv saved_models/torch
    saved_models/torch/bin/pip install torch==2.13.0 torch-pruning==1.6.1
    python benchmarks/prune_peers.py --data cifar10.npz --base saved_models/narrow8000 \
        --peer saved_models/torch/bin/python --threads 1

Both prune the same trained ResNet; for Torch-Pruning its weights are carried over to PyTorch,
and those that it leaves are carried back (both proven on logits). What follows is one and the same
for both: training in Keras with the batches of a seed. Each tool has the same ways to choose
from, a criterion, a scope, and whether the sums of the residual blocks are narrowed too:

    l2      norms of the weights
    taylor  the first-order change of the loss
    sparse  norms, after a training that drives whole channels towards zero

For each number of multiply-accumulates (MACs) every way of each tool is first trained for an epoch
and scored on held-out training images. The best one of tfkd and the best two of Torch-Pruning
are then trained anew with three seeds and scored on all test images. What tfkd's does with the
unpruned network as its teacher is one more row, which the comparison leaves out.
Each finished run is a record in --out and is not made again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import harness
import made_up
import numpy as np
import peers_torch_pruning
from cifar_teacher import load_base, part_of, weights_of
from prune_cifar import WATCHED, Training
from prune_settings import Setting

import tfkd

Record = dict[str, Any]
PEER = "Torch-Pruning"
WAYS = (
    "l2-uniform-coupled",
    "taylor-uniform-coupled",
    "taylor-isomorphic-coupled",
    "taylor-global-coupled",
    "sparse-uniform-coupled",
)
CLOSE = 1e-3  # of logits that are to be the same; PyTorch and TensorFlow add in other orders
PROBES = 64  # images on which logits are compared


@dataclasses.dataclass(frozen=True)
class Run:
    """All that makes one run what it is."""

    tool: str
    way: str
    macs_reduction: float
    seed: int
    epochs: int
    images: int
    peak: float
    sparse_epochs: int
    strength: float
    teacher: bool = False
    held_out: int = 0
    threads: int = 0

    @property
    def name(self) -> str:
        words = [self.tool, self.way, f"{1 / (1 - self.macs_reduction):g}x"]
        words += ["skd"] * self.teacher + ["held out"] * bool(self.held_out)
        return " ".join([*words, f"s{self.seed}"])

    def training(self, epochs: int, data: Any, scale: Any, folder: pathlib.Path) -> Training:
        setting = Setting(
            method="hard-skd" if self.teacher else "hard",
            seed=self.seed, epochs=epochs, images=self.images, peak=self.peak,
        )  # fmt: skip
        return Training(setting, data, scale, folder)


class Peer:
    """Torch-Pruning in the environment of another Python.

    Args:
        python: its interpreter.
        folder: of the base.
        data: training images, on which it scores and trains.
        scale: the function that scales them.
    """

    def __init__(self, python: str, folder: pathlib.Path, data: Any, scale: Any):
        self.python, self._folder = python, pathlib.Path(tempfile.mkdtemp())
        model, _ = load_base(folder)
        x = np.concatenate([scale(part).numpy() for part in np.array_split(data.x_train, 8)])
        np.savez(self._folder / "images.npz", x=x, y=data.y_train)
        logits, self.probe = model.predict(x[:PROBES], verbose=0), x[:PROBES]
        np.savez(self._folder / "base.npz", logits=logits, **weights_by_name(model))

    def prune(self, model: Any, run: Run) -> tuple[Any, Record]:
        """The model as Torch-Pruning leaves it, and what it says of it."""
        settings = json.dumps(dataclasses.asdict(run) | ways(run))
        out = self._folder / "pruned.npz"
        files = [str(self._folder / "base.npz"), str(self._folder / "images.npz"), str(out)]
        call = "import sys, peers_torch_pruning as peer; peer.main(*sys.argv[1:])"
        path = os.environ | {"PYTHONPATH": str(pathlib.Path(peers_torch_pruning.__file__).parent)}
        subprocess.run([self.python, "-c", call, *files, settings], env=path, check=True)
        with np.load(out) as packed:
            left = dict(packed)
        logits, document = left.pop("logits"), json.loads(str(left.pop("document")))
        removed = {
            group.name: range(left[f"{group.name}/kernel"].shape[-1], group.size)
            for group in tfkd.pruning.analyse(model).groups
        }
        shape = tfkd.pruning.Selection(
            {name: tuple(gone) for name, gone in removed.items()},
            tfkd.pruning.analyse(model).fingerprint,
        )
        small = tfkd.pruning.shrink(model, shape, verify=False)
        for layer in small.layers:
            layer.set_weights([left[f"{layer.name}/{name_of(one)}"] for one in layer.weights])
        far = float(np.abs(small.predict(self.probe, verbose=0) - logits).max())
        document["carried_back_to"] = far
        for key in ("carried_over_to", "carried_back_to"):
            if document[key] > CLOSE:
                raise ValueError(f"{run.name}: logits differ by {document[key]:.2g}, {key}")
        if document["macs"] != tfkd.report.profile(small).macs:
            raise ValueError(f"{run.name}: the two count multiply-accumulates differently")
        return small, document


def name_of(weight: Any) -> str:
    return weight.name.split("/")[-1].split(":")[0]


def weights_by_name(model: Any) -> dict[str, np.ndarray]:
    """All weights by `layer/weight`."""
    return {
        f"{layer.name}/{name_of(one)}": one.numpy()
        for layer in model.layers
        for one in layer.weights
    }


def label_of(record: Record) -> str:
    run = record["run"]
    return f"{run['tool']}: {run['way'].replace('-', ', ')}" + ", taught" * run["teacher"]


def ways(run: Run) -> dict[str, str]:
    return dict(zip(("criterion", "scope", "residual"), run.way.split("-"), strict=True))


def by_tfkd(run: Run, training: Training, data: Any, scale: Any, folder: pathlib.Path) -> Any:
    """The model as tfkd leaves it."""
    import tf_keras as keras

    way, model = ways(run), training.model
    goal: dict[str, Any] = {
        "macs_reduction": run.macs_reduction,
        "scope": way["scope"],
        "residual": way["residual"],
    }
    criterion: Any = "l2"
    if way["criterion"] == "taylor":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        every = -(-len(data.x_train) // 512)
        x, y = scale(data.x_train[::every]), data.y_train[::every]
        criterion = tfkd.pruning.Taylor((x, y), loss=loss)
    if way["criterion"] == "sparse":
        sparse = run.training(run.sparse_epochs, data, scale, folder)
        plan = tfkd.pruning.plan(sparse.model, **goal)
        # Torch-Pruning adds λγw to the gradient, of which a momentum of 0.9 makes ten times as
        # much; this penalty, whose gradient is 2λγw, has no momentum.
        regularizer = tfkd.callbacks.SparsityRegularizer(plan, strength=5 * run.strength)
        sparse.fit(0, run.sparse_epochs, (regularizer,))
        model = sparse.model
    plan = tfkd.pruning.plan(model, **goal, criterion=criterion)
    return tfkd.pruning.shrink(model, tfkd.pruning.select(model, plan))


def sliced(model: Any) -> None:
    """Lets shortcuts take every other pixel first, and convolve without strides: the same.

    TensorFlow's oneDNN writes past its memory in the gradient of a strided 1×1 convolution
    of fewer than 8 channels; without oneDNN all of this takes 2.5 times as long.
    """
    import tensorflow as tf

    for layer in model.layers:
        if layer.name.endswith("_0_conv") and layer.strides == (2, 2):
            layer.convolution_op = lambda x, kernel: tf.nn.conv2d(x[:, ::2, ::2], kernel, 1, "SAME")


def make(run: Run, data: Any, scale: Any, folder: pathlib.Path, peer: Peer) -> Record:
    """Makes one run; returns its record."""
    import tf_keras as keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    document: Record = {}
    training = run.training(run.epochs, data, scale, folder)
    whole = tfkd.report.profile(training.model)
    if run.tool == PEER:
        training.model, document = peer.prune(training.model, run)
    else:
        training.model = by_tfkd(run, training, data, scale, folder)
    small = tfkd.report.profile(training.model)
    widths = {g.name: g.size for g in tfkd.pruning.analyse(training.model).groups}
    sliced(training.model)
    at_cut = training.accuracy(training.watched)
    training.fit(0, run.epochs)
    return {
        "run": dataclasses.asdict(run),
        "accuracy": training.accuracy(),
        "accuracy_at_cut": at_cut,
        "curve": training.curve,
        "macs": [whole.macs, small.macs],
        "params": [whole.params, small.params],
        "widths": widths,
        "peer": document,
    }


def rows_of(groups: list[list[Record]]) -> list[list[Any]]:
    """A row for each group of records that differ in the seed alone."""
    rows = []
    for group in filter(None, groups):
        macs, (params, few) = group[0]["macs"][0], group[0]["params"]
        rows.append(
            [
                f"{statistics.mean(macs / r['macs'][1] for r in group):.2f}",
                label_of(group[0]),
                harness.spread([r["accuracy"] for r in group]),
                harness.spread([r["accuracy_at_cut"] for r in group]),
                f"{100 * few / params:.1f} %",
                f"{statistics.mean(r['minutes'] for r in group):.1f}",
                ", ".join(f"{r['accuracy']:.2f}" for r in group),
            ]
        )
    return rows


def minus(own: list[Record], other: list[Record]) -> str:
    """Differences in accuracy, seed by seed."""
    pairs = zip(own, other, strict=False)
    return harness.spread([one["accuracy"] - two["accuracy"] for one, two in pairs])


def parse() -> Any:
    parser = harness.Parser(
        __doc__, "saved_models/prune_peers", data=made_up.cifar, base=made_up.base, images=256,
        epochs=1, choose_epochs=1, sparse_epochs=1, held_out=100, seeds=1, speed_ups=[1.5],
        ways=["l2-uniform-coupled", "taylor-global-coupled"],
    )  # fmt: skip
    parser.add_argument("--data", required=True, help="cifar10.npz")
    parser.add_argument("--base", required=True, help="folder of cifar_teacher.py")
    parser.add_argument("--peer", default=sys.executable, help="Python that has torch_pruning")
    parser.add_argument("--speed-ups", type=float, nargs="+", default=[4, 8, 2], help="of MACs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="to choose from")
    parser.add_argument("--images", type=int, default=8_000, help="training images")
    parser.add_argument("--held-out", type=int, default=4_000, help="others, to choose on")
    parser.add_argument("--epochs", type=int, default=6, help="after pruning")
    parser.add_argument("--choose-epochs", type=int, default=1, help="the same, to choose")
    parser.add_argument("--sparse-epochs", type=int, default=2, help="before it, of sparse")
    parser.add_argument("--strength", type=float, default=0.01, help="of the penalty of sparse")
    parser.add_argument("--peak", type=float, default=0.02, help="of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    return parser.parse_args()


def main() -> None:
    args = parse()
    harness.threads(args.threads)
    folder = pathlib.Path(args.base)
    asked = [args.peer, "-c", "import torch_pruning"]
    tools = [PEER, "tfkd"]
    if subprocess.run(asked, capture_output=True).returncode:
        print(f"Torch-Pruning is left out: {args.peer} can't import torch_pruning.")
        tools = ["tfkd"]
    read = {"images": harness.digest(args.data), "base": harness.digest(weights_of(folder))}
    read["peer"] = harness.digest(peers_torch_pruning.__file__)
    store = harness.Records(args, **read)
    parts = {held: part_of(args.data, args.images, held) for held in (0, args.held_out)}
    peer = Peer(args.peer, folder, *parts[0])  # the training images are the same ones
    names = ("images", "peak", "sparse_epochs", "strength", "threads")
    common = {name: getattr(args, name) for name in names}

    def made(held_out: int = 0, **what: Any) -> Record | None:
        epochs = args.choose_epochs if held_out else args.epochs
        run = Run(held_out=held_out, epochs=epochs, **what, **common)
        data, scale = parts[held_out]
        one = functools.partial(make, run, data, scale, folder, peer)
        return store.run(run.name, dataclasses.asdict(run), one)

    chosen: list[list[Any]] = []
    groups: dict[float, list[list[Record]]] = {}
    for speed_up in args.speed_ups:
        reduction, runs = {"macs_reduction": 1 - 1 / speed_up, "seed": 0}, []
        for tool in tools:
            every = [made(args.held_out, tool=tool, way=way, **reduction) for way in args.ways]
            tried = sorted(filter(None, every), key=lambda record: -record["accuracy"])
            chosen += rows_of([[record] for record in tried])
            best = tried[: 2 if tool == PEER else 1]
            runs += [{**reduction, "tool": tool, "way": r["run"]["way"]} for r in best]
        found = [[made(**{**run, "seed": seed}) for run in runs] for seed in range(args.seeds)]
        groups[speed_up] = [[r for r in group if r] for group in zip(*found, strict=True)]
    compared, gaps = [], []
    for speed_up, some in groups.items():
        if not some or not (own := some[-1]):
            continue
        others = [group for group in some[:-1] if group]
        compared += rows_of([*others, own])
        gaps += [[f"{speed_up:g}", f"minus {label_of(o[0])}", minus(own, o)] for o in others]
        what = {name: own[0]["run"][name] for name in ("tool", "way", "macs_reduction")}
        taught = [made(**what, seed=seed, teacher=True) for seed in range(args.seeds)]
        compared += rows_of([[record for record in taught if record]])
    records = [record for some in groups.values() for group in some for record in group]
    if not records:
        raise SystemExit(f"There is no finished run in {args.out}.")
    head = ["times fewer MACs", "way", "accuracy, mean ± sd (%)", "at the cut", "parameters left"]
    head += ["minutes", "seeds"]
    _, base = load_base(folder)
    text = (
        f"CIFAR-10, base {folder.name} ({100 * base['test_accuracy_float32']:.2f} %; "
        f"{records[0]['macs'][0]:,} MACs): {args.images:,} images, {args.epochs} epochs after "
        f"pruning, peak {args.peak}; {args.sparse_epochs} epochs before it in sparse, "
        f"strength {args.strength}.\n\nOn all test images ({args.seeds} seeds; at the cut on "
        f"{WATCHED:,} of them):\n\n{harness.table(head, compared, 2)}"
    )
    if gaps:
        ahead = ["times fewer MACs", "tfkd's choice", "points, seed by seed"]
        text += f"\n{harness.table(ahead, gaps, 2)}"
    text += (
        f"\nOn {args.held_out:,} held-out training images after {args.choose_epochs} epochs, "
        f"on which the ways were chosen:\n\n{harness.table(head, chosen, 2)}"
    )
    far = {
        key: max(r["peer"][key] for r in records if r["peer"])
        for key in ("carried_over_to", "carried_back_to")
        if PEER in tools
    }
    if far:
        text += (
            "\nLogits of the base in PyTorch and in Keras differ by up to "
            f"{far['carried_over_to']:.1e}, of the pruned ones by {far['carried_back_to']:.1e}.\n"
        )
    harness.show(args, text, **far)


if __name__ == "__main__":
    main()
