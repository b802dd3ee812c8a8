"""`headforce doctor`: what it says about models with known obstacles, and that it leaves everything alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import headforce
from headforce import HeadforceError
from headforce.calls import Example, load_example
from headforce.cli import main
from headforce.doctor.diagnosis import Diagnosis
from headforce.doctor.examine import examine
from headforce.doctor.page import page
from headforce.doctor.verdicts import site_verdicts
from headforce.doctor.watch import Known, Watched
from headforce.kvpass.capture import Adapter
from headforce.kvpass.capture.adapter import _ADAPTERS
from headforce.kvpass.capture.boxes import BoxedDictCache
from headforce.kvpass.explanation import SiteFacts
from headforce.policy import Policy, parse_rule
from headforce.testing import zoo
from headforce.whole_file import write_whole

ROOT = Path(__file__).parents[2]
ROWS = zoo.CHUNK_FRAMES * zoo.TOKENS
HOSTILE = "<script>alert('x')</script><img src=//evil.test/a>&\"'"


class Indexed(nn.Module):
    """One layer whose place in the stream is a tensor in its cache, as in the Wan family."""

    def __init__(self, **choices: Any) -> None:
        super().__init__()
        self.layer = zoo.SelfAttention(**choices)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, kv_cache: list[dict[str, Any]]) -> Tensor:
        self.calls += 1
        self.seen.add_(1)
        cache = kv_cache[0]
        start = cache["global_end_index"].item()  # here
        x = self.layer(x + torch.rand(1) * 0, cache, start)
        cache["global_end_index"].fill_(start + x.shape[1])
        return x


class IndexedAdapter(Adapter):
    """What makes `Indexed` traceable."""

    name = "indexed"
    replaces: ClassVar[dict[str, str]] = {"_end_index": "its index is a box"}

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Indexed)

    def caches(self, model: nn.Module, args: Any, kwargs: Any) -> list[BoxedDictCache]:
        return [BoxedDictCache(kwargs["kv_cache"][0], adopted=False)]

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Any:
        return parse_rule(f"span({cache_rows // tokens_per_frame})")

    def example(self, kind: type[nn.Module]) -> Any:
        return indexed() if kind is Indexed else None


class Printing(nn.Module):
    """A model of no family, with two obstacles, and RoPE that shows no frame if `rope` is "none"."""

    def __init__(self, **choices: Any) -> None:
        super().__init__()
        self.layer = zoo.SelfAttention(**choices)

    def forward(self, x: Tensor, cache: dict[str, Any], start: int) -> Tensor:
        x = x * 2
        print("a pass")  # here
        return self.layer(x, cache, start)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such thing as a forward pass")


class Pipeline:
    """A pipeline around a model, which makes its own caches."""

    def __init__(self) -> None:
        self.transformer = Indexed()
        self.runs = 0

    def __call__(self, chunks: int) -> None:
        self.runs += 1
        cache = new_cache(self.transformer)
        for _ in range(chunks):
            self.transformer(torch.randn(1, ROWS, self.transformer.layer.q.in_features), kv_cache=[cache])


def new_cache(model: Indexed) -> dict[str, Any]:
    return {**model.layer.new_cache(), **{f"{name}_end_index": torch.tensor([0]) for name in ("global", "local")}}


def indexed(calls: int = 4) -> tuple[Indexed, list[Any]]:
    torch.manual_seed(0)
    model = Indexed()
    cache = new_cache(model)
    x = torch.randn(1, ROWS, model.layer.q.in_features)
    return model, [((x,), {"kv_cache": [cache]}) for _ in range(calls)]


def layer_call(layer: nn.Module) -> Example:
    """One call of a model of one layer of the zoo."""
    x, start = next(zoo.inputs(1, passes=1))
    return Example(layer, [((x, getattr(layer, "layer", layer).new_cache(), start), {})])


def line_of(kind: type) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"class {kind.__name__}("))
    number = next(i for i, line in enumerate(lines) if i > first and line.endswith("# here"))
    return f"{__file__}:{number + 1}"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the class `Indexed` have an adapter."""
    monkeypatch.setitem(_ADAPTERS, "indexed", IndexedAdapter())


