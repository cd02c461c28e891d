"""Export of Keras models to TFLite, ONNX, TensorRT and SavedModel, verified in their runtimes."""

from tfkd.export.detector.onnx import OnnxDetectorReport, detector_to_onnx
from tfkd.export.detector.tflite import DetectorReport, detector_to_tflite
from tfkd.export.onnx.export import OnnxReport, to_onnx
from tfkd.export.parity import ExportReport
from tfkd.export.saved_model import SavedModelReport, to_saved_model
from tfkd.export.tensorrt import EngineReport, build_engine
from tfkd.export.tensorrt_lint.lint import Finding, Findings, lint_tensorrt
from tfkd.export.tflite import to_tflite
from tfkd.formats.detector import load_detector
from tfkd.formats.saved_model import verify_saved_model

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
