"""`tfkd doctor`: whether this installation fits together, and how to mend what does not."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata

import tfkd
from tfkd.cli import exit_codes, quiet
from tfkd.cli.parsing import Parser
from tfkd.cli.terminal import Terminal
from tfkd.results import Grid, Lines, Result

FINE, NOTE, WRONG = "fine", "note", "WRONG"
_FREE = 2  # GiB that a run needs
# Instruction sets that make a difference for the kernels of TensorFlow and LiteRT.
_FLAGS = {
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX-512", "avx512_vnni": "VNNI (AVX-512)",
    "avx_vnni": "VNNI (AVX)", "avx512_bf16": "bfloat16 (AVX-512)", "amx_bf16": "bfloat16 (AMX)",
    "amx_int8": "int8 (AMX)", "asimd": "NEON", "asimddp": "dot products (NEON)",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at: its state, and the fix unless it is fine."""

    name: str
    found: str
    state: str = FINE
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis(Result):
    """All checks; a `tfkd.results.Result`."""

    checks: tuple[Check, ...]

    @property
    def wrong(self) -> tuple[Check, ...]:
        """What does not fit."""
        return tuple(check for check in self.checks if check.state == WRONG)

    def parts(self) -> Iterator[Grid | Lines]:
        """A table, the fixes, and a sentence."""
        rows = [(check.state, check.name, check.found) for check in self.checks]
        yield Grid(("", "what", "found"), rows, left=3)
        for state, title in ((WRONG, "To mend:"), (NOTE, "Notes:")):
            found = [f"- {c.name}: {c.fix}" for c in self.checks if c.state == state and c.fix]
            if found:
                yield Lines([title, *found])
        count = len(self.wrong)
        yield Lines([f"{count} of {len(self.checks)} do not fit." if count else "All fits."])


def flags(parser: Parser) -> None:
    """Defines the flags."""
    parser.examples("""
        tfkd doctor           # 0 if all fits, 3 if something does not
        tfkd doctor --json    # for an issue
    """)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Prints the checks; each catches its own errors."""
    found = Diagnosis((*_python(), *_packages(), *_tensorflow(), *_machine()))
    terminal.print(found)
    return exit_codes.BAD_INPUT if found.wrong else exit_codes.DONE


def _python() -> Iterator[Check]:
    version = platform.python_version()
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    fix = "" if fits else "TensorFlow 2.21 runs on Python 3.10 to 3.13."
    yield Check("Python", f"{version}, {sys.executable}", FINE if fits else WRONG, fix)


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A package that tfkd needs, or uses if an extra is installed."""

    package: str
    versions: str  # such as ">=2.21,<2.22"
    extra: str = ""


def requirements(lines: Iterable[str]) -> list[Requirement]:
    """The requirements in a package's metadata, without extras that take in other extras.

    Example:
        >>> requirements(["numpy", "onnx<2,>=1.17; extra == 'tensorrt'"])[1]
        Requirement(package='onnx', versions='<2,>=1.17', extra='tensorrt')
    """
    found = []
    for line in lines:
        text, _, marker = line.partition(";")
        match = re.match(r"\s*([\w.-]+)\s*(\[[^\]]*\])?\s*\(?([^)]*)\)?", text)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if match and match[1].lower() != "tfkd":
            found.append(Requirement(match[1], match[3].strip(), extra[1] if extra else ""))
    return found


def _packages() -> Iterator[Check]:
    """The required packages, and the optional ones by their extra."""
    try:
        wanted = requirements(metadata.requires("tfkd") or ())
        yield Check("tfkd", metadata.version("tfkd"))
    except metadata.PackageNotFoundError:
        fix = "Versions can't be checked: run `pip install .` in the folder of tfkd."
        yield Check("tfkd", "not installed by pip", NOTE, fix)
        return
    seen = set()
    for one in wanted:
        if one.extra in ("test", "lint", "dev") or one.package in seen:
            continue
        seen.add(one.package)
        yield _package(one)


