"""The same example, by its content, in two parts of a data set, or with two labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks

_LONG = 60


class Part(NamedTuple):
    """Examples with their labels, and what messages call each.

    Attributes:
        examples: (N, ...) array, or (N,) texts.
        labels: (N,) class numbers.
        places: N names, or None: "x_train[3]".
    """

    examples: np.ndarray
    labels: np.ndarray
    places: Sequence[Any] | None = None


def keys(examples: np.ndarray) -> Iterator[Any]:
    """What is equal for two examples of one data set if they have the same content."""
    if examples.dtype.kind == "O":
        return iter(examples)
    # A digest, so that what is remembered of an image is small.
    return (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in examples)


def warn(name: str, noun: str, parts: Mapping[str, Part], class_names: Sequence[str]) -> None:
    """Says how many examples are in two parts, and how many have two labels.

    Args:
        name: of the data set.
        noun: what its examples are, such as "images".
        parts: "train", "test", ... -> its examples.
        class_names: names of the labels.
    """
    first: dict[Any, tuple[str, int]] = {}
    shared: dict[tuple[str, str], list[tuple[int, int]]] = {}
    unlike: list[tuple[str, int, str, int]] = []
    for part, (examples, labels, _) in parts.items():
        for row, key in enumerate(keys(examples)):
            earlier, place = first.setdefault(key, (part, row))
            if earlier != part:
                shared.setdefault((earlier, part), []).append((row, place))
            if labels[row] != parts[earlier].labels[place]:
                unlike.append((part, row, earlier, place))
    for (earlier, part), pairs in shared.items():
        row, place = pairs[0]
        count, verb = f"{len(pairs)} of the {len(parts[part].labels)}", _verb(pairs)
        checks.warn(
            f"{name}: {count} {noun} of the {_named(part)} part {verb} in the {_named(earlier)} "
            f"part too, by content; the first: {_shown(parts, part, row)} is "
            f"{_shown(parts, earlier, place)}. A score on {noun} that were trained on says "
            "nothing about new ones: remove them from one of the parts."
        )
    if unlike:
        part, row, earlier, place = unlike[0]
        labels = [class_names[parts[p].labels[r]] for p, r in ((part, row), (earlier, place))]
        checks.warn(
            f"{name}: {len(unlike)} of the {noun} {'has' if len(unlike) == 1 else 'have'} the "
            f"content of an earlier one and another label; the first: "
            f"{_shown(parts, part, row)} with label {labels[0]!r} is "
            f"{_shown(parts, earlier, place)} with label {labels[1]!r}. Correct the labels, or "
            "remove them."
        )


def _verb(pairs: Sequence[Any]) -> str:
    return "is" if len(pairs) == 1 else "are"


def _named(part: str) -> str:
    return "training" if part == "train" else part


def _shown(parts: Mapping[str, Part], part: str, row: int) -> str:
    examples, _, places = parts[part]
    place = f"x_{part}[{row}]" if places is None else str(places[row])
    if examples.dtype.kind != "O":
        return place
    text = examples[row]
    return f"{place} ({text if len(text) <= _LONG else text[:_LONG] + '...'!r})"
