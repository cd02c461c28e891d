"""The full pipeline: prune a trained network, quantize it with distillation, export it.

    python examples/small_and_fast.py
    python examples/small_and_fast.py --data=cifar10.npz --model=resnet56 --base-epochs=100 \
        --epochs=60 --quantize-epochs=10 --batch-size=128

1. Train a network to convergence: the base. Its frozen copy is the teacher from now on.
2. Prune it by filter decay, as `filter_decay.py` does (its flags work here too).
3. Quantize the pruned network for phones (TFLite) and for TensorRT at once, calibrate it
   on training images, and train it for a few more epochs with fake quantization and the
   base as its teacher (quantization-aware distillation).
4. Write an int8 TFLite file and an ONNX file. Each is run and compared with the model, and
   the ONNX file is checked against TensorRT's rules.
5. Print one table of the accuracy and cost of each step.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from shared import FLAGS, Say, flag, positive

flag("quantize-epochs", 10, "passes with rounding in the forward pass")
flag("calibrate", 300, "training images for calibration")

import filter_decay as pruned  # its flags and its steps: parses, and imports tfkd first

# isort: split
import numpy as np
from absl import logging

import tfkd
from tfkd import checks, data, export, quantization, report

QUANTIZE_RATE = 0.005  # peak of the learning rate


def quantize(small, base, dataset, x_train, logs: pathlib.Path, say: Say):
    """Step 3: returns the quantized model, and its test accuracy after each epoch."""
    quantized = quantization.quantize(small, target="both", freeze_batch_norm=False)
    print(quantized.report)
    quantization.calibrate(quantized, x_train)
    say(f"quantized; distilling from the base for {FLAGS.quantize_epochs} more epochs")
    trainer = pruned.Trainer(dataset, logs, QUANTIZE_RATE, FLAGS.quantize_epochs)
    trainer.fit(quantized, FLAGS.quantize_epochs, "quantized", tfkd.frozen_copy(base))
    return quantized, trainer.curve


def write(quantized, x_test, out: pathlib.Path, say: Say) -> pathlib.Path:
    """Step 4: returns the path of the TFLite file."""
    quantization.save(quantized, out / "quantized.npz")
    phone = export.to_tflite(quantized, out / "int8.tflite", io="int8", verify=x_test[:500])
    say("for phones:")
    print(phone)
    server = export.to_onnx(quantized, out / "int8.onnx", target="tensorrt", verify=x_test[:500])
    say("for TensorRT:")
    print(server)
    print(export.lint_tensorrt(out / "int8.onnx"))
    return phone.path


def measure(base, small, file, curves, dataset, x_test, out: pathlib.Path) -> None:
    """Step 5: the table, and a comparison of the final file with the base."""
    models: dict[str, Any] = {"base": base, "pruned": small, "pruned, int8": str(file)}
    table = report.compare(models, (x_test, dataset.y_test), like={"pruned, int8": small})
    notes = [f"{dataset!r}; {FLAGS.method}, seed {FLAGS.seed}, last epoch."]
    table = dataclasses.replace(
        table, notes=[*notes, *table.notes], curves={"test accuracy (%)": curves}
    )
    table.save(out)
    print(table)
    first, last = table.rows[0], table.rows[-1]
    print(
        f"From base to int8: {first.macs / last.macs:.2f} × fewer MACs, "
        f"{first.size / last.size:.2f} × smaller, "
        f"{first.latency.p50 / last.latency.p50:.2f} × faster, "
        f"{last.accuracy.mean - first.accuracy.mean:+.2f} points."
    )


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    pruned.check_flags()
    positive("quantize-epochs", "calibrate")
    say = Say()
    name = FLAGS.data
    options = {"test_fraction": pruned.DIGITS_TEST_FRACTION} if name == "digits" else {}
    dataset = data.load(name, **options)
    checks.instance("data", dataset, data.Dataset, "images (for texts: progressive.py)")
    pruned.make_plan(pruned.build(dataset))  # reports an unreachable target before training
    out = pathlib.Path(FLAGS.out or f"saved_models/small_and_fast_{dataset.name}")
    out.mkdir(parents=True, exist_ok=True)
    logs = pathlib.Path(FLAGS.tensorboard or out / "logs")
    say(repr(dataset))
    x_test = np.asarray(dataset.preprocess(dataset.x_test))
    chosen = np.random.default_rng(FLAGS.seed).permutation(len(dataset.x_train))
    x_train = np.asarray(dataset.preprocess(dataset.x_train[chosen[: FLAGS.calibrate]]))

    base, base_curve = pruned.train_base(dataset, out, logs, say)
    small, curve = pruned.prune(base, dataset, x_test, out, logs, say)
    small.save(out / "pruned.keras")
    say(f"pruned: {curve[-1]:.2f} %, base: {base_curve[-1]:.2f} %")
    quantized, aware_curve = quantize(small, base, dataset, x_train, logs, say)
    file = write(quantized, x_test, out, say)
    say("measuring")
    curves = {"base": base_curve, "pruned": curve, "quantized": aware_curve}
    measure(base, small, file, curves, dataset, x_test, out)
    say(f"wrote {out}; view the runs with: tensorboard --logdir {logs}")


if __name__ == "__main__":
    main()
