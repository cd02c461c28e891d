"""Chosen blocks: places by hand, Block Influence and damage by NumPy, and what may not be."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CROSSENTROPY, assert_untouched, crossentropy, log_softmax, randomize, weights_of

import tfkd
from tfkd import progressive
from tfkd.pruning import LayerChoice, choose_layers, cut_layers, find_blocks
from tfkd.pruning.blocks.choose import _kept_indices

L = keras.layers
RNG = np.random.default_rng(0)


def residual(x, width, name, activation="tanh"):
    y = L.Dense(width + 2, activation, name=f"{name}_in")(x)
    y = L.Dense(width, name=f"{name}_out")(y)
    return L.Add(name=f"{name}_sum")([x, y])


def stack(blocks=4, width=5, classes=3, last=None, seed=1, scale=0.4):
    """x, then blocks a, b, c ... with x + f(x), then the scores."""
    inputs = keras.Input((width,))
    x = inputs
    for name in "abcdef"[:blocks]:
        x = residual(x, width, name)
    return randomize(keras.Model(inputs, L.Dense(classes, last, name="scores")(x)), seed, scale)


def silence(model, *names):
    """Blocks that add nothing."""
    for name in names:
        for weight in model.get_layer(f"{name}_out").weights:
            weight.assign(tf.zeros_like(weight))
    return model


def transformer(layers=4, seed=0, **options):
    keras.utils.set_random_seed(seed)
    options = {"max_length": 6, "width": 8, "heads": 2, "dropout": 0.0, **options}
    return tfkd.models.text_transformer(30, 3, layers=layers, **options)


X = RNG.normal(size=(11, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 11)
TOKENS = RNG.integers(1, 30, (10, 6)).astype(np.int32)
TOKENS[3, 2:] = TOKENS[5, 4:] = 0


def influence(before, after, mask=None):
    """1 − mean cosine, in NumPy."""
    a, b = (np.asarray(v, np.float64) for v in (before, after))
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return 1 - (cosines.mean() if mask is None else cosines[np.asarray(mask)].mean())


# Places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "position, kept", [("even", "1 3 4 6"), ("first", "1 2 3 4"), ("last", "3 4 5 6")]
)
def test_places_of_a_transformers_layers(position, kept):
    model = transformer(6)
    choice = choose_layers(model, 4, granularity="layer", position=position)
    assert choice.keep == tuple(f"layer{n}" for n in kept.split())
    assert choice.candidates["layer2"] == ("layer2_attention", "layer2_mlp")
    assert choice.by == "position" and choice.scores == {}
    assert "4 of 6 candidates kept" in choice.text() and str(choice) == choice.text()


def test_distilberts_layers():
    # The six of BERT's twelve that Hugging Face's script for DistilBERT takes.
    assert _kept_indices(12, 6, "even") == [0, 2, 4, 7, 9, 11]


@given(st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_even_places_are_spread(candidates, data):
    count = data.draw(st.integers(1, candidates))
    places = _kept_indices(candidates, count, "even")
    assert len(set(places)) == count and places == sorted(places)
    assert places[0] == 0 and (count == 1 or places[-1] == candidates - 1)
    gaps = np.diff(places)
    assert count < 2 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "keep, kept", [(0.5, 2), (0.01, 1), (0.99, 4), (np.float32(0.625), 3), (np.int64(4), 4)]
)
def test_a_share_is_rounded(keep, kept):
    choice = choose_layers(stack(4), keep)
    assert len(choice.keep) == kept
    cut = cut_layers(stack(4), drop=choice)
    assert sum(b.removable for b in find_blocks(cut)) == kept


def test_candidates_of_a_resnet_are_its_blocks():
    model = tfkd.models.resnet(14, 3, (8, 8, 3), (4, 6))
    choice = choose_layers(model, 2)
    assert list(choice.candidates) == ["stage1_block1", "stage1_block2", "stage2_block2"]
    assert choice.drop == ("stage1_block2",)
    whole = choose_layers(model, 1, granularity="layer")
    assert whole.candidates == {
        "stage1": ("stage1_block1", "stage1_block2"),
        "stage2": ("stage2_block2",),
    }


def test_candidates_by_patterns_and_functions():
    model = transformer(3)
    by_pattern = choose_layers(model, 1, granularity=["layer3_*", "layer1_*"], position="first")
    assert list(by_pattern.candidates) == ["layer1_*", "layer3_*"]
    assert by_pattern.drop == ("layer3_*",)
    cut = cut_layers(model, keep=by_pattern)
    # Layer 2 is in no candidate: it is kept.
    assert [b.name for b in find_blocks(cut)] == [
        f"layer{n}_{part}" for n in (1, 2) for part in ("attention", "mlp")
    ]
    mlps = choose_layers(model, 1, granularity=lambda name: name if "mlp" in name else None)
    assert mlps.drop == ("layer2_mlp", "layer3_mlp")
    again, report = cut_layers(model, drop=mlps, return_report=True)
    assert report.removed == ("layer2_mlp", "layer3_mlp")
    assert len(find_blocks(again)) == 4


# Similarity -------------------------------------------------------------------------------


def test_block_influence_is_that_of_numpy():
    model = stack(3, scale=0.6)
    choice = choose_layers(model, 1, "similarity", X, batch_size=4)
    features = [X] + [
        keras.Model(model.input, model.get_layer(f"{n}_sum").output)(X).numpy() for n in "abc"
    ]
    for name, before, after in zip("abc", features, features[1:], strict=False):
        assert choice.scores[name] == pytest.approx(influence(before, after), abs=1e-6)
    assert choice.keep == (max(choice.scores, key=choice.scores.get),)
    assert choice.drop == tuple(sorted(choice.scores, key=choice.scores.get)[:2])


def test_masked_places_of_a_transformer_are_left_out():
    model = transformer(2)
    choice = choose_layers(model, 1, "similarity", TOKENS, granularity="layer", batch_size=3)
    x = keras.Model(model.input, model.get_layer("embedded").output)(TOKENS).numpy()
    y = keras.Model(model.input, model.get_layer("layer1").output)(TOKENS).numpy()
    assert choice.scores["layer1"] == pytest.approx(influence(x, y, TOKENS != 0), abs=1e-6)
    assert abs(influence(x, y) - influence(x, y, TOKENS != 0)) > 1e-4


def test_one_pass_over_a_stream():
    model = stack(3)
    passes = []

    def batches():
        passes.append(1)
        yield X[:4], Y[:4]
        yield X[4:], Y[4:]

    streamed = choose_layers(model, 1, "similarity", batches())
    assert len(passes) == 1
    whole = choose_layers(model, 1, "similarity", X)
    dataset = tf.data.Dataset.from_tensor_slices(X).batch(3)
    for other in (whole, choose_layers(model, 1, "similarity", dataset)):
        assert streamed.drop == other.drop
        for name, score in streamed.scores.items():
            assert score == pytest.approx(other.scores[name], abs=1e-6)


def test_places_that_are_zero_before_and_after_are_alike():
    inputs = keras.Input((4, 4, 2))
    x = L.ReLU()(L.Conv2D(3, 1, name="stem")(inputs))
    y = L.Conv2D(3, 3, padding="same", name="a_conv")(x)
    x = L.ReLU(name="a_relu")(L.Add(name="a_sum")([x, y]))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    for weight in model.weights:
        weight.assign(-tf.abs(weight) - 1.0)
    images = np.ones((2, 4, 4, 2), np.float32)
    assert choose_layers(model, 1, "similarity", images).scores == {"a_sum": 0.0}


def test_blocks_of_nested_models_and_of_two_inputs():
    keras.utils.set_random_seed(3)
    inner_in = keras.Input((6, 4))
    x = inner_in
    for name in "ab":
        x = residual(x, 4, name)
    inner = keras.Model(inner_in, x, name="backbone")
    first, second = keras.Input((6, 4), name="first"), keras.Input((6,), name="second")
    x = inner(L.Dense(4, name="stem")(first))
    x = L.Concatenate()([L.GlobalAveragePooling1D()(x), second])
    x = residual(x, 10, "c")
    model = keras.Model([first, second], L.Dense(2, name="scores")(x))
    data = {
        "first": RNG.normal(size=(7, 6, 4)).astype(np.float32),
        "second": RNG.normal(size=(7, 6)).astype(np.float32),
    }
    names = ["backbone", "c"]
    choice = choose_layers(model, 1, "similarity", data)
    assert list(choice.candidates) == ["c", "backbone"] or list(choice.candidates) == names
    inside = choose_layers(model, 2, "similarity", data, granularity=["backbone/*", "c"])
    assert sorted(inside.candidates) == ["backbone/*", "c"]
    stem = model.get_layer("stem")(data["first"]).numpy()
    want = influence(stem, inner(stem).numpy())
    assert choice.scores["backbone"] == pytest.approx(want, abs=1e-6)
    assert inside.scores["backbone/*"] == pytest.approx(want, abs=1e-6)

    def damage(data):
        return choose_layers(model, 1, "damage", data, granularity="c").scores["c"]

    labels, arrays = np.zeros(7, int), [data["first"], data["second"]]
    assert damage((data, labels)) == damage((arrays, labels)) != damage(data)
    assert damage(tuple(arrays)) == damage(data)


def test_a_resnet_and_batches_with_weights():
    model = randomize(tfkd.models.resnet(8, 3, (8, 8, 3), (4, 6), 0), 1, 0.3)
    images = RNG.normal(size=(9, 8, 8, 3)).astype(np.float32)
    labels = RNG.integers(0, 3, 9)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, np.ones(9))).batch(4)
    names = [b.name for b in find_blocks(model) if b.removable]
    choice = choose_layers(model, 1, "damage", dataset)
    assert list(choice.scores) == names == ["stage1_block1"]
    cut = crossentropy(labels, cut_layers(model, drop=names)(images))
    want = (cut - crossentropy(labels, model(images))).mean()
    assert choice.scores["stage1_block1"] == pytest.approx(want, abs=1e-5)
    whole = choose_layers(model, 1, "damage", (images, labels, np.ones(9)))
    assert whole.scores == pytest.approx(choice.scores, abs=1e-5)


def test_a_nested_model_that_holds_all_others_is_entered():
    inner_in = keras.Input((5,))
    x = residual(residual(inner_in, 5, "a"), 5, "b")
    inner = keras.Model(inner_in, x, name="backbone")
    inputs = keras.Input((5,))
    model = keras.Model(inputs, L.Dense(2)(inner(inputs)))
    assert list(choose_layers(model, 1).candidates) == ["backbone/a", "backbone/b"]
    scores = choose_layers(model, 1, "similarity", X).scores
    half = keras.Model(inner.input, inner.get_layer("a_sum").output)(X).numpy()
    assert scores["backbone/b"] == pytest.approx(influence(half, inner(X).numpy()), abs=1e-6)


# Damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, "softmax"])
def test_a_block_that_adds_nothing_does_no_damage(last):
    model = silence(stack(4, last=last), "b", "d")
    before = weights_of(model)
    choice = choose_layers(model, 2, "damage", X, batch_size=4)
    assert choice.drop == ("b", "d")
    assert choice.scores["b"] == choice.scores["d"] == 0.0
    assert min(choice.scores["a"], choice.scores["c"]) > 1e-3
    assert_untouched(before, model)
    np.testing.assert_array_equal(cut_layers(model, drop=choice)(X), model(X))
    labelled = choose_layers(model, 2, "damage", (X, Y), greedy=False)
    assert labelled.scores["b"] == labelled.scores["d"] == 0.0 != labelled.scores["a"]


def test_damage_is_the_divergence_of_the_cut_model():
    model, probabilities = stack(3), stack(3, last="softmax")
    choice = choose_layers(model, 2, "damage", X, greedy=False, batch_size=4)
    whole = log_softmax(model(X))
    for name in "abc":
        cut = log_softmax(cut_layers(model, drop=name)(X))
        want = (np.exp(whole) * (whole - cut)).sum(-1).mean()
        assert choice.scores[name] == pytest.approx(want, rel=1e-4)
    squashed = choose_layers(probabilities, 2, "damage", X, greedy=False)
    assert squashed.scores == pytest.approx(choice.scores, rel=1e-4)
    assert choice.drop == (min(choice.scores, key=choice.scores.get),)


@pytest.mark.parametrize("labels", [Y, np.eye(3)[Y], Y[:, None]], ids=["ids", "one-hot", "column"])
def test_damage_with_labels_is_the_rise_in_crossentropy(labels):
    model = stack(2)
    choice = choose_layers(model, 1, "damage", (X, labels), greedy=False)
    for name in "ab":
        cut = cut_layers(model, drop=name)
        want = (crossentropy(Y, cut(X)) - crossentropy(Y, model(X))).mean()
        assert choice.scores[name] == pytest.approx(want, abs=1e-5)


def test_a_single_number_is_a_sigmoid():
    model = stack(2, classes=1)
    y = (Y > 0).astype(np.float32)
    choice = choose_layers(model, 1, "damage", (X, y), greedy=False)

    def loss(scores):
        z = np.asarray(scores, np.float64)[:, 0]
        return np.log1p(np.exp(-np.where(y > 0, z, -z))).mean()

    want = loss(cut_layers(model, drop="a")(X)) - loss(model(X))
    assert choice.scores["a"] == pytest.approx(want, abs=1e-5)
    assert choose_layers(model, 1, "damage", X).scores["a"] > 0


def test_damage_of_a_transformers_layers():
    model = randomize(transformer(2), 1, 0.4)
    for name in ("layer1_attention", "layer1_mlp_out"):
        for weight in model.get_layer(name).weights:
            weight.assign(tf.zeros_like(weight))
    choice = choose_layers(model, 1, "damage", TOKENS, granularity="layer")
    assert choice.drop == ("layer1",)
    assert choice.scores["layer1"] == 0.0 < 1e-3 < choice.scores["layer2"]


def test_greedy_measures_again_what_is_left():
    model = stack(3, scale=0.8)
    choice = choose_layers(model, 1, "damage", X)
    first, second = choice.drop
    whole = log_softmax(model(X))

    def kl(*gone):
        cut = log_softmax(cut_layers(model, drop=list(gone))(X))
        return (np.exp(whole) * (whole - cut)).sum(-1).mean()

    assert kl(first) == pytest.approx(min(kl(n) for n in "abc"), rel=1e-4)
    (kept,) = choice.keep
    assert choice.scores[first] == pytest.approx(kl(first), rel=1e-4)
    assert choice.scores[second] == pytest.approx(kl(first, second), rel=1e-4)
    assert choice.scores[kept] == pytest.approx(kl(first, kept), rel=1e-4)
    assert choice.scores[second] <= choice.scores[kept]


def test_outputs_of_every_place_count_where_a_token_stands():
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(30, 5, mask_zero=True, name="words")(tokens)
    x = residual(residual(x, 5, "a"), 5, "b")
    model = randomize(keras.Model(tokens, L.Dense(4, name="tags")(x)), 2)
    choice = choose_layers(model, 1, "damage", TOKENS, greedy=False, batch_size=4)
    whole, cut = log_softmax(model(TOKENS)), log_softmax(cut_layers(model, drop="a")(TOKENS))
    kl = (np.exp(whole) * (whole - cut)).sum(-1)
    assert choice.scores["a"] == pytest.approx(kl[TOKENS != 0].mean(), rel=1e-4)


# What may not be --------------------------------------------------------------------------


def with_nan():
    x = X.copy()
    x[2, 1] = np.nan
    return x


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"keep": 5}, ValueError, "from 1 to 4"),
        ({"keep": 0}, ValueError, "`keep`"),
        ({"keep": 1.0}, ValueError, "fraction between 0 and 1"),
        ({"keep": True}, TypeError, "`keep`"),
        ({"keep": "two"}, TypeError, "`keep`"),
        ({"by": "dammage"}, ValueError, "Did you mean 'damage'"),
        ({"position": "middle"}, ValueError, "`position`"),
        ({"data": X}, ValueError, "None with by='position'"),
        ({"by": "similarity"}, ValueError, "`data`: expected examples"),
        ({"by": "damage"}, ValueError, r"data=\(x, y\)"),
        ({"by": "similarity", "data": with_nan()}, ValueError, "Example 2 holds NaN"),
        ({"by": "damage", "data": X[:0]}, ValueError, "at least one example"),
        ({"by": "damage", "data": []}, ValueError, "at least one example"),
        ({"by": "damage", "data": X[:, :3]}, ValueError, "examples of shape"),
        ({"by": "damage", "data": 3}, TypeError, "`data`"),
        ({"by": "damage", "data": (X, Y[:5])}, ValueError, "a label for each of 11"),
        ({"by": "damage", "data": (X, Y + 3)}, ValueError, "class numbers from 0 to 2"),
        ({"by": "damage", "data": (X, np.ones((11, 4)))}, ValueError, "class numbers"),
        ({"by": "damage", "data": (X, np.full(11, np.nan))}, ValueError, "class numbers"),
        ({"by": "damage", "data": iter([X])}, TypeError, "read again"),
        ({"granularity": ["a", "z*"]}, ValueError, "a pattern that matches"),
        ({"granularity": ["a", "*"]}, ValueError, "share no layer"),
        ({"granularity": 3}, TypeError, "`granularity`"),
        ({"granularity": lambda name: 3}, TypeError, "`granularity`"),
        ({"granularity": lambda name: None}, ValueError, "a name for at least one block"),
        ({"greedy": 1}, TypeError, "`greedy`"),
    ],
)
def test_arguments_that_do_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        choose_layers(stack(4), **{"keep": 2, **options})


def test_models_without_blocks_and_with_nan():
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match="blocks that can be removed, received one without"):
        choose_layers(keras.Model(inputs, L.Dense(2)(inputs)), 1)
    with pytest.raises(TypeError, match="tf_keras model"):
        choose_layers("model", 1)
    model = stack(2)
    model.get_layer("b_out").bias.assign(np.full(5, np.nan))
    for by in ("similarity", "damage"):
        with pytest.raises(ValueError, match="NaN or infinity at"):
            choose_layers(model, 1, by, X)


def test_a_choice_is_for_its_model():
    choice = choose_layers(transformer(2), 1, granularity="layer")
    with pytest.raises(ValueError, match="a choice made for this model"):
        cut_layers(stack(2), drop=choice)
    whole = choose_layers(stack(2), 2)
    assert whole.drop == () and isinstance(whole, LayerChoice)
    np.testing.assert_array_equal(cut_layers(stack(2), keep=whole)(X), stack(2)(X))


# Students ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_transformer_begins_with_its_teachers_weights_and_learns():
    teacher = randomize(transformer(4), 1, 0.7)
    choice = choose_layers(teacher, 0.5, "similarity", TOKENS, granularity="layer")
    student = cut_layers(teacher, drop=choice)
    assert len(choice.keep) == 2
    for layer in student.layers:
        for old, new in zip(teacher.get_layer(layer.name).weights, layer.weights, strict=True):
            np.testing.assert_array_equal(old, new)
    loss = tfkd.losses.LogitsDistillation(2.0)
    distiller = tfkd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    # Eagerly: tracing takes longer than so few steps.
    distiller.compile(keras.optimizers.Adam(1e-3), CROSSENTROPY, run_eagerly=True)
    history = distiller.fit(TOKENS, Y[:10], epochs=8, batch_size=10, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


@pytest.mark.slow
def test_a_structural_step_chooses_on_the_student_of_that_moment():
    step = progressive.CutLayers(choose={"keep": 0.5, "by": "damage", "data": X})
    for quiet in ("ab", "cd"):
        model = silence(stack(4), *quiet)
        left = [block.name for block in find_blocks(step(model))]
        assert left == [name for name in "abcd" if name not in quiet]
    assert "choose=" in repr(step)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"choose": 3}, TypeError),
        ({"choose": {"by": "damage"}}, ValueError),
        ({"choose": {"keep": 2, "units_": None}}, ValueError),
        ({"choose": {"keep": 2}, "drop": "a"}, ValueError),
    ],
)
def test_a_structural_steps_options_are_checked_at_once(options, error):
    with pytest.raises(error, match="choose"):
        progressive.CutLayers(**options)
