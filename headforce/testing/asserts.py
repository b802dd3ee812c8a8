"""Assertions about one call: it was rewritten, or it was refused with a code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import CATALOGUE, HeadforceError

if TYPE_CHECKING:
    from ..kvpass.report import Report
    from ..kvpass.session import Session


def assert_rewritten(done: Session | Report, *, sites: int | None = None, launches: int | None = None) -> None:
    """AssertionError unless attention was rewritten, nothing was refused and, of a session, every layer ran.

    Args:
        done: a prepared model that has run, or a report.
        sites: how many were rewritten, over all graphs. launches: how often each layer's attention ran.
    """
    report = getattr(done, "report", done)
    assert report.count("rewritten"), f"nothing was rewritten:\n{report}"
    assert not report.count("refused"), f"attention was refused:\n{report}"
    if sites is not None:
        assert report.count("rewritten") == sites, (
            f"{report.count('rewritten')} sites rewritten, not {sites}:\n{report}"
        )
    if done is not report:
        ran = done.launches
        assert ran, "no layer ran"
        assert len(set(ran)) == 1, f"layers ran differently often: {ran}"
        assert ran[0] > 0, "the model was rewritten and never ran"
        assert launches is None or ran[0] == launches, f"every layer ran {ran[0]} times, not {launches}"
        assert not done.misses, f"{done.misses} layers ran without their policy"


class Refusal:
    """What `assert_refused` caught. `error` is there once the block has ended."""

    error: HeadforceError


@contextmanager
def assert_refused(code: str, *, site: str = "", found: str = "") -> Iterator[Refusal]:
    """AssertionError unless the block is refused with `code`, with `site` and `found` in what it says.

    with assert_refused("HF-MASK") as refusal:
        compiled(x)
    assert "blocks.0" in refusal.error.site
    """
    assert code in CATALOGUE, f"{code} is not in the catalogue of errors"
    refusal = Refusal()
    caught: HeadforceError | None = None
    try:
        yield refusal
    except HeadforceError as error:
        caught = error
    assert caught is not None, f"nothing was refused; {code} was expected"
    assert caught.code == code, f"refused with {caught.code}, not {code}: {caught}"
    assert site in caught.site, f"{site!r} is not in the site {caught.site!r}"
    assert found in caught.found, f"{found!r} is not in what was found: {caught.found}"
    refusal.error = caught
