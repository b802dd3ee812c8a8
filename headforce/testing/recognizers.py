"""The laws of a recogniser: what it accepts rebuilds what the graph computes, and its counter-examples are refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import CATALOGUE
from ..kvpass.recognize import base
from ..registered import own_docstring
from .laws import about
from .recording import Recorder

Example = tuple[nn.Module, Sequence[Sequence[Any]]]
"""A module and the arguments of each call of it, in order."""


def check_recognizer(
    recognizer: Callable[..., Any], accepts: Iterable[Example], refuses: Mapping[str, Iterable[Example]]
) -> None:
    """Every law for one registered recogniser; AssertionError names it and the law.

    Each example is captured by Dynamo. Of what is accepted the graph runs, and cache and result are computed anew from
    what was recognised alone, see `recording.check_site`.

    Args:
        accepts: modules with one attention call in every graph, which this recogniser is to know.
        refuses: counter-examples by the code with which they are refused, or excluded.
    """
    with about(f"recogniser {recognizer.__name__}"):
        kinds = [kind for kind in base.KINDS if recognizer in base.recognizers(kind)]
        assert kinds, "it is not registered"
        module = inspect.getmodule(recognizer)
        assert own_docstring(recognizer), "it lacks a docstring"
        text = f"{module.__doc__ or ''}\n{recognizer.__doc__}"
        assert re.search("counter-example", text, re.IGNORECASE), "its docstring has no counter-examples"
        assert refuses, "no counter-example was given"
        for code in refuses:
            assert code in CATALOGUE, f"{code} is not in the catalogue of errors"
        for i, example in enumerate(accepts):
            with about(f"accepted example {i}"), _watched(recognizer, kinds) as knew:
                recorder = _captured(example)
                assert not recorder.codes, f"refused with {', '.join(recorder.codes)}"
                excluded = [refusal.code for report in recorder.reports for refusal in report.excluded]
                if "exclude" in kinds:
                    assert excluded, "nothing was excluded"
                else:
                    assert recorder.calls, "no attention call was recognised and run"
                assert any(knew), "another recogniser knew it, and this one did not"
        for code, examples in refuses.items():
            for i, example in enumerate(examples):
                with about(f"counter-example {i} of {code}"):
                    recorder = _captured(example)
                    codes = [*recorder.codes, *(r.code for report in recorder.reports for r in report.excluded)]
                    assert code in codes, f"{', '.join(codes) or 'nothing'} in its place"


def _captured(example: Example) -> Recorder:
    module, calls = example
    torch._dynamo.reset()
    recorder = Recorder()
    compiled = torch.compile(module, backend=recorder)
    with torch.no_grad():
        for arguments in calls:
            compiled(*arguments)
    return recorder


@contextmanager
def _watched(recognizer: Callable[..., Any], kinds: Sequence[str]) -> Iterator[list[bool]]:
    """Whether the recogniser knew the form, for every time that it was asked."""
    knew: list[bool] = []

    def watched(*asked: Any) -> Any:
        try:
            found = recognizer(*asked)
        except base.Refused:
            knew.append(True)
            raise
        knew.append(found is not None)
        return found

    before = {kind: base._REGISTRY[kind] for kind in kinds}
    for kind, entries in before.items():
        base._REGISTRY[kind] = [(order, name, watched if f is recognizer else f) for order, name, f in entries]
    try:
        yield knew
    finally:
        base._REGISTRY.update(before)
