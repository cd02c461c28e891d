"""Masks in int8 files: as good as −10⁹, and the scores still there."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, randomize

import tfkd
from tfkd.export import attention_masks, to_tflite
from tfkd.export.named_function import NamedFunction
from tfkd.networks.layer_parts import parts

L = keras.layers
RNG = np.random.default_rng(0)


def texts(count, length=8, seed=0):
    """Token ids, padded at the right, and whether there are more 7s than 9s."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 12, (count, length)).astype(np.int32)
    for row, used in enumerate(rng.integers(2, length + 1, count)):
        x[row, used:] = 0
    return x, ((x == 7).sum(1) > (x == 9).sum(1)).astype(np.int32)


def trained(**options):
    keras.utils.set_random_seed(0)
    options = {"max_length": 8, "layers": 1, "width": 16, "heads": 2, "dropout": 0.0, **options}
    model = tfkd.models.text_transformer(12, 2, **options)
    model.compile(keras.optimizers.Adam(5e-3), CROSSENTROPY, ["accuracy"])
    x, y = texts(480)
    model.fit(x, y, batch_size=60, epochs=10, verbose=0)
    return model


def test_an_int8_transformer_is_what_its_model_is(tmp_path):
    model = trained()
    x, y = texts(200, seed=1)
    x[0], x[1, 1:] = 0, 0  # texts without a token, and with one
    predicted = model.predict(x, verbose=0)
    assert (predicted.argmax(-1) == y).mean() > 0.95
    report = to_tflite(model, tmp_path / "m.tflite", "int8", data=texts(150)[0], verify=x)
    # With masks of −10⁹ the largest error is above 0.5.
    assert report.numbers["max_error"] < 0.15
    assert report.numbers["mean_error"] < 0.02
    assert report.numbers["decided_agreement"] > 0.97
    assert {row["operation"] for row in report.numbers["in_float"]} <= {"CAST"}
    assert attention_masks.problems(report.path) == []
    np.testing.assert_array_equal(model.predict(x, verbose=0), predicted)


def attention_weights(layer):
    """A model that returns attention weights, and the output at each place."""
    tokens = keras.Input((8,), dtype="int32")
    x = L.Embedding(12, 6, mask_zero=True)(tokens)
    options = {"use_causal_mask": True, "return_attention_scores": True}
    y, weights = (
        layer([x, x], **options) if isinstance(layer, L.Attention) else layer(x, x, **options)
    )
    return randomize(keras.Model(tokens, [weights, L.Dense(2)(y)]), 1, scale=0.7)


@pytest.mark.parametrize(
    "layer",
    [
        L.MultiHeadAttention(2, 3),
        L.MultiHeadAttention(2, 3, softmax_robust_masking=True),
        L.Attention(),
    ],
    ids=["multi-head", "robust", "dot"],
)
def test_moderate_masks_change_nothing_in_float(layer):
    model = attention_weights(layer)
    x, _ = texts(40)
    x[3] = 0
    graph = NamedFunction(model)
    changed = attention_masks.moderated(graph, {graph.inputs[0].name: x})
    assert isinstance(changed, attention_masks.Moderated)
    assert all(20 <= offset < 300 for offset in changed._offsets.values())
    feeds = {graph.inputs[0].name: x}
    for (_, want), (_, got) in zip(
        graph.predict(feeds).items(), changed.predict(feeds).items(), strict=True
    ):
        assert np.abs(got - want).max() <= 1e-6 * max(np.ptp(want), 1.0)
    weights = changed.predict(feeds)[graph.outputs[0]]
    allowed = np.tril(np.ones((8, 8), bool)) & (x != 0)[:, None, :]
    if not isinstance(layer, L.Attention):
        allowed &= (x != 0)[:, :, None]
    seen = allowed.any(-1, keepdims=True)
    weights = weights.reshape(40, -1, 8, 8)
    assert np.where((seen & ~allowed)[:, None], weights, 0.0).max() < 1e-7
    masking = [part for part, _ in attention_masks._masking(parts(model))]
    assert masking and not any({"call", "_apply_scores"} & set(vars(part)) for part in masking)


def test_a_softmax_layer_with_a_mask_of_its_own():
    scores, mask = keras.Input((5,), name="scores"), keras.Input((5,), dtype="bool", name="mask")
    model = keras.Model([scores, mask], L.Softmax(name="softmax")(scores, mask))
    graph = NamedFunction(model)
    z = RNG.normal(size=(9, 5)).astype(np.float32) * 10
    shown = RNG.random((9, 5)) < 0.6
    shown[0] = False
    changed = attention_masks.moderated(graph, {"scores": z, "mask": shown})
    excess = max(
        (row[~keep].max() - row[keep].max())
        for row, keep in zip(z, shown, strict=True)
        if keep.any() and not keep.all()
    )
    assert list(changed._offsets.values()) == [pytest.approx(20 + max(excess, 0), rel=1e-6)]
    power = np.where(shown, np.exp(z - z.max(1, keepdims=True)), 0.0)
    power[0] = 1.0
    got = changed.predict({"scores": z, "mask": shown})["softmax"]
    np.testing.assert_allclose(got, power / power.sum(1, keepdims=True), atol=1e-6)


def test_models_without_masks_are_left_alone():
    plain = keras.Sequential([keras.Input((4,)), L.Dense(3), L.Softmax()])
    for model in (plain, tfkd.models.resnet(8, 3, (8, 8, 3), (4, 6))):
        graph = NamedFunction(model)
        shape = (3, *model.input_shape[1:])
        examples = {graph.inputs[0].name: np.ones(shape, np.float32)}
        assert attention_masks.moderated(graph, examples) is graph


def test_a_mask_that_is_not_keras_is_named(tmp_path):
    x = keras.Input((8,), name="x")
    scores = L.Dense(8, name="dense")(x) + tf.cast(x < 0, tf.float32) * -1e9
    model = keras.Model(x, L.Dense(3, name="logits")(L.Softmax(name="softmax")(scores)))
    randomize(model, 0)
    data = RNG.normal(size=(60, 8)).astype(np.float32)
    with pytest.raises(ValueError, match="offsets of attention masks.*quantize.*mode='dynamic'"):
        to_tflite(model, tmp_path / "m.tflite", "int8", data=data, verify=data)
    assert not (tmp_path / "m.tflite").exists()
