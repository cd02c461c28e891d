"""`compare` on real models and files: every column has the value it should."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfkd import report

pytest.importorskip("ai_edge_litert")


def linear(kernel, bias=(0.0, 0.0, 0.0)):
    """x → x·kernel + bias, with given weights.

    The name is given too: a TFLite file holds it, so its size is known only then.
    """
    layers = [keras.Input((2,), name="x"), keras.layers.Dense(3, name="logits")]
    model = keras.Sequential(layers, name="linear")
    model.set_weights([np.asarray(kernel, "float32"), np.asarray(bias, "float32")])
    return model


RIGHT = [[5.0, 0, 0], [0, 5, 0]]
X = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], "float32")
Y = np.array([0, 1, 0, 1])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from tfkd import export

    return export.to_tflite(linear(RIGHT), tmp_path_factory.mktemp("m") / "right.tflite").path


@pytest.fixture(scope="module")
def table(file):
    models = {
        "right": linear(RIGHT),
        "seeds": [linear(RIGHT), linear(np.zeros((2, 3)), (1, 0, 0))],
        "file": str(file),
    }
    return report.compare(models, (X, Y), like={"file": linear(RIGHT)}, runs=7)


def test_all_columns(table, file):
    right, seeds, stored = table.rows
    assert right.accuracy.values == (100.0,)
    assert seeds.accuracy.values == (100.0, 50.0)
    assert seeds.accuracy.sd == pytest.approx(np.std([100, 50], ddof=1))
    assert stored.accuracy.values == (100.0,)
    assert {(row.params, row.macs) for row in table.rows} == {(9, 6)}
    assert stored.size == file.stat().st_size == right.size
    assert {row.latency.runs for row in table.rows} == {7}
    assert all(0 < row.latency.p50 <= row.latency.p99 for row in table.rows)
    assert "one thread" in table.notes[0] and "7 runs" in table.notes[0]


def test_a_data_set_of_batches_and_a_file_without_counts(file):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    (row,) = report.compare({"file": file}, data, runs=2, threads=2).rows
    assert row.accuracy.values == (100.0,)
    assert (row.params, row.macs) == (None, None)


@pytest.mark.parametrize(
    ("models", "data", "name"),
    [
        ({}, (X, Y), "models"),
        ([linear(RIGHT)], (X, Y), "models"),
        ({"a": 3}, (X, Y), r"models\['a'\]"),
        ({"a": []}, (X, Y), r"models\['a'\]"),
        ({"a": "missing.tflite"}, (X, Y), "missing.tflite"),
        ({"a": linear(RIGHT)}, X, "data"),
        ({"a": linear(RIGHT)}, (X, Y[:2]), "data"),
        ({"a": linear(RIGHT)}, (X[:0], Y[:0]), "data"),
        ({"a": linear(RIGHT)}, tf.data.Dataset.from_tensors((X, Y)).repeat(), "data"),
    ],
)
def test_bad_arguments(models, data, name):
    with pytest.raises((ValueError, TypeError), match=name):
        report.compare(models, data)


def test_like_must_name_a_model():
    with pytest.raises(ValueError, match="`like`"):
        report.compare({"a": linear(RIGHT)}, (X, Y), like={"b": linear(RIGHT)})


@pytest.mark.parametrize("form", [list, lambda batches: (one for one in batches)])
def test_batches_whose_labels_differ_in_rank(form):
    """(N,) and (N, 1) mean the same; of one-hot rows the shapes are named."""
    told = {"runs": 2, "throughput_batch": None}
    for first in (slice(0, 3), slice(3, None)):
        rest = slice(3, None) if first.start == 0 else slice(0, 3)
        batches = [(X[first], Y[first]), (X[rest], Y[rest, None])]
        (row,) = report.compare({"a": linear(RIGHT)}, form(batches), **told).rows
        assert row.accuracy.mean == 100.0
    one_hot = [(X[:3], Y[:3]), (X[3:], np.eye(3)[Y[3:]])]
    with pytest.raises(ValueError, match=r"labels of one shape in all batches, .*\(3,\), \(1, 3\)"):
        report.compare({"a": linear(RIGHT)}, form(one_hot), **told)
    names = [(X[:3], {"a": Y[:3]}), (X[3:], Y[3:])]
    with pytest.raises(ValueError, match="arrays of the same names"):
        report.compare({"a": linear(RIGHT)}, form(names), output="a", **told)
    with pytest.raises(ValueError, match="labels in every batch, or in none.*1 of 2"):
        report.compare({"a": linear(RIGHT)}, form([(X[:3], Y[:3]), X[3:]]), **told)


def test_throughput_in_batches_of_what_each_takes(file, tmp_path):
    from tfkd import export

    two = export.to_tflite(linear(RIGHT), tmp_path / "two.tflite", batch_size=2).path
    free = export.to_tflite(linear(RIGHT), tmp_path / "free.tflite", batch_size=None).path
    sizes = []

    def function(x):
        sizes.append(len(x))
        return x @ np.asarray(RIGHT)

    models = {"keras": linear(RIGHT), "one": file, "two": two, "free": free, "call": function}
    table = report.compare(models, (X, Y), runs=6, throughput_batch=8)
    rows = {row.model: row for row in table.rows}
    batches = {name: row.throughput_batch for name, row in rows.items()}
    assert batches == {"keras": 8, "one": 1, "two": 2, "free": 8, "call": 8}
    assert all(row.throughput > 0 for row in table.rows)
    assert rows["one"].throughput == pytest.approx(1000 / rows["one"].latency.mean)
    # 4 examples for the accuracy, twice, then a first call, 10 to warm up and 6 runs (of two
    # calls) of one example, and a first call, 3 to warm up and 5 runs of eight.
    assert sizes == [4] * 2 + [1] * 23 + [8] * 14
    # Two at a time is no time of one.
    assert rows["two"].latency is None and rows["two"].accuracy.mean == 100.0
    assert "two takes 2 examples" in table.notes[0]
    assert "8 examples a call (one: 1, two: 2), 5 runs" in table.notes[1]
    assert rows["call"].size is None and rows["free"].size == free.stat().st_size


def test_a_batch_of_one_takes_the_times_of_the_latency(file):
    (row,) = report.compare({"a": file}, (X, Y), runs=3, throughput_batch=None).rows
    assert row.throughput_batch == 1
    assert row.throughput == pytest.approx(1000 / row.latency.mean)


def test_predictors_and_seeds_of_files(file):
    from tfkd import runtime

    models = {"object": runtime.Predictor(file, threads=2), "seeds": [file, str(file)]}
    first, second = report.compare(models, (X, Y), runs=2, like={"object": linear(RIGHT)}).rows
    assert first.size == second.size == file.stat().st_size
    assert first.accuracy.values == (100.0,) and second.accuracy.values == (100.0, 100.0)
    assert (first.params, first.macs) == (9, 6)


def test_examples_with_several_inputs(tmp_path):
    from tfkd import export

    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Subtract()([a, b]))
    path = export.to_tflite(model, tmp_path / "m.tflite").path
    # a - b has its larger part where X has it, but in the last example.
    x = {"a": X, "b": np.array([[0, 0], [0, 0], [0, 0], [0, 5]], "float32")}
    models = {"keras": model, "file": path, "function": lambda x: x["a"] - x["b"]}
    for data in ((x, Y), tf.data.Dataset.from_tensor_slices((x, Y)).batch(3)):
        table = report.compare(models, data, runs=2)
        assert [row.accuracy.mean for row in table.rows] == [75.0] * 3
    with pytest.raises(ValueError, match="`data`.*as many examples for each input"):
        report.compare(models, ({"a": X, "b": X[:2]}, Y))
    with pytest.raises(TypeError, match=r"models\['file'\]` does not run.*\['a', 'b'\]"):
        report.compare({"file": path}, (X, Y), runs=2)


def test_another_original(file):
    models = {"file": file, "keras": linear(RIGHT)}
    table = report.compare(models, (X, Y), runs=2, original="keras")
    assert [one.model for one in table.against()] == ["file"]
    assert table.against()[0].points == 0.0
    with pytest.raises(ValueError, match="`original`"):
        report.compare(models, (X, Y), original="teacher")


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda x: {"a": x, "b": x}, r"models\['f'\]`.*one output.*\['a', 'b'\]"),
        (lambda x: (x, x), r"models\['f'\]`.*one output.*2 outputs"),
        (lambda x: x[:1], r"models\['f'\]`.*4 outputs"),
    ],
)
def test_outputs_that_are_no_scores(outputs, said):
    with pytest.raises(ValueError, match=said):
        report.compare({"f": outputs}, (X, Y), runs=2)


def two_outputs():
    """x → 5·x as class scores in 2 classes, and the sum of x less 0.5."""
    inputs = keras.Input((2,))
    layers = [keras.layers.Dense(2, name="class-scores"), keras.layers.Dense(1, name="box")]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    model.set_weights([5 * np.eye(2), np.zeros(2), np.ones((2, 1)), np.array([-0.5])])
    return model


def test_the_output_that_is_named(tmp_path):
    from tfkd import export

    model = two_outputs()
    models = {"keras": model, "file": export.to_tflite(model, tmp_path / "m.tflite").path}
    models |= {"dict": lambda x: {"class-scores": 1 - x, "box": x}, "one": lambda x: x}
    told = {"runs": 2, "throughput_batch": None}
    table = report.compare(models, (X, Y), output="class-scores", **told)
    assert [row.accuracy.mean for row in table.rows] == [100.0, 100.0, 0.0, 100.0]
    models = {name: models[name] for name in ("keras", "file")}
    labels = {"class-scores": Y, "box": np.array([[1.0], [0.25], [0.5], [0.75]])}
    table = report.compare(models, (X, labels), output="box", task="regression", **told)
    errors = [row.mean_absolute_error.mean for row in table.rows]  # 0.5 less each label
    assert errors == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(
    ("labels", "output", "said"),
    [
        (Y, None, r"models\['m'\]`.*\['class-scores', 'box'\].*output='class-scores'"),
        (Y, "class_score", r"`output`.*'class-scores', 'box'.*Did you mean 'class-scores'"),
        ([Y, np.zeros((4, 1))], None, r"`data`.*labels for 2 outputs.*output="),
        ({"class-scores": Y}, "box", r"`output`.*'class-scores'.*'box'"),
        ({"class-scores": Y}, None, r"`output`.*'class-scores'.*None"),
    ],
)
def test_an_output_that_is_not_named(labels, output, said):
    with pytest.raises(ValueError, match=said):
        report.compare({"m": two_outputs()}, (X, labels), runs=2, output=output)


def test_one_output_in_a_dict():
    (row,) = report.compare({"f": lambda x: {"logits": x}}, (X, Y), runs=2).rows
    assert row.accuracy.mean == 100.0


def test_several_labels_and_numbers_have_their_own_columns(file):
    models = {"keras": linear(RIGHT), "file": file, "worse": lambda x: x @ np.array(RIGHT) + 0.5}
    outputs = X @ np.array(RIGHT)
    told = {"runs": 2, "throughput_batch": None}
    table = report.compare(models, (X, outputs - 0.25), task="regression", **told)
    errors = [row.mean_absolute_error.mean for row in table.rows]
    np.testing.assert_allclose(errors, [0.25, 0.25, 0.75], rtol=1e-5)
    assert str(table.against()[1]).startswith("worse: mean absolute error 0.500 higher (worse)")
    assert "lower is better" in table.text() and "accuracy" not in table.text()
    # As logits the outputs say yes above 0, and "worse" says it always.
    several = (outputs > 0).astype(int)
    several[0] = 1, 1, 0
    with pytest.warns(UserWarning, match="`data`: .*multi-label") as caught:
        table = report.compare(
            {**models, "logits": lambda x: x @ np.array(RIGHT) - 1}, (X, several), **told
        )
    assert len([w for w in caught if "multi-label" in str(w.message)]) == 1
    assert [row.subset_accuracy.mean for row in table.rows] == [75.0, 75.0, 0.0, 75.0]
    assert table.head[1:3] == ("subset accuracy %", "mAP %")
    assert "4 examples; an output above 0 is positive." in table.text()


def test_names_weights_and_places(file):
    told = {"runs": 2, "throughput_batch": None}
    names = ["a", "b", "c"]
    (row,) = report.compare({"f": file}, (X, list("abac")), class_names=names, **told).rows
    assert row.accuracy.mean == 75.0
    (row,) = report.compare({"f": file}, (X, [0, 1, 0, 2], [1, 1, 1, 0]), **told).rows
    assert row.accuracy.mean == 100.0
    data = tf.data.Dataset.from_tensor_slices((X, [0, 1, 2, 2], [1.0, 0.5, 0.0, 2.0])).batch(3)
    (row,) = report.compare({"f": file}, data, **told).rows
    assert row.accuracy.mean == pytest.approx(200 / 3)
    tags = {"f": lambda x: np.stack([x, 1 - x], 1)}  # two places, two classes
    table = report.compare(tags, (X, np.c_[Y, -np.ones(4, int)]), ignore_class=-1, **told)
    assert table.rows[0].accuracy.mean == 100.0
    (row,) = report.compare({"f": lambda x: x[:, 1:]}, (X, Y), **told).rows
    assert row.accuracy.mean == 100.0


@pytest.mark.parametrize(
    ("function", "labels", "said"),
    [
        (lambda x: x * np.nan, Y, r"models\['f'\]`.*`data`.*Example 0 holds NaN"),
        (lambda x: x, Y + 1, r"models\['f'\]`.*`labels`.*labels - 1"),
        (lambda x: x, list("abab"), "class_names="),
        (lambda x: x, Y == 1, "bool"),
        (lambda x: x, np.zeros((4, 3)), r"for 4 examples.*report\.latency_table\(models, x\)"),
    ],
)
def test_labels_and_outputs_that_mean_nothing(function, labels, said):
    with pytest.raises(ValueError, match=said):
        report.compare({"f": function}, (X, labels), runs=2)


def test_every_kind_of_file(tmp_path):
    """They take turns, each in its own runtime, and their sizes are what lies on the disk."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    from tfkd import export

    model = linear(RIGHT)
    export.to_onnx(model, tmp_path / "m.onnx", batch_size=None)
    export.to_saved_model(model, tmp_path / "saved")
    model.save(tmp_path / "m.keras")
    paths = [tmp_path / name for name in ("m.onnx", "saved", "m.keras")]
    table = report.compare({path.name: path for path in paths}, (X, Y), runs=3)
    found = {row.model: row for row in table.rows}
    assert [row.accuracy.mean for row in table.rows] == [100.0] * 3
    assert [row.throughput_batch for row in table.rows] == [32] * 3
    assert all(row.latency.p50 > 0 and row.throughput > 0 for row in table.rows)
    for name in ("m.onnx", "m.keras"):
        assert found[name].size == (tmp_path / name).stat().st_size
    inside = [path.stat().st_size for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert len(inside) > 2 and found["saved"].size == sum(inside)
    grid = report.latency_table({p.name: p for p in paths}, X, batch_sizes=(1, 3), runs=2)
    assert all(row.latency.runs == 2 for row in grid.rows)


def test_a_model_in_float64_is_run_as_its_copy_in_float32():
    x = np.random.default_rng(0).normal(size=(16, 4))
    kind = {"dtype": "float64"}
    model = keras.Sequential([keras.Input((4,), **kind), keras.layers.Dense(3, **kind)])
    y = model.predict(x, verbose=0).argmax(-1)
    result = report.compare({"double": model}, (x, y), runs=3)
    assert "double computes in float64 and was run as its copy in float32" in str(result)
    assert "100.0" in str(result)
    assert {weight.dtype.name for weight in model.weights} == {"float64"}


def test_a_model_that_tflite_can_not_hold_is_measured_as_a_saved_model():
    texts = np.array(["a b", "b", "b c", "a a"])
    words = keras.layers.TextVectorization(
        vocabulary=["a", "b"], output_mode="multi_hot", name="words"
    )
    logits = keras.layers.Dense(2, use_bias=False, name="logits")
    model = keras.Sequential([keras.Input((), dtype="string", name="text"), words, logits])
    logits.set_weights([np.array([[0, 0], [1, 0], [0, 2]], "float32")])  # [other], a, b
    with pytest.warns(UserWarning, match=r"`models\['texts'\]` can't become a TFLite.*'words'"):
        table = report.compare({"texts": model}, (texts, [0, 1, 1, 0]), runs=3)
    (row,) = table.rows
    assert row.accuracy.values == (75.0,) and (row.runtime, row.params) == ("TensorFlow", 6)
    assert row.size > 1000 and row.latency.runs == 3 and row.throughput_batch == 32
    assert "texts: a SavedModel, as TFLite can't hold it; TensorFlow ran it." in table.notes
    with pytest.warns(UserWarning, match="can't become a TFLite file"):
        times = report.latency_table({"texts": model}, texts, batch_sizes=(1, 2), runs=2)
    assert [row.latency.runs for row in times.rows] == [2, 2]
    logits.set_weights([np.full((3, 2), np.nan)])
    with pytest.raises(ValueError, match=r"`models\['texts'\]` can't be measured.*'logits"):
        report.compare({"texts": model}, (texts, [0, 1, 1, 0]), runs=3)


def test_weights_that_are_no_numbers_are_refused():
    for weights in (["0", "1", "1", "1"], np.array([0, 1, 1, None])):
        with pytest.raises(TypeError, match="`sample_weight`: expected numbers, not"):
            report.compare({"m": linear(RIGHT)}, (X, Y, weights), runs=3)
