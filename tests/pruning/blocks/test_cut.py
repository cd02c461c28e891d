"""Cut models against hand-built smaller ones, NumPy, and blocks that compute nothing."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assert_untouched, randomize, weights_of

import tfkd
from tfkd.pruning.blocks.cut import cut_layers, find_blocks

L = keras.layers


def images(shape=(8, 8, 3), count=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def names(model, removable=True):
    return [block.name for block in find_blocks(model) if block.removable or not removable]


def same_weights_by_name(target, source):
    """Gives each layer of `target` the weights of the layer of its name."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    return target


def spread(outputs):
    return float(np.ptp(outputs, axis=0).max())


# Residual networks ------------------------------------------------------------------------


def small_resnet(depth, seed=1):
    return randomize(tfkd.models.resnet(depth, 3, (8, 8, 3), (4, 6), 0), seed, 0.3)


def test_blocks_of_a_resnet():
    blocks = find_blocks(small_resnet(20))
    assert [b.name for b in blocks] == [f"stage{s}_block{n}" for s in (1, 2) for n in (1, 2, 3)]
    first, projected = blocks[0], blocks[3]
    assert first.layers == (
        "stage1_block1_1_conv",
        "stage1_block1_1_bn",
        "stage1_block1_1_relu",
        "stage1_block1_2_conv",
        "stage1_block1_2_bn",
        "stage1_block1_add",
        "stage1_block1_relu",
    )
    assert (first.input, first.output, first.removable) == ("stem_relu", "stage1_block1_relu", True)
    assert first.reason == ""
    assert blocks[2].output == "stage1"
    assert not projected.removable
    assert "'stage2_block1_0_conv'" in projected.reason
    assert "(None, 8, 8, 4) to (None, 4, 4, 6)" in projected.reason
    assert all(b.removable for b in blocks if b is not projected)


@pytest.mark.slow
def test_a_deeper_resnet_cut_is_the_shallower_one():
    deep = small_resnet(20)
    before = weights_of(deep)
    cut = cut_layers(deep, drop=["stage1_block3", "stage2_block3"])
    shallow = same_weights_by_name(small_resnet(14, seed=2), deep)
    assert cut.count_params() == shallow.count_params()
    x = images()
    want = shallow.predict(x, verbose=0)
    assert spread(want) > 0.1
    np.testing.assert_allclose(cut.predict(x, verbose=0), want, rtol=1e-5, atol=1e-6)
    assert np.abs(deep.predict(x, verbose=0) - want).max() > 1e-2
    assert_untouched(before, deep)
    assert not {id(v) for v in cut.variables} & {id(v) for v in deep.variables}
    kept = [layer.name for layer in deep.layers if "block3" not in layer.name]
    assert [layer.name for layer in cut.layers] == [
        n for n in kept if n not in ("stage1", "stage2")
    ]


@pytest.mark.parametrize("choice", [{"keep": []}, {"drop": "*"}, {"drop": [0, 1, 2, -2, -1]}])
def test_blocks_that_compute_nothing_change_nothing(choice):
    model = small_resnet(20)
    for name in names(model):
        bn = model.get_layer(f"{name}_2_bn")
        bn.gamma.assign(tf.zeros_like(bn.gamma))
        bn.beta.assign(tf.zeros_like(bn.beta))
    cut, report = cut_layers(model, **choice, return_report=True)
    assert report.removed == tuple(names(model))
    assert report.kept == ()
    x = images()
    want = model.predict(x, verbose=0)
    assert spread(want) > 0.01
    np.testing.assert_allclose(cut.predict(x, verbose=0), want, rtol=1e-6, atol=1e-6)


def test_report_says_what_went():
    model = small_resnet(20)
    small, report = cut_layers(model, drop="stage2_*", return_report=True)
    assert report.removed == ("stage2_block2", "stage2_block3")
    assert report.kept == ("stage1_block1", "stage1_block2", "stage1_block3")
    assert list(report.skipped) == ["stage2_block1"]
    assert "shortcut" in report.skipped["stage2_block1"]
    assert len(report.layers) == 14 and "stage2_block2_add" in report.layers
    assert report.params_before == model.count_params()
    # Two convolutions of 3·3·6·6 and two norms of 4·6 in each block.
    assert report.params_after == report.params_before - 2 * 2 * (324 + 24)
    assert small.count_params() == report.params_after
    text = str(report)
    assert "stage2_block2, stage2_block3" in text and "Not stage2_block1" in text


