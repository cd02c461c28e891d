"""Quantized models on disk: exact, whole, and refused where they are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tfkd import Distiller, artifacts
from tfkd.losses import LogitsDistillation
from tfkd.quantization import calibrate, load, quantize, save

L = keras.layers
RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 8, 8, 2)).astype("float32")


class Doubled(L.Layer):
    """A layer of the user's own, which Keras does not know by name."""

    def call(self, inputs):
        return 2.0 * inputs


def block(name):
    """A nested model."""
    x = keras.Input((8, 8, 3))
    y = L.SeparableConv2D(3, 3, padding="same", activation="swish")(x)
    return keras.Model(x, L.Add()([x, y]), name=name)


def network(*, function=None, custom=False):
    """Nested, shared, with an operation of TensorFlow, two outputs by name."""
    x = keras.Input((8, 8, 2), name="image")
    y = L.Conv2D(3, 3, padding="same", use_bias=False, name="conv")(x)
    y = L.BatchNormalization(name="norm")(y)
    nested = block("nested")
    y = nested(nested(L.ReLU(name="relu")(y)))
    y = y * tf.sigmoid(y) + 0.5
    y = L.Lambda(function, name="own")(y) if function else y
    y = Doubled(name="own")(y) if custom else y
    y = L.GlobalAveragePooling2D(name="pool")(y)
    outputs = {"a": L.Dense(3, name="a")(y), "b": L.Dense(2, activation="tanh", name="b")(y)}
    model = keras.Model(x, outputs)
    for weight in model.weights:
        noise = RNG.uniform(0.5, 1.5, weight.shape) if "variance" in weight.name else None
        value = RNG.normal(0, 0.4, weight.shape) if noise is None else noise
        weight.assign(value.astype("float32"))
    return model


def outputs_of(q):
    return {name: value.numpy() for name, value in q(X, training=False).items()}


def assert_same(one, other):
    expected, received = outputs_of(one), outputs_of(other)
    assert set(expected) == set(received) == {"a", "b"}
    for name in expected:
        np.testing.assert_array_equal(expected[name], received[name])
        assert np.ptp(expected[name]) > 1e-3


@pytest.mark.parametrize("target", ["tflite", "both"])
def test_outputs_are_the_same_bit_for_bit(tmp_path, target):
    q = quantize(network(), target, preserve_sparsity=target == "both", skip=["nested"])
    calibrate(q, X)
    path = save(q, tmp_path / "deep" / "q.npz")
    again = load(path)
    assert_same(q, again)
    assert again.target == target and again.calibrated
    assert again.report == q.report and again.ranges == q.ranges
    assert [layer.name for layer in again.layers] == [layer.name for layer in q.layers]
    assert sorted(file.name for file in path.parent.iterdir()) == ["q.npz", "q.npz.manifest.json"]


def test_after_training_too_and_it_can_be_saved_again_with_the_same_bytes(tmp_path):
    q = quantize(network(), "both")
    calibrate(q, X)
    q.compile("sgd", "mse")
    q.fit(X, {"a": np.ones((6, 3)), "b": np.zeros((6, 2))}, epochs=2, verbose=0)
    first = save(q, tmp_path / "first")
    again = load(first)
    assert_same(q, again)
    assert save(again, tmp_path / "second").read_bytes() == first.read_bytes()
    again.compile("sgd", "mse")
    again.fit(X, {"a": np.ones((6, 3)), "b": np.zeros((6, 2))}, verbose=0)
    assert (outputs_of(again)["a"] != outputs_of(q)["a"]).any()


def test_not_calibrated_stays_so(tmp_path):
    again = load(save(quantize(network()), tmp_path / "q"))
    assert not again.calibrated
    with pytest.raises(RuntimeError, match="calibrate"):
        again(X)


def test_the_users_own_layers_and_functions(tmp_path):
    q = quantize(network(custom=True))
    calibrate(q, X)
    path = save(q, tmp_path / "custom")
    with pytest.raises(ValueError, match="custom_objects"):
        load(path)
    assert_same(q, load(path, {"Doubled": Doubled}))

    q = quantize(network(function=lambda x: x * 3.0))
    calibrate(q, X)
    path = save(q, tmp_path / "function")
    with pytest.raises(ValueError, match="safe_mode=False"):
        load(path)
    assert_same(q, load(path, safe_mode=False))


def test_layers_of_the_applications_need_no_name(tmp_path):
    x = keras.Input((8, 8, 2))
    y = StochasticDepth(0.5)(LayerScale(0.5, 2)(L.Conv2D(2, 1)(x)))
    model = keras.Model(x, CustomScaleLayer(0.2)([x, y]))
    q = quantize(model)
    calibrate(q, X)
    again = load(save(q, tmp_path / "q"))
    np.testing.assert_array_equal(again(X), q(X))


