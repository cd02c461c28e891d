"""Cost of distillation in a detector's training step, and of matching and negative mining.

    python benchmarks/detection_step.py                  # SSD300, 8,732 priors, batch 16
    python benchmarks/detection_step.py --small          # 160 pixels, 1,050 priors

All pieces are compiled, run in turns, and medians are taken:

    teacher     the teacher's forward pass
    plain       a step of the student alone, with MultiBoxLoss
    distilled   a step with the four terms of `multibox_objective`
    boxes       the same, and the teacher's boxes as targets
    matching    matching the objects of the batch and mining hard negatives, alone
"""

from __future__ import annotations

import harness
import numpy as np

import tfkd


def networks(args):
    """(anchors, input size, makers of the teacher and of the student)."""
    import tf_keras as keras

    if args.small:
        anchors = tfkd.detection.Anchors.small(160, aspect=0.75)
        return (
            anchors,
            160,
            [
                lambda kind=kind: tfkd.models.ssd(kind, args.classes, 160, anchors=anchors)
                for kind in ("teacher", "student")
            ],
        )
    anchors = tfkd.detection.Anchors.ssd300()

    def mobile(alpha):
        net = keras.applications.MobileNetV2((300, 300, 3), alpha, False, weights=None)
        return tfkd.models.ssd(net, args.classes, anchors=anchors, head="depthwise")

    return anchors, 300, [lambda: mobile(1.0), lambda: mobile(0.35)]


def objects(rng, batch, count, classes):
    """Random objects, as data sets give them: some rows are padding."""
    centers, sides = rng.uniform(size=(batch, count, 2)), rng.uniform(0.05, 0.4, (batch, count, 2))
    boxes = np.clip(np.concatenate([centers - sides / 2, centers + sides / 2], -1), 0, 1)
    kinds = rng.integers(0, classes, (batch, count))
    padding = rng.uniform(size=(batch, count)) < 0.3
    boxes = np.where(padding[..., None], -1.0, boxes).astype("float32")
    return {"boxes": boxes, "classes": np.where(padding, -1, kinds).astype("int32")}


def main() -> None:
    parser = harness.Parser(__doc__, small=True, batch=2, objects=4, rounds=1)
    parser.add_argument("--small", action="store_true", help="160 pixels, 1,050 priors")
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--objects", type=int, default=32, help="rows of objects an image")
    parser.add_argument("--classes", type=int, default=20, help="of objects")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each piece")
    args = parser.parse_args()
    import tensorflow as tf
    import tf_keras as keras

    anchors, size, (make_teacher, make_student) = networks(args)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(args.batch, size, size, 3)), tf.float32)
    y = {k: tf.constant(v) for k, v in objects(rng, args.batch, args.objects, args.classes).items()}
    matcher = tfkd.detection.Matcher(anchors)
    selection = tfkd.losses.MultiBoxSelection(matcher)
    teacher = make_teacher()
    plain = make_student()
    plain.compile(keras.optimizers.Adam(1e-4), loss=tfkd.losses.MultiBoxLoss(matcher))
    distillers = {}
    for name, boxes in (("distilled", None), ("boxes", tfkd.detection.TeacherBoxes(anchors))):
        chosen = tfkd.losses.MultiBoxSelection(matcher, teacher_boxes=boxes)
        distiller = tfkd.Distiller(
            teacher, make_student(), **tfkd.losses.multibox_objective(chosen, "source")
        )
        distiller.compile(keras.optimizers.Adam(1e-4))
        distillers[name] = distiller
    forward = tf.function(lambda x: teacher(x, training=False))
    outputs = {k: tf.constant(v) for k, v in plain.predict(x, verbose=0).items()}
    choose = tf.function(lambda y, outputs: selection(y, outputs).selected)
    pieces = {
        "teacher": lambda: forward(x)["boxes"].numpy(),
        "plain": step_of(plain, x, y),
        "distilled": step_of(distillers["distilled"], x, y),
        "boxes": step_of(distillers["boxes"], x, y),
        "matching": lambda: choose(y, outputs).numpy(),
    }
    ms = harness.medians(harness.in_turns(pieces, args.rounds, warmup=2))
    both = ms["teacher"] + ms["plain"]
    ratios = {
        "distilled / (teacher + plain)": ms["distilled"] / both,
        "with the teacher's boxes / (teacher + plain)": ms["boxes"] / both,
        "matching and mining / plain": ms["matching"] / ms["plain"],
        "matching and mining / distilled": ms["matching"] / ms["distilled"],
    }
    what = f"{len(anchors)} priors, {size} pixels, batch {args.batch}, {args.objects} objects"
    rows = [[name, f"{value:.1f}"] for name, value in ms.items()]
    text = harness.table([what, "ms (median)"], rows) + "\n"
    text += harness.table(["ratio", ""], [[name, f"{r:.3f}"] for name, r in ratios.items()])
    harness.show(args, text, ms=ms, ratios=ratios)


def step_of(model, x, y):
    """One compiled training step of a compiled model, on the same batch."""
    import tensorflow as tf

    function = tf.function(lambda: model.train_step((x, y)))
    return lambda: [np.asarray(v) for v in tf.nest.flatten(function())]


if __name__ == "__main__":
    main()
