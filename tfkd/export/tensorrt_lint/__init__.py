"""Static checks of an ONNX graph or a Keras model against what TensorRT accepts."""
