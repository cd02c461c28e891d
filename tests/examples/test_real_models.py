"""The readers and numbers of benchmarks/real_models.py, without a download."""

import io
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import real_loaders
import real_runs


def frame(*blocks):
    """An LZ4 frame: magic, flags, block size, checksum; blocks; the end."""
    return b"\x04\x22\x4d\x18\x40\x40\xc0" + b"".join(blocks) + bytes(4)


def test_lz4_literals_and_copies():
    plain = struct.pack("<I", 3 | 1 << 31) + b"abc"
    # 2 literals, then 6 bytes from 2 back; 1 literal; each token: literals << 4 | copied - 4.
    packed = bytes([2 << 4 | 2]) + b"xy" + b"\x02\x00" + bytes([1 << 4]) + b"z"
    data = frame(plain, struct.pack("<I", len(packed)) + packed)
    assert real_loaders.unlz4(data) == b"abc" + b"xyxyxyxy" + b"z"
    # 15 and more literals: the rest of the number in the bytes behind the token.
    text = bytes(range(256)) + b"!" * 30
    long = bytes([15 << 4, 255, len(text) - 15 - 255]) + text
    assert real_loaders.unlz4(frame(struct.pack("<I", len(long)) + long)) == text


class _Torch:
    """Pickled as a name in a module of PyTorch, which is not installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):  # in Python: the one in C looks names up
    def save(self, thing, save_persistent_id=True):
        if isinstance(thing, _Torch):
            return self.write(b"c" + f"{thing.module}\n{thing.name}\n".encode())
        return super().save(thing, save_persistent_id)

    def persistent_id(self, thing):
        return thing if isinstance(thing, tuple) and thing[:1] == ("storage",) else None


def test_arrays_of_pytorch():
    storage = ("storage", _Torch("torch", "FloatStorage"), "7", "cpu", 6, None)
    stream = io.BytesIO()
    for mark in (1, 2, {}):
        pickle.dump(mark, stream, protocol=2)
    pickler = _Pickler(stream, protocol=2)

    class Tensor:
        def __reduce__(self):
            return _Torch("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (3, 2), (1, 3))

    pickler.save_reduce = lambda func, args, *_, **__: (
        pickler.save(func),
        pickler.save(args),
        pickler.write(b"R"),
    )
    pickler.dump({"w": Tensor()})
    pickle.dump(["7"], stream, protocol=2)
    stream.write(struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes())
    (array,) = real_loaders.torch_arrays(stream.getvalue()).values()
    assert array.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_pickles_that_hold_more_are_refused():
    data = b"".join(pickle.dumps(one) for one in (1, 2, {}, {"w": OrderedDict}))
    harmful = data.replace(b"collections", b"subprocesss")
    with pytest.raises(ValueError, match="subprocesss"):
        real_loaders.torch_arrays(harmful)


def test_numbers_of_the_worst_output():
    expected = {"p": np.array([[0.0, 1.0], [1.0, 0.0]]), "box": np.array([[0.0], [4.0]])}
    received = {"p": np.array([[0.0, 1.0], [0.2, 0.6]]), "box": np.array([[1.0], [4.0]])}
    found = real_runs.against(expected, received, {"p": "classes", "box": "numbers"})
    assert found["agreement"] == 0.5
    assert found["mean_error"] == pytest.approx((0.8 + 0.6) / 4)
    assert found["max_error"] == pytest.approx(0.8)
    assert found["outputs"]["box"] == {"mean_error": 0.125, "max_error": 0.25}
