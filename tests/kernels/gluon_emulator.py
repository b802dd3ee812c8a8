"""Runs a Gluon kernel for Hopper as plain Python on CPU tensors, to find synchronisation faults without a GPU.

Partitions and TMA loads take turns in an order drawn from a seed. Besides, every access to shared memory is checked
against what the kernel has made sure of: a partition knows that an access is over once it has waited for the mma, or
for a barrier at which somebody arrived who knew. An access in conflict with one that is not known to be over is a
`Fault`, even where the order that was drawn does no harm; so an mma may as well compute at once.

Runtime scalars are tensors without dimensions, as wide as on the device; but a variable that holds a literal is a plain
number until something is added to it, so a kernel says `gl.to_tensor(0)` where that matters. Layouts, registers and the
size of shared memory are the compiler's business and not looked at. The programs of a grid run one after another.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import math
import operator
import random
import sys
import threading
import types
from functools import partial

import numpy as np
import torch
import triton.language as tl
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.runtime.jit import ConstexprFunction

SAME = ["int8", "int16", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64"]
DTYPES = {getattr(gl, name): getattr(torch, name) for name in SAME} | {gl.int1: torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_BYTES = 2**20 - 1  # that a barrier can expect in one phase
here = threading.local()  # .partition: the one whose thread this is


class Fault(Exception):
    """On hardware this would be a race, a hang or a wild access."""


class Aborted(BaseException):
    """Ends the other threads after a fault."""


def place():
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{here.partition.name}, line {frame.f_lineno}, `{line}`"


def demand(condition, message):
    if not condition:
        raise Fault(f"{place()}: {message}")


class Tensor:
    """A value in registers, with Triton's types and its rules for mixing them."""

    def __init__(self, raw):
        self.raw, self.shape, self.dtype = raw, list(raw.shape), NAMES[raw.dtype]
        self.type = types.SimpleNamespace(layout=None)

    def to(self, dtype, bitcast=False):
        return Tensor(self.raw.view(DTYPES[dtype]) if bitcast else self.raw.to(DTYPES[dtype]))

    def __getattr__(self, name):
        return partial(getattr(LANGUAGE, name), self)

    def __getitem__(self, key):
        return Tensor(self.raw[key])

    def __repr__(self):
        return repr(self.raw)


def tensor(value):
    if isinstance(value, Tensor):
        return value
    small = type(value) is int and -(2**31) <= value < 2**31
    return Tensor(torch.tensor(value, dtype=torch.int32 if small else None))


def unary(function):
    def of_one(x):
        result = function(tensor(x).raw)
        return Tensor(result) if isinstance(result, torch.Tensor) else result

    return of_one


def binary(function, floats=False):
    """`function` of two operands brought to one type; torch alone would give a tensor without dimensions no say."""

    def of_two(x, y):
        if not isinstance(x, Tensor) and not isinstance(y, Tensor):
            x = tensor(x)
        raws = [v.raw if isinstance(v, Tensor) else v for v in (x, y)]
        both = isinstance(x, Tensor) and isinstance(y, Tensor)
        dtype = torch.promote_types(*(raw.dtype for raw in raws)) if both else torch.result_type(*raws)
        if floats and dtype in (torch.float16, torch.bfloat16):
            dtype = torch.float32
        return Tensor(function(*(torch.as_tensor(v, dtype=dtype) for v in raws)))

    return of_two


def guarded(apply):
    return lambda x, y: apply(x, y) if isinstance(y, Tensor | int | float) else NotImplemented


def install_operators():
    both_ways = {name: getattr(operator, f"__{name}__") for name in ["add", "sub", "mul", "and", "or", "xor", "lshift"]}
    both_ways |= {"rshift": operator.rshift, "truediv": operator.truediv, "mod": torch.fmod}
    both_ways["floordiv"] = partial(torch.div, rounding_mode="trunc")  # as in C
    for name, function in both_ways.items():
        apply = binary(function, floats=name in ("truediv", "mod"))
        setattr(Tensor, f"__r{name}__", lambda self, other, apply=apply: apply(other, self))
        setattr(Tensor, f"__{name}__", guarded(apply))
    for name in ["lt", "le", "gt", "ge", "eq", "ne"]:
        setattr(Tensor, f"__{name}__", guarded(binary(getattr(operator, name))))
    for name in ["neg", "invert", "bool", "index"]:
        setattr(Tensor, f"__{name}__", unary(getattr(operator, name, bool)))


