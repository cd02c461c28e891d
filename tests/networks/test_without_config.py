"""Layers without a config: one error with the layer's name, before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras as keras
from toys import CROSSENTROPY

import tfkd
from tfkd.curriculum import Stage

L = keras.layers
X, Y = np.ones((8, 4), "float32"), np.zeros(8, "int32")
WORDS = r"received the Scaled 'mine'.*Give Scaled a get_config that adds the arguments"


class Scaled(L.Layer):
    def __init__(self, function, name="mine"):  # Keras can't write a function
        super().__init__(name=name)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def net(nested=False):
    x = keras.Input((4,))
    hidden = L.Dense(6, "relu")(x)
    if nested:
        inner = keras.Input((6,))
        hidden = keras.Model(inner, Scaled(lambda v: 2 * v)(inner), name="inner")(hidden)
    else:
        hidden = Scaled(lambda v: 2 * v)(hidden)
    return keras.Model(x, L.Dense(3)(hidden))


def distiller():
    made = tfkd.Distiller(net(), net(), tfkd.losses.LogitsDistillation(2.0))
    made.compile("sgd", CROSSENTROPY)
    return made


@pytest.mark.parametrize("nested", [False, True])
def test_copies_name_the_layer(nested):
    with pytest.raises(ValueError, match=WORDS):
        tfkd.frozen_copy(net(nested))
    with pytest.raises(ValueError, match="'mine', a Scaled, which can't"):
        tfkd.quantization.quantize(net(nested))


def test_files_are_refused_before_training(tmp_path):
    made = distiller()
    whole = keras.callbacks.ModelCheckpoint(tmp_path.as_posix() + "/d.keras")
    student = tfkd.callbacks.StudentCheckpoint(tmp_path / "s.keras")
    with pytest.raises(ValueError, match=WORDS):
        made.save(tmp_path / "d.keras")
    for callback in (whole, student):
        with pytest.raises(ValueError, match=WORDS):
            made.fit(X, Y, verbose=0, callbacks=[callback])
    assert int(made.optimizer.iterations) == 0
    weights = tfkd.callbacks.StudentCheckpoint(tmp_path / "s.weights.h5", save_weights_only=True)
    made.fit(X, Y, verbose=0, callbacks=[weights])


def test_stages_that_copy_the_student_are_refused():
    staged = tfkd.ProgressiveDistiller(
        net(), net(), [Stage(1, freeze="dense*"), Stage(1)], tfkd.losses.LogitsDistillation(2.0)
    )
    staged.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match=WORDS):
        staged.fit(X, Y, verbose=0)
