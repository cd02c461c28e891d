"""Inference with exported files, also on devices without TensorFlow.

`from tfkd.runtime import Predictor` needs only NumPy; running a `.tflite` file also
needs `ai-edge-litert`, an `.onnx` file `onnxruntime`. `DetectorPredictor` runs
detectors.
"""

from tfkd.formats.detector import DetectorPredictor
from tfkd.runtime.predictor import Predictor
from tfkd.runtime.result_cache import CacheInfo

__all__ = ["CacheInfo", "DetectorPredictor", "Predictor"]