install_operators()


class Pointer:
    """Addresses within one tensor of the caller."""

    def __init__(self, memory, inside, offset):
        self.memory, self.inside, self.offset = memory, inside, offset
        self.dtype = types.SimpleNamespace(element_ty=NAMES[memory.dtype])

    @classmethod
    def of(cls, base):
        extents = [(size - 1) * stride for size, stride in zip(base.shape, base.stride(), strict=True)]
        span = 1 + sum(extents) if base.numel() else 0
        inside = torch.zeros(span, dtype=torch.bool)
        inside.as_strided(base.shape, base.stride()).fill_(True)
        return cls(base.detach().as_strided((span,), (1,)), inside, Tensor(torch.tensor(0)))

    def __add__(self, elements):
        return Pointer(self.memory, self.inside, self.offset + elements)

    __radd__ = __add__

    def __sub__(self, elements):
        return self + -elements

    def __getitem__(self, key):
        return Pointer(self.memory, self.inside, self.offset[key])

    def lanes(self, mask):
        """The offset of every lane, and which lanes are accessed."""
        offset, mask = torch.broadcast_tensors(self.offset.raw, tensor(True if mask is None else mask).raw)
        there = (offset >= 0) & (offset < len(self.memory))
        there[there.clone()] = self.inside[offset[there]]
        demand(not (mask & ~there).any(), "access outside of the tensor")
        return offset, mask


def poison(dtype):
    return math.nan if dtype.is_floating_point else dtype == torch.bool or torch.iinfo(dtype).max


def load(pointer, mask=None, other=None, **_):
    offset, mask = pointer.lanes(mask)
    value = torch.full(offset.shape, poison(pointer.memory.dtype), dtype=pointer.memory.dtype)
    if other is not None:
        value[...] = tensor(other).raw
    value[mask] = pointer.memory[offset[mask]]
    return Tensor(value)


def store(pointer, value, mask=None, **_):
    offset, mask = pointer.lanes(mask)
    pointer.memory[offset[mask]] = tensor(value).raw.to(pointer.memory.dtype).expand(offset.shape)[mask]


class Partition:
    """A thread that runs only while it has the turn."""

    def __init__(self, program, name, call, seen=()):
        self.program, self.name, self.call, self.weight = program, name, call, program.weight()
        self.seen = set(seen)  # accesses to shared memory that are known to be over
        self.unfenced, self.outstanding = [], []  # stores to shared memory; mmas not waited for
        self.ready, self.waits_for = lambda: True, None
        self.result, self.error, self.turn = None, None, threading.Semaphore(0)
        program.alive.append(self)
        threading.Thread(target=self.main, daemon=True).start()

    def main(self):
        here.partition = self
        self.turn.acquire()
        try:
            if not self.program.aborted:
                self.result = self.call()
                for mma in self.outstanding:
                    raise Fault(f"{self.name} ends and has not waited for {mma.access}")
        except Aborted:
            pass
        except BaseException as error:
            self.error = error
        self.program.alive.remove(self)
        self.program.back.release()

    def step(self):
        self.turn.release()
        self.program.back.acquire()
        if self.error:
            raise self.error

    def switch(self, ready=lambda: True, waits_for=None):
        """Lets others run, and comes back at some time when `ready()`."""
        self.ready, self.waits_for = ready, waits_for
        self.program.back.release()
        self.turn.acquire()
        if self.program.aborted:
            raise Aborted


class Program:
    def __init__(self, rng, index, grid):
        self.rng, self.index, self.grid = rng, index, grid
        self.alive, self.aborted, self.back = [], False, threading.Semaphore(0)
        self.loads, self.loaded = [], []  # loads on their way; the accesses of all loads

    def weight(self):
        """How often something gets a turn: some things are a hundred times as slow as others."""
        return 10 ** self.rng.uniform(-2, 0)

    def run(self, name, call):
        first = Partition(self, name, call)
        try:
            while self.alive:
                choices = [p for p in self.alive if p.ready()] + self.loads
                if not choices:
                    raise Fault("deadlock:\n" + "\n".join(f"  {p.name} waits for {p.waits_for()}" for p in self.alive))
                self.rng.choices(choices, [choice.weight for choice in choices])[0].step()
            for access in self.loaded:
                if access not in first.seen:
                    raise Fault(f"the program ends and has not waited for {access}")
        finally:
            self.aborted = True
            for partition in self.alive[:]:
                partition.turn.release()
                self.back.acquire()


