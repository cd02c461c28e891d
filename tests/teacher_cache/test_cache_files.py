"""Files of a cache: whole or absent, gone on with, refused where they are of something else."""

from __future__ import annotations

import errno
import json
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from toys import CROSSENTROPY, data, net

import tfkd
from tfkd import TeacherCache, losses
from tfkd.teacher_cache import shards

X, Y = data(20)


class Counting:
    """A teacher that counts its passes, and fails at one of them."""

    def __init__(self, fails_at=None):
        self.kernel = tf.constant(np.random.default_rng(0).normal(size=(5, 3)), tf.float32)
        self.calls, self.fails_at = [], fails_at

    def __getstate__(self):
        return {}

    def __call__(self, x):
        def count(values):
            if len(self.calls) == self.fails_at:
                raise RuntimeError("killed")
            self.calls.append(len(values))
            return values

        (x,) = tf.numpy_function(count, [x], [tf.float32])
        x.set_shape((None, 5))
        return x @ self.kernel


def noisy(batch, seed):
    return batch + tf.random.stateless_normal(tf.shape(batch), seed)


def build(path, teacher=None, x=X, **options):
    options = {"dtype": "float32", "progress": False, "shard_size": 6, "batch_size": 6, **options}
    return TeacherCache.build(path, teacher or net(8, seed=2), x, **options)


def files(path):
    return {file.name: file.stat().st_mtime_ns for file in path.iterdir()}


def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    teacher = net(8, seed=2)
    whole = build(tmp_path / "whole", teacher)
    write, done = shards.Shards.write, []

    def failing(self, shard, arrays):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(shard)
        write(self, shard, arrays)

    monkeypatch.setattr(shards.Shards, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "c", teacher)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="2 of 4 shards are not finished"):
        TeacherCache(tmp_path / "c")
    before = files(tmp_path / "c")
    made = build(tmp_path / "c", teacher)
    after = files(tmp_path / "c")
    assert {name: after[name] for name in before} == before
    rows = np.arange(20)
    for name, value in whole.lookup(rows).items():
        np.testing.assert_array_equal(made.lookup(rows)[name], value)


def test_a_finished_cache_is_not_made_again(tmp_path):
    teacher = net(8, seed=2)
    build(tmp_path, teacher)
    before = files(tmp_path)
    teacher.trainable = False  # as a Distiller leaves it
    build(tmp_path, teacher)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teacher": net(8, seed=3)}, "another teacher"),
        ({"x": X + 1}, "another data"),
        ({"x": X[:10]}, "another data and another number of examples"),
        ({"views": 2, "augment": noisy}, "another augment and another views"),
        ({"preprocess": lambda x: 2 * x}, "another preprocess"),
        ({"dtype": "float16"}, "another dtype"),
        ({"layers": ["hidden"]}, "another teacher and another layers"),
        ({"top_k": 2, "temperature": 2.0}, "another top_k and another temperature"),
    ],
)
def test_a_stale_cache_is_refused_and_says_why(tmp_path, changed, words):
    build(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=words):
        build(tmp_path, **changed)
    assert files(tmp_path) == before
    build(tmp_path, **changed, overwrite=True)
    with pytest.raises(ValueError, match="stale"):
        build(tmp_path)


def test_overwriting_leaves_other_files(tmp_path):
    (tmp_path / "notes.npy").write_text("mine")
    build(tmp_path)
    build(tmp_path, net(8, seed=3), overwrite=True, shard_size=20)
    names = set(files(tmp_path))
    assert "notes.npy" in names
    assert not [name for name in names if name.startswith("00001")]


