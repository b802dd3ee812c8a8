"""Rotation and page write in one launch: the reference against complex numbers, the kernel against the reference."""

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.kernels import reference
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering import (
    ops,  # noqa: F401  registers the operators
)
from headforce.lowering.rotate_and_write import rotate_and_write
from tests.lowering.test_ops import CHECKS

from .chunks import chunk

STYLES = [INTERLEAVED, SPLIT_HALF]


def by_complex_numbers(x, turn, style):
    """[B, S, H, D] in float64."""
    half = x.shape[-1] // 2
    pairs = x.double().unflatten(-1, (half, 2) if style == INTERLEAVED else (2, half))
    pairs = pairs if style == INTERLEAVED else pairs.mT
    turned = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(turn.contiguous())[:, None]
    out = torch.view_as_real(turned)
    return (out if style == INTERLEAVED else out.mT).flatten(-2)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_reference_is_a_complex_product_and_a_write(style, dtype):
    query, key, value, query_turn, key_turn, _, k_pool, v_pool, pages, _ = arguments = chunk(style, dtype)
    out = reference.rotate_and_write(*arguments)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    near = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(out.double(), by_complex_numbers(query, query_turn, style), **near)
    written = by_complex_numbers(key, key_turn, style)
    for i, page in enumerate(pages.tolist()):
        row, head, frame = i // 9, i // 3 % 3, i % 3
        rows = slice(frame * 11, (frame + 1) * 11)
        torch.testing.assert_close(k_pool[page].double(), written[row, rows, head], **near)
        assert torch.equal(v_pool[page], value[row, rows, head])
    rest = [i for i in range(len(k_pool)) if i not in pages.tolist()]
    assert k_pool[rest].isnan().all()
    assert v_pool[rest].isnan().all()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("dtype", "dim", "value_dim"),
    [(torch.float32, 12, 8), (torch.bfloat16, 64, 64), (torch.float16, 96, 128), (torch.float32, 128, 20)],
    ids=str,
)
def test_the_kernel_does_the_same(style, dtype, dim, value_dim):
    first = chunk(style, dtype, dim=dim, value_dim=value_dim, strided=style == SPLIT_HALF)
    second = [t.clone() if isinstance(t, torch.Tensor) else t for t in first]
    out, expected = rotate_and_write(*first), reference.rotate_and_write(*second)
    near = {"rtol": torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps, "equal_nan": True}
    torch.testing.assert_close(out, expected, **near)
    torch.testing.assert_close(first[6], second[6], **near)
    assert torch.equal(first[7].nan_to_num(9), second[7].nan_to_num(9))


def test_a_pool_and_a_result_of_other_dtypes():
    query, key, value, query_turn, key_turn, style, *_ = chunk(INTERLEAVED)
    pools = [torch.zeros(18, 11, width, dtype=torch.bfloat16) for width in (12, 8)]
    rest = (torch.arange(18), torch.bfloat16)
    out = rotate_and_write(query, key, value, query_turn, key_turn, style, *pools, *rest)
    expected = by_complex_numbers(query, query_turn, style).to(torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=8e-3, atol=8e-3)


@pytest.mark.parametrize("style", STYLES)
def test_the_operator_is_what_it_says(style):
    arguments = chunk(style, tokens=4)
    arguments = (*(t.float() if t.is_floating_point() else t for t in arguments[:5]), *arguments[5:])
    torch.library.opcheck(torch.ops.headforce.rotate_and_write, arguments, test_utils=CHECKS)


@pytest.mark.parametrize(
    ("place", "change", "code"),
    [
        (0, lambda t: t.double(), "HF-KERNEL"),
        (1, lambda t: t[:, :, :2], "HF-TABLES"),
        (2, lambda t: t[:, :-1], "HF-TABLES"),
        (3, lambda t: t[:4], "HF-TABLES"),
        (4, lambda t: t[:, :2], "HF-TABLES"),
        (6, lambda t: t[..., :8].contiguous(), "HF-TABLES"),
        (6, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), "HF-TABLES"),
        (7, lambda t: t[:-1], "HF-TABLES"),
        (8, lambda t: t[:-1], "HF-TABLES"),
        (8, lambda t: t.int(), "HF-TABLES"),
    ],
)
def test_what_does_not_go_together_is_refused(place, change, code):
    arguments = list(chunk(INTERLEAVED))
    arguments[place] = change(arguments[place])
    with pytest.raises(HeadforceError) as caught:
        rotate_and_write(*arguments)
    assert caught.value.code == code


def test_pages_that_are_not_there_are_refused_where_launches_are_checked(monkeypatch):
    arguments = list(chunk(INTERLEAVED))
    arguments[8] = arguments[8].clone()
    arguments[8][3] = len(arguments[6])
    monkeypatch.setenv("HEADFORCE_CHECK_TABLES", "1")
    with pytest.raises(HeadforceError, match=r"HF-TABLES.*a page"):
        rotate_and_write(*arguments)