def warp_specialize(functions_and_args, worker_num_warps, worker_num_regs=None):
    parent = here.partition
    for given in (worker_num_warps, worker_num_regs):
        demand(given is None or len(given) == len(functions_and_args) - 1, "one number for each worker")
    for _, args in functions_and_args[1:]:
        demand(not any(isinstance(x, Tensor) and x.shape for x in args), "workers take no tensors")
    children = [
        Partition(parent.program, f"{function.__name__} {i}", partial(function, *args), parent.seen)
        for i, (function, args) in enumerate(functions_and_args)
    ]
    parent.switch(lambda: not set(children) & set(parent.program.alive), lambda: "its partitions")
    parent.seen.update(*(child.seen for child in children))
    return children[0].result


class Access:
    """One access to shared memory; what is known to have happened is kept as sets of these."""

    def __init__(self, writes=False, generic=False):
        self.author, self.place = here.partition, place()
        self.writes, self.generic, self.fenced = writes, generic, not (writes and generic)

    def __str__(self):
        return f"[{self.place}]"


class Allocation:
    def __init__(self, dtype, shape):
        self.data = torch.full(shape, poison(dtype), dtype=dtype)
        self.cells = torch.arange(self.data.numel()).view(shape)
        self.written = torch.zeros(self.data.numel(), dtype=torch.bool)
        self.accesses = []  # (which cells, access), without those that later ones make redundant
        self.barriers = {}  # by cell


class Shared:
    """A view of an allocation."""

    def __init__(self, memory, data, cells):
        self.memory, self.data, self.cells = memory, data, cells
        self.shape, self.dtype = list(data.shape), NAMES[data.dtype]

    def view(self, change):
        return Shared(self.memory, change(self.data), change(self.cells))

    def slice(self, start, length, dim=0):
        start, end = int(start), int(start) + int(length)
        demand(start >= 0 and end <= self.shape[dim], f"{start}:{end} of {self.shape[dim]}")
        return self.view(lambda whole: whole.narrow(dim, start, end - start))

    def index(self, index):
        return self.slice(index, 1).view(lambda one: one[0])

    def permute(self, order):
        return self.view(lambda whole: whole.permute(order))

    def reshape(self, shape):
        return self.view(lambda whole: whole.view(shape))

    def begin(self, access):
        """Notes an access, provided that everything it must come after is known to be over."""
        memory, seen = self.memory, access.author.seen
        cells, kept = torch.zeros_like(memory.written), []
        cells[self.cells] = True
        for others, other in memory.accesses:
            common = others & cells
            if (access.writes or other.writes) and common.any():
                demand(other in seen, f"nothing makes sure that this is over: {other}")
                demand(access.generic or other.fenced, f"no fence_async_shared after {other}")
            repeated = not other.writes and other.author is access.author and other in seen
            if not (access.writes or repeated) or not common.equal(others):
                kept.append((others, other))
        memory.accesses = [*kept, (cells, access)]
        demand(access.writes or memory.written[self.cells].all(), "reads what was never written")
        if access.generic:
            seen.add(access)

    def write(self, value, written=True):
        self.data[...] = value
        self.memory.written[self.cells] = written

    def load(self, layout=None):
        self.begin(Access(generic=True))
        return Tensor(self.data.clone())

    def store(self, value):
        demand((value.shape, value.dtype) == (self.shape, self.dtype), "another shape or type")
        access = Access(writes=True, generic=True)
        self.begin(access)
        here.partition.unfenced.append(access)
        self.write(value.raw)


def allocate_shared_memory(element_ty, shape, layout=None, value=None):
    memory = Allocation(DTYPES[element_ty], [int(size) for size in shape])
    shared = Shared(memory, memory.data, memory.cells)
    if value is not None:
        shared.store(value)
    return shared


def fence_async_shared(cluster=False):
    for access in here.partition.unfenced:
        access.fenced = True
    here.partition.unfenced.clear()


