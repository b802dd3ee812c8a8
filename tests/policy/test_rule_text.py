"""The text of rules: written and read back, and what it says about text that is wrong."""

import pytest
from hypothesis import given

from headforce.errors import HeadforceError
from headforce.policy import Clamp, Collapse, Keep, Rule, parse_rule
from headforce.policy.memory import StoreOp
from headforce.policy.node import Term
from headforce.policy.ops.episodic import Episodic, Evicted, Novel
from headforce.policy.ops.sink import Sink
from headforce.policy.ops.stride import Stride
from headforce.policy.ops.window import Window
from headforce.testing.strategies import rules


@given(rules(stores=True))
def test_round_trip(rule):
    again = parse_rule(str(rule))
    assert again == rule
    assert str(again) == str(rule)
    assert again.node == rule.node


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("sink( size = 1 )", "sink(1)"),
        ("stride(6)", "stride(6, phase=0)"),
        ("stride(6, query)", 'stride(6, phase="query")'),
        ("stride(6, phase='query')", 'stride(6, phase="query")'),
        ("stride(6, last=2, phase=3)", "stride(6, phase=3, last=2)"),
        ("sink(1)@keep | window(2)@keep()", "sink(1) | window(2)"),
        ("((sink(1)) | (window(2)))", "sink(1) | window(2)"),
        ("(sink(1) | window(2)) & span(3)", "(sink(1) | window(2)) & span(3)"),
        ("sink(1) | window(2) & span(3)", "sink(1) | window(2) & span(3)"),
        ("((sink(1) | window(2)))@contiguous()", "(sink(1) | window(2))@contiguous"),
        ("episodic(4, write=novel(1), unit=frame)", "episodic(4, write=novel(1.0))"),
        ('window(4) as w | episodic(2, source=evicted("w"))', "window(4) as w | episodic(2, source=evicted(w))"),
    ],
)
def test_other_spellings(text, printed):
    assert str(parse_rule(text)) == printed


def test_rules_are_written_in_python_as_in_text():
    assert Sink(1) @ Collapse(21) | Window(1) == parse_rule("sink(1)@collapse(21) | window(1)")
    assert (Sink(1) | Window(2)) & Stride(2, "query") == parse_rule('(sink(1) | window(2)) & stride(2, phase="query")')
    assert (Sink(1) | Window(2)) @ "contiguous" == parse_rule("(sink(1) | window(2))@contiguous")
    assert Window(1) @ Keep() == parse_rule("window(1)")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("", "an operator"),
        ("sink", "'(' after an operator"),
        ("sink(1", "','"),
        ("sink(1) |", "an operator"),
        ("sink(1) sink(2)", "| or & or the end"),
        ("sink(1) $", "an operator, a number"),
        ("sink(1 2)", "','"),
        ("sink(size=1, 2)", "name=value"),
        ("stride(6, phase=1, phase=2)", "each argument once"),
        ("sink(1)@collapse(2)@clamp(3)", "the only map of a whole rule"),
        ("sink(1) | (window(2))@contiguous", "parentheses around the whole rule"),
        ("(sink(1)) | (window(2))@contiguous", "parentheses around the whole rule"),
        ("sink(novel(1))", "a plain value"),
        ("episodic(3, write=evict(1))", "one of novel(...), evicted(...)"),
        ("(" * 40 + "sink(1)" + ")" * 40, "at most 32 parentheses"),
        (f"sink({'9' * 5000})", "at most 32 characters"),
    ],
)
def test_syntax(text, needed):
    with pytest.raises(HeadforceError, match="HF-RULE-SYNTAX") as error:
        parse_rule(text)
    assert needed in error.value.needed
    assert "character" in error.value.found
    assert len(error.value.found) < 200