def damage(how, path):
    file = path / "00001.final.0.npy"
    content = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(content[:-5])
    elif how == "flipped":
        content[-3] ^= 1
        file.write_bytes(content)
    elif how == "missing":
        file.unlink()
    elif how == "record":
        (path / "00001.json").write_text("{")
    elif how == "document":
        text = (path / "cache.json").read_text().replace('"count": 20', '"count": 21')
        (path / "cache.json").write_text(text)
    elif how == "no document":
        (path / "cache.json").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "has .* bytes, not"),
        ("flipped", "has changed since"),
        ("missing", "is missing"),
        ("record", "can't be read"),
        ("document", "was changed"),
        ("no document", "There is no"),
    ],
)
def test_damage_is_found_and_fixed(tmp_path, how, words):
    rows = np.arange(20)
    expected = build(tmp_path).lookup(rows)["final_output"]
    damage(how, tmp_path)
    with pytest.raises(ValueError, match=words):
        TeacherCache(tmp_path)
    if how == "document":
        with pytest.raises(ValueError, match="was changed"):
            build(tmp_path)
    made = build(tmp_path, overwrite=how == "document")
    np.testing.assert_array_equal(made.lookup(rows)["final_output"], expected)


def test_sizes_alone_are_checked_if_asked(tmp_path):
    build(tmp_path)
    damage("flipped", tmp_path)
    TeacherCache(tmp_path, checksums=False)
    damage("truncated", tmp_path)
    with pytest.raises(ValueError, match="bytes"):
        TeacherCache(tmp_path, checksums=False)


def test_a_full_disk_is_seen_before_anything_is_computed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OSError, match="needs .* more bytes, and the disk has 100 left") as caught:
        build(tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path, monkeypatch):
    save, count = np.save, []

    def full(file, array, **options):
        count.append(1)
        if len(count) > 3:  # keys and scores of the first shard, keys of the second
            file.write(b"part of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="1 of 4 shards are finished and stay") as caught:
        build(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not [name for name in files(tmp_path) if "tmp" in name]
    monkeypatch.undo()
    before = files(tmp_path)
    build(tmp_path)
    assert files(tmp_path)["00000.final.0.npy"] == before["00000.final.0.npy"]


def test_processes_share_the_work(tmp_path):
    with pytest.raises(ValueError, match="2 of 4 shards are not finished"):
        build(tmp_path, part=(0, 2))
    assert {n for n in files(tmp_path) if n.endswith("final.0.npy")} == {
        "00000.final.0.npy",
        "00002.final.0.npy",
    }
    made = build(tmp_path, part=(1, 2), wait=1.0)
    z = made.lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(z, net(8, seed=2)(X), rtol=1e-5, atol=1e-5)


def test_processes_that_begin_together_keep_each_others_shards(tmp_path):
    """One writes a shard before the other, which has seen an empty folder, begins it."""
    with pytest.raises(ValueError, match="not finished"):
        build(tmp_path, part=(0, 2))
    before = files(tmp_path)
    (tmp_path / "cache.json").unlink()
    build(tmp_path, part=(1, 2))
    after = files(tmp_path)
    assert after["00000.final.0.npy"] == before["00000.final.0.npy"]


def test_shards_of_another_cache_are_not_taken_for_finished(tmp_path):
    build(tmp_path, net(8, seed=3))
    (tmp_path / "cache.json").unlink()
    z = build(tmp_path).lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(z, net(8, seed=2)(X), rtol=1e-5, atol=1e-5)
    document = (tmp_path / "cache.json").read_text()
    build(tmp_path, net(8, seed=3), overwrite=True)
    (tmp_path / "cache.json").write_text(document)
    with pytest.raises(ValueError, match="of another cache"):
        TeacherCache(tmp_path)


def test_wrong_data_and_functions_are_refused_in_training(tmp_path):
    cache = build(tmp_path, views=2, augment=noisy)
    with pytest.raises(ValueError, match="20 of 20 are not in .*, the first is example 0"):
        cache.batches(X + 1, Y, 4, augment=noisy)
    with pytest.raises(ValueError, match="1 of 2 are not in .*, the first is example 1"):
        cache.keyed(np.stack([X[3], X[3] + 1]))
    with pytest.raises(ValueError, match="`augment`: expected the augment that the cache was"):
        cache.batches(X, Y, 4)
    with pytest.raises(ValueError, match="`preprocess`: expected the preprocess"):
        cache.batches(X, Y, 4, augment=noisy, preprocess=abs)
    with pytest.raises(ValueError, match="`view`: expected numbers from 0 to 1"):
        cache.lookup([0], 2)
    with pytest.raises(ValueError, match="`index`: expected numbers from 0 to 19"):
        cache.lookup([20])
    with pytest.raises(TypeError, match="`index`: expected integers"):
        cache.lookup([0.5])
    with pytest.raises(ValueError, match="a seed to draw one of the 2 views"):
        cache.attach(augment=noisy)({"inputs": X[:2], "index": tf.constant([0, 1])})
    with pytest.raises(ValueError, match="`batch`: expected a batch"):
        cache.attach(augment=noisy)(X)
    with pytest.raises(ValueError, match="`y`: expected 20 rows"):
        cache.batches(X, Y[:3], 4, augment=noisy)
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        context = tf.distribute.InputContext(3, 0, 3)
        cache.batches(X, Y, 4, augment=noisy, input_context=context)


def test_the_distiller_says_what_does_not_fit(tmp_path):
    cache = build(tmp_path / "a")
    soft = losses.LogitsDistillation(2.0)
    distiller = tfkd.Distiller(cache, net(4), soft)
    distiller.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match="expected batches with the outputs of the teacher cache"):
        distiller.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="expected batches with the outputs of the teacher cache"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), verbose=0)
    other = build(tmp_path / "b", net(8, seed=3))
    with pytest.raises(ValueError, match="received those of another teacher"):
        distiller.fit(other.batches(X, Y, 4), steps_per_epoch=1, verbose=0)
    with pytest.raises(ValueError, match="one cached teacher alone"):
        tfkd.Distiller([cache, net(8)], net(4), soft)
    with pytest.raises(ValueError, match="must score the same classes"):
        tfkd.Distiller(cache, net(4, classes=4), soft)
    hint = losses.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    with pytest.raises(ValueError, match=r"holds \(no layers\).*layers=\['hidden', ...\]"):
        tfkd.Distiller(cache, net(4), hint)


