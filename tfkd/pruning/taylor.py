"""Taylor scores: the first-order change of a loss on examples if a unit is removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfkd import checks, example_inputs
from tfkd.distillation.distiller import Distiller
from tfkd.example_inputs import forms
from tfkd.keras_internals import LossesContainer
from tfkd.networks.layer_parts import flat_layers
from tfkd.pruning.criteria import GraphScores, by_group, gates
from tfkd.pruning.graph import KEPT, Graph, WeightAxis
from tfkd.types import Data

# A loss of Keras in any form that `compile` takes, or a Distiller.
Loss: TypeAlias = "str | Callable[..., Any] | Sequence[Any] | Mapping[str, Any] | Distiller"

# Factors of the loss for float16, whose gradients may be too small or too large.
_SCALES = (2.0**14, 2.0**7, 1.0)


class Taylor(GraphScores):
    """Criterion: the first-order change of a loss on examples if a unit is removed.

    On each batch a unit's score is (Σ gradient · weight)², summed over the parameters that
    removing the unit sets to zero; of all batches it is the root of the mean. In groups
    with batch normalization these parameters are gamma and beta, so that
    gamma · ∂L/∂gamma + beta · ∂L/∂beta is the gradient of a gate behind it; in other groups
    they are the filters and biases. Coupled layers are removed together, so their
    contributions are added before squaring. The model runs in inference mode.

    The scores are changes of one loss and therefore comparable between layers, which
    suits scope="global". `FilterDecay` computes them anew at every interval, from the
    weights of the moment on the same examples: 512 of them take about as long as training
    on as many. The examples are kept in memory. They need all classes: scores on one class
    have nothing in common with those on another.

    Args:
        data: labelled examples (x, y) or (x, y, sample_weight) as the model takes them, or
            batches of these, in any form of `tfkd.example_inputs`.
        loss: what is differentiated, without regularization penalties: a loss as given to
            `compile`; None, the loss with which the model is compiled; or a compiled
            `tfkd.Distiller` whose student is the model, for its whole loss (its teacher
            runs, and penalties are part of it).
        max_examples: largest number of examples that are used. Of arrays they are taken evenly
            from beginning to end, in case these are sorted; of batches they are the first.
        batch_size: examples per gradient; larger batches are divided. Keep it small: after
            training the gradients of examples cancel in large batches. The ranks agree with
            the measured changes of the loss up to 32 (on a ResNet-20), at 128 hardly.

    Raises:
        TypeError, ValueError: for an argument that is none of these; when scores are
            computed, for data that the model does not take, without labels, or with a loss
            that is NaN; for a model that has no loss; for a Distiller that trains another
            model, or whose teacher is a `tfkd.TeacherCache`.

    Reference: Molchanov et al. 2019, https://arxiv.org/abs/1906.10771

    Example:
        >>> import numpy as np
        >>> from tfkd import models, pruning
        >>> model, rng = models.resnet(8), np.random.default_rng(0)
        >>> x = rng.normal(size=(64, 32, 32, 3)).astype("float32")
        >>> y = rng.integers(0, 10, 64)
        >>> taylor = pruning.Taylor((x, y), loss="sparse_categorical_crossentropy")
        >>> plan = pruning.plan(model, macs_reduction=0.4, scope="global", criterion=taylor)
        >>> plan.macs_reduction >= 0.4
        True
    """

    def __init__(
        self,
        data: Data,
        loss: Loss | None = None,
        *,
        max_examples: int = 512,
        batch_size: int = 16,
    ):
        self.max_examples = checks.positive_int("max_examples", max_examples)
        self.batch_size = checks.positive_int("batch_size", batch_size)
        self.loss = _checked_loss(loss)
        self._data: Any = data
        self._batches: list[example_inputs.Batch] | None = None
        self._traced: tuple[Any, Any] = None, None  # a model and its loss; the function

    def __repr__(self) -> str:
        return f"Taylor(max_examples={self.max_examples}, batch_size={self.batch_size})"

    def of_graph(self, graph: Graph) -> np.ndarray:
        """Scores of all units (U,), in units of the loss."""
        batches = self._read(graph.model)
        axes = _removed_axes(graph)
        squares = np.zeros(graph.units)
        for batch in batches:
            sums = np.zeros(graph.units)
            products = self._products(graph, axes, batch)
            for axis, product in zip(axes, products, strict=True):
                owned = axis.units != KEPT
                np.add.at(sums, axis.units[owned], product[owned])
            squares += sums**2
        return np.sqrt(squares / len(batches))

    def _read(self, model: keras.Model) -> list[example_inputs.Batch]:
        if self._batches is None:
            inputs, most = example_inputs.inputs_of(model), self.max_examples
            data = _thinned(self._data, inputs, most)
            found = list(
                example_inputs.batches("data", data, inputs, max_examples=most, labels=True)
            )
            self._batches, self._data = [], None
            for batch in found:
                # Each part spans all of its batch.
                count = -(-example_inputs.length("data", batch.x) // self.batch_size)
                parts = (slice(first, None, count) for first in range(count))
                self._batches += [example_inputs.take(batch, part) for part in parts]
            _warn_of_one_label([batch.y for batch in found])
        if self._batches[0].y is None and not isinstance(self.loss, Distiller):
            expected = "labelled examples (x, y), since the loss is differentiated on them"
            raise checks.value_error("data", expected, "examples without labels")
        return self._batches

    def _products(
        self, graph: Graph, axes: list[WeightAxis], batch: example_inputs.Batch
    ) -> list[np.ndarray]:
        """Σ gradient · weight for each index along each axis, on one batch."""
        function, kept = self._function(graph, axes)
        x, *labels = example_inputs.mapped(tf.convert_to_tensor, tuple(batch))
        x, strategy = example_inputs.packed(graph.model, x), graph.model.distribute_strategy
        half = any(layer.compute_dtype == "float16" for layer in flat_layers(graph.model))
        for scale in _SCALES if half else (1.0,):
            with _unchanged(kept()), _explained():
                found = strategy.run(function, (x, *labels, tf.constant(scale)))
            # All replicas have the same batch.
            found = strategy.experimental_local_results(found)[0]
            products = [np.asarray(one, np.float64) / scale for one in found]
            if all(np.isfinite(one).all() for one in products):
                return products
        expected = "examples on which the loss and its gradients are finite"
        raise checks.value_error("data", expected, "NaN or infinite gradients")

    def _function(self, graph: Graph, axes: list[WeightAxis]) -> Any:
        """The compiled function of a batch, and a function that lists what it may change."""
        model, loss = graph.model, self.loss
        container: Any = getattr(model, "compiled_loss", None) if loss is None else loss
        if loss is None and (container is None or container._user_losses is None):
            fix = "Pass loss=, or compile the model with one."
            raise checks.value_error("loss", f"a loss for {model.name!r}", None, fix)
        known = self._traced[0]
        if known is not None and known[0] is model and known[1] is container:
            return self._traced[1]
        if isinstance(loss, Distiller):
            objective, metrics = _of_distiller(loss, model), lambda: loss.metrics
        else:
            if loss is not None and not isinstance(loss, LossesContainer):
                with model.distribute_strategy.scope():
                    container = LossesContainer(loss, output_names=model.output_names)
            objective, metrics = _of_labels(model, container), lambda: container.metrics
        variables = [graph.variable(axis.layer, axis.weight) for axis in axes]

        def products(x: Any, y: Any, weight: Any, scale: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                value = scale * tf.cast(objective(x, y, weight), tf.float32)
            gradients = tape.gradient(
                value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            parts = zip(axes, variables, gradients, strict=True)
            return [_along(axis.axis, variable, gradient) for axis, variable, gradient in parts]

        def kept() -> list[tf.Variable]:
            found = [variable for metric in metrics() for variable in metric.variables]
            return found + [w for w in model.non_trainable_weights if isinstance(w, tf.Variable)]

        made = tf.function(products, autograph=False, reduce_retracing=True), kept
        self._traced = (model, self.loss or container), made
        return made


def _checked_loss(loss: Any) -> Any:
    expected = "a loss of Keras as compile takes it, a compiled tfkd.Distiller, or None"
    if isinstance(loss, keras.Model) and not isinstance(loss, Distiller):
        raise checks.type_error("loss", expected, loss)
    if isinstance(loss, str):
        try:
            keras.losses.get(loss)
        except ValueError:
            raise checks.value_error("loss", expected, loss) from None
    elif loss is not None and not callable(loss):
        checks.instance("loss", loss, (Sequence, Mapping), expected)
    return loss


def _thinned(data: Any, inputs: Sequence[example_inputs.Input], most: int) -> Any:
    """Takes at most so many examples evenly from arrays, which may be sorted by class."""
    if hasattr(data, "x_train") and hasattr(data, "y_train"):  # of tfkd.data
        every = slice(None, None, -(-len(data.x_train) // most))
        x, y = data.x_train[every], data.y_train[every]
        floats = not inputs or inputs[0].dtype.kind == "f"
        return example_inputs.Batch(
            data.preprocess(x) if floats and hasattr(data, "preprocess") else x, y
        )
    if not forms.is_batch(data, len(inputs) or None):
        return data
    batch = forms.split("data", data, len(inputs) or None)
    every = slice(None, None, max(1, -(-example_inputs.length("data", batch.x) // most)))
    return example_inputs.take(batch, every)


def _warn_of_one_label(labels: list[Any]) -> None:
    """Warns of batches from the beginning of data that are sorted by class."""
    arrays = all(example_inputs.is_array(y) and y.ndim < 3 for y in labels)
    if arrays and len({y.shape[1:] for y in labels}) == 1:
        different = np.unique(np.concatenate(labels), axis=0)
        if len(different) == 1 and sum(map(len, labels)) > 1:
            checks.warn(
                f"Taylor: all {sum(map(len, labels))} examples have the label "
                f"{different[0].tolist()}. Scores on one class say nothing about the others: "
                "shuffle the data, or pass more examples."
            )


def _removed_axes(graph: Graph) -> list[WeightAxis]:
    """The slices that are zero once a unit is removed; of groups with gates only the gates.

    Without a gamma, (x − μ)/σ + β is zero if x, μ and β are: then μ counts as a parameter.
    """
    gammas = gates(graph)
    layers = {axis.layer for axis in gammas}
    gated = by_group(graph, gammas)
    units = [graph.groups[index].units for index in gated]
    behind = np.concatenate([np.zeros(0, int), *units])
    found = []
    for axis in graph.axes:
        if not axis.zeroed:
            continue
        of_gates = np.isin(axis.units, behind)
        if axis.layer in layers:
            counts = of_gates & (axis.weight in ("gamma", "beta"))
        else:
            counts = ~of_gates
        owned = np.where(counts, axis.units, KEPT)
        if (owned != KEPT).any():
            found.append(WeightAxis(axis.layer, axis.weight, axis.axis, owned, True))
    return found


def _along(axis: int, variable: tf.Variable, gradient: tf.Tensor) -> tf.Tensor:
    """Σ gradient · weight for each index along an axis."""
    value = tf.cast(tf.convert_to_tensor(variable), tf.float32)
    others = [other for other in range(variable.shape.rank) if other != axis]
    return tf.reduce_sum(value * tf.cast(tf.convert_to_tensor(gradient), tf.float32), others)


def _of_labels(model: keras.Model, container: Any) -> Callable[..., tf.Tensor]:
    return lambda x, y, weight: container(y, model(x, training=False), weight)


def _of_distiller(distiller: Distiller, model: keras.Model) -> Callable[..., tf.Tensor]:
    mine = {id(variable) for variable in distiller.student.weights}
    if not all(id(variable) in mine for variable in model.weights):
        expected = f"a Distiller whose student is {model.name!r}, the model that is scored"
        raise checks.value_error("loss", expected, distiller.student.name)
    if distiller._precomputed_teacher is not None:
        fix = "Pass a Distiller with the teacher itself, or a loss of Keras."
        raise checks.value_error("loss", "a Distiller whose teacher runs", "a cache", fix)
    if distiller.compiled_loss is None:
        raise checks.value_error("loss", "a compiled Distiller", "one that is not compiled")
    return lambda x, y, weight: distiller.compute_loss(x, y, sample_weight=weight, training=False)


@contextlib.contextmanager
def _unchanged(variables: list[tf.Variable]) -> Iterator[None]:
    """Restores variables: the logs of an epoch, statistics of layers that always train."""
    before = [tf.convert_to_tensor(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns an error of Keras or TensorFlow in the loss into one about the data."""
    try:
        yield
    except (ValueError, TypeError, tf.errors.OpError) as error:
        text = str(error).strip().splitlines()[-1].strip()  # where it arose is told first
        raise ValueError(
            "`data`: expected labelled examples that the model and its loss take, received some "
            f"for which TensorFlow says: {text}"
        ) from error
