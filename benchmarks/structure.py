"""Figures of the code's structure, of this checkout and of earlier commits.

    python benchmarks/structure.py
    python benchmarks/structure.py --before 43a7ac0 --json structure.json

Read from the syntax trees of `tfkd/`, nothing is imported:

    files               modules of the package
    lines               of all files; lines of code: without blanks, comments and docstrings
    repeated            places where six lines of code stand that stand elsewhere, too
    reads private       modules that read an attribute of Keras that begins with "_"
    imports private     modules that import tf_keras.src, tensorflow.python or the like
    public names        in `__all__` of the packages
    long functions      of more than 40 lines without their docstring
    Any                 share of the annotations of public parameters and returns that are Any
    comments            for 100 lines of code
    test functions      in tests/, before parameters multiply them
"""

from __future__ import annotations

import ast
import collections
import io
import pathlib
import subprocess
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator

from harness import ROOT, Parser, show, table

PRIVATE_MODULES = (
    "tf_keras.src",
    "tensorflow.python",
    "tensorflow.lite.python",
    "tensorflow_model_optimization.python",
)
# What Keras keeps for itself about layers, models and tensors.
PRIVATE_ATTRIBUTES = set(
    """
    _nodes_by_depth _inbound_nodes _outbound_nodes _keras_history _is_graph_network
    _graph_initialized _network_nodes _container_nodes _flatten_layers _flatten_modules
    _self_tracked_trackables _obj_reference_counts _trainable_weights _non_trainable_weights
    _build_input_shape _nested_inputs _nested_outputs _input_coordinates _output_coordinates
    _get_trainable_state _set_trainable_state _is_model_for_instrumentation _metrics
    _losses _callable_losses _thread_local _layers _feed_input_names _saved_model_inputs_spec
    _compute_dtype_object _autographed_call _call_spec _expects_mask_arg _expects_training_arg
    _batch_input_shape _dtype_policy _distribute_strategy _input_layers _output_layers
    """.split()
)
RUN = 6
Functions = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *Functions)) and ast.get_docstring(node):
            text = node.body[0]
            lines |= set(range(text.lineno, text.end_lineno + 1))
    return lines


def comment_lines(text: str) -> set[int]:
    """Numbers of the lines that hold a comment, alone or behind code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods without a leading underscore, of public classes."""
    for node in tree.body:
        if isinstance(node, Functions) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                name = getattr(inner, "name", "_")
                if isinstance(inner, Functions) and (name == "__init__" or name[0] != "_"):
                    yield inner


def annotations(function: ast.FunctionDef) -> list[ast.expr]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    found = [argument.annotation for argument in every if argument] + [function.returns]
    return [annotation for annotation in found if annotation is not None]


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def imports_private(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PRIVATE_MODULES):
            return True
        if isinstance(node, ast.Import) and any(
            alias.name.startswith(PRIVATE_MODULES) for alias in node.names
        ):
            return True
    return False


def reads_private(tree: ast.Module) -> bool:
    """Whether it reads one of Keras's own attributes, of anything but `self`."""
    for node in ast.walk(tree):
        own = getattr(getattr(node, "value", None), "id", "") == "self"
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE_ATTRIBUTES and not own:
            return True
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            names = [name.value for name in node.args[1:2] if isinstance(name, ast.Constant)]
            if PRIVATE_ATTRIBUTES.intersection(names):
                return True
    return False


def exported(tree: ast.Module) -> set[str]:
    """The names in a package's `__all__`, where it is a plain list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            elements = getattr(node.value, "elts", [])
            return {e.value for e in elements if isinstance(e, ast.Constant)}
    return set()


def figures(root: pathlib.Path) -> dict[str, float]:
    """The figures of the checkout at `root`."""
    total: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[tuple[str, ...]] = collections.Counter()
    for path in sorted((root / "tfkd").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        docs, comments = docstring_lines(tree), comment_lines(text)
        code = [
            line.strip()
            for number, line in enumerate(lines, 1)
            if line.strip() and number not in docs and not line.strip().startswith("#")
        ]
        worth = [x for x in code if len(x) > 3 and not x.startswith(("import ", "from ", "@"))]
        runs.update(tuple(worth[i : i + RUN]) for i in range(len(worth) - RUN + 1))
        noted = [note for f in public_functions(tree) for note in annotations(f)]
        total["files"] += 1
        total["lines"] += len(lines)
        total["code"] += len(code)
        total["comments"] += len(comments)
        total["annotations"] += len(noted)
        total["any"] += sum(isinstance(note, ast.Name) and note.id == "Any" for note in noted)
        total["reads private"] += reads_private(tree)
        total["imports private"] += imports_private(tree)
        total["long functions"] += sum(
            isinstance(node, Functions) and length(node) > 40 for node in ast.walk(tree)
        )
        if path.name == "__init__.py":
            total["public names"] += len(exported(tree))
    tests = [ast.parse(p.read_text(encoding="utf-8")) for p in (root / "tests").rglob("test_*.py")]
    return {
        "files": total["files"],
        "lines": total["lines"],
        "lines of code": total["code"],
        "repeated": sum(count - 1 for count in runs.values() if count > 1),
        "reads private": total["reads private"],
        "imports private": total["imports private"],
        "public names": total["public names"],
        "long functions": total["long functions"],
        "Any, %": round(100 * total["any"] / max(total["annotations"], 1), 1),
        "comments / 100": round(100 * total["comments"] / max(total["code"], 1), 1),
        "test functions": sum(
            isinstance(node, Functions) and node.name.startswith("test_")
            for tree in tests
            for node in ast.walk(tree)
        ),
    }


def figures_of(commit: str) -> dict[str, float]:
    """The figures of a commit of this repository."""
    command = ["git", "archive", commit, "tfkd", "tests"]
    data = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
        return figures(pathlib.Path(folder))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--before", nargs="+", default=[], help="commits to compare with")
    args = parser.parse_args()
    columns = {**{one: figures_of(one) for one in args.before}, "now": figures(ROOT)}
    rows = [[name, *(f"{one[name]:,}" for one in columns.values())] for name in columns["now"]]
    show(args, table(["", *columns], rows), figures=columns)


if __name__ == "__main__":
    main()