def test_rule_that_is_not_text():
    with pytest.raises(HeadforceError, match="HF-RULE-SYNTAX"):
        parse_rule(["sink(1)"])


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("sinkk(1)", "sink"), ("windw(2)", "window"), ("strides", "stride"), ("sink(1)@colapse(3)", "collapse")],
)
def test_unknown_operator_names_the_nearest(text, nearest):
    with pytest.raises(HeadforceError, match="HF-OP-UNKNOWN") as error:
        parse_rule(text)
    assert f"did you mean '{nearest}'?" in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sink()", "sink() without size"),
        ("sink(0)", "size=0"),
        ("sink(-1)", "size=-1"),
        ("sink(1.5)", "size=1.5"),
        ("sink(True)", "size='True'"),
        ("sink(1, 2)", "too many arguments"),
        ("sink(1, size=2)", "too many arguments"),
        ("sink(sise=1)", "did you mean 'size'?"),
        ("stride(0)", "period=0"),
        ("stride(6, phase=6)", "phase=6"),
        ("stride(6, phase=-1)", "phase=-1"),
        ("stride(6, phase=other)", "phase='other'"),
        ("stride(6, last=0)", "last=0"),
        ("window(2)@collapse(0)", "distance 0"),
        ("window(2)@collapse()", "without distance"),
        ("window(2)@clamp(2.5)", "distance 2.5"),
        ("window(2)@keep(1)", "too many arguments"),
        ("episodic(3, unit=token)", "unit='token'"),
        ("episodic(3, evict=lru)", "evict='lru'"),
        ("episodic(3, source=window)", "source='window'"),
        ("episodic(3, write=0.9)", "write=0.9"),
        ("episodic(3, write=novel(2))", "novel(2)"),
        ("episodic(3, source=evicted(3))", "evicted(3)"),
    ],
)
def test_wrong_arguments(text, says):
    with pytest.raises(HeadforceError, match="HF-OP-ARG") as error:
        parse_rule(text)
    assert says in error.value.found


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sink(True),
        lambda: Stride(6, phase=True),
        lambda: Stride(6, last=True),
        lambda: Collapse(True),
        lambda: Clamp(0),
        lambda: Novel(True),
        lambda: Novel(float("nan")),
        lambda: Episodic(True),
        lambda: Evicted("two words"),
    ],
)
def test_wrong_arguments_in_python(build):
    with pytest.raises(HeadforceError, match="HF-OP-ARG"):
        build()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sink(1)@contiguous", "@contiguous on one operator"),
        ("(sink(1)@collapse(2) | window(1))@contiguous", "another position map"),
        ("episodic(2, source=evicted(recent))", "no operators called 'recent'"),
        ("episodic(2, source=evicted(window)) | window(1) | window(2)", "2 operators called 'window'"),
        ("episodic(2) | episodic(3)", "2 operators called 'episodic'"),
        ("episodic(2, source=evicted(episodic))", "episodic <- episodic"),
        ("episodic(2, source=evicted(b)) as a | episodic(2, source=evicted(a)) as b", "a <- b <- a"),
    ],
)
def test_parts_that_do_not_go_together(text, says):
    with pytest.raises(HeadforceError, match="HF-RULE-FORM") as error:
        parse_rule(text)
    assert says in error.value.found


@pytest.mark.parametrize(
    "build",
    [
        lambda: (Sink(1) | Window(2)) @ Collapse(3),
        lambda: Sink(1) @ Collapse(3) @ Clamp(2),
        lambda: Sink(1) @ "collapse(3)",
        lambda: Sink(1) @ "contiguous" @ Collapse(3),
        lambda: Sink(1) @ "contiguous" | Window(2),
        lambda: Rule(Term(Sink(1), label="two words")),
    ],
)
def test_parts_that_do_not_go_together_in_python(build):
    with pytest.raises(HeadforceError, match="HF-RULE-FORM"):
        build()


def test_two_operators_of_one_name_are_refused():
    from headforce.policy import policy_op

    with pytest.raises(ValueError, match="two operators are called 'sink'"):

        @policy_op("sink")
        class Other(StoreOp):
            pass