def test_keep_and_drop_say_the_same():
    model = small_resnet(20)
    kept = cut_layers(model, keep=["stage1_block1", 5])
    dropped = cut_layers(model, drop=["stage1_block2", "stage1_block3", "stage2_block2"])
    assert [x.name for x in kept.layers] == [x.name for x in dropped.layers]
    x = images()
    np.testing.assert_array_equal(kept(x), dropped(x))
    whole, report = cut_layers(model, keep="*", return_report=True)
    assert report.removed == () and report.params_after == report.params_before
    np.testing.assert_array_equal(whole(x), model(x))


@pytest.mark.slow
def test_resnet50_of_keras():
    model = keras.applications.ResNet50(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )
    blocks = find_blocks(model)
    assert len(blocks) == 3 + 4 + 6 + 3
    assert [b.name for b in blocks if not b.removable] == [f"conv{i}_block1" for i in (2, 3, 4, 5)]
    gone = [n for n in names(model) if n.endswith(("block2", "block4"))]
    assert len(gone) == 4 + 2
    for name in gone:
        bn = model.get_layer(f"{name}_3_bn")
        bn.gamma.assign(tf.zeros_like(bn.gamma))
    cut = cut_layers(model, drop=["*_block2", "*_block4"])
    assert sum(isinstance(x, L.Conv2D) for x in cut.layers) == 53 - 3 * len(gone)
    x = images((32, 32, 3), 2)
    want = model(x).numpy()
    assert spread(want) > 0.01 * np.abs(want).max()
    np.testing.assert_allclose(cut(x), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


# Transformers -----------------------------------------------------------------------------


def transformer(layers, masked=False, post_norm=False, plus="add"):
    """Four-dimensional words, layers named as in the list, logits of the first word."""
    add = {"add": lambda a, b, name: L.Add(name=name)([a, b]), "+": lambda a, b, name: a + b}[plus]
    words = keras.Input((6, 4), name="words")
    mask = keras.Input((6, 6), dtype="bool", name="mask") if masked else None
    x = L.LayerNormalization(name="embedding_norm")(words) if post_norm else words * 1.5
    for i in layers:
        y = x if post_norm else L.LayerNormalization(name=f"layer{i}_attn_norm")(x)
        attend = L.MultiHeadAttention(2, 3, name=f"layer{i}_attn_heads")
        y = attend(y, y, attention_mask=mask) if masked else attend(y, y)
        x = add(x, y, f"layer{i}_attn_add")
        if post_norm:
            x = L.LayerNormalization(name=f"layer{i}_attn_norm")(x)
        y = x if post_norm else L.LayerNormalization(name=f"layer{i}_mlp_norm")(x)
        y = L.Dense(8, "gelu", name=f"layer{i}_mlp_1")(y)
        y = L.Dense(4, name=f"layer{i}_mlp_2")(y)
        x = add(x, y, f"layer{i}_mlp_add")
        if post_norm:
            x = L.LayerNormalization(name=f"layer{i}_mlp_norm")(x)
    x = L.Dense(3, name="logits")(L.LayerNormalization(name="final_norm")(x)[:, 0])
    return keras.Model([words, mask] if masked else words, x, name="transformer")


@pytest.mark.parametrize(
    ("masked", "post_norm", "plus"), [(False, False, "add"), (True, False, "+"), (False, True, "+")]
)
def test_four_transformer_layers_cut_to_two(masked, post_norm, plus):
    model = randomize(transformer(range(4), masked, post_norm, plus), 3)
    assert names(model) == [f"layer{i}_{p}" for i in range(4) for p in ("attn", "mlp")]
    cut = cut_layers(model, keep=["layer0_*", "layer2_*"])
    want = same_weights_by_name(transformer((0, 2), masked, post_norm, plus), model)
    x = images((6, 4), 4)
    if masked:
        x = [x, np.tile(np.tril(np.ones((6, 6), bool)), (4, 1, 1))]
    np.testing.assert_allclose(cut(x), want(x), rtol=1e-5, atol=1e-6)
    assert np.abs(model(x).numpy() - want(x).numpy()).max() > 1e-2


def test_a_cut_transformer_trains_and_is_saved(tmp_path):
    model = randomize(transformer(range(2), plus="+"), 3)
    before = weights_of(model)
    cut = cut_layers(model, drop="layer1_*")
    x = images((6, 4), 4)
    first = cut(x).numpy()
    cut.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    cut.fit(x, np.arange(4) % 3, epochs=1, verbose=0)
    assert np.abs(cut(x).numpy() - first).max() > 1e-4
    assert_untouched(before, model)
    cut.save(tmp_path / "cut.keras")
    again = keras.models.load_model(tmp_path / "cut.keras")
    np.testing.assert_allclose(again(x), cut(x), rtol=1e-6, atol=1e-6)


def test_a_pre_norm_layer_ends_at_its_sum_and_a_post_norm_layer_after_its_norm():
    pre, post = find_blocks(transformer((0,))), find_blocks(transformer((0,), post_norm=True))
    assert [b.output for b in pre] == ["layer0_attn_add", "layer0_mlp_add"]
    assert [b.output for b in post] == ["layer0_attn_norm", "layer0_mlp_norm"]
    assert [b.input for b in post] == ["embedding_norm", "layer0_attn_norm"]


def test_a_mask_that_nothing_reads_any_more_stays_an_input():
    model = randomize(transformer((0,), masked=True), 1)
    cut = cut_layers(model, drop="layer0_attn")
    x = images((6, 4), 2)
    masks = [np.tile(m, (2, 1, 1)) for m in (np.eye(6, dtype=bool), np.ones((6, 6), bool))]
    assert [i.name for i in cut.inputs] == ["words", "mask"]
    np.testing.assert_array_equal(cut([x, masks[0]]), cut([x, masks[1]]))


def test_cross_attention_goes_and_the_encoder_that_fed_it_too():
    words, memory = keras.Input((6, 4)), keras.Input((5, 4))
    encoded = L.Dense(4, name="encoder")(memory)
    crossed = L.MultiHeadAttention(1, 4, name="cross")(words, encoded)
    model = keras.Model(
        [words, memory], L.Dense(2, name="end")(L.Add(name="sum")([words, crossed]))
    )
    cut, report = cut_layers(model, drop=0, return_report=True)
    assert report.layers == ("encoder", "cross", "sum")
    x = images((6, 4))
    np.testing.assert_allclose(cut([x, images((5, 4))]), model.get_layer("end")(x), atol=1e-6)


# Calls of shared layers, nested models -----------------------------------------------------


def tied(calls, dense=None, end=None):
    """The same residual layer called several times, as in ALBERT."""
    inputs = keras.Input((4,))
    dense, end = dense or L.Dense(4, "tanh", name="tied"), end or L.Dense(2, name="end")
    x = inputs
    for _ in range(calls):
        x = x + dense(x)
    return keras.Model(inputs, end(x))


def test_some_calls_of_a_shared_layer():
    model = randomize(tied(4), 1)
    assert len(names(model)) == 4 and len(set(names(model))) == 4
    cut, report = cut_layers(model, drop=[1, 2], return_report=True)
    want = tied(2, model.get_layer("tied"), model.get_layer("end"))
    x = images((4,))
    np.testing.assert_allclose(cut(x), want(x), atol=1e-6)
    assert "tied" not in report.layers and cut.count_params() == model.count_params()
    np.testing.assert_allclose(
        cut_layers(cut, drop=0)(x), tied(1, *want.layers[1::3])(x), atol=1e-6
    )


def nested(kind):
    inner = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inner)
    for i in (1, 2):
        y = L.Conv2D(4, 3, padding="same", activation="tanh", name=f"block{i}_conv1")(x)
        y = L.Conv2D(4, 3, padding="same", name=f"block{i}_conv2")(y)
        x = L.Add(name=f"block{i}_add")([x, y])
    backbone = keras.Model(inner, x, name="backbone")
    head = [L.GlobalAveragePooling2D(name="pool"), L.Dense(3, name="logits")]
    if kind == "sequential":
        return keras.Sequential([keras.Input((8, 8, 3)), backbone, *head])
    inputs = keras.Input((8, 8, 3))
    twice = [head[0](backbone(t)) for t in (inputs, inputs * 0.5)]
    return keras.Model(inputs, head[1](L.Concatenate(name="both")(twice)))


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_blocks_inside_a_nested_model(kind, tmp_path):
    model = randomize(nested(kind), 2)
    model.get_layer("backbone").get_layer("block1_conv1").trainable = False
    assert names(model) == ["backbone/block1", "backbone/block2"]
    block = find_blocks(model)[0]
    assert (block.input, block.output) == ("backbone/stem", "backbone/block1_add")
    conv = model.get_layer("backbone").get_layer("block2_conv2")
    x = images()
    assert np.abs(cut_layers(model, drop="backbone/block2")(x) - model(x)).max() > 1e-2
    conv.set_weights([0 * w for w in conv.get_weights()])
    cut, report = cut_layers(model, keep="*block1", return_report=True)
    assert report.layers == tuple(f"backbone/block2_{n}" for n in ("conv1", "conv2", "add"))
    np.testing.assert_allclose(cut(x), model(x), atol=1e-6)
    assert not cut.get_layer("backbone").get_layer("block1_conv1").trainable
    assert cut.get_layer("backbone").get_layer("stem").trainable
    cut.save(tmp_path / "cut.keras")
    np.testing.assert_allclose(
        keras.models.load_model(tmp_path / "cut.keras")(x), cut(x), atol=1e-6
    )