def test_the_best_scores_serve_one_temperature_of_soft_targets(tmp_path):
    cache = build(tmp_path, top_k=2, temperature=2.0)
    with pytest.raises(ValueError, match="`temperature`: expected 2.0, that of the cache"):
        tfkd.Distiller(cache, net(4), losses.LogitsDistillation(3.0))
    falling = tfkd.schedules.Linear(4.0, 1.0, 0, 10)
    with pytest.raises(ValueError, match="`temperature`: expected 2.0"):
        tfkd.Distiller(cache, net(4), losses.LogitsDistillation(falling))
    for loss in (
        losses.DecoupledDistillation(2.0),
        losses.LogitsDistillation(2.0, "mse"),
        losses.PearsonDistillation(2.0),
        losses.TransformedTeacherMatching(2.0),
    ):
        with pytest.raises(ValueError, match="without top_k for other losses"):
            tfkd.Distiller(cache, net(4), loss)
    with pytest.raises(ValueError, match="`standardize`.*Z-score needs all.*without top_k"):
        tfkd.Distiller(cache, net(4), losses.LogitsDistillation(2.0, standardize=True))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"dtype": "float64"}, ValueError, "`dtype`: expected one of"),
        ({"views": 2}, ValueError, "`views`: expected 1 without `augment`"),
        ({"views": 0}, ValueError, "`views`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"shard_size": 0}, ValueError, "`shard_size`"),
        ({"part": (2, 2)}, ValueError, "`part`: expected"),
        ({"part": 2}, TypeError, "`part`: expected"),
        ({"layers": [3]}, TypeError, "`layers`"),
        ({"layers": ["hiden"]}, ValueError, "Did you mean 'hidden'"),
        ({"top_k": 2}, ValueError, "`temperature`: expected the temperature of the loss"),
        ({"top_k": 3, "temperature": 1.0}, ValueError, "fewer than the 3 classes"),
        ({"temperature": 1.0}, ValueError, "`temperature`: expected None without top_k"),
        ({"augment": 3}, TypeError, "`augment`: expected a callable"),
        ({"x": X[:0]}, ValueError, "`data`: expected at least one example"),
        ({"x": {"a": X, "b": X[:3]}}, ValueError, "`data`: expected as many examples"),
        ({"x": tf.data.Dataset.range(3)}, TypeError, "`.batch"),
        ({"teacher": "model.keras"}, ValueError, "Load it first"),
    ],
)
def test_bad_arguments(tmp_path, options, kind, words):
    with pytest.raises(kind, match=words):
        build(tmp_path / "c", **options)
    assert not (tmp_path / "c" / "cache.json").exists()


