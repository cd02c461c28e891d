"""A table against its original, its Pareto front, its page, and its log."""

import html.parser
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd import report, results


def row(name, accuracy, p50=None, size=None, macs=None, **options):
    times = None if p50 is None else report.Latency(p50, 1.1 * p50, 1.3 * p50, p50, 100)
    return report.Row(name, report.seed_stats(accuracy), 1000, macs, size, times, **options)


TEACHER = row("teacher", 93.4, 2.9, 630_000, 41_000_000, throughput=512.0)
INT8 = row("int8", [93.1, 93.3], 1.0, 100_000, 5_000_000, throughput=2048.0)
TABLE = report.Table([TEACHER, INT8], ["A note."])


def test_against_by_hand():
    (one,) = TABLE.against()
    assert (one.model, one.original) == ("int8", "teacher")
    found = (one.points, one.faster, one.smaller, one.macs)
    np.testing.assert_allclose(found, (93.2 - 93.4, 2.9, 6.3, 5 / 41))
    assert str(one) == (
        "int8: −0.2 points, 2.9 times faster, 6.3 times smaller than teacher, 12 % of its MACs"
    )
    (back,) = TABLE.against("int8")
    assert str(back) == (
        "teacher: +0.2 points, 2.9 times slower, 6.3 times larger than int8, 820 % of its MACs"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (row("x", 93.4, 2.9), "x: 0.0 points, as fast, against teacher"),
        (row("x", 93.38, 2.95, 630_000), "x: 0.0 points, as fast, as large, against teacher"),
        (row("x", 90.0, 0.1), "x: −3.4 points, 29 times faster than teacher"),
        (report.Row("x", macs=410_000), "x: 1 % of its MACs, against teacher"),
        (report.Row("x", macs=41_000), "x: 0.1 % of its MACs, against teacher"),
    ],
)
def test_sentences(other, said):
    table = report.Table([TEACHER, other])
    assert str(table.against()[0]) == said
    assert said in table.text() and f"- {said}\n" in table.markdown()


def test_where_there_is_nothing_to_say_nothing_is_said():
    table = report.Table([TEACHER, report.Row("x")], ["A note."])
    (one,) = table.against()
    assert not one.known and (one.points, one.faster) == (None, None)
    assert table.text().splitlines()[-2:] == ["", "A note."]
    assert "x:" not in table.text() + table.markdown()


def test_another_original_keeps_the_order_of_rows():
    table = report.Table([INT8, TEACHER], original="teacher")
    assert [one.model for one in table.against()] == ["int8"]
    assert table.text().splitlines()[2].startswith("int8")
    assert table.to_dict()["original"] == "teacher"


def test_the_parts_of_the_text_in_order():
    parts = TABLE.text().split("\n\n")
    assert parts[1].startswith("int8: −0.2 points") and parts[2] == "A note."
    assert str(TABLE) == TABLE.text()


POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=9)


@settings(deadline=None, max_examples=60)
@given(POINTS)
def test_pareto_against_brute_force(points):
    """Ties and equal rows are frequent: few numbers, many rows."""
    rows = [row(f"m{i}", 90.0 + score, time) for i, (time, score) in enumerate(points)]
    rows += [row("no time", 99.0), report.Row("no accuracy", latency=rows[0].latency)]
    expected = []
    for i, (time, score) in enumerate(points):
        others = points[:i] + points[i + 1 :]
        beaten = False
        for t, s in others:
            beaten |= (t < time and s >= score) or (t <= time and s > score)
        if not beaten:
            expected.append(f"m{i}")
    assert report.Table(rows).pareto() == tuple(expected)


def noisy(name, accuracy, p50, spread=0.0, error=None):
    times = report.Latency(p50, p50, p50, p50, 100, spread)
    return report.Row(name, report.seed_stats(accuracy, error), latency=times)


