"""Gradual filter pruning by filter decay with self-distillation (FD-SKD): half of the MACs.

    python examples/filter_decay.py
    python examples/filter_decay.py --method=hard
    python examples/filter_decay.py --data=cifar10.npz --model=resnet56 --base-epochs=100 \
        --epochs=100 --batch-size=128

The recipe is that of filter decay with self-knowledge distillation (FD-SKD):

1. Train a network to convergence: the base. A copy of it becomes the teacher, so an
   undertrained base limits the pruned network.
2. Plan how many filters of each layer to remove.
3. Train for a quarter of the epochs with the base as teacher while, 16 times, the
   least important filters are multiplied by a factor that falls from 1 to 0.
4. Remove the filters that are zero. The smaller network computes the same function.
5. Train the smaller network for the other epochs, with the base as teacher.
6. Measure both: accuracy, multiply-accumulates, parameters, latency in LiteRT.

`--method` selects a variant with the same number of steps: `fd` without the teacher;
`soft` zeroes filters as often and lets them recover until they are removed (soft
filter pruning); `hard` removes them at the start; `none` does not prune. Writes the
models, TensorBoard logs, a table and plots to `--out`. All scores are those of the
last epoch.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from shared import FLAGS, Say, flag, parse, positive

flag("data", "digits", "digits, a Keras name, a .npz file or a folder")
flag("out", None, "folder to write to; default saved_models/filter_decay_DATA")
flag("tensorboard", None, "folder of the logs; default logs in --out")
flag("model", "resnet14", "vgg16, or resnetDEPTH[:width,width,...]")
METHODS = ("fd-skd", "fd", "soft", "hard", "none")
flag("method", "fd-skd", "how filters are removed", choices=METHODS)
flag("macs-reduction", 0.5, "fraction of the MACs to remove")
flag("residual", "inner", "inner: keep the width of residual sums", choices=("inner", "coupled"))
CRITERIA = ("l1", "l2", "geometric_median", "random")
flag("criterion", "l2", "importance of a filter", choices=CRITERIA)
flag("base-epochs", 60, "passes that train the base")
flag("epochs", 40, "passes after that: filter decay and fine-tuning")
flag("batch-size", 32, "images per step")
flag("seed", 0, "seed of the weights and of the batches")
flag("temperature", 4.0, "softens both models' probabilities")
flag("weight", 1.0, "λ: the weight of the distillation loss")
parse()  # before TensorFlow is imported: --help answers at once

import tfkd  # before TensorFlow: selects Keras 2

# isort: split
import numpy as np
import tf_keras as keras
from absl import logging

from tfkd import checks, data, export, pruning, report
from tfkd.recipes.models import build as build_model

DIGITS_TEST_FRACTION = 0.75  # the digits are easy: with more images every model is perfect
BASE_RATE, PRUNING_RATE = 0.1, 0.02  # peaks of the learning rate
DECAYS = 16  # of each filter before it is zero
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(dataset: data.Dataset) -> keras.Model:
    """ "vgg16", or "resnet8:4,8,16" → a network for the data set's images."""
    return build_model(FLAGS.model, dataset.num_classes, dataset.image_shape)


