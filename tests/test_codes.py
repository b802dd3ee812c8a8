"""Every code of the catalogue is expected by some test, by name; and refusals that no other test meets."""

import ast
import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import torch

from headforce.errors import CATALOGUE
from headforce.kvpass import torch_private
from headforce.kvpass.site_graph import SiteGraph
from headforce.kvpass.site_reader import SiteReader
from headforce.kvpass.structure import check_structure
from headforce.lowering.slots import SlotMap
from headforce.testing import assert_refused, zoo
from headforce.testing.recording import Recorder

TESTS = Path(__file__).parent


def expected(path):
    """The codes that a file of tests expects: strings that begin with one, as codes and patterns of messages do."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^\\?\[?(HF-[A-Z0-9]+(?:-[A-Z0-9]+)*)", node.value)


def test_every_code_is_expected_by_a_test():
    found = {code for path in TESTS.rglob("test_*.py") for code in expected(path)}
    missing = sorted(set(CATALOGUE) - found)
    assert not missing, f"no test expects {', '.join(missing)}"


def test_a_region_that_is_full():
    with assert_refused("HF-CAPACITY", found="region of 2 pages"):
        SlotMap(2, 0).take([0, 1, 2])


def test_a_pass_with_a_part_of_a_frame():
    reader = object.__new__(SiteReader)
    reader.site = SimpleNamespace(name="blocks.0")
    reader._numbers = lambda args: (0, 6, 7, 0, 36, 0, -1, 1, 0, 0, 7)
    with assert_refused("HF-FRAME", site="blocks.0", found="7 query rows with 6 tokens"):
        reader.facts(())


def test_a_variant_that_would_need_other_guards(monkeypatch):
    monkeypatch.setattr(torch_private, "late_compilation", lambda _: contextlib.nullcontext(lambda: True))
    graph = object.__new__(SiteGraph)
    graph._variants, graph._context, graph._compile = {}, None, lambda name: None
    with assert_refused("HF-LATE", found="owned variant"):
        graph._variant("owned")
    assert graph._variants == {}


def test_a_graph_that_was_not_lowered():
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    check_structure(graph, [], owned=True)
    with assert_refused("HF-VERIFY-GRAPH"):
        check_structure(graph, [SimpleNamespace(node=None, cache=SimpleNamespace(kind="append"))], owned=False)


def test_the_first_pass_over_an_empty_past():
    layer, recorder = zoo.SelfAttention(protocol="cat_past"), Recorder()
    (x, start), *_ = zoo.inputs(1, passes=1)
    with torch.no_grad():
        torch.compile(layer, backend=recorder)(x, layer.new_cache(frames=0), start)
    torch._dynamo.reset()
    assert [refusal.code for report in recorder.reports for refusal in report.excluded] == ["HF-FIRST"]
