"""The kernels on a GPU: what the interpreter and the emulator cannot show. `make gpu` runs these.

The cases are those of the CPU tests at sizes that real models have; what is expected comes from the oracle, in float64
on the CPU.
"""

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.kernels.config import Config, architecture_of, candidates
from headforce.kernels.reference import ragged_attention, rotate_and_write
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering.attention import HOPPER, PORTABLE, attention
from headforce.lowering.targets import find_target
from headforce.testing.rig import Rig, check, mixed

from .chunks import chunk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = "cuda"
BUDGET = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def _interpreted():
    """In place of that of the package: nothing is interpreted here."""


@pytest.fixture(params=[PORTABLE, HOPPER])
def kernel(request):
    if request.param == HOPPER and architecture_of(torch.device(GPU, 0)) != "sm90":
        pytest.skip(f"the kernel for Hopper, on {torch.cuda.get_device_name()}")
    return request.param


def target_of(kernel):
    return {PORTABLE: "triton", HOPPER: "hopper"}[kernel]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(128, 128), (64, 64), (96, 40)])
@pytest.mark.parametrize(("tokens", "style"), [(200, INTERLEAVED), (128, SPLIT_HALF), (130, INTERLEAVED)])
def test_is_attention_over_what_the_oracle_says(kernel, dtype, head_dim, value_dim, tokens, style):
    """Frames with rests of every kind; five heads of few tiles, so that reads are cut into parts."""
    if kernel == HOPPER and (dtype == torch.float32 or head_dim == 96):
        pytest.skip("the kernel for Hopper takes bfloat16 and float16, and head dims 64 and 128")
    dims = {"head_dim": head_dim, "value_dim": value_dim, "first_pair": 1, "pairs": head_dim // 6}
    rest = {"dtype": dtype, "tokens": tokens, "style": style, "strided": style == SPLIT_HALF, "device": GPU}
    rig = Rig(mixed(), target_of(kernel), **dims, **rest)
    for start in (0, 3, 6):
        check(rig, start, 3)


def problem(heads, rows, keys, dtype=torch.bfloat16, kv_heads=None, dim=128, shift=(0, 5, -3)):
    """Operands [1, rows, heads, dim], and tables of heads that read one run for each shift, of very unequal lengths."""
    generator = torch.Generator(GPU).manual_seed(0)
    shape = {"dtype": dtype, "device": GPU, "generator": generator}
    query = torch.randn(1, rows, heads, dim, **shape)
    key, value = (torch.randn(1, keys, kv_heads or heads, dim, **shape) for _ in range(2))
    reads, runs = [], []
    for head in range(heads):
        share = keys // len(shift) // (1 + head % 3)
        reads.append([0, head, 0, rows, len(runs), len(shift), 1, 0])
        runs += [[i * (keys // len(shift)), share - head, turn] for i, turn in enumerate(shift)]
    tables = [torch.tensor(table, dtype=torch.int32, device=GPU) for table in (reads, runs)]
    theta = 10000.0 ** (-torch.arange(22, dtype=torch.float64, device=GPU) / 22)
    return query, key, value, *tables, theta, 0, INTERLEAVED, dim**-0.5


def on_cpu(arguments, dtype):
    moved = [a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments]
    return ragged_attention(*(t.to(dtype) for t in moved[:3]), *moved[3:])


def error(out, exact):
    return float((out.cpu().double() - exact).abs().max() / exact.abs().max())


def test_every_candidate_is_right(kernel):
    """What `headforce tune` may choose among."""
    arguments = problem(3, 300, 3000)
    exact = on_cpu(arguments, torch.float64)
    for config in candidates(kernel, architecture_of(torch.device(GPU, 0)), 128, torch.bfloat16):
        out, _ = attention(*arguments, config=config, kernel=kernel)
        assert error(out, exact) < BUDGET[torch.bfloat16], config


@pytest.mark.parametrize("dtype", list(BUDGET), ids=str)
def test_grouped_heads_and_the_lse(kernel, dtype):
    if kernel == HOPPER and dtype == torch.float32:
        pytest.skip("the kernel for Hopper takes bfloat16 and float16")
    arguments = problem(4, 300, 3000, dtype, kv_heads=2)
    config = Config(128, 64, 4, 3, True) if kernel == HOPPER else Config(32, 32, 4, 2)
    out, lse = attention(*arguments, config=config, kernel=kernel, with_lse=True)
    assert error(out, on_cpu(arguments, torch.float64)) < BUDGET[dtype]
    ones = (*arguments[:2], torch.ones_like(arguments[2]), *arguments[3:])
    out, again = attention(*ones, config=config, kernel=kernel, with_lse=True)
    torch.testing.assert_close(out.float(), torch.ones_like(out, dtype=torch.float32), rtol=4e-3, atol=4e-3)
    assert torch.equal(lse, again)


def test_results_are_the_same_from_run_to_run(kernel):
    """With parts, and with a machine full of programs; a race would show sooner or later."""
    arguments = problem(12, 4680, 21 * 1560)
    target = find_target(target_of(kernel))
    first = target(*arguments)
    assert torch.isfinite(first).all()
    for _ in range(20):
        assert torch.equal(target(*arguments), first)


def test_kernels_agree_on_a_large_layer(kernel):
    arguments = problem(12, 4680, 21 * 1560)
    out = find_target(target_of(kernel))(*arguments)
    expected = find_target("sdpa")(*arguments)
    assert error(out, expected.cpu().double()) < BUDGET[torch.bfloat16]


def test_offsets_of_more_than_31_bits(kernel):
    """Rows that begin 2^32 elements into the cache."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GB of memory")
    pages, rows, dim = 2**32 // (1560 * 128) + 3, 1560, 128
    query = torch.randn(1, 300, 1, dim, device=GPU, dtype=torch.bfloat16)
    key, value = (torch.empty(pages, rows, dim, device=GPU, dtype=torch.bfloat16) for _ in range(2))
    last = slice(pages - 2, pages)
    key[last], value[last] = torch.randn(2, 2, rows, dim, device=GPU, dtype=torch.bfloat16)
    reads = torch.tensor([[0, 0, 0, 300, 0, 1, 1, 0]], dtype=torch.int32, device=GPU)
    rest = (torch.zeros(0, dtype=torch.float64, device=GPU), 0, INTERLEAVED, dim**-0.5)
    runs = torch.tensor([[(pages - 2) * rows, 2 * rows - 7, 0]], dtype=torch.int32, device=GPU)
    out = find_target(target_of(kernel))(query, key, value, reads, runs, *rest)
    near = torch.tensor([[0, 2 * rows - 7, 0]], dtype=torch.int32, device=GPU)
    expected = find_target(target_of(kernel))(query, key[last].clone(), value[last].clone(), reads, near, *rest)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("style", [INTERLEAVED, SPLIT_HALF])
@pytest.mark.parametrize("dtype", list(BUDGET), ids=str)
def test_rotation_and_write(style, dtype):
    on_host = chunk(style, dtype, tokens=200, dim=128, value_dim=128)
    on_device = [t.to(GPU) if isinstance(t, torch.Tensor) else t for t in on_host]
    out = torch.ops.headforce.rotate_and_write(*on_device)
    expected = rotate_and_write(*on_host)
    rounding = 8 * torch.finfo(dtype).eps  # products and sums are fused there
    near = {"rtol": rounding, "atol": rounding, "equal_nan": True}
    torch.testing.assert_close(out.cpu(), expected, **near)
    torch.testing.assert_close(on_device[6].cpu(), on_host[6], **near)
    assert torch.equal(on_device[7].cpu().nan_to_num(9), on_host[7].nan_to_num(9))


def test_what_the_kernel_for_hopper_does_not_take():
    arguments = problem(2, 300, 3000, torch.float32)
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        find_target("hopper")(*arguments)
    if architecture_of(torch.device(GPU, 0)) != "sm90":
        with pytest.raises(HeadforceError, match=r"HF-KERNEL.*sm90"):
            find_target("hopper")(*problem(2, 300, 3000))
