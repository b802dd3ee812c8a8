"""Every refusal of this room, word by word.

`messages.txt` has what each wrong input gets; with HEADFORCE_ACCEPT=1 in the environment it is written anew, and the
difference is read before it is committed.
"""

import math
import os
from pathlib import Path

import pytest

from headforce.errors import HeadforceError
from headforce.lowering.plan import Planner
from headforce.policy import Chunk, Classify, Policy, Warmup, op, parse_rule
from headforce.policy.assignment import assign_kinds, normalised
from headforce.policy.chunk import Schedule
from headforce.policy.node import Term
from headforce.policy.ops.episodic import Evicted, Novel
from headforce.policy.ops.native import UNMODIFIED
from headforce.policy.ops.select import Select
from headforce.policy.ops.sink import Sink
from headforce.policy.positions import Clamp, Collapse
from headforce.policy.switch import Cut, Flush, Recache

MESSAGES = Path(__file__).with_name("messages.txt")

A, QUERY = parse_rule("sink(1)"), parse_rule('stride(4, phase="query", last=1)')
THREE = {"sink": A, "neighbor": parse_rule("window(3)"), "dummy": parse_rule("drop()")}
WARM = Warmup(2, parse_rule("window(3)"))
NATIVE = parse_rule("span(21)")


def bound(rule, layers=2, heads=2, **settings):
    return Policy({"a": parse_rule(rule)}, "a", **settings).bind(layers=layers, heads=heads, native=NATIVE)


def file(line):
    return lambda: Policy.loads("headforce: 1\nclasses: {a: sink(1)}\n" + line)


RULES = [
    "sink(1",
    "sink(1) |",
    "sink 1",
    "sink(1) $ window(1)",
    "",
    "snik(1)",
    "sink()",
    "sink(0)",
    "sink(1, 2)",
    "sink(size=1, sise=2)",
    "sink(1)@colapse(3)",
    "sink(1)@collapse(0)",
    "sink(1)@collapse(3)@clamp(2)",
    "sink(1)@contiguous | window(1)",
    "(sink(1))@contiguous | window(1)",
    "(sink(1)@clamp(2) | window(1))@contiguous",
    "(sink(1) | window(1))@collapse(3)",
    "sink(1)@carry(3, 0, 1)",
    "sink(1)@",
    "sink(1) as 1x",
    f"sink({'1' * 100})",
    f"{'(' * 99}sink(1){')' * 99}",
    "stride(4, phase=4)",
    "stride(4, phase=often)",
    "lag(0)",
    "older(sink(1))",
    "episodic(2, write=novel(2))",
    "episodic(2, write=often)",
    "episodic(2, source=evicted(1))",
    "episodic(2, source=evicted(nowhere))",
    "episodic(2, unit=hour)",
    "episodic(2) | episodic(2)",
    "select(2, segments=0)",
    "select(2, score=1)",
    "select(2, source=chunk)",
    "select(2, scope=world)",
    "select(2, reuse=0)",
    "merge(0)",
    "mute() | sink(1)",
    "sink(1) & select(2, source=evicted(near)) | window(2) as near",
    "select(2, source=evicted(blocks)) | merge(2, last=2) as blocks | window(1)",
    "select(2, source=evicted(own), scope=layer) | episodic(2) as own",
    "episodic(2, source=evicted(b)) as a | episodic(2, source=evicted(a)) as b",
]

FILES = [
    "default: b",
    "nonsense: 3",
    "horizn: 4",
    "horizon: 0",
    "horizon: soon",
    "layers: {one: a}",
    "layers: {0: b}",
    "heads: {0: {a: [-1]}}",
    "heads: {0: {a: [0, 0]}}",
    "heads: {0: {b: [0]}}",
    "warmup: {rule: sink(1)}",
    "warmup: {chunks: 2, rule: episodic(2)}",
    "warmup: {chunks: 2, role: sink(1)}",
    "classify: {chunks: 1}",
    "classify: {chunk: 1, dummies: many}",
    "preset: longlive",
    "arguments: {}",
    "on_switch: {c: keep()}",
    "on_switch: {a: flsh(2)}",
    "on_switch: {a: cut(2) now}",
    "classes: {a: sink(1)}",
    "warmup: {chunks: 2, chunks: 3}",
    "made_for: {layers: 2}",
    "made_for: {layers: 2, heads: 0}",
    "made_for: {layers: 2, head: 3}",
]

