"""`build_engine` with a TensorRT that writes down what it is told; and without one.

No engine is built here: that takes NVIDIA's package and a GPU.
"""

import enum
import hashlib
import sys
import types

import pytest

from tfkd import artifacts, export
from tfkd.export import tensorrt as engines

onnx = pytest.importorskip("onnx")
helper = onnx.helper


class Parser:
    """Takes every file but those it has an error for."""

    def __init__(self, calls, errors):
        self.calls, self.errors = calls, errors
        self.num_errors = len(errors)

    def parse(self, data):
        self.calls.append(("parse", hashlib.sha256(data).hexdigest()))
        return not self.errors

    def get_error(self, index):
        return self.errors[index]


class Config:
    def __init__(self, calls, stale):
        self.calls, self.stale = calls, stale

    def set_memory_pool_limit(self, pool, size):
        self.calls.append(("workspace", pool, size))

    def create_timing_cache(self, data):
        self.calls.append(("cache", bytes(data)))
        return types.SimpleNamespace(serialize=lambda: b"timings", data=data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.calls.append(("use cache", bytes(cache.data), ignore_mismatch))
        return bytes(cache.data) != self.stale

    def add_optimization_profile(self, profile):
        self.calls.append(("profile", dict(profile.shapes)))


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        self.shapes[name] = (least, best, most)


@pytest.fixture
def trt(monkeypatch):
    """A module `tensorrt` that records; `.calls`, and what it should fail at."""
    module = types.ModuleType("tensorrt")
    module.__version__ = "10.3.0"
    module.calls, module.errors, module.plan, module.stale = [], [], b"engine", None
    module.MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
    module.NetworkDefinitionCreationFlag = enum.IntEnum(
        "Flags", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    )

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            module.calls.append(("network", flags))
            return "network"

        def create_builder_config(self):
            return Config(module.calls, module.stale)

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            module.calls.append(("build", network))
            if module.plan is None:
                self.logger.log(ILogger.Severity.WARNING, "slow")
                self.logger.log(ILogger.Severity.ERROR, "no kernel for node 7")
            return module.plan

    module.ILogger, module.Builder = ILogger, Builder
    module.OnnxParser = lambda network, logger: Parser(module.calls, module.errors)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engines, "gpu_name", lambda: "Test GPU")
    return module


def write(path, batch="batch", op="Relu", size=4):
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, size]) for name in "xy"
    ]
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name="n")], "g", *map(list, zip(ports))
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def test_network_is_strongly_typed_with_a_profile_for_the_open_batch(trt, tmp_path):
    file = write(tmp_path / "m.onnx")
    report = export.build_engine(
        file,
        tmp_path / "new" / "m.engine",
        workspace=1 << 20,
        min_batch=2,
        opt_batch=4,
        max_batch=9,
    )
    assert trt.calls == [
        ("network", 0b10),
        ("parse", hashlib.sha256(file.read_bytes()).hexdigest()),
        ("workspace", trt.MemoryPoolType.WORKSPACE, 1 << 20),
        ("profile", {"x": ((2, 4), (4, 4), (9, 4))}),
        ("build", "network"),
    ]
    assert report.path.read_bytes() == b"engine" and report.bytes == 6
    assert (report.gpu, report.version, report.reused) == ("Test GPU", "10.3.0", False)


