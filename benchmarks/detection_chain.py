"""Full pipeline for an SSD student: distilled, pruned to half of its MACs, int8, exported.

    python benchmarks/detection_bccd.py teacher --data bccd
    python benchmarks/detection_bccd.py students --data bccd --arms boxes --seeds 0 --keep
    python benchmarks/detection_chain.py --data bccd --student saved_models/bccd/boxes.keras

The distilled student of detection_bccd.py is decayed to half of its MACs and cut, distilled
on; quantized, distilled on; and written as an int8 .tflite file that gives boxes. The file
is then read alone. mAP50 on BCCD's 72 test images, by COCO's rules, at each station. All
stations have the teacher's boxes in place of labels, and soft targets.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from detection_bccd import BATCH, CLASSES, ONLY_SOFT, Bench

import tfkd
from tfkd import export, pruning, quantization, report


def distil(bench, teacher, student, optimizer, first, until, args, callbacks=()):
    """Trains from epoch `first` to `until` on the teacher's boxes and soft targets."""
    objective = tfkd.losses.multibox_objective(bench.matcher, weights=ONLY_SOFT)
    distiller = tfkd.Distiller(teacher, student, **objective)
    distiller.compile(optimizer)
    steps = tfkd.data.steps_per_epoch(len(bench.data.x_train), BATCH)
    batches = tfkd.data.detection_batches(
        bench.taught, BATCH, seed=args.seed, augment=bench.augment, start_step=first * steps
    )
    distiller.fit(
        batches,
        steps_per_epoch=steps,
        initial_epoch=first,
        epochs=until,
        callbacks=list(callbacks),
        verbose=0,
    )


def adam(peak, epochs, bench):
    import tf_keras as keras

    steps = tfkd.data.steps_per_epoch(len(bench.data.x_train), BATCH) * epochs
    rate = keras.optimizers.schedules.CosineDecay(peak, steps)
    return keras.optimizers.Adam(rate, clipnorm=10.0)


def prune(bench, teacher, student, args):
    """Half of the MACs: decay, cut, distil on."""
    plan = pruning.plan(student, macs_reduction=args.reduction)
    print(plan, flush=True)
    steps = tfkd.data.steps_per_epoch(len(bench.data.x_train), BATCH)
    half = args.epochs // 2
    schedule = pruning.AnnealedFilterDecay(
        target_sparsity=args.reduction,
        begin_step=0,
        end_step=half * steps,
        frequency=steps,
        anneal="linear",
    )
    decay = tfkd.callbacks.FilterDecay(plan, schedule)
    optimizer = adam(args.rate, args.epochs, bench)
    distil(bench, teacher, student, optimizer, 0, half, args, [decay])
    x = np.asarray(bench.data.preprocess(bench.data.x_test[:16]))
    small = pruning.shrink(student, decay.selection, verify=x)
    optimizer = pruning.shrink_optimizer(optimizer, student, small, decay.selection)
    distil(bench, teacher, small, optimizer, half, args.epochs, args)
    return small


def quantize(bench, teacher, small, args):
    """8 bits: calibrate on training images, distil on."""
    quantized = quantization.quantize(small, target="tflite", freeze_batch_norm=False)
    print(quantized.report, flush=True)
    x = np.asarray(bench.data.preprocess(bench.data.x_train[:100]))
    quantization.calibrate(quantized, x)
    print(f"calibrated: {bench.score(quantized).map50:.4f}", flush=True)
    optimizer = adam(args.quantize_rate, args.quantize_epochs, bench)
    distil(bench, teacher, quantized, optimizer, 0, args.quantize_epochs, args)
    return quantized


def file_of(bench, model, name, args, **options):
    """The file of a model, what it finds, and how large it is."""
    path = pathlib.Path(args.out) / f"{name}.tflite"
    made = export.detector_to_tflite(
        model, path, bench.anchors, labels=CLASSES, verify=bench.data.x_test, **options
    )
    print(made, flush=True)
    x, boxes, classes = bench.data.arrays("test")
    found = export.load_detector(path)(x)
    scores = report.detection(found, {"boxes": boxes, "classes": classes}, CLASSES)
    report.detection_pictures(
        x[:8],
        found,
        {"boxes": boxes, "classes": classes},
        CLASSES,
        path=path.with_suffix(".png"),
    )
    return path, scores


def latency(paths, x, rounds=200):
    """p50 in ms of one image in LiteRT on one thread, the files in turns."""
    runners = {name: export.load_detector(path, threads=1) for name, path in paths.items()}
    times = {name: [] for name in runners}
    for i in range(rounds + 10):
        for name, run in runners.items():
            image = x[i % len(x)][None]
            start = time.perf_counter()
            run(image)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(values[10:])) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="bccd")
    parser.add_argument("--teacher", default="saved_models/bccd/teacher.keras")
    parser.add_argument("--student", default="saved_models/bccd/boxes.keras")
    parser.add_argument("--out", default="saved_models/bccd_chain")
    parser.add_argument("--reduction", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--quantize-epochs", type=int, default=10)
    parser.add_argument("--quantize-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import tf_keras as keras

    keras.utils.set_random_seed(args.seed)
    pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
    bench = Bench(args)
    teacher = keras.models.load_model(args.teacher, compile=False)
    teacher = tfkd.frozen_copy(teacher, fold_batch_norm=True)
    everywhere = tfkd.detection.TeacherBoxes(bench.anchors, where="everywhere")
    bench.taught = tfkd.data.teacher_labels(bench.data, teacher, everywhere)
    student = keras.models.load_model(args.student, compile=False)
    stations = {"student": student}
    trained = keras.models.clone_model(student)
    trained.set_weights(student.get_weights())
    stations["half"] = prune(bench, teacher, trained, args)
    stations["quantized"] = quantize(bench, teacher, stations["half"], args)
    scores = {name: bench.score(model) for name, model in stations.items()}
    files = {}
    for name, model, options in (
        ("student float", student, {}),
        ("half float", stations["half"], {}),
        ("half int8", stations["quantized"], {"io": "uint8"}),
    ):
        files[name], scores[f"{name} file"] = file_of(
            bench, model, name.replace(" ", "-"), args, **options
        )
    times = latency(files, bench.data.x_test)
    for name, one in scores.items():
        print(f"{name}: mAP50 {100 * one.map50:.2f}, {dict(zip(CLASSES, one.ap50, strict=True))}")
    for name in ("student", "half"):
        print(f"{name}: {report.profile(stations[name]).macs:,} MACs")
    for name, path in files.items():
        print(f"{name}: {path.stat().st_size:,} bytes, {times[name]:.3f} ms")
    print(report.machine())


if __name__ == "__main__":
    main()
