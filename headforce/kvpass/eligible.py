"""Whether a site that was recognised can be rewritten in owned or in view mode."""

from __future__ import annotations

from dataclasses import replace

from ..errors import HeadforceError
from .site import PREFILL, Refusal, Site, SiteReport


def check_ownable(site: Site) -> None:
    """Raises unless K and V of the site can live in our pools."""
    where = _where(site)
    if site.cache.kind not in ("append", PREFILL):
        raise HeadforceError("HF-OWNED", site=where, found="a history that is joined by cat", needed="a cache in place")
    check_viewable(site)
    if site.cache.keys_rotated != "before":
        raise HeadforceError("HF-OWNED", site=where, found="keys rotated when read", needed="keys rotated when written")


def check_viewable(site: Site) -> None:
    """Raises unless the rows that the site reads are known frame by frame."""
    if site.mask.kind not in ("none", "all_true", "kept"):
        raise HeadforceError("HF-MASK", site=_where(site), found=f"a {site.mask.kind} mask", needed="no mask")
    if site.rope is None or site.rope.query_start is None or site.rope.tokens_per_frame is None:
        notes = "; ".join(site.notes) or "no RoPE"
        raise HeadforceError("HF-CLOCK", site=_where(site), found=notes, needed="RoPE that shows the query's frame")
    if site.rope.tokens_per_frame == 1:  # windows would count tokens, and nobody would notice
        raise HeadforceError(
            "HF-CLOCK",
            site=_where(site),
            found="RoPE by which every row is at a position of its own",
            needed="all tokens of a frame at one position, the frame's, in the channels that turn with time",
        )


def viewable(report: SiteReport) -> SiteReport:
    """The report with sites that view mode cannot take among those that are refused."""
    found, refused = [], list(report.refused)
    for site in report.found:
        try:
            check_viewable(site)
        except HeadforceError as error:
            refused.append(Refusal(error.code, site.name, site.where, error.found, error.needed))
        else:
            found.append(site)
    return replace(report, found=tuple(found), refused=tuple(refused))


def _where(site: Site) -> str:
    return f"{site.name} ({site.where})"
