"""One name for each operation, whatever its spelling in the graph, and one way to read its arguments.

Dynamo keeps the spelling of the source: `x.transpose(1, 2)`, `torch.transpose(x, 1, 2)` and `x.mT` are three nodes. The
recognisers ask `op_name(node)` and `argument(node, position, keyword)` and see one.
"""

from __future__ import annotations

import inspect
import operator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from .torch_private import NN_HOME, is_higher_order

PURE_HIGHER_ORDER = frozenset({"flex_attention"})
"""Higher-order operators that change none of their operands."""


def words(text: str) -> frozenset[str]:
    """The words of a text; long sets of names read better so."""
    return frozenset(text.split())


_NAMES = words("""
    abs add addmm alias amax amin arange baddbmm bmm broadcast_to cat chunk clamp clone concat concatenate contiguous
    conv1d conv2d conv3d cos detach div divide dropout einsum empty_like exp expand flatten flip full full_like gt ge
    imag index_select layer_norm le linear logical_and logical_not logical_or lt masked_fill matmul mean moveaxis
    movedim mul multiply narrow neg negative ones ones_like outer permute polar pow ravel real repeat_interleave
    reshape rms_norm roll rsqrt select sin slice_scatter softmax special_softmax split split_with_sizes sqrt squeeze
    stack sub subtract sum swapaxes swapdims t tile transpose tril triu true_divide type_as unbind unflatten unsqueeze
    view_as_complex view_as_real where zeros zeros_like
""")

ALIASING = words("""
    alias as_strided bfloat16 broadcast_to chunk contiguous detach diagonal double expand expand_as flatten float
    getattr getitem half imag movedim narrow permute ravel real reshape reshape_as select split squeeze t tensor_split
    to transpose type type_as unbind unflatten unfold unsqueeze view view_as view_as_complex view_as_real
""")
"""Operations whose result is a view of their operand, or may be one (a cast to the same dtype returns its operand)."""

_ALIASES = {
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "true_divide": "div",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "special_softmax": "softmax",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "truediv": "div",
    "sym_max": "max",
    "sym_min": "min",
    "tile": "repeat",
    "split_with_sizes": "split",
}

_OPERATORS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    operator.neg: "neg",
    operator.pow: "pow",
    operator.matmul: "matmul",
    operator.getitem: "getitem",
    operator.setitem: "setitem",
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
    getattr: "getattr",
}


def _known_targets() -> dict[Any, str]:
    targets: dict[Any, str] = dict(_OPERATORS)
    for name in _NAMES:
        for home in (torch, F, torch.special, NN_HOME):
            function = getattr(home, name, None)
            if callable(function):
                targets.setdefault(function, _ALIASES.get(name, name))
    return targets


_TARGETS = _known_targets()


def op_name(node: Any) -> str:
    """The name of what a node computes (`"transpose"`, `"getitem"`, ...); empty for anything unknown or not a call."""
    if not isinstance(node, Node):
        return ""
    if node.op == "call_method":
        return _ALIASES.get(str(node.target), str(node.target))
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        if node.target.namespace != "aten":
            return ""
        name = node.target._opname
        return _ALIASES.get(name, name)
    try:
        return _TARGETS.get(node.target, "")
    except TypeError:  # an unhashable callable is nobody we know
        return ""


def argument(node: Node, position: int, keyword: str, default: Any = None) -> Any:
    """An argument by position or keyword. Position 0 is the tensor itself, for methods too."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(keyword, default)


def trailing(node: Node, *keywords: str) -> tuple[Any, ...]:
    """The arguments after the tensor, given one by one or as one sequence: `permute(0, 2, 1)`, `permute((0, 2, 1))`."""
    rest = node.args[1:]
    if len(rest) == 1 and isinstance(rest[0], (tuple, list, torch.Size)):
        return tuple(rest[0])
    if not rest:
        for keyword in keywords:
            if keyword in node.kwargs:
                value = node.kwargs[keyword]
                return tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    return tuple(rest)


def tensor_argument(node: Node) -> Node | None:
    """The first tensor operand, or None."""
    value = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))
    return value if isinstance(value, Node) else None


def sequence_argument(node: Node) -> tuple[Node, ...]:
    """The tensors of `cat` or `stack`; empty if they are not all nodes."""
    value = node.args[0] if node.args else node.kwargs.get("tensors", ())
    parts = tuple(value) if isinstance(value, (tuple, list)) else ()
    return parts if all(isinstance(part, Node) for part in parts) else ()


def writes_in_place(node: Node, operand: Node) -> bool:
    """Whether `node` changes `operand`, or may: an operator that hides what it writes counts as a write."""
    if node.kwargs.get("out") is operand:
        return True
    if is_higher_order(node.target):
        return node.target.name() not in PURE_HIGHER_ORDER  # a user's Triton kernel writes what it likes
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return any(getattr(node.target, name)._schema.is_mutable for name in node.target.overloads())
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        for position, argument_ in enumerate(schema.arguments):
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument_.name)
            if value is operand and argument_.alias_info is not None and argument_.alias_info.is_write:
                return True
        return False
    first = node.args[0] if node.args else None
    if isinstance(first, (tuple, list)) and any(part is operand for part in first):  # torch._foreach_add_ and its like
        first = operand
    if first is operand and _asks_for_in_place(node):
        return True
    if node.op == "call_method":
        name = str(node.target)
        return first is operand and ((name.endswith("_") and not name.endswith("__")) or name == "__setitem__")
    if first is not operand:
        return False
    name = op_name(node) or getattr(node.target, "__name__", "")
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def _asks_for_in_place(node: Node) -> bool:
    """Whether a function is called with `inplace=True`, or with something that is not known to be False."""
    try:
        place = _place_of_inplace(node.target) if node.op == "call_function" else None
    except TypeError:  # an unhashable callable is nobody we know
        place = None
    given = node.kwargs.get("inplace", False)
    return (node.args[place] if place is not None and place < len(node.args) else given) is not False


@cache
def _place_of_inplace(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def live_nodes(graph: Graph) -> set[Node]:
    """The nodes on which something depends: an output, a write in place, or an operation that is not known.

    Tracing leaves views that nobody reads.
    """
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        known = op_name(node) in (_NAMES | ALIASING) - {"dropout"}
        writes = any(writes_in_place(node, operand) for operand in node.all_input_nodes)
        if not known or writes or any(user in live for user in node.users):
            live.add(node)
    return live
