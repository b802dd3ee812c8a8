"""The CUDA twin of a shell: `cuMemMap` of one allocation over a reserved range of device addresses.

The driver is called through ctypes, so there is nothing to compile. A range becomes a tensor through
`__cuda_array_interface__` as bytes, because that interface has no name for bfloat16; the caller gives the storage its
dtype. The storage then holds the Python object that offers the interface, and its end is the end of the range.

This memory is not the caching allocator's: freeing it does not wait for kernels in flight, and waiting in a finalizer
could break a CUDA graph that is being captured. So a dead range is only put on a list (it holds addresses, no memory)
and unmapped, after a synchronise, when the next shell of its device is made, or by `unmap_retired`.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headforce.errors import HeadforceError
from headforce.kvpass.shell import live

# Values of cuda.h.
_PINNED_ALLOCATION = 1
_LOCATION_DEVICE = 1
_ACCESS_READ_WRITE = 3
_GRANULARITY_MINIMUM = 0


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _AllocationFlags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _AllocationProperties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32_metadata", ctypes.c_void_p),
        ("flags", _AllocationFlags),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


_Pointer = _Handle = _Flags = ctypes.c_uint64
_SIGNATURES = {
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuMemGetAllocationGranularity": (
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.POINTER(_AllocationProperties),
        ctypes.c_int,
    ),
    "cuMemCreate": (ctypes.POINTER(_Handle), ctypes.c_size_t, ctypes.POINTER(_AllocationProperties), _Flags),
    "cuMemAddressReserve": (ctypes.POINTER(_Pointer), ctypes.c_size_t, ctypes.c_size_t, _Pointer, _Flags),
    "cuMemAddressFree": (_Pointer, ctypes.c_size_t),
    "cuMemMap": (_Pointer, ctypes.c_size_t, ctypes.c_size_t, _Handle, _Flags),
    "cuMemSetAccess": (_Pointer, ctypes.c_size_t, ctypes.POINTER(_Access), ctypes.c_size_t),
    "cuMemUnmap": (_Pointer, ctypes.c_size_t),
}

Driver = Callable[..., None]


@dataclass(frozen=True)
class Chunk:
    """The one physical allocation of a device: its driver handle, and its size in bytes (the smallest possible)."""

    handle: int
    nbytes: int
    device: int


class _Owner:
    """What a storage holds: the range's bytes offered through `__cuda_array_interface__`."""

    def __init__(self, start: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"data": (start, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


_chunks: dict[int, Chunk] = {}
_retired: list[tuple[int, int, Chunk]] = []
_lock = threading.Lock()


def make_storage(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    """A CUDA storage of `nbytes` bytes whose every chunk is the device's shared one.

    Raises:
        HeadforceError: `HF-SHELL-SYSTEM` without a CUDA device or driver, while a CUDA graph is captured, or when the
            driver refuses a call. Nothing stays mapped.
    """
    device, driver = _ready(device)
    unmap_retired(device)
    chunk = _chunk(driver, device.index)
    span = -(-nbytes // chunk.nbytes) * chunk.nbytes
    start = map_range(driver, chunk, span)
    owner = _Owner(start, nbytes)
    live[start] = (span, device)
    weakref.finalize(owner, _retire, start, span, chunk).atexit = False
    with torch.inference_mode(False):
        storage = torch.as_tensor(owner, device=device).untyped_storage()
    if storage.data_ptr() != start:
        raise HeadforceError(
            "HF-SHELL-SYSTEM", found="torch copied the mapped range", needed="a tensor over the range itself"
        )
    return storage


def physical_bytes(device: torch.device) -> int:
    """The bytes of device memory that all shells of `device` hold; all CUDA devices together if it has no index."""
    return sum(chunk.nbytes for index, chunk in list(_chunks.items()) if device.index in (None, index))


def unmap_retired(device: torch.device) -> None:
    """Wait for the device, then unmap the ranges whose storages are dead."""
    device, driver = _ready(device)
    with _lock:
        dead = [entry for entry in list(_retired) if entry[2].device == device.index]
        if dead:
            torch.cuda.synchronize(device)
        for entry in dead:
            _retired.remove(entry)
            start, span, chunk = entry
            unmap_range(driver, chunk, start, span, mapped=span)


def map_range(driver: Driver, chunk: Chunk, span: int) -> int:
    """Map the chunk over `span` bytes (a multiple of its size), readable and writable; returns the start address."""
    pointer = _Pointer()
    driver("cuMemAddressReserve", ctypes.byref(pointer), span, chunk.nbytes, 0, 0)
    start, mapped = pointer.value, 0
    try:
        while mapped < span:
            driver("cuMemMap", start + mapped, chunk.nbytes, 0, chunk.handle, 0)
            mapped += chunk.nbytes
        access = _Access(_Location(_LOCATION_DEVICE, chunk.device), _ACCESS_READ_WRITE)
        driver("cuMemSetAccess", start, span, ctypes.byref(access), 1)
    except BaseException:
        unmap_range(driver, chunk, start, span, mapped)
        raise
    return start


def unmap_range(driver: Driver, chunk: Chunk, start: int, span: int, mapped: int) -> None:
    """Undo the first `mapped` bytes of mappings and give the `span` bytes of addresses back."""
    for offset in range(0, mapped, chunk.nbytes):  # the driver unmaps what was one cuMemMap, not several at once
        driver("cuMemUnmap", start + offset, chunk.nbytes)
    driver("cuMemAddressFree", start, span)


def _retire(start: int, span: int, chunk: Chunk) -> None:
    live.pop(start, None)
    _retired.append((start, span, chunk))


def _chunk(driver: Driver, index: int) -> Chunk:
    with _lock:
        if index not in _chunks:
            properties = _AllocationProperties(
                type=_PINNED_ALLOCATION, location=_Location(_LOCATION_DEVICE, index), flags=_AllocationFlags()
            )
            size, handle = ctypes.c_size_t(), _Handle()
            driver("cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(properties), _GRANULARITY_MINIMUM)
            driver("cuMemCreate", ctypes.byref(handle), size.value, ctypes.byref(properties), 0)
            _chunks[index] = Chunk(handle.value, size.value, index)
        return _chunks[index]


def _ready(device: torch.device) -> tuple[torch.device, Driver]:
    """The device with its index, its context made, and the driver; refuses where a mapping cannot be changed."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise HeadforceError("HF-SHELL-SYSTEM", found=f"no CUDA for device {device}", needed="an NVIDIA GPU")
    if torch.cuda.is_current_stream_capturing():
        raise HeadforceError(
            "HF-SHELL-SYSTEM", found="a CUDA graph being captured", needed="shells made before the capture"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        torch.cuda.current_stream().query()  # the first call on a device makes its context
    return torch.device("cuda", index), _load_driver()


@functools.cache
def _load_driver() -> Driver:
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
    except (OSError, AttributeError) as error:
        raise HeadforceError(
            "HF-SHELL-SYSTEM", found=f"no usable CUDA driver ({error})", needed="a driver with cuMemMap"
        ) from error

    def call(name: str, *arguments: object) -> None:
        status = getattr(library, name)(*arguments)
        if status != 0:
            reason = ctypes.c_char_p()
            library.cuGetErrorName(status, ctypes.byref(reason))
            raise HeadforceError(
                "HF-SHELL-SYSTEM",
                found=f"{name} returned {(reason.value or b'an unknown error').decode()} ({status})",
                needed="CUDA virtual memory management",
            )

    return call
