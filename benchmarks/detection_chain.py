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

import functools
import pathlib

import harness
import made_up
import numpy as np
from detection_arms import ONLY_SOFT
from detection_bccd import BATCH, CLASSES, Bench

import tfkd


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
    plan = tfkd.pruning.plan(student, macs_reduction=args.reduction)
    print(plan, flush=True)
    steps = tfkd.data.steps_per_epoch(len(bench.data.x_train), BATCH)
    half = args.epochs // 2
    schedule = tfkd.pruning.AnnealedFilterDecay(
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
    small = tfkd.pruning.shrink(student, decay.selection, verify=x)
    optimizer = tfkd.pruning.shrink_optimizer(optimizer, student, small, decay.selection)
    distil(bench, teacher, small, optimizer, half, args.epochs, args)
    return small


def quantize(bench, teacher, small, args):
    """8 bits: calibrate on training images, distil on."""
    quantized = tfkd.quantization.quantize(small, target="tflite", freeze_batch_norm=False)
    print(quantized.report, flush=True)
    x = np.asarray(bench.data.preprocess(bench.data.x_train[:100]))
    tfkd.quantization.calibrate(quantized, x)
    print(f"calibrated: {bench.score(quantized).map50:.4f}", flush=True)
    optimizer = adam(args.quantize_rate, args.quantize_epochs, bench)
    distil(bench, teacher, quantized, optimizer, 0, args.quantize_epochs, args)
    return quantized


def file_of(bench, model, name, args, **options):
    """The file of a model, what it finds, and how large it is."""
    path = pathlib.Path(args.out) / f"{name}.tflite"
    made = tfkd.export.detector_to_tflite(
        model,
        path,
        bench.anchors,
        labels=CLASSES,
        verify=not args.lenient and bench.data.x_test,
        **options,
    )
    print(made, flush=True)
    x, boxes, classes = bench.scored[bench.args.part]
    found = tfkd.export.load_detector(path)(x)
    scores = tfkd.report.detection(found, {"boxes": boxes, "classes": classes}, CLASSES)
    tfkd.report.detection_pictures(
        x[:8],
        found,
        {"boxes": boxes, "classes": classes},
        CLASSES,
        path=path.with_suffix(".png"),
    )
    return path, scores


def latency(paths, x, rounds):
    """p50 in ms of one image in LiteRT on one thread, the files in turns."""
    runners = {name: tfkd.export.load_detector(path, threads=1) for name, path in paths.items()}
    jobs = {name: lambda run=run: run(x[:1]) for name, run in runners.items()}
    return harness.medians(harness.in_turns(jobs, rounds, warmup=10))


def main() -> None:
    folder = functools.cache(made_up.detectors)
    parser = harness.Parser(
        __doc__, data=made_up.cells, teacher=lambda: f"{folder()}/teacher.keras",
        student=lambda: f"{folder()}/boxes.keras", epochs=2, quantize_epochs=1, rounds=10,
        lenient=True,
    )  # fmt: skip
    parser.add_argument("--data", default="bccd", help="folder in VOC layout")
    parser.add_argument(
        "--teacher", default="saved_models/bccd/teacher.keras", help="a .keras file"
    )
    parser.add_argument("--student", default="saved_models/bccd/boxes.keras", help="a .keras file")
    parser.add_argument("--out", default="saved_models/bccd_chain", help="folder of the files")
    parser.add_argument("--part", default="test", choices=["test", "val"], help="scored images")
    parser.add_argument("--reduction", type=float, default=0.5, help="share of MACs that goes")
    parser.add_argument("--epochs", type=int, default=60, help="passes of decay and after the cut")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak of the learning rate")
    parser.add_argument("--quantize-epochs", type=int, default=10, help="passes with rounding")
    parser.add_argument("--quantize-rate", type=float, default=2e-4, help="peak of its rate")
    parser.add_argument("--rounds", type=int, default=200, help="runs of each file")
    parser.add_argument("--lenient", action="store_true", help="write files whatever they find")
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
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
    times = latency(files, bench.data.x_test, args.rounds)
    macs = [tfkd.report.profile(stations[name]).macs for name in ("student", "half", "half")]
    rows = []
    for (name, path), count in zip(files.items(), macs, strict=True):
        cells = [f"{100 * scores[f'{name} file'].map50:.1f}", f"{count / 1e6:.2f} M"]
        size = f"{path.stat().st_size / 1024:.1f} KiB"
        rows.append([f"{name}, file", *cells, size, f"{times[name]:.3f}"])
    for name in stations:
        rows.append([f"{name}, Keras model", f"{100 * scores[name].map50:.1f}", "", "", ""])
    head = ["", "mAP50 %", "MACs", "file", "p50 ms, one thread"]
    harness.show(args, harness.table(head, rows), times=times)


if __name__ == "__main__":
    main()
