"""`headforce.prepare`: a model whose caches headforce owns, or watches."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import HeadforceError, nearest
from ..lowering.verify import Verification
from ..policy import Answer, Policy, Rule, parse_answer
from ..presets import Labels, read_policy
from . import running
from .capture import Adapter, Change, LayerCache, find_model
from .guarded import GuardedForward
from .layers import OWNED, VIEW, Caches, layer_of, variant_of
from .owned_caches import OwnedCaches
from .report import Report
from .running import Running
from .streams import Streams, switch_all
from .torch_private import compile_in_place, compiled_in_place, recompile_limit_of
from .view_caches import ViewCaches
from .view_plans import ViewPlans

if TYPE_CHECKING:
    from .site_graph import SiteGraph

log = logging.getLogger("headforce")

GRAPHS = 32
"""Room for the graphs of a prepared model, where running the model as it is after a few, as Dynamo does, is an error:
videos begin and go on with chunks of several sizes, and streams have batches of several. Dynamo's limit is 8."""

_SESSIONS: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


def prepare(
    model: Any,
    policy: Policy | str | PathLike[str],
    *,
    labels: Labels | str | PathLike[str] | None = None,
    mode: str = "owned",
    canonical_order: bool = False,
    verify: str | None = None,
    every: int = 1,
) -> Session:
    """Gives `model` a policy. Compile the model afterwards (`session.compile()`), or the one you compiled before.

    Args:
        model: a model of a known family, or a pipeline that holds one. Source and weights stay as they are.
        policy: what every head remembers: a `Policy`, the path of a policy file, or the name of a preset.
        labels: which heads are what, for presets that ask for it: `Labels` or the path of a label file.
        mode: "owned": K and V live in pools of exactly the policy's size, which saves time and memory. "view": the
            model keeps its cache and attention reads the kept rows of it, which saves time; rules are then limited to
            what the model itself still reads.
        canonical_order: read keys in the order of their frames, as view mode always does. Slower; bitwise equal to
            eager under `native()`.
        verify: what is checked while the model runs: "off", "plan", "site" or "full", see `Verification`; None is what
            the variable `HEADFORCE_VERIFY` says, or "off". every: of "site", launches of a layer from one check to the
            next.

    Returns a `Session`; `session.restore()` takes everything back. Raises HF-ADAPTER for an unknown family, HF-PREPARED
    for a model that is prepared already, HF-OPTION for an unknown mode, HF-SCORE for an unknown score.
    """
    if mode not in (OWNED, VIEW):
        raise HeadforceError("HF-OPTION", site="mode", found=repr(mode), needed="'owned' or 'view'")
    checks = Verification.of(verify, every)
    module, adapter = find_model(model)
    if module in _SESSIONS:
        raise HeadforceError("HF-PREPARED", found="a model that is prepared already", needed="restore() first")
    loaded = read_policy(policy, labels)
    _register_backend()
    return Session(module, loaded, adapter, mode=mode, canonical=canonical_order, verify=checks)


def _register_backend() -> None:
    """Makes the name "headforce" known to `torch.compile` where no entry point does: in a checkout that was not
    installed."""
    if "headforce" not in torch._dynamo.list_backends(exclude_tags=()):
        from .backend import headforce_backend

        torch._dynamo.register_backend(headforce_backend, name="headforce")


def session_of(model: nn.Module) -> Session | None:
    """The session of a prepared model."""
    return _SESSIONS.get(getattr(model, "_orig_mod", model))


