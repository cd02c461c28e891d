"""`tfkd doctor`."""

from importlib import metadata

import pytest

from tfkd.cli import doctor


def checks(found):
    return {check["name"]: check for check in found["checks"]}


def test_what_fits(tfkd):
    code, found, err = tfkd("doctor", "--json")
    named = checks(found)
    assert code == (3 if any(c["state"] == "WRONG" for c in named.values()) else 0)
    assert named["Keras in use"]["found"] == "Keras 2 (tf_keras)"
    assert named["Python"]["state"] == "fine" and "GiB free" in named["disk, this folder"]["found"]
    assert err == ""


@pytest.fixture
def installed(monkeypatch):
    """Versions of two required packages and one optional one; None: not installed."""
    versions = {"tfkd": "0.1.0", "tensorflow": "2.21.0", "numpy": "2.0", "onnx": "1.18"}

    def version(name):
        if versions.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    lines = ["tensorflow<2.22,>=2.21", "numpy", 'onnx<2,>=1.17; extra == "tensorrt"']
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(doctor, "_tensorflow", lambda: ())
    return versions


@pytest.mark.parametrize(
    ("package", "version", "code", "fix"),
    [
        ("tensorflow", "2.21.0", 0, ""),
        ("tensorflow", "2.19.1", 3, "pip install 'tensorflow<2.22,>=2.21'"),
        ("tensorflow", None, 3, "not installed; pip install tfkd"),
        ("onnx", None, 0, "not installed; pip install 'tfkd[tensorrt]' if you need it"),
        ("onnx", "1.15", 3, "pip install 'onnx<2,>=1.17'"),
    ],
)
def test_versions_that_do_not_fit_come_with_the_fix(tfkd, installed, package, version, code, fix):
    installed[package] = version
    found_code, text, _ = tfkd("doctor")
    assert found_code == code and fix in text
    assert ("All fits." in text) == (code == 0)


def test_a_full_disk(tfkd, installed, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    code, text, _ = tfkd("doctor")
    assert code == 3 and "Free some space" in text
