"""Pools and tables: exactly as large as they have to be, kept in place, and saying what the plan says."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.kernels.reference import write_pages
from headforce.lowering.pool import PagePool, PageShape
from headforce.lowering.stream import Event, Stream
from headforce.lowering.verify import check_plan, check_tables
from headforce.policy import FrameSet, Policy, parse_rule
from headforce.testing.rig import Rig
from headforce.testing.strategies import decide_by, novel_by, policies

LAYERS, HEADS, ROWS = 2, 3, 2
NATIVE = parse_rule("sink(1) | span(7)")
CPU = torch.device("cpu")


def pool_of(policy, batch=1, canonical=False, value_dim=3):
    shape = PageShape(batch, ROWS, 4, value_dim, torch.float32, CPU)
    return PagePool(Stream(policy, batch), shape, canonical=canonical)


def everywhere(rule, heads=HEADS, **kwargs):
    policy = Policy({"a": parse_rule(rule)}, default="a", **kwargs)
    return policy.bind(layers=LAYERS, heads=heads, native=NATIVE)


def begin(pool, start, frames, decide=None):
    event = pool.stream.begin(start, frames, decide)
    pool.update()
    return event


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=8)


@settings(max_examples=50)
@given(policies(LAYERS, HEADS, horizon=60), sizes, st.integers(1, 2), st.booleans())
def test_tables_say_what_the_plan_says(policy, sizes, batch, canonical):
    pool = pool_of(policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE), batch, canonical)
    start = 0
    for frames in sizes:
        begin(pool, start, frames)
        check_plan(pool.stream)
        check_tables(pool)
        start += frames
    assert begin(pool, start - sizes[-1], sizes[-1]) is Event.REPEAT


@pytest.mark.slow
@settings(max_examples=30)
@given(policies(LAYERS, HEADS, horizon=60, stores=True, tokens=ROWS), sizes, st.integers(0, 99), st.integers(1, 2))
def test_tables_of_rules_with_state(policy, sizes, seed, batch):
    pool, decide = pool_of(policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE), batch), decide_by(seed)
    start = 0
    for frames in sizes:
        begin(pool, start, frames, lambda lane: decide)
        check_tables(pool)
        start += frames


@settings(max_examples=40)
@given(policies(LAYERS, HEADS, horizon=60), st.integers(1, 4), st.integers(1, 2), st.integers(1, 5))
def test_bytes_are_capacity_and_the_current_chunk(policy, frames, batch, value_dim):
    bound = policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE)
    pool = pool_of(bound, batch, value_dim=value_dim)
    begin(pool, 0, frames)
    chunks = [*bound.endless(bound.rules[0][0], frames)]
    need = sum(max(bound.need(rule, chunk) for chunk in chunks) + frames for row in bound.rules for rule in row)
    if all([*bound.endless(rule, frames)] == chunks for rule in bound.distinct):
        assert pool.nbytes == batch * need * ROWS * (4 + value_dim) * 4
    assert pool.nbytes == ROWS * (4 + value_dim) * 4 * sum(
        pool.stream.lanes[lane].slots.pages for lane in pool.stream.lane_of.flat
    )
    assert pool.stream.layout == 1


def test_canonical_order_is_the_order_of_frames():
    pool = pool_of(everywhere("sink(1) | stride(3, phase=1, last=2) | window(2)"), canonical=True)
    for start in range(0, 24, 3):
        begin(pool, start, 3)
        slots = pool.stream.lanes[0].slots
        frame_at = {page: frame for frame, page in slots.slot.items()}
        _, _, _, rows, first, count, *_ = pool.reads[0].tolist()[0]
        assert rows == 3 * ROWS
        frames = [
            frame_at[row // ROWS + i]
            for row, length, _ in pool.runs[0].tolist()[first : first + count]
            for i in range(length // ROWS)
        ]
        assert frames == sorted(frames)


def test_a_region_that_is_read_as_a_whole_is_one_run():
    pool = pool_of(everywhere("sink(1) | window(4)"))
    for start in range(0, 30, 3):
        begin(pool, start, 3)
        assert {read[5] for read in pool.reads[0].tolist()} == {1}


# --- addresses --------------------------------------------------------------------------------------------------


def addresses(pool):
    return [t.data_ptr() for t in (pool.k, pool.v, *pool.reads, *pool.runs, *pool.pages)]


@pytest.mark.parametrize("rule", ["window(4)", 'sink(1)@collapse(4) | stride(4, phase="query", last=2) | window(1)'])
def test_tensors_stay_where_they_are_while_the_cache_fills_and_evicts(rule):
    pool = pool_of(everywhere(rule))
    begin(pool, 0, 3)
    before, shapes = addresses(pool), [t.shape for t in pool.reads + pool.runs]
    for start in range(3, 60, 3):
        begin(pool, start, 3)
        assert addresses(pool) == before
        assert [t.shape for t in pool.reads + pool.runs] == shapes


def test_a_repeat_uploads_nothing():
    pool = pool_of(everywhere("window(4)"))
    begin(pool, 0, 3)
    pool.runs[0].fill_(-1)
    assert begin(pool, 0, 3) is Event.REPEAT
    assert (pool.runs[0] == -1).all()


def test_an_update_that_was_missed_is_made_up_for():
    pool = pool_of(everywhere("window(4)"))
    begin(pool, 0, 3)
    pool.stream.begin(3, 3)
    assert pool.stream.begin(3, 3) is Event.REPEAT
    pool.update()
    check_tables(pool)


def test_tensors_of_inference_mode_can_be_written_outside_of_it():
    pool = pool_of(everywhere("window(4)"))
    with torch.inference_mode():
        begin(pool, 0, 3)
    begin(pool, 3, 3)
    key, value = torch.randn(1, 3 * ROWS, HEADS, 4), torch.randn(1, 3 * ROWS, HEADS, 3)
    with torch.no_grad():
        write_pages(key, value, pool.k, pool.v, pool.pages[0].flatten())
    assert not any(t.is_inference() for t in (pool.k, pool.v, *pool.reads, *pool.pages))


# --- growing ----------------------------------------------------------------------------------------------------


def test_a_change_of_rhythm_keeps_what_is_held():
    rig = Rig(everywhere("sink(2) | stride(3, phase=1, last=2)@collapse(5) | window(3)"), batch=2)
    layouts = set()
    for start, frames in ((0, 1), (1, 1), (2, 1), (3, 4), (7, 2), (9, 5), (14, 1), (15, 5)):
        for layer, (query, out) in enumerate(rig.run(start, frames)):
            torch.testing.assert_close(out, rig.expected(layer, query))
        layouts.add(rig.stream.layout)
        assert len(rig.pool.k) == sum(rig.stream.lanes[lane].slots.pages for lane in rig.stream.lane_of.flat)
    assert len(layouts) > 2


@settings(max_examples=20)
@given(policies(LAYERS, HEADS, horizon=60), sizes, st.integers(1, 2))
def test_pages_are_bitwise_what_was_written(policy, sizes, batch):
    rig = Rig(policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE), batch=batch, tokens=ROWS)
    start = 0
    for frames in sizes:
        rig.run(start, frames)
        start += frames
        for layer in range(LAYERS):
            for head in range(HEADS):
                slots = rig.stream.lane(layer, head).slots
                for frame, slot in slots.slot.items():
                    for row in range(batch):
                        page = rig.pool.regions.base[layer, row, head] + slot
                        key, value = rig.written[layer, frame]
                        assert torch.equal(rig.pool.k[page], key[row, :, head])
                        assert torch.equal(rig.pool.v[page], value[row, :, head])


def test_a_pool_has_the_batch_of_its_stream():
    stream = Stream(everywhere("window(1)"), 2)
    with pytest.raises(HeadforceError, match="HF-SHAPE"):
        PagePool(stream, PageShape(3, ROWS, 4, 3, torch.float32, CPU))


def test_each_video_of_a_batch_has_stores_of_its_own():
    pool = pool_of(everywhere("episodic(2, write=novel(0.5)) | window(1)"), batch=2)

    def by_row(lane):
        # The first video writes every frame, the second none.
        return novel_by(lambda store, held, unit: (lane.first[1] == 0, held[0] if held else FrameSet()))

    for start in (0, 3, 6):
        begin(pool, start, 3, by_row)
        check_plan(pool.stream)
        check_tables(pool)
    stores = [pool.stream.lane(0, 1, row).memory.held["episodic"] for row in range(2)]
    assert [list(frames) for frames in stores] == [[4, 5], []]


# --- the checker is checked -------------------------------------------------------------------------------------


def running_pool():
    pool = pool_of(everywhere("sink(1)@collapse(4) | window(3)"), batch=2)
    for start in range(0, 15, 3):
        begin(pool, start, 3)
    check_tables(pool)
    return pool


def shift_a_slot(pool):
    pool.runs[1][0, 0] += ROWS


def shift_a_row(pool):
    pool.runs[1][0, 0] += 1


def drop_a_page(pool):
    pool.runs[0][0, 1] -= ROWS


def drop_a_run(pool):
    pool.reads[0][1, 5] -= 1


def swap_heads(pool):
    pool.reads[0][[0, 1], 4] = pool.reads[0][[1, 0], 4]


def swap_batch_rows(pool):
    pool.reads[0][[0, HEADS], 4] = pool.reads[0][[HEADS, 0], 4]


def drop_a_query(pool):
    pool.reads[0][0, 3] -= ROWS


def drop_a_query_row(pool):
    pool.reads[0][0, 3] -= 1


def forget_the_turn(pool):
    pool.runs[0][:, 2] = 0


def write_elsewhere(pool):
    pool.pages[1][0, 0] += 1


FAULTS = [
    shift_a_slot,
    shift_a_row,
    drop_a_page,
    drop_a_run,
    swap_heads,
    swap_batch_rows,
    drop_a_query,
    drop_a_query_row,
    forget_the_turn,
    write_elsewhere,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_tables_are_caught(fault):
    pool = running_pool()
    fault(pool)
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_tables(pool)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f is not write_elsewhere])
@pytest.mark.parametrize("target", ["reference", "sdpa"])
def test_faulty_tables_change_the_result_beyond_any_tolerance(fault, target):
    rig = Rig(everywhere("sink(1)@collapse(4) | window(3)"), target, batch=2, tokens=ROWS)
    for start in range(0, 15, 3):
        results = rig.run(start, 3)
    fault(rig.pool)
    worst = 0.0
    for layer, (query, _) in enumerate(results):
        difference = (rig.attention(layer, query) - rig.expected(layer, query)).abs().max()
        worst = max(worst, torch.nan_to_num(difference, nan=torch.inf).item())
    assert worst > 1e-3
