"""tfmot's configuration of one layer: which weights are quantized, and the output."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from tfkd.keras_internals import is_in_keras_graph, quantize_layer, quantize_wrapper
from tfkd.networks.layer_parts import takes_mask
from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer

# Layer → (the attribute that holds its weights, the axes of their output channels).
# TFLite has one scale for the whole kernel of a Dense layer.
WEIGHTS: dict[type, tuple[str, tuple[int, ...]]] = {
    keras.layers.Conv1D: ("kernel", (2,)),
    keras.layers.Conv2D: ("kernel", (3,)),
    keras.layers.Conv2DTranspose: ("kernel", (2,)),
    keras.layers.DepthwiseConv2D: ("depthwise_kernel", (2, 3)),
    keras.layers.Dense: ("kernel", ()),
}


@keras.saving.register_keras_serializable("tfkd")
class LayerConfig(tfmot.quantization.keras.QuantizeConfig):
    """What of one layer is quantized.

    Args:
        weight: the attribute with the weights to quantize; None: none.
        weight_quantizer: how.
        output_quantizer: how its output is quantized; None: not at all.
    """

    def __init__(
        self,
        weight: str | None = None,
        weight_quantizer: WeightQuantizer | None = None,
        output_quantizer: RangeQuantizer | None = None,
    ):
        self.weight = weight
        self.weight_quantizer = weight_quantizer
        self.output_quantizer = output_quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The weights, and how each is quantized."""
        return [(getattr(layer, self.weight), self.weight_quantizer)] if self.weight else []

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """None: an activation that counts is a layer of its own."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Lets the layer compute with these."""
        if self.weight:
            # Past Keras's tracking: the layer goes on holding the variable itself.
            vars(layer)[self.weight] = quantize_weights[0]

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """None there are."""
        del layer, quantize_activations  # AutoGraph can't read a body that is a docstring alone.

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """One, or none."""
        return [self.output_quantizer] if self.output_quantizer else []

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "weight": self.weight,
            "weight_quantizer": _written(self.weight_quantizer),
            "output_quantizer": _written(self.output_quantizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LayerConfig:
        """The configuration that `get_config` described."""
        weight, output = config["weight_quantizer"], config["output_quantizer"]
        return cls(
            config["weight"],
            None if weight is None else WeightQuantizer(**weight),
            None if output is None else RangeQuantizer(**output),
        )


def _written(quantizer: Any) -> dict[str, Any] | None:
    return None if quantizer is None else quantizer.get_config()


@keras.saving.register_keras_serializable("tfkd")
class QuantizedLayer(quantize_wrapper.QuantizeWrapperV2):
    """tfmot's wrapper, with what tfmot forgets.

    The layer has its own variables back after each call (tfmot leaves tensors
    of the last graph in it); a frozen layer stays frozen; masks pass.
    """

    def __init__(self, layer: Any, quantize_config: Any, **kwargs: Any):
        super().__init__(layer, quantize_config, **kwargs)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Builds the layer, then the quantizers' variables."""
        super().build(input_shape)
        self._trainable_weights.clear()  # the layer's own: see `trainable_weights`

    @tf.autograph.experimental.do_not_convert  # nothing to convert: tracing takes half the time
    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The layer's output, from quantized weights, and quantized."""
        if not takes_mask(self.layer):
            kwargs.pop("mask", None)
        own = {name: vars(self.layer).get(name) for name in _weight_names(self.quantize_config)}
        try:
            return super().call(inputs, training=_known(training), **kwargs)
        finally:
            self.layer.__dict__.update(own)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The layer's."""
        return self.layer.compute_mask(inputs, mask)

    def _update_trackables(self) -> None:
        """Keras would count the layer's weights as the wrapper's own, and write them twice."""

    @property
    def trainable_weights(self) -> list[Any]:
        """Those of the layer; none where it is frozen."""
        return self.layer.trainable_weights


def _weight_names(config: Any) -> list[str]:
    return [config.weight] if getattr(config, "weight", None) else []


@keras.saving.register_keras_serializable("tfkd")
class QuantizedTensor(quantize_layer.QuantizeLayer):
    """tfmot's layer that quantizes a tensor: behind inputs and what can't be wrapped."""

    def __init__(self, quantizer: Any, **kwargs: Any):
        super().__init__(quantizer, **kwargs)
        self.supports_masking = True

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The tensor on its grid."""
        return super().call(inputs, training=_known(training))


def _known(training: Any) -> bool | Any:
    """`training` as a bool while Keras connects layers, where nothing is to be assigned."""
    in_keras_graph = is_in_keras_graph() and tf.is_tensor(training)
    return False if training is None or in_keras_graph else training
