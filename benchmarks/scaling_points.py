"""The points of `scaling.py`: the example model at some size, measured side by side with headforce, and predicted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import headforce
from headforce.cost import Machine, Shape, predict
from headforce.cost.stopwatch import lower_quartile
from headforce.demo.example import load_example, twin
from headforce.lowering.footprint import footprint
from headforce.policy import BoundPolicy, Policy, Schedule, parse_rule

example = load_example("causal-wan")

CHUNK, PASSES, HEAD_DIM = 3, 2, 64
FILLING = 1
"""The chunk that stands for the filling of the window."""


@dataclass(frozen=True)
class Size:
    """One size of the example model: `rows` x `columns` tokens a frame; a window in frames."""

    layers: int = 2
    heads: int = 4
    rows: int = 8
    columns: int = 12
    window: int = 12
    frames: int = 27
    ffn: int = 4
    """As a multiple of the width."""

    @property
    def config(self) -> Any:
        dim = self.heads * HEAD_DIM
        return replace(
            example.TINY,
            dim=dim,
            num_heads=self.heads,
            num_layers=self.layers,
            ffn_dim=self.ffn * dim,
            latent_height=2 * self.rows,
            latent_width=2 * self.columns,
            local_attn_size=self.window,
            rope_positions=max(1024, self.frames),
        )

    @property
    def shape(self) -> Shape:
        config = self.config
        return Shape(
            layers=self.layers,
            heads=self.heads,
            head_dim=HEAD_DIM,
            tokens=config.tokens_per_frame,
            ffn=config.ffn_dim,
            text=config.text_len,
            text_width=config.text_dim,
            channels=config.channels * 4,
            frequencies=config.freq_dim,
            passes=PASSES,
            dtype="float32",
        )

    @property
    def schedule(self) -> Schedule:
        return Schedule((CHUNK,) * (self.frames // CHUNK))

    @property
    def policy(self) -> BoundPolicy:
        """A quarter of the heads keep the first frame and five, the others two."""
        return policy_of(self.layers, self.heads).bind(
            layers=self.layers,
            heads=self.heads,
            native=parse_rule(f"span({self.window})"),
            tokens=self.config.tokens_per_frame,
        )


def policy_of(layers: int, heads: int) -> Policy:
    """The policy of all points."""
    far = list(range(max(1, heads // 4)))
    rules = {"far": "sink(1)@collapse(9) | window(5)", "near": "window(2)"}
    members = {str(layer): {"far": far} for layer in range(layers)}
    return Policy.loads(json.dumps({"headforce": 1, "classes": rules, "heads": members, "default": "near"}))


class Side:
    """A model and the seconds of its passes, [video][chunk][pass]."""

    def __init__(self, model: nn.Module, size: Size, now: Callable[[], float]) -> None:
        self._model, self._now = model, now
        self._size = size
        self.rollout = example.Rollout(self._timed, size.config, timesteps=(1000.0,) * (PASSES - 1))
        self.videos: list[list[list[float]]] = []

    def video(self) -> Iterator[None]:
        """A video, pass by pass."""
        config, chunks = self._size.config, len(self._size.schedule.sizes)
        text = torch.zeros(1, config.text_len, config.text_dim)
        self.videos.append([[] for _ in range(chunks)])
        for _ in self.rollout.passes(text, [CHUNK] * chunks, seed=len(self.videos)):
            yield

    def seconds(self, chunks: range) -> float:
        """Of a chunk, over those chunks and all videos but the first, which compiles."""
        return sum(
            lower_quartile([video[chunk][step] for video in self.videos[1:] for chunk in chunks])
            for step in range(PASSES)
        )

    def _timed(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        chunk = kwargs["current_start"] // (CHUNK * self._size.config.tokens_per_frame)
        begin = self._now()
        out: Tensor = self._model(x, *args, **kwargs)
        self.videos[-1][chunk].append(self._now() - begin)
        return out


@torch.no_grad()
def run(size: Size, inner: str, now: Callable[[], float], videos: int) -> tuple[dict[str, Side], dict[str, int]]:
    """Dense and compiled side by side, pass by pass; the sides, and the bytes of K and V that each holds."""
    torch._dynamo.reset()
    model = example.init_random(example.CausalWan(size.config)).eval()
    ours = twin(model)
    sides = {"dense": Side(model, size, now), "headforce": Side(ours, size, now)}
    with headforce.prepare(ours, policy_of(size.layers, size.heads)) as session:
        session.compile(blocks="blocks", inner=inner)
        for _ in range(videos):
            for _ in zip(*(side.video() for side in sides.values()), strict=True):
                pass
        dense = sides["dense"].rollout.kv_cache
        held = {
            "dense": sum(cache[name].nbytes for cache in dense for name in ("k", "v")),
            "headforce": session.pool_bytes,
        }
    return sides, held


def point(axis: str, size: Size, machine: Machine, inner: str, now: Callable[[], float], videos: int) -> dict[str, Any]:
    """One size, measured and predicted, while the window fills and once it is full."""
    sides, held = run(size, inner, now, videos)
    chunks = size.frames // CHUNK
    full = range(size.window // CHUNK + 1, chunks)
    found = predict(size.policy, size.schedule, size.shape, machine)
    predicted = {"dense": found.dense, "headforce": found.policy}
    counted = footprint(size.policy, size.schedule, size.shape.frame_bytes)
    measured = {
        name: {"filling": side.seconds(range(FILLING, FILLING + 1)), "full": side.seconds(full)}
        for name, side in sides.items()
    }
    expected = {
        name: {"filling": parts[FILLING].total, "full": parts[-1].total, "parts": parts[-1].to_json()}
        for name, parts in predicted.items()
    }
    return {
        "axis": axis,
        "size": {**asdict(size), "tokens": size.shape.tokens},
        "measured": measured,
        "predicted": expected,
        "held": held,
        "counted": {"dense": counted.dense_bytes, "headforce": counted.pool_bytes},
    }


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Predicted over measured, by side and state."""
    return {
        f"{side} {state}": found["predicted"][side][state] / seconds
        for side, states in found["measured"].items()
        for state, seconds in states.items()
    }
