"""The catalogue of errors as the page docs/errors.md."""

from __future__ import annotations

from .errors import CATALOGUE

_HEAD = """\
# Errors

Every refusal of headforce is a `HeadforceError` with a `code`, the `site` it is about, what was `found`, what was
`needed`, and a `hint`. Codes do not change, so they can be searched for.

This page is written by `headforce errors > docs/errors.md`.

| code | what it means | how it comes about | what to do |
|---|---|---|---|
"""


def markdown() -> str:
    """The page, codes in alphabetical order."""
    rows = [(f"`{code}`", entry.meaning, entry.cause, entry.remedy) for code, entry in sorted(CATALOGUE.items())]
    return _HEAD + "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)
