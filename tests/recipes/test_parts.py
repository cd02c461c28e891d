"""Parts of a run: the teacher that is taken, the rate after a cut, tokenizers in models."""

from __future__ import annotations

import contextlib
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd.recipes import Budget, fast_teacher, open_model, rates, token_models, voice
from tfkd.recipes.scaling import Scaling
from tfkd.recipes.training import Training


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("latency:2ms", "latency", 2.0), ("latency: 500us", "latency", 0.5),
        ("macs:40%", "macs", 0.4), ("macs:0.4", "macs", 0.4),
        ("size:500KB", "size", 500_000.0), ("SIZE:1MiB", "size", 1_048_576.0),
    ],
)  # fmt: skip
def test_budgets_are_read_with_their_units(text, kind, value):
    budget = Budget.parse(text)
    assert (budget.kind, budget.value) == (kind, pytest.approx(value))
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["macs:0%", "macs:100%", "latency:-1ms", "speed:2", "size:2ms"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="`budget`: expected a budget such as"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("limit", "flags", "found"),
    [
        ("", "avx2 avx512_bf16", True), ("", "avx2", False), ("AVX2", "avx2 avx512_bf16", False),
        ("AVX512_CORE_BF16", "avx512_bf16", True),
    ],
)  # fmt: skip
def test_bfloat16_needs_the_processor_and_onednns_leave(monkeypatch, limit, flags, found):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: f"flags\t: {flags}\n")
    fast_teacher.has_bfloat16.cache_clear()
    assert fast_teacher.has_bfloat16() is found
    fast_teacher.has_bfloat16.cache_clear()


def test_differences_of_outputs():
    exact = np.array([[0.0, 4.0], [3.0, 1.0]])
    assert fast_teacher.difference(exact, exact) == (0.0, 1.0)
    # Mean error 0.5 of the range 4; the second example is decided otherwise.
    error, agreement = fast_teacher.difference(exact, np.array([[0.0, 4.0], [2.0, 2.0 + 1e-9]]))
    assert (error, agreement) == (pytest.approx(0.125), 0.5)


def test_stored_outputs_of_another_scaling_are_replaced(tmp_path):
    """As those of a run that another version of tfkd began, whose `Scaling` had other fields."""
    x, y = np.arange(12, dtype="uint8").reshape(12, 1, 1, 1), np.arange(12) % 2
    teacher = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten()])
    for std in (1.0, 2.0):
        found = types.SimpleNamespace(train=types.SimpleNamespace(x=x, y=y))
        settings = types.SimpleNamespace(seed=0, augment=False)
        task = types.SimpleNamespace(
            kind="images", found=found, recipe=settings, batch=4,
            augment=lambda views: None, scaling=Scaling("own", (0.0,), (std,)),
        )  # fmt: skip
        for _ in range(2):  # the second time it is read
            cache, _, how = fast_teacher.choose(task, teacher, 1, tmp_path / "cache")
            stored = cache.lookup(np.arange(12))["final_output"]
            np.testing.assert_array_equal(np.ravel(stored), np.arange(12) / std)
            assert "computed once" in how


def test_the_rate_with_the_lowest_validation_loss_is_taken(tmp_path):
    """y = 3x from x = 1: after 20 steps of Adam the weight has moved by about 20 rates / 2."""
    model = keras.Sequential([keras.layers.Dense(1, use_bias=False, input_shape=(1,))])
    model.set_weights([np.zeros((1, 1))])
    model.compile(keras.optimizers.Adam(), "mse")
    data = tf.data.Dataset.from_tensors((np.ones((4, 1)), 3 * np.ones((4, 1)))).repeat()
    training = Training("t", model, model, lambda first: data, 10, 2, data.take(1))
    seen = []

    class Voice(voice.Plain):
        @contextlib.contextmanager
        def progress(self, total, label):
            assert label == "t: learning rate"
            yield types.SimpleNamespace(update=lambda done, note: seen.append((done, total)))

    rate, losses = rates.best(training, tmp_path / "rate.json", Voice())
    assert seen == [(step, 80) for step in range(1, 81)]  # 20 steps with each of four rates
    assert rate == max(rates.RATES) and set(losses) == {f"{r:g}" for r in rates.RATES}
    assert losses[f"{rate:g}"] == min(losses.values())
    np.testing.assert_array_equal(model.get_weights()[0], 0)
    assert rates.best(None, tmp_path / "rate.json", Voice()) == (rate, losses)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_a_tokenizer_is_taken_out_of_a_model(kind):
    layer = keras.layers.TextVectorization(output_sequence_length=4, vocabulary=["good", "film"])
    rest = [
        keras.layers.Embedding(4, 3),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2),
    ]
    if kind == "sequential":
        model = keras.Sequential([keras.Input((1,), dtype="string"), layer, *rest])
    else:
        text = keras.Input((1,), dtype="string")
        x = layer(text)
        for one in rest:
            x = one(x)
        model = keras.Model(text, x)
    flat, encode = token_models.without_tokenizer(model)
    assert encode.vocabulary == ("", "[UNK]", "good", "film") and encode.max_length == 4
    texts = ["A good film.", "bad"]
    expected = model(tf.constant([[text] for text in texts]))
    np.testing.assert_allclose(flat(encode(texts)), expected, atol=1e-6)
    assert token_models.without_tokenizer(flat) == (flat, None)
    assert token_models.sizes(flat) == (4, 4)


def test_a_tokenizer_that_does_something_else_is_refused():
    layer = keras.layers.TextVectorization(
        output_sequence_length=4, vocabulary=["a"], split="character"
    )
    model = keras.Sequential([keras.Input((1,), dtype="string"), layer, keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="'split': 'character'"):
        token_models.without_tokenizer(model)


def test_vocabularies_of_files(tmp_path):
    (tmp_path / "v.txt").write_text("good\nfilm\n")
    encode = token_models.read_vocabulary(tmp_path / "v.txt", None)
    assert encode.vocabulary == ("", "[UNK]", "good", "film")
    encode.save(tmp_path / "m.keras.encoder.json")
    assert token_models.beside(str(tmp_path / "m.keras")) == encode
    assert token_models.beside(str(tmp_path / "other.keras")) is None
    with pytest.raises(FileNotFoundError, match="vocabulary"):
        token_models.read_vocabulary(tmp_path / "none.txt", None)


def test_a_keras_3_model_of_texts_keeps_its_words(tmp_path):
    keras_3 = pytest.importorskip("keras")
    layer = keras_3.layers.TextVectorization(output_sequence_length=3)
    layer.adapt(["good film", "bad film"])
    model = keras_3.Sequential([
        keras_3.Input((), dtype="string"), layer, keras_3.layers.Embedding(5, 2),
        keras_3.layers.GlobalAveragePooling1D(), keras_3.layers.Dense(1),
    ])  # fmt: skip
    model.save(tmp_path / "m.keras")
    texts = tf.constant(["Good film!", "a bad one"])
    found = open_model(tmp_path / "m.keras")
    np.testing.assert_allclose(found(texts), np.asarray(model(texts)), atol=1e-6)
    assert token_models.without_tokenizer(found)[1].vocabulary[2] == "film"
