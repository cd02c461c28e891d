"""Distillation between two detectors of keras-cv: RetinaNets or YOLOV8Detectors.

    python benchmarks/detection_keras_cv.py --data bccd --size 160
    python benchmarks/detection_keras_cv.py --data bccd --size 128 --detector yolo_v8
    python benchmarks/detection_keras_cv.py --table

Without --data the images are scenes of handwritten digits, 96 x 96 pixels, which need no
download; with it, blood cells (BCCD) or another folder in VOC layout with a `val` list.
mAP50 is that of COCO at the last epoch, on the test images and on the validation images,
by which settings are chosen. RetinaNets stand on ResNet backbones of one bottleneck a
stack; with keras-cv's own pyramid and heads, which have 256 channels whatever the backbone
is, a student would have 6 million parameters, so both get narrow ones by the constructor.
YOLOV8Detectors have backbones of one block a stage. The teacher, one for all seeds, is
trained by keras-cv's own `compile` and `fit`. Students of a seed have the same initial
weights, batches and number of steps:

    alone             by keras-cv's `compile` and `fit`
    labels            by a `tfkd.Distiller` with the objective's terms of the labels only
    distilled         by a `tfkd.Distiller` with the objective's default weights
    distilled, 3x     the same with three times the weights of the teacher's terms
    distilled, hint   as "distilled", and a hint on level P4 of the backbones

Each finished run is a record in --out and is not made again.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import time
from typing import Any

import harness
import made_up

# Of the objectives, with their default weights.
TEACHERS_TERMS = {
    "retina_net": {"soft": 0.25, "bounded": 0.1},
    "yolo_v8": {"soft": 0.5, "distances": 1.5},
}
ARMS = ("alone", "labels", "distilled", "distilled, 3x", "distilled, hint")
PARTS = ("val", "test")


def parse() -> Any:
    parser = harness.Parser(
        __doc__, "saved_models/keras_cv", data=made_up.cells, teacher_epochs=1, epochs=1, batch=4,
        size=64, seeds=1, arms=ARMS[:3],
    )  # fmt: skip
    parser.add_argument("--data", help="folder in VOC layout; default: scenes of digits")
    parser.add_argument("--images", type=int, default=600, help="training scenes of digits")
    parser.add_argument("--detector", choices=list(TEACHERS_TERMS), default="retina_net")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak of the learning rate")
    parser.add_argument("--teacher-epochs", type=int, default=20, help="passes of the teacher")
    parser.add_argument("--epochs", type=int, default=20, help="passes of each student")
    parser.add_argument("--seeds", type=int, default=3, help="of students, from 0 on")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="of students")
    return parser.parse_args()


if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = parse()

import tfkd

with contextlib.redirect_stdout(io.StringIO()):  # it prints its backend
    import keras_cv
import numpy as np
import tf_keras as keras

STRIDES = (8, 16, 32)
# Pixels; digits of 96 x 96 scenes and cells of 160 x 160 pictures are 10 to 50 pixels.
SIZES, SCALES, RATIOS = (12.0, 22.0, 36.0), (1.0, 1.3), (0.7,)
# RetinaNet: filters of the backbone's stacks; channels of pyramid and heads.
RETINA_NETS = {"teacher": ((16, 24, 32, 48), 64), "student": ((4, 6, 8, 12), 24)}
# YOLOV8Detector: channels of the backbone's stages, of which the heads take theirs.
YOLOS = {"teacher": (16, 32, 48, 64), "student": (4, 8, 12, 16)}


class Pyramid(keras.layers.Layer):
    """Three levels of `channels` each, top down, as in Lin et al. 2017."""

    def __init__(self, channels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.sideways = [keras.layers.Conv2D(channels, 1) for _ in STRIDES]
        self.smooth = [keras.layers.Conv2D(channels, 3, padding="same") for _ in STRIDES]
        self.larger = keras.layers.UpSampling2D(2)

    def call(self, levels: Any) -> Any:
        p3, p4, p5 = (
            layer(levels[name])
            for layer, name in zip(self.sideways, ("P3", "P4", "P5"), strict=True)
        )
        p4 = p4 + self.larger(p5)
        p3 = p3 + self.larger(p4)
        return tuple(layer(level) for layer, level in zip(self.smooth, (p3, p4, p5), strict=True))


def head(channels: int, outputs: int, bias: float = 0.0) -> Any:
    layers: list[Any] = []
    for _ in range(2):
        layers += [
            keras.layers.Conv2D(channels, 3, padding="same", use_bias=False),
            # Not batches': the levels share the head, and their statistics differ.
            keras.layers.GroupNormalization(8),
            keras.layers.ReLU(),
        ]
    start = keras.initializers.Constant(bias)
    last = keras.layers.Conv2D(outputs, 3, padding="same", bias_initializer=start)
    return keras.Sequential([*layers, last])


def retina_net(kind: str, shape: tuple[int, ...], classes: int) -> Any:
    filters, channels = RETINA_NETS[kind]
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=list(filters),
        stackwise_blocks=[1] * 4,
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=shape,
    )
    anchors = keras_cv.layers.AnchorGenerator(
        "xyxy", SIZES, SCALES, RATIOS, list(STRIDES), clip_boxes=True
    )
    each = len(SCALES) * len(RATIOS)
    return keras_cv.models.RetinaNet(
        backbone,
        classes,
        "xyxy",
        anchor_generator=anchors,
        feature_pyramid=Pyramid(channels),
        classification_head=head(channels, each * classes, bias=-4.6),
        box_head=head(channels, each * 4),
    )


def yolo_v8(kind: str, shape: tuple[int, ...], classes: int) -> Any:
    backbone = keras_cv.models.YOLOV8Backbone(
        stackwise_channels=list(YOLOS[kind]),
        stackwise_depth=[1] * 4,
        include_rescaling=False,
        input_shape=shape,
    )
    decoder = keras_cv.layers.NonMaxSuppression("xyxy", False, 0.5, 0.01, 100)
    return keras_cv.models.YOLOV8Detector(
        backbone, classes, "xyxy", fpn_depth=1, prediction_decoder=decoder
    )


class Bench:
    """The data, the models, and how they are trained and scored."""

    def __init__(self, args: Any):
        self.args = args
        if args.data is None:
            count = min(args.images, 100)
            made = functools.partial(tfkd.data.digit_scenes, args.images, count, args.size)
            scored = {"val": made(seed=1), "test": made()}
        else:
            read = functools.partial(tfkd.data.voc, args.data, args.size, on_error="skip")
            scored = {part: read(test=part) for part in PARTS}
        self.data = scored["test"]
        self.scored = {part: data.arrays("test") for part, data in scored.items()}
        self.steps = tfkd.data.steps_per_epoch(len(self.data.x_train), args.batch)

    def model(self, kind: str, seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        make = {"retina_net": retina_net, "yolo_v8": yolo_v8}[self.args.detector]
        return make(kind, self.data.image_shape, self.data.num_classes)

    def fit(self, trained: Any, epochs: int, seed: int, convert: Any = None) -> dict[str, Any]:
        """Trains; returns the first and the last epoch's loss, and seconds."""
        batches = tfkd.data.detection_batches(
            self.data, self.args.batch, seed=seed, augment=self.data.augment
        )
        batches = batches.map(convert) if convert else batches
        start = time.perf_counter()
        history = trained.fit(batches, steps_per_epoch=self.steps, epochs=epochs, verbose=0)
        loss = history.history["loss"]
        return {"loss": [loss[0], loss[-1]], "seconds": time.perf_counter() - start}

    def optimizer(self, epochs: int) -> Any:
        rate = keras.optimizers.schedules.CosineDecay(self.args.rate, epochs * self.steps)
        return keras.optimizers.Adam(rate, global_clipnorm=10.0)

    def by_keras_cv(self, model: Any, epochs: int, seed: int) -> dict[str, Any]:
        size, form = self.data.image_shape[:2], model.bounding_box_format
        losses = {"retina_net": ("smoothl1", "focal"), "yolo_v8": ("ciou", "binary_crossentropy")}
        model.compile(*losses[self.args.detector], optimizer=self.optimizer(epochs))
        return self.fit(
            model,
            epochs,
            seed,
            lambda x, y: (x, tfkd.detection.keras_cv_objects(y, form, size)),
        )

    def by_tfkd(self, teacher: Any, student: Any, arm: str, seed: int) -> dict[str, Any]:
        defaults = TEACHERS_TERMS[self.args.detector]
        factor = {"labels": None, "distilled, 3x": 3.0}.get(arm, 1.0)
        weights = {name: factor and factor * weight for name, weight in defaults.items()}
        objective = getattr(tfkd.losses, f"{self.args.detector}_objective")
        hint = {"hint": "P4", "hint_weight": 2.0} if arm.endswith("hint") else {}
        terms = objective(teacher, student, weights=weights, **hint)
        distiller = tfkd.Distiller(teacher, student, **terms)
        distiller.compile(self.optimizer(self.args.epochs))
        return self.fit(distiller, self.args.epochs, seed)

    def scores(self, model: Any) -> dict[str, float]:
        """mAP50 by part."""
        return {part: float(self.score(model, *arrays)) for part, arrays in self.scored.items()}

    def score(self, model: Any, x: Any, boxes: Any, classes: Any) -> float:
        truth = {"boxes": boxes, "classes": classes}
        if self.args.detector == "retina_net":
            head = tfkd.detection.retina_net_head(model)
            return tfkd.report.evaluate_detector(model, x, truth, **head).map50
        found = model.predict(self.data.preprocess(x), verbose=0)
        found["boxes"] = np.clip(found["boxes"] / self.args.size, 0.0, 1.0)
        return tfkd.report.detection(found, truth).map50


