"""FilterDecay: what `fit` leaves in the weights, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfkd
from tfkd.callbacks import FilterDecay
from tfkd.pruning import analyse
from tfkd.pruning.decay import AnnealedFilterDecay
from tfkd.pruning.planning import plan as make_plan
from tfkd.pruning.selection import Selection

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam


def dense(activation="relu", name="hidden"):
    """Dense(3) with filters of norm 5, 0.5 and √2, then Dense(2)."""
    x = keras.Input((2,), name="x")
    hidden = keras.layers.Dense(3, activation, name=name)
    y = keras.layers.Dense(2, name="out")(hidden(x))
    model = keras.Model(x, y)
    hidden.set_weights([np.array([[3, 0.3, 1], [4, 0.4, 1]], "f4"), np.array([1, 2, 3], "f4")])
    return model


def convolutional(activation="swish"):
    """Two convolutions of 6 and 4 filters with batch normalization."""
    x = y = keras.Input((6, 6, 2), name="x")
    for number, filters in enumerate((6, 4)):
        y = keras.layers.Conv2D(filters, 3, name=f"conv{number}")(y)
        y = keras.layers.BatchNormalization(name=f"norm{number}", momentum=0.8)(y)
        y = keras.layers.Activation(activation, name=f"act{number}")(y)
    y = keras.layers.Dense(3, name="out")(keras.layers.Flatten(name="flat")(y))
    return toys.randomize(keras.Model(x, y), 3, 0.4)


def plan_of(model, remove=None, **kwargs):
    made = make_plan(model, filter_rate=0.5, **kwargs)
    return dataclasses.replace(made, remove=remove) if remove else made


def data_for(model, count=32):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(count, *model.input_shape[1:])).astype("float32")
    return x, rng.normal(size=(count, *model.output_shape[1:])).astype("float32")


def fit(model, callbacks, steps=8, epochs=1, **kwargs):
    """`steps` steps in each epoch, in a fixed order."""
    x, y = data_for(model)
    batch = len(x) // steps
    return model.fit(
        x,
        y,
        batch_size=batch,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **kwargs,
    ).history


def still(model):
    """Compiled so that training itself changes nothing."""
    model.compile(SGD(0.0), "mse")
    return model


def dead(model, selection):
    """Every slice that must be zero, read by layer and channel: no use of the graph."""
    found = []
    for name, positions in selection.removed.items():
        layers = [model.get_layer(name)]
        if name.startswith("conv"):
            layers.append(model.get_layer(name.replace("conv", "norm")))
        for layer in layers:
            for weight in layer.weights:
                if "moving_variance" not in weight.name:
                    found.append(weight.numpy()[..., list(positions)])
    return found


def assert_dead(model, selection):
    assert selection.count > 0
    for values in dead(model, selection):
        np.testing.assert_array_equal(values, 0.0)


def after_step(function):
    """A callback that calls `function` after every training execution."""
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: function())


def assert_dead_when_frozen(model, callback):
    """A callback: the end of training cleans up once more, and would hide a revival."""
    return after_step(lambda: callback.frozen and assert_dead(model, callback.selection))


# The decay alone: the learning rate is 0.


@pytest.mark.parametrize(("frequency", "rates"), [(1, (1, 0.75, 0.5, 0.25)), (2, (1, 0.5))])
@pytest.mark.parametrize("decay", ["compounding", "relative"])
def test_weights_after_some_intervals(decay, frequency, rates):
    model = still(dense())
    before = model.get_weights()
    schedule = AnnealedFilterDecay(0.5, 0, 4, frequency)
    callback = FilterDecay(
        plan_of(model, {"hidden": 1}), schedule, decay=decay, warn_if_unfinished=False
    )
    x, y = data_for(model)
    model.fit(x[:3], y[:3], batch_size=1, verbose=0, callbacks=[callback])  # steps 0, 1, 2, 3

    factor = np.prod(rates) if decay == "compounding" else rates[-1]
    kernel, bias, *others = model.get_weights()
    np.testing.assert_allclose(kernel[:, 1], factor * before[0][:, 1], rtol=1e-6)
    np.testing.assert_allclose(bias[1], factor * before[1][1], rtol=1e-6)
    np.testing.assert_array_equal(kernel[:, [0, 2]], before[0][:, [0, 2]])
    np.testing.assert_array_equal(bias[[0, 2]], before[1][[0, 2]])
    for now, then in zip(others, before[2:], strict=True):
        np.testing.assert_array_equal(now, then)
    assert callback.selection.removed == {"hidden": (1,)}
    assert callback.history == [
        (step, rate, int(step == 0))
        for step, rate in zip(range(0, 4, frequency), rates, strict=True)
    ]


def test_batch_normalization_decays_with_its_filter():
    model = still(convolutional())
    for number in range(2):
        model.get_layer(f"norm{number}").momentum = 1.0  # moving statistics stand still
    before = {w.name: w.numpy() for w in model.weights}
    schedule = AnnealedFilterDecay(0.5, 1, 5, 2)
    callback = FilterDecay(plan_of(model), schedule, warn_if_unfinished=False)
    fit(model, [callback], steps=4)  # decays at steps 1 (rate 1) and 3 (rate 1/2)
    assert {n: len(p) for n, p in callback.selection.removed.items()} == {"conv0": 3, "conv1": 2}
    norms = np.sqrt((before["conv0/kernel:0"] ** 2).sum((0, 1, 2)))
    assert callback.selection.removed["conv0"] == tuple(sorted(np.argsort(norms)[:3]))
    for number in range(2):
        chosen = list(callback.selection.removed[f"conv{number}"])
        factor = np.ones(6 - 2 * number)
        factor[chosen] = 0.5
        for layer in (f"conv{number}", f"norm{number}"):
            for weight in model.get_layer(layer).weights:
                scale = 1.0 if "moving_variance" in weight.name else factor
                expected = before[weight.name] * scale
                np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6)
    head = model.layers[-1]
    np.testing.assert_array_equal(head.kernel, before[head.kernel.name])


@pytest.mark.parametrize("decay", ["compounding", "relative"])
def test_a_filter_may_come_back(decay):
    model = still(dense())
    hidden = model.get_layer("hidden")
    schedule = AnnealedFilterDecay(0.5, 0, 4)
    callback = FilterDecay(
        plan_of(model, {"hidden": 1}), schedule, decay=decay, warn_if_unfinished=False
    )

    def grow():
        if int(model.optimizer.iterations) == 2:
            hidden.kernel.assign([[3, 6, 1], [4, 8, 1]])

    x, y = data_for(model)
    model.fit(x[:3], y[:3], batch_size=1, verbose=0, callbacks=[after_step(grow), callback])
    # At step 2 filter 1 is the largest, and filter 2 the smallest: 1/2, then 1/4.
    factor = 0.5 * 0.25 if decay == "compounding" else 0.25
    np.testing.assert_allclose(hidden.kernel[:, 2], [factor, factor], rtol=1e-6)
    np.testing.assert_array_equal(hidden.kernel[:, 1], [6, 8])
    assert callback.history == [(0, 1.0, 1), (1, 0.75, 0), (2, 0.5, 1), (3, 0.25, 0)]
    assert callback.selection.removed == {"hidden": (2,)}


def test_soft_pruning_zeroes_and_lets_grow():
    model = dense("tanh")
    model.compile(SGD(0.1), "mse")
    kernel = model.get_layer("hidden").kernel
    schedule = AnnealedFilterDecay(0.5, 0, 6, frequency=3, initial_decay=0.0)
    callback = FilterDecay(plan_of(model, {"hidden": 1}), schedule)
    seen = []
    fit(model, [callback, after_step(lambda: seen.append(kernel.numpy()))])
    zero = [bool((value == 0).all(axis=0).any()) for value in seen]
    # Zeroed before step 1 (it grows), after step 3 (it grows again), and for good after 6.
    assert zero == [False, False, True, False, False, True, True, True]
    assert [entry[:2] for entry in callback.history] == [(0, 0.0), (3, 0.0), (6, 0.0)]


def test_hard_pruning_is_one_cut():
    model = dense("tanh")
    model.compile(SGD(0.1), "mse")
    plain = toys.copy_of(model)
    plain.compile(SGD(0.1), "mse")
    seen, reference = [], []
    callback = FilterDecay(plan_of(model, {"hidden": 1}), AnnealedFilterDecay(0.5, 3, 3))
    fit(model, [callback, after_step(lambda: seen.append(model.get_weights()[0]))])
    fit(plain, [after_step(lambda: reference.append(plain.get_weights()[0]))])
    for now, then in zip(seen[:2], reference[:2], strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(seen[2][:, [0, 2]], reference[2][:, [0, 2]])
    assert [bool((value[:, 1] == 0).all()) for value in seen] == [False] * 2 + [True] * 6
    assert callback.history == [(3, 0.0, 1)]


def test_hard_pruning_at_the_first_step():
    model = dense("tanh")
    model.compile(Adam(0.1), "mse")
    callback = FilterDecay(plan_of(model, {"hidden": 1}), AnnealedFilterDecay(0.5, 0, 0))
    fit(model, [callback])
    assert callback.history == [(0, 0.0, 1)]
    assert_dead(model, Selection({"hidden": (1,)}, ""))


# After the end: exactly zero, whatever the optimizer does.


class Gradual(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.05 + 0.001 * tf.cast(step, tf.float32)


OPTIMIZERS = {
    "momentum": lambda: SGD(0.05, momentum=0.9, nesterov=True),
    "decay": lambda: SGD(Gradual(), momentum=0.9, weight_decay=0.01),
    "adam": lambda: Adam(0.05, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.05),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "average": lambda: Adam(0.05, use_ema=True, ema_momentum=0.5),
    "overwrite": lambda: SGD(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "scaled": lambda: keras.mixed_precision.LossScaleOptimizer(Adam(0.05)),
    "legacy": lambda: keras.optimizers.legacy.SGD(0.05, momentum=0.9),
    "ftrl": lambda: keras.optimizers.Ftrl(0.05),
}


USUAL = ("momentum", "adam", "overwrite", "scaled", "legacy")


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_stays_zero_after_every_step(name):
    model = convolutional()
    model.compile(OPTIMIZERS[name](), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4))
    norms = []

    def measure():
        if callback.frozen:
            norms.append(max(np.abs(v).max() for v in dead(model, callback.selection)))

    history = fit(model, [callback, after_step(measure)], epochs=2)
    assert norms == [0.0] * 13  # after steps 4 … 16
    assert_dead(model, callback.selection)
    assert np.isfinite(history["loss"]).all()
    assert model.get_layer("conv0").kernel.numpy().any(axis=(0, 1, 2)).sum() == 3


@pytest.mark.parametrize(
    "compiled",
    [
        {"run_eagerly": True},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"steps_per_execution": 4},
    ],
)
def test_ways_to_run_a_step_agree(compiled):
    results = []
    for kwargs in ({}, compiled):
        model = convolutional()
        model.compile(SGD(0.02, momentum=0.9), "mse", **kwargs)
        callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4, 4))
        fit(model, [callback, assert_dead_when_frozen(model, callback)])
        assert_dead(model, callback.selection)
        results.append(model)
    # Four steps run in one execution after the freeze: had a bias come back in
    # between, the other weights would differ.
    toys.assert_same_weights(*results, rtol=1e-4, atol=1e-5)


def test_execution_decays_at_its_end():
    model = still(dense())
    model.compile(SGD(0.0), "mse", steps_per_execution=3)
    callback = FilterDecay(plan_of(model, {"hidden": 1}), AnnealedFilterDecay(0.5, 2, 7))
    fit(model, [callback], epochs=2)  # executions end at 3, 6, 8; 11, 14, 16
    assert callback.history == [(3, 0.8, 1), (6, pytest.approx(0.2), 0), (8, 0.0, 0)]
    assert_dead(model, callback.selection)


def test_slots_of_dead_filters_are_zero():
    model = convolutional()
    model.compile(Adam(0.05), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 8))
    fit(model, [callback])  # ends with the freeze
    optimizer = model.optimizer
    names = [variable.name for variable in model.trainable_variables]
    for slots in (optimizer._momentums, optimizer._velocities):
        for variable, slot in zip(names, slots, strict=True):
            name = variable.split("/")[0].replace("norm", "conv")
            if name.startswith("conv"):
                chosen = np.isin(range(slot.shape[-1]), callback.selection.removed[name])
                assert not slot.numpy()[..., chosen].any()
                assert (slot.numpy()[..., ~chosen] != 0).all() or "bias" in variable
            else:
                assert slot.numpy().any()


def test_slots_of_a_legacy_and_of_a_scaled_optimizer():
    for wrapped in (False, True):
        model = convolutional()
        if wrapped:
            inner = SGD(0.05, momentum=0.9)
            model.compile(keras.mixed_precision.LossScaleOptimizer(inner), "mse")
        else:
            model.compile(keras.optimizers.legacy.SGD(0.05, momentum=0.9), "mse")
        callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 8))
        fit(model, [callback])
        kernel = model.get_layer("conv0").kernel
        slot = inner.momentums[0] if wrapped else model.optimizer.get_slot(kernel, "momentum")
        assert slot.shape == kernel.shape
        zero = ~slot.numpy().any(axis=(0, 1, 2))
        assert tuple(np.flatnonzero(zero)) == callback.selection.removed["conv0"]


def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = convolutional()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.compile(SGD(0.01, momentum=0.9), "mse")
    assert isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4))
    fit(model, [callback, assert_dead_when_frozen(model, callback)], epochs=2)
    assert callback.history[-1][0] == 4
    assert_dead(model, callback.selection)


def test_frozen_layers_take_part_too():
    model = convolutional()
    model.get_layer("conv0").trainable = False
    model.compile(SGD(0.05), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4))
    fit(model, [callback])
    assert_dead(model, callback.selection)


def test_a_selection_before_the_end_of_the_decay_is_refused():
    model = dense()
    model.compile(SGD(0.01), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 6), warn_if_unfinished=False)
    pruning = tfkd.pruning

    def refused(words):
        before = model.get_weights()
        for call in (
            lambda: pruning.shrink(model, callback.selection),
            lambda: pruning.shrink(model, callback.selection, verify=False),
            lambda: pruning.apply_selection(model, callback.selection),
        ):
            with pytest.raises(ValueError, match=f"`selection`: .*decay {words}.*end_step"):
                call()
        for value, now in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(now, value)

    refused("has not begun")
    fit(model, [callback], steps=4)
    refused("is at step 4")
    # What a user chooses by hand is final, also if it is nothing, or what the decay has now.
    now = Selection(callback.selection.removed, callback.selection.fingerprint)
    assert now == callback.selection and now.count > 0
    assert pruning.shrink(model, now).get_layer("hidden").units == 3 - now.count
    nothing = pruning.shrink(model, Selection({}, now.fingerprint))
    assert nothing.get_layer("hidden").units == 3
    fit(model, [callback], steps=4)
    assert_dead(model, callback.selection)
    assert pruning.shrink(model, callback.selection).get_layer("hidden").units == 3 - now.count
    # A state that was saved at the end needs no training.
    again = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 6))
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert pruning.shrink(model, again.selection).count_params() < model.count_params()


def test_shrunk_model_is_the_same_function():
    model = convolutional()
    model.compile(SGD(0.05, momentum=0.9), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4))
    fit(model, [callback])
    small = tfkd.pruning.shrink(model, callback.selection)
    x, _ = data_for(model)
    assert small.count_params() < model.count_params()
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(small.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


# The model: the fitted one, a Distiller's student, a part; on two replicas.


def test_student_of_a_distiller():
    student = convolutional()
    teacher = tfkd.frozen_copy(student)
    before = teacher.get_weights()
    distiller = tfkd.Distiller(teacher, student, [tfkd.losses.LogitsDistillation()])
    distiller.compile(SGD(0.02, momentum=0.9), "mse")
    callback = FilterDecay(plan_of(student), AnnealedFilterDecay(0.5, 0, 4))
    x, y = data_for(student)
    callbacks = [callback, assert_dead_when_frozen(student, callback)]
    history = distiller.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks).history
    assert history["sparsity"] == [0.5]
    assert_dead(student, callback.selection)
    for now, then in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_part_of_a_model():
    part = dense()
    x = keras.Input((2,))
    whole = keras.Model(x, keras.layers.Dense(1)(part(x)))
    whole.compile(SGD(0.001), "mse")
    schedule, plan = AnnealedFilterDecay(0.5, 0, 4), plan_of(part, {"hidden": 1})
    with pytest.raises(ValueError, match="`plan`.*`model=`"):
        fit(whole, [FilterDecay(plan, schedule)])
    callback = FilterDecay(plan, schedule, model=part)
    fit(whole, [callback, assert_dead_when_frozen(part, callback)])
    assert_dead(part, callback.selection)
    with pytest.raises(ValueError, match="the model that is trained"):
        fit(whole, [FilterDecay(plan, schedule, model=toys.copy_of(part))])


def test_two_replicas_do_what_one_process_does(two_replicas):
    results = []
    for scope in (tf.distribute.get_strategy(), two_replicas):
        with scope.scope():
            model = dense("swish")
            toys.randomize(model, 4)
            model.compile(SGD(0.05, momentum=0.9), "mse", steps_per_execution=2)
        callback = FilterDecay(plan_of(model, {"hidden": 1}), AnnealedFilterDecay(0.5, 0, 4, 2))
        fit(model, [callback, assert_dead_when_frozen(model, callback)], epochs=2)
        assert_dead(model, callback.selection)
        results.append((model, callback))
    (one, first), (two, second) = results
    toys.assert_same_weights(one, two, rtol=1e-5, atol=1e-6)
    assert first.history == second.history
    assert first.selection == second.selection
    copies = two_replicas.experimental_local_results(two.get_layer("hidden").kernel)
    np.testing.assert_array_equal(copies[0], copies[1])


@pytest.mark.slow
def test_two_replicas_with_batch_normalization(two_replicas):
    with two_replicas.scope():
        model = convolutional()
        model.compile(Adam(0.05), "mse")
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4))
    fit(model, [callback, assert_dead_when_frozen(model, callback)], epochs=2)
    for weight in model.get_layer("conv0").weights:
        for copy in two_replicas.experimental_local_results(weight):
            assert not copy.numpy()[..., list(callback.selection.removed["conv0"])].any()
    assert_dead(model, callback.selection)


# Going on: with the same callback, from a state, from weights alone.


def interrupted(state, decay="compounding"):
    """Trains 5 of 10 steps, carries all over to new objects, trains on."""
    model = convolutional()
    model.compile(Adam(0.02), "mse")
    schedule = AnnealedFilterDecay(0.5, 0, 8, 2)
    first = FilterDecay(plan_of(model), schedule, decay=decay, warn_if_unfinished=False)
    x, y = data_for(model, 40)
    model.fit(x[:20], y[:20], batch_size=4, shuffle=False, verbose=0, callbacks=[first])

    resumed = toys.copy_of(model)
    resumed.compile(Adam(0.02), "mse")
    resumed.optimizer.build(resumed.trainable_variables)
    for new, old in zip(resumed.optimizer.variables, model.optimizer.variables, strict=True):
        new.assign(old)
    second = FilterDecay(plan_of(resumed), schedule, decay=decay)
    if state:
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.fit(x[20:], y[20:], batch_size=4, shuffle=False, verbose=0, callbacks=[second])
    return resumed, second


@pytest.mark.parametrize("decay", ["compounding", "relative"])
def test_resume_from_a_state_changes_no_bit(decay):
    whole = convolutional()
    whole.compile(Adam(0.02), "mse")
    callback = FilterDecay(plan_of(whole), AnnealedFilterDecay(0.5, 0, 8, 2), decay=decay)
    x, y = data_for(whole, 40)
    whole.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    resumed, second = interrupted(True, decay)
    toys.assert_untouched(whole.get_weights(), resumed)
    assert second.history == callback.history
    assert second.selection == callback.selection


def test_resume_in_the_middle_without_a_state_warns():
    with pytest.warns(UserWarning, match="starts at step 5, between begin_step 0 and end_step 8"):
        _, callback = interrupted(False)
    assert [entry[0] for entry in callback.history] == [6, 8]


def trained(epochs=1):
    model = convolutional()
    model.compile(SGD(0.02, momentum=0.9), "mse")
    callback = FilterDecay(plan_of(model, criterion="geometric_median"), END)
    fit(model, [callback], epochs=epochs)
    return model, callback


END = AnnealedFilterDecay(0.5, 0, 4)


def test_new_callback_after_the_end_reads_the_selection_off_the_weights():
    model, callback = trained()
    again = FilterDecay(plan_of(model, criterion="geometric_median"), END)
    fit(model, [again, assert_dead_when_frozen(model, again)])
    assert again.selection == callback.selection
    assert again.history == []
    assert_dead(model, callback.selection)


def test_same_callback_goes_on():
    model, callback = trained()
    history, selection = list(callback.history), callback.selection
    fit(model, [callback, assert_dead_when_frozen(model, callback)])
    assert callback.history == history and callback.selection == selection
    assert_dead(model, selection)


def test_state_of_a_later_step_is_dropped():
    _, callback = trained()
    model = convolutional()
    model.compile(SGD(0.02), "mse")
    frozen = []
    fit(model, [callback, after_step(lambda: frozen.append(callback.frozen))])
    assert frozen == [False, False, False, True, True, True, True, True]
    assert [entry[0] for entry in callback.history] == [0, 1, 2, 3, 4]
    assert_dead(model, callback.selection)


def test_past_the_end_without_zeros_selects_and_zeroes_at_once():
    model = convolutional()
    model.compile(SGD(0.02), "mse")
    fit(model, [])
    callback = FilterDecay(plan_of(model), END)
    seen = []
    fit(model, [callback, after_step(lambda: seen.append(callback.sparsity()))])
    assert callback.history == [(8, 0.0, 5)]
    assert seen == [0.5] * 8
    assert_dead(model, callback.selection)


def test_model_restored_when_training_begins():
    model, callback = trained()
    weights, state = model.get_weights(), model.optimizer.variables
    late = convolutional()
    late.compile(SGD(0.02, momentum=0.9), "mse")

    def restore(logs):
        late.set_weights(weights)
        late.optimizer.build(late.trainable_variables)
        for new, old in zip(late.optimizer.variables, state, strict=True):
            new.assign(old)

    again = FilterDecay(plan_of(late), END)
    late_restore = keras.callbacks.LambdaCallback(on_train_begin=restore)
    fit(late, [again, late_restore, assert_dead_when_frozen(late, again)])
    assert again.selection == callback.selection


def test_after_fit_the_model_is_as_it_was():
    model, _ = trained()
    assert "train_step" not in vars(model)
    assert model.train_function is None
    fit(model, [])  # without the callback nothing keeps filters at zero
    assert model.get_layer("norm0").beta.numpy().all()


def test_own_training_step_comes_back():
    model = dense()
    model.compile(SGD(0.05), "mse")
    calls = []

    def own(data):
        calls.append(1)
        return keras.Model.train_step(model, data)

    model.train_step = own
    fit(model, [FilterDecay(plan_of(model, {"hidden": 1}), END)])
    assert calls
    assert model.train_step is own


def test_a_fit_that_broke_off_leaves_nothing_behind():
    model = dense("tanh")
    model.compile(SGD(0.05), "mse")
    callback = FilterDecay(plan_of(model, {"hidden": 1}), END)

    def fail():
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fit(model, [callback, after_step(fail)])
    fit(model, [callback])
    assert "train_step" not in vars(model)
    assert_dead(model, callback.selection)


# What it tells.


def test_epoch_logs_and_event_files(tmp_path):
    model = convolutional()
    model.compile(SGD(0.02), "mse")
    boards = [
        keras.callbacks.TensorBoard(tmp_path / "keras"),
        tfkd.callbacks.TensorBoard(tmp_path / "tfkd"),
    ]
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 8, 2), log_dir=tmp_path)
    history = fit(model, [callback, *boards], steps=4, epochs=3)
    assert history["decay_rate"] == [0.5, 0.0, 0.0]
    assert history["sparsity"] == [0.0, 0.5, 0.5]
    for folder in ("keras", "tfkd"):
        events = read(tmp_path / folder / "train")
        assert {s: float(v) for s, v in events["epoch_decay_rate"].items()} == {0: 0.5, 1: 0, 2: 0}
        assert {s: float(v) for s, v in events["epoch_sparsity"].items()} == {0: 0, 1: 0.5, 2: 0.5}
    own = read(tmp_path / "filter_decay")
    rates = {step: float(value) for step, value in own["filter_decay/decay_rate"].items()}
    assert rates == {0: 1.0, 2: 0.75, 4: 0.5, 6: 0.25, 8: 0.0}
    sparsity = {step: float(value) for step, value in own["filter_decay/sparsity"].items()}
    assert sparsity == {0: 0.0, 2: 0.0, 4: 0.0, 6: 0.0, 8: 0.5}
    for name, count in (("conv0", 6), ("conv1", 4)):
        histograms = own[f"filter_decay/scores/{name}"]
        assert set(histograms) == set(rates)
        assert histograms[0][:, 2].sum() == count  # (left, right, how many) of each bucket


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: {e.step: tf.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


def test_no_histograms_on_request(tmp_path):
    model = still(dense())
    callback = FilterDecay(plan_of(model), END, log_dir=str(tmp_path), log_scores=False)
    fit(model, [callback])
    assert set(read(tmp_path / "filter_decay")) == {
        "filter_decay/decay_rate",
        "filter_decay/sparsity",
        "filter_decay/selected_score",
    }


def test_scores_of_selected_filters_are_written_before_they_decay(tmp_path):
    """Without gradients the filters halve at the first interval and are quartered next."""
    model = still(dense())
    norms = np.array([0.5, 2**0.5, 5])
    callback = FilterDecay(plan_of(model), AnnealedFilterDecay(0.5, 0, 4, 1), log_dir=tmp_path)
    fit(model, [callback], steps=4, epochs=1)
    found = read(tmp_path / "filter_decay")["filter_decay/selected_score"]
    count = callback.selection.count
    for step, factor in enumerate((1, 1, 0.75, 0.375, 0.09375)):
        low = factor * norms[:count]
        mean = np.concatenate([low, norms[count:]]).mean()
        assert float(found[step]) == pytest.approx(low.mean() / mean, rel=1e-5)


def test_unfinished_training_warns():
    model = still(dense())
    schedule = AnnealedFilterDecay(0.5, 0, 20)
    with pytest.warns(UserWarning, match="ended at step 8, before the schedule's end_step 20"):
        fit(model, [FilterDecay(plan_of(model), schedule)])
    model = still(dense())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, [FilterDecay(plan_of(model), schedule, warn_if_unfinished=False)])


def test_selection_before_the_first_interval_is_empty():
    model = still(dense())
    callback = FilterDecay(plan_of(model), END)
    assert callback.selection == Selection({}, analyse(model).fingerprint)
    assert not callback.frozen


# Bad input.


def test_plan_of_another_model():
    model = still(dense())
    other = plan_of(dense(name="other"))
    before = model.get_weights()
    with pytest.raises(ValueError, match="`plan`: expected one that was made for the model"):
        fit(model, [FilterDecay(other, END)])
    toys.assert_untouched(before, model)
    assert "train_step" not in vars(model)


def test_unbuilt_model_is_no_model_of_the_plan():
    model = keras.Sequential([keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`plan`: expected one that was made for the model"):
        model.fit(np.ones((8, 2)), np.ones((8, 2)), callbacks=[FilterDecay(plan_of(dense()), END)])


def test_nan_weights_are_named():
    model = still(dense())
    plan = plan_of(model)
    model.get_layer("hidden").kernel.assign(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match="NaN.*hidden"):
        fit(model, [FilterDecay(plan, END)])


class OwnLoop(keras.Model):
    """A model that keeps its optimizer to itself."""

    def compile(self):
        super().compile(run_eagerly=True)
        self.optimizer = None

    def train_step(self, data):
        return {"loss": tf.constant(0.0)}


def test_a_frozen_model_is_refused_before_anything_is_lost():
    model = dense()
    plan = plan_of(model)
    model.trainable = False
    model.compile("sgd", "mse")
    before = toys.weights_of(model)
    with pytest.raises(ValueError, match="received it frozen: none of its filters is trainable"):
        fit(model, [FilterDecay(plan, AnnealedFilterDecay(0.5, 0, 4))])
    toys.assert_untouched(before, model)


def test_model_without_an_optimizer():
    plain = dense()
    model = OwnLoop(plain.inputs, plain.outputs)
    model.compile()
    with pytest.raises(ValueError, match="iterations"):
        fit(model, [FilterDecay(plan_of(plain), END)])


def test_bad_arguments(tmp_path):
    plan = plan_of(dense())
    for arguments, error, words in (
        ((None, END), TypeError, "`plan`"),
        ((plan, 0.5), TypeError, "`schedule`"),
    ):
        with pytest.raises(error, match=words):
            FilterDecay(*arguments)
    for changes, error, words in (
        ({"decay": "compound"}, ValueError, "Did you mean 'compounding'"),
        ({"model": "student"}, TypeError, "`model`"),
        ({"log_dir": 3}, TypeError, "`log_dir`"),
        ({"log_scores": 1}, TypeError, "`log_scores`"),
        ({"warn_if_unfinished": None}, TypeError, "`warn_if_unfinished`"),
    ):
        with pytest.raises(error, match=words):
            FilterDecay(plan, END, **changes)


def test_bad_state():
    callback = FilterDecay(plan_of(dense()), END)
    with pytest.raises(ValueError, match="state_dict"):
        callback.load_state_dict({"step": 3})
    other = FilterDecay(plan_of(dense(name="other")), END)
    with pytest.raises(ValueError, match="`selection`"):
        callback.load_state_dict(other.state_dict())
