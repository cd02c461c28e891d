"""Losses on layers: where layers are found, how they are tapped, and projectors."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, data, logs, net

import tfkd
from tfkd.losses import FeatureDistillation, LogitsDistillation


def run(teacher, student, losses, optimizer=None, x=None, y=None, **compile_args):
    if x is None:
        x, y = data()
    distiller = tfkd.Distiller(teacher, student, losses)
    distiller.compile(optimizer or keras.optimizers.SGD(0.0), CROSSENTROPY, **compile_args)
    return distiller, logs(distiller.fit(x, y, batch_size=len(x), verbose=0))


def hint(teacher="hidden", student="hidden", **kwargs):
    return FeatureDistillation(teacher_layer_name=teacher, student_layer_name=student, **kwargs)


def dense(x, layer, activation=np.tanh):
    kernel, bias = layer.get_weights()
    return activation(x @ kernel + bias)


def nested(seed, depth):
    """`toys.net`'s hidden layer, `depth` models deep."""
    inner = keras.Sequential(
        [keras.layers.Dense(4, "tanh", input_shape=(5,), name="hidden")], name="level0"
    )
    for level in range(1, depth):
        x = keras.Input((5,))
        inner = keras.Model(x, inner(x), name=f"level{level}")
    x = keras.Input((5,))
    model = keras.Model(x, keras.layers.Dense(3)(inner(x)))
    return toys.randomize(model, seed)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_layers_of_nested_models_are_found_by_path(depth, eager):
    teacher, student = net(seed=1), nested(2, depth)
    path = "/".join([f"level{i}" for i in reversed(range(depth))] + ["hidden"])
    _, found = run(teacher, student, hint(student=path), run_eagerly=eager)
    x, _ = data()
    weights = student.get_weights()
    expected = dense(x, teacher.get_layer("hidden")) - np.tanh(x @ weights[0] + weights[1])
    np.testing.assert_allclose(found["feature_distillation"], (expected**2).mean(), rtol=1e-5)
    # A whole nested model is a layer too.
    _, whole = run(teacher, student, hint(student=path.rpartition("/")[0]))
    np.testing.assert_allclose(whole["loss"], found["loss"], rtol=1e-6)


def test_a_layer_whose_own_name_holds_a_slash():
    x = keras.Input((5,))
    hidden = keras.layers.Dense(4, "tanh", name="block/hidden")(x)
    student = toys.randomize(keras.Model(x, keras.layers.Dense(3)(hidden)), 2)
    outer = keras.Model(x2 := keras.Input((5,)), student(x2))
    teacher = net(seed=1)
    first = run(teacher, student, hint(student="block/hidden"))[1]
    second = run(teacher, outer, hint(student=f"{student.name}/block/hidden"))[1]
    assert first["feature_distillation"] > 0
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)