def train_teacher(bench: Bench, path: pathlib.Path) -> dict[str, Any]:
    teacher = bench.model("teacher", seed=100)
    found = bench.by_keras_cv(teacher, bench.args.teacher_epochs, seed=0)
    np.savez(path, *teacher.get_weights())
    return {"arm": "teacher", "seed": 0, **found, **about(bench, teacher)}


def load_teacher(bench: Bench, path: pathlib.Path) -> Any:
    teacher = bench.model("teacher", seed=100)
    with np.load(path) as packed:
        teacher.set_weights([packed[name] for name in packed.files])
    return teacher


def train_student(bench: Bench, teacher: Any, arm: str, seed: int) -> dict[str, Any]:
    student = bench.model("student", seed)
    if arm == "alone":
        found = bench.by_keras_cv(student, bench.args.epochs, seed)
    else:
        found = bench.by_tfkd(teacher, student, arm, seed)
    return {"arm": arm, "seed": seed, **found, **about(bench, student)}


def about(bench: Bench, model: Any) -> dict[str, Any]:
    return {"parameters": int(model.count_params()), **bench.scores(model)}


def table(runs: list[dict[str, Any]]) -> str:
    """Scores of every arm, and how far they are from the student alone, seed by seed."""
    alone, rows = {r["seed"]: r for r in runs if r["arm"] == "alone"}, []
    for arm in dict.fromkeys(r["arm"] for r in runs):
        mine = [r for r in runs if r["arm"] == arm]
        cells = [f"{r['parameters']:,}" for r in mine[:1]]
        cells += [" → ".join(f"{loss:.2f}" for loss in mine[0]["loss"])]
        for part in PARTS:
            cells.append(harness.spread([100 * r[part] for r in mine], 1))
        pairs = [(r, alone[r["seed"]]) for r in mine if r["seed"] in alone]
        gains = [100 * (a["test"] - b["test"]) for a, b in pairs]
        gain = "" if arm in ("teacher", "alone") else harness.spread(gains, 1)
        rows.append([arm, *cells, gain, len(mine)])
    head = ["model", "parameters", "loss, first to last epoch (seed 0)", "mAP50 %, validation"]
    return harness.table([*head, "mAP50 %, test", "against alone, by seed", "seeds"], rows)


def main() -> None:
    args = ARGS
    digests = {"images": harness.digest(args.data)} if args.data and not args.table else {}
    store = harness.Records(args, **digests)
    bench = None if args.table else Bench(args)
    made = {**harness.settings(args, "arms", "seeds"), "scenes": args.data is None}
    path = store.path("teacher", made).with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [store.run("teacher", made, functools.partial(train_teacher, bench, path))]
    teacher = None
    if bench:
        teacher = load_teacher(bench, store.file("teacher", made).with_suffix(".npz"))
    for seed in range(args.seeds):
        for arm in args.arms:
            make = functools.partial(train_student, bench, teacher, arm, seed)
            runs.append(store.run(f"{arm}-{seed}", {**made, "arm": arm, "seed": seed}, make))
    runs = [run for run in runs if run]
    harness.show(args, table(runs), runs=runs)


if __name__ == "__main__":
    main()
