"""Shells: cache tensors of full shape that hold almost no memory.

When headforce owns the KV cache, the model keeps a tensor that it believes to be its cache. Nothing is stored there any
more, but the model's own code still slices it, zeroes it between videos, or puts it in a state dict. A shell is an
ordinary contiguous tensor whose address range is filled by mapping one small chunk of memory again and again, so every
load and store is valid. All shells of a device share the one chunk.

**The contents are meaningless.** Elements whose distance is a multiple of `CHUNK_BYTES` are the same memory, within a
shell and between shells; a write anywhere shows up everywhere. Operations that make a copy (`clone`, `to`, `deepcopy`,
`pickle`, `share_memory_`) give an ordinary tensor that takes its full size. Resizing the storage is refused by torch
with a RuntimeError, because the range is fixed.

What a shell costs on CPU (the CUDA twin is `shell_cuda.py`):

* Nothing for data beyond the shared `CHUNK_BYTES`; page tables take 1/512 of the part that was touched.
* One kernel mapping per `CHUNK_BYTES` of its size, against `vm.max_map_count` (checked before mapping).
* Resident set size counts the chunk once for every place it was touched, so `top` and the OOM killer's ranking see the
  full size of a touched shell. Memory limits of containers count it once.

A range is unmapped when its storage dies, so views, numpy arrays and DLPack capsules keep it valid; at interpreter exit
the operating system does it. After `fork` both processes share the chunk and unmap their own ranges; `spawn` starts
afresh. Core dumps leave shells out.

Where no memory can be mapped, `HEADFORCE_SHELLS=off` makes them ordinary tensors: everything works, and the model's
cache takes its full size beside headforce's pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
import weakref
from collections.abc import Iterable

import torch

from headforce.errors import HeadforceError

CHUNK_BYTES = 2 << 20  # the physical memory of all CPU shells; a huge page, and a multiple of every page size

# Mappings left for the rest of the process: allocators, thread stacks and libraries fail hard at the limit.
SPARE_MAPPINGS = 4096

VARIABLE = "HEADFORCE_SHELLS"

_MAP_FIXED = 0x10  # missing from Python's mmap module; the same on every architecture that torch supports
_MADV_DONTDUMP = 16

# Start address -> (bytes, device) of every live range, CPU and CUDA. Only single dict operations touch it, because a
# finalizer may run between any two of them.
live: dict[int, tuple[int, torch.device]] = {}

_chunk: tuple[int, tuple[int, int]] | None = None  # file descriptor, and the (device, inode) it must still name
_chunk_lock = threading.Lock()


def make_shell(
    shape: Iterable[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A contiguous tensor of `shape` with its own storage, backed by the one chunk that all shells of a device share.

    The result is an ordinary tensor without gradient, also when made under `torch.inference_mode()`, so that it can be
    changed in place in any mode. Its first contents are whatever the chunk holds.

    Args:
        shape: the size of the tensor, at least one element.
        dtype: any dense torch dtype.
        device: a CPU or CUDA device; "cuda" is the current one.

    Raises:
        HeadforceError: `HF-SHELL-SHAPE` without elements, `HF-SHELL-SYSTEM` where the memory cannot be mapped,
            `HF-SHELL-MAPS` at the limit of mappings, `HF-OPTION` for another value of `HEADFORCE_SHELLS` than on and
            off. Nothing stays mapped in any of these cases.
    """
    shape = torch.Size(shape)
    if min(shape, default=1) < 1:
        raise HeadforceError("HF-SHELL-SHAPE", found=f"shape {tuple(shape)}", needed="at least one element")
    device = torch.device(device)
    if not _are_on():
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=dtype, device=device)
    if device.type == "cpu":
        storage = _cpu_storage(shape.numel() * dtype.itemsize)
    elif device.type == "cuda":
        from headforce.kvpass import shell_cuda  # lazy: needs a driver

        storage = shell_cuda.make_storage(shape.numel() * dtype.itemsize, device)
    else:
        raise HeadforceError("HF-SHELL-SYSTEM", found=f"device {device}", needed="a CPU or CUDA device")
    with torch.inference_mode(False):
        # set_ instead of view(dtype): the result is no view, so nothing treats it as an alias of a byte tensor.
        return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, 0, shape)


def _are_on() -> bool:
    chosen = os.environ.get(VARIABLE) or "on"
    if chosen not in ("on", "off"):
        raise HeadforceError("HF-OPTION", site=VARIABLE, found=repr(chosen), needed="on or off")
    return chosen == "on"


def is_shell(tensor: torch.Tensor) -> bool:
    """True if the memory of `tensor` is a shell's: the shell, a view of it, or a tensor over its numpy array.

    False for copies, and for tensors without memory (meta, fake, sparse).
    """
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse tensors have none
        return False
    if storage.device.type == "meta":  # also a fake tensor's
        return False
    address = storage.data_ptr()
    return any(start <= address < start + span for start, (span, _) in list(live.items()))


