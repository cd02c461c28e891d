"""Shards of a teacher cache: `.npy` files, written atomically and read as memory maps.

    cache.json            origin, layout and shard size
    00000.json            record of a finished shard, written last: SHA-256 of its files
    00000.keys.npy        (n, 16) uint8: content hashes of the examples
    00000.final.0.npy     (n, views, ...): the outputs

Any NumPy version reads them. A shard whose writing was interrupted has no record, and
is built again.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfkd import artifacts, checks

# Name of an output → shape of one view of an example, and dtype.
Forms = Mapping[str, tuple[tuple[int, ...], Any]]
KEYS = "keys"
_RECORD = re.compile(r"\d{5,}\.json")
_RELEASE = 1 << 23  # bytes read from memory maps before their pages are released


class Shards:
    """The files of a cache, and the distribution of its rows over them.

    Args:
        folder: folder of the cache.
        count: number of examples.
        size: examples per shard.
        forms: name → (shape of one view of an example, dtype).
        views: views of each example.
        of: fingerprint of the cache; shards with another one count as not finished.
    """

    def __init__(self, folder: Path, count: int, size: int, forms: Forms, views: int, of: str):
        self.folder, self.count, self.size = folder, count, size
        self.views, self.of = views, of
        self.forms = {name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in forms.items()}
        self.number = -(-count // size)
        self._maps: dict[tuple[int, str], np.ndarray] = {}
        self._read = 0

    @property
    def bytes_per_example(self) -> int:
        """Bytes on disk per example, with all views and its key."""
        return _row_bytes(self.views, self.forms)

    def rows(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def path(self, shard: int, name: str) -> Path:
        """The file of one output of a shard."""
        return self.folder / f"{shard:05d}.{name}.npy"

    def record_path(self, shard: int) -> Path:
        """The file whose existence marks a shard as finished."""
        return self.folder / f"{shard:05d}.json"

    def missing(self) -> list[int]:
        """Shards that are not finished."""
        return [shard for shard in range(self.number) if not self.record_path(shard).is_file()]

    def check_space(self, shards: int) -> None:
        """Raises OSError, before anything is computed, if the disk cannot hold so many shards."""
        needed = shards * min(self.size, self.count) * self.bytes_per_example
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"cannot write a cache into {self.folder}: it needs {needed:,} more bytes, and the "
                f"disk has {free:,} left. Free some, or store less (dtype, top_k, layers, views)",
            )

    def write(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes all files of a shard, and its record last.

        Raises:
            OSError: if the disk is full or not writable; finished shards are kept.
        """
        files = {}
        try:
            for name, array in arrays.items():
                path = self.path(shard, name)
                with artifacts.atomic_path(path) as temporary, temporary.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                files[path.name] = {"sha256": artifacts.sha256(path), "bytes": path.stat().st_size}
            rows = self.rows(shard)
            record = {"of": self.of, "first": rows.start, "examples": len(rows), "files": files}
            artifacts.write_json(self.record_path(shard), record)
        except OSError as error:
            done = self.number - len(self.missing())
            raise OSError(
                error.errno,
                f"cannot write shard {shard} of a cache into {self.folder}: "
                f"{error.strerror or error}. {done} of {self.number} shards are finished and stay: "
                "make room and build again to go on from there",
            ) from error

    def problem(self, shard: int, content: bool = True) -> str | None:
        """What is wrong with a shard, or None.

        Args:
            shard: index of the shard.
            content: verify SHA-256 too, which reads all files; otherwise sizes only.
        """
        path = self.record_path(shard)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            files = record["files"]
            if record["of"] != self.of or record["examples"] != len(self.rows(shard)):
                return f"{path} is of another cache"
            expected = {self.path(shard, name).name for name in (KEYS, *self.forms)}
            if set(files) != expected:
                return f"{path} lists other files than the cache has"
            for name, known in files.items():
                file = self.folder / name
                if not file.is_file():
                    return f"{file} is missing"
                if file.stat().st_size != known["bytes"]:
                    return f"{file} has {file.stat().st_size} bytes, not {known['bytes']}"
                if content and artifacts.sha256(file) != known["sha256"]:
                    return f"{file} has changed since it was written"
        except FileNotFoundError:
            return f"{path} is missing: the shard is not finished"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{path} can't be read ({error})"
        return None

    def keys(self) -> np.ndarray:
        """(count, 16) uint8: the key of each example."""
        return np.concatenate([np.load(self.path(s, KEYS)) for s in range(self.number)])

    def gather(self, name: str, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Reads one output of some examples.

        Args:
            name: name of the output.
            index: (B,) indices of the examples.
            view: (B,) indices of their views.

        Returns:
            (B, ...) in the stored dtype.
        """
        shape, dtype = self.forms[name]
        shards, rows = np.divmod(index, self.size)
        first = int(shards[0]) if len(shards) else 0
        if (shards == first).all():
            found = self._map(first, name)[rows, view]
        else:
            found = np.empty((len(index), *shape), dtype)
            for shard in np.unique(shards):
                mine = shards == shard
                found[mine] = self._map(int(shard), name)[rows[mine], view[mine]]
        self._read += found.nbytes + len(index) * mmap.PAGESIZE
        if self._read > _RELEASE:
            self._release()
        return found

    def _map(self, shard: int, name: str) -> np.ndarray:
        """The memory map of a file, opened on first use; its header is checked."""
        found = self._maps.get((shard, name))
        if found is None:
            shape, dtype = self.forms[name]
            path = self.path(shard, name)
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            expected = (len(self.rows(shard)), self.views, *shape)
            if found.shape != expected or found.dtype != dtype:
                raise checks.value_error(str(path), f"an array {expected} of {dtype}", found)
            _advise(found, "MADV_RANDOM")
            self._maps[shard, name] = found
        return found

    def _release(self) -> None:
        """Releases the pages that were read, so that they do not count as process memory."""
        self._read = 0
        for found in self._maps.values():
            _advise(found, "MADV_DONTNEED")


def _advise(array: Any, advice: str) -> None:
    number = getattr(mmap, advice, None)
    if number is not None and getattr(array, "_mmap", None) is not None:
        array._mmap.madvise(number)


def free(folder: Path, of: str) -> None:
    """Removes the shards of other caches, and nothing else, from the folder.

    Shards of this cache are kept: another process may just have written them.
    """
    for record in sorted(folder.iterdir()):
        if not _RECORD.fullmatch(record.name):
            continue
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            if content["of"] == of:
                continue
            names = [name for name in content["files"] if Path(name).name == name]
        except (OSError, ValueError, KeyError, TypeError):
            names = []  # a damaged record: its files will be overwritten
        record.unlink(missing_ok=True)
        for name in names:
            (folder / name).unlink(missing_ok=True)


def _row_bytes(views: int, forms: Forms) -> int:
    """Bytes of one example: its key, and the outputs of all views."""
    sizes = (np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in forms.values())
    return 16 + views * sum(sizes)


def shard_size(count: int, views: int, forms: Forms) -> int:
    """Examples per shard: 64 MiB or 65,536 examples, whichever is less."""
    return int(min(count, 65_536, max(1, (64 << 20) // _row_bytes(views, forms))))


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Accepts a folder, and creates it if missing."""
    checks.instance("path", path, (str, os.PathLike), "the path of a folder")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise checks.value_error("path", "a folder, or the path of one to be made", str(path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