@pytest.fixture(scope="module")
def known() -> Diagnosis:
    """The diagnosis of `Indexed`, under a policy."""
    torch._dynamo.reset()
    _ADAPTERS["indexed"] = IndexedAdapter()
    try:
        policy = Policy.loads("headforce: 1\nclasses: {near: window(1)}\ndefault: near\n")
        return examine(Example(*indexed()), policy, "near.yaml")
    finally:
        del _ADAPTERS["indexed"]


# What it says


@pytest.mark.slow
def test_a_break_that_the_adapter_removes(known: Diagnosis) -> None:
    assert (known.model, known.family, known.ok) == ("Indexed", "indexed", True)
    (found,) = known.breaks
    assert (found.found.cause, found.found.where, found.removed) == (".item()", line_of(Indexed), True)
    assert found.remedy == "family indexed: headforce.prepare; its index is a box"
    assert known.bare.breaks
    assert known.prepared.breaks == ()


def test_the_verdict_of_a_site(known: Diagnosis) -> None:
    (site,) = known.sites
    assert (site.name, site.verdict, site.code, site.bare) == ("layer", "owned", "", "view")
    assert "zoo.py:" in site.where
    assert site.query == f"{zoo.HEADS} heads x {zoo.HEAD_DIM}, float32"
    assert site.cache.startswith(f"written in place, {zoo.CAPACITY_FRAMES * zoo.TOKENS} rows, 6 frames; evicts")
    assert "keys rotated when written" in site.rope
    assert known.summary == "1 of 1 self-attention sites can be rewritten: owned after headforce.prepare"
    assert "cannot own the cache" in known.notes[0]
    assert "headforce.prepare" in known.notes[0]


def test_graphs_are_counted_call_by_call(known: Diagnosis) -> None:
    assert len(known.bare.graphs) == len(known.prepared.graphs) == 4
    assert sum(known.bare.graphs) > sum(known.prepared.graphs) >= 2
    assert ("later calls may compile more" in known.notes[-1]) == bool(known.prepared.graphs[-1])


def test_bytes_now_and_under_a_policy(known: Diagnosis) -> None:
    rows = zoo.CAPACITY_FRAMES * zoo.TOKENS
    assert known.kv_bytes == known.outlook.dense_bytes == 2 * rows * zoo.HEADS * zoo.HEAD_DIM * 4
    frames = 1 + zoo.CHUNK_FRAMES
    assert known.outlook.pool_bytes == known.kv_bytes * frames // zoo.CAPACITY_FRAMES
    assert known.policy == "near.yaml"


def test_text_and_json_have_all_of_it(known: Diagnosis) -> None:
    text = str(known)
    for part in ("Indexed, family indexed", ".item()", "its index is a box", "owned", "K and V now", "near.yaml"):
        assert part in text
    data = json.loads(json.dumps(known.to_json()))
    assert (data["version"], data["ok"], data["sites"][0]["verdict"]) == (1, True, "owned")
    assert data["breaks"][0]["found"]["where"] == line_of(Indexed)


def test_a_model_of_no_family(capsys: pytest.CaptureFixture[str]) -> None:
    seen = examine(layer_call(Printing()))
    assert (seen.family, seen.prepared, seen.ok) == (None, None, True)
    (found,) = seen.breaks
    assert (found.found.cause, found.found.where, found.removed) == ("print", line_of(Printing), False)
    assert found.remedy == found.found.remedy
    (site,) = seen.sites
    assert (site.verdict, site.code, site.bare) == ("view", "HF-ADAPTER", "view")
    assert seen.notes[0].startswith("[HF-ADAPTER]")
    assert "One call was seen" in seen.notes[-1]
    assert seen.summary == "1 of 1 self-attention sites can be rewritten: view mode"


def test_a_site_that_is_refused() -> None:
    seen = examine(layer_call(zoo.SelfAttention(rope="none")))
    (site,) = seen.sites
    assert (site.verdict, site.code, site.bare, seen.ok) == ("refused", "HF-CLOCK", "HF-CLOCK", False)
    assert seen.codes == ("HF-CLOCK",)
    assert seen.summary == "0 of 1 self-attention sites can be rewritten"


