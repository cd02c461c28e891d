"""The page of a run: its sections, pictures, files, and numbers for trackers."""

import base64
import dataclasses
import html.parser
import importlib.util
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from tfkd import report
from tfkd.data.labels import read
from tfkd.export.parity import ExportReport
from tfkd.quantization.report import Decision
from tfkd.report import run_plots
from tfkd.report.class_details import Predicted

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

LABELS = np.arange(40) % 4
NAMES = ["cat", "dog", "<owl>", "a & b"]
PIXELS = np.arange(40 * 6 * 5, dtype="float32").reshape(40, 6, 5)


def outputs(wrong):
    """Logits that are wrong for these examples."""
    classes = np.where(np.isin(np.arange(40), wrong), (LABELS + 1) % 4, LABELS)
    return 3.0 * np.eye(4)[classes] + 0.1 * np.random.default_rng(0).normal(size=(40, 4))


def rows():
    made = [Predicted.of(read(LABELS, outputs(wrong))) for wrong in ([0], [1, 2, 3])]
    times = [report.Latency.of(np.linspace(a, 1.2 * a, 30)) for a in (4.0, 1.0)]
    return [
        report.Row("original", report.seed_stats(97.5), 900, 9000, 4000, times[0],
                   details=made[0].details(NAMES)),
        report.Row("model.tflite", report.seed_stats(92.5), 500, 4000, 1000, times[1],
                   details=made[1].details(NAMES, "original", made[0])),
    ]  # fmt: skip


GATES = report.Gates(max_drop=1.0, size=2000)
STAGES = [
    report.Stage("decay", {"loss": [2.0, 1.0], "val_loss": [2.1, None], "accuracy": [0.5, 0.8]},
                 {"decay": [0.0, 1.0]}, 90.0),
    report.Stage("quantize", {"loss": [0.9], "val_loss": [1.0], "learning_rate": [0.1]}),
]  # fmt: skip
DECISIONS = [
    Decision("conv", "Conv2D", "int8", why="computed in integers"),
    Decision("resize", "Resizing", "float", why="it has no integer kernel"),
]
EXPORT = ExportReport(
    pathlib.Path("model.tflite"), 1000, "int8", "uint8",
    {"operations": 8, "float_operations": 1, "check": {
        "on": "made-up inputs", "examples": 4, "argmax_agreement": 1.0, "decided_agreement": 1.0,
        "outputs": {}, "max_error": 0.03, "mean_error": 0.002, "warnings": ["Look at <this>."]}},
)  # fmt: skip


def full():
    both = rows()
    changed = [change.example for change in both[1].details.to_show()]
    return report.RunReport(
        report.judge(GATES, *both), report.Table(both), about={"data": "digits", "date": "today"},
        files={"model.tflite": "model.tflite", "run.json": "a b/run.json"}, stages=STAGES,
        layers=[report.LayerKept("conv", 16, 10)], quantization=DECISIONS, exports=[EXPORT],
        pictures=report.thumbnails(PIXELS, changed), command="tfkd compress model.keras",
        recipe={"seed": 7, "stages": ["decay"]}, seed=7, versions={"tfkd": "1"},
        hashes={"model": "ab12"}, notes=["A note."],
    )  # fmt: skip


