"""Reference Keras models: ResNet, VGG-16, SSD detectors and text classifiers.

They are plain functional models, which do not depend on tfkd's training.
"""

from tfkd.models.resnet import resnet
from tfkd.models.ssd import ssd, ssd300, ssd_small
from tfkd.models.ssd_backbones import ssd_backbone, ssd_vgg16
from tfkd.models.text import text_mlp, text_transformer
from tfkd.models.vgg import vgg16

__all__ = [
    "resnet",
    "ssd",
    "ssd300",
    "ssd_backbone",
    "ssd_small",
    "ssd_vgg16",
    "text_mlp",
    "text_transformer",
    "vgg16",
]
