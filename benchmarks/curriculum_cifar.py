"""Curriculum learning on CIFAR-10 with noisy and with clean labels.

    python benchmarks/curriculum_cifar.py --data cifar10.npz
    python benchmarks/curriculum_cifar.py --table

A part of CIFAR-10 of which 40 % of the training labels are wrong (each of the other
nine classes as likely), and the same part with its own labels; tested on clean labels.
The teacher of a student is a plain network trained on the same labels, right and wrong,
from another seed; an example is as hard as the teacher's loss on the label given. Arms:

    plain                       all the data at every step
    distilled                   the same, and λ · T²KL to the teacher
    curriculum                  the easiest 30 % at first, up to 60 % (wrong labels) or
                                100 % (right ones) when --grow of the steps are made
    curriculum, distilled       both
    curriculum to 100 %         the same, but up to all of the data (with wrong labels)
    selection                   the easiest 60 % at every step: no pace, only what is left out
    anti-curriculum             the same pace, the hardest first
    random pacing               the same pace, in a random order

All arms of a seed have the same initial weights and the same number of steps under one
cycle of the learning rate. Accuracy is that of the last epoch on all test images; each
epoch 2,000 of them are looked at, for the curves. Each finished run is a record in --out
and is not made again; one seed of everything comes first.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import curriculum_tables
import harness
import made_up
import numpy as np
from cifar_teacher import WEIGHT_DECAY, cosine_sgd, load

import tfkd

WATCHED = 2_000  # test images that are looked at after each epoch


@dataclasses.dataclass(frozen=True)
class Arm:
    """What differs between runs.

    Attributes:
        noise: share of wrong labels.
        end: share of the data at the end of the pace; None: all of it from the start.
        start: share of the data at step 0; None: --start.
        order: in which examples come into play.
        lam: weight of the soft targets, 0: no teacher.
    """

    noise: float
    end: float | None = None
    start: float | None = None
    order: str = "easiest_first"
    lam: float = 0.0

    @property
    def is_plain(self) -> bool:
        return self.end is None and not self.lam


def arms(noise: float, end: float, both: float) -> dict[str, Arm]:
    """Every arm by name, the plain one first."""
    return {
        "plain": Arm(noise),
        "distilled": Arm(noise, lam=1.0),
        "curriculum": Arm(noise, end),
        "curriculum, distilled": Arm(noise, end, lam=both),
        "anti-curriculum": Arm(noise, end, order="hardest_first"),
        "random pacing": Arm(noise, end, order="random"),
        "selection": Arm(noise, end, end),
        "curriculum to 100 %": Arm(noise, 1.0),
    }


def chosen(args: Any) -> dict[tuple[float, str], Arm]:
    """The arms that are run, by noise and name."""
    noisy, clean = arms(args.noise, args.end, 0.3), arms(0.0, 1.0, 1.0)
    found = {(args.noise, name): noisy[name] for name in args.noisy or noisy}
    return found | {(0.0, name): clean[name] for name in args.clean}


def jobs(args: Any) -> list[tuple[float, str, int]]:
    """(noise, name, seed) in the order of the runs: teachers before their students."""
    found = []
    for seed in range(args.seeds):
        for noise in dict.fromkeys(noise for noise, _ in chosen(args)):
            found += [(noise, "plain", seed), (noise, "plain", teacher_seed(seed, args))]
            found += [(n, name, seed) for n, name in chosen(args) if n == noise]
    return list(dict.fromkeys(found))


def teacher_seed(seed: int, args: Any) -> int:
    return (seed + 1) % max(args.seeds, 2)


def settings_of(noise: float, name: str, seed: int, args: Any) -> dict[str, Any]:
    """All that makes a run what it is; other arms and the number of seeds do not."""
    arm = chosen(args)[noise, name]
    run = harness.settings(args, "clean", "end", "noise", "noisy", "seeds")
    if not arm.is_plain:
        run["teacher_seed"] = teacher_seed(seed, args)
    return {**run, "arm": name, **dataclasses.asdict(arm), "seed": seed}


class Bench:
    """The data, and the networks that were trained on it."""

    def __init__(self, args: Any, store: harness.Records):
        self.args, self.store = args, store
        x_train, y_train, x_test, y_test, self.scale = load(args.data)
        whole = tfkd.data.Dataset(x_train, y_train, x_test, y_test)
        self.data = whole.subset(train=args.images)
        self.watched = whole.subset(test=min(WATCHED, len(x_test)))
        self.steps = tfkd.data.steps_per_epoch(args.images, args.batch)

    def labels(self, noise: float) -> np.ndarray:
        """The training labels, a share of them wrong: one draw for all seeds."""
        y = self.data.y_train.copy()
        rng = np.random.default_rng(0)
        wrong = rng.permutation(len(y))[: round(noise * len(y))]
        y[wrong] = (y[wrong] + rng.integers(1, 10, len(wrong))) % 10
        return y

    def network(self) -> Any:
        widths = tuple(self.args.widths)
        return tfkd.models.resnet(self.args.depth, widths=widths, weight_decay=WEIGHT_DECAY)

    def teacher(self, noise: float, seed: int) -> Any:
        teacher = self.network()
        teacher.load_weights(str(self.weights(noise, teacher_seed(seed, self.args))))
        return teacher

    def weights(self, noise: float, seed: int) -> pathlib.Path:
        """The weights of a plain network, beside its record."""
        of = label(noise, "plain", seed), settings_of(noise, "plain", seed, self.args)
        return (self.store.file(*of) or self.store.path(*of)).with_suffix(".weights.h5")

    def difficulty(self, teacher: Any, noise: float, seed: int) -> np.ndarray:
        found = tfkd.curriculum.difficulty.teacher_loss(
            teacher,
            self.data.x_train,
            self.labels(noise),
            preprocess=self.scale,
            progress=False,
        )
        return found.scores

    def batches(self, arm: Arm, y: np.ndarray, scores: np.ndarray | None, seed: int) -> Any:
        x, batch = self.data.x_train, self.args.batch
        more: dict[str, Any] = {
            "seed": seed,
            "augment": tfkd.data.shift_and_flip(4),
            "preprocess": self.scale,
        }
        if arm.end is None:
            return tfkd.data.batches(x, y, batch, **more)
        last = round(self.args.grow * self.args.epochs * self.steps)
        pace = tfkd.schedules.Linear(arm.start or self.args.start, arm.end, end_step=last)
        more |= {"order": arm.order, "partial": True}
        return tfkd.curriculum.Curriculum((x, y), scores, pace, batch, **more).batches()

    def accuracy(self, model: Any, data: Any) -> float:
        test = tfkd.data.eval_batches(data.x_test, None, 500, preprocess=self.scale)
        return 100 * float((model.predict(test, verbose=0).argmax(1) == data.y_test).mean())


def compiled(student: Any, teacher: Any, arm: Arm, args: Any, steps: int) -> Any:
    """Ready to fit. The loss is CE + λ · T²KL, which a Distiller mixes as ½ (2 CE) + ½ (2λ KD)."""
    import tf_keras as keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = cosine_sgd(steps, args.peak)
    if not arm.lam:
        student.compile(optimizer, loss, metrics=["accuracy"])
        return student
    distiller = tfkd.Distiller(
        teacher,
        student,
        tfkd.losses.LogitsDistillation(args.temperature),
        distillation_loss_weights=[2 * arm.lam],
        student_loss_weight=0.5,
    )
    distiller.compile(optimizer, loss, metrics=["accuracy"], loss_weights=[2.0])
    return distiller


def run(bench: Bench, noise: float, name: str, seed: int) -> dict[str, Any]:
    """Makes one run; returns its record."""
    import tf_keras as keras

    args, arm = bench.args, chosen(bench.args)[noise, name]
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    y, y_true = bench.labels(noise), bench.data.y_train
    student = bench.network()
    teacher = scores = clean_half = None
    if not arm.is_plain:
        teacher = bench.teacher(noise, seed)
        scores = bench.difficulty(teacher, noise, seed)
        easiest = np.argsort(scores, kind="stable")[: len(y) // 2]
        clean_half = 100 * float((y == y_true)[easiest].mean())
    curve: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: curve.append(bench.accuracy(student, bench.watched))
    )
    history = compiled(student, teacher, arm, args, args.epochs * bench.steps).fit(
        bench.batches(arm, y, scores, seed),
        steps_per_epoch=bench.steps,
        epochs=args.epochs,
        verbose=0,
        callbacks=[watch],
    )
    accuracy = bench.accuracy(student, bench.data)
    if arm.is_plain:
        path = bench.weights(noise, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        student.save_weights(str(path))
    return {
        "arm": name,
        **dataclasses.asdict(arm),
        "seed": seed,
        "accuracy": accuracy,
        "curve": curve,
        "steps_per_epoch": bench.steps,
        "clean_in_easiest_half": clean_half,
        "settings": harness.settings(args),
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
    }


def label(noise: float, name: str, seed: int) -> str:
    return f"noise{noise:g}-{name}-{seed}"


def parse() -> Any:
    parser = harness.Parser(
        __doc__, "saved_models/curriculum_cifar", data=made_up.cifar, depth=8, widths=[4],
        images=200, batch=16, epochs=2, seeds=1, clean=["plain"],
    )  # fmt: skip
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--depth", type=int, default=20, help="of all ResNets")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of stages")
    parser.add_argument("--images", type=int, default=5_000, help="training images")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--epochs", type=int, default=14, help="passes; all arms make its steps")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--noise", type=float, default=0.4, help="share of wrong labels")
    parser.add_argument("--start", type=float, default=0.3, help="share of the data at first")
    parser.add_argument("--end", type=float, default=0.6, help="the same at last, with noise")
    parser.add_argument("--grow", type=float, default=0.75, help="part of the steps of the pace")
    parser.add_argument(
        "--noisy", nargs="+", metavar="ARM", help="arms with wrong labels (default: all)"
    )
    parser.add_argument(
        "--clean", nargs="*", default=["plain", "curriculum"], help="arms with right labels"
    )
    parser.add_argument("--temperature", type=float, default=4.0, help="of the soft targets")
    parser.add_argument("--peak", type=float, default=0.05, help="of the learning rate")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    if not args.data and not args.table:
        parser.error("--data is needed to train")
    return args


def main() -> None:
    args = parse()
    bench, digests = None, {}
    if not args.table:
        harness.threads(args.threads)
        digests = {"images": harness.digest(args.data)}
    store = harness.Records(args, **digests)
    if not args.table:
        bench = Bench(args, store)
    records = [
        store.run(label(*job), settings_of(*job, args), lambda job=job: run(bench, *job))
        for job in jobs(args)
    ]
    made = [record for record in records if record]
    harness.show(args, curriculum_tables.write(made, pathlib.Path(args.out)), records=made)


if __name__ == "__main__":
    main()
