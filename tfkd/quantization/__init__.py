"""Quantization-aware training (QAT) with tfmot wrappers for TFLite and TensorRT int8."""

from __future__ import annotations

from tfkd.quantization.calibrating import calibrate
from tfkd.quantization.quantized_model import QuantizedModel
from tfkd.quantization.quantizing import quantize
from tfkd.quantization.report import Decision
from tfkd.quantization.saving import load, save

__all__ = ["Decision", "QuantizedModel", "calibrate", "load", "quantize", "save"]
