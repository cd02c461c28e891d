"""Typed fields of a recipe: what each accepts, in words and as JSON Schema, and every mistake.

Nothing here imports TensorFlow: a recipe is validated in milliseconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tfkd import checks

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake in a recipe.

    Attributes:
        path: the field, such as "stages[1].epochs".
        text: what was expected, what was received, and a way out.
    """

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class RecipeError(ValueError):
    """All mistakes that were found in a recipe.

    Attributes:
        mistakes: a tuple of `Mistake`, in the order of the fields.
    """

    def __init__(self, mistakes: Sequence[Mistake], where: str = "the recipe"):
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        lines = [f"{where} has {count} mistake{'s' if count > 1 else ''}; nothing was started:"]
        super().__init__("\n  ".join([*lines, *map(str, self.mistakes)]))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field accepts.

    Attributes:
        expected: in words, as in "expected …".
        accepts: value → whether it is accepted.
        schema: the same as JSON Schema.
        choices: names, of which near matches are suggested.
    """

    expected: str
    accepts: Callable[[Any], bool]
    schema: Mapping[str, Any]
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if self.accepts(value):
            return None
        text = f"expected {self.expected}, received {checks.describe(value)}."
        near = checks.near(value, self.choices) if isinstance(value, str) else None
        return f"{text} {near}" if near else text


def number(low: float | None = None, high: float | None = None, *, open_low: bool = False,
           open_high: bool = False) -> Kind:  # fmt: skip
    """A finite number in a range, whose ends are excluded if open."""
    schema: dict[str, Any] = {"type": "number"}
    words = []
    if low is not None:
        schema["exclusiveMinimum" if open_low else "minimum"] = low
        words.append(f"above {low:g}" if open_low else f"of at least {low:g}")
    if high is not None:
        schema["exclusiveMaximum" if open_high else "maximum"] = high
        words.append(f"below {high:g}" if open_high else f"of at most {high:g}")

    def accepts(value: Any) -> bool:
        if not checks.is_number(value) or not math.isfinite(value):
            return False
        above = low is None or value > low or (value == low and not open_low)
        return above and (high is None or value < high or (value == high and not open_high))

    return Kind(" ".join(["a number", " and ".join(words)]).strip(), accepts, schema)


def whole(minimum: int = 0) -> Kind:
    """A whole number of at least `minimum`."""

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= minimum

    schema = {"type": "integer", "minimum": minimum}
    return Kind(f"a whole number of at least {minimum}", accepts, schema)


def choice(*names: str) -> Kind:
    """One of several names."""
    expected = "one of " + ", ".join(map(repr, names))
    return Kind(expected, lambda value: value in names, {"enum": [*names]}, names)


def text(what: str = "text") -> Kind:
    """Text that is not empty."""
    schema = {"type": "string", "minLength": 1}
    return Kind(what, lambda value: isinstance(value, str) and bool(value.strip()), schema)


def flag() -> Kind:
    """True or false."""
    schema = {"type": "boolean"}
    return Kind("true or false", lambda value: isinstance(value, bool), schema)


def several(kind: Kind, what: str) -> Kind:
    """A list of values of one kind."""

    def accepts(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(kind.accepts(one) for one in value)

    schema = {"type": "array", "items": dict(kind.schema)}
    return Kind(what, accepts, schema, kind.choices)


def size() -> Kind:
    """Pixels of a square's side, or [height, width]."""
    one = whole(8)

    def accepts(value: Any) -> bool:
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        return all(map(one.accepts, value)) if pair else one.accepts(value)

    schema = {"type": ["integer", "array"], "items": one.schema}
    return Kind("pixels of the side, at least 8, or [height, width]", accepts, schema)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""

    def accepts(value: Any) -> bool:
        return value is None or kind.accepts(value)

    schema = {"anyOf": [dict(kind.schema), {"type": "null"}]}
    return Kind(f"{kind.expected}, or null", accepts, schema, kind.choices)


def setting(kind: Kind, default: Any = dataclasses.MISSING, about: str = "") -> Any:
    """A field of a dataclass with what it accepts; without a default it is required."""
    return dataclasses.field(default=default, metadata={"kind": kind, "about": about})


def described(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that were made by `setting`."""
    return {f.name: f for f in dataclasses.fields(cls) if "kind" in f.metadata}  # type: ignore[arg-type]


def read(
    cls: type[T], values: Mapping[str, Any], path: str, found: list[Mistake]
) -> dict[str, Any]:
    """Checks the values of a dataclass's fields.

    Args:
        cls: a dataclass whose fields are made by `setting`.
        values: name → value; other names are mistakes.
        path: where they are in the recipe: "" or "stages[1]".
        found: mistakes are appended to it.

    Returns:
        The accepted values, for the constructor.
    """
    fields, accepted = described(cls), {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            hint = checks.near_or_all(name, fields)
            found.append(Mistake(where, f"there is no such setting. {hint}"))
            continue
        problem = fields[name].metadata["kind"].problem(value)
        if problem:
            found.append(Mistake(where, problem))
        else:
            accepted[name] = tuple(value) if isinstance(value, list) else value
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            where = f"{path}.{name}" if path else name
            expected = field.metadata["kind"].expected
            found.append(Mistake(where, f"expected {expected}, received nothing: it is required."))
    return accepted


def json_schema(cls: type) -> dict[str, Any]:
    """JSON Schema of a dataclass whose fields are made by `setting`."""
    properties, required = {}, []
    for name, field in described(cls).items():
        entry = dict(field.metadata["kind"].schema)
        if field.metadata["about"]:
            entry["description"] = field.metadata["about"]
        if field.default is dataclasses.MISSING:
            required.append(name)
        else:
            default = field.default
            entry["default"] = list(default) if isinstance(default, tuple) else default
        properties[name] = entry
    found: dict[str, Any] = {"type": "object", "properties": properties}
    return found | {"required": required, "additionalProperties": False}