class Barrier:
    """PTX's mbarrier: a phase ends when neither arrivals nor bytes are pending."""

    def __init__(self, count):
        self.count, self.pending, self.bytes, self.phase = count, count, 0, 0
        self.arriving, self.complete = set(), set()  # what those knew who arrived in this phase, and before it

    def update(self, arrivals, size, seen):
        self.pending, self.bytes = self.pending - arrivals, self.bytes + size
        self.arriving |= seen
        if self.pending == self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count
            self.complete |= self.arriving
            self.arriving = set()

    def __str__(self):
        return f"{self.phase} phases complete, {self.pending} arrivals and {self.bytes} bytes pending"


def init_barrier(mbarrier, count):
    demand(mbarrier.cells.numel() == 1 and int(mbarrier.cells) not in mbarrier.memory.barriers, "not one new barrier")
    mbarrier.memory.barriers[int(mbarrier.cells)] = Barrier(int(count))


def barrier_of(mbarrier):
    demand(mbarrier.cells.numel() == 1 and int(mbarrier.cells) in mbarrier.memory.barriers, "not a barrier after init")
    return mbarrier.memory.barriers[int(mbarrier.cells)]


def arrive(mbarrier, *, count=1, pred=True, size=0, **_):
    if pred:
        here.partition.switch()
        barrier = barrier_of(mbarrier)
        demand(0 < count <= barrier.pending, f"{count} arrivals at a barrier with {barrier}")
        demand(size + barrier.bytes <= MAX_BYTES, f"{size} bytes at a barrier with {barrier}")
        barrier.update(int(count), int(size), here.partition.seen)


def expect(mbarrier, bytes_per_cta=None, pred=True, *, bytes=None, **_):
    """An arrival too, as in PTX."""
    arrive(mbarrier, pred=pred, size=bytes_per_cta if bytes is None else bytes)


def wait(mbarrier, phase, pred=True, deps=()):
    if pred:
        barrier, parity, at = barrier_of(mbarrier), int(phase), place()
        demand(parity in (0, 1), f"parity {parity}")
        here.partition.switch(lambda: barrier.phase % 2 != parity, lambda: f"parity {parity} with {barrier}: {at}")
        here.partition.seen |= barrier.complete


class Descriptor:
    def __init__(self, base, shape, strides, block_shape, layout=None, padding_option="zero"):
        self.base, self.layout, self.padding = base, layout, 0 if padding_option == "zero" else math.nan
        self.shape, self.strides, self.block_shape = ([int(x) for x in v] for v in (shape, strides, block_shape))
        self.dtype, itemsize = base.dtype.element_ty, base.memory.itemsize
        self.nbytes_per_cta = nbytes = math.prod(self.block_shape) * itemsize
        self.block_type = types.SimpleNamespace(nbytes=nbytes, shape=self.block_shape, element_ty=self.dtype)
        starts = [base.memory.data_ptr() + int(base.offset) * itemsize, *(s * itemsize for s in self.strides[:-1])]
        demand(all(s % 16 == 0 for s in starts) and self.strides[-1] == 1, "TMA cannot address this")

    def read(self, coord):
        pointer, inside = self.base, tensor(True)
        for dim, (first, block) in enumerate(zip(coord, self.block_shape, strict=True)):
            at = int(first) + torch.arange(block).view([-1 if d == dim else 1 for d in range(len(self.shape))])
            pointer = pointer + Tensor(at * self.strides[dim])
            inside = inside & Tensor((at >= 0) & (at < self.shape[dim]))
        return load(pointer, inside, self.padding).raw


class Load:
    """A TMA load. When it gets a turn it writes, and completes its bytes."""

    def __init__(self, descriptor, coord, barrier, result):
        here.partition.switch()
        sizes, block = ([size for size in x if size > 1] for x in (result.shape, descriptor.block_shape))
        demand(sizes == block and result.dtype == descriptor.dtype, "another shape or type")
        self.barrier, self.result, self.size = barrier_of(barrier), result, descriptor.nbytes_per_cta
        self.program, self.access = here.partition.program, Access(writes=True)
        self.weight, self.value = self.program.weight(), descriptor.read(coord).reshape(result.shape)
        result.begin(self.access)
        result.write(poison(self.value.dtype), written=False)
        self.program.loads.append(self)
        self.program.loaded.append(self.access)

    def step(self):
        self.program.loads.remove(self)
        self.result.write(self.value)
        self.barrier.update(0, -self.size, {self.access})