OTHERS = {
    "a list": lambda: Policy.loads("[1]"),
    "nothing": lambda: Policy.loads(""),
    "no version": lambda: Policy.loads("classes: {}"),
    "a version to come": lambda: Policy.loads("headforce: 9"),
    "a version in words": lambda: Policy.loads("headforce: one"),
    "no text": lambda: Policy.loads(None),
    "the path of nothing": lambda: Policy.load(None),
    "a form of another kind": lambda: Policy({}).dumps("toml"),
    "a class whose rule is text": lambda: Policy({"a": "window(1)"}),
    "classes in a list": lambda: Policy(["a"]),
    "heads in a list": lambda: Policy({"a": A}, heads={0: ["a"]}),
    "heads in words": lambda: Policy({"a": A}, heads={0: {"a": "03"}}),
    "one head without a list": lambda: Policy({"a": A}, heads={0: {"a": 3}}),
    "a default that is a list": lambda: Policy({"a": A}, ["a"]),
    "a layer whose class is a number": lambda: Policy({"a": A}, layers={0: 3}),
    "a warm-up that is a number": lambda: Policy({"a": A}, warmup=2),
    "a warm-up whose rule is text": lambda: Warmup(2, "window(3)"),
    "a class whose name is a number": lambda: Policy({1: A}),
    "no class at all": lambda: Policy({}, "a"),
    "a head in two classes": lambda: Policy({"a": A, "b": QUERY}, heads={0: {"a": (1,), "b": (1,)}}),
    "an answer in words": lambda: Policy({"a": A}, on_switch={"a": "flush(2)"}),
    "a classification in words": lambda: Policy({"a": A}, classify="dummies"),
    "classes that are not there": lambda: Policy({"a": A}, warmup=WARM, classify=Classify(1)),
    "a default beside classify": lambda: Policy(THREE, "sink", warmup=WARM, classify=Classify(1)),
    "layers beside classify": lambda: Policy(THREE, layers={0: "sink"}, warmup=WARM, classify=Classify(1)),
    "classify without a warm-up": lambda: Policy(THREE, classify=Classify(1)),
    "classify right behind the warm-up": lambda: Policy(THREE, warmup=WARM, classify=Classify(2)),
    "classify where queries differ": lambda: Policy(THREE, warmup=Warmup(2, QUERY), classify=Classify(1)),
    "classify heads with state": lambda: Policy(
        {**THREE, "neighbor": parse_rule("episodic(2)")}, warmup=WARM, classify=Classify(1)
    ),
    "chunk 0": lambda: Classify(0),
    "a chunk that is no number": lambda: Classify(True),
    "a chunk beyond all": lambda: Classify(2**63),
    "no first frames": lambda: Classify(1, first_frames=0),
    "a seed below 0": lambda: Classify(1, seed=-1),
    "more than all": lambda: Classify(1, dummies=1.5),
    "dummies below 0": lambda: Classify(1, dummies=-1),
    "dummies beyond all": lambda: Classify(1, dummies=2**63 + 1),
    "dummies that are no number": lambda: Classify(1, dummies=math.nan),
    "no queries": lambda: Classify(1, queries=0),
    "more than all queries": lambda: Classify(1, queries=1.5),
    "two classes for three": lambda: Classify(1, first="a", middle="a"),
    "more dummies than heads": lambda: Classify(1, dummies=5).count(4),
    "gains of some kinds": lambda: assign_kinds([[1, 2], [1]], 0),
    "no gains": lambda: assign_kinds([[]], 0),
    "a gain below 0": lambda: assign_kinds([[1, 2], [1, -1]], 0),
    "a gain without end": lambda: assign_kinds([[math.inf]], 0),
    "more without than there are": lambda: assign_kinds([[1]], 2),
    "masses of some heads": lambda: normalised([1], [1, 2]),
    "a first mass that is none": lambda: normalised([math.nan], [1]),
    "a middle mass that is none": lambda: normalised([1], [-1]),
    "flush below 0": lambda: Flush(-1),
    "recache nothing": lambda: Recache(0),
    "recache perhaps": lambda: Recache(1, keep_sink="perhaps"),
    "a cut beyond all": lambda: Cut(1_000_001),
    "a distance of 0": lambda: Collapse(0),
    "a distance in words": lambda: Clamp("far"),
    "novelty beyond 1": lambda: Novel(1.5),
    "evicted of no name": lambda: Evicted("1"),
    "segments in words": lambda: Select(2, segments="halves"),
    "no sizes": lambda: Schedule(()),
    "a size of 0": lambda: Schedule((3, 0)),
    "sizes in words": lambda: Schedule.parse("3xmany"),
    "native before a model": lambda: UNMODIFIED.frames(Chunk(0, 0, 1), 0),
    "native without a model": lambda: Policy({}).bind(layers=1, heads=1),
    "a model that has state": lambda: Policy({}).bind(layers=1, heads=1, native=parse_rule("episodic(2)")),
    "a rule that is a number": lambda: parse_rule(3),
    "a map on several operators": lambda: parse_rule("sink(1) | window(1)").mapped(Collapse(3)),
    "a map in words": lambda: A.mapped("collapse(3)"),
    "a label with a dash": lambda: Term(Sink(1), label="a-b"),
    "a horizon of 0": lambda: Policy({"a": A}, horizon=0),
    "a layer below 0": lambda: Policy({"a": A}, layers={-1: "a"}),
    "a layer of heads below 0": lambda: Policy({"a": A}, heads={-1: {"a": (0,)}}),
    "a head below 0": lambda: Policy({"a": A}, heads={0: {"a": (-1,)}}),
    "a file that is not there": lambda: Policy.load("no/such/policy.yaml"),
    "text that is no document": lambda: Policy.loads("\x07"),
    "no end": lambda: bound("everything()"),
    "no layers": lambda: bound("sink(1)", layers=0),
    "no heads": lambda: bound("sink(1)", heads=0),
    "a layer too far": lambda: Policy({"a": A}, layers={7: "a"}).bind(layers=2, heads=2, native=NATIVE),
    "a head too far": lambda: Policy({"a": A}, heads={0: {"a": (7,)}}).bind(layers=2, heads=2, native=NATIVE),
    "past the horizon": lambda: bound("everything()", horizon=6).check_horizon(Chunk(2, 6, 3)),
    "a class twice in JSON": lambda: Policy.loads('{"headforce": 1, "classes": {"a": "sink(1)", "a": "sink(2)"}}'),
    "a model of another shape": lambda: Policy({"a": A}, made_for=(1, 2)).bind(layers=2, heads=2, native=NATIVE),
    "a shape of one number": lambda: Policy({"a": A}, made_for=3),
    "a shape without heads": lambda: Policy({"a": A}, made_for=(2, 0)),
    "pieces that do not come out even": lambda: Policy(
        {"a": parse_rule("select(2, segments=5, source=evicted(near)) | window(2) as near")}, "a"
    ).bind(layers=1, heads=1, native=NATIVE, tokens=12),
    "state that nobody has": lambda: Planner(bound("episodic(2)")).plan(Chunk(1, 3, 3), {}, {}),
    "too far away": lambda: Planner(bound("sink(1) | window(2)", position_range=6)).plan(Chunk(3, 9, 3), {}, {}),
    "too far within a chunk": lambda: Planner(bound("drop()", position_range=3)).plan(Chunk(0, 0, 5), {}, {}),
}

CASES = {
    **{f"rule {text!r}": lambda text=text: parse_rule(text).checked() for text in RULES},
    **{f"file {line!r}": file(line) for line in FILES},
    **OTHERS,
}


def message(build):
    with pytest.raises(HeadforceError) as caught:
        build()
    return str(caught.value).replace("\n", "\n    ")


@pytest.fixture
def own_operators(monkeypatch):
    """Without those that other tests have registered."""
    own = {name: kind for name, kind in op.load_ops().items() if kind.__module__.startswith("headforce.policy.ops.")}
    monkeypatch.setattr(op, "_OPS", own)


@pytest.mark.usefixtures("own_operators")
def test_every_refusal_word_by_word():
    made = "".join(f"{name}\n    {message(build)}\n" for name, build in CASES.items())
    if os.environ.get("HEADFORCE_ACCEPT"):
        MESSAGES.write_text(made, encoding="utf-8")
    assert made == MESSAGES.read_text(encoding="utf-8")
