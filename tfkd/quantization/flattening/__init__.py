"""Graph rewriting before quantization: nesting, composite layers and attention flattened."""
