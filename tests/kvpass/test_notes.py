"""`HEADFORCE_LOGS` and `HEADFORCE_DUMP`: what is said and written about a graph, before it runs."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import headforce
from headforce import logs
from headforce.errors import HeadforceError
from headforce.policy import Policy

from .conftest import videos, wan

POLICY = Policy.loads("{headforce: 1, classes: {near: sink(1) | window(2), far: window(5)}, default: near}")


@pytest.fixture(autouse=True)
def quiet_again():
    yield
    logs.configure("")


def play(target="sdpa", chunks=3):
    model = wan()
    with headforce.prepare(model, policy=POLICY):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager", "target": target})
        return videos(compiled, model.config, ([3] * chunks,))[0]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_dump_holds_what_runs_and_changes_nothing(monkeypatch, tmp_path):
    plain = play()
    before = set(Path.cwd().iterdir())
    dump = tmp_path / "new" / "dump"
    monkeypatch.setenv("HEADFORCE_DUMP", str(dump))
    torch._dynamo.reset()
    assert torch.equal(play(), plain)
    assert set(Path.cwd().iterdir()) == before
    graphs = sorted(path.name for path in dump.iterdir())
    assert graphs == [f"graph_{i:03d}" for i in range(len(graphs))]
    first = dump / graphs[0]
    assert files(first) >= {"captured.py", "sites.txt", "owned.py", "chunk_000/plan.json", "chunk_000/layer_00.json"}
    captured, owned = ((first / name).read_text() for name in ("captured.py", "owned.py"))
    for code in (captured, owned):
        ast.parse(code)
    assert "scaled_dot_product_attention" in captured
    assert "ragged_attention" not in captured
    assert owned.count("headforce.ragged_attention") == 2
    assert (first / "sites.txt").read_text().count("rewritten") == 2
    plans = [json.loads(path.read_text()) for path in sorted(dump.glob("*/chunk_*/plan.json"))]
    assert {plan["chunk"]["start"] for plan in plans} == {0, 3, 6}
    tables = json.loads((first / "chunk_000" / "layer_01.json").read_text())
    assert set(tables) == {"reads", "runs", "pages"}
    assert len(tables["reads"][0]) == 8


def test_another_process_takes_the_next_number(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path))
    (tmp_path / "graph_000").mkdir()
    play(chunks=1)
    assert files(tmp_path / "graph_000") == set()
    assert "owned.py" in files(tmp_path / "graph_001")


def test_kernels_are_written_before_they_run(monkeypatch, tmp_path):
    from headforce.lowering import attention

    def fails(*given):
        raise RuntimeError("no launch")

    monkeypatch.setattr(attention, "launch", fails)
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path))
    with pytest.raises(RuntimeError, match="no launch"):
        play("triton", chunks=1)
    (source,) = tmp_path.glob("graph_000/kernels/ragged_attention_*.py")
    assert "def ragged_attention" in source.read_text()


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path / "file"))
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*HEADFORCE_DUMP"):
        play(chunks=1)


def test_logs_by_name_and_level(monkeypatch, caplog):
    monkeypatch.setenv("HEADFORCE_LOGS", "sites,+plan")
    play(chunks=2)
    said = {name: [r for r in caplog.records if r.name == f"headforce.{name}"] for name in logs.NAMES}
    assert any("rewritten  blocks.0.self_attn" in r.message for r in said["sites"])
    told = [r.message for r in said["plan"] if r.levelno == logging.INFO]
    assert told == ["frames 0 to 2\n  8 heads: none", "frames 3 to 5\n  8 heads: 0-2"]
    assert any(r.levelno == logging.DEBUG for r in said["plan"])
    assert not said["graphs"]


def test_a_name_that_there_is_not(monkeypatch):
    monkeypatch.setenv("HEADFORCE_LOGS", "+site")
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*did you mean 'sites'"):
        play(chunks=1)


def said_by(**variables):
    """What a process of its own says on stderr."""
    script = (
        "import torch, headforce.testing.zoo as zoo\n"
        "layer = torch.compile(zoo.SelfAttention(), backend='headforce', options={'inner': 'eager'})\n"
        "with torch.no_grad():\n"
        "    layer(*next(zoo.inputs(1))[:1], layer.new_cache(), 0)\n"
    )
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"), [("HEADFORCE_LOGS", "+graphs"), ("TORCH_LOGS", "+headforce")], ids=["own", "torch"]
)
def test_both_variables_of_a_process(variable, value):
    said = said_by(**{variable: value})
    assert "captured a graph" in said
    assert "class GraphModule" in said
    assert "headforce.graphs: captured" in said or variable == "TORCH_LOGS"
