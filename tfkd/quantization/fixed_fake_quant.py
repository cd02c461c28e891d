"""`FixedQuantize`: 8-bit fake quantization of a tensor over a constant range."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks

EMITS = ("fake_quant", "quantize_dequantize")


@keras.saving.register_keras_serializable("tfkd")
class FixedQuantize(keras.layers.Layer):
    """Rounds to 256 levels (255 with `narrow_range`) from `low` to `high`; clips other values.

    Args:
        low: smallest representable value, at most 0.
        high: largest representable value, at least 0 and above `low`.
        narrow_range: omit the lowest of the 256 codes, so that −`high` … `high` has its
            zero point at 0.
        emit: "fake_quant": the operation that TFLite's converter reads;
            "quantize_dequantize": the one that becomes QuantizeLinear and
            DequantizeLinear (QDQ) in ONNX, for symmetric ranges only.

    Raises:
        ValueError: if the range is empty or does not contain 0, or is not symmetric with
            "quantize_dequantize".

    Example:
        >>> layer = FixedQuantize(-127.0, 127.0, narrow_range=True)
        >>> layer(tf.constant([-300.0, 0.4, 1.6])).numpy().tolist()
        [-127.0, 0.0, 2.0]
    """

    def __init__(
        self,
        low: float,
        high: float,
        narrow_range: bool = False,
        emit: str = "fake_quant",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.one_of("emit", emit, EMITS)
        if not (low <= 0 <= high and low < high):
            raise checks.value_error("low, high", "a range that contains 0", (low, high))
        if emit == "quantize_dequantize" and not (narrow_range and low == -high):
            raise checks.value_error(
                "low, high", "a symmetric narrow range with this `emit`", (low, high, narrow_range)
            )
        self.low, self.high = float(low), float(high)
        self.narrow_range, self.emit = bool(narrow_range), emit
        self.supports_masking = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Any shape → the same shape, float32."""
        if self.emit == "fake_quant":
            return tf.quantization.fake_quant_with_min_max_args(
                inputs, self.low, self.high, num_bits=8, narrow_range=self.narrow_range
            )
        # V2 and V4 reject per-channel ranges in TensorFlow 2.21; V3 takes both kinds.
        return tf.raw_ops.QuantizeAndDequantizeV3(
            input=inputs,
            input_min=self.low,
            input_max=self.high,
            num_bits=8,
            signed_input=True,
            range_given=True,
            narrow_range=True,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {key: getattr(self, key) for key in ("low", "high", "narrow_range", "emit")}
        return {**super().get_config(), **own}
