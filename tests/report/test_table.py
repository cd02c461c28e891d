"""Tables: text, Markdown, JSON, files; and the plots."""

import builtins
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import report
from tfkd.report import plots, trade_offs
from tfkd.results import si, size_text


def example(**options):
    times = report.Latency(0.5, 0.6, 0.75, 0.52, 100)
    rows = [
        report.Row(
            "teacher", report.seed_stats(99.0), 170_794, 41_300_000, 700_000, times, "", 2500.0
        ),
        report.Row("a|b", report.seed_stats([91.0, 92.0]), 1_454, 53_000, 8_504, times),
        report.Row("unknown"),
    ]
    return report.Table(rows, ["A note."], **options)


def test_text_cells():
    lines = example().text().splitlines()
    assert lines[0].split() == [
        *("model", "accuracy", "%", "parameters", "MACs", "file"),
        *("p50", "ms", "p90", "ms", "p99", "ms", "examples/s"),
    ]
    assert lines[2].split() == [
        *("teacher", "99.0", "170,794", "41.3", "M", "683.6", "KiB"),
        *("0.500", "0.600", "0.750", "2,500"),
    ]
    assert lines[3].split()[1:5] == ["91.5", "±", "0.7", "1,454"]
    assert lines[4].split() == ["unknown", *"–" * 8]
    assert lines[-1] == "A note."
    assert len({len(line) for line in lines[:5]}) == 1


def test_markdown_is_one_table_with_escaped_bars():
    lines = example().markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert {line.replace("\\|", "").count("|") for line in table} == {10}
    assert "a\\|b" in lines[3]
    assert "tensorflow" in lines[-1]


def test_json_holds_every_seed_and_the_machine(tmp_path):
    example().save(tmp_path, plots=False)
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["rows"][1]["accuracy"]["values"] == [91.0, 92.0]
    assert found["rows"][0]["latency"]["p99"] == 0.75
    assert found["rows"][2] == {"model": "unknown"}
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert found["rows"][0]["throughput"] == 2500.0
    assert (found["original"], found["pareto"]) == ("teacher", ["teacher"])
    assert found["against"][0]["points"] == pytest.approx(-7.5)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["table.html", "table.json", "table.md"]


def test_save_draws_all_plots(tmp_path):
    curves = {"test accuracy (%)": {"alone": [[50, 80, 90], [55, 82, 91]], "teacher": [60, 90, 99]}}
    example(curves=curves).save(tmp_path / "new")
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {
        *("table.md", "table.json", "table.html", "accuracy_latency.png", "accuracy_size.png"),
        "test_accuracy_curves.png",
    }
    for name in names:
        if name.endswith("png"):
            assert (tmp_path / "new" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def block(monkeypatch, package):
    """Makes `import package` fail as if it were not installed."""
    original = builtins.__import__

    def importer(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importer)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path):
    block(monkeypatch, "matplotlib")
    with pytest.raises(ImportError, match=r"tfkd\[demo\]"):
        report.accuracy_latency(example(), tmp_path / "a.png")
    with pytest.raises(ImportError, match=r"tfkd\[demo\]"):
        report.training_curves({"a": [1, 2]}, tmp_path / "b.png")
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8))
def test_pareto_against_its_definition(points):
    x, y = np.array(points, float).T
    front = trade_offs.pareto(x, y)
    beaten = [any((a <= p and b >= q) and (a < p or b > q) for a, b in points) for p, q in points]
    assert {points[i] for i in front} == {
        p for p, lost in zip(points, beaten, strict=True) if not lost
    }
    assert [x[i] for i in front] == sorted(x[i] for i in front)


def test_labels_cover_neither_each_other_nor_points():
    """Boxes are compared in pixels, on a plot with three points nearly on top of each other."""
    pytest.importorskip("matplotlib")
    x, y = np.array([1.0, 1.02, 1.1, 9.0]), np.array([90.0, 90.2, 89.9, 95.0])
    names = ["student alone", "student distilled", "student int8", "teacher"]
    with plots.new_figure() as (figure, axes):
        axes.plot(x, y, "o", ms=10)
        trade_offs.log_axis(axes, x)
        trade_offs.label_points(figure, axes, x, y, np.zeros(4), names)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == names
    # The third is slower than the first, and worse.
    assert [text.get_weight() == "bold" for text in axes.texts] == [True, True, False, True]
    centres = axes.transData.transform(np.c_[x, y])
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*centre) for centre in centres)


@pytest.mark.parametrize("bad", [{}, {"a": []}, {"a": [[1, 2], [1]]}, {"a": "x"}])
def test_curves_that_cannot_be_drawn(bad, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="curves"):
        report.training_curves(bad, tmp_path / "a.png")


def test_bad_tables(tmp_path):
    with pytest.raises(ValueError, match="`rows`"):
        report.Table([])
    with pytest.raises(TypeError, match="`rows`"):
        report.Table([("a", 1)])
    with pytest.raises(ValueError, match="`original`.*Did you mean 'teacher'"):
        example(original="teacer")
    with pytest.raises(ValueError, match="`original`"):
        example().against("b")
    pytest.importorskip("matplotlib")
    for draw in (report.accuracy_latency, report.accuracy_size):
        with pytest.raises(ValueError, match="`table`"):
            draw(report.Table([report.Row("a")]), tmp_path / "a.png")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.00 k"), (999_600, "1.00 M"), (41_300_000, "41.3 M"),
     (125_000_000, "125 M"), (7.32e9, "7.32 G"), (None, "–")],
)  # fmt: skip
def test_counts_with_a_prefix(value, text):
    assert si(value) == text


def test_file_sizes():
    assert [size_text(n) for n in (0, 1536, 2**20, None)] == ["0.0 KiB", "1.5 KiB", "1.0 MiB", "–"]
