"""The text models against NumPy, which sees each text without its padding."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, assert_untouched, randomize, weights_of

import tfkd
from tfkd.models import text_mlp, text_transformer

VOCAB, LENGTH, WIDTH, HEADS, HIDDEN = 11, 6, 8, 2, 12
# A whole text, texts with padding, one of a single token.
TOKENS = np.array(
    [[3, 4, 5, 6, 7, 8], [9, 2, 1, 0, 0, 0], [10, 10, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]], np.int32
)


def mlp(**options):
    options = {"width": WIDTH, "hidden": (5, 4), **options}
    return randomize(text_mlp(VOCAB, 3, LENGTH, **options), 1)


def transformer(**options):
    options = {"width": WIDTH, "heads": HEADS, "hidden": HIDDEN, **options}
    return randomize(text_transformer(VOCAB, 3, LENGTH, **options), 1, scale=0.4)


def table(model, layer):
    """The weights of a layer, float64."""
    return [w.astype(np.float64) for w in model.get_layer(layer).get_weights()]


def dense(model, layer, x):
    kernel, bias = table(model, layer)
    return x @ kernel + bias


def mlp_by_hand(model, row):
    x = table(model, "words")[0][row[row > 0]].mean(0)
    for name in ("hidden1", "hidden2"):
        x = np.maximum(dense(model, name, x), 0)
    return dense(model, "logits", x)


def norm(model, layer, x):
    gamma, beta = table(model, layer)
    centred = x - x.mean(-1, keepdims=True)
    return gamma * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + beta


def attention(model, layer, x):
    """Σ over heads of softmax(q kᵀ / √d) v, through the output's kernel."""
    query, bq, key, bk, value, bv, kernel, bias = table(model, layer)
    out = bias
    for h in range(HEADS):
        q, k, v = (x @ w[:, h] + b[h] for w, b in ((query, bq), (key, bk), (value, bv)))
        scores = np.exp(q @ k.T / math.sqrt(WIDTH / HEADS))
        out = out + scores / scores.sum(-1, keepdims=True) @ v @ kernel[h]
    return out


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def transformer_by_hand(model, row, layers=2):
    row = row[row > 0]
    x = table(model, "words")[0][row] + table(model, "places")[0][: len(row)]
    for i in range(1, layers + 1):
        name = f"layer{i}"
        x = x + attention(model, f"{name}_attention", norm(model, f"{name}_attention_norm", x))
        y = gelu(dense(model, f"{name}_mlp_hidden", norm(model, f"{name}_mlp_norm", x)))
        x = x + dense(model, f"{name}_mlp_out", y)
    return dense(model, "logits", norm(model, "norm", x).mean(0))


BOTH = pytest.mark.parametrize(
    ("make", "by_hand"),
    [(mlp, mlp_by_hand), (transformer, transformer_by_hand)],
    ids=["mlp", "transformer"],
)


@BOTH
def test_logits_by_hand_of_each_text_without_its_padding(make, by_hand):
    model = make()
    want = [by_hand(model, row) for row in TOKENS]
    np.testing.assert_allclose(model(TOKENS).numpy(), want, rtol=1e-4, atol=1e-4)
    assert np.ptp(want, axis=0).min() > 0.05  # they depend on the text


def change_padding(model):
    """Other vectors for id 0, and for the places from 3 on."""
    rng = np.random.default_rng(5)
    for layer, rows in (("words", slice(0, 1)), ("places", slice(3, None))):
        if layer in {x.name for x in model.layers}:
            table = model.get_layer(layer).get_weights()[0]
            table[rows] += 9 * rng.normal(size=table[rows].shape)
            model.get_layer(layer).set_weights([table])


@BOTH
def test_what_stands_behind_a_text_takes_no_part(make, by_hand):
    model = make()
    before = model(TOKENS).numpy()
    change_padding(model)
    np.testing.assert_allclose(model(TOKENS[1:]).numpy(), before[1:], rtol=1e-5, atol=1e-5)
    # The text that fills all places does read the changed ones, where there are such.
    differs = np.abs(model(TOKENS[:1]).numpy() - before[:1]).max()
    assert (differs > 0.1) == (make is transformer)


@BOTH
def test_a_text_without_a_token_gives_numbers_and_gradients(make, by_hand):
    model = make()
    empty = np.zeros((2, LENGTH), np.int32)
    with tf.GradientTape() as tape:
        outputs = model(np.concatenate([empty, TOKENS[:1]]), training=True)
        loss = tf.reduce_sum(CROSSENTROPY([0, 1, 2], outputs))
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_weights)]
    for value in (outputs, *gradients):
        assert np.isfinite(value).all()


@BOTH
def test_saved_and_loaded(make, by_hand, tmp_path):
    model = make()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    assert not [x for x in loaded.layers if isinstance(x, keras.layers.Lambda)]
    assert {type(x).__module__.split(".")[0] for x in loaded.layers} == {"tf_keras"}


@pytest.mark.slow
@BOTH
def test_exported_to_tflite(make, by_hand, tmp_path):
    model = make()
    made = tfkd.export.to_tflite(model, tmp_path / "model.tflite", verify=TOKENS)
    assert made.verified
    predictor = tfkd.runtime.Predictor(made.path)
    assert (predictor.inputs[0].name, predictor.inputs[0].dtype) == ("tokens", np.int32)
    want = [by_hand(model, row) for row in TOKENS]
    np.testing.assert_allclose(predictor(TOKENS), want, rtol=1e-4, atol=1e-4)