def stage(name, width=4):
    return keras.Sequential([keras.Input((4,)), L.Dense(width, "tanh", name="d")], name=name)


def test_nested_models_that_keep_their_shape_are_blocks():
    model = keras.Sequential(
        [keras.Input((4,)), stage("a"), stage("b"), stage("c"), stage("wide", 6)]
    )
    randomize(model, 1)
    assert names(model, removable=False) == ["a", "b", "c"]
    cut = cut_layers(model, drop=["b", "c"])
    x = images((4,))
    want = model.get_layer("wide")(model.get_layer("a")(x))
    np.testing.assert_allclose(cut(x), want, atol=1e-6)
    assert isinstance(cut, keras.Sequential)
    assert [layer.name for layer in cut.layers] == ["a", "wide"]


def test_every_call_of_a_nested_model_goes():
    inputs = keras.Input((4,))
    shared = stage("shared")
    y = shared(L.Dense(4, name="between")(shared(inputs)))
    model = randomize(keras.Model(inputs, L.Dense(2, name="end")(y)), 1)
    x = images((4,))
    want = model.get_layer("end")(model.get_layer("between")(x))
    np.testing.assert_allclose(cut_layers(model, drop="shared")(x), want, atol=1e-6)


def test_keeping_a_block_keeps_what_is_in_it_and_around_it():
    inputs = keras.Input((4,))
    inner = L.Add(name="inner")([inputs, L.Dense(4, name="one")(inputs)])
    outer = L.Add(name="outer")([inputs, L.Dense(4, name="two")(inner)])
    last = L.Add(name="last")([outer, L.Dense(4, name="three")(outer)])
    model = keras.Model(inputs, L.Dense(1, name="end")(last))
    assert names(model) == ["inner", "outer", "last"]
    for keep in ("inner", "outer"):
        assert cut_layers(model, keep=keep, return_report=True)[1].removed == ("last",)
    report = cut_layers(model, keep="last", return_report=True)[1]
    assert report.removed == ("inner", "outer")
    assert set(report.layers) == {"one", "two", "inner", "outer"}


