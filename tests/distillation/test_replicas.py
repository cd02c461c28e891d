"""Two replicas make the steps that one replica makes on the same global batch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, logs

import tfkd
from tfkd import losses as all_losses

CLASSES = 3


def model(seed, width=4, regularizer=None, activity=None, norm=False):
    """Maps (6, 2) → "hidden" (6, width) → pooled → scores."""
    x = keras.Input((6, 2))
    h = keras.layers.Dense(
        width, "tanh", kernel_regularizer=regularizer, activity_regularizer=activity, name="hidden"
    )(x)
    if norm:
        h = keras.layers.BatchNormalization(synchronized=True)(h)
    pooled = keras.layers.GlobalAveragePooling1D(name="pooled")(h)
    return toys.randomize(keras.Model(x, keras.layers.Dense(CLASSES)(pooled)), seed)


def numbers(seed, width=4):
    """A regression: (6, 2) → (2,)."""
    x = keras.Input((6, 2))
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(width, "tanh", name="hidden")(x))
    return toys.randomize(keras.Model(x, keras.layers.Dense(2)(h)), seed)


def tagger(seed, width=4):
    """A score of 3 classes for each token; token 0 is padding."""
    x = keras.Input((6,), dtype="int32")
    h = keras.layers.Embedding(10, width, mask_zero=True)(x)
    h = keras.layers.Dense(width, "tanh", name="hidden")(h)
    return toys.randomize(keras.Model(x, keras.layers.Dense(CLASSES)(h)), seed)


def data(count):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 2)).astype(np.float32)
    return x, rng.integers(0, CLASSES, count), rng.uniform(0, 2, count).astype(np.float32)


def train(
    strategy, build, arrays, batch, epochs=2, optimizer=None, compile_args=None, validate=False
):
    """Weights of student and projectors, and the last logs."""
    with strategy.scope():
        keras.utils.set_random_seed(4)  # a projector starts alike
        distiller = build()
        distiller.compile(
            optimizer() if optimizer else keras.optimizers.SGD(0.1, 0.9),
            **{"loss": CROSSENTROPY, **(compile_args or {})},
        )
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(batch)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options)
    validation = dataset if validate else None
    history = distiller.fit(dataset, epochs=epochs, validation_data=validation, verbose=0)
    weights = [w for m in (distiller.student, *distiller.projectors) for w in m.get_weights()]
    return weights, logs(history)


def assert_alike(two_replicas, build, arrays, batch=4, tolerance=1e-6, **kwargs):
    """One replica is the strategy of a process that has made none."""
    one, one_logs = train(tf.distribute.get_strategy(), build, arrays, batch, **kwargs)
    two, two_logs = train(two_replicas, build, arrays, batch, **kwargs)
    assert two_replicas.num_replicas_in_sync == 2
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert set(one_logs) == set(two_logs)
    for name, value in one_logs.items():
        np.testing.assert_allclose(two_logs[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def hint(**kwargs):
    return all_losses.FeatureDistillation(
        teacher_layer_name="hidden", student_layer_name="hidden", **kwargs
    )


class OfTheBatch(all_losses.DistillationLoss):
    """A user's own loss: a mean of the examples it is given."""

    def compute_loss(self, teacher_outputs, student_outputs, sample_weight=None):
        error = tf.reduce_mean(tf.square(teacher_outputs - student_outputs), -1)
        if sample_weight is not None:
            error *= tf.cast(sample_weight, tf.float32)
        return tf.reduce_mean(error)


LOSSES = {
    "LogitsDistillation": lambda: all_losses.LogitsDistillation(2.0),
    "LogitsDistillation of a function": lambda: all_losses.LogitsDistillation(2.0, "mse"),
    "FeatureDistillation": hint,
    "DecoupledDistillation": lambda: all_losses.DecoupledDistillation(2.0, 1.0, 4.0),
    "AttentionTransfer": lambda: all_losses.AttentionTransfer("hidden", "hidden"),
    "RelationalDistillation": lambda: all_losses.RelationalDistillation(
        teacher_layer_name="pooled", student_layer_name="pooled"
    ),
    "ExpectedErrorLoss": lambda: all_losses.ExpectedErrorLoss(),
    "PearsonDistillation": lambda: all_losses.PearsonDistillation(2.0),
    "TransformedTeacherMatching": lambda: all_losses.TransformedTeacherMatching(2.0),
    "DistillationLoss": OfTheBatch,
}


def test_the_list_of_losses_is_complete():
    tested = {name.split(" ")[0] for name in LOSSES} | {"BoundedRegression"}
    bases = {"ElementwiseLoss", "Elements", "curriculum_objective"}
    assert set(all_losses.__all__) - bases - toys.losses_of_detectors() <= tested


