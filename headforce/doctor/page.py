"""A diagnosis as one HTML page that needs nothing else: no scripts, no requests."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from .._version import __version__
from ..errors import CATALOGUE
from .diagnosis import VERDICTS, Diagnosis
from .text import bytes_words, run_words


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("headforce.doctor", "."),
        autoescape=True,  # names, source lines and messages come from the model
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def page(diagnosis: Diagnosis) -> str:
    """The page."""
    return _template().render(
        seen=diagnosis,
        codes={code: CATALOGUE[code] for code in diagnosis.codes},
        verdicts=VERDICTS,
        run_words=run_words,
        bytes_words=bytes_words,
        version=__version__,
    )
