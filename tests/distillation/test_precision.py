"""Half precision: what is scaled comes back, what overflows changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, net

import tfkd
from tfkd import losses

X, Y = data(16)


def half(width=4, seed=5, dtype="mixed_float16"):
    """toys.net with its hidden layer in half precision."""
    x = keras.Input((5,))
    hidden = keras.layers.Dense(width, "tanh", dtype=dtype, name="hidden")(x)
    scores = keras.layers.Dense(3, dtype="float32", name="scores")(hidden)
    return toys.randomize(keras.Model(x, scores), seed)


def train(student, optimizer, teacher=None, distillation=None, epochs=2, **options):
    soft = distillation or losses.LogitsDistillation(8.0)
    distiller = tfkd.Distiller(teacher or net(8, seed=2), student, soft)
    distiller.compile(optimizer, CROSSENTROPY, **options)
    history = distiller.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    trained = [student, *distiller.projectors]
    return [w for model in trained for w in model.get_weights()], history.history


def scaled(scale):
    inner = keras.optimizers.SGD(0.1, 0.9)
    return keras.mixed_precision.LossScaleOptimizer(inner, dynamic=False, initial_scale=scale)


HINT = losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")


@pytest.mark.parametrize(
    "distillation",
    [losses.LogitsDistillation(8.0), [losses.LogitsDistillation(2.0), HINT]],
    ids=["soft targets", "hint with a projector"],
)
def test_the_scale_of_the_loss_leaves_no_trace(distillation):
    results = []
    for scale in (1.0, 1024.0):
        keras.utils.set_random_seed(3)  # the projector starts alike
        results.append(train(half(), scaled(scale), distillation=distillation))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        # Gradients in float16 round at another place of their range.
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    # The loss in the logs is not scaled.
    for name, values in results[0][1].items():
        np.testing.assert_allclose(values, results[1][1][name], rtol=5e-3, atol=1e-3)


def test_a_step_that_overflows_changes_nothing_but_the_scale():
    student = half()
    before = student.get_weights()
    optimizer = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**40, dynamic_growth_steps=1000
    )
    _, history = train(student, optimizer, epochs=1)
    toys.assert_untouched(before, student)
    assert np.isfinite(history["loss"]).all()
    assert float(optimizer.loss_scale) == 2.0**38  # two steps, halved twice
    # Keras counts them as steps: schedules stay with the data.
    assert int(optimizer.iterations) == 2
    train(student, optimizer, epochs=20)
    assert any((a != b).any() for a, b in zip(before, student.get_weights(), strict=True))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_near_float32(policy):
    exact, _ = train(half(dtype="float32"), keras.optimizers.SGD(0.1, 0.9))
    near, history = train(half(dtype=policy), keras.optimizers.SGD(0.1, 0.9))
    tolerance = 5e-3 if policy == "mixed_float16" else 3e-2
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == np.float32  # the weights themselves
        np.testing.assert_allclose(a, b, atol=tolerance)
    assert history["loss"][-1] < history["loss"][0]


def test_large_scores_and_temperatures_stay_finite():
    """T² · KL of scores in float16, whose largest number is 65504."""
    teacher, student = half(8, 2), half(4)
    for model in (teacher, student):
        head = model.get_layer("scores")
        head.kernel.assign(3e3 * head.kernel)
    weights, history = train(student, keras.optimizers.SGD(1e-9), teacher)
    assert all(np.isfinite(w).all() for w in weights)
    assert np.isfinite(history["distillation_loss"]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_teacher_in_half_precision_beside_a_student_in_float32(dtype):
    teacher = net(8, seed=2)
    exact, _ = train(net(4, seed=5), keras.optimizers.SGD(0.1), teacher)
    frozen = tfkd.frozen_copy(teacher, dtype=dtype)
    assert frozen.get_layer("hidden").compute_dtype == dtype
    near, _ = train(net(4, seed=5), keras.optimizers.SGD(0.1), frozen)
    for a, b in zip(exact, near, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 if dtype == "float16" else 1e-2)


@pytest.mark.slow
def test_filters_decay_in_half_precision():
    student = half(8)
    plan = tfkd.pruning.plan(student, macs_reduction=0.5)
    schedule = tfkd.pruning.AnnealedFilterDecay(0.5, begin_step=0, end_step=4, frequency=2)
    decay = tfkd.callbacks.FilterDecay(plan, schedule)
    distiller = tfkd.Distiller(net(8, seed=2), student, losses.LogitsDistillation(2.0))
    distiller.compile(keras.optimizers.SGD(0.1, 0.9), CROSSENTROPY)
    distiller.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[decay])
    dead = (np.abs(student.get_layer("hidden").kernel.numpy()).sum(0) == 0).sum()
    assert dead == sum(plan.remove.values()) > 0
    small = tfkd.pruning.shrink(student, decay.selection)
    assert small.get_layer("hidden").units == 8 - dead


def test_two_replicas_scale_alike(two_replicas):
    results = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            student = half()
            results.append(train(student, scaled(64.0), net(8, seed=2))[0])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def overflowing(policy="float32"):
    """Every weight fits float16, what the second layer computes does not."""
    x = keras.Input((5,))
    h = keras.layers.Dense(4, use_bias=False, dtype=policy)(x)
    h = keras.layers.Dense(4, use_bias=False, name="large", dtype=policy)(h)
    model = keras.Model(x, keras.layers.Dense(3, use_bias=False, dtype="float32")(h))
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.normal(size=w.shape) * f for w, f in zip(model.weights, (9e3, 9e3, 1e-7), strict=True)]
    )
    return model


TEACHERS = {
    "copy": lambda: tfkd.frozen_copy(overflowing(), dtype="float16"),
    "policy": lambda: overflowing("mixed_float16"),
    "one of two": lambda: [overflowing(), tfkd.frozen_copy(overflowing(), dtype="float16")],
}


@pytest.mark.parametrize(
    ("case", "form"), [("copy", "arrays"), ("policy", "dataset"), ("one of two", "arrays")]
)
def test_a_teacher_that_leaves_float16_is_named_before_a_step(case, form):
    x, y = toys.data()
    student = toys.net()
    before = toys.weights_of(student)
    distiller = tfkd.Distiller(TEACHERS[case](), student, tfkd.losses.LogitsDistillation(2.0))
    distiller.compile("sgd", toys.CROSSENTROPY)
    data = (x, y) if form == "arrays" else (tf.data.Dataset.from_tensor_slices((x, y)).batch(4),)
    with pytest.raises(ValueError, match=r"`teacher`: .*float16 ends at 65504.*bfloat16"):
        distiller.fit(*data, verbose=0)
    toys.assert_untouched(before, student)


def test_a_feature_beyond_float16_and_a_copy_in_bfloat16():
    x, y = toys.data()
    loss = tfkd.losses.FeatureDistillation(teacher_layer_name="large", student_layer_name="hidden")
    for dtype in ("float16", "bfloat16"):
        teacher = tfkd.frozen_copy(overflowing(), dtype=dtype)
        distiller = tfkd.Distiller(teacher, toys.net(), loss, student_loss_weight=0.5)
        distiller.compile(keras.optimizers.SGD(1e-12), toys.CROSSENTROPY)
        if dtype == "float16":
            with pytest.raises(ValueError, match="bfloat16"):
                distiller.fit(x, y, verbose=0)
        else:
            assert np.isfinite(toys.logs(distiller.fit(x, y, verbose=0))["loss"])


def test_an_infinite_weight_in_float16_is_told_by_its_cause(tmp_path):
    teacher = tfkd.frozen_copy(toys.net(), dtype="float16")
    kernel, bias = teacher.get_layer("hidden").get_weights()
    with np.errstate(over="ignore"):
        teacher.get_layer("hidden").set_weights([kernel * np.inf, bias])
    with pytest.raises(ValueError, match=r"65504.*bfloat16"):
        tfkd.Distiller(teacher, toys.net(), tfkd.losses.LogitsDistillation(2.0))
    x, _ = toys.data()
    with pytest.raises(ValueError, match=r"in bfloat16: float16 ends at 65504"):
        half = tfkd.frozen_copy(overflowing(), dtype="float16")
        tfkd.TeacherCache.build(tmp_path, half, x, progress=False)
