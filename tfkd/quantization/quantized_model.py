"""`QuantizedModel`: the fake-quantized model of quantization-aware training (QAT)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfkd import checks
from tfkd.networks.accept import refuse_distiller
from tfkd.networks.layer_parts import flat_layers
from tfkd.quantization.fake_quant import RangeQuantizer, is_observing, observing
from tfkd.quantization.norm_statistics import is_batch_norm
from tfkd.quantization.report import Decision, QuantizationReport
from tfkd.quantization.wrappers import QuantizedLayer, QuantizedTensor
from tfkd.types import Path

CALIBRATE = "Set its ranges first: tfkd.quantization.calibrate(q, images)"


@keras.saving.register_keras_serializable("tfkd")
class QuantizedModel(keras.Model):
    """A functional model that simulates 8-bit integer arithmetic, made by `quantize`.

    It trains like any Keras model, alone or as the student of a `tfkd.Distiller`. It can be
    neither trained nor run before `tfkd.quantization.calibrate` has set its activation
    ranges.

    Its batch normalizations are frozen, unless `quantize` was called with
    `freeze_batch_norm=False`: in training they compute as in inference, and neither their
    statistics nor gamma and beta change, whatever `trainable` is set to.

    Attributes:
        target: "tflite", "tensorrt" or "both".
        recipe: the arguments of `quantize` and its decisions, serializable as JSON.
        float_config: the flat float model that it was made from, as JSON text
            (`keras.models.model_from_json`).
    """

    target: str
    recipe: dict[str, Any]
    float_config: str

    def _describe(
        self,
        target: str,
        recipe: Mapping[str, Any],
        float_config: str,
        rows: Sequence[Decision],
        places: Mapping[str, tuple[str, int]],
    ) -> None:
        """Sets attributes past Keras's tracking, which would wrap tuples and dicts."""
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "recipe", dict(recipe))
        object.__setattr__(self, "float_config", float_config)
        plain = (dataclasses.replace(row, note="") for row in rows)
        object.__setattr__(self, "_rows", tuple(plain))
        object.__setattr__(self, "_places", dict(places))  # layer with a range → decision
        notes = {(row.layer, row.call): row.note for row in rows if row.note}
        object.__setattr__(self, "_notes", notes)  # (layer, call) → note of calibration
        object.__setattr__(self, "_was_calibrated", False)
        # The order of weights in files, which must not depend on `trainable` flags.
        object.__setattr__(self, "_stored_weights", tuple(self.weights))
        norms = [layer for layer in flat_layers(self) if is_batch_norm(layer)]
        frozen = tuple((norm, norm.trainable) for norm in norms) if self.freeze_batch_norm else ()
        object.__setattr__(self, "_frozen_norms", frozen)
        self.keep_frozen()

    @property
    def freeze_batch_norm(self) -> bool:
        """Whether the batch normalizations are frozen, an argument of `quantize`."""
        # Files of versions without this argument hold models trained without freezing.
        return bool(self.recipe.get("freeze_batch_norm", False))

    def keep_frozen(self) -> bool:
        """Freezes the batch normalizations again; True if they had been unfrozen.

        Setting `trainable = True` on this model or on one that contains it unfreezes them.
        """
        norms = [norm for norm, _ in vars(self).get("_frozen_norms", ()) if norm._trainable]
        for norm in norms:
            norm._trainable = False
        return bool(norms)

    def _refreeze(self) -> None:
        if self.keep_frozen() and self.trainable:
            checks.warn(
                f"{self.name!r}: its batch normalizations stay frozen, though `trainable` was set "
                "to True. To train them and update their statistics, make the model with "
                "tfkd.quantization.quantize(model, freeze_batch_norm=False)."
            )

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        """The trainable weights, without those of frozen batch normalizations."""
        self._refreeze()
        return super().trainable_weights

    @contextlib.contextmanager
    def recalibrating(self) -> Iterator[None]:
        """Context of `tfkd.pruning.recalibrate`: norms unfrozen, activations unquantized."""
        frozen = self._frozen_norms
        object.__setattr__(self, "_frozen_norms", ())
        for norm, was_trainable in frozen:
            norm._trainable = was_trainable
        try:
            with observing(lambda low, tensor: None):
                yield
        finally:
            object.__setattr__(self, "_frozen_norms", frozen)
            self.keep_frozen()

    @property
    def report(self) -> QuantizationReport:
        """The quantization decision for each layer call; `print(q.report)` shows a table."""
        rows = [
            dataclasses.replace(row, note=self._notes.get((row.layer, row.call), ""))
            for row in self._rows
        ]
        return QuantizationReport(tuple(rows), self.target)

    @property
    def calibrated(self) -> bool:
        """True once every range is set, by `calibrate` or by loading calibrated weights."""
        with tf.init_scope():
            return all(float(range_.high.numpy()) > 0 for range_ in range_variables(self))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The activation ranges, {name of the layer that holds one: (low, high)}."""
        return {
            range_.layer.name: (float(range_.low.numpy()), float(range_.high.numpy()))
            for range_ in range_variables(self, fixed=True)
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs.

        Raises:
            RuntimeError: if the model is not calibrated.
        """
        self._refuse_uncalibrated(args, kwargs)
        self._refreeze()
        return super().__call__(*args, **kwargs)

    def _refuse_uncalibrated(self, args: Any, kwargs: Any) -> None:
        values = tf.nest.flatten((args, kwargs))
        if any(keras.backend.is_keras_tensor(v) for v in values if tf.is_tensor(v)):
            return  # A symbolic call: nothing is computed.
        self.check_calibrated()

    def check_calibrated(self) -> None:
        """Raises unless all ranges are set.

        Raises:
            RuntimeError: if the model is not calibrated.
        """
        # Ranges are never unset again: checking once is enough, and keeps steps fast.
        if vars(self).get("_was_calibrated", True) or is_observing():
            return
        if not self.calibrated:
            raise RuntimeError(
                f"`q`: expected a calibrated model, received {self.name!r}, whose activations "
                f"have no ranges yet. {CALIBRATE}."
            )
        object.__setattr__(self, "_was_calibrated", True)

    def save(self, filepath: Path, *args: Any, **kwargs: Any) -> None:
        """Always raises: Keras can't load such a model again. `save_weights` works.

        Raises:
            ValueError: always.
        """
        self._refuse_whole(filepath)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """`keras.Model.fit`.

        Raises:
            ValueError: for a ModelCheckpoint without `save_weights_only=True`: see `save`.
        """
        # `callbacks` is the sixth positional argument of `fit`.
        filepath = checks.whole_model_path(kwargs.get("callbacks", (*args, *[None] * 6)[5]))
        if filepath is not None:
            self._refuse_whole(filepath)
        return super().fit(*args, **kwargs)

    def _refuse_whole(self, filepath: Path) -> None:
        raise ValueError(
            f"`filepath`: expected weights alone, received {os.fspath(filepath)!r} for a whole "
            "quantized model, which Keras can't load again. Use tfkd.quantization.save(q, path) "
            "and load(path); for checkpoints save_weights_only=True."
        )

    # Keras caches the step function: if its first trace failed, later steps would fail, too.
    def make_train_function(self, force: bool = False) -> Callable[..., Any]:
        """As in Keras; raises RuntimeError if the model is not calibrated."""
        self.check_calibrated()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Callable[..., Any]:
        """As in Keras; raises RuntimeError if the model is not calibrated."""
        self.check_calibrated()
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Callable[..., Any]:
        """As in Keras; raises RuntimeError if the model is not calibrated."""
        self.check_calibrated()
        return super().make_predict_function(force)


