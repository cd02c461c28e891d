"""Atomic writes and manifests, also when something goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfkd
from tfkd import artifacts


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_write_makes_folders_replaces_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "m.bin"
    assert artifacts.write_bytes(path, b"old") == path
    assert artifacts.write_bytes(str(path), b"new") == path
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["m.bin"]
    artifacts.write_text(path, "ümlaut\n")
    assert path.read_bytes() == "ümlaut\n".encode()


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = artifacts.write_bytes(tmp_path / "m.bin", b"x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_json_holds_numpy_and_paths(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x") / "y", "d": [None, "ü"]}
    path = artifacts.write_json(tmp_path / "v.json", value)
    want = {"a": 0.5, "b": [0, 1, 2], "c": os.path.join("x", "y"), "d": [None, "ü"]}
    assert json.loads(path.read_text(encoding="utf-8")) == want


@pytest.mark.parametrize(
    ("value", "error"),
    [(float("nan"), ValueError), ([np.float64("inf")], ValueError), ({"a": object()}, TypeError)],
)
def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path, value, error):
    path = artifacts.write_json(tmp_path / "v.json", [1])
    with pytest.raises(error, match="`value`"):
        artifacts.write_json(path, value)
    assert json.loads(path.read_text()) == [1] and names(tmp_path) == ["v.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_in_the_block_keeps_the_old_file(tmp_path, error):
    path = artifacts.write_bytes(tmp_path / "m.npz", b"old")
    with pytest.raises(error), artifacts.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["m.npz"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, function):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"old")

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match=r"cannot write .*m\.bin: No space left"):
        artifacts.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["m.bin"]


def test_process_killed_in_the_middle_keeps_the_old_file(tmp_path):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"old")
    program = (
        "import os, signal, sys\n"
        "from tfkd import artifacts\n"
        "with artifacts.atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(tfkd.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root)
    assert run.returncode != 0
    assert path.read_bytes() == b"old"


def test_temporary_path_keeps_the_ending_that_libraries_look_at(tmp_path):
    with artifacts.atomic_path(tmp_path / "w.npz") as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path
        np.savez(temporary, a=np.arange(3))
    np.testing.assert_array_equal(np.load(tmp_path / "w.npz")["a"], [0, 1, 2])
    with pytest.raises(ValueError, match="None was written"), artifacts.atomic_path(tmp_path / "x"):
        pass
    assert names(tmp_path) == ["w.npz"]


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="cannot write .*The folder must"):
        artifacts.write_bytes(tmp_path / "file" / "m.bin", b"x")
    with pytest.raises(ValueError, match="This is a folder"):
        artifacts.write_bytes(tmp_path, b"x")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="cannot write .*The folder must"):
            artifacts.write_bytes(tmp_path / "m.bin", b"x")
    finally:
        tmp_path.chmod(0o700)


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    path, size = tmp_path / "m.bin", 1 << 18
    whole = {bytes([i]) * size for i in range(6)}
    seen, done = [], threading.Event()

    def read():
        while not done.is_set():
            if path.exists():
                seen.append(path.read_bytes())

    def write(data):
        for _ in range(5):
            artifacts.write_bytes(path, data)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(data,)) for data in whole]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert path.read_bytes() in whole and all(data in whole for data in seen)
    assert names(tmp_path) == ["m.bin"]


def test_manifest_says_what_the_file_is(tmp_path):
    path = artifacts.write_bytes(tmp_path / "m.tflite", b"abc" * 1000)
    recipe = {"io": "int8", "images": np.int64(8)}
    written = artifacts.write_manifest(path, recipe, parity={"max": 0.5})
    assert names(tmp_path) == ["m.tflite", "m.tflite.manifest.json"]
    assert written == artifacts.read_manifest(path) == artifacts.verify(str(path))
    assert written["file"] == "m.tflite" and written["bytes"] == 3000
    assert written["sha256"] == hashlib.sha256(b"abc" * 1000).hexdigest() == artifacts.sha256(path)
    assert written["recipe"] == {"io": "int8", "images": 8} and written["parity"] == {"max": 0.5}
    assert set(written["versions"]) == {
        *("tfkd", "python", "numpy", "tensorflow", "tf_keras"),
        *("tensorflow-model-optimization", "tf2onnx", "onnx"),
    }
    assert written["versions"]["numpy"] == np.__version__
    assert written["versions"]["tfkd"] == tfkd.__version__
    assert written["created"].endswith("+00:00")


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(min_size=1, max_size=200), where=st.integers(0, 1599))
def test_any_flipped_bit_is_found(tmp_path, data, where):
    path = artifacts.write_bytes(tmp_path / "m.bin", data)
    artifacts.write_manifest(path, {})
    artifacts.verify(path)
    byte, bit = divmod(where % (8 * len(data)), 8)
    damaged = bytearray(data)
    damaged[byte] ^= 1 << bit
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="SHA-256"):
        artifacts.verify(path)


@pytest.mark.parametrize("data", [b"ab", b"", b"abcd"], ids=["truncated", "empty", "longer"])
def test_another_size_is_found(tmp_path, data):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"abc")
    artifacts.write_manifest(path, {})
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"3 bytes.*it has {len(data)}"):
        artifacts.verify(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"sha256": "0"}', b"\xff\xfe", b"null"])
def test_unreadable_manifest(tmp_path, text):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"abc")
    artifacts.manifest_path(path).write_bytes(text)
    for function in (artifacts.read_manifest, artifacts.verify):
        with pytest.raises(ValueError, match=r"m\.bin\.manifest\.json (cannot be read|lacks)"):
            function(path)


def test_missing_manifest_and_missing_file(tmp_path):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"abc")
    with pytest.raises(ValueError, match=r"m\.bin\.manifest\.json is missing"):
        artifacts.verify(path)
    for function in (artifacts.verify, artifacts.sha256):
        with pytest.raises(ValueError, match="a file that exists"):
            function(tmp_path / "none.bin")
    with pytest.raises(ValueError, match="a file that exists"):
        artifacts.write_manifest(tmp_path / "none.bin", {})


def test_bad_arguments(tmp_path):
    path = artifacts.write_bytes(tmp_path / "m.bin", b"abc")
    with pytest.raises(TypeError, match="`recipe`"):
        artifacts.write_manifest(path, ["io"])
    with pytest.raises(ValueError, match="`extra`.*sha256"):
        artifacts.write_manifest(path, {}, sha256="0")
    with pytest.raises(TypeError, match="`data`"):
        artifacts.write_bytes(path, "text")
    with pytest.raises(TypeError, match="`text`"):
        artifacts.write_text(path, b"bytes")
    with pytest.raises(TypeError, match="`path`"):
        artifacts.write_bytes(3, b"x")
    assert path.read_bytes() == b"abc" and names(tmp_path) == ["m.bin"]
