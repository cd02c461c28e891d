"""Distillation and curriculum learning of a small text classifier on SST-2.

    python benchmarks/curriculum_text.py --data sst2 --teacher minilm.npz --from-nothing
    python benchmarks/curriculum_text.py --data sst2 --teacher minilm.npz --settings
    python benchmarks/curriculum_text.py --data sst2 --teacher minilm.npz --why

--data is a folder with train.tsv, dev.tsv and test.tsv; --teacher is the file that
benchmarks/minilm_embeddings.py makes: the logits of a pretrained transformer with a head
that was fitted to the training sentences, those of training sentences out of fold.
The student is the mean of word vectors and one hidden layer. Its arms, with the same
initial weights, steps and learning rates for each seed:

    alone         the labels
    curriculum    the labels; the easiest sentences first, by the teacher's loss
    distilled     half of the loss on the labels, half on the teacher's logits
    progressive   both, in stages: easy sentences, more and more of them, all

The teacher's logits are part of the batch, a dict {"tokens", "teacher_logits"}. A Keras
model takes its inputs from it by name, and the teacher is a function that returns the
other entry.

--from-nothing also trains a transformer on the same sentences from random weights, to see
whether that would do as teacher. --settings tries settings on dev instead, with seeds of
its own; what the tables are made with was chosen there. --why takes the progressive arm
apart, on dev: orders that know nothing of the teacher, the teacher in some stages only, a
shorter start. Accuracy is that of the last epoch on test. Writes table.md into --out.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import harness
import made_up
import shared


def parse() -> Any:
    parser = harness.Parser(
        __doc__, data=made_up.sentences, teacher=made_up.answers, seeds=1, epochs=4, rounds=5
    )
    parser.add_argument("--data", required=True, help="folder with train, dev and test.tsv")
    parser.add_argument("--teacher", required=True, help=".npz file of minilm_embeddings.py")
    parser.add_argument("--out", default="saved_models/curriculum_text", help="folder")
    parser.add_argument("--seeds", type=int, default=10, help="students of each arm")
    parser.add_argument("--first-seed", type=int, default=10, help="the others count on")
    parser.add_argument("--epochs", type=int, default=10, help="passes in every arm")
    parser.add_argument("--rounds", type=int, default=200, help="runs of each file")
    parser.add_argument("--from-nothing", action="store_true", help="train a transformer, too")
    parser.add_argument("--settings", action="store_true", help="try settings on dev instead")
    parser.add_argument("--why", action="store_true", help="take the progressive arm apart")
    parser.add_argument("--variants", type=int, help="of --why, the first so many")
    parser.add_argument("--part", choices=("dev", "test"), help="of the scores (default: as said)")
    return parser.parse_args()


if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = parse()

import tfkd  # before TensorFlow: it asks for Keras 2

# isort: split
import numpy as np
import tf_keras as keras

from tfkd import artifacts, data, export, models, report, runtime, schedules
from tfkd.curriculum import Curriculum, Stage, difficulty
from tfkd.losses import LogitsDistillation

ARMS = ("alone", "curriculum", "distilled", "progressive")
VOCABULARY, LENGTH = 14_000, 48  # every training word; the longest training sentence
BATCH, RATE = 64, 1e-3
DROPOUT = 0.5
WEIGHT, TEMPERATURE = 0.5, 1.0
START, EASY, ALL = 0.3, 0.1, 0.5  # share of the data at first; shares of the epochs
LARGE = {"layers": 2, "width": 128, "heads": 4, "dropout": 0.3}
LARGE_EPOCHS, LARGE_RATE = 5, 3e-4
# all-MiniLM-L6-v2 as one of tfkd's own models: as large, to be timed in the same runtime.
MINILM = {"vocab_size": 30_522, "layers": 6, "width": 384, "heads": 12}
SAY = shared.Say()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def teacher(x: dict[str, Any]) -> Any:
    """The stored logits of a batch."""
    return x["teacher_logits"]


class Bench:
    """The sentences, the teacher's logits, and runs of students on them."""

    def __init__(self, args: Any):
        self.tokens = data.tsv(args.data).vectorize(VOCABULARY, LENGTH)
        with np.load(args.teacher) as file:
            self.logits = {part: file[f"logits_{part}"] for part in ("train", "dev", "test")}
            self.about = json.loads(str(file["document"]))
        self.x = {"tokens": self.tokens.x_train, "teacher_logits": self.logits["train"]}
        self.difficulty = difficulty.teacher_loss(
            teacher, self.x, self.tokens.y_train, progress=False
        )
        self.steps = data.steps_per_epoch(len(self.tokens.x_train), BATCH)
        rng = np.random.default_rng(0)
        self.orders = {
            "teacher": self.difficulty,
            "hardest first": -np.asarray(self.difficulty),
            "random": rng.random(len(self.tokens.x_train)),
            "length": np.sum(np.asarray(self.tokens.x_train) != 0, 1),
        }
        self.part = args.part or ("dev" if args.settings or args.why else "test")
        self.epochs, self.rounds = args.epochs, args.rounds

    @property
    def labels(self) -> np.ndarray:
        return getattr(self.tokens, f"y_{self.part}")

    def outputs(self, model: Any) -> np.ndarray:
        x = getattr(self.tokens, f"x_{self.part}")
        return model.predict(x, batch_size=512, verbose=0)

    def student(self) -> keras.Model:
        sizes = (self.tokens.vocab_size, self.tokens.num_classes, LENGTH)
        return models.text_mlp(*sizes, width=32, hidden=(64,), dropout=DROPOUT)

    def large(self, **changes: Any) -> keras.Model:
        sizes = (self.tokens.vocab_size, self.tokens.num_classes, LENGTH)
        return models.text_transformer(*sizes, **{**LARGE, **changes})

    def optimizer(self, epochs: int, rate: float = RATE) -> Any:
        decay = keras.optimizers.schedules.CosineDecay(rate, self.steps * epochs)
        return keras.optimizers.Adam(decay)

    def sentences(self, seed: int, order: str = "teacher") -> Curriculum:
        """All training sentences in shuffled epochs, unless stages set another pace."""
        examples = (self.x, self.tokens.y_train)
        return Curriculum(examples, self.orders[order], 1.0, BATCH, seed=seed)

    def stages(
        self, epochs: int, start: float, weights: tuple[float, ...], share: float = ALL
    ) -> list[Stage]:
        """The easiest part, more and more, all; each with its weight of the labels."""
        easy = max(round(EASY * epochs), 1)
        last = min(max(round(share * epochs), 1), epochs - easy - 1)
        growing = epochs - easy - last
        grow = schedules.Linear(start, 1.0, end_step=self.steps * growing)
        return [
            Stage(easy, "easy", fraction=start, student_loss_weight=weights[0]),
            Stage(growing, "growing", fraction=grow, student_loss_weight=weights[1]),
            Stage(last, "all", fraction=1.0, student_loss_weight=weights[2]),
        ]

    def train(
        self,
        arm: str,
        seed: int,
        epochs: int | None = None,
        weight: float = WEIGHT,
        temperature: float = TEMPERATURE,
        start: float = START,
        weights: tuple[float, ...] | None = None,
        order: str = "teacher",
        share: float = ALL,
    ) -> np.ndarray:
        """Trains a student; returns its outputs on the test part."""
        keras.utils.set_random_seed(seed)
        epochs = epochs or self.epochs
        student, soft = self.student(), LogitsDistillation(temperature)
        weight = weight if arm in ("distilled", "progressive") else 1.0
        if arm in ("curriculum", "progressive"):
            stages = self.stages(epochs, start, weights or (weight,) * 3, share)
            staged = tfkd.ProgressiveDistiller(teacher, student, stages, soft)
            staged.compile(self.optimizer(epochs), LOSS)
            staged.fit(self.sentences(seed, order), verbose=0)
        else:
            model = tfkd.Distiller(teacher, student, soft, student_loss_weight=weight)
            model.compile(self.optimizer(epochs), LOSS)
            train = self.sentences(seed).batches()
            model.fit(train, steps_per_epoch=self.steps, epochs=epochs, verbose=0)
        return self.outputs(student)

    def train_large(
        self, seed: int, epochs: int = LARGE_EPOCHS, rate: float = LARGE_RATE, **changes: Any
    ) -> np.ndarray:
        """Trains a transformer from random weights; returns its outputs on the test part."""
        keras.utils.set_random_seed(seed)
        model = self.large(**changes)
        model.compile(self.optimizer(epochs, rate), LOSS)
        train = data.batches(self.tokens.x_train, self.tokens.y_train, BATCH, seed=seed)
        model.fit(train, steps_per_epoch=self.steps, epochs=epochs, verbose=0)
        return self.outputs(model)

    def timed(self) -> dict[str, dict[str, float]]:
        """Size and latency of each network as a float32 TFLite file, in turns, one thread."""
        minilm = {**MINILM, "max_length": LENGTH, "num_classes": self.tokens.num_classes}
        made = {
            "student": self.student(),
            "from nothing": self.large(),
            "of MiniLM's size": models.text_transformer(**minilm),
        }
        example = self.tokens.x_test[:1]
        runners: dict[str, Callable[[], Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for index, (name, model) in enumerate(made.items()):
                path = pathlib.Path(folder, f"{index}.tflite")
                export.to_tflite(model, path)
                predictor = runtime.Predictor(path, threads=1)
                runners[name] = lambda predictor=predictor: predictor.run_one(example)
            times = harness.in_turns(runners, self.rounds, warmup=5)
        return {
            name: {
                "parameters": model.count_params(),
                "p50": float(np.median(times[name])),
                "p99": float(np.percentile(times[name], 99)),
            }
            for name, model in made.items()
        }


def settings(bench: Bench) -> None:
    """Accuracy on dev of what was looked at, seeds 0 to 2."""
    tried: list[tuple[str, dict[str, Any]]] = [
        *((arm, {"epochs": n}) for n in (5, 10, 20) for arm in ARMS),
        *(("distilled", {"weight": w, "temperature": t}) for w in (0.0, 0.3, 0.7) for t in (1, 2)),
        *(("progressive", {"weight": w}) for w in (0.3, 0.7)),
        ("progressive", {"start": 0.5}),
        ("progressive", {"weights": (0.3, 0.5, 0.7)}),
        ("progressive", {"weights": (0.7, 0.5, 0.3)}),
    ]
    for arm, changes in tried:
        found = [bench.train(arm, seed, **changes) for seed in range(3)]
        scores = report.seed_stats([report.accuracy(bench.labels, z) for z in found])
        SAY(f"{arm} {changes}: {scores}")
    small = {"width": 64, "rate": 1e-3}
    for changes in ({}, {"epochs": 8}, small, {**small, "dropout": 0.1}, {"width": 64}):
        accuracy = report.accuracy(bench.labels, bench.train_large(0, **changes))
        SAY(f"transformer from nothing {changes}: {accuracy:.1f}")


WHY: list[tuple[str, dict[str, Any]]] = [
    ("alone", {}),
    ("curriculum", {}),
    ("distilled", {}),
    ("progressive", {}),
    ("curriculum", {"order": "random"}),
    ("curriculum", {"order": "hardest first"}),
    ("curriculum", {"order": "length"}),
    ("progressive", {"order": "random"}),
    ("progressive", {"order": "hardest first"}),
    ("progressive", {"order": "length"}),
    ("progressive", {"weights": (1.0, 1.0, WEIGHT)}),
    ("progressive", {"weights": (WEIGHT, WEIGHT, 1.0)}),
    ("progressive", {"start": 0.6}),
    ("progressive", {"share": 0.8}),
    ("progressive", {"temperature": 3.0}),
    ("progressive", {"epochs": 20}),
    ("distilled", {"epochs": 20}),
]


def why(bench: Bench, args: Any) -> None:
    """What each change of the progressive arm gains over the student alone, seed by seed."""
    rows, found = [], {}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    right = bench.logits[bench.part].argmax(1) == bench.labels  # the teacher is
    for arm, changes in WHY[: args.variants]:
        outputs = [bench.train(arm, seed, **changes) for seed in seeds]
        scores = [report.accuracy(bench.labels, one) for one in outputs]
        split = [
            [report.accuracy(bench.labels[which], one[which]) for one in outputs]
            for which in (right, ~right)
        ]
        shown = ", ".join(f"{name}={value}" for name, value in changes.items())
        found[f"{arm} {shown}"] = scores
        gains = np.subtract(scores, found["alone "])
        cells = [harness.spread(values, 1) for values in (scores, *split)]
        rows.append([arm, shown, *cells, harness.spread(gains)])
        SAY(f"{arm} {shown}: {', '.join(rows[-1][2:])}")
    head = ["arm", "what differs", f"accuracy % on {bench.part}", "where the teacher is right"]
    head += ["where it is wrong", "points over alone"]
    harness.show(args, harness.table(head, rows, left=2), accuracy=found)


def scores_of(bench: Bench, outputs: list[np.ndarray]) -> dict[str, report.SeedStats]:
    """Accuracy, F1, precision and recall over seeds."""
    names = ("negative", "positive")
    found = [report.classification(bench.labels, z, names) for z in outputs]
    columns = {"accuracy %": [f.accuracy for f in found], "mean F1 %": [f.macro.f1 for f in found]}
    for index, name in enumerate(names):
        rows = [f.classes[index] for f in found]
        columns[f"precision, {name}"] = [row.precision for row in rows]
        columns[f"recall, {name}"] = [row.recall for row in rows]
    return {column: report.seed_stats(values) for column, values in columns.items()}


def markdown(bench: Bench, runs: dict[str, list[np.ndarray]], times: dict[str, Any]) -> str:
    """The tables for RESULTS.md."""
    scores = {name: scores_of(bench, outputs) for name, outputs in runs.items()}
    rows = [[name, *(s.format() for s in one.values())] for name, one in scores.items()]
    tables = [
        harness.table(["model", *next(iter(scores.values()))], rows),
        gain_table(bench, runs),
        time_table(times),
    ]
    about = f"{bench.tokens!r}; the teacher has {bench.about['parameters']:,} parameters."
    return "\n".join([*tables, about]) + "\n"


def gain_table(bench: Bench, runs: dict[str, list[np.ndarray]]) -> str:
    """What each arm gains over the student alone of the same seed."""
    accuracies = {k: np.array([report.accuracy(bench.labels, z) for z in runs[k]]) for k in ARMS}
    rows = []
    for arm in ARMS[1:]:
        gains = accuracies[arm] - accuracies["alone"]
        rows.append([arm, harness.spread(gains), ", ".join(f"{gain:+.1f}" for gain in gains)])
    return harness.table(["gain in accuracy over alone", "mean ± sd", "seed by seed"], rows)


def time_table(times: dict[str, Any]) -> str:
    """What each network costs."""
    head = ["network", "parameters", "p50 ms", "p99 ms", "slower than the student"]
    rows = []
    for name, one in times.items():
        cells = [f"{one['parameters']:,}", f"{one['p50']:.4g}", f"{one['p99']:.4g}"]
        rows.append([name, *cells, f"{one['p50'] / times['student']['p50']:,.0f} ×"])
    return harness.table(head, rows)


def measure(bench: Bench, args: Any) -> None:
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[np.ndarray]] = {"teacher": [bench.logits["test"]]}
    runs |= {arm: [] for arm in ARMS}
    SAY(f"teacher: {report.accuracy(bench.labels, runs['teacher'][0]):.1f}")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm in ARMS:
            runs[arm].append(bench.train(arm, seed))
            SAY(f"seed {seed} {arm}: {report.accuracy(bench.labels, runs[arm][-1]):.1f}")
    if args.from_nothing:
        runs["transformer from nothing"] = []
        for seed in range(args.first_seed, args.first_seed + 3):
            runs["transformer from nothing"].append(bench.train_large(seed))
            SAY(f"seed {seed}, a transformer from nothing")
    times = bench.timed()
    text = markdown(bench, runs, times)
    artifacts.write_text(out / "table.md", text)
    accuracies = {k: [report.accuracy(bench.labels, z) for z in v] for k, v in runs.items()}
    SAY("done")
    harness.show(args, text, teacher=bench.about, accuracy=accuracies, times=times)


def main() -> None:
    # Keras warns of the entry of a batch that the student does not take.
    warnings.filterwarnings("ignore", message="Input dict contained keys")
    bench = Bench(ARGS)
    SAY(f"{bench.tokens!r}, {bench.difficulty!r}")
    if ARGS.settings:
        settings(bench)
    elif ARGS.why:
        why(bench, ARGS)
    else:
        measure(bench, ARGS)


if __name__ == "__main__":
    main()
