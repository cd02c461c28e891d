"""Attention in parts: the same function in float, dense layers in integers, files as they were."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, randomize, weights_of

import tfkd
from tfkd import pruning, quantization
from tfkd.quantization.flattening.attention import HeadAttention
from tfkd.quantization.flattening.flatten import flatten

L = keras.layers
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 12, (24, 6)).astype(np.int32)
TOKENS[1, 1:] = TOKENS[2, 4:] = TOKENS[5, 3:] = TOKENS[7] = 0
LABELS = RNG.integers(0, 2, 24)


def words(name):
    tokens = keras.Input((6,), dtype="int32", name=name)
    return tokens, L.Embedding(12, 5, mask_zero=True, name=f"{name}_words")(tokens)


def masked_self():
    tokens, x = words("a")
    return keras.Model(tokens, L.MultiHeadAttention(2, 3, dropout=0.4, name="mha")(x, x))


def across():
    a, x = words("a")
    b, y = words("b")
    z = L.MultiHeadAttention(3, 2, value_dim=4, output_shape=7, name="mha")(x, y)
    return keras.Model([a, b], z)


def causal_without_bias():
    a, x = words("a")
    layer = L.MultiHeadAttention(2, 3, use_bias=False, softmax_robust_masking=True, name="mha")
    z = layer(x, value=L.Dense(4)(x), key=x, use_causal_mask=True)
    return keras.Model(a, z)


def given_mask_and_weights():
    a, x = words("a")
    allowed = keras.Input((6, 6), dtype="bool", name="allowed")
    layer = L.MultiHeadAttention(2, 3, name="mha")
    made = layer(x, x, attention_mask=allowed, return_attention_scores=True)
    return keras.Model([a, allowed], made)


def called_twice():
    a, x = words("a")
    layer = L.MultiHeadAttention(2, 3, name="mha")
    return keras.Model(a, layer(layer(x, x), x))


def of_any_length():
    x = keras.Input((None, 5), name="a")
    inner = keras.Sequential([keras.Input((None, 5)), L.LayerNormalization()], name="inner")
    return keras.Model(x, L.MultiHeadAttention(1, 3, name="mha")(inner(x), x))


def data_of(model):
    made = {"allowed": RNG.random((24, 6, 6)) < 0.7}
    if model.input_names == ["a"] and model.inputs[0].dtype.is_floating:
        return RNG.normal(size=(24, 6, 5)).astype(np.float32)
    return [made.get(name, TOKENS if name == "a" else TOKENS[::-1]) for name in model.input_names]


@pytest.mark.parametrize(
    "make",
    [masked_self, across, causal_without_bias, given_mask_and_weights, called_twice, of_any_length],
)
def test_the_parts_compute_what_the_layer_does(make):
    model = randomize(make(), 1)
    before = weights_of(model)
    flat = flatten(model)
    kinds = {layer.name: type(layer) for layer in flat.model.layers}
    assert not any(isinstance(layer, L.MultiHeadAttention) for layer in flat.model.layers)
    assert kinds["mha_heads"] is HeadAttention
    assert all(kinds[name] is L.Dense for name in ("mha", "mha_query", "mha_key", "mha_value"))
    assert all(flat.origins[name] == "mha" for name in kinds if name.startswith("mha"))
    data = data_of(model)
    for want, got in zip(
        tf.nest.flatten(model(data)), tf.nest.flatten(flat.model(data)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
        assert np.ptp(want) > 0.1
    # It is made again from its config, as in a file.
    again = keras.models.model_from_json(flat.model.to_json())
    again.set_weights(flat.model.get_weights())
    for one, other in zip(
        tf.nest.flatten(again(data)), tf.nest.flatten(flat.model(data)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_regularizers_flags_and_dropout_go_along():
    tokens, x = words("a")
    layer = L.MultiHeadAttention(2, 3, dropout=0.3, kernel_regularizer="l2", name="mha")
    model = randomize(keras.Model(tokens, layer(x, x)), 1)
    layer._key_dense.trainable = False
    flat = flatten(model).model
    assert float(sum(flat.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-5)
    assert [flat.get_layer(f"mha_{part}").trainable for part in ("query", "key")] == [True, False]
    assert flat.get_layer("mha_heads").dropout == 0.3
    assert np.abs(flat(TOKENS, training=True) - flat(TOKENS)).max() > 1e-3
    layer.trainable = False
    assert len(flatten(model).model.trainable_weights) == 1


class Subclass(L.MultiHeadAttention):
    """May compute anything."""


@pytest.mark.parametrize(
    "layer",
    [
        Subclass(2, 3, name="mha"),
        L.MultiHeadAttention(2, 3, output_shape=(2, 2), name="mha"),
        L.MultiHeadAttention(2, 3, kernel_constraint="unit_norm", name="mha"),
        L.MultiHeadAttention(2, 3, activity_regularizer="l2", name="mha"),
    ],
    ids=["subclass", "two axes", "constraint", "activity"],
)
def test_other_attention_stays_whole(layer):
    x = keras.Input((6, 5))
    model = keras.Model(x, L.Flatten()(layer(x, x)))
    assert type(flatten(model).model.get_layer("mha")) is type(layer)


def test_attention_over_images_stays_whole():
    x = keras.Input((3, 3, 5))
    y = L.MultiHeadAttention(2, 3, attention_axes=(1, 2), name="mha")(x, x)
    assert "mha_query" not in [layer.name for layer in flatten(keras.Model(x, y)).model.layers]


def transformer(layers=2, seed=3):
    model = tfkd.models.text_transformer(12, 2, 6, layers, width=8, heads=2, dropout=0.0)
    return randomize(model, seed, 0.4)


def quantized(model, target="tflite", **options):
    q = quantization.quantize(model, target, **options)
    quantization.calibrate(q, TOKENS)
    return q


@pytest.mark.slow
def test_the_projections_of_a_cut_transformer_are_integers(tmp_path):
    small = pruning.cut_layers(transformer(3), drop="layer2_*")
    q = quantized(small, "both")
    names = [
        f"layer{n}_attention{part}" for n in (1, 3) for part in ("", "_query", "_key", "_value")
    ]
    assert {q.report.of(name).action for name in names} == {"int8"}
    assert q.report.of("layer1_attention_heads").action == "output only"
    assert "in float" in q.report.of("layer1_attention_heads").why
    report = tfkd.export.to_tflite(q, tmp_path / "q.tflite", verify=TOKENS)
    floats = [row["operation"] for row in report.numbers["in_float"]]
    assert "FULLY_CONNECTED" not in floats and "SOFTMAX" in floats
    details = tfkd.formats.litert.open_interpreter(report.path, delegate=False)._get_ops_details()
    # Two layers of four projections and two dense layers, and the logits.
    assert sum(row["op_name"] == "FULLY_CONNECTED" for row in details) == 2 * (4 + 2) + 1
    path = quantization.save(q, tmp_path / "q.npz")
    np.testing.assert_array_equal(quantization.load(path)(TOKENS), q(TOKENS))
    error = np.abs(q(TOKENS) - small(TOKENS)).max()
    assert 0 < error < 0.15 * np.ptp(small(TOKENS))


def test_a_named_attention_layer_is_skipped_as_a_whole():
    q = quantized(transformer(1), skip=["layer1_attention"])
    rows = [row for row in q.report if row.layer.startswith("layer1_attention")]
    skipped = {row.layer for row in rows if row.why == "left out by `skip`"}
    parts = ("", "_query", "_key", "_value", "_heads")
    assert skipped == {f"layer1_attention{part}" for part in parts}


def test_the_projections_train_as_they_round():
    teacher = transformer(1)
    q = quantized(transformer(1))
    before = {w.name: w.numpy() for w in q.trainable_weights}
    kernel = q.get_layer("layer1_attention_query").layer.kernel
    _, quantizer, variables = q.get_layer("layer1_attention_query")._weight_vars[0]
    step = np.abs(kernel.numpy()).max() / 127
    codes = quantizer(kernel, False, weights=variables).numpy() / step
    np.testing.assert_allclose(codes, np.rint(kernel.numpy() / step), atol=1e-3)
    distiller = tfkd.Distiller(
        teacher,
        q,
        [
            tfkd.losses.LogitsDistillation(2.0),
            tfkd.losses.FeatureDistillation("mse", "layer1_attention", "layer1_attention"),
        ],
    )
    distiller.compile(keras.optimizers.Adam(1e-2), CROSSENTROPY, run_eagerly=True)
    history = distiller.fit(TOKENS, LABELS, batch_size=24, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    changed = {w.name for w in q.trainable_weights if np.any(w.numpy() != before[w.name])}
    parts = ("", "_query", "_value")
    assert {f"layer1_attention{part}/kernel:0" for part in parts} <= changed


def test_the_report_says_once_that_a_transformer_computes_in_float_between_integers():
    tokens, x = words("a")
    x = L.LayerNormalization(name="norm")(L.Add()([x, L.MultiHeadAttention(2, 3)(x, x)]))
    model = keras.Model(tokens, L.Dense(2)(L.Flatten()(x)))
    for target in ("tflite", "both"):
        report = quantization.quantize(model, target).report
        assert report.advice.startswith(
            "Advice: TFLite computes 2 layers (HeadAttention, LayerNormalization) in float between"
        )
        assert 'to_tflite(model, path, mode="dynamic")' in report.advice
        assert str(report).count("Advice") == report.markdown().count("Advice") == 1
    assert quantization.quantize(model, "tensorrt").report.advice == ""


def test_attention_written_with_functions_is_told_too():
    """Its two products; the softmax has a form in integers."""
    x = keras.Input((4, 6))
    q, k, v = (L.Dense(6)(x) for _ in range(3))
    z = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v)
    report = quantization.quantize(keras.Model(x, L.Dense(2)(z))).report
    assert report.advice.startswith("Advice: TFLite computes 2 layers (TFOpLambda) in float")


def test_a_convolutional_network_gets_no_such_advice():
    report = quantization.quantize(tfkd.models.resnet(8, widths=(4,))).report
    assert report.advice == "" and "Advice" not in str(report)
    assert str(report).endswith(" ranges")
