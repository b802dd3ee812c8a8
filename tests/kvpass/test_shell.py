"""Shells: safe under every method, distinct, and almost without memory.

A method that is not safe ends the process, so the methods run in child processes: this file as a script. A child prints
the name of each call before it makes it, and the test reports the last name and the signal.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import io
import itertools
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from headforce.errors import HeadforceError
from headforce.kvpass import shell, shell_cuda
from headforce.kvpass.shell import CHUNK_BYTES, is_shell, make_shell, physical_bytes, virtual_bytes

CACHE = (1, 32760, 12, 128)  # K of one layer of a 1.3B model: 21 frames of 1560 tokens
SMALL = (1, 3000, 4, 128)  # bf16: 3 MB, so the chunk repeats and ends in a part
TINY = (1, 100, 4, 128)  # the same for the chunk that a child with thousands of calls sets
TINY_CHUNK_BYTES = 1 << 16

# What an ordinary tensor can do and a shell refuses, with a RuntimeError: its address range cannot change.
REFUSED = {"resize larger", "resize storage to 0", "resize storage larger", "lazy clone"}


def mappings() -> int:
    with open("/proc/self/maps", "rb") as file:
        return sum(b"headforce-shell" in line for line in file)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Methods, in child processes.


@dataclass
class Outcome:
    """What a child left: its exit status, the call it made last, and for each call its result on shell and tensor."""

    status: int
    last: str
    calls: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        end = signal.Signals(-self.status).name if self.status < 0 else f"exit status {self.status}"
        return f"{end} in {self.last}"


def run_child(batch: str) -> Outcome:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, batch],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    last, calls = "start", {}
    for line in child.stdout.splitlines():
        last, *results = json.loads(line)
        if results:
            calls[last] = tuple(results)
    return Outcome(child.returncode, last, calls)


def announce(*words: str) -> None:
    print(json.dumps(words), flush=True)


def attempt(call: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> str:
    """The kind of result (shape, stride and dtype of a tensor), or the name of the exception."""
    try:
        result = call(tensor)
    except Exception as error:
        return f"raised {type(error).__name__}"
    if isinstance(result, torch.Tensor) and result.layout == torch.strided:
        data_dependent = result.dim() and result.shape[0] != tensor.shape[0]
        return f"{result.dtype}" if data_dependent else f"{result.dtype} {tuple(result.shape)} {result.stride()}"
    return type(result).__name__


def compare(
    name: str, call: Callable[[torch.Tensor], object], dtype: torch.dtype, shape: tuple[int, ...] = SMALL
) -> bool:
    """Make one call on an ordinary tensor and on a shell, both filled with ones; true if the shell could."""
    announce(name)
    ordinary = attempt(call, torch.ones(shape, dtype=dtype))
    result = attempt(call, make_shell(shape, dtype).fill_(1))
    announce(name, result, ordinary)
    return not result.startswith("raised")


one = functools.cache(lambda shape, dtype: torch.ones(shape, dtype=dtype))


def arguments(t: torch.Tensor) -> Iterator[tuple[torch.Tensor, tuple[object, ...]]]:
    """Argument lists that between them suit the in-place methods, each with the view of `t` to call it on."""
    ones, mask, first = one(t.shape, t.dtype), one(t.shape, torch.bool), torch.tensor([0, 99])
    rows, some = t.view(-1, 512), t[:, :2]
    count = rows.shape[0]
    yield t, ()
    yield t, (1,)
    yield t, (0.5,)
    yield t, (ones,)
    yield t, (ones, 1)
    yield t, (1, ones)
    yield t, (ones, ones)
    yield t, (1, 2)
    yield t, (0.5, 2, 1)
    yield t, (mask, 1)
    yield t, (mask, ones)
    yield t, (1, first, 1)
    yield t, (1, first, ones[:, :2])
    yield t, (1, first, ones[:, :2], "amax")
    yield t, (1, torch.zeros(1, 2, 4, 128, dtype=torch.long), ones)
    yield t, (1, torch.zeros(1, 2, 4, 128, dtype=torch.long), ones, "sum")
    yield t, ((torch.tensor([0]), first), ones[0, :2])
    yield t, (first, ones[0, 0, 0, :2])
    yield t, ((1, 2), (2, 1), 0)
    yield t, ((1, 10),)
    yield rows, ()
    yield rows, (1,)
    yield rows, (ones.view(-1, 512)[:, :1], ones.view(-1, 512)[:1])
    yield rows, (rows.new_ones(count), rows.new_ones(512))
    yield rows, (rows.new_ones(1, count, 1), rows.new_ones(1, 1, 512))
    yield t[0], (ones[0, :, :, :1], ones[0, :, :1])
    yield t.view(-1), (ones.view(-1, 1), ones.view(-1)[:1])
    yield some, (lambda x: x,)
    yield some, (ones[:, :2], lambda x, y: x)
    yield some, (ones[:, :2], ones[:, :2], lambda x, y, z: x)


def in_place_methods() -> list[str]:
    return [n for n in dir(torch.Tensor) if n.endswith("_") and not n.startswith("_")]


def other_methods() -> list[str]:
    names = (n for n in dir(torch.Tensor) if not n.endswith("_") and not n.startswith("_"))
    too_large = {"diagflat"}  # the square of the number of elements
    return [n for n in names if n not in too_large and callable(getattr(torch.Tensor, n))]


def child_in_place() -> None:
    shell.CHUNK_BYTES = TINY_CHUNK_BYTES
    lists = len(list(arguments(torch.ones(TINY))))
    for name in in_place_methods():
        ran = False
        for dtype in (torch.bfloat16, torch.int32, torch.float64):  # the others for what bfloat16 cannot do
            for i in range(lists * (not ran)):

                def call(t: torch.Tensor, name: str = name, i: int = i) -> object:
                    view, args = next(itertools.islice(arguments(t), i, None))
                    return getattr(view, name)(*args)

                ran |= compare(f"{name} {dtype} {i}", call, dtype, TINY)


def child_no_arguments() -> None:
    shell.CHUNK_BYTES = TINY_CHUNK_BYTES
    for dtype in (torch.bfloat16, torch.float32):
        for name in other_methods():
            compare(f"{name} {dtype}", lambda t, name=name: getattr(t, name)(), dtype, TINY)


def shell_like(t: torch.Tensor) -> torch.Tensor:
    return make_shell(t.shape, t.dtype)


def as_buffer(t: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    module.register_buffer("cache", t)
    return module


def state_dict_round_trip(t: torch.Tensor, **options: bool) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(as_buffer(t).state_dict(), file)
    file.seek(0)
    module = as_buffer(t)
    module.load_state_dict(torch.load(file), **options)
    return module.cache


def write_rows(t: torch.Tensor) -> torch.Tensor:
    t[:, 10:20] = 3
    t[:, 20:30] = t[:, 2000:2010]
    t[:, :-100] = t[:, 100:].clone()
    t[t > 2] = 0
    t += 1
    t *= 2
    return t


WHOLE: dict[str, Callable[[torch.Tensor], object]] = {
    "write rows": write_rows,
    "copy from a shell": lambda t: t.copy_(shell_like(t)),
    "copy to a shell": lambda t: shell_like(t).copy_(t),
    "random": lambda t: t.normal_().uniform_(-1, 1),
    "foreach": lambda t: torch._foreach_zero_([t, shell_like(t)]),
    "to dtype": lambda t: t.to(torch.float64),
    "to meta": lambda t: t.to("meta"),
    "to cpu copy": lambda t: t.to("cpu", copy=True),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "state dict": state_dict_round_trip,
    "state dict assign": lambda t: state_dict_round_trip(t, assign=True),
    "module to dtype": lambda t: as_buffer(t).to(torch.float16).cache,
    "module share memory": lambda t: as_buffer(t).share_memory().cache,
    "module deepcopy": lambda t: copy.deepcopy(as_buffer(t)).cache,
    "resize smaller": lambda t: t.resize_(1, 10, 4, 128).zero_(),
    "resize larger": lambda t: t.resize_(2, 3000, 4, 128).zero_(),
    "resize storage to 0": lambda t: (t.untyped_storage().resize_(0), t.shape),
    "resize storage larger": lambda t: (t.untyped_storage().resize_(2 * t.nbytes), t.zero_()),
    "storage fill": lambda t: t.untyped_storage().fill_(0),
    "storage clone": lambda t: t.untyped_storage().clone(),
    "set to another": lambda t: t.set_(torch.ones(4, dtype=t.dtype)).zero_(),
    "another set to it": lambda t: torch.empty(0, dtype=t.dtype).set_(t).zero_(),
    "assign data": lambda t: setattr(t, "data", torch.zeros(t.shape, dtype=t.dtype)),
    "swap": lambda t: torch.utils.swap_tensors(t, torch.zeros(t.shape, dtype=t.dtype)),
    "lazy clone": lambda t: t._lazy_clone().zero_(),
    "pin memory": lambda t: t.pin_memory(),
    "numpy": lambda t: t.view(torch.int16).numpy().sort(),
    "dlpack": lambda t: torch.from_dlpack(t).zero_(),
    "repr": repr,
    "iterate": lambda t: [row.zero_() for row in t[0]] and None,
    "equal": lambda t: (torch.equal(t, t), bool((t == t).all())),
    "index": lambda t: t[:, torch.arange(2999, -1, -1)],
    "index put": lambda t: t.index_put_(
        (torch.tensor([0, 0]), torch.tensor([1, 1])), shell_like(t[0, :2]), accumulate=True
    ),
    "scatter": lambda t: t.scatter_(1, torch.zeros(1, 2, 4, 128, dtype=torch.long), shell_like(t)),
    "roll": lambda t: t.roll(5, dims=1),
    "cat": lambda t: torch.cat([t[:, 5:], t], dim=1),
    "sort": lambda t: t.normal_().sort(dim=1).values,
    "topk": lambda t: t.normal_().topk(5, dim=1).values,
    "flip": lambda t: t.flip(1),
    "repeat": lambda t: t.repeat(1, 2, 1, 1),
    "out": lambda t: torch.add(t, t, out=t),
    "matmul": lambda t: t[0] @ t[0].transpose(1, 2),
    "attention": lambda t: F.scaled_dot_product_attention(t[:, :8].transpose(1, 2), *[t.transpose(1, 2)] * 2),
    "requires grad": lambda t: t.requires_grad_().mul(2).sum().backward(),
}


def child_whole_tensor() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for name, call in WHOLE.items():
            compare(f"{name} {dtype}", call, dtype)


def child_unmapped() -> None:
    """A fault put in on purpose: a shell whose range is gone."""
    t = make_shell(SMALL, torch.bfloat16)
    announce("is_shell")
    assert is_shell(t)
    announce("zero_")
    shell._unmap_range(t.data_ptr(), virtual_bytes())
    t.zero_()


def child_fork() -> None:
    t = make_shell(CACHE, torch.bfloat16)
    announce("fork")
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        before = mappings()
        t[:, 7] = 5  # the chunk is shared with the parent
        other = make_shell(SMALL)
        other[:, ::1000] = 5
        del other
        del t
        os._exit(0 if mappings() == 0 < before else 1)
    announce("wait", str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), str(t[0, 7, 0, 0].item()))
    announce("touch after the child's end")
    t[:, ::1000] = 1


def assert_safe(outcome: Outcome) -> None:
    assert outcome.status == 0, str(outcome)
    for call, (on_shell, on_tensor) in outcome.calls.items():
        refused = call.partition(" torch.")[0] in REFUSED
        assert on_shell == ("raised RuntimeError" if refused else on_tensor), call


def succeeded(outcome: Outcome) -> set[str]:
    return {n.partition(" torch.")[0] for n, (result, _) in outcome.calls.items() if not result.startswith("raised")}


@pytest.mark.slow
def test_every_in_place_method_is_safe() -> None:
    outcome = run_child("in_place")
    assert_safe(outcome)
    # An argument list that suits no method would test nothing: most methods must have run, and every common one.
    ran = succeeded(outcome)
    assert len(ran) >= 0.9 * len(in_place_methods())
    common = "zero_ fill_ copy_ normal_ uniform_ random_ bernoulli_ mul_ clamp_ cumsum_ masked_fill_ masked_scatter_"
    common += " index_copy_ index_add_ index_fill_ index_put_ scatter_ put_ transpose_ set_ share_memory_ apply_ map_"
    assert set(common.split()) - ran == set()


@pytest.mark.slow
def test_every_method_without_arguments_is_safe() -> None:
    outcome = run_child("no_arguments")
    assert_safe(outcome)
    assert succeeded(outcome) >= {"sum", "clone", "contiguous", "detach", "cpu", "numpy", "tolist", "float", "unique"}


@pytest.mark.slow
def test_whole_tensor_operations_are_safe() -> None:
    outcome = run_child("whole_tensor")
    assert_safe(outcome)
    assert set(WHOLE) - succeeded(outcome) <= REFUSED | {"pin memory"}  # pinning needs a GPU


def test_a_method_that_ends_the_process_is_named() -> None:
    assert str(run_child("unmapped")) == "SIGSEGV in zero_"


def test_a_forked_process_shares_the_chunk_and_frees_its_own_ranges() -> None:
    outcome = run_child("fork")
    assert outcome.status == 0, str(outcome)
    assert outcome.calls["wait"] == ("0", "5.0")


# Memory.


def test_sixty_layers_hold_two_mebibytes() -> None:
    shells = [make_shell(CACHE, torch.bfloat16) for _ in range(60)]
    for t in shells[:2]:
        t.normal_()
    for t in shells:
        t[:, ::997] = 1
    assert virtual_bytes() >= sum(t.nbytes for t in shells) > 6e9
    assert 0 < physical_bytes() <= 2 << 20
    assert len({t.untyped_storage().data_ptr() for t in shells}) == 60
    assert all(is_shell(t) for t in shells)


def test_a_shell_looks_like_the_tensor_it_stands_for() -> None:
    t, like = make_shell(SMALL, torch.bfloat16), torch.empty(SMALL, dtype=torch.bfloat16)
    for ask in ("shape", "dtype", "device", "layout", "requires_grad", "_base"):
        assert getattr(t, ask) == getattr(like, ask)
    assert t.stride() == like.stride()
    assert t.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    assert t.storage_offset() == 0
    assert type(t) is torch.Tensor


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.uint8, torch.bool, torch.complex64]
)
def test_dtypes(dtype: torch.dtype) -> None:
    t = make_shell([3, 5], dtype)
    assert t.dtype == dtype
    t.zero_()
    assert t.view(torch.uint8).sum() == 0


def test_contents_alias_at_multiples_of_the_chunk() -> None:
    t, other = make_shell((3 * CHUNK_BYTES,), torch.uint8), make_shell((CHUNK_BYTES,), torch.uint8)
    t.zero_()
    t[5] = 7
    assert t[5 + CHUNK_BYTES] == t[5 + 2 * CHUNK_BYTES] == other[5] == 7
    assert t[6] == other[6] == 0


def test_is_shell() -> None:
    t = make_shell(SMALL)
    assert is_shell(t[:, 5:])
    assert is_shell(t.transpose(1, 2))
    assert is_shell(torch.from_numpy(t.numpy()[:, 7:]))
    assert is_shell(torch.nn.Parameter(t))
    assert not is_shell(t.clone())
    assert not is_shell(torch.zeros(3))
    assert not is_shell(torch.zeros(0))
    assert not is_shell(torch.zeros(3, device="meta"))
    assert not is_shell(torch.eye(3).to_sparse())
    with torch._subclasses.FakeTensorMode() as mode:
        assert not is_shell(mode.from_tensor(t))


# Lifetimes.


def hold_row(t: torch.Tensor) -> object:
    return t[:, 2999]


def hold_storage(t: torch.Tensor) -> object:
    return t.untyped_storage()


def hold_array(t: torch.Tensor) -> object:
    return t.numpy()


def hold_capsule(t: torch.Tensor) -> object:
    return torch.utils.dlpack.to_dlpack(t)


@pytest.mark.parametrize("hold", [hold_row, hold_storage, hold_array, hold_capsule])
def test_the_range_outlives_the_tensor(hold: Callable[[torch.Tensor], object]) -> None:
    gc.collect()
    gc.collect()  # what earlier tests left behind
    before = mappings(), virtual_bytes()
    held = hold(make_shell(SMALL))
    gc.collect()
    assert mappings() == before[0] + 3
    if hold is hold_capsule:
        held = torch.from_dlpack(held)
    held[0] = 5
    del held
    gc.collect()
    assert (mappings(), virtual_bytes()) == before


def test_no_mapping_and_no_descriptor_is_left() -> None:
    make_shell(SMALL)
    gc.collect()
    gc.collect()  # what earlier tests left behind
    before = mappings(), descriptors(), virtual_bytes()
    for _ in range(50):
        make_shell(SMALL).zero_()
    gc.collect()
    assert (mappings(), descriptors(), virtual_bytes()) == before


def test_freed_addresses_are_forgotten() -> None:
    start = make_shell(SMALL).data_ptr()
    assert start not in shell.live


# Refusals.


@pytest.fixture
def unchanged() -> Iterator[None]:
    make_shell(SMALL)  # so that the descriptor exists
    gc.collect()
    gc.collect()  # what earlier tests left behind
    before = mappings(), descriptors(), virtual_bytes()
    yield
    gc.collect()
    assert (mappings(), descriptors(), virtual_bytes()) == before


@pytest.mark.usefixtures("unchanged")
def test_the_limit_of_mappings_is_seen_before_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "_mapping_limit", lambda: (shell.SPARE_MAPPINGS + 100, 60))
    make_shell((40 * CHUNK_BYTES,), torch.uint8)
    with pytest.raises(HeadforceError, match=r"60 mappings in use of the 4196.*41 more.*max_map_count") as caught:
        make_shell((41 * CHUNK_BYTES,), torch.uint8)
    assert caught.value.code == "HF-SHELL-MAPS"


def test_the_limit_of_mappings_is_read() -> None:
    limit, used = shell._mapping_limit()
    assert limit is not None
    assert 0 < used < limit


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("failing", [0, 1, 3])
def test_a_failure_half_way_unmaps(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    libc, calls = shell._libc(), []

    class Full:
        munmap, madvise = libc.munmap, libc.madvise

        def mmap(self, *args: object) -> int:
            calls.append(args)
            if len(calls) <= failing:
                return libc.mmap(*args)
            ctypes.set_errno(12)
            return ctypes.c_void_p(-1).value

    before = mappings()
    monkeypatch.setattr(shell, "_libc", Full)
    # Full() is made anew for each call, so the count lives outside it.
    with pytest.raises(HeadforceError, match="Cannot allocate memory") as caught:
        make_shell((8 * CHUNK_BYTES,), torch.uint8)
    assert caught.value.code == "HF-SHELL-MAPS"
    assert len(calls) == failing + 1
    assert mappings() == before


@pytest.mark.usefixtures("unchanged")
def test_a_system_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "_chunk", None)
    assert physical_bytes() == 0

    def refused(name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)
    with pytest.raises(HeadforceError, match="Function not implemented"):
        make_shell(SMALL)
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(HeadforceError, match="without memfd_create") as caught:
        make_shell(SMALL)
    assert caught.value.code == "HF-SHELL-SYSTEM"


@pytest.mark.usefixtures("unchanged")
def test_a_descriptor_that_names_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    make_shell(SMALL)
    with open(os.devnull) as other:
        monkeypatch.setattr(shell, "_chunk", (other.fileno(), shell._chunk[1]))
        with pytest.raises(HeadforceError, match="closed by other code"):
            make_shell(SMALL)


@pytest.mark.parametrize(
    ("shape", "device", "code"),
    [((1, 0, 4), "cpu", "HF-SHELL-SHAPE"), ((2, -1), "cpu", "HF-SHELL-SHAPE"), ((2,), "meta", "HF-SHELL-SYSTEM")],
)
def test_shapes_and_devices_that_cannot_be(shape: tuple[int, ...], device: str, code: str) -> None:
    with pytest.raises(HeadforceError) as caught:
        make_shell(shape, torch.float32, device)
    assert caught.value.code == code


def test_a_single_element() -> None:
    assert make_shell((), torch.float32).zero_().item() == 0
    assert virtual_bytes() % mmap.PAGESIZE == 0


# Modes and compilation.


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_made_in_one_mode_and_used_in_another(mode: type) -> None:
    with mode():
        t = make_shell(SMALL, torch.bfloat16)
        t.zero_()
    assert not t.is_inference()
    assert not t.requires_grad
    t.zero_()
    with torch.inference_mode():
        t[:, :4] = 1


def test_made_under_a_default_device() -> None:
    with torch.device("meta"):
        assert make_shell(SMALL).device.type == "cpu"


class Attention(torch.nn.Module):
    def forward(self, x: torch.Tensor, cache: torch.Tensor, start: int) -> torch.Tensor:
        cache[:, start : start + 3] = x
        past = cache[:, : start + 3].transpose(1, 2)
        return F.scaled_dot_product_attention(x.transpose(1, 2), past, past)


# The first chunk of a shell does not alias itself, so a model that stays inside it computes what it computes on memory.
@pytest.mark.parametrize(
    ("backend", "starts"), [("eager", (0, 3, 6)), pytest.param("inductor", (3,), marks=pytest.mark.slow)]
)
def test_traced_in_one_graph(backend: str, starts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Attention()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    cache, memory = make_shell(CACHE), torch.zeros(1, 64, 12, 128)
    cache.zero_()
    with torch.no_grad():
        for start in starts:
            x = torch.randn(1, 3, 12, 128)
            torch.testing.assert_close(compiled(x, cache, start), model(x, memory, start))
    assert physical_bytes() <= 2 << 20


# CUDA: the order of driver calls with a driver that only records, and the real thing where there is a GPU.


class Recorder:
    """Stands in for the driver: records the calls, and fails the one with number `failing`."""

    def __init__(self, failing: int = -1) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failing = failing

    def __call__(self, name: str, *args: object) -> None:
        self.calls.append((name, *args))
        if len(self.calls) - 1 == self.failing:
            raise HeadforceError("HF-SHELL-SYSTEM", found=f"{name} failed", needed="success")
        if name == "cuMemAddressReserve":
            args[0]._obj.value = 1 << 30


CHUNK = shell_cuda.Chunk(handle=99, nbytes=2 << 20, device=0)


def test_cuda_maps_one_handle_over_the_range() -> None:
    driver = Recorder()
    start = shell_cuda.map_range(driver, CHUNK, 3 * CHUNK.nbytes)
    assert start == 1 << 30
    mapped = [call[1:] for call in driver.calls if call[0] == "cuMemMap"]
    assert mapped == [(start + i * CHUNK.nbytes, CHUNK.nbytes, 0, 99, 0) for i in range(3)]
    assert [call[0] for call in driver.calls] == ["cuMemAddressReserve", *["cuMemMap"] * 3, "cuMemSetAccess"]


@pytest.mark.parametrize(("failing", "mapped"), [(1, 0), (3, 2), (4, 3)])
def test_cuda_failure_half_way_unmaps(failing: int, mapped: int) -> None:
    driver = Recorder(failing)
    with pytest.raises(HeadforceError, match="failed"):
        shell_cuda.map_range(driver, CHUNK, 3 * CHUNK.nbytes)
    assert [call[0] for call in driver.calls[failing + 1 :]] == ["cuMemUnmap"] * mapped + ["cuMemAddressFree"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_without_a_device() -> None:
    with pytest.raises(HeadforceError, match="NVIDIA GPU") as caught:
        make_shell(SMALL, torch.bfloat16, "cuda")
    assert caught.value.code == "HF-SHELL-SYSTEM"
    assert physical_bytes("cuda") == virtual_bytes("cuda") == 0


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestCuda:
    pytestmark = gpu

    def test_memory_and_lifetime(self) -> None:
        torch.zeros(1, device="cuda")
        others = virtual_bytes("cuda")  # shells of earlier tests that are still alive
        free = torch.cuda.mem_get_info()[0]
        shells = [make_shell(CACHE, torch.bfloat16, "cuda") for _ in range(60)]
        for t in shells:
            t.normal_()
        torch.cuda.synchronize()
        assert len({t.untyped_storage().data_ptr() for t in shells}) == 60
        assert all(is_shell(t[:, 5:]) and t.dtype == torch.bfloat16 for t in shells)
        assert virtual_bytes("cuda") >= sum(t.nbytes for t in shells)
        # Measured by the driver too: one chunk, page tables and the random generator's kernels, not six gigabytes.
        assert physical_bytes("cuda") <= 2 << 20
        assert free - torch.cuda.mem_get_info()[0] < 256 << 20
        row = shells[3][:, 7]
        del shells, t
        gc.collect()
        row.fill_(5)
        assert row.float().mean().item() == 5
        assert virtual_bytes("cuda") - others < 2 * row.untyped_storage().nbytes()
        del row
        gc.collect()
        shell_cuda.unmap_retired(torch.device("cuda"))
        assert virtual_bytes("cuda") <= others
        assert not shell_cuda._retired

    def test_methods(self) -> None:
        for name in ("zero_", "normal_", "uniform_", "neg_", "sum", "clone", "contiguous", "cpu", "float", "detach"):
            getattr(make_shell(SMALL, torch.bfloat16, "cuda"), name)()
        t, other = (make_shell(SMALL, torch.bfloat16, "cuda") for _ in range(2))
        t.copy_(other)
        t.masked_fill_(torch.ones(SMALL, dtype=torch.bool, device="cuda"), 1)
        t.index_copy_(1, torch.tensor([5], device="cuda"), t[:, :1].clone())
        copy.deepcopy(t)
        with pytest.raises(RuntimeError):
            t.resize_(2, 3000, 4, 128)
        torch.cuda.synchronize()

    @pytest.mark.parametrize("backend", ["eager", "inductor"])
    def test_traced_in_one_graph(self, backend: str) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(Attention(), backend=backend, fullgraph=True)
        t = make_shell(CACHE, torch.bfloat16, "cuda")
        with torch.inference_mode():
            for start in (0, 3):
                out = compiled(torch.ones(1, 3, 12, 128, dtype=torch.bfloat16, device="cuda"), t, start)
        assert out.shape == (1, 12, 3, 128)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[f"child_{sys.argv[1]}"]()
