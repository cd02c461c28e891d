"""Distillation objectives for pairs of keras-cv detectors: RetinaNet and YOLOv8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras as keras

from tfkd import checks
from tfkd.detection.boxes import check_priors
from tfkd.detection.keras_cv_models import image_size_of, import_keras_cv, retina_net_head
from tfkd.detection.matching import Matcher
from tfkd.losses.base import DistillationLoss
from tfkd.losses.detection.anchor_free import DenseSoftTarget, LocalizationDistillation
from tfkd.losses.detection.anchor_free_labels import (
    DenseAssignment,
    DenseConfidence,
    DenseLocalization,
)
from tfkd.losses.detection.objective import hint_between, objective
from tfkd.losses.detection.selection import MultiBoxSelection
from tfkd.losses.detection.terms import MultiBoxConfidence, MultiBoxLocalization, MultiBoxSoftTarget
from tfkd.losses.features import FeatureDistillation
from tfkd.losses.regression import BoundedRegression
from tfkd.schedules import Value

# Levels of the feature pyramid, at strides of 8, 16 and 32 pixels.
LEVELS = ("P3", "P4", "P5")
# Weights by which the terms are of similar size; see the functions that use them.
RETINA_NET = {"soft": 0.25, "confidence": 1.0, "bounded": 0.1, "localization": 0.25}
# 7.5, 0.5 and 1.5 are the gains of Ultralytics's YOLOv8 for boxes, classes and distances.
YOLO_V8 = {"soft": 0.5, "distances": 1.5, "confidence": 0.5, "localization": 7.5}


def retina_net_objective(
    teacher: keras.Model,
    student: keras.Model,
    weights: Mapping[str, Value | None] | None = None,
    temperature: Value = 1.0,
    margin: Value = 0.0,
    focal_gamma: float = 2.0,
    focal_alpha: float | None = 0.25,
    negative_ratio: float | None = None,
    every_object: bool = False,
    teacher_boxes: Callable[..., Any] | None = None,
    hint: str | tuple[str, str] | None = None,
    hint_weight: Value = 0.5,
    image_size: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns four terms for a pair of keras-cv's RetinaNets, as arguments for a Distiller.

        w₁ · soft + w₂ · confidence + w₃ · bounded + w₄ · localization [+ w₅ · hint]

    soft: `MultiBoxSoftTarget`, the KL of each class's Bernoulli distribution; confidence:
    focal loss; bounded: `BoundedRegression`; localization: smooth L1. Anchors, thresholds
    (0.5, and 0.4 for the band that is ignored) and variances are those of the student's
    label encoder. Every term is a sum over the anchors that are not ignored, divided by
    the number of anchors with an object. confidence + 0.25 · localization is what
    `RetinaNet.compile("smoothl1", "focal")` minimises (which averages over the four
    offsets of a box instead of summing them).

    Targets are the objects: {"boxes": (B, M, 4) corners relative to the image,
    "classes": (B, M)}, padded with −1 or ragged, whatever the model's own
    `bounding_box_format` is; `fit` takes (images, targets), not keras-cv's dict of both.
    `distiller.student` stays a RetinaNet: `predict` and `decode_predictions` work as
    before.

    Args:
        teacher: a `keras_cv.models.RetinaNet`, for example trained by keras-cv's own
            `compile` and `fit`, for which `tfkd.detection.keras_cv_objects` converts targets.
        student: another one, with the same anchors and classes.
        weights: changes to {"soft": 0.25, "confidence": 1, "bounded": 0.1,
            "localization": 0.25}, by which the terms are of similar size: numbers of at
            least 0 or schedules. None omits a term. Without "soft" and "bounded" the
            anchors may differ.
        temperature: T > 0 of the soft targets, or a schedule. With thousands of anchors
            a T above 1 shifts nearly all of the weight to the background.
        margin: m of the bounded regression, in squared encoded offsets.
        focal_gamma, focal_alpha: of the focal loss; as in `MultiBoxConfidence`.
        negative_ratio: number of hard negatives for each positive anchor of an image, in
            every term; None: all of the background counts.
        every_object: whether an object that no anchor overlaps by 0.5 is matched with the
            anchor of the largest overlap; keras-cv ignores such an object.
        teacher_boxes: None, or a function that adds the teacher's boxes to the objects:
            `tfkd.detection.TeacherBoxes(**tfkd.detection.retina_net_head(teacher))`.
        hint: None; "P3", "P4" or "P5": this level of both backbones, through a trained
            1 × 1 projection; "pyramid": all levels of both feature pyramids, which in
            keras-cv have 256 channels each; or (teacher's layer, student's layer).
        hint_weight: w₅.
        image_size: (height, width) in pixels, for models that accept any size.

    Returns:
        Keyword arguments of `tfkd.Distiller`: `distillation_losses`,
        `distillation_loss_weights` and `student_loss_weight` (0: the labels are in the
        terms).

    Raises:
        ImportError: if keras-cv is not installed.
        TypeError: if one of the models is not a RetinaNet.
        ValueError: for models whose anchors or classes differ, for a custom label
            encoder, and for a bad argument.

    Reference:
        Lin et al. 2017, "Focal loss for dense object detection",
        https://arxiv.org/abs/1708.02002 and Chen et al. 2017, "Learning efficient object
        detection models with knowledge distillation", NeurIPS 2017

    Example:
        >>> import contextlib, io, tfkd
        >>> with contextlib.redirect_stdout(io.StringIO()):  # it prints its backend
        ...     import keras_cv
        >>> def detector(filters):
        ...     backbone = keras_cv.models.ResNetBackbone(
        ...         stackwise_filters=[filters] * 4, stackwise_blocks=[1] * 4,
        ...         stackwise_strides=[1, 2, 2, 2], include_rescaling=False,
        ...         input_shape=(64, 64, 3))
        ...     return keras_cv.models.RetinaNet(backbone, 3, "xyxy")
        >>> teacher, student = detector(16), detector(8)
        >>> terms = tfkd.losses.retina_net_objective(teacher, student, hint="P4")
        >>> distiller = tfkd.Distiller(teacher, student, **terms)
        >>> [loss.name for loss in distiller.distillation_losses][1:]
        ['multibox_confidence', 'bounded_regression', 'multibox_localization', 'hint']
    """
    models = import_keras_cv("tfkd.losses.retina_net_objective").models
    _check_kinds(teacher, student, models.RetinaNet)
    head = retina_net_head(student, image_size)
    chosen = {**RETINA_NET, **(weights if isinstance(weights, dict) else {})}
    if chosen["soft"] is not None or chosen["bounded"] is not None:
        check_classes(teacher, student)
        check_anchors(retina_net_head(teacher, image_size), head)
    matcher, names = _matcher(student, head, every_object), (head["boxes"], head["classes"])
    selection = MultiBoxSelection(matcher, negative_ratio, 0, teacher_boxes, "sigmoid", *names)
    losses: dict[str, DistillationLoss] = {
        "soft": MultiBoxSoftTarget(temperature, selection=selection),
        "confidence": MultiBoxConfidence(selection, focal_gamma, focal_alpha),
        "bounded": BoundedRegression(margin, selection=selection),
        "localization": MultiBoxLocalization(selection),
    }
    return objective(losses, RETINA_NET, weights, _hint(hint, teacher, student), hint_weight)


