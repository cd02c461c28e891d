"""On-disk store of artefacts that speed up the next start, verified by manifests.

The name of an artefact contains a digest of its recipe: the SHA-256 of the model file,
versions, providers, processor. Its manifest is beside it. An artefact that does not
match its manifest is created again, with a warning. The folder may be deleted at any
time.

Hashing a large file may take longer than opening it. So the SHA-256 of a file is stored
with its metadata in the file system (size, inode, modification and change times), and
the file is hashed again only if they differ. Every write updates the change time
(ctime), which programs can't set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfkd import artifacts, checks
from tfkd.types import Path

# Resolutions of file times in nanoseconds: 20 ms covers the kernel's clock tick, 2.1 s
# file systems with whole seconds (FAT: 2 s).
_TICK = 20_000_000
_COARSE = 2_100_000_000
_SECOND = 1_000_000_000


def folder_for(artifacts_dir: Path | None) -> pathlib.Path | None:
    """The folder that the argument `artifacts_dir` selects; None if it is None.

    Raises:
        TypeError: if it is neither None nor a path.
    """
    if artifacts_dir is None:
        return None
    checks.instance("artifacts_dir", artifacts_dir, (str, os.PathLike), 'a folder, "auto" or None')
    if artifacts_dir != "auto":
        return pathlib.Path(artifacts_dir)
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification: relative paths must be ignored.
    base = pathlib.Path(home) if os.path.isabs(home) else pathlib.Path.home() / ".cache"
    return base / "tfkd"


class Store:
    """A folder of artefacts with manifests."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def digest(self, path: Path) -> str:
        """The SHA-256 of a file, computed again only if the file's metadata have changed."""
        path = pathlib.Path(path).absolute()
        key = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
        note = self.folder / "seen" / f"{key}.json"
        now = _stamp(path)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            seen = json.loads(note.read_text(encoding="utf-8"))
            if seen["path"] == str(path) and seen["stamp"] == now:
                return str(seen["sha256"])
        settled = _settled(path)
        now = _stamp(path)
        found = artifacts.sha256(path)
        if settled and _stamp(path) == now:
            with contextlib.suppress(OSError, ValueError):  # Without it the file is hashed again.
                artifacts.write_json(note, {"path": str(path), "stamp": now, "sha256": found})
        return found

    def verify(self, path: Path) -> dict[str, Any]:
        """Checks a file against its manifest, as `tfkd.artifacts.verify` does."""
        manifest = artifacts.read_manifest(path)
        if self.digest(path) != manifest["sha256"]:
            return artifacts.verify(path)  # It raises with the reason.
        return manifest

    def name(self, stem: str, recipe: Mapping[str, Any], ending: str) -> pathlib.Path:
        """The path of the artefact for a recipe."""
        text = json.dumps(recipe, sort_keys=True)
        return self.folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:32]}{ending}"

    def find(self, path: pathlib.Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest of an intact artefact with this recipe; else None, with a warning."""
        if not path.exists():
            return None
        try:
            manifest = self.verify(path)
            if manifest["recipe"] == dict(recipe):
                return manifest
            problem = "its manifest names another recipe"
        except (ValueError, OSError) as error:
            problem = str(error)
        warn_recreated(path, problem)
        return None

    def create(
        self,
        path: pathlib.Path,
        recipe: Mapping[str, Any],
        make: Callable[[pathlib.Path], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Creates an artefact; returns its manifest.

        Args:
            path: path of the artefact.
            recipe: recipe of the artefact.
            make: writes the artefact to the temporary path that it is given; what it
                returns is added to the manifest.
        """
        with artifacts.atomic_path(path) as temporary:
            extra = make(temporary)
        manifest = artifacts.write_manifest(path, recipe, **extra)
        self.digest(path)
        return manifest


def warn_recreated(path: pathlib.Path, problem: str) -> None:
    """Warns that an artefact is created again."""
    text = f"The artefact {path} is stale or damaged and is made again: {problem}"
    checks.warn(text, RuntimeWarning)


def warn_uncached(path: pathlib.Path, error: Exception) -> None:
    """Warns that a model is opened without an artefact."""
    text = f"No artefact was kept for {path}, which is opened without: {error}"
    checks.warn(text, RuntimeWarning)


def processor() -> str:
    """A digest of the processor's model and features, on which compiled code depends."""
    import platform

    lines: list[str] = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                lines.append(line)
            if not line.strip() and lines:
                break  # The first processor stands for all.
    text = "".join(lines) or platform.processor()
    return hashlib.sha256(f"{platform.machine()}\n{text}".encode()).hexdigest()[:16]


def _stamp(path: pathlib.Path) -> list[int]:
    """The metadata of a file that change with its content."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _settled(path: pathlib.Path) -> bool:
    """Waits until a later write would change the file's times; False if that takes too long."""
    stat = os.stat(path)
    coarse = not stat.st_mtime_ns % _SECOND and not stat.st_ctime_ns % _SECOND
    age = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)
    if coarse:
        return age > _COARSE
    if 0 <= age < _TICK:
        time.sleep((_TICK - age) / _SECOND)
    return age >= 0
