"""What a start has worked out, kept on disk for the next one.

An artefact stands in the folder under a name that holds a digest of its recipe:
the SHA-256 of the model file, versions, providers, processor. Beside it stands its
manifest. It is used only if it is what the manifest says; else it is made again,
with a warning. The folder may be deleted at any time.

Hashing a large file may take longer than opening it. So the SHA-256 of a file is
kept with what the file system says of it (size, inode, times of change), and the
file is read again only when that has changed. A program that writes to the file
changes it: the time of the last change of a file can't be set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tfkd import artifacts, checks

# A clock of a file system may stand still for so long, in nanoseconds.
_TICK = 20_000_000
_COARSE = 2_100_000_000
_SECOND = 1_000_000_000


def folder_for(artifacts_dir: Any) -> pathlib.Path | None:
    """The folder that the argument `artifacts_dir` means; None for none.

    Raises:
        TypeError: if it is neither None nor a path.
    """
    if artifacts_dir is None:
        return None
    checks.instance("artifacts_dir", artifacts_dir, (str, os.PathLike), 'a folder, "auto" or None')
    if artifacts_dir != "auto":
        return pathlib.Path(artifacts_dir)
    home = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification has it, a relative path there does not count.
    base = pathlib.Path(home) if os.path.isabs(home) else pathlib.Path.home() / ".cache"
    return base / "tfkd"


class Store:
    """A folder of artefacts."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def digest(self, path: str | os.PathLike[str]) -> str:
        """The SHA-256 of a file, read again only if the file has changed."""
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
            with contextlib.suppress(OSError, ValueError):  # without a note it is read again
                artifacts.write_json(note, {"path": str(path), "stamp": now, "sha256": found})
        return found

    def verify(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Checks a file against its manifest, as `tfkd.artifacts.verify` does."""
        manifest = artifacts.read_manifest(path)
        if self.digest(path) != manifest["sha256"]:
            return artifacts.verify(path)  # which raises, and says what is wrong
        return manifest

    def name(self, stem: str, recipe: Mapping[str, Any], ending: str) -> pathlib.Path:
        """Where the artefact of a recipe stands."""
        text = json.dumps(recipe, sort_keys=True)
        return self.folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:32]}{ending}"

    def there(self, path: pathlib.Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """The manifest of an artefact that is whole and of this recipe; None if it isn't."""
        if not path.exists():
            return None
        try:
            manifest = self.verify(path)
            if manifest["recipe"] == dict(recipe):
                return manifest
            problem = "its manifest names another recipe"
        except (ValueError, OSError) as error:
            problem = str(error)
        again(path, problem)
        return None

    def keep(
        self,
        path: pathlib.Path,
        recipe: Mapping[str, Any],
        make: Callable[[pathlib.Path], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Makes an artefact; returns its manifest.

        Args:
            path: where it will stand.
            recipe: what it is made of.
            make: writes it to the path that it is given; what it returns stands in
                the manifest too.
        """
        with artifacts.atomic_path(path) as temporary:
            extra = make(temporary)
        manifest = artifacts.write_manifest(path, recipe, **extra)
        self.digest(path)
        return manifest


def again(path: pathlib.Path, problem: str) -> None:
    """Warns that an artefact is made again."""
    text = f"The artefact {path} is stale or damaged and is made again: {problem}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def without(path: pathlib.Path, error: Exception) -> None:
    """Warns that a model is opened without its artefact."""
    text = f"No artefact was kept for {path}, which is opened without: {error}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def processor() -> str:
    """A digest of the processor's name and abilities, which compiled code depends on."""
    import platform

    lines: list[str] = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                lines.append(line)
            if not line.strip() and lines:
                break  # the first processor
    text = "".join(lines) or platform.processor()
    return hashlib.sha256(f"{platform.machine()}\n{text}".encode()).hexdigest()[:16]


def _stamp(path: pathlib.Path) -> list[int]:
    """What changes when a file does."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _settled(path: pathlib.Path) -> bool:
    """Waits until a later change gets a later time; False if that takes too long."""
    stat = os.stat(path)
    coarse = not stat.st_mtime_ns % _SECOND and not stat.st_ctime_ns % _SECOND
    age = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)
    if coarse:
        return age > _COARSE
    if 0 <= age < _TICK:
        time.sleep((_TICK - age) / _SECOND)
    return age >= 0