def _package(wanted: Requirement) -> Check:
    name = wanted.package + (f" [{wanted.extra}]" if wanted.extra else "")
    range_text = f" (wanted: {wanted.versions})" if wanted.versions else ""
    install = f"pip install 'tfkd[{wanted.extra}]'" if wanted.extra else "pip install tfkd"
    try:
        version = metadata.version(wanted.package)
    except metadata.PackageNotFoundError:
        state = NOTE if wanted.extra else WRONG
        why = f"not installed; {install}" + (" if you need it" if wanted.extra else "")
        return Check(name, f"missing{range_text}", state, why)
    if not fits(version, wanted.versions):
        fix = f"pip install '{wanted.package}{wanted.versions}'"
        return Check(name, f"{version}{range_text}", WRONG, fix)
    return Check(name, version)


def fits(version: str, versions: str) -> bool:
    """Whether a version is in a range such as ">=2.21,<2.22".

    Example:
        >>> fits("2.21.0", ">=2.21,<2.22"), fits("2.19.1", ">=2.21,<2.22"), fits("1", "")
        (True, False, True)
    """
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError:  # It comes with TensorFlow: that is missing, too.
        return True
    try:
        return SpecifierSet(versions).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def _tensorflow() -> Iterator[Check]:
    """Whether TensorFlow and LiteRT load, which Keras they use, and the faults known of them."""
    try:
        quiet.import_tensorflow()
        import tensorflow as tf
    except Exception as error:  # whatever an import raises
        yield Check("TensorFlow loads", f"no: {error}", WRONG, "See the packages above.")
        return
    try:
        _ = tfkd.models  # which checks it
        yield Check("Keras in use", "Keras 2 (tf_keras)")
    except ImportError as error:
        yield Check("Keras in use", "Keras 3", WRONG, str(error))
    yield _loads("LiteRT loads", "ai_edge_litert.interpreter", "litert", "to run .tflite files")
    yield _keras_3()
    gpus = tf.config.list_physical_devices("GPU")
    yield Check("GPU", ", ".join(gpu.name for gpu in gpus) or "none: all runs on the processor")
    yield _known_fault()


def _loads(name: str, module: str, extra: str, what: str) -> Check:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Check(name, f"no: {error}", NOTE, f"pip install 'tfkd[{extra}]' {what}")
    return Check(name, "yes")


def _keras_3() -> Check:
    try:
        version = metadata.version("keras")
    except metadata.PackageNotFoundError:
        fix = "pip install 'keras>=3' to open .keras files of Keras 3."
        return Check("Keras 3", "not installed", NOTE, fix)
    return Check("Keras 3", f"{version}, for files that it wrote")


def _known_fault() -> Check:
    """The overflow in oneDNN, see `tfkd.known_faults`."""
    from tfkd import known_faults

    name = "oneDNN's 1×1 convolutions"
    width = known_faults.environment_width()
    if not width:
        return Check(name, "not affected")
    found = f"training 1×1 convolutions with strides and under {width} channels may crash"
    fix = (
        "Set ONEDNN_MAX_CPU_ISA=AVX2, for which 8 channels are enough, or "
        "TF_ENABLE_ONEDNN_OPTS=0 before Python starts, if you train such layers; tfkd warns."
    )
    return Check(name, found, NOTE, fix)


def _machine() -> Iterator[Check]:
    """Processor, memory and disk."""
    about = _cpu()
    known = (about.get("flags") or about.get("Features") or "").split()
    names = [name for flag, name in _FLAGS.items() if flag in known]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = about.get("model name") or platform.processor() or platform.machine()
    yield Check("processor", f"{processor}, {cores} cores: {', '.join(names) or 'flags unknown'}")
    for name, folder in (("this folder", os.getcwd()), ("temporary files", tempfile.gettempdir())):
        free = shutil.disk_usage(folder).free / 2**30
        fix = f"Free some space: a run needs {_FREE} GiB or more." if free < _FREE else ""
        yield Check(
            f"disk, {name}", f"{free:.1f} GiB free in {folder}", WRONG if fix else FINE, fix
        )


def _cpu() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor, on Linux; else nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
