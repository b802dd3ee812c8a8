"""Pipelines that switch prompts by themselves: the newest frames run again in one pass, and a sink stays or is new."""

import contextlib

import pytest
import torch
from torch import nn

import headforce
from headforce.errors import HeadforceError
from headforce.kvpass.capture import Change, find_adapter
from headforce.kvpass.capture.dict_cache import DictCacheAdapter
from headforce.policy import Chunk, Policy, oracle
from headforce.run.record import ModelRecord
from headforce.testing import zoo
from headforce.testing.zoo import HEAD_DIM, HEADS, TOKENS

from .test_owned_identity import relative
from .test_owned_policy import TOLERANCE
from .test_refusals import report

pytestmark = pytest.mark.shares_graphs

WINDOW, SINK, CHUNK, CHUNKS = 6, 2, 2, 6
SWITCHES = (4, 8)  # before the window is full, and behind it


def protected(k, v, cache, start):
    """Rows of the sink are written by passes that go on, and by those that run frames again only if told so."""
    sink, capacity, new = SINK * TOKENS, cache["k"].shape[1], k.shape[1]
    stop, seen, held = start + new, cache["global_end_index"], cache["local_end_index"]
    again, evicted = stop <= seen and start > 0, 0
    if stop > seen and held + new > capacity:
        evicted = held + new - capacity
        kept = held - evicted - sink
        for name in ("k", "v"):
            cache[name][:, sink : sink + kept] = cache[name][:, sink + evicted : sink + evicted + kept].clone()
    end = held + stop - seen - evicted
    first = end - new
    at = max(first, sink) if again and not cache["new_sink"] else first
    cache["k"][:, at:end] = k[:, at - first :]
    cache["v"][:, at:end] = v[:, at - first :]
    if not again:
        cache["global_end_index"], cache["local_end_index"] = stop, end
    low = max(sink, end - (capacity - sink))
    return tuple(torch.cat([cache[name][:, :sink], cache[name][:, low:end]], dim=1) for name in ("k", "v"))


class Model(nn.Module):
    """Two layers of attention. The text is in `x`; its caches only say that it is new."""

    def __init__(self):
        super().__init__()
        self.sink_size = SINK
        torch.manual_seed(0)
        self.layers = nn.ModuleList(zoo.SelfAttention(protocol=protected) for _ in range(2))
        self.requires_grad_(False)

    def forward(self, x, kv_cache, crossattn_cache, current_start):
        for layer, cache in zip(self.layers, kv_cache, strict=True):
            x = x + layer(x, cache, current_start)
        return x


class Told(DictCacheAdapter):
    """What LongLive's adapter does."""

    def change(self, model, args, kwargs):
        if kwargs["kv_cache"][0]["new_sink"]:
            return Change.ANEW
        return None if any(text["is_init"] for text in kwargs["crossattn_cache"]) else Change.PROMPT


@contextlib.contextmanager
def prepared(policy, mode="owned", **options):
    model = Model()
    with headforce.prepare(model, policy, mode=mode, verify="plan", **options) as session:
        session.adapter = Told()
        session.compile(inner="eager")
        with torch._dynamo.config.patch(recompile_limit=32):
            yield model, session


def passes(seed, switches=SWITCHES, rerun=True):
    """(first frame, frames, prompt, whether frames run again) of every pass of a video of some prompts."""
    prompt = 0
    for start in range(0, CHUNK * CHUNKS, CHUNK):
        if start in switches:
            prompt += 1
            if rerun:
                yield start - min(WINDOW, start), min(WINDOW, start), prompt, True
        for _ in range(2):
            yield start, CHUNK, prompt, False


def video(model, seed, new_sink, texts=None, **switching):
    """What every pass of a video gives, made as the interactive pipeline does. `texts`: caches for every pass."""
    shape, rows = (1, WINDOW * TOKENS, HEADS, HEAD_DIM), CHUNK * CHUNKS * TOKENS
    caches = [{"k": torch.zeros(shape), "v": torch.zeros(shape)} for _ in model.layers]
    for cache in caches:
        cache.update(global_end_index=0, local_end_index=0)
    text, last, outputs = [{"is_init": False}], 0, []
    generator = torch.Generator().manual_seed(seed)
    frames, prompts = (torch.randn(n, HEADS * HEAD_DIM, generator=generator) for n in (rows, 3))
    for start, count, prompt, again in passes(seed, **switching):
        if again or prompt != last:
            text[0]["is_init"] = False
        last = -1 if again else prompt  # the pipeline empties the text behind such a pass too
        for cache in caches:
            cache["new_sink"] = again and new_sink
            if again and new_sink:
                cache["k"].zero_()
                cache["v"].zero_()
        part = slice(start * TOKENS, (start + count) * TOKENS)
        x, given = (frames[part] + prompts[prompt])[None], texts() if texts else text
        with torch.no_grad():
            outputs.append(model(x, kv_cache=caches, crossattn_cache=given, current_start=start * TOKENS))
        given[0]["is_init"] = True
    return outputs


def same(ours, wanted):
    return all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["owned", "view"])
