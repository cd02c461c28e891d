"""`latency_table`: which combinations are measured, on what, and how they are shown."""

import json

import numpy as np
import pytest
import tf_keras as keras

from tfkd import report, runtime

X = np.arange(12, dtype="float32").reshape(3, 4)


def dense(name="logits"):
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name=name)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("ai_edge_litert")
    from tfkd import export

    folder = tmp_path_factory.mktemp("files")
    return {
        "open": str(export.to_tflite(dense(), folder / "open.tflite", batch_size=None).path),
        "two": export.to_tflite(dense(), folder / "two.tflite", batch_size=2).path,
    }


def test_every_combination_and_dashes_for_what_a_file_does_not_take(files):
    seen = []
    models = {**files, "keras": dense(), "function": lambda x: seen.append(x.copy())}
    table = report.latency_table(
        models, X, threads=(1, 2), batch_sizes=[2, 5], warmup=1, runs=4, seconds=None
    )
    found = {(row.model, row.threads, row.batch): row.latency for row in table.rows}
    expected = [(n, t, b) for n in ("open", "two", "keras") for t in (1, 2) for b in (2, 5)]
    assert list(found) == [*expected, ("function", None, 2), ("function", None, 5)]
    for (name, _, batch), times in found.items():
        assert (times is None) == (name == "two" and batch == 5)
        assert times is None or (times.runs == 4 and 0 < times.p50 <= times.p99)
    # A first call, one round to warm up, four that count, of two calls; rows repeat from the first.
    assert [len(x) for x in seen].count(2) == [len(x) for x in seen].count(5) == 10
    np.testing.assert_array_equal(max(seen, key=len), X[[0, 1, 2, 0, 1]])
    lines = table.text().splitlines()
    assert lines[0].split() == [
        *("model", "threads", "batch", "p50", "ms", "p90", "ms", "p99", "ms", "mean", "ms"),
        "examples/s",
    ]
    assert lines[7].split() == ["two", "1", "5", *"–" * 5]
    assert "4 runs each, in turns, after 1 to warm up." in lines
    assert "numpy" in lines[-1]


def test_a_file_is_run_on_the_batch_that_it_is_timed_at(files, monkeypatch):
    shapes = []
    original = runtime.Predictor.run_one

    def spy(self, *arrays):
        found = original(self, *arrays)
        shapes.append((self.threads, arrays[0].shape, np.asarray(found).shape))
        return found

    monkeypatch.setattr(runtime.Predictor, "run_one", spy)
    models = {"open": files["open"]}
    report.latency_table(models, X, threads=(1, 2), batch_sizes=(1, 5), warmup=0, runs=1)
    assert sorted(shapes) == [(t, (b, 4), (b, 3)) for t in (1, 2) for b in (1, 1, 5, 5)]


ROWS = [
    report.LatencyRow("a|b", 2, 8, report.Latency.of([1.0, 3.0])),
    report.LatencyRow("c", None, 8),
]


def test_throughput_is_the_batch_over_the_mean():
    assert ROWS[0].throughput == 8 / 0.002
    assert ROWS[1].throughput is None
    line = report.LatencyTable(ROWS).text().splitlines()[2]
    assert line.split() == ["a|b", "2", "8", "2.000", "2.800", "2.980", "2.000", "4,000"]


def test_printed_and_saved(tmp_path, capsys):
    table = report.LatencyTable(ROWS, ["A note."])
    print(table)
    printed = capsys.readouterr().out
    assert "a|b" in printed and "4,000" in printed and "A note." in printed
    assert str(table) == table.text()
    assert table.save(tmp_path / "new") == tmp_path / "new"
    lines = (tmp_path / "new" / "latency.md").read_text().splitlines()
    assert lines[2] == "| a\\|b | 2 | 8 | 2.000 | 2.800 | 2.980 | 2.000 | 4,000 |"
    assert "A note." in lines
    found = json.loads((tmp_path / "new" / "latency.json").read_text())
    assert found["rows"][1] == {"model": "c", "batch": 8}
    assert found["rows"][0]["throughput"] == 4000.0
    assert found["machine"]["cores"] >= 1


def test_several_inputs():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Concatenate()([a, b]))
    pytest.importorskip("ai_edge_litert")
    seen = []
    models = {"keras": model, "function": lambda x: seen.append(sorted(x))}
    x = {"b": np.ones((2, 3), "float32"), "a": np.ones((2, 2), "float32")}
    table = report.latency_table(models, x, batch_sizes=4, runs=2)
    assert [row.latency.runs for row in table.rows] == [2, 2]
    assert seen[0] == ["a", "b"]
    with pytest.raises(ValueError, match=r"models\['keras'\]` does not run.*\['a', 'b'\]"):
        report.latency_table(models, {"c": x["a"]}, runs=2)


def test_an_open_predictor_has_one_batch_at_a_time(files):
    predictor = runtime.Predictor(files["open"], threads=2)
    (row,) = report.latency_table({"a": predictor}, X, batch_sizes=3, runs=2).rows
    assert (row.threads, row.batch, row.latency.runs) == (2, 3, 2)
    with pytest.raises(TypeError, match=r"models\['a'\].*Pass its path"):
        report.latency_table({"a": predictor}, X, batch_sizes=(1, 3), runs=2)


@pytest.mark.parametrize(
    ("models", "x", "options", "said"),
    [
        ({}, X, {}, "`models`"),
        ([len], X, {}, "`models`"),
        ({1: len}, X, {}, "`models`"),
        ({"a": 3}, X, {}, r"`models\['a'\]`.*callable"),
        ({"a": "none.tflite"}, X, {}, r"`models\['a'\]`.*exists.*none.tflite"),
        ({"a": len}, X[:0], {}, "`data`"),
        ({"a": len}, 3.0, {}, "`data`"),
        ({"a": len}, {"a": X, "b": X[:2]}, {}, "`data`.*as many"),
        ({"a": len}, X, {"threads": 0}, "`threads`"),
        ({"a": len}, X, {"threads": ()}, "`threads`"),
        ({"a": len}, X, {"batch_sizes": (1, 2.5)}, "`batch_sizes`"),
        ({"a": len}, X, {"batch_sizes": "32"}, "`batch_sizes`"),
        ({"a": len}, X, {"runs": 0}, "`runs`"),
    ],
)
def test_bad_arguments(models, x, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        report.latency_table(models, x, **options)


def test_files_that_do_not_run(files, tmp_path):
    with pytest.raises(ValueError, match=r"`batch_sizes`.*\[1, 3\]"):
        report.latency_table({"two": files["two"]}, X, batch_sizes=(1, 3))
    with pytest.raises(ValueError, match=r"models\['open'\]` does not run.*\(batch, 4\)"):
        report.latency_table(files, X[:, :2], batch_sizes=2)
    with pytest.raises(ValueError, match="`rows`"):
        report.LatencyTable([])
    with pytest.raises(TypeError, match="`rows`"):
        report.LatencyTable([3])
