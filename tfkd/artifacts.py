"""Atomic file writes, and manifests with the SHA-256 checksum and origin of each artifact.

A file is written under a temporary name in the target folder, flushed to disk and
then renamed, which is atomic: a reader sees the old file or the new one, never part
of one, even if the writer is killed. The manifest of `m.tflite` is
`m.tflite.manifest.json`: its SHA-256, size, recipe and the package versions that
made it. `verify` checks the file against its manifest.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfkd import __version__, checks

MANIFEST_SUFFIX = ".manifest.json"

_CHUNK = 1 << 20
# Distributions whose versions determine the content of exported files.
_PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "tf2onnx", "onnx", "numpy")
_FIELDS = ("file", "sha256", "bytes", "created", "versions", "recipe")


def _path(name: str, path: Any) -> Path:
    checks.instance(name, path, (str, os.PathLike), "a path")
    path = Path(path)
    if not path.name or path.is_dir():
        raise checks.value_error(name, "the path of a file", str(path), "This is a folder.")
    return path


def _cannot_write(path: Path, error: OSError) -> OSError:
    """The same error, with its errno (hence its class) and a message that names the path."""
    text = f"cannot write {path}: {error.strerror or error}. The folder must exist or be one that "
    return OSError(error.errno, text + "can be made and written to; nothing was changed")


def _fsync(path: Path) -> None:
    # Windows cannot open a folder: there the rename is not flushed separately.
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDWR
    try:
        handle = os.open(path, flags)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` when the block succeeds.

    For files that another library writes. The temporary path is in the same
    folder (created if missing) and has the same suffix. If the block raises,
    the old file is kept and the temporary one is removed.

    Args:
        path: the file to create or replace.

    Yields:
        The temporary path; no file exists there yet.

    Raises:
        ValueError: if `path` is a folder, or the block wrote nothing.
        OSError: if the folder cannot be made or written to.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from tfkd import artifacts
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with artifacts.atomic_path(folder / "a.npy") as temporary:
        ...     np.save(temporary, np.arange(3))
        >>> [file.name for file in folder.iterdir()]
        ['a.npy']
    """
    final = _path("path", path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        # Fail now rather than at the end of a long export.
        temporary = final.parent / f".{final.stem}.{secrets.token_hex(8)}.tmp{final.suffix}"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.unlink(temporary)
    except OSError as error:
        raise _cannot_write(final, error) from error
    try:
        yield temporary
        if not temporary.is_file():
            expected = "one file, written to the temporary path"
            raise checks.value_error("path", expected, str(final), "None was written.")
        try:
            _fsync(temporary)
            os.replace(temporary, final)
        except OSError as error:
            raise _cannot_write(final, error) from error
        _fsync(final.parent)
    finally:
        # Still there only if the block or the rename failed.
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Writes `data` to `path` atomically.

    Args:
        path: the file to create or replace; its folder is created if missing.
        data: bytes, bytearray or memoryview.

    Returns:
        The path.

    Raises:
        TypeError: if `data` is not bytes.
        OSError: if the file cannot be written; the old one is kept.
    """
    checks.instance("data", data, (bytes, bytearray, memoryview), "bytes")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes `text` in UTF-8; see `write_bytes`."""
    checks.instance("text", text, str, "a string")
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Writes `value` as JSON; see `write_bytes`.

    NumPy numbers and arrays are written as numbers and lists, paths as text.

    Raises:
        TypeError: if `value` holds something that JSON cannot represent.
        ValueError: if it holds NaN or infinity, which JSON does not allow.

    Example:
        >>> import pathlib, tempfile
        >>> from tfkd import artifacts
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.json"
        >>> artifacts.write_json(path, {"macs": 12}).read_text()
        '{\\n  "macs": 12\\n}\\n'
    """
    return write_text(path, _to_json(value))


def _to_json(value: Any) -> str:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        fix = f"{error}. Write None instead."
        expected = "finite numbers that JSON can hold"
        raise checks.value_error("value", expected, value, fix) from error
    return text + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise checks.type_error("value", "what JSON can hold", value)


def _digest(path: Path) -> tuple[str, int]:
    """Returns (SHA-256 in hexadecimal, size in bytes), reading the file once."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        ValueError: if there is no such file.
    """
    return _digest(_existing(path))[0]


def _existing(path: str | os.PathLike) -> Path:
    found = _path("path", path)
    if not found.is_file():
        raise checks.value_error("path", "a file that exists", str(found))
    return found


def versions() -> dict[str, str | None]:
    """Versions of tfkd, Python and the packages that determine files; None: not installed."""
    # Read from package metadata, since importing TensorFlow takes seconds.
    found: dict[str, str | None] = {"tfkd": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def manifest_path(path: str | os.PathLike) -> Path:
    """Returns the path of the manifest of `path`: `<path>.manifest.json`."""
    path = Path(path)
    return path.with_name(path.name + MANIFEST_SUFFIX)


def write_manifest(path: str | os.PathLike, recipe: Mapping[str, Any], **extra: Any) -> dict:
    """Writes `<path>.manifest.json` beside a finished file.

    Args:
        path: the file, already written.
        recipe: how it was made, as JSON values.
        **extra: more entries as JSON values, for example `parity={...}`.

    Returns:
        The manifest: file, sha256, bytes, created (UTC), versions, recipe
        and `extra`.

    Raises:
        ValueError: if there is no such file or `extra` has a reserved name.
        TypeError: if `recipe` is not a dictionary or cannot be written as JSON.

    Example:
        >>> import pathlib, tempfile
        >>> from tfkd import artifacts
        >>> path = artifacts.write_bytes(pathlib.Path(tempfile.mkdtemp()) / "m.bin", b"abc")
        >>> _ = artifacts.write_manifest(path, {"io": "int8"})
        >>> artifacts.verify(path)["bytes"]
        3
    """
    found = _existing(path)
    checks.instance("recipe", recipe, Mapping, "a dictionary")
    taken = sorted(set(extra) & set(_FIELDS))
    if taken:
        raise checks.value_error("extra", f"names other than {', '.join(_FIELDS)}", taken)
    digest, size = _digest(found)
    manifest = {
        "file": found.name,
        "sha256": digest,
        "bytes": size,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "recipe": dict(recipe),
        **extra,
    }
    text = _to_json(manifest)
    write_text(manifest_path(found), text)
    return json.loads(text)


def read_manifest(path: str | os.PathLike) -> dict:
    """Reads the manifest of the file `path`; does not check the file itself.

    Raises:
        ValueError: if the manifest is missing or cannot be read.
    """
    where = manifest_path(_path("path", path))
    fix = "Make the file again, or write its manifest with `tfkd.artifacts.write_manifest`."
    expected = "a file with a readable manifest beside it"
    try:
        manifest = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = f"{where} is missing. {fix}"
        raise checks.value_error("path", expected, str(path), problem) from None
    except (OSError, ValueError) as error:
        problem = f"{where} cannot be read: {error}. {fix}"
        raise checks.value_error("path", expected, str(path), problem) from error
    missing = [f for f in _FIELDS if not isinstance(manifest, dict) or f not in manifest]
    if missing:
        problem = f"{where} lacks {', '.join(missing)}. {fix}"
        raise checks.value_error("path", expected, str(path), problem)
    return manifest


def verify(path: str | os.PathLike) -> dict:
    """Checks a file against its manifest.

    Returns:
        The manifest.

    Raises:
        ValueError: if the file is missing, has a different size or content than
            when the manifest was written, or has no readable manifest.
    """
    found = _existing(path)
    manifest = read_manifest(found)
    digest, size = _digest(found)
    fix = "It was truncated, damaged or changed: copy or make it again."
    if size != manifest["bytes"]:
        expected = f"a file of {manifest['bytes']} bytes, as its manifest says (it has {size})"
        raise checks.value_error("path", expected, str(found), fix)
    if digest != manifest["sha256"]:
        known = f"SHA-256 {manifest['sha256']}, as its manifest says (it has {digest})"
        expected = f"a file with {known}"
        raise checks.value_error("path", expected, str(found), fix)
    return manifest
