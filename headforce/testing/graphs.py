"""Random small attention layers, each labelled by how it was made: it can be rewritten, or it is refused with a code.

A `Recipe` says how a layer of `headforce.testing.zoo` is put together: RoPE, the cache's form, how attention is
written, where the scale and the mask go, grouped heads, dtypes, and what is done to operands that changes no value.
At most one `fault` is added, and its code is the label. `check` compiles the layer, runs it and compares.

    python -m headforce.testing.graphs --count 1000        # prints what is not as its label says; needs hypothesis
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from ..errors import HeadforceError
from ..kvpass.backend import headforce_backend
from ..kvpass.eligible import check_ownable, viewable
from ..kvpass.find import find_sites
from ..kvpass.layers import viewed
from ..kvpass.session import prepare
from ..kvpass.site import Site
from ..policy import Policy
from . import zoo
from .cores import GROUPED, HIDDEN, MASKS, PRODUCTS, SCALES, SOFTMAXES, TO_HEADS, WRITTEN, attend
from .inner import INNER
from .unsupported import CORE_FAULTS, FAULTS, PROTOCOL_FAULTS
from .zoo import HEADS, TOKENS

SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transpose twice": lambda x: x.transpose(1, 2).transpose(2, 1),
    "permute and back": lambda x: torch.permute(x, (0, 2, 3, 1)).permute(0, 3, 1, 2),
    "movedim": lambda x: x.movedim(1, 2).swapaxes(1, 2),
    "mT": lambda x: x.mT.transpose(-1, -2),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "wider and back": lambda x: x.double().to(x.dtype),
    "type_as": lambda x: x.type_as(x).type(x.dtype),
    "flatten": lambda x: x.flatten(2).unflatten(-1, x.shape[2:]),
    "reshape": lambda x: x.reshape(-1, x.shape[-1]).view(x.shape),
    "heads split": lambda x: x.view(*x.shape[:2], -1, 2 - x.shape[2] % 2, x.shape[3]).flatten(2, 3),
    "unsqueeze": lambda x: x[:, None].squeeze(1)[..., None].squeeze(-1),
    "index none": lambda x: x[None][0],
    "full slices": lambda x: x[:, : x.shape[1]][..., 0:],
    "narrow": lambda x: x.narrow(1, 0, x.shape[1]),
    "dropout off": lambda x: F.dropout(x, 0.3, training=False),
    "expand": lambda x: x.expand(-1, -1, -1, -1).expand_as(x),
    "cat of one": lambda x: torch.cat([x, x[:, x.shape[1] :]], dim=1),
    "stack of one": lambda x: torch.stack([x]).squeeze(0),
}
"""What changes no value of a tensor [B, S, H, D]."""


@dataclass(frozen=True)
class Recipe:
    """How a layer is made. Names are keys of the tables of this file and of `zoo`.

    Attributes:
        rope, protocol: as in `zoo`. raw: keys are rotated when they are read.
        product: how attention is written. scale: where its scale is. mask: how a mask that hides nothing is given.
        softmax: how softmax is written. heads: how operands get to [B, H, S, D]. grouped, kv_heads: how K/V heads are
            repeated, and how many there are.
        same: what is done to q, to the new k and v, and to the keys and values that are read.
        dtype, batch: of weights, caches and input; rows of a batch. frames: past frames in the cache.
        fault: a key of `unsupported.FAULTS`, or None.
    """

    rope: str
    protocol: str
    product: str
    scale: str
    mask: str
    softmax: str
    heads: str
    grouped: str
    kv_heads: int
    same: tuple[str, str, str]
    dtype: torch.dtype
    batch: int
    frames: int
    raw: bool
    fault: str | None

    @property
    def code(self) -> str | None:
        """The code with which the layer is refused; None for one that is rewritten."""
        if self.product == "flex" and self.fault in HIDDEN:
            return "HF-SCOREMOD"  # there the mask is written as a score_mod
        return None if self.fault is None else FAULTS[self.fault]

    @property
    def ownable(self) -> bool:
        """Whether K and V of the layer may live in our pools."""
        appends = zoo.PROTOCOLS[self.protocol][1] == "append"
        return self.fault is None and appends and not self.raw

    def possible(self) -> bool:
        """Whether the parts go together."""
        grouped, written = self.kv_heads < HEADS, self.product in WRITTEN
        checks = [
            not (self.raw and self.rope == "none"),
            not (self.product == "flex" and (self.mask != "none" or self.fault == "gradients")),  # none on CPU
            self.scale in ("default", "query", "key", "before") or self.product not in ("sdpa", "flex"),
            self.grouped != "native" or not (written or self.fault == "heads in front"),
            not (self.product == "sdpa" and self.mask in ("filled", "chosen")),
            not (written and self.mask == "boolean"),
            not (written and self.dtype == torch.bfloat16),  # eager rounds scores: nothing to compare with
            not (self.raw and self.protocol in ("append_sink_and_window", "deferred_sink_and_window")),
            not (self.raw and self.protocol == "cat_sink_and_window"),
            not (self.raw and self.frames > 2 and self.protocol in ("append_short_window", "cat_window")),  # moves
            self.fault not in PROTOCOL_FAULTS or (self.protocol == "append" and not self.raw),
            self.fault not in CORE_FAULTS or CORE_FAULTS[self.fault](self.product, self.mask, grouped),
            self.fault != "no rope" or not self.raw,
            self.frames >= 4 or self.protocol != "cat_sink_and_window",
            self.frames < 4 or self.fault != "read_far",  # there is nothing behind the new rows
        ]
        return all(checks)

    def layer(self) -> zoo.SelfAttention:
        """The layer, with weights that depend on nothing."""
        q_same, new_same, read_same = (SAME[name] for name in self.same)
        inner = PROTOCOL_FAULTS.get(self.fault or "", zoo.PROTOCOLS[self.protocol][0])

        def protocol(k: Tensor, v: Tensor, cache: zoo.Cache, start: int) -> tuple[Tensor, Tensor]:
            keys, values = inner(new_same(k), new_same(v), cache, start)
            return read_same(keys), read_same(values)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            rope = "none" if self.fault == "no rope" else self.rope
            layer = zoo.SelfAttention(rope, protocol, self._core(q_same), self.dtype, self.raw, self.kv_heads)
        layer.heads_first = self.protocol == "append_heads_first"
        layer.concatenates = zoo.PROTOCOLS[self.protocol][1] == "cat"
        return layer

    def _core(self, same: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: attend(self, same(q), k, v)


@dataclass(frozen=True)
class Outcome:
    """What became of a layer: what is not as its label says, or "" if all is."""

    recipe: Recipe
    wrong: str


def check(recipe: Recipe) -> Outcome:
    """Compiles the layer in view mode under `native()`, runs one pass and compares with eager code.

    A layer without fault has to be found, launched once, and equal to eager. Any other has to be refused with its code,
    launch nothing, and equal eager too.
    """
    torch._dynamo.reset()
    viewed.clear()
    layer, start = recipe.layer(), recipe.frames * TOKENS
    with torch.random.fork_rng():
        torch.manual_seed(1)
        cache = layer.new_cache(recipe.batch, recipe.frames)
        cache.update(held=start, seen=start)
        x = torch.randn(recipe.batch, zoo.CHUNK_FRAMES * TOKENS, layer.q.in_features, dtype=recipe.dtype)
    theirs = copy.deepcopy(cache)
    codes: list[str] = []
    found, owned, before = 0, 0, INNER.launches

    def backend(module: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        nonlocal found, owned
        report = viewable(find_sites(module, examples))
        found += len(report.found)
        owned += sum(map(_ownable, report.found))
        codes.extend(refusal.code for refusal in report.refused)
        return headforce_backend(
            module,
            examples,
            options={"policy": Policy({}), "inner": INNER.name, "on_refuse": "warn", "verify": "plan"},
        )

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.set_grad_enabled(recipe.fault == "gradients"), torch.random.fork_rng():
        results = []
        for model, own in ((layer, theirs), (compiled, cache)):
            torch.manual_seed(2)  # dropout
            try:
                results.append(model(x, own, start))
            except HeadforceError as error:
                return Outcome(recipe, f"raised {error}")
    expected, got = results
    launches = INNER.launches - before
    wrong = []
    if (found, set(codes)) != ((1, set()) if recipe.code is None else (0, {recipe.code})):
        wrong.append(f"found {found}, refused {codes}; expected {recipe.code or 'found'}")
    if launches != (recipe.code is None):
        wrong.append(f"{launches} launches")
    if owned != recipe.ownable:
        wrong.append(f"{owned} sites that can be owned")
    wrong += _differences(recipe, got, expected)
    wrong += [f"another cache {name}" for name in ("k", "v") if not torch.equal(cache[name], theirs[name])]
    return Outcome(recipe, "; ".join(wrong))


def check_owned(recipe: Recipe) -> Outcome:
    """Prepares a model of the layer, whose caches headforce then owns, runs two chunks and compares with eager code."""
    torch._dynamo.reset()
    layer, policy = recipe.layer(), Policy.loads("headforce: 1\nclasses: {all: window(9)}\ndefault: all")
    model = _Model(layer)
    caches = [{**layer.new_cache(recipe.batch), "global_end_index": 0} for _ in range(2)]
    wrong = []
    with torch.no_grad(), prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": INNER.name}, fullgraph=True)
        for x, start in zoo.inputs(2, recipe.batch, passes=1, dtype=recipe.dtype):
            got, expected = compiled(x, caches[:1], start), layer(x, caches[1], start)
            wrong += _differences(recipe, got, expected)
        if session.launches != [2]:
            wrong.append(f"{session.launches} launches")
    return Outcome(recipe, "; ".join(wrong))


class _Model(nn.Module):
    """A layer as a model of a family that has an adapter."""

    def __init__(self, layer: zoo.SelfAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, kv_cache: list[zoo.Cache], current_start: int) -> Tensor:
        out = self.layer(x, kv_cache[0], current_start)
        kv_cache[0]["global_end_index"] = current_start + x.shape[1]
        return out


def _ownable(site: Site) -> bool:
    try:
        check_ownable(site)
    except HeadforceError:
        return False
    return True


def _differences(recipe: Recipe, got: Tensor, expected: Tensor) -> list[str]:
    got, expected = got.detach(), expected.detach()
    difference, size = float((got - expected).abs().max()), float(expected.abs().max())
    limit = {torch.float32: 1e-4, torch.bfloat16: 3e-2}[recipe.dtype]
    return [] if difference <= limit * size else [f"differs by {difference:.2g}, of {size:.2g}"]


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes whose parts go together, about two in three of them without a fault."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Recipe:
        recipe = recipe_by(lambda choices: draw(st.sampled_from(choices)))
        assume(recipe.possible())
        return recipe

    return drawn()


def random_recipe(source: random.Random) -> Recipe:
    """The same at random, evenly: what hypothesis tries resembles what it tried before."""
    while True:
        recipe = recipe_by(source.choice)
        if recipe.possible():
            return recipe


def recipe_by(choose: Callable[[Sequence[Any]], Any]) -> Recipe:
    """A recipe of which `choose` makes every choice; its parts may not go together."""
    fault = choose([None, None, *FAULTS]) if choose([True, False, False]) else None
    simple = fault in PROTOCOL_FAULTS
    return Recipe(
        rope=choose([name for name in zoo.ROPES if name != "none"]),
        protocol="append" if simple else choose(sorted(zoo.PROTOCOLS)),
        product=choose([product for product in PRODUCTS if _fits(fault, product)]),
        scale=choose(SCALES),
        mask="none" if fault in CORE_FAULTS else choose(MASKS),
        softmax=choose(sorted(SOFTMAXES)),
        heads=choose(sorted(TO_HEADS)),
        grouped=choose([*GROUPED, "native"]),
        kv_heads=choose([1, 2] if fault == "tiled heads" else [HEADS, HEADS, 2, 1]),
        same=(choose(list(SAME)), choose(list(SAME)), choose(list(SAME))),
        dtype=choose([torch.float32, torch.float32, torch.bfloat16]),
        batch=choose([1, 2]),
        frames=choose([2, 4]),
        raw=not simple and choose([False, False, True]),
        fault=fault,
    )


def _fits(fault: str | None, product: str) -> bool:
    """Whether the fault can be put into such a product, with grouped heads or without."""
    return fault not in CORE_FAULTS or any(CORE_FAULTS[fault](product, "none", grouped) for grouped in (True, False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks many layers; prints each that is not as its label says, and how many of each label there were."""
    parser = argparse.ArgumentParser(prog="python -m headforce.testing.graphs", description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="layers")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    given = parser.parse_args(arguments)
    logging.getLogger("headforce").setLevel(logging.ERROR)  # refusals are what is asked for
    torch.set_num_threads(1)
    source = random.Random(given.seed)
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for _ in range(given.count):
        outcome = check(random_recipe(source))
        label = outcome.recipe.code or "rewritten"
        total[label] += 1
        right[label] += not outcome.wrong
        if outcome.wrong:
            print(f"{outcome.wrong}\n    {outcome.recipe}", flush=True)
    for label in sorted(total):
        print(f"{label:20} {right[label]:5} of {total[label]}")
    return int(right.total() != total.total())


if __name__ == "__main__":
    sys.exit(main())
