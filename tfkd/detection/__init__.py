"""Boxes, anchors, matching and decoding: what a detector needs around its network."""

from tfkd.detection.boxes import PADDING, UNLABELLED, VARIANCES, iou

__all__ = ["PADDING", "UNLABELLED", "VARIANCES", "iou"]
