"""Plain Keras models to start from: nothing in them depends on tfkd's training."""

from tfkd.models.resnet import resnet

__all__ = ["resnet"]