@dataclasses.dataclass(frozen=True)
class RangeVariables:
    """The range variables of one activation, and the layer that holds them.

    Attributes:
        layer: a `QuantizedLayer` or `QuantizedTensor` of the model.
        place: (layer, call) of the decision that the range implements.
        quantizer: the `RangeQuantizer` that uses the variables.
        low, high: the scalar variables.
    """

    layer: QuantizedLayer | QuantizedTensor
    place: tuple[str, int]
    quantizer: RangeQuantizer
    low: tf.Variable
    high: tf.Variable


def check_quantized(name: str, q: Any) -> QuantizedModel:
    """Accepts a `QuantizedModel`; raises TypeError for anything else."""
    refuse_distiller(name, q)
    if not isinstance(q, QuantizedModel):
        fix = "Make one: tfkd.quantization.quantize(model)."
        raise checks.type_error(name, "a QuantizedModel", q, fix)
    return q


def range_variables(model: QuantizedModel, fixed: bool = False) -> Iterator[RangeVariables]:
    """The ranges of a model in layer order; with `fixed`, also those fixed by an operation."""
    for layer in model.layers:
        if isinstance(layer, QuantizedTensor):
            quantizer, variables = layer.quantizer, layer.quantizer_vars
        elif isinstance(layer, QuantizedLayer) and layer.quantize_config.output_quantizer:
            quantizer = layer.quantize_config.output_quantizer
            variables = layer._output_quantizer_vars
        else:
            continue
        if fixed or quantizer.fixed is None:
            place = model._places[layer.name]
            yield RangeVariables(layer, place, quantizer, variables["low"], variables["high"])
