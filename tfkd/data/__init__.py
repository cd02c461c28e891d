"""Data sets for training and evaluation: loaders, augmentation, reproducible batches."""

from tfkd.data.augment import shift_and_flip
from tfkd.data.batches import batches, eval_batches, steps_per_epoch
from tfkd.data.dataset import Dataset
from tfkd.data.detection.augment import augment_boxes
from tfkd.data.detection.batches import detection_batches, detection_eval_batches
from tfkd.data.detection.coco import coco
from tfkd.data.detection.dataset import DetectionDataset
from tfkd.data.detection.findings import AnnotationError, AnnotationFinding
from tfkd.data.detection.labelling import teacher_labels
from tfkd.data.detection.scenes import digit_scenes
from tfkd.data.detection.voc import voc
from tfkd.data.folder import image_folder
from tfkd.data.noise import noisy_labels
from tfkd.data.sources import digits, keras_dataset, load, npz
from tfkd.data.text import Encoder, TextDataset, TokenDataset
from tfkd.data.tsv import tsv

__all__ = [
    "AnnotationError", "AnnotationFinding", "Dataset", "DetectionDataset", "Encoder", "TextDataset",
    "TokenDataset", "augment_boxes", "batches", "coco", "detection_batches",
    "detection_eval_batches", "digit_scenes", "digits", "eval_batches", "image_folder",
    "keras_dataset", "load", "noisy_labels", "npz", "shift_and_flip", "steps_per_epoch",
    "teacher_labels", "tsv", "voc",
]  # fmt: skip
