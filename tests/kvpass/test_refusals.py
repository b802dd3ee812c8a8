"""What looks like a known form and is not must be refused, by the right code, and never found."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint

from headforce.errors import CATALOGUE
from headforce.kvpass.lower import rotatable
from headforce.testing import zoo
from headforce.testing.recording import Recorder
from headforce.testing.zoo import TOKENS, sdpa

# Protocols: (k, v, cache, start) -> what attention reads. Each differs from `zoo.append` in one thing.


def write(cache, k, v, start):
    end = start + k.shape[1]
    cache["k"][:, start:end] = k
    cache["v"][:, start:end] = v
    return end


def read_past_the_append(k, v, cache, start):
    end = write(cache, k, v, start) + TOKENS
    return cache["k"][:, :end], cache["v"][:, :end]


def read_short_of_the_append(k, v, cache, start):
    end = write(cache, k, v, start) - TOKENS
    return cache["k"][:, :end], cache["v"][:, :end]


def read_misses_new_rows(k, v, cache, start):
    end = write(cache, k, v, start)
    return cache["k"][:, start + 1 : end], cache["v"][:, start + 1 : end]


def read_before_write(k, v, cache, start):
    end = start + k.shape[1]
    keys, values = cache["k"][:, :end], cache["v"][:, :end]
    write(cache, k, v, start)
    return keys, values


def copied_before_write(k, v, cache, start):
    """What attention reads is the cache as the pass before left it, displaced by a pass."""
    before = {name: cache[name].clone() for name in ("k", "v")}
    end = write(cache, k, v, start)
    return before["k"][:, :end], before["v"][:, :end]


def cast_before_write(k, v, cache, start):
    keys, values = (cache[name].double()[:, : start + k.shape[1]].float() for name in ("k", "v"))
    write(cache, k, v, start)
    return keys, values


def write_after_read(k, v, cache, start):
    end = write(cache, k, v, start)
    keys, values = cache["k"][:, :end], cache["v"][:, :end]
    cache["k"][:, start:end] = k * 2
    return keys, values


def values_from_other_rows(k, v, cache, start):
    end = write(cache, k, v, start)
    return cache["k"][:, :end], torch.cat([cache["v"][:, :0], cache["v"][:, :end]], 1)[:, :end].roll(1, 1)


def keys_and_values_of_different_rows(k, v, cache, start):
    n = k.shape[1]
    cache["k"][:, start + n : start + 2 * n] = k
    cache["v"][:, start : start + n] = v
    return cache["k"][:, n : start + 2 * n], cache["v"][:, : start + n]


def one_tensor_for_both(k, v, cache, start):
    end = start + k.shape[1]
    cache["k"][:, start:end] = k + v
    return cache["k"][:, :end], cache["k"][:, :end]


def second_reader_of_the_cache(k, v, cache, start):
    end = write(cache, k, v, start)
    cache["seen"] = cache["k"][:, :TOKENS].sum()
    return cache["k"][:, :end], cache["v"][:, :end]


def second_reader_of_the_slice(k, v, cache, start):
    end = write(cache, k, v, start)
    keys = cache["k"][:, :end]
    cache["seen"] = keys.transpose(1, 2).mean()
    return keys, cache["v"][:, :end]


def slice_returned(k, v, cache, start):
    end = write(cache, k, v, start)
    cache["seen"] = cache["v"][:, :end]
    return cache["k"][:, :end], cache["seen"]


def blended_sink(k, v, cache, start):
    end = write(cache, k, v, start)
    cache["k"][:, :TOKENS] = k[:, :TOKENS] * 0.1
    return cache["k"][:, :end], cache["v"][:, :end]


def added_in_place(k, v, cache, start):
    end = write(cache, k, v, start)
    cache["k"][:, :TOKENS].mul_(0.5)
    return cache["k"][:, :end], cache["v"][:, :end]


def written_by_index(k, v, cache, start):
    end = start + k.shape[1]
    cache["k"].index_copy_(1, torch.arange(start, end), k)
    cache["v"].index_copy_(1, torch.arange(start, end), v)
    return cache["k"][:, :end], cache["v"][:, :end]


def broadcast_write(k, v, cache, start):
    end = start + k.shape[1]
    cache["k"][:, start:end] = k[:, :1]
    cache["v"][:, start:end] = v
    return cache["k"][:, :end], cache["v"][:, :end]


def every_other_row(k, v, cache, start):
    write(cache, k, v, start)
    return cache["k"][:, ::2], cache["v"][:, ::2]


def keys_changed_on_the_way(k, v, cache, start):
    end = write(cache, k, v, start)
    return cache["k"][:, :end] + 1, cache["v"][:, :end]


def keys_divided_and_rounded(k, v, cache, start):
    end = write(cache, k, v, start)
    return torch.div(cache["k"][:, :end], 0.5, rounding_mode="floor"), cache["v"][:, :end]


def values_scaled_on_the_way(k, v, cache, start):
    end = write(cache, k, v, start)
    return cache["k"][:, :end], cache["v"][:, :end] * 2


def rolled(source, target, clone=True, only_keys=False):
    def protocol(k, v, cache, start):
        for name in ("k",) if only_keys else ("k", "v"):
            moved = cache[name][:, source[0] * TOKENS : source[1] * TOKENS]
            cache[name][:, target[0] * TOKENS : target[1] * TOKENS] = moved.clone() if clone else moved
        end = 6 * TOKENS
        write(cache, k, v, end - k.shape[1])
        return cache["k"][:, :end], cache["v"][:, :end]

    return protocol


def cat_read_elsewhere(k, v, cache, start):
    past, cache["seen"] = cache["k"], cache["k"].mean()
    return torch.cat([past, k], dim=1), torch.cat([cache["v"], v], dim=1)


def cat_written_too(k, v, cache, start):
    cache["k"][:, :TOKENS] = 0.0 * k[:, :TOKENS]
    return torch.cat([cache["k"], k], dim=1), torch.cat([cache["v"], v], dim=1)


def cat_out_of_order(k, v, cache, start):
    old = slice(0, TOKENS), slice(TOKENS, 2 * TOKENS)
    return tuple(torch.cat([c[:, old[1]], c[:, old[0]], x], dim=1) for c, x in ((cache["k"], k), (cache["v"], v)))


def cat_new_rows_first(k, v, cache, start):
    return torch.cat([k, cache["k"]], dim=1), torch.cat([v, cache["v"]], dim=1)


def cat_of_two_pasts(k, v, cache, start):
    """Older rows in one tensor and newer ones in another, for keys and values alike, as AnyFlow-FAR has them."""
    older, newer = cache["k"][:, :TOKENS], cache["v"][:, : start + TOKENS]
    return torch.cat([older, newer, k], dim=1), torch.cat([older, newer, v], dim=1)


def padded(protocol):
    """The same with rows of zeros behind, and further away from the inputs."""

    def run(k, v, cache, start):
        return [torch.cat([x, torch.zeros_like(k)], dim=1) for x in protocol(k, v, cache, start)]

    return run


def cat_keys_only(k, v, cache, start):
    keys = torch.cat([cache["k"], k], dim=1)
    return keys, v.repeat(1, keys.shape[1] // v.shape[1], 1, 1)


PROTOCOLS = {
    "HF-CACHE-RANGE": [read_past_the_append, read_short_of_the_append, read_misses_new_rows, cat_out_of_order],
    "HF-CACHE-ORDER": [read_before_write, copied_before_write, cast_before_write],
    "HF-CACHE-FORM": [
        write_after_read, values_from_other_rows, blended_sink, added_in_place, written_by_index, broadcast_write,
        every_other_row, keys_changed_on_the_way, values_scaled_on_the_way, cat_written_too, cat_keys_only,
        cat_new_rows_first, keys_divided_and_rounded,
    ],
    "HF-CACHE-PARTS": [cat_of_two_pasts, padded(cat_of_two_pasts)],
    "HF-KV-RANGE": [keys_and_values_of_different_rows, rolled((3, 6), (1, 4), only_keys=True)],
    "HF-SHARED-KV": [one_tensor_for_both],
    "HF-ESCAPE": [second_reader_of_the_cache, second_reader_of_the_slice, slice_returned, cat_read_elsewhere],
    "HF-ROLL": [rolled((1, 4), (2, 5)), rolled((4, 6), (1, 3)), rolled((4, 6), (1, 3), clone=False)],
    "HF-NOHISTORY": [lambda k, v, cache, start: (k, v)],
}  # fmt: skip


# Cores: (q, k, v) -> attention.


def call(q, k, v, **options):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def dropout(q, k, v):
    return call(q, k, v, dropout_p=0.1)


def causal_over_history(q, k, v):
    return call(q, k, v, is_causal=True)


def mask_from_data(q, k, v):
    return call(q, k, v, attn_mask=(q.mean((2, 3))[:, None, :, None] > k.mean((2, 3))[:, None, None]))


def mask_written_in_place(q, k, v):
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    mask[:, :3] = False
    return call(q, k, v, attn_mask=mask)


def sliding_mask(q, k, v):
    rows, keys = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])[None]
    return call(q, k, v, attn_mask=(rows - keys).abs() < 5)


def mask_of_false(q, k, v):
    return call(q, k, v, attn_mask=torch.zeros(q.shape[1], k.shape[1], dtype=torch.bool))


def three_dims(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))).view(
        q.shape[0], q.shape[2], q.shape[1], q.shape[3]
    ).transpose(1, 2)  # fmt: skip


def soft_cap(q, k, v):
    scores = torch.tanh(torch.einsum("bqhd,bkhd->bhqk", q, k) / 30) * 30
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def filled_mask(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
    scores = scores.masked_fill(torch.arange(k.shape[1]) < 3, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def scores(q, k):
    return torch.einsum("bqhd,bkhd->bhqk", q, k)


def weighted(weights, v):
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def exponentials_over_their_sum(q, k, v):
    weights = (scores(q, k) - 3).exp()
    return weighted(weights / weights.sum(-1, keepdim=True), v)


def values_over_the_sum(q, k, v):
    weights = scores(q, k).exp()
    return weighted(weights, v) / weights.sum(-1).transpose(1, 2)[..., None]


def scores_changed_in_place(q, k, v):
    found = scores(q, k)
    found *= 0.5
    return weighted(found.softmax(-1), v)


def weights_scaled(q, k, v):
    return weighted(scores(q, k).softmax(-1) / 2, v)


def biased(q, k, v):
    return weighted((scores(q, k) + torch.arange(k.shape[1])).softmax(-1), v)


def over_the_queries(q, k, v):
    return weighted(scores(q, k).softmax(-2), v)


def two_masks(q, k, v):
    mask = torch.zeros(q.shape[1], k.shape[1])
    return weighted((scores(q, k) + mask + mask).softmax(-1), v)


def heads_in_front(q, k, v):
    """SDPA takes batch and heads in any order; a policy does not."""
    return F.scaled_dot_product_attention(*(x.permute(2, 0, 1, 3) for x in (q, k, v))).permute(1, 2, 0, 3)


def heads_first_in_einsum(q, k, v):
    weights = torch.einsum("bqhd,bkhd->hbqk", q, k).softmax(-1)
    return torch.einsum("hbqk,bkhd->hbqd", weights, v).permute(1, 2, 0, 3)


def heads_that_nothing_shows(q, k, v):
    q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]).exp().log() for x in (q, k, v))
    out = torch.bmm(torch.softmax(torch.bmm(q, k.mT), dim=-1), v)
    return out.unflatten(0, (-1, zoo.HEADS)).transpose(1, 2)


def weights_read_twice(q, k, v):
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v) + weights.amax()


def called_twice(q, k, v):
    return call(q, k, v) + call(q * 2, k, v)


CORES = {
    "HF-DROPOUT": [dropout],
    "HF-MASK": [
        causal_over_history, mask_from_data, mask_written_in_place, sliding_mask, mask_of_false, filled_mask, two_masks,
    ],
    "HF-LAYOUT": [three_dims, heads_in_front, heads_first_in_einsum, heads_that_nothing_shows],
    "HF-SCOREMOD": [soft_cap, biased, scores_changed_in_place],
    "HF-ATTENTION-FORM": [exponentials_over_their_sum, values_over_the_sum, weights_scaled, over_the_queries],
    "HF-ESCAPE": [weights_read_twice, called_twice],
}  # fmt: skip


def camera(q, k, v):
    """PRoPE on half of the channels: matrices of the frames on queries, keys and values, and back on the result."""
    frames = torch.arange(k.shape[1] // TOKENS, dtype=q.dtype)
    matrices = torch.eye(3) + 0.1 * torch.sin(frames)[:, None, None]

    def turned(x, matrix):
        half, rest = x.unflatten(1, (-1, TOKENS)).chunk(2, dim=-1)
        half = torch.einsum("fij,bfthpj->bfthpi", matrix, half.unflatten(-1, (-1, 3))).flatten(-2)
        return torch.cat([half, rest], -1).flatten(1, 2)

    own = matrices[-(q.shape[1] // TOKENS) :]
    q, k, v = turned(q, own.mT), *(turned(x, matrices.inverse()) for x in (k, v))
    return turned(call(q, k, v), own)


CORES["HF-PROPE"] = [camera]


def ring_of_three(k, v, cache, start):
    """A list of the chunks that are kept; the oldest is exchanged, wherever it stands."""
    for name, new in (("k", k), ("v", v)):
        cache[f"ring_{name}"][start // k.shape[1] % 3] = new
    return torch.cat(cache["ring_k"], 1), torch.cat(cache["ring_v"], 1)


def bank_and_recent(k, v, cache, start):
    return tuple(torch.cat([cache["bank"], cache[name], new], 1) for name, new in (("k", k), ("v", v)))


@pytest.mark.parametrize("protocol", [ring_of_three, bank_and_recent])
def test_a_past_in_several_inputs_is_refused(protocol):
    layer = zoo.SelfAttention(protocol=protocol)
    new_cache = layer.new_cache
    rows = 2 * TOKENS

    def with_parts(*args):
        cache = new_cache(*args)
        parts = {f"ring_{n}": [torch.randn(1, rows, zoo.HEADS, zoo.HEAD_DIM) for _ in range(3)] for n in "kv"}
        return {**cache, **parts, "bank": torch.randn(1, rows, zoo.HEADS, zoo.HEAD_DIM)}

    layer.new_cache = with_parts
    only = report(layer)
    assert only.found == ()
    assert [r.code for r in only.refused] == ["HF-CACHE-PARTS"], only.refused


@pytest.mark.parametrize("protocol", ["append", "cat_past"])
def test_attention_behind_a_disabled_function_is_reported(protocol):
    """The graph in front of it hands out query, key and value; a cache it writes is read by nobody there."""
    layer = zoo.SelfAttention(protocol=protocol)
    layer.core = torch.compiler.disable(layer.core)
    recorder = Recorder(check=False)
    cache = layer.new_cache(1, 2)
    cache.update(held=2 * TOKENS, seen=2 * TOKENS)
    x, _ = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(layer, backend=recorder)(x, cache, 2 * TOKENS)
    assert not any(only.found for only in recorder.reports)
    assert set(recorder.codes) & {"HF-OPAQUE", "HF-CACHE-UNREAD"}, recorder.codes
    assert "HF-OPAQUE" in recorder.codes or protocol == "append"


def test_projections_in_a_disabled_function_are_reported():
    class Whole(zoo.SelfAttention):
        @torch.compiler.disable
        def attend(self, q, k, v):
            return self.core(q, k, v)

        def forward(self, x, cache, start):
            q, k, v = (p(x).unflatten(2, (zoo.HEADS, -1)) for p in (self.q, self.k, self.v))
            return self.o(self.attend(q, k, v).flatten(2))

    recorder = Recorder(check=False)
    x, start = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(Whole(), backend=recorder)(x, {}, start)
    assert recorder.codes == ["HF-OPAQUE"]


def test_keys_and_values_of_a_text_are_handed_on_to_the_next_pass():
    """Cross-attention of several layers keeps what it computed of one text; that is no attention outside the graph."""

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.projections = torch.nn.ModuleList(
                torch.nn.Linear(zoo.HEADS * zoo.HEAD_DIM, zoo.HEADS * zoo.HEAD_DIM) for _ in range(6)
            )

        def forward(self, x, text):
            kept = [p(text).unflatten(2, (zoo.HEADS, -1)) for p in self.projections[:4]]
            for q, k, v in zip(self.projections[4:], kept[::2], kept[1::2], strict=True):
                query = q(x).unflatten(2, (zoo.HEADS, -1)).transpose(1, 2)
                read = F.scaled_dot_product_attention(query, k.transpose(1, 2), v.transpose(1, 2))
                x = x + read.transpose(1, 2).flatten(2)
            return x, kept

    recorder = Recorder(check=False)
    with torch.no_grad():
        torch.compile(Layers(), backend=recorder)(
            torch.randn(1, 6, zoo.HEADS * zoo.HEAD_DIM), torch.randn(1, 5, zoo.HEADS * zoo.HEAD_DIM)
        )
    (only,) = recorder.reports
    assert [r.code for r in only.excluded] == ["HF-CROSS", "HF-CROSS"]
    assert only.refused == ()


def pairs(table):
    return [pytest.param(f, code, id=getattr(f, "__name__", code)) for code, fs in table.items() for f in fs]


def report(layer, frames=5, start=2, grad=False):
    """The report on one pass at frame `start`; the layer runs, so the example is a program that works."""
    recorder = Recorder(check=False)
    cache = layer.new_cache(1, frames)
    cache.update(held=start * TOKENS, seen=start * TOKENS)
    x, _ = next(zoo.inputs(1))
    with torch.set_grad_enabled(grad):
        torch.compile(layer, backend=recorder, fullgraph=True)(x, cache, start * TOKENS)
    (only,) = recorder.reports
    return only


@pytest.mark.parametrize(("protocol", "code"), pairs(PROTOCOLS))
def test_protocols_are_refused(protocol, code):
    layer = zoo.SelfAttention(protocol=protocol)
    layer.concatenates = protocol.__name__.startswith("cat_")
    only = report(layer)
    assert only.found == ()
    assert [r.code for r in only.refused] == [code], only.refused
    assert only.refused[0].where.rpartition(":")[0].endswith("zoo.py")


@pytest.mark.parametrize(("core", "code"), pairs(CORES))
def test_cores_are_refused(core, code):
    only = report(zoo.SelfAttention(core=core))
    assert only.found == ()
    assert {r.code for r in only.refused} == {code}, only.refused


def test_gradients_are_refused():
    only = report(zoo.SelfAttention(protocol="cat_past"), grad=True)
    assert [r.code for r in only.refused] == ["HF-GRAD"]


def test_tiled_heads_are_refused():
    """`repeat` gives query head h the K/V head h mod n; GQA means h // (heads // n)."""
    layer = zoo.SelfAttention(core="sdpa_gqa")
    layer.core = lambda q, k, v: sdpa(q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1))
    only = report(layer)
    assert only.found == ()
    assert [r.code for r in only.refused] == ["HF-CACHE-FORM"]


