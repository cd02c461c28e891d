"""Readers of exported files: TFLite, ONNX, SavedModel, and detectors as TFLite files."""
