"""Budgets: "latency:2ms", "macs:50%" or "size:500KB", the most that a result may need."""

from __future__ import annotations

import dataclasses
import re

from tfkd import checks
from tfkd.recipes.fields import Kind

EXPECTED = 'a budget such as "latency:2ms", "macs:50%" or "size:500KB"'
KINDS = ("latency", "macs", "size")
_UNITS = {
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "macs": {"%": 0.01, "": 1.0},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "kib": 1024.0, "mib": 1024.0**2},
}
_FORM = re.compile(r"\s*([a-z]+)\s*:\s*([0-9]*\.?[0-9]+)\s*([a-z%]*)\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a result may need.

    Attributes:
        kind: "latency", "macs" or "size".
        value: milliseconds of one example, the share of the original's
            multiply-accumulates, or bytes of the file.

    Example:
        >>> from tfkd.recipes.budget import Budget
        >>> Budget.parse("size:500KB")
        Budget(kind='size', value=500000.0)
        >>> str(Budget.parse("macs:50%"))
        'macs:50%'
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads a budget.

        Raises:
            ValueError: if it is none.
        """
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            near = checks.near(str(text).partition(":")[0], KINDS)
            raise checks.value_error("budget", EXPECTED, text, near)
        kind, amount, unit = found[1].lower(), float(found[2]), found[3].lower()
        if kind not in _UNITS:
            raise checks.value_error("budget", EXPECTED, text, checks.near(kind, KINDS))
        units = _UNITS[kind]
        if unit not in units:
            fix = f"A unit of {kind} is one of {', '.join(repr(u) for u in units if u)}."
            raise checks.value_error("budget", EXPECTED, text, fix)
        value = amount * units[unit]
        if value <= 0 or (kind == "macs" and value >= 1):
            limit = "above 0 and below 100 %" if kind == "macs" else "above 0"
            raise checks.value_error("budget", f"{EXPECTED}, {limit}", text)
        return cls(kind, value)

    def __str__(self) -> str:
        if self.kind == "macs":
            return f"macs:{100 * self.value:g}%"
        return f"latency:{self.value:g}ms" if self.kind == "latency" else f"size:{self.value:.0f}B"


class _BudgetKind(Kind):
    def problem(self, value: object) -> str | None:
        if value is None:
            return None
        try:
            Budget.parse(value)  # type: ignore[arg-type]
        except ValueError as error:
            return str(error).removeprefix("`budget`: ")
        return None


KIND = _BudgetKind(
    f"{EXPECTED}, or null", lambda value: True, {"type": ["string", "null"]}, KINDS
)  # fmt: skip
