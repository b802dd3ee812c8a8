"""docs/policy.md: its examples run and show what it says they show."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from headforce.cli import main
from headforce.errors import CATALOGUE
from headforce.policy import Policy
from headforce.policy.file import VERSION, _File

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "policy.md"
TEXT = DOCS.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_python():
    # In a process of its own: the page registers an operator.
    done = subprocess.run(
        [sys.executable, "-m", "doctest", str(DOCS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("console"))
def test_commands(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    command, shown = block.split("\n", 1)
    words = command.removeprefix("$ headforce ").split()
    output = CliRunner().invoke(main, words).stdout
    if "--json" in words:
        assert json.loads(output) == json.loads(shown)
    else:
        assert [line.rstrip() for line in output.splitlines()] == shown.splitlines()


@pytest.mark.parametrize("block", blocks("yaml"))
def test_files(block):
    policy = Policy.loads(block)
    assert Policy.loads(policy.dumps()) == policy
    assert f"headforce: {VERSION}" in block


@pytest.mark.parametrize("key", _File.model_fields)
def test_every_key_is_described(key):
    assert re.search(rf"^\| `{key}` \|", TEXT, re.MULTILINE)


def test_every_option_is_described():
    usage = TEXT.split("## `headforce plan`")[1]
    for option in main.commands["plan"].params:
        if option.param_type_name == "option":
            assert f"[{option.opts[0]}" in usage


def test_codes_exist():
    assert set(re.findall(r"HF-[A-Z-]*[A-Z]", TEXT)) <= set(CATALOGUE)
