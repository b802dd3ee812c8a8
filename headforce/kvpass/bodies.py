"""Bodies of graphs, compiled once for all graphs that have the same.

A video takes several graphs: its first pass, repeats of it, growing, evicting. With the numbers in front (`parted`)
most of them are the same function of tensors, to the last node. Compiling is most of the time until a video begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node

from .. import logs
from .inner import compile_inner
from .options import Options
from .parted import Parted, written
from .pieces import in_pieces
from .torch_private import bakes_weights_in, captures_by_itself, expression, is_plain_fake, static_input_type


class Body:
    """A compiled body, or a piece of one. It lives for as long as some graph holds it."""

    def __init__(self, compiled: Callable[..., Sequence[Any]]) -> None:
        self._compiled = compiled

    def __call__(self, *args: Any) -> Sequence[Any]:
        return self._compiled(*args)


_COMPILED: weakref.WeakValueDictionary[Hashable, Body] = weakref.WeakValueDictionary()


def compile_body(parts: Parted, settings: Options) -> Body:
    """The body of a graph that was cut in two, compiled with the inner compiler, or as it was compiled before."""
    module, examples, own = parts.body, parts.examples, parts.own

    def compiled() -> Callable[..., Sequence[Any]]:
        return _in_pieces(module, examples, own, settings) or compile_inner(module, examples, settings)

    return _body(_key(module, examples, own, settings), compiled)


def _in_pieces(
    module: GraphModule, examples: Sequence[Any], own: Sequence[bool], settings: Options
) -> Callable[..., Sequence[Any]] | None:
    """A body of pieces that are compiled each for itself; None where none of them is like another.

    A piece that Inductor captures would leave its results in memory of that graph, for the next pass to overwrite.
    """
    if settings.inner == "inductor" and captures_by_itself(settings.inner_mode, settings.inner_options or {}):
        return None
    whole = in_pieces(module, examples, own)
    if whole is None:
        return None
    keys = [_key(piece.module, piece.examples, piece.own, settings) for piece in whole.pieces]
    if None in keys or len(set(keys)) == len(keys):
        return None
    logs.GRAPHS.info("its body is cut into %s pieces, of which %s are different", len(keys), len(set(keys)))
    return whole.joined(
        [
            _body(key, partial(compile_inner, piece.module, piece.examples, settings))
            for key, piece in zip(keys, whole.pieces, strict=True)
        ]
    )


def _body(key: Hashable | None, compiled: Callable[[], Callable[..., Sequence[Any]]]) -> Body:
    """What was compiled for this key before, or is now."""
    body = None if key is None else _COMPILED.get(key)
    if body is not None:
        logs.GRAPHS.info("it is what was compiled for an earlier graph")
        return body
    body = Body(compiled())
    if key is not None:
        _COMPILED[key] = body
    return body


class _Unknown(Exception):
    """Something whose equality says nothing about what is compiled of it."""


def _key(module: GraphModule, examples: Sequence[Any], own: Sequence[bool], settings: Options) -> Hashable | None:
    """Equal for bodies of which a compiler makes the same; None where that cannot be told.

    What Dynamo knows about the sizes of the model's own inputs differs from graph to graph, and the compiler may have
    relied on it. So they have to be numbers; only headforce's own inputs, of which nothing is known, may have any size.
    """
    numbers: dict[Any, int] = {}
    places: dict[Node, int] = {}
    options = dict(settings.inner_options or {})
    if bakes_weights_in(options):
        return None
    changed = written(module.graph)
    try:
        inputs = []
        nodes = list(module.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        for node, example, is_own in zip(placeholders, examples, own, strict=True):
            if node in changed and not is_own:  # which of the model's tensors share memory would matter
                raise _Unknown
            places[node] = len(places)
            inputs.append(_input(node, example, numbers if is_own else None))
        calls = []
        for node in nodes[len(placeholders) :]:
            if node.op not in ("call_function", "call_method", "output"):
                raise _Unknown
            calls.append((node.op, node.target, _frozen(node.args, places), _frozen(node.kwargs, places)))
            places[node] = len(places)
        inner = (settings.inner, settings.inner_mode, _frozen(options, places))
        key = (inner, _surroundings(), tuple(inputs), tuple(calls))
        hash(key)
    except (_Unknown, TypeError):
        return None
    return key


def _input(node: Node, example: Any, numbers: dict[Any, int] | None) -> Hashable:
    """What a compiler sees of an input; sizes that are symbols by the order in which they occur.

    Nobody asks for the stride of a dim of size 1: the batch row of a slice of the noise has that of all frames there
    are. Where an input begins in its storage is checked in every call, but for tensors whose address stays.
    """
    if not is_plain_fake(example):
        raise _Unknown
    strides = (1 if size == 1 else _size(n, numbers) for size, n in zip(example.shape, example.stride(), strict=True))
    stays = static_input_type(node) is not None
    return (
        tuple(_size(n, numbers) for n in example.shape),
        tuple(strides),
        _size(example.storage_offset(), numbers) if stays else None,
        example.dtype,
        example.device,
        example.layout,
        example.requires_grad,
        example.is_conj(),
        example.is_neg(),
        example.is_inference(),
        isinstance(example, torch.nn.Parameter),
        static_input_type(node),
    )


def _size(size: int | SymInt, numbers: dict[Any, int] | None) -> Hashable:
    if isinstance(size, int):
        return size
    if numbers is None:
        raise _Unknown
    symbolic = expression(size)
    names = {s: numbers.setdefault(s, len(numbers)) for s in sorted(symbolic.free_symbols, key=str)}
    return str(symbolic.xreplace({s: type(s)(f"size{i}", **s.assumptions0) for s, i in names.items()}))


def _frozen(value: Any, places: dict[Node, int]) -> Hashable:
    """A value that is equal for equal arguments only: 1, 1.0 and True are not."""
    if isinstance(value, Node):
        return ("node", places[value])
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(_frozen(item, places) for item in value))
    if isinstance(value, dict):
        return ("dict", *((name, _frozen(item, places)) for name, item in value.items()))
    if isinstance(value, slice):
        return ("slice", *(_frozen(item, places) for item in (value.start, value.stop, value.step)))
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, Tensor, GraphModule)):
        raise _Unknown
    return (type(value), value)


def _surroundings() -> Hashable:
    """What compilers build into their code besides: Dynamo makes another graph when one of these changes."""
    matmul, devices = torch.backends.cuda.matmul, ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices),
    )
