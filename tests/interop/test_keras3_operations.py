"""Operations of Keras 3, `x + y` or `keras.ops.mean(x)`, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras3_toys import IMAGE, L, check, keras, ops, randomized, through

import tfkd

OPERATIONS = {
    "add_number": lambda x: x + 1.5,
    "number_minus": lambda x: 2.0 - x,
    "add_array": lambda x: x + np.arange(4, dtype="float32"),
    "multiply_tensor": lambda x: x * ops.arange(1, 5, dtype="float32"),
    "divide": lambda x: x / (ops.abs(x) + 1.0),
    "power": lambda x: ops.square(x) ** 0.5,
    "broadcast": lambda x: x * ops.mean(x, axis=(1, 2), keepdims=True),
    "twice_the_same": lambda x: x + x,
    "maximum": lambda x: ops.maximum(x, ops.minimum(-x, 0.5)),
    "compare": lambda x: ops.where(x > 0.2, x, ops.zeros_like(x)),
    "where_number": lambda x: ops.where(ops.logical_and(x > 0.0, x < 1.0), x, -1.0),
    "clip": lambda x: ops.clip(x, -0.5, 0.7),
    "unary": lambda x: ops.exp(ops.sin(x)) - ops.log1p(ops.abs(x)) + ops.rsqrt(x * x + 1),
    "relu6": lambda x: ops.relu6(x + 3.0) * (1 / 6),
    "sigmoid": lambda x: ops.sigmoid(x) * ops.tanh(x) + ops.silu(x),
    "gelu": lambda x: ops.gelu(x) + ops.gelu(x, approximate=False),
    "leaky": lambda x: ops.leaky_relu(x, 0.3) + ops.elu(x, alpha=0.5) + ops.hard_sigmoid(x),
    "softmax": lambda x: ops.softmax(x, axis=2) + ops.log_softmax(x, axis=-1),
    "mean_all_but_batch": lambda x: ops.mean(x, axis=(1, 2, 3)),
    "statistics": lambda x: ops.var(x, axis=1) + ops.std(x, axis=2) + ops.max(x, axis=-2),
    "sum_and_logsumexp": lambda x: ops.sum(x, -1) + ops.logsumexp(x, axis=3) + ops.min(x, -1),
    "argmax": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 4),
    "reshape": lambda x: ops.reshape(x, (-1, 12, 12)),
    "reshape_batch": lambda x: ops.reshape(x, (-1, 4)),
    "reshape_unknown": lambda x: ops.reshape(x, (-1, 4, 36)),
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "transpose_batch": lambda x: ops.transpose(x, (1, 0, 2, 3)),
    "swap_and_move": lambda x: ops.moveaxis(ops.swapaxes(x, 1, 3), 1, -1),
    "move_two": lambda x: ops.moveaxis(x, (1, 2), (-1, 1)),
    "expand_squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 2), axis=2),
    "concatenate": lambda x: ops.concatenate([x, -x, x[..., :1]], axis=-1),
    "concatenate_batch": lambda x: ops.concatenate([x, x], axis=0),
    "stack": lambda x: ops.stack([x, 2 * x], axis=1),
    "split": lambda x: ops.split(x, 2, axis=-1),
    "split_at": lambda x: ops.split(x, [1, 4], axis=1),
    "unstack": lambda x: ops.unstack(x, axis=1),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=2.0),
    "pad_reflect": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="reflect"),
    "take": lambda x: ops.take(x, [0, -1, 2], axis=2),
    "slices": lambda x: x[:, 1:-1, ::2, 1],
    "new_axis": lambda x: x[:, None, ..., 0],
    "flip": lambda x: ops.flip(x, axis=1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 3)),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "cast": lambda x: ops.cast(ops.cast(x * 3, "int32") * 2 + 1, "float32"),
    "int_and_float": lambda x: ops.cast(x * 3, "int32") * 0.5 + x,
    "einsum": lambda x: ops.einsum("bhwc,bhwd->bcd", x, x),
    "matmul": lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
    "cumsum": lambda x: ops.cumsum(x, axis=1),
    "top_k": lambda x: ops.top_k(x, 2),
    "resize": lambda x: ops.image.resize(x, (4, 9), interpolation="nearest"),
    "depthless": lambda x: ops.stop_gradient(ops.copy(x)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name, tmp_path):
    made = check(through(IMAGE, OPERATIONS[name]))
    made.save(tmp_path / "model.keras")
    again = tf_keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("float32")
    for one, other in zip(tf.nest.flatten(made(x)), tf.nest.flatten(again(x)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_operations_become_layers_that_pruning_and_quantization_know():
    x = keras.Input(IMAGE)
    y = L.Conv2D(4, 1, name="conv")(x)
    y = ops.relu(y) + x
    y = ops.mean(y * ops.sigmoid(y), axis=(1, 2))
    made = check(randomized(keras.Model(x, ops.concatenate([y, ops.relu6(y)], axis=-1))))
    kinds = [type(layer).__name__ for layer in made.layers]
    assert "TFOpLambda" not in kinds
    assert {"ReLU", "Add", "Multiply", "GlobalAveragePooling2D", "Concatenate"} <= set(kinds)
    graph = tfkd.pruning.analyse(made)
    assert not [item for item in graph.frozen if "no rule" in item.reason]
