"""Label files: published ones where they are at hand, round trips, and everything that can be wrong with one."""

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from headforce.errors import HeadforceError
from headforce.presets import Labels

DATA = Path(__file__).parents[3] / "shared/data"


def tables(*classes):
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 6))
    return sizes.flatmap(
        lambda size: st.lists(
            st.lists(st.sampled_from(classes), min_size=size[1], max_size=size[1]).map(tuple),
            min_size=size[0],
            max_size=size[0],
        )
    ).map(lambda layers: Labels(tuple(layers)))


@given(tables("static", "dynamic"))
def test_forcing_kv_and_back(labels):
    assert Labels.from_forcing_kv(json.loads(json.dumps(labels.to_forcing_kv()))) == labels


@given(tables("sink", "neighbor", "dummy"))
def test_dummy_forcing_and_back(labels):
    assert Labels.from_dummy_forcing(json.loads(json.dumps(labels.to_dummy_forcing()))) == labels


@given(tables("wave", "anchor", "veil"))
def test_pyramid_and_back(labels):
    assert Labels.from_pyramid(labels.to_pyramid()) == labels


@given(tables("a", "b", "c"))
def test_our_own_and_back(labels):
    assert Labels.from_classes(json.loads(json.dumps(labels.to_classes()))["classes"]) == labels
    default = labels.classes[0]
    named = labels.heads_besides(default)
    for layer, names in enumerate(labels.layers):
        for head, name in enumerate(names):
            found = [n for n, heads in named.get(layer, {}).items() if head in heads]
            assert found == ([] if name == default else [name])


@pytest.mark.parametrize("name", ["labels.json", "labels.csv"])
def test_files(tmp_path, name):
    labels = Labels((("wave", "veil"), ("anchor", "wave")))
    labels.save(tmp_path / name)
    assert Labels.load(tmp_path / name) == labels
    assert labels.counts() == {"wave": 2, "veil": 1, "anchor": 1}


def test_every_spelling_of_forcing_kv():
    """A file, a list of layers, layers by number; every alias; and layers that are not named."""
    one = {"layer_idx": 1, "local_heads": [0, 2], "temporal_head": [1]}
    expected = Labels((("dynamic",) * 3, ("static", "dynamic", "static")))
    assert Labels.from_forcing_kv({"num_layers": 2, "num_heads": 3, "layers": [one]}) == expected
    assert Labels.from_forcing_kv([one]) == expected
    assert Labels.from_forcing_kv({"1": {"spatial_heads": [0, 2], "dynamic_head": [1]}}) == expected
    longer = Labels.from_forcing_kv([one], layers=4)
    assert longer.layers == (*expected.layers, *(("dynamic",) * 3,) * 2)


def test_caches_of_dummy_forcing(tmp_path):
    """Its lists lie among the tensors of a layer's cache; written to a file they are found there."""
    lists = [
        {"headgroup_first": [], "headgroup_mid": [1], "headgroup_last": [0, 2]},
        {"headgroup_first": [2], "headgroup_mid": [1, 0], "headgroup_last": []},
    ]
    expected = Labels((("dummy", "neighbor", "dummy"), ("neighbor", "neighbor", "sink")))
    assert Labels.from_dummy_forcing([{**groups, "sink_k": object()} for groups in lists]) == expected
    (tmp_path / "headgroups.json").write_text(json.dumps(lists))
    assert Labels.load(tmp_path / "headgroups.json") == expected


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([{"headgroup_first": [0], "headgroup_mid": [1]}], r"layer 0.*no headgroup_last"),
        ([{"headgroup_first": None, "headgroup_mid": [1], "headgroup_last": []}], r"layer 0.*no headgroup_first"),
        ([{"headgroup_first": [0], "headgroup_mid": [0], "headgroup_last": []}], r"layer 0, neighbor.*second time"),
        ([{"headgroup_first": [0], "headgroup_mid": [2], "headgroup_last": []}], r"layer 0.*no class for head 1"),
        ([], "an item for every layer"),
    ],
)
def test_lists_of_dummy_forcing_that_are_wrong(layers, says):
    with pytest.raises(HeadforceError, match=says) as caught:
        Labels.from_dummy_forcing(layers)
    assert caught.value.code == "HF-LABELS"


