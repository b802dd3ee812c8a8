"""Presets against plain state machines, written from the papers and the published code and from nothing of ours."""

import json
from pathlib import Path

import jsonschema
import pytest

from headforce.errors import HeadforceError
from headforce.lowering.footprint import footprint
from headforce.lowering.preview import preview
from headforce.policy import Policy, Schedule
from headforce.policy.file import schema
from headforce.presets import (
    Labels,
    deep_forcing,
    dummy_forcing,
    forcing_kv,
    head_forcing,
    load_presets,
    longlive,
    make_preset,
    pyramid_forcing,
    self_forcing,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
SYSTEMS = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")

LABELS = Labels((("sink", "neighbor", "dummy"), ("dummy", "neighbor", "neighbor")))
ROLES = Labels((("local", "anchor", "memory"), ("memory", "local", "anchor")))
SCHEDULES = {"threes": (3,) * 41, "ones": (1,) * 41, "eights": (8,) * 6, "irregular": (1, *(3,) * 12, 2, 5, 1)}


def planned(policy, schedule, layers=2, heads=3):
    """For every chunk, (first frame, {(layer, head): committed frames it reads})."""
    bound = policy.bind(layers=layers, heads=heads)
    for plan in preview(bound, Schedule(schedule)):
        reads = {}
        for layer in range(layers):
            for head in range(heads):
                readings = plan.of(layer, head).readings
                reads[layer, head] = [set(map(int, r.frames[:, 0])) for r in readings]
        yield plan.chunk, reads


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("window", "sink"), [(21, 0), (12, 3), (9, 1)])
def test_a_rolling_cache_with_a_sink(window, sink, schedule):
    """Self Forcing and LongLive: a list that drops its oldest frames behind the sink when it overflows."""
    cache = []
    for chunk, reads in planned(self_forcing(window, sink), schedule):
        cache += list(chunk.queries)
        while len(cache) > window:
            del cache[sink]
        for frames in reads.values():
            assert frames == [set(cache) - set(chunk.queries)]


def test_longlive_is_twelve_frames_with_three_in_front():
    assert longlive() == self_forcing(window=12, sink=3)
    *_, (chunk, reads) = planned(longlive(), (3,) * 10)
    assert chunk.start == 27
    assert reads[0, 0] == [{0, 1, 2, 21, 22, 23, 24, 25, 26}]


@pytest.mark.parametrize("classify_at", [1, 2])
@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("quirks", [(), ("no_first_frame",)])
def test_dummy_forcing_is_its_two_caches(classify_at, context, quirks):
    """The published code, chunk by chunk: `sink` and `local` of all heads, then of groups of heads.

    But for frame 0, which neighbor heads read as long as their context reaches back to it, unless the quirk is named.
    """
    policy = dummy_forcing(LABELS, context=3 * context, classify_at=classify_at, quirks=quirks)
    sink, local, last = [], [], []
    for chunk, reads in planned(policy, (3,) * 41):
        current = list(chunk.queries)
        for (layer, head), frames in reads.items():
            kind = LABELS.layers[layer][head]
            if chunk.index <= classify_at:
                expected = sink + local
            else:
                expected = {"sink": sink, "neighbor": local, "dummy": last}[kind]
                if kind == "neighbor" and chunk.start <= 3 * context and not quirks:
                    expected = [0, *expected]  # the docstring says so
            assert frames == [set(expected)], (chunk.index, kind)
        everything = sink + local + current
        sink = everything[:1]
        local = (local + current)[-3 * context :] if chunk.index > context - 1 else everything[1:]
        last = current[-1:]


def test_dummy_forcing_reads_what_the_paper_counts():
    """4 frames for sink and dummy heads, 6 for neighbors, the chunk included; 180 of 360 heads are dummies."""
    *_, (chunk, reads) = planned(dummy_forcing(LABELS), (3,) * 20)
    counts = {LABELS.layers[layer][head]: len(*frames) + chunk.frames for (layer, head), frames in reads.items()}
    assert counts == {"sink": 4, "neighbor": 6, "dummy": 4}
    *_, (_, reads) = planned(dummy_forcing(LABELS, packed=0), (3,) * 20)
    assert reads[0, 2] == [set()]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_head_forcing_without_memory_is_sinks_and_windows(schedule):
    """Local and anchor heads, and positions: what is read, in order, with the chunk at its end."""
    policy = head_forcing(ROLES, local_window=2, anchor_sink=2, anchor_window=3, position_range=30)
    bound = policy.bind(layers=2, heads=3)
    for plan in preview(bound, Schedule(schedule)):
        past = list(range(plan.chunk.start))
        expected = {"local": past[-2:], "anchor": sorted({*past[:2], *past[-3:]})}
        for layer, names in enumerate(ROLES.layers):
            for head, name in enumerate(names):
                if name not in expected:
                    continue
                (reading,) = plan.of(layer, head).readings
                places = {int(f): int(f + shift) for f, shift in reading.frames}
                frames = expected[name]
                assert list(places) == frames
                assert list(places.values()) == list(range(plan.chunk.start - len(frames), plan.chunk.start))


