"""Bad arguments and data: the type of each error, and what its message says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from toys import CROSSENTROPY, net

import tfkd
from tfkd import losses, schedules
from tfkd.losses import FeatureDistillation, LogitsDistillation

KD = LogitsDistillation
X, Y = toys.data()
NAN, INF = float("nan"), float("inf")


def distiller(teacher=None, student=None, loss=None, weights=None, w=0.5, compiled=CROSSENTROPY):
    made = tfkd.Distiller(
        net(seed=1) if teacher is None else teacher,
        net(seed=2) if student is None else student,
        KD() if loss is None else loss,
        distillation_loss_weights=weights,
        student_loss_weight=w,
    )
    made.compile("sgd", compiled)
    return made


def fit(x=X, y=Y, call="fit", **kwargs):
    return getattr(distiller(**kwargs), call)(x, y, verbose=0)


def hint(teacher="hidden", student="hidden", **kwargs):
    return FeatureDistillation(teacher_layer_name=teacher, student_layer_name=student, **kwargs)


def fit_layers(loss, teacher=None, student=None):
    return fit(teacher=teacher, student=student, loss=loss)


def with_nan(seed):
    model = net(seed=seed)
    kernel = model.get_layer("hidden").kernel
    kernel.assign(kernel * NAN)
    return model


def nested_student():
    x = keras.Input((5,))
    return keras.Model(x, net(name="backbone")(x))


def shared_layers():
    teacher = net(seed=1)
    x = keras.Input((5,))
    return teacher, keras.Model(x, keras.layers.Dense(3)(teacher.get_layer("hidden")(x)))


def images(flat):
    x = keras.Input((4, 4, 2))
    hidden = keras.layers.Conv2D(4, 3, padding="same")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(hidden)
    hidden = keras.layers.Activation("linear", name="map")(hidden)
    return keras.Model(x, keras.layers.Dense(3)(pooled if flat else keras.layers.Flatten()(hidden)))


def two_heads():
    x = keras.Input((5,))
    return keras.Model(x, {"a": keras.layers.Dense(3)(x), "b": keras.layers.Dense(2)(x)})


def keras3_model():
    keras3 = pytest.importorskip("keras", minversion="3.0")
    return keras3.Sequential([keras3.Input((5,)), keras3.layers.Dense(3)])


class NotScalar(losses.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs):
        return tf.square(teacher_outputs - student_outputs)


class Empty(losses.DistillationLoss):
    pass


def called_twice():
    x, layer = keras.Input((5,)), keras.layers.Dense(5, name="twice")
    return keras.Model(x, keras.layers.Dense(3)(layer(layer(x))))


def dataset(*arrays, batch=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


# name: (what is done, type of the error, what its message must match)
V, T = ValueError, TypeError
CASES = {
    # Teacher and student
    "student is None": (
        lambda: tfkd.Distiller(net(), None, KD()),
        V,
        "`student`: expected a tf_keras model.*None",
    ),
    "student is a function": (
        lambda: tfkd.Distiller(net(), len, KD()),
        V,
        "`student`: .*tf_keras model.*received.*len",
    ),
    "student is a Keras 3 model": (
        lambda: tfkd.Distiller(net(), keras3_model(), KD()),
        V,
        "`student`: .*a Keras 3 model: convert it with tfkd.from_keras3",
    ),
    "teacher is a number": (
        lambda: tfkd.Distiller(3, net(), KD()),
        V,
        r"`teacher`: expected a Keras model.*3 \(int\)",
    ),
    "teacher is a path": (
        lambda: tfkd.Distiller("teacher.keras", net(), KD()),
        V,
        "`teacher`: expected a Keras model.*'teacher.keras'.*load_model",
    ),
    "teacher is None": (lambda: tfkd.Distiller(None, net(), KD()), V, "`teacher`: .*None"),
    "no teachers": (lambda: tfkd.Distiller([], net(), KD()), V, r"`teacher`: .*non-empty.*\[\]"),
    "one of the teachers is none": (
        lambda: tfkd.Distiller([net(), None], net(), KD()),
        V,
        "`teacher`: .*received None",
    ),
    "teacher is student": (
        lambda: (lambda m: tfkd.Distiller(m, m, KD()))(net()),
        V,
        "teacher and student share weights.*frozen_copy",
    ),
    "teacher and student share a layer": (
        lambda: tfkd.Distiller(*shared_layers(), KD()),
        V,
        "share weights.*frozen_copy",
    ),
    "other inputs": (
        lambda: tfkd.Distiller(net(inputs=4), net(), KD()),
        V,
        r"same input: .*\(None, 4\).*\(None, 5\)",
    ),
    "another number of inputs": (
        lambda: tfkd.Distiller(
            keras.Model(
                [a := keras.Input((5,)), b := keras.Input((5,))], keras.layers.Dense(3)(a + b)
            ),
            net(),
            KD(),
        ),
        V,
        r"same input: .*\[\(None, 5\), \(None, 5\)\]",
    ),
    "other classes": (
        lambda: tfkd.Distiller(net(classes=4), net(), KD()),
        V,
        "same classes: the teacher has 4, the student 3",
    ),
    "other classes for one of several teachers": (
        lambda: fit(teacher=[net(), net(seed=5, classes=4)]),
        V,
        "same classes: the teacher has 4, the student 3",
    ),
    "several teachers of different outputs": (
        lambda: fit(teacher=[lambda x: x[:, :3], lambda x: x[:, :4]]),
        V,
        "score the same classes: the teacher has 4, the student 3",
    ),
    "one class": (
        lambda: (
            tfkd.Distiller(net(classes=1), net(classes=1), KD()).compile("sgd", "mse")
            or fit(teacher=net(classes=1), student=net(seed=2, classes=1), compiled="mse")
        ),
        V,
        "at least two classes.*binary_crossentropy",
    ),
    "other outputs": (lambda: fit(student=two_heads()), V, "same structure.*'a'"),
    "scores without classes": (
        lambda: fit(teacher=lambda x: x[:, 0]),
        V,
        "`teacher`: expected class scores of shape",
    ),
    "NaN in the teacher": (
        lambda: tfkd.Distiller(with_nan(1), net(), KD()),
        V,
        "`teacher`: expected finite weights.*hidden/kernel",
    ),
    "NaN in the second teacher": (
        lambda: tfkd.Distiller([net(), with_nan(1)], net(), KD()),
        V,
        "`teacher`: .*finite",
    ),
    "NaN in the student": (
        lambda: tfkd.Distiller(net(), with_nan(1), KD()),
        V,
        "`student`: .*finite.*Load or train",
    ),
    # Losses and weights of the Distiller
    "losses is None": (
        lambda: tfkd.Distiller(net(), net(), None),
        V,
        "'distillation_losses' cannot be `None`",
    ),
    "no losses": (
        lambda: tfkd.Distiller(net(), net(), []),
        V,
        r"`distillation_losses`: .*one loss.*\[\]",
    ),
    "a Keras loss": (
        lambda: tfkd.Distiller(net(), net(), keras.losses.KLDivergence()),
        T,
        "`distillation_losses`: .*DistillationLoss.*KLDivergence",
    ),
    "a string as loss": (
        lambda: tfkd.Distiller(net(), net(), ["kl_divergence"]),
        T,
        "`distillation_losses`: .*DistillationLoss.*'kl_divergence'",
    ),
    "a class as loss": (
        lambda: tfkd.Distiller(net(), net(), KD),
        T,
        "`distillation_losses`: .*instances",
    ),
    "too few weights": (
        lambda: tfkd.Distiller(net(), net(), [KD(), KD()], [1.0]),
        V,
        r"distillation_loss_weights \(1\) must match.*\(2\)",
    ),
    "too many weights": (
        lambda: tfkd.Distiller(net(), net(), KD(), [1.0, 2.0]),
        V,
        r"distillation_loss_weights \(2\) must match.*\(1\)",
    ),
    "NaN weight": (
        lambda: tfkd.Distiller(net(), net(), KD(), [NAN]),
        V,
        "`distillation_loss_weights`: .*at least 0.*nan",
    ),
    "negative weight": (
        lambda: tfkd.Distiller(net(), net(), KD(), -1.0),
        V,
        "`distillation_loss_weights`: .*at least 0.*-1.0",
    ),
    "text as weight": (
        lambda: tfkd.Distiller(net(), net(), KD(), ["1"]),
        T,
        "`distillation_loss_weights`: .*finite number.*'1'",
    ),
    "negative end of a weight's schedule": (
        lambda: tfkd.Distiller(net(), net(), KD(), [schedules.Linear(1.0, -1.0, 0, 5)]),
        V,
        "`distillation_loss_weights`: .*Linear.*reaches",
    ),
    "w above 1": (
        lambda: tfkd.Distiller(net(), net(), KD(), student_loss_weight=1.5),
        V,
        "`student_loss_weight`: .*between 0 and 1.*1.5",
    ),
    "w below 0": (
        lambda: tfkd.Distiller(net(), net(), KD(), student_loss_weight=-0.1),
        V,
        "`student_loss_weight`: .*between 0 and 1",
    ),
    "w is NaN": (
        lambda: tfkd.Distiller(net(), net(), KD(), student_loss_weight=NAN),
        V,
        "`student_loss_weight`: .*between 0 and 1.*nan",
    ),
    "w is text": (
        lambda: tfkd.Distiller(net(), net(), KD(), student_loss_weight="half"),
        V,
        "`student_loss_weight`: .*'half'",
    ),
    "w is None": (
        lambda: tfkd.Distiller(net(), net(), KD(), student_loss_weight=None),
        V,
        "`student_loss_weight`: .*None",
    ),
    # Losses
    "T is 0": (lambda: KD(0), V, "`temperature`: expected a finite number above 0, received 0"),
    "T is negative": (lambda: KD(-1.0), V, "`temperature`: .*above 0, received -1.0"),
    "T is NaN": (lambda: KD(NAN), V, "`temperature`: .*above 0, received nan"),
    "T is infinite": (lambda: KD(INF), V, "`temperature`: .*above 0, received inf"),
    "T is text": (lambda: KD("4"), V, "`temperature`: .*received '4'"),
    "T is None": (lambda: KD(None), V, "`temperature`: .*received None"),
    "a schedule of T that ends at 0": (
        lambda: KD(schedules.Linear(4.0, 0.0, 0, 5)),
        V,
        "`temperature`: .*above 0.*reaches",
    ),
    "unknown loss": (lambda: KD(loss="kl_divergnce"), V, "`loss`: .*'kl_divergnce'.*Did you mean"),
    "no loss in a structure": (lambda: KD(loss=[None, None]), V, "`loss`: .*not None"),
    "a class in place of an instance": (
        lambda: KD(loss=keras.losses.KLDivergence),
        V,
        r"`loss`: .*Make an instance: KLDiv",
    ),
    "a loss of another structure": (
        lambda: fit(loss=KD(loss=["kl_divergence", None])),
        V,
        "loss and student.*same structure",
    ),
    "negative alpha": (
        lambda: losses.DecoupledDistillation(alpha=-1.0),
        V,
        "`alpha`: .*at least 0.*-1.0",
    ),
    "text as beta": (lambda: losses.DecoupledDistillation(beta="8"), T, "`beta`: .*received '8'"),
    "a class as output": (lambda: losses.ExpectedErrorLoss(1.5), T, "`output`: .*1.5"),
    "expected error without labels": (
        lambda: fit(loss=losses.ExpectedErrorLoss(), y=None, w=0),
        V,
        "`y`: expected labels, which expected_error_loss needs.*None",
    ),
    "negative weight of the objective": (
        lambda: losses.curriculum_objective(beta=-1.0),
        V,
        "`beta`: .*at least 0.*-1.0",
    ),
    "negative margin": (lambda: losses.BoundedRegression(-0.5), V, "`margin`: .*at least 0.*-0.5"),
    "mask that is no function": (
        lambda: losses.BoundedRegression(mask=3),
        T,
        "`mask`: .*callable.*3",
    ),
    "both relations off": (
        lambda: losses.RelationalDistillation(0.0, 0.0),
        V,
        "`angle_weight`: .*above 0",
    ),
    "a layer's name is no text": (
        lambda: hint(teacher=3),
        T,
        r"`teacher_layer_name`: .*name of a layer.*3 \(int\)",
    ),
    "a layer's name is empty": (lambda: hint(student=""), T, "`student_layer_name`: .*''"),
    "unknown projector": (
        lambda: hint(projector="linear"),
        V,
        "`projector`: .*'auto'.*'linear'.*Keras layer",
    ),
    "name of a loss is no text": (lambda: KD(name=3), T, "`name`: .*string"),
    "a loss without compute_loss": (
        lambda: fit(loss=Empty()),
        NotImplementedError,
        "Empty must implement compute_loss",
    ),
    "a loss that is not a scalar": (
        lambda: fit(loss=NotScalar()),
        V,
        r"NotScalar.*non-scalar.*\(None, 3\).*mean over",
    ),
    # Layers
    "unknown layer of the teacher": (
        lambda: distiller(loss=hint(teacher="hiden")),
        V,
        "`teacher_layer_name`: .*layer of the teacher.*'hiden'.*Did you mean 'hidden'",
    ),
    "unknown layer of the student": (
        lambda: distiller(loss=hint(student="zzz")),
        V,
        "`student_layer_name`: .*layer of the student.*There are: .*'hidden', 'scores'",
    ),
    "unknown nested path": (
        lambda: distiller(student=nested_student(), loss=hint(student="backbone/hiden")),
        V,
        "`student_layer_name`: .*Did you mean 'backbone/hidden'",
    ),
    "a layer of a function": (
        lambda: distiller(teacher=lambda x: x[:, :3], loss=hint()),
        V,
        "`teacher_layer_name`: .*no layers",
    ),
    "features of another rank": (
        lambda: tfkd.Distiller(images(True), images(False), hint("pooled", "map")),
        V,
        r"same rank.*\(None, 4\).*\(None, 4, 4, 4\).*pooling",
    ),
    "features of another width without projector": (
        lambda: fit_layers(hint(projector=None), net(width=7)),
        V,
        r"same shape.*\(None, 7\).*\(None, 4\).*projector='auto'",
    ),
    "a projector of the wrong width": (
        lambda: fit_layers(hint(projector=keras.layers.Dense(6)), net(width=7)),
        V,
        r"same shape.*\(None, 7\).*\(None, 6\)",
    ),
    "a layer called twice": (
        lambda: fit_layers(hint(student="twice"), student=called_twice()),
        V,
        "'twice' of the student is called 2 times.*Name a layer before or after",
    ),
    "attention of a layer without positions": (
        lambda: fit_layers(losses.AttentionTransfer("hidden", "hidden")),
        V,
        "`teacher_layer_name`: .*positions.*before pooling",
    ),
    # compile
    "no loss on labels": (
        lambda: distiller(compiled=None),
        V,
        "'loss' cannot be `None`.*student_loss_weight=0",
    ),
    "unknown loss on labels": (
        lambda: fit(compiled="crossentropy_of_cats"),
        V,
        "crossentropy_of_cats",
    ),
    "metrics are text": (
        lambda: distiller().compile("sgd", CROSSENTROPY, metrics="accuracy"),
        V,
        r"`metrics`: .*list, tuple or dict.*'accuracy'.*\['accuracy'\]",
    ),
    "unknown optimizer": (lambda: distiller().compile("sgdd", CROSSENTROPY), V, "sgdd"),
    "not compiled": (lambda: tfkd.Distiller(net(), net(), KD()).fit(X, Y), RuntimeError, "compile"),
    # Data
    "no examples": (lambda: fit(X[:0], Y[:0]), V, r"`x`: expected at least one example.*\(0, 5\)"),
    "no examples to evaluate": (
        lambda: fit(X[:0], Y[:0], call="evaluate"),
        V,
        "`x`: expected at least one example",
    ),
    "an empty list": (lambda: fit([], []), V, "`x`: expected at least one example"),
    "no data": (lambda: fit(None, None), V, "`x`: .*received None"),
    "an empty Dataset": (lambda: fit(dataset(X[:0], Y[:0]), None), V, "`x`: .*empty Dataset"),
    "an empty Dataset of a size that is not known": (
        lambda: fit(dataset(X, Y).filter(lambda x, y: False), None),
        V,
        "[Ee]mpty|no data|batch",
    ),
    "a label too large": (
        lambda: fit(y=Y + 1),
        V,
        "`y`: .*from 0 to 2.*3 classes.*from 1 to 3.*Number",
    ),
    "a negative label": (lambda: fit(y=Y - 1), V, "`y`: .*from 0 to 2.*from -1 to 1"),
    "a label too large to evaluate": (
        lambda: fit(y=Y + 1, call="evaluate"),
        V,
        "`y`: .*from 0 to 2",
    ),
    "labels that are NaN": (
        lambda: fit(y=np.full(8, NAN, np.float32)),
        V,
        "`y`: .*from 0 to 2.*nan",
    ),
    "a label too large in a Dataset": (
        lambda: fit(dataset(X, Y + 1), None),
        tf.errors.InvalidArgumentError,
        "(?i)label.*outside the valid range|from 0 to 2",
    ),
    "a label too large in a Dataset, expected error": (
        lambda: fit(dataset(X, Y + 1), None, loss=losses.ExpectedErrorLoss(), w=0),
        tf.errors.InvalidArgumentError,
        "(?i)label",
    ),
    "a label too large in a Dataset, decoupled": (
        lambda: fit(dataset(X, Y + 1), None, loss=losses.DecoupledDistillation(), w=0),
        tf.errors.InvalidArgumentError,
        "(?i)label",
    ),
    "no labels": (lambda: fit(y=None), V, "`y`: expected targets.*0.5.*received None.*weight=0"),
    "no labels in a Dataset": (
        lambda: fit(tf.data.Dataset.from_tensor_slices(X).batch(8), None),
        V,
        "`y`: .*targets",
    ),
    "no labels for a loss that needs them": (
        lambda: fit(y=None, loss=losses.DecoupledDistillation(), w=0),
        V,
        "`y`: expected labels.*decoupled_distillation needs.*None",
    ),
    "no targets for a bounded regression": (
        lambda: fit(y=None, loss=losses.BoundedRegression(), w=0),
        V,
        "`y`: expected targets",
    ),
    "labels of the wrong shape for a loss that needs them": (
        lambda: fit(y=np.zeros((8, 2)), loss=losses.DecoupledDistillation(), w=0),
        V,
        r"`y`: expected labels of shape.*\(None, 2\)",
    ),
    "more examples than labels": (lambda: fit(y=Y[:5]), V, "x sizes: 8.*y sizes: 5"),
    "examples of the wrong width": (lambda: fit(X[:, :4]), V, r"expected.*5.*\(.*4\)"),
    "weights that fit no example": (
        lambda: distiller().fit(X, Y, sample_weight=np.ones((8, 3, 2)), verbose=0),
        V,
        "`sample_weight`|rank|shape",
    ),
    # frozen_copy
    "a copy of no model": (
        lambda: tfkd.frozen_copy("m.keras"),
        T,
        "`model`: .*tf_keras model.*'m.keras'",
    ),
    "a copy of a Keras 3 model": (
        lambda: tfkd.frozen_copy(keras3_model()),
        T,
        "`model`: .*tf_keras model",
    ),
    "a copy of an unbuilt model": (
        lambda: tfkd.frozen_copy(keras.Sequential([keras.layers.Dense(3)])),
        V,
        "`model`: .*unbuilt.*Call it",
    ),
    "a copy in an unknown type": (
        lambda: tfkd.frozen_copy(net(), dtype="int8"),
        V,
        "`dtype`: .*'float16'.*'int8'",
    ),
}


def test_there_are_enough_cases():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_a_clear_error(name):
    act, kind, pattern = CASES[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is kind or kind is tf.errors.InvalidArgumentError
    assert re.search(pattern, message, re.DOTALL), message