def test_numbers_that_are_none(tmp_path):
    x = X.copy()
    x[13] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in final.0 of example 13, view 0"):
        build(tmp_path / "a", x=x)
    huge = net(8, seed=2)
    huge.get_layer("scores").bias.assign([0.0, 1e5, 0.0])
    with pytest.raises(ValueError, match="store float32: float16 ends at 65504"):
        build(tmp_path / "b", huge, dtype="float16")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`path`: expected a folder"):
        build(tmp_path / "file")


def test_predictions_from_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    q = 1 / (1 + np.exp(-logits))

    def stored(name, *args, **options):
        options = {"dtype": "float32", "source": "elsewhere", **options}
        return TeacherCache.from_predictions(tmp_path / name, *args, **options)

    a = stored("a", logits, X).lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(a, logits, rtol=1e-6)
    b = stored("b", p, X, activation="softmax").lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(np.exp(b), p, rtol=1e-5)
    c = stored("c", q, X, activation="sigmoid").lookup(np.arange(20))["final_output"]
    np.testing.assert_allclose(c, logits, rtol=1e-4, atol=1e-5)
    views = stored("d", np.stack([logits, -logits], 1), X, views=2)
    np.testing.assert_allclose(views.lookup([4], 1)["final_output"][0], -logits[4], rtol=1e-6)
    hidden = rng.normal(size=(20, 7))
    many = stored("e", {"scores": logits}, layers={"hidden": hidden})
    np.testing.assert_allclose(many.lookup([4])["hidden"][0], hidden[4], rtol=1e-6)
    # Rows taken on trust: in this order, and in this number.
    assert many.keyed(X)["index"].tolist() == list(range(20))
    with pytest.raises(ValueError, match="the 20 examples that the outputs were given for"):
        many.keyed(X[:3])


def test_predictions_teach(tmp_path):
    teacher = net(8, seed=2)
    cache = TeacherCache.from_predictions(
        tmp_path, teacher(X).numpy(), X, source="by hand", dtype="float32"
    )
    results = []
    for one, outputs in ((cache, True), (teacher, False)):
        student = net(4, seed=5)
        distiller = tfkd.Distiller(one, student, losses.LogitsDistillation(2.0))
        distiller.compile("sgd", CROSSENTROPY)
        distiller.fit(cache.batches(X, Y, 4, outputs=outputs), steps_per_epoch=5, verbose=0)
        results.append(student.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "options", "kind", "words"),
    [
        (np.zeros((19, 3)), {}, ValueError, "`data`: expected 19 examples"),
        (np.full((20, 3), np.nan), {}, ValueError, "Row 0 holds NaN"),
        (np.full((20, 3), 1e6), {"dtype": "float16"}, ValueError, 'dtype="float32"'),
        (np.zeros((20, 3)), {"activation": "softmax"}, ValueError, "For logits pass"),
        (np.zeros((20, 3)), {"activation": "relu"}, ValueError, "`activation`"),
        (np.zeros((20, 3)), {"views": 2}, ValueError, r"\(N, 2, ...\)"),
        (["a"] * 20, {}, TypeError, "arrays of numbers"),
        ({"a": np.zeros(20), "b": np.zeros(3)}, {}, ValueError, "as many rows"),
        (np.zeros((20, 3)), {"source": 3}, TypeError, "`source`"),
    ],
)
def test_bad_predictions(tmp_path, outputs, options, kind, words):
    with pytest.raises(kind, match=words):
        options = {"source": "elsewhere", **options}
        TeacherCache.from_predictions(tmp_path / "c", outputs, X, **options)


