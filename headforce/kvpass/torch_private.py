"""Every private torch name that the graph pass uses, in one place, with what it is for.

Checked with torch 2.11 to 2.13. A name that moved is repaired here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
import torch._functorch.predispatch
from torch._guards import detect_fake_mode
from torch.fx._lazy_graph_module import _LazyGraphModule, _make_graph_module
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._sympy.functions import FloorDiv, Max, Min

SDPA_TARGETS: frozenset[Any] = frozenset(
    {torch.nn.functional.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention}
)
"""What Dynamo writes for `F.scaled_dot_product_attention` (the builtin, or its public name)."""

VMAP_NESTING: frozenset[Any] = frozenset(
    getattr(torch._functorch.predispatch, name)
    for name in ("lazy_load_decompositions", "_vmap_increment_nesting", "_vmap_decrement_nesting")
)
"""What Dynamo writes around the body of a `torch.vmap`: they change a level that the functions below count on."""

VMAP_FUNCTIONS: frozenset[Any] = frozenset(
    getattr(torch._functorch.predispatch, name) for name in ("_add_batch_dim", "_remove_batch_dim")
)
"""How a tensor enters and leaves a `torch.vmap` in a graph."""

NN_HOME = torch._C._nn
"""The module that holds builtins such as `linear`, which Dynamo writes in place of the public names."""

INTEGER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "CeilDiv": lambda a, b: -(-a // b),
    "Max": max,
    "Min": min,
    "Identity": lambda a: a,
}
"""Torch's own sympy functions, by class name, as functions of Python ints."""

MAX_CLASSES = (sympy.Max, Max)
MIN_CLASSES = (sympy.Min, Min)
FLOORDIV_CLASSES = (FloorDiv,)


def expression(value: torch.SymInt | torch.SymFloat) -> sympy.Expr:
    """The sympy expression of a SymInt or SymFloat, with torch's own replacements applied (what a guard has fixed is
    a number)."""
    return value.node.expr


def shape_env(values: Iterable[Any]) -> Any | None:
    """The ShapeEnv behind example inputs or example values, or None if all of them are static."""
    values = list(values)
    for value in values:
        if isinstance(value, torch.SymInt):
            return value.node.shape_env
    mode = detect_fake_mode(values)
    return None if mode is None else mode.shape_env


def guard_expressions(env: Any | None) -> list[sympy.Basic]:
    """The conditions that Dynamo guards on: they hold whenever the graph runs."""
    return [] if env is None else [env.replace(guard.expr) for guard in env.guards]


def guard(env: Any | None, relation: sympy.Basic) -> bool:
    """Whether a relation holds in the call that is being compiled; the answer becomes a guard of the graph.

    A backend runs before Dynamo collects its guards, so it may add to them (Inductor does the same).
    """
    if relation in (sympy.true, sympy.false):
        return bool(relation)
    return env is not None and bool(env.evaluate_expr(relation))


def symbol_ranges(env: Any | None) -> dict[sympy.Symbol, tuple[Any, Any]]:
    """Lower and upper bound of every symbol that the ShapeEnv knows."""
    return {} if env is None else {symbol: (r.lower, r.upper) for symbol, r in env.var_to_range.items()}


def input_source(node: torch.fx.Node) -> str:
    """Where a graph input comes from in the caller's frame, such as `L['kv_cache'][0]['k']`; empty if unknown."""
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        argument = node.meta.get("grapharg")
        source = getattr(argument, "source", None)
    name = getattr(source, "name", "")
    return name() if callable(name) else str(name)


def real_tensors() -> Any:
    """A context in which torch makes real tensors, although a compiler's fake mode may be on."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


@contextlib.contextmanager
def vmap_levels() -> Iterator[None]:
    """Takes back the levels of `torch.vmap` that were entered inside and not left, because of an error or a cut."""
    functions = torch._C._functorch
    before = functions.maybe_current_level()
    try:
        yield
    finally:
        while functions.maybe_current_level() not in (before, None):
            functions._vmap_decrement_nesting()


def is_higher_order(target: Any) -> bool:
    """Whether a node's target is a higher-order operator (flex_attention, checkpoint, a user's Triton kernel)."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def symbolic_fake(real: torch.Tensor, name: str, dynamic: Iterable[int], values: Iterable[Any]) -> torch.Tensor:
    """A fake twin of `real` in the fake mode of `values`, with a symbol for the size of each dim in `dynamic`."""
    from torch._dynamo.source import LocalSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    mode = fake_mode(values)
    if mode is None:
        return real
    dims = set(dynamic)
    if mode.shape_env is None or not dims:
        return mode.from_tensor(real, static_shapes=True)
    sizes = [DimDynamic.DYNAMIC if dim in dims else DimDynamic.STATIC for dim in range(real.dim())]
    context = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * real.dim())
    return mode.from_tensor(real, source=LocalSource(name), symbolic_context=context)