def test_positions_stay_in_range_for_thousands_of_frames():
    policy = head_forcing(ROLES)
    bound = policy.bind(layers=2, heads=3)
    rules = {bound.rules[layer][head].text for layer in range(2) for head in range(3)}
    assert len(rules) == 3
    from headforce.policy import Chunk, oracle

    for start in (3, 300, 2997):
        chunk = Chunk(start // 3, start, 3)
        for name, rule in policy.classes.items():
            if name != "memory":  # which depends on what was novel; its positions are contiguous by the same code
                reads = oracle.read(rule, None, chunk, chunk.stop - 1, None)
                assert all(0 < chunk.stop - 1 - position <= 20 for position in reads.values())


def test_every_preset_is_a_file_and_back():
    kinds = {
        "dummy_forcing": LABELS,
        "head_forcing": ROLES,
        "forcing_kv": Labels((("static", "dynamic"),)),
        "pyramid_forcing": Labels((("wave", "anchor", "veil"),)),
    }
    for name in load_presets():
        labels = kinds.get(name)
        policy = make_preset(name, **({"labels": labels} if labels else {}))
        assert Policy.loads(policy.dumps()) == policy
        assert make_preset(name, **({"labels": labels} if labels else {})) == policy


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("longlife", {}, "did you mean 'longlive'"),
        ("longlive", {"windows": 3}, "did you mean 'window'"),
        ("head_forcing", {}, "no labels"),
        ("longlive", {"window": "12"}, "window='12'"),
        ("self_forcing", {"window": True}, "window=True"),
        ("deep_forcing", {"segments": 2.5}, r"segments=2\.5"),
        ("forcing_kv", {"labels": LABELS, "ungrouped_layers": "0"}, "ungrouped_layers='0'"),
        ("dummy_forcing", {"quirks": "no_first_frame"}, "quirks='no_first_frame'"),
        ("dummy_forcing", {"quirks": ["no_frist_frame"]}, r"quirk 'no_frist_frame'.*did you mean 'no_first_frame'"),
        ("pyramid_forcing", {"labels": ROLES, "quirks": ["pinned"]}, r"quirk 'pinned'.*any of pinned_frame"),
    ],
)
def test_what_does_not_exist(name, arguments, says):
    with pytest.raises(HeadforceError, match=says) as caught:
        make_preset(name, **arguments)
    assert caught.value.code == "HF-PRESET"


def test_labels_of_another_system_are_refused():
    with pytest.raises(HeadforceError, match=r"HF-LABELS.*'anchor'"):
        dummy_forcing(ROLES)


def test_a_head_that_the_model_lacks():
    with pytest.raises(HeadforceError, match="HF-POLICY-SHAPE"):
        dummy_forcing(LABELS).bind(layers=2, heads=2)


@pytest.mark.parametrize("name", ["dummy_forcing", "forcing_kv", "head_forcing", "pyramid_forcing"])
@pytest.mark.parametrize("size", [(30, 12), (2, 12), (3, 4), (1, 4), (2, 3)])
def test_labels_are_of_one_model(name, size):
    """Those of a smaller model would leave the other heads to the default class, in silence."""
    policy = make_preset(name, labels=EXAMPLES / "labels" / f"{name}.tiny.json")
    assert policy.made_for == (2, 4)
    policy.bind(layers=2, heads=4, tokens=1560)
    with pytest.raises(HeadforceError, match=r"HF-POLICY-SHAPE.*2 layers of 4 heads") as caught:
        Policy.loads(policy.dumps()).bind(layers=size[0], heads=size[1], tokens=1560)
    assert caught.value.site == "made_for"


