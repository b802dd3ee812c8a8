"""Forcing-KV against a plain state machine of its published code, and against its published sizes."""

from pathlib import Path

import pytest

from headforce.errors import HeadforceError
from headforce.lowering.footprint import footprint
from headforce.lowering.preview import preview
from headforce.policy import Schedule
from headforce.presets import Labels, forcing_kv

DATA = Path(__file__).parents[3] / "shared" / "data"
LABELS = Labels((("dynamic", "static", "dynamic"), ("static", "dynamic", "dynamic"), ("dynamic", "dynamic", "static")))


def published(chunks, ar_start, s=1, t=1, d=1, segments=6, sink=1):
    """The caches of the code, chunk by chunk of three frames: (static reads, dynamic reads, ungrouped reads).

    A read is (frames, segments). Which segments are kept is for the keys to say; here the newest are.
    """
    everything, grouped = {"sink": [], "local": []}, None
    for i in range(chunks):
        current = [3 * i, 3 * i + 1, 3 * i + 2]
        whole = (set(everything["sink"]) | set(everything["local"]), set())
        if grouped is None:
            yield whole, whole, whole
        else:
            first = set(everything["sink"])
            yield (first | set(grouped["static"]), set()), (first | set(grouped["ring"]), grouped["kept"]), whole
        # The clean pass.
        frames = everything["sink"] + everything["local"] + current
        if grouped is None:
            everything["sink"] = frames[:sink]
        else:
            candidates = grouped["ring"] + current[: 3 - t]
            parts = [(frame, part) for frame in candidates for part in range(segments)]
            assert len(parts) == 3 * segments
            grouped = {"static": current[-s:], "ring": current[-t:], "kept": set(parts[-d * segments :])}
        rest = [frame for frame in frames if frame not in everything["sink"]]
        everything["local"] = rest[-max(s, t) :]
        if i == ar_start:
            grouped = {"static": everything["local"][-s:], "ring": everything["local"][-t:], "kept": set()}


def planned(policy, schedule, layers=3, heads=3):
    """For every chunk, (layer, head) -> (frames, segments) read besides it."""
    for plan in preview(policy.bind(layers=layers, heads=heads, tokens=1560), Schedule(schedule)):
        reads = {}
        for layer in range(layers):
            for head in range(heads):
                (reading,) = plan.of(layer, head).readings
                parts = [part for item in reading.parts for part in item.parts]
                assert all(part.frames == (part.at,) for part in parts)
                frames = {f for item in reading.items for f in item.frames}
                reads[layer, head] = (frames, {(part.at, part.index) for part in parts})
        yield reads


@pytest.mark.parametrize("ar_start", [1, 2, 4])
@pytest.mark.parametrize(("s", "t"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_reads_are_those_of_the_code_at_chunks_0_to_40(ar_start, s, t):
    policy = forcing_kv(LABELS, static_window=s, dynamic_window=t, warmup_chunks=ar_start + 1)
    for i, (reads, (static, dynamic, ungrouped)) in enumerate(
        zip(planned(policy, (3,) * 41), published(41, ar_start, s, t), strict=True)
    ):
        for (layer, head), found in reads.items():
            kind = "ungrouped" if layer == 0 else LABELS.layers[layer][head]
            assert found == {"static": static, "dynamic": dynamic, "ungrouped": ungrouped}[kind], (i, layer, head)


def test_the_timeline_of_the_paper_code():
    """With ar_start=1: chunk 0 reads 3 frames, chunks 1 and 2 read 5, later static heads 5 and dynamic ones 6."""
    bound = forcing_kv(LABELS).bind(layers=3, heads=3, tokens=1560)
    sizes = [[plan.of(1, head).kept + 3 for head in (0, 1)] for plan in preview(bound, Schedule((3,) * 6))]
    assert sizes == [[3, 3], [5, 5], [5, 5], [5, 6], [5, 6], [5, 6]]


@pytest.mark.parametrize("schedule", [(1,) * 20, (1, 3, 3, 3, 2, 3, 1, 3), (8,) * 5])
def test_other_chunks(schedule):
    """Candidates are what leaves the window, whatever the size of a chunk."""
    start, before = 0, None
    for i, (frames, reads) in enumerate(zip(schedule, planned(forcing_kv(LABELS), schedule), strict=True)):
        whole, parts = reads[1, 1]
        assert whole == {f for f in (0, start - 1) if 0 <= f < start}
        left = [] if i < 3 else [f for f in range(max(0, before - 1), start - 1) if f]
        assert parts == {(f, part) for f in left[-1:] for part in range(6)}
        before, start = start, start + frames


def test_layers_without_labels_are_dynamic_and_14b_models_select_nothing():
    labels = Labels.from_forcing_kv(LABELS.to_forcing_kv()["layers"], layers=4)
    policy = forcing_kv(labels, selected=0, dynamic_window=3, ungrouped_layers=())
    *_, reads = planned(policy, (3,) * 8, layers=4)
    assert reads[3, 0] == reads[0, 0] == ({0, 18, 19, 20}, set())
    assert reads[0, 1] == ({0, 20}, set())


@pytest.mark.skipif(not DATA.exists(), reason="the published label files are not here")
@pytest.mark.parametrize(
    ("file", "gib", "mean"),
    [("forcingkv_heads_selfforcing.json", 0.70, 5.61), ("forcingkv_heads_longlive.json", 0.684, 5.56)],
)
def test_history_is_what_the_published_labels_need(file, gib, mean):
    """The authors' code holds 1.22 GiB, with copies that nothing reads any more."""
    bound = forcing_kv(DATA / file).bind(layers=30, heads=12, tokens=1560)
    size = footprint(bound, Schedule((3,) * 40), 2 * 1560 * 128 * 2)
    assert size.history_bytes / 2**30 == pytest.approx(gib, abs=0.005)
    *_, plan = preview(bound, Schedule((3,) * 10))
    read = sum(plan.of(layer, head).kept + 3 for layer in range(30) for head in range(12))
    assert float(read) / 360 == pytest.approx(mean, abs=0.005)


def test_segments_that_do_not_divide_the_frame():
    with pytest.raises(HeadforceError, match="HF-SEGMENTS"):
        forcing_kv(LABELS, segments=7).bind(layers=3, heads=3, tokens=1560)
