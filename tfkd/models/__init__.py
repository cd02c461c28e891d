"""Plain Keras models to start from: nothing in them depends on tfkd's training."""

from tfkd.models.resnet import resnet
from tfkd.models.text import text_mlp, text_transformer
from tfkd.models.vgg import vgg16

__all__ = ["resnet", "text_mlp", "text_transformer", "vgg16"]
