"""Results from JSON and back."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tfkd import results
from tfkd.results import plain, restored


@dataclasses.dataclass(frozen=True)
class Inner:
    x: float
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Outer:
    one: Inner
    maybe: Inner | None
    some: tuple[Inner, ...]
    named: Mapping[str, Sequence[Inner]]
    pair: tuple[int, str]
    number: Inner | float
    array: np.ndarray
    path: pathlib.Path = pathlib.Path("a")
    count: int | None = None


A, B = Inner(1.0, "a"), Inner(2.5)


@pytest.mark.parametrize("number", [3.0, B])
def test_all_annotations(number):
    array = np.array([[1.0, np.nan], [2.0, 3.0]])
    first = Outer(A, None, (A, B), {"k": (B,)}, (1, "x"), number, array, pathlib.Path("b/c"))
    again = restored(Outer, json.loads(json.dumps(plain(first))))
    np.testing.assert_array_equal(again.array, array)
    for field in dataclasses.fields(Outer):
        if field.name != "array":
            assert getattr(again, field.name) == getattr(first, field.name)
            assert type(getattr(again, field.name)) is type(getattr(first, field.name))


def test_null_is_nan_where_a_number_must_be():
    assert np.isnan(restored(Inner, {"x": None}).x)


def test_objects_and_unknown_keys():
    assert restored(Inner, A) is A
    assert restored(Inner, {"x": 1.0, "name": "a", "twice": 2.0}) == A


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="JSON values of Inner.*a value for x"):
        restored(Inner, {"name": "a"})
    with pytest.raises(TypeError, match="`Inner`.*JSON values"):
        restored(Inner, [1.0])


def test_fields_that_are_saved_but_not_printed():
    @dataclasses.dataclass
    class Saved(results.Result):
        shown: int
        hidden: int = dataclasses.field(default=1, repr=False)
        saved: int = dataclasses.field(default=2, repr=False, metadata={"saved": True})

    assert Saved(0).to_dict() == {"shown": 0, "saved": 2}