@pytest.mark.parametrize(
    ("one", "other", "front"),
    [
        # 96.7 ± 0.3 against 97.3 ± 0.2, and 1 % of the time: the better one beats it.
        (([96.4, 96.7, 97.0], 1.00, 0.05), ([97.1, 97.3, 97.5], 1.01, 0.05), "b"),
        # The same accuracy within noise: the faster one beats it.
        (([97.2, 97.4, 97.6], 1.00, 0.05), ([97.1, 97.3, 97.5], 1.20, 0.05), "a"),
        # Both within noise: neither beats the other.
        (([97.2, 97.4, 97.6], 1.00, 0.05), ([97.1, 97.3, 97.5], 1.01, 0.05), "ab"),
        # Single models, whose accuracies are known to a standard error: √(0.4² + 0.3²) = 0.5.
        ((90.4, 2.0, 0.0, 0.4), (90.0, 1.0, 0.0, 0.3), "b"),
        ((90.6, 2.0, 0.0, 0.4), (90.0, 1.0, 0.0, 0.3), "ab"),
    ],
)
def test_the_front_respects_noise(one, other, front):
    table = report.Table([noisy("a", *one), noisy("b", *other)])
    assert table.pareto() == tuple(front)


def test_small_times_have_three_digits():
    table = report.Table([row("a", 90.0, 0.0029146), row("b", 90.0, 12.5)])
    cells = [line.split() for line in table.text().splitlines()]
    # The percentiles of `row` are 1.1 and 1.3 times the median.
    assert cells[2][-4:-1] == ["0.00291", "0.00321", "0.00379"]
    assert cells[3][-4:-1] == ["12.500", "13.750", "16.250"]


def test_batches_of_another_size_are_named():
    rows = [
        row(name, 90.0, 1.0, throughput=1000.0 * size, throughput_batch=size)
        for name, size in (("a", 32), ("b", 32), ("c", 1))
    ]
    lines = report.Table(rows).text().splitlines()
    assert lines[3].endswith(" 32,000") and lines[4].endswith(" 1,000 (1 a call)")


def test_no_pareto_front_without_numbers():
    assert report.Table([report.Row("a")]).pareto() == ()


def test_long_names_are_folded_in_100_columns(capsys):
    name = "a student of eight layers, pruned by half and quantized, learning from its teacher"
    long = row(name, [93.1, 93.3], 1234.5, 3 * 10**8, 41_000_000, throughput=123_456.0)
    print(report.Table([TEACHER, long]))
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= results.WIDTH
    printed = " ".join(lines)
    for word in (*name.split(), "1234.500", "286.1 MiB", "123,456", "93.2 ± 0.1"):
        assert word in printed


def errors(name, value, p50, **options):
    times = report.Latency(p50, p50, p50, p50, 9)
    return report.Row(
        name, latency=times, size=1000, mean_absolute_error=report.seed_stats(value), **options
    )


def test_errors_that_differ_by_rounding_are_equal():
    table = report.Table([errors("a", 0.05, 2.0), errors("b", 0.05 - 2e-9, 1.0)])
    text = "b: mean absolute error equal, 2.0 times faster than a, as large"
    assert str(table.against()[0]) == text


def test_an_error_is_better_where_it_is_lower(tmp_path):
    rows = [errors("a", 0.05, 2.0), errors("b", [0.07, 0.09], 1.0), errors("c", 0.09, 1.5)]
    table = report.Table(rows)
    assert table.pareto() == ("a", "b")
    assert table.head[:2] == ("model", "mean absolute error")
    assert table.text().splitlines()[3].split()[:4] == ["b", "0.0800", "±", "0.0141"]
    first = table.against()[0]
    assert (first.points, first.error) == (None, pytest.approx(0.03))
    assert str(first).startswith("b: mean absolute error 0.0300 higher (worse), 2.0 times faster")
    back = table.against("b")[0]
    assert str(back).startswith("a: mean absolute error 0.0300 lower (better), 2.0 times slower")
    everything = table.text() + table.markdown() + str(table.to_dict())
    assert 'points"' not in everything and "points," not in everything
    assert "accuracy" not in everything and "%" not in everything
    assert table.to_dict()["rows"][0]["mean_absolute_error"]["mean"] == 0.05
    pytest.importorskip("matplotlib")
    table.save(tmp_path / "page")
    names = {path.name for path in (tmp_path / "page").iterdir()}
    pictures = {f"mean_absolute_error_{cost}.png" for cost in ("latency", "size")}
    assert names == {"table.md", "table.json", "table.html", *pictures}
    text = (tmp_path / "page" / "table.html").read_text(encoding="utf-8")
    assert "Mean absolute error against latency" in text and "ccuracy" not in text
    assert Page(text).texts.count("Pareto front") == 2
    table.to_tensorboard(tmp_path / "log", plots=False)
    tags = set(events(tmp_path / "log"))
    assert "mean_absolute_error/a" in tags and not any(tag.startswith("acc") for tag in tags)


