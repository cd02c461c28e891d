"""Content hashes (BLAKE2b) that identify the examples of a teacher cache."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfkd import example_inputs
from tfkd.types import Data

SIZE = 16  # bytes: among 10^9 examples a collision has a probability of about 10^-21


def read(data: Data, count: int | None = None) -> tuple[Any, list[Any], int]:
    """The examples, a flat list of their arrays, and their number.

    Args:
        data: in any form of `tfkd.example_inputs`.
        count: number of inputs of the teacher; None: a tuple of arrays is the inputs.
    """
    x = example_inputs.arrays("data", data, count, labels=False, pairs=False).x
    return x, tf.nest.flatten(x), example_inputs.length("data", x)


def keys(leaves: list[Any], rows: range) -> np.ndarray:
    """uint8 (n, 16): a digest of each example's type, shape and bytes.

    Args:
        leaves: arrays (N, ...), of which only `rows` are read.
        rows: a range of rows.
    """
    parts = [np.ascontiguousarray(np.asarray(leaf[rows.start : rows.stop])) for leaf in leaves]
    found = np.empty((len(rows), SIZE), np.uint8)
    form = [("O" if part.dtype.kind == "O" else part.dtype.str, part.shape[1:]) for part in parts]
    begin = hashlib.blake2b(repr(form).encode(), digest_size=SIZE)
    for row in range(len(rows)):
        digest = begin.copy()
        for part in parts:
            digest.update(_bytes(part[row]))
        found[row] = np.frombuffer(digest.digest(), np.uint8)
    return found


def _bytes(value: Any) -> Any:
    plain = isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind != "O"
    return value.tobytes() if plain else repr(value).encode()


def places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row of each wanted key among the known keys, −1 if it is not there."""
    if known.shape == wanted.shape and (known == wanted).all():
        return np.arange(len(known))
    table: dict[bytes, int] = {}
    for row, name in enumerate(_names(known)):
        table.setdefault(name, row)
    return np.array([table.get(name, -1) for name in _names(wanted)], np.int64)


def firsts(known: np.ndarray) -> np.ndarray:
    """The first row with the same key, for each row."""
    table: dict[bytes, int] = {}
    return np.array([table.setdefault(n, row) for row, n in enumerate(_names(known))], np.int64)


def _names(keys: np.ndarray) -> list[bytes]:
    names = np.ascontiguousarray(keys).view([("", f"V{SIZE}")]).reshape(-1).tolist()
    return [name[0] for name in names]
