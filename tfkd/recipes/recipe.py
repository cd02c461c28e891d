"""`Recipe`: a run as one JSON document, validated as a whole before anything starts."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfkd import artifacts, checks
from tfkd.recipes import budget as budgets
from tfkd.recipes import consistency, fields, stages
from tfkd.recipes.fields import Mistake, RecipeError, choice, number, optional, setting, text, whole
from tfkd.recipes.stages import Stage
from tfkd.types import Path

if TYPE_CHECKING:
    from tfkd.recipes.outcome import Outcome

FORMAT = 1
TASKS = ("auto", "images", "texts", "boxes")
TARGETS = ("tflite", "tensorrt", "both")
_PERCENT = number(0, 100)
_FRACTION = number(0, 1, open_low=True, open_high=True)
_FORMAT = fields.Kind(
    f"{FORMAT}, the version of this format",
    lambda value: value == FORMAT and not isinstance(value, bool),
    {"const": FORMAT},
)


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """The limits by which a result is judged, as in `tfkd.report.Gates`; null: not by this."""

    max_drop: float | None = setting(
        optional(_PERCENT), 1.0, "points of accuracy (of mAP for boxes) that may be lost"
    )
    max_class_drop: float | None = setting(
        optional(_PERCENT), None, "points that the worst class may lose"
    )
    min_agreement: float | None = setting(
        optional(_PERCENT), None, "percentage of examples that original and result decide alike"
    )
    latency_ms: float | None = setting(
        optional(number(0, open_low=True)), None, "milliseconds of one example"
    )
    size: int | None = setting(optional(whole(1)), None, "bytes of the file")
    max_ece: float | None = setting(
        optional(number(0, 1)), None, "expected calibration error of the probabilities"
    )
    max_float_share: float | None = setting(
        optional(number(0, 1)), None, "share of operations that a file computes in float"
    )
    max_macs_share: float | None = setting(
        optional(number(0, 1)), None, "share of the multiply-accumulates that pruning may leave"
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run, from a model and data to verified files: what is done, with which settings.

    The fields are those of the JSON document; `Recipe.schema()` describes them as JSON
    Schema. Paths are taken from the folder in which the run is started.

    Attributes:
        data: an image folder, a .npz or .tsv file, a folder in VOC layout, a COCO file, the
            name of a bundled data set, or "module:function".
        stages: the stages, in the order in which they run; `tfkd.recipes.stages` has them.
        model: what is compressed: a .keras or .h5 file, a SavedModel, or the name of a
            network of `tfkd.models` or `tf_keras.applications`; null: the recipe trains a
            teacher and a student.
        task: "images", "texts" or "boxes"; "auto": what the data are.
        target: "tflite", "tensorrt" or "both".
        budget: the most that the result may need: "latency:2ms", "macs:50%" or "size:500KB".
        gates: the limits by which the result is judged.
        seed: of weights, batches and everything else that is random.
        batch_size: examples of a training step.
        preprocess: how the model takes pixels: "none", "0-255", "0-1", "-1-1", "imagenet",
            "standardize" or numbers "mean,std"; null: found by values.
        size: pixels of the side to which images are resized, or [height, width]; null: what
            the model takes, and for new detectors 160.
        columns: of a .tsv file, the text's and the label's, by name or number.
        val_fraction, test_fraction, data_seed, on_error: how the data are split and what is
            done about broken images and faulty annotations, as in `open_data`.
        vocabulary: a file with the words of a model that takes token ids.
        augment: whether training images are shifted and flipped.
        format: version of this format.

    Raises:
        RecipeError: with every mistake that was found, each with the path of its field.

    Example:
        >>> from tfkd.recipes import Recipe
        >>> recipe = Recipe.from_dict({
        ...     "model": "m.keras", "data": "cifar10.npz", "budget": "macs:50%",
        ...     "stages": [{"stage": "prune", "epochs": 4}, "quantize", "export", "verify"]})
        >>> [stage.stage for stage in recipe.stages], recipe.stages[0].epochs
        (['prune', 'quantize', 'export', 'verify'], 4)
    """

    data: str = setting(text("a path or the name of a data set"), about="the examples")
    stages: tuple[Stage, ...] = dataclasses.field(default=())
    model: str | None = setting(
        optional(text("a path or the name of a network")), None, "what is compressed"
    )
    task: str = setting(choice(*TASKS), "auto", "what the data are")
    target: str = setting(choice(*TARGETS), "tflite", "which files are written")
    budget: str | None = setting(budgets.KIND, None, "the most that the result may need")
    gates: GateSettings = dataclasses.field(default_factory=GateSettings)
    seed: int = setting(whole(0), 0, "of everything that is random")
    batch_size: int = setting(whole(1), 32, "examples of a training step")
    preprocess: str | None = setting(
        optional(text("the name of a preprocessing")), None, "how the model takes pixels"
    )
    size: int | tuple[int, int] | None = setting(
        optional(fields.size()), None, "pixels to which images are resized"
    )
    val_fraction: float = setting(_FRACTION, 0.1, "of the training part, to validate")
    test_fraction: float = setting(_FRACTION, 0.2, "of all, to test, if there is no such part")
    data_seed: int = setting(whole(0), 0, "of these splits")
    on_error: str = setting(
        choice("raise", "skip"), "raise", "broken images, faulty annotations of boxes"
    )
    columns: tuple[str, ...] = setting(
        fields.several(text("text"), "a list of two, the text's and the label's"),
        (),
        "of a .tsv file: names in its header, or numbers from 0; empty: they are found",
    )
    vocabulary: str | None = setting(
        optional(text("the path of a file")), None, "words of a model that takes token ids"
    )
    augment: bool = setting(fields.flag(), True, "shift and flip training images")
    format: int = setting(_FORMAT, FORMAT, "version of this format")

    def __post_init__(self) -> None:
        mistakes = consistency.check(vars(self))
        if mistakes:
            raise RecipeError(mistakes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """Reads a recipe from JSON values.

        Args:
            values: the document; a stage is its name, or a dict with its name as "stage".
            where: what it is called in errors.

        Raises:
            RecipeError: with every mistake.
        """
        if not isinstance(values, Mapping):
            what = f"expected an object with settings, received {checks.describe(values)}."
            raise RecipeError([Mistake("(the document)", what)], where)
        values = dict(values)
        found: list[Mistake] = []
        listed, gates = values.pop("stages", None), values.pop("gates", {})
        known = {**fields.described(cls), "stages": None, "gates": None}
        for name in [name for name in values if name not in known]:
            hint = checks.near_or_all(name, known)
            found.append(Mistake(str(name), f"there is no such setting. {hint}"))
            del values[name]
        accepted = fields.read(cls, values, "", found)
        draft = _stages(listed, found)
        accepted["gates"] = _gates(gates, found)
        defaults = {name: field.default for name, field in fields.described(cls).items()}
        left_out = {name: value for name, value in defaults.items() if name not in values}
        found += consistency.check(left_out | accepted | {"stages": draft})
        if found:
            raise RecipeError(found, where)
        return cls(stages=tuple(filter(None, draft)), **accepted)

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Reads a .json file, or a .yaml file if PyYAML is installed.

        Raises:
            FileNotFoundError: if there is no such file.
            RecipeError: if it is no JSON, or the recipe has mistakes.
        """
        checks.instance("path", path, (str, os.PathLike), "the path of a recipe")
        file = pathlib.Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"`path`: there is no recipe {str(file)!r}.")
        return cls.from_dict(_parsed(file), str(file))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, with every setting; `from_dict` reads it."""
        values = dataclasses.asdict(self)
        values["stages"] = [
            {"stage": stage.stage, **{k: _plain(v) for k, v in dataclasses.asdict(stage).items()}}
            for stage in self.stages
        ]
        return values

    def save(self, path: Path) -> None:
        """Writes the recipe as JSON, atomically.

        Raises:
            OSError: if the file can't be written.
        """
        artifacts.write_json(path, self.to_dict())

    @staticmethod
    def schema() -> dict[str, Any]:
        """The format as JSON Schema, for editors and other programs."""
        found = fields.json_schema(Recipe)
        gates, options = fields.json_schema(GateSettings), []
        for cls in stages.STAGES:
            one = fields.json_schema(cls)
            one["properties"] = {"stage": {"const": cls.stage}, **one["properties"]}
            options.append({**one, "required": ["stage"], "description": cls.does})
        listed = {"anyOf": [{"enum": [*stages.NAMES]}, *options]}
        found["properties"] |= {"gates": gates, "stages": {"type": "array", "items": listed}}
        found["required"] += ["stages"]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}

    def stage(self, name: str) -> Any:
        """The settings of a stage by its name, or None."""
        return next((stage for stage in self.stages if stage.stage == name), None)

    def only(self, names: Iterable[str]) -> Recipe:
        """The recipe with only these stages of training, and those that write and judge.

        Raises:
            ValueError: if the recipe has no such stage.
        """
        wanted = [checks.one_of("steps", name, [s.stage for s in self.stages]) for name in names]
        keep = {*wanted, "export", "verify", "report"}
        return dataclasses.replace(self, stages=tuple(s for s in self.stages if s.stage in keep))

    def run(self, output: Path, **options: Any) -> Outcome:
        """Runs the recipe; see `tfkd.recipes.run`."""
        # By name, as the engine imports this module.
        engine = importlib.import_module("tfkd.recipes.engine")
        outcome: Outcome = engine.run(self, output, **options)
        return outcome


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _stages(listed: Any, found: list[Mistake]) -> list[Stage | None]:
    """The stages of a document, None for a wrong one; mistakes are appended to `found`."""
    names = ", ".join(stages.NAMES)
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        what = "nothing" if listed is None else checks.describe(listed)
        found.append(Mistake("stages", f"expected a list of stages ({names}), received {what}."))
        return []
    made: list[Stage | None] = []
    for index, entry in enumerate(listed):
        path = f"stages[{index}]"
        values = {"stage": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping):
            what = f'expected {{"stage": name, ...}} or a name, received {checks.describe(entry)}.'
            found.append(Mistake(path, what))
            made.append(None)
            continue
        settings = dict(values)
        problem = choice(*stages.NAMES).problem(settings.pop("stage", None))
        if problem:
            found.append(Mistake(f"{path}.stage", problem))
            made.append(None)
            continue
        cls = stages.BY_NAME[values["stage"]]
        made.append(cls(**fields.read(cls, settings, path, found)))
    return made


