"""Where attention goes, streamed, against scores that are all there, in float64.

Key rows and query rows that nothing names hold NaN.
"""

import weakref
from collections import Counter
from dataclasses import dataclass, field, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.utils._python_dispatch import TorchDispatchMode

from headforce.kernels.attention_statistics import attention_statistics
from headforce.kernels.reference import ragged_attention
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.testing.rig import DOUBLE, Rig, mixed, turned

TOKENS = 4


@dataclass
class Layer:
    """Random operands of one layer, and reads by (batch, head): lists of (query_row, query_rows, runs).

    A run is (row, rows, shift, column). Without `kv_heads` keys are pages of `TOKENS` rows.
    """

    reads: dict[tuple[int, int], list[tuple[int, int, list[tuple[int, int, int, int]]]]]
    sampled: list[int]
    batch: int = 1
    heads: int = 1
    rows: int = 4
    key_rows: int = 16
    kv_heads: int | None = None
    dim: int = 6
    style: str = INTERLEAVED
    dtype: torch.dtype = DOUBLE
    peaked: float = 2.0
    scale: float = 0.5
    count: int = 3
    theta: torch.Tensor = field(default_factory=lambda: torch.tensor([0.7, 0.3], dtype=DOUBLE))
    first_pair: int = 1

    def __post_init__(self):
        generator = torch.Generator().manual_seed(0)
        kv = () if self.kv_heads is None else (self.kv_heads,)
        shape = (-(-self.key_rows // TOKENS), TOKENS) if self.kv_heads is None else (self.batch, self.key_rows)
        key = torch.randn(*shape, *kv, self.dim, dtype=DOUBLE, generator=generator)
        query = torch.randn(self.batch, self.rows, self.heads, self.dim, dtype=DOUBLE, generator=generator)
        self.key, self.query = torch.full_like(key, torch.nan), torch.full_like(query, torch.nan)
        for (batch, head), its_reads in self.reads.items():
            for row, rows, runs in its_reads:
                part = (batch, slice(row, row + rows), head)
                self.query[part] = query[part] * self.peaked
                for first, length, *_ in runs:
                    self.own(self.key, batch, head)[first : first + length] = self.own(key, batch, head)[
                        first : first + length
                    ]
        self.key, self.query = self.key.to(self.dtype), self.query.to(self.dtype)

    def own(self, key, batch, head):
        """The rows [R, D] that the runs of a head count."""
        if self.kv_heads is None:
            return key.view(-1, self.dim)
        return key[batch, :, head * self.kv_heads // self.heads]

    def tables(self):
        reads, runs, columns = [[0] * 8], [], []  # the first entry is unused
        for (batch, head), its_reads in self.reads.items():
            for row, rows, its_runs in its_reads:
                reads.append([batch, head, row, rows, len(runs), len(its_runs), 1, 0])
                runs += [run[:3] for run in its_runs]
                columns += [run[3] for run in its_runs]
        made = [torch.tensor(table, dtype=torch.int32) for table in (reads, runs, columns)]
        return made[0], made[1].view(-1, 3), made[2]

    def mass(self, block=4096, device=None):
        """[B, H, columns], over all sampled rows."""
        return self.statistics(block, device).mass[:, :, 0]

    def statistics(self, block=4096, device=None, groups=1):
        arguments = [
            self.query,
            self.key,
            *self.tables(),
            self.count,
            torch.tensor(self.sampled, dtype=torch.int64),
            self.theta,
        ]
        if device is not None:
            arguments[:2], arguments[6:] = (t.to(device) for t in arguments[:2]), (t.to(device) for t in arguments[6:])
        return attention_statistics(*arguments, self.first_pair, self.style, self.scale, block, groups)

    def expected(self):
        return self.expected_statistics()[0][:, :, 0]

    def expected_statistics(self, groups=1):
        """Mass, mean score and entropy, [3, B, H, groups, columns], row by row from all scores at once."""
        found = torch.zeros(3, self.batch, self.heads, groups, self.count, dtype=DOUBLE)
        share = groups / max(len(self.sampled), groups)
        for (batch, head), its_reads in self.reads.items():
            for query_row, query_rows, runs in its_reads:
                runs = [run for run in runs if run[1]]
                if not runs:
                    continue
                keys = torch.cat([self._turned(batch, head, *run[:3]) for run in runs])
                columns = torch.tensor([column for _, rows, _, column in runs for _ in range(rows)])
                for i, row in enumerate(self.sampled):
                    if query_row <= row < query_row + query_rows:
                        scores = keys @ self.query[batch, row, head].to(DOUBLE) * self.scale
                        p = scores.softmax(0)
                        group = i * groups // len(self.sampled)
                        for column in set(columns.tolist()) - {-1}:
                            its = columns == column
                            sums = p[its].sum(), scores[its].mean(), -torch.xlogy(p[its], p[its]).sum()
                            found[:, batch, head, group, column] += torch.stack(sums) * share
        return found

    def _turned(self, batch, head, row, rows, shift):
        key = self.own(self.key, batch, head)[row : row + rows].to(DOUBLE)
        return turned(key, shift * self.theta, self.first_pair, self.style)


@st.composite
def layers(draw):
    """Heads with few kinds of reads, so that some are equal in all but their rows and some are not."""
    batch, heads = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    rows, key_rows, count = draw(st.integers(1, 6)), draw(st.integers(8, 24)), draw(st.integers(1, 3))
    length = st.integers(0, 8)
    piece = st.tuples(length, st.sampled_from([0, 0, 1, -3, 400]), st.integers(-1, count - 1))
    kind = st.lists(piece, max_size=3)
    kinds = draw(st.lists(st.lists(st.tuples(kind, st.booleans()), max_size=3), min_size=1, max_size=3))
    reads = {}
    for cell in ((b, h) for b in range(batch) for h in range(heads)):
        # Ends of its reads in the query, in order; a read that is not `there` leaves its query rows without any.
        its_kinds = draw(st.sampled_from(kinds))
        ends = [rows * (i + 1) // len(its_kinds) for i in range(len(its_kinds))]
        reads[cell] = [
            (start, stop - start, [(draw(st.integers(0, key_rows - n)), n, *rest) for n, *rest in pieces])
            for start, stop, (pieces, there) in zip([0, *ends], ends, its_kinds, strict=False)
            if there
        ]
    return Layer(
        reads,
        draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=8)),
        batch,
        heads,
        rows,
        key_rows,
        draw(st.sampled_from([None, *(n for n in (1, 2, 4) if heads % n == 0)])),
        dim=draw(st.sampled_from([6, 8])),
        style=draw(st.sampled_from([INTERLEAVED, SPLIT_HALF])),
        dtype=draw(st.sampled_from([DOUBLE, torch.float32, torch.bfloat16])),
        count=count,
    )


@given(layers(), st.sampled_from([1, 3, 5, 4096]), st.sampled_from([1, 2, 3]))
def test_is_the_dense_softmax(layer, block, groups):
    layer.sampled *= groups
    found = torch.stack(layer.statistics(block, groups=groups))
    assert found.dtype == torch.float32
    tolerance = 1e-6 if layer.dtype == DOUBLE else 2e-5
    torch.testing.assert_close(found.double(), layer.expected_statistics(groups), rtol=tolerance, atol=tolerance)


def test_groups_are_what_each_would_be_alone():
    layer = Layer({(0, h): [(0, 9, frames((4, 20, 12)))] for h in range(2)}, [8, 0, 3, 5], heads=2, rows=9, key_rows=40)
    both = torch.stack(layer.statistics(5, groups=2))
    for group, sampled in enumerate(([8, 0], [3, 5])):
        alone = torch.stack(replace(layer, sampled=sampled).statistics(5))
        torch.testing.assert_close(both[..., group, :], alone[..., 0, :])
    assert not both[..., 0, :].allclose(both[..., 1, :])


def frames(lengths, shifts=(0, 2, 0), columns=(0, 1, 2), first=0):
    """Runs of these lengths, one behind the other."""
    firsts = [first + sum(lengths[:i]) for i in range(len(lengths))]
    return list(zip(firsts, lengths, shifts, columns, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("kv_heads", [None, 1, 2, 4])
def test_columns_of_all_rows_sum_to_one(dtype, kv_heads):
    reads = {(b, h): [(0, 9, frames((4, 20, 12)))] for b in range(2) for h in range(4)}
    layer = Layer(reads, [8, 0, 3, 3], 2, 4, 9, 40, kv_heads, dtype=dtype)
    mass = layer.mass(7)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mass.double(), layer.expected(), rtol=1e-5, atol=1e-5)


def test_rows_of_no_column_are_part_of_the_whole():
    runs = frames((4, 20, 12))
    counted = Layer({(0, 0): [(0, 9, runs)]}, [8, 0, 3], rows=9, key_rows=40)
    part = replace(counted, reads={(0, 0): [(0, 9, [runs[0], (*runs[1][:3], -1), runs[2]])]})
    mass = counted.mass()
    mass[..., 1] = 0
    torch.testing.assert_close(part.mass(), mass)
    assert (part.mass().sum(-1) < 0.99).all()


def test_rows_that_no_read_covers_have_no_mass():
    """Head 0 reads for half of the sampled rows, head 1 for none of them, and heads 2 and 3 read nothing."""
    runs = frames((4, 4, 4))
    layer = Layer({(0, 0): [(2, 3, runs)], (0, 1): [(5, 1, runs)], (0, 2): [(0, 6, [])]}, [2, 4, 1, 0], heads=4, rows=6)
    mass = layer.mass()
    torch.testing.assert_close(mass.sum(-1), torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
    assert replace(layer, reads={}).mass().equal(torch.zeros(1, 4, 3))
    assert replace(layer, sampled=[]).mass().equal(torch.zeros(1, 4, 3))


def test_a_cache_of_another_dtype():
    layer = Layer({(0, 0): [(0, 9, frames((4, 20, 12)))]}, [8, 0, 3], rows=9, key_rows=40, dtype=torch.bfloat16)
    layer.query = layer.query.float()
    torch.testing.assert_close(layer.mass(5).double(), layer.expected(), rtol=1e-5, atol=1e-5)


def test_tables_of_a_stream():
    """With one column for each run: value rows that say which run they are of, attended to, give the same numbers."""
    rig = Rig(mixed(), "reference", batch=2)
    for start in (0, 3, 6):
        (query, _), *_ = rig.run(start, 3)
    pool, reads, runs = rig.pool, rig.pool.reads[0], rig.pool.runs[0]
    columns, rope = torch.arange(len(runs)), (rig.theta, 0, rig.style, rig.scale)
    found = attention_statistics(query, pool.k, reads, runs, columns, len(runs), torch.arange(9), *rope, block=4)
    mass = found.mass[:, :, 0]
    value = torch.zeros(*pool.k.shape[:2], len(runs), dtype=DOUBLE)
    for column, (row, rows, _) in enumerate(runs.tolist()):
        value.view(-1, len(runs))[row : row + rows, column] = 1
    for read in reads:
        # One read at a time, for runs of other reads may have the same rows.
        batch, head, _, _, first, count, *_ = read.tolist()
        out = ragged_attention(query, pool.k, value, read[None], runs, *rope)
        expected = out[batch, :, head, first : first + count].mean(0).float()
        torch.testing.assert_close(mass[batch, head, first : first + count], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 5))


# --- large numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 6, 4096])
def test_large_scores_do_not_overflow(block):
    """Scores of hundreds, whose exponentials are no float32; the largest may come first, last or in between."""
    reads = {(0, h): [(0, 20, frames((4, 20, 12), shifts=(0, h, -h)))] for h in range(6)}
    layer = Layer(reads, list(range(20)), heads=6, rows=20, key_rows=36, scale=30.0, peaked=1.0, dtype=torch.float32)
    mass = layer.mass(block)
    assert mass.isfinite().all()
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 6), rtol=1e-5, atol=1e-5)
    found = torch.stack(layer.statistics(block)).double()
    torch.testing.assert_close(found, layer.expected_statistics(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ascending", [True, False])
def test_a_peak_far_from_the_rest(ascending):
    """Keys along the query, each longer than the one before, or shorter: every block has another peak."""
    layer = Layer({(0, 0): [(0, 1, frames((4, 4, 4), shifts=(0, 0, 0)))]}, [0], rows=1, dtype=torch.float32)
    layer.query[:] = 1.0
    steps = torch.arange(16.0) if ascending else -torch.arange(16.0)
    layer.key[:] = (100 * steps).view(4, TOKENS, 1)
    found = layer.statistics(3)
    assert found.mass.tolist() == [[[[0.0, 0.0, 1.0] if ascending else [1.0, 0.0, 0.0]]]]
    assert found.entropy.tolist() == [[[[0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("shift", [400, -50_000])
def test_shifts_of_long_streams_lose_no_digits(shift):
    layer = Layer({(0, 0): [(0, 4, frames((4, 8, 4), (shift, 0, 1)))]}, [0, 3], dtype=torch.float32)
    torch.testing.assert_close(layer.mass().double(), layer.expected(), rtol=1e-5, atol=1e-5)


def test_no_rope():
    layer = Layer({(0, 0): [(0, 4, frames((4, 8, 4)))]}, [0, 3], theta=torch.zeros(0, dtype=DOUBLE), first_pair=0)
    torch.testing.assert_close(layer.mass().double(), layer.expected(), rtol=1e-6, atol=1e-6)


# --- what it costs ----------------------------------------------------------------------------------------------


class Watching(TorchDispatchMode):
    """Counts operations that make a tensor; the most elements of one, and of all that existed at a time.

    Views make none.
    """

    def __init__(self):
        super().__init__()
        self.largest, self.most, self.made, self.alive = 0, 0, Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.largest = max(self.largest, out.numel())
            self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(out)]
            storages = {t.untyped_storage().data_ptr(): t.numel() for t in (ref() for ref in self.alive)}
            self.most = max(self.most, sum(storages.values()))
            self.made[func.overloadpacket] += 1
        return out


def large(heads, block=32, samples=64, **changes):
    """Every head reads 640 rows of its own pages."""
    reads = {(0, h): [(0, 8, frames((160, 320, 160), first=640 * h))] for h in range(heads)}
    sampled = [i % 8 for i in range(samples)]
    layer = Layer(reads, sampled, heads=heads, rows=8, key_rows=640 * heads, dtype=torch.float32, **changes)
    with Watching() as watching:
        layer.mass(block)
    return watching


@pytest.mark.parametrize("block", [64, 100])
@pytest.mark.parametrize("heads", [1, 3])
def test_scores_of_one_block_exist_at_a_time(heads, block):
    """No tensor is larger than the scores of 64 sampled rows and one block, where all key rows are 640."""
    watching = large(heads, block)
    assert watching.largest == heads * 64 * block
    # All else together, queries and keys included, is less than the scores once more: they are not copied.
    assert watching.most < 2 * watching.largest
    # With one sampled row the largest is the keys of the block, or a number for every row.
    assert large(heads, block, samples=1).largest <= max(heads * 6 * block, 640)


def test_equal_heads_go_together():
    assert large(12).made == large(1).made
    # Heads that are not equal cannot: a head with another shift has blocks of its own.
    one = large(1).made[torch.ops.aten.bmm]
    runs = [frames((160, 320, 160), first=640 * h, shifts=(0, 2, h // 3)) for h in range(4)]
    layer = Layer({(0, h): [(0, 8, runs[h])] for h in range(4)}, [0, 7], heads=4, rows=8, key_rows=640 * 4)
    with Watching() as watching:
        layer.mass(32)
    assert watching.made[torch.ops.aten.bmm] == 2 * one


def test_the_host_learns_nothing_of_queries_keys_and_samples():
    """On a device without values nothing can be fetched."""
    reads = {(0, h): [(0, 4, frames((4, 4 + h, 4))), (4, 4, frames((4, 4, 8)))] for h in range(2)}
    mass = Layer(reads, [0, 7, 7], heads=2, rows=8, key_rows=20).mass(5, device="meta")
    assert mass.is_meta
    assert mass.shape == (1, 2, 3)


def test_nothing_is_remembered_for_a_gradient():
    layer = Layer({(0, 0): [(0, 4, frames((4, 8, 4)))]}, [0, 3])
    mass = layer.mass()
    layer.query.requires_grad_()
    assert layer.mass().equal(mass)
    assert not layer.mass().requires_grad
