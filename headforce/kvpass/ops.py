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
    abs add addmm adjoint alias amax amin arange as_strided baddbmm bmm broadcast_to cat chunk clamp clone concat
    concatenate conj contiguous conv1d conv2d conv3d cos detach diagonal div divide dropout dsplit einsum empty_like exp
    expand flatten flip full full_like gt ge hsplit imag index_select layer_norm le linear logical_and logical_not
    logical_or lt masked_fill matmul mean moveaxis movedim mul multiply narrow neg negative ones ones_like outer permute
    polar positive pow ravel real repeat_interleave reshape resolve_conj resolve_neg rms_norm roll rsqrt select sin
    slice_scatter softmax special_softmax split split_with_sizes sqrt squeeze stack sub subtract sum swapaxes swapdims
    t tensor_split tile transpose tril triu true_divide type_as unbind unflatten unsafe_chunk unsafe_split unsqueeze
    view_as_complex view_as_real vsplit where zeros zeros_like
""")

ALIASING = words("""
    adjoint alias as_strided bfloat16 bool broadcast_to byte cdouble cfloat char chunk conj contiguous cpu cuda detach
    diagonal double dsplit expand expand_as flatten float getattr getitem half hsplit imag int long movedim narrow
    permute positive ravel real reshape reshape_as resolve_conj resolve_neg select short split squeeze t tensor_split
    to transpose type type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as view_as_complex
    view_as_real vsplit
""")
"""Operations whose result is a view of their first operand, or may be one (a cast to the same dtype returns it)."""

CASTS = words("bfloat16 bool byte cdouble cfloat char cpu cuda double float half int long short to type type_as")
"""Those that copy where the result has another dtype."""

_MAKES_NEW = words("""
    abs acos add addcdiv addcmul addmm all allclose amax amin and any arange argmax argmin argsort asin atan atan2
    avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bincount bitwise_and bitwise_not bitwise_or bitwise_xor bmm
    bucketize cat ceil celu clamp clamp_max clamp_min clip clone complex concat concatenate constant_pad_nd conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d copysign cos cosh count_nonzero cross cumprod
    cumsum diff div divide dot elu embedding empty empty_like eq equal erf erfc exp exp2 expm1 eye flip floor
    floor_divide floordiv fmod full full_like gather ge gelu glu group_norm gt hardsigmoid hardswish hardtanh histc
    hypot index_add index_copy index_fill index_put index_select instance_norm interpolate inv invert isclose
    isfinite isinf isnan kron layer_norm le leaky_relu lerp linear linspace log log10 log1p log2 log_softmax
    logical_and logical_not logical_or logical_xor logit logsigmoid logspace logsumexp lshift lt masked_fill
    masked_scatter masked_select matmul max max_pool1d max_pool2d max_pool3d maximum mean median min minimum mish
    mod mul multinomial multiply mv nan_to_num ne neg negative new_empty new_full new_ones new_zeros nonzero norm
    normalize not one_hot ones ones_like or outer pad polar pow prod rand rand_like randint randn randn_like
    randperm reciprocal relu relu6 remainder repeat repeat_interleave rms_norm roll rot90 round rsqrt rsub
    scaled_dot_product_attention scatter scatter_add searchsorted selu sigmoid sign silu sin sinc sinh slice_scatter
    softmax softmin softplus softsign sort special_softmax sqrt square stack std sub subtract sum tan tanh tensor
    threshold tile topk tril triu true_divide truediv trunc unique var var_mean vdot where xor zeros zeros_like
""")
"""Operations whose result has memory of its own, always. Any other may hand out memory of its operands."""

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
    operator.pos: "positive",
    operator.and_: "and",  # under its own name it would look like one that writes in place
    operator.or_: "or",
    operator.not_: "not",
    operator.pow: "pow",
    operator.matmul: "matmul",
    operator.getitem: "getitem",
    operator.setitem: "setitem",
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
    operator.iand: "and_",
    operator.ior: "or_",
    operator.ixor: "xor_",
    operator.ifloordiv: "floordiv_",
    operator.imod: "mod_",
    operator.ipow: "pow_",
    operator.ilshift: "lshift_",
    operator.irshift: "rshift_",
    getattr: "getattr",
}


_SETS_ITEMS = frozenset({"setitem", "__setitem__"})
_IN_PLACE_METHODS = frozenset(
    f"__i{name}__" for name in words("add sub mul truediv floordiv mod pow and or xor lshift rshift")
)

_HOMES = (torch, F, torch.special, NN_HOME)


def _known_targets() -> dict[Any, str]:
    targets: dict[Any, str] = dict(_OPERATORS)
    for name in _NAMES:
        for home in _HOMES:
            function = getattr(home, name, None)
            if callable(function):
                targets.setdefault(function, _ALIASES.get(name, name))
    return targets


_TARGETS = _known_targets()

_NEW_TARGETS = frozenset(
    function for name in _MAKES_NEW for home in (*_HOMES, operator) if callable(function := getattr(home, name, None))
) - {operator.concat}  # of lists, with their tensors


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


def makes_new(node: Node) -> bool:
    """Whether the result of a node surely has memory of its own; what is not known may be a view of an operand.

    An operator that is not of aten says so in its schema. Those of aten do not all do: `broadcast_tensors` has views.
    """
    target = node.target
    if isinstance(target, torch._ops.OpOverloadPacket) and not str(target).startswith("aten"):
        return not any(_returns_views(getattr(target, name)) for name in target.overloads())
    if isinstance(target, torch._ops.OpOverload) and target.namespace != "aten":
        return not _returns_views(target)
    if is_higher_order(target):
        return target.name() in PURE_HIGHER_ORDER
    name = op_name(node)
    if name == "einsum":  # of one operand it is a view
        return len(node.all_input_nodes) > 1
    try:
        return name in _MAKES_NEW or (node.op == "call_function" and target in _NEW_TARGETS)
    except TypeError:  # an unhashable callable is nobody we know
        return False


def _returns_views(overload: torch._ops.OpOverload) -> bool:
    return any(returned.alias_info is not None for returned in overload._schema.returns)


def writes_in_place(node: Node, operand: Node) -> bool:
    """Whether `node` changes `operand`, or may: an operator that hides what it writes counts as a write."""
    out = node.kwargs.get("out")
    if any(part is operand for part in (out if isinstance(out, (tuple, list)) else (out,))):
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
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
    if isinstance(first, (tuple, list)) and any(part is operand for part in first):  # torch._foreach_add_ and its like
        first = operand
    if first is not operand:
        return False
    if _asks_for_in_place(node):
        return True
    name = str(node.target) if node.op == "call_method" else op_name(node) or getattr(node.target, "__name__", "")
    return _names_a_write(name)


def _names_a_write(name: str) -> bool:
    """Whether an operation of this name changes its first operand: `add_`, `__iadd__`, `setitem`."""
    special = name.endswith("__")
    return name in _SETS_ITEMS or (name in _IN_PLACE_METHODS if special else name.endswith("_"))


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