def physical_bytes(device: torch.device | str = "cpu") -> int:
    """The bytes of memory that all shells of the device hold together: 0 before the first shell, then one chunk.

    On CPU this is what the kernel has allocated to the shared file. Page tables are not included.
    """
    device = torch.device(device)
    if device.type == "cuda":
        from headforce.kvpass import shell_cuda

        return shell_cuda.physical_bytes(device)
    return 0 if _chunk is None else os.fstat(_chunk_descriptor()).st_blocks * 512


def virtual_bytes(device: torch.device | str = "cpu") -> int:
    """The bytes of address space that the live shells of the device span. "cuda" is all CUDA devices together."""
    device = torch.device(device)
    spans = [(span, at) for span, at in list(live.values()) if at.type == device.type]
    if device.type == "cuda" and device.index is not None:
        spans = [(span, at) for span, at in spans if at.index == device.index]
    return sum(span for span, _ in spans)


# CPU: one memfd, mapped repeatedly.


def _cpu_storage(nbytes: int) -> torch.UntypedStorage:
    """A storage of `nbytes` bytes whose every chunk is the shared one, unmapped when the storage dies."""
    span = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    start = _map_range(_chunk_descriptor(), span)
    live[start] = (span, torch.device("cpu"))
    # The storage holds this buffer until it is freed itself, whichever tensor, view or array was last to hold it.
    buffer = (ctypes.c_char * nbytes).from_address(start)
    # Never at exit: other threads and later finalizers may still use the tensor.
    weakref.finalize(buffer, _unmap_range, start, span).atexit = False
    return torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes).untyped_storage()


def _chunk_descriptor() -> int:
    """The file descriptor of the shared chunk, made and filled with memory at the first call."""
    global _chunk
    with _chunk_lock:
        if _chunk is None:
            _chunk = _new_chunk()
        descriptor, identity = _chunk
        try:
            status = os.fstat(descriptor)
            intact = (status.st_dev, status.st_ino) == identity
        except OSError:
            intact = False
        if not intact:
            # Mapping a number that now names another file would let a model's zero_() overwrite that file.
            raise HeadforceError(
                "HF-SHELL-SYSTEM",
                found=f"the file descriptor of the shells' memory ({descriptor}) closed by other code",
                needed="that descriptor left open, as os.closerange and daemon libraries do not",
            )
        return descriptor


def _new_chunk() -> tuple[int, tuple[int, int]]:
    needed = "Linux with memfd_create"
    if not hasattr(os, "memfd_create"):
        raise HeadforceError("HF-SHELL-SYSTEM", found="a system without memfd_create", needed=needed)
    try:
        descriptor = os.memfd_create("headforce-shell")
        try:
            # Allocated now: a lack of memory is an exception here, and would be a fatal signal at some later store.
            os.posix_fallocate(descriptor, 0, CHUNK_BYTES)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise HeadforceError("HF-SHELL-SYSTEM", found=f"no shared memory ({error})", needed=needed) from error
    status = os.fstat(descriptor)
    return descriptor, (status.st_dev, status.st_ino)


def _map_range(descriptor: int, span: int) -> int:
    """Map the chunk over `span` bytes (whole pages) and return the start address."""
    _check_mapping_limit(-(-span // CHUNK_BYTES))
    # One reservation first, so that the fixed mappings below can only replace our own addresses.
    start = _mmap(None, span, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    try:
        for offset in range(0, span, CHUNK_BYTES):
            size = min(CHUNK_BYTES, span - offset)
            _mmap(start + offset, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, descriptor)
    except BaseException:
        _libc().munmap(start, span)
        raise
    _libc().madvise(start, span, _MADV_DONTDUMP)  # advice: harmless where it is not known
    return start


def _unmap_range(start: int, span: int) -> None:
    # Forgotten before it is unmapped: the next owner of these addresses must not be taken for a shell.
    live.pop(start, None)
    _libc().munmap(start, span)


def _check_mapping_limit(needed: int) -> None:
    """Raise `HF-SHELL-MAPS` if `needed` more mappings would bring the process close to the kernel's limit."""
    limit, used = _mapping_limit()
    if limit is not None and used + needed + SPARE_MAPPINGS > limit:
        raise HeadforceError(
            "HF-SHELL-MAPS",
            found=f"{used} mappings in use of the {limit} that the kernel allows",
            needed=f"{needed} more for this cache tensor and {SPARE_MAPPINGS} to spare",
        )


def _mapping_limit() -> tuple[int | None, int]:
    """The most mappings a process may have, None if not known, and how many this one has."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/sys/vm/max_map_count") as file:
            limit = int(file.read())
        with open("/proc/self/maps", "rb") as file:
            return limit, file.read().count(b"\n")
    return None, 0


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    result = _libc().mmap(address, size, protection, flags, descriptor, 0)
    if result == ctypes.c_void_p(-1).value:
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        raise HeadforceError(
            "HF-SHELL-MAPS",
            found=f"mmap of {size} bytes failed ({error})",
            needed="room in the address space and in the list of mappings",
        ) from error
    return result


@functools.cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    address, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [address, size, whole, whole, whole, ctypes.c_long]
    library.munmap.argtypes = [address, size]
    library.madvise.argtypes = [address, size, whole]
    return library
