"""Readers of exported files: TFLite, ONNX, SavedModel, and files of detectors."""
