"""V0: what has to hold of every lowered graph, whatever the policy. Checked always."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from ..errors import HeadforceError
from .site import PREFILL, Site


def check_structure(module: GraphModule, sites: Sequence[Site], *, owned: bool) -> None:
    """HF-VERIFY-GRAPH unless every site became one attention, which takes the place of the model's own.

    The attention of a prefill stays as it is.
    In owned mode every site also writes its pages, and nothing reads or writes the model's cache any more.
    """
    attentions = _calls(module, "ragged_attention")
    writes = [*_calls(module, "write_pages"), *_calls(module, "rotate_and_write")]
    replaced = [site for site in sites if site.cache.kind != PREFILL]
    _expect("attentions of headforce", len(attentions), len(replaced))
    _expect("page writes", len(writes), len(sites) if owned else 0)
    _expect("attentions that nobody uses", sum(not node.users for node in attentions), 0)
    left = [site for site in replaced if any(node is site.node for node in module.graph.nodes)]
    _expect("attention calls of the model that were to be replaced", len(left), 0)
    if owned:
        caches = [node for site in sites for node in (site.cache.k_input, site.cache.v_input)]
        _expect("uses of the model's cache", sum(len(node.users) for node in caches), 0)


def check_probed(module: GraphModule, sites: Sequence[Site]) -> None:
    """HF-VERIFY-GRAPH unless every site is measured once, and is still the model's own."""
    _expect("measurements", len(_calls(module, "measure_attention")), len(sites))
    _expect("attentions of headforce", len(_calls(module, "ragged_attention")), 0)
    kept = [site for site in sites if any(node is site.node for node in module.graph.nodes)]
    _expect("attention calls of the model", len(kept), len(sites))


def _calls(module: GraphModule, name: str) -> list[Node]:
    return [node for node in module.graph.nodes if node.target is getattr(torch.ops.headforce, name).default]


def _expect(what: str, found: int, needed: int) -> None:
    if found != needed:
        raise HeadforceError("HF-VERIFY-GRAPH", found=f"{found} {what}", needed=str(needed))