def test_layers_that_forcing_kv_does_not_name_are_of_the_model(tmp_path):
    """As many as its file says there are."""
    file = tmp_path / "labels.json"
    file.write_text(
        '{"num_layers": 3, "num_heads": 2, "layers": [{"layer_idx": 1, "static_head": [0], "dynamic_head": [1]}]}'
    )
    bound = make_preset("forcing_kv", labels=file).bind(layers=3, heads=2, tokens=1560)
    assert bound.classes[1:] == (("static", "dynamic"), ("dynamic", "dynamic"))


def spread(layers, heads, **counts):
    """Labels with so many heads of each class, spread over the layers."""
    names = [name for name, count in counts.items() for _ in range(count)]
    assert len(names) == layers * heads
    return Labels(tuple(tuple(names[layer::layers]) for layer in range(layers)))


@pytest.mark.parametrize(
    ("row", "policies"),
    [
        ("self_forcing", [self_forcing(), self_forcing()]),
        ("longlive", [longlive(), longlive()]),
        (
            "dummy_forcing",
            [
                dummy_forcing(spread(30, 12, sink=60, neighbor=120, dummy=180)),
                dummy_forcing(spread(40, 40, sink=267, neighbor=533, dummy=800)),
            ],
        ),
        (
            "forcing_kv",
            [
                forcing_kv(spread(30, 12, static=134, dynamic=226)),
                forcing_kv(spread(40, 40, static=800, dynamic=800), selected=0, dynamic_window=3, ungrouped_layers=()),
            ],
        ),
        (
            "pyramid_forcing",
            [
                pyramid_forcing(spread(30, 12, wave=156, anchor=172, veil=32)),
                pyramid_forcing(spread(40, 40, wave=693, anchor=765, veil=142)),
            ],
        ),
        ("deep_forcing", [deep_forcing(), deep_forcing()]),
        (
            "head_forcing",
            [
                head_forcing(spread(30, 12, anchor=90, local=54, memory=216)),
                head_forcing(spread(40, 40, anchor=400, local=240, memory=960)),
            ],
        ),
    ],
)
def test_the_table_of_bytes(row, policies):
    """docs/systems.md, as `headforce plan` computes it."""
    expected = []
    for policy, (layers, heads) in zip(policies, ((30, 12), (40, 40)), strict=True):
        for tokens in (1560, 8160):
            bound = policy.bind(layers=layers, heads=heads, tokens=tokens)
            size = footprint(bound, Schedule((3,) * 40), 2 * tokens * 128 * 2)
            steady, peak, chunk = (
                f"{n / 2**30:.2f}" for n in (size.steady_bytes, size.history_bytes, size.current_bytes)
            )
            expected.append(f"{steady}{f' ({peak})' if peak != steady else ''} + {chunk}")
    assert f"| `{row}` | {' | '.join(expected)} |" in SYSTEMS


def test_the_table_of_rules():
    """Every class of every preset stands in docs/systems.md as it is."""
    policies = {
        "self_forcing": self_forcing(),
        "longlive": longlive(),
        "deep_forcing": deep_forcing(),
        "dummy_forcing": dummy_forcing(),
        "forcing_kv": forcing_kv(spread(1, 2, static=1, dynamic=1)),
        "pyramid_forcing": pyramid_forcing(spread(1, 3, wave=1, anchor=1, veil=1)),
        "head_forcing": head_forcing(spread(1, 3, anchor=1, local=1, memory=1)),
    }
    assert set(policies) == set(load_presets())
    for policy in policies.values():
        for rule in policy.classes.values():
            # Arguments that have their default value are spelled out where a reader wants to see them.
            written = str(rule).replace(", unit=frame", "").replace(", write=novel(0.9)", "").replace("|", "\\|")
            assert f"`{written}`" in SYSTEMS, written


ONLINE = "dummy_forcing_online"


@pytest.mark.parametrize("name", [*load_presets(), ONLINE])
def test_every_preset_is_written_out_as_a_file(name):
    labels = EXAMPLES / "labels" / f"{name}.demo.json"
    policy = make_preset(name.removesuffix("_online"), **({"labels": labels} if labels.exists() else {}))
    path = EXAMPLES / "policies" / "systems" / f"{name}.yaml"
    assert Policy.load(path) == policy
    assert path.read_text() == policy.dumps()
    jsonschema.validate(json.loads(policy.dumps("json")), schema())
