"""Cost model of layers: multiply-accumulates from per-layer rules and a trace of the model."""
