"""An optimizer's state goes with the filters that stay."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from nets import randomize, some

import tfkd
from tfkd import pruning

layers = keras.layers
optimizers = keras.optimizers
KEPT = [0, 2, 3, 5]  # of the six units of "a"

MAKE = {
    "sgd": lambda: optimizers.SGD(0.05),
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: optimizers.Adam(0.01),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "nadam": lambda: optimizers.Nadam(0.01),
    "adagrad": lambda: optimizers.Adagrad(0.05),
    "lion": lambda: optimizers.Lion(0.01),
    "ema": lambda: optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.8),
    "schedule": lambda: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.9
    ),
    "clipped": lambda: optimizers.Adam(0.01, clipnorm=1.0),
    "scaled": lambda: keras.mixed_precision.LossScaleOptimizer(
        optimizers.SGD(0.05, momentum=0.9), initial_scale=1024, dynamic_growth_steps=2
    ),
}


def net(seed=0):
    x = keras.Input((5,), name="x")
    y = layers.Dense(6, "relu", name="a")(x)
    y = layers.Dense(4, "relu", name="b")(y)
    return randomize(keras.Model(x, layers.Dense(3, name="o")(y)), seed)


def data(count=16):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 5)).astype("float32"), rng.normal(size=(count, 3))


def trained(optimizer, steps=3):
    """A model after some steps with units 1 and 4 of "a" dead all the while."""
    model = net()
    # Tracing a step takes longer than the steps. Run eagerly, Nadam counts in Python,
    # where a copy of its variables does not reach.
    eager = not isinstance(optimizer, optimizers.Nadam)
    model.compile(optimizer, keras.losses.MeanSquaredError(), metrics=["mae"], run_eagerly=eager)
    graph = pruning.analyse(model)
    selection = pruning.Selection({"a": (1, 4)}, graph.fingerprint)
    pruning.apply_selection(model, selection)
    model.fit(*data(), batch_size=16, epochs=steps, shuffle=False, verbose=0)
    return model, selection


def gathered(path, value):
    """What is left of a weight, or of a slot of its shape, by hand."""
    if path == "a/kernel":
        return value[:, KEPT]
    if path == "a/bias":
        return value[KEPT]
    return value[KEPT] if path == "b/kernel" else value


@pytest.mark.parametrize("kind", MAKE)
def test_slots_are_gathered(kind):
    model, selection = trained(MAKE[kind]())
    small = pruning.shrink(model, selection, optimizer=True)
    assert type(small.optimizer) is type(model.optimizer)
    assert small.optimizer.get_config() == model.optimizer.get_config()
    before, after = model.optimizer.variables, small.optimizer.variables
    assert len(before) == len(after) >= 7
    for old, new in zip(before, after, strict=True):
        path = next((p for p in paths(model) if p.replace("/", "_") in slot(old)), "")
        np.testing.assert_array_equal(new.numpy(), gathered(path, old.numpy()), old.name)
    assert any(np.any(new.numpy()) for new in after[1:])
    assert int(small.optimizer.iterations) == 3


def paths(model):
    return [w.name.split(":")[0] for w in model.weights]


def slot(variable):
    """Name of a slot with all separators the same: `m_a_kernel`."""
    return variable.name.replace("/", "_")


USUAL = ("sgd", "adam", "adamw", "schedule", "scaled")
RARE = [k for k in MAKE if k not in (*USUAL, "clipped")]


@pytest.mark.parametrize("kind", [*USUAL, *(pytest.param(k, marks=pytest.mark.slow) for k in RARE)])
def test_the_next_step_is_that_of_the_masked_model(kind):
    # Dead units behind ReLU have no gradient; clipping by the norm is of what is left.
    model, selection = trained(MAKE[kind]())
    pruning.apply_selection(model, selection)
    for variable in model.optimizer.variables:
        clear(variable, model)
    small = pruning.shrink(model, selection, optimizer=True)
    for one in (model, small):
        one.fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    for old, new in zip(model.weights, small.weights, strict=True):
        expected = gathered(old.name.split(":")[0], old.numpy())
        np.testing.assert_allclose(new.numpy(), expected, rtol=1e-5, atol=1e-5)


def clear(variable, model):
    """Zeroes the dead units' part of a slot, as decay does when it has ended."""
    path = next((p for p in paths(model) if p.replace("/", "_") in slot(variable)), "")
    value = variable.numpy()
    if path == "a/kernel":
        value[:, [1, 4]] = 0
    elif path == "a/bias":
        value[[1, 4]] = 0
    variable.assign(value)


def test_the_new_model_is_compiled_as_the_old_one():
    model, selection = trained("adam")
    small = pruning.shrink(model, selection, optimizer=True)
    assert isinstance(small.loss, keras.losses.MeanSquaredError)
    assert small.evaluate(*data(), verbose=0, return_dict=True).keys() == {"loss", "mae"}
    assert not pruning.shrink(model, selection)._is_compiled


def test_options_of_compile_stay():
    model, selection = trained("sgd")
    model.compile("sgd", {"o": "mse"}, ["mae"], loss_weights={"o": 2.0}, steps_per_execution=2)
    small = pruning.shrink(model, selection, optimizer=True)
    small.fit(*data(), batch_size=4, verbose=0)
    expected = model.evaluate(*data(), verbose=0)
    masked = small.evaluate(*data(), verbose=0)
    assert len(expected) == len(masked) == 2
    assert int(small._steps_per_execution) == 2


def test_metrics_given_as_objects_are_not_shared():
    model, selection = trained("sgd")
    metric = keras.metrics.MeanAbsoluteError(name="far")
    model.compile("sgd", keras.losses.Huber(0.3), [metric])
    small = pruning.shrink(model, selection, optimizer=True)
    small.evaluate(*data(), verbose=0)
    assert float(metric.total) == 0
    assert small.loss.get_config() == model.loss.get_config()