def test_damaged_and_foreign_files(tmp_path):
    q = quantize(network())
    path = save(q, tmp_path / "q.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        load(path)
    path.write_bytes(whole[:-5] + b"abcde")
    with pytest.raises(ValueError, match="SHA-256"):
        load(path)
    path.write_bytes(whole)
    manifest = artifacts.manifest_path(path)
    text = manifest.read_text()
    manifest.write_text(text[:40])
    with pytest.raises(ValueError, match="cannot be read"):
        load(path)
    manifest.unlink()
    with pytest.raises(ValueError, match="missing"):
        load(path)
    with pytest.raises(ValueError, match="exists"):
        load(tmp_path / "nothing.npz")

    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, a=np.ones(3))
    artifacts.write_manifest(foreign, {})
    with pytest.raises(ValueError, match=r"a file of tfkd.quantization.save"):
        load(foreign)
    later = tmp_path / "later.npz"
    np.savez(later, document=np.array(json.dumps({"format": "tfkd quantized model, 99"})))
    artifacts.write_manifest(later, {})
    with pytest.raises(ValueError, match="99"):
        load(later)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, document=np.array([{}], dtype=object))
    artifacts.write_manifest(pickled, {})
    with pytest.raises(ValueError, match=r"can't be read"):
        load(pickled)


def test_what_can_not_be_saved(tmp_path):
    with pytest.raises(TypeError, match="`q`"):
        save(network(), tmp_path / "q")
    q = quantize(network())
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="cannot write"):
        save(q, tmp_path / "file" / "q")
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(ValueError, match=r"tfkd\.quantization\.save"):
        q.save(tmp_path / "q.keras")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def small_student(sequential=True):
    layers = [L.Conv2D(3, 3, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 2)), *layers])
    return model if sequential else keras.Model(model.inputs, model.outputs)


def distiller_of(student, teacher=None, seed=1):
    keras.utils.set_random_seed(seed)
    teacher = teacher or small_student()
    distiller = Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0)
    distiller.compile("adam")
    return distiller


def checkpoint(path, **kwargs):
    return keras.callbacks.ModelCheckpoint(str(path), **kwargs)


@pytest.mark.parametrize("target", ["tflite", "tensorrt", "both"])
def test_a_distiller_with_a_quantized_student_is_not_written_whole(tmp_path, target):
    q = quantize(small_student(sequential=target != "both"), target=target)
    calibrate(q, X)
    distiller = distiller_of(q)
    before = [w.numpy() for w in q.weights]
    out = "save_weights_only=True.*tfkd.quantization.save"
    for write in (
        lambda: distiller.save(tmp_path / "d.keras"),
        lambda: keras.models.save_model(distiller, tmp_path / "d.keras"),
        lambda: distiller.fit(X, callbacks=[checkpoint(tmp_path / "d.keras")], verbose=0),
        lambda: distiller.fit(X, None, 2, 1, 0, checkpoint(tmp_path / "d.keras")),
    ):
        with pytest.raises(ValueError, match=out):
            write()
    assert not list(tmp_path.iterdir())
    for old, weight in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(old, weight)  # nothing was trained for nothing


def test_quantized_models_inside_others_and_of_tfmot_are_found(tmp_path):
    q = quantize(small_student())
    calibrate(q, X)
    nested = keras.Sequential([keras.Input((8, 8, 2)), q])
    theirs = tfmot.quantization.keras.quantize_model(small_student())
    for distiller, side in (
        (distiller_of(nested), "student"),
        (distiller_of(theirs), "student"),
        (distiller_of(small_student(), teacher=nested), "teacher"),
        (distiller_of(small_student(), teacher=[small_student(), q]), "teacher"),
    ):
        with pytest.raises(ValueError, match=f"whose {side} .* is quantized"):
            distiller.save(tmp_path / "d.keras")


@pytest.mark.slow
def test_weights_alone_go_on_training_exactly(tmp_path):
    def new():
        q = quantize(small_student())
        calibrate(q, X)
        return distiller_of(q)

    args = {"batch_size": 3, "shuffle": False, "verbose": 0}
    first = new()
    path = tmp_path / "d.weights.h5"
    whole = [checkpoint(path, save_weights_only=True)]
    first.fit(X, callbacks=whole, **args)
    second = new()
    second.fit(X, **args)  # makes the optimizer's variables
    second.load_weights(path)
    first.fit(X, **args)
    second.fit(X, **args)
    assert int(first.optimizer.iterations) == int(second.optimizer.iterations) == 4
    for one, other in zip(first.student.weights, second.student.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_of_a_quantized_model_is_refused_before_training(tmp_path):
    q = quantize(small_student())
    calibrate(q, X)
    q.compile("sgd", "mse")
    before = [w.numpy() for w in q.weights]
    for call in (
        lambda: q.fit(X, np.ones((6, 3)), callbacks=[checkpoint(tmp_path / "q.keras")]),
        lambda: q.fit(X, np.ones((6, 3)), 2, 1, 0, [checkpoint(tmp_path / "q")]),
    ):
        with pytest.raises(ValueError, match="weights alone.*save_weights_only=True"):
            call()
    for old, weight in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