def test_parameters_by_hand():
    assert mlp().count_params() == VOCAB * 8 + (8 * 5 + 5) + (5 * 4 + 4) + (4 * 3 + 3)
    attention = 4 * (WIDTH * WIDTH + WIDTH)
    dense = (WIDTH * HIDDEN + HIDDEN) + (HIDDEN * WIDTH + WIDTH)
    layer = attention + dense + 2 * 2 * WIDTH
    tables = (VOCAB + LENGTH) * WIDTH
    head = 2 * WIDTH + WIDTH * 3 + 3
    assert transformer(layers=3).count_params() == tables + 3 * layer + head
    assert transformer(hidden=None).get_layer("layer1_mlp_hidden").units == 4 * WIDTH


def test_names():
    names = ("text_mlp_8_5_4", "text_transformer1_8")  # sizes other than the default
    assert (mlp().name, transformer(layers=1).name) == names
    assert text_mlp(9, 2).name == "text_mlp"
    assert (mlp(name="a").name, transformer(name="b").name) == ("a", "b")
    model = transformer()
    assert [model.get_layer(f"layer{i}").output_shape for i in (1, 2)] == [
        (None, LENGTH, WIDTH)
    ] * 2
    assert model.get_layer("layer2").output._keras_mask is not None
    empty = mlp(hidden=())
    assert [x.name for x in empty.layers if x.weights] == ["words", "logits"]


def test_a_layer_of_the_transformer_can_be_cut():
    model = transformer()
    names = [block.name for block in tfkd.pruning.find_blocks(model) if block.removable]
    assert names == [f"layer{i}_{part}" for i in (1, 2) for part in ("attention", "mlp")]
    small = tfkd.pruning.cut_layers(model, drop="layer2_*")
    want = [transformer_by_hand(model, row, layers=1) for row in TOKENS]
    np.testing.assert_allclose(small(TOKENS).numpy(), want, rtol=1e-4, atol=1e-4)
    assert small.get_layer("layer1").output_shape == (None, LENGTH, WIDTH)


@pytest.mark.parametrize(
    ("make", "groups"),
    [
        (mlp, {"words": 8, "hidden1": 5, "hidden2": 4}),
        (transformer, {"layer1_mlp_hidden": 12, "layer2_mlp_hidden": 12}),
    ],
)
def test_units_can_be_pruned(make, groups):
    model = make()
    plan = tfkd.pruning.plan(model, macs_reduction=0.2)
    assert {group.name: group.size for group in plan.graph.groups} == groups
    # `verify`: raises unless the cut model equals the one with zeros.
    selection = tfkd.pruning.select(model, plan)
    small = tfkd.pruning.shrink(model, selection, verify=TOKENS)
    assert small.count_params() < model.count_params()


def test_the_transformer_teaches_the_mlp():
    teacher, student = transformer(), mlp()
    before = weights_of(teacher)
    distiller = tfkd.Distiller(teacher, student, tfkd.losses.LogitsDistillation(2.0))
    distiller.compile("adam", CROSSENTROPY)
    history = distiller.fit(TOKENS, np.array([0, 1, 2, 0]), epochs=3, verbose=0).history
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]
    assert_untouched(before, teacher)


def test_a_layer_teaches_a_narrower_one_where_tokens_are():
    teacher, student = transformer(layers=1), transformer(layers=1, width=4)
    loss = tfkd.losses.FeatureDistillation(
        teacher_layer_name="layer1", student_layer_name="layer1", projector="auto"
    )
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile("adam")
    before = float(distiller.compute_loss(TOKENS[1:], training=False))
    assert before > 0.1
    change_padding(teacher)
    change_padding(student)
    after = float(distiller.compute_loss(TOKENS[1:], training=False))
    np.testing.assert_allclose(after, before, rtol=1e-5)


def test_logits_stay_float32_under_a_mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        models = [mlp(), transformer()]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for model in models:
        assert model.output.dtype == "float32"
        assert model.get_layer("pool").compute_dtype == "bfloat16"
        assert np.isfinite(model(TOKENS).numpy()).all()


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vocab_size": 1}, "`vocab_size`.*padding"),
        ({"vocab_size": 10.0}, "`vocab_size`"),
        ({"num_classes": 0}, "`num_classes`"),
        ({"max_length": 0}, "`max_length`"),
        ({"width": 0}, "`width`"),
        ({"dropout": 1}, "`dropout`"),
        ({"dropout": -0.1}, "`dropout`"),
        ({"dropout": "half"}, "`dropout`"),
    ],
)
def test_bad_arguments(make, options, said):
    build = text_mlp if make is mlp else text_transformer
    with pytest.raises((TypeError, ValueError), match=said):
        build(**{"vocab_size": 9, "num_classes": 2, **options})


@pytest.mark.parametrize(
    ("build", "options", "said"),
    [
        (text_mlp, {"hidden": 64}, "`hidden`.*sequence"),
        (text_mlp, {"hidden": (4, 0)}, "`hidden`"),
        (text_mlp, {"hidden": "64"}, "`hidden`"),
        (text_transformer, {"heads": 3, "width": 8}, "`heads`.*divides the width, 8"),
        (text_transformer, {"heads": 0}, "`heads`"),
        (text_transformer, {"layers": 0}, "`layers`"),
        (text_transformer, {"hidden": 0}, "`hidden`"),
    ],
)
def test_bad_sizes(build, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        build(9, 2, **options)
