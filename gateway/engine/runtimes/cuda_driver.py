"""Owns the few calls of NVIDIA's driver that a plan needs: memory, copies and a stream of the first device.

Through ctypes on `libcuda.so.1`, which comes with the driver itself, so that nothing has to be installed beside it.
"""

import ctypes
from typing import Any, Final, Protocol

from gateway.engine.tensors import Array
from model_repo.errors import RepositoryError

_LIBRARY: Final = "libcuda.so.1"


class CudaError(Exception):
    """A call of the driver failed; the message has its name and the driver's word for the fault."""


class Cuda(Protocol):
    """One device. Memory is named by its address there; copies and runs on a stream follow one another."""

    def attach(self) -> None:
        """Make the device the calling thread's. Raises: CudaError."""

    def new_stream(self) -> int: ...
    def allocate(self, nbytes: int) -> int: ...
    def free(self, address: int) -> None: ...
    def copy_in(self, address: int, array: Array, stream: int) -> None:
        """From a C-contiguous array, which must stay until the stream is awaited."""

    def copy_out(self, array: Array, address: int, stream: int) -> None: ...
    def wait(self, stream: int) -> None: ...


class CudaDriver:
    """`Cuda` by the driver; keeps the device's primary context for the life of the process."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.attach()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'unknown fault').decode()} ({code})")

    def attach(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))  # CU_STREAM_NON_BLOCKING
        return stream.value or 0

    def allocate(self, nbytes: int) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_in(self, address: int, array: Array, stream: int) -> None:
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream))

    def copy_out(self, array: Array, address: int, stream: int) -> None:
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))


def open_driver() -> CudaDriver:
    """The first device of this machine.

    Raises:
        RepositoryError: there is no driver, or it has no device.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise RepositoryError(f"no NVIDIA driver on this machine ({_LIBRARY} cannot be loaded)") from error
    try:
        return CudaDriver(library)
    except CudaError as error:
        raise RepositoryError(f"the NVIDIA driver has no usable device: {error}") from error
