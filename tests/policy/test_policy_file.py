"""Policy files: exact round trips, and every bad file refused with its code and its place."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headforce.errors import HeadforceError
from headforce.policy import Classify, Policy, Warmup, parse_rule
from headforce.policy.file import schema
from headforce.policy.ops.native import UNMODIFIED
from headforce.testing.strategies import policies

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies" / "static_dynamic.yaml"
any_names = st.text(max_size=8) | st.sampled_from(
    ["no", "on", "1", "1e3", "~", "<<", "=", "a: b", "null", "2001-01-01"]
)


def fields(policy):
    return {name: getattr(policy, name) for name in Policy.__dataclass_fields__}


@pytest.mark.parametrize("form", ["yaml", "json"])
@settings(max_examples=20)
@given(policy=policies(stores=True, names=any_names))
def test_round_trip(form, policy):
    text = policy.dumps(form)
    again = Policy.loads(text)
    assert again == policy
    assert fields(again) == fields(policy)
    assert again.dumps(form) == text


@settings(max_examples=20)
@given(policies(names=any_names))
def test_yaml_and_json_say_the_same(policy):
    assert yaml.safe_load(policy.dumps("yaml")) == json.loads(policy.dumps("json"))


def valid(text):
    """The document, if the JSON schema takes it."""
    # In JSON's words: layers are strings.
    data = json.loads(json.dumps(yaml.safe_load(text)))
    jsonschema.validate(data, schema())
    return data


@pytest.mark.slow
@settings(max_examples=20)
@given(policies(stores=True, names=any_names))
def test_what_is_written_is_valid_by_the_schema(policy):
    assert valid(policy.dumps())["headforce"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "classes: {}",
        "headforce: 2",
        "headforce: 1\nnonsense: 3",
        "headforce: 1\nhorizon: 0",
        "headforce: 1\nlayers: {one: a}",
        "headforce: 1\nheads: {0: {a: [-1]}}",
        "headforce: 1\nclassify: {dummies: 3}",
        "headforce: 1\npreset: longlive\ndefault: a",
    ],
)
def test_what_the_schema_refuses(text):
    with pytest.raises(jsonschema.ValidationError):
        valid(text)
    with pytest.raises(HeadforceError):
        Policy.loads(text)


def test_the_schema_in_the_docs_is_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "policy.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())


def test_files_of_version_0_are_read():
    """The format without answers to prompt switches and without classification."""
    assert Policy.loads("headforce: 0\nclasses: {a: sink(1)}\ndefault: a") == Policy({"a": parse_rule("sink(1)")}, "a")


def test_classification_in_a_file():
    text = """
