"""A backend that recognises, runs the graph unchanged, and checks what was recognised against what it computes."""

from __future__ import annotations

from dataclasses import replace

import sympy
import torch
import torch.nn.functional as F
from torch.fx import Interpreter

from ..kernels.rotation import rotated
from ..kvpass.find import find_sites
from ..kvpass.lower import rotatable
from ..kvpass.rope_factors import turn_of
from ..kvpass.rope_rates import style_of
from ..kvpass.site import Site, SiteReport
from . import zoo


class Recorder:
    """Collects one `SiteReport` for each graph; with `check`, every call of a graph is checked by `check_site`.

    `angles` are the angles of the model's RoPE table, if the rotation is to be checked too.
    """

    def __init__(self, check: bool = True, angles=None) -> None:
        self.reports: list[SiteReport] = []
        self.calls: list[dict] = []
        self.check = check
        self.angles = angles

    def __call__(self, graph_module, example_inputs):
        before = str(graph_module.graph)
        report = find_sites(graph_module, example_inputs)
        assert str(graph_module.graph) == before, "recognising must not change the graph"
        self.reports.append(report)

        def run(*args):
            caches = [args[i].clone() for s in report.found for i in (s.cache.k_index, s.cache.v_index)]
            values = Values(graph_module, report.found)
            out = values.run(*args)
            if self.check:
                for n, site in enumerate(report.found):
                    facts = check_site(report, site, args, caches[2 * n : 2 * n + 2], values.seen, self.angles)
                    self.calls.append({"site": site.name, "graph": self.reports.index(report), **facts})
            return out

        return run

    @property
    def site(self) -> Site:
        """The site of the last graph, which must hold exactly one."""
        (site,) = self.reports[-1].found
        return site

    @property
    def codes(self) -> list[str]:
        """The codes of all refusals."""
        return [refusal.code for report in self.reports for refusal in report.refused]


class Values(Interpreter):
    """Runs a graph and copies the operands of each site when its attention runs, and the attention's result."""

    def __init__(self, module, sites) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict = {}
        self.sites = {site.node: site for site in sites}

    def run_node(self, n):
        site = self.sites.get(n)
        if site is not None:
            operands = [site.query, site.new_key, site.new_value, site.key, site.value]
            operands += [site.rope.raw_query, site.rope.raw_key] if site.rope else []
            operands += [*site.rope.query_factors, *site.rope.key_factors] if site.rope else []
            self.seen.update({o.node: self.env[o.node].detach().clone() for o in operands})
        value = super().run_node(n)
        if site is not None:
            self.seen[n] = value.detach().clone()
        return value


def bshd(operand, seen) -> torch.Tensor:
    """The value of an operand as [B, S, H, D]."""
    return seen[operand.node].permute(operand.order(("batch", "seq", "head", "dim")))


