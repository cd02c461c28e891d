"""RESULTS.md from the records of scripts.

    python benchmarks/results.py write             # fills the blocks of RESULTS.md
    python benchmarks/results.py check             # says what differs, and ends with 1 then
    python benchmarks/results.py remake step_time  # runs what made a block, writes its record
    python benchmarks/results.py table found.json  # prints what a block says of a file

A block begins with `<!-- record: NAME -->` and ends with `<!-- end record -->`. Between them
stands what `records/NAME.json` holds, which a script wrote by `--json`: command, commit, date,
processor, versions and tables. `<!-- record: NAME table=2 -->` is the second table alone; the
first block of a name has the command. What is written between blocks is never changed.

A block without a record keeps what it holds, and so does a table outside of blocks; its
section says that it was made without a record. `remake` takes the command of such a block
from its text.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import harness
import shared

from tfkd import artifacts

PAGE = harness.ROOT / "benchmarks" / "RESULTS.md"
BLOCK = re.compile(
    r"(<!-- record: (?P<name>[\w-]+)(?: table=(?P<number>\d+))? -->\n)"
    r"(?P<held>.*?)(<!-- end record -->)",
    re.S,
)
COMMAND = re.compile(r"^    (python (?:.*\\\n)*.*)$", re.M)
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)
FOLDER = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|work)/")
UNRECORDED = "without a record"


def record_of(name: str) -> harness.Record | None:
    path = harness.RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def section(found: harness.Record, number: int | None = None, headed: bool = True) -> str:
    """What RESULTS.md says of a record: of all its tables, or of one of them."""
    tables = TABLE.findall(found["table"].rstrip() + "\n")
    if number and number > len(tables):
        raise ValueError(f"table={number}: {found['command']} made {len(tables)} tables")
    text = tables[number - 1] if number else found["table"].rstrip() + "\n"
    what = [f"{name} {version}" for name, version in found["versions"].items()]
    what += [f"{name}={value}" for name, value in found.get("variables", {}).items()]
    where = f"{found['processor']}, {found['cores']} cores"
    made = f"Commit {found['commit']}, {found['date']}, {where}; {', '.join(what)}."
    return f"    {found['command']}\n\n{made}\n\n{text}" if headed else text


def filled(page: str) -> str:
    """The page with every block as its record has it."""
    seen: set[str] = set()

    def fill(block: re.Match[str]) -> str:
        name, number = block["name"], block["number"]
        found, headed = record_of(name), name not in seen
        seen.add(name)
        if found is None:
            return block[0]
        return block[1] + section(found, int(number) if number else None, headed) + block[5]

    return BLOCK.sub(fill, page)


def faults(page: str) -> list[str]:
    """What differs from the records, and what has none and does not say so."""
    found = []
    for block, right in zip(BLOCK.finditer(page), BLOCK.finditer(filled(page)), strict=True):
        held, wanted = (one["held"].splitlines() for one in (block, right))
        lines = zip([*held, "(nothing)"], [*wanted, "(nothing)"], strict=False)
        if differing := next((pair for pair in lines if pair[0] != pair[1]), None):
            found.append(f"{block['name']}: {differing[0]!r}, of the record {differing[1]!r}")
    names = {block["name"] for block in BLOCK.finditer(page)}
    for path in sorted(harness.RECORDS.glob("*.json")):
        if path.stem not in names:
            found.append(f"{path.name}: no block of RESULTS.md shows it")
        if FOLDER.search(path.read_text(encoding="utf-8")):
            found.append(f"{path.name}: names a folder of one machine")
    for part in re.split(r"^(?=## )", page, flags=re.M):
        rest = BLOCK.sub(lambda block: "" if record_of(block["name"]) else block["held"], part)
        if TABLE.search(rest) and UNRECORDED not in rest:
            title = part.splitlines()[0]
            found.append(f"{title}: a table has no record; write that it was made {UNRECORDED}")
    return found


def notes(page: str) -> list[str]:
    """Records of another state of the package, and blocks that have none."""
    found, now = [], harness.code()["package"]
    for name in dict.fromkeys(block["name"] for block in BLOCK.finditer(page)):
        record = record_of(name)
        if record is None:
            found.append(f"{name}: no record yet; remake {name}")
        elif record.get("code", {}).get("package") != now:
            found.append(f"{name}: made with commit {record['commit']}, the package has changed")
    return found


def command_of(page: str, name: str) -> str:
    """What makes a record: its own command, or the one that its block shows."""
    if record := record_of(name):
        return str(record["command"])
    held = "".join(block["held"] for block in BLOCK.finditer(page) if block["name"] == name)
    shown = COMMAND.findall(held)
    if len(shown) != 1:
        raise ValueError(f"{name}: expected a block with one command, received {len(shown)}")
    return str(shown[0]).replace("\\\n", " ")


def placed(words: Sequence[str], data: pathlib.Path | None) -> list[str]:
    """A command's words, with its `--data` in this folder."""
    words = list(words)
    for i, word in enumerate(words if data else []):
        if word == "--data":
            words[i + 1] = str(data / words[i + 1])
        elif word.startswith("--data="):
            words[i] = f"--data={data / word.partition('=')[2]}"
    return words


def run(words: Sequence[str], path: pathlib.Path) -> None:
    """Runs a script that writes a record; of an example the table that it saves is kept."""
    call = {"cwd": harness.ROOT, "check": False}
    # The status says whether what was expected holds, too; the record says that it ran.
    if words[0].startswith("benchmarks/"):
        subprocess.run([sys.executable, *words, f"--json={path}"], **call)
        return
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, *words, f"--out={out}"], **call)
        for made in sorted(pathlib.Path(out).glob("*.md"))[:1]:
            found = {"command": harness.command(words), **harness.environment()}
            found |= {"code": harness.code(harness.ROOT / words[0]), "settings": {}}
            found |= {"table": made.read_text("utf-8")}
            artifacts.write_json(path, found)


def remake(page: str, names: Sequence[str], data: pathlib.Path | None) -> list[str]:
    """Runs the commands of records anew; returns the names of those that wrote none.

    Args:
        page: RESULTS.md.
        names: of the blocks.
        data: the folder of what commands name by `--data`; by default that of the repository.
    """
    missing = []
    for name in names:
        words = shlex.split(command_of(page, name))[1:]
        path, began = harness.RECORDS / f"{name}.json", time.time()
        print(f"{name}: python {shlex.join(words)}", flush=True)
        run(placed(words, data and data.resolve()), path)
        made = path.exists() and path.stat().st_mtime >= began
        missing += [] if made else [name]
        how = "made" if made else "NOT made"
        print(f"{name}: record {how} in {(time.time() - began) / 60:.1f} min", flush=True)
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shared.Help)
    parser.add_argument("what", choices=["write", "check", "remake", "table"])
    parser.add_argument("names", nargs="*", help="of records to remake; files to print")
    parser.add_argument("--data", type=pathlib.Path, help="folder of the data of commands")
    args = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    if args.what == "table":
        for path in args.names:
            print(section(json.loads(pathlib.Path(path).read_text(encoding="utf-8"))))
        return
    if args.what == "remake" and (missing := remake(page, args.names, args.data)):
        sys.exit(f"no record made: {', '.join(missing)}")
    if args.what != "check":
        artifacts.write_text(PAGE, page := filled(page))
    wrong = faults(page)
    for line in [*notes(page), *wrong]:
        print(line)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
