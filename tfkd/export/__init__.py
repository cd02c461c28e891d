"""Keras models out to other formats; every export is run again and compared."""

from tfkd.export.tflite import to_tflite
from tfkd.export.verify import ExportReport

__all__ = ["ExportReport", "to_tflite"]
