"""Data-quality warnings: duplicates across splits (leakage), label conflicts, pixel ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfkd import checks

_LONG = 60  # characters of a text shown in a warning
# Ratio of pixel ranges that only rescaling by 127.5 or 255 explains, not darker images.
_OTHER_UNITS = 50


class Part(NamedTuple):
    """Examples of one split with their labels and names.

    Attributes:
        examples: (N, ...) array, or (N,) texts.
        labels: (N,) class numbers.
        places: N names of the examples for messages; None: "x_train[3]" and so on.
    """

    examples: np.ndarray
    labels: np.ndarray
    places: Sequence[Any] | None = None


def repeats(parts: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, str, int]]:
    """Duplicates: (part, row, earlier part, earlier row) of each repeated example.

    Args:
        parts: "train", "test", ... -> examples, arrays of one dtype or texts.

    Example:
        >>> import numpy as np
        >>> from tfkd.data import quality
        >>> x = np.eye(3)
        >>> list(quality.repeats({"train": x, "test": x[2:]}))
        [('test', 0, 'train', 2)]
    """
    first: dict[Any, tuple[str, int]] = {}
    for part, examples in parts.items():
        is_text = examples.dtype.kind == "O"
        for row, example in enumerate(examples):
            # Hashes keep memory small; candidates are then compared by content.
            key = example if is_text else hash(example.tobytes())
            earlier, place = first.setdefault(key, (part, row))
            is_new = (earlier, place) == (part, row)
            if not is_new and (is_text or np.array_equal(example, parts[earlier][place])):
                yield part, row, earlier, place


def repeated(name: str, noun: str, parts: Mapping[str, Part], class_names: Sequence[str]) -> None:
    """Warns of examples that are in two parts, and of equal examples with different labels.

    Args:
        name: name of the data set.
        noun: word for its examples, such as "images".
        parts: "train", "test", ... -> its examples.
        class_names: names of the labels.
    """
    shared: dict[tuple[str, str], list[tuple[int, int]]] = {}
    unlike: list[tuple[str, int, str, int]] = []
    for found in repeats({part: each.examples for part, each in parts.items()}):
        part, row, earlier, place = found
        if earlier != part:
            shared.setdefault((earlier, part), []).append((row, place))
        if parts[part].labels[row] != parts[earlier].labels[place]:
            unlike.append(found)
    for (earlier, part), pairs in shared.items():
        row, place = pairs[0]
        count = f"{len(pairs)} of the {len(parts[part].labels)}"
        verb = "is" if len(pairs) == 1 else "are"
        checks.warn(
            f"{name}: {count} {noun} of the {_named(part)} part {verb} in the {_named(earlier)} "
            f"part too, by content; the first: {_shown(parts, part, row)} is "
            f"{_shown(parts, earlier, place)}. Scores on {noun} that were trained on do not "
            "measure generalization: remove them from one of the parts."
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


def _named(part: str) -> str:
    return "training" if part == "train" else part


def _shown(parts: Mapping[str, Part], part: str, row: int) -> str:
    examples, _, places = parts[part]
    place = f"x_{part}[{row}]" if places is None else str(places[row])
    if examples.dtype.kind != "O":
        return place
    text = examples[row]
    return f"{place} ({text if len(text) <= _LONG else text[:_LONG] + '...'!r})"


def pixels(name: str, train: np.ndarray, test: np.ndarray) -> None:
    """Warns of images that seem to be channels-first, or scaled differently in the two parts."""
    _, height, width, channels = train.shape
    if height in (1, 3) and width > 4 and channels > 4:
        checks.warn(
            f"{name}: its images have {channels} channels and a height of {height}. Channels "
            "first? Pass `np.moveaxis(images, 1, -1)`."
        )
    spans = [float(x.max()) - float(x.min()) for x in (train, test)]
    if min(spans) > 0 and max(spans) > _OTHER_UNITS * min(spans):
        checks.warn(
            f"{name}: pixels of x_train span {spans[0]:g}, those of x_test {spans[1]:g}. Are they "
            "in one unit, and was only one of them divided by 255?"
        )