def with_source(node: torch.fx.Node, name: str) -> None:
    """Gives an appended input the source that AOTAutograd asks every input for."""
    from torch._dynamo.source import LocalSource

    node._dynamo_source = LocalSource(name, is_input=False)  # type: ignore[attr-defined]


def copy_source(node: torch.fx.Node, twin: torch.fx.Node) -> None:
    """Gives a twin of an input the same source."""
    if hasattr(node, "_dynamo_source"):
        twin._dynamo_source = node._dynamo_source  # type: ignore[attr-defined]


def static_input_type(node: torch.fx.Node) -> Any:
    """What Dynamo says of an input whose address stays, which compilers may rely on; None for another."""
    return (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")


def is_plain_fake(value: Any) -> bool:
    """Whether an example value is a tensor without more to it than shape, strides, dtype and device."""
    from torch._subclasses.fake_tensor import FakeTensor

    return type(value) is FakeTensor or (isinstance(value, torch.nn.Parameter) and isinstance(value, FakeTensor))


def fake_mode(values: Iterable[Any]) -> Any | None:
    """The mode in which a compiler makes fake tensors of the inputs `values`, or None if it does not."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        return context.fake_mode
    return detect_fake_mode(list(values))


def graph_module(root: Any, graph: torch.fx.Graph) -> torch.fx.GraphModule:
    """`GraphModule(root, graph)`. While Dynamo compiles, its Python code is written when it is first needed, as that of
    Dynamo's own modules is: most graphs here are changed again, or cut up, before anything would run them."""
    return _make_graph_module(root, graph)


def forward_of(module: torch.fx.GraphModule) -> Callable[..., Any]:
    """What runs a module that is complete."""
    _LazyGraphModule.force_recompile(module)
    forward: Callable[..., Any] = module.forward
    return forward


def own_copy(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a captured graph that may be changed; Dynamo's own must not be, other code still looks at it."""
    return copy_graph(module, ())[0]


def copy_graph(module: torch.fx.GraphModule, records: Sequence[Any]) -> tuple[torch.fx.GraphModule, list[Any]]:
    """Like `own_copy`, and the dataclasses `records`, with every node in them exchanged for its twin in the copy."""
    graph = torch.fx.Graph()
    twins: dict[Any, Any] = {}
    output = graph.graph_copy(module.graph, twins)
    if output is not None:
        graph.output(output)
    copied = _with_sources(module, graph_module(module, graph))
    return copied, [_exchange(record, twins) for record in records]


def _with_sources(old: torch.fx.GraphModule, new: torch.fx.GraphModule) -> torch.fx.GraphModule:
    for before, after in zip(old.graph.nodes, new.graph.nodes, strict=True):
        copy_source(before, after)
    new.meta = dict(old.meta)
    return new


def _exchange(value: Any, twins: dict[Any, Any]) -> Any:
    if isinstance(value, torch.fx.Node):
        return twins[value]
    if isinstance(value, tuple):
        items = [_exchange(item, twins) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: _exchange(getattr(value, f.name), twins) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


class StorageKey:
    """Which part of which storage a tensor is. Two keys are equal for as long as they mean the same memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        # The reference keeps the storage's record (not its memory), so that its address is not given to another one.
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._place = (self._storage.cdata, tensor.storage_offset(), tensor.shape, tensor.stride())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageKey) and self._place == other._place

    def __hash__(self) -> int:
        return hash(self._place)

    @property
    def expired(self) -> bool:
        """True when the memory is gone."""
        return bool(self._storage.expired())

    def overlaps(self, other: StorageKey) -> bool:
        """True when the two share memory without being one and the same.

        Exact for tensors of one shape whose dims are nested, such as slices of one larger tensor; for others as far as
        first and last element tell.
        """
        if self._place[0] != other._place[0] or self == other:
            return False
        (a, b), (c, d) = self._span, other._span
        if a >= d or c >= b:
            return False
        _, offset, shape, stride = self._place
        _, other_offset, other_shape, other_stride = other._place
        if (shape, stride) != (other_shape, other_stride):
            return True
        return _reachable(abs(offset - other_offset), sorted(zip(stride, shape, strict=True), reverse=True))

    @property
    def _span(self) -> tuple[int, int]:
        _, offset, shape, stride = self._place
        return offset, offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _reachable(distance: int, dims: Sequence[tuple[int, int]]) -> bool:
    """Whether `distance` is a sum of strides, each taken less often than its dim is long, forwards or backwards."""
    if not dims:
        return distance == 0
    (stride, size), rest = dims[0], dims[1:]
    if stride == 0:
        return _reachable(distance, rest)
    return any(
        abs(n) < size and _reachable(distance - n * stride, rest) for n in {distance // stride, -(-distance // stride)}
    )


def storage_key(tensor: torch.Tensor) -> StorageKey:
    """The key of a tensor's memory, which is never that of a later tensor at the same address."""
    return StorageKey(tensor)


def tracing_context() -> Any | None:
    """The context in which Dynamo is compiling right now."""
    return torch._guards.TracingContext.try_get()


@contextlib.contextmanager
def late_compilation(context: Any | None) -> Iterator[Callable[[], bool]]:
    """Compiles again in the fake mode of an earlier `context`; yields a function that says whether guards were added.

    Dynamo has already written the guards of the graph, so new ones would never be checked.
    """
    if context is None or context.fake_mode is None:
        yield lambda: False
        return
    env = context.fake_mode.shape_env
    before = len(env.guards) if env is not None else 0
    with torch._guards.tracing(torch._guards.TracingContext(context.fake_mode)):
        yield lambda: env is not None and len(env.guards) > before


def compiled_in_place(module: torch.nn.Module) -> tuple[Any]:
    """What `module.compile()` replaces: the call that runs instead of the ordinary one, None for no other."""
    return (module._compiled_call_impl,)


def compile_in_place(module: torch.nn.Module, before: tuple[Any]) -> None:
    """Puts back what `compiled_in_place` gave."""
    (module._compiled_call_impl,) = before


def run_as_it_is(function: Callable[..., Any]) -> None:
    """Dynamo never begins a graph with this function's own frame; what it calls is compiled as ever."""
    torch._dynamo.decorators.skip(function)


def cache_key_tag(text: str) -> Any:
    """While the context is open, torch's caches of compiled graphs find only what was compiled with this tag."""
    settings = torch.compiler.config
    return settings.patch(cache_key_tag=" ".join(filter(None, (settings.cache_key_tag, text))))


def inductor_settings() -> tuple[list[str], frozenset[str]]:
    """Inductor's modes, and the names of its options."""
    from torch._inductor import list_mode_options, list_options

    return list(list_mode_options()), frozenset(list_options())


def bakes_weights_in(inner_options: Mapping[str, Any]) -> bool:
    """Whether Inductor makes constants of a model's weights, so that what it compiles is for these weights alone."""
    from torch._inductor import config

    return bool(inner_options.get("freezing", config.freezing))


def captures_by_itself(inner_mode: str | None, inner_options: Mapping[str, Any]) -> bool:
    """Whether Inductor captures CUDA graphs of what it compiles."""
    from torch._inductor import config, list_mode_options

    name = "triton.cudagraphs"
    of_mode = list_mode_options(inner_mode) if inner_mode else {}
    return bool(inner_options.get(name, of_mode.get(name, config.triton.cudagraphs)))


def compiling_seconds() -> float:
    """Seconds that Dynamo and the compilers behind it have taken in this process so far."""
    return float(torch._dynamo.utils.calculate_time_spent()["total_wall_time"])


@contextlib.contextmanager
def graph_break_messages() -> Iterator[list[str]]:
    """What Dynamo says about each graph break inside, as `TORCH_LOGS=graph_breaks` does. Its warnings are held back.

    The first message about a place has a traceback; those after it do not.
    """
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    breaks = logging.getLogger("torch._dynamo.symbolic_convert.__graph_breaks")
    general = logging.getLogger("torch._dynamo")
    before = breaks.level, breaks.propagate, general.level
    breaks.addHandler(listener)
    breaks.setLevel(logging.DEBUG)
    breaks.propagate = False
    general.setLevel(logging.ERROR)
    try:
        yield said
    finally:
        breaks.removeHandler(listener)
        breaks.setLevel(before[0])
        breaks.propagate = before[1]
        general.setLevel(before[2])


def recompile_limit_of(graphs: int) -> Any:
    """While the context is open, a function may have `graphs` graphs at least."""
    return torch._dynamo.config.patch(recompile_limit=max(graphs, torch._dynamo.config.recompile_limit))


def without_recompile_limit() -> Any:
    """A context in which Dynamo compiles every variant of a graph instead of running the model as it is after a few."""
    return torch._dynamo.config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16)
