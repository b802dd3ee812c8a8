"""RoPE along one axis: rows of a table that are cut, looked up or computed for the frames of a chunk."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headforce import HeadforceError
from headforce.policy import Policy
from headforce.testing import zoo

from .test_owned_identity import relative
from .test_view import NATIVE, TOLERANCE, bare, rollout_of

PAIRS, T = zoo.HEAD_DIM // 2, zoo.TOKENS
RATES = 50.0 ** -(torch.arange(PAIRS) / PAIRS)

Spelling = Callable[[Tensor, Tensor, int, int], Tensor]
"""(angles [positions, pairs], rates [pairs], first frame, frames) -> angles of the tokens, [frames * T, pairs]."""

SPELLINGS: dict[str, Spelling] = {
    "cut": lambda table, rates, s, f: table[s : s + f].repeat_interleave(T, 0),
    "new axis": lambda table, rates, s, f: table[s : s + f, None].expand(f, T, PAIRS).reshape(f * T, PAIRS),
    "new axis and columns": lambda table, rates, s, f: (
        table[s : s + f, None, :PAIRS].expand(f, T, PAIRS).reshape(f * T, PAIRS)
    ),
    "new axes around dots": lambda table, rates, s, f: (
        table[None, s : s + f, None, ..., :PAIRS].expand(1, f, T, PAIRS).reshape(f * T, PAIRS)
    ),
    "looked up": lambda table, rates, s, f: table[torch.arange(s, s + f).repeat_interleave(T)],
    "outer": lambda table, rates, s, f: torch.outer(torch.arange(s, s + f), rates).repeat_interleave(T, 0),
    "outer of repeated frames": lambda table, rates, s, f: torch.outer(
        torch.arange(s, s + f).repeat_interleave(T), rates
    ),
    "outer, frames by keyword": lambda table, rates, s, f: torch.outer(
        torch.arange(start=s, end=s + f, dtype=torch.float32), rates
    ).repeat_interleave(T, 0),
    "einsum": lambda table, rates, s, f: torch.einsum(
        "i, j -> ij", torch.arange(s, s + f).float(), rates
    ).repeat_interleave(T, 0),
    "product": lambda table, rates, s, f: (torch.arange(s, s + f)[:, None] * rates).repeat_interleave(T, 0),
}
OTHERS: dict[str, Spelling] = {
    "steps of two": lambda table, rates, s, f: torch.outer(
        torch.arange(2 * s, 2 * (s + f), 2), rates
    ).repeat_interleave(T, 0),
    "half of the rate": lambda table, rates, s, f: torch.outer(torch.arange(s, s + f) * 0.5, rates).repeat_interleave(
        T, 0
    ),
    "in a circle": lambda table, rates, s, f: table[s % 4 : s % 4 + f].repeat_interleave(T, 0),
}


def layer_of(spelling: Spelling, core: str | Callable[..., Tensor] = "sdpa") -> zoo.SelfAttention:
    torch.manual_seed(0)
    layer = zoo.SelfAttention("half", core=core)
    layer.register_buffer("angles", torch.outer(torch.arange(64.0), RATES))
    layer.register_buffer("rates", RATES)

    def rope(x: Tensor, table: object, start: int) -> Tensor:
        turned = spelling(layer.angles, layer.rates, start, x.shape[1] // T)[:, None]
        cos, sin = (torch.cat([part, part], dim=-1) for part in (turned.cos(), turned.sin()))
        x1, x2 = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-x2, x1), dim=-1) * sin

    layer.rope = rope
    return layer


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_frames_are_counted_whatever_the_spelling(spelling: Spelling) -> None:
    """Under a window of one frame, against the layer that reads no more rows than that."""
    layer = layer_of(spelling)
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    compiled = torch.compile(layer, backend="headforce", options=bare(policy, verify="plan"))
    windowed = layer_of(spelling, lambda q, k, v: zoo.CORES["sdpa"][0](q, k[:, -3 * T :], v[:, -3 * T :]))
    expected = rollout_of(windowed, windowed, 4)
    for ours, theirs in zip(rollout_of(layer, compiled, 4), expected, strict=True):
        assert relative(ours, theirs) < TOLERANCE
    assert relative(expected[-1], rollout_of(layer, layer, 4)[-1]) > 10 * TOLERANCE


MOVES = Policy.loads("headforce: 0\nclasses: {a: 'sink(1)@collapse(4) | window(1)'}\ndefault: a")


MADE: dict[str, Spelling] = {
    "rates from constants": lambda table, rates, s, f: torch.outer(
        torch.arange(s, s + f), 1.0 / 50.0 ** (torch.arange(0, 2 * PAIRS, 2)[:PAIRS].float() / (2 * PAIRS))
    ).repeat_interleave(T, 0),
    "a table from constants": lambda table, rates, s, f: torch.outer(
        torch.arange(64), torch.exp(torch.arange(PAIRS) * (-math.log(50.0) / PAIRS))
    )[s : s + f].repeat_interleave(T, 0),
}


@pytest.mark.parametrize("computed", ["outer", "product", pytest.param("einsum", marks=pytest.mark.slow), *MADE])
def test_rates_move_keys_as_the_table_does_that_is_made_of_them(computed: str) -> None:
    rollouts = []
    for spelling in (computed, "cut"):
        layer = layer_of((SPELLINGS | MADE)[spelling])
        compiled = torch.compile(layer, backend="headforce", options=bare(MOVES, verify="full"))
        rollouts.append(rollout_of(layer, compiled, 4))
        torch._dynamo.reset()
    assert all(relative(a, b) < TOLERANCE for a, b in zip(*rollouts, strict=True))
    still = Policy.loads("headforce: 0\nclasses: {a: 'sink(1) | window(1)'}\ndefault: a")
    unmoved = rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(still)), 4)
    assert relative(unmoved[-1], rollouts[0][-1]) > 10 * TOLERANCE


ANGLES = torch.outer(torch.arange(64.0), RATES)
TURNS = torch.stack([ANGLES.cos(), ANGLES.sin()])

Rows = Callable[[Tensor, int, int], Tensor]
LAYOUTS: dict[str, tuple[Tensor, Rows, Rows]] = {
    # a table, and the rows [frames, pairs] of cosines and of sines in it
    "plain": (
        ANGLES.clone(),
        lambda table, s, f: table[s : s + f].cos(),
        lambda table, s, f: table[s : s + f].sin(),
    ),
    "each twice, neighbours": (
        ANGLES.repeat_interleave(2, 1),
        lambda table, s, f: table[s : s + f, ::2].cos(),
        lambda table, s, f: table[s : s + f, ::2].sin(),
    ),
    "each twice, halves": (
        ANGLES.repeat(1, 2),
        lambda table, s, f: table[s : s + f].view(f, 2, PAIRS)[:, 1].cos(),
        lambda table, s, f: table[s : s + f].view(f, 2, PAIRS)[:, 1].sin(),
    ),
    "sines behind cosines": (
        torch.cat([*TURNS], dim=1),
        lambda table, s, f: table[s : s + f, :PAIRS],
        lambda table, s, f: table[s : s + f, PAIRS:],
    ),
    "sines before cosines": (
        torch.cat([*TURNS.flip(0)], dim=1),
        lambda table, s, f: table[s : s + f].chunk(2, dim=-1)[1],
        lambda table, s, f: table[s : s + f].chunk(2, dim=-1)[0],
    ),
    "beside other columns": (
        torch.cat([ANGLES * 0.3, ANGLES.repeat_interleave(2, 1)], dim=1),
        lambda table, s, f: table[s : s + f, PAIRS:][:, ::2].cos(),
        lambda table, s, f: table[s : s + f, PAIRS:][:, 1::2].sin(),
    ),
    "pairs of cosine and sine": (
        TURNS.movedim(0, -1).contiguous(),
        lambda table, s, f: table[s : s + f][..., 0],
        lambda table, s, f: table[s : s + f][..., 1],
    ),
    "one table in front of the other": (
        TURNS.clone(),
        lambda table, s, f: table[0, s : s + f],
        lambda table, s, f: table[1, s : s + f],
    ),
    "positions last": (
        ANGLES.T.contiguous(),
        lambda table, s, f: table[:, s : s + f].T.cos(),
        lambda table, s, f: table[:, s : s + f].T.sin(),
    ),
}


def layer_of_layout(layout: str, kind: str) -> zoo.SelfAttention:
    torch.manual_seed(0)
    layer = zoo.SelfAttention("half", core="sdpa")
    table, cosines, sines = LAYOUTS[layout]
    layer.register_buffer("table", table)

    def rope(x: Tensor, given: object, start: int) -> Tensor:
        frames = x.shape[1] // T
        cos, sin = (rows(layer.table, start, frames).repeat_interleave(T, 0)[:, None] for rows in (cosines, sines))
        x1, x2 = x.chunk(2, -1) if kind == "half" else x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = [x1 * cos - x2 * sin, x1 * sin + x2 * cos]
        return torch.cat(turned, -1) if kind == "half" else torch.stack(turned, -1).flatten(-2)

    layer.rope = rope
    return layer


@pytest.mark.parametrize("kind", ["half", pytest.param("pairs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_a_table_is_read_where_its_values_stand(layout: str, kind: str) -> None:
    """Keys that a policy moves turn by the rates of the table, however it is stored."""

    def moved(layer: zoo.SelfAttention) -> list[Tensor]:
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="headforce", options=bare(MOVES, verify="full"))
        return rollout_of(layer, compiled, 4)

    expected = moved(layer_of_layout("plain", kind))
    assert all(relative(a, b) < TOLERANCE for a, b in zip(moved(layer_of_layout(layout, kind)), expected, strict=True))


FAR = torch.outer(torch.arange(100.0).clamp(max=66), RATES)
FORGED: dict[str, tuple[Tensor, Rows, Rows, str]] = {
    "two angles": (
        torch.stack([ANGLES, -ANGLES]),
        lambda table, s, f: table[0, s : s + f].cos(),
        lambda table, s, f: table[1, s : s + f].sin(),
        "cosines and sines of different angles",
    ),
    "growing": (
        torch.cat([*(TURNS * 1.1 ** torch.arange(64)[:, None])], dim=1),
        lambda table, s, f: table[s : s + f, :PAIRS],
        lambda table, s, f: table[s : s + f, PAIRS:],
        "grow or shrink",
    ),
    "rounded": (
        ANGLES.clone(),
        lambda table, s, f: table[s : s + f].to(torch.int32).to(torch.float32).cos(),
        lambda table, s, f: table[s : s + f].to(torch.int32).to(torch.float32).sin(),
        "made inside the graph",
    ),
    "uneven far away": (
        FAR,
        lambda table, s, f: table[s : s + f].cos(),
        lambda table, s, f: table[s : s + f].sin(),
        "do not grow evenly",
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_table_that_is_no_rotation_moves_no_keys(forged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    *layout, said = FORGED[forged]
    monkeypatch.setitem(LAYOUTS, forged, tuple(layout))
    layer = layer_of_layout(forged, "half")
    with pytest.raises(HeadforceError, match=f"HF-ROPE.*{said}"):
        rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(MOVES)), 4)


def test_functions_of_functions_are_no_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = torch.polar(torch.ones_like(ANGLES), ANGLES)
    layout = (turns, lambda t, s, f: t[s : s + f].real.cos(), lambda t, s, f: t[s : s + f].imag.sin())
    monkeypatch.setitem(LAYOUTS, "twice", layout)
    layer = layer_of_layout("twice", "half")
    with pytest.raises(HeadforceError, match="HF-CLOCK"):
        rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(MOVES)), 2)


def test_keys_that_are_rotated_twice_are_not_moved() -> None:
    """The outer table says nothing of the inner one."""
    layer = layer_of(SPELLINGS["cut"])
    once = layer.rope
    layer.rope = lambda x, table, start: once(once(x, table, start), table, start)
    with pytest.raises(HeadforceError, match="HF-ROPE"):
        rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(MOVES)), 4)


@pytest.mark.parametrize("how", ["another buffer", "in place"])
def test_rates_that_change_between_videos_of_one_chunk_are_read_again(how: str) -> None:
    """The second video looks like another pass over the only chunk of the first."""
    layer = layer_of(SPELLINGS["outer"])
    compiled = torch.compile(layer, backend="headforce", options=bare(MOVES))
    cache, chunks = layer.new_cache(), list(zoo.inputs(4, passes=1))
    with torch.no_grad():
        compiled(chunks[0][0], cache, 0)
        if how == "in place":
            layer.rates.mul_(0.5)
        else:
            layer.rates = layer.rates * 0.5
        found = [compiled(x, cache, start) for x, start in chunks]
        torch._dynamo.reset()
        compiled, cache = torch.compile(layer, backend="headforce", options=bare(MOVES)), layer.new_cache()
        expected = [compiled(x, cache, start) for x, start in chunks]
    assert all(relative(a, b) < TOLERANCE for a, b in zip(found, expected, strict=True))


UNKNOWN_RATES: dict[str, Spelling] = {
    "in half precision": lambda table, rates, s, f: torch.outer(torch.arange(s, s + f).bfloat16(), rates.bfloat16()),
    "in half precision on their way": lambda table, rates, s, f: torch.outer(
        torch.arange(s, s + f), rates.bfloat16().float()
    ),
    "changed in the pass": lambda table, rates, s, f: torch.outer(torch.arange(s, s + f), rates * 0.5),
}


@pytest.mark.parametrize("spelling", UNKNOWN_RATES.values(), ids=UNKNOWN_RATES)
def test_rates_that_no_input_shows_move_no_keys(spelling: Spelling) -> None:
    """Some are rounded before or behind the product, others nobody hands in. A policy that moves nothing works."""

    def repeated(*given: object) -> Tensor:
        return spelling(*given).repeat_interleave(T, 0).float()

    layer = layer_of(repeated)
    rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(NATIVE, verify="plan")), 2)
    torch._dynamo.reset()
    with pytest.raises(
        HeadforceError, match=r"HF-ROPE.* a table or rates that are an input of the graph or made of constants"
    ):
        rollout_of(layer, torch.compile(layer, backend="headforce", options=bare(MOVES)), 4)


@pytest.mark.parametrize("spelling", ["cut", "outer", "product", "looked up"])
def test_chunks_of_one_frame_are_counted(spelling: str) -> None:
    """All rows have one position then, and no axis of the table is the time."""
    layer = layer_of(SPELLINGS[spelling])
    expected, found = [], []
    for side, out in ((layer, expected), (torch.compile(layer, backend="headforce", options=bare(MOVES)), found)):
        torch.manual_seed(5)
        cache = layer.new_cache()
        with torch.no_grad():
            for frame in range(4):
                x = torch.randn(1, T, zoo.HEADS * zoo.HEAD_DIM, generator=torch.Generator().manual_seed(frame))
                out.append(side(x, cache, frame * T))
    assert relative(found[1], expected[1]) < TOLERANCE  # two frames: the sink where it is, and the newest
    assert relative(found[3], expected[3]) > 10 * TOLERANCE


@pytest.mark.parametrize("spelling", OTHERS.values(), ids=OTHERS)
def test_positions_that_are_no_frames_are_refused(spelling: Spelling) -> None:
    layer = layer_of(spelling)
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE))
    with pytest.raises(HeadforceError, match=r"HF-CLOCK.* was not recognised"):
        rollout_of(layer, compiled, 2)


def test_positions_that_count_tokens_are_refused() -> None:
    """Every token would be taken for a frame, and a window of frames be one of tokens."""
    layer = layer_of(lambda table, rates, s, f: table[s * T : s * T + f * T])
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE))
    with pytest.raises(HeadforceError, match=r"HF-CLOCK.* at a position of its own"):
        rollout_of(layer, compiled, 2)


def by_cosines(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def by_numbers(x: Tensor, numbers: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * numbers).flatten(-2)


TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosines": torch.cos,
    "sines": torch.sin,
    "numbers": lambda angles: torch.polar(torch.ones_like(angles), angles),
}
TURNS = {
    "cosine and sine of angles": lambda x, rows, layer: by_cosines(
        x, rows(layer.angles).cos(), rows(layer.angles).sin()
    ),
    "cosines and sines": lambda x, rows, layer: by_cosines(x, rows(layer.cosines), rows(layer.sines)),
    "numbers from angles": lambda x, rows, layer: by_numbers(
        x, torch.polar(torch.ones_like(rows(layer.angles)), rows(layer.angles))
    ),
    "numbers": lambda x, rows, layer: by_numbers(x, rows(layer.numbers)),
}


@pytest.mark.parametrize(
    ("of_angles", "as_they_turn"),
    [
        ("cosine and sine of angles", "cosines and sines"),
        pytest.param("numbers from angles", "numbers", marks=pytest.mark.slow),
    ],
)
def test_a_table_of_angles_moves_keys_as_one_of_what_turns_does(of_angles: str, as_they_turn: str) -> None:
    """Under a policy that moves frames, for which the rates are read from the table."""
    rollouts = []
    for name in (of_angles, as_they_turn):
        layer = layer_of(SPELLINGS["cut"])
        for table in ("cosines", "sines", "numbers"):
            layer.register_buffer(table, TABLES[table](layer.angles))

        def rope(x: Tensor, table: object, start: int, layer=layer, turn=TURNS[name]) -> Tensor:
            def rows(t: Tensor) -> Tensor:
                return t[start : start + x.shape[1] // T].repeat_interleave(T, 0)[:, None]

            return turn(x, rows, layer)

        layer.rope = rope
        compiled = torch.compile(layer, backend="headforce", options=bare(MOVES, verify="full"))
        rollouts.append(rollout_of(layer, compiled, 4))
        torch._dynamo.reset()
    assert all(relative(a, b) < TOLERANCE for a, b in zip(*rollouts, strict=True))
