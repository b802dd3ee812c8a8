"""Runs the unmodified model of a Self-Forcing checkout under headforce, beside itself.

    git clone https://github.com/guandeh17/Self-Forcing
    pip install diffusers einops
    python examples/self_forcing_upstream.py --repo Self-Forcing

Nothing of the checkout is changed or copied: its `CausalWanModel` is imported, given random weights, and run in four
ways - as it is, compiled with headforce under `native()` in owned and in view mode, and compiled under a policy - over
two videos in a row with the same caches. `--full` takes the dimensions of the 1.3B model at 480p instead of small ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import headforce
from headforce.kvpass.session import Session
from headforce.policy import Policy

POLICY = """
headforce: 1
classes:
  static: sink(1) | window(1)
  dynamic: sink(1) | stride(3, phase=0, last=1) | window(1)
default: static
heads: {"0": {dynamic: [0]}, "1": {dynamic: [1, 2]}}
"""
FRAMES = 3  # of a chunk


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the model and of what it makes."""

    dim: int
    ffn: int
    heads: int
    layers: int
    text: int
    text_len: int
    freq: int
    channels: int
    grid: tuple[int, int]
    window: int
    sink: int

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]


SMALL = Sizes(96, 128, 4, 2, 32, 8, 64, 4, (4, 6), 6, 1)
FULL = Sizes(1536, 8960, 12, 30, 4096, 512, 256, 16, (30, 52), 21, 0)


def import_model(repo: Path) -> types.ModuleType:
    """`wan.modules.causal_model` of the checkout, without the text encoder and the rest that its packages import."""
    if not (repo / "wan/modules/causal_model.py").is_file():
        sys.exit(f"{repo} is not a checkout of Self-Forcing: it has no wan/modules/causal_model.py")
    for name in ("wan", "wan.modules"):
        package = types.ModuleType(name)
        package.__path__ = [str(repo / name.replace(".", "/"))]
        sys.modules[name] = package
    import wan.modules.causal_model as causal_model

    return causal_model


def build(module: types.ModuleType, sizes: Sizes, dtype: torch.dtype) -> torch.nn.Module:
    """A model with random weights. Upstream leaves the last layer zero, so that one is filled too."""
    torch.manual_seed(0)
    model = module.CausalWanModel(
        model_type="t2v",
        dim=sizes.dim,
        ffn_dim=sizes.ffn,
        num_heads=sizes.heads,
        num_layers=sizes.layers,
        text_dim=sizes.text,
        text_len=sizes.text_len,
        freq_dim=sizes.freq,
        in_dim=sizes.channels,
        out_dim=sizes.channels,
        local_attn_size=sizes.window,
        sink_size=sizes.sink,
    )
    torch.nn.init.normal_(model.head.head.weight, std=0.05)
    for block in model.blocks:
        # Upstream counts 1560 tokens a frame whatever the grid is.
        block.self_attn.max_attention_size = sizes.window * sizes.tokens
    return model.eval().to(dtype)


class Pipeline:
    """The caches and the loop of upstream's pipeline: indices are tensors, and a new video puts new ones."""

    def __init__(self, model: Any, sizes: Sizes, dtype: torch.dtype) -> None:
        self.model, self.sizes, self.dtype = model, sizes, dtype
        rows, head_dim = sizes.window * sizes.tokens, sizes.dim // sizes.heads

        def pair(length: int) -> dict[str, Any]:
            return {name: torch.zeros(1, length, sizes.heads, head_dim, dtype=dtype) for name in ("k", "v")}

        self.kv_cache = [pair(rows) for _ in range(sizes.layers)]
        self.crossattn_cache = [pair(sizes.text_len) for _ in range(sizes.layers)]

    @torch.no_grad()
    def video(self, chunks: int, passes: int, seed: int, tick: Any) -> tuple[torch.Tensor, list[float]]:
        """The outputs of the last pass of every chunk, and the seconds of every chunk."""
        for cache in self.kv_cache:
            cache["global_end_index"] = torch.tensor([0], dtype=torch.long)
            cache["local_end_index"] = torch.tensor([0], dtype=torch.long)
        for cache in self.crossattn_cache:
            cache["is_init"] = False
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(self.sizes.text_len, self.sizes.text, generator=generator).to(self.dtype)
        h, w = self.sizes.grid
        outputs, seconds = [], []
        for chunk in range(chunks):
            begin = time.perf_counter()
            for step in range(passes):
                x = torch.randn(1, self.sizes.channels, FRAMES, 2 * h, 2 * w, generator=generator).to(self.dtype)
                output = self.model(
                    x,
                    torch.full((1, FRAMES), 1000.0 * (passes - 1 - step) / passes),
                    [text],
                    FRAMES * chunks * self.sizes.tokens,
                    kv_cache=self.kv_cache,
                    crossattn_cache=self.crossattn_cache,
                    current_start=chunk * FRAMES * self.sizes.tokens,
                    cache_start=0,
                )
                tick()
            outputs.append(output)
            seconds.append(time.perf_counter() - begin)
        return torch.cat(outputs, dim=2), seconds


