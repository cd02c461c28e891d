"""Keras callbacks that know of distillation; one callback a file."""

from tfkd.callbacks.tensorboard import TensorBoard

__all__ = ["TensorBoard"]
