"""Predictions from made-up machines, where the right answer can be worked out."""

from dataclasses import fields, replace

import pytest

from headforce.cost import Shape, predict
from headforce.cost.predict import Parts
from headforce.errors import HeadforceError
from headforce.policy import Policy, Schedule, parse_rule

from .conftest import linear_machine

NATIVE = parse_rule("span(9)")
SHAPE = Shape(layers=2, heads=4, head_dim=64, tokens=10, ffn=512, text=8, text_width=32, passes=2, dtype="float32")
SCHEDULE = Schedule((3,) * 6)


def bound(shape, rule="sink(1) | window(2)", heads=None):
    policy = Policy({"all": parse_rule(rule), "none": parse_rule("drop()")}, "all", heads=heads or {})
    return policy.bind(layers=shape.layers, heads=shape.heads, native=NATIVE)


def parts(shape, machine, **policy):
    return predict(bound(shape, **policy), SCHEDULE, shape, machine)


def test_the_parts_of_a_chunk(machine):
    found = parts(SHAPE, machine).policy[-1]
    products = sum(one.count * one.rows * one.inputs * one.outputs for one in SHAPE.linears(3))
    assert found.linear == pytest.approx(2 * products / 1e9)
    # Four heads of two layers: 30 rows, two times as many keys; and the text.
    assert found.attention == pytest.approx(2 * 2 * (4 * 30 * 60 / 1e7 + 4 * 30 * 8 / 1e8))
    numbers = 30 * 256
    assert found.rest == pytest.approx(2 * (2 * (numbers / 1e8 + 30 * 512 / 1e9 + numbers / 1e9) + numbers / 1e9))
    assert found.cache == pytest.approx(2 * 2 * 2 * numbers / 1e9)
    assert found.host == pytest.approx(1e-3 + 1e-4 + 8e-6 + 2 * (1e-4 + 2e-5))
    assert found.total == pytest.approx(sum(getattr(found, one.name) for one in fields(Parts)))


def test_the_dense_model_fills_its_window_and_then_moves_its_cache(machine):
    found = parts(SHAPE, machine).dense
    attention = [chunk.attention for chunk in found]
    assert attention == sorted(attention)
    assert attention[2:] == [attention[2]] * 4
    row = 2 * 256 * 4
    assert found[1].cache == pytest.approx(2 * 2 * 2 * 30 * row / 1e10)
    assert found[-1].cache - found[1].cache == pytest.approx(2 * 4 * 60 * row / 1e10)
    assert found[0].linear > found[1].linear == found[-1].linear  # the text's keys and values
    assert {chunk.host for chunk in found} == {0.0}


def test_a_policy_that_keeps_less_is_faster_and_one_that_turns_keys_is_slower(machine):
    totals = [parts(SHAPE, machine, rule=rule).policy[-1].total for rule in ("drop()", "window(1)", "window(6)")]
    assert totals == sorted(set(totals))
    plain, turned = (parts(SHAPE, machine, rule=rule).policy[-1] for rule in ("sink(1)", "sink(1)@collapse(4)"))
    assert turned.attention == pytest.approx(plain.attention)
    # A frame of all heads, for each of three query frames, in both layers and passes.
    assert turned.cache - plain.cache == pytest.approx(2 * 2 * 3 * 4 * 10 * 64 / 1e9)


@pytest.mark.parametrize("name", ["layers", "heads", "head_dim", "tokens", "ffn", "text", "batch", "passes"])
def test_more_of_anything_takes_longer(machine, name):
    less, more = (parts(shape, machine) for shape in (SHAPE, replace(SHAPE, **{name: 2 * getattr(SHAPE, name)})))
    for side in ("policy", "dense"):
        assert getattr(more, side)[-1].total > getattr(less, side)[-1].total


def test_heads_that_read_differently_are_launched_by_themselves_on_the_cpu_and_at_once_on_a_gpu():
    slow = {64: linear_machine().ragged[64]}
    per_group, at_once = (
        linear_machine(target=target, ragged=slow, host=replace(linear_machine().host, launch=1e-7))
        for target in ("sdpa", "triton")
    )
    heads = {0: {"none": (0, 1)}}
    found = [parts(SHAPE, m, heads=heads).policy[-1].attention for m in (per_group, at_once)]
    text = 2 * 2 * 4 * 30 * 8 / 1e8
    # The same rows and keys; one launch more than layers, whose own cost is not counted twice.
    read = 2 * (2 * 30 * 30 + 2 * 30 * 60 + 4 * 30 * 60) / 1e7
    assert found[1] == pytest.approx(read + text)
    assert found[0] == pytest.approx(read + text - 2 * 1e-7)


def test_a_fused_rest():
    eager, fused = (parts(SHAPE, linear_machine(inner=inner)) for inner in ("eager", "inductor"))
    assert fused.policy[-1].rest < eager.policy[-1].rest
    assert fused.dense == eager.dense


def test_times_that_were_not_measured():
    with pytest.raises(HeadforceError, match="measured with bfloat16") as refused:
        parts(SHAPE, linear_machine(dtype="bfloat16"))
    assert refused.value.code == "HF-MACHINE-FILE"
