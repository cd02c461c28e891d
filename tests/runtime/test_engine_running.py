"""TensorRT engines in a TensorRT that computes with NumPy: no GPU is here."""

import enum
import sys
import types

import numpy as np
import pytest

from tfkd import artifacts
from tfkd.export import tensorrt as engines
from tfkd.runtime import Predictor, cuda
from tfkd.runtime import tensorrt as running

onnx = pytest.importorskip("onnx")
helper = onnx.helper
X = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)


class Gpu:
    """Memory by address, in NumPy."""

    stream = 5

    def __init__(self):
        self.memory, self.closed = {}, False
        Gpu.last = self

    def enter(self):
        pass

    def allocate(self, count):
        address = 1000 + len(self.memory)
        self.memory[address] = np.zeros(count, np.uint8)
        return address

    def free(self, address):
        del self.memory[address]

    def upload(self, address, array):
        self.memory[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, array, address):
        array[...] = self.memory[address][: array.nbytes].view(array.dtype).reshape(array.shape)

    def wait(self):
        pass

    def close(self):
        self.closed = True


class Context:
    """y = 2 x + 1 of what the GPU holds."""

    def __init__(self, engine):
        self.engine, self.shape, self.address = engine, None, {}

    def set_tensor_address(self, name, address):
        self.address[name] = address

    def set_input_shape(self, name, shape):
        least, most = self.engine.limits
        self.shape = shape
        self.engine.ran.append(shape[0])
        return least <= shape[0] <= most

    def get_tensor_shape(self, name):
        return self.shape

    def execute_async_v3(self, stream):
        memory, count = Gpu.last.memory, int(np.prod(self.shape)) * 4
        x = memory[self.address["x"]][:count].view(np.float32)
        memory[self.address["y"]][:count] = (2 * x + 1).view(np.uint8)
        return not self.engine.fails


class Engine:
    num_io_tensors = 2

    def __init__(self, batch, limits):
        self.batch, self.limits, self.ran, self.fails = batch, limits, [], False

    def create_execution_context(self):
        return Context(self)

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return Modes.INPUT if name == "x" else Modes.OUTPUT

    def get_tensor_shape(self, name):
        return (self.batch, 3)

    def get_tensor_dtype(self, name):
        return "FLOAT"

    def get_tensor_profile_shape(self, name, profile):
        return [(self.limits[0], 3), (2, 3), (self.limits[1], 3)]


Modes = enum.Enum("Modes", "INPUT OUTPUT")


@pytest.fixture
def trt(monkeypatch):
    module = types.ModuleType("tensorrt")
    module.__version__, module.TensorIOMode = "10.3.0", Modes
    module.nptype = lambda dtype: np.float32
    module.Builder, module.builds = object, []
    module.engine = Engine(-1, (1, 4))

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, data):
            if data.startswith(b"engine"):
                return module.engine
            self.logger.log(ILogger.Severity.ERROR, "version tag does not match")
            return None

    def build(trt, path, shapes, cache, workspace):
        module.builds.append((path.name, shapes, cache))
        return b"engine %d" % len(module.builds)

    module.ILogger, module.Runtime = ILogger, Runtime
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(running, "Cuda", Gpu)
    monkeypatch.setattr(engines, "_build", build)
    monkeypatch.setattr(engines, "gpu_name", lambda: "Test GPU")
    return module


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    return path


def write_onnx(path):
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"], name="n")
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def test_batches_up_to_the_profile(trt, engine):
    with Predictor(engine, warmup=0) as predictor:
        np.testing.assert_allclose(predictor(X), 2 * X + 1, rtol=1e-6)
        assert trt.engine.ran == [4, 3]
        assert "TensorRT" in repr(predictor)
        assert [len(m) for m in Gpu.last.memory.values()] == [4 * 3 * 4] * 2
    assert Gpu.last.closed and not Gpu.last.memory


@pytest.mark.parametrize(
    ("batch", "limits", "ran"), [(2, (2, 2), [2] * 4), (-1, (2, 3), [3, 3, 2]), (-1, (1, 9), [7])]
)
def test_fixed_and_smallest_batches_are_filled_up(trt, engine, batch, limits, ran):
    trt.engine = Engine(batch, limits)
    predictor = Predictor(engine, warmup=0, cache_size=20)
    np.testing.assert_allclose(predictor(X), 2 * X + 1, rtol=1e-6)
    assert trt.engine.ran == ran
    np.testing.assert_allclose(predictor(X), 2 * X + 1, rtol=1e-6)
    assert trt.engine.ran == ran


def test_an_engine_of_another_machine_and_one_that_fails(trt, engine):
    trt.engine.fails = True
    with pytest.raises(ValueError, match="could not run the engine"):
        Predictor(engine)
    engine.write_bytes(b"other")
    with pytest.raises(ValueError, match="version tag does not match"):
        Predictor(engine)


def test_an_onnx_file_is_built_once(trt, tmp_path):
    path, folder = write_onnx(tmp_path / "m.onnx"), tmp_path / "kept"
    for _ in range(2):
        with Predictor(path, tensorrt=True, artifacts_dir=folder, batch=4) as predictor:
            np.testing.assert_allclose(predictor(X[:2]), 2 * X[:2] + 1, rtol=1e-6)
    ((name, shapes, cache),) = trt.builds
    assert (name, shapes) == ("m.onnx", {"x": [(1, 3), (4, 3), (4, 3)]})
    assert cache.parent == folder / "timings"
    (built,) = folder.glob("*.engine")
    assert artifacts.verify(built)["recipe"]["gpu"] == "Test GPU"

    built.write_bytes(b"engine X")
    with pytest.warns(RuntimeWarning, match="made again"):
        Predictor(path, tensorrt=True, artifacts_dir=folder, batch=4).close()
    assert len(trt.builds) == 2 and built.read_bytes() == b"engine 2"
    trt.__version__ = "10.4.0"
    Predictor(path, tensorrt=True, artifacts_dir=folder, batch=4).close()
    assert len(trt.builds) == 3


def test_without_a_folder_an_engine_is_built_and_nothing_kept(trt, tmp_path):
    path = write_onnx(tmp_path / "m.onnx")
    Predictor(path, tensorrt=True).close()
    assert len(trt.builds) == 1 and [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


def test_without_a_gpu_it_says_so(trt, engine, monkeypatch):
    monkeypatch.setattr(running, "Cuda", cuda.Cuda)

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(cuda.ctypes, "CDLL", absent)
    with pytest.raises(RuntimeError, match="NVIDIA GPU"):
        Predictor(engine)