@pytest.mark.parametrize(
    "names",
    [
        # The logs tell them apart.
        pytest.param([name for name in LOSSES if name != "PearsonDistillation"], id="all"),
        *[pytest.param([name], id=name, marks=pytest.mark.slow) for name in LOSSES],
    ],
)
def test_each_loss(two_replicas, names):
    """7 examples in batches of 3 + 3 + 1: uneven replicas, and one that gets no example."""

    def build():
        kinds = [LOSSES[name]() for name in names]
        return tfkd.Distiller(model(1, 5), model(2, 4, "l2"), kinds, student_loss_weight=0.3)

    # The difference of two probabilities, by which a correlation divides, has fewer digits.
    tolerance = 2e-5 if "PearsonDistillation" in names else 1e-6
    assert_alike(two_replicas, build, data(7), batch=3, epochs=1, tolerance=tolerance)


@pytest.mark.parametrize("margin", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_bounded_regression(two_replicas, margin):
    x, _, weight = data(7)
    y = np.random.default_rng(3).normal(size=(7, 2)).astype(np.float32)

    def build():
        loss = all_losses.BoundedRegression(margin)
        return tfkd.Distiller(numbers(1), numbers(2), loss, student_loss_weight=0.3)

    assert_alike(two_replicas, build, (x, y, weight), compile_args={"loss": "mse"})


@pytest.mark.slow
def test_everything_at_once_with_adam(two_replicas):
    """Weights, all regularizers, several teachers and losses, a projector, validation."""

    def build():
        losses = [all_losses.LogitsDistillation(2.0), hint(), LOSSES["RelationalDistillation"]()]
        return tfkd.Distiller(
            [model(1, 5), model(5, 5)],
            model(2, 3, "l2", "l1"),
            losses,
            distillation_loss_weights=[1.0, 0.5, 0.1],
            student_loss_weight=tfkd.schedules.Linear(0.1, 0.5, 0, 4),
        )

    # Adam divides by √v: where a gradient is near 0 rounding is made larger.
    assert_alike(
        two_replicas,
        build,
        data(7),
        optimizer=lambda: keras.optimizers.Adam(0.01),
        tolerance=1e-5,
        validate=True,
        compile_args={
            "metrics": ["accuracy"],
            "weighted_metrics": [keras.metrics.SparseCategoricalCrossentropy(from_logits=True)],
        },
    )


@pytest.mark.slow
def test_synchronized_batch_norm(two_replicas):
    def build():
        return tfkd.Distiller(
            model(1, 5), model(2, 4, norm=True), [all_losses.LogitsDistillation(2.0), hint()]
        )

    assert_alike(two_replicas, build, data(8), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_masks_of_uneven_length(two_replicas, weighted):
    """The first replica has mostly padding: the mean is over all tokens that count."""
    rng = np.random.default_rng(0)
    tokens, y = rng.integers(1, 10, (7, 6)), rng.integers(0, CLASSES, (7, 6))
    kept = np.arange(6) < np.array([1, 2, 6, 5, 1, 6, 3])[:, None]
    arrays = (np.where(kept, tokens, 0).astype(np.int32), y)
    if weighted:
        arrays += (rng.uniform(0, 2, 7).astype(np.float32),)

    def build():
        losses = [
            all_losses.LogitsDistillation(2.0),
            hint(),
            all_losses.DecoupledDistillation(2.0),
            all_losses.AttentionTransfer("hidden", "hidden"),
            all_losses.ExpectedErrorLoss(),
            all_losses.PearsonDistillation(2.0),
        ]
        return tfkd.Distiller(tagger(1, 5), tagger(2, 4), losses)

    assert_alike(two_replicas, build, arrays)


def two_heads(seed):
    x = keras.Input((6, 2))
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(4, "tanh")(x))
    heads = {"a": keras.layers.Dense(CLASSES, name="a")(h)}
    heads["b"] = keras.layers.Dense(2, name="b")(h)
    return toys.randomize(keras.Model(x, heads), seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", pytest.param("sum", marks=pytest.mark.slow)]
)
def test_several_outputs_and_sums(two_replicas, reduction):
    # Keras's own log of an output is exact for a sum only where replicas are even.
    count = 7 if reduction == "sum_over_batch_size" else 8
    x, y, weight = data(count)
    truth = np.random.default_rng(3).normal(size=(count, 2)).astype(np.float32)
    arrays = (x, {"a": y, "b": truth}, {"a": weight, "b": weight[::-1].copy()})

    def build():
        kl = keras.losses.KLDivergence(reduction=reduction)
        losses = [
            all_losses.LogitsDistillation(2.0, {"a": kl, "b": None}),
            all_losses.FeatureDistillation({"a": None, "b": "mse"}),
        ]
        return tfkd.Distiller(two_heads(1), two_heads(2), losses)

    def fit_loss():
        mse = keras.losses.MeanSquaredError(reduction=reduction)
        return {"a": CROSSENTROPY, "b": mse}

    assert_alike(
        two_replicas,
        build,
        arrays,
        optimizer=lambda: keras.optimizers.SGD(0.02),
        compile_args={"loss": fit_loss(), "loss_weights": {"a": 1.0, "b": 0.5}},
    )


@pytest.mark.slow
def test_several_steps_in_one_call(two_replicas):
    def build():
        return tfkd.Distiller(model(1, 5), model(2), [all_losses.LogitsDistillation(2.0), hint()])

    assert_alike(two_replicas, build, data(7), compile_args={"steps_per_execution": 2})
