"""From all passes of all attention calls to one verdict for each site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import HeadforceError
from ..kvpass.capture import Adapter
from ..kvpass.explanation import SiteFacts
from .diagnosis import EXCLUDED, OWNED, REFUSED, VIEW, SiteVerdict
from .watch import Known, Watched

_ORDER = (EXCLUDED, OWNED, VIEW, REFUSED)
"""From what counts least to what counts most, where passes differ."""


def site_verdicts(final: Watched, bare: Watched, known: Known, works: Adapter | None) -> tuple[SiteVerdict, ...]:
    """One verdict for each place of each module: the worst of its passes, in the fullest words.

    Args:
        final: the run that counts. bare: the model as it is. works: the adapter, if the model runs with it.
    """
    refusal = None if known.adapter is None else known.refusal  # an unknown family may be viewed
    verdicts: dict[tuple[str, str], SiteVerdict] = {}
    for facts in final.sites:
        new = _verdict(facts, bare, refusal, works)
        key = (new.name, new.where)
        verdicts[key] = _worse(verdicts[key], new) if key in verdicts else new
    return tuple(verdicts.values())


def _worse(old: SiteVerdict, new: SiteVerdict) -> SiteVerdict:
    """The worse verdict on a site, with what was recognised in the other pass where this one shows nothing."""
    worse, other = (new, old) if _weight(new) >= _weight(old) else (old, new)
    words = {name: getattr(worse, name) or getattr(other, name) for name in ("query", "cache", "rope")}
    return replace(worse, **words)


def _weight(site: SiteVerdict) -> tuple[int, bool, int]:
    # A pass without a past may be the first one; an eviction is told behind the rest.
    return _ORDER.index(site.verdict), site.code != "HF-NOHISTORY", len(site.cache)


def _verdict(facts: SiteFacts, bare: Watched, refusal: HeadforceError | None, works: Adapter | None) -> SiteVerdict:
    place = {"name": facts.name, "where": facts.where}
    if facts.verdict == EXCLUDED:
        return SiteVerdict(**place, verdict=EXCLUDED, code=facts.code, reason=facts.reason)
    words: dict[str, Any] = {**place, "query": facts.query, "cache": facts.cache, "rope": facts.rope}
    words["bare"] = _bare(facts, bare)
    if facts.verdict == REFUSED:
        return SiteVerdict(**words, verdict=REFUSED, code=facts.code, reason=facts.reason)
    if refusal is not None:
        reason = f"found {refusal.found}; needed {refusal.needed}"
        return SiteVerdict(**words, verdict=REFUSED, code=refusal.code, reason=reason)
    if facts.not_viewed:
        return SiteVerdict(**words, verdict=REFUSED, **_coded(facts.not_viewed))
    if facts.not_owned:
        return SiteVerdict(**words, verdict=VIEW, **_coded(facts.not_owned))
    if works is None:
        reason = "no adapter hands the caches of this model over"
        return SiteVerdict(**words, verdict=VIEW, code="HF-ADAPTER", reason=reason)
    return SiteVerdict(**words, verdict=OWNED)


def _bare(facts: SiteFacts, bare: Watched) -> str:
    """What a bare `torch.compile` can do with a call; the worst of its passes.

    Broken graphs know modules less well, so that the place may differ; then it is the worst of the whole model.
    """
    seen = [site for site in bare.sites if site.verdict != EXCLUDED]
    for known in ("where", "name"):
        seen = [site for site in seen if getattr(site, known) == getattr(facts, known)] or seen
    codes = [site.code or _coded(site.not_viewed)["code"] for site in seen]
    refused = sorted(filter(None, codes), key=lambda code: code != "HF-NOHISTORY")
    return refused[-1] if refused else VIEW if seen else ""


def _coded(refusal: str) -> dict[str, str]:
    code, _, reason = refusal.removeprefix("[").partition("] ")
    return {"code": code, "reason": reason}
