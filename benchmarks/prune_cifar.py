"""Filter decay compared with other pruning methods on CIFAR-10.

    python benchmarks/cifar_teacher.py --data cifar10.npz --out saved_models/narrow \
        --widths 8 16 32 --depth 20 --images 20000 --epochs 40 --policy float32
    python benchmarks/prune_cifar.py --data cifar10.npz --base saved_models/narrow
    python benchmarks/prune_cifar.py --data cifar10.npz --base saved_models/narrow \
        --study lambda interval share anneal criteria reading smoothness
    python benchmarks/prune_cifar.py --base saved_models/narrow --study main lambda --table

The recipe of the paper (FD-SKD): start from a trained network; let its redundant
filters decay to zero during the first part of the epochs; cut them out; train
the cut network for the rest, all the time with the network as it was at the
start as the teacher. The methods:

    fd-skd     annealed decay, self-distillation
    fd         annealed decay
    soft       zeroed at once each interval, and free to recover until removal
    soft-skd   the same, with self-distillation
    hard       removed at the start
    hard-skd   the same, with self-distillation
    none       not pruned
    none-skd   not pruned, with self-distillation: what the teacher alone does

All make the same number of steps under one cycle of the learning rate that runs
on across the cut, and all runs of a seed see the same batches. Accuracy is that
of the cut network after the last epoch on all test images, or on training images that are
held out, on which settings are chosen. Each finished run is
a record in --out and is not made again; `--only 0/2` and `--only 1/2` share the runs
of one list between two processes. `--table` makes the tables and plots of what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import harness
import made_up
import prune_tables
from cifar_teacher import BATCH, accuracy_of, cosine_sgd, load_base, part_of, weights_of
from prune_settings import METHODS, STUDIES, Setting, settings_of

import tfkd

WATCHED = 2_000  # test images that are looked at after each epoch


class Training:
    """One run: the model as it is now, its optimizer, and what was seen so far."""

    def __init__(self, setting: Setting, data: Any, scale: Any, folder: pathlib.Path):
        self.setting, self.data, self.scale = setting, data, scale
        self.steps = tfkd.data.steps_per_epoch(len(data.x_train), BATCH)
        self.model, self.base = load_base(folder)
        self.teacher = tfkd.frozen_copy(self.model) if setting.distils else None
        self.optimizer = cosine_sgd(self.steps * setting.epochs, setting.peak)
        self.watched = data.subset(test=min(WATCHED, len(data.x_test)))
        self.curve: list[float] = []
        self.history: dict[str, list[float]] = {}

    def accuracy(self, data: Any = None) -> float:
        """Of the model as it is now, in per cent; on all test images by default."""
        return 100 * accuracy_of(self.model, data or self.data, self.scale)

    def compiled(self) -> Any:
        """The model, or a Distiller around it, ready to fit.

        The loss is cross-entropy + λ · T²KL, not a multiple of it, which would
        be another learning rate. A Distiller mixes: w · CE + (1 − w) · KD. With
        w = ½, twice the one and 2λ times the other give just that sum; the logs
        show both as they are before they are halved.
        """
        import tf_keras as keras

        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if self.teacher is None:
            self.model.compile(self.optimizer, loss, metrics=["accuracy"])
            return self.model
        distiller = tfkd.Distiller(
            self.teacher,
            self.model,
            tfkd.losses.LogitsDistillation(self.setting.temperature),
            distillation_loss_weights=[2 * self.setting.lam],
            student_loss_weight=0.5,
        )
        distiller.compile(self.optimizer, loss, metrics=["accuracy"], loss_weights=[2.0])
        return distiller

    def fit(self, first: int, last: int, callbacks: tuple[Any, ...] = ()) -> None:
        """Trains from epoch `first` to `last`, with the batches of those epochs."""
        import tf_keras as keras

        train = tfkd.data.batches(
            self.data.x_train,
            self.data.y_train,
            BATCH,
            seed=self.setting.seed,
            augment=tfkd.data.shift_and_flip(4),
            preprocess=self.scale,
            start_step=first * self.steps,
        )
        look = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self.curve.append(self.accuracy(self.watched))
        )
        history = self.compiled().fit(
            train,
            steps_per_epoch=self.steps,
            initial_epoch=first,
            epochs=last,
            verbose=0,
            callbacks=[*callbacks, look],
        )
        for key, values in history.history.items():
            self.history.setdefault(key, []).extend(float(v) for v in values)

    def plan(self) -> Any:
        """What is to go, on the model as it is now."""
        s = self.setting
        goal = {"macs_reduction": s.macs_reduction, "filter_rate": s.filter_rate}
        goal = {key: value for key, value in goal.items() if value is not None}
        return tfkd.pruning.plan(
            self.model, **goal, residual=s.residual, criterion=s.criterion, seed=s.seed
        )

    def decay(self) -> Any:
        """The callback of the first part: annealed, or zero at once."""
        s = self.setting
        schedule = tfkd.pruning.AnnealedFilterDecay(
            target_sparsity=s.filter_rate or s.macs_reduction,
            begin_step=0,
            end_step=s.decay_epochs * self.steps,
            frequency=max(1, round(s.interval * self.steps)),
            anneal=tenth if s.anneal == "tenth" else s.anneal,
            initial_decay=0.0 if s.kind == "soft" else 1.0,
        )
        return tfkd.callbacks.FilterDecay(self.plan(), schedule, decay=s.reading)

    def cut(self, selection: Any) -> None:
        """Puts the smaller model, which shrink proves to be the same, in the model's place.

        The optimizer goes on at its step, with the momentum of what stays.
        """
        small = tfkd.pruning.shrink(self.model, selection)
        self.optimizer = tfkd.pruning.shrink_optimizer(self.optimizer, self.model, small, selection)
        self.model = small


def tenth(p: Any) -> Any:
    """A rate that falls by equal factors to a tenth, and from there to zero at once."""
    return 0.1**p


def run(setting: Setting, data: Any, scale: Any, folder: pathlib.Path) -> dict[str, Any]:
    """Makes one run; returns its record."""
    import tf_keras as keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(setting.seed)
    at_cut = None
    training = Training(setting, data, scale, folder)
    teacher = training.accuracy()  # as the base is before anything is done to it
    whole = tfkd.report.profile(training.model)
    if setting.kind in ("fd", "soft"):
        decay = training.decay()
        training.fit(0, setting.decay_epochs, (decay,))
        training.cut(decay.selection)
        at_cut = training.accuracy()
        training.fit(setting.decay_epochs, setting.epochs)
    else:
        if setting.kind == "hard":
            training.cut(tfkd.pruning.select(training.model, training.plan()))
            at_cut = training.accuracy()
        training.fit(0, setting.epochs)
    small, accuracy = tfkd.report.profile(training.model), training.accuracy()
    return {
        "setting": dataclasses.asdict(setting),
        "accuracy": accuracy,
        "accuracy_at_cut": at_cut,
        "curve": training.curve,
        "base_accuracy": teacher,
        "base_trained": [training.base.get("images"), training.base.get("epochs")],
        "passed_its_base": accuracy > teacher,
        "macs": [whole.macs, small.macs],
        "flops": [whole.flops, small.flops],
        "params": [whole.params, small.params],
        "steps": int(training.optimizer.iterations.numpy()),
        "history": training.history,
    }


def parse() -> Any:
    parser = harness.Parser(
        __doc__, "saved_models/prune_cifar", data=made_up.cifar, base=lambda: [made_up.base()],
        images=256, epochs=2, seeds=1, criteria_epochs=2, methods=["fd-skd", "hard", "none"],
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--base", required=True, nargs="+", help="folders of cifar_teacher.py")
    parser.add_argument("--study", nargs="+", choices=STUDIES, default=["main"], help="what varies")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="of main")
    parser.add_argument("--ablate", choices=("fd-skd", "fd"), default="fd-skd", help="the method")
    parser.add_argument("--seeds", type=int, help="3 for main, 1 for the others by default")
    parser.add_argument("--lams", type=float, nargs="+", default=[0.1, 0.3, 1.0, 3.0], help="λ")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 4.0], help="T")
    parser.add_argument("--criteria-epochs", type=int, default=4, help="passes of that study")
    parser.add_argument("--held-out", type=int, default=0, help="score on so many training images")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--only", default="0/1", help="i/n: this process makes run i, i + n, ...")
    for field in dataclasses.fields(Setting):
        if field.name not in ("method", "seed", "base", "filter_rate"):
            option = "--" + field.name.replace("_", "-")
            kind = float if field.name == "macs_reduction" else type(field.default)
            parser.add_argument(option, type=kind, default=field.default, help="of all runs")
    args = parser.parse_args()
    if not args.data and not args.table:
        parser.error("--data is needed to train")
    return args


def main() -> None:
    args = parse()
    folders = {pathlib.Path(base).name: pathlib.Path(base) for base in args.base}
    fields = {f.name for f in dataclasses.fields(Setting)} & set(vars(args)) - {"base"}
    start = Setting(**{name: getattr(args, name) for name in fields})
    studies = {
        (study, base): settings_of(study, dataclasses.replace(start, base=base), args)
        for study in args.study
        for base in folders
    }
    data, scale, stores = None, None, {base: harness.Records(args) for base in folders}
    if not args.table:
        harness.threads(args.threads)
        data, scale = part_of(args.data, args.images, args.held_out)
        images = harness.digest(args.data)
        for base, folder in folders.items():
            read = {"images": images, "base": harness.digest(weights_of(folder))}
            stores[base] = harness.Records(args, **read)
    mine, shares = (int(number) for number in args.only.split("/"))
    todo = list(dict.fromkeys(s for settings in studies.values() for s in settings))
    found = {}
    for number, setting in enumerate(todo):
        store, made = stores[setting.base], {"threads": args.threads, "held_out": args.held_out}
        made |= dataclasses.asdict(setting.plain())
        if number % shares == mine or store.file(setting.name, made):
            make = functools.partial(run, setting, data, scale, folders[setting.base])
            found[setting] = store.run(setting.name, made, make)
    text = prune_tables.write(studies, found, pathlib.Path(args.out))
    brief = {s.name: round(r["accuracy"], 2) for s, r in found.items() if r}
    harness.show(args, text, accuracy=brief)


if __name__ == "__main__":
    main()