def repeated(x, tiled):
    b, s, heads, dim = x.shape
    if tiled:
        return x[:, :, None].expand(b, s, 2, heads, dim).reshape(b, s, 2 * heads, dim)
    return x[:, :, :, None].expand(b, s, heads, 2, dim).reshape(b, s, 2 * heads, dim)


@pytest.mark.parametrize("tiled", [False, True])
def test_heads_that_are_expanded_in_front_are_not_those_of_gqa(tiled):
    """The same two operations: which of the dims is new decides which K/V head a query head reads."""
    layer = zoo.SelfAttention(core="sdpa_gqa")
    layer.core = lambda q, k, v: sdpa(q, repeated(k, tiled), repeated(v, tiled))
    only = report(layer)
    assert [r.code for r in only.refused] == (["HF-LAYOUT"] if tiled else [])
    assert len(only.found) == (not tiled)


def test_a_query_and_a_key_of_other_frames_are_refused():
    layer = zoo.SelfAttention("half", core="sdpa")
    plain, calls = layer.rope, []

    def rope(x, table, start):
        calls.append(start)
        return plain(x, table, start if len(calls) % 2 else start + 1)  # the query first, then the key

    layer.rope = rope
    only = report(layer)
    assert [r.code for r in only.refused] == ["HF-CLOCK"], only.refused
    assert "other frames" in only.refused[0].found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_keys_that_are_rounded_behind_rope_are_rotated_by_the_graph(dtype):
    """A rotation of our own would not round them in between."""
    layer = zoo.SelfAttention("half", core="sdpa")
    plain = layer.rope
    layer.rope = lambda x, table, start: plain(x, table, start).to(dtype).float()
    (site,) = report(layer).found
    assert rotatable(site) == (dtype == torch.float64)


