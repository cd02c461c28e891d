"""Keras models out to other formats; every export is run again and compared."""

from tfkd.export.detection_onnx import OnnxDetectorReport, detector_to_onnx
from tfkd.export.detection_running import load_detector
from tfkd.export.detection_tflite import DetectorReport, detector_to_tflite
from tfkd.export.lint import Finding, Findings, lint_tensorrt
from tfkd.export.onnx_export import OnnxReport, to_onnx
from tfkd.export.saved_model import SavedModelReport, to_saved_model, verify_saved_model
from tfkd.export.tensorrt import EngineReport, build_engine
from tfkd.export.tflite import to_tflite
from tfkd.export.verify import ExportReport

__all__ = [
    "DetectorReport",
    "EngineReport",
    "ExportReport",
    "Finding",
    "Findings",
    "OnnxDetectorReport",
    "OnnxReport",
    "SavedModelReport",
    "build_engine",
    "detector_to_onnx",
    "detector_to_tflite",
    "lint_tensorrt",
    "load_detector",
    "to_onnx",
    "to_saved_model",
    "to_tflite",
    "verify_saved_model",
]
