"""What the parts of a recipe demand of each other: order of stages, budgets, kinds of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tfkd.recipes import stages
from tfkd.recipes.budget import Budget
from tfkd.recipes.fields import Mistake
from tfkd.recipes.stages import Stage

# Field → value; a field that is itself a mistake is missing, and nothing is demanded of it.
Draft = Mapping[str, Any]
_NEEDS = {"verify": "export", "report": "verify"}


def check(draft: Draft) -> list[Mistake]:
    """The mistakes that no field has by itself."""
    return [mistake for rule in _RULES for mistake in rule(draft)]


def _numbered(draft: Draft) -> dict[str, tuple[str, Any]]:
    """Name of a stage → its path and settings; of a repeated one the first."""
    found: dict[str, tuple[str, Any]] = {}
    for index, stage in _given(draft):
        found.setdefault(stage.stage, (f"stages[{index}]", stage))
    return found


def _given(draft: Draft) -> Iterator[tuple[int, Stage]]:
    """The index and settings of each stage that is right by itself."""
    return ((i, stage) for i, stage in enumerate(draft.get("stages") or ()) if stage is not None)


def _order(draft: Draft) -> Iterator[Mistake]:
    before: list[str] = []
    for index, stage in _given(draft):
        path = f"stages[{index}].stage"
        if stage.stage in before:
            yield Mistake(path, f"expected each stage once, received {stage.stage!r} again.")
        elif before and stages.NAMES.index(stage.stage) < stages.NAMES.index(before[-1]):
            order = " → ".join(stages.NAMES)
            yield Mistake(path, f"expected the order {order}; {stage.stage!r} is too late.")
        else:
            before.append(stage.stage)


def _needs(draft: Draft) -> Iterator[Mistake]:
    numbered = _numbered(draft)
    for name, needed in _NEEDS.items():
        if name in numbered and needed not in numbered and None not in draft["stages"]:
            path = f"{numbered[name][0]}.stage"
            yield Mistake(path, f"expected a stage {needed!r} before {name!r}; there is none.")


def _models(draft: Draft) -> Iterator[Mistake]:
    if "model" not in draft or not draft.get("stages"):
        return
    numbered = _numbered(draft)
    unknown = None in draft["stages"]  # which may be the one that is missed
    if draft["model"] is None and "train_teacher" not in numbered and not unknown:
        yield Mistake(
            "model", "expected a model, or a stage 'train_teacher' that makes one; received none."
        )
    if draft["model"] is not None and "train_teacher" in numbered:
        yield Mistake(
            f"{numbered['train_teacher'][0]}.stage",
            "expected no 'train_teacher' with a model: the model is the teacher. Leave out one.",
        )


def _budgets(draft: Draft) -> Iterator[Mistake]:
    numbered = _numbered(draft)
    if "budget" not in draft or "stages" not in draft:
        return
    budget = None if draft["budget"] is None else Budget.parse(draft["budget"])
    unknown = None in (draft["stages"] or [None])
    if budget and budget.kind != "size" and "prune" not in numbered and not unknown:
        yield Mistake("budget", f"expected a stage 'prune', which meets {budget}; there is none.")
    if budget and budget.kind == "latency" and draft.get("target") == "tensorrt":
        yield Mistake(
            "budget",
            "expected macs or size for the target 'tensorrt': latency is measured in LiteRT, "
            "which says nothing about TensorRT.",
        )
    if "prune" not in numbered:
        return
    path, prune = numbered["prune"]
    if budget is None and prune.macs_reduction is None:
        yield Mistake(
            f"{path}.macs_reduction", "expected a number, as the recipe has no budget; e.g. 0.5."
        )
    if budget is not None and prune.macs_reduction is not None:
        text = f"expected null beside the budget {draft['budget']!r}, which says how much to remove"
        yield Mistake(f"{path}.macs_reduction", f"{text}; received {prune.macs_reduction}.")


def _epochs(draft: Draft) -> Iterator[Mistake]:
    path, prune = _numbered(draft).get("prune", ("", None))
    if prune is not None and prune.method == "decay" and prune.epochs < 2:
        text = "expected at least 2 with method 'decay': filters decay in the first quarter"
        yield Mistake(f"{path}.epochs", f"{text}; received {prune.epochs}.")


def _inputs(draft: Draft) -> Iterator[Mistake]:
    numbered = _numbered(draft)
    path, export = numbered.get("export", ("", None))
    if export is None or export.input not in ("uint8", "int8"):
        return
    if "quantize" not in numbered:
        text = "expected 'float32' without a stage 'quantize'"
        yield Mistake(f"{path}.input", f"{text}; received {export.input!r}.")
    if draft.get("target") == "tensorrt":
        text = "expected null or 'float32' for the target 'tensorrt', whose file takes floats"
        yield Mistake(f"{path}.input", f"{text}; received {export.input!r}.")
    if draft.get("task") == "texts":
        text = "expected null or 'float32' for texts, whose file takes token ids"
        yield Mistake(f"{path}.input", f"{text}; received {export.input!r}.")


def _tasks(draft: Draft) -> Iterator[Mistake]:
    task, columns = draft.get("task"), draft.get("columns")
    if columns and (len(columns) != 2 or columns[0] == columns[1]):
        text = "expected two different ones, the text's and the label's"
        yield Mistake("columns", f"{text}; received {list(columns)}.")
    if columns and task in ("images", "boxes"):
        yield Mistake("columns", f"expected none for {task}; received {list(columns)}.")
    for name in ("preprocess", "size"):
        if task == "texts" and draft.get(name) is not None:
            yield Mistake(name, f"expected null for texts; received {draft[name]!r}.")
    if task in ("images", "boxes") and draft.get("vocabulary") is not None:
        text = f"expected null for {task}: it is for models that take token ids"
        yield Mistake("vocabulary", f"{text}; received {draft['vocabulary']!r}.")
    if task == "boxes" and draft.get("preprocess") is not None:
        text = "expected null for boxes: detectors take pixels / 127.5 − 1"
        yield Mistake("preprocess", f"{text}; received {draft['preprocess']!r}.")


def _views(draft: Draft) -> Iterator[Mistake]:
    for index, stage in _given(draft):
        views = getattr(stage, "views", 0)
        if views > 1 and draft.get("augment") is False:
            text = f"expected 0 or 1 without augmentation; received {views}."
            yield Mistake(f"stages[{index}].views", text)


def losses(
    listed: Iterable[Stage | None], kind: str | None, classes: int | None = None
) -> Iterator[Mistake]:
    """The mistakes in `loss` of stages.

    Args:
        listed: the stages; None for those that are mistakes themselves.
        kind: what the data are, if it is known.
        classes: their number of classes, if it is known.
    """
    for index, stage in enumerate(listed):
        loss, path = getattr(stage, "loss", None), f"stages[{index}].loss"
        if loss is not None and kind == "boxes":
            text = "expected null for boxes: detectors have an objective of their own"
            yield Mistake(path, f"{text}; received {loss!r}.")
        elif loss == "dist" and classes is not None and classes < stages.DIST_CLASSES:
            text = f"expected 'soft_targets' or null for data of {classes} classes"
            why = f"'dist' correlates the scores of {stages.DIST_CLASSES} or more"
            yield Mistake(path, f"{text}: {why}; received {loss!r}.")


def _losses(draft: Draft) -> Iterator[Mistake]:
    return losses(draft.get("stages") or (), draft.get("task"))


_RULES: tuple[Callable[[Draft], Iterator[Mistake]], ...] = (
    _order, _needs, _models, _budgets, _epochs, _inputs, _tasks, _views,
    _losses,
)  # fmt: skip
