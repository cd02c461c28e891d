"""The folder of a run: run.json, the status of each stage, and the sums of what it wrote.

`run.json` is written atomically after every change, so a run that is killed leaves a
document that says which stages are finished; their files have the sums written in it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from tfkd import artifacts, checks
from tfkd.recipes.recipe import Recipe
from tfkd.types import Path

NAME = "run.json"
RECIPE = "recipe.json"
FORMAT = 1
RUNNING, DONE, INTERRUPTED, FAILED = "running", "done", "interrupted", "failed"
_WORK = "work"  # what only an unfinished stage needs


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class OutputError(ValueError):
    """A folder that can't take this run."""


def _refused(expected: str, folder: pathlib.Path, fix: str) -> OutputError:
    return OutputError(checks.message("output", expected, str(folder), fix))


class RunFolder:
    """A folder that holds one run and nothing else.

    Args:
        path: the folder.
        document: the content of run.json.
    """

    def __init__(self, path: pathlib.Path, document: dict[str, Any]):
        self.path, self.document = path, document

    @classmethod
    def create(cls, path: Path, recipe: Recipe, command: str | None = None) -> RunFolder:
        """Starts a run in a new or empty folder.

        Raises:
            OutputError: if the folder holds anything.
            OSError: if it can't be made.
        """
        folder = pathlib.Path(path)
        refuse_used(folder, recipe)
        made = cls(folder, {
            "format": FORMAT, "status": RUNNING, "command": command, "created": now(),
            "recipe": recipe.to_dict(), "seed": recipe.seed,
            "versions": artifacts.versions(), "code": _code_version(), "hashes": {},
            "stages": {s.stage: {"status": "waiting"} for s in recipe.stages},
            "verdict": None,
        })  # fmt: skip
        made.write()
        return made

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Opens the folder of an earlier run.

        Raises:
            OutputError: if it holds no run, or one that can't be read.
        """
        folder = pathlib.Path(path)
        expected = "the folder of a run, which holds run.json"
        try:
            document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            fix = "Start one with tfkd compress, tfkd fit or tfkd run."
            raise _refused(expected, folder, fix) from None
        except ValueError as error:
            raise _refused(expected, folder, f"{error}.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            fix = "Its run.json was written by another version of tfkd."
            raise _refused(expected, folder, fix)
        return cls(folder, document)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return Recipe.from_dict(self.document["recipe"], f"{self.path / NAME}, recipe")

    def write(self) -> None:
        """Writes run.json."""
        artifacts.write_json(self.path / NAME, self.document)

    def file(self, name: str) -> pathlib.Path:
        """The path of a file of the run."""
        return self.path / name

    def work(self, name: str) -> pathlib.Path:
        """The path of a file or folder that is deleted when its stage is finished."""
        return self.path / _WORK / name

    def record(self, name: str) -> dict[str, Any]:
        """What a stage wrote down; {} if it is not finished."""
        path = self.path / "metrics" / f"{name}.json"
        if not self.is_done(name) or not path.is_file():
            return {}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return bool(self.document["stages"].get(stage, {}).get("status") == DONE)

    def start(self, stage: str) -> None:
        """Marks a stage as begun."""
        entry = self.document["stages"][stage]
        entry |= {"status": RUNNING, "started": entry.get("started", now())}
        self.document["status"] = RUNNING
        self.write()

    def decide(self, stage: str, name: str, value: Any) -> bool:
        """Writes down what a stage has decided; returns whether it is new."""
        entry = self.document["stages"][stage]
        is_new = entry.get(name) != value
        entry[name] = value
        self.write()
        return is_new

    def finish(
        self, stage: str, files: Mapping[str, str], record: Mapping[str, Any], seconds: float
    ) -> None:
        """Marks a stage as finished, with the sums of its files, and deletes its work.

        Args:
            stage: its name.
            files: what the files are → their names in the folder.
            record: what the stage measured, as JSON values.
            seconds: how long it took, in this process.
        """
        metrics = f"metrics/{stage}.json"
        artifacts.write_json(self.path / metrics, record)
        sums = {name: artifacts.sha256(self.path / name) for name in [*files.values(), metrics]}
        entry = self.document["stages"][stage]
        entry |= {"status": DONE, "finished": now(), "files": dict(files), "sha256": sums}
        entry["seconds"] = round(entry.get("seconds", 0.0) + seconds, 1)
        self.write()
        shutil.rmtree(self.path / _WORK, ignore_errors=True)

    def end(self, status: str, verdict: Mapping[str, Any] | None = None) -> None:
        """Marks the run as done, interrupted or failed."""
        self.document["status"] = status
        if verdict is not None:
            self.document["verdict"] = dict(verdict)
        if status == DONE:
            self.document["finished"] = now()
        self.write()

    def check_recipe(self) -> None:
        """Compares recipe.json with the recipe with which the run began.

        Raises:
            OutputError: if it was edited since: the run would go on without the changes.
        """
        file = self.path / RECIPE
        if not file.is_file():
            return
        try:
            same = Recipe.load(file) == self.recipe
        except ValueError:  # It is no recipe any more.
            same = False
        if not same:
            expected = f"a run whose {RECIPE} is as it was written"
            fix = (
                f"{RECIPE} was edited, and a run goes on with the settings it began with. To use "
                f"the new ones: tfkd run {file} --output=OTHER. To go on with the old ones: "
                f"delete {RECIPE}."
            )
            raise _refused(expected, self.path, fix)

    def check_files(self) -> None:
        """Compares the files of finished stages with their sums.

        Raises:
            OutputError: if one is missing or has changed.
        """
        for stage, entry in self.document["stages"].items():
            for name, known in entry.get("sha256", {}).items() if self.is_done(stage) else ():
                path = self.path / name
                if not path.is_file() or artifacts.sha256(path) != known:
                    state = "changed" if path.is_file() else "gone"
                    fix = f"{name}, which stage {stage!r} wrote, is {state}: start anew elsewhere."
                    expected = "a run whose files are as they were written"
                    raise _refused(expected, self.path, fix)

    def check_same(self, name: str, digest: str) -> None:
        """Writes down the hash of data or model, or compares it with the one written down.

        Raises:
            ValueError: if it is another one.
        """
        known = self.document["hashes"].setdefault(name, digest)
        if known != digest:
            fix = "Its results would be mixed with those of others: start anew elsewhere."
            expected = f"the {name} with which the run began"
            raise checks.value_error(name, expected, f"others, {digest[:12]}…", fix)
        self.write()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from this run.

        Raises:
            OutputError: if another process is at it.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                fix = "Wait for it, or choose another folder."
                expected = "a folder at which no other process works"
                raise _refused(expected, self.path, fix) from None
            yield


def refuse_used(folder: pathlib.Path, recipe: Recipe) -> None:
    """Raises OutputError unless the folder is new or empty."""
    if folder.is_file():
        raise _refused("a folder", folder, "This is a file.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    expected = "a new or empty folder"
    if not (folder / NAME).is_file():
        fix = "It holds other files; nothing was overwritten. Choose another folder."
        raise _refused(expected, folder, fix)
    known = RunFolder.open(folder)
    if known.document["recipe"] != json.loads(json.dumps(recipe.to_dict())):
        fix = "It holds the run of another recipe; nothing was overwritten. Choose another folder."
    elif known.document["status"] == DONE:
        fix = "It holds this very run, finished. Choose another folder to repeat it."
    else:
        fix = f"It holds this very run, unfinished. Go on with: tfkd resume {folder}"
    raise _refused(expected, folder, fix)


def _code_version() -> str | None:
    """The commit of tfkd's source folder, with "+" if files differ; None: not from git."""
    source = pathlib.Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    git = ["git", "-C", os.fspath(source)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.decode().strip() + ("+" if state.stdout.strip() else "")
