"""Policies: which rule a head gets, when two policies are the same, and what binding to a model refuses."""

import pytest
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.policy import Chunk, Policy, Warmup, parse_rule
from headforce.policy.ops.native import UNMODIFIED
from headforce.policy.ops.sink import Sink
from headforce.policy.ops.window import Window
from headforce.testing.strategies import policies

A, B, C = parse_rule("sink(1)"), parse_rule("window(2)"), parse_rule("drop()")
NATIVE = parse_rule("span(21)")


def rule_of(policy, layer, head, layers=4, heads=4):
    return policy.bind(layers=layers, heads=heads, native=NATIVE).rules[layer][head].rule


def test_a_head_goes_before_its_layer_and_a_layer_before_the_default():
    policy = Policy({"a": A, "b": B, "c": C}, default="a", layers={1: "b"}, heads={1: {"c": (2,)}, 2: {"c": (0, 3)}})
    assert [rule_of(policy, 0, 0), rule_of(policy, 1, 0), rule_of(policy, 1, 2), rule_of(policy, 2, 3)] == [A, B, C, C]
    assert policy.class_of(1, 2) == "c"
    assert policy.rule_of(3, 0) == A


def test_heads_of_no_class_read_what_the_model_reads():
    policy = Policy({"a": A}, heads={0: {"a": (1,)}})
    bound = policy.bind(layers=1, heads=2, native=NATIVE)
    assert policy.rule_of(0, 0) == UNMODIFIED
    assert bound.classes == ((None, "a"),)
    assert bound.rules[0][0].rule.frames(Chunk(10, 30, 3), 30) == NATIVE.frames(Chunk(10, 30, 3), 30)


def test_warmup_counts_chunks():
    policy = Policy({"a": C}, default="a", warmup=Warmup(2, A))
    head = policy.bind(layers=1, heads=1).rules[0][0]
    assert [head.at(Chunk(i, 3 * i, 3)) for i in range(4)] == [A, A, C, C]


def test_rules_that_are_written_alike_are_planned_once():
    policy = Policy({"a": A, "same": A, "b": B}, default="a", heads={0: {"same": (1,), "b": (2,)}})
    assert [head.text for head in policy.bind(layers=2, heads=3).distinct] == ["sink(1)", "window(2)"]


# --- equality -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40)
@given(policies(stores=True))
def test_names_do_not_count(policy):
    new = {name: f"other {name}" for name in policy.classes}
    renamed = Policy(
        {new[name]: rule for name, rule in policy.classes.items()},
        default=policy.default and new[policy.default],
        heads={layer: {new[n]: heads for n, heads in its.items()} for layer, its in policy.heads.items()},
        layers={layer: new[name] for layer, name in policy.layers.items()},
        warmup=policy.warmup,
        horizon=policy.horizon,
        position_range=policy.position_range,
        on_switch={new[name]: answer for name, answer in policy.on_switch.items()},
    )
    assert renamed == policy
    assert hash(renamed) == hash(policy)
    assert renamed.digest == policy.digest


@pytest.mark.slow
@settings(max_examples=40)
@given(policies(), policies())
def test_equal_policies_give_every_head_an_equal_rule(a, b):
    cells = [(layer, head) for layer in range(4) for head in range(5)]
    same = all(a.rule_of(*cell) == b.rule_of(*cell) for cell in cells)
    rest = [(p.warmup, p.horizon, p.position_range) for p in (a, b)]
    if a == b:
        assert same
        assert rest[0] == rest[1]
        assert a.digest == b.digest
    assert (a == b) == (a.digest == b.digest)


def test_the_same_said_in_other_ways():
    spelled = Policy({"a": A, "b": B, "unused": C}, default="a", layers={1: "b", 2: "a"}, heads={0: {"a": (1,)}})
    assert spelled == Policy({"x": A, "y": B}, default="x", layers={1: "y"})
    assert Policy({"n": UNMODIFIED}, default="n") == Policy({})


@pytest.mark.parametrize(
    "other",
    [
        Policy({"a": B}, default="a"),
        Policy({"a": A}),
        Policy({"a": A}, default="a", horizon=9),
        Policy({"a": A}, default="a", position_range=9),
        Policy({"a": A}, default="a", warmup=Warmup(1)),
        Policy({"a": A, "b": B}, default="a", layers={3: "b"}),
        Policy({"a": A, "b": B}, default="a", heads={3: {"b": (0,)}}),
    ],
)
def test_different_policies(other):
    policy = Policy({"a": A}, default="a")
    assert policy != other
    assert policy.digest != other.digest
    assert policy != "policy"


def test_an_operator_is_the_rule_of_it_alone():
    window, sink = Window(1), Sink(1)
    policy = Policy({"a": window, "b": sink | window}, "a", warmup=Warmup(2, sink))
    assert policy == Policy.loads(policy.dumps())
    assert policy.classes["a"] == parse_rule("window(1)")
    assert policy.warmup == Warmup(2, parse_rule("sink(1)"))


