"""Static linting of ONNX graphs against the rules of TensorRT."""