def yolo_v8_objective(
    teacher: keras.Model,
    student: keras.Model,
    weights: Mapping[str, Value | None] | None = None,
    temperature: Value = 1.0,
    distances_temperature: Value = 1.0,
    hint: str | tuple[str, str] | None = None,
    hint_weight: Value = 0.5,
    image_size: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns four terms for a pair of keras-cv's YOLOV8Detectors, for a Distiller.

        w₁ · soft + w₂ · distances + w₃ · confidence + w₄ · localization [+ w₅ · hint]

    soft: `DenseSoftTarget`; distances: `LocalizationDistillation`; both at all points,
    normalized by the teacher's confidence, and without labels. confidence and
    localization: `DenseConfidence` and `DenseLocalization`, for objects that the student's
    own label encoder assigns. 0.5 · confidence + 7.5 · localization is what
    `YOLOV8Detector.compile("ciou", "binary_crossentropy")` minimises. The weight of the
    distances is that of YOLOv8's distribution focal loss, which keras-cv does not have.

    Targets are the objects: {"boxes": (B, M, 4) corners relative to the image,
    "classes": (B, M)}, padded with −1 or ragged, whatever the model's own
    `bounding_box_format` is. Unlabelled images count in the first two terms only.
    `distiller.student` stays a YOLOV8Detector: `predict` works as before.

    Args:
        teacher: a trained `keras_cv.models.YOLOV8Detector`.
        student: another one, with the same number of classes and image size.
        weights: changes to {"soft": 0.5, "distances": 1.5, "confidence": 0.5,
            "localization": 7.5}: numbers of at least 0 or schedules. None omits a term;
            without the last two no labels are needed.
        temperature: T > 0 of the class scores' soft targets, or a schedule.
        distances_temperature: the same for the distances.
        hint: None; "P3", "P4" or "P5": this level of both backbones, through a trained
            1 × 1 projection; or (teacher's layer, student's layer).
        hint_weight: w₅.
        image_size: (height, width) in pixels, for models that accept any size.

    Returns:
        Keyword arguments of `tfkd.Distiller`, like those of `retina_net_objective`.

    Raises:
        ImportError: if keras-cv is not installed.
        TypeError: if one of the models is not a YOLOV8Detector.
        ValueError: for models whose classes or image size differ, and for a bad argument.

    Reference:
        Zheng et al. 2022, "Localization distillation for dense object detection",
        https://arxiv.org/abs/2102.12252

    Example:
        >>> import contextlib, io, tfkd
        >>> with contextlib.redirect_stdout(io.StringIO()):  # it prints its backend
        ...     import keras_cv
        >>> def detector(channels):
        ...     backbone = keras_cv.models.YOLOV8Backbone(
        ...         stackwise_channels=[channels] * 4, stackwise_depth=[1] * 4,
        ...         include_rescaling=False, input_shape=(64, 64, 3))
        ...     return keras_cv.models.YOLOV8Detector(backbone, 3, "xyxy", fpn_depth=1)
        >>> teacher, student = detector(16), detector(8)
        >>> terms = tfkd.losses.yolo_v8_objective(teacher, student)
        >>> distiller = tfkd.Distiller(teacher, student, **terms)
        >>> [loss.name for loss in distiller.distillation_losses][:2]
        ['dense_soft_target', 'localization_distillation']
    """
    kind = import_keras_cv("tfkd.losses.yolo_v8_objective").models.YOLOV8Detector
    _check_kinds(teacher, student, kind)
    size = image_size_of(student, image_size)
    chosen = {**YOLO_V8, **(weights if isinstance(weights, dict) else {})}
    if chosen["soft"] is not None or chosen["distances"] is not None:
        check_classes(teacher, student)
        if image_size_of(teacher, size) != size:
            raise checks.value_error("teacher", f"a model for images of {size}", teacher)
    assignment = DenseAssignment(student.label_encoder, size)
    losses: dict[str, DistillationLoss] = {
        "soft": DenseSoftTarget(temperature),
        "distances": LocalizationDistillation(distances_temperature),
        "confidence": DenseConfidence(assignment),
        "localization": DenseLocalization(assignment),
    }
    return objective(losses, YOLO_V8, weights, _hint(hint, teacher, student), hint_weight)


def _matcher(student: keras.Model, head: dict[str, Any], every_object: bool) -> Matcher:
    """Returns a matcher with the rules of a RetinaNet's label encoder."""
    encoder = student.label_encoder
    models = import_keras_cv("tfkd.losses.retina_net_objective").models
    if not isinstance(encoder, models.retinanet.LabelEncoder):
        fix = "How another encoder matches is not known: see tfkd.losses.MultiBoxSelection."
        expected = "a model with keras_cv.models.retinanet.LabelEncoder"
        raise checks.value_error("student", expected, encoder, fix)
    return Matcher(
        head["anchors"],
        threshold=encoder.positive_threshold,
        ignore_from=encoder.negative_threshold,
        variances=head["variances"],
        every_object=every_object,
        order=head["order"],
    )


def _check_kinds(teacher: keras.Model, student: keras.Model, kind: type) -> None:
    fix = (
        "Only heads of one kind can be compared. A student with anchors of its own can learn the "
        "teacher's boxes as labels: tfkd.losses.multibox_objective(tfkd.losses.MultiBoxSelection("
        "matcher, teacher_boxes=...), weights={'soft': None, 'bounded': None}), for a RetinaNet "
        "with tfkd.detection.TeacherBoxes(**tfkd.detection.retina_net_head(teacher))."
    )
    for side, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, kind):
            raise checks.type_error(side, f"a keras_cv.models.{kind.__name__}", model, fix)