def test_by_layer():
    assert not Policy({"a": A}, default="a").by_layer
    assert not Policy({"a": A}, default="a", layers={2: "a"}).by_layer
    assert Policy({"a": A, "b": B}, default="a", layers={2: "b"}).by_layer
    assert Policy({"a": A, "b": B}, default="a", heads={2: {"b": (0,)}}).by_layer


def test_the_finest_cut_of_a_frame():
    """A frame is cut into as many parts as its finest store asks for."""
    near = " | window(2) as near"
    halves, tokens = (parse_rule(f"select(2, segments={n}, source=evicted(near))" + near) for n in ("2", "token"))
    assert Policy({"a": A}).parts_of_frame(24) == 1
    assert Policy({"a": A, "b": halves}).parts_of_frame(24) == 2
    assert Policy({"a": halves, "b": tokens}).parts_of_frame(24) == 24


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Policy({"a": A}, default="b"), "default: found class 'b'"),
        (lambda: Policy({"static": A}, default="statics"), "did you mean 'static'?"),
        (lambda: Policy({}, layers={0: "a"}), "layers.0"),
        (lambda: Policy({"a": A}, heads={0: {"b": (0,)}}), "heads.0.b"),
        (lambda: Policy({"a": A, "b": B}, heads={0: {"a": (0, 1), "b": (1,)}}), "head 1 a second time"),
        (lambda: Policy({"a": A}, heads={0: {"a": (1, 1)}}), "head 1 a second time"),
        (lambda: Policy({"a": A}, heads={0: {"a": (True,)}}), "True"),
        (lambda: Policy({"a": A}, heads={0: {"a": (-1,)}}), "-1"),
        (lambda: Policy({"a": A}, heads={-1: {"a": (0,)}}), "-1"),
        (lambda: Policy({"a": A}, layers={True: "a"}), "True"),
        (lambda: Policy({1: A}), "found 1"),
        (lambda: Policy({}, horizon=0), "horizon: found 0"),
        (lambda: Policy({}, horizon=True), "horizon: found True"),
        (lambda: Policy({}, position_range=-5), "position_range: found -5"),
        (lambda: Warmup(0), "warmup.chunks: found 0"),
        (lambda: Warmup(True), "warmup.chunks: found True"),
        (lambda: Warmup(2, parse_rule("episodic(3)")), "without stateful operators"),
    ],
)
def test_wrong_values(build, says):
    with pytest.raises(HeadforceError, match="HF-POLICY-VALUE") as error:
        build()
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("policy", "layers", "heads", "says"),
    [
        (Policy({"a": A}, layers={4: "a"}), 4, 4, "layers.4: found layer 4; needed a layer from 0 to 3"),
        (Policy({"a": A}, heads={4: {"a": (0,)}}), 4, 4, "heads.4.a: found layer 4"),
        (Policy({"a": A}, heads={0: {"a": (4,)}}), 4, 4, "heads.0.a: found head 4; needed a head from 0 to 3"),
        (Policy({"a": A}), 0, 4, "0 layers"),
        (Policy({"a": A}), 4, -1, "-1 heads"),
    ],
)
def test_wrong_model(policy, layers, heads, says):
    with pytest.raises(HeadforceError, match="HF-POLICY-SHAPE") as error:
        policy.bind(layers=layers, heads=heads, native=NATIVE)
    assert says in str(error.value)


def test_native_has_to_be_known():
    for policy in (Policy({}), Policy({"a": A}, default="a", warmup=Warmup(1))):
        with pytest.raises(HeadforceError, match="HF-NATIVE"):
            policy.bind(layers=1, heads=1)
    with pytest.raises(HeadforceError, match="HF-NATIVE"):
        UNMODIFIED.frames(Chunk(0, 0, 1), 0)


@pytest.mark.parametrize(
    "text", ["span(9)@clamp(3)", "(span(9))@contiguous", "episodic(2)", "native()", "sink(1) | native()"]
)
def test_what_a_model_cannot_read(text):
    with pytest.raises(HeadforceError, match="HF-OP-ARG"):
        Policy({"a": A}, default="a").bind(layers=1, heads=1, native=parse_rule(text))


def test_unbounded_native():
    with pytest.raises(HeadforceError, match="HF-UNBOUNDED"):
        Policy({}).bind(layers=1, heads=1, native=parse_rule("everything()"))


def test_past_the_horizon():
    bound = Policy({"a": A}, default="a", horizon=9).bind(layers=1, heads=1)
    bound.check_horizon(Chunk(2, 6, 3))
    with pytest.raises(HeadforceError, match="HF-HORIZON"):
        bound.check_horizon(Chunk(3, 9, 1))
