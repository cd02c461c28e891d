"""Ways to put a model together, to name, store and type it."""

from __future__ import annotations

import json
import os
import tempfile

import tensorflow as tf
import tf_keras as keras

from sweep_models.base import model
from sweep_models.images import unit
from sweep_models.sequences import stack

L = keras.layers


@model("forms")
def shared_layer():
    x, shared = keras.Input((6,)), L.Dense(6, "relu")
    return keras.Model(x, L.Dense(3)(shared(shared(x))))


@model("forms", heads="sigmoid")
def siamese():
    tower = stack((8, 8, 1), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(5))
    a, b = keras.Input((8, 8, 1), name="a"), keras.Input((8, 8, 1), name="b")
    return keras.Model([a, b], L.Dense(1, "sigmoid")(tf.abs(tower(a) - tower(b))))


@model("forms", heads="values")
def triplet():
    tower = stack((6,), L.Dense(8, "relu"), L.Dense(4))
    inputs = {name: keras.Input((6,), name=name) for name in ("anchor", "near", "far")}
    return keras.Model(inputs, {name: tower(x) for name, x in inputs.items()})


@keras.utils.register_keras_serializable("sweep")
class Tied(keras.layers.Layer):
    """Projects with the transposed kernel of an embedding."""

    def __init__(self, embedding=None, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return tf.matmul(x, self.embedding.embeddings, transpose_b=True)


@model("forms")
def tied_weights():
    embedding = L.Embedding(10, 6)
    x = keras.Input((5,), dtype="int32")
    y = L.Dense(6, "relu")(L.GlobalAveragePooling1D()(embedding(x)))
    return keras.Model(x, Tied(embedding)(y))


@model("forms")
def tied_by_matmul():
    embedding = L.Embedding(10, 6)
    x = keras.Input((5,), dtype="int32")
    y = L.Dense(6, "relu")(L.GlobalAveragePooling1D()(embedding(x)))
    return keras.Model(x, tf.matmul(y, embedding.embeddings, transpose_b=True))


@model("forms")
def two_inputs():
    image, row = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="row")
    y = L.Flatten()(L.Conv2D(4, 3, activation="relu")(image))
    return keras.Model([image, row], L.Dense(3)(L.Concatenate()([y, row])))


@model("forms")
def dict_inputs():
    x = {"b": keras.Input((3,), name="b"), "a": keras.Input((2,), name="a")}
    return keras.Model(x, L.Dense(3)(L.Dense(6, "relu")(L.Concatenate()([x["b"], x["a"]]))))


@model("forms")
def inputs_out_of_order():
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    return keras.Model([b, a], L.Dense(3)(L.Dense(6, "relu")(b - 0.5 * a)))


@model("forms", heads=["logits", "values"])
def dict_outputs():
    x = keras.Input((4,))
    y = L.Dense(6, "relu")(x)
    return keras.Model(x, {"class": L.Dense(3)(y), "size": L.Dense(2)(y)})


@model("forms", heads="values")
def unused_input():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], L.Dense(2)(L.Dense(5, "relu")(a)))


@model("forms", heads="values")
def same_output_twice():
    x = keras.Input((4,))
    y = L.Dense(3)(L.Dense(5, "relu")(x))
    return keras.Model(x, [y, y])


@model("forms", heads="values")
def hidden_layer_as_output():
    x = keras.Input((4,))
    y = L.Dense(5, "relu")(x)
    return keras.Model(x, [y, L.Dense(3)(y)])


@model("forms", heads="values")
def input_as_output():
    x = keras.Input((4,))
    return keras.Model(x, [x, L.Dense(3)(x)])


@model("forms", heads="values")
def without_parameters():
    return stack((8, 8, 3), L.AveragePooling2D(), L.Rescaling(2.0), L.Flatten())


@model("forms", heads="values")
def auxiliary_head():
    x = keras.Input((8, 8, 3))
    y = unit(x, 4)
    aux = L.Dense(3, name="aux")(L.GlobalAveragePooling2D()(y))
    return keras.Model(x, [L.Dense(3, name="main")(L.Flatten()(unit(y, 5))), aux])


@model("forms")
def nested_three_deep():
    def inside(size, depth):
        x = keras.Input((size,))
        y = L.Dense(6, "relu")(x)
        y = inside(6, depth - 1)(y) if depth else L.Dense(5)(y)
        return keras.Model(x, y, name=f"level{depth}")

    x = keras.Input((4,))
    return keras.Model(x, L.Dense(3)(inside(4, 2)(x)))


@model("forms")
def sequential_in_sequential():
    body = keras.Sequential([L.Conv2D(4, 3, activation="relu"), L.BatchNormalization()], "body")
    return stack((8, 8, 3), body, keras.Sequential([L.Flatten(), L.Dense(3)], "head"))


