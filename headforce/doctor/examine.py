"""From two runs of a model, as it is and with its adapter, to a diagnosis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..calls import Example
from ..errors import HeadforceError
from ..kvpass.breaks import Break
from ..kvpass.capture import Adapter
from ..kvpass.explanation import Outlook
from ..kvpass.observer import Ran
from ..kvpass.outlook import outlook
from ..kvpass.session import session_of
from ..policy import Policy
from .diagnosis import OWNED, VIEW, BreakVerdict, Diagnosis, RunFacts, SiteVerdict
from .verdicts import site_verdicts
from .watch import Known, Watched, known_model, watch


def examine(example: Example, policy: Policy | None = None, policy_name: str | None = None) -> Diagnosis:
    """What headforce can do for a model that it has never seen, and what stands in the way.

    The calls run under Dynamo with the model as it is and, if an adapter knows it, once more with what the adapter puts
    in place. Both run on copies, so model, caches and random numbers are as before; compiled code of the process is
    dropped, and what the model's code keeps in globals changes as by any other call.

    Args:
        policy: a policy to tell what it would keep, hold and compute. policy_name: what to call it.

    Raises HF-EXAMPLE for an example that cannot be run, HF-PREPARED for a prepared model, and whatever says that the
    policy does not fit the model.
    """
    known = known_model(example.model)
    if session_of(known.model) is not None:
        raise HeadforceError("HF-PREPARED", found="a model that is prepared already", needed="restore() first")
    bare = watch(example, adapted=False)
    prepared = watch(example, adapted=True) if known.refusal is None else None
    works = known.adapter if prepared is not None and prepared.error is None else None
    final = bare if prepared is None or works is None else prepared
    sites = site_verdicts(final, bare, known, works)
    return Diagnosis(
        model=type(known.model).__qualname__,
        family=None if known.adapter is None else known.adapter.name,
        bare=_facts(bare),
        prepared=None if prepared is None else _facts(prepared),
        breaks=tuple(_break(found, prepared, works) for found in bare.breaks),
        sites=sites,
        kv_bytes=_bytes(final.newest),
        policy=policy_name if policy is not None else None,
        outlook=None if policy is None else _outlook(outlook(policy, final.newest, works, known.model), sites),
        notes=tuple(_notes(sites, final, prepared, known)),
    )


def _outlook(found: Outlook | None, sites: Sequence[SiteVerdict]) -> Outlook | None:
    """An outlook looks at one pass; a site that is refused in any is not viewed."""
    refused = next((site for site in sites if site.counts), None)
    if found is None or refused is None or found.not_viewed:
        return found
    return replace(found, not_viewed=f"[{refused.code}] {refused.reason}")


def _facts(run: Watched) -> RunFacts:
    error = "" if run.error is None else f"{run.error.where}: {run.error.reason}"
    return RunFacts(tuple(run.graphs), tuple(run.breaks), error)


def _bytes(ran: Sequence[Ran]) -> int | None:
    """K and V of the sites of one call, as far as the model keeps them."""
    sizes = [
        facts.batch * facts.cache_rows * site.kv_heads * (site.head_dim + site.value_dim) * site.cache.dtype.itemsize
        for _, site, facts in ran
    ]
    return sum(sizes) if sizes else None


def _break(found: Break, prepared: Watched | None, adapter: Adapter | None) -> BreakVerdict:
    if adapter is None or prepared is None:
        return BreakVerdict(found, False, found.remedy)
    if (found.where, found.cause) in {(left.where, left.cause) for left in prepared.breaks}:
        return BreakVerdict(found, False, found.remedy)
    shim = next(
        (what for word, what in adapter.replaces.items() if word in found.source), "it comes with another break"
    )
    return BreakVerdict(found, True, f"family {adapter.name}: headforce.prepare; {shim}")


def _notes(sites: Sequence[SiteVerdict], run: Watched, prepared: Watched | None, known: Known) -> Iterator[str]:
    bare = "A bare torch.compile(model, backend='headforce')"
    if known.adapter is None:
        yield (
            f"[HF-ADAPTER] No adapter knows a {type(known.model).__qualname__}, so headforce.prepare cannot own its "
            f"cache. {bare} with a policy views it where the verdict says so; docs/extending.md tells how to write an "
            "adapter."
        )
    elif known.refusal is not None:
        yield f"headforce.prepare does not take the model. {known.refusal}"
    elif prepared is not None and prepared.error is not None:
        yield (
            f"headforce.prepare takes the model for family {known.adapter.name}, and a call then fails: "
            f"{prepared.error.reason}. The verdicts are those of the model as it is."
        )
    elif any(site.verdict == OWNED for site in sites):
        refused = sorted({site.bare for site in sites if site.verdict == OWNED and site.bare not in (VIEW, "")})
        cannot = f", and is refused here ({', '.join(refused)})" if refused else ""
        yield (
            f"{bare} cannot own the cache, which stays the model's own{cannot}. "
            f"headforce.prepare(model, policy=...) owns it: family {known.adapter.name}."
        )
    if len(run.graphs) == 1:
        yield "One call was seen. Calls that fill the cache and evict from it show the graphs of later passes too."
    elif run.graphs[-1]:
        yield f"The last call still compiled {run.graphs[-1]} new graphs: later calls may compile more."
    without = {site.counts for site in sites if site.code == "HF-NOHISTORY"}
    if False in without:
        yield "[HF-NOHISTORY] Self-attention without a past does not count against the model."
    if True in without:
        yield (
            "[HF-NOHISTORY] One pass was called without the past that others have. Give it an empty one, [B, 0, H, D], "
            "or let it run as it is: options={'on_refuse': 'warn'}."
        )
