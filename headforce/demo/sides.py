"""The sides of the comparison. All have the same weights, noise and text; they differ in what runs the attention."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import Policy, prepare
from ..errors import HeadforceError
from ..kvpass.session import Session
from ..lowering.preview import preview
from ..policy import BoundPolicy, Schedule
from ..policy.memory import Record
from .example import load_example, twin
from .reference import Control, Oracle, Records, install_oracle
from .runner import Runner, compile_model
from .settings import CHUNK, NOISY_PASSES, Settings

NATIVE = Policy({})
"""Every head reads what the unmodified model reads."""


class Sides:
    """The example model and the ways to run it. `runners` maps names to sides, in the order in which they run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.example = load_example(settings.model)
        self.config = self.example.PRESETS[settings.preset]
        self.timesteps = tuple(self.example.SELF_FORCING_TIMESTEPS[:NOISY_PASSES])
        # Peaked attention: with random weights it would be nearly flat, and a wrong key would hardly show.
        self.model = self.example.init_random(self.example.CausalWan(self.config), settings.seed, peaked=True).eval()
        generator = torch.Generator().manual_seed(settings.seed)
        self.context = torch.randn(1, self.config.text_len, self.config.text_dim, generator=generator)
        self.runners: dict[str, Runner] = {}

    def build(self, policy: Policy, stack: ExitStack) -> None:
        """Makes the runners, and `bound`, the policy for this model; `stack` takes headforce's hold on them back."""
        dense, plain, own, ruled, reference = self.model, *(twin(self.model) for _ in range(4))
        native, governed = (stack.enter_context(prepare(*pair)) for pair in ((own, NATIVE), (ruled, policy)))
        tokens = self.config.tokens_per_frame
        shape = {"layers": self.config.num_layers, "heads": self.config.num_heads, "tokens": tokens}
        self._bind = partial(Policy.bind, native=native.native(self.config.cache_frames * tokens, tokens), **shape)
        self.given, self.classified = policy, False
        # What the stream begins with, and what it goes on with; they differ where heads are classified on the way.
        self.first = self._bind(policy.undecided() if policy.classify else policy)
        self.bound = bound = self._bind(policy)
        self.control = _control(bound, self.settings.chunks)
        self.oracle = Oracle(bound, self.example, _records(governed), self.control)
        install_oracle(reference, self.oracle)
        inner = self.settings.inner
        self._add("dense", "dense, eager", dense)
        self._add("dense_compiled", "dense, compiled", self._compiled(plain, inner))
        self._add("native", "headforce native()", self._compiled(own, "headforce"), native)
        self._add("policy", "headforce policy", self._compiled(ruled, "headforce"), governed)
        self._add("reference", "the eager reference", reference)

    def follow(self) -> None:
        """Once the policy's side has classified its heads, the reference and the report go by the same classes."""
        session = self.runners["policy"].session
        assert session is not None
        caches: Any = session.cache_sets[0]
        if caches.heads is None or caches.heads.classes is None or self.classified:
            return
        self.classified = True
        self.bound = self.oracle.policy = self._bind(self.given.classified(caches.heads.classes))
        found = _control(self.bound, self.settings.chunks)
        self.control.layer, self.control.head = found.layer, found.head

    def _compiled(self, model: nn.Module, backend: str) -> nn.Module:
        options = self.settings.options if backend == "headforce" else None
        return compile_model(model, backend, self.settings.whole, options)

    def _add(self, name: str, title: str, model: nn.Module, session: Session | None = None) -> None:
        rollout = self.example.Rollout(model, self.config, self.timesteps)
        passes = rollout.passes(self.context, [CHUNK] * self.settings.chunks, self.settings.seed)
        self.runners[name] = Runner(name, title, rollout, passes, session)

    @torch.no_grad()
    def control_error(self) -> float:
        """How much the flow of the last chunk changes when the reference misses one frame in one head of one layer."""
        rollout = self.runners["reference"].rollout
        start = CHUNK * (self.settings.chunks - 1) * self.config.tokens_per_frame
        video = self.runners["reference"].video

        def flow(falsified: bool) -> Any:
            self.control.on = falsified
            return rollout.model(
                video[:, :, -CHUNK:],
                torch.zeros(1, CHUNK),
                self.context,
                kv_cache=rollout.kv_cache,
                crossattn_cache=rollout.crossattn_cache,
                current_start=start,
            )

        right, wrong = flow(False), flow(True)
        return float((wrong - right).abs().max() / right.abs().max())


def _control(policy: BoundPolicy, chunks: int) -> Control:
    """A head that reads some of the past in the last chunk, of a layer as late as possible; HF-DEMO if none does."""
    *_, last = preview(policy, Schedule((CHUNK,) * chunks))
    for layer in reversed(range(policy.layers)):
        for head in range(policy.heads):
            if last.of(layer, head).kept:
                return Control(layer, head)
    raise HeadforceError(
        "HF-DEMO",
        site="--policy",
        found="a policy under which no head reads the past",
        needed="one that keeps something",
    )


def _records(session: Session) -> Records:
    """What the stores of the only stream of `session` decided; its side runs each pass before the reference does."""

    def record(layer: int, head: int) -> Record | None:
        (caches,) = session.cache_sets
        assert caches.stream is not None
        memory = caches.stream.lane(layer, head).memory
        return memory.explained() if memory else None

    return record
