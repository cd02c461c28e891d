"""Difficulty scores of a data set with the fingerprint of their origin, cached in a file."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tfkd import artifacts, checks, fingerprints

FORMAT = "tfkd difficulty, 1"
_EXPECTED = "a file of tfkd.curriculum.difficulty"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Difficulty:
    """The difficulty of each example of a data set.

    Made by the functions of `tfkd.curriculum.difficulty`. It works with `np.asarray`,
    `len` and all functions that accept an array of scores.

    Args:
        scores: (N,) finite numbers, higher is harder, in the order of the examples.
            Stored as float64, read-only.
        kind: name of the score, for example "teacher_loss".
        fingerprint: SHA-256 of everything that the scores depend on.
        parts: SHA-256 of the data, the model and so on: they show what has changed if
            fingerprints differ.

    Raises:
        TypeError, ValueError: if scores are not one finite number per example.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> from tfkd.curriculum import difficulty
        >>> tokens = np.array([[5, 3, 0, 0], [7, 2, 9, 4]])
        >>> found = difficulty.length(tokens)
        >>> found
        Difficulty('length', 2 examples, 2 to 4)
        >>> path = found.save(pathlib.Path(tempfile.mkdtemp()) / "length.npz")
        >>> np.asarray(difficulty.Difficulty.load(path)).tolist()
        [2.0, 4.0]
    """

    scores: np.ndarray
    kind: str
    fingerprint: str
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "scores", check_scores("scores", self.scores))

    def __len__(self) -> int:
        return len(self.scores)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and dtype not in (None, self.scores.dtype):
            raise ValueError(f"`copy`: scores are float64, and {dtype} needs a copy.")
        array = self.scores if dtype is None else self.scores.astype(dtype, copy=False)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        low, high = self.scores.min(), self.scores.max()
        return f"Difficulty({self.kind!r}, {len(self)} examples, {low:.4g} to {high:.4g})"

    def save(self, path: str | os.PathLike) -> Path:
        """Writes a `.npz` file without pickle, and its manifest `<path>.manifest.json`.

        Args:
            path: the file; its folder is created if necessary.

        Returns:
            The path.

        Raises:
            OSError: if it can't be written; an existing file is not changed.
        """
        recipe = {
            "format": FORMAT,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "parts": dict(self.parts),
        }
        document = np.array(json.dumps(recipe))
        with artifacts.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, document=document, scores=self.scores)
        artifacts.write_manifest(path, recipe, examples=len(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Difficulty:
        """Reads a file that `save` wrote, and checks it against its manifest.

        Raises:
            ValueError: if the file or its manifest is missing, damaged, or of another
                kind.
        """
        artifacts.verify(path)
        recipe, scores = _read(path)
        return cls(scores, recipe["kind"], recipe["fingerprint"], recipe["parts"])


def check_scores(name: str, scores: ArrayLike, count: int | None = None) -> np.ndarray:
    """Accepts one finite number per example; returns a read-only float64 array."""
    try:
        array = np.array(scores, np.float64)
    except (TypeError, ValueError):
        raise checks.type_error(name, "one number per example, (N,)", scores) from None
    if count is not None and array.shape != (count,):
        fix = "Score the training examples themselves, in the same order."
        raise checks.value_error(name, f"{count} scores, one per example", scores, fix)
    if array.ndim != 1 or not len(array):
        expected = "one number for each of at least one example, (N,)"
        raise checks.value_error(name, expected, scores)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        fix = f"That of example {bad[0]} is {array[bad[0]]}."
        raise checks.value_error(name, "finite scores", scores, fix)
    array.flags.writeable = False
    return array


def _read(path: str | os.PathLike) -> tuple[dict[str, Any], np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            recipe = json.loads(str(stored["document"]))
            if recipe["format"] == FORMAT:
                return recipe, stored["scores"]
        problem = f"Its format is {recipe['format']!r}; this version reads {FORMAT!r}."
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        problem = f"It can't be read as one: {error}."
    raise checks.value_error("path", _EXPECTED, str(path), problem)


def scored(
    kind: str,
    parts: Mapping[str, Any],
    path: str | os.PathLike[str] | None,
    compute: Callable[[], np.ndarray],
) -> Difficulty:
    """Reads scores from the file at `path` if it holds the same ones, or computes them.

    Args:
        kind: name of the score.
        parts: everything that the scores depend on, by name.
        path: the file, which is written if the scores are computed, or None.
        compute: computes the scores.

    Raises:
        ValueError: if `path` is a file of another kind, which must not be overwritten.

    Warns:
        UserWarning: if the file belongs to other data or another model, or is damaged.
    """
    digests = {name: fingerprints.digest(value) for name, value in parts.items()}
    fingerprint = fingerprints.digest([kind, digests])
    if path is not None:
        found = _stored(path, kind, digests, fingerprint)
        if found is not None:
            return found
    made = Difficulty(compute(), kind, fingerprint, digests)
    if path is not None:
        made.save(path)
    return made


def _stored(
    path: str | os.PathLike[str], kind: str, digests: Mapping[str, str], fingerprint: str
) -> Difficulty | None:
    checks.instance("path", path, (str, os.PathLike), "a path or None")
    if not Path(path).exists():
        return None
    try:
        found = Difficulty.load(path)
    except ValueError as error:
        if not _is_ours(path):
            fix = "It is not overwritten: give another path."
            raise checks.value_error("path", _EXPECTED, str(path), fix) from error
        _warn(path, f"can't be used ({error})")
        return None
    if found.fingerprint == fingerprint:
        return found
    if found.kind != kind:
        _warn(path, f"holds {found.kind}, not {kind}")
    else:
        names = [n for n in {**found.parts, **digests} if found.parts.get(n) != digests.get(n)]
        _warn(path, f"was made from another {' and another '.join(names)}")
    return None


def _is_ours(path: str | os.PathLike) -> bool:
    """Whether a file that can't be loaded was written by `save`."""
    try:
        return artifacts.read_manifest(path)["recipe"]["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        pass
    try:
        _read(path)
    except ValueError:
        return False
    return True  # the process was killed after the file and before its manifest


def _warn(path: str | os.PathLike[str], why: str) -> None:
    checks.warn(f"{path} {why}: scoring again, and overwriting the file.")
