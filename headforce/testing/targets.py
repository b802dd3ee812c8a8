"""The laws of a target: in pages and in a model's own cache, it computes attention over what the oracle says.

In float64, where it takes that, to the last digits; in low precision within the budget of `kernels.budget`. Pages and
rows that nothing names hold NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..kernels.budget import Budget, limit
from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from ..lowering.operand_tables import operand_tables
from ..lowering.plan import Planner
from ..lowering.reach import held
from ..lowering.targets import check_rows, find_target, least_rows
from ..policy import Chunk, Policy, parse_rule
from ..registered import own_docstring
from .laws import EXAMPLES, about, code_of, examine, run_examples, says
from .operands import HEADS, Operands
from .rig import MIXED, Rig, check, mixed
from .streams import LOW, rigs, sizes

Law = Callable[[str, Sequence[torch.dtype], int], None]


def check_target(name: str, *, dtypes: Sequence[torch.dtype] = (torch.float64, *LOW), examples: int = EXAMPLES) -> None:
    """Every law for a registered target; AssertionError names the target and the law.

    Args:
        dtypes: that the target takes. examples: how many streams are drawn of each.
    """
    for law in LAWS:
        with about(f"target {name}: {says(law)}"):
            law(name, dtypes, examples)


def is_described(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """It is registered with a docstring, whose examples are true."""
    function = find_target(name)
    assert own_docstring(function), "it lacks a docstring"
    run_examples(function)


def reads_what_the_oracle_says(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """Drawn policies, shapes and layouts: attention over what the oracle says."""

    def law(rig: Rig, frames: list[int]) -> None:
        start = 0
        for count in frames:
            check(rig, start, count)
            start += count

    for dtype in dtypes:
        drawn = rigs([dtype], [name], least_rows=least_rows(name))
        examine(law, max(1, examples // len(dtypes)), rig=drawn, frames=sizes(), shrink=False)


def takes_a_rewrite(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """A frame that was made anew is read in its newest form."""
    classes = {"a": parse_rule("sink(6)@collapse(9)"), "b": parse_rule("window(9)")}
    policy = Policy(classes, default="a", layers={1: "b"}).bind(layers=2, heads=2)
    rig = Rig(policy, name, dtype=dtypes[0], tokens=least_rows(name))
    for start, frames in ((0, 3), (3, 3), (6, 3), (1, 3), (9, 3), (10, 3), (13, 1)):
        check(rig, start, frames)


def unread_rows_are_zero(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """Query rows that no read names give zero, and so do reads without keys."""
    rig = Rig(mixed(), name, dtype=dtypes[0], tokens=least_rows(name))
    (query, _), *_ = rig.run(0, 3)
    for column in (3, 5):  # query rows, runs
        rig.pool.reads[0][:, column] = 0
        assert not rig.attention(0, query).any(), "something was computed"


def reads_a_models_own_cache(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """Rows of a cache that the model keeps, with fewer K/V heads too."""
    classes = {"a": parse_rule(MIXED["collapsed"]), "b": parse_rule("window(3)"), "c": parse_rule("drop()")}
    policy = Policy(classes, heads={0: {"a": (0, 2), "b": (1,), "c": (3,)}}).bind(layers=1, heads=HEADS)
    chunk = Chunk(3, 9, 3)
    past, rows = held(chunk, 12, 1), max(3, least_rows(name))
    reads, runs = operand_tables(Planner(policy).plan(chunk), past, rows, 2)
    for kv_heads, style in ((HEADS, INTERLEAVED), (2, SPLIT_HALF), (1, INTERLEAVED)):
        given = Operands(past, chunk, batch=2, kv_heads=kv_heads, rows=rows, value_dim=4, style=style)
        for dtype in dtypes:
            exact, out = given.expected(policy, 0), given.attention(reads[0], runs[0], name, dtype)
            budget = Budget(exact, limit(exact, given.expected(policy, 0, dtype)))
            assert budget.holds(out), f"off by {budget.error(out):.3g} of {budget.limit:.3g} in {dtype}"


def refuses_short_frames(name: str, dtypes: Sequence[torch.dtype], examples: int) -> None:
    """Frames shorter than it says it takes are refused with HF-KERNEL before anything runs."""
    rows = least_rows(name)
    check_rows(name, rows)
    if rows > 1:
        assert code_of(partial(check_rows, name, rows - 1)) == "HF-KERNEL"


LAWS: tuple[Law, ...] = (
    is_described,
    reads_what_the_oracle_says,
    takes_a_rewrite,
    unread_rows_are_zero,
    reads_a_models_own_cache,
    refuses_short_frames,
)