@model("forms")
def backbone_and_head():
    x = keras.Input((12, 12, 3))
    backbone = keras.Model(x, unit(unit(x, 4), 6, strides=2), name="backbone")
    y = keras.Input((12, 12, 3))
    return keras.Model(y, L.Dense(3)(L.GlobalAveragePooling2D()(backbone(y, training=False))))


@model("forms")
def built_without_input():
    layers = [L.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 3)), L.Flatten(), L.Dense(3)]
    return keras.Sequential(layers)


@model("forms")
def fixed_batch():
    x = keras.Input(batch_shape=(4, 6))
    return keras.Model(x, L.Dense(3)(L.Dense(6, "relu")(x)))


@model("forms")
def fixed_batch_of_one():
    x = keras.Input(batch_shape=(1, 8, 8, 3))
    return keras.Model(x, L.Dense(3)(L.Flatten()(L.Conv2D(4, 3)(x))))


@model("forms")
def lambda_layer():
    return stack((4,), L.Dense(6), L.Lambda(lambda x: tf.nn.relu(x) * 2.0), L.Dense(3))


@keras.utils.register_keras_serializable("sweep")
class Residual(keras.layers.Layer):
    """A layer of a user with layers in it."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = L.Dense(units, "relu")

    def build(self, shape):
        self.dense.build(shape)
        super().build(shape)

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@model("forms", custom={"Residual": Residual})
def custom_layer():
    return stack((6,), Residual(), L.Dense(5, "relu"), L.Dense(3))


class Plain(keras.layers.Layer):
    """A layer of a user without get_config."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


@model("forms")
def layer_without_config():
    return stack((6,), L.Dense(6, "relu"), Plain(2.0), L.Dense(3))


@keras.utils.register_keras_serializable("sweep")
class WithStep(keras.Model):
    """A functional model with a training step of its own."""

    def train_step(self, data):
        return super().train_step(data)


@model("forms")
def functional_subclass():
    x = keras.Input((5,))
    return WithStep(x, L.Dense(3)(L.Dense(6, "relu")(x)))


@keras.utils.register_keras_serializable("sweep")
class Scaled(keras.Model):
    """A functional model with a `call` of its own."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


@model("forms")
def functional_with_call():
    x = keras.Input((5,))
    return Scaled(x, L.Dense(3)(L.Dense(6, "relu")(x)))


@keras.utils.register_keras_serializable("sweep")
class Net(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out = L.Dense(6, "relu"), L.Dense(3)

    def call(self, x, training=None):
        return self.out(self.hidden(x))

    def get_config(self):
        return {"name": self.name}


@model("forms", shape=(5,))
def subclassed():
    net = Net()
    net(tf.zeros((1, 5)))
    return net


@model("forms")
def subclassed_inside():
    return stack((5,), Net(), L.ReLU(), L.Dense(3))


@model("forms")
def names_with_slashes():
    layers = [L.Dense(6, "relu", name="block1/dense"), L.Dense(3, name="head/logits")]
    return keras.Sequential([keras.Input((4,), name="in/x"), *layers], "my/model")


@model("forms")
def names_with_signs():
    x = keras.Input((4,), name="the input")
    y = L.Dense(6, "relu", name="a.b-c>d")(x)
    return keras.Model(x, L.Dense(3, name="the-output.0")(y), name="a-model")


@model("forms")
def names_in_unicode():
    x = {"größe": keras.Input((4,), name="größe"), "色": keras.Input((2,), name="色")}
    y = L.Dense(6, "relu")(L.Concatenate()(list(x.values())))
    return keras.Model(x, {"結果": L.Dense(3)(y), "ß": L.Dense(2)(y)})


@model("forms", heads="values")
def names_like_patterns():
    x = keras.Input((4,), name="x:0")
    y = L.Dense(6, "relu")(x)
    return keras.Model(x, {"out:0": L.Dense(3)(y), "out?": L.Dense(2)(y), "[a]*": y})


@model("forms")
def operations_of_tensors():
    x = keras.Input((6,))
    y = tf.nn.relu(L.Dense(6)(x)[:, 1:] - 0.5)
    return keras.Model(x, L.Dense(3)(tf.where(y > 0.1, y, -y)))


@model("forms")
def conv_then_reshape_by_shape():
    x = keras.Input((None, 4))
    y = L.Conv1D(6, 3, padding="same", activation="relu")(x)
    return keras.Model(x, L.Dense(3)(tf.reshape(y, (tf.shape(y)[0], -1, 3))))


def with_policy(policy, *layers, shape=(8, 8, 3)):
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        return stack(shape, *(layer() for layer in layers))
    finally:
        keras.mixed_precision.set_global_policy(before)


def small_cnn(policy):
    conv, pool = lambda: L.Conv2D(4, 3), L.GlobalAveragePooling2D
    return with_policy(policy, conv, L.BatchNormalization, L.ReLU, pool, lambda: L.Dense(3))


@model("types", low=True)
def mixed_float16():
    return small_cnn("mixed_float16")


@model("types", low=True)
def mixed_bfloat16():
    return small_cnn("mixed_bfloat16")


@model("types", low=True)
def mixed_with_float_head():
    body = small_cnn("mixed_float16")
    return keras.Model(body.input, L.Activation("linear", dtype="float32")(body.output))


@model("types", low=True)
def float16_weights():
    return with_policy("float16", lambda: L.Dense(6, "relu"), lambda: L.Dense(3), shape=(5,))


@model("types")
def float64():
    return with_policy("float64", lambda: L.Dense(6, "relu"), lambda: L.Dense(3), shape=(5,))


@model("types")
def float64_cnn():
    return small_cnn("float64")


@model("types", high=2)
def boolean_input():
    x, keep = keras.Input((5,), name="x"), keras.Input((5,), dtype="bool", name="keep")
    return keras.Model([x, keep], L.Dense(3)(tf.where(keep, x, 0.0)))


@model("types")
def integer_features():
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, L.Dense(3)(L.Dense(6, "relu")(tf.cast(x, "float32"))))


@model("types", low=True)
def half_precision_input():
    return stack((5,), L.Dense(6, "relu"), L.Dense(3), dtype="float16")


@model("types", heads="values")
def complex_inside():
    x = keras.Input((8,))
    spectrum = L.Lambda(lambda y: tf.abs(tf.signal.rfft(y)), name="spectrum")(x)
    return keras.Model(x, L.Dense(2)(spectrum))


@model("types")
def spectrogram():
    x = keras.Input((64,))
    y = tf.abs(tf.signal.stft(x, 16, 8))[..., None]
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(y))))


def through_h5(net, edit=None):
    """Saved to .h5 as Keras 2 did, its config edited, and loaded again."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.h5")
        net.save(path)
        if edit is not None:
            with h5py.File(path, "r+") as file:
                file.attrs["model_config"] = json.dumps(
                    edit(json.loads(file.attrs["model_config"]))
                )
                file.attrs["keras_version"] = b"2.1.6"
        return keras.models.load_model(path, compile=False)


