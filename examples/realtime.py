"""Sub-millisecond inference: prune a transformer's layers, distil, quantize, cache results.

    python examples/realtime.py
    python examples/realtime.py --data=folder_with_tsv
    python examples/realtime.py --data=folder_with_tsv --answers=bert.npz

1. Train a transformer with four layers: the original. The digits are read as sequences,
   each pixel a token; `--data` takes texts, a folder with `train.tsv` and `test.tsv`.
   With `--answers` it is distilled from an external model: a `.npz` file with
   `logits_train` (N, C), one row per training text, from PyTorch or another machine.
2. Store the outputs of the original for the training data in a `TeacherCache`. From here
   on no teacher runs.
3. Remove the least important half and three quarters of the original's layers, and distil
   each of the two from the cache.
4. Quantize each (quantization-aware distillation), and export it: float32, float16,
   dynamic, int8.
5. Serve the smallest with `runtime.Predictor`: repeated inputs are answered from a cache of
   results, and calls from several threads are batched.
6. Print one table of all models, and write a page: table.html.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, Say, flag, parse, positive

flag("data", "digits", "digits, or a folder with train.tsv and test.tsv")
flag("answers", None, ".npz with logits_train of an external teacher")
flag("out", None, "folder to write to; default saved_models/realtime_DATA")
flag("layers", 4, "encoder layers of the original")
flag("width", None, "its width; default 48 for digits, 128 for texts", type=int)
flag("choose", "damage", "what layers are judged by", choices=("position", "similarity", "damage"))
flag("teacher-epochs", None, "passes that train the original", type=int)
flag("epochs", None, "passes that distil each cut model", type=int)
flag("quantize-epochs", 2, "quantization-aware passes")
flag("batch-size", 32, "examples per step")
flag("weight", 0.3, "weight of the loss on the labels, in [0, 1]")
flag("temperature", 2.0, "softens both models' probabilities")
flag("seconds", 2.0, "duration of the server test with eight threads")
flag("seed", 0, "seed of the weights and of the batches")
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging

from tfkd import checks, data, export, models, pruning, quantization, report, runtime
from tfkd.losses import LogitsDistillation

VOCABULARY, LENGTH = 14_000, 48
RATES = {False: 2e-3, True: 5e-4}  # peak of the learning rate: pixels, texts
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Token ids (N, L) and class numbers, for training and for the test."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    vocabulary: int
    classes: int


def load(name: str) -> Sequences:
    """The digits as sequences of 64 pixels of 17 shades, or texts."""
    if name == "digits":
        digits = data.digits(test_fraction=0.3)
        train, test = (
            1 + (x.reshape(len(x), -1) // 15).astype("int32")
            for x in (digits.x_train, digits.x_test)
        )
        return Sequences(name, train, digits.y_train, test, digits.y_test, 19, 10)
    texts = data.tsv(name).vectorize(VOCABULARY, LENGTH)
    return Sequences(
        pathlib.Path(name).name, texts.x_train, texts.y_train, texts.x_test, texts.y_test,
        texts.vocab_size, texts.num_classes,
    )  # fmt: skip


class Bench:
    """The data, and the training and evaluation of all models."""

    def __init__(self, sequences: Sequences, out: pathlib.Path, seed: int):
        self.data, self.out, self.seed = sequences, out, seed
        self.steps = data.steps_per_epoch(len(sequences.x_train), FLAGS.batch_size)
        self.say = Say()
        self.is_text = sequences.name != "digits"
        self.epochs = FLAGS.epochs or (4 if self.is_text else 12)
        self.teacher_epochs = FLAGS.teacher_epochs or (6 if self.is_text else 24)

    @property
    def x_train(self) -> np.ndarray:
        return self.data.x_train

    def accuracy(self, model: Any) -> float:
        outputs = model.predict(self.data.x_test, batch_size=256, verbose=0)
        return report.accuracy(self.data.y_test, outputs)

    def transformer(self, layers: int) -> keras.Model:
        sequences = self.data
        return models.text_transformer(
            sequences.vocabulary, sequences.classes, sequences.x_train.shape[1], layers=layers,
            width=FLAGS.width or (128 if self.is_text else 48), heads=4,
            dropout=0.3 if self.is_text else 0.0, name=f"transformer{layers}",
        )  # fmt: skip

    def fit(self, model: Any, batches: Any, epochs: int, slower: float = 1.0) -> None:
        """Trains with Adam and cosine decay of the learning rate."""
        rate = RATES[self.is_text] / slower
        decay = keras.optimizers.schedules.CosineDecay(rate, self.steps * epochs)
        model.compile(keras.optimizers.Adam(decay, clipnorm=1.0), LOSS)
        model.fit(batches, steps_per_epoch=self.steps, epochs=epochs, verbose=0)

    def plain(self) -> Any:
        return data.batches(self.x_train, self.data.y_train, FLAGS.batch_size, seed=self.seed)

    def distil(
        self, cache: tfkd.TeacherCache, student: Any, epochs: int, slower: float = 1.0
    ) -> None:
        """Distils from the cache."""
        soft = LogitsDistillation(FLAGS.temperature)
        distiller = tfkd.Distiller(cache, student, soft, student_loss_weight=FLAGS.weight)
        batches = cache.batches(
            self.x_train, self.data.y_train, FLAGS.batch_size, seed=self.seed + 1
        )
        self.fit(distiller, batches, epochs, slower)


def train_original(bench: Bench, layers: int, epochs: int, answers: str | None) -> keras.Model:
    """Step 1: trains on the labels, or distils from an external teacher."""
    original = bench.transformer(layers)
    if answers is None:
        bench.fit(original, bench.plain(), epochs)
        return original
    with np.load(answers) as file:
        logits = file["logits_train"]
    cache = tfkd.TeacherCache.from_predictions(
        bench.out / "answers", logits, bench.x_train, source=answers, overwrite=True
    )
    bench.say(f"an external teacher: {cache}")
    bench.distil(cache, original, epochs)
    return original


def write_down(bench: Bench, original: keras.Model) -> tfkd.TeacherCache:
    """Step 2: caches the outputs of the original."""
    cache = tfkd.TeacherCache.build(
        bench.out / "cache", original, bench.x_train, overwrite=True, progress=False
    )
    bench.say(f"cached the outputs of the original: {cache}")
    return cache


def cut(bench: Bench, original: keras.Model, share: float, by: str) -> keras.Model:
    """Step 3, before training: the original without its least important layers."""
    rows = np.random.default_rng(bench.seed).permutation(len(bench.x_train))[:256]
    examples = None if by == "position" else bench.x_train[rows]
    choice = pruning.choose_layers(original, share, by, examples, granularity="layer")
    print(choice)
    return pruning.cut_layers(original, drop=choice)


def quantized(bench: Bench, cache: Any, model: keras.Model, epochs: int) -> Any:
    """Step 4: quantization-aware distillation."""
    made = quantization.quantize(model, target="tflite")
    quantization.calibrate(made, bench.x_train[:300])
    bench.distil(cache, made, epochs, slower=5.0)
    return made


def write(bench: Bench, model: Any, name: str, mode: str | None = None) -> pathlib.Path:
    """Writes a file with a dynamic batch size, and compares it with its model."""
    path = bench.out / f"{name}.tflite"
    export.to_tflite(model, path, mode=mode, batch_size=None, verify=bench.data.x_test[:200])
    return path


def serve(bench: Bench, path: pathlib.Path, seconds: float) -> None:
    """Step 5: eight threads share one predictor, and all outputs are verified."""
    x = bench.data.x_test
    expected = runtime.Predictor(path)(x)
    with runtime.Predictor(path, batch=8) as server:
        asked, wrong = [0] * 8, [0] * 8
        until = time.monotonic() + seconds

        def client(number: int) -> None:
            random = np.random.default_rng(number)
            while time.monotonic() < until:
                row = random.integers(len(x))
                answer = server(x[row : row + 1])
                asked[number] += 1
                wrong[number] += not np.allclose(answer[0], expected[row], rtol=1e-3, atol=1e-3)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rate = sum(asked) / seconds
    bench.say(f"8 threads, one example per call: {rate:,.0f} per second, {sum(wrong)} wrong")


def repeated(bench: Bench, path: pathlib.Path) -> Any:
    """A predictor whose cache of results holds all test examples."""
    predictor = runtime.Predictor(path, cache_size=len(bench.data.x_test))
    predictor(bench.data.x_test)
    return lambda x: predictor(x)


def measure(
    bench: Bench, found: dict[str, Any], like: dict[str, keras.Model], notes: list[str]
) -> report.Table:
    """Step 6: the comparison table."""
    table = report.compare(found, (bench.data.x_test, bench.data.y_test), like=like)
    table = dataclasses.replace(table, notes=[*notes, *table.notes])
    table.save(bench.out)
    table.to_tensorboard(bench.out / "logs")
    print(table)
    return table


def run(bench: Bench, answers: str | None) -> report.Table:
    """All steps; returns the table."""
    keras.utils.set_random_seed(bench.seed)
    original = train_original(bench, FLAGS.layers, bench.teacher_epochs, answers)
    bench.say(f"original: {bench.accuracy(original):.2f} %")
    cache = write_down(bench, original)
    found: dict[str, Any] = {"original": original}
    like: dict[str, keras.Model] = {}
    for share, name in ((0.5, "half"), (0.25, "quarter")):
        small = cut(bench, original, share, FLAGS.choose)
        before = bench.accuracy(small)
        bench.distil(cache, small, bench.epochs)
        bench.say(f"{name}: {before:.2f} % when cut, {bench.accuracy(small):.2f} % distilled")
        found[name] = small
        files = {"float16": "float16", "dynamic": "dynamic"} if name == "quarter" else {}
        for mode in files:
            found[f"{name}, {mode}"] = write(bench, small, f"{name}_{mode}", mode)
            like[f"{name}, {mode}"] = small
        aware = quantized(bench, cache, small, FLAGS.quantize_epochs)
        found[f"{name}, int8"] = write(bench, aware, f"{name}_int8")
        like[f"{name}, int8"] = small
        bench.say(f"{name}, int8: written and verified")
    serve(bench, found["quarter, int8"], FLAGS.seconds)
    found["seen before"] = repeated(bench, found["quarter, int8"])
    notes = [
        f"{bench.data.name}: {len(bench.x_train):,} training and {len(bench.data.x_test):,} test "
        f"sequences of {bench.x_train.shape[1]} tokens; seed {bench.seed}, last epoch.",
        "seen before: `quarter, int8` with all outputs in the cache of results.",
    ]
    return measure(bench, found, like, notes)


def check_flags() -> None:
    """Checks the flags before anything is trained."""
    positive("layers", "width", "teacher-epochs", "epochs", "quantize-epochs", "batch-size")
    checks.fraction("weight", FLAGS.weight)
    checks.positive("temperature", FLAGS.temperature)
    checks.positive("seconds", FLAGS.seconds)
    if FLAGS.layers < 4:
        raise checks.value_error("layers", "at least 4, to be cut to a quarter", FLAGS.layers)


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    check_flags()
    sequences = load(FLAGS.data)
    out = pathlib.Path(FLAGS.out or f"saved_models/realtime_{sequences.name}")
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(sequences, out, FLAGS.seed)
    run(bench, FLAGS.answers)
    bench.say(f"wrote {out}: table.html, and tensorboard --logdir {out / 'logs'}")


if __name__ == "__main__":
    main()