def test_attention_without_a_past_is_nothing_to_rewrite() -> None:
    seen = examine(layer_call(zoo.SelfAttention(protocol=lambda k, v, cache, start: (k, v))))
    assert ([site.code for site in seen.sites], seen.ok, seen.kv_bytes) == (["HF-NOHISTORY"], False, None)
    assert "does not count against the model" in seen.notes[-1]
    assert seen.summary == "no self-attention with a history was seen"


def test_a_model_that_fails() -> None:
    seen = examine(Example(Failing(), [((torch.ones(1),), {})]))
    assert "no such thing as a forward pass" in seen.bare.error
    assert not seen.ok
    assert "failed at" in str(seen)


def test_an_adapter_that_takes_a_model_for_what_it_is_not(family: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise TypeError("not such a cache")

    monkeypatch.setattr(IndexedAdapter, "caches", fails)
    seen = examine(Example(*indexed(1)))
    assert "not such a cache" in seen.prepared.error
    assert (seen.bare.error, seen.ok, seen.breaks[0].removed) == ("", True, False)
    assert [(site.verdict, site.code) for site in seen.sites] == [("view", "HF-ADAPTER")]
    assert "a call then fails: not such a cache" in seen.notes[0]


def test_a_family_that_is_known_and_not_taken(family: None, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = HeadforceError("HF-CLOCK", found="keys from elsewhere", needed="keys of this video")
    monkeypatch.setattr(IndexedAdapter, "refusal", lambda *_: refusal)
    seen = examine(Example(*indexed(1)))
    assert (seen.family, seen.prepared, seen.ok, seen.breaks[0].removed) == ("indexed", None, False, False)
    assert [(site.verdict, site.code) for site in seen.sites] == [("refused", "HF-CLOCK")]
    assert "keys from elsewhere" in seen.sites[0].reason
    assert "does not take the model" in seen.notes[0]


def test_layers_that_are_alike_are_one_line(known: Diagnosis) -> None:
    (site,) = known.sites
    cross = dataclasses.replace(site, verdict="excluded", code="HF-CROSS")
    sites = tuple(
        dataclasses.replace(one, name=f"blocks.{i}.{name}", reason=f"from cache_{i}_k")
        for i in range(3)
        for name, one in (("self", site), ("cross", cross))
    )
    lines = dataclasses.replace(known, sites=sites).grouped()
    assert [(names, one.verdict) for names, one in lines] == [
        ("blocks.0.self ... blocks.2.self (3)", "owned"),
        ("blocks.0.cross ... blocks.2.cross (3)", "excluded"),
    ]


FOUND = SiteFacts(0, "layer", "a.py:1", "found", query="2 heads", cache="in place", rope="complex")
EVICTS = dataclasses.replace(FOUND, cache="in place; evicts")
FIRST = SiteFacts(0, "layer", "a.py:1", "excluded", "HF-FIRST", "no rows")
NO_PAST = SiteFacts(0, "layer", "a.py:1", "refused", "HF-NOHISTORY", "no past")
FORM = SiteFacts(0, "layer", "a.py:1", "refused", "HF-CACHE-FORM", "a ring")


@pytest.mark.parametrize(
    ("passes", "verdict", "code", "cache", "counts"),
    [
        ([FOUND, EVICTS, FOUND], "owned", "", "in place; evicts", False),
        ([FIRST, FOUND], "owned", "", "in place", False),
        ([FOUND, dataclasses.replace(FOUND, not_owned="[HF-OWNED] found cat")], "view", "HF-OWNED", "in place", False),
        ([FOUND, dataclasses.replace(FOUND, not_viewed="[HF-MASK] found m")], "refused", "HF-MASK", "in place", True),
        ([NO_PAST], "refused", "HF-NOHISTORY", "", False),
        ([NO_PAST, FOUND], "refused", "HF-NOHISTORY", "in place", True),
        ([dataclasses.replace(FORM, code="HF-MASK"), FORM], "refused", "HF-CACHE-FORM", "", True),
        ([FORM, NO_PAST], "refused", "HF-CACHE-FORM", "", True),
    ],
)
def test_the_worst_pass_counts(passes: list[SiteFacts], verdict: str, code: str, cache: str, counts: bool) -> None:
    run = Watched(sites=passes)
    (site,) = site_verdicts(run, run, Known(nn.Identity(), IndexedAdapter(), None), IndexedAdapter())
    assert (site.verdict, site.code, site.cache, site.counts) == (verdict, code, cache, counts)
    if verdict == "refused":
        assert site.bare == code


@pytest.mark.parametrize(
    ("elsewhere", "bare"),
    [
        ([NO_PAST, FORM], "HF-CACHE-FORM"),
        ([dataclasses.replace(FORM, where="b.py:1"), FOUND], "view"),
        ([dataclasses.replace(FORM, name="site0"), FOUND], "view"),
        ([dataclasses.replace(FORM, where="b.py:1", name="site0"), FIRST], "HF-CACHE-FORM"),
        ([FIRST], ""),
    ],
)
def test_what_a_bare_compile_says(elsewhere: list[SiteFacts], bare: str) -> None:
    known = Known(nn.Identity(), IndexedAdapter(), None)
    (site,) = site_verdicts(Watched(sites=[FOUND]), Watched(sites=elsewhere), known, IndexedAdapter())
    assert site.bare == bare


def test_a_pipeline_and_a_function_that_runs_it(family: None) -> None:
    pipeline = Pipeline()
    seen = examine(Example(pipeline, lambda copied: copied(1)))
    assert (seen.model, seen.family, seen.ok, len(seen.prepared.graphs)) == ("Indexed", "indexed", True, 1)
    assert (pipeline.runs, pipeline.transformer.calls) == (0, 0)


# What it leaves alone


def test_everything_is_as_before(family: None) -> None:
    model, calls = indexed(1)
    model.train()
    weights = {name: (value, value.clone()) for name, value in model.named_parameters()}
    before = copy.deepcopy(calls)
    names = set(vars(model)) | set(vars(model.layer))
    state = torch.get_rng_state()
    levels = [logging.getLogger(name).level for name in ("torch._dynamo",)]
    limit = torch._dynamo.config.recompile_limit
    examine(Example(model, calls))
    assert (model.calls, model.seen.item(), model.training) == (0, 0, True)
    assert set(vars(model)) | set(vars(model.layer)) == names
    for name, value in model.named_parameters():
        assert value is weights[name][0]
        assert torch.equal(value, weights[name][1])
    ours, theirs = calls[0][1]["kv_cache"][0], before[0][1]["kv_cache"][0]
    assert all(torch.equal(ours[name], theirs[name]) for name in ("k", "v", "global_end_index", "local_end_index"))
    assert (ours["held"], ours["seen"]) == (0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [logging.getLogger(name).level for name in ("torch._dynamo",)] == levels
    assert torch._dynamo.config.recompile_limit == limit
    model(*calls[0][0], **calls[0][1])
    assert model.calls == 1


def test_a_copy_shares_weights_and_nothing_else() -> None:
    model, calls = indexed(2)
    copied = Example(model, calls).copied()
    assert copied.model.layer.q.weight is model.layer.q.weight
    assert copied.model.seen is not model.seen
    first, second = (kwargs["kv_cache"][0] for _, kwargs in copied.calls)
    assert first is second
    assert first["k"].data_ptr() != calls[0][1]["kv_cache"][0]["k"].data_ptr()


# What it takes


def test_a_class_of_a_known_family(family: None, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load_example(f"{__name__}:Indexed")
    assert isinstance(example.model, Indexed)
    assert len(example.calls) == 4


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("tests.kvpass.test_doctor:Printing", "the class Printing"),
        ("tests.kvpass.test_doctor:ROWS", "a int"),
        ("tests.kvpass.test_doctor:nothing", "nothing of the name"),
        ("tests.kvpass.no_such_file:x", "ModuleNotFoundError"),
        ("nowhere.py:x", "no such file"),
        ("nothing_at_all", "ModuleNotFoundError"),
        ("headforce", "nothing of the name"),
        ("", "ValueError"),
        (":", "ModuleNotFoundError"),
        ("json:loads", "a function that raises TypeError"),
        ("tests.kvpass.test_doctor:raising", "a function that raises ZeroDivisionError"),
    ],
)
def test_targets_that_give_nothing(target: str, found: str) -> None:
    with pytest.raises(HeadforceError, match="HF-EXAMPLE") as error:
        load_example(target)
    assert error.value.found.startswith(found)
    assert error.value.site == target


def raising() -> None:
    raise ZeroDivisionError


def test_files_that_are_no_python_and_files_beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken.py").write_text("def (")
    with pytest.raises(HeadforceError, match=r"HF-EXAMPLE.*SyntaxError"):
        load_example(f"{tmp_path}/broken.py:x")
    (tmp_path / "lies_beside_it.py").write_text("CALLS = []")
    (tmp_path / "target.py").write_text("import lies_beside_it\ndef made():\n    return 'm', lies_beside_it.CALLS\n")
    assert load_example(f"{tmp_path}/target.py:made") == Example("m", [])


@pytest.mark.parametrize("made", [None, (1,), (1, 2), (1, [2]), (1, [(2, 3)]), (1, (), ()), (1, (), {}, 4)])
def test_what_a_factory_may_not_return(made: Any) -> None:
    with pytest.raises(HeadforceError, match="HF-EXAMPLE"):
        Example.of(made)


def test_what_a_factory_may_return() -> None:
    assert Example.of(("m", (1,), {"a": 2})).first() == ("m", (1,), {"a": 2})
    assert Example.of(("m", [([1], {}), ((2,), {})])).first() == ("m", [1], {})
    run = Example.of(("m", print))
    assert run.calls is print
    with pytest.raises(HeadforceError, match="a function that calls the model"):
        run.first()
    with pytest.raises(HeadforceError, match="no call"):
        Example.of(("m", [])).first()


def test_examples_that_cannot_be_run(family: None) -> None:
    model, calls = indexed(1)
    with pytest.raises(HeadforceError, match="do not reach the model"):
        examine(Example(model, lambda copied: None))
    with pytest.raises(ZeroDivisionError):  # a fault of the function, not of the model
        examine(Example(model, lambda copied: 1 // 0))
    model.handle = (x for x in ())
    with pytest.raises(HeadforceError, match="cannot be copied"):
        examine(Example(model, calls))
    del model.handle
    with pytest.raises(HeadforceError, match="HF-ADAPTER"):
        examine(Example(object(), calls))
    with (
        headforce.prepare(model, Policy({}), mode="view"),
        pytest.raises(HeadforceError, match="HF-PREPARED"),
    ):
        examine(Example(model, calls))


# The command


def run(*arguments: object, code: int) -> Result:
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "page.html"
    policy = ROOT / "examples/policies/tiny.yaml"
    result = run("examples/one_call.py:first_chunk", "--policy", policy, "--json", "--html", file, code=0)
    data = json.loads(result.stdout)
    assert [site["verdict"] for site in data["sites"]] == ["owned", "owned", "excluded", "excluded"]
    assert (data["outlook"]["native"], data["policy"]) == ("span(6)", str(policy))
    text = file.read_text(encoding="utf-8")
    assert "CausalWan" in text
    assert "blocks.0.self_attn ... blocks.1.self_attn (2)" in text


def test_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.kvpass.test_doctor import Printing, layer_call\n"
        "def refused():\n"
        "    example = layer_call(Printing(rope='none'))\n"
        "    return example.model, example.calls\n"
    )
    result = run(f"{script}:refused", "--json", code=1)
    assert json.loads(result.stdout)["sites"][0]["code"] == "HF-CLOCK"  # what the model prints is not in between
    assert "a pass" in result.stderr
    assert "HF-EXAMPLE" in run(f"{script}:absent", code=2).stderr
    assert "HF-POLICY-FILE" in run(f"{script}:refused", "--policy", tmp_path / "absent.yaml", code=2).stderr
    page_file = tmp_path / "absent" / "page.html"
    assert "page.html" in run(f"{script}:absent", "--html", page_file, code=1).stderr  # before the target is looked for
    assert "--policy" in run(f"{script}:absent", "--labels", "labels.json", code=2).stderr


# The page


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in order."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        self.said.append(data)


def hostile(value: Any) -> Any:
    """A record in which every free text is an attack."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        kept = {"verdict", "code", "bare"}
        return dataclasses.replace(value, **{k: hostile(v) for k, v in fields.items() if k not in kept})
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_the_page_escapes_everything_and_asks_for_nothing(known: Diagnosis) -> None:
    attacked = hostile(dataclasses.replace(known, sites=(dataclasses.replace(known.sites[0], code="HF-OWNED"),)))
    text = page(attacked)
    read = Reader(text)
    assert "script" not in read.tags
    assert not {"img", "link", "iframe", "object", "base", "form"} & set(read.tags)
    assert not {"src", "href", "srcset", "action", "data"} & {name for name, _ in read.attributes}
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "url(" not in read.style
    assert "@import" not in read.style
    said = "".join(read.said)
    assert said.count(HOSTILE) == text.count("&lt;script&gt;")
    for part in ("Indexed", "family", "layer", ".item()", "near.yaml", "its index is a box"):
        assert part in said
    assert said.count(HOSTILE) > 15
    assert "HF-OWNED" in said


def test_the_page_reads_in_light_and_dark(known: Diagnosis) -> None:
    read = Reader(page(known))
    assert "prefers-color-scheme: dark" in read.style
    assert "color-scheme: light dark" in read.style
    assert read.tags.count("table") == 3  # sites, breaks, classes of the policy
    assert ("http-equiv", "Content-Security-Policy") in read.attributes


def test_a_page_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    write_whole(file, "before")

    def fails(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr("os.replace", fails)
        with pytest.raises(OSError, match="no space"):
            write_whole(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    write_whole(file, "after")
    assert file.read_text() == "after"


def test_a_file_whose_code_a_module_beside_it_calls(tmp_path, monkeypatch) -> None:
    """Dynamo imports the module of a function that it follows out of another module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_target.py").write_text(
        "import torch\n"
        "class Outer(torch.nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__()\n"
        "        self.inner = inner\n"
        "    def forward(self, x):\n"
        "        return self.inner(x)\n"
    )
    (tmp_path / "a_target.py").write_text(
        "import torch\n"
        "from beside_target import Outer\n"
        "FACTOR = 2\n"
        "def double(x):\n"
        "    return FACTOR * x\n"
        "class Inner(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return double(x)\n"
        "def target():\n"
        "    return Outer(Inner()), (torch.ones(2),), {}\n"
    )
    for _ in range(2):  # run anew each time
        model, args, _ = load_example(f"{tmp_path / 'a_target.py'}:target").first()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*args), torch.full((2,), 2.0))
    assert sys.modules[type(model.inner).__module__].FACTOR == 2


def test_a_first_pass_without_a_past_is_told_from_attention_that_has_none() -> None:
    def joined(k: Tensor, v: Tensor, past: dict[str, Tensor], start: int) -> tuple[Tensor, Tensor]:
        if past:
            k, v = (torch.cat([past[name], new], dim=1) for name, new in (("k", k), ("v", v)))
        past["k"], past["v"] = k, v
        return k, v

    def play(model: nn.Module) -> None:
        past: dict[str, Tensor] = {}
        for x, start in zoo.inputs(3, passes=1):
            with torch.no_grad():
                model(x, past, start)

    found = examine(Example(zoo.SelfAttention(protocol=joined), play), Policy({}))
    (note,) = (note for note in found.notes if note.startswith("[HF-NOHISTORY]"))
    assert "Give it an empty one" in note
    assert found.outlook is not None
    assert "HF-NOHISTORY" in found.outlook.not_viewed
    assert not found.sites[0].rewritable
