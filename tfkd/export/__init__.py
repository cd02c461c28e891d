"""Keras models out to other formats; every export is run again and compared."""

from tfkd.export.lint import Finding, Findings, lint_tensorrt
from tfkd.export.onnx_export import OnnxReport, to_onnx
from tfkd.export.saved_model import SavedModelReport, to_saved_model, verify_saved_model
from tfkd.export.tensorrt import EngineReport, build_engine
from tfkd.export.tflite import to_tflite
from tfkd.export.verify import ExportReport

__all__ = [
    "EngineReport",
    "ExportReport",
    "Finding",
    "Findings",
    "OnnxReport",
    "SavedModelReport",
    "build_engine",
    "lint_tensorrt",
    "to_onnx",
    "to_saved_model",
    "to_tflite",
    "verify_saved_model",
]
