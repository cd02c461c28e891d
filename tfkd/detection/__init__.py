"""Object detection: anchors, box coding, matching, non-maximum suppression and COCO metrics."""

from tfkd.detection.anchors import Anchors
from tfkd.detection.boxes import IGNORED, PADDING, UNLABELLED, VARIANCES, iou
from tfkd.detection.decoding import decode
from tfkd.detection.keras_cv_models import RetinaNetAnchors, keras_cv_objects, retina_net_head
from tfkd.detection.matching import Matcher
from tfkd.detection.teacher_boxes import TeacherBoxes, fit_thresholds

__all__ = [
    "IGNORED",
    "PADDING",
    "UNLABELLED",
    "VARIANCES",
    "Anchors",
    "Matcher",
    "RetinaNetAnchors",
    "TeacherBoxes",
    "decode",
    "fit_thresholds",
    "iou",
    "keras_cv_objects",
    "retina_net_head",
]