def async_load(tensor_desc, coord, barrier, result, pred=True, multicast=False, cache_policy=None):
    if pred:
        Load(tensor_desc, coord, barrier, result)


class UnfinishedMma:
    """What an asynchronous mma returns: it cannot be computed with."""

    def __init__(self, value, access):
        self.value, self.access, self.shape, self.dtype = value, access, value.shape, value.dtype


def warpgroup_mma(a, b, acc, *, use_acc=True, is_async=False, **_):
    here.partition.switch()
    demand(isinstance(b, Shared) and a.dtype == b.dtype, "b must be in shared memory and of the type of a")
    demand([a.shape[0], b.shape[1], a.shape[1]] == [*acc.shape, b.shape[0]], "shapes do not match")
    access = Access()
    for operand in (a, b):
        if isinstance(operand, Shared):
            operand.begin(access)
    before = acc.value if isinstance(acc, UnfinishedMma) else acc
    left, right = (x.data if isinstance(x, Shared) else x.raw for x in (a, b))
    product = left.float() @ right.float()
    value = Tensor((product + before.raw if use_acc else product).to(before.raw.dtype))
    mma = UnfinishedMma(value, access)
    here.partition.outstanding.append(mma)
    return mma if is_async else warpgroup_mma_wait(0, [mma])


def warpgroup_mma_wait(num_outstanding=0, deps=None):
    partition = here.partition
    demand(deps, "deps must be given")
    partition.switch()
    while len(partition.outstanding) > num_outstanding:
        partition.seen.add(partition.outstanding.pop(0).access)
    results = [x.value if isinstance(x, UnfinishedMma) and x.access in partition.seen else x for x in deps]
    return results[0] if len(results) == 1 else tuple(results)


def reduction(function):
    def reduce(x, axis=None, keep_dims=False):
        wide = torch.float32 if x.raw.is_floating_point() else torch.int32
        raw = x.raw.to(wide) if x.raw.itemsize < 4 else x.raw
        return Tensor(torch.as_tensor(function.reduce(raw.numpy(), axis=axis, keepdims=keep_dims)).to(raw.dtype))

    return reduce


def associative_scan(x, axis, combine_fn, reverse=False):
    rows = itertools.accumulate(map(Tensor, x.raw.unbind(axis)), combine_fn)
    return Tensor(torch.stack([row.raw for row in rows], axis))


def full(shape, value, dtype, layout=None):
    return Tensor(torch.full([int(size) for size in shape], tensor(value).raw.item(), dtype=DTYPES[dtype]))


def static_assert(condition, message=""):
    assert condition, message


class Module:
    """What a kernel sees in place of a module of Gluon: `members`, and the types and layouts of the real one."""

    def __init__(self, real, **members):
        self.__dict__ |= members | {"real": real, "members": members}

    def __getattr__(self, name):
        value = getattr(self.real, name)
        if isinstance(value, tl.dtype | type):
            return value
        raise NotImplementedError(f"the emulator has no {self.real.__name__}.{name}")


