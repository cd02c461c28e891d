"""Loads and runs what was exported, on a device without TensorFlow if need be.

`from tfkd.runtime import Predictor` needs NumPy alone; a `.tflite` file needs
`ai-edge-litert` besides, an `.onnx` file `onnxruntime`. `DetectorPredictor` is for the
files of detectors.
"""

from tfkd.formats.detector import DetectorPredictor
from tfkd.runtime.predictor import Predictor
from tfkd.runtime.result_cache import CacheInfo

__all__ = ["CacheInfo", "DetectorPredictor", "Predictor"]