def check_site(report: SiteReport, site: Site, args, caches, seen, angles=None) -> dict[str, int]:
    """Rebuild the cache, the rotation (from `angles`) and the attention result from the site alone.

    Returns the site's expressions, evaluated.
    """
    form = site.cache
    order = tuple(form.layout.index(label) for label in ("batch", "seq", "head", "dim"))
    known = {
        "append": form.append,
        "read": form.read,
        **({"source": form.roll.source, "target": form.roll.target} if form.roll else {}),
    }
    rows = {name: tuple(report.binder.evaluate(e, args) for e in r) for name, r in known.items()}
    history = []
    for place, old, operand in ((form.k_index, caches[0], site.new_key), (form.v_index, caches[1], site.new_value)):
        new, past = bshd(operand, seen), old.permute(order)
        assert report.binder.evaluate(form.capacity, args) == past.shape[1]
        if form.kind == "append":
            expected = past.clone()
            if form.roll:
                expected[:, slice(*rows["target"])] = past[:, slice(*rows["source"])]
            expected[:, slice(*rows["append"])] = new.to(expected.dtype)
            assert torch.equal(args[place].permute(order), expected), "cache after the pass"
        else:
            expected = torch.cat([past, new], dim=1)
            assert rows["append"] == (past.shape[1], expected.shape[1])
        parts = [[report.binder.evaluate(e, args) for e in part] for part in form.segments]
        rows["segments"] = [tuple(part) for part in parts]
        history.append(torch.cat([expected[:, a:b] for a, b in parts], dim=1).to(form.read_dtype))
    if form.keys_rotated == "after":
        start = report.binder.evaluate(site.rope.key_start, args)
        history[0] = rotate(history[0], site.rope.kind, start, angles, zoo.GRID)
    groups = site.heads // site.kv_heads
    q = bshd(site.query, seen).to(site.dtype).transpose(1, 2)
    k, v = (t.to(site.dtype).repeat_interleave(groups, dim=2).transpose(1, 2) for t in history)
    whole = [bshd(operand, seen).to(site.dtype).transpose(1, 2) for operand in (site.key, site.value)]
    whole = [t.repeat_interleave(site.heads // t.shape[1], dim=1) for t in whole]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[site.dtype]
    for keys, values, scale in ((k, v, site.scale), (*whole, site.key_scale)):
        out = F.scaled_dot_product_attention(q, keys, values, scale=scale).permute(
            tuple(("batch", "head", "seq", "dim").index(label) for label in site.layout)
        )
        if site.folded is not None:
            out = out.flatten(site.folded, site.folded + 1)
        torch.testing.assert_close(out, seen[site.node], rtol=tolerance, atol=tolerance)
    rope = {}
    if site.rope is not None and site.rope.query_start is not None:
        turns = [(site.rope.raw_query, site.rope.query_start, site.query)]
        if form.keys_rotated == "before":
            turns.append((site.rope.raw_key, site.rope.key_start, site.new_key))
        for raw, start, turned in turns if angles else ():
            got = rotate(bshd(raw, seen), site.rope.kind, report.binder.evaluate(start, args), angles, zoo.GRID)
            limit = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[turned.dtype]
            torch.testing.assert_close(got.to(turned.dtype), bshd(turned, seen), rtol=limit, atol=limit)
        for raw, factors, turned in (
            (site.rope.raw_query, site.rope.query_factors, site.query),
            (site.rope.raw_key, site.rope.key_factors, site.new_key),
        ):
            if factors:
                got = by_factors(bshd(raw, seen), site.rope, factors, seen)
                limit = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[turned.dtype]
                torch.testing.assert_close(got.to(turned.dtype), bshd(turned, seen), rtol=limit, atol=limit)
        rope = {
            name: report.binder.evaluate(e, args)
            for name, e in (
                ("start", site.rope.query_start),
                ("key_start", site.rope.key_start),
                ("frames", site.rope.frames),
                ("tokens", site.rope.tokens_per_frame),
            )
        }
    rule = {
        name: report.binder.evaluate(e, args)
        for name, e in (("sink", form.rule.sink), ("window", form.rule.window))
        if e is not None
    }
    assert all(isinstance(e, sympy.Expr) for e in (*form.append, *form.read))
    return {**rows, **rope, **rule, "factors": site.rope is not None and rotatable(site)}


def by_factors(x: torch.Tensor, rope, factors, seen) -> torch.Tensor:
    """x [B, S, H, D], rotated by the factors that the graph has, as a rewrite takes them out of it."""
    graph = torch.fx.Graph()
    inputs = []
    for i, factor in enumerate(factors):
        node = graph.placeholder(f"factor_{i}")
        node.meta["example_value"] = seen[factor.node]
        inputs.append(replace(factor, node=node))
    graph.output(turn_of(graph, tuple(inputs), style_of(rope), rope.pairs, torch.float32))
    turn = torch.fx.GraphModule({}, graph)(*(seen[factor.node] for factor in factors))
    assert turn.shape == (x.shape[1], rope.pairs, 2)
    return rotated(x, turn, style_of(rope))


def rotate(
    x: torch.Tensor, kind: str, start: int, tables: tuple[torch.Tensor, ...], grid: tuple[int, int]
) -> torch.Tensor:
    """The meaning of RoPE over frame, row and column, written out for x [B, S, H, D]; tables are the angles."""
    frames = x.shape[1] // (grid[0] * grid[1])
    where = torch.cartesian_prod(torch.arange(start, start + frames), torch.arange(grid[0]), torch.arange(grid[1]))
    angle = torch.cat([table[where[:, i]] for i, table in enumerate(tables)], dim=1)[:, None]
    cos, sin, x = angle.cos(), angle.sin(), x.double()
    if kind == "split_half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
