"""SparsityRegularizer: the weights after steps of SGD, against the proximal step in NumPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys

import tfkd
from tfkd.callbacks import FilterDecay, SparsityRegularizer
from tfkd.pruning import AnnealedFilterDecay
from tfkd.pruning import plan as make_plan

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
L = keras.layers
RATE, STRENGTH = 0.1, 0.05


def chain(norm=False, seed=2):
    """Dense(4) "a" → [batch norm] → ReLU → Dense(3) "b" → ReLU → Dense(2) "out"."""
    x = keras.Input((3,))
    y = L.Dense(4, name="a")(x)
    y = L.BatchNormalization(name="norm")(y) if norm else y
    y = L.Dense(3, "relu", name="b")(L.ReLU()(y))
    return toys.randomize(keras.Model(x, L.Dense(2, name="out")(y)), seed)


def data(count=8):
    rng = np.random.default_rng(5)
    return rng.normal(size=(count, 3)).astype("f4"), rng.normal(size=(count, 2)).astype("f4")


def fit(model, callbacks, steps=1, epochs=1, **kwargs):
    x, y = data(8 * steps)
    options = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=callbacks, **options, **kwargs).history


def plan_of(model, **kwargs):
    return make_plan(model, filter_rate=0.5, **kwargs)


def after_one_step(model, callback=None, optimizer=None):
    """Named weights of a copy of the model after one step."""
    trained = toys.copy_of(model)
    trained.compile(optimizer or SGD(RATE), "mse")
    logs = fit(trained, [callback] if callback else [])
    return {weight.name: weight.numpy().astype(np.float64) for weight in trained.weights}, logs


def gammas(squares):
    """γ of the units of one group."""
    return 2 ** (4 * (squares.max() - squares) / (squares.max() - squares.min()))


def shrunk(w, open_groups="ab"):
    """The proximal step of the group norm on the chain without normalization, and the penalty."""
    squares = {
        "a": (w["a/kernel:0"] ** 2).sum(0) + w["a/bias:0"] ** 2 + (w["b/kernel:0"] ** 2).sum(1),
        "b": (w["b/kernel:0"] ** 2).sum(0) + w["b/bias:0"] ** 2 + (w["out/kernel:0"] ** 2).sum(1),
    }
    factor = {n: gammas(s) if n in open_groups else 0 * s for n, s in squares.items()}
    both = factor["a"][:, None] + factor["b"]
    by = {
        "a/kernel:0": factor["a"],
        "a/bias:0": factor["a"],
        "b/kernel:0": both,
        "b/bias:0": factor["b"],
        "out/kernel:0": factor["b"][:, None],
        "out/bias:0": 0,
    }
    return {name: value / (1 + 2 * RATE * STRENGTH * by[name]) for name, value in w.items()}


def assert_same(found, expected, **tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("ignored", ["", "b"])
def test_group_norm_after_one_step_of_sgd(ignored):
    model = chain()
    plan = plan_of(model, ignore=[ignored] if ignored else ())
    callback = SparsityRegularizer(plan, strength=STRENGTH)
    found, _ = after_one_step(model, callback)
    plain, _ = after_one_step(model)
    open_groups = "ab".replace(ignored, "") if ignored else "ab"
    assert_same(found, shrunk(plain, open_groups), rtol=2e-6, atol=1e-7)


def test_batch_norm_after_one_step_of_sgd():
    model = chain(norm=True)
    model.get_layer("norm").gamma.assign([0.003, -0.004, 0.5, -2])
    with pytest.warns(UserWarning, match=r"not regularized: b\. "):
        callback = SparsityRegularizer(plan_of(model), "batch_norm", STRENGTH)
        found, logs = after_one_step(model, callback, SGD(RATE, momentum=0.9))
    plain, _ = after_one_step(model)
    before = plain["norm/gamma:0"]
    gamma = np.sign(before) * np.maximum(np.abs(before) - RATE * STRENGTH, 0)
    assert_same(found, {**plain, "norm/gamma:0": gamma}, rtol=1e-6, atol=1e-7)
    assert logs["sparsity_penalty"] == [pytest.approx(STRENGTH * np.abs(gamma).sum(), rel=1e-5)]


def test_gammas_cross_no_zero():
    model = chain(norm=True)
    for layer in model.layers:
        layer.trainable = layer.name == "norm"
    model.get_layer("norm").gamma.assign([0.1, -0.1, 3, -3])
    model.compile(SGD(1e-9), "mse")
    plan = plan_of(model, ignore="b")
    fit(model, [SparsityRegularizer(plan, "batch_norm", 0.2 / 1e-9)])
    np.testing.assert_allclose(model.get_layer("norm").gamma, [0, 0, 2.8, -2.8], rtol=1e-5)


def test_penalty_is_logged_by_the_weights_at_the_end_of_the_epoch():
    model = chain()
    found, logs = after_one_step(model, SparsityRegularizer(plan_of(model), strength=STRENGTH))
    total = 0
    for own, bias, reader in (("a/kernel:0", "a/bias:0", "b/kernel:0"),
                              ("b/kernel:0", "b/bias:0", "out/kernel:0")):  # fmt: skip
        squares = (found[own] ** 2).sum(0) + found[bias] ** 2 + (found[reader] ** 2).sum(1)
        total += (gammas(squares) * squares).sum()
    assert logs["sparsity_penalty"] == [pytest.approx(STRENGTH * total, rel=1e-5)]


def test_strength_follows_a_schedule_of_steps_and_the_rate_of_the_step():
    """Weights that training leaves alone: three steps are three divisions."""
    model = chain()
    first = model.get_layer("a").bias.numpy().astype(np.float64)
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1e-9, 2e-9, 4e-9])
    strength = tfkd.schedules.Piecewise([1, 2], [0.0, 1e7, 3e7])
    for optimizer in (SGD(rates), keras.optimizers.legacy.SGD(rates)):
        trained = toys.copy_of(model)
        trained.compile(optimizer, "mse")
        plan = plan_of(trained, ignore="b")
        squares = [(trained.get_layer("a").kernel.numpy().astype(np.float64) ** 2).sum(0)]
        squares = squares[0] + first**2 + (model.get_layer("b").kernel.numpy() ** 2).sum(1)
        fit(trained, [SparsityRegularizer(plan, strength=strength)], steps=3)
        scale = np.ones(4)
        for rate, λ in ((1e-9, 0), (2e-9, 1e7), (4e-9, 3e7)):
            scale = scale / (1 + 2 * rate * λ * gammas(squares * scale**2))
        np.testing.assert_allclose(trained.get_layer("a").bias, first * scale, rtol=1e-5)


def test_residual_groups_are_left_alone_as_in_the_plan():
    x = keras.Input((3,))
    y = L.Dense(4, name="stem")(x)
    z = L.Dense(4, name="back")(L.Dense(5, "relu", name="inner")(y))
    y = L.Dense(2, name="out")(L.ReLU()(L.Add()([y, z])))
    model = toys.randomize(keras.Model(x, y), 4)
    callback = SparsityRegularizer(plan_of(model), strength=STRENGTH)
    trained, _ = after_one_step(model, callback)
    plain, _ = after_one_step(model)
    changed = {name for name in plain if (trained[name] != plain[name]).any()}
    assert changed == {"inner/kernel:0", "inner/bias:0", "back/kernel:0"}


def test_it_leaves_nothing_behind_beside_another_callback(tmp_path):
    model = chain()
    model.compile(Adam(0.01), "mse")
    plan, names = plan_of(model), [weight.name for weight in model.weights]
    decay = FilterDecay(plan, AnnealedFilterDecay(0.5, 0, 3))
    callbacks = [SparsityRegularizer(plan, strength=0.1), decay]
    logs = fit(model, callbacks, steps=4)
    assert set(logs) == {"loss", "decay_rate", "sparsity", "sparsity_penalty"}
    assert decay.frozen
    removed = list(decay.selection.removed["a"])
    assert len(removed) == 2 and not model.get_layer("a").kernel.numpy()[:, removed].any()
    assert "train_step" not in vars(model)
    assert [weight.name for weight in model.weights] == names
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [weight.name for weight in loaded.weights] == names
    # In the other order the decay, which is past its end, restores the step first.
    fit(model, callbacks[::-1])
    assert "train_step" not in vars(model)
    assert not model.get_layer("a").kernel.numpy()[:, removed].any()


def test_resume_changes_no_bit():
    model = chain()
    strength = tfkd.schedules.Linear(0, 1, 0, 4)
    whole, first = toys.copy_of(model), toys.copy_of(model)
    for one in (whole, first):
        one.compile(SGD(0.05, momentum=0.9), "mse")
    plan = plan_of(model)
    fit(whole, [SparsityRegularizer(plan, strength=strength)], epochs=4)
    fit(first, [SparsityRegularizer(plan, strength=strength)], epochs=2)
    fit(first, [SparsityRegularizer(plan, strength=strength)], epochs=4, initial_epoch=2)
    toys.assert_same_weights(whole, first, rtol=0, atol=0)


def test_student_of_a_distiller():
    model, teacher = chain(), chain(seed=7)
    found = []
    for strength in (None, STRENGTH):
        student = toys.copy_of(model)
        loss = tfkd.losses.FeatureDistillation(loss="mse")
        distiller = tfkd.Distiller(teacher, student, loss)
        distiller.compile(SGD(RATE), "mse")
        callback = SparsityRegularizer(plan_of(student), strength=strength or 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(distiller, [callback])
        found.append({w.name: w.numpy().astype(np.float64) for w in student.weights})
    assert_same(found[1], shrunk(found[0]), rtol=2e-6, atol=1e-7)


def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = chain()
        plain = toys.copy_of(model)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for one in (model, plain):
        one.compile(keras.mixed_precision.LossScaleOptimizer(SGD(RATE)), "mse")
    fit(model, [SparsityRegularizer(plan_of(model), strength=STRENGTH)])
    fit(plain, [])
    expected = shrunk({w.name: w.numpy().astype(np.float64) for w in plain.weights})
    found = {w.name: w.numpy() for w in model.weights}
    assert_same(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.slow
def test_two_replicas_do_what_one_process_does(two_replicas):
    results = []
    for scope in (tf.distribute.get_strategy(), two_replicas):
        with scope.scope():
            model = chain()
            model.compile(SGD(RATE), "mse")
        fit(model, [SparsityRegularizer(plan_of(model), strength=STRENGTH)], steps=2)
        results.append(model)
    toys.assert_same_weights(*results, rtol=1e-5, atol=1e-6)


def frozen():
    model = chain()
    plan = plan_of(model)
    model.trainable = False
    model.compile(SGD(0.1), "mse")
    fit(model, [SparsityRegularizer(plan)])


def no_norms():
    model = chain()
    model.compile(SGD(0.1), "mse")
    fit(model, [SparsityRegularizer(plan_of(model), "batch_norm")])


def other_model():
    model = toys.net(inputs=3, classes=2)
    model.compile(SGD(0.1), "mse")
    fit(model, [SparsityRegularizer(plan_of(chain()))])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: SparsityRegularizer(0.5), TypeError, "`plan`"),
        (lambda: SparsityRegularizer(plan_of(chain()), "l1"), ValueError, "`penalty`.*group_norm"),
        (lambda: SparsityRegularizer(plan_of(chain()), strength=-1), ValueError, "`strength`"),
        (lambda: SparsityRegularizer(plan_of(chain()), model=3), TypeError, "`model`"),
        (frozen, ValueError, "`model`.*trainable = True"),
        (no_norms, ValueError, "penalty=.group_norm"),
        (other_model, ValueError, "`plan`"),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
