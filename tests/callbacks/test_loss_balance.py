"""LossBalance: the factors, against gradients and losses in NumPy, and the steps they lead to."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfkd
from tfkd.callbacks import LossBalance

RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 5)).astype("float32")
Y = RNG.integers(0, 3, 24)
KERNEL, TEACHER = (RNG.normal(size=(5, 3)).astype("float32") for _ in range(2))
RATE, W, WEIGHT = 0.1, 0.25, 2.0


def linear(kernel):
    model = keras.Sequential([keras.layers.Dense(3, use_bias=False, input_shape=(5,))])
    model.set_weights([kernel])
    return model


def distiller(losses=None, weights=WEIGHT, share=W, kernel=KERNEL):
    losses = losses or tfkd.losses.LogitsDistillation(1.0)
    made = tfkd.Distiller(linear(TEACHER), linear(kernel), losses, weights, share)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(RATE), labels)
    return made


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(kernel=KERNEL):
    """Losses and gradients on all examples: cross-entropy, and KL to the teacher."""
    p, q, hot = softmax(X @ kernel), softmax(X @ TEACHER), np.eye(3)[Y]
    values = -np.log((p * hot).sum(1)).mean(), (q * np.log(q / p)).sum(1).mean()
    return values, (X.T @ (p - hot) / len(X), X.T @ (p - q) / len(X))


def fit(made, *callbacks, epochs=1, **options):
    kwargs = {"batch_size": 24, "shuffle": False, "verbose": 0, **options}
    return made.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


@pytest.mark.parametrize("method", ["gradient_norm", "uncertainty"])
def test_the_factor_and_the_step_with_it(method):
    values, gradients = by_hand()
    sizes = values if method == "uncertainty" else [np.linalg.norm(g) for g in gradients]
    factor = sizes[0] / sizes[1]
    made = distiller()
    logs = fit(made, LossBalance((X, Y), method))
    np.testing.assert_allclose(logs["balance/logits_distillation"], [factor], rtol=1e-4)
    step = W * gradients[0] + (1 - W) * WEIGHT * factor * gradients[1]
    np.testing.assert_allclose(made.student.get_weights()[0], KERNEL - RATE * step, atol=1e-5)
    np.testing.assert_allclose(logs["student_loss"], [values[0]], rtol=1e-4)
    np.testing.assert_allclose(logs["logits_distillation"], [values[1]], rtol=1e-4)


def test_batches_are_averaged_and_every_epoch_measures_anew():
    made = distiller()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    logs = fit(made, LossBalance(data, "uncertainty", batches=3), epochs=2)
    first = by_hand()
    factor = first[0][0] / first[0][1]  # means over equal batches are means over all
    step = W * first[1][0] + (1 - W) * WEIGHT * factor * first[1][1]
    second = by_hand(KERNEL - RATE * step)[0]
    wanted = [factor, second[0] / second[1]]
    np.testing.assert_allclose(logs["balance/logits_distillation"], wanted, rtol=1e-4)


def test_without_labels_the_first_loss_takes_their_place():
    two = [tfkd.losses.LogitsDistillation(1.0), tfkd.losses.LogitsDistillation(1.0, name="again")]
    logs = fit(distiller(two, [1.0, 3.0], share=0.0), LossBalance((X, Y)))
    assert "balance/logits_distillation" not in logs
    np.testing.assert_allclose(logs["balance/again"], [1.0], rtol=1e-5)


def test_the_limit_holds_and_a_loss_of_zero_keeps_its_factor():
    near = distiller(kernel=TEACHER + 1e-5 * KERNEL)
    assert fit(near, LossBalance((X, Y), limit=7.0))["balance/logits_distillation"] == [7.0]

    class Zero(tfkd.losses.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return 0.0 * tf.reduce_sum(student_outputs)

    assert fit(distiller(Zero(name="zero")), LossBalance((X, Y)))["balance/zero"] == [1.0]


def test_factors_of_one_change_nothing():
    made, plain = distiller(), distiller()
    logs = fit(made, LossBalance((X, Y), limit=1.0), epochs=3, batch_size=7)
    wanted = fit(plain, epochs=3, batch_size=7)
    for name, values in wanted.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-6, err_msg=name)


def test_a_resumed_training_has_the_same_factors():
    whole, parts = distiller(), distiller()
    logs = fit(whole, LossBalance((X, Y)), epochs=4)
    first = fit(parts, LossBalance((X, Y)), epochs=2)
    second = fit(parts, LossBalance((X, Y)), epochs=4, initial_epoch=2)
    name = "balance/logits_distillation"
    assert logs[name] == first[name] + second[name]
    np.testing.assert_array_equal(*(each.student.get_weights()[0] for each in (whole, parts)))


def test_the_weights_shown_have_the_factor_and_lose_it_afterwards():
    made, seen = distiller(), []
    show = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(made.scheduled_values())
    )
    (factor,) = fit(made, LossBalance((X, Y)), show)["balance/logits_distillation"]
    assert seen[0]["weight/logits_distillation"] == pytest.approx(WEIGHT * factor)
    assert made.scheduled_values()["weight/logits_distillation"] == WEIGHT
    before = made.student.get_weights()[0]
    fit(made)
    _, gradients = by_hand(before)
    step = W * gradients[0] + (1 - W) * WEIGHT * gradients[1]
    np.testing.assert_allclose(made.student.get_weights()[0], before - RATE * step, atol=1e-5)


def test_with_filter_decay_and_a_cache(tmp_path):
    student = keras.Sequential(
        [keras.layers.Dense(6, "relu", input_shape=(5,)), keras.layers.Dense(3)]
    )
    cache = tfkd.TeacherCache.build(tmp_path / "cache", linear(TEACHER), X, progress=False)
    made = tfkd.Distiller(cache, student, tfkd.losses.LogitsDistillation(2.0))
    made.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = cache.batches(X, Y, 8)
    plan = tfkd.pruning.plan(student, filter_rate=0.5)
    decay = tfkd.callbacks.FilterDecay(plan, tfkd.pruning.AnnealedFilterDecay(0.5, 0, 4, 1))
    data = batches.take(3)
    logs = made.fit(
        batches, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[decay, LossBalance(data)]
    ).history
    assert len(logs["balance/logits_distillation"]) == 2 and decay.selection is not None


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: LossBalance((X, Y), "norm"), ValueError, "`method`"),
        (lambda: LossBalance((X, Y), limit=0.5), ValueError, "`limit`.*at least 1"),
        (lambda: LossBalance((X, Y), batches=0), ValueError, "`batches`"),
        (lambda: LossBalance(X), TypeError, "`data`.*(x, y)"),
        (lambda: LossBalance((X[:0], Y[:0])), ValueError, "`data`.*at least one example"),
    ],
)
def test_arguments(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_models_without_losses_to_balance():
    plain = linear(KERNEL)
    plain.compile("sgd", "mse")
    with pytest.raises(TypeError, match="`model`: expected a tfkd.Distiller"):
        plain.fit(X, X[:, :3], verbose=0, callbacks=[LossBalance((X, Y))])
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="at least two losses"):
            fit(distiller(share=share), LossBalance((X, Y)))