def test_bitwise_under_native(mode):
    """Every output, also of frames that are sent and not cached; a second video of each kind needs no graphs.

    What `headforce run` makes of the passes is four videos.
    """
    eager = {(seed, new): video(Model(), seed, new) for seed in (1, 2) for new in (False, True)}
    assert not same(eager[1, False], eager[1, True])
    with prepared(Policy({}), mode, canonical_order=True) as (model, session):
        record = ModelRecord("")
        model.register_forward_hook(torch._dynamo.disable(lambda *_: record.ran(session, 0)))
        assert same(video(model, 1, False), eager[1, False])
        assert same(video(model, 1, True), eager[1, True])
        graphs = session.report.graphs
        assert same(video(model, 2, True), eager[2, True])
        assert same(video(model, 2, False), eager[2, False])
        assert session.report.graphs == graphs
        assert session.report.count("refused") == session.misses == 0
        assert record.videos == [[CHUNK] * CHUNKS] * 4
    assert same(video(model, 1, False), eager[1, False])


POLICY = """
headforce: 1
classes:
  near: sink(1) | window(1)
  far: sink(2)@collapse(4) | stride(3, phase=0, last=2) | window(3)
  wave: sink(1) | stride(2, phase="query", last=2)
  short: sink(1) | window(4)
default: near
heads: {0: {far: [0], wave: [2]}, 1: {short: [1], far: [3]}}
on_switch: {far: recache(6), short: flush(1)}
"""


class Reference(zoo.SelfAttention):
    """Reads, head by head, what `reads` names. Frames that are sent and not cached read as the first that is."""

    def forward(self, x, cache, start):
        sent, frames = start // TOKENS, x.shape[1] // TOKENS
        stop, end = sent + frames, len(self.frames)
        q, k, v = (f(x).view(1, -1, HEADS, HEAD_DIM) for f in (self.q, self.k, self.v))
        q, k = (self.rope(t, self.freqs, sent) for t in (q, k))
        if not sent or cache["new_sink"]:
            self.frames, self.origin, end = dict.fromkeys(range(sent)), sent, sent
        first = max(sent, end - WINDOW + SINK) if stop <= end and end - self.origin > WINDOW else sent
        parts = [slice(i * TOKENS, (i + 1) * TOKENS) for i in range(frames)]
        self.frames |= {sent + i: (k[:, p], v[:, p]) for i, p in enumerate(parts) if sent + i >= first}
        chunk, out = Chunk(0, first - self.origin, stop - first), torch.empty_like(q)
        for head in range(HEADS):
            for i, part in enumerate(parts):
                reads = self.reads(head, chunk, max(chunk.start, sent + i - self.origin))
                reads |= {frame: frame for frame in chunk.queries}
                held = [(self.frames[f + self.origin], p - f) for f, p in reads.items()]
                keys = torch.cat([turned(frame[0][:, :, head], shift) for frame, shift in held], 1)
                values = torch.cat([frame[1][:, :, head] for frame, _ in held], 1)
                scores = q[:, part, head].double() @ keys.mT / HEAD_DIM**0.5
                out[:, part, head] = (scores.softmax(-1) @ values.double()).to(q.dtype)
        return self.o(out.flatten(2))


