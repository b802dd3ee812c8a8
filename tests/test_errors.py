"""Refusals: one catalogue, and every code in it and in use."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import headforce
from headforce.errors import CATALOGUE, HeadforceError, nearest

PACKAGE = Path(headforce.__file__).parent
CODE = re.compile(r"HF-[A-Z0-9]+(-[A-Z0-9]+)*")


def strings(path):
    """The constant strings of a source file, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def uses():
    """code -> places where it stands as a string of its own, whether raised there or passed on."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "errors.py" or path.parent != PACKAGE:
            for text, line in strings(path):
                if CODE.fullmatch(text):
                    found.setdefault(text, []).append(f"{path.relative_to(PACKAGE)}:{line}")
    return found


def test_every_code_in_use_is_in_the_catalogue():
    unknown = {code: places for code, places in uses().items() if code not in CATALOGUE}
    assert not unknown


def test_every_raise_names_a_code():
    """The code of a refusal is a string or a name, never put together: codes can be searched for."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HeadforceError":
                code = node.args[0] if node.args else next(k.value for k in node.keywords if k.arg == "code")
                assert not isinstance(code, ast.JoinedStr | ast.BinOp), f"{path.name}:{node.lineno}"


def test_every_code_of_the_catalogue_is_used():
    everything = "\n".join(
        path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path != PACKAGE / "errors.py"
    )
    assert not [code for code in CATALOGUE if not re.search(rf"{code}(?![A-Z0-9-])", everything)]


@pytest.mark.parametrize("code", CATALOGUE)
def test_entries_are_sentences(code):
    assert CODE.fullmatch(code)
    assert CATALOGUE[code].meaning.endswith(".")
    assert CATALOGUE[code].remedy.endswith(".")
    assert CATALOGUE[code].cause.endswith(".")


def error(**changes):
    given = {"found": "four heads", "needed": "three heads", "site": "my.yaml, heads.0", "hint": "Count again."}
    return HeadforceError("HF-POLICY-SHAPE", **{**given, **changes})


def test_message_has_every_part():
    assert str(error()) == ("[HF-POLICY-SHAPE] at my.yaml, heads.0: found four heads; needed three heads. Count again.")
    assert str(error(site="")).startswith("[HF-POLICY-SHAPE]: found four heads;")


def test_the_hint_is_the_remedy_unless_given():
    assert error(hint="").hint == CATALOGUE["HF-POLICY-SHAPE"].remedy


def test_a_code_has_to_be_in_the_catalogue():
    with pytest.raises(KeyError, match="HF-NONSENSE"):
        HeadforceError("HF-NONSENSE", found="a", needed="b")


def test_pickles():
    again = pickle.loads(pickle.dumps(error()))
    assert str(again) == str(error())
    assert vars(again) == vars(error())


def test_at_puts_a_place_in_front():
    assert error().at("chunk 3").site == "chunk 3, my.yaml, heads.0"
    assert error(site="").at("chunk 3").site == "chunk 3"
    assert error().at("chunk 3").hint == "Count again."


def test_nearest():
    assert nearest("windw", ["sink", "window"]) == " (did you mean 'window'?)"
    assert nearest("xyz", ["sink", "window"]) == ""
    assert nearest("xyz", []) == ""
