"""Caches that are a list of dicts of k and v, and nothing else: no index says how much of them is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headforce
from headforce import HeadforceError
from headforce.policy import Policy

from .test_owned_identity import relative

HEADS, DIM, T, FRAMES = 2, 8, 3, 2  # tokens of a frame, frames of a chunk
CACHE = 16 * T
WINDOW = Policy.loads("headforce: 0\nclasses: {near: window(2), far: 'sink(1) | window(1)'}\ndefault: near")
MUTE = Policy.loads("headforce: 0\nclasses: {quiet: mute()}\ndefault: quiet")
TOLERANCE = 1e-5


class Layer(nn.Module):
    """Reads the newest `reach` rows of its cache, and of them those that `kept` says.

    `joined`: it joins past rows with the new ones, and writes those behind its attention.
    """

    def __init__(self, reach: int, joined: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HEADS * DIM, 3 * HEADS * DIM), nn.Linear(HEADS * DIM, HEADS * DIM)
        self.reach, self.joined, self.kept = reach, joined, None
        angle = torch.outer(torch.arange(64.0), 20.0 ** -(torch.arange(DIM // 2) / (DIM // 2)))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x: Tensor, cache: dict[str, Tensor], start: int) -> Tensor:
        new = x.shape[1]
        q, k, v = (part.unflatten(-1, (HEADS, DIM)) for part in self.qkv(x).chunk(3, dim=-1))
        cos, sin = (t[start : start + new // T].repeat_interleave(T, 0)[:, None] for t in (self.cos, self.sin))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        first = start * T
        low = max(0, first + new - self.reach)
        if self.joined:
            keys, values = (torch.cat([cache[n][:, low:first], x], dim=1) for n, x in (("k", k), ("v", v)))
        else:
            write(cache, first, k, v)
            keys, values = (cache[name][:, low : first + new] for name in ("k", "v"))
        mask = None if self.kept is None else self.kept(low, first, new)
        operands = (part.transpose(1, 2) for part in (4 * q, keys, values))
        y = F.scaled_dot_product_attention(*operands, attn_mask=mask)
        if self.joined:
            write(cache, first, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


def write(cache: dict[str, Tensor], first: int, k: Tensor, v: Tensor) -> None:
    cache["k"][:, first : first + k.shape[1]] = k
    cache["v"][:, first : first + v.shape[1]] = v


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)


class Model(nn.Module):
    def __init__(self, reach: int = CACHE, joined: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Layer(reach, joined) for _ in range(2))

    def forward(self, x: Tensor, kv_cache: list[dict[str, Tensor]], start: int) -> Tensor:
        for block, cache in zip(self.blocks, kv_cache, strict=True):
            x = block(x, cache, start)
        return x


def video(model: object, caches: list[dict[str, Tensor]], chunks: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(1, FRAMES * T, HEADS * DIM, generator=generator) for _ in range(chunks)]
    with torch.no_grad():
        return [model(x, caches, FRAMES * i).clone() for i, x in enumerate(xs)]


def new_caches() -> list[dict[str, Tensor]]:
    return [{name: torch.zeros(1, CACHE, HEADS, DIM) for name in ("k", "v")} for _ in range(2)]


def newest_two_frames(low: int, first: int, new: int) -> Tensor:
    rows = torch.arange(low, first + new)
    return (rows >= first - 2 * T).expand(new, -1)


def masked(reach: int = CACHE) -> Model:
    """What WINDOW means, written down as a mask."""
    model = Model(reach)
    for block in model.blocks:
        block.kept = newest_two_frames
    return model


@pytest.mark.parametrize("joined", [False, True], ids=["written and read", "joined"])
@pytest.mark.parametrize("mode", ["owned", "view"])
def test_the_frame_of_a_pass_says_that_a_video_begins(mode: str, joined: bool) -> None:
    """Three videos with the same caches, the second one of a single chunk."""
    model, caches, others, reference = Model(joined=joined), new_caches(), new_caches(), masked()
    with headforce.prepare(model, policy=WINDOW, mode=mode, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        for seed, chunks in enumerate((4, 1, 4)):
            ours, expected = video(compiled, caches, chunks, seed), video(reference, others, chunks, seed)
            assert all(relative(a, b) < TOLERANCE for a, b in zip(ours, expected, strict=True))
        assert session.launches == [9, 9]
    plain = video(Model(), new_caches(), 4, 2)
    assert relative(expected[-1], plain[-1]) > 100 * TOLERANCE


def test_a_policy_without_native_may_read_more_than_the_model_does() -> None:
    """The model reads two chunks of a cache of eight; its own rule, which nobody asks for, would be all of it."""
    model, reference = Model(2 * FRAMES * T), masked()
    with headforce.prepare(model, policy=WINDOW):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        ours = video(compiled, new_caches(), 5, 0)
    assert all(relative(a, b) < TOLERANCE for a, b in zip(ours, video(reference, new_caches(), 5, 0), strict=True))
    with headforce.prepare(model, policy=Policy({})), pytest.raises(HeadforceError, match="HF-NATIVE"):
        video(compiled, new_caches(), 5, 0)


def test_an_index_that_stays_at_zero_is_named() -> None:
    model, caches = Model(), [{**cache, "global_end_index": 0} for cache in new_caches()]
    with headforce.prepare(model, policy=WINDOW):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        with pytest.raises(HeadforceError, match=r"HF-CLOCK.*global_end_index"):
            video(compiled, caches, 2, 0)


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_nobody_reads_anything(mode: str) -> None:
    model, reference = Model(), Model()
    for block in reference.blocks:
        block.out.weight.data.zero_()
    with headforce.prepare(model, policy=MUTE, mode=mode, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        ours = video(compiled, new_caches(), 3, 0)
        assert session.launches == [3, 3]
    assert all(torch.equal(a, b) for a, b in zip(ours, video(reference, new_caches(), 3, 0), strict=True))


# --- reads of another form ----------------------------------------------------------------------------------------


def joined_with_others(cache: Tensor, new: Tensor, first: int) -> Tensor:
    past = torch.cat([cache[:, :first], new], dim=1)
    cache[:, first : first + new.shape[1]] = 2 * new
    return past


def joined_too_far(cache: Tensor, new: Tensor, first: int) -> Tensor:
    past = torch.cat([cache, new], dim=1)
    cache[:, first : first + new.shape[1]] = new
    return past


def rolled_behind(cache: Tensor, new: Tensor, first: int) -> Tensor:
    past = torch.cat([cache[:, :first], new], dim=1)
    cache[:, : 2 * T] = cache[:, T : 3 * T].clone()
    cache[:, first : first + new.shape[1]] = new
    return past


class Reader(nn.Module):
    def __init__(self, read: object) -> None:
        super().__init__()
        self.read = read

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, first: int) -> Tensor:
        k, v = self.read(keys, k, first), self.read(values, v, first)
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))


def stacked(cache: Tensor, new: Tensor, first: int) -> Tensor:
    cache[0, :, first : first + new.shape[1]] = new
    return cache[0, :, : first + new.shape[1]]


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (joined_with_others, r"HF-CACHE-FORM.* joined with others than those .* same new rows for both"),
        (joined_too_far, r"HF-CACHE-RANGE.* \[0, 48\) in front of new ones, which are written from row 6"),
        (rolled_behind, r"HF-CACHE-ORDER.* rolled behind a read"),
        (stacked, r"HF-CACHE-FORM.* a tensor of 5 dims.* K and one for V, of each layer"),
    ],
)
def test_what_is_not_read_is_told_with_what_would_be(read: object, says: str) -> None:
    compiled = torch.compile(Reader(read), backend="headforce", options={"inner": "eager", "policy": WINDOW})
    q, k, v = torch.randn(3, 1, FRAMES * T, HEADS, DIM)
    caches = torch.zeros(2, *(1,) * (read is stacked), 1, CACHE, HEADS, DIM)
    with pytest.raises(HeadforceError, match=says), torch.no_grad():
        compiled(q, k, v, *caches, FRAMES * T)
