"""One page on a run: verdict, table, curves, layers, exports, changed examples, how to repeat."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfkd import checks
from tfkd.report import plots as plotting
from tfkd.report import run_metrics, run_sections
from tfkd.report.detection_table import DetectionRow, DetectionTable
from tfkd.report.gates import Verdict
from tfkd.report.table import Row, Table
from tfkd.results import Grid, Lines, Paged, Result, Section, plain, restored


@dataclasses.dataclass(frozen=True)
class Stage(Result):
    """One training stage of a run.

    Attributes:
        name: such as "decay" or "quantize".
        history: metric → its value at the end of each epoch, as in Keras's `History.history`:
            "loss", "val_accuracy", ...; None where there is no value.
        schedules: quantity → its value in each epoch: the decay of filters, the pace of a
            curriculum, a temperature, ...
        seconds: how long it took.
    """

    name: str
    history: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    schedules: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    seconds: float | None = None

    @property
    def epochs(self) -> int:
        """Number of its epochs."""
        return max(map(len, [*self.history.values(), *self.schedules.values()]), default=0)


@dataclasses.dataclass(frozen=True)
class LayerKept(Result):
    """Filters, units or heads of a layer before and after pruning.

    Attributes:
        layer: name of the layer or group.
        before: their number in the original.
        after: their number in the pruned model.
    """

    layer: str
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class RunReport(Paged, title="Report of a run", file_name="report"):
    """What a run measured, as one page: `report.html`, `report.md` and `report.json`.

    All fields but the first two are optional; a page has the sections of what is there. All
    can be JSON values as well, which `RunReport.from_dict` restores: of what earlier stages
    left on disk.

    Attributes:
        verdict: from `tfkd.report.judge`.
        table: from `tfkd.report.compare`; of detectors a `DetectionTable`.
        final: name of the row of the model that the run made; "": the last row.
        about: what the head of the page says, as name → text: "model", "data", "date", ...
        files: what the run left, as name → path relative to the page, or a URL.
        stages: the training stages, in order.
        layers: filters kept per layer.
        quantization: the decisions on all layers, `tfkd.quantization.Decision`: a
            `QuantizationReport`, or its `rows`.
        exports: the exported files: the `ExportReport` that each function of `tfkd.export`
            returns.
        pictures: index of an example (as text) → its picture as a data URL, from
            `tfkd.report.thumbnails`; at most 24 are shown.
        scenes: caption → picture of drawn boxes as a data URL, for detectors: of
            `data_url(detection_pictures(..., columns=1))`, which is legible on a phone.
        command: the command that made the run.
        recipe: the resolved recipe.
        seed: its seed.
        versions: package → version.
        hashes: what was read or written → SHA-256.
        notes: sentences at the end.

    Example:
        >>> import tempfile
        >>> from tfkd import report
        >>> rows = [report.Row("base", report.seed_stats(93.0), size=400_000)]
        >>> rows += [report.Row("tiny", report.seed_stats(92.5), size=90_000)]
        >>> verdict = report.judge(report.Gates(max_drop=1.0), *rows)
        >>> found = report.RunReport(verdict, report.Table(rows), about={"data": "digits"})
        >>> folder = found.save(tempfile.mkdtemp(), plots=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['report.html', 'report.json', 'report.md']
        >>> report.RunReport.load(folder / "report.json").verdict.status
        'ACCEPTED'
    """

    verdict: Verdict
    table: Table | DetectionTable
    final: str = ""
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stages: Sequence[Stage] = ()
    layers: Sequence[LayerKept] = ()
    quantization: Iterable[object] = ()
    exports: Iterable[object] = ()
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scenes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        checks.instance("verdict", self.verdict, Verdict, "a Verdict of tfkd.report.judge")
        kinds = (Table, DetectionTable)
        checks.instance("table", self.table, kinds, "a report.Table or report.DetectionTable")
        names = [row.model for row in self.table.rows]
        object.__setattr__(self, "final", self.final or names[-1])
        if self.final not in names:
            expected, fix = f"one of the models {names}", checks.near(self.final, names)
            raise checks.value_error("final", expected, self.final, fix)
        for name in ("stages", "layers", "quantization", "exports"):
            items = tuple(getattr(self, name))
            kind = _kind(name) if items else object
            made = (one if isinstance(one, kind) else restored(kind, plain(one)) for one in items)
            object.__setattr__(self, name, tuple(made))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunReport:
        """A report from JSON values, those of `to_dict`; fields may be objects already.

        Raises:
            TypeError, ValueError: if they are not those of a report.
        """
        checks.instance("values", values, Mapping, "the JSON values of a RunReport")
        found = dict(values)
        if isinstance(found.get("table"), Mapping):
            is_detector = any("scores" in row for row in found["table"].get("rows", ()))
            found["table"] = (DetectionTable if is_detector else Table).from_dict(found["table"])
        return restored(cls, found)

    @classmethod
    def load(cls, path: str | os.PathLike) -> RunReport:
        """A report from its `report.json`."""
        return cls.from_dict(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))

    @property
    def original_row(self) -> Row | DetectionRow:
        """Row of the model that the run began with: the verdict's original, or the first."""
        first, *others = self.table.rows
        named = (self.verdict.original, getattr(self.table, "original", None))
        found = (row for name in named for row in (first, *others) if row.model == name)
        return next(found, first)

    @property
    def final_row(self) -> Row | DetectionRow:
        """Row of the model that the run made."""
        return next(row for row in self.table.rows if row.model == self.final)

    def sections(self) -> list[Section]:
        """The sections of the page that have something to show, in order."""
        return run_sections.of(self)

    def parts(self) -> list[Grid | Lines | str]:
        """Verdict and table, as text; the page has more."""
        return [*self.verdict.parts(), *self.table.parts()]

    def headline(self) -> str:
        """The verdict."""
        return self.verdict.sentence

    def subtitle(self) -> str:
        """The models and the date."""
        said = [f"{self.original_row.model} → {self.final}", *map(str, self.about.values())]
        return " · ".join(said[:4])

    def metrics(self) -> dict[str, float]:
        """All results as numbers by name, such as "accuracy/int8"; see `run_metrics`."""
        return run_metrics.flat(self)

    def draw(self, folder: str | os.PathLike) -> dict[str, pathlib.Path]:
        """Draws the plots of all sections as PNGs into a folder; returns title → file."""
        with plotting.narrow():
            return super().draw(folder)

    def to_tensorboard(self, logdir: str | os.PathLike, step: int = 0, plots: bool = True) -> None:
        """Writes TensorBoard summaries with the numbers of the page.

        Scalars: those of `metrics` at `step`, and each stage's history and schedules by
        epoch, counted through all stages. Text: the Markdown, as "report". Images: the plots.

        Args:
            logdir: folder of the log.
            step: step of the metrics, text and images.
            plots: False to omit the plots, for which matplotlib is needed.

        Raises:
            TypeError, ValueError: if `logdir` is not a folder, or `step` is negative.
            ImportError: if there are plots and matplotlib is not installed.
        """
        from tfkd.report import board

        board.write_run(self, logdir, step, plots)


def _kind(name: str) -> type:
    """The type of the items of a field."""
    # Not at the top: what quantization and export need takes long to import.
    if name == "quantization":
        from tfkd.quantization.report import Decision

        return Decision
    if name == "exports":
        from tfkd.export.parity import ExportReport

        return ExportReport
    return Stage if name == "stages" else LayerKept
