"""Functional Keras models as graphs of layer calls: validation, traversal, layer lookup by name,
copying, rebuilding and batch-norm folding.
"""