# Layers by name ----------------------------------------------------------------------------


class Encoder(L.Layer):
    """A whole layer in one class, known to Keras only through the model."""

    def __init__(self, bend, **options):
        super().__init__(**options)
        self.bend = bend

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], shape[-1]))

    def call(self, x):
        return x + self.bend * tf.tanh(x @ self.kernel)

    def get_config(self):
        return {**super().get_config(), "bend": self.bend}


def test_single_layers_and_connected_ones():
    inputs = keras.Input((4,))
    layers = [Encoder(b, name=f"encoder{b}") for b in (1, 2, 3)]
    layers += [
        L.Lambda(lambda t: 2 * t, name="twice"),
        L.Dense(7, name="up"),
        L.Dense(4, name="down"),
    ]
    x = inputs
    for layer in [*layers, L.Dense(2, name="end")]:
        x = layer(x)
    model = randomize(keras.Model(inputs, x), 1)
    x = images((4,))
    assert find_blocks(model) == ()
    for drop in ("encoder2", ["up", "down", "encoder1"], "encoder*", ["down", "encoder3", "up"]):
        cut, report = cut_layers(model, drop=drop, return_report=True)
        want = x
        for layer in model.layers[1:]:
            want = want if layer.name in report.layers else layer(want)
        np.testing.assert_allclose(cut(x), want, atol=1e-5)
    assert report.removed == ("encoder3", "up … down")
    assert report.layers == ("encoder3", "up", "down")