class Session:
    """A prepared model. Made by `prepare`; `restore()` ends it.

    Attributes:
        model, policy, adapter, mode, canonical, verify: as given to `prepare`.
        variant: what of each graph runs, see `layers`.
        report: every attention site of every graph that ran, and what became of it.
        misses: in view mode, how often a layer's attention ran without its policy, because the pass was not compiled.
    """

    def __init__(
        self, model: nn.Module, policy: Policy, adapter: Adapter, *, mode: str, canonical: bool, verify: Verification
    ) -> None:
        self._model = weakref.ref(model)
        self._name = type(model).__name__
        self.policy = policy
        self.adapter = adapter
        self.mode = mode
        self.variant = variant_of(mode, policy)
        self.canonical = canonical
        self.verify = verify
        self.report = Report()
        self.misses = 0
        self._graphs: weakref.WeakSet[SiteGraph] = weakref.WeakSet()
        self._streams = Streams(self._adopted)
        self._natives: dict[tuple[int, int], Rule] = {}  # of the running pass: every layer asks
        self._paused = False
        self._over = False
        self._installed = adapter.install(model)
        # What was called before `compile`.
        self._uncompiled: weakref.WeakKeyDictionary[nn.Module, tuple[Any]] = weakref.WeakKeyDictionary()
        self._hooks = [
            model.register_forward_pre_hook(torch._dynamo.disable(self._before), with_kwargs=True),
            model.register_forward_hook(torch._dynamo.disable(self._after), with_kwargs=True, always_call=True),
        ]
        self._guard = GuardedForward(model, self)
        _SESSIONS[model] = self
        # Caches are registered by their memory, not by the model: without it nobody would give them up.
        weakref.finalize(model, self._streams.release).atexit = False

    # --- around every call of the model --------------------------------------------------------------------------

    def _before(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if model is not self._model() or self._paused:
            return  # a deep copy takes hooks along; it is a model of its own
        caches = self.adapter.caches(model, args, kwargs)
        if not caches:
            raise HeadforceError("HF-ADOPT", found="a call without a KV cache", needed="a call that passes one")
        self._natives.clear()
        current = self._streams.of_call(caches)
        texts = self.adapter.text_caches(model, args, kwargs)
        current.change = self._change(model, args, kwargs, current, texts)
        current.text_caches = texts
        running.begin(self, current, recompile_limit_of(GRAPHS), self.adapter.shims(model, args, kwargs))

    def _change(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], current: Caches, texts: Sequence[Any]
    ) -> Change | None:
        """What a call says about the prompt: nothing at the start of a stream, or with text caches of its own."""
        change = self.adapter.change(model, args, kwargs)
        same = [id(text) for text in texts] == [id(text) for text in current.text_caches]
        return change if current.chunk is not None and (same or change is Change.ANEW) else None

    def _after(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        call = running.end(self) if model is self._model() else None
        if call is None or call.failed:
            return
        if call.odd:
            self._odd(call)

    def _odd(self, call: Running) -> None:
        """A call is over in which a site did not run, or more than once: it was not compiled."""
        if call.refusal is not None:
            raise call.refusal
        if isinstance(call.caches, ViewCaches):
            # The model has run as it is, with a cache that is all there.
            if not self.misses:
                log.warning(
                    "headforce: %s ran a pass without its policy in %d layers, because that was not compiled. "
                    "session.misses counts them; this is said once.",
                    self._name,
                    len(call.odd),
                )
            self.misses += len(call.odd)
            for layer, _ in call.odd:
                call.caches.lose_sight(layer)
            return
        places = ", ".join(f"layer {layer.number}: {times}" for layer, times in call.odd[:4])
        raise HeadforceError(
            "HF-EAGER",
            found=f"sites that did not run compiled exactly once in this pass ({places})",
            needed="every layer's attention compiled by headforce; the output of this pass is not valid",
        )

    def may_run(self) -> bool:
        """Whether the model's `forward` is called by a call of the model, or the session looks away."""
        return self._paused or running.active_session() is self

    def interrupted(self) -> None:
        """An error that no hook hears of ends the call: it is over."""
        running.end(self)

    def _adopted(self, caches: Sequence[LayerCache]) -> Caches:
        """A stream of caches that belong to none."""
        if self.mode == OWNED:
            return OwnedCaches(self, caches)
        for layer in (layer_of(cache.tensors()[0]) for cache in caches):
            if layer is not None:  # adopted when the model was not prepared yet
                layer.caches.release()
        return self._watched(caches)

    def _watched(self, caches: Sequence[LayerCache]) -> Caches:
        """Caches that the model keeps."""
        plans = ViewPlans.of(self.policy, len(caches), self.verify.plans)
        return ViewCaches(plans, [cache.tensors()[0] for cache in caches], self, caches)

    def uses(self, graph: SiteGraph) -> None:
        """A compiled graph runs for this model; the first time it enters the report."""
        if graph not in self._graphs:
            self._graphs.add(graph)
            self.report.add("rewritten", graph.report.found, graph.report.refused, graph.report.excluded)

    # --- for the user ---------------------------------------------------------------------------------------------

    @property
    def cache_sets(self) -> list[Caches]:
        """The streams, oldest first: the caches of each."""
        return self._streams.all

    @property
    def model(self) -> nn.Module:
        """The prepared model; HF-PREPARED once it has been freed."""
        model = self._model()
        if model is None:
            raise HeadforceError(
                "HF-PREPARED", found=f"the session of a {self._name} that has been freed", needed="a model that is held"
            )
        return model

    def native(self, cache_rows: int, tokens_per_frame: int) -> Rule:
        """What the unmodified model reads, for a cache of this size."""
        key = (cache_rows, tokens_per_frame)
        if key not in self._natives:
            self._natives[key] = self.adapter.native(self.model, *key)
        return self._natives[key]

    def __str__(self) -> str:
        held = f"{self.pool_bytes} bytes held" if self.mode == OWNED else f"{self.misses} misses"
        streams, ran = len(self.cache_sets), sum(self.launches)
        head = f"{self._name}, {self.mode} mode: {streams} streams, {ran} launches, {held}"
        return f"{head}\n{self.report}"

    @property
    def labels(self) -> Labels | None:
        """Which heads are what in the newest stream, for a policy that classifies them; None before it has.

        Saved, and given to the same policy, they make another video with the same heads.
        """
        classified = [caches.heads.classes for caches in self._streams.owned if caches.heads is not None]
        newest = classified[-1] if classified else None
        return None if newest is None else Labels(tuple(map(tuple, newest)))

    @property
    def pool_bytes(self) -> int:
        """Bytes of K and V that headforce holds, over all streams; none in view mode."""
        return sum(caches.held_bytes for caches in self.cache_sets)

    @property
    def launches(self) -> list[int]:
        """How often every layer's attention ran, over all streams."""
        counts = [[layer.launches for layer in caches.layers] for caches in self.cache_sets]
        return [sum(layer) for layer in zip_longest(*counts, fillvalue=0)]  # a call with too few caches is no stream

    @property
    def replays(self) -> int:
        """How often a captured graph was replayed, for this model or another that shares its graphs."""
        return sum(captured.replays for graph in self._graphs for captured in graph.captured)

    def compile(self, *, blocks: str | None = None, **options: Any) -> None:
        """Compiles the model in place, so that whoever holds it calls the compiled one, until `restore()`.

        Args:
            blocks: the name of a submodule, such as "blocks", whose children are compiled instead, each by itself. They
                share graphs, so this compiles sooner.
            options: those of the backend, such as `inner="eager"` and `target="triton"`.

        Raises HF-PREPARED after `restore()`, HF-OPTION where `blocks` names nothing.
        """
        self._check_runs()
        for module in [self.model] if blocks is None else self._blocks(blocks):
            self._uncompiled.setdefault(module, compiled_in_place(module))
            module.compile(backend="headforce", options=options)

    def _check_runs(self) -> None:
        """HF-PREPARED after `restore()`."""
        if self._over:
            raise HeadforceError("HF-PREPARED", found="a session that was restored", needed="prepare() again")

    def _blocks(self, name: str) -> list[nn.Module]:
        """The children of the submodule `name`."""
        known = dict(self.model.named_modules())
        blocks = list(known[name].children()) if name in known else []
        if not blocks:
            having = [path for path, module in self.model.named_children() if next(module.children(), None) is not None]
            raise HeadforceError(
                "HF-OPTION",
                site="blocks",
                found=f"{name!r}, which has no submodules in a {self._name}{nearest(str(name), known)}",
                needed="the name of a submodule that has some: " + ", ".join(having),
            )
        return blocks

    def switch(self, answer: Answer | str | None = None, *, kv_cache: Sequence[Any] | None = None) -> int:
        """The prompt switches: call it between two chunks, before the first pass with the new text.

        Every class of heads does with its memory what the policy's `on_switch` says, and cross-attention computes its
        keys and values anew. All streams of the model that have begun are switched, or none if one of them refuses.

        Args:
            answer: for all heads, whatever the policy says: `keep()`, `flush(2)`, `recache(12)`, `cut(21)`. Triton
                compiles the kernels that turn keys at the first cut, unless `on_switch` names one.
            kv_cache: the caches of the one stream that is meant, as the model is called with them. Nobody tells when a
                video is over, so its stream is switched too otherwise, for as long as its caches are held.

        Returns how many of the newest frames have to be run again, clean and with the new text, before the next chunk,
        the most that a stream asks for; 0 for none. Raises HF-VIEW in view mode, where the memory is the model's own,
        HF-CLOCK before the first pass, HF-OPTION for what is no answer, HF-ADOPT for caches of no stream, HF-PREPARED
        after `restore()`.
        """
        self._check_runs()
        if self.mode != OWNED:
            raise HeadforceError("HF-VIEW", found="a prompt switch in view mode", needed="owned mode")
        given = parse_answer(answer) if isinstance(answer, str) else answer
        if not isinstance(given, Answer | None):
            raise HeadforceError(
                "HF-OPTION", site="answer", found=type(given).__name__, needed='an answer, such as "flush(2)", or None'
            )
        streams = self._streams.running(kv_cache)
        again = switch_all(streams, given)
        for caches in streams:
            self.adapter.forget_text(caches.text_caches)
        return max(again)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Calls of the model inside are none of the session's business."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def restore(self) -> None:
        """Leaves the model as it was: hooks and `compile` undone, ordinary empty caches in place of the shells.

        The session is over then. A video that has begun cannot go on: the model's indices are set back with its caches.
        """
        self._over = True
        for hook in self._hooks:
            hook.remove()
        self._guard.close()
        self._installed.close()
        for module, before in self._uncompiled.items():
            compile_in_place(module, before)
        model = self._model()
        if model is not None:
            _SESSIONS.pop(model, None)
        if not self._streams.release():
            log.warning(
                "headforce: restore() in the middle of a video: what the caches of %s held is gone, and nothing in "
                "them says so. Begin the video anew.",
                self._name,
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