class Page(html.parser.HTMLParser):
    """A page whose elements must be closed in order."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.headings = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "img":
            assert values["alt"]
            self.sources.append(values["src"])
        self.links += [values["href"]] if tag == "a" else []
        self.ids += [values["id"]] if "id" in values else []

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


SECTIONS = [
    "Verdict", "Models compared", "The run", "Trade-off", "Training",
    "Decay, curriculum and schedules", "Filters kept per layer", "What was quantized, and why",
    "Parity of the exported files", "Latency", "Classes: precision, recall, confusion",
    "Calibration of probabilities", "Examples that changed class", "How to reproduce",
]  # fmt: skip


def blank(figure, path, **_):
    """Writes a white picture instead of rendering a figure."""
    Image.new("L", (4, 3), 255).save(path, format="PNG")


@pytest.fixture(scope="module", params=["blank", pytest.param("drawn", marks=pytest.mark.slow)])
def saved(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "blank":
            patch.setattr("matplotlib.figure.Figure.savefig", blank)
        full().save(folder)
    return folder


def test_the_page_has_every_section_and_every_picture(saved):
    page = Page((saved / "report.html").read_text(encoding="utf-8"))
    assert [text for text in page.headings if text in SECTIONS] == SECTIONS
    assert set(page.links) == {"model.tflite", "a b/run.json", *(f"#{i}" for i in page.ids)}
    assert len(page.ids) == len(SECTIONS)
    # 2 trade-offs, 3 of training, schedule, layers, latency, 2 matrices, calibration; and the
    # four examples that changed class.
    assert len(page.sources) == 11 + 4
    for source in page.sources:
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()


def test_the_page_loads_nothing_and_escapes_names(saved):
    text = (saved / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(https?:)?//', text) and "<script" not in text
    assert "&lt;owl&gt;" in text and "<owl>" not in text and "<this>" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_verdict_is_at_the_top(saved):
    sentence = "REGRESSED: drop of accuracy 5.00 points, wanted at most 1.00 points"
    assert (saved / "report.md").read_text("utf-8").splitlines()[4].startswith(f"**{sentence}")
    text = (saved / "report.html").read_text("utf-8")
    assert text.index('class="headline regressed"') < text.index("<nav") < text.index("<h2")
    assert str(full()).startswith(sentence)


def test_markdown_has_the_same_sections_and_files_that_exist(saved):
    text = (saved / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.M) == SECTIONS
    named = re.findall(r"^!\[.+\]\((.+)\)$", text, flags=re.M)
    assert len(named) == 11 and all((saved / name).is_file() for name in named)
    assert "```sh\ntfkd compress model.keras\n```" in text
    assert "- [run.json](<a b/run.json>)" in text
    assert '"stages": [' in text and "| SHA-256 of model | ab12 |" in text
    assert "| resize | Resizing | float | it has no integer kernel |" in text
    assert "| conv | 16 | 10 | 62% |" in text
    assert "8, 1 in float" in text and "model.tflite: Look at <this>." in text


def test_examples_that_changed_class_are_described():
    (section,) = [one for one in full().sections() if one.title == "Examples that changed class"]
    # Example 0 was wrong and is right now; 1, 2 and 3 were right and are wrong now.
    assert "4 changed: 3 lost" in section.note and "1 gained" in section.note
    assert "agrees with original on 90.00 %" in section.note
    captions = [caption.split("\n") for _, caption in section.parts[0].pictures]
    assert {lines[0] for lines in captions} == {"0: cat", "1: dog", "2: <owl>", "3: a & b"}
    assert {lines[3] for lines in captions} == {"lost", "gained"}


def test_json_restores_the_report(saved):
    again, first = report.RunReport.load(saved / "report.json"), full()
    assert again.to_dict() == first.to_dict()
    assert again.markdown() == first.markdown() and again.metrics() == first.metrics()


def test_parts_may_be_json_of_earlier_stages():
    first = full()
    values = json.loads(json.dumps(first.to_dict()))
    made = report.RunReport(
        first.verdict, first.table, stages=values["stages"], quantization=values["quantization"],
        exports=values["exports"], layers=values["layers"],
    )  # fmt: skip
    assert made.to_dict()["stages"] == values["stages"] and made.layers == first.layers
    assert made.exports == first.exports and made.quantization == first.quantization


def test_quantized_layers_beside_operations_in_float_are_told():
    export = dataclasses.replace(EXPORT, numbers={"operations": 8, "float_operations": 3})
    made = dataclasses.replace(full(), quantization=DECISIONS[:1], exports=[export])
    text = made.markdown()
    assert "No layer stays in float. The files compute" in text and "(3 of model.tflite)" in text
    export = dataclasses.replace(EXPORT, numbers={"operations": 8, "float_operations": 0})
    text = dataclasses.replace(made, exports=[export]).markdown()
    assert "No layer stays in float.\n" in text


def test_a_page_of_verdict_and_table_alone(tmp_path):
    both = [dataclasses.replace(row, details=None, latency=None) for row in rows()]
    made = report.RunReport(report.judge(report.Gates(), *both), report.Table(both))
    made.save(tmp_path, plots=False)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.ids == ["verdict", "models-compared"] and page.sources == []
    assert "ACCEPTED: no gate was asked." in (tmp_path / "report.md").read_text("utf-8")


def test_without_matplotlib_the_page_says_what_is_missing(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n: None if n == "matplotlib" else find(n)
    )
    with pytest.warns(UserWarning, match=r"without plots.*tfkd\[cli\]"):
        full().save(tmp_path)
    assert "Training" not in (tmp_path / "report.md").read_text("utf-8")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="matplotlib"):
        full().save(tmp_path, plots=True)


def test_metrics_by_name():
    found = full().metrics()
    assert found["accepted"] == 0.0 and found["gates/max_drop"] == 5.0
    assert found["accuracy/model.tflite"] == 92.5 and found["size_bytes/original"] == 4000
    assert found["agreement/model.tflite"] == 90.0 and "agreement/original" not in found
    assert found["p50_ms/original"] == pytest.approx(4.4)
    assert found["macs/model.tflite"] == 4000 and 0 < found["ece/original"] < 1
    assert all(isinstance(value, float) for value in found.values())


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    made = full()
    made.to_tensorboard(tmp_path, step=2, plots=False)
    found = {}
    for path in tmp_path.iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor))

    def numbers(tag):
        pairs = ((step, np.frombuffer(t.tensor_content, "f4")) for step, t in found[tag])
        return [(step, float(value[0])) for step, value in pairs]

    for name, value in made.metrics().items():
        if value:
            ((step, number),) = numbers(name)
            assert step == 2 and number == pytest.approx(value)
    assert numbers("epochs/loss") == [(1, 2.0), (2, 1.0), (3, pytest.approx(0.9))]
    assert [step for step, _ in found["epochs/val_loss"]] == [1, 3]
    assert found["report"][0][1].string_val[0].decode() == made.markdown()


def test_groups_of_curves():
    curves = {
        "loss": [(1, 0.5)], "val_accuracy": [(1, 0.9)], "logits_distillation": [(1, 0.1)],
        "learning_rate": [(1, 0.1)], "temperature": [(1, 4.0)], "schedule/decay": [(1, 0.5)],
        "total_loss": [(1, 0.5)], "val_total_loss": [(1, 0.7)], "val_loss": [(1, 0.6)],
    }  # fmt: skip
    groups = {name: list(lines) for name, lines in run_plots.grouped(curves).items()}
    assert groups == {
        "Accuracy and other scores": ["val_accuracy"],
        "Losses": ["loss", "logits_distillation", "val_total_loss", "val_loss"],
        "Other metrics": ["learning_rate", "temperature"],
    }
    assert run_plots.stage_ends(STAGES) == [("decay", 1, 2), ("quantize", 3, 3)]


def detectors():
    pytest.importorskip("pycocotools")
    boxes = [[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.3, 0.9]]
    truth = [{"boxes": boxes, "classes": [0, 0, 1]}]
    both = []
    # Before: all found. After: one cell found, one missed, a false one; the platelet is unsure.
    for kinds, scores in (([0, 0, 1], [0.9, 0.8, 0.7]), ([0, 1, 1], [0.9, 0.6, 0.4])):
        found = [{"boxes": boxes, "classes": kinds, "confidence": scores}]
        both.append(report.detection(found, truth, ["cell", "platelet"]))
    rows = [report.DetectionRow("original", both[0], 900, 9000, 4000, 4.0)]
    rows.append(
        report.DetectionRow("int8", both[1], 900, 9000, 1000, report.Latency.of([1.0, 1.2]))
    )
    return rows


def test_objects_found_and_missed():
    before, after = (row.scores[0] for row in detectors())
    assert (before.found.tolist(), before.missed.tolist()) == ([2, 1], [0, 0])
    assert (after.found.tolist(), after.missed.tolist()) == ([1, 0], [1, 1])
    assert (before.false.tolist(), after.false.tolist()) == ([0, 0], [0, 1])


@pytest.mark.parametrize("plots", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_of_detectors(tmp_path, plots):
    rows = detectors()
    scene = report.data_url(np.zeros((8, 8, 3), "uint8"))
    made = report.RunReport(
        report.judge(report.Gates(max_map_drop=1.0), *rows), report.DetectionTable(rows),
        scenes={"original": scene, "int8": scene},
    )  # fmt: skip
    made.save(tmp_path, plots=plots)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    expected = ["Verdict", "Models compared", *["Trade-off"] * plots, "Latency"]
    assert page.headings == [*expected, "Objects found and missed", "Detections"]
    # mAP against latency and size, three precision-recall curves, latency, objects, two scenes.
    assert len(page.sources) == (2 + 3 + 1 + 1) * plots + 2
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| cell | 2 | 2 | 1 | 0 | 1 | 0 | 0 |" in text
    assert "| all | 3 | 3 | 1 | 0 | 2 | 0 | 1 |" in text
    again = report.RunReport.load(tmp_path / "report.json")
    assert again.to_dict() == made.to_dict() and again.markdown() == made.markdown()
    assert made.metrics()["map/original"] == 1.0 and made.metrics()["p50_ms/original"] == 4.0


def test_one_detector_with_costs_makes_no_trade_off():
    first, second = detectors()
    first = dataclasses.replace(first, size=None, latency=None)
    plots = run_plots.of_detectors(report.DetectionTable([first, second]))
    assert [plot.name for plot in plots] == [f"precision_recall_{n}" for n in range(3)]


def test_it_refuses():
    both = rows()
    verdict, table = report.judge(report.Gates(), *both), report.Table(both)
    with pytest.raises(ValueError, match=r"`final`.*'model.tflite'"):
        report.RunReport(verdict, table, final="model.tflit")
    with pytest.raises(TypeError, match="`verdict`"):
        report.RunReport("ACCEPTED", table)
    with pytest.raises(TypeError, match="`table`"):
        report.RunReport(verdict, both)
    with pytest.raises(ValueError, match="JSON values of RunReport.*table"):
        report.RunReport.from_dict({"verdict": verdict})