def turned(key, shift):
    """Keys [B, T, D] as if they stood `shift` frames later."""
    time, *other = zoo.angles(2)
    angle = torch.cat([shift * time[1], *(torch.zeros_like(part[1]) for part in other)])
    pairs = torch.view_as_complex(key.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def reference(policy, changes, seed, new_sink, missing=None):
    """The video of a model that reads what the oracle names. `changes`: for every pass, what switches did to each rule.
    `missing`: a head that misses its newest past frame."""
    bound, model, at = policy.bind(layers=2, heads=HEADS), Model(), [0]

    def read(layer, head, chunk, query):
        rule = bound.rules[layer][head]
        found = oracle.read(rule.rule, None, chunk, query, None, changes[at[0]].get(rule.text))
        if missing == (layer, head) and found:
            del found[max(found)]
        return found

    for i, layer in enumerate(model.layers):
        layer.__class__, layer.frames = Reference, {}
        layer.reads = lambda *given, i=i: read(i, *given)

    def count(*_):
        at[0] += 1

    model.register_forward_hook(count)
    return video(model, seed, new_sink)


def test_a_policy_reads_what_the_oracle_names():
    """Frames run again are written anew, and classes do at a switch what they answer; a missing frame shows."""
    policy, changes = Policy.loads(POLICY), []
    with prepared(policy) as (model, session):

        def note(*_):
            changes.append(dict(session.cache_sets[-1].stream.amended))

        model.register_forward_hook(torch._dynamo.disable(note))
        for new_sink in (False, True):
            changes.clear()
            ours = video(model, 1, new_sink)
            wanted = reference(policy, changes, 1, new_sink)
            assert max(relative(a, b) for a, b in zip(ours, wanted, strict=True)) < TOLERANCE
            falsified = reference(policy, changes, 1, new_sink, missing=(1, 1))
            assert max(relative(a, b) for a, b in zip(ours, falsified, strict=True)) > 10 * TOLERANCE
            stream = session.cache_sets[-1].stream
            assert stream.chunk == Chunk(stream.chunk.index, 8 if new_sink else 10, CHUNK)
            if not new_sink:  # of frames 2 to 7 that were sent, 4 to 7 were cached
                cells = {"near": (0, 1), "far": (0, 0), "short": (1, 1)}
                rules = {name: stream.policy.rules[layer][head].text for name, (layer, head) in cells.items()}
                forgotten = {name: str(stream.amended[rule].forgotten) for name, rule in rules.items()}
                assert forgotten == {"near": "1-3", "far": "2-3", "short": "1-3"}
        # A caller with new text caches for every pass does not say when its prompt changes.
        video(model, 1, False, texts=lambda: [{"is_init": False}], switches=())
        assert session.cache_sets[-1].stream.amended == {}


def test_what_a_switch_asks_for_and_the_pipeline_does_not_do():
    """A policy that wants frames to be run again, and a pipeline that goes on."""
    with prepared(Policy.loads(POLICY)) as (model, _), pytest.raises(HeadforceError, match=r"HF-CLOCK.*run again"):
        video(model, 1, False, rerun=False)


def test_view_mode_refuses_what_the_policy_answers():
    policy = Policy.loads("headforce: 1\nclasses: {a: sink(1) | window(1)}\ndefault: a\non_switch: {a: flush(1)}")
    with prepared(policy, "view") as (model, _), pytest.raises(HeadforceError, match="HF-VIEW"):
        video(model, 1, False)


class LongLiveAttention(nn.Module):
    """What its adapter looks for."""

    def __init__(self):
        super().__init__()
        self.max_attention_size = self.sink_size = 1

    def forward(self, x, sink_recache_after_switch=False): ...


class LongLive(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.Module()
        block.self_attn, self.blocks = LongLiveAttention(), nn.ModuleList([block])

    def _forward_inference(self, x, kv_cache=None, crossattn_cache=None, sink_recache_after_switch=False): ...


@pytest.mark.parametrize(
    ("told", "texts", "change"),
    [
        (False, [{"is_init": True}], None),
        (False, [{"is_init": False}], Change.PROMPT),
        (False, None, None),
        (True, [{"is_init": False}], Change.ANEW),
    ],
)
def test_longlive_says_it_by_its_call(told, texts, change):
    model = LongLive()
    adapter = find_adapter(model)
    assert adapter.name == "longlive"
    call = {"kv_cache": [], "crossattn_cache": texts, "sink_recache_after_switch": told}
    assert adapter.change(model, (torch.zeros(1),), call) is change


def front_cached(k, v, cache, start):
    """The rows that are left out follow those that are cached."""
    n = k.shape[1] - TOKENS
    return zoo.append(k[:, :n], v[:, :n], cache, start)


def other_values(k, v, cache, start):
    return zoo.append(k[:, TOKENS:], v[:, :-TOKENS], cache, start)


def keys_alone(k, v, cache, start):
    return zoo.append(k[:, TOKENS:], v[:, TOKENS:].flip(1), cache, start)


@pytest.mark.parametrize(
    ("protocol", "code"),
    [(front_cached, "HF-CACHE-RANGE"), (other_values, "HF-KV-RANGE"), (keys_alone, "HF-KV-RANGE")],
)
def test_what_is_not_the_last_rows_is_refused(protocol, code):
    only = report(zoo.SelfAttention(protocol=protocol))
    assert only.found == ()
    assert [refused.code for refused in only.refused] == [code]


def last_rows(k, v, cache, start):
    return zoo.append(k[:, TOKENS:], v[:, TOKENS:], cache, start)


def last_rows_deferred(k, v, cache, start):
    copy = {name: cache[name].clone() if name in "kv" else cache[name] for name in cache}
    read = last_rows(k, v, copy, start)
    last_rows(k, v, cache, start)
    return read


@pytest.mark.parametrize("protocol", [last_rows, last_rows_deferred])
def test_the_last_rows_are_a_part_of_what_was_sent(protocol):
    """The factors of RoPE, which are those of all rows, are not handed on."""
    (site,) = report(zoo.SelfAttention(protocol=protocol)).found
    assert site.query_rows - (site.cache.append.stop - site.cache.append.start) == TOKENS
    assert site.rope.key_factors == ()
    assert site.rope.key_start == site.rope.query_start


class Joined(zoo.SelfAttention):
    """Text and frames are projected together, and only the frames attend and are cached."""

    def forward(self, x, cache, start):
        whole = torch.cat([torch.ones(x.shape[0], 5, x.shape[2]), x], dim=1)
        q, k, v = (f(whole)[:, 5:].unflatten(-1, (HEADS, HEAD_DIM)) for f in (self.q, self.k, self.v))
        q, k = (self.rope(t, self.freqs, start // TOKENS) for t in (q, k))
        return self.o(self.core(q, *self.protocol(k, v, cache, start)).flatten(2))


def test_rows_that_the_query_lacks_too_were_not_sent():
    (site,) = report(Joined()).found
    assert site.query_rows == site.cache.append.stop - site.cache.append.start
    assert site.rope.key_factors
