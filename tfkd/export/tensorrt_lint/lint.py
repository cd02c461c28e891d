"""A static linter of ONNX files for TensorRT, which needs neither TensorRT nor a GPU.

TensorRT rejects some files, and silently runs others slowly. Each rule has a name, a
level and a fix:

- "error": TensorRT rejects the file or computes something else;
- "warning": it may do so, depending on its version or on the use of the file;
- "performance": it accepts the file but runs slower than necessary.

A file without findings is no guarantee that the engine builds: only TensorRT can tell.
`print(tfkd.export.tensorrt_lint.lint.rules_table())` lists the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfkd import checks
from tfkd.export.tensorrt_lint import operator_rules, qdq_rules
from tfkd.export.tensorrt_lint.rule import View
from tfkd.formats.onnx_nodes import load
from tfkd.results import Result
from tfkd.types import Path

if TYPE_CHECKING:
    import onnx

LEVELS = ("error", "warning", "performance")
RULES = (*qdq_rules.RULES, *operator_rules.RULES)


def rules_table() -> str:
    """The rules as a text table of level, name and fix."""
    return "\n".join(f"{r.level:<12} {r.name:<26} {r.fix}" for r in RULES)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One place where a file breaks a rule.

    Attributes:
        rule: name of the rule.
        level: "error", "warning" or "performance".
        node: name of the node or input.
        what: description of the problem.
        fix: how to fix it.
    """

    rule: str
    level: str
    node: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.node}: {self.what}"


@dataclasses.dataclass(frozen=True)
class Findings(Result):
    """The findings of `lint_tensorrt`, errors first.

    Attributes:
        found: the findings.
    """

    found: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def level(self, level: str) -> tuple[Finding, ...]:
        """The findings of one level."""
        checks.one_of("level", level, LEVELS)
        return tuple(f for f in self.found if f.level == level)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of level "error", for which TensorRT rejects the file."""
        return self.level("error")

    def summary(self) -> str:
        """The number of findings of each level, on one line."""
        counts = [(len(self.level(level)), level) for level in LEVELS]
        return ", ".join(f"{n} {level}" for n, level in counts if n) or "no findings"

    def parts(self) -> list[str]:
        """One paragraph per finding with its fix, and the summary."""
        rows = [
            f"{f.level:<12} {f.rule:<26} {f.node}\n{'':<13}{f.what}\n{'':<13}-> {f.fix}"
            for f in self.found
        ]
        return [*rows, self.summary()]


def lint_tensorrt(path: Path, version: str | None = None) -> Findings:
    """Checks an ONNX file against TensorRT's rules for quantization, operators and shapes.

    Args:
        path: an `.onnx` file from any exporter.
        version: the version of TensorRT, such as "10.3"; None: the newest known one.

    Returns:
        The `Findings`; `print(findings)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an ONNX file, or `version` is not known.
        ImportError: if onnx is not installed.

    Example:
        >>> import os, tempfile, tf_keras as keras
        >>> from tfkd import export
        >>> model = keras.Sequential([keras.layers.Dense(3, input_shape=(4,), name="logits")])
        >>> path = os.path.join(tempfile.mkdtemp(), "m.onnx")
        >>> report = export.to_onnx(model, path)
        >>> print(export.lint_tensorrt(path))
        no findings
    """
    return lint_model(load(path), version)


def lint_model(model: onnx.ModelProto, version: str | None = None) -> Findings:
    """`lint_tensorrt` for an `onnx.ModelProto`."""
    view = View(model, operator_rules.newest_opset(version))
    found = [
        Finding(rule.name, rule.level, node, what, rule.fix)
        for rule in RULES
        for node, what in rule.check(view)
    ]
    return Findings(tuple(sorted(found, key=lambda f: LEVELS.index(f.level))))
