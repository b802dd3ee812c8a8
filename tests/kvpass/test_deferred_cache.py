"""Caches that are copied, written and committed later; and parts of one buffer that are joined."""

import copy

import pytest
import torch

from headforce.testing import zoo
from headforce.testing.zoo import TOKENS

from .test_refusals import report
from .test_zoo import rollout

SINK, WINDOW, NEW = 2, 3, 2  # frames


@pytest.mark.parametrize("protocol", ["append_sink_and_window", "deferred_sink_and_window"])
def test_sink_and_window_of_one_buffer(protocol):
    """The parts of every pass while the cache fills, at the first roll, and rolling; passes are repeated."""
    recorder = rollout(zoo.SelfAttention(protocol=protocol), chunks=6)
    ends = [2, 2, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6]
    calls = recorder.calls
    assert [call["append"] for call in calls] == [((e - NEW) * TOKENS, e * TOKENS) for e in ends]
    sites = [report.found[0] for report in recorder.reports]
    # The first graphs see a sink that ends with the new rows; the window has none of its own yet.
    assert {len(site.cache.segments) for site in sites} == {1, 2}
    sink = (0, SINK * TOKENS)
    assert [call["segments"] for call in calls] == [
        [sink] if end == SINK else [sink, (max(SINK, end - WINDOW) * TOKENS, end * TOKENS)] for end in ends
    ]


@pytest.mark.parametrize("protocol", ["deferred", "deferred_sink_and_window"])
def test_every_write_of_copy_and_cache_is_deleted(protocol):
    """What owned mode deletes leaves nothing behind that reads or writes the cache."""
    recorder = rollout(zoo.SelfAttention(protocol=protocol), chunks=5)
    for report_ in recorder.reports:
        form = report_.found[0].cache
        writes = [node for node in form.k_input.graph.nodes if node.name.startswith("setitem")]
        assert set(form.write_nodes) | set(form.roll_nodes) == set(writes)


# Each differs from `zoo.deferred` in one thing.


def begun(cache):
    return {name: cache[name].clone() if name in "kv" else cache[name] for name in cache}


def not_committed(k, v, cache, start):
    return zoo.append(k, v, begun(cache), start)


def committed_elsewhere(k, v, cache, start):
    read = zoo.append(k, v, begun(cache), start)
    zoo.append(k, v, cache, start + TOKENS)
    return read


def other_values(k, v, cache, start):
    read = zoo.append(k, v, begun(cache), start)
    zoo.append(k * 2, v, cache, start)
    return read


def keys_alone(k, v, cache, start):
    read = zoo.append(k, v, begun(cache), start)
    cache["k"][:, start : start + k.shape[1]] = k
    return read


def written_before(k, v, cache, start):
    cache["k"][:, start : start + k.shape[1]] = k
    cache["v"][:, start : start + k.shape[1]] = v
    return zoo.append(k, v, begun(cache), start)


def read_besides(k, v, cache, start):
    read = zoo.append(k, v, begun(cache), start)
    cache["sum"] = cache["k"].sum()
    zoo.append(k, v, cache, start)
    return read


def copy_read_besides(k, v, cache, start):
    copied = begun(cache)
    read = zoo.append(k, v, copied, start)
    cache["sum"] = copied["v"].sum()
    zoo.append(k, v, cache, start)
    return read


def parts_out_of_order(k, v, cache, start):
    zoo.append(k, v, cache, start)
    end = cache["held"]
    parts = [slice(TOKENS, 2 * TOKENS), slice(0, TOKENS), slice(2 * TOKENS, end)]
    return tuple(torch.cat([cache[name][:, part] for part in parts], dim=1) for name in "kv")


def a_part_past_the_end(k, v, cache, start):
    zoo.append(k, v, cache, start)
    end = cache["held"]
    parts = [slice(0, end), slice(end, end + TOKENS)]
    return tuple(torch.cat([cache[name][:, part] for part in parts], dim=1) for name in "kv")


@pytest.mark.parametrize(
    ("protocol", "code"),
    [
        (not_committed, "HF-CACHE-COMMIT"),
        (committed_elsewhere, "HF-CACHE-COMMIT"),
        (other_values, "HF-CACHE-COMMIT"),
        (keys_alone, "HF-CACHE-COMMIT"),
        (written_before, "HF-CACHE-ORDER"),
        (read_besides, "HF-ESCAPE"),
        (copy_read_besides, "HF-ESCAPE"),
        (parts_out_of_order, "HF-CACHE-RANGE"),
        (a_part_past_the_end, "HF-CACHE-RANGE"),
    ],
)
def test_what_is_not_deferred_is_refused(protocol, code):
    layer = zoo.SelfAttention(protocol=protocol)
    cache = layer.new_cache(1, 5)
    cache.update(held=2 * TOKENS, seen=2 * TOKENS)
    x, _ = next(zoo.inputs(1))
    with torch.no_grad():
        layer(x, copy.deepcopy(cache), 2 * TOKENS)  # it is a program that runs
    only = report(layer)
    assert only.found == ()
    assert [r.code for r in only.refused] == [code], only.refused