UNARY = ["exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "rsqrt", "floor", "ceil", "abs", "erf"]
IDENTITY = ["constexpr", "convert_layout", "set_auto_layout", "multiple_of", "max_contiguous"]
LANGUAGE = Module(
    gl,
    **{name: unary(getattr(torch, name)) for name in UNARY},
    **{name: lambda x, *_, **__: x for name in IDENTITY},
    **dict.fromkeys(["static_assert", "device_assert", "assume"], static_assert),
    **dict.fromkeys(["barrier", "thread_barrier"], lambda: None),
    program_id=lambda axis: tensor(here.partition.program.index[axis]),
    num_programs=lambda axis: tensor(here.partition.program.grid[axis]),
    static_range=range,
    SliceLayout=lambda dim, parent: None,
    load=load,
    store=store,
    allocate_shared_memory=allocate_shared_memory,
    warp_specialize=warp_specialize,
    arange=lambda start, end, layout=None: Tensor(torch.arange(start, end, dtype=torch.int32)),
    full=full,
    zeros=lambda shape, dtype, layout=None: full(shape, 0, dtype),
    to_tensor=tensor,
    cast=lambda x, dtype: tensor(x).to(dtype),
    where=lambda condition, x, y: binary(lambda x, y: torch.where(tensor(condition).raw, x, y))(x, y),
    cdiv=lambda x, y: (x + y - 1) // y,
    maximum=binary(torch.fmax),
    minimum=binary(torch.fmin),
    sum=reduction(np.add),
    max=reduction(np.fmax),
    min=reduction(np.fmin),
    associative_scan=associative_scan,
    expand_dims=lambda x, axis: Tensor(x.raw.unsqueeze(axis)),
    reshape=lambda x, shape: Tensor(x.raw.reshape(shape)),
    permute=lambda x, order: Tensor(x.raw.permute(order)),
    join=binary(lambda x, y: torch.stack((x, y), -1)),
    split=lambda x: tuple(map(Tensor, x.raw.unbind(-1))),
)
BARRIERS = Module(hopper.mbarrier, init=init_barrier, arrive=arrive, expect=expect, wait=wait)
LOADS = {"async_load": async_load, "async_copy_global_to_shared": async_load}
TMA = Module(hopper.tma, make_tensor_descriptor=Descriptor, **LOADS)
MMA = {"warpgroup_mma": warpgroup_mma, "warpgroup_mma_wait": warpgroup_mma_wait}
HOPPER = Module(hopper, tma=TMA, mbarrier=BARRIERS, fence_async_shared=fence_async_shared, **MMA)


def replacements():
    modules = (LANGUAGE, BARRIERS, TMA, HOPPER)
    members = [(getattr(m.real, name, None), value) for m in modules for name, value in m.members.items()]
    return {id(real): value for real, value in [*members, *((m.real, m) for m in modules)] if real is not None}


REPLACED = replacements()


def emulated(value, scopes):
    """What a kernel sees in place of `value`; `scopes` has the globals of the modules met so far."""
    function = getattr(value, "fn", None)
    if id(value) in REPLACED:
        return REPLACED[id(value)]
    if isinstance(value, tl.constexpr):
        return value.value
    if not inspect.isfunction(function) or isinstance(value, ConstexprFunction):
        return value
    names = function.__globals__
    if id(names) not in scopes:
        scope = scopes[id(names)] = {}
        scope |= {name: emulated(x, scopes) for name, x in names.items()}
        scope["range"] = lambda *bounds: map(tensor, range(*map(int, bounds)))
    defaults = tuple(emulated(x, scopes) for x in function.__defaults__ or ())
    cells = tuple(types.CellType(emulated(x.cell_contents, scopes)) for x in function.__closure__ or ())
    return types.FunctionType(function.__code__, scopes[id(names)], function.__name__, defaults, cells)


def argument(value, annotation):
    value = value.value if isinstance(value, tl.constexpr) else value
    if "constexpr" in str(annotation) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return Pointer.of(value)
    if hasattr(value, "block_shape"):
        base = Pointer.of(value.base)
        return Descriptor(base, value.shape, value.strides, value.block_shape, value.layout, value.padding)
    return tensor(value)


def run(kernel, grid, *args, seed=0, **kwargs):
    """Runs `kernel[grid](*args, **kwargs)` on CPU tensors."""
    signature = inspect.signature(kernel.fn)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = [argument(x, signature.parameters[name].annotation) for name, x in bound.arguments.items()]
    call = partial(emulated(kernel, {}), *values)
    grid = (*([grid] if isinstance(grid, int) else grid), 1, 1)[:3]
    rng = random.Random(seed)
    for z, y, x in itertools.product(*map(range, reversed(grid))):
        Program(rng, (x, y, z), grid).run(kernel.fn.__name__, call)


def edited(kernel, old, new):
    """The kernel with `old`, found once in the jit functions of its module, replaced by `new`."""
    names = kernel.fn.__globals__
    functions = [x.fn for x in names.values() if inspect.isfunction(getattr(x, "fn", None))]
    source = "\n".join(inspect.getsource(f) for f in functions if f.__module__ == kernel.fn.__module__)
    assert source.count(old) == 1, f"{source.count(old)} times {old}"
    source, file = source.replace(old, new), f"<{old} -> {new}>"
    # Triton reads the source of a function again, and so do the messages.
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope = dict(names)
    exec(compile(source, file, "exec"), scope)
    return scope[kernel.fn.__name__]
