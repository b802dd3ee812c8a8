"""The repaired interpreter computes with bfloat16 as torch does."""

import pytest
import torch
import triton
import triton.language as tl

from headforce.kernels import interpreter


@triton.jit
def round_and_multiply(wide, rounded, square, back, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    low = tl.load(wide + at).to(tl.bfloat16)
    tl.store(rounded + at, low)
    tl.store(square + at, tl.dot(low, low))
    tl.store(back + at, low.to(tl.float32))


@pytest.mark.parametrize("zeros", [False, True])
def test_bfloat16_is_rounded_to_the_nearest(zeros):
    """Also where a tile holds a zero: a handle of the interpreter is false then."""
    interpreter.install()
    wide = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    if zeros:
        wide[::3] = 0.0
    rounded, square, back = torch.empty_like(wide, dtype=torch.bfloat16), torch.empty_like(wide), torch.empty_like(wide)
    round_and_multiply[(1,)](wide, rounded, square, back, N=16)
    low = wide.to(torch.bfloat16)
    assert torch.equal(rounded, low)
    assert torch.equal(back, low.float())
    torch.testing.assert_close(square, low.float() @ low.float(), rtol=1e-5, atol=1e-5)
