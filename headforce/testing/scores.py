"""The laws of a score: one number for every segment, from what it asked for and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lowering.state.score import Score, Segments, find_score
from ..registered import own_docstring
from .laws import about, run_examples

GROUPS, HEADS, SEGMENTS, ROWS, DIM = 2, 3, 5, 4, 8


def check_score(name: str) -> None:
    """Every law for a registered score; AssertionError names the score and the law."""
    score = find_score(name)
    with about(f"score {name}"):
        assert own_docstring(score.function), "it lacks a docstring"
        assert score.best in ("lowest", "highest"), f"best={score.best!r} is neither 'lowest' nor 'highest'"
        run_examples(score.function)
        given = _segments(score)
        found = score.function(given)
        assert found.shape == (GROUPS, SEGMENTS), f"{tuple(found.shape)} numbers for {GROUPS} groups of {SEGMENTS}"
        assert bool(found.isfinite().all()), "a number that is not finite"
        assert len(found.unique()) > 1, "the same number for all segments"
        for i in range(GROUPS):
            alone = score.function(_changed(given, lambda x, i=i: x[i : i + 1]))
            assert torch.allclose(alone[0], found[i], rtol=1e-5, atol=1e-6), "groups see each other"
        order = torch.tensor([3, 0, 4, 1, 2])
        turned = score.function(_changed(given, lambda x: x[:, :, order] if x.dim() == 5 else x))
        assert torch.allclose(turned, found[:, order], rtol=1e-5, atol=1e-6), "the order of candidates matters"
        low = score.function(_changed(given, Tensor.bfloat16)).float()
        same = score.function(_changed(given, lambda x: x.bfloat16().float())).float()
        assert torch.allclose(low, same, atol=1e-4), "low-precision keys are not scored in float32"


def _segments(score: Score) -> Segments:
    generator = torch.Generator().manual_seed(0)
    keys, *others = (torch.randn(GROUPS, HEADS, SEGMENTS, ROWS, DIM, generator=generator) for _ in range(3))
    queries = torch.randn(GROUPS, HEADS, DIM, generator=generator) if score.queries else None
    return Segments(keys, others[0] if score.following else None, others[1] if score.newest else None, queries)


def _changed(given: Segments, change: Callable[[Tensor], Tensor]) -> Segments:
    fields = (given.keys, given.following, given.newest, given.queries)
    return Segments(*(None if x is None else change(x) for x in fields))  # type: ignore[arg-type]