def as_in_2018(config):
    """Without what later versions of Keras added."""
    if config["class_name"] == "Functional":
        config["class_name"] = "Model"
    for layer in config["config"]["layers"]:
        for key in ("groups", "registered_name", "build_config", "module", "ragged"):
            layer.pop(key, None)
            layer["config"].pop(key, None)
    return config


@model("stored")
def h5_sequential():
    return through_h5(stack((8, 8, 1), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(3)))


@model("stored")
def h5_of_2018():
    x = keras.Input((8, 8, 3))
    y = L.GlobalAveragePooling2D()(L.Concatenate()([unit(x, 4), unit(x, 4, 1)]))
    return through_h5(keras.Model(x, L.Dense(3, "linear")(y)), as_in_2018)


@model("stored", whole=True)
def h5_gru_of_2018():
    layers = [L.Embedding(10, 4), L.GRU(5, reset_after=False), L.Dense(3)]
    return through_h5(stack((6,), *layers), as_in_2018)


@model("stored")
def json_and_weights():
    net = stack((6, 3), L.Bidirectional(L.LSTM(4)), L.Dense(3))
    again = keras.models.model_from_json(net.to_json())
    again.set_weights(net.get_weights())
    return again


def keras_3(build):
    """A Keras 3 model, converted."""
    import keras as keras3

    import tfkd

    keras3.utils.clear_session()  # the same names each time
    return tfkd.from_keras3(build(keras3, keras3.layers))


@model("keras 3")
def keras3_cnn():
    def build(k, layers):
        x = k.Input((8, 8, 3))
        y = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
        return k.Model(x, layers.Dense(3)(layers.Flatten()(k.ops.relu(y))))

    return keras_3(build)


@model("keras 3")
def keras3_gru():
    return keras_3(
        lambda k, layers: k.Sequential([k.Input((6, 3)), layers.GRU(4), layers.Dense(3)])
    )


@model("keras 3")
def keras3_attention():
    def build(k, layers):
        x = k.Input((6, 8))
        y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        return k.Model(x, layers.Dense(3)(k.ops.mean(y, 1)))

    return keras_3(build)


@model("keras 3", heads=["logits", "values"])
def keras3_two_heads():
    def build(k, layers):
        x = k.Input((5,), name="x")
        y = layers.Dense(6, "relu")(x)
        return k.Model(x, {"a": layers.Dense(3, name="a")(y), "b": layers.Dense(2, name="b")(y)})

    return keras_3(build)


@model("keras 3", shape=(4,))
def keras3_as_it_is():
    import keras as keras3

    return keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(6), keras3.layers.Dense(3)])
