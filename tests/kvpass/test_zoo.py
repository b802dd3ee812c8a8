"""Every form of the zoo is found, with operands that rebuild what the graph computes."""

import pytest
import torch

from headforce.testing import zoo
from headforce.testing.graphs import SAME
from headforce.testing.recording import Recorder


def rollout(layer, chunks=5, batch=1, dynamic=None, passes=2):
    """Run a rollout; every call of every graph is checked by the recorder."""
    recorder = Recorder(angles=zoo.angles())
    compiled = torch.compile(layer, backend=recorder, dynamic=dynamic, fullgraph=True)
    cache, dtype = layer.new_cache(batch, frames=5), layer.k.weight.dtype
    with torch.no_grad():
        for x, start in zoo.inputs(chunks, batch, passes, dtype):
            compiled(x, cache, start)
    assert recorder.codes == []
    assert all(len(report.found) == 1 for report in recorder.reports)
    return recorder


@pytest.mark.parametrize(
    ("rope", "batch"), [*((rope, 1) for rope in zoo.ROPES), *((rope, 2) for rope in ("complex", "written", "half"))]
)
def test_rope_forms(rope, batch):
    layer = zoo.SelfAttention(rope=rope)
    recorder = rollout(layer, chunks=3, batch=batch, passes=1)
    for report in recorder.reports:
        (site,) = report.found
        if rope == "none":
            assert site.rope is None
            assert "HF-ROPE" in site.notes[0]
            continue
        form = site.rope
        assert (form.kind, form.pairs, form.temporal) == (zoo.ROPES[rope][1], 6, (0, 2))
        assert form.grid == zoo.GRID
        assert len(form.tables) == (1 if form.kind == "complex" or rope == "rates" else 2)
        assert form.holds == ("rates" if rope == "rates" else "turns")
        assert site.cache.keys_rotated == "before"
    if rope != "none":
        starts = [call["start"] for call in recorder.calls]
        assert starts == [call["key_start"] for call in recorder.calls] == [0, 2, 4]
        assert {(call["frames"], call["tokens"]) for call in recorder.calls} == {(2, zoo.TOKENS)}
        assert all(call["factors"] for call in recorder.calls)


@pytest.mark.parametrize("core", zoo.CORES)
def test_cores(core):
    recorder = rollout(zoo.SelfAttention(core=core), chunks=2, passes=1)
    site = recorder.site
    assert (site.heads, site.kv_heads, site.head_dim, site.value_dim) == (4, zoo.CORES[core][1], 12, 12)
    assert site.mask.kind == ("all_true" if core in ("sdpa_masked", "written_mask", "written_filled") else "none")
    scales = dict.fromkeys(("sdpa_permuted", "sdpa_reshaped", "written_einsum", "written_bmm", "written_filled"), 0.25)
    assert site.scale == pytest.approx(scales.get(core, 12**-0.5))


@pytest.mark.parametrize(
    ("protocol", "core"),
    [*((p, "sdpa") for p in zoo.PROTOCOLS), *((p, "sdpa_reshaped") for p in ("append_heads_first", "cat_window"))],
)
def test_protocols(protocol, core):
    recorder = rollout(zoo.SelfAttention(protocol=protocol, core=core), chunks=3, passes=1)
    for report in recorder.reports:
        form = report.found[0].cache
        assert form.kind == zoo.PROTOCOLS[protocol][1]
        assert report.inputs[form.k_input.name].endswith("['k']")
        assert report.inputs[form.v_input.name].endswith("['v']")
        assert bool(form.returned) == (protocol in ("cat_past", "cat_window"))


@pytest.mark.parametrize(
    ("protocol", "sink", "window", "dynamic"),
    [
        ("append", 1, 5, None),
        pytest.param("append", 1, 5, True, marks=pytest.mark.slow),
        ("append_short_window", 0, 4, None),
    ],
)
def test_filling_first_roll_and_rolling(protocol, sink, window, dynamic):
    """The same site in every graph; its expressions give the rows of every pass."""
    recorder = rollout(zoo.SelfAttention(protocol=protocol), chunks=6, dynamic=dynamic)
    t, names = zoo.TOKENS, {report.found[0].name for report in recorder.reports}
    assert len(names) == 1
    ends = [2, 2, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6]
    assert [call["append"] for call in recorder.calls] == [((e - 2) * t, e * t) for e in ends]
    size = 6 if protocol == "append" else 4
    assert [call["read"] for call in recorder.calls] == [(max(0, e - size) * t, e * t) for e in ends]
    rolls = [call for call in recorder.calls if "source" in call]
    assert [(c["source"], c["target"]) for c in rolls] == [((3 * t, 6 * t), (t, 4 * t))] * 3
    assert {(c["sink"], c["window"]) for c in rolls} == {(sink * t, window * t)}
    assert [call["start"] for call in recorder.calls] == [c // 2 * 2 for c in range(12)]


@pytest.mark.parametrize("rope", ["complex", "stacked"])
def test_bf16_and_autocast(rope):
    recorder = rollout(zoo.SelfAttention(rope=rope, dtype=torch.bfloat16), chunks=2, passes=1)
    assert recorder.site.dtype == recorder.site.cache.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recorder = rollout(zoo.SelfAttention(rope=rope), chunks=2, passes=1)
    assert recorder.site.dtype == torch.bfloat16
    assert recorder.site.rope is not None


@pytest.mark.parametrize(
    ("rope", "protocol", "dynamic"),
    [("complex", "append", None), ("half", "append", True), ("turned", "cat_window", None)],
)
def test_keys_rotated_when_read(rope, protocol, dynamic):
    """Raw keys in the cache: the site's new key is raw, and both clocks are those of the read."""
    recorder = rollout(zoo.SelfAttention(rope, protocol, raw_cache=True), chunks=3, passes=1, dynamic=dynamic)
    for report in recorder.reports:
        (site,) = report.found
        assert site.cache.keys_rotated == "after"
        assert site.new_key.node is site.rope.raw_key.node
    assert {call["key_start"] for call in recorder.calls} == {0}
    held = [5, 5, 5] if protocol == "cat_window" else [0, 2, 4]
    reads = [min(4, h + 2) - 2 for h in held] if protocol == "cat_window" else held
    assert [call["start"] for call in recorder.calls] == reads


def everything(x):
    for same in SAME.values():
        x = same(x)
    return x


def found_around(same, protocol, chunks, dynamic):
    """A layer with `same` on the new rows, on the way out of the cache, and on the query: found in every graph."""
    inner = zoo.PROTOCOLS[protocol][0]

    def around(k, v, cache, start):
        k, v = inner(same(k), same(v), cache, start)
        return same(k), same(v)

    layer = zoo.SelfAttention("stacked", around, core=lambda q, k, v: zoo.sdpa(same(q), k, v))
    layer.concatenates = protocol == "cat_window"
    recorder = rollout(layer, chunks, passes=1, dynamic=dynamic)
    assert all(report.found[0].rope is not None for report in recorder.reports)


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_what_keeps_values_is_looked_through(same):
    found_around(same, "append", 1, None)


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "dynamic"), [("append", None), ("append", True), ("cat_window", None)])
def test_all_of_it_at_once(protocol, dynamic):
    found_around(everything, protocol, 2, dynamic)