def layer(index, static, dynamic):
    return {"layer_idx": index, "static_head": static, "dynamic_head": dynamic}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([layer(0, [0], [2])], r"layer 0.*no class for head 1"),
        ([layer(0, [0, 1], [1])], r"layer 0.*head 1 a second time"),
        ({"num_heads": 2, "layers": [layer(0, [0], [1, 2])]}, r"layer 0.*head 2.*0 to 1"),
        ({"num_layers": 1, "layers": [layer(3, [0], [1])]}, r"layer 3.*0 to 0"),
        ([layer(0, [0], [1]), layer(0, [0], [1])], r"layer 0.*twice"),
        ([layer(0, [-1], [1])], r"layer 0, static.*-1"),
        ([{"layer_idx": 0, "static_head": [0]}], r"layer 0.*no dynamic heads"),
        ([layer("x", [0], [1])], "layer_idx"),
        ([layer("²", [0], [1])], "layer_idx.*²"),
        ([layer(10**11, [0], [1])], "layer_idx.*0 to 9999"),
        ({"num_layers": "two", "layers": [layer(0, [0], [1])]}, "num_layers.*'two'"),
        ({"num_heads": None, "layers": [layer(0, [0], [1])]}, "num_heads.*None"),
        ([layer(0, 3, [1])], r"layer 0, static"),
        ([], "a list of layers"),
        ("no", "a list of layers"),
        ([layer(0, [], [])], "no heads|at least one"),
    ],
)
def test_what_is_wrong_is_named(data, says):
    with pytest.raises(HeadforceError, match=says) as caught:
        Labels.from_forcing_kv(data)
    assert caught.value.code == "HF-LABELS"


@pytest.mark.parametrize(
    ("text", "says"),
    [("1,3\n", "layer 0, head 1.*'3'"), ("1,x\n", "'x'"), ("1,1\n1\n", "layer 1.*1 heads"), ("", "no heads")],
)
def test_tables_that_are_wrong(text, says):
    with pytest.raises(HeadforceError, match=says):
        Labels.from_pyramid(text)


def test_our_own_needs_every_layer():
    with pytest.raises(HeadforceError, match="no layer 1"):
        Labels.from_classes({"0": {"a": [0]}, "2": {"a": [0]}})


def test_files_that_are_none(tmp_path):
    with pytest.raises(HeadforceError, match=r"HF-LABELS.*cannot be read"):
        Labels.load(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(HeadforceError, match=r"HF-LABELS.*not JSON"):
        Labels.load(tmp_path / "broken.json")


def test_classes_that_a_format_has_no_word_for():
    with pytest.raises(HeadforceError, match="HF-LABELS"):
        Labels((("sink",),)).to_pyramid()


published = pytest.mark.skipif(not DATA.is_dir(), reason="the published label files are not at hand")


@published
def test_published_pyramid_labels():
    """The totals and rows that the paper's tables give."""
    labels = Labels.load(DATA / "pyramid_best_labels.csv")
    assert (len(labels.layers), labels.heads) == (30, 12)
    assert labels.counts() == {"wave": 156, "anchor": 172, "veil": 32}
    assert [len(labels.of(13).get(name, ())) for name in ("wave", "anchor", "veil")] == [1, 9, 2]


@published
@pytest.mark.parametrize(
    ("name", "static", "dynamic", "shape"),
    [
        ("selfforcing", 134, 226, (30, 12)),
        ("causalforcing", 134, 226, (30, 12)),
        ("raven", 134, 226, (30, 12)),
        ("longlive", 154, 206, (30, 12)),
        ("realtime_14b", 800, 800, (40, 40)),
    ],
)
def test_published_forcing_kv_labels(name, static, dynamic, shape):
    labels = Labels.load(DATA / f"forcingkv_heads_{name}.json")
    assert (len(labels.layers), labels.heads) == shape
    assert labels.counts() == {"static": static, "dynamic": dynamic}
    assert Labels.from_forcing_kv(labels.to_forcing_kv()) == labels
