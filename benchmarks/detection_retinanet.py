"""Distillation between two keras-cv RetinaNets: keras-cv trains the teacher, tfkd the student.

    python benchmarks/detection_retinanet.py
    python benchmarks/detection_retinanet.py --data bccd --size 160 --teacher-epochs 20 --epochs 20

Without --data the images are scenes of handwritten digits, 96 x 96 pixels, which need no
download; with it, blood cells (BCCD) or another folder in VOC layout. mAP50 is that of
COCO on the test images. Both models are keras_cv.models.RetinaNet on ResNet backbones of
one bottleneck a stack; with keras-cv's own pyramid and heads, which have 256 channels
whatever the backbone is, a student would have 6 million parameters, so both get narrow
ones by the constructor. Runs: the teacher, by keras-cv's `compile` and `fit`; the student
alone, in the same way; and the same student, from the same initial weights and in as
many steps, by a `tfkd.Distiller`, without and with a hint on level P4 of the backbone.
About three minutes on one core; few epochs, so that one seed says little about gains.
"""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import harness


def parse() -> Any:
    parser = harness.Parser(__doc__, images=16, teacher_epochs=1, epochs=1, batch=4, size=64)
    parser.add_argument("--data", help="folder in VOC layout; default: scenes of digits")
    parser.add_argument("--images", type=int, default=600, help="training scenes of digits")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak of the learning rate")
    parser.add_argument("--teacher-epochs", type=int, default=15, help="passes of the teacher")
    parser.add_argument("--epochs", type=int, default=8, help="passes of each student")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    return parser.parse_args()


if __name__ == "__main__":  # before TensorFlow is imported: --help answers at once
    ARGS = parse()

import tfkd

with contextlib.redirect_stdout(io.StringIO()):  # it prints its backend
    import keras_cv
import tf_keras as keras

STRIDES = (8, 16, 32)
# Pixels; digits of 96 x 96 scenes and cells of 160 x 160 pictures are 10 to 50 pixels.
SIZES, SCALES, RATIOS = (12.0, 22.0, 36.0), (1.0, 1.3), (0.7,)
# Filters of the backbone's stacks; channels of pyramid and heads.
TEACHER, STUDENT = ((16, 24, 32, 48), 64), ((4, 6, 8, 12), 24)


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


class Bench:
    """The data, the models, and how they are trained and scored."""

    def __init__(self, args: Any):
        self.args = args
        if args.data is None:
            self.data = tfkd.data.digit_scenes(args.images, min(args.images, 100), args.size)
        else:
            self.data = tfkd.data.voc(args.data, args.size, on_error="skip")
        self.steps = tfkd.data.steps_per_epoch(len(self.data.x_train), args.batch)
        self.rows: list[list[str]] = []

    def model(self, filters: tuple[int, ...], channels: int, seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        backbone = keras_cv.models.ResNetBackbone(
            stackwise_filters=list(filters),
            stackwise_blocks=[1] * 4,
            stackwise_strides=[1, 2, 2, 2],
            include_rescaling=False,
            input_shape=self.data.image_shape,
        )
        anchors = keras_cv.layers.AnchorGenerator(
            "xyxy", SIZES, SCALES, RATIOS, list(STRIDES), clip_boxes=True
        )
        each, classes = len(SCALES) * len(RATIOS), self.data.num_classes
        return keras_cv.models.RetinaNet(
            backbone,
            classes,
            "xyxy",
            anchor_generator=anchors,
            feature_pyramid=Pyramid(channels),
            classification_head=head(channels, each * classes, bias=-4.6),
            box_head=head(channels, each * 4),
        )

    def batches(self, seed: int) -> Any:
        return tfkd.data.detection_batches(
            self.data, self.args.batch, seed=seed, augment=self.data.augment
        )

    def optimizer(self, epochs: int) -> Any:
        rate = keras.optimizers.schedules.CosineDecay(self.args.rate, epochs * self.steps)
        return keras.optimizers.Adam(rate, global_clipnorm=10.0)

    def train(self, name: str, trained: Any, batches: Any, epochs: int) -> None:
        start, used = time.perf_counter(), time.process_time()
        history = trained.fit(batches, steps_per_epoch=self.steps, epochs=epochs, verbose=0)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        loss = history.history["loss"]
        print(
            f"{name}: {epochs} epochs of {self.steps} steps, loss {loss[0]:.3f} in the first, "
            f"{loss[-1]:.3f} in the last; {seconds:.0f} s, {used:.0f} s of processor",
            flush=True,
        )
        self.rows.append([name, f"{loss[0]:.3f} → {loss[-1]:.3f}"])
        for key in ("multibox_soft_target", "multibox_confidence", "multibox_localization"):
            if key in history.history:
                values = history.history[key]
                print(f"  {key}: {values[0]:.3f} -> {values[-1]:.3f}")

    def train_by_keras_cv(self, name: str, model: Any, epochs: int, seed: int) -> None:
        size, form = self.data.image_shape[:2], model.bounding_box_format
        own = self.batches(seed).map(
            lambda x, y: (x, tfkd.detection.keras_cv_objects(y, form, size))
        )
        model.compile("smoothl1", "focal", optimizer=self.optimizer(epochs))
        self.train(name, model, own, epochs)

    def score(self, model: Any) -> None:
        x, boxes, classes = self.data.arrays("test")
        scores = tfkd.report.evaluate_detector(
            model,
            x,
            {"boxes": boxes, "classes": classes},
            **tfkd.detection.retina_net_head(model),
        )
        self.rows[-1].append(f"{100 * scores.map50:.1f}")
        print(f"  mAP50: {self.rows[-1][-1]} %", flush=True)


def main() -> None:
    args = ARGS
    bench = Bench(args)
    print(bench.data)

    teacher = bench.model(*TEACHER, seed=100 + args.seed)
    bench.train_by_keras_cv("teacher, by keras-cv", teacher, args.teacher_epochs, args.seed)
    bench.score(teacher)

    alone = bench.model(*STUDENT, seed=args.seed)
    print(f"parameters: teacher {teacher.count_params():,}, student {alone.count_params():,}")
    bench.train_by_keras_cv("student alone, by keras-cv", alone, args.epochs, args.seed)
    bench.score(alone)

    for name, hint in (("distilled student", None), ("distilled student with a hint", "P4")):
        student = bench.model(*STUDENT, seed=args.seed)
        terms = tfkd.losses.retina_net_objective(teacher, student, hint=hint, hint_weight=2.0)
        distiller = tfkd.Distiller(teacher, student, **terms)
        distiller.compile(bench.optimizer(args.epochs))
        bench.train(f"{name}, by tfkd", distiller, bench.batches(args.seed), args.epochs)
        bench.score(distiller.student)
    text = harness.table(["model", "loss, first to last epoch", "mAP50 %"], bench.rows)
    harness.show(args, text)


if __name__ == "__main__":
    main()