class Trainer:
    """Trains models on one data set; each call of `fit` continues after the last one.

    Args:
        dataset: the images.
        logs: folder for TensorBoard.
        peak: the highest learning rate: it rises over a tenth of the steps, and
            falls to 0 along a cosine.
        epochs: all epochs, over all calls of `fit`.
    """

    def __init__(self, dataset: data.Dataset, logs: pathlib.Path, peak: float, epochs: int):
        self.dataset, self.logs, self.epochs = dataset, logs, epochs
        self.batch = min(FLAGS.batch_size, len(dataset.x_train))
        self.steps = data.steps_per_epoch(len(dataset.x_train), self.batch)
        warmup = self.steps * epochs // 10
        rate = keras.optimizers.schedules.CosineDecay(
            peak / 20, self.steps * epochs - warmup, warmup_target=peak, warmup_steps=warmup
        )
        self.optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
        self.curve: list[float] = []  # test accuracy (%) after each epoch

    def fit(self, model, until: int, name: str, teacher=None, callbacks=()) -> None:
        """Trains `model` up to epoch `until`, alone or with a teacher."""
        dataset, first = self.dataset, len(self.curve)
        # Random shifts, and flips except for digits; the same in every run of a seed.
        flip = dataset.name not in ("digits", "mnist")
        train = data.batches(
            dataset.x_train,
            dataset.y_train,
            self.batch,
            seed=FLAGS.seed,
            augment=data.shift_and_flip(dataset.image_shape[0] // 8, flip=flip),
            preprocess=dataset.preprocess,
            start_step=first * self.steps,
        )
        test = data.eval_batches(dataset.x_test, dataset.y_test, 500, preprocess=dataset.preprocess)
        history = self.compile(model, teacher).fit(
            train,
            steps_per_epoch=self.steps,
            initial_epoch=first,
            epochs=until,
            validation_data=test,
            callbacks=[*callbacks, tfkd.callbacks.TensorBoard(str(self.logs / name))],
            verbose=0,
        )
        self.curve += [100 * value for value in history.history["val_accuracy"]]

    def compile(self, model, teacher):
        """The model, or a Distiller for it: minimizes cross-entropy + λ · T²KL.

        A Distiller minimizes w · (loss on the labels) + (1 − w) · (distillation loss):
        with w = ½, weights of 2 and 2λ of the two losses give this sum.
        """
        if teacher is None:
            model.compile(self.optimizer, LOSS, metrics=["accuracy"])
            return model
        distiller = tfkd.Distiller(
            teacher,
            model,
            tfkd.losses.LogitsDistillation(temperature=FLAGS.temperature),
            distillation_loss_weights=[2 * FLAGS.weight],
            student_loss_weight=0.5,
        )
        distiller.compile(self.optimizer, LOSS, metrics=["accuracy"], loss_weights=[2.0])
        return distiller


def make_plan(model) -> pruning.Plan:
    """Plans the number of filters to remove per layer; the selection is updated each epoch."""
    return pruning.plan(
        model,
        macs_reduction=FLAGS.macs_reduction,
        residual=FLAGS.residual,
        criterion=FLAGS.criterion,
        seed=FLAGS.seed,
    )


def decay_filters(model, plan, trainer: Trainer, teacher, say: Say) -> pruning.Selection:
    """Decays the least important filters in a quarter of the epochs; returns them."""
    epochs = max(FLAGS.epochs // 4, 1)
    schedule = pruning.AnnealedFilterDecay(
        target_sparsity=FLAGS.macs_reduction,
        begin_step=0,
        end_step=epochs * trainer.steps,
        frequency=max(epochs * trainer.steps // DECAYS, 1),
        anneal="linear",
        initial_decay=0.0 if FLAGS.method == "soft" else 1.0,
    )
    decay = tfkd.callbacks.FilterDecay(plan, schedule, log_dir=trainer.logs / "decay")
    say(f"{FLAGS.method}: filters decay for {epochs} epochs")
    trainer.fit(model, epochs, "decay", teacher, [decay])
    return decay.selection


def cut_out(model, selection, trainer: Trainer, x_test, out: pathlib.Path, say: Say):
    """Removes the selected filters, and verifies that nothing else has changed."""
    masked = tfkd.frozen_copy(model)
    pruning.apply_selection(masked, selection)  # full size, the same filters zero
    small = pruning.shrink(model, selection, verify=x_test[:64])
    # Training continues at the same step, with the momentum of the remaining filters.
    trainer.optimizer = pruning.shrink_optimizer(trainer.optimizer, model, small, selection)
    before, after = masked.predict(x_test, verbose=0), small.predict(x_test, verbose=0)
    difference = float(np.abs(before - after).max() / np.ptp(before))
    say(
        f"removed {selection.count} filters: {model.count_params():,} parameters are "
        f"{small.count_params():,} now. Largest difference from the network in which they are only "
        f"zero: {difference:.1e} of the range of its outputs"
    )
    masked.save(out / "masked.keras")
    small.save(out / "cut.keras")
    return small


def prune(base, dataset, x_test, out: pathlib.Path, logs: pathlib.Path, say: Say):
    """Steps 2 to 5: returns the smaller model, and its test accuracy after each epoch."""
    model = keras.models.clone_model(base)
    model.set_weights(base.get_weights())
    teacher = tfkd.frozen_copy(base) if FLAGS.method == "fd-skd" else None
    trainer = Trainer(dataset, logs, PRUNING_RATE, FLAGS.epochs)
    if FLAGS.method == "none":
        say(f"training on for {FLAGS.epochs} epochs")
        trainer.fit(model, FLAGS.epochs, "unpruned")
        return model, trainer.curve
    plan = make_plan(model)
    print(plan)
    if FLAGS.method == "hard":
        selection = pruning.select(model, plan)
    else:
        selection = decay_filters(model, plan, trainer, teacher, say)
        say(f"accuracy at the cut: {trainer.curve[-1]:.2f} %")
    model = cut_out(model, selection, trainer, x_test, out, say)
    say(f"training the cut network for {FLAGS.epochs - len(trainer.curve)} epochs")
    trainer.fit(model, FLAGS.epochs, "cut", teacher)
    return model, trainer.curve


def train_base(dataset, out: pathlib.Path, logs: pathlib.Path, say: Say):
    """Step 1: returns the base and its test accuracy after each epoch."""
    keras.utils.set_random_seed(FLAGS.seed)
    base = build(dataset)
    say(f"training the base, {FLAGS.model}, for {FLAGS.base_epochs} epochs")
    trainer = Trainer(dataset, logs, BASE_RATE, FLAGS.base_epochs)
    trainer.fit(base, FLAGS.base_epochs, "base")
    say(f"base: {trainer.curve[-1]:.2f} %")
    base.save(out / "base.keras")
    return base, trainer.curve


def measure(models: dict[str, Any], curves, dataset, x_test, out: pathlib.Path, say: Say):
    """Step 6: writes each model as a float LiteRT file, and a table of all."""
    for name, model in models.items():
        export.to_tflite(model, out / f"{name}.tflite", verify=x_test[:200])
    say("measuring")
    table = report.compare(models, (x_test, dataset.y_test))
    notes = [f"{dataset!r}; {FLAGS.method}, seed {FLAGS.seed}, last epoch.", *table.notes]
    table = dataclasses.replace(table, notes=notes, curves={"test accuracy (%)": curves})
    table.save(out)
    print(table)
    base, small = table.rows
    print(
        f"MACs: {base.macs / small.macs:.2f} × fewer; parameters: "
        f"{base.params / small.params:.2f} × fewer; time in LiteRT: "
        f"{base.latency.p50 / small.latency.p50:.2f} × less."
    )


def check_flags() -> None:
    """Finds bad numbers before anything is trained."""
    positive("base-epochs", "epochs", "batch-size")
    if FLAGS.epochs < 2:
        fix = "A part is for the filter decay, the other for the pruned network."
        raise checks.value_error("epochs", "at least 2", FLAGS.epochs, fix)


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    check_flags()
    say = Say()
    options = {"test_fraction": DIGITS_TEST_FRACTION} if FLAGS.data == "digits" else {}
    dataset = data.load(FLAGS.data, **options)
    checks.instance("data", dataset, data.Dataset, "images (for texts: progressive.py)")
    make_plan(build(dataset))  # reports an unreachable target before training
    out = pathlib.Path(FLAGS.out or f"saved_models/filter_decay_{dataset.name}")
    out.mkdir(parents=True, exist_ok=True)
    logs = pathlib.Path(FLAGS.tensorboard or out / "logs")
    say(repr(dataset))
    x_test = np.asarray(dataset.preprocess(dataset.x_test))

    base, base_curve = train_base(dataset, out, logs, say)
    small, curve = prune(base, dataset, x_test, out, logs, say)
    name = "unpruned" if FLAGS.method == "none" else "pruned"
    small.save(out / f"{name}.keras")
    say(f"{name}: {curve[-1]:.2f} %, base: {base_curve[-1]:.2f} %")
    if FLAGS.method == "fd-skd" and curve[-1] > base_curve[-1]:
        say("it is better than its teacher; a smaller --weight may improve it further")
    curves = {"base": base_curve, name: curve}
    measure({"base": base, name: small}, curves, dataset, x_test, out, say)
    say(f"wrote {out}; view the runs with: tensorboard --logdir {logs}")


if __name__ == "__main__":
    main()
