"""Graph rewriting before quantization: inlines nested models, decomposes composite layers."""