def test_layers_between_two_inputs_or_shapes_are_refused():
    model = small_resnet(14)
    with pytest.raises(ValueError, match="one input tensor, but have 2"):
        cut_layers(model, drop="stage1_block1_add")
    with pytest.raises(ValueError, match=r"changes the shape from \(None, 4\)|\(None, 6\)"):
        cut_layers(model, drop="logits")
    with pytest.raises(ValueError, match="is an input of the model"):
        cut_layers(model, drop="image")


def test_layers_that_others_listen_to():
    inputs = keras.Input((4,))
    inside = L.Dense(4, name="inside")(inputs)
    total = L.Add(name="total")([inputs, L.Dense(4, name="outside")(inside)])
    end = L.Dense(2, name="end")(total)
    (block,) = find_blocks(keras.Model(inputs, [end, inside]))
    assert not block.removable and "'inside' is an output" in block.reason
    (block,) = find_blocks(keras.Model(inputs, L.Concatenate(name="cat")([end, inside])))
    assert not block.removable and "'inside' also feeds 'cat'" in block.reason
    with pytest.raises(ValueError, match="also feeds 'cat'"):
        cut_layers(keras.Model(inputs, L.Concatenate(name="cat")([end, inside])), drop=0)


def test_a_loss_on_what_stays_stays():
    inputs = keras.Input((4,))
    x = L.Dense(4, name="first")(inputs)
    y = L.Add(name="sum")([x, L.Dense(4, name="second")(x)])
    model = keras.Model(inputs, L.Dense(2, name="end")(y))
    model.add_loss(tf.reduce_mean(x**2))
    cut = cut_layers(model, drop="sum")
    data = images((4,))
    cut(data)
    want = np.mean(model.get_layer("first")(data).numpy() ** 2)
    np.testing.assert_allclose(float(sum(cut.losses)), want, rtol=1e-5)


def test_functions_and_classes_of_the_user_need_no_registration():
    class Shrink(keras.regularizers.Regularizer):
        def __call__(self, x):
            return tf.reduce_sum(tf.abs(x))

        def get_config(self):
            return {}

    def bend(x):
        return 1.1 * tf.tanh(x)

    inputs = keras.Input((4,))
    first = L.Dense(4, bend, kernel_regularizer=Shrink(), name="first")(inputs)
    total = tf.add(first, L.Dense(4, name="second")(first))
    model = randomize(keras.Model(inputs, L.Dense(2, name="end")(total)), 1)
    cut = cut_layers(model, drop=0)
    x = images((4,))
    want = model.get_layer("end")(model.get_layer("first")(x))
    np.testing.assert_allclose(cut(x), want, atol=1e-6)
    want = np.abs(model.get_layer("first").kernel.numpy()).sum()
    np.testing.assert_allclose(float(sum(cut.losses)), want, rtol=1e-5)