def test_manifest_says_what_the_engine_fits(trt, tmp_path):
    file = write(tmp_path / "m.onnx")
    report = export.build_engine(file, tmp_path / "m.engine")
    manifest = artifacts.verify(report.path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    key = hashlib.sha256(f"{digest}\nTest GPU\n10.3.0".encode()).hexdigest()[:32]
    assert manifest["key"] == report.key == key
    assert manifest["recipe"] == {
        "format": "tensorrt", "onnx": "m.onnx", "onnx_sha256": digest, "gpu": "Test GPU",
        "tensorrt": "10.3.0", "workspace": None, "batch": [1, 8, 32],
    }  # fmt: skip


def test_fixed_batch_needs_no_profile(trt, tmp_path):
    report = export.build_engine(write(tmp_path / "m.onnx", batch=3), tmp_path / "m.engine")
    assert not [call for call in trt.calls if call[0] == "profile"]
    assert artifacts.read_manifest(report.path)["recipe"]["batch"] is None


def test_timing_cache_belongs_to_file_gpu_and_version(trt, tmp_path, monkeypatch):
    file, cache = write(tmp_path / "m.onnx"), tmp_path / "cache"
    first = export.build_engine(file, tmp_path / "1.engine", timing_cache=cache)
    assert ("cache", b"") in trt.calls and ("use cache", b"", False) in trt.calls
    assert [f.name for f in cache.iterdir()] == [f"{first.key}.timing"]
    assert (cache / f"{first.key}.timing").read_bytes() == b"timings"

    trt.calls.clear()
    export.build_engine(file, tmp_path / "2.engine", timing_cache=cache)
    assert ("use cache", b"timings", False) in trt.calls

    keys = {first.key}
    monkeypatch.setattr(engines, "gpu_name", lambda: "Other GPU")
    keys.add(export.build_engine(file, tmp_path / "3.engine", timing_cache=cache).key)
    trt.__version__ = "10.4.0"
    keys.add(export.build_engine(file, tmp_path / "4.engine", timing_cache=cache).key)
    other = write(tmp_path / "o.onnx", op="Exp")
    keys.add(export.build_engine(other, tmp_path / "5.engine", timing_cache=cache).key)
    assert len(keys) == 4 == len(list(cache.iterdir()))


def test_timing_cache_that_does_not_fit_is_replaced(trt, tmp_path):
    file, cache = write(tmp_path / "m.onnx"), tmp_path / "cache"
    export.build_engine(file, tmp_path / "1.engine", timing_cache=cache)
    trt.calls.clear()
    trt.stale = b"timings"
    export.build_engine(file, tmp_path / "2.engine", timing_cache=cache)
    used = [call for call in trt.calls if call[0] == "use cache"]
    assert used == [("use cache", b"timings", False), ("use cache", b"", False)]


def test_engine_is_built_again_only_if_something_changed(trt, tmp_path):
    file, path = write(tmp_path / "m.onnx"), tmp_path / "m.engine"

    def builds(**arguments):
        trt.calls.clear()
        report = export.build_engine(file, path, **arguments)
        assert report.reused == (("build", "network") not in trt.calls)
        return not report.reused

    assert builds()
    assert not builds()
    assert builds(max_batch=64)
    trt.__version__ = "10.4.0"
    assert builds(max_batch=64)
    write(file, size=5)
    assert builds(max_batch=64)
    path.write_bytes(b"damage")
    assert builds(max_batch=64)
    artifacts.manifest_path(path).unlink()
    assert builds(max_batch=64)
    assert not builds(max_batch=64)


def test_later_versions_without_the_flag_are_typed_anyway(trt, tmp_path):
    trt.__version__ = "11.2.0"
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("Flags", {"OTHER": 3})
    export.build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.engine")
    assert trt.calls[0] == ("network", 0)


def refuses(tmp_path, kind, match, file=None, **arguments):
    """The error, and that nothing was written."""
    file = file or write(tmp_path / "m.onnx")
    with pytest.raises(kind, match=match):
        export.build_engine(file, tmp_path / "m.engine", **arguments)
    assert not list(tmp_path.glob("*engine*"))


def test_parser_errors_are_passed_on(trt, tmp_path):
    trt.errors += ["node 3: unsupported", "and more"]
    refuses(tmp_path, ValueError, "node 3: unsupported; and more")


def test_failed_build_says_what_tensorrt_logged(trt, tmp_path):
    trt.plan = None
    refuses(tmp_path, RuntimeError, "It says: no kernel for node 7$")


def test_failed_build_leaves_the_engine_before(trt, tmp_path):
    file, path = write(tmp_path / "m.onnx"), tmp_path / "m.engine"
    export.build_engine(file, path)
    trt.plan = None
    with pytest.raises(RuntimeError):
        export.build_engine(file, path, max_batch=64)
    assert path.read_bytes() == b"engine" and artifacts.verify(path)


def test_file_with_lint_errors_is_refused_before_building(trt, tmp_path):
    refuses(tmp_path, ValueError, "operator-unsupported", write(tmp_path / "m.onnx", op="Det"))
    assert trt.calls == []


def test_open_sizes_other_than_the_batch_are_refused(trt, tmp_path):
    refuses(tmp_path, ValueError, "input 'x'", write(tmp_path / "m.onnx", size="width"))


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ({"min_batch": 0}, ValueError, "min_batch"),
        ({"opt_batch": 64}, ValueError, "rising order"),
        ({"max_batch": 2.5}, TypeError, "max_batch"),
        ({"workspace": -1}, ValueError, "workspace"),
    ],
)
def test_bad_arguments(trt, tmp_path, arguments, kind, match):
    refuses(tmp_path, kind, match, **arguments)


def test_missing_onnx_file(trt, tmp_path):
    refuses(tmp_path, FileNotFoundError, "absent", tmp_path / "absent.onnx")


def test_without_tensorrt_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refuses(tmp_path, ImportError, "NVIDIA's `tensorrt` package")


def test_a_stub_of_tensorrt_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    refuses(tmp_path, ImportError, "stub")


@pytest.mark.parametrize("driver", ["absent", "no device"])
def test_without_a_gpu_that_is_said(trt, tmp_path, monkeypatch, driver):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)

    def load(name):
        if driver == "absent":
            raise OSError("cannot open shared object file")
        return types.SimpleNamespace(cuInit=lambda flags: 100)

    monkeypatch.setattr(engines.ctypes, "CDLL", load)
    refuses(tmp_path, RuntimeError, "needs an NVIDIA GPU")


def test_gpu_name_is_the_drivers(monkeypatch):
    def name(buffer, size, device):
        buffer.value = b"NVIDIA Toy 3000"
        return 0

    driver = types.SimpleNamespace(
        cuInit=lambda flags: 0, cuDeviceGet=lambda device, index: 0, cuDeviceGetName=name
    )
    monkeypatch.setattr(engines.ctypes, "CDLL", lambda library: driver)
    assert engines.gpu_name() == "NVIDIA Toy 3000"