def test_several_labels_have_two_columns():
    make = lambda name, subset, precision: report.Row(  # noqa: E731
        name,
        subset_accuracy=report.seed_stats(subset),
        average_precision=report.seed_stats(precision),
    )
    table = report.Table([make("a", 60.0, 91.0), make("b", 58.0, 92.0), report.Row("c")])
    assert table.head[1:3] == ("subset accuracy %", "mAP %")
    assert table.text().splitlines()[2].split()[:3] == ["a", "60.0", "91.0"]
    assert str(table.against()[0]) == "b: −2.0 points of subset accuracy, against a"


def test_times_of_python_and_of_a_runtime_are_told_apart():
    rows = [row("a", 90.0, 100.0, runtime="Python"), row("b", 90.0, 1.0, runtime="LiteRT")]
    said = "b: 0.0 points, 100 times faster than a (the times are those of LiteRT and a Python"
    assert str(report.Table(rows).against()[0]).startswith(said)
    rows[1] = row("b", 90.0, 1.0, runtime="Python")
    assert "(" not in str(report.Table(rows).against()[0])


class Page(html.parser.HTMLParser):
    """Open tags, texts, and every address that a browser would load."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags, self.loads = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    nasty = row('<b>"x" & y</b>', 91.0, 0.5, 50_000)
    table = report.Table([TEACHER, nasty], ["A < note."], curves={"accuracy (%)": {"a": [1, 2]}})
    table.save(tmp_path)
    text = (tmp_path / "table.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert len(page.loads) == 3  # two trade-offs and the curve
    assert all(load.startswith("data:image/png;base64,iVBOR") for load in page.loads)
    assert not re.search(r"https?://|url\(|@import", text)
    for found in (nasty.model, "A < note.", "Against teacher", "original", "93.4", "512"):
        assert found in page.texts
    assert page.texts.count("Pareto front") == 2
    assert any(line.startswith("Measured on") for line in page.texts)
    assert page.texts[0] == "Models compared" and page.tags.count("tr") == 3


def test_the_page_without_plots(tmp_path):
    TABLE.save(tmp_path, plots=False)
    page = Page((tmp_path / "table.html").read_text(encoding="utf-8"))
    assert page.loads == [] and "img" not in page.tags and "int8" in page.texts


def events(folder):
    """Tag → list of (step, value), read back from the files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor))
    return found


def test_what_tensorboard_reads(tmp_path):
    pytest.importorskip("matplotlib")
    TABLE.to_tensorboard(tmp_path, step=7)
    found = events(tmp_path)
    expected = {"accuracy": 93.2, "p50_ms": 1.0, "p99_ms": 1.3}
    expected |= {"examples_per_second": 2048.0, "size_bytes": 100_000}
    for quantity, value in expected.items():
        ((step, tensor),) = found[f"{quantity}/int8"]
        number = tensor.float_val[0] if tensor.float_val else None
        if number is None:
            number = np.frombuffer(tensor.tensor_content, np.float32)[0]
        assert step == 7 and number == pytest.approx(value)
    assert found["table"][0][1].string_val[0].decode("utf-8") == TABLE.markdown()
    for name in ("table/accuracy_latency", "table/accuracy_size"):
        width, height, picture = found[name][0][1].string_val
        assert picture[:8] == b"\x89PNG\r\n\x1a\n" and int(width) > int(height) > 300
    assert len(found) == 2 * len(expected) + 3


def test_a_log_without_plots_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    report.Table([report.Row("a")]).to_tensorboard(str(tmp_path / "new"))
    assert set(events(tmp_path / "new")) == {"table"}
    TABLE.to_tensorboard(tmp_path / "other", plots=False)
    assert "accuracy/teacher" in events(tmp_path / "other")
    with pytest.raises(ImportError, match=r"tfkd\[demo\]"):
        TABLE.to_tensorboard(tmp_path / "third")


def test_bad_logs(tmp_path):
    (tmp_path / "file").write_text("")
    for logdir, step in ((3, 0), (tmp_path / "file", 0), (tmp_path, -1), (tmp_path, 0.5)):
        with pytest.raises((TypeError, ValueError), match="`(logdir|step)`"):
            TABLE.to_tensorboard(logdir, step)
