"""Minimal ctypes bindings to the CUDA driver API: memory, copies and one stream.

No CUDA package is needed: libcuda comes with NVIDIA's driver.
https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np


class Cuda:
    """The first GPU with one stream.

    Raises:
        RuntimeError: if there is no GPU or no driver, or a call fails.
    """

    def __init__(self) -> None:
        try:
            self._driver: Any = ctypes.CDLL(
                "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
            )
        except OSError as error:
            raise RuntimeError(
                "Running a TensorRT engine needs an NVIDIA GPU with its driver, and none was "
                "found. Run the ONNX or TFLite file of the model here."
            ) from error
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        # TensorRT works in the primary context.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        non_blocking = 1  # CU_STREAM_NON_BLOCKING: no synchronization with the default stream.
        self._call("cuStreamCreate", ctypes.byref(stream), non_blocking)
        self._device, self._stream = device, stream
        self.stream = stream.value or 0

    def enter(self) -> None:
        """Makes the GPU's context current in this thread, which other calls require."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, count: int) -> int:
        """Allocates `count` bytes on the GPU; returns their address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(count, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Frees an allocation."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies an array to the GPU asynchronously, in the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes), self._stream,
        )  # fmt: skip

    def download(self, array: np.ndarray, address: int) -> None:
        """Copies from the GPU into an array asynchronously, in the stream."""
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes), self._stream,
        )  # fmt: skip

    def wait(self) -> None:
        """Waits for all work in the stream."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Releases the stream and the context."""
        self.enter()
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"The NVIDIA driver's {name} failed with error {code}.")