headforce: 1
classes: {sink: sink(1), neighbor: window(3), dummy: drop()}
warmup: {chunks: 2, rule: window(3)}
classify: {chunk: 1, dummies: 180, seed: 7}
"""
    policy = Policy.loads(text)
    assert policy.classify == Classify(1, 180, seed=7)
    assert Policy.loads(policy.dumps()) == policy
    assert policy != Policy.loads(text.replace("seed: 7", "seed: 8"))
    assert policy.digest != Policy.loads(text.replace("seed: 7", "seed: 8")).digest
    valid(policy.dumps())


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("on_switch: {c: keep()}", "HF-POLICY-VALUE", "on_switch: found class 'c'"),
        ("on_switch: {a: flush}", "HF-RULE-SYNTAX", "on_switch.a"),
        ("on_switch: {a: flsh(2)}", "HF-OP-UNKNOWN", "did you mean 'flush'"),
        ("on_switch: {a: flush(-1)}", "HF-OP-ARG", "at least 0"),
        ("on_switch: {a: 'flush(1, sink=maybe)'}", "HF-OP-ARG", "yes or no"),
        ("on_switch: {a: recache(0)}", "HF-OP-ARG", "at least 1"),
        ("on_switch: {a: cut(2) now}", "HF-RULE-SYNTAX", "needed the end"),
        ("classify: {chunk: 1}", "HF-POLICY-VALUE", "found class 'sink'"),
        ("classify: {chunks: 1}", "HF-POLICY-KEY", "did you mean 'chunk'"),
        ("classify: {chunk: 1, dummies: many}", "HF-POLICY-VALUE", "classify.dummies"),
    ],
)
def test_wrong_answers_and_classifications(line, code, says):
    assert says in refused(ONE + line, code)


@pytest.mark.parametrize("answer", ["keep()", "flush(2)", "flush(0, sink=no, stores=yes)", "recache(12)", "cut(21)"])
def test_answers_are_written_as_they_are_read(answer):
    policy = Policy.loads(ONE + f"on_switch: {{a: '{answer}'}}")
    assert str(policy.on_switch["a"]) == answer
    assert Policy.loads(policy.dumps()) == policy
    assert (policy == Policy.loads(ONE)) == (answer == "keep()" or policy.default is None)


@pytest.mark.parametrize("name", ["policy.yaml", "policy.json", "policy"])
def test_files(tmp_path, name):
    policy = Policy({"é 1": parse_rule("sink(1)")}, default="é 1", warmup=Warmup(2), horizon=30, position_range=21)
    policy.save(tmp_path / name)
    assert Policy.load(tmp_path / name) == policy
    assert Policy.load(str(tmp_path / name)) == policy
    assert (tmp_path / name).read_text(encoding="utf-8").startswith("{" if name.endswith("json") else "headforce: 1")


def test_example():
    policy = Policy.load(EXAMPLE)
    assert str(policy.rule_of(0, 3)) == "sink(1) | stride(6, phase=0, last=2) | window(1)"
    assert policy.class_of(1, 0) == "dynamic"
    assert policy.class_of(2, 1) == "local"
    assert policy.warmup == Warmup(2, parse_rule("sink(1) | window(3)"))
    assert (policy.default, policy.horizon, policy.position_range) == ("static", 240, None)


def test_defaults():
    policy = Policy.loads("headforce: 0\nwarmup: {chunks: 3}")
    assert policy.warmup == Warmup(3, UNMODIFIED)
    assert policy.rule_of(5, 5) == UNMODIFIED
    assert policy.dumps() == "headforce: 1\nclasses: {}\nwarmup:\n  chunks: 3\n"


def test_what_is_written_is_to_be_read_and_compared_line_by_line():
    policy = Policy(
        {"näh": parse_rule("sink(1)"), "a\u2028b": parse_rule("window(2)")}, "näh", heads={2: {"a\u2028b": (0, 3)}}
    )
    assert policy.dumps().splitlines() == [
        "headforce: 1",
        "classes:",
        "  näh: sink(1)",
        '  ? "a\\Lb"',
        "  : window(2)",
        "default: näh",
        "heads:",
        "  '2':",
        '    ? "a\\Lb"',
        "    : [0, 3]",
    ]
    assert policy.dumps("json").startswith('{\n  "headforce": 1,\n  "classes": {\n    "n')


@pytest.mark.parametrize(
    "text",
    [
        '{"headforce": 0, "classes": {"a": "sink(1)"}, "layers": {"3": "a"}}',
        "{headforce: 0, classes: {a: sink(1)}, layers: {3: a}}",
        '\n  {"headforce": 0, "classes": {"a": "sink(1)",}, "layers": {"3": "a"}}  # not quite JSON',
        'headforce: 0\nclasses:\n  a: sink(1)\nlayers:\n  "3": a',
        "headforce: 0\nclasses: &c {a: sink(1)}\nlayers: {3: a}\n...\n",
    ],
)
def test_spellings_of_one_policy(text):
    assert Policy.loads(text) == Policy({"a": parse_rule("sink(1)")}, layers={3: "a"})


def test_byte_order_mark(tmp_path):
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"headforce": 0, "classes": {}}')
    assert Policy.load(path) == Policy({})


# --- bad files ----------------------------------------------------------------------------------------------------


def refused(text, code):
    with pytest.raises(HeadforceError) as error:
        Policy.loads(text, "my.yaml")
    assert error.value.code == code, str(error.value)
    assert error.value.site.startswith("my.yaml")
    assert len(str(error.value)) < 900
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nothing in it"),
        ("# only a comment", "nothing in it"),
        ("- a\n- list", "a list"),
        ("just text", "a str"),
        ("42", "a int"),
        ("services:\n  web:\n    image: nginx", "without the key `headforce`"),
        ("{}", "without the key `headforce`"),
        ('{"headforce": 0, "classes": {"a": "sink(1)"', "neither YAML nor JSON"),
        ('{"headforce": 0, "cla', "neither YAML nor JSON"),
        ("headforce: 0\nclasses: {a: sink(1)", "neither YAML nor JSON"),
        ("headforce: 0\nclasses: {a: 'sink(1)", "neither YAML nor JSON"),
        ("headforce: 0\n---\nheadforce: 0", "neither YAML nor JSON"),
        ("headforce: 0\nhorizon: \x00", "neither YAML nor JSON"),
        ("headforce: 0\nhorizon: 2001-99-99", "neither YAML nor JSON"),
        ('headforce: 0\nhorizon: !!int ""', "neither YAML nor JSON"),
        ("headforce: 0\nhorizon: !!bool maybe", "neither YAML nor JSON"),
        ("headforce: 0\nhorizon: !!timestamp never", "neither YAML nor JSON"),
        ('{"headforce": 0, "horizon": ' + "9" * 5000 + "}", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
        ('{"a":' * 100000, "neither YAML nor JSON"),
        ("headforce: 2", "version 2"),
        ("headforce: '0'", "version '0'"),
        ("headforce: false", "version False"),
        ("headforce: 0.0", "version 0.0"),
        ("headforce:", "version None"),
    ],
)
def test_not_a_policy_file(text, says):
    assert says in refused(text, "HF-POLICY-FILE")


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", b"\x80\x04\x95", b"\xff\xfeh\x00e\x00", b"PK\x03\x04\x00"]
)
def test_binary(tmp_path, content):
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    with pytest.raises(HeadforceError, match="HF-POLICY-FILE") as error:
        Policy.load(path)
    assert str(path) in error.value.site


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(HeadforceError, match="HF-POLICY-FILE") as error:
            Policy.load(path)
        assert str(path) in error.value.site


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"]
)
def test_tags_do_not_execute(tmp_path, tag):
    target = tmp_path / "made"
    refused(f"headforce: {tag} ['{target}']", "HF-POLICY-FILE")
    refused(f"headforce: 0\nclasses: {{a: {tag} ['{target}']}}", "HF-POLICY-FILE")
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("headforce: 0\nclases: {}", "did you mean 'classes'?"),
        ("headforce: 0\nhorzon: 3", "did you mean 'horizon'?"),
        ("headforce: 0\nwarmup: {chunk: 3}", "warmup.chunk: found key 'chunk' (did you mean 'chunks'?)"),
        ("headforce: 0\n3: x", "key '3'"),
        ("headforce: 0\non: x", "key 'True'"),
        ("headforce: 0\nhorizon: -3\nnonsense: 3", "key 'nonsense'"),
    ],
)
def test_unknown_keys(text, says):
    assert says in refused(text, "HF-POLICY-KEY")


def test_the_shape_that_a_policy_is_for():
    text = "headforce: 1\nclasses: {a: sink(1)}\ndefault: a\nmade_for: {layers: 2, heads: 3}"
    policy = Policy.loads(text)
    assert policy.made_for == (2, 3)
    for form in ("yaml", "json"):
        assert fields(Policy.loads(policy.dumps(form))) == fields(policy)
    anywhere = Policy.loads(text.partition("made_for")[0])
    assert policy != anywhere
    assert policy.digest != anywhere.digest
    valid(policy.dumps())


ONE = "headforce: 0\nclasses: {a: sink(1), b: window(1)}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ONE + "horizon: 0", "horizon: found 0; needed at least 1"),
        (ONE + "horizon: true", "horizon: found True; needed a whole number"),
        (ONE + "horizon: 2.0", "horizon: found 2.0; needed a whole number"),
        (ONE + "position_range: -1", "position_range: found -1; needed at least 1"),
        (ONE + "position_range: '9'", "position_range: found '9'; needed a whole number"),
        (ONE + "warmup: 3", "warmup: found 3; needed a mapping"),
        (ONE + "warmup: {}", "warmup.chunks: found nothing"),
        (ONE + "warmup: {chunks: 0}", "warmup.chunks: found 0"),
        (ONE + "warmup: {chunks: yes}", "warmup.chunks: found True"),
        (ONE + "warmup: {chunks: 1, rule: episodic(2)}", "without stateful operators"),
        (ONE + "default: c", "default: found class 'c'; needed one of the classes: a, b"),
        (ONE + "default: no", "default: found False; needed text"),
        (ONE + "layers: {0: c}", "layers.0: found class 'c'"),
        (ONE + "layers: [a, b]", "layers: found ['a', 'b']; needed a mapping"),
        (ONE + "layers: {-1: a}", "found -1; needed a layer"),
        (ONE + "layers: {true: a}", "found True; needed a layer"),
        (ONE + "layers: {1.0: a}", "found 1.0; needed a layer"),
        (ONE + "layers: {one: a}", "found 'one'; needed a layer"),
        (ONE + 'layers: {"03": a}', "found '03'; needed a layer"),
        (ONE + 'layers: {" 3": a}', "found ' 3'; needed a layer"),
        (ONE + "layers: {1: a, 1: b}", "1: found the same key twice"),
        (ONE + 'layers: {3: a, "3": b}', "3: found the same key twice"),
        (ONE + 'heads: {3: {}, "3": {}}', "3: found the same key twice"),
        (ONE + "heads: {0: a}", "heads.0: found 'a'; needed a mapping"),
        (ONE + "heads: {0: {a: 3}}", "heads.0.a: found 3; needed a list"),
        (ONE + "heads: {0: {a: [true]}}", "heads.0.a.0: found True; needed a whole number"),
        (ONE + "heads: {0: {a: [-1]}}", "heads.0.a.0: found -1; needed at least 0"),
        (ONE + "heads: {0: {a: ['1']}}", "heads.0.a.0: found '1'; needed a whole number"),
        (ONE + "heads: {0: {c: [1]}}", "heads.0.c: found class 'c'"),
        (ONE + "heads: {0: {a: [1, 2], b: [2]}}", "heads.0.b: found head 2 a second time"),
        (ONE + "heads: {0: {a: [1, 1]}}", "heads.0.a: found head 1 a second time"),
        (ONE + "heads: {0: {a: [1], a: [2]}}", "a: found the same key twice"),
        ("headforce: 0\nclasses: {a: sink(1), a: sink(2)}", "a: found the same key twice"),
        ("headforce: 0\nheadforce: 0", "headforce: found the same key twice"),
        ('{"headforce": 0, "classes": {"a": "sink(1)", "a": "sink(2)"}}', "a: found the same key twice"),
        ("headforce: 0\nclasses: {1: sink(1)}", "found 1; needed text"),
        ("headforce: 0\nclasses: {a: 3}", "classes.a: found 3; needed text"),
        ("headforce: 0\nclasses:", "classes: found None; needed a mapping"),
    ],
)
def test_wrong_values(text, says):
    assert says in refused(text, "HF-POLICY-VALUE")


def test_a_bomb_of_aliases_is_refused_with_a_short_message():
    lines = ["headforce: 0", "horizon:", "  - &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    refused("\n".join(lines), "HF-POLICY-VALUE")


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("sink(1", "HF-RULE-SYNTAX"),
        ("sinc(1)", "HF-OP-UNKNOWN"),
        ("sink(0)", "HF-OP-ARG"),
        ("episodic(2, source=evicted(recent))", "HF-RULE-FORM"),
    ],
)
def test_wrong_rules_name_their_place(rule, code):
    assert "my.yaml, classes.a:" in refused(f"headforce: 0\nclasses: {{a: '{rule}'}}", code)
    assert "my.yaml, warmup.rule:" in refused(f"headforce: 0\nwarmup: {{chunks: 1, rule: '{rule}'}}", code)


@pytest.mark.parametrize("cut", range(0, 460, 7))
def test_the_example_cut_short_is_refused_or_whole(cut):
    """A file that lost its end may still be a policy, but is never read as anything but what it says."""
    text = EXAMPLE.read_text(encoding="utf-8")[:cut]
    try:
        policy = Policy.loads(text)
    except HeadforceError:
        return
    assert set(policy.classes) <= set(Policy.load(EXAMPLE).classes)


# --- what YAML says, and what it would be read as -------------------------------------------------------------------

MERGED = """
headforce: 1
classes: {near: window(1), far: sink(1)}
heads:
  0: &a {near: [1]}
  1: &b {near: [2], far: [0]}