def test_dicts_of_tensors_states_and_sums_of_three():
    words, extra = keras.Input((5,), dtype="int32", name="words"), keras.Input((5, 4), name="extra")
    x = L.Add(name="join")([L.Embedding(7, 4, mask_zero=True, name="embed")(words), extra])
    states, last, _ = L.LSTM(4, return_sequences=True, return_state=True, name="lstm")(x)
    x = tf.add_n([x, states])
    x = L.Add(name="three")([x, L.Dense(4, name="left")(x), L.Dense(4, name="right")(x)])
    ends = {"a": L.Dense(2, name="a")(x), "b": L.Dense(3, name="b")(x)}
    model = randomize(keras.Model({"words": words, "extra": extra}, ends), 1)
    assert [b.layers for b in find_blocks(model)] == [
        ("lstm", "tf.math.add_n"),
        ("left", "right", "three"),
    ]
    feed = {"words": np.arange(1, 6)[None] % 7, "extra": images((5, 4), 1)}
    got = cut_layers(model, keep=[])(feed)
    x = model.get_layer("embed")(feed["words"]) + feed["extra"]
    for name in ("a", "b"):
        np.testing.assert_allclose(got[name], model.get_layer(name)(x), atol=1e-6)
    tapped = keras.Model([words, extra], [ends["a"], last])
    assert "'lstm' is an output" in find_blocks(tapped)[0].reason


def test_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tfkd.models.resnet(14, 3, (8, 8, 3), (4, 6), 0)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    cut = cut_layers(randomize(model, 1, 0.3), drop=["stage1_block2", "stage2_block2"])
    assert cut.get_layer("stem_conv").compute_dtype == "bfloat16"
    shallow = same_weights_by_name(small_resnet(8), model)
    x = images()
    scale = np.abs(shallow(x)).max()
    np.testing.assert_allclose(cut(x), shallow(x), atol=0.05 * scale)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=6), st.integers(0, 99)
)
def test_any_choice_against_numpy(blocks, seed):
    """Blocks are (post-activation or not, dropped or not)."""
    inputs = keras.Input((5,))
    x = L.ReLU(name="start")(inputs)
    for i, (post, _) in enumerate(blocks):
        x = L.Add(name=f"b{i}_add")([x, L.Dense(5, "tanh", name=f"b{i}_dense")(x)])
        x = L.ReLU(name=f"b{i}_relu")(x) if post else x
    model = randomize(keras.Model(inputs, L.Dense(2, name="end")(x)), seed)
    drop = [i for i, (_, gone) in enumerate(blocks) if gone]
    data = images((5,), seed=seed)
    want = np.maximum(data.astype(np.float64), 0)
    for i, (post, gone) in enumerate(blocks):
        if not gone:
            kernel, bias = model.get_layer(f"b{i}_dense").get_weights()
            want = want + np.tanh(want @ kernel + bias)
        # A ReLU that does not belong to the block, as a sum went in, stays behind.
        belongs = i == 0 or blocks[i - 1][0]
        if post and not (gone and belongs):
            want = np.maximum(want, 0)
    kernel, bias = model.get_layer("end").get_weights()
    cut = cut_layers(model, drop=drop) if drop else cut_layers(model, keep="*")
    np.testing.assert_allclose(cut(data), want @ kernel + bias, rtol=1e-4, atol=1e-4)


# Errors -------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ValueError, "exactly one.*neither"),
        ({"keep": [0], "drop": [1]}, ValueError, "exactly one.*both"),
        ({"drop": "stage1_blok1"}, ValueError, "Did you mean 'stage1_block1'"),
        ({"keep": "stage9*"}, ValueError, "`keep`.*Did you mean|There are"),
        ({"drop": "stage2_block1"}, ValueError, "can be removed.*shortcut passes through"),
        ({"drop": 2}, ValueError, "'stage2_block1' can't be removed"),
        ({"drop": "stage2_block1*"}, ValueError, "can be removed"),
        ({"drop": 4}, ValueError, "index into the 4 blocks"),
        ({"drop": []}, ValueError, "at least one"),
        ({"drop": [1.5]}, TypeError, "names, indices or patterns"),
        ({"keep": True}, TypeError, "names, indices or patterns"),
        ({"keep": 1.5}, TypeError, "names, indices or patterns"),
    ],
)
def test_bad_choices(options, error, said):
    model = small_resnet(14)
    before = weights_of(model)
    with pytest.raises(error, match=said):
        cut_layers(model, **options)
    assert_untouched(before, model)