def test_an_optimizer_that_has_not_begun():
    model = net()
    model.compile(optimizers.Adam(0.02), "mse")
    small = pruning.shrink(model, some(pruning.analyse(model)), optimizer=True)
    small.fit(*data(), verbose=0)
    np.testing.assert_allclose(small.optimizer.learning_rate, 0.02)


def test_the_learning_rate_that_was_set():
    model, selection = trained(optimizers.SGD(0.05))
    model.optimizer.learning_rate = 0.003
    small = pruning.shrink(model, selection, optimizer=True)
    np.testing.assert_allclose(small.optimizer.learning_rate, 0.003, rtol=1e-6)


def test_a_layer_that_is_not_trained_has_no_slots():
    model, selection = trained("sgd", steps=1)
    model.get_layer("b").trainable = False
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    model.fit(*data(), verbose=0)
    small = pruning.shrink(model, selection, optimizer=True)
    shapes = [tuple(v.shape) for v in small.optimizer.variables[1:]]
    assert shapes == [(5, 4), (4,), (4, 3), (3,)]


def test_weights_without_decay_stay_so():
    optimizer = optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model, selection = trained(optimizer)
    small = pruning.shrink(model, selection, optimizer=True)
    use = [small.optimizer._use_weight_decay(v) for v in small.trainable_variables]
    assert use == [True, False] * 3


def test_a_list_of_weights_without_decay_stays_so():
    model = net()
    optimizer = optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("b").kernel])
    model.compile(optimizer, "mse")
    model.fit(*data(), verbose=0)
    small = pruning.shrink(model, some(pruning.analyse(model)), optimizer=True)
    use = [small.optimizer._use_weight_decay(v) for v in small.trainable_variables]
    assert use == [True, True, False, True, True, True]


@pytest.mark.parametrize("projector", [False, True])
def test_the_optimizer_of_a_distiller(projector):
    student, teacher = net(), net(1)
    if projector:
        losses = [tfkd.losses.FeatureDistillation("mse", "b", "a")]
    else:
        losses = [tfkd.losses.LogitsDistillation()]
    distiller = tfkd.Distiller(teacher, student, losses, student_loss_weight=0.5)
    distiller.compile(optimizers.SGD(0.01, momentum=0.9), "mse")
    distiller.fit(*data(), verbose=0)
    selection = pruning.Selection({"a": (1, 4)}, pruning.analyse(student).fingerprint)
    small = pruning.shrink(student, selection)
    new = pruning.shrink_optimizer(distiller.optimizer, student, small, selection)
    assert [v.shape for v in new.variables[1:]] == [w.shape for w in small.trainable_variables]
    slots, after = (
        {v.name.rsplit("m/", 1)[-1].split(":")[0]: v.numpy() for v in one.variables[1:]}
        for one in (distiller.optimizer, new)
    )
    assert set(after) == set(paths(student)) <= set(slots)
    for path, value in after.items():
        np.testing.assert_array_equal(value, gathered(path, slots[path]))
    again = tfkd.Distiller(teacher, small, [tfkd.losses.LogitsDistillation()])
    again.compile(new, "mse")
    again.fit(*data(), verbose=0)
    assert int(new.iterations) == 2


def test_legacy_optimizers_are_refused():
    model = net()
    model.compile(optimizers.legacy.SGD(0.1), "mse")
    with pytest.raises(TypeError, match="`optimizer`: expected a tf_keras.optimizers.Optimizer"):
        pruning.shrink(model, some(pruning.analyse(model)), optimizer=True)
    small = pruning.shrink(model, some(pruning.analyse(model)))
    with pytest.raises(TypeError, match="Legacy"):
        pruning.shrink_optimizer(model.optimizer, model, small, some(pruning.analyse(model)))


def test_models_that_do_not_belong_together():
    model, selection = trained(optimizers.SGD(0.05, momentum=0.9))
    other = pruning.shrink(
        model, pruning.Selection({"a": (1, 2, 3)}, pruning.analyse(model).fingerprint)
    )
    with pytest.raises(ValueError, match="`small`: expected the model that shrink"):
        pruning.shrink_optimizer(model.optimizer, model, other, selection)
    strange = keras.Sequential([keras.Input((5,)), layers.Dense(3, name="else")])
    with pytest.raises(ValueError, match="`small`: expected the model that shrink"):
        pruning.shrink_optimizer(model.optimizer, model, strange, selection)


def test_factored_slots_are_refused():
    model = net()
    model.compile(optimizers.Adafactor(0.01), "mse")
    model.fit(*data(), verbose=0)
    selection = pruning.Selection({"a": (1, 4)}, pruning.analyse(model).fingerprint)
    with pytest.raises(ValueError, match="received Adafactor, which keeps shape"):
        pruning.shrink(model, selection, optimizer=True)


def test_under_a_strategy(two_replicas):
    with two_replicas.scope():
        model = net()
        model.compile(optimizers.SGD(0.05, momentum=0.9), "mse")
    model.fit(*data(), batch_size=16, verbose=0)
    selection = pruning.Selection({"a": (1, 4)}, pruning.analyse(model).fingerprint)
    with two_replicas.scope():
        small = pruning.shrink(model, selection, optimizer=True)
    for old, new in zip(model.optimizer.variables[1:], small.optimizer.variables[1:], strict=True):
        path = next((p for p in paths(model) if p.replace("/", "_") in slot(old)), "")
        np.testing.assert_array_equal(new.numpy(), gathered(path, old.numpy()))
    small.fit(*data(), batch_size=16, verbose=0)
    assert tf.reduce_all(tf.math.is_finite(small(data()[0])))
