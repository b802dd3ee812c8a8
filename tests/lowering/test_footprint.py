"""Bytes of a policy before anything runs, and the JSON of a plan."""

import json

import pytest
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.lowering.footprint import DTYPE_BYTES, footprint
from headforce.lowering.plan import Planner
from headforce.lowering.preview import preview, to_json
from headforce.policy import Policy, Schedule, Warmup, parse_rule
from headforce.testing.rig import Rig
from headforce.testing.strategies import policies, schedules

NATIVE = parse_rule("span(21)")
FRAME = 2 * 1560 * 128 * 2  # K and V of one frame of one head at 480p in bfloat16


def sizes(policy, schedule, layers=1, heads=1, native=NATIVE, frame_bytes=1):
    return footprint(policy.bind(layers=layers, heads=heads, native=native), Schedule.parse(schedule), frame_bytes)


def test_native_is_the_cache_of_the_model():
    """Self-Forcing holds 21 frames of 30 layers x 12 heads: 6.04 GB, the current chunk included."""
    size = sizes(Policy({}), "3x14", 30, 12, frame_bytes=FRAME)
    assert size.pool_bytes == size.dense_bytes == 21 * 360 * FRAME == 6_038_323_200


def test_one_frame_of_history_and_the_chunk():
    size = sizes(Policy({"a": parse_rule("window(1)")}, "a"), "3x14", 2, 5, frame_bytes=10)
    assert (size.history_bytes, size.current_bytes, size.pool_bytes) == (100, 300, 400)
    assert size.dense_bytes == 21 * 10 * 10


def test_heads_are_counted_one_by_one():
    policy = Policy({"a": parse_rule("window(4)"), "b": parse_rule("drop()")}, "a", heads={1: {"b": (0,)}})
    size = sizes(policy, "3x9", layers=2, heads=2)
    assert [[head.peak for head in row] for row in size.capacity] == [[4, 4], [0, 4]]
    assert size.history_bytes == 12


def test_warmup_counts_for_the_peak_only():
    policy = Policy({"a": parse_rule("window(1)")}, "a", warmup=Warmup(3, parse_rule("window(5)")))
    assert (sizes(policy, "3x9").capacity[0][0].peak, sizes(policy, "3x9").capacity[0][0].steady) == (5, 1)
    assert (sizes(policy, "3x2").capacity[0][0].peak, sizes(policy, "3x2").capacity[0][0].steady) == (3, 0)


def test_irregular_chunks():
    size = sizes(Policy({"a": parse_rule("span(6)")}, "a"), "1,5,2")
    assert size.capacity[0][0].peak == 4
    assert size.current_bytes == 5


def test_without_a_native_rule_nothing_is_compared():
    assert sizes(Policy({"a": parse_rule("window(1)")}, "a"), "3x4", native=None).dense_bytes == 0


def test_a_model_that_reads_everything():
    size = sizes(Policy({}, horizon=30), "3x5", native=parse_rule("everything()"))
    assert size.dense_bytes == size.pool_bytes == 30  # a session does not know that the stream ends before


def test_dtypes():
    assert DTYPE_BYTES == {"float32": 4, "bfloat16": 2, "float16": 2}


# --- JSON ---------------------------------------------------------------------------------------------------------


def plan_json(policy, schedule, layers=2, heads=3):
    bound = policy.bind(layers=layers, heads=heads, native=NATIVE)
    return json.loads(json.dumps(to_json(bound, schedule, footprint(bound, schedule, 8))))


def test_json_of_a_small_plan():
    policy = Policy({"a": parse_rule("sink(1)@collapse(2) | window(1)")}, "a")
    assert plan_json(policy, Schedule.parse("2x2"), 1, 1) == {
        "version": 1,
        "chunks": [
            {"start": 0, "frames": 2, "read": {"0": {"0": [{"q": [0, 1], "items": []}]}}},
            {
                "start": 2,
                "frames": 2,
                "read": {
                    "0": {
                        "0": [
                            {
                                "q": [2],
                                "items": [
                                    {"kind": "sink", "frames": [0], "pos": [0]},
                                    {"kind": "window", "frames": [1], "pos": [1]},
                                ],
                            },
                            {
                                "q": [3],
                                "items": [
                                    {"kind": "sink", "frames": [0], "pos": [1]},
                                    {"kind": "window", "frames": [1], "pos": [1]},
                                ],
                            },
                        ]
                    }
                },
            },
        ],
        "capacity_frames": {"0": {"0": {"peak": 2, "steady": 2}}},
        "history_bytes": 16,
        "steady_bytes": 16,
        "current_bytes": 16,
        "pool_bytes": 32,
        "dense_bytes": 21 * 8,
    }


@settings(max_examples=30)
@given(policies(layers=2, heads=3), schedules())
def test_json_says_what_the_plan_says(policy, schedule):
    data = plan_json(policy, schedule)
    planner = Planner(policy.bind(layers=2, heads=3, native=NATIVE))
    assert [(c["start"], c["frames"]) for c in data["chunks"]] == [(c.start, c.frames) for c in schedule]
    for chunk, said in zip(schedule, data["chunks"], strict=True):
        plan = planner.plan(chunk)
        for layer in range(2):
            for head in range(3):
                readings = said["read"][str(layer)][str(head)]
                assert [q for reading in readings for q in reading["q"]] == list(chunk.queries)
                expected = plan.of(layer, head).readings
                for reading, its in zip(readings, expected, strict=True):
                    assert [(i["kind"], tuple(i["frames"]), tuple(i["pos"])) for i in reading["items"]] == [
                        (i.kind, i.frames, i.positions) for i in its.items
                    ]
                    peak = data["capacity_frames"][str(layer)][str(head)]["peak"]
                    assert sum(len(i["frames"]) for i in reading["items"]) <= peak
    assert data["pool_bytes"] == data["history_bytes"] + data["current_bytes"]


def test_stores_are_shown_at_their_busiest():
    bound = Policy({"a": parse_rule("episodic(2)")}, "a").bind(layers=1, heads=1)
    last = list(preview(bound, Schedule.parse("3x4")))[-1]
    assert last.of(0, 0).readings[0].items[0].frames == (7, 8)


def test_past_the_horizon():
    with pytest.raises(HeadforceError, match="HF-HORIZON"):
        sizes(Policy({"a": parse_rule("sink(1)")}, "a", horizon=10), "3x4")


SPARSE = 'sink(1) | stride(6, phase="query", last=4)'


@pytest.mark.parametrize(
    ("rule", "warmup"),
    [
        ("stride(12, phase=0, last=6) | window(1)", None),
        (SPARSE, None),
        ("window(1)", Warmup(2, parse_rule("window(6)"))),
        (SPARSE, Warmup(2, parse_rule("window(6)"))),
    ],
)
@pytest.mark.parametrize("schedule", ["3x4", "3x30", "1,3,3,3", "2,5,2"])
def test_bytes_are_those_of_the_pools_however_short_the_plan_is(rule, warmup, schedule):
    policy = Policy({"a": parse_rule(rule)}, "a", warmup=warmup)
    rig, held = Rig(policy.bind(layers=1, heads=1)), []
    for chunk in Schedule.parse(schedule):
        rig.run(chunk.start, chunk.frames)
        held.append(rig.pool.k.shape[0])
    size = sizes(policy, schedule)
    assert size.pool_bytes == max(held)
    if warmup is not None and schedule != "2,5,2":  # there no chunk behind the warm-up is as long as one in it
        assert size.steady_bytes + size.current_bytes == held[-1]