"""


@pytest.mark.parametrize(
    ("layer", "heads"),
    [
        ("{<<: *a}", {"near": (1,)}),
        ("{<<: *b, near: [7]}", {"near": (7,), "far": (0,)}),
        ("{near: [7], <<: *b}", {"near": (7,), "far": (0,)}),
        ("{<<: [*a, *b]}", {"near": (1,), "far": (0,)}),
        ("{<<: [*b, *a]}", {"near": (2,), "far": (0,)}),
        ("{<<: {<<: *a, far: [0]}}", {"near": (1,), "far": (0,)}),
        ("&c {<<: *c, far: [3]}", {"far": (3,)}),
        ("{<<: []}", {}),
    ],
)
def test_merge_keys(layer, heads):
    assert Policy.loads(f"{MERGED}  2: {layer}").heads[2] == heads


def test_what_is_merged_is_overridden_by_layer():
    text = "headforce: 1\nclasses: {near: window(1), far: sink(1)}\nlayers: {<<: {'3': near, 4: near}, 3: far}"
    assert Policy.loads(text).layers == {3: "far", 4: "near"}


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("{<<: 3}", "heads.2.<<: found what is no mapping"),
        ("{<<: [*a, 3]}", "heads.2.<<: found what is no mapping"),
        ("{<<: *a, <<: *b}", "heads.2.<<: found the same key twice"),
        ("{<<: {near: [1], near: [2]}}", "heads.2.<<.near: found the same key twice"),
        ("{<<: *a, far: [1], far: [2]}", "heads.2.far: found the same key twice"),
        ("{? [near] : [1]}", "heads.2: found a sequence as a key"),
    ],
)
def test_merge_keys_and_others_that_are_wrong(layer, says):
    assert says in refused(f"{MERGED}  2: {layer}", "HF-POLICY-VALUE")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("heads: {0: {a: [010]}}", "heads.0.a.0: found 010, which YAML takes for the number 8"),
        ("layers: {012: a}", "layers.012: found 012, which YAML takes for the number 10"),
        ("horizon: 1:30", "horizon: found 1:30, which YAML takes for the number 90"),
        ("horizon: 0x10", "horizon: found 0x10"),
        ("horizon: 0b11", "horizon: found 0b11"),
        ("horizon: 1_000", "horizon: found 1_000"),
        ("horizon: +5", "needed a whole number in plain decimal"),
        ("horizon: !!int {=: 010}", "found 010"),
        (f"horizon: 0x{'f' * 900}", "horizon: found 0xfff"),
        ("layers: {1: a, true: b}", "layers.true: found the same key twice"),
        ("layers: {1: a, 1.0: b}", "layers.1.0: found the same key twice"),
    ],
)
def test_what_would_be_read_as_another_number_or_key_is_refused(line, says):
    assert says in refused(ONE + line, "HF-POLICY-VALUE")


def test_numbers_in_quotes_are_text_and_so_is_an_equals_sign():
    policy = Policy.loads("headforce: 1\nclasses: {'010': sink(1), '1:30': sink(2), =: sink(3)}\ndefault: =")
    assert set(policy.classes) == {"010", "1:30", "="}
    assert policy.default == "="
