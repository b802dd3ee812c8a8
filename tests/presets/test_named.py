"""What a user may call a policy."""

import pytest

from headforce.errors import HeadforceError
from headforce.kvpass.options import read_options
from headforce.policy import Policy
from headforce.presets import Labels, dummy_forcing, longlive, read_policy

LABELS = Labels((("sink", "neighbor"), ("dummy", "neighbor")))


def test_the_object_the_name_and_the_file(tmp_path):
    assert read_policy(longlive()) == longlive()
    assert read_policy("longlive") == longlive()
    longlive().save(tmp_path / "policy.yaml")
    assert read_policy(tmp_path / "policy.yaml") == longlive()
    LABELS.save(tmp_path / "labels.json")
    assert read_policy("dummy_forcing", tmp_path / "labels.json") == dummy_forcing(LABELS)


def test_a_file_that_names_a_preset(tmp_path):
    """Its label file is looked for beside it."""
    LABELS.save(tmp_path / "labels.json")
    file = tmp_path / "policy.yaml"
    file.write_text("headforce: 0\npreset: dummy_forcing\narguments: {labels: labels.json, context: 6}\n")
    assert read_policy(file) == dummy_forcing(LABELS, context=6)
    file.write_text("headforce: 0\npreset: longlive\n")
    assert read_policy(file) == longlive()


def test_a_file_called_like_a_preset_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    longlive(window=6).save(tmp_path / "longlive")
    assert read_policy("longlive") == longlive(window=6)


def test_a_folder_called_like_a_preset_is_no_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "longlive").mkdir()
    assert read_policy("longlive") == longlive()
    with pytest.raises(HeadforceError, match="HF-POLICY-FILE"):
        read_policy("./longlive")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("headforce: 0\npreset: longlive\nclasses: {}\n", "HF-POLICY-KEY"),
        ("headforce: 0\npreset: [longlive]\n", "HF-POLICY-VALUE"),
        ("headforce: 0\npreset: nothing\n", "HF-PRESET"),
        ("headforce: 0\npreset: longlive\narguments: {window: '12'}\n", "HF-PRESET"),
        ("headforce: 0\npreset: longlive\narguments: {1: 12}\n", "HF-PRESET"),
        ("headforce: 9\npreset: longlive\n", "HF-POLICY-FILE"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, code):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(HeadforceError) as caught:
        read_policy(file)
    assert caught.value.code == code
    assert str(file) in str(caught.value)


def test_things_that_are_no_policy_and_no_labels():
    with pytest.raises(HeadforceError, match="HF-POLICY-FILE"):
        read_policy(3)
    with pytest.raises(HeadforceError, match="HF-LABELS"):
        read_policy("dummy_forcing", 3)


def test_the_strict_reader_says_where_presets_are_read(tmp_path):
    with pytest.raises(HeadforceError, match="read_policy"):
        Policy.loads("headforce: 0\npreset: longlive\n")


def test_options(tmp_path):
    LABELS.save(tmp_path / "labels.json")
    given = {"policy": "dummy_forcing", "labels": str(tmp_path / "labels.json")}
    assert read_options(None, given).policy == dummy_forcing(LABELS)
    for wrong in ({"labels": "x"}, {"policy": longlive(), "labels": "x"}):
        with pytest.raises(HeadforceError, match="HF-OPTION"):
            read_options(None, wrong)
    with pytest.raises(HeadforceError, match=r"HF-PRESET.*labels"):
        read_policy(longlive(), "x")
