"""SavedModel folders: name of the signature, verification of all files by SHA-256."""

from __future__ import annotations

import pathlib
from typing import Any

from tfkd import artifacts, checks
from tfkd.types import Path

SIGNATURE = "serving_default"
GRAPH_FILE = "saved_model.pb"


def verify_saved_model(path: Path) -> dict[str, Any]:
    """Checks every file of a SavedModel against the manifest inside it.

    Returns:
        The manifest.

    Raises:
        ValueError: if the manifest is missing, or a file is missing, changed or not in
            the manifest.
    """
    folder = pathlib.Path(path)
    manifest = artifacts.verify(folder / GRAPH_FILE)
    found, listed = file_hashes(folder), manifest.get("files", {})
    wrong = sorted(k for k in {*found, *listed} if found.get(k) != listed.get(k))
    if wrong:
        expected = "a folder with the files of its manifest"
        fix = f"These differ: {', '.join(wrong)}. Copy or make it again."
        raise checks.value_error("path", expected, str(folder), fix)
    return manifest


def file_hashes(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of all files except the manifest, by path within the folder."""
    manifest = artifacts.manifest_path(folder / GRAPH_FILE)
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": artifacts.sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != manifest
    }