@pytest.mark.parametrize("cached", [False, True])
def test_cross_attention_is_excluded(cached):
    class Cross(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = torch.nn.Linear(48, 48), torch.nn.Linear(16, 48)

        def forward(self, x, context, cache):
            q = self.q(x).view(1, -1, 4, 12)
            k = v = self.k(context).view(1, -1, 4, 12)
            return sdpa(q, *cache) if cached else sdpa(q, k, v)

    recorder = Recorder()
    with torch.no_grad():
        cache = torch.randn(1, 8, 4, 12), torch.randn(1, 8, 4, 12)
        torch.compile(Cross(), backend=recorder)(torch.randn(1, 12, 48), torch.randn(1, 8, 16), cache)
    (only,) = recorder.reports
    assert (only.found, only.refused) == ((), ())
    assert [r.code for r in only.excluded] == ["HF-CROSS"]


def test_a_cache_without_attention_is_reported():
    def step(k, cache):
        cache[:, 2:4] = k
        return cache[:, :4].sum()

    recorder = Recorder()
    torch.compile(step, backend=recorder)(torch.randn(1, 2, 4, 12), torch.zeros(1, 8, 4, 12))
    assert recorder.codes == ["HF-CACHE-UNREAD"]


def test_attention_in_a_nested_graph_is_reported():
    layer = zoo.SelfAttention()

    def attend(x):
        return layer.core(*(layer.q(x).view(1, -1, zoo.HEADS, zoo.HEAD_DIM) for _ in range(3)))

    def step(x):
        return torch.utils.checkpoint.checkpoint(attend, x, use_reentrant=False)

    recorder = Recorder(check=False)
    x, _ = next(zoo.inputs(1))
    torch.compile(step, backend=recorder)(x)
    assert recorder.codes == ["HF-NESTED"]


def test_a_later_write_to_an_operand_is_seen():
    """`clone` keeps the old values; the site must not look through it to a tensor that is changed afterwards."""

    def protocol(k, v, cache, start):
        kept = k.clone()
        k.mul_(2.0)
        return zoo.append(kept, v, cache, start)

    recorder = Recorder(angles=zoo.angles())
    layer = zoo.SelfAttention(rope="stacked", protocol=protocol)
    with torch.no_grad():
        x, start = next(zoo.inputs(1))
        torch.compile(layer, backend=recorder)(x, layer.new_cache(), start)
    assert recorder.site.new_key.node.name.startswith("kept")
    assert recorder.site.rope is None


def test_keys_rotated_after_the_cache_need_a_known_query():
    """Looking through the rotation of the keys is only right if the site can say so."""
    layer = zoo.SelfAttention(rope="stacked", raw_cache=True)
    rope = layer.rope
    layer.rope = lambda x, table, start: rope(x, table, start) if x.shape[1] > 2 * TOKENS else x + 1
    only = report(layer, start=2)
    assert only.found == ()
    assert [r.code for r in only.refused] == ["HF-ROPE"]


def test_a_past_behind_other_norms_is_not_cross_attention():
    """Query and key from two norms of one activation, and a concatenated past: found, not excluded."""

    class TwoNorms(zoo.SelfAttention):
        def __init__(self):
            super().__init__("stacked", "cat_past")
            project = self.q
            self.q = torch.nn.Sequential(torch.nn.LayerNorm(48), project)

    only = report(TwoNorms())
    assert len(only.found) == 1


def test_every_code_is_in_the_catalogue():
    assert {*PROTOCOLS, *CORES, "HF-GRAD", "HF-CROSS", "HF-CACHE-UNREAD", "HF-NESTED", "HF-ROPE"} <= set(CATALOGUE)


# What is not seen as attention, or not as self-attention, is refused where a past may be behind it.


def reports(layer, cache, start=2 * TOKENS):
    """The reports on one pass of a layer whose graphs may end inside it."""
    recorder = Recorder(check=False)
    x, _ = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(layer, backend=recorder)(x, cache, start)
    return recorder


class Broken(zoo.SelfAttention):
    """What it attends to is kept by a function that is not compiled, which gets query, key and value."""

    def __init__(self, fused, flat):
        super().__init__("half")
        self.fused, self.flat = fused, flat
        self.qkv = torch.nn.Linear(48, 3 * 48)

    @torch.compiler.disable
    def keep(self, q, k, v, cache, start):
        if self.flat:
            q, k, v = (x.unflatten(2, (zoo.HEADS, -1)) for x in (q, k, v))
        return (q, *zoo.append(k, v, cache, start))

    def forward(self, x, cache, start):
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        if not self.flat:
            q, k, v = (x.unflatten(2, (zoo.HEADS, -1)) for x in (q, k, v))
            q, k = (self.rope(x, (self.cos, self.sin), start // TOKENS) for x in (q, k))
        return self.o(self.core(*self.keep(q, k, v, cache, start)).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_attention_behind_a_graph_break_is_not_cross_attention(fused, flat):
    layer = Broken(fused, flat)
    recorder = reports(layer, {**layer.new_cache(), "held": 2 * TOKENS, "seen": 2 * TOKENS})
    projections, attention = recorder.reports
    assert [r.code for r in projections.refused] == ["HF-OPAQUE"]
    assert [r.code for r in attention.refused] == ["HF-OPAQUE"]
    assert "a query that comes into the graph" in attention.refused[0].found
    assert projections.excluded == attention.excluded == ()


def test_a_past_that_is_joined_in_front_of_a_graph_break_is_reported():
    """A fused projection is cut before its keys are rotated and joined with a past."""

    class Joined(zoo.SelfAttention):
        def forward(self, x, cache, start):
            weight = torch.cat([self.q.weight, self.k.weight, self.v.weight])
            q, k, v = F.linear(x, weight).view(*x.shape[:2], 3, zoo.HEADS, -1).unbind(2)
            q, k = (self.rope(t, self.freqs, start // TOKENS) for t in (q, k))
            keys, values = zoo.cat_past(k, v, cache, start)
            torch._dynamo.graph_break()
            return self.o(self.core(q, keys, values).flatten(2))

    layer = Joined(protocol="cat_past")
    recorder = reports(layer, layer.new_cache(frames=2))
    assert {"HF-CACHE-UNREAD", "HF-OPAQUE"} == {r.code for r in recorder.reports[0].refused}
    assert [r.code for r in recorder.reports[1].refused] == ["HF-OPAQUE"]


def handed_out(made, *sizes):
    """What is reported of a graph that hands out what `made` makes."""
    recorder = Recorder(check=False)
    with torch.no_grad():
        torch.compile(made, backend=recorder, fullgraph=True)(*(torch.randn(size) for size in sizes))
    return recorder.codes


def test_modulations_and_gates_that_leave_the_graph_are_no_query_key_and_value():
    six, three, wide = (torch.nn.Linear(48, 48 * n) for n in (6, 3, 4))
    assert handed_out(lambda t: six(t).unflatten(-1, (6, -1)).unbind(2), (1, 4, 48)) == []  # frame by frame
    assert handed_out(lambda t: six(t).unflatten(-1, (6, -1)).chunk(6, 2)[3:], (1, 4, 48)) == []
    assert handed_out(lambda t: three(t)[:, None].chunk(3, -1), (1, 48)) == []
    assert handed_out(lambda x: wide(x).chunk(2, -1), (1, 8, 48)) == []  # an MLP's gate
    assert handed_out(lambda x: wide(x).split([96, 90, 6], -1), (1, 8, 48)) == []  # a state space model's inputs


def test_a_query_beside_narrower_keys_and_values_leaves_the_graph():
    wide = torch.nn.Linear(48, 96)
    assert handed_out(lambda x: wide(x).split([48, 24, 24], -1), (1, 8, 48)) == ["HF-OPAQUE"]
    two = torch.nn.Linear(48, 96), torch.nn.Linear(48, 96)
    assert handed_out(lambda x: (two[0](x)[..., :48], *two[1](x).chunk(2, -1)), (1, 8, 48)) == ["HF-OPAQUE"]


def empty_bank(names):
    """Joins the inputs `names` with new rows; "bank" is empty."""

    def protocol(k, v, cache, start):
        pasts = [[cache[f"{name}_{side}"] for name in names] for side in "kv"]
        return tuple(torch.cat([*past, new], 1) for past, new in zip(pasts, (k, v), strict=True))

    return protocol


def bank_cache(rows):
    sizes = {"bank": 0, "recent": rows}
    return {f"{n}_{s}": torch.randn(1, r, zoo.HEADS, zoo.HEAD_DIM) for n, r in sizes.items() for s in "kv"}


@pytest.mark.parametrize("names", [("bank", "recent"), ("recent", "bank")])
def test_an_empty_input_beside_rows_of_a_past_is_no_first_pass(names):
    (only,) = reports(zoo.SelfAttention(protocol=empty_bank(names)), bank_cache(2 * TOKENS)).reports
    assert (only.found, only.excluded) == ((), ())
    assert [r.code for r in only.refused] == ["HF-CACHE-PARTS"]


@pytest.mark.parametrize("rope", ["complex", "half", "half_lanes", "written"])
def test_nothing_but_empty_inputs_in_front_of_new_rows_is_a_first_pass(rope):
    (only,) = reports(zoo.SelfAttention(rope, empty_bank(("bank", "recent"))), bank_cache(0)).reports
    assert (only.found, only.refused) == ((), ())
    assert [r.code for r in only.excluded] == ["HF-FIRST"]


def test_an_empty_text_in_front_of_a_cache_is_no_first_pass():
    def protocol(k, v, cache, start):
        rows = zoo.append(k, v, cache, start)
        return tuple(torch.cat([cache[f"bank_{s}"], x], 1) for s, x in zip("kv", rows, strict=True))

    layer = zoo.SelfAttention(protocol=protocol)
    cache = {**layer.new_cache(), **bank_cache(0), "held": 2 * TOKENS, "seen": 2 * TOKENS}
    (only,) = reports(layer, cache).reports
    assert (only.refused, only.excluded) == ((), ())
    assert [site.cache.kind for site in only.found] == ["append"]


def sigmoid(q, k, v):
    return weighted(scores(q, k).sigmoid(), v)


def flipped(q, k, v):
    return weighted(scores(q, k).softmax(-1).flip(1), v)


def linear_attention(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    read = torch.einsum("bqhd,bhde->bqhe", q, torch.einsum("bkhd,bkhe->bhde", k, v))
    return read / torch.einsum("bqhd,bhd->bqh", q, k.sum(1))[..., None]


def summed(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = (q[:, :, :, None] * k[:, :, None]).sum(-1).softmax(-1)
    return (weights[..., None] * v[:, :, None]).sum(3).transpose(1, 2)


def head_by_head(q, k, v):
    pairs = [(torch.mm(q[0, :, h], k[0, :, h].T).softmax(-1), v[0, :, h]) for h in range(q.shape[2])]
    return torch.stack([torch.mm(*pair) for pair in pairs], 1)[None]


def head_by_head_method(q, k, v):
    return torch.stack([q[0, :, h].mm(k[0, :, h].T).softmax(-1).mm(v[0, :, h]) for h in range(q.shape[2])], 1)[None]


def tensordots(q, k, v):
    weights = scores(q, k).softmax(-1)
    return torch.stack([torch.tensordot(weights[0, h], v[0, :, h], dims=1) for h in range(q.shape[2])], 1)[None]


def kernel_of_torch(q, k, v):
    operands = (x.transpose(1, 2) for x in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*operands)[0].transpose(1, 2)


def spelled_out_by_torch(q, k, v):
    operands = (x.transpose(1, 2) for x in (q, k, v))
    return torch.ops.aten._scaled_dot_product_attention_math(*operands)[0].transpose(1, 2)


def function_of_torch(q, k, v):
    q, k, v = (x.flatten(2).transpose(0, 1) for x in (q, k, v))
    one, heads = torch.eye(q.shape[-1]), zoo.HEADS
    options = {"training": False, "need_weights": False}
    projections = torch.cat([one, one, one]), None, None, None, False, 0.0, one, None
    out = F.multi_head_attention_forward(q, k, v, q.shape[-1], heads, *projections, **options)[0]
    return out.transpose(0, 1).unflatten(2, (heads, -1))


UNKNOWN = {
    "HF-CACHE-UNREAD": [sigmoid, flipped, linear_attention, summed, head_by_head, tensordots],
    "HF-ATTENTION-FORM": [kernel_of_torch, spelled_out_by_torch, function_of_torch, head_by_head_method],
}


@pytest.mark.parametrize("protocol", ["append", "cat_past"])
@pytest.mark.parametrize(("core", "code"), pairs(UNKNOWN))
def test_attention_of_an_unknown_form_is_refused(core, code, protocol):
    only = report(zoo.SelfAttention(protocol=protocol, core=core))
    assert (only.found, only.excluded) == ((), ())
    assert {r.code for r in only.refused} == {code}, only.refused


class OtherDims(zoo.SelfAttention):
    """Caches [B, C, H * D] for keys and values, or one [2, B, C, H, D] for both, which `packed` writes at once."""

    def __init__(self, dims, packed=False):
        def protocol(k, v, cache, start):
            end = start + k.shape[1]
            if dims == 3:
                for name, new in (("k", k), ("v", v)):
                    cache[name][:, start:end] = new.flatten(2)
                return tuple(cache[name][:, :end].unflatten(2, (zoo.HEADS, -1)) for name in "kv")
            if packed:
                cache["kv"][:, :, start:end] = torch.stack([k, v])
            else:
                cache["kv"][0, :, start:end], cache["kv"][1, :, start:end] = k, v
            return tuple(cache["kv"][:, :, :end].unbind(0))

        super().__init__(protocol=protocol, core=sigmoid)
        self.shapes = {"kv": (2, 1, 36, 4, 12)} if dims == 5 else dict.fromkeys("kv", (1, 36, 48))

    def new_cache(self, batch=1, frames=0):
        return {name: torch.zeros(shape) for name, shape in self.shapes.items()}


@pytest.mark.parametrize(("dims", "packed", "caches"), [(3, False, 2), (5, False, 1), (5, True, 1)])
def test_caches_of_other_dims_without_attention_are_reported(dims, packed, caches):
    only = report(OtherDims(dims, packed))
    assert [r.code for r in only.refused] == ["HF-CACHE-UNREAD"] * caches


def test_caches_that_take_what_attention_reads_itself_are_reported_with_the_call():
    """Keys and values of a text, and a pass that attends to its own rows."""
    q, k, v = (torch.nn.Linear(48, 48) for _ in range(3))

    def attend(x, context, kept):
        keys, values = k(context), v(context)
        kept[0][:], kept[1][:] = keys, values
        return sdpa(*(t.unflatten(-1, (zoo.HEADS, -1)) for t in (q(x), keys, values)))

    size = (1, 8, 48)
    assert handed_out(lambda x, text, a, b: attend(x, text, (a, b)), size, size, size, size) == []
    assert handed_out(lambda x, a, b: attend(x, x, (a, b)), size, size, size) == ["HF-NOHISTORY"]


def test_what_is_kept_and_joined_besides_keys_and_values_is_left_alone():
    """The state of a convolution, rows of a text, and what a block made of the pass before."""
    conv, line, other = torch.nn.Conv3d(4, 4, 1), torch.nn.Linear(48, 48), torch.nn.Linear(48, 48)

    def video(x, past):
        made = conv(x)
        past.copy_(made)
        return conv(torch.cat([past, made], 2))

    def stream(x, text, before):
        x = x + line(x)
        x = x + other(F.gelu(line(x)))
        before.copy_(x)
        return line(torch.cat([text, x], 1)), other(torch.cat([text, x], 1))

    assert handed_out(video, (1, 4, 2, 3, 3), (1, 4, 2, 3, 3)) == []
    assert handed_out(stream, (1, 8, 48), (1, 5, 48), (1, 8, 48)) == []


def returned(kept):
    """Attends to past and new rows, and gives `kept(past, new, joined)` to the caller as the past of the next pass."""

    def protocol(k, v, cache, start):
        pasts, rows = [cache[name] for name in "kv"], []
        for name, past, new in zip("kv", pasts, (k, v), strict=True):
            rows.append(torch.cat([past, new], 1))
            cache[name] = kept(past, new, rows[-1])
        return tuple(rows)

    return protocol


ORDERS = {
    "whole": (lambda past, new, rows: rows, True),
    "joined again": (lambda past, new, rows: torch.cat([past, new], 1), True),
    "window": (lambda past, new, rows: rows[:, -3 * TOKENS :], True),
    "window of copies": (lambda past, new, rows: torch.cat([past[:, TOKENS:], new], 1).clone(), True),
    "sink and window": (lambda past, new, rows: torch.cat([rows[:, :TOKENS], rows[:, 3 * TOKENS :]], 1), True),
    "sink, window and new": (
        lambda past, new, rows: torch.cat([past[:, :TOKENS], past[:, 3 * TOKENS :], new], 1),
        True,
    ),
    "window of both": (
        lambda past, new, rows: torch.cat([past[:, :TOKENS], past[:, 3 * TOKENS :], new], 1)[:, -2 * TOKENS :],
        True,
    ),
    "transposed": (lambda past, new, rows: rows.transpose(1, 2), True),
    "the past alone": (lambda past, new, rows: past[:, TOKENS:].clone(), True),
    "newest first": (lambda past, new, rows: torch.cat([new, past], 1), False),
    "rolled": (lambda past, new, rows: torch.cat([rows[:, TOKENS:], rows[:, :TOKENS]], 1), False),
    "twice": (lambda past, new, rows: torch.cat([past, rows], 1), False),
    "without the newest": (lambda past, new, rows: rows[:, : -3 * TOKENS], False),
    "other rows": (lambda past, new, rows: torch.cat([past, new * 0.5], 1), False),
    "along the heads": (
        lambda past, new, rows: torch.cat([past[:, : 2 * TOKENS], past[:, TOKENS : 3 * TOKENS]], 2),
        False,
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_a_past_that_is_returned(name):
    kept, right = ORDERS[name]
    layer = zoo.SelfAttention(protocol=returned(kept))
    layer.concatenates = True
    only = report(layer)
    assert [r.code for r in only.refused] == ([] if right else ["HF-CACHE-FORM"]), only.refused
    assert len(only.found) == right
    assert right or "order" in only.refused[0].found