@dataclass
class Side:
    """One way to run the model, and what came of it."""

    title: str
    videos: list[torch.Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held: int = 0
    graphs: int = 0
    launches: float = 0.0
    breaks: int = 0


def run(
    title: str, pipeline: Pipeline, arguments: argparse.Namespace, progress: Progress, session: Session | None
) -> Side:
    """Two videos in a row; the chunks of the second, when everything is compiled, give the time."""
    side = Side(title)
    task = progress.add_task(title, total=2 * arguments.chunks * arguments.passes)
    torch._dynamo.utils.counters.clear()
    for seed in (1, 2):
        video, seconds = pipeline.video(arguments.chunks, arguments.passes, seed, lambda: progress.advance(task))
        side.videos.append(video)
        side.seconds = seconds
    side.held = sum(cache[name].nbytes for cache in pipeline.kv_cache for name in ("k", "v"))
    if session is not None:
        side.held, side.graphs = session.pool_bytes or side.held, session.report.graphs
        side.launches = sum(session.launches) / len(session.launches) / (2 * arguments.chunks * arguments.passes)
        side.breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return side


def error(side: Side, other: Side) -> float:
    """The largest difference of the two videos over the largest value."""
    pairs = zip(side.videos, other.videos, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, required=True, help="a checkout of Self-Forcing")
    parser.add_argument("--policy", type=Path, help="a policy file; default: a small one with two classes")
    parser.add_argument("--full", action="store_true", help="the dimensions of the 1.3B model at 480p")
    parser.add_argument("--chunks", type=int, default=5, help="chunks of 3 frames in each of the two videos")
    parser.add_argument("--passes", type=int, default=3, help="passes over a chunk, the clean one included")
    parser.add_argument("--inner", default="eager", help="the inner compiler")
    parser.add_argument("--target", default="sdpa", help="how attention is computed")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    sizes, dtype = FULL if arguments.full else SMALL, getattr(torch, arguments.dtype)
    module = import_model(arguments.repo)
    policy = Policy.load(arguments.policy) if arguments.policy else Policy.loads(POLICY)
    with Progress(console=Console(stderr=True)) as progress:
        model = build(module, sizes, dtype)
        # Upstream's cross-attention insists on flash-attn; its own fallback stands in for it on a machine without.
        cross = sys.modules[type(model.blocks[0].cross_attn).__module__]
        original = cross.flash_attention
        attention = sys.modules[module.attention.__module__].attention
        cross.flash_attention = lambda q, k, v, k_lens=None, **_: attention(q, k, v)
        sides = [run("unmodified, eager", Pipeline(model, sizes, dtype), arguments, progress, None)]
        cross.flash_attention = original
        ours = (("native()", Policy({}), "owned"), ("native()", Policy({}), "view"), ("policy", policy, "owned"))
        for name, rules, mode in ours:
            title, ordered = f"headforce, {name}, {mode}", rules is not policy
            with headforce.prepare(model, rules, mode=mode, canonical_order=ordered, verify="plan") as session:
                compiled = torch.compile(
                    model, backend="headforce", options={"inner": arguments.inner, "target": arguments.target}
                )
                sides.append(run(title, Pipeline(compiled, sizes, dtype), arguments, progress, session))
    rows = [
        {
            "side": side.title,
            "chunk_seconds": statistics.median(side.seconds),
            "held_bytes": side.held,
            "held_ratio": side.held / sides[0].held,
            "graphs": side.graphs,
            "graph_breaks": side.breaks,
            "launches_per_layer_and_pass": side.launches,
            "difference_from_eager": error(side, sides[0]),
        }
        for side in sides
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title=f"{arguments.repo.name}: {sizes.layers} layers, {sizes.heads} heads, two videos in a row")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "side" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
