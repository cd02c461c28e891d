"""tfmot `QuantizeConfig` and wrappers: which weights and outputs of a layer are quantized."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

from tfkd.keras_internals import is_in_keras_graph, quantize_layer, quantize_wrapper
from tfkd.networks.layer_parts import takes_mask
from tfkd.quantization.fake_quant import RangeQuantizer, WeightQuantizer

# Layer class → (attribute of its kernel, axes of the output channels). Quantization is per
# channel along these axes; that of Dense is per tensor, as in TFLite. Conv2DTranspose has
# the layout (h, w, out, in), DepthwiseConv2D (h, w, in, multiplier), the others (..., in, out).
WEIGHTS: dict[type, tuple[str, tuple[int, ...]]] = {
    keras.layers.Conv1D: ("kernel", (2,)),
    keras.layers.Conv2D: ("kernel", (3,)),
    keras.layers.Conv2DTranspose: ("kernel", (2,)),
    keras.layers.DepthwiseConv2D: ("depthwise_kernel", (2, 3)),
    keras.layers.Dense: ("kernel", ()),
}
# Layer class → attribute of the slopes, of which TFLite's kernel takes int8 codes with one
# scale; TensorRT takes them in float.
SLOPES: dict[type, str] = {keras.layers.PReLU: "alpha"}


@keras.saving.register_keras_serializable("tfkd")
class LayerConfig(tfmot.quantization.keras.QuantizeConfig):
    """Which weight and output of a layer are quantized.

    Args:
        weight: name of the attribute to quantize, such as "kernel"; None: no weight.
        weight_quantizer: quantizer of the weight.
        output_quantizer: quantizer of the output; None: it is not quantized.
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

    def get_weights_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[tf.Variable, WeightQuantizer | None]]:
        """Pairs (weight, quantizer)."""
        return [(getattr(layer, self.weight), self.weight_quantizer)] if self.weight else []

    def get_activations_and_quantizers(self, layer: keras.layers.Layer) -> list[Any]:
        """Empty: activations are layers of their own, or fused ReLUs."""
        return []

    def set_quantize_weights(
        self, layer: keras.layers.Layer, quantize_weights: list[tf.Tensor]
    ) -> None:
        """Replaces the layer's weights by quantized tensors during a call."""
        if self.weight:
            # Bypass Keras's tracking, which would drop the variable from the layer.
            vars(layer)[self.weight] = quantize_weights[0]

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: list[Any]
    ) -> None:
        """Does nothing: there are no quantized activations inside of layers."""
        del layer, quantize_activations  # AutoGraph can't parse a body of a docstring alone.

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[RangeQuantizer]:
        """A list of the output quantizer, or an empty list."""
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
        """Creates the configuration from the result of `get_config`."""
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
    """tfmot's `QuantizeWrapperV2` with fixes.

    The layer gets its own variables back after each call (tfmot leaves tensors of the last
    traced graph in it), a frozen layer stays frozen, and masks are propagated.
    """

    def __init__(self, layer: keras.layers.Layer, quantize_config: LayerConfig, **kwargs: Any):
        super().__init__(layer, quantize_config, **kwargs)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        """Builds the layer, then the variables of the quantizers."""
        super().build(input_shape)
        self._trainable_weights.clear()  # they belong to the layer, see `trainable_weights`

    @tf.autograph.experimental.do_not_convert  # has no control flow; halves the tracing time
    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The output of the layer, computed with fake-quantized weights and fake-quantized."""
        if not takes_mask(self.layer):
            kwargs.pop("mask", None)
        own = {name: vars(self.layer).get(name) for name in _weight_names(self.quantize_config)}
        try:
            return super().call(inputs, training=_known(training), **kwargs)
        finally:
            self.layer.__dict__.update(own)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The output shape of the wrapped layer."""
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of the wrapped layer."""
        return self.layer.compute_mask(inputs, mask)

    def _update_trackables(self) -> None:
        """Does nothing: Keras would also track the layer's weights here, and save them twice."""

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The trainable weights of the wrapped layer; none if it is frozen."""
        return self.layer.trainable_weights


def _weight_names(config: Any) -> list[str]:
    return [config.weight] if getattr(config, "weight", None) else []


@keras.saving.register_keras_serializable("tfkd")
class QuantizedTensor(quantize_layer.QuantizeLayer):
    """tfmot's `QuantizeLayer`: fake-quantizes inputs and outputs of calls without a wrapper."""

    def __init__(self, quantizer: RangeQuantizer, **kwargs: Any):
        super().__init__(quantizer, **kwargs)
        self.supports_masking = True

    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        inputs: tf.Tensor,
        training: bool | tf.Tensor | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the fake-quantized tensor."""
        return super().call(inputs, training=_known(training))


def _known(training: Any) -> bool | Any:
    """`training`, or False in a symbolic call, in which no variable may be assigned."""
    in_keras_graph = is_in_keras_graph() and tf.is_tensor(training)
    return False if training is None or in_keras_graph else training
