"""One check of models: the same words at every entry point, short, and a way out of each."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tf_keras as keras
import toys

import tfkd
from tfkd import pruning, quantization, report
from tfkd.callbacks import FilterDecay
from tfkd.networks import accept
from tfkd.networks.call_graph import is_network

LOSS = tfkd.losses.LogitsDistillation()


def net(seed=0):
    return toys.net(seed=seed)


def distiller():
    return tfkd.Distiller(net(1), net(2), LOSS)


def progressive():
    return tfkd.ProgressiveDistiller(net(1), net(2), [tfkd.curriculum.Stage(1)], LOSS)


def keras_3():
    keras3 = pytest.importorskip("keras", minversion="3.0")
    return keras3.Sequential([keras3.Input((5,)), keras3.layers.Dense(3)])


def keras_3_subclass():
    keras3 = pytest.importorskip("keras", minversion="3.0")

    class Mine(keras3.Model):
        def call(self, x):
            return x

    return Mine()


def quantized():
    return quantization.quantize(net())


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 5), "float32"))
    return model


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


class Loud:
    def __repr__(self):
        return "\n".join(["loud"] * 10_000)


class Broken:
    def __repr__(self):
        raise RuntimeError("no repr")


def plan():
    return pruning.plan(net(), filter_rate=0.5)


def selection():
    made = plan()
    return pruning.select(made.graph.model, made)


def decay(model):
    schedule = pruning.AnnealedFilterDecay(
        target_sparsity=0.5, begin_step=0, end_step=4, frequency=2
    )
    return FilterDecay(plan(), schedule, model=model)


# Those that follow layers, and those that only call the model.
FOLLOW = {
    "analyse": pruning.analyse,
    "plan": lambda model: pruning.plan(model, filter_rate=0.5),
    "select": lambda model: pruning.select(model, plan()),
    "shrink": lambda model: pruning.shrink(model, selection()),
    "apply_selection": lambda model: pruning.apply_selection(model, selection()),
    "find_blocks": pruning.find_blocks,
    "cut_layers": lambda model: pruning.cut_layers(model, drop="hidden"),
    "choose_layers": lambda model: pruning.choose_layers(model, keep=1),
    "quantize": quantization.quantize,
}
CALL = {
    "frozen_copy": tfkd.frozen_copy,
    "recalibrate": lambda model: pruning.recalibrate(model, np.zeros((2, 5), "float32")),
    "to_tflite": lambda model: tfkd.export.to_tflite(model, "none/model.tflite"),
    "to_onnx": lambda model: tfkd.export.to_onnx(model, "none/model.onnx"),
    "to_saved_model": lambda model: tfkd.export.to_saved_model(model, "none/model"),
    "profile": report.profile,
}
EVERY = {**FOLLOW, **CALL}

# What is passed, the error, and what comes after "`model`: ".
NO_MODEL = [
    (distiller, "expected a plain model, received a Distiller, which trains one. "
     "Pass distiller.student."),
    (progressive, "expected a plain model, received a ProgressiveDistiller, which trains one. "
     "Pass distiller.student."),
    (keras_3, "This is a Keras 3 model: convert it with tfkd.from_keras3(model)."),
    (keras_3_subclass, "This is a Keras 3 model: convert it with tfkd.from_keras3(model)."),
    (lambda: "model.keras", "expected a tf_keras model, received 'model.keras' (str). Load it "
     "first: keras.models.load_model(path)."),
    (lambda: pathlib.PurePosixPath("model.keras"), "Load it first: keras.models.load_model(path)."),
    (lambda: None, "expected a tf_keras model, received None (NoneType)."),
    (lambda: keras.layers.Dense(3), "(Dense)."),
    (Loud, "expected a tf_keras model, received loud loud"),
    (Broken, "expected a tf_keras model, received a value without a repr (Broken)."),
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("entry", EVERY)
def test_what_is_no_model_gets_the_same_words_everywhere(entry):
    for make, words in NO_MODEL:
        with pytest.raises(TypeError) as caught:
            EVERY[entry](make())
        message = str(caught.value)
        assert message.startswith("`model`: ") and words in message, message
        assert len(message) < 300


@pytest.mark.parametrize("entry", FOLLOW)
def test_layers_that_can_not_be_followed(entry):
    for make, words in [
        (subclassed, "received the subclassed Subclassed, whose layers can't be followed. Build "
         "the same layers with keras.Model(inputs, outputs)."),
        (Subclassed, "received the subclassed Subclassed, whose layers can't be followed."),
        (quantized, "quantized already. Pass the model that it was made from."),
        (unbuilt, "expected a model that is built, received the unbuilt Sequential"),
    ]:  # fmt: skip
        with pytest.raises(ValueError) as caught:
            FOLLOW[entry](make())
        assert str(caught.value).startswith("`model`: ") and words in str(caught.value)


@pytest.mark.parametrize("entry", CALL)
def test_models_without_weights(entry):
    for make, words in [
        (unbuilt, "without an input shape. Call it once on a batch, or give it a keras.Input as "
         "its first layer."),
        (Subclassed, "without weights. Call it once on a batch."),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="`model`: expected a model that is built") as caught:
            CALL[entry](make())
        assert words in str(caught.value)


def test_sides_of_a_distiller():
    with pytest.raises(ValueError, match=r"`student`: .*Pass distiller\.student"):
        tfkd.Distiller(net(1), distiller(), LOSS)
    with pytest.raises(TypeError, match=r"`teacher`: .*Pass distiller\.student"):
        tfkd.Distiller(distiller(), net(1), LOSS)
    with pytest.raises(ValueError, match=r"`student`: .*tfkd\.from_keras3\(model\)"):
        tfkd.Distiller(net(1), keras_3(), LOSS)
    with pytest.raises(ValueError, match=r"`teacher`: .*keras\.models\.load_model\(path\)"):
        tfkd.Distiller("teacher.keras", net(1), LOSS)
    y = np.zeros(4, int)
    with pytest.raises(TypeError, match=r"`student`: .*Pass distiller\.student"):
        tfkd.curriculum.difficulty.student_loss(distiller(), np.zeros((4, 5), "float32"), y)


def test_where_any_callable_does():
    x = np.zeros((4, 5), "float32")
    with pytest.raises(TypeError, match=r"`models\['a'\]`: .*Pass distiller\.student"):
        report.compare({"a": distiller()}, (x, np.zeros(4, int)))
    with pytest.raises(TypeError, match=r"`runners\['a'\]`: .*Pass distiller\.student"):
        report.latency({"a": progressive()}, x)
    with pytest.raises(TypeError, match=r"`runners\['a'\]`: .*tfkd\.from_keras3\(model\)"):
        report.latency({"a": keras_3()}, x)
    with pytest.raises(TypeError, match=r"`model`: .*Pass distiller\.student"):
        report.detect(distiller(), np.zeros((1, 8, 8, 3), "uint8"), np.ones((1, 4), "float32"))
    with pytest.raises(TypeError, match=r"`model`: .*Pass distiller\.student"):
        decay(distiller())


def test_where_a_quantized_model_is_asked_for():
    x = np.zeros((4, 5), "float32")
    for wrong, words in [
        (distiller(), r"Pass distiller\.student"),
        (net(), r"a QuantizedModel.*tfkd\.quantization\.quantize\(model\)"),
    ]:
        with pytest.raises(TypeError, match=f"`q`: .*{words}"):
            quantization.calibrate(wrong, x)
        with pytest.raises(TypeError, match=f"`q`: .*{words}"):
            quantization.save(wrong, "q.npz")


def test_what_is_accepted_is_returned():
    for needs, make in [
        (accept.BUILT, subclassed),
        (accept.BUILT, quantized),
        (accept.ANY, unbuilt),
        (accept.ANY, Subclassed),
    ]:
        model = make()
        assert accept.check_model("model", model, needs) is model
    model = net()
    assert accept.check_graph("model", model).model is model


def test_a_quantized_model_inside_another():
    x = keras.Input((5,))
    outer = keras.Model(x, quantized()(x))
    with pytest.raises(ValueError, match="quantized already. Pass the model that it was made from"):
        quantization.quantize(outer)


def test_a_functional_model_with_a_call_of_its_own_can_not_be_followed():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training, mask)

    x = keras.Input((5,))
    model = Doubled(x, keras.layers.Dense(3)(x))
    assert not is_network(model)
    with pytest.raises(ValueError, match="subclassed Doubled"):
        pruning.plan(model, filter_rate=0.5)