def check_classes(teacher: keras.Model, student: keras.Model) -> None:
    """Raises ValueError unless both detectors have as many classes."""
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f"`teacher`: expected {student.num_classes} classes, as the student has, received "
            f"{teacher.num_classes}. Build both with the same num_classes."
        )


def check_anchors(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    """Raises ValueError unless two heads (`retina_net_head`) have the same anchors."""
    theirs, mine = (check_priors(head["anchors"]) for head in (teacher, student))
    # Relative to the image: the tolerance is for rounding of keras-cv's float32 pixels.
    same = theirs.shape == mine.shape and np.allclose(theirs, mine, atol=1e-5)
    if same and teacher["variances"] == student["variances"]:
        return
    what = f"{len(theirs)} and {len(mine)} anchors"
    if same:
        what = f"the variances {teacher['variances']} and {student['variances']}"
    elif len(theirs) == len(mine):
        what = f"{len(mine)} anchors each, of different sizes"
    raise ValueError(
        "teacher and student must have the same anchors and variances, since scores and offsets "
        f"are compared one by one: they have {what}. Build both models with the same "
        "anchor_generator; or omit these two terms, weights={'soft': None, 'bounded': "
        "None}, and learn the teacher's boxes as labels, teacher_boxes="
        "tfkd.detection.TeacherBoxes(**tfkd.detection.retina_net_head(teacher))."
    )


def _hint(
    hint: str | tuple[str, str] | None, teacher: keras.Model, student: keras.Model
) -> DistillationLoss | None:
    """The hint that the user asked for by the name of a level or of two layers."""
    if not isinstance(hint, str):
        return hint_between(hint)
    if hint == "pyramid" and hasattr(student, "feature_pyramid"):
        # The attribute's name: the names of the layers change when a model is loaded.
        both = ("feature_pyramid", "feature_pyramid")
        return FeatureDistillation("mse", *both, projector=None, name="hint")
    return hint_between([_level(model, hint) for model in (teacher, student)])


def _level(model: keras.Model, level: str) -> str:
    """Name of the backbone's layer that feeds a level of the pyramid."""
    names = [name for name in LEVELS if name in model.backbone.pyramid_level_inputs]
    if level in names:
        return model.backbone.pyramid_level_inputs[level]
    names += ["pyramid"] if hasattr(model, "feature_pyramid") else []
    choices = ", ".join(map(repr, names))
    expected = f"one of {choices}, or (teacher's layer, student's layer)"
    raise checks.value_error("hint", expected, level)