def test_bad_models():
    with pytest.raises(TypeError, match="`model`"):
        find_blocks("resnet20")
    with pytest.raises(ValueError, match="`model`"):
        find_blocks(keras.Sequential([L.Dense(3)]))
    model = Subclassed()
    model(np.zeros((1, 2), np.float32))
    with pytest.raises(ValueError, match="subclassed Subclassed"):
        cut_layers(model, drop=0)
    with pytest.raises(ValueError, match="without"):
        cut_layers(tfkd.models.vgg16(2, (16, 16, 1), (2,) * 5), keep=[])


def test_nothing_left():
    model = keras.Sequential([keras.Input((4,)), stage("a"), stage("b")])
    with pytest.raises(ValueError, match="leaves nothing between"):
        cut_layers(model, drop="*")
    inside = keras.Sequential([keras.Input((4,)), stage("a")], name="inside")
    model = keras.Sequential([keras.Input((4,)), inside, L.Dense(2)])
    with pytest.raises(ValueError, match="'inside'"):
        cut_layers(model, drop="inside/a")
    assert [x.name for x in cut_layers(model, drop="inside").layers] == [model.layers[-1].name]


def test_blocks_that_share_layers():
    inputs = keras.Input((4,))
    layers = [L.Dense(4, name=f"d{i}") for i in range(4)]
    x = inputs
    for layer in layers:
        x = layer(x)
    total = L.Add(name="total")([layers[0].output, layers[2].output])
    model = keras.Model(inputs, L.Dense(1)(L.Concatenate()([total, x])))
    with pytest.raises(ValueError, match="also feeds"):
        cut_layers(model, drop="total")


def test_a_layer_of_two_models():
    shared = L.Dense(4, name="shared")
    inner = keras.Input((4,))
    body = keras.Model(inner, shared(inner), name="body")
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="same layer at shared and body/shared"):
        find_blocks(keras.Model(inputs, shared(body(inputs))))


def test_a_layer_that_has_no_config():
    class Nameless(L.Layer):
        def __init__(self, need):
            super().__init__()

    class Closed(L.Layer):
        def __init__(self, need):
            super().__init__()

        def get_config(self):
            return L.Layer.get_config(self)

    for odd in (Nameless(3), Closed(3)):
        inputs = keras.Input((4,))
        x = L.Add(name="sum")([inputs, L.Dense(4)(inputs)])
        with pytest.raises(ValueError, match="get_config"):
            cut_layers(keras.Model(inputs, L.Dense(2)(odd(x))), drop="sum")


class OwnConfig(keras.Model):
    """Functional, but made again from two numbers, as the backbones of keras-cv are."""

    def __init__(self, width, scale=1.0, **options):
        inputs = keras.Input((width,))
        x = L.Add(name="sum")([inputs, L.Dense(width, name="dense")(inputs)])
        super().__init__(inputs, L.Dense(width, name="end")(scale * x), **options)
        self.width, self.scale = width, scale

    def get_config(self):
        return {"width": self.width, "scale": self.scale, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def test_a_model_with_a_config_of_its_own():
    model = randomize(OwnConfig(4, 0.5, name="own"), 1)
    assert names(model) == ["sum"]
    with pytest.raises(ValueError, match=r"keras\.Model\(model\.inputs, model\.outputs\)"):
        cut_layers(model, drop="sum")
    x = images((4,))
    cut = cut_layers(keras.Model(model.inputs, model.outputs), drop="sum")
    np.testing.assert_allclose(cut(x), model.get_layer("end")(0.5 * x), atol=1e-6)
    outer = keras.Sequential([keras.Input((4,)), stage("a"), model])
    with pytest.raises(ValueError, match="config of its own"):
        cut_layers(outer, drop="own/sum")
    np.testing.assert_allclose(cut_layers(outer, drop="a")(x), model(x), atol=1e-6)
