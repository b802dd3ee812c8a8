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
from examples.own_model import TwoBlocks
from headforce import logs
from headforce.errors import HeadforceError
from headforce.policy import Policy
from headforce.testing import zoo

POLICY = Policy.loads("{headforce: 1, classes: {near: sink(1) | window(2), far: window(5)}, default: near}")


@pytest.fixture(autouse=True)
def quiet_again():
    yield
    logs.configure("")


def play(chunks=1, target="sdpa"):
    """What one layer of attention makes, in view mode."""
    torch.manual_seed(0)
    layer = zoo.SelfAttention()
    options = {"inner": "eager", "target": target, "policy": POLICY}
    compiled, cache = torch.compile(layer, backend="headforce", options=options), layer.new_cache()
    with torch.no_grad():
        return torch.cat([compiled(x, cache, start) for x, start in zoo.inputs(chunks, passes=1)], dim=1)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_dump_holds_what_runs_and_changes_nothing(monkeypatch, tmp_path):
    plain = play(3)
    before = set(Path.cwd().iterdir())
    dump = tmp_path / "new" / "dump"
    monkeypatch.setenv("HEADFORCE_DUMP", str(dump))
    torch._dynamo.reset()
    assert torch.equal(play(3), plain)
    assert set(Path.cwd().iterdir()) == before
    graphs = sorted(path.name for path in dump.iterdir())
    assert graphs == [f"graph_{i:03d}" for i in range(len(graphs))]
    first = dump / graphs[0]
    assert files(first) >= {"captured.py", "sites.txt", "view.py", "chunk_000/plan.json", "chunk_000/layer_00.json"}
    captured, lowered = ((first / name).read_text() for name in ("captured.py", "view.py"))
    for code in (captured, lowered):
        ast.parse(code)
    assert "scaled_dot_product_attention" in captured
    assert "ragged_attention" not in captured
    assert lowered.count("headforce.ragged_attention") == 1
    assert (first / "sites.txt").read_text().count("rewritten") == 1
    plans = [json.loads(path.read_text()) for path in sorted(dump.glob("*/chunk_*/plan.json"))]
    assert {plan["chunk"]["start"] for plan in plans} == {0, 2, 4}
    tables = json.loads((first / "chunk_000" / "layer_00.json").read_text())
    assert set(tables) == {"reads", "runs"}
    assert len(tables["reads"][0]) == 8


def test_owned_caches_are_dumped_with_their_pages(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path))
    (tmp_path / "graph_000").mkdir()  # of another process
    torch.manual_seed(0)
    model = TwoBlocks()
    memory = model.new_memory()
    with headforce.prepare(model, policy=POLICY), torch.no_grad():
        (x, start), *_ = zoo.inputs(1, passes=1)
        torch.compile(model, backend="headforce", options={"inner": "eager"})(x, memory, start)
    assert files(tmp_path / "graph_000") == set()
    assert (tmp_path / "graph_001" / "owned.py").read_text().count("headforce.write_pages") == 2
    tables = json.loads((tmp_path / "graph_001" / "chunk_000" / "layer_01.json").read_text())
    assert set(tables) == {"reads", "runs", "pages"}


def test_kernels_are_written_before_they_run(monkeypatch, tmp_path):
    from headforce.lowering import attention

    def fails(*given):
        raise RuntimeError("no launch")

    monkeypatch.setattr(attention, "launch", fails)
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path))
    with pytest.raises(RuntimeError, match="no launch"):
        play(target="triton")
    (source,) = tmp_path.glob("graph_000/kernels/ragged_attention_*.py")
    assert "def ragged_attention" in source.read_text()


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADFORCE_DUMP", str(tmp_path / "file"))
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*HEADFORCE_DUMP"):
        play()


def test_logs_by_name_and_level(monkeypatch, caplog):
    monkeypatch.setenv("HEADFORCE_LOGS", "sites,+plan")
    play(2)
    said = {name: [r for r in caplog.records if r.name == f"headforce.{name}"] for name in logs.NAMES}
    assert any("rewritten  " in r.message for r in said["sites"])
    told = [r.message for r in said["plan"] if r.levelno == logging.INFO]
    assert told == ["frames 0 to 1\n  4 heads: none", "frames 2 to 3\n  4 heads: 0-1"]
    assert any(r.levelno == logging.DEBUG for r in said["plan"])
    assert not said["graphs"]


def test_a_name_that_there_is_not(monkeypatch):
    monkeypatch.setenv("HEADFORCE_LOGS", "+site")
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*did you mean 'sites'"):
        play()


def test_messages_go_to_stderr_unless_somebody_says_where(monkeypatch, capsys):
    monkeypatch.setattr(logs.ROOT, "propagate", False)
    monkeypatch.setattr(logs.ROOT, "handlers", [])
    logs.configure("+graphs")
    logs.configure("+graphs")  # once more does nothing
    logs.GRAPHS.debug("code")
    logs.SITES.info("not asked for")
    assert capsys.readouterr().err == "headforce.graphs: code\n"


@pytest.mark.slow
def test_torch_takes_the_name_too():
    """`TORCH_LOGS` names any package; it is read when torch is imported."""
    script = "import torch; from headforce import logs; logs.GRAPHS.debug('graph'); logs.configure(''); print('ran')"
    environment = {**os.environ, "TORCH_LOGS": "+headforce"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n"
    assert done.stderr.rstrip().endswith("graph")
