"""Base class of tables of models: rows of one type, notes, and the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tfkd import checks
from tfkd.report.latency import machine as this_machine
from tfkd.results import Result, plain, restored

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class ModelTable(Result):
    """A table with one or more rows.

    Attributes:
        rows: the rows, in order.
        notes: sentences below the table.
        machine: where the latency was measured (`tfkd.report.machine()`).
    """

    row_type: ClassVar[type]

    rows: Iterable[Any]
    notes: Iterable[str] = ()
    machine: Mapping[str, Any] = dataclasses.field(default_factory=this_machine)

    def __post_init__(self) -> None:
        rows = tuple(self.rows)
        if not rows:
            raise checks.value_error("rows", "at least one row", rows)
        for row in rows:
            kind = f"rows of type tfkd.report.{self.row_type.__name__}"
            checks.instance("rows", row, self.row_type, kind)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The table again from the JSON values of `to_dict`.

        Raises:
            TypeError, ValueError: if they are not those of such a table.
        """
        checks.instance("values", values, Mapping, f"the JSON values of a {cls.__name__}")
        rows = [cls._restored_row(row) for row in values.get("rows", ())]
        return restored(cls, {**values, "rows": rows})

    @classmethod
    def _restored_row(cls, values: Mapping[str, Any]) -> Any:
        return restored(cls.row_type, values)

    def to_dict(self) -> dict[str, Any]:
        """All values in full precision, including those of every seed, as JSON values."""
        rows = [{k: v for k, v in row.items() if v not in (None, "")} for row in plain(self.rows)]
        return super().to_dict() | {"rows": rows}