def _gates(values: Any, found: list[Mistake]) -> GateSettings:
    if not isinstance(values, Mapping):
        what = f"expected an object with gates, received {checks.describe(values)}."
        found.append(Mistake("gates", what))
        return GateSettings()
    return GateSettings(**fields.read(GateSettings, values, "gates", found))


def _parsed(file: pathlib.Path) -> Any:
    """The values of a JSON or YAML file."""
    try:
        written = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        what = "expected a recipe, a text file in UTF-8; this is a file of another kind."
        raise RecipeError([Mistake("(the document)", what)], str(file)) from error
    if file.suffix.lower() in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise ImportError(
                f"{file}: YAML needs PyYAML. Install it with `pip install pyyaml`, or write JSON."
            ) from error
        try:
            return yaml.safe_load(written)
        except yaml.YAMLError as error:
            what = f"this is no YAML: {checks.in_short(error)}"
            raise RecipeError([Mistake("(the document)", what)], str(file)) from error
    try:
        return json.loads(written, object_pairs_hook=_once)
    except ValueError as error:
        broken = isinstance(error, json.JSONDecodeError)
        what = f"this is no JSON: {error}." if broken else f"{error}."
        raise RecipeError([Mistake("(the document)", what)], str(file)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which a setting stands once: JSON itself would take the last."""
    found = dict(pairs)
    twice = [name for name in found if sum(name == other for other, _ in pairs) > 1]
    if twice:
        raise ValueError(f"expected each setting once, received {twice[0]!r} twice")
    return found
