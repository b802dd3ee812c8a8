"""`benchmarks/scaling.py` at one small size with a made-up machine: a whole report, and bytes as they are counted."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import linear_machine

FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    found = importlib.import_module("scaling")
    size = replace(found.LONG, frames=15, window=6)
    monkeypatch.setattr(found, "POINTS", {"layers": [size]})
    monkeypatch.setattr(found, "LONG", size)
    monkeypatch.setattr(found, "PLANNED", ((1, 2),))
    yield found
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(FOLDER):
            del sys.modules[name]


@pytest.mark.slow
def test_a_short_run(scaling, tmp_path, capsys, monkeypatch):
    linear_machine().save(tmp_path / "machine.json")
    out = tmp_path / "out" / "scaling.json"
    arguments = ["--machine", str(tmp_path / "machine.json"), "--frames", "75", "--videos", "2", "--out", str(out)]
    assert scaling.main([*arguments, "--processor-time"]) == 0
    report = json.loads(out.read_text())
    (point,) = report["points"]
    assert point["held"] == point["counted"]
    assert report["compared"] == 4
    assert {side: report["frames"][side]["held"] for side in point["held"]} == point["held"]
    assert len(report["frames"]["dense"]["tenths"]) == 10
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "layers: 1 x 2 x 6, full" in printed
    assert "75 frames, headforce" in printed
    # Bytes that are not those counted end it with 1.
    monkeypatch.setattr(scaling, "frames", lambda *_: report["frames"])
    monkeypatch.setattr(scaling, "point", lambda *_: {**point, "counted": {"dense": 0, "headforce": 0}})
    assert scaling.main([*arguments, "--processor-time"]) == 1
    assert "bytes held are not those counted" in capsys.readouterr().err
