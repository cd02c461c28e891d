"""The batch normalizations of a quantized model are frozen unless `quantize` frees them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tf_keras as keras

import tfkd
from tfkd import progressive
from tfkd.curriculum import Stage
from tfkd.quantization import calibrate, quantize

L = keras.layers
RNG = np.random.default_rng(2)
X = RNG.normal(1, 2, size=(32, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    x = keras.Input((6, 6, 2), name="image")
    y = L.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = L.ReLU(name="relu")(L.BatchNormalization(momentum=0.5, name="norm")(y))  # a plain layer
    y = L.Conv2D(4, 3, use_bias=False, name="conv_b")(y)
    y = L.BatchNormalization(momentum=0.5, name="norm_b")(y)  # wrapped, as it ends its unit
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))


def quantized(**options):
    q = quantize(network(), **options)
    calibrate(q, X)
    return q


def norms(q):
    found = [getattr(q.get_layer(name), "layer", q.get_layer(name)) for name in ("norm", "norm_b")]
    assert all(isinstance(norm, L.BatchNormalization) for norm in found)
    return found


def changed(q, train):
    """Which of gamma, beta, mean and variance of both norms training changes."""
    before = [norm.get_weights() for norm in norms(q)]
    train(q)
    after = [norm.get_weights() for norm in norms(q)]
    return [
        [bool((a != b).any()) for a, b in zip(old, new, strict=True)]
        for old, new in zip(before, after, strict=True)
    ]


def fit(q):
    q.compile(keras.optimizers.SGD(0.1), LOSS)
    q.fit(X, Y, verbose=0)


def distil(q):
    loss = tfkd.losses.LogitsDistillation()
    distiller = tfkd.Distiller(network(), q, loss, student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(0.1))
    distiller.fit(X, verbose=0)


@pytest.mark.parametrize("train", [fit, distil], ids=lambda train: train.__name__)
def test_training_changes_nothing_of_them_by_default(train):
    q = quantized()
    kernel = q.get_layer("conv").layer.kernel.numpy()
    assert changed(q, train) == [[False] * 4] * 2
    assert (q.get_layer("conv").layer.kernel.numpy() != kernel).any()


def test_one_argument_frees_them():
    q = quantized(freeze_batch_norm=False)
    assert not q.freeze_batch_norm
    assert changed(q, fit) == [[True] * 4] * 2


def test_in_training_they_compute_as_in_inference():
    q = quantized(target="both")
    low, high = q.ranges["norm_b"]
    training, inference = q(X, training=True), q(X, training=False)
    # The ranges have moved by a hundredth at most.
    room = 0.05 * (high - low) * np.abs(q.get_layer("logits").layer.kernel.numpy()).sum(0).max()
    assert np.abs(training - inference).max() < room
    assert np.abs(quantized(freeze_batch_norm=False)(X, training=True) - inference).max() > room / 5


def thaw_model(q):
    q.trainable = True


def thaw_layers(q):
    for layer in q.layers:
        layer.trainable = True


def thaw_norms(q):
    for norm in norms(q):
        norm.trainable = True


@pytest.mark.parametrize("thaw", [thaw_model, thaw_layers, thaw_norms], ids=lambda f: f.__name__)
def test_trainable_does_not_let_them_go_and_says_so(thaw):
    q = quantized()
    thaw(q)
    with pytest.warns(UserWarning, match="freeze_batch_norm=False"):
        names = {variable.name.split("/")[0] for variable in q.trainable_variables}
    assert names == {"conv", "conv_b", "logits"}
    assert changed(q, fit) == [[False] * 4] * 2


def test_around_another_model_too():
    q = quantized()
    outer = keras.Sequential([keras.Input((6, 6, 2)), q])
    outer.trainable = True
    assert len(outer.trainable_variables) == 4
    assert changed(q, lambda q: fit(outer)) == [[False] * 4] * 2


@pytest.mark.parametrize("freeze", [True, False])
def test_a_file_keeps_the_choice(freeze, tmp_path):
    q = quantized(freeze_batch_norm=freeze)
    again = tfkd.quantization.load(tfkd.quantization.save(q, tmp_path / "q.npz"))
    assert again.freeze_batch_norm is freeze
    np.testing.assert_array_equal(again(X), q(X))
    assert changed(again, fit) == [[not freeze] * 4] * 2


def test_a_file_of_a_frozen_model_is_read(tmp_path):
    q = quantized()
    q.trainable = False  # as a Distiller does with its teacher
    again = tfkd.quantization.load(tfkd.quantization.save(q, tmp_path / "q.npz"))
    np.testing.assert_array_equal(again(X), q(X))


def test_what_the_user_froze_stays_frozen():
    model = network()
    model.get_layer("norm").trainable = False
    q = quantize(model, freeze_batch_norm=False)
    calibrate(q, X)
    assert changed(q, fit) == [[False] * 4, [True] * 4]


def test_a_progressive_stage_passes_it_on():
    for options, moves in (({}, False), ({"freeze_batch_norm": False}, True)):
        stages = [Stage(1, structure=progressive.Quantize(X, **options))]
        trainer = progressive.ProgressiveDistiller(
            network(), network(), stages, tfkd.losses.LogitsDistillation(), student_loss_weight=0
        )
        trainer.compile(keras.optimizers.SGD(0.1))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trainer.fit(X, verbose=0)
        fresh = [[0.0] * 4] * 2  # moving means begin there
        means = [norm.moving_mean.numpy().tolist() for norm in norms(trainer.student)]
        assert (means != fresh) is moves


def test_a_bad_value_is_refused():
    with pytest.raises(TypeError, match="freeze_batch_norm"):
        quantize(network(), freeze_batch_norm="yes")