class Branching(keras.layers.Layer):
    """A layer with Python control flow on tensors, which AutoGraph rewrites."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(4, name="inner")

    def build(self, input_shape):
        self.inner.build(input_shape)
        super().build(input_shape)

    def call(self, inputs, training=None):
        h = self.inner(inputs)
        if tf.reduce_sum(h) > 1e9:
            h = h * 0.0
        for _ in tf.range(2):
            h = tf.tanh(h)
        return h


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tapped_layers_may_hold_control_flow(jit):
    x = keras.Input((5,))
    student = toys.randomize(
        keras.Model(x, keras.layers.Dense(3)(Branching(name="branching")(x))), 2
    )
    teacher = net(seed=1)
    _, found = run(teacher, student, hint(student="branching"), jit_compile=jit)
    x, _ = data()
    weights = student.get_weights()
    mine = np.tanh(np.tanh(x @ weights[0] + weights[1]))
    expected = np.square(dense(x, teacher.get_layer("hidden")) - mine).mean()
    np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-5)


@pytest.mark.slow
def test_wrappers_of_tfmot_are_looked_through():
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        net(seed=2), tfmot.sparsity.keras.ConstantSparsity(0.0, 0)
    )
    teacher = net(seed=1)
    distiller = tfkd.Distiller(teacher, pruned, hint())
    distiller.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    x, y = data()
    step = tfmot.sparsity.keras.UpdatePruningStep()
    step.set_model(pruned)
    found = logs(distiller.fit(x, y, batch_size=8, callbacks=[step], verbose=0))
    expected = run(teacher, net(seed=2), hint())[1]
    np.testing.assert_allclose(
        found["feature_distillation"], expected["feature_distillation"], rtol=1e-5
    )


@pytest.mark.parametrize("eager", [False, True])
def test_the_users_models_are_left_as_they_were(eager):
    teacher, student = net(seed=1), net(seed=2)
    models = (teacher, student)
    teacher.trainable = False  # the one thing that a Distiller sets
    configs = [m.get_config() for m in models]
    nodes = [[len(layer.inbound_nodes) for layer in m.layers] for m in models]
    run(teacher, student, [hint(), LogitsDistillation()], run_eagerly=eager)
    for model, config, count in zip(models, configs, nodes, strict=True):
        assert model.get_config() == config
        assert [len(layer.inbound_nodes) for layer in model.layers] == count
        for layer in model.layers:
            assert "call" not in vars(layer)
            assert layer.output is not None
        inner = keras.Model(model.input, model.get_layer("hidden").output)
        assert inner(data()[0]).shape == (8, 4)
        assert len(keras.models.clone_model(model).get_weights()) == 4
    assert "call" not in vars(student.get_layer("hidden"))


def test_taps_are_removed_when_a_step_fails():
    class Failing(tfkd.losses.DistillationLoss):
        teacher_layer_name = student_layer_name = "hidden"

        def compute_loss(self, teacher_outputs, student_outputs):
            raise RuntimeError("no")

    teacher, student = net(seed=1), net(seed=2)
    with pytest.raises(RuntimeError, match="no"):
        run(teacher, student, Failing())
    for model in (teacher, student):
        assert not any("call" in vars(layer) for layer in model.layers)


def test_a_projector_maps_widths_and_trains():
    teacher, student = net(width=7, seed=1), net(width=4, seed=2)
    x, y = data(32)
    distiller = tfkd.Distiller(teacher, student, hint(), student_loss_weight=0.1)
    projector = distiller.projectors[0]
    mine = {id(v) for v in projector.trainable_variables}
    assert [tuple(v.shape) for v in projector.trainable_variables] == [(4, 7), (7,)]
    assert mine <= {id(v) for v in distiller.trainable_variables}
    assert not mine & {id(v) for v in student.variables}
    before = [v.numpy() for v in projector.trainable_variables]
    kernel, bias = before
    mapped = dense(x, student.get_layer("hidden")) @ kernel + bias
    expected = np.square(dense(x, teacher.get_layer("hidden")) - mapped).mean()
    distiller.compile(keras.optimizers.Adam(0.02), CROSSENTROPY)
    history = distiller.fit(x, y, batch_size=32, epochs=60, verbose=0).history
    losses = history["feature_distillation"]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4)
    assert losses[-1] < 0.3 * losses[0]
    for old, new in zip(before, projector.trainable_variables, strict=True):
        assert not np.allclose(old, new)


def image_net(channels, stride, seed):
    x = keras.Input((8, 8, 2))
    h = keras.layers.Conv2D(channels, 3, stride, "same", name="hidden")(x)
    out = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(h))
    return toys.randomize(keras.Model(x, out), seed)


def test_maps_of_other_sizes_are_brought_to_the_smaller_one():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    y = np.zeros(4, np.int32)
    for big, small in (
        (image_net(3, 1, 1), image_net(3, 2, 2)),
        (image_net(3, 2, 1), image_net(3, 1, 2)),
    ):
        maps = [keras.Model(m.input, m.get_layer("hidden").output)(x).numpy() for m in (big, small)]
        means = [m if m.shape[1] == 4 else m.reshape(4, 4, 2, 4, 2, 3).mean((2, 4)) for m in maps]
        expected = np.square(means[0] - means[1]).mean()
        distiller, found = run(big, small, hint(), x=x, y=y)
        np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-4)
        assert not distiller.projectors[0].trainable_variables


def test_projector_always_a_layer_or_none():
    teacher, student = net(seed=1), net(seed=2)
    assert not run(teacher, student, hint())[0].projectors[0].trainable_variables
    always = run(teacher, student, hint(projector="always"))[0]
    assert len(always.projectors[0].trainable_variables) == 2
    assert not run(teacher, student, hint(projector=None))[0].projectors

    own = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(7)], name="own")
    wide = net(width=7, seed=1)
    distiller, found = run(wide, student, hint(projector=own))
    x, _ = data()
    mapped = own(dense(x, student.get_layer("hidden")).astype(np.float32)).numpy()
    expected = np.square(dense(x, wide.get_layer("hidden")) - mapped).mean()
    np.testing.assert_allclose(found["feature_distillation"], expected, rtol=1e-5)
    assert {id(v) for v in own.variables} <= {id(v) for v in distiller.trainable_variables}

    with pytest.raises(ValueError, match=r"\(8, 7\).*\(8, 4\).*projector='auto'"):
        run(wide, student, hint(projector=None))


def test_projectors_of_models_whose_shapes_are_not_known_before_the_first_step():
    class Subclassed(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.hidden = keras.layers.Dense(width, name="hidden")
            self.scores = keras.layers.Dense(3)

        def call(self, inputs):
            return self.scores(self.hidden(inputs))

    x, y = data()
    teacher = Subclassed(7)
    teacher(x)
    student = Subclassed(4)
    distiller = tfkd.Distiller(teacher, student, hint())
    distiller.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    distiller.fit(x, y, verbose=0)
    projector = distiller.projectors[0]
    before = [v.numpy() for v in projector.trainable_variables]
    assert [b.shape for b in before] == [(4, 7), (7,)]
    distiller.fit(x, y, verbose=0)
    assert not np.allclose(before[0], projector.trainable_variables[0])


def test_a_layer_that_is_called_twice_or_never_is_a_clear_error():
    x = keras.Input((5,))
    shared = keras.layers.Dense(5, name="shared")
    twice = keras.Model(x, keras.layers.Dense(3)(shared(shared(x))))
    with pytest.raises(ValueError, match="'shared' of the student is called 2 times"):
        run(net(seed=1), twice, hint(student="shared"))

    class Never(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.unused = keras.layers.Dense(3), keras.layers.Dense(4, name="unused")

        def call(self, inputs):
            return self.used(inputs)

    with pytest.raises(ValueError, match="'unused' of the student is called never"):
        run(net(seed=1), Never(), hint(student="unused"))