REPEATED = np.arange(20)
REPEATED[[7, 11]] = [2, 5]  # the content of rows 7 and 11 is that of rows 2 and 5


def answers(kind):
    """Outputs for `X[REPEATED]`, the same for the same content, and how they are passed."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(20, 3))[REPEATED]
    if kind == "views":
        return np.stack([scores, -scores], 1), {"views": 2}
    if kind == "probabilities":
        p = np.exp(6 * scores)
        return p / p.sum(1, keepdims=True), {"activation": "softmax"}
    if kind == "classes":
        return scores.argmax(1), {}
    if kind == "layers":
        return rng.normal(size=(20, 2))[REPEATED], {"layers": {"hidden": scores}}
    return scores, {}


@pytest.mark.parametrize("kind", ["logits", "views", "probabilities", "classes", "layers"])
def test_two_outputs_for_one_example_are_refused(tmp_path, kind):
    outputs, options = answers(kind)

    def stored():
        path, x = tmp_path / "c", {"a": X[REPEATED], "b": X[REPEATED, :1]}
        return TeacherCache.from_predictions(path, outputs, x, source="toy", **options)

    changed = options["layers"]["hidden"] if kind == "layers" else outputs
    if kind != "classes":
        changed[7] *= 1 + 1e-5  # what another batch size does
    found = stored().keyed({"a": X[[2, 5]], "b": X[[2, 5], :1]})["index"]
    assert found.tolist() == [2, 5]
    changed[11] = changed[11] + 1 if kind == "classes" else changed[11][..., ::-1]
    if kind == "probabilities":
        changed[11] = [0.5, 0.3, 0.2]
    name = r"layers\['hidden'\]" if kind == "layers" else "outputs"
    with pytest.raises(ValueError, match=f"`{name}`.*row 11 than in row 5.*1 such rows"):
        stored()


def test_a_teacher_that_answers_otherwise_each_time_is_said(tmp_path):
    """Dropout that is on, and an augmentation without its seed."""
    inputs = keras.Input((5,))
    dropped = keras.layers.Dropout(0.5)(inputs, training=True)
    random = keras.Model(inputs, keras.layers.Dense(3)(dropped))
    with pytest.warns(UserWarning, match="the teacher gives other outputs for the same") as said:
        TeacherCache.build(tmp_path / "a", random, X, progress=False)
    assert [warning.filename for warning in said] == [__file__]
    options = {"augment": lambda x, seed: x + tf.random.normal(tf.shape(x)), "progress": False}
    with pytest.warns(UserWarning, match="the teacher or `augment` gives other outputs"):
        TeacherCache.build(tmp_path / "b", Counting(), X, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options["augment"] = lambda x, seed: x + tf.random.stateless_normal(tf.shape(x), seed)
        TeacherCache.build(tmp_path / "c", net(4), X, **options)


def test_reading_gives_pages_back(tmp_path, monkeypatch):
    cache = build(tmp_path)
    released = []
    monkeypatch.setattr(shards, "_RELEASE", 3 * 4096 * 2)
    monkeypatch.setattr(
        shards, "_advise", lambda array, advice: released.append(advice), raising=True
    )
    for _ in range(4):
        cache.lookup([0, 7, 13])
    assert released.count("MADV_DONTNEED") >= 3
    np.testing.assert_allclose(
        cache.lookup([13])["final_output"], net(8, seed=2)(X[13:14]), rtol=1e-5, atol=1e-5
    )


def test_the_document_is_plain_json(tmp_path):
    build(tmp_path)
    content = json.loads((tmp_path / "cache.json").read_text())
    assert content["count"] == 20
    assert set(content["parts"]) == {"teacher", "data", "augment", "preprocess"}
